"""Batch norm over several ranks and micro-batches, and what a step does for all layers at once."""

import contextlib

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from training.distributed import all_gather, all_reduce, world_size


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


def replace(model: nn.Module, synchronized: bool) -> None:
    """The batch norms in `model` become those of this file, `synchronized` ones take their
    statistics over all ranks; the names of weights stay."""
    for parent in list(model.modules()):
        for name, module in parent.named_children():
            plain = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
            if plain and module.track_running_stats and module.momentum is not None:
                kind = SyncBatchNorm if synchronized else BatchNorm
                new = kind(module.num_features, module.eps, module.momentum, module.affine)
                new.load_state_dict(module.state_dict())
                for own, given in zip(new.parameters(), module.parameters(), strict=True):
                    own.requires_grad_(given.requires_grad)
                setattr(parent, name, new.train(module.training))


class BatchNorm(_BatchNorm):
    """nn.BatchNorm1d, 2d and 3d, which leave the counting of batches to Statistics."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            self.momentum,
            self.eps,
        )


class SyncBatchNorm(BatchNorm):
    """Batch norm of the batch of all ranks, on inputs (N, C, …).

    nn.SyncBatchNorm refuses CPUs, and on GPUs it waits for the device in every layer.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            result, mean, variance = _Normalize.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        return result


class _Normalize(torch.autograd.Function):
    """One exchange of the ranks forward, one backward; of the activations x alone is kept.

    The backward pass is that of a sum over the ranks, as everywhere in training.distributed.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, eps):
        """x (N, C, …) -> the same normalised; mean (C,) and unbiased variance (C,) of all ranks."""
        x32, dims = x.float(), [0, *range(2, x.ndim)]
        variance, mean = torch.var_mean(x32, dims, correction=0)
        count = torch.full_like(mean, x.numel() / x.shape[1])
        of_ranks = all_gather(torch.stack([count, mean, variance])[None], [1] * world_size())
        counts, means, variances = of_ranks.unbind(1)
        n = counts.sum(0)
        mean = (counts * means).sum(0) / n
        variance = (counts * (variances + (means - mean).square())).sum(0) / n
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, scale, n)
        gain = scale if weight is None else scale * weight
        result = (x32 - _wide(mean, x)) * _wide(gain, x)
        if bias is not None:
            result = result + _wide(bias, x)
        unbiased = variance * n / (n - 1)
        ctx.mark_non_differentiable(mean, unbiased)
        return result.to(x.dtype), mean, unbiased

    @staticmethod
    def backward(ctx, gradient, *_):
        x, weight, mean, scale, n = ctx.saved_tensors
        gradient, dims = gradient.float(), [0, *range(2, x.ndim)]
        normal = (x.float() - _wide(mean, x)) * _wide(scale, x)
        own = torch.stack([gradient.sum(dims), (gradient * normal).sum(dims)])
        shift, along = all_reduce(own) / n
        gain = scale if weight is None else scale * weight
        to_x = (gradient - _wide(shift, x) - normal * _wide(along, x)) * _wide(gain, x)
        to_weight, to_bias = (own[1], own[0]) if weight is not None else (None, None)
        return to_x.to(x.dtype), to_weight, to_bias, None


def _wide(channels, x):
    """(C,) as it is broadcast with x (N, C, …)."""
    return channels.view(1, -1, *[1] * (x.ndim - 2))


class Statistics:
    """The running statistics of all batch norms of a model, a few operations for all of them."""

    def __init__(self, model: nn.Module):
        self.all = [
            module
            for module in model.modules()
            if isinstance(module, _BatchNorm) and module.track_running_stats
        ]
        self.counted = [module for module in self.all if isinstance(module, BatchNorm)]

    @torch.no_grad()
    def count(self) -> None:
        """A batch more in each that is in train mode."""
        counters = [module.num_batches_tracked for module in self.counted if module.training]
        if counters:
            torch._foreach_add_(counters, 1)

    @torch.no_grad()
    def average(self) -> None:
        """They become their mean over the ranks, each of which saw its share alone.

        In every step: a state that is saved would else hold another mean than one that is not.
        """
        if not self.all or not dist.is_initialized():
            return
        running = [
            statistic
            for module in self.all
            for statistic in (module.running_mean, module.running_var)
        ]
        mean = all_reduce(torch.cat(running)) / world_size()
        torch._foreach_copy_(running, mean.split([len(statistic) for statistic in running]))
