"""What training needs and faces don't: device, seeds, signals, files written whole, the schedule, means."""
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
    refuses; bugs keep their traceback. What a terminal's encoding lacks is shown as `?`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='replace')
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


def write_json(values, path):
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(finite(values), indent=1) + '\n'))


def finite(value):
    """`value`, with null for the numbers in it that JSON has no way to write."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
