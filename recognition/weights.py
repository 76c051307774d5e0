"""Files of weights and states: written whole, read safely, examined; what a weights file says."""

import hashlib
import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

import backbones
import utils
from backbones import own, weights_files
from model import AGE_CUTOFFS, DALModel
from utils import UserError

OTHERS = '; weights that others trained: main.py --init FILE, or --backbone NAME'
NEEDED = {'model': dict, 'backbone': (dict, type(None)), 'classes': list}
NEEDED |= {'age_cutoffs': list, 'epoch': int}


@dataclass
class WeightsInfo:
    """The facts in a weights file beside the weights; None for those that it lacks."""

    path: str
    sha256: str
    classes: list  # names of the identities, in the head's order; none of an untouched backbone
    age_cutoffs: list  # inclusive upper bounds of the age groups, in years
    epoch: int
    best: float | None  # the best validation score of the run so far
    decision: dict | None  # what its validation says of similarities: evaluation.metrics.decision
    recipe: dict | None
    # arguments of Backbone, or with a name of backbones.build; None: the user's own module
    backbone: dict | None
    age_error: dict | None = None  # of model.estimator: {'mae', 'r2', 'people'}; None: not measured
    figures: dict | None = None  # of validation: {'epoch', 'auc', 'rank1', 'age_r2_id', …}


def load_weights(
    path: Any, device: Any = 'cpu', backbone: str | None = None
) -> tuple[DALModel, WeightsInfo]:
    """The trained network of a weights file (`epoch_*.pth`, `best.pth`, `last.pth`), in eval mode
    on `device`, and what the file says of it.

    A module of the user's own is made by `backbones.own.make_backbone`. With `backbone`, a name of
    backbones.build, the file is that network as others publish it: x_id is its feature as it is. Of
    that, and of a file that `export.py backbone` wrote, the age head knows nothing.
    Raises UserError if the file is missing, damaged, not one of these, or does not fit.
    """
    try:
        model, info = _untouched(path, backbone) if backbone else _trained(path)
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except ValueError as error:
        raise UserError(str(error)) from None
    return model.to(device, memory_format=torch.channels_last).eval(), info


def _trained(path):
    if str(path).endswith('.safetensors'):  # of export.py backbone: no heads, and no people
        state = {'classes': [], 'age_cutoffs': list(AGE_CUTOFFS), 'epoch': 0}
        state |= load_checkpoint(path, {'model': dict, 'backbone': dict})
    else:
        state = load_checkpoint(path, NEEDED)
    is_own = state['backbone'] is None  # the user's own code, which no file of weights can hold
    try:
        if is_own:
            untrained = own.make_backbone(types.SimpleNamespace(**(state.get('recipe') or {})))
        else:
            untrained = backbones.rebuild(state, path)
        model = DALModel.of(state, path, untrained)
    except ValueError as error:
        hint = "; it was trained with another make_backbone than backbones/own.py's"
        raise UserError(f'{error}{hint if is_own else ""}') from None
    sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    known = [state.get(field.name) for field in fields(WeightsInfo)[2:]]
    return model, WeightsInfo(str(path), sha256, *known)


def _untouched(path, name):
    file = None if path in backbones.NO_FILE and not Path(path).exists() else path
    network = backbones.load(name, file)
    model = DALModel(network, 1)
    model.factorization.alpha.zero_()
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    none = [], list(AGE_CUTOFFS), 0, None, None, None
    return model, WeightsInfo(str(path), digest.hexdigest(), *none, network.config)


def backbone_in(path: Any) -> tuple[dict | None, dict[str, torch.Tensor]] | None:
    """The arguments of the backbone in a weights file of this repository or of `export.py
    backbone`, and its {name: tensor}, examined; None for another file. Raises ValueError,
    FileNotFoundError."""
    content: Any = weights_files.read(path, lambda line: None)  # said by who reads another file
    weights: Any = _without_prefix(content.get('model')) if isinstance(content, dict) else None
    if not weights_files.is_ours(weights):
        return None
    weights_files.check_tensors(path, weights)
    named = [item for item in weights.items() if item[0].startswith('backbone.')]
    return content.get('backbone'), {name.removeprefix('backbone.'): one for name, one in named}


def save_checkpoint(state: dict, path: Any) -> None:
    """Writes tensors, numbers, strings, lists and dicts: what torch.load's safe default reads.
    Raises UserError if it can't be written."""
    try:
        utils.write_whole(path, lambda temporary: torch.save(state, temporary))
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        if 'DataLoader worker' in str(error):  # a killed one says so in whatever this process is at
            raise
        why = getattr(error, 'strerror', None) or 'the disk may be full'
        remedy = 'the file before it is whole: make room and --resume'
        raise UserError(f'{path}: not written ({why}); {remedy}') from None


def load_checkpoint(path: Any, needed: Any) -> dict:
    """The dict in a checkpoint, on the CPU; its weights are examined.

    `needed` are the keys it must have, or a dict of them and the types of their values. Raises
    UserError if the file is missing, damaged, or not of that form.
    """
    try:
        state = weights_files.read(path, lambda line: None, others=False)
        facts = state if isinstance(state, dict) else {}
        for key in needed:
            if key not in facts:
                raise ValueError(
                    f'{path}: no weights file of this repository (it lacks {key}){OTHERS}'
                )
            if isinstance(needed, dict) and not isinstance(facts[key], needed[key]):
                found = f'{key} is of type {type(facts[key]).__name__}'
                raise ValueError(f'{path}: no weights file of this repository ({found})')
        if isinstance(facts.get('model'), dict):
            facts['model'] = _without_prefix(facts['model'])
            weights_files.check_tensors(path, facts['model'])
        return facts
    except FileNotFoundError:
        raise UserError(f'{path}: no such file') from None
    except ValueError as error:
        raise UserError(str(error)) from None


def _without_prefix(weights):
    """The weights without what DistributedDataParallel, torch.compile or a module around it put
    before every name."""
    names = [str(name) for name in weights or ()]
    first = next((name for name in names if 'backbone.' in name), '')
    prefix = first[: first.find('backbone.')]
    if not prefix or not all(name.startswith(prefix) for name in names):
        return weights
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
