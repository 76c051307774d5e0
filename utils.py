"""Errors in one line, the device, seeds, files written whole: nothing here knows faces."""

import contextlib
import ctypes
import functools
import json
import math
import os
import platform
import random
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

copy_stream = functools.cache(torch.cuda.Stream)  # by device


class UserError(ValueError):
    """What the user asked for can't be; the message is one line for them."""


class DataError(ValueError):
    """The user's data or its description can't be used; the message is one line for them."""


def pick_device(ctx: int) -> torch.device:
    """The CPU for ctx < 0, else the ctx-th GPU: CUDA's, or Apple's if there is none. Raises
    UserError if there is no such GPU, or the installed PyTorch can't use it. What is float32 is
    then computed in float32: PyTorch's default is TF32, of 10 bits, in convolutions."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if ctx < 0:
        keep_freed_memory()
        return torch.device('cpu')
    count = torch.cuda.device_count()
    if ctx == count == 0 and torch.backends.mps.is_available():
        return torch.device('mps')
    if ctx >= count:
        there = f'this machine has {count} GPU(s) that PyTorch can use'
        raise UserError(f'ctx {ctx}: {there}; -1 is the CPU')
    _check_kernels(ctx)
    torch.cuda.set_device(ctx)  # pinned memory and whatever else goes by the current device
    return torch.device('cuda', ctx)


def _check_kernels(ctx):
    """Raises UserError if the installed PyTorch was not built for the ctx-th GPU."""
    found, built = torch.cuda.get_device_capability(ctx), torch.cuda.get_arch_list()
    numbers = [re.fullmatch(r'(sm|compute)_(\d+)(\d)[af]?', name) for name in built]
    if torch.version.hip or not built or not all(numbers):  # AMD's have other names
        return
    for kind, major, minor in (number.groups() for number in numbers):
        made_for = int(major), int(minor)
        # machine code runs on later minor versions, PTX on whatever is later
        if made_for <= found and (kind == 'compute' or made_for[0] == found[0]):
            return
    has = f'{torch.cuda.get_device_name(ctx)} has compute capability {found[0]}.{found[1]}'
    made = f'PyTorch {torch.__version__} is built for {", ".join(built)}'
    remedy = 'install a build for it (pytorch.org), or use -1, the CPU'
    raise UserError(f'ctx {ctx}: {has}, and {made}: {remedy}')


def keep_freed_memory() -> None:
    """Lets the C library keep what one step's tensors leave for those of the next. Returned to the
    system, every page is cleared anew: on a CPU that can be half of the time."""
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: free memory that is kept
        # M_MMAP_THRESHOLD, the largest block that is kept; 0 is the refusal of glibc below 2.35
        libc.mallopt(-3, 2**31 - 1) or libc.mallopt(-3, 2**25)


def fastest_precision(device: torch.device) -> str:
    """In which of 'bf16', 'fp16' and 'float32' the hardware multiplies fastest."""
    if device.type == 'cuda':
        capability = torch.cuda.get_device_capability(device)
        return 'bf16' if capability >= (8, 0) else 'fp16' if capability >= (7, 0) else 'float32'
    if device.type != 'cpu' or not torch.backends.mkldnn.is_available():  # a macOS wheel has none
        return 'float32'
    # releases before get_capabilities: float32
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, 'get_capabilities') else {}
    return 'bf16' if any(map(known.get, ('avx512_bf16', 'amx_bf16', 'bf16'))) else 'float32'


def to_device(device: torch.device, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors on `device`; pinned ones are copied to a GPU while it computes."""
    if device.type != 'cuda':
        return [tensor.to(device) for tensor in tensors]
    copying, computing = copy_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        copies = [tensor.to(device, non_blocking=True) for tensor in tensors]
    computing.wait_stream(copying)
    for tensor in copies:
        tensor.record_stream(computing)  # its memory is free again when both are done with it
    return copies


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_of(*numbers: int) -> int:
    """One seed of several whole numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
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
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            remedy = 'Lower --batch-size'
        elif 'DataLoader worker' in str(error):
            remedy = 'It may have run out of memory: fewer --workers or a smaller --batch-size'
        else:
            raise
        what = str(error).splitlines()[0].rstrip('. ')
        sys.exit(f'error: {what}. {remedy}; --resume continues from the last save')


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
