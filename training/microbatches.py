"""A step's batch through the network in micro-batches, by gradient caching (Gao et al., RepL4NLP
2021).

With `accumulate` above 1, `features` first computes all micro-batches without a graph; the losses,
|ρ| among them, then see the whole batch; `backward` computes each micro-batch once more, and passes
the cached gradient of its features on. Memory is a micro-batch's, the result the whole batch's, but
for batch norm, which sees micro-batches. With 1 it is a plain forward and backward pass.
"""

import contextlib

import torch
import torch.distributed as dist
from torch import Tensor, nn

import utils
from model import DALModel
from training import batchnorm
from training.distributed import Batch, broadcast, rank, replicate, world_size
from training.recipe import Recipe
from training.sharded import ShardedHead, clip_gradient


class _Features(nn.Module):
    """x_age and x_id of faces: what the ranks compute each for itself."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images, detach):
        return self.model.features(images, detach)[1:]


class MicroBatches:
    """The features of this rank's share of a batch, and the backward pass through them.

    Moves `model` to `device`; gradients are averaged over the ranks. Its products are computed in
    `precision`, which is never 'auto'.
    """

    def __init__(self, model: DALModel, batch: Batch, recipe: Recipe, device: torch.device):
        batchnorm.replace(model, recipe.sync_batchnorm and dist.is_initialized())
        model.to(device, memory_format=torch.channels_last)
        self.statistics = batchnorm.Statistics(model)
        if recipe.compile:
            model.backbone.compile()
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        self.model, self.batch, self.count, self.device = model, batch, recipe.accumulate, device
        self.precision = recipe.precision
        if recipe.precision == 'auto':
            self.precision = utils.fastest_precision(device)
        # small gradients would vanish in fp16: the loss is scaled up, the gradient down again
        scaler = torch.amp.GradScaler
        if dist.is_initialized():
            from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler as scaler
        self.scaler = scaler(device.type, enabled=self.precision == 'fp16')
        self.thaws = [p for p in model.backbone.parameters() if p.requires_grad]
        self.frozen, self.keep_statistics = False, recipe.batchnorm == 'frozen'
        heads = {
            f'model.{name}': parameter
            for name, parameter in model.named_parameters()
            if name.startswith(('identity.', 'age.'))
        }
        self.apart = list(heads)
        self.network = replicate(_Features(model), device, self.apart)
        self._averaging = []  # gradients of the heads under way, and their transfers
        if dist.is_initialized():
            broadcast(model.age)
            apart = [model.identity.weight] if isinstance(model.identity, ShardedHead) else []
            if not apart:
                broadcast(model.identity)
            for parameter in heads.values():
                if not any(parameter is one for one in apart):
                    parameter.register_post_accumulate_grad_hook(self._average)

    def _average(self, parameter):
        transfer = dist.all_reduce(parameter.grad, async_op=True)
        self._averaging.append((parameter.grad, transfer))

    def freeze(self, frozen: bool) -> None:
        """Whether the backbone stays as it is: no gradient, and eval mode."""
        if frozen != self.frozen:
            self.frozen = frozen
            for parameter in self.thaws:
                parameter.requires_grad_(not frozen)
            # which parameters have gradients is fixed when they are replicated
            self.network = replicate(_Features(self.model), self.device, self.apart)

    def train(self) -> None:
        """Train mode, but for what is frozen."""
        self.model.train()
        if self.frozen:
            self.model.backbone.eval()
        if self.keep_statistics:
            batchnorm.freeze(self.model.backbone)

    def features(self, images: Tensor, detach: bool = False) -> tuple[Tensor, Tensor]:
        """Faces (n, 3, 112, W) uint8 -> x_age and x_id, each (n, D) float32, on which the losses of
        the whole batch stand; `detach` as in DALModel.features. Without gradients where torch's
        grad mode is off."""
        if self.count == 1 and torch.is_grad_enabled():
            return self._compute(self.network, images, detach, 0)
        self.images, self.detach = images.tensor_split(self.count), detach
        keep = batchnorm.kept(self.model) if self.model.training else contextlib.nullcontext()
        with torch.no_grad(), keep:
            parts = [
                self._compute(_Features(self.model), part, detach, number)
                for number, part in enumerate(self.images)
            ]
        self.cached = [torch.cat(column) for column in zip(*parts, strict=True)]
        if torch.is_grad_enabled():
            self.cached = [feature.requires_grad_() for feature in self.cached]
        return tuple(self.cached)

    def _compute(self, network, images, detach, number):
        if self.count * world_size() > 1:
            # so that dropout differs between micro-batches, and repeats on recomputation
            torch.manual_seed(utils.seed_of(self.batch.seed, rank(), number))
        low = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(self.precision)
        with torch.autocast(self.device.type, low, enabled=low is not None):
            features = network(images, detach)
        if self.model.training:
            self.statistics.count()
        return features

    def backward(self, loss: Tensor) -> None:
        """Gradients of `loss`, which was computed from `features`, for all of the network."""
        self.scaler.scale(loss).backward()
        if self.count > 1:
            gradients = [
                torch.zeros_like(feature) if feature.grad is None else feature.grad
                for feature in self.cached
            ]
            columns = [gradient.tensor_split(self.count) for gradient in gradients]
            for number, (images, *cached) in enumerate(zip(self.images, *columns, strict=True)):
                last = number == self.count - 1
                with (
                    contextlib.nullcontext()
                    if last or not dist.is_initialized()
                    else self.network.no_sync()
                ):
                    features = self._compute(self.network, images, self.detach, number)
                    torch.autograd.backward(features, cached)
        for gradient, transfer in self._averaging:
            transfer.wait()
            gradient /= world_size()
        self._averaging.clear()
        self.statistics.average()

    def clip_gradient(self, optimizer: torch.optim.Optimizer, limit: float) -> Tensor:
        """The gradient's norm (), and the gradient made no longer than `limit`. Where it overflowed
        in fp16, `step` will leave it out: its norm is given as 0."""
        if not self.scaler.is_enabled():
            return clip_gradient(self.model, limit)
        self.scaler.unscale_(optimizer)
        norm = clip_gradient(self.model, limit)
        return torch.where(norm.isfinite(), norm, 0)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step, but for a gradient that overflowed."""
        if self.scaler.is_enabled():
            # the fused SGD leaves its momentum uninitialised where it skips the first step
            for p in (p for group in optimizer.param_groups for p in group['params']):
                if optimizer.state[p].get('momentum_buffer') is None:
                    optimizer.state[p]['momentum_buffer'] = torch.zeros_like(p)
        self.scaler.step(optimizer)
        self.scaler.update()

    def restore_scale(self, saved: dict | None) -> None:
        """The scale of a state; one that was saved in another precision has none."""
        if saved and self.scaler.is_enabled():
            self.scaler.load_state_dict(saved)
