"""What knows no faces: errors in one line, the device, seeds, files written whole."""
import contextlib
import ctypes
import json
import math
import os
import platform
import random
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch


class UserError(ValueError):
    """What the user asked for can't be; the message is one line for them."""


class DataError(ValueError):
    """The user's data or its description can't be used; the message is one line for them."""


def pick_device(ctx: int) -> torch.device:
    """The CPU for ctx < 0, else the ctx-th GPU. Raises UserError where there is no such GPU."""
    if ctx < 0:
        _keep_freed_memory()
        return torch.device('cpu')
    if ctx >= torch.cuda.device_count():
        raise UserError(f'ctx {ctx}: this machine has {torch.cuda.device_count()} GPU(s) that '
                        'PyTorch can use; -1 is the CPU')
    torch.cuda.set_device(ctx)  # pinned memory and whatever else goes by the current device
    return torch.device('cuda', ctx)


def _keep_freed_memory():
    """Lets the C library keep what one step's tensors leave for those of the next. By default it
    returns most of it to the system, which clears each page anew, for 5 to 8 % of the time of
    training (benchmarks/parts.py). Blocks of 32 MiB and more go and come as before."""
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD: free memory that is kept
        libc.mallopt(-3, 2 ** 25)      # M_MMAP_THRESHOLD: the largest there is


def gains_from_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; emulated, it is slower than float32."""
    if device.type == 'cuda':
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # releases of PyTorch that can't tell: float32
    features = torch.cpu.get_capabilities() if hasattr(torch.cpu, 'get_capabilities') else {}
    return any(features.get(name) for name in ('avx512_bf16', 'amx_bf16', 'bf16'))


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_of(*numbers: int) -> int:
    """One seed of several whole numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


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
        kind = f'{type(error).__module__}.{type(error).__name__}: '
        sys.exit(f'error: {str(error).strip().splitlines()[-1].removeprefix(kind)}')
    except OSError as error:
        file = f'{error.filename}: ' if error.filename else ''
        sys.exit(f'error: {file}{error.strerror or error}')
    except torch.OutOfMemoryError as error:
        sys.exit(f'error: {str(error).splitlines()[0]} Lower --batch-size; --resume continues from '
                 'the last save')
    except RuntimeError as error:
        if 'DataLoader worker' not in str(error):
            raise
        sys.exit(f'error: {str(error).splitlines()[0].rstrip(". ")}. It may have run out of '
                 'memory: fewer --workers or a smaller --batch-size; --resume continues from the '
                 'last save')


def write_whole(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """`write(temporary)` fills a file beside `path`, which then takes its name: a reader finds the
    old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:8]}.tmp')
    try:
        write(temporary)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # what the user knows
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_json(values: object, path: str | os.PathLike) -> None:
    text = json.dumps(finite(values), indent=1) + '\n'
    write_whole(path, lambda temporary: temporary.write_text(text))


def finite(value: object) -> object:
    """`value`, with null for the numbers in it that JSON has no way to write."""
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
