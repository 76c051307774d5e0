"""The files of a sharded head: every rank writes and reads its own slice, by
torch.distributed.checkpoint."""

import os
import pickle
import re
import shutil
import uuid
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from training.distributed import on_rank_zero, raised_by_all, world_size
from training.sharded import ShardedHead
from training.state import TrainingState
from utils import UserError


def keep(training: TrainingState, state: dict, folder) -> None:
    """Takes the head out of a state of `training`, and writes it beside: `state` then names
    where."""
    parts = {'weight': state['model'].pop('identity.weight')}
    moments = state['optimizer']['state']
    if _moving(moments):
        parts['momentum'] = moments.pop(_place(training))['momentum_buffer']
    parts = {name: part.cpu() for name, part in parts.items()}
    state['head'] = _save(parts, len(training.classes), folder)


def fit(training: TrainingState, state: dict, folder) -> None:
    """Makes the head of a state or of a weights file what `training` has: a slice or the whole.
    Raises UserError where that can't be."""
    head, own = training.model.identity, training.model.state_dict()['identity.weight'].cpu()
    sharded, weights = isinstance(head, ShardedHead), state['model']
    if 'head' not in state and not (sharded and torch.is_tensor(weights.get('identity.weight'))):
        return
    if state['classes'] != training.classes:  # it is not used
        weights['identity.weight'] = own
        return
    try:
        moments = state.get('optimizer', {}).get('state', {})
        if 'head' in state:
            parts = {'weight': torch.empty_like(own)}
            if _moving(moments):
                parts['momentum'] = torch.empty_like(own)
            _load(parts, len(training.classes) if sharded else None, folder, state['head'])
        else:
            parts = {'weight': head.slice_of(weights['identity.weight'])}
            if _moving(moments):
                parts['momentum'] = head.slice_of(moments[_place(training)]['momentum_buffer'])
    except (Exception, CheckpointException) as error:  # whatever damage leads to
        why = f'{type(error).__name__}: {" ".join(str(error).split()):.200}'
        raise UserError(
            f'{folder}/{state.get("head", "")!s:.20}: not the identity head of this state ({why})'
        ) from None
    weights['identity.weight'] = parts['weight']
    if 'momentum' in parts:
        moments[_place(training)] = {'momentum_buffer': parts['momentum']}


def forget(folder, name) -> None:
    """Removes the heads of earlier states than the one that `name`s its own."""
    for old in folder.glob('head-????????'):
        if old.name != name:
            shutil.rmtree(old)


def _moving(moments):
    """Whether an optimizer's state has momentum at all: not before its first step."""
    return any(moment.get('momentum_buffer') is not None for moment in moments.values())


def _place(training: TrainingState):
    """Where the optimizer's state has the head."""
    parameters = [p for group in training.optimizer.param_groups for p in group['params']]
    return next(place for place, p in enumerate(parameters) if p is training.model.identity.weight)


def _save(parts, classes, folder):
    """Writes `parts`, the slices (rows, …) of all ranks by name, into a new folder in `folder`,
    whose name is returned."""
    name = on_rank_zero(lambda: f'head-{uuid.uuid4().hex[:8]}')
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'torch.distributed is disabled')  # in one process
            dcp.save(
                _spread(parts, classes),
                checkpoint_id=folder / name,
                no_dist=not dist.is_initialized(),
            )
    except (OSError, RuntimeError, CheckpointException) as error:
        why = f'{" ".join(str(error).split()):.200}'
        raise raised_by_all(
            UserError(f'{folder / name}: not written ({why}): make room and --resume')
        ) from None
    return name


def _load(parts, classes, folder, name):
    """Fills `parts`, slices by name (wholes where `classes` is None), whatever the number of ranks
    that wrote them."""
    if not re.fullmatch('head-[0-9a-f]{8}', name):
        raise ValueError('no such name')
    reader = _Reader(folder / name)
    reader.read_metadata()  # its errors are one line here; dcp.load would print a traceback
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'torch.distributed is disabled')
        dcp.load(
            _spread(parts, classes) if classes else parts,
            storage_reader=reader,
            no_dist=not dist.is_initialized(),
        )


def _spread(parts, classes):
    """The slices as rows of tensors (classes, …) that are spread over the ranks."""
    if not dist.is_initialized():
        return parts
    mesh = init_device_mesh('cpu', (world_size(),))
    return {
        name: DTensor.from_local(
            part,
            mesh,
            [Shard(0)],
            stride=part.stride(),
            shape=torch.Size((classes, *part.shape[1:])),
        )
        for name, part in parts.items()
    }


class _Reader(dcp.FileSystemReader):
    """A reader whose metadata, a pickle, can hold descriptions of tensors and nothing that runs."""

    def read_metadata(self, *args, **options):
        with open(os.path.join(self.path, '.metadata'), 'rb') as file:
            metadata = _Unpickler(file).load()
        entries = metadata.state_dict_metadata.values()
        if not all(isinstance(entry, dcp.metadata.TensorStorageMetadata) for entry in entries):
            raise ValueError('it holds more than tensors')
        places = [info.relative_path for info in metadata.storage_data.values()]
        if any(os.path.basename(place) != place for place in places):
            raise ValueError('it names files elsewhere')
        metadata.storage_meta = dcp.metadata.StorageMeta(load_id=self.load_id)
        return metadata


class _Unpickler(pickle.Unpickler):
    admitted = {
        'torch.distributed.checkpoint.metadata': (
            'Metadata',
            'TensorStorageMetadata',
            'ChunkStorageMetadata',
            'TensorProperties',
            'MetadataIndex',
            'StorageMeta',
            '_MEM_FORMAT_ENCODING',
        ),
        'torch.distributed.checkpoint.filesystem': ('_StorageInfo',),
        'torch': ('Size', 'float32'),
        'torch.serialization': ('_get_layout',),
    }

    def find_class(self, module, name):
        if name in self.admitted.get(module, ()):
            return super().find_class(module, name)
        if module.split('.')[0] == 'pathlib' and name.endswith('Path'):  # where it was written
            return os.path.join
        raise pickle.UnpicklingError(f'{module}.{name}')
