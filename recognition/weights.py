"""Files of weights and states: written whole, read safely; what a weights file holds."""

import hashlib
import types
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

import backbones
import utils
from backbones import own
from backbones.files import PREFIXES, refuse_impostors
from model import AGE_CUTOFFS, DALModel, read_state
from utils import UserError

OTHERS = '; weights that others trained: main.py --init FILE, or --backbone NAME'


@dataclass
class WeightsInfo:
    """What a weights file says beside the weights; None where it says nothing."""

    path: str
    sha256: str
    classes: list  # names of the identities, in the head's order; of an untouched
    # backbone none
    age_cutoffs: list  # inclusive upper bounds of the age groups, in years
    epoch: int
    best: float | None  # the best validation score of the run so far
    decision: dict | None  # what its validation says of similarities: evaluation.metrics.decision
    recipe: dict | None
    backbone: dict | None  # arguments of Backbone, or with a name of backbones.build; None: the
    # user's own module


def load_weights(path, device='cpu', backbone: str | None = None) -> tuple[DALModel, WeightsInfo]:
    """The trained network of a weights file (`epoch_*.pth`, `best.pth`, `last.pth`), in eval mode
    on `device`, and what the file says of it.

    The backbone is rebuilt from the file; a module of the user's own by
    `backbones.own.make_backbone`.
    With `backbone`, a name of backbones.build, the file is that network as others publish it: x_id
    is its feature as it is, and the age head knows nothing.
    Raises UserError where the file is missing, damaged, not one of this repository, or does not
    fit.
    """
    if backbone:
        return _untouched(path, device, backbone)
    state = load_checkpoint(
        path,
        {
            'model': dict,
            'backbone': (dict, type(None)),
            'classes': list,
            'age_cutoffs': list,
            'epoch': int,
        },
    )
    try:
        model = DALModel.of(state, path, _backbone_of(state, path))
    except ValueError as error:
        hint = ''
        if state['backbone'] is None:
            hint = "; it was trained with another make_backbone than backbones/own.py's"
        raise UserError(f'{error}{hint}') from None
    sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    info = WeightsInfo(
        str(path),
        sha256,
        state['classes'],
        state['age_cutoffs'],
        state['epoch'],
        state.get('best'),
        state.get('decision'),
        state.get('recipe'),
        state['backbone'],
    )
    return model.to(device, memory_format=torch.channels_last).eval(), info


def _untouched(path, device, name):
    file = None if path in backbones.NO_FILE and not Path(path).exists() else path
    try:
        network = backbones.load(name, file)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except ValueError as error:
        raise UserError(str(error)) from None
    model = DALModel(network, 1)
    model.factorization.alpha.zero_()
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    info = WeightsInfo(
        str(path), digest.hexdigest(), [], list(AGE_CUTOFFS), 0, None, None, None, network.config
    )
    return model.to(device, memory_format=torch.channels_last).eval(), info


def _backbone_of(state, path):
    """The untrained backbone of a file of weights; None where DALModel builds it."""
    config = state['backbone']
    if config is None:  # the user's own code, which no file of weights can hold
        return own.make_backbone(types.SimpleNamespace(**(state.get('recipe') or {})))
    if 'name' not in config:
        return None
    try:
        return backbones.rebuild(
            config,
            {
                name.removeprefix('backbone.'): tensor
                for name, tensor in state['model'].items()
                if name.startswith('backbone.')
            },
        )
    except ValueError as error:
        raise UserError(f'{path}: {error}') from None


def save_checkpoint(state: dict, path) -> None:
    """Writes tensors, numbers, strings, lists and dicts: what torch.load's safe default reads.
    Raises UserError where it can't be written."""
    try:
        utils.write_whole(path, lambda temporary: torch.save(state, temporary))
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        if 'DataLoader worker' in str(error):  # a killed one says so in whatever this process is at
            raise
        why = getattr(error, 'strerror', None) or 'the disk may be full'
        raise UserError(
            f'{path}: not written ({why}); the file before it is whole: make room and --resume'
        ) from None


def load_checkpoint(path, needed) -> dict:
    """The dict in a checkpoint, on the CPU, by model.read_state: a stranger's file runs nothing.

    `needed` are the keys it must have, or a dict of them and the types of their values. Raises
    UserError where the file is missing, damaged, or not of that form.
    """
    try:
        state = read_state(path)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except ValueError as error:
        raise UserError(_what_it_is(path) or str(error)) from None
    missing = [key for key in needed if not isinstance(state, dict) or key not in state]
    weights = state.get('model', state) if isinstance(state, dict) else {}
    for prefix in PREFIXES:
        names = [*weights] if isinstance(weights, dict) else []
        if names and all(str(name).startswith(prefix) for name in names):
            raise UserError(
                f'{path}: its names begin with `{prefix}`, as DistributedDataParallel '
                'or torch.compile write them: save the module inside instead'
            )
    if missing:
        raise UserError(
            f'{path}: no weights file of this repository (it lacks {", ".join(missing)}){OTHERS}'
        )
    for key, kind in needed.items() if isinstance(needed, dict) else ():
        if not isinstance(state[key], kind):
            raise UserError(
                f'{path}: no weights file of this repository '
                f'({key} is of type {type(state[key]).__name__})'
            )
    return state


def _what_it_is(path):
    """What a file that can't be read is instead, with the remedy; None where that isn't known."""
    try:
        refuse_impostors(path)
    except ValueError as error:
        return str(error)
    if zipfile.is_zipfile(path):
        return None
    return f'{path}: of torch.save before PyTorch 1.6, so none of this repository{OTHERS}'
