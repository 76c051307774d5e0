"""Batch norm over several ranks and micro-batches."""
import contextlib

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from training.distributed import all_reduce, world_size


@torch.no_grad()
def average(model: nn.Module) -> None:
    """Running statistics become their mean over the ranks, each of which saw its share alone."""
    if not dist.is_initialized():
        return
    running = [statistic for module in model.modules()
               if isinstance(module, _BatchNorm) and module.track_running_stats
               for statistic in (module.running_mean, module.running_var)]
    if running:
        mean = all_reduce(torch.cat([statistic.flatten() for statistic in running])) / world_size()
        parts = mean.split([statistic.numel() for statistic in running])
        for statistic, part in zip(running, parts, strict=True):
            statistic.copy_(part.view_as(statistic))


def freeze(model: nn.Module) -> None:
    """Batch norms go to eval mode: they use their running statistics and leave them alone."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@contextlib.contextmanager
def kept(model: nn.Module):
    """Within it running statistics may move; afterwards they are what they were."""
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)


def synchronize(model: nn.Module, device: torch.device) -> nn.Module:
    """`model`, whose batch norms then take their statistics over all ranks; the names of its
    weights stay."""
    if not dist.is_initialized():
        return model
    if device.type == 'cuda':
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            if isinstance(module, _BatchNorm):
                new = SyncBatchNorm(module.num_features, module.eps, module.momentum, module.affine,
                                    module.track_running_stats)
                new.load_state_dict(module.state_dict())
                setattr(parent, name, new)
    return model


class SyncBatchNorm(_BatchNorm):
    """nn.SyncBatchNorm for CPUs, which torch's own refuses: the same formulas, on inputs (N, C,
    …)."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            x32, dims, shape = x.float(), [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
            n = all_reduce(x32.new_tensor(x.numel() / x.shape[1]))
            mean = all_reduce(x32.sum(dims)) / n
            centred = x32 - mean.view(shape)
            variance = all_reduce(centred.square().sum(dims)) / n
            result = centred * (variance + self.eps).rsqrt().view(shape)
            if self.affine:
                result = result * self.weight.view(shape) + self.bias.view(shape)
            if self.track_running_stats:
                self._track(mean.detach(), (variance * n / (n - 1)).detach())
            return result.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean, variance):
        self.num_batches_tracked += 1
        cumulative = self.momentum is None
        momentum = 1 / self.num_batches_tracked.item() if cumulative else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)
