"""Where a run starts: from nothing, from weights, or exactly where a state stands."""
from pathlib import Path

import utils
from training import head


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


def start(training, path, same_run, steps_per_epoch):
    """Loads `path` into `training`; whether it resumes exactly where the file stands. Raises UserError where it can't be used.

    The network with its heads where the people and age groups are the same, else the backbone and the factorization; optimizers,
    adversary, step and best score too where the file is a state and everything fits.
    """
    state = utils.load_checkpoint(path, {'model': dict, 'backbone': (dict, type(None)), 'classes': list, 'age_cutoffs': list, 'epoch': int})
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
        training.restore(state, steps_per_epoch)
        training.best = _score(state)
        return True
    except Exception as error:  # a state of another variate or version, or of a stranger, can fail in any way
        raise utils.UserError(f'{path}: its optimizers do not fit this recipe ({[*str(error).splitlines(), type(error).__name__][0]}): start '
                              'from an epoch_*.pth or best.pth, which hold weights alone') from None


def _score(state):
    return None if state.get('best') is None else float(state['best'])
