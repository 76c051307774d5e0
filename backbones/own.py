"""The network that training makes: the one place to put a module of your own."""

from typing import Any

from torch import nn

import backbones
from model import Backbone


def make_backbone(recipe: Any) -> nn.Module:
    """The backbone of the run, untrained; tools that read its weights file call this again.

    Any module (N, 3, 112, 96) -> (N, D) may stand here: this is the one line to change. `recipe`
    has the values of training/recipe.py as attributes.
    """
    if recipe.backbone == 'vectors':
        return backbones.build('vectors', dim=recipe.dim)
    if recipe.backbone != 'dal':
        return backbones.build(recipe.backbone)
    return Backbone(recipe.layers, recipe.widths, recipe.dim)
