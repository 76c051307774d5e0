"""torch.hub's door: the trained network in a script of yours, from anywhere, without a thing of this repository on its path.

    model = torch.hub.load('path/to/this/repository', 'dal', source='local', weights='best.pth')
    a, b = model.embed(faces)           # RGB, aligned, (2, 3, 112, 96), 0…255; float(a @ b) is their similarity
"""
import importlib.util
from pathlib import Path

dependencies = ['torch']

# under a name of its own: whoever calls may have a `model` of theirs, and would get ours at their next import of it
_spec = importlib.util.spec_from_file_location('dal_hub_model', Path(__file__).with_name('model.py'))
_model = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_model)


def dal(weights, backbone=None, map_location='cpu'):
    """The trained network of a weights file, in eval mode: `model.embed(faces)` is the feature to compare.

    `backbone` is needed only where another module than ours was trained. Raises ValueError where the file can't be used.
    """
    return _model.DALModel.load(weights, backbone, map_location)


def backbone(weights, map_location='cpu'):
    """x = F(p) alone, before age is taken out of it: RGB faces (N, 3, 112, 96), normalised as (v − 127.5) / 128 -> (N, dim)."""
    return _model.Backbone.load(weights, map_location)
