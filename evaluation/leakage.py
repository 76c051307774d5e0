"""How much age is left in a feature, and how much identity.

Everything here is linear, closed form and split by person: probes are fitted on some of the people
and measured on the others. One that was fitted and measured on the same people would read a
person's age from who they are.
"""

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score, recall_score

from dal import first_canonical_correlation
from evaluation.metrics import leave_one_out_rank1, number
from evaluation.pairs import gap_pairs
from evaluation.rates import cosines, roc_figures
from recognition.embedding import check_finite

# penalties on standardised features: a ridge's beside their mean squares, a covariance's diagonal
STRENGTHS = 10.0 ** np.arange(-4, 4)


def age_leakage(
    features: np.ndarray, labels: np.ndarray, ages: np.ndarray, cutoffs: tuple, seed: int = 0
) -> dict:
    """{'r2', 'mae', 'balanced_accuracy', 'groups'}: how well people's ages are read from features
    (N, D) of other people.

    R² (1 is all, 0 is no better than the mean age, less is worse) and mean absolute error in years
    of a ridge regression; accuracy of a linear discriminant over the age groups that occur, every
    group as likely and counting the same, so that 1 / 'groups' is chance. Five folds of people.
    None where there are fewer than five people or one age.
    """
    features, ages, fold = _prepare(features, labels, ages, 5, seed)
    if fold is None:
        return {'r2': None, 'mae': None, 'balanced_accuracy': None, 'groups': None}
    read = _out_of_fold(_ridge, mean_squared_error, features, ages, fold)
    names, group = np.unique(np.searchsorted(cutoffs, ages), return_inverse=True)
    guess = _out_of_fold(_discriminant, _unbalanced, features, group, fold)
    return {
        'r2': float(r2_score(ages, read)),
        'mae': float(mean_absolute_error(ages, read)),
        'groups': len(names),
        'balanced_accuracy': 1 - _unbalanced(guess, group),
    }


def age_r2(
    features: np.ndarray, labels: np.ndarray, ages: np.ndarray, seed: int = 0
) -> float | None:
    """The R² of age_leakage alone, over three folds of people: cheap enough for every epoch.

    None where there are fewer than five people or one age.
    """
    features, ages, fold = _prepare(features, labels, ages, 3, seed)
    if fold is None:
        return None
    return float(r2_score(ages, _out_of_fold(_ridge, mean_squared_error, features, ages, fold)))


def _prepare(features, labels, ages, folds, seed):
    """Features and ages in float64, and each image's fold of people (N,), None where the data can't
    be split or ages don't vary."""
    check_finite(features)
    names, person = np.unique(labels, return_inverse=True)
    ages = np.asarray(ages, np.float64)
    fold = None
    if len(names) >= 5 and np.ptp(ages) > 0:
        fold = (np.random.default_rng(seed).permutation(len(names)) % folds)[person]
    return np.asarray(features, np.float64), ages, fold


def _out_of_fold(fit, error, features, target, fold):
    """What probes fitted on the other folds read of the target (N,); each one's penalty is chosen
    on one of those folds, held out."""
    read, folds = np.empty_like(target), fold.max() + 1
    for k in range(folds):
        held = fold == (k + 1) % folds
        inner = (fold != k) & ~held
        probes = fit(features[inner], target[inner], STRENGTHS)
        errors = [error(probe(features[held]), target[held]) for probe in probes]
        (probe,) = fit(features[fold != k], target[fold != k], [STRENGTHS[np.argmin(errors)]])
        read[fold == k] = probe(features[fold == k])
    return read


def _standardizer(features):
    """A function that centres features and divides them by the deviations of these; those constant
    here become 0."""
    mean, scale = features.mean(0), features.std(0)
    scale[scale <= 1e-7 * np.abs(features).max()] = np.inf
    return lambda new: (new - mean) / scale


def _ridge(features, ages, strengths):
    """A function features -> ages (N,) for each penalty, none outside the ages it was fitted on: a
    unit that is dead there can't run away."""
    standardize = _standardizer(features)
    x, alpha = standardize(features), np.asarray(strengths) * len(features)
    # a column of targets for each penalty: one Gram matrix serves them all
    fitted = Ridge(alpha, solver='cholesky').fit(x, np.tile(ages[:, None], len(alpha)))
    return [
        lambda new, weight=weight, offset=offset: np.clip(
            standardize(new) @ weight + offset, ages.min(), ages.max()
        )
        for weight, offset in zip(
            fitted.coef_.reshape(len(alpha), -1), np.atleast_1d(fitted.intercept_), strict=True
        )
    ]


class _Covariance(BaseEstimator):
    """The maximum-likelihood covariance with `strength` added to its diagonal."""

    def __init__(self, strength: float):
        self.strength = strength

    def fit(self, features):
        self.covariance_ = np.cov(features, rowvar=False, bias=True) + self.strength * np.eye(
            features.shape[1]
        )
        return self


def _discriminant(features, group, strengths):
    """A function features -> group (N,) for each penalty, by the groups' means and their pooled
    covariance, every group as likely."""
    names, counts = np.unique(group, return_counts=True)
    if not 1 < len(names) < len(group):  # nothing to tell apart, or no two faces of any group
        return [lambda new: np.full(len(new), names[counts.argmax()])] * len(strengths)
    standardize, probes = _standardizer(features), []
    for strength in strengths:
        fitted = LinearDiscriminantAnalysis(
            solver='lsqr', covariance_estimator=_Covariance(strength)
        )
        fitted.fit(standardize(features), group)

        def probe(new, fitted=fitted):
            # the groups' shares weigh the covariance alone, not the decision
            scores = fitted.predict_log_proba(standardize(new)) - np.log(fitted.priors_)
            return fitted.classes_[scores.argmax(1)]

        probes.append(probe)
    return probes


def _unbalanced(guess, group):
    """1 − balanced accuracy: the mean over the groups of the share that was guessed wrong."""
    return 1 - float(recall_score(group, guess, labels=np.unique(group), average='macro'))


def identity_in(features, labels, ages, seed=0):
    """{'auc', 'rank1', 'rank1_chance'}: how well features (N, D) alone, standardised and compared
    by cosine, tell people apart.

    The AUC is over gap_pairs, so that two faces of one age are no easier to take for one
    person; rank-1 is leave-one-out and can't be freed of age: pictures of one person are often
    taken at one age.
    """
    check_finite(features)
    features = _standardizer(features)(np.asarray(features, np.float32))
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    pairs = gap_pairs(labels, ages, seed)
    auc = roc_figures(cosines(features, pairs.left, pairs.right), pairs.same)['auc'][0]
    counts = np.bincount(np.unique(labels, return_inverse=True)[1])
    mates = counts[counts > 1]
    chance = (
        float((mates * (mates - 1)).sum() / mates.sum() / (len(labels) - 1)) if len(mates) else None
    )
    return {
        'auc': number(auc),
        'rank1': leave_one_out_rank1(features, labels),
        'rank1_chance': chance,
    }


def held_out_correlation(x_id, x_age, labels, seed=0, shuffles=20):
    """{'rho', 'shuffled', 'shuffled_95', 'dimensions'}: the first canonical correlation of x_id and
    x_age, fitted and then held out.

    The directions are fitted on one half of the people and |correlation| is measured on the other,
    each half in turn, averaged. 'shuffled' is the mean of the same over `shuffles` random pairings
    of the faces, 'shuffled_95' what 95 % of them stay below: what these faces show where there is
    nothing to see. A fit needs many more faces than dimensions: both sides are first reduced to
    'dimensions' principal components of the fitting half, one for every 10 faces. None with fewer
    than four people or 80 faces.
    """
    names, person = np.unique(labels, return_inverse=True)
    if len(names) < 4 or len(labels) < 80:
        return {'rho': None, 'shuffled': None, 'shuffled_95': None, 'dimensions': None}
    rng = np.random.default_rng(seed)
    half = (rng.permutation(len(names)) % 2)[person]
    size = int(max(1, min(np.bincount(half).min() // 10, 256, x_id.shape[1], x_age.shape[1])))
    rhos = np.zeros(1 + shuffles)
    for k in range(2):
        (a, a_held), (b, b_held) = (
            _reduce(side[half == k], side[half != k], size) for side in (x_id, x_age)
        )
        for i in range(1 + shuffles):
            fit, held = (
                np.arange(len(side)) if i == 0 else rng.permutation(len(side))
                for side in (a, a_held)
            )
            _, w_a, w_b = first_canonical_correlation(a, b[fit])
            rhos[i] += _correlation(a_held @ w_a, b_held[held] @ w_b) / 2
    return {
        'rho': float(rhos[0]),
        'shuffled': float(rhos[1:].mean()),
        'shuffled_95': float(np.quantile(rhos[1:], 0.95)),
        'dimensions': size,
    }


def _reduce(fitted, held, size):
    """Both halves on the leading principal components of `fitted`, as float64 tensors."""
    fitted, held = (
        torch.from_numpy(np.asarray(half, np.float64) - fitted.mean(0, dtype=np.float64))
        for half in (fitted, held)
    )
    leading = torch.linalg.eigh(fitted.T @ fitted)[1][:, -size:]
    return fitted @ leading, held @ leading


def _correlation(a, b):
    """|Pearson's correlation| of two variates; 0 where one is constant."""
    a, b = a - a.mean(), b - b.mean()
    length = a.norm() * b.norm()
    return float((a @ b).abs() / length) if length > 0 else 0.0
