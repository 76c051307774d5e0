"""A step's batch through the network in micro-batches, by gradient caching (Gao et al., RepL4NLP
2021).

With `accumulate` above 1, `features` first computes all micro-batches without a graph; the losses,
|ρ| among them, then see the whole batch; `backward` computes each micro-batch once more, and passes
the cached gradient of its features on. Memory is a micro-batch's, the result the whole batch's,
except that batch norm sees micro-batches. With 1 it is a plain forward and backward pass.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm

import utils
from model import DALModel
from training import last_blocks
from training.distributed import BatchLayout, all_reduce, broadcast, rank, replicate, world_size
from training.recipe import Recipe
from training.sharded import ShardedHead
from utils import UserError


class Executor:
    """The features of this rank's share of a batch, and the backward pass through them. Moves
    `model` to `device`. Raises UserError for what the device can't do, or a failing compiler."""

    def __init__(self, model: DALModel, layout: BatchLayout, recipe: Recipe, device: torch.device):
        if recipe.sync_batchnorm:
            if device.type != 'cuda':  # torch has no such layer
                raise UserError(f'sync_batchnorm needs GPUs, not {device.type}: leave it out')
            model.backbone = nn.SyncBatchNorm.convert_sync_batchnorm(model.backbone)
        model.to(device).to(memory_format=torch.channels_last)
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        self.model, self.layout, self.device = model, layout, device
        self.count = recipe.accumulate  # micro-batches a step
        auto = recipe.precision == 'auto'
        self.precision: str = utils.fastest_precision(device) if auto else recipe.precision
        if recipe.compile:
            self._compile()
        # small gradients would vanish in fp16: the loss is scaled up, the gradient down again
        self.scaler = GradScaler(device.type, enabled=self.precision == 'fp16')
        if self.scaler.is_enabled() and dist.is_initialized():
            from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

            self.scaler = ShardedGradScaler(device.type)
        last_blocks.split(model, recipe.last_blocks)
        self.thaws = [p for p in model.backbone.parameters() if p.requires_grad]
        self.frozen, self.keep_statistics = False, recipe.batchnorm == 'frozen'
        self.network: Any = replicate(model, device)
        # the heads see the whole batch: no part of the replicated pass
        sharded = isinstance(model.identity, ShardedHead)
        self.heads = [model.age, *[model.identity] * (not sharded)]
        for head in self.heads:
            broadcast(head)

    def _compile(self):
        """Compiles the backbone, and tries it on two faces before any data are read."""
        self.model.backbone.compile()
        faces = torch.zeros(2, 3, 112, self.model.width, dtype=torch.uint8, device=self.device)
        try:
            with torch.no_grad(), unchanged_statistics(self.model):
                self._compute(self.model, faces, False, 0)
        except Exception as error:  # of a compiler that is missing, or of whatever it can't do
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f'compile=True: {why:.200}: --set compile=False') from None

    def freeze(self, frozen: bool) -> None:
        """Whether the backbone stays as it is: no gradient, and eval mode."""
        if frozen != self.frozen:
            self.frozen = frozen
            for parameter in self.thaws:
                parameter.requires_grad_(not frozen)
            # which parameters have gradients is fixed when they are replicated
            self.network = replicate(self.model, self.device)

    def train(self) -> None:
        """Sets train mode, except for what is frozen."""
        self.model.train()
        if self.frozen:
            self.model.backbone.eval()
        if self.keep_statistics:
            for module in self.model.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def features(self, images: Tensor, detach: bool = False) -> tuple[Tensor, Tensor]:
        """x_age and x_id of DALModel.features, on which the losses of the whole batch stand."""
        if self.count == 1 and torch.is_grad_enabled():
            return self._compute(self.network, images, detach, 0)
        self.images, self.detach = images.tensor_split(self.count), detach
        keep = unchanged_statistics(self.model) if self.model.training else contextlib.nullcontext()
        with torch.no_grad(), keep:
            parts = enumerate(self.images)
            found = [self._compute(self.model, part, detach, number) for number, part in parts]
        self.cached = x_age, x_id = [torch.cat(column) for column in zip(*found, strict=True)]
        for feature in self.cached:
            feature.requires_grad_(torch.is_grad_enabled())
        return x_age, x_id

    def _compute(self, network, images, detach, number):
        if self.count * world_size() > 1:
            # so that dropout differs between micro-batches, and repeats on recomputation
            torch.manual_seed(utils.seed_of(self.layout.seed, rank(), number))
        with self.autocast():
            return network(images, detach)

    def autocast(self) -> torch.autocast:
        low = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(self.precision)
        return torch.autocast(self.device.type, low, enabled=low is not None)

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss`, which was computed from `features`, for all of the network."""
        self.scaler.scale(loss).backward()
        if self.count > 1:
            gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in self.cached]
            columns = [gradient.tensor_split(self.count) for gradient in gradients]
            for number, (images, *cached) in enumerate(zip(self.images, *columns, strict=True)):
                syncs = number == self.count - 1 or not dist.is_initialized()
                with contextlib.nullcontext() if syncs else self.network.no_sync():
                    features = self._compute(self.network, images, self.detach, number)
                    torch.autograd.backward(features, cached)
        if dist.is_initialized():
            for head in self.heads:
                for gradient in (p.grad for p in head.parameters() if p.grad is not None):
                    dist.all_reduce(gradient)
                    gradient /= world_size()
        average_statistics(self.model)

    def clip_gradient(self, optimizer: torch.optim.Optimizer, limit: float) -> Tensor:
        """The gradient's norm (), and the gradient made no longer than `limit`. The norm is 0 if it
        overflowed in fp16: `step` will leave it out."""
        self.scaler.unscale_(optimizer)
        head = self.model.identity
        slice_ = head.weight if isinstance(head, ShardedHead) else None
        whole = (p.grad for p in self.model.parameters() if p is not slice_)
        norm = nn.utils.get_total_norm([grad for grad in whole if grad is not None])
        if slice_ is not None:  # of all slices
            assert slice_.grad is not None  # after the backward pass
            norm = (norm.square() + all_reduce(slice_.grad.norm().square())).sqrt()
        nn.utils.clip_grads_with_norm_(self.model.parameters(), limit, norm)
        return torch.where(norm.isfinite(), norm, 0) if self.scaler.is_enabled() else norm

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, left out if the gradient overflowed."""
        if self.scaler.is_enabled():
            # the fused SGD leaves its momentum uninitialised if it skips the first step
            for p in (p for group in optimizer.param_groups for p in group['params']):
                if optimizer.state[p].get('momentum_buffer') is None:
                    optimizer.state[p]['momentum_buffer'] = torch.zeros_like(p)
        self.scaler.step(optimizer)
        self.scaler.update()

    def restore_scale(self, saved: dict | None) -> None:
        """Takes over the scale of a state, if that was saved in fp16 too."""
        if saved and self.scaler.is_enabled():
            self.scaler.load_state_dict(saved)


# batch norm over several ranks and micro-batches


@contextlib.contextmanager
def unchanged_statistics(model: nn.Module) -> Iterator[None]:
    """After it the model's running statistics are as before."""
    before = [buffer.clone() for buffer in model.buffers()]
    yield
    for buffer, value in zip(model.buffers(), before, strict=True):
        buffer.copy_(value)


@torch.no_grad()
def average_statistics(model: nn.Module) -> None:
    """The running statistics become their mean over the ranks, each of which saw its share alone.
    In every step: a state that is saved would else hold another mean than one that is not."""
    if not dist.is_initialized():
        return
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    both = [getattr(norm, name) for norm in norms for name in ('running_mean', 'running_var')]
    running = [statistic for statistic in both if statistic is not None]
    if running:
        mean = all_reduce(torch.cat(running)) / world_size()
        torch._foreach_copy_(running, mean.split([len(statistic) for statistic in running]))
