"""An identity head for more people than one device holds: each rank has a slice of the class
centres, with their gradient and momentum.

The features of all faces go to every rank, each computes the logits of its own people, and what is
exchanged then is one number a face and rank: the logarithm of the sum of exponentials over the
slice. With `sample_rate` below 1, the softmax runs over the batch's people and a random part of the
others, anew in each step, as in Partial FC (An et al., CVPR 2022).
"""

import functools
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model import HEADS, MarginHead
from recognition.weights import load_checkpoint, save_checkpoint
from training import distributed
from training.distributed import BatchLayout, all_reduce, on_rank_zero, rank, world_size
from training.recipe import Recipe
from utils import UserError

ROWS = 1024  # centres drawn at once


def identity_head(recipe: Recipe, layout: BatchLayout) -> Callable[..., MarginHead]:
    """The recipe's MarginHead, whole or sharded, to be called with MarginHead's arguments."""
    if not recipe.shard_head:
        return HEADS[recipe.head]
    head = sharded(HEADS[recipe.head])
    return functools.partial(head, layout=layout, sample_rate=recipe.sample_rate)


def sharded(head: type[MarginHead]) -> type['ShardedHead']:
    """`head` with its centres in slices. Its loss and its margin see the faces of all ranks."""
    return type(f'Sharded{head.__name__}', (_WholeBatch, head, ShardedHead), {})


def own_rows(classes: int, of: int | None = None) -> tuple[int, int]:
    """The first of a rank's rows of all centres, and the one after the last; by default this
    rank's. Rank r of N has the r-th ⌈classes / N⌉."""
    rows, of = -(-classes // world_size()), rank() if of is None else of
    return min(of * rows, classes), min((of + 1) * rows, classes)


class _WholeBatch(MarginHead):
    layout: BatchLayout

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, right = super().loss(*self.layout.gather(features, labels))
        return self.layout.share(loss), self.layout.share(right)


class ShardedHead(MarginHead):
    """A MarginHead whose `weight` (people of the slice, D) is this rank's rows of the whole. Raises
    UserError if a rank would have none."""

    def __init__(
        self,
        dim: int,
        classes: int,
        scale: float = 64.0,
        m: float | None = None,
        *,
        layout: BatchLayout,
        sample_rate: float = 1.0,
    ):
        self.classes, self.layout, self.sample_rate = classes, layout, sample_rate
        self.begin, self.end = own_rows(classes)
        if own_rows(classes, world_size() - 1)[0] == classes:
            last = f'leave nothing to the last of {world_size()} processes'
            raise UserError(f'shard_head: {classes} people in equal slices {last}')
        super().__init__(dim, classes, scale, m)
        if dist.is_initialized():  # the replicated parameters' mean over the ranks, here by hand
            self.weight.register_hook(lambda gradient: gradient / world_size())

    def centres(self, dim: int, classes: int) -> Tensor:
        """The slice of what the whole head would draw, without room for all of it."""
        kept = torch.empty(self.end - self.begin, dim)
        starts = [*range(0, max(classes - ROWS + 1, 1), ROWS), classes]
        for start, end in zip(starts, starts[1:], strict=False):
            drawn = torch.randn(end - start, dim) * 0.01
            low, high = max(start, self.begin), min(end, self.end)
            if low < high:
                kept[low - self.begin : high - self.begin] = drawn[low - start : high - start]
        return kept

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As MarginHead.loss, of all ranks' faces (N, D)."""
        with torch.autocast(features.device.type, enabled=False):
            logits, target, columns = self.logits(features, labels)
            hard = logits.gather(1, columns.clamp(min=0)[:, None])[:, 0]
            hard, target = all_reduce(torch.stack([hard, target.detach()]) * (columns >= 0))
            of_slices = torch.stack([logits.logsumexp(1), logits.detach().amax(1)])[None]
            sums, best = distributed.all_gather(of_slices, [1] * world_size()).unbind(1)
            return sums.logsumexp(0) - hard, target >= best.amax(0)

    def logits(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All ranks' faces (N, D), labels (N,) -> logits (N, K) of K people of the slice, with the
        margin; those of the labels (N,) before it; and the labels' columns (N,), or −1."""
        here = (labels >= self.begin) & (labels < self.end)
        columns, weight = torch.where(here, labels - self.begin, -1), self.weight
        # room for as many people as faces: how many there are would have to be waited for
        kept = max(round(self.sample_rate * len(weight)), len(labels))
        if self.sample_rate < 1 and kept < len(weight):
            weight, columns = self._sampled(columns, kept)
        logits, places = self(features, weight), columns.clamp(min=0)[:, None]
        target = logits.gather(1, places)[:, 0]
        hard = torch.where(here, self.scale * self.margin(target / self.scale, labels), target)
        return logits.scatter(1, places, hard[:, None]), target, columns

    def _sampled(self, columns, kept):
        """`kept` centres, the batch's people among them, and the columns anew."""
        device, rows = self.weight.device, len(self.weight)
        present = torch.zeros(rows + 1, dtype=torch.bool, device=device)
        present = present.index_fill(0, torch.where(columns < 0, rows, columns), True)[:rows]
        order = torch.rand(rows, device=device).masked_fill(present, 2.0)
        chosen = order.topk(kept).indices.sort().values
        place = torch.zeros(rows, dtype=torch.long, device=device)
        place = place.index_copy(0, chosen, torch.arange(kept, device=device))
        return self.weight[chosen], torch.where(columns >= 0, place[columns.clamp(min=0)], -1)

    @torch.no_grad()
    def whole(self) -> Tensor | None:
        """All centres (classes, D) on the CPU of rank 0, which must have room; None elsewhere."""
        if rank() != 0:
            dist.send(self.weight.cpu().contiguous(), 0)
            return None
        whole = torch.empty(self.classes, self.weight.shape[1])
        whole[: self.end] = self.weight.cpu()
        for other in range(1, world_size()):
            dist.recv(whole[slice(*own_rows(self.classes, other))], other)
        return whole


# Its files: a state names a folder beside it, `head-xxxxxxxx`, with one file a rank, `<first row>-
# <row after the last>.pth`: the class centres of these rows, and their momentum.


def save_head(training: Any, state: dict, folder: Path) -> None:
    """Takes the head out of `state` and writes it beside; `state['head']` then names where."""
    head, moments = training.model.identity, state['optimizer']['state']
    slice_ = {'weight': state['model'].pop('identity.weight').cpu()}
    if moment := moments.pop(_place(training), None):  # not before the first step
        slice_['momentum'] = moment['momentum_buffer'].cpu()
    state['head'] = on_rank_zero(lambda: f'head-{uuid.uuid4().hex[:8]}')
    on_rank_zero((folder / state['head']).mkdir)
    file = folder / state['head'] / f'{head.begin}-{head.end}.pth'
    distributed.on_every_rank(save_checkpoint, slice_, file)


def load_head(training: Any, state: dict, folder: Path) -> None:
    """Puts the head of a state or of a weights file into it as `training` has it, a slice or whole.
    Raises UserError if that can't be."""
    head, weights = training.model.identity, state['model']
    sharded = isinstance(head, ShardedHead)
    if 'head' not in state and not (sharded and torch.is_tensor(weights.get('identity.weight'))):
        return
    if state['classes'] != training.classes:  # it is not used
        weights['identity.weight'] = head.weight
        return
    begin, end = (head.begin, head.end) if sharded else (0, len(head.weight))
    try:
        moments = state.get('optimizer', {}).get('state', {})
        if 'head' in state:
            found = _read(folder, state['head'], begin, end)
        else:
            whole = moments.get(_place(training), {}) | {'weight': weights['identity.weight']}
            found = {name: rows[begin:end].clone() for name, rows in whole.items()}
        weights['identity.weight'] = found.pop('weight')
    except Exception as error:  # whatever damage leads to
        why = f'{type(error).__name__}: {" ".join(str(error).split()):.200}'
        where = f'{folder}/{state.get("head", "")!s:.20}'
        raise UserError(f'{where}: not the identity head of this state ({why})') from None
    if found:
        moments[_place(training)] = found


def _read(folder, name, begin, end):
    """The rows from `begin` to `end` of the centres, and of their momentum if there is one, out of
    the slices of any number of ranks."""
    if not re.fullmatch('head-[0-9a-f]{8}', name):
        raise ValueError('no such name')
    slices = sorted(tuple(map(int, path.stem.split('-'))) for path in (folder / name).glob('*.pth'))
    parts: dict[str, list] = {'weight': [], 'momentum': []}
    for first, last in slices:
        if first < end and last > begin:
            file = load_checkpoint(folder / name / f'{first}-{last}.pth', ['weight'])
            for part in parts.keys() & file:
                parts[part].append(file[part][max(begin - first, 0) : end - first])
    names = {'weight': 'weight', 'momentum': 'momentum_buffer'}
    return {names[part]: torch.cat(rows) for part, rows in parts.items() if rows}


def _place(training):
    """Where the optimizer's state has the head."""
    parameters = [p for group in training.optimizer.param_groups for p in group['params']]
    return next(place for place, p in enumerate(parameters) if p is training.model.identity.weight)
