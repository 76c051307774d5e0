"""What a run saves, and a start from nothing, from weights, or from a state."""

from pathlib import Path

import torch

import backbones
from model import Backbone
from recognition.weights import NEEDED, load_checkpoint, save_checkpoint
from training import sharded
from training.distributed import on_rank_zero, raised_by_all
from training.recipe import Recipe
from training.state import TrainingState
from utils import UserError

# by their names in a state
MEANS = {'means': 'means', 'climbs': 'adversary_means', 'epoch_means': 'epoch_means'}


def state_of(training: TrainingState, steps_per_epoch: int, folder: Path) -> dict:
    """What resumes the run: order, flips and ramps are functions of the seed and the global step;
    the means are those under way. A sharded head goes to a folder of its own in `folder`."""
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
    """Writes the files of weights `names`, all alike, into `folder`; of a sharded head the whole.
    Raises UserError if that can't be."""
    weights = weights_of(training)
    if training.recipe.shard_head:
        weights['model']['identity.weight'] = training.model.identity.whole()
    for name in names:
        on_rank_zero(save_checkpoint, weights, folder / name)


def save_state(training: TrainingState, steps_per_epoch: int, folder: Path) -> None:
    """Writes last.pth, and then removes the sharded heads of earlier ones. Raises UserError if
    that can't be."""
    state = state_of(training, steps_per_epoch, folder)
    on_rank_zero(save_checkpoint, state, folder / 'last.pth')
    on_rank_zero(sharded.remove_old_heads, folder, state.get('head'))


def starting_point(args) -> tuple[Path, Path | None]:
    """The save folder and the file to start from (or None). Raises UserError rather than overwrite
    another run."""
    folder, state = Path(args.save), Path(args.save, 'last.pth')
    if args.weights and args.resume:
        raise UserError('give either weights or --resume')
    resumed = args.resume if args.resume is not True else state if state.exists() else None
    weights = args.weights or resumed
    taken = sorted(path.name for path in folder.glob('*.pth'))
    if not args.epochs and taken == ['best.pth'] and not weights:  # zero epochs, once more
        taken = []
    if taken and not (weights and Path(weights).parent.resolve() == folder.resolve()):
        there = f'{folder} holds a run already ({taken[0]}, {len(taken)} weights files)'
        raise UserError(f'{there}: --resume continues it, --save DIR starts elsewhere')
    return folder, weights and Path(weights)


def refuse_to_overwrite(folder: Path, first: int, last: int) -> None:
    """Raises UserError if `folder` has weights of one of the epochs after `first` and up to
    `last`."""
    for epoch in range(first + 1, last + 1):
        if (folder / f'epoch_{epoch:03d}.pth').exists():
            taken = f'{folder} holds epoch_{epoch:03d}.pth already, which this run would write anew'
            elsewhere = f'--resume {folder}/last.pth --save DIR takes its weights elsewhere'
            raise raised_by_all(UserError(f'{taken}: {elsewhere}'))


def start(training: TrainingState, path: Path, same_run: bool, steps_per_epoch: int) -> bool:
    """Loads `path` into `training`; whether it resumes exactly where the file stands. Raises
    UserError where it can't be used.

    The network with its heads if the people and age groups are the same, else the backbone and
    the factorization; optimizers, adversary, step and best score too if the file is a state and
    everything fits.
    """
    state = load_checkpoint(path, NEEDED)
    there = state.get('heads', {}).get('age', 'groups')
    if there != training.recipe.age_head:  # margins of identity heads may differ, not their weights
        ours = f"the recipe's {training.recipe.age_head!r}"
        raise UserError(f'{path}: its age head is {there!r}, {ours}: --set age_head={there}')
    sharded.load_head(training, state, path.parent)
    fresh = {}
    if state['classes'] != training.classes:
        people = f'{len(state["classes"])} people there, {len(training.classes)} here'
        fresh['identity'] = f'the identity head ({people})'
    if state['age_cutoffs'] != training.cutoffs:
        fresh['age'] = 'the age head'
    _load_network(training, state, fresh, path)
    training.pretrained = bool(state.get('pretrained', True))
    if fresh:
        kept = f'{path}: other people or age groups: keeping the backbone'
        print(f'{kept}, starting anew: {" and ".join(fresh.values())}')
        return False
    if 'optimizer' not in state:
        alone = f'{path}: weights alone: optimizer and adversary start anew'
        print(f'{alone} (last.pth would resume exactly)')
        training.epoch = max(0, state['epoch']) if same_run else 0
        training.step = training.epoch * steps_per_epoch
        training.best = _score(state) if same_run else None
        return False
    try:
        _restore(training, state, steps_per_epoch)
        training.best = _score(state)
        return True
    except Exception as error:  # a state of another variate or version, or of a stranger
        why = [*str(error).splitlines(), type(error).__name__][0]
        misfit = f'{path}: its optimizers do not fit this recipe ({why})'
        remedy = 'start from an epoch_*.pth or best.pth, which hold weights alone'
        raise UserError(f'{misfit}: {remedy}') from None


def load_epoch(training: TrainingState, folder: Path, epoch: int) -> None:
    """Gives `training` the weights of an earlier epoch of its own."""
    path = folder / f'epoch_{epoch:03d}.pth'
    state = load_checkpoint(path, {'model': dict, 'classes': list, 'epoch': int})
    sharded.load_head(training, state, folder)
    _load_network(training, state, [], path)
    training.epoch = state['epoch']


def _load_network(training: TrainingState, state, fresh, path):
    """Gives the network the weights of `state`, but those of the `fresh` heads."""
    own = training.model.state_dict()
    weights = {
        name: own[name] if name in own and name.split('.')[0] in fresh else tensor
        for name, tensor in state['model'].items()
        if not str(name).startswith('estimator.')  # it is fitted anew
    }
    differ = [name for name in own if getattr(weights.get(name), 'shape', None) != own[name].shape]
    differ += [name for name in weights if name not in own]
    if differ:
        saved = f'{state["backbone"]} and factorization='
        saved += Recipe.of(state.get('recipe')).factorization
        raise UserError(
            f'{path}: its network is not the one that main.py builds (first difference: '
            f'{differ[0]!r}); it was saved with backbone {saved}: choose the same recipe, '
            'or set layers, widths, dim and factorization to these'
        )
    try:
        training.model.load_state_dict(weights)
    except RuntimeError as error:
        why = str(error).splitlines()[-1].strip()
        raise UserError(f'{path}: its tensors are of another kind ({why})') from None


def _restore(training: TrainingState, state, steps_per_epoch):
    """Takes over all of `state` but the network's weights and the best score."""
    training.mapping.load_state_dict(state['mapping'])
    restore_optimizer(training.optimizer, state['optimizer'])
    restore_optimizer(training.adversary_optimizer, state['adversary'])
    training.executor.restore_scale(state.get('scaler'))
    for key, name in MEANS.items():
        getattr(training, name).load_state_dict(state['means'][key], training.device)
    rho = state['opening']  # at the start of the max phase under way
    rho = None if rho is None else rho.to(training.device).reshape(())
    training.adversary_means.rho_at_start = rho
    training.decision = state.get('decision')
    training.epoch = state['epoch']
    training.step = state['step'] * steps_per_epoch // state['steps_per_epoch']
    first = training.epoch * steps_per_epoch
    if not 0 <= first <= training.step <= first + steps_per_epoch:
        raise ValueError(f'step {state["step"]} is not in epoch {training.epoch}')


def _score(state):
    return None if state.get('best') is None else float(state['best'])


def weights_of(training: TrainingState) -> dict:
    """What `load_weights` reads, and what a run can start from; the identity head is this
    rank's."""
    backbone, recipe = training.model.backbone, training.recipe
    ours = Backbone, backbones.PretrainedBackbone
    return {
        'model': training.model.state_dict(),
        'backbone': backbone.config if isinstance(backbone, ours) else None,
        'heads': {'identity': recipe.head, 'age': recipe.age_head},
        'classes': training.classes,
        'age_cutoffs': training.cutoffs,
        'epoch': training.epoch,
        'best': training.best,
        'decision': training.decision,
        'age_error': training.age_error,
        'figures': training.figures,
        'recipe': recipe.as_dict(),
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Gives `optimizer` the moments of a state_dict; its settings stay its own, as the recipe says.
    Raises ValueError if they don't fit."""
    own = optimizer.state_dict()['param_groups']
    optimizer.load_state_dict({'state': saved['state'], 'param_groups': own})
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    for index, moments in saved['state'].items():
        for name, moment in moments.items():
            if moment.shape != (() if name == 'step' else parameters[index].shape):
                shape = tuple(parameters[index].shape)
                raise ValueError(f'{name} {tuple(moment.shape)} of a parameter {shape}')
