"""What is solved at once from x of many faces: R in closed form, the people's centres, and an
estimator of ages. x is (N, S, D), of the S sides of each face; labels (N,); ages (N,) in years."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

import dal
from model import AgeEstimator, DALModel
from training.recipe import Recipe
from utils import UserError

FEW_PEOPLE = 50  # fewer hardly carry a direction of ageing
LITTLE = 0.25  # of the variance of age within people
BLOCK = 1024  # faces at a time
FACES = 10_000  # that the ages are fitted to at most
WAVES = 2048  # Fourier features of the age estimator
WIDTH = 0.1  # of its kernel: exp(−WIDTH·d²/D) on standardised x
PENALTIES = 10.0 ** np.arange(-3, 2)  # on standardised features, beside their mean squares


def check_ages_for_r(recipe: Recipe, labels: np.ndarray, ages: np.ndarray) -> None:
    """Says on how many people R in closed form rests, and warns if they, or their years, are few.
    Raises UserError if it goes by the years within people and nobody is seen at two ages."""
    if recipe.factorization == 'learned':
        return
    people, person = np.unique(labels, return_inverse=True)
    within = ages - (np.bincount(person, ages) / np.bincount(person))[person]
    seen_twice = len(np.unique(person[np.abs(within) > dal.NOTHING]))
    remedy = '--set within_person=False goes by the ages as they are'
    if recipe.within_person and not seen_twice:
        raise UserError(f'nobody in the training set is seen at two ages: {remedy}')
    print(f'R in closed form rests on {len(people)} people, {seen_twice} of them seen at two ages')
    rests_on = seen_twice if recipe.within_person else len(people)
    if rests_on < FEW_PEOPLE:
        print(f'warning: {rests_on} people are few: a map from more erases more of the age')
    share = within.var() / max(ages.var(), 1e-9)
    if recipe.within_person and share < LITTLE:
        print(f'warning: only {share:.0%} of the variance of age lies within people: {remedy}')


def solve_r(x: np.ndarray, labels: np.ndarray, ages: np.ndarray, recipe: Recipe) -> dal.Eraser:
    """R in closed form over all faces."""
    fitter = dal.EraserFitter(x.shape[2], recipe.age_powers, recipe.within_person)
    for block in _whole_people(labels):
        sides = torch.from_numpy(x[block].astype(np.float64))
        z = dal.age_variates(torch.from_numpy(ages[block]), recipe.age_powers)
        of = torch.from_numpy(labels[block]).repeat_interleave(x.shape[1])
        fitter.update(sides.flatten(0, 1), z.repeat_interleave(x.shape[1], 0), of)
    return fitter.solve(recipe.directions, recipe.whiten)


def set_eraser(model: DALModel, eraser: dal.Eraser) -> None:
    model.factorization.mean.copy_(eraser.mean)
    model.factorization.projection.copy_(eraser.projection)


def centres(x: np.ndarray, labels: np.ndarray, eraser: dal.Eraser | None) -> Tensor:
    """The mean of x_id over each person's faces, each of unit length; of unit length itself."""
    sums = torch.zeros(labels.max() + 1, x.shape[2], dtype=torch.float64)
    for block in _whole_people(labels):
        x_id = torch.from_numpy(x[block, 0].astype(np.float64))
        unit = normalize(eraser(x_id) if eraser else x_id)
        sums.index_add_(0, torch.from_numpy(labels[block]), unit)
    return normalize(sums)


def _whole_people(labels: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of about BLOCK faces at a time, each person's together."""
    order: np.ndarray = np.argsort(labels, kind='stable')
    ends = np.append(np.flatnonzero(np.diff(labels[order])) + 1, len(order))
    start = 0
    while start < len(order):
        end = ends[min(int(np.searchsorted(ends, start + BLOCK)), len(ends) - 1)]
        yield order[start:end]
        start = end


def first_people(labels: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices of the first `most` faces, people in a drawn order, and the places of their
    people in that order."""
    people, person = np.unique(labels, return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(people))[person]
    chosen = np.sort(np.argsort(place, kind='stable')[:most])
    return chosen, place[chosen]


def fit_estimator(
    x: np.ndarray, labels: np.ndarray, ages: np.ndarray, seed: int = 0
) -> tuple[AgeEstimator, dict]:
    """An AgeEstimator, and its error on a fifth of the people, on which its penalty was chosen:
    {'mae', 'r2'}."""
    rng = np.random.default_rng(seed)
    chosen, place = first_people(labels, FACES, seed)
    held = torch.from_numpy(place % 5 == 0).repeat_interleave(x.shape[1])
    target = torch.from_numpy(ages[chosen]).double().repeat_interleave(x.shape[1])
    values = torch.from_numpy(x[chosen]).flatten(0, 1)
    estimator = AgeEstimator(x.shape[2], WAVES)
    deviation = values.std(0)
    estimator.shift.copy_(values.mean(0))
    estimator.scale.copy_(torch.where(deviation > 1e-7 * values.abs().max(), 1 / deviation, 0))
    waves = rng.normal(size=(x.shape[2], WAVES)) * np.sqrt(2 * WIDTH / x.shape[2])
    estimator.frequencies.copy_(torch.from_numpy(waves))
    estimator.phases.copy_(torch.from_numpy(rng.uniform(0, 2 * np.pi, WAVES)))
    estimator.bounds.copy_(torch.tensor([ages.min(), ages.max()]))
    features, errors = estimator.features(values), []
    if held.any() and not held.all():
        fit = _ridge(estimator, features[~held], target[~held])
        for penalty in PENALTIES:
            fit(penalty)
            errors.append(age_error(estimator(values[held]).numpy(), target[held].numpy()))
    best = int(np.argmin([error['mae'] for error in errors])) if errors else len(PENALTIES) // 2
    _ridge(estimator, features, target)(PENALTIES[best])
    return estimator, errors[best] if errors else {'mae': None, 'r2': None}


def _ridge(estimator, features, target):
    """A function of a penalty that gives `estimator` the ridge regression of the target (N,) on
    features (N, F)."""
    mean, middle = features.mean(0), target.mean()
    centred = features - mean
    gram, cross = (centred.T @ centred).double(), centred.T.double() @ (target - middle)

    def fit(penalty):
        ridged = gram + torch.diag(torch.full_like(cross, penalty * len(target)))
        factor = torch.linalg.cholesky(ridged)
        weight = torch.cholesky_solve(cross[:, None], factor)[:, 0]
        estimator.weight.copy_(weight)
        estimator.offset.copy_(middle - mean.double() @ weight)

    return fit


def age_error(estimated: np.ndarray, ages: np.ndarray) -> dict:
    """{'mae', 'r2'} of estimated ages (N,); R² is None if all ages are one."""
    spread = np.square(ages - ages.mean()).sum()
    error = estimated - ages
    r2 = float(1 - np.square(error).sum() / spread) if spread else None
    return {'mae': float(np.abs(error).mean()), 'r2': r2}
