"""torch.hub's door: the trained network in a script of your own, with nothing of this repository
on its path.

    model = torch.hub.load('path/to/this/repository', 'dal', source='local', weights='best.pth')
    a, b = model.embed(faces)   # RGB, aligned, (2, 3, 112, 96), 0…255
    similarity = float(a @ b)
"""

import importlib.util
from pathlib import Path

dependencies = ['torch']

# under a private name: the caller may have a `model` module, which must stay theirs
_spec = importlib.util.spec_from_file_location(
    'dal_hub_model', Path(__file__).with_name('model.py')
)
_model = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_model)


def dal(weights, backbone=None, map_location='cpu'):
    """The trained network of a weights file, in eval mode: `model.embed(faces)` is its feature.

    `backbone` is needed only where another module than ours was trained. Raises ValueError where
    the file can't be used.
    """
    return _model.DALModel.load(weights, backbone, map_location)


def backbone(weights, map_location='cpu'):
    """x = F(p) alone, before the age is taken out of it.

    RGB faces (N, 3, 112, 96), normalised as (v − 127.5) / 128 -> (N, dim).
    """
    return _model.Backbone.load(weights, map_location)
