"""What changes from step to step: the learning rate, running figures, and main.Training as the
engineering of a run sees it."""

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor

import dal
from model import DALModel
from training.executor import Executor
from training.recipe import Recipe


def warmup_cosine(progress: float, warmup: float) -> float:
    """Factor on the learning rate at a fraction of the training: linear from 0 to 1 over `warmup`,
    then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / max(1 - warmup, 1e-9), 1)))


def parameter_groups(model: DALModel, recipe: Recipe) -> list[dict]:
    """Optimizer groups of the weights: decay for matrices and convolutions, none for norms and
    biases; `factor` is on the learning rate. The backbone's are apart if it learns otherwise."""
    # fused SGD wants groups of which all have momentum, or none: not so of a group that thaws
    apart = recipe.lr_backbone != 1 or recipe.freeze > 0
    backbone, groups = {id(p) for p in model.backbone.parameters()} if apart else set(), []
    for part, factor in ((True, recipe.lr_backbone), (False, 1.0)):
        weights = [p for p in model.parameters() if p.requires_grad and (id(p) in backbone) == part]
        for decays, decay in ((True, recipe.weight_decay), (False, 0.0)) if weights else ():
            params = [p for p in weights if (p.ndim > 1) == decays]
            groups.append({'params': params, 'factor': factor, 'weight_decay': decay})
    return groups


class Mean:
    """Running means of scalars that stay on the device: the host waits for it once per report."""

    def __init__(self) -> None:  # by the names that were added together
        self.totals: dict[tuple[str, ...], Tensor] = {}
        self.counts: Counter[tuple[str, ...]] = Counter()

    def add(self, **scalars: Tensor) -> None:
        names, values = tuple(scalars), _stacked(scalars)
        self.totals[names] = self.totals[names] + values if names in self.totals else values
        self.counts[names] += 1

    def flush(self) -> dict[str, float]:
        """Means since the last call, as floats."""
        sums: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for names, total in self.totals.items():
            sums.update(dict(zip(names, total.tolist(), strict=True)))
            counts.update(dict.fromkeys(names, self.counts[names]))
        Mean.__init__(self)
        return {name: value / counts[name] for name, value in sums.items()}

    def state_dict(self) -> dict:
        return {'totals': dict(self.totals), 'counts': dict(self.counts)}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        totals = state['totals'].items()
        self.totals = {names: total.to(device).reshape(len(names)) for names, total in totals}
        self.counts = Counter({names: int(state['counts'][names]) for names in self.totals})


class PhaseMean(Mean):
    """Means over max phases: |ρ| before a phase's first step, the rest after its last."""

    rho_at_start: Tensor | None = None  # () of the phase under way

    def add_step(self, ends: bool, rho_before: Tensor, **after: Tensor) -> None:
        if self.rho_at_start is None:
            self.rho_at_start = rho_before
        if ends:
            self.add(rho_before=self.rho_at_start, **after)
            self.rho_at_start = None


def _stacked(scalars):
    return torch.stack([value.detach().float() for value in scalars.values()])


class NotFinite:
    """Notes the scalars of the steps until somebody looks, and finds the first not finite."""

    def __init__(self) -> None:
        self.noted: list[tuple[int, tuple[str, ...], Tensor]] = []

    def add(self, step: int, **scalars: Tensor) -> None:
        self.noted.append((step, tuple(scalars), _stacked(scalars)))

    def first(self) -> tuple[int, dict[str, float]] | None:
        """(step, {name: value}) of that step, or None."""
        for step, names, values in self.noted:
            if not values.isfinite().all():
                return step, dict(zip(names, values.tolist(), strict=True))
        self.noted.clear()
        return None


class TrainingState:
    """What main.Training is made of, and all that changes from step to step."""

    recipe: Recipe
    classes: list
    cutoffs: list
    device: torch.device
    model: DALModel
    mapping: dal.CanonicalMapping
    executor: Executor
    optimizer: Any  # of torch.optim
    adversary_optimizer: Any
    step = epoch = 0  # those done
    total_steps = 0  # that schedule and ramps span
    lambda_dal, detach_backbone = 0.0, False
    best: float | None = None  # the best validation score so far
    decision: dict | None = None  # the thresholds of the last validation
    pretrained = False  # whether it began with weights that know faces
    age_error: dict | None = None  # of model.estimator, on people never seen
    figures: dict | None = None  # of best.pth on the validation set

    def __init__(self) -> None:
        self.means, self.epoch_means, self.adversary_means = Mean(), Mean(), PhaseMean()
        self.not_finite = NotFinite()

    def schedule(self, progress: float) -> None:
        """Sets everything that changes with the fraction of training done."""
        raise NotImplementedError

    def settings(self) -> dict[str, float]:
        """What the schedule set for the step before, for the log."""
        alpha = dal.ramp(self.step / self.total_steps, *self.recipe.split)
        lr, margin = self.optimizer.param_groups[-1]['lr'], self.model.identity.m
        return {'lr': lr, 'lambda_dal': self.lambda_dal, 'margin': margin, 'alpha': alpha}
