"""torch.hub's door: the trained network in a script of your own, with nothing of this repository
on its path.

    model = torch.hub.load('path/to/this/repository', 'dal', source='local', weights='best.pth')
    a, b = model.embed(faces)   # RGB, aligned, (2, 3, 112, 96 or 112), 0…255
    similarity = float(a @ b)
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

dependencies = ['torch']


def _load(name: str, file: str) -> ModuleType:
    """A module or package of this repository under a private name, `dal_hub_…`: the caller may
    have one of the same name, which must stay theirs."""
    private = f'dal_hub_{name}'
    if private not in sys.modules:
        spec = importlib.util.spec_from_file_location(private, Path(__file__).parent / file)
        assert spec and spec.loader  # of a file that is here
        sys.modules[private] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[private])
    return sys.modules[private]


def dal(weights: str | Path, backbone: nn.Module | None = None, map_location='cpu') -> nn.Module:
    """The trained network of a weights file, in eval mode: `model.embed(faces)` is its feature.

    `backbone` is needed only if a module of your own was trained. Raises ValueError if the file
    can't be used.
    """
    model = _load('model', 'model.py')
    state = model.read_state(weights, map_location)
    if isinstance(state, dict) and isinstance(state.get('model'), dict):
        backbones = _load('backbones', 'backbones/__init__.py')
        backbones.weights_files.check_tensors(weights, state['model'])
        backbone = backbones.rebuild(state, weights) if backbone is None else backbone
    return model.DALModel.of(state, weights, backbone).to(map_location).eval()


def backbone(weights: str | Path, map_location='cpu') -> nn.Module:
    """x = F(p) alone, before the age is taken out of it, in eval mode.

    Ours takes RGB faces (N, 3, 112, 96), normalised as (v − 127.5) / 128, those of backbones/ take
    pixel values 0…255 -> (N, dim). Raises ValueError if the file can't be used.
    """
    return dal(weights, map_location=map_location).get_submodule('backbone')
