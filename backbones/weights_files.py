"""Files of weights, whoever wrote them: read so that nothing of theirs runs, and examined whole."""

import functools
import importlib.util
import json
import math
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

OLD = b'\x80\x02'  # how files of torch.save before PyTorch 1.6 begin
UNCHECKED = 'has no checksums, so damage within a tensor would not be noticed'
AGAIN = 'download it anew'


class Inert(dict):
    """Stands for a class or function that a file names: nothing is imported or called for it."""

    def __init__(self, *arguments):
        super().__init__()

    def __setstate__(self, state):
        pass


@functools.cache
def warn(line: str) -> None:
    """Shows the user a line about a file that can be used, once."""
    print(f'warning: {line}', file=sys.stderr)


def in_package(package: str, file: str) -> Path:
    """A file, named by a pattern, that an installed package brings; no code of it runs. Raises
    ImportError."""
    spec = importlib.util.find_spec(package)
    found = sorted(Path(spec.origin).parent.glob(file)) if spec and spec.origin else []
    if not found:
        raise ImportError(name=package.replace('_', '-'))
    return found[-1]


def read(path: str | os.PathLike, say: Callable[[str], None] = warn, others: bool = True) -> object:
    """The content of a file of torch.save, on the CPU, or {name: tensor} of a .safetensors file.

    What files of `others`, such as Lightning's, hold beside tensors becomes inert objects. A file
    that `export.py backbone` wrote is {'model': {name: tensor}, 'backbone': its arguments}. `say`
    gets a line if the file has no checksums. Raises ValueError, one line that names the file and,
    if bytes of it are damaged, the tensor; FileNotFoundError.
    """
    if str(path).endswith('.safetensors'):
        return _safetensors(path, say)
    damaged = _examine(path, say)
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        if damaged:
            raise ValueError(f'{path}: damaged in {damaged}: {AGAIN}') from None
        content = _without_classes(path, error, others)
    except Exception as error:  # zip, end-of-file, key and runtime errors: whatever damage leads to
        raise ValueError(f'{path}: damaged or cut ({type(error).__name__}): {AGAIN}') from None
    if damaged:
        where = f'{_tensor_of(damaged, path, content)} (its checksum differs)'
        raise ValueError(f'{path}: damaged in {where}: {AGAIN}')
    return content


def _examine(path, say):
    """The first record of an archive whose checksum differs, or None. Raises ValueError if the file
    is no file of torch.save, or not all of one."""
    from system.foreign import READ, what_it_is  # here: the hub reads nothing, and has no `system`

    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        head = file.read(READ)
    if head.startswith(OLD):
        return say(f'{path}: of torch.save before PyTorch 1.6: it {UNCHECKED}')
    if not head.startswith(b'PK'):
        known = what_it_is(head) or ('no file of torch.save' if head else f'empty: {AGAIN}')
        raise ValueError(f'{path}: {known}')
    try:
        archive = zipfile.ZipFile(path)
        entries = archive.infolist()
    except Exception:  # zip, struct and unicode errors
        begin = f'its {size} bytes begin an archive of torch.save and do not end it'
        raise ValueError(f'{path}: cut: {begin}: {AGAIN}') from None
    names = {entry.filename.rpartition('/')[2] for entry in entries}
    if 'data.pkl' not in names or 'constants.pkl' in names:
        raise ValueError(f'{path}: a TorchScript program, or an archive to be unpacked first')
    # torch.save compresses nothing, from the first byte on; torch.load would inflate what is, and
    # believe any size
    whole = min(entry.header_offset for entry in entries) == 0
    packed = any(entry.compress_type for entry in entries)
    if not whole or packed or sum(entry.file_size for entry in entries) > size:
        raise ValueError(f'{path}: claims to be more than the file holds: {AGAIN}')
    if not any(entry.CRC for entry in entries):  # torch.serialization.set_crc32_options(False)
        return say(f'{path}: it {UNCHECKED}')
    try:
        return archive.testzip()
    except Exception as error:  # headers that are damaged
        raise ValueError(f'{path}: damaged ({error}): {AGAIN}') from None


def _tensor_of(record, path, content):
    """The name of the tensor whose bytes are the archive's `record`; else the record."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(record)
        entry.CRC = None  # or it would be compared again
        data = archive.read(entry)
    for state in state_dicts(content).values():
        for name, tensor in state.items():
            if tensor.nbytes == len(data):
                values = tensor.contiguous().flatten().view(torch.uint8)
                if values.numpy().tobytes() == data:
                    return name
    return record


def _without_classes(path, error, others):
    """The file again, with every global that torch does not allow replaced by `Inert`."""
    try:
        unsafe = get_unsafe_globals_in_checkpoint(path) if others else []
        with safe_globals([(type('Inert', (Inert,), {}), name) for name in unsafe]):
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception:  # of a file of the old format, or one that builds what isn't its own
        reason = str(error).split('WeightsUnpickler error: ')[-1].split('\n')[0]
        why = f'holds Python objects beside its tensors and was refused ({reason:.120})'
        remedy = 'if you trust it, torch.load(…, weights_only=False) and save its state dict alone'
        line = f'{why}: {remedy}' if reason.strip() else f'damaged: {AGAIN}'
        raise ValueError(f'{path}: {line}') from None


def _safetensors(path, say):
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ValueError(f'{path}: needs safetensors: pip install safetensors') from None
    try:
        with safe_open(path, 'pt') as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
            about = file.metadata() or {}
        say(f'{path}: it {UNCHECKED}')
        ours = 'template' in about and is_ours(state)
        return {'model': state, 'backbone': json.loads(about['backbone'])} if ours else state
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f'{path}: cut or damaged ({error}): {AGAIN}') from None


def is_ours(weights: object) -> bool:
    """Whether a file's entry `model` is a network of this repository."""
    names = weights if isinstance(weights, Mapping) else ()
    return any(str(name).startswith('factorization.') for name in names)


def state_dicts(content: object) -> dict[str, dict[str, torch.Tensor]]:
    """Every state dict in what `read` gave, by the keys that lead to it: '' (the content itself),
    'state_dict', 'checkpoint.model' …"""
    found, queue = {}, [('', content)]
    for where, value in queue:
        if isinstance(value, Inert) or not isinstance(value, Mapping):
            continue
        named = {key: entry for key, entry in value.items() if isinstance(key, str)}
        state = {name: entry for name, entry in named.items() if isinstance(entry, torch.Tensor)}
        if state:
            found[where] = state
        queue += [(f'{where}.{key}' if where else key, entry) for key, entry in named.items()]
    return found


def published(path: str | os.PathLike, content: object) -> dict[str, dict[str, torch.Tensor]]:
    """`state_dicts` of a file of others. Raises ValueError if it has none or is one of this
    repository."""
    if isinstance(content, Inert) or not isinstance(content, Mapping):
        raise ValueError(f'{path}: holds a whole module, or no dict: torch.save(m.state_dict(), …)')
    if is_ours(content.get('model')):
        raise ValueError(f'{path}: a weights file of this repository, which needs no --backbone')
    found = state_dicts(content)
    if not found:
        names = ', '.join(map(str, content))[:80]
        raise ValueError(f'{path}: no state dict; it holds {names or "nothing"}')
    return found


def check_tensors(path: str | os.PathLike, state: Mapping[str, torch.Tensor]) -> None:
    """Raises ValueError, which names file and tensor, for values that no trained network has: NaN,
    infinities, variances below zero, and a matrix or variances of zeros alone. R in closed form
    may be zero: it is until ages were seen."""
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            continue
        name, values, ndim = str(name), tensor, tensor.ndim
        if tensor.nbytes > tensor.untyped_storage().nbytes():  # expanded: a value stands for many
            values = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        if not values.numel():
            continue
        if values.element_size() == 1:
            values = values.float()
        low, high = (float(value) for value in values.aminmax())
        variances, why = name.endswith('running_var'), None
        if not math.isfinite(high - low):
            count = int((~torch.isfinite(values)).sum())
            why = f'{count} of its {values.numel()} values are NaN or infinite'
        elif variances and low < 0:
            why = f'a variance of {low:.3g}, below zero'
        elif low == high == 0 and (variances or ndim > 1) and 'factorization.' not in name:
            why = 'all of its values are zero'
        if why:
            damaged = f'its weights are damaged: {name}: {why}'
            raise ValueError(f'{path}: {damaged}: download or copy the file anew')
