"""What a run saves, and a start from nothing, from weights, or from a state."""

import shutil
from dataclasses import replace
from pathlib import Path

import torch

import backbones
from model import Backbone
from recognition.weights import NEEDED, backbone_in, load_checkpoint, save_checkpoint
from training import sharded
from training.distributed import on_rank_zero, rank
from training.recipe import Recipe
from training.state import TrainingState
from utils import UserError

FACTS = 'epoch', 'best', 'decision', 'age_error', 'figures'
# by their names in a state
MEANS = {'means': 'means', 'climbs': 'adversary_means', 'epoch_means': 'epoch_means'}


def weights_of(training: TrainingState) -> dict:
    """What `load_weights` reads; a sharded head is this rank's slice."""
    backbone, recipe = training.model.backbone, training.recipe
    ours = Backbone, backbones.PretrainedBackbone
    return {
        'model': training.model.state_dict(),
        'backbone': backbone.config if isinstance(backbone, ours) else None,
        'heads': {'identity': recipe.head, 'age': recipe.age_head},
        'classes': training.classes,
        'age_cutoffs': training.cutoffs,
        'recipe': recipe.as_dict(),
        **{name: getattr(training, name) for name in FACTS},
    }


def state_of(training: TrainingState, steps_per_epoch: int, folder: Path) -> dict:
    """What resumes the run: order, flips and ramps are functions of the seed and the global step.
    A sharded head goes to a folder of its own in `folder`."""
    state = weights_of(training) | {
        'mapping': training.mapping.state_dict(),
        'optimizer': training.optimizer.state_dict(),
        'adversary': training.adversary_optimizer.state_dict(),
        'step': training.step,
        'steps_per_epoch': steps_per_epoch,
        'opening': training.adversary_means.rho_at_start,
        'pretrained': training.pretrained,
        'scaler': training.executor.scaler.state_dict(),
        'means': {key: getattr(training, name).state_dict() for key, name in MEANS.items()},
    }
    if training.recipe.shard_head:
        sharded.save_head(training, state, folder)
    return state


def save_weights(training: TrainingState, folder: Path, names: list[str]) -> None:
    """Writes the files of weights `names`, all alike, with the whole head."""
    weights = weights_of(training)
    if training.recipe.shard_head:
        weights['model']['identity.weight'] = training.model.identity.whole()
    for name in names:
        on_rank_zero(save_checkpoint, weights, folder / name)


def save_state(training: TrainingState, steps_per_epoch: int, folder: Path) -> None:
    """Writes last.pth, and then removes the sharded heads of earlier ones."""
    state = state_of(training, steps_per_epoch, folder)
    on_rank_zero(save_checkpoint, state, folder / 'last.pth')
    for old in folder.glob('head-????????') if rank() == 0 else ():
        if old.name != state.get('head'):
            shutil.rmtree(old)


def start(training: TrainingState, path: Path, same_run: bool, steps_per_epoch: int) -> bool:
    """Loads `path` into `training`. Returns True if the run continues exactly, which takes a state
    of the same people and age groups; heads of others start anew. Raises UserError."""
    state = load_checkpoint(path, NEEDED)
    sharded.load_head(training, state, path.parent)
    fresh = {}
    if state['classes'] != training.classes:
        people = f'{len(state["classes"])} people there, {len(training.classes)} here'
        fresh['identity'] = f'the identity head ({people})'
    if state['age_cutoffs'] != training.cutoffs:
        fresh['age'] = 'the age head'
    _load_network(training, state, path, fresh)
    training.pretrained = bool(state.get('pretrained', True))
    if fresh:
        print(f'{path}: keeping the backbone, starting anew: {" and ".join(fresh.values())}')
        return False
    if 'optimizer' not in state:
        print(f'{path}: weights alone: optimizer and adversary start anew')
        if same_run:
            training.epoch, training.best = max(0, state['epoch']), state.get('best')
            training.step = training.epoch * steps_per_epoch
        return False
    try:
        _restore(training, state, steps_per_epoch)
        return True
    except Exception as error:  # a state of another variate or version, or of a stranger
        why = [*str(error).splitlines(), type(error).__name__][0]
        remedy = 'start from an epoch_*.pth or best.pth, which hold weights alone'
        raise UserError(f'{path}: its optimizers do not fit ({why}): {remedy}') from None


def refuse_to_overwrite(folder: Path, first: int, last: int) -> None:
    """Raises UserError if `folder` has weights of an epoch after `first`, up to `last`."""
    for epoch in range(first + 1, last + 1):
        if (folder / f'epoch_{epoch:03d}.pth').exists():
            elsewhere = f'--resume {folder}/last.pth --save DIR takes its weights elsewhere'
            raise UserError(f'{folder} holds epoch_{epoch:03d}.pth already: {elsewhere}')


def load_epoch(training: TrainingState, folder: Path, epoch: int) -> None:
    """Gives `training` the weights of an earlier epoch of its own."""
    path = folder / f'epoch_{epoch:03d}.pth'
    state = load_checkpoint(path, NEEDED)
    sharded.load_head(training, state, folder)
    _load_network(training, state, path)
    training.epoch = state['epoch']


def _load_network(training, state, path, fresh=()):
    """Gives the network the weights of `state`, but those of the `fresh` heads."""
    own = training.model.state_dict()
    weights = {
        name: own[name] if name in own and name.split('.')[0] in fresh else tensor
        for name, tensor in state['model'].items()
        if not str(name).startswith('estimator.')  # it is fitted anew
    }
    try:
        training.model.load_state_dict(weights)
    except Exception as error:  # missing names, other shapes, other types
        why = ' '.join(str(error).split()).partition('DALModel: ')[2] or type(error).__name__
        saved, heads = Recipe.of(state.get('recipe')), state.get('heads', 'the default heads')
        saved = f'backbone {state["backbone"]}, {heads} and factorization={saved.factorization}'
        remedy = 'choose the same recipe, or set layers, widths, dim, age_head … to these'
        is_not = f'{path}: its network is not the one that main.py builds ({why:.200})'
        raise UserError(f'{is_not}; it was saved with {saved}: {remedy}') from None


def _restore(training, state, steps_per_epoch):
    training.mapping.load_state_dict(state['mapping'])
    restore_optimizer(training.optimizer, state['optimizer'])
    restore_optimizer(training.adversary_optimizer, state['adversary'])
    training.executor.restore_scale(state.get('scaler'))
    for key, name in MEANS.items():
        getattr(training, name).load_state_dict(state['means'][key], training.device)
    if state['opening'] is not None:
        rho = state['opening'].to(training.device)
        training.adversary_means.rho_at_start = rho.reshape(())
    training.best, training.decision = state.get('best'), state.get('decision')
    if training.best is not None:
        training.best = float(training.best)
    training.epoch = state['epoch']
    training.step = state['step'] * steps_per_epoch // state['steps_per_epoch']
    first = training.epoch * steps_per_epoch
    if not 0 <= first <= training.step <= first + steps_per_epoch:
        raise ValueError(f'step {state["step"]} is not in epoch {training.epoch}')


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Gives `optimizer` the moments of a state_dict, and none of its settings. Raises ValueError if
    they don't fit."""
    own = optimizer.state_dict()['param_groups']
    optimizer.load_state_dict({'state': saved['state'], 'param_groups': own})
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    for index, moments in saved['state'].items():
        for name, moment in moments.items():
            shape = () if name == 'step' else tuple(parameters[index].shape)
            if moment.shape != shape:
                raise ValueError(f'{name} {tuple(moment.shape)} of a parameter {shape}')


# a start from a backbone that already knows faces


def read_backbone(init: str, recipe: Recipe) -> tuple[Recipe, dict[str, torch.Tensor]]:
    """The recipe with the backbone that `init` holds, and that backbone's state dict. `init` is a
    published file of one of `backbones`, the name of one that needs no file, or a weights file of
    this repository. Raises UserError."""
    name, path = recipe.backbone, Path(init).expanduser()
    try:
        if init in backbones.NO_FILE and not path.exists():
            if name not in ('dal', init):
                raise UserError(f'--init {init} is the backbone {init}, not {name}')
            return replace(recipe, backbone=init), backbones.read_weights(init)
        if ours := backbone_in(path):
            config, weights = ours
            if config is None:
                raise UserError(f'{path}: of a backbone of your own: start with it as `weights`')
            return follow(recipe, config, path), weights
        name = backbones.identify(path) if name == 'dal' else name
        return replace(recipe, backbone=name), backbones.read_weights(name, path)
    except FileNotFoundError:
        raise UserError(f'{init}: no such file') from None
    except ValueError as error:
        raise UserError(str(error)) from None


def follow(recipe: Recipe, config: dict | None, path: Path) -> Recipe:
    """The recipe with the backbone of a weights file, `config`; None is a module of the user's own.
    Raises UserError if the recipe names another."""
    if config is None:
        return recipe
    name = config.get('name', 'dal')
    if recipe.backbone not in ('dal', name):
        raise UserError(f'{path}: its backbone is {name}, not {recipe.backbone}')
    if name == 'vectors':
        raise UserError(f'{path}: of stored vectors: it holds no network to start from')
    if name != 'dal':
        return replace(recipe, backbone=name)
    layers, widths = tuple(config['layers']), tuple(config['widths'])
    return replace(recipe, layers=layers, widths=widths, dim=config['dim'])


def load_backbone(training: TrainingState, init: str) -> None:
    """Gives the backbone the weights in `init`, see `read_backbone`. Raises UserError."""
    _, weights = read_backbone(init, training.recipe)
    try:
        training.model.backbone.load_state_dict(weights)
    except RuntimeError as error:
        why = ' '.join(str(error).split())
        raise UserError(f'{init}: not of the backbone that main.py builds ({why:.200})') from None
    training.pretrained = True
