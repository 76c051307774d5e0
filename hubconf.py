"""torch.hub's door: the trained network in a script of your own, with nothing of this repository
on its path.

    model = torch.hub.load('path/to/this/repository', 'dal', source='local', weights='best.pth')
    a, b = model.embed(faces)   # RGB, aligned, (2, 3, 112, 96 or 112), 0…255
    similarity = float(a @ b)
"""

import importlib.util
import sys
from pathlib import Path

dependencies = ['torch']


def _load(name):
    """A module or package of this repository under a private name, `dal_hub_…`: the caller may
    have one of the same name, which must stay theirs."""
    private, file = f'dal_hub_{name}', Path(__file__).with_name(f'{name}.py')
    if private in sys.modules:
        return sys.modules[private]
    if not file.exists():
        file = Path(__file__).with_name(name) / '__init__.py'
    spec = importlib.util.spec_from_file_location(private, file)
    module = sys.modules[private] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dal(weights, backbone=None, map_location='cpu'):
    """The trained network of a weights file, in eval mode: `model.embed(faces)` is its feature.

    `backbone` is needed only where a module of your own was trained. Raises ValueError where the
    file can't be used.
    """
    model = _load('model')
    state = model.read_state(weights, map_location)
    if backbone is None and isinstance(state, dict):
        backbone = _published(state, weights)
    return model.DALModel.of(state, weights, backbone).to(map_location).eval()


def backbone(weights, map_location='cpu'):
    """x = F(p) alone, before the age is taken out of it, in eval mode.

    Ours takes RGB faces (N, 3, 112, 96), normalised as (v − 127.5) / 128, those of backbones/ take
    pixel values 0…255 -> (N, dim). Raises ValueError where the file can't be used.
    """
    return dal(weights, map_location=map_location).backbone


def _published(state, weights):
    """The untrained backbone of backbones/ that a file names; None where it names none."""
    config = state.get('backbone')
    if not isinstance(config, dict) or 'name' not in config:
        return None
    weights_of_it = {
        name.removeprefix('backbone.'): tensor
        for name, tensor in state['model'].items()
        if name.startswith('backbone.')
    }
    try:
        return _load('backbones').rebuild(config, weights_of_it)
    except ValueError as error:
        raise ValueError(f'{weights}: {error}') from None
