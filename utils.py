"""What training needs and faces don't: device, seeds, files written whole, checkpoints, the log, the schedule."""
import ast
import contextlib
import json
import math
import os
import platform
import random
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from model import read_state

try:
    import fcntl
except ImportError:  # Windows, where nothing guards a folder against a second run
    fcntl = None


class UserError(ValueError):
    """What the user asked for can't be; the message is one line for them."""


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
        return torch.device('cpu')
    if ctx >= torch.cuda.device_count():
        raise UserError(f'ctx {ctx}: this machine has {torch.cuda.device_count()} GPU(s) that PyTorch can use; -1 is the CPU')
    torch.cuda.set_device(ctx)  # pinned memory and whatever else goes by the current device
    return torch.device('cuda', ctx)


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
def one_line_errors(*kinds):
    """Ends the program with one line, exit status 1, for UserError, `kinds`, and what the system refuses; bugs keep their traceback."""
    try:
        yield
    except (UserError, *kinds) as error:
        # an error out of a worker process arrives with that process's traceback before it
        sys.exit(f'error: {str(error).strip().splitlines()[-1].removeprefix(f"{type(error).__module__}.{type(error).__name__}: ")}')
    except OSError as error:
        sys.exit(f'error: {error.filename or ""}: {error.strerror or error}')
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


def save_checkpoint(state, path):
    """Tensors, numbers, strings, lists and dicts: what torch.load's safe default reads. Raises UserError where it can't be written."""
    try:
        write_whole(path, lambda temporary: torch.save(state, temporary))
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        if 'DataLoader worker' in str(error):  # one that is killed says so in whatever this process is at
            raise
        raise UserError(f'{path}: not written ({getattr(error, "strerror", None) or "the disk may be full"}); the file before it is whole: '
                        'make room and --resume') from None


def load_checkpoint(path, needed):
    """The dict in a checkpoint, on the CPU, by model.read_state: a stranger's file runs nothing.

    `needed` are the keys it must have, or a dict of them and the types of their values. Raises UserError where the file is missing,
    damaged, or not of that form.
    """
    try:
        state = read_state(path)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except ValueError as error:
        raise UserError(str(error)) from None
    missing = [key for key in needed if not isinstance(state, dict) or key not in state]
    if missing:
        raise UserError(f'{path}: no weights file of this repository (it lacks {", ".join(missing)})')
    for key, kind in needed.items() if isinstance(needed, dict) else ():
        if not isinstance(state[key], kind):
            raise UserError(f'{path}: no weights file of this repository ({key} is of type {type(state[key]).__name__})')
    return state


def restore_optimizer(optimizer, saved):
    """Gives `optimizer` the moments of a state_dict; its settings stay its own, as the recipe says. Raises ValueError where they don't fit."""
    own = optimizer.state_dict()['param_groups']
    optimizer.load_state_dict({'state': saved['state'], 'param_groups': own})
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    for index, moments in saved['state'].items():
        for name, moment in moments.items():
            if moment.shape != (() if name == 'step' else parameters[index].shape):
                raise ValueError(f'{name} {tuple(moment.shape)} of a parameter {tuple(parameters[index].shape)}')


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


class Log:
    """One JSON line a report in `log.jsonl`, the same numbers in TensorBoard. Numbers that aren't finite are written as null."""

    def __init__(self, folder, step, epoch=math.inf):
        self.path = Path(folder, 'log.jsonl')
        self._forget_after(step, epoch)
        self.board = SummaryWriter(folder, purge_step=step + 1)

    def _forget_after(self, step, epoch):
        """A run resumed at `step`, with `epoch` epochs reported, writes what comes after them again; a line that was cut short goes too."""
        if self.path.exists():
            kept = [json.dumps(row) + '\n' for row in read_log(self.path) if row['step'] <= step and row.get('epoch', 0) <= epoch]
            write_whole(self.path, lambda temporary: Path(temporary).write_text(''.join(kept)))

    def report(self, kind, step, **values):
        """`kind` is 'max', 'min' or 'epoch'; `step` the global step. Returns the values as written."""
        values = {name: _finite(value) for name, value in values.items()}
        try:
            with open(self.path, 'a') as file:
                file.write(json.dumps({'kind': kind, 'step': step, **values}) + '\n')
        except OSError as error:
            error.filename = str(self.path)  # which a full disk does not name
            raise
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.board.add_scalar(f'{kind}/{name}', value, step)
        return values

    def close(self):
        self.board.close()


def run_summary(device):
    """What a figure depends on beside the recipe: versions, hardware, and the git revision where there is one."""
    git = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=Path(__file__).parent, capture_output=True, text=True, check=False) \
        if shutil.which('git') else None
    return {'python': platform.python_version(), 'torch': torch.__version__, 'numpy': np.__version__, 'system': platform.platform(),
            'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine(),
            'threads': torch.get_num_threads(), 'git': git.stdout.strip() or None if git else None}


def write_json(values, path):
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(_finite(values), indent=1) + '\n'))


def differences(path, summary):
    """One line for each value of `summary`, one level into dicts, that is another in the JSON file at `path`, if there is one."""
    if not path.exists():
        return []
    now = json.loads(json.dumps(_finite(summary)))
    try:
        before = json.loads(path.read_text())
        before['recipe'].items()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f'{path} is damaged: whether this run is as it began is not known']
    flat = [{(*key, name): value for key, part in (((), top), (('recipe',), top.get('recipe', {}))) for name, value in part.items()
             if name != 'recipe'} for top in (before, now)]
    return [f'{" ".join(key)} was {flat[0].get(key)!r} at the call before and is {value!r} now'
            for key, value in flat[1].items() if flat[0].get(key) != value]


def _finite(value):
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_log(path):
    """The rows of a `log.jsonl`; lines that were cut short by a crash or aren't ours are left out."""
    rows = []
    for line in Path(path).read_bytes().splitlines():
        try:
            row = json.loads(line)
            if row['kind'] and row['step'] >= 0:
                rows.append(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return rows


def plot_curves(rows, panels, path):
    """Draws `panels`, a list of (title, [(kind, name, label), …]), from the rows of a log over the global step."""
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout='constrained')
    for axis, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for kind, name, label in lines:
            points = [(row['step'], row[name]) for row in rows if row['kind'] == kind and row.get(name) is not None]
            if points:
                axis.plot(*zip(*points), label=label, marker='.' if len(points) < 40 else None, linewidth=1.2)
        axis.set_title(title)
        axis.set_xlabel('global step')
        if axis.lines:
            axis.legend(fontsize='small')
        axis.grid(alpha=.3)
    write_whole(path, lambda temporary: figure.savefig(temporary, format='png', dpi=110))
