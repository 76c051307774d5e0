"""A start from a backbone that already knows faces: which it is, its weights, and the people's
centres."""

from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import Subset

import backbones
from dataset import Faces, evaluation_loader
from recognition.embedding import extract
from recognition.weights import backbone_in
from system.progress import progress
from training.distributed import all_reduce, rank, world_size
from training.recipe import Recipe
from training.sharded import ShardedHead
from training.state import TrainingState
from utils import UserError

PART = 4096  # faces embedded before their features are added up


def read(init: str, recipe: Recipe) -> tuple[Recipe, dict[str, torch.Tensor]]:
    """The recipe with the backbone that `init` holds, and that backbone's state dict.

    `init` is a published file of one of `backbones`, the name of one that needs no file, or a
    weights file of this repository, of which the backbone alone is taken. Where the recipe names no
    other backbone than the paper's, the file says which it is. Raises UserError.
    """
    name, path = recipe.backbone, Path(init).expanduser()
    try:
        if init in backbones.NO_FILE and not path.exists():
            if name not in ('dal', init):
                raise UserError(f'--init {init} is the backbone {init}, not {name}')
            return replace(recipe, backbone=init), backbones.read_weights(init)
        if ours := backbone_in(path):
            config, weights = ours
            if config is None:
                own = 'trained with a backbone of your own: start with it as `weights`'
                raise UserError(f'{path}: {own}')
            return follow(recipe, config, path), weights
        name = backbones.identify(path) if name == 'dal' else name
        return replace(recipe, backbone=name), backbones.read_weights(name, path)
    except FileNotFoundError:
        raise UserError(f'{init}: no such file') from None
    except ValueError as error:
        raise UserError(str(error)) from None


def follow(recipe: Recipe, config: dict | None, path: Path) -> Recipe:
    """The recipe with the backbone of a weights file, `config`; None is a module of the user's own.

    Raises: UserError if the recipe names another.
    """
    if config is None:
        return recipe
    name = config.get('name', 'dal')
    if recipe.backbone not in ('dal', name):
        raise UserError(f'{path}: its backbone is {name}, not {recipe.backbone}')
    if name != 'dal':
        return replace(recipe, backbone=name)
    layers, widths = tuple(config['layers']), tuple(config['widths'])
    return replace(recipe, layers=layers, widths=widths, dim=config['dim'])


def load(training: TrainingState, init: str) -> None:
    """Gives the backbone the weights in `init`, see `read`. Raises UserError if they are of
    another than main.py builds."""
    _, weights = read(init, training.recipe)
    try:
        training.model.backbone.load_state_dict(weights)
    except RuntimeError as error:
        why = ' '.join(str(error).split())
        raise UserError(f'{init}: not of the backbone that main.py builds ({why:.200})') from None
    training.pretrained = True


@torch.no_grad()
def set_centres(training: TrainingState, faces: Faces) -> None:
    """The centre of each person becomes the mean of x_id over the person's faces, each of unit
    length, and has unit length itself.

    One pass over the set. Each rank embeds the people of its own rows: those of its slice of a
    sharded head, else an equal share, which is then exchanged.
    """
    head, classes = training.model.identity, len(faces.classes)
    rows = -(-classes // world_size())
    begin, end = (min((rank() + k) * rows, classes) for k in (0, 1))  # as of a sharded head
    own = ((faces.labels >= begin) & (faces.labels < end)).nonzero()[0]
    sums = torch.zeros(end - begin, training.model.dim)
    model, bf16 = training.model.eval(), training.executor.precision == 'bf16'
    with progress(None, 'centres of the people', len(own), unit=' faces') as bar:
        for start in range(0, len(own), PART):
            part = own[start : start + PART]
            loader = evaluation_loader(Subset(faces, part.tolist()))
            x_id = extract(model, loader, training.device, bf16=bf16, keep=('x_id',))['x_id']
            unit = torch.nn.functional.normalize(torch.from_numpy(x_id))
            sums.index_add_(0, torch.from_numpy(faces.labels[part] - begin), unit)
            bar.update(len(part))
    centres = torch.nn.functional.normalize(sums).to(head.weight)
    if not isinstance(head, ShardedHead):
        whole = torch.zeros_like(head.weight)
        whole[begin:end] = centres
        centres = all_reduce(whole)
    head.weight.copy_(centres)
