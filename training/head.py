"""An identity head for more people than one device holds: each process has a slice of the class centres, their gradient and momentum.

The features of all faces go to every process, each computes the logits of its own people, and what is exchanged then is one number a face
and process: the logarithm of the sum of exponentials over the slice. With every negative it is CosFace of model.py exactly; with
`sample_rate` below 1, the softmax runs over the batch's people and a random part of the others, anew in each step, as in Partial FC
(An et al., CVPR 2022).
"""
import os
import pickle
import re
import shutil
import uuid
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional as F

import utils
from training import ranks

ROWS = 1024  # centres drawn at once


class ShardedCosFace(nn.Module):
    """CosFace whose `weight` (people of the slice, D) is a part of the whole: process r of N has the r-th ⌈classes/N⌉ of them.

    The centres that it begins with are those which CosFace draws. Raises UserError where a process would have none.
    """

    def __init__(self, dim, classes, scale=64., margin=0.35):
        super().__init__()
        self.scale, self.margin, self.classes, self.sample_rate = scale, margin, classes, 1.
        self.sizes = None  # faces that each process gives to forward
        rows = -(-classes // ranks.count())
        self.begin, self.end = min(ranks.index() * rows, classes), min((ranks.index() + 1) * rows, classes)
        if rows * (ranks.count() - 1) >= classes:
            raise utils.UserError(f'shard_head: {classes} people in slices of {rows} leave nothing to the last of {ranks.count()} processes')
        self.weight = nn.Parameter(torch.empty(self.end - self.begin, dim))
        self._draw(dim)

    @torch.no_grad()
    def _draw(self, dim):
        """All centres in turn, of which the own are kept: the same numbers as drawn at once, which may be too many."""
        starts = [*range(0, max(self.classes - ROWS + 1, 1), ROWS), self.classes]
        for start, end in zip(starts, starts[1:]):
            drawn, low, high = torch.randn(end - start, dim) * .01, max(start, self.begin), min(end, self.end)
            if low < high:
                self.weight[low - self.begin:high - self.begin] = drawn[low - start:high - start]

    def forward(self, features, labels):
        """Faces (n, D) of this process and labels (n,) -> logits (N, K) of *all* processes' N faces and K people of the slice, float32,
        with the margin; and the columns (N,) in which their own persons stand, −1 where these are another process's."""
        with torch.autocast(features.device.type, enabled=False):
            features = ranks.gathered(features.float(), self.sizes)
            columns = ranks.gathered(labels, self.sizes) - self.begin
            columns = torch.where((columns >= 0) & (columns < len(self.weight)), columns, -1)
            weight, kept = self.weight.float(), max(1, round(self.sample_rate * len(self.weight)))
            if kept < len(weight):
                weight, columns = self._sampled(weight, columns, kept)
            lengths = weight.norm(dim=1).clamp(min=1e-12)
            logits = F.linear(self.scale * F.normalize(features), weight) / lengths
            margins = (columns >= 0)[:, None] * logits.new_full((len(columns), 1), -self.scale * self.margin)
            return logits.scatter_add(1, columns.clamp(min=0)[:, None], margins), columns

    def _sampled(self, weight, columns, kept):
        """`kept` rows of weight, the batch's people among them (all of these, where they are more), and the columns anew."""
        present = torch.zeros(len(weight), dtype=torch.bool, device=weight.device).index_fill_(0, columns[columns >= 0], True)
        order = torch.rand(len(weight), device=weight.device).masked_fill_(present, 2.)
        rows = order.topk(max(kept, int(present.sum()))).indices.sort().values
        place = torch.zeros(len(weight), dtype=torch.long, device=weight.device).index_copy_(0, rows, torch.arange(len(rows), device=weight.device))
        return weight[rows], torch.where(columns >= 0, place[columns.clamp(min=0)], -1)

    def judge(self, logits, columns):
        """See below; each process's slice contributes to every face's."""
        mine = logits.gather(1, columns.clamp(min=0)[:, None])[:, 0] * (columns >= 0)
        sums = ranks.gathered(logits.logsumexp(1)[None], [1] * ranks.count())
        own = ranks.total(mine)
        best = ranks.gathered(logits.detach().max(1).values[None], [1] * ranks.count()).max(0).values
        right = own.detach() + self.scale * self.margin >= best
        return tuple(ranks.own(part, self.sizes).sum() for part in (sums.logsumexp(0) - own, right))

    def slice_of(self, whole):
        """The own rows of a tensor (classes, …)."""
        return whole[self.begin:self.end].clone()

    @torch.no_grad()
    def whole(self):
        """All centres (classes, D) on the CPU of the first process, which must have room; None elsewhere."""
        if not ranks.first():
            dist.send(self.weight.cpu().contiguous(), 0)
            return None
        whole = torch.empty(self.classes, self.weight.shape[1])
        whole[:self.end] = self.weight.cpu()
        rows = len(self.weight)
        for rank in range(1, ranks.count()):
            dist.recv(whole[rank * rows:min((rank + 1) * rows, self.classes)], rank)
        return whole


def clip(model, limit):
    """The gradient's norm, the slices of all processes in it, (): and the gradient made no longer than `limit`."""
    if not isinstance(model.identity, ShardedCosFace):
        return torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    rest = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p is not model.identity.weight])
    norm = (rest.square() + ranks.total(model.identity.weight.grad.square().sum())).sqrt()
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)
    return norm


def judge(head, logits, labels):
    """Of what a head's forward gave: the sum of this process's faces' cross-entropies, and how many are right without the margin, both ()."""
    if isinstance(head, ShardedCosFace):
        return head.judge(*logits)
    own = logits.detach().gather(1, labels[:, None])[:, 0] + head.scale * head.margin
    return F.cross_entropy(logits, labels, reduction='sum'), (own >= logits.detach().max(1).values).sum()


# Files: every process writes and reads its own part, by torch.distributed.checkpoint

def keep(training, state, folder):
    """Takes the head out of a state of `training`, and writes it beside: `state` then names where."""
    parts, moments = {'weight': state['model'].pop('identity.weight')}, state['optimizer']['state']
    if _moving(moments):
        parts['momentum'] = moments.pop(_place(training))['momentum_buffer']
    state['head'] = _save({name: part.cpu() for name, part in parts.items()}, len(training.classes), folder)


def fit(training, state, folder):
    """Makes the head of a state or of a weights file what `training` has: a slice or the whole. Raises UserError where that can't be."""
    head, own = training.model.identity, training.model.state_dict()['identity.weight'].cpu()
    sharded, weights = isinstance(head, ShardedCosFace), state['model']
    if 'head' not in state and not (sharded and torch.is_tensor(weights.get('identity.weight'))):
        return
    if state['classes'] != training.classes:  # it is not used
        weights['identity.weight'] = own
        return
    try:
        moments = state.get('optimizer', {}).get('state', {})
        if 'head' in state:
            parts = {'weight': torch.empty_like(own)} | ({'momentum': torch.empty_like(own)} if _moving(moments) else {})
            _load(parts, len(training.classes) if sharded else None, folder, state['head'])
        else:
            parts = {'weight': head.slice_of(weights['identity.weight'])}
            if _moving(moments):
                parts['momentum'] = head.slice_of(moments[_place(training)]['momentum_buffer'])
    except (Exception, CheckpointException) as error:  # of the state, or of the folder, its metadata, its files: whatever damage leads to
        raise utils.UserError(f'{folder}/{state.get("head", "")!s:.20}: not the identity head of this state '
                              f'({type(error).__name__}: {" ".join(str(error).split()):.200})') from None
    weights['identity.weight'] = parts['weight']
    if 'momentum' in parts:
        moments[_place(training)] = {'momentum_buffer': parts['momentum']}


def _moving(moments):
    """Whether an optimizer's state has momentum at all: not before its first step."""
    return any(moment.get('momentum_buffer') is not None for moment in moments.values())


def _place(training):
    """Where the optimizer's state has the head."""
    parameters = [p for group in training.optimizer.param_groups for p in group['params']]
    return next(place for place, p in enumerate(parameters) if p is training.model.identity.weight)


def _save(parts, classes, folder):
    """Writes `parts`, own slices (rows, …) by name, into a new folder in `folder`, whose name is returned; all processes together."""
    name = ranks.decided(lambda: f'head-{uuid.uuid4().hex[:8]}')
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'torch.distributed is disabled')  # as it is in one process
            dcp.save(_spread(parts, classes), checkpoint_id=folder / name, no_dist=not dist.is_initialized())
    except (OSError, RuntimeError, CheckpointException) as error:
        raise ranks.common(utils.UserError(f'{folder / name}: not written ({" ".join(str(error).split()):.200}): make room and --resume')) from None
    return name


def forget(folder, name):
    """Removes what earlier states named."""
    for old in folder.glob('head-????????'):
        if old.name != name:
            shutil.rmtree(old)


def _load(parts, classes, folder, name):
    """Fills `parts`, own slices by name (classes: None: wholes), whatever the number of processes that wrote them."""
    if not re.fullmatch('head-[0-9a-f]{8}', name):
        raise ValueError('no such name')
    reader = _Reader(folder / name)
    reader.read_metadata()  # what is wrong with it is said here in one line; dcp.load would print a traceback
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'torch.distributed is disabled')
        dcp.load(_spread(parts, classes) if classes else parts, storage_reader=reader, no_dist=not dist.is_initialized())


def _spread(parts, classes):
    """The slices as rows of tensors (classes, …) that are spread over the processes."""
    if not dist.is_initialized():
        return parts
    mesh = init_device_mesh('cpu', (ranks.count(),))
    return {name: DTensor.from_local(part, mesh, [Shard(0)], shape=torch.Size((classes, *part.shape[1:])), stride=part.stride())
            for name, part in parts.items()}


class _Reader(dcp.FileSystemReader):
    """A reader whose metadata, a pickle, can hold descriptions of tensors and nothing that runs."""

    def read_metadata(self, *args, **options):
        with open(os.path.join(self.path, '.metadata'), 'rb') as file:
            metadata = _Unpickler(file).load()
        if not all(isinstance(entry, dcp.metadata.TensorStorageMetadata) for entry in metadata.state_dict_metadata.values()):
            raise ValueError('it holds more than tensors')
        if any(os.path.basename(info.relative_path) != info.relative_path for info in metadata.storage_data.values()):
            raise ValueError('it names files elsewhere')
        metadata.storage_meta = dcp.metadata.StorageMeta(load_id=self.load_id)
        return metadata


class _Unpickler(pickle.Unpickler):
    admitted = {'torch.distributed.checkpoint.metadata': ('Metadata', 'TensorStorageMetadata', 'ChunkStorageMetadata', 'TensorProperties', 'MetadataIndex',
                                                          'StorageMeta', '_MEM_FORMAT_ENCODING'),
                'torch.distributed.checkpoint.filesystem': ('_StorageInfo',), 'torch': ('Size', 'float32'), 'torch.serialization': ('_get_layout',)}

    def find_class(self, module, name):
        if name in self.admitted.get(module, ()):
            return super().find_class(module, name)
        if module.split('.')[0] == 'pathlib' and name.endswith('Path'):  # where it was written
            return os.path.join
        raise pickle.UnpicklingError(f'{module}.{name}')
