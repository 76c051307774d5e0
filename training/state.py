"""What the engineering of a run knows of main.Training, which stands above it."""

from typing import Any, Protocol

import torch

from dal import CanonicalMapping
from model import DALModel
from training.executor import Executor
from training.means import Mean, NotFinite, PhaseMean
from training.recipe import Recipe


class TrainingState(Protocol):
    """All that changes from step to step, and what it was made of."""

    recipe: Recipe
    classes: list
    cutoffs: list
    device: torch.device
    model: DALModel
    mapping: CanonicalMapping
    executor: Executor
    optimizer: Any  # of torch.optim
    adversary_optimizer: Any
    step: int
    epoch: int
    total_steps: int
    lambda_dal: float
    best: float | None
    decision: dict | None
    age_error: dict | None
    figures: dict | None
    pretrained: bool
    means: Mean
    epoch_means: Mean
    adversary_means: PhaseMean
    not_finite: NotFinite

    def schedule(self, progress: float) -> None: ...
