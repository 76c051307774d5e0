"""What training needs and faces don't: device, seeds, signals, files written whole, the schedule, means."""
import ast
import contextlib
import ctypes
import json
import math
import os
import platform
import random
import signal
import socket
import sys
import uuid
from pathlib import Path

import numpy as np
import torch

try:
    import fcntl
except ImportError:  # Windows, where nothing guards a folder against a second run
    fcntl = None


class UserError(ValueError):
    """What the user asked for can't be; the message is one line for them."""


class DataError(ValueError):
    """The user's data or its description is not what it must be; the message is one line for them."""


def override(recipe, pairs):
    """A copy of `recipe` with the (key, text) `pairs` set, each read as a Python literal of the kind that stands there.

    A value of None takes a whole number. Raises UserError for a key that isn't there or a value of another kind.
    """
    recipe = dict(recipe)
    for key, text in pairs:
        if key not in recipe:
            raise UserError(f'--set {key}: no such value in the recipe; there are {", ".join(recipe)}')
        like = 0 if recipe[key] is None else recipe[key]
        try:
            recipe[key] = text if isinstance(like, str) else _of_the_kind(like, ast.literal_eval(text))
        except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError):  # all that a text can lead to
            raise UserError(f'--set {key}={text!r:.80}: expected something like {recipe[key]!r}') from None
    return recipe


def _of_the_kind(like, value):
    """`value`, an int where a float is wanted made one, and a tuple's entries as `like`'s first is. TypeError for another kind."""
    if type(like) is float and type(value) is int:
        return float(value)
    if type(value) is not type(like):
        raise TypeError
    return tuple(_of_the_kind(like[0], entry) for entry in value) if isinstance(like, tuple) else value


def pick_device(ctx):
    """The CPU for ctx < 0, else the ctx-th GPU. Raises UserError where there is no such GPU."""
    if ctx < 0:
        _keep_freed_memory()
        return torch.device('cpu')
    if ctx >= torch.cuda.device_count():
        raise UserError(f'ctx {ctx}: this machine has {torch.cuda.device_count()} GPU(s) that PyTorch can use; -1 is the CPU')
    torch.cuda.set_device(ctx)  # pinned memory and whatever else goes by the current device
    return torch.device('cuda', ctx)


def _keep_freed_memory():
    """Lets the C library keep what one step's tensors leave for those of the next. By its defaults it returns most of it to the system,
    which clears each page anew, for 5 to 8 % of the time of training (benchmarks/parts.py). Blocks of 32 MiB and more go and come as before."""
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD: from how much on free memory at the heap's end is returned
        libc.mallopt(-3, 2 ** 25)      # M_MMAP_THRESHOLD: from which size on a block is no part of the heap; 32 MiB is the most there is


def gains_from_bf16(device):
    """Whether the hardware multiplies bfloat16 itself; where it only emulates it, training would be slower."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, 'get_capabilities') else {}  # releases before it: float32
    return bool(features.get('avx512_bf16') or features.get('amx_bf16') or features.get('bf16'))


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_of(*numbers):
    """One seed of several whole numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


class Interrupted(UserError):
    """A signal asked for an end."""


class Interrupt:
    """Within it SIGINT and SIGTERM are noted in `received` (None or the signal's name), to be acted on between two steps.

    A second one ends the process as usual, unless `insistent`: a launcher repeats what reached its whole group, and kills in the end.
    """

    received = None

    def __init__(self, insistent=False):
        self.insistent = insistent

    def __enter__(self):
        self.before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        self.received = signal.Signals(number).name
        if not self.insistent:
            signal.signal(number, self.before[number])

    def check(self):
        """Raises Interrupted where a signal has come."""
        if self.received:
            raise Interrupted(self.received)

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def claim(folder, option='--save', work='training'):
    """Makes the folder, the user's `option`, and holds it for this process. Raises UserError where it can't be written or another holds it."""
    path = Path(folder, '.lock')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, 'a+b', buffering=0)
    except OSError as error:
        raise UserError(f'{folder}: {error.strerror}: {option} names a folder that can be written') from None
    with file:
        if fcntl:
            try:
                # goes with the process, however that ends; flock would stay with the decode workers, which outlive a kill by seconds
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                raise UserError(f'{folder}: {file.read().decode()} is {work} into it: {option} DIR starts elsewhere') from None
        try:
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
            for stale in path.parent.glob('.*.????????.tmp'):  # write_whole's, of a process that was killed in it
                stale.unlink()
        except OSError as error:
            raise UserError(f'{folder}: {error.strerror}: {option} names a folder that can be written') from None
        yield


@contextlib.contextmanager
def one_line_errors():
    """Ends the program with one line, exit status 1, for UserError, DataError, and what the system
    refuses; bugs keep their traceback."""
    try:
        yield
    except (UserError, DataError) as error:
        # an error out of a worker process arrives with that process's traceback before it
        sys.exit(f'error: {str(error).strip().splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")}')
    except OSError as error:
        sys.exit(f'error: {f"{error.filename}: " if error.filename else ""}{error.strerror or error}')
    except torch.OutOfMemoryError as error:
        sys.exit(f'error: {str(error).splitlines()[0]} Lower --batch-size; --resume continues from the last save')
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        sys.exit(f'error: {str(error).splitlines()[0].rstrip(". ")}. It may have run out of memory: fewer --workers or a smaller --batch-size; '
                 '--resume continues from the last save')


def write_whole(path, write):
    """`write(temporary)` fills a file beside `path`, which then takes its name: a reader finds the old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')
    try:
        write(temporary)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # what the user knows, and a full disk names no file at all
        raise
    finally:
        temporary.unlink(missing_ok=True)


def warmup_cosine(progress, warmup):
    """Factor on the learning rate at a fraction of the training: linear from 0 to 1 over `warmup`, then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / max(1 - warmup, 1e-9), 1)))


def split_weight_decay(module, weight_decay):
    """Optimizer groups: decay for matrices and convolutions, none for norms and biases."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [{'params': [p for p in parameters if p.ndim > 1], 'weight_decay': weight_decay},
            {'params': [p for p in parameters if p.ndim <= 1], 'weight_decay': 0.}]


class Mean:
    """Running means of scalars that stay on the device: one wait for it per report, not per step."""

    def __init__(self):
        self.sums, self.counts = {}, {}

    def add(self, **scalars):
        for name, value in scalars.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.counts[name] = self.counts.get(name, 0) + 1

    def __bool__(self):
        return bool(self.sums)

    def flush(self):
        """Means since the last call, as floats."""
        names = list(self.sums)
        values = torch.stack([self.sums[name].float() for name in names]).tolist() if names else []
        means = {name: value / self.counts[name] for name, value in zip(names, values)}
        self.__init__()
        return means

    def state_dict(self):
        return {'sums': dict(self.sums), 'counts': dict(self.counts)}

    def load_state_dict(self, state, device):
        self.sums = {name: total.to(device).reshape(()) for name, total in state['sums'].items()}
        self.counts = {name: int(state['counts'][name]) for name in self.sums}


class NotFinite:
    """Notes the first step at which one of its scalars was not finite, without waiting for the device at each."""

    def __init__(self):
        self.names, self.values = (), None

    def add(self, step, **scalars):
        values = torch.stack([torch.full_like(scalars['loss'].detach(), step, dtype=torch.float64)]
                             + [value.detach().double() for value in scalars.values()])
        keep = self.values is not None and self.names == tuple(scalars)
        self.names = tuple(scalars)
        # once a bad step is held, it stays; until then the newest is held
        self.values = torch.where(self.values.isfinite().all(), values, self.values) if keep else values

    def first(self):
        """(step, {name: value}) of that step, or None."""
        if self.values is None:
            return None
        step, *values = self.values.tolist()
        return None if all(map(math.isfinite, values)) else (int(step), dict(zip(self.names, values)))


def write_json(values, path):
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(finite(values), indent=1) + '\n'))


def finite(value):
    """`value`, with null for the numbers in it that JSON has no way to write."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
