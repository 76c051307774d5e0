"""The files of a sharded head: every rank writes its slice, and reads the slices that it needs.

A state of such a run names a folder beside it, `head-xxxxxxxx`, with one file a rank,
`<first row>-<row after the last>.pth`: the class centres of these rows, and their momentum.
"""

import re
import shutil
import uuid
from pathlib import Path

import torch

from recognition.weights import load_checkpoint, save_checkpoint
from training.distributed import on_every_rank, on_rank_zero
from training.sharded import ShardedHead
from training.state import TrainingState
from utils import UserError


def save_head(training: TrainingState, state: dict, folder: Path) -> None:
    """Takes the head out of `state` and writes it beside; `state['head']` then names where.

    Raises: UserError if it can't be written.
    """
    head, moments = training.model.identity, state['optimizer']['state']
    slice_ = {'weight': state['model'].pop('identity.weight')}
    if _has_momentum(moments):
        slice_['momentum'] = moments.pop(_place(training))['momentum_buffer']
    state['head'] = on_rank_zero(_new_folder, folder)
    file = folder / state['head'] / f'{head.begin}-{head.end}.pth'
    on_every_rank(save_checkpoint, {name: part.cpu() for name, part in slice_.items()}, file)


def load_head(training: TrainingState, state: dict, folder: Path) -> None:
    """Puts the head of a state or of a weights file into it as `training` has it, a slice or whole.

    Raises: UserError if that can't be.
    """
    head, weights = training.model.identity, state['model']
    current = training.model.state_dict()['identity.weight'].cpu()
    sharded = isinstance(head, ShardedHead)
    if 'head' not in state and not (sharded and torch.is_tensor(weights.get('identity.weight'))):
        return
    if state['classes'] != training.classes:  # it is not used
        weights['identity.weight'] = current
        return
    begin, end = (head.begin, head.end) if sharded else (0, len(current))
    try:
        moments = state.get('optimizer', {}).get('state', {})
        names = ['weight', *['momentum'] * _has_momentum(moments)]
        if 'head' in state:
            found = _read(folder, state['head'], names, begin, end)
        else:
            found = {'weight': weights['identity.weight'][begin:end].clone()}
            if _has_momentum(moments):
                whole = moments[_place(training)]['momentum_buffer']
                found['momentum'] = whole[begin:end].clone()
        if any(part.shape != current.shape for part in found.values()):
            raise ValueError(f'it has the shape {tuple(found["weight"].shape)}')
    except Exception as error:  # whatever damage leads to
        why = f'{type(error).__name__}: {" ".join(str(error).split()):.200}'
        raise UserError(
            f'{folder}/{state.get("head", "")!s:.20}: not the identity head of this state ({why})'
        ) from None
    weights['identity.weight'] = found['weight']
    if 'momentum' in found:
        moments[_place(training)] = {'momentum_buffer': found['momentum']}


def remove_old_heads(folder: Path, name: str | None) -> None:
    """Removes the heads of earlier states than the one whose head is called `name`."""
    for old in folder.glob('head-????????'):
        if old.name != name:
            shutil.rmtree(old)


def _new_folder(folder):
    path = folder / f'head-{uuid.uuid4().hex[:8]}'
    path.mkdir()
    return path.name


def _read(folder, name, names, begin, end):
    """The rows from `begin` to `end` out of the slices of any number of ranks."""
    if not re.fullmatch('head-[0-9a-f]{8}', name):
        raise ValueError('no such name')
    slices = sorted(tuple(map(int, path.stem.split('-'))) for path in (folder / name).glob('*.pth'))
    rows: dict[str, list] = {part: [] for part in names}
    for first, last in slices:
        if first < end and last > begin:
            file = load_checkpoint(folder / name / f'{first}-{last}.pth', names)
            for part in names:
                if len(file[part]) != last - first:
                    raise ValueError(f'{first}-{last}.pth has {len(file[part])} rows')
                rows[part].append(file[part][max(begin - first, 0) : end - first])
    return {part: torch.cat(pieces) for part, pieces in rows.items()}


def _has_momentum(moments):
    """Whether an optimizer's state has momentum at all: not before its first step."""
    return any(moment.get('momentum_buffer') is not None for moment in moments.values())


def _place(training):
    """Where the optimizer's state has the head."""
    parameters = [p for group in training.optimizer.param_groups for p in group['params']]
    return next(place for place, p in enumerate(parameters) if p is training.model.identity.weight)
