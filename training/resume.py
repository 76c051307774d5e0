"""What a run keeps, and where one starts: from nothing, from weights, or exactly where a state stands."""
from pathlib import Path

import utils
from model import Backbone
from training import head, ranks
from training.checkpoint import load_checkpoint, restore_optimizer, save_checkpoint

MEANS = ('means', 'climbs', 'epoch_means')


def weights_of(training, whole_head=True):
    """What `DALModel.load` reads, and what a run can start from; of a sharded head, the whole is on the first process."""
    backbone = training.model.backbone.config if type(training.model.backbone) is Backbone else None
    model = training.model.state_dict()
    if training.recipe['shard_head'] and whole_head:
        model['identity.weight'] = training.model.identity.whole()
    return {'model': model, 'backbone': backbone, 'classes': training.classes, 'age_cutoffs': training.cutoffs,
            'epoch': training.epoch, 'best': training.best, 'decision': training.decision, 'recipe': training.recipe}


def state_of(training, steps_per_epoch, folder):
    """What resumes the run: order, flips and ramps are functions of the seed and the global step; the means are those under way.

    A sharded head is written to a folder of its own in `folder`.
    """
    state = weights_of(training, whole_head=False) | {
        'mapping': training.mapping.state_dict(), 'optimizer': training.optimizer.state_dict(), 'adversary': training.adversary.state_dict(),
        'step': training.step, 'steps_per_epoch': steps_per_epoch, 'opening': training.opening,
        'means': {name: getattr(training, name).state_dict() for name in MEANS}}
    if training.recipe['shard_head']:
        head.keep(training, state, folder)
    return state


def save_weights(training, folder, names):
    """Writes the files of weights `names`, all alike, into `folder`. Raises UserError where that can't be."""
    weights = weights_of(training)
    for name in names:
        ranks.decided(save_checkpoint, weights, folder / name)


def save_state(training, steps_per_epoch, folder):
    """Writes last.pth, and after it removes the sharded heads of earlier ones. Raises UserError where that can't be."""
    state = state_of(training, steps_per_epoch, folder)
    ranks.decided(save_checkpoint, state, folder / 'last.pth')
    ranks.decided(head.forget, folder, state.get('head'))


def starting_point(args):
    """The save folder and the file to start from (or None). Raises UserError rather than overwrite another run."""
    folder, state = Path(args.save), Path(args.save, 'last.pth')
    if args.weights and args.resume:
        raise utils.UserError('give either weights or --resume')
    weights = args.weights or (args.resume if args.resume is not True else state if state.exists() else None)
    taken = sorted(path.name for path in folder.glob('*.pth'))
    if taken and not (weights and Path(weights).parent.resolve() == folder.resolve()):
        raise utils.UserError(f'{folder} holds a run already ({taken[0]}, {len(taken)} weights files): --resume continues it, --save DIR starts elsewhere')
    return folder, weights and Path(weights)


def refuse_to_overwrite(folder, first, last):
    """Raises UserError where `folder` has weights of one of the epochs after `first` and up to `last`."""
    taken = [epoch for epoch in range(first + 1, last + 1) if (folder / f'epoch_{epoch:03d}.pth').exists()]
    if taken:
        raise ranks.common(utils.UserError(f'{folder} holds epoch_{taken[0]:03d}.pth already, which this run would write anew: '
                                           '--save DIR starts elsewhere'))


def start(training, path, same_run, steps_per_epoch):
    """Loads `path` into `training`; whether it resumes exactly where the file stands. Raises UserError where it can't be used.

    The network with its heads where the people and age groups are the same, else the backbone and the factorization; optimizers,
    adversary, step and best score too where the file is a state and everything fits.
    """
    state = load_checkpoint(path, {'model': dict, 'backbone': (dict, type(None)), 'classes': list, 'age_cutoffs': list, 'epoch': int})
    head.fit(training, state, path.parent)
    fresh = [part for part, same in (('identity', state['classes'] == training.classes), ('age', state['age_cutoffs'] == training.cutoffs))
             if not same]
    own = training.model.state_dict()
    weights = {name: own[name] if name in own and name.split('.')[0] in fresh else tensor for name, tensor in state['model'].items()}
    differ = [name for name in own if getattr(weights.get(name), 'shape', None) != own[name].shape] + [n for n in weights if n not in own]
    if differ:
        raise utils.UserError(f'{path}: its network is not the one that main.py builds (first difference: {differ[0]!r}); it was saved with '
                              f'backbone {state["backbone"]}: choose the same recipe, or set layers, widths and dim to these')
    try:
        training.model.load_state_dict(weights)
    except RuntimeError as error:
        raise utils.UserError(f'{path}: its tensors are of another kind ({str(error).splitlines()[-1].strip()})') from None
    if fresh:
        what = {'identity': f"the identity head ({len(state['classes'])} people there, {len(training.classes)} here)", 'age': 'the age head'}
        print(f'{path}: other people or age groups: keeping the backbone, starting anew: {" and ".join(what[part] for part in fresh)}')
        return False
    if 'optimizer' not in state:
        print(f'{path}: weights alone: optimizer and adversary start anew (last.pth would resume exactly)')
        training.epoch = max(0, state['epoch']) if same_run else 0
        training.step, training.best = training.epoch * steps_per_epoch, _score(state) if same_run else None
        return False
    try:
        _restore(training, state, steps_per_epoch)
        training.best = _score(state)
        return True
    except Exception as error:  # a state of another variate or version, or of a stranger, can fail in any way
        raise utils.UserError(f'{path}: its optimizers do not fit this recipe ({[*str(error).splitlines(), type(error).__name__][0]}): start '
                              'from an epoch_*.pth or best.pth, which hold weights alone') from None


def _restore(training, state, steps_per_epoch):
    """Takes over all of `state` but the network's weights and the best score."""
    training.mapping.load_state_dict(state['mapping'])
    restore_optimizer(training.optimizer, state['optimizer'])
    restore_optimizer(training.adversary, state['adversary'])
    for name in MEANS:
        getattr(training, name).load_state_dict(state['means'][name], training.device)
    training.opening = None if state['opening'] is None else state['opening'].to(training.device).reshape(())
    training.decision = state.get('decision')
    training.epoch, training.step = state['epoch'], state['step'] * steps_per_epoch // state['steps_per_epoch']
    if not 0 <= training.epoch * steps_per_epoch <= training.step <= (training.epoch + 1) * steps_per_epoch:
        raise ValueError(f'step {state["step"]} is not in epoch {training.epoch}')


def _score(state):
    return None if state.get('best') is None else float(state['best'])
