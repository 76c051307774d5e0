"""Networks that others trained, and how their files are read: strictly, by name.

    backbone = backbones.load('iresnet50', 'backbone.pth')    # in eval mode
    x = backbone(faces)                                       # RGB 0…255, (N, 3, 112, 96 or 112)

`build`, `read_weights` and `load` take one of `NAMES` or a name of torchvision's. Every error is
a ValueError of one line. A file's licence is its publisher's; none is downloaded here.
"""

import difflib
import functools
import importlib
import itertools
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from . import torchvision_models, weights_files
from .base import PretrainedBackbone, Vectors

_CLASSES = {  # the file here, and the class in it
    **{f'iresnet{depth}': ('iresnet', 'IResNet') for depth in (18, 34, 50, 100, 200)},
    **{f'adaface_ir{depth}': ('iresnet', 'AdaFace') for depth in (18, 34, 50, 101)},
    'inception_resnet_v1': ('inception', 'InceptionResnetV1'),
    'mobilefacenet': ('mobilefacenet', 'MobileFaceNet'),
    'sface': ('sface', 'SFace'),
}
NAMES = tuple(_CLASSES)
NO_FILE = ('sface',)  # what can be loaded without a path
COUNTER = 'num_batches_tracked'
ALIKE = 0.5  # share of entries in common from which a file is said to be near a layout


def build(name: str, **config: Any) -> PretrainedBackbone:
    """The network `name`, untrained. `config` is `dim` and `size` for a torchvision model.

    `build(**backbone.config)` makes `backbone`'s again. Raises ValueError for an unknown name.
    """
    if name == 'vectors':
        return Vectors(**config)
    if name in _CLASSES:
        if config:
            raise ValueError(f'backbone {name} takes no {", ".join(config)}')
        file, network = _CLASSES[name]
        return getattr(importlib.import_module(f'.{file}', __package__), network)(name)
    if name not in torchvision_models.names():
        near = difflib.get_close_matches(name, [*NAMES, *torchvision_models.names()], 1)
        hint = f' (did you mean {near[0]}?)' if near else ''
        known = f'there are {", ".join(NAMES)}, and what torchvision.models has'
        raise ValueError(f'no backbone {name!r}: {known}{hint}')
    if unknown := {*config} - {'dim', 'size'}:
        raise ValueError(f'backbone {name} takes dim and size, no {", ".join(sorted(unknown))}')
    return torchvision_models.TorchvisionModel(name, **config)


def load(name: str, path: Any = None, **config: Any) -> PretrainedBackbone:
    """The network `name` with the weights of the publisher's file `path`, in eval mode."""
    state = read_weights(name, path, **config)
    backbone = build(name, **config)
    backbone.load_state_dict(state)
    return backbone.eval()


def rebuild(state: dict, path: Any) -> PretrainedBackbone | None:
    """The untrained network that `state`, of the weights file `path`, says it was trained with;
    None if it names none of those here. Raises ValueError if its weights are of another.
    """
    config, weights = state.get('backbone'), state['model']
    if not isinstance(config, dict) or 'name' not in config:
        return None
    try:
        names = [name for name in weights if name.startswith('backbone.')]
        shapes = {name.removeprefix('backbone.'): tuple(weights[name].shape) for name in names}
        if layout(**config) != shapes:  # before anything is built of a size that a file states
            raise ValueError('its weights are of another')
        return build(**config)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f'{path}: not of the backbone {config}: {error}') from None


def read_weights(
    name: str, path: Any = None, say: Callable[[str], None] = weights_files.warn, **config: Any
) -> dict[str, torch.Tensor]:
    """The state dict that `build(name, **config)` loads strictly, float32, out of a published file.

    `path` may be None for those of NO_FILE. The file holds the network under whatever key, its
    names below whatever prefix they share; every name and shape must be there and no other, except
    a classifier's. The tensors are examined. `say` gets a line if something else could have been
    taken. Raises ValueError that says which entry differs and which known layout the file is near
    to, FileNotFoundError.
    """
    blank = _blank(name, **config)
    if path is None and name not in NO_FILE:
        raise ValueError(f'backbone {name} needs a file of its weights: --init FILE')
    states = weights_files.published(path, blank.read(path, say))
    fits = {where: _fit(blank, state) for where, state in states.items()}
    fitting = [where for where, (_, difference) in fits.items() if not difference]
    if not fitting:
        _, difference = max(fits.values(), key=lambda fit: len(fit[0]))
        differs = f'not the layout of {name} (first difference: {difference})'
        raise ValueError(f'{path or "its file"}: {differs}{_likeness(name, states)}')
    taken, *others = sorted(fitting, key=lambda where: 'ema' in where.lower())
    if others:
        too = f'{", ".join(map(repr, others))} would fit too: save it alone to take it instead'
        say(f'{path}: {taken!r} is taken; {too}')
    found, wanted = fits[taken][0], blank.state_dict()
    weights_files.check_tensors(path or 'its file', found)
    for entry, empty in wanted.items():  # in place: load_state_dict also goes by its metadata
        # counters of batches may be missing, as before PyTorch 0.4.1
        wanted[entry] = found.get(entry, torch.zeros(empty.shape)).to(empty.dtype)
    return wanted


def layout(name: str, **config: Any) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the state dict of `build(name, **config)`; costs no memory."""
    state = _blank(name, **config).state_dict()
    return {entry: tuple(empty.shape) for entry, empty in state.items()}


def identify(path: Any) -> str:
    """The backbone whose published layout the file `path` has. Raises ValueError that says what
    there is and the nearest layout, FileNotFoundError."""
    states = weights_files.published(
        path, weights_files.read(path, lambda line: None)
    )  # said when it is loaded
    name, share = _nearest(states)
    if share == 1:
        return name
    state = max(states.values(), key=len)
    first = next(iter(state))
    holds = f'it holds {len(state)} tensors, the first {first} {tuple(state[first].shape)}'
    why = f'the layout of no backbone that is known: {holds}{_likeness(None, states)}'
    raise ValueError(f'{path}: {why}: --backbone NAME says which it should be')


def _blank(name, **config):
    """`build` without memory for weights: it knows names, shapes and how to read a file."""
    return _kept_blank(json.dumps({'name': name, **config}))


@functools.cache
def _kept_blank(config):
    try:
        with torch.device('meta'):
            return build(**json.loads(config))
    except NotImplementedError:  # torchvision's RegNet computes with tensors while it is built
        return build(**json.loads(config)).to('meta')


def _fit(blank, state):
    """({name: tensor} of `state` by the names that the network `blank` has; in words, the first
    entry that differs from its layout, None if they are equal).

    The prefix is the one below which most names are the network's. Counters of batches and a
    classifier beside the network do not count.
    """
    wanted = _shapes(blank.state_dict())
    prefixes = Counter()
    for name in state:
        for at in (0, *(at + 1 for at, sign in enumerate(name) if sign == '.')):
            prefixes[name[:at]] += blank.name_here(name[at:]) in wanted
    prefix = max(prefixes, key=lambda prefix: (prefixes[prefix], -len(prefix)), default='')
    found, rest = {}, {}
    for name, tensor in state.items():
        inside = name.startswith(prefix)
        here = blank.name_here(name.removeprefix(prefix)) if inside else name
        if here is not None:
            counts = here.endswith(COUNTER)
            (found if inside and (here in wanted or counts) else rest)[here] = tensor
    if _is_classifier(rest, wanted, blank.dim):
        rest = {}
    shapes = _shapes(found)
    for name, shape in wanted.items():
        if name not in shapes:
            return found | rest, f'{name} is missing'
        if shapes[name] != shape:
            return found | rest, f'{name} is {shapes[name]}, not {shape}'
    return found | rest, f'{next(iter(rest))} is there' if rest else None


def _is_classifier(rest, wanted, dim):
    """Whether the entries `rest` are those of one layer from a feature (dim,) to classes."""
    owners = {name.rpartition('.')[0] for name in rest}
    if len(owners) != 1 or any(name.startswith(f'{min(owners)}.') for name in wanted):
        return False
    return any(tensor.ndim > 1 and dim in tensor.shape for tensor in rest.values())


def _shapes(state):
    """{name: shape}, less the counters of batches."""
    return {name: tuple(state[name].shape) for name in state if not name.endswith(COUNTER)}


def _nearest(states):
    """The known layout that has most in common with one of `states`, and the share: 1 is all."""
    best = None, 0.0
    # RegNets are built with memory, up to 2.6 GB: too much for a comparison
    known = (name for name in torchvision_models.names() if not name.startswith('regnet'))
    for name in itertools.chain(NAMES, known):
        blank = _blank(name)
        wanted = {*_shapes(blank.state_dict()).items()}
        for state in states.values():
            found, difference = _fit(blank, state)
            if not difference:
                return name, 1.0
            entries = {*_shapes(found).items()}
            share = len(wanted & entries) / len(wanted | entries)
            best = max(best, (name, share), key=lambda pair: pair[1])
    return best


def _likeness(wanted, states):
    """What else the file may be, as the end of a sentence."""
    name, share = _nearest(states)
    if name and name == wanted:
        return ''
    if share == 1:
        return f'; it looks like {name}: --backbone {name}'
    near = f'; the nearest known is {name}, with {share:.0%} of names and shapes in common'
    known = f"; known are those of {', '.join(NAMES)} and of torchvision's models"
    return near if share >= ALIKE else known + near * bool(name)
