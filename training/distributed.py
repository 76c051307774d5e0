"""The ranks (processes) of one job, and what they exchange. Without torchrun there is one.

Each rank computes its share of every batch; everything else is replicated: the same weights,
adversary, optimizers and means are on each of them after every step. Losses are means over the
whole batch, the same on every rank. The backward pass of a sum over the ranks is again a sum, so
that each rank's gradient is world-size times its share's; DistributedDataParallel's mean over the
ranks is then the gradient that one process has with the whole batch, whatever the shares. A
UserError or DataError too is raised on all: rank 0 prints it.
"""

import datetime
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import utils
from utils import DataError, UserError

# how long the others wait while one rank decodes a data set, validates or saves; in the groups of
# training itself, half an hour of silence is a fault
PATIENCE = datetime.timedelta(days=1)
_patient = None  # the group in which they wait


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """0 is the one that writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def process_group(ctx: int) -> Iterator[torch.device]:
    """Within it this process belongs to its job, if there is one; yields its device. On CPUs
    (ctx < 0) the ranks talk by gloo; on GPUs by NCCL, each on the GPU of its LOCAL_RANK."""
    global _patient
    if not dist.is_torchelastic_launched():
        yield utils.pick_device(ctx)
        return
    device = utils.pick_device(int(os.environ['LOCAL_RANK']) if ctx >= 0 else ctx)
    store, rank_, size = next(dist.rendezvous('env://'))
    if os.environ.get('LOCAL_WORLD_SIZE') == os.environ['WORLD_SIZE']:
        # one machine's launcher keeps its store over restarts, with the addresses of killed ranks
        store = dist.PrefixStore(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0'), store)
    backend = 'cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo'
    dist.init_process_group(backend, store=store, rank=rank_, world_size=size)
    _patient = dist.new_group(backend='gloo', timeout=PATIENCE)
    with open(os.devnull, 'w') as null, redirect_stdout(null if rank() else sys.stdout):
        try:
            yield device
        except (UserError, DataError):
            if rank() != 0:
                sys.exit(1)
            raise
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and 'gloo' not in str(error):
                raise
            why = f'{str(error).splitlines()[0]:.120}'
            lost = f'process {rank()} of {world_size()} lost the others, of which one has ended'
            raise UserError(
                f'{lost} or hangs ({why}); --resume continues from the last save'
            ) from error
    _patient = None  # its threads end here, and not somewhere in the interpreter's end
    dist.destroy_process_group()


# agreement between steps; objects pass through pickle, between the processes of one job


def all_gather_object(value, group=None) -> list:
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value, group)
    return values


def on_every_rank(work: Callable, *args: Any) -> Any:
    """work(*args) on every rank; if it raises on some, the first one's error is raised on all."""
    if not dist.is_initialized():
        return work(*args)
    result, error = None, None
    try:
        result = work(*args)
    except (UserError, DataError) as caught:
        error = caught
    except OSError as caught:
        error = UserError(str(caught))
    for first in filter(None, all_gather_object(error, _patient)):
        raise first
    return result


def on_rank_zero(work: Callable, *args: Any) -> Any:
    """What work(*args) returns, or raises, on rank 0 alone; the others wait for it."""
    result = on_every_rank(lambda: work(*args) if rank() == 0 else None)
    return all_gather_object(result, _patient)[0]


def rank_zero_first(work: Callable, *args: Any) -> Any:
    """work(*args) on rank 0, then on the first of each other machine, then on the rest: they find
    what an earlier one prepared on a disk, shared or not."""
    turn = 0 if rank() == 0 else 1 if os.environ.get('LOCAL_RANK') == '0' else 2
    turns = range(3 if dist.is_initialized() else 1)
    return [on_every_rank(lambda now=now: work(*args) if turn == now else None) for now in turns][
        turn
    ]


def lockstep(loader: Iterable, interrupt: Any, least: int = 1) -> Iterator[tuple]:
    """This rank's images, labels, ages; all ranks' numbers of faces, reasons for unreadable ones,
    and the name of a signal that any of them noted in its `interrupt`, or None: no rank begins a
    step alone. Raises any rank's DataError, also of fewer than `least` readable faces."""
    batches = iter(loader)
    while True:
        batch, error = None, None
        try:
            batch = next(batches, None)
            if batch is None:
                return
            if len(batch[0]) < least:
                few = 'so few faces of a batch are left that not each process, and each'
                error = DataError(f'{batch[3][0]}: {few} micro-batch, has one')
        except DataError as caught:
            error = caught
        notes = error, batch[3] if batch else [], interrupt.received
        own = torch.tensor([len(batch[0]) if batch else 0, any(notes)])
        news = [own.clone() for _ in range(world_size())]
        if dist.is_initialized():
            dist.all_gather(news, own)
        sizes, noted = torch.stack(news).T.tolist()
        errors, lists, names = zip(
            *all_gather_object(notes) if any(noted) else [notes], strict=True
        )
        for error in filter(None, errors):
            raise error
        assert batch is not None  # else an error was raised
        yield *batch[:3], sizes, sum(lists, []), next(filter(None, names), None)


# within a step


class _AllReduce(torch.autograd.Function):
    """The sum over the ranks; its backward pass sums too (as torch.distributed.nn's, which is
    deprecated)."""

    @staticmethod
    def forward(ctx, tensor):
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx, gradient):
        return _AllReduce.forward(ctx, gradient)


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over the ranks, differentiable."""
    return _AllReduce.apply(tensor) if dist.is_initialized() else tensor


def all_gather(tensor: Tensor, sizes: list[int]) -> Tensor:
    """The rows of all ranks in their order, differentiable; `sizes` are their numbers of rows."""
    if not dist.is_initialized():
        return tensor
    before = sum(sizes[: rank()])
    rows = torch.arange(before, before + len(tensor), device=tensor.device)
    slots = tensor.new_zeros(sum(sizes), *tensor.shape[1:]).index_copy(0, rows, tensor)
    return all_reduce(slots)  # zeros elsewhere: the sum is exact


class BatchLayout:
    """How the batch of a step lies over the ranks."""

    sizes: list[int] = []
    seed = 0

    def begin(self, sizes: list[int], seed: int) -> None:
        """A step of so many faces on each rank; what is drawn in it depends on `seed` alone."""
        self.sizes, self.seed = list(sizes), seed
        torch.manual_seed(seed)

    def gather(self, *values: Tensor) -> list[Tensor]:
        """The whole batch's rows of each of this rank's `values` (n, …), differentiable."""
        return [all_gather(value, self.sizes) for value in values]

    def share(self, tensor: Tensor) -> Tensor:
        """This rank's rows of what every rank has for the whole batch."""
        return tensor.split(self.sizes)[rank()]

    def mean(self, *values: Tensor) -> Tensor:
        """The mean over the whole batch of each of this rank's `values` (n,), differentiable."""
        return all_reduce(torch.stack([value.float().sum() for value in values])) / sum(self.sizes)


@torch.no_grad()
def broadcast(module: nn.Module) -> None:
    """Gives `module` the weights and buffers of rank 0."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


def replicate(module: nn.Module, device: torch.device) -> nn.Module:
    """`module`, whose backward pass then also averages the gradients over the ranks, if there are
    several; not those of DALModel's heads, nor buffers: executor.average_statistics does these."""
    if not dist.is_initialized():
        return module
    heads = 'age.', 'identity.'
    ignored = [name for name, _ in module.named_parameters() if name.startswith(heads)]
    ignored += [name for name, _ in module.named_buffers()]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
    devices = [device] if device.type == 'cuda' else None
    return DistributedDataParallel(module, devices, gradient_as_bucket_view=True)
