"""Files of weights that strangers publish, read so that nothing of theirs runs."""

import contextlib
import os
import pickle
import zipfile

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

# where a training's checkpoint keeps the state dict: Lightning, arcface_torch, and the usual name
CONTAINERS = 'state_dict', 'state_dict_backbone', 'model_state_dict'
PREFIXES = 'module.', '_orig_mod.'  # of DistributedDataParallel and torch.compile
# how the files begin that are saved in place of the weights
IMPOSTORS = (
    (b'version https://git-lfs', 'a git-LFS pointer, not the weights: git lfs pull'),
    (b'<', 'a web page, not the weights: download it anew, in a browser if need be'),
    (b'\x1f\x8b', 'a gzip archive: unpack it first'),
    (b'7z\xbc\xaf', 'a 7z archive: unpack it first'),
    (b'\x89HDF', 'a file of Keras: a state dict of torch.save is needed'),
)
AGAIN = 'download it anew'


class Inert(dict):
    """Stands for a class or function that a file names: nothing is imported or called for it."""

    def __init__(self, *arguments):
        super().__init__()

    def __setstate__(self, state):
        pass


def is_of_torch(path) -> bool:
    """Whether the file begins as those of torch.save do, old and new."""
    with open(path, 'rb') as file:
        return file.read(2) in (b'PK', b'\x80\x02')


def read_state(path) -> dict[str, torch.Tensor]:
    """{name: tensor} of a published file, on the CPU: a plain state dict, or a checkpoint with one.

    Reads the archives of torch.save and its older format by torch's weights-only unpickler. What
    a Lightning `.ckpt` holds beside tensors (callbacks, hyper-parameters) is passed over without
    its classes: it becomes inert objects. Prefixes of DDP and torch.compile are stripped. Raises
    ValueError, one line that names the file, and FileNotFoundError.
    """
    refuse_impostors(path)
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        state = _without_classes(path, error)
    except Exception as error:  # zip, end-of-file, key and runtime errors: whatever damage leads to
        raise ValueError(f'{path}: damaged or cut ({type(error).__name__}): {AGAIN}') from None
    return _state_dict(path, state)


def refuse_impostors(path):
    """Raises ValueError for what is no file of torch.save, or not all of one."""
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        head = file.read(64).removeprefix(b'\xef\xbb\xbf')
    for start, what in IMPOSTORS:
        if head.lstrip().startswith(start):
            raise ValueError(f'{path}: {what}')
    if not is_of_torch(path):
        raise ValueError(
            f'{path}: no file of torch.save (it begins with {head[:8]!r})'
            if size
            else f'{path}: empty: {AGAIN}'
        )
    if not head.startswith(b'PK'):
        return
    try:
        entries = zipfile.ZipFile(path).infolist()
    except Exception:  # zip, struct and unicode errors
        raise ValueError(
            f'{path}: cut: its {size} bytes begin an archive of torch.save and do not '
            f'end it: {AGAIN}'
        ) from None
    if any(entry.filename.endswith('/constants.pkl') for entry in entries):
        raise ValueError(f'{path}: a TorchScript program: save the state dict of its module')
    if not any(entry.filename.endswith('/data.pkl') for entry in entries):
        raise ValueError(f'{path}: an archive, but not of torch.save: unpack it first')
    # torch.save compresses nothing; torch.load would inflate what is, and believe any size
    if (
        any(entry.compress_type for entry in entries)
        or sum(entry.file_size for entry in entries) > size
    ):
        raise ValueError(f'{path}: claims to be more than the file holds: {AGAIN}')


def _without_classes(path, error):
    """The file again, with every global that torch does not allow replaced by `Inert`."""
    try:
        with contextlib.ExitStack() as stack:
            unsafe = get_unsafe_globals_in_checkpoint(path)
            stack.enter_context(
                safe_globals([(type('Inert', (Inert,), {}), name) for name in unsafe])
            )
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception:  # of a file of the old format, or one that builds what isn't its own
        reason = str(error).split('WeightsUnpickler error: ')[-1].split('\n')[0]
        if not reason.strip():
            raise ValueError(f'{path}: damaged: {AGAIN}') from None
        raise ValueError(
            f'{path}: holds Python objects beside its tensors and was refused '
            f'({reason:.120}): where you trust it, open it with torch.load(…, '
            'weights_only=False) and save its state dict alone'
        ) from None


def _state_dict(path, state):
    """The dict of tensors in what the file held, its common prefixes stripped."""
    if (
        isinstance(state, dict)
        and isinstance(state.get('model'), dict)
        and any(str(name).startswith('factorization.') for name in state['model'])
    ):
        raise ValueError(f'{path}: a weights file of this repository, which needs no --backbone')
    for key in CONTAINERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if isinstance(state, Inert) or not isinstance(state, dict):
        raise ValueError(f'{path}: holds a whole module, or no dict: torch.save(m.state_dict(), …)')
    state = {str(name): tensor for name, tensor in state.items()}
    if not state or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise ValueError(f'{path}: no state dict; it holds {", ".join(state)[:80] or "nothing"}')
    while any(all(name.startswith(prefix) for name in state) for prefix in PREFIXES):
        state = {name.partition('.')[2]: tensor for name, tensor in state.items()}
    return state
