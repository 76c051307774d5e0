"""Files of weights and states: written whole, read safely."""
import torch

import utils
from model import read_state


def save_checkpoint(state, path):
    """Tensors, numbers, strings, lists and dicts: what torch.load's safe default reads. Raises UserError where it can't be written."""
    try:
        utils.write_whole(path, lambda temporary: torch.save(state, temporary))
    except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        if 'DataLoader worker' in str(error):  # one that is killed says so in whatever this process is at
            raise
        raise utils.UserError(f'{path}: not written ({getattr(error, "strerror", None) or "the disk may be full"}); the file before it is whole: '
                              'make room and --resume') from None


def load_checkpoint(path, needed):
    """The dict in a checkpoint, on the CPU, by model.read_state: a stranger's file runs nothing.

    `needed` are the keys it must have, or a dict of them and the types of their values. Raises UserError where the file is missing,
    damaged, or not of that form.
    """
    try:
        state = read_state(path)
    except FileNotFoundError:
        raise utils.UserError(f'{path}: no such file') from None
    except ValueError as error:
        raise utils.UserError(str(error)) from None
    missing = [key for key in needed if not isinstance(state, dict) or key not in state]
    if missing:
        raise utils.UserError(f'{path}: no weights file of this repository (it lacks {", ".join(missing)})')
    for key, kind in needed.items() if isinstance(needed, dict) else ():
        if not isinstance(state[key], kind):
            raise utils.UserError(f'{path}: no weights file of this repository ({key} is of type {type(state[key]).__name__})')
    return state


def restore_optimizer(optimizer, saved):
    """Gives `optimizer` the moments of a state_dict; its settings stay its own, as the recipe says. Raises ValueError where they don't fit."""
    own = optimizer.state_dict()['param_groups']
    optimizer.load_state_dict({'state': saved['state'], 'param_groups': own})
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    for index, moments in saved['state'].items():
        for name, moment in moments.items():
            if moment.shape != (() if name == 'step' else parameters[index].shape):
                raise ValueError(f'{name} {tuple(moment.shape)} of a parameter {tuple(parameters[index].shape)}')
