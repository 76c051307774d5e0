"""The processes of one job, and the few things that they say to each other. Without torchrun there is one, which says nothing.

Each process takes its share of every batch; everything else is replicated: the same weights, adversary, optimizers and means are on each
of them after every step. For that, each counts its own faces' losses towards the mean over the whole batch, and gradients are *summed*; a
statistic of the batch, as |ρ|, is computed by every process from the values of all, gathered by operations whose backward pass sums over
the processes as their forward pass did.
"""
import contextlib
import datetime
import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import utils
from utils import DataError

PATIENCE = datetime.timedelta(days=1)  # for what one process does while the others wait: decoding a data set, validating, saving
_patient = None                        # the group in which they wait; in any other, half an hour of silence is a fault


def launched():
    """Whether torchrun started this process."""
    return dist.is_torchelastic_launched()


def count():
    return dist.get_world_size() if dist.is_initialized() else 1


def index():
    return dist.get_rank() if dist.is_initialized() else 0


def first():
    """Whether this process is the one that writes and speaks."""
    return index() == 0


@contextlib.contextmanager
def joined(ctx):
    """Within it this process belongs to its job, where there is one: yields its device. Errors that all know are said by one.

    On CPUs (ctx < 0) the processes talk by gloo; on GPUs by NCCL, each on the GPU of its LOCAL_RANK.
    """
    global _patient
    if not launched():
        yield utils.pick_device(ctx)
        return
    device = utils.pick_device(int(os.environ['LOCAL_RANK']) if ctx >= 0 else ctx)
    store, rank, size = next(dist.rendezvous('env://'))
    if os.environ.get('LOCAL_WORLD_SIZE') == os.environ['WORLD_SIZE']:  # one machine's launcher keeps its store, where the addresses of killed processes stand
        store = dist.PrefixStore(os.environ.get('TORCHELASTIC_RESTART_COUNT', '0'), store)
    dist.init_process_group('cpu:gloo,cuda:nccl' if device.type == 'cuda' else 'gloo', store=store, rank=rank, world_size=size)
    _patient = dist.new_group(backend='gloo', timeout=PATIENCE)
    with contextlib.ExitStack() as stack:
        if not first():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, 'w'))))
        try:
            yield device
        except Exception as error:
            if getattr(error, 'said_elsewhere', False):
                sys.exit(1)
            if isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and 'gloo' in str(error):
                raise utils.UserError(f'process {index()} of {count()} lost the others, of which one has ended or hangs '
                                      f'({str(error).splitlines()[0]:.120}); --resume continues from the last save') from error
            raise
    dist.destroy_process_group()


def common(error):
    """`error`, raised by every process alike: the first one says it."""
    error.said_elsewhere = not first()
    return error


# agreement: slow, between steps

def told(value, group=None):
    """What each process says, a list in their order. It passes through pickle, between processes of one job."""
    values = [value] * count()
    if dist.is_initialized():
        dist.all_gather_object(values, value, group)
    return values


def agreed(work, *args):
    """work(*args), on every process; where it raises on some, the error of the first of these is raised on all."""
    if not dist.is_initialized():
        return work(*args)
    result, error = None, None
    try:
        result = work(*args)
    except (utils.UserError, DataError, OSError) as caught:
        error = caught
    errors = told(error, _patient)
    speaker = next((rank for rank, error in enumerate(errors) if error is not None), None)
    if speaker is not None:
        error = errors[speaker] if speaker != index() else error
        error.said_elsewhere = speaker != index()
        raise error
    return result


def decided(work, *args):
    """What work(*args) returns, or raises, on the first process alone; the others wait."""
    result = agreed(lambda: work(*args) if first() else None)
    return told(result, _patient)[0]


def leaders_first(work, *args):
    """work(*args) on every process, on the first one of each machine before the others: what it prepares they find."""
    leads = not launched() or os.environ['LOCAL_RANK'] == '0'
    early = agreed(lambda: work(*args) if leads else None)
    late = agreed(lambda: None if leads else work(*args))
    return early if leads else late


def fed(batches, interrupt, least=1):
    """The batches of this process's loader, with what must be known of the others' shares: none begins a step that another can't.

    Yields images, labels, ages; sizes, the number of faces on each process; the reasons for unreadable ones, of all processes; and
    the name of a signal that any of them noted in its `interrupt`, or None. An error of the data on any process is raised on all, as
    is fewer than `least` readable faces on one.
    """
    batches = iter(batches)
    while True:
        batch, error = None, None
        try:
            batch = next(batches, None)
            if batch is None:
                return
            if len(batch[0]) < least:
                error = DataError(f'{batch[3][0]}: so few faces of a batch are left that not each process, and each part, has one')
        except DataError as caught:
            error = caught
        unreadable, name = batch[3] if batch else [], interrupt.received
        sizes = [len(batch[0])] if batch else [0]
        if not dist.is_initialized():
            if error:
                raise error
            yield *batch[:3], sizes, unreadable, name
            continue
        news = [torch.empty(2, dtype=torch.long) for _ in range(count())]
        dist.all_gather(news, torch.tensor([sizes[0], bool(error or unreadable or name)]))
        sizes, something = zip(*(each.tolist() for each in news))
        if any(something):
            errors, lists, names = zip(*told((error, unreadable, name)))
            error = next(filter(None, errors), None)
            if error:
                raise common(error)
            unreadable, name = [reason for reasons in lists for reason in reasons], next(filter(None, names), None)
        yield *batch[:3], sizes, unreadable, name


# within a step

class _Sum(torch.autograd.Function):
    """The sum over the processes; its backward pass sums too, as it must where each goes on to a loss that all of them add up.

    torch.distributed.nn's is deprecated, and its successor is differentiable in the newest releases alone.
    """

    @staticmethod
    def forward(ctx, tensor):
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.forward(ctx, gradient)


def total(tensor):
    """The sum of `tensor` over the processes, differentiable."""
    return _Sum.apply(tensor) if dist.is_initialized() else tensor


def gathered(tensor, sizes):
    """The rows of all processes in their order, differentiable; `sizes` are the numbers of rows that they have, uneven ones too."""
    if not dist.is_initialized():
        return tensor
    before = sum(sizes[:index()])
    slots = tensor.new_zeros(sum(sizes), *tensor.shape[1:]).index_copy(0, torch.arange(before, before + len(tensor), device=tensor.device), tensor)
    return total(slots)  # zeros elsewhere: the sum is exact


def own(tensor, sizes):
    """This process's rows of what is drawn for all."""
    return tensor.split(sizes)[index()]


def replicated(model, device, apart=()):
    """`model`, whose backward pass then also sums the gradients over the processes; itself where there is one.

    Its weights become those of the first process; parameters called as in `apart` are each process's own.
    """
    if not dist.is_initialized():
        return model
    # buffers are kept alike by average_statistics, which also hears what the other processes saw
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, [*(name for name, _ in model.named_buffers()), *apart])
    parallel = DistributedDataParallel(model, [device] if device.type == 'cuda' else None)
    parallel.register_comm_hook(None, _summed)  # its own default is the mean, which is not the whole batch's where shares differ
    return parallel


def _summed(_, bucket):
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])


def gradients_stay(parallel):
    """Within it, backward passes of what `replicated` returned add up on each process: of all parts of a batch but the last."""
    return parallel.no_sync() if dist.is_initialized() else contextlib.nullcontext()


@torch.no_grad()
def same(module):
    """Gives `module` the first process's weights."""
    if dist.is_initialized():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, 0)


# batch norm

@torch.no_grad()
def average_statistics(model):
    """Running statistics of batch norm become their mean over the processes: each saw its share alone."""
    running = [statistic for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats
               for statistic in (module.running_mean, module.running_var)]
    if running and dist.is_initialized():
        mean = total(torch.cat([statistic.flatten() for statistic in running])) / count()
        for statistic, part in zip(running, mean.split([statistic.numel() for statistic in running])):
            statistic.copy_(part.view_as(statistic))


@contextlib.contextmanager
def statistics_kept(model):
    """Within it, running statistics may move: afterwards they are what they were."""
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, kept in zip(model.buffers(), before):
        buffer.copy_(kept)


def synchronized(model, device):
    """`model`, whose batch norms then take their statistics over all processes; names and weights are as before."""
    if not dist.is_initialized():
        return model
    if device.type == 'cuda':
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                new = _SyncBatchNorm(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
                new.load_state_dict(module.state_dict())
                setattr(parent, name, new)
    return model


class _SyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """nn.SyncBatchNorm for CPUs, which torch's own refuses: the same formulas, of inputs (N, C, …)."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        with torch.autocast('cpu', enabled=False):
            x32, dims, shape = x.float(), [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
            n = total(x32.new_tensor(x.numel() / x.shape[1]))
            mean = total(x32.sum(dims)) / n
            centred = x32 - mean.view(shape)
            variance = total(centred.square().sum(dims)) / n
            result = centred * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                result = result * self.weight.view(shape) + self.bias.view(shape)
            if self.track_running_stats:
                with torch.no_grad():
                    self.num_batches_tracked += 1
                    momentum = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
                    self.running_mean.lerp_(mean, momentum)
                    self.running_var.lerp_(variance * n / (n - 1), momentum)
            return result.to(x.dtype)
