"""Batch norm over several ranks and micro-batches."""

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.distributed import all_reduce, world_size
from utils import UserError


def freeze(model: nn.Module) -> None:
    """Batch norms go to eval mode: they use their running statistics and leave them alone."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Within it running statistics may move; afterwards they are as before."""
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)


def synchronize(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with batch norms that take their statistics over the faces of all ranks.

    Raises: UserError on a CPU, for which torch has no such layer.
    """
    if device.type != 'cuda':
        raise UserError(
            f'sync_batchnorm needs GPUs, not {device.type}: --set sync_batchnorm=False, '
            'or a larger batch_size'
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """The running statistics become their mean over the ranks, each of which saw its share alone.

    In every step: a state that is saved would else hold another mean than one that is not.
    """
    if not dist.is_initialized():
        return
    running = [
        statistic
        for module in model.modules()
        if isinstance(module, _BatchNorm)
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]
    if running:
        mean = all_reduce(torch.cat(running)) / world_size()
        torch._foreach_copy_(running, mean.split([len(statistic) for statistic in running]))
