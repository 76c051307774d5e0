"""The learning rate over a training, and what each weight gets of it."""

import math

import dal
from model import DALModel
from training.recipe import Recipe
from training.state import TrainingState


def warmup_cosine(progress: float, warmup: float) -> float:
    """Factor on the learning rate at a fraction of the training: linear from 0 to 1 over `warmup`,
    then half a cosine down to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / max(1 - warmup, 1e-9), 1)))


def parameter_groups(model: DALModel, recipe: Recipe) -> list[dict]:
    """Optimizer groups of a DALModel's weights: decay for matrices and convolutions, none for norms
    and biases; `factor` is the one on the learning rate. The backbone's are apart if it learns
    at another rate, or later."""
    # fused SGD wants groups of which all have momentum, or none: not so of a group that thaws
    apart = recipe.lr_backbone != 1 or recipe.freeze > 0
    backbone, groups = {id(p) for p in model.backbone.parameters()} if apart else set(), []
    for part, factor in ((True, recipe.lr_backbone), (False, 1.0)):
        weights = [p for p in model.parameters() if p.requires_grad and (id(p) in backbone) == part]
        for decays, decay in ((True, recipe.weight_decay), (False, 0.0)) if weights else ():
            params = [p for p in weights if (p.ndim > 1) == decays]
            groups.append({'params': params, 'factor': factor, 'weight_decay': decay})
    return groups


def settings(training: TrainingState) -> dict[str, float]:
    """What the schedule set for the step before, for the log."""
    progress = training.step / training.total_steps
    alpha = dal.ramp(progress, *training.recipe.split)
    lr, margin = training.optimizer.param_groups[-1]['lr'], training.model.identity.m
    return {'lr': lr, 'lambda_dal': training.lambda_dal, 'margin': margin, 'alpha': alpha}
