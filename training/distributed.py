"""The ranks (processes) of one job, and what they exchange. Without torchrun there is one.

Each rank computes its share of every batch; everything else is replicated: the same weights,
adversary, optimizers and means are on each of them after every step. Losses are means over the
whole batch, the same on every rank. The backward pass of a sum over the ranks is again a sum, so
that each rank's gradient is world-size times its share's; DistributedDataParallel's mean over the
ranks is then the gradient that one process has with the whole batch, whatever the shares.
"""

import contextlib
import datetime
import os
import sys

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


@contextlib.contextmanager
def process_group(ctx: int):
    """Within it this process belongs to its job, if there is one; yields its device.

    On CPUs (ctx < 0) the ranks talk by gloo; on GPUs by NCCL, each on the GPU of its LOCAL_RANK.
    Rank 0 alone prints; an error that all raise is printed by one.
    """
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
    with contextlib.ExitStack() as stack:
        if rank() != 0:
            null = stack.enter_context(open(os.devnull, 'w'))
            stack.enter_context(contextlib.redirect_stdout(null))
        try:
            yield device
        except Exception as error:
            if getattr(error, 'printed_elsewhere', False):
                sys.exit(1)
            lost = isinstance(error, dist.DistError)
            if lost or isinstance(error, RuntimeError) and 'gloo' in str(error):
                why = f'{str(error).splitlines()[0]:.120}'
                raise UserError(
                    f'process {rank()} of {world_size()} lost the others, of which one has ended '
                    f'or hangs ({why}); --resume continues from the last save'
                ) from error
            raise
    _patient = None  # its threads end here, and not somewhere in the interpreter's end
    dist.destroy_process_group()


def raised_by_all(error: Exception) -> Exception:
    """`error`, which every rank raises alike: rank 0 prints it."""
    error.printed_elsewhere = rank() != 0  # type: ignore[attr-defined]
    return error


# agreement between steps; objects pass through pickle, between the processes of one job


def all_gather_object(value, group=None) -> list:
    """Each rank's value, in their order."""
    values = [value] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(values, value, group)
    return values


def on_every_rank(work, *args):
    """work(*args) on every rank; if it raises on some, the first one's error is raised on all."""
    if not dist.is_initialized():
        return work(*args)
    result, error = None, None
    try:
        result = work(*args)
    except (UserError, DataError, OSError) as caught:
        error = caught
    errors = all_gather_object(error, _patient)
    first = next((index for index, error in enumerate(errors) if error is not None), None)
    if first is not None:
        error = errors[first] if first != rank() else error
        error.printed_elsewhere = first != rank()
        raise error
    return result


def on_rank_zero(work, *args):
    """What work(*args) returns, or raises, on rank 0 alone; the others wait for it."""
    result = on_every_rank(lambda: work(*args) if rank() == 0 else None)
    return all_gather_object(result, _patient)[0]


def rank_zero_first(work, *args):
    """work(*args) on every rank: on rank 0, then on the first of each other machine, then on the
    rest. What an earlier one prepares on a disk, shared or not, the later ones find."""
    turn = 0 if rank() == 0 else 1 if os.environ.get('LOCAL_RANK') == '0' else 2
    results = []
    for now in range(3 if dist.is_initialized() else 1):
        results.append(on_every_rank(lambda now=now: work(*args) if turn == now else None))
    return results[turn]


def lockstep(loader, interrupt, least: int = 1):
    """This rank's batches, with what must be known of the others': no rank begins a step alone.

    Yields images, labels, ages; sizes, the number of faces on each rank; the reasons for unreadable
    ones, of all ranks; and the name of a signal that any of them noted in its `interrupt`, or None.
    An error of the data on any rank is raised on all, as is fewer than `least` readable faces on
    one.
    """
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
        unreadable, name = batch[3] if batch else [], interrupt.received
        own = torch.tensor([len(batch[0]) if batch else 0, bool(error or unreadable or name)])
        news = [own.clone() for _ in range(world_size())]
        if dist.is_initialized():
            dist.all_gather(news, own)
        sizes, noted = torch.stack(news).T.tolist()
        if any(noted):
            errors, lists, names = zip(*all_gather_object((error, unreadable, name)), strict=True)
            error = next(filter(None, errors), None)
            if error:
                raise raised_by_all(error)
            unreadable = [reason for reasons in lists for reason in reasons]
            name = next(filter(None, names), None)
        assert batch is not None  # else an error was raised
        yield *batch[:3], sizes, unreadable, name


# within a step


class _AllReduce(torch.autograd.Function):
    """The sum over the ranks; its backward pass sums too. (torch.distributed.nn's is deprecated,
    and its successor is differentiable in the newest releases alone.)"""

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
    """How the batch of a step lies over the ranks: `sizes` are their numbers of faces, `seed` is
    the step's."""

    def __init__(self):
        self.sizes, self.seed = [0], 0

    def begin(self, sizes: list[int], seed: int) -> None:
        """A new step; what is drawn in it depends on `seed` alone."""
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


def replicate(module: nn.Module, device: torch.device, apart: list[str]) -> nn.Module:
    """`module`, whose backward pass then also averages the gradients over the ranks, if there are
    several. Parameters named in `apart` are left alone."""
    if not dist.is_initialized():
        return module
    # executor.average_statistics keeps buffers alike: each rank's count
    ignored = [*(name for name, _ in module.named_buffers()), *apart]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, ignored)
    devices = [device] if device.type == 'cuda' else None
    return DistributedDataParallel(module, devices, gradient_as_bucket_view=True)
