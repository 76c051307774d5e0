"""How much age is left in a feature, and how much identity. Probes are fitted on some people and
measured on others: one fitted on the same people would read a person's age from who they are.
scikit-learn is imported by the functions: training imports this file."""

import warnings

import numpy as np

from evaluation.metrics import leave_one_out_rank1, number
from evaluation.pairs import gap_pairs, genuine_pairs, parts
from evaluation.rates import cosines, roc_figures, share_interval
from recognition.embedding import check_finite

STRENGTHS = 10.0 ** np.arange(-4, 4)  # a ridge's penalties, beside the features' mean squares
AGE_FIGURES = 'r2 mae r2_unit neighbours_r2 neighbours_mae order order_interval order_pairs groups'
CORRELATION = 'rho', 'shuffled', 'shuffled_95', 'dimensions'


def age_leakage(
    features: np.ndarray, labels: np.ndarray, ages: np.ndarray, cutoffs: tuple, seed: int = 0
) -> dict:
    """How well people's ages are read from features (N, D) of other people, in five folds of them.

    r2, mae            of a ridge regression: R² (1 is all, 0 no better than the mean age, less is
                       worse), mean absolute error in years
    r2_unit            the same R² of features of unit length: the rest of r2 lies in the length
    neighbours_r2, …   of the mean age of the ten nearest faces, which no linear map removes
    order, …           the share of pairs of one person's faces whose older one has the higher age
                       by the regression (chance is 1/2), its 95 % over people, and the pairs
    balanced_accuracy  of a linear discriminant over the age groups that occur, every group counting
                       the same, so that 1 / 'groups' is chance; None if a fold leaves one group, or
                       one face of each

    All are None if there are fewer than five people or one age.
    """
    from sklearn.neighbors import KNeighborsRegressor
    from sklearn.preprocessing import Normalizer, normalize

    read = read_ages(features, labels, ages, 5, seed)
    if read is None:
        return dict.fromkeys([*AGE_FIGURES.split(), 'balanced_accuracy'])
    ages, splits = np.asarray(ages, np.float64), _folds(labels, 5, seed)
    names, group = np.unique(np.searchsorted(cutoffs, ages), return_inverse=True)
    count = min(10, *(len(fitted) for fitted, _ in splits))
    near = _out_of_fold((Normalizer(), KNeighborsRegressor(count)), features, ages, splits)
    scaled = normalize(np.asarray(features, np.float64))
    found: dict = {'r2': r2(ages, read), 'mae': float(abs(read - ages).mean())}
    found |= {'r2_unit': age_r2(scaled, labels, ages, seed, 5), 'neighbours_r2': r2(ages, near)}
    found |= {'neighbours_mae': float(abs(near - ages).mean()), **_order(read, labels, ages, seed)}
    return found | {'groups': len(names), 'balanced_accuracy': _told(features, group, splits)}


def _told(features, group, splits):
    """balanced_accuracy of age_leakage: how well the groups (N,) are told apart."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.metrics import recall_score
    from sklearn.preprocessing import StandardScaler

    class Discriminant(LinearDiscriminantAnalysis):
        """Every group is as likely: their shares weigh the covariance alone."""

        def predict(self, X):  # noqa: N803
            return self.classes_[(self.predict_log_proba(X) - np.log(self.priors_)).argmax(1)]

    if not all(1 < len(np.unique(group[fitted])) < len(fitted) for fitted, _ in splits):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)  # a group of one face has no covariance
        probe = StandardScaler(), Discriminant(solver='lsqr', shrinkage=0.1)
        guess = _out_of_fold(probe, features, group, splits)
    return float(recall_score(group, guess, average='macro'))


def _order(read, labels, ages, seed):
    """The share of pairs of one person that are told apart by age, its interval, and the pairs."""
    people = np.unique(labels, return_inverse=True)[1]
    first, second = genuine_pairs(people, np.random.default_rng(seed))
    apart = ages[first] != ages[second]
    first, second = first[apart], second[apart]
    if not len(first):
        return {'order': None, 'order_interval': None, 'order_pairs': 0}
    agree = np.sign(read[second] - read[first]) * np.sign(ages[second] - ages[first])
    told = (1 + agree) / 2  # equal readings are half right
    limits = share_interval(told, people[first], seed)
    return {'order': float(told.mean()), 'order_interval': limits, 'order_pairs': len(told)}


def age_r2(
    features: np.ndarray, labels: np.ndarray, ages: np.ndarray, seed: int = 0, folds: int = 3
) -> float | None:
    """The R² of age_leakage alone, over three folds of people: cheap enough for every epoch."""
    read = read_ages(features, labels, ages, folds, seed)
    return None if read is None else r2(ages, read)


def r2(ages: np.ndarray, read: np.ndarray) -> float:
    """The share of the variance of ages (N,) that `read` (N,) explains."""
    return float(1 - np.square(read - ages).mean() / np.var(ages, dtype=np.float64))


def read_ages(
    features: np.ndarray, labels: np.ndarray, ages: np.ndarray, folds: int, seed: int = 0
) -> np.ndarray | None:
    """Ages (N,) in years that a ridge regression, fitted on the other folds of people, reads from
    features (N, D), none outside the ages that occur: a unit that is dead in the other folds can't
    run away. None if there are fewer than five people or one age."""
    from sklearn.linear_model import RidgeCV
    from sklearn.preprocessing import StandardScaler

    check_finite(features)
    ages = np.asarray(ages, np.float64)
    if len(np.unique(labels)) < 5 or not np.ptp(ages) > 0:
        return None
    probe = StandardScaler(), RidgeCV(STRENGTHS * len(features))
    read = _out_of_fold(probe, features, ages, _folds(labels, folds, seed))
    return read.clip(ages.min(), ages.max())


def _folds(labels, folds, seed):
    """[(images of the other folds, images of the fold)], drawn by people."""
    fold = parts(labels, folds, seed)
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(folds)]


def _out_of_fold(steps, features, target, splits):
    """What a pipeline of steps, fitted on the other folds of people, says of the target (N,)."""
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline

    features = np.asarray(features, np.float64)
    return cross_val_predict(make_pipeline(*steps), features, target, cv=splits)


def identity_in(features: np.ndarray, labels: np.ndarray, ages: np.ndarray, seed: int = 0) -> dict:
    """{'auc', 'rank1', 'rank1_chance'}: how well features (N, D) alone, standardised and compared
    by cosine, tell people apart. The AUC is over gap_pairs, so that two faces of one age are no
    easier to take for one person; rank-1, leave-one-out, can't be freed of age."""
    from sklearn.preprocessing import normalize, scale

    check_finite(features)
    features = normalize(scale(np.asarray(features, np.float64))).astype(np.float32)
    pairs = gap_pairs(labels, ages, seed)
    auc = roc_figures(cosines(features, pairs.left, pairs.right), pairs.same)['auc'][0]
    counts = np.unique(labels, return_counts=True)[1]
    mates, chance = counts[counts > 1], None
    if len(mates):
        chance = float((mates * (mates - 1)).sum() / mates.sum() / (len(labels) - 1))
    rank1 = leave_one_out_rank1(features, labels)
    return {'auc': number(auc), 'rank1': rank1, 'rank1_chance': chance}


def held_out_correlation(
    x_id: np.ndarray, x_age: np.ndarray, labels: np.ndarray, seed: int = 0, shuffles: int = 20
) -> dict:
    """{'rho', 'shuffled', 'shuffled_95', 'dimensions'}: the first canonical correlation of x_id and
    x_age, fitted on one half of the people, its |correlation| on the other, averaged over both.
    'shuffled' is the mean of the same over `shuffles` random pairings of the faces, 'shuffled_95'
    what 95 % of them stay below: what these faces show if nothing is shared. Both sides are first
    reduced to 'dimensions' principal components of the fitting half, one for every 10 faces. None
    with fewer than four people or 80 faces."""
    from sklearn.decomposition import PCA

    names, person = np.unique(labels, return_inverse=True)
    if len(names) < 4 or len(labels) < 80:
        return dict.fromkeys(CORRELATION)
    rng = np.random.default_rng(seed)
    half = (rng.permutation(len(names)) % 2)[person]
    size = int(max(1, min(np.bincount(half).min() // 10, 256, x_id.shape[1], x_age.shape[1])))
    rhos = np.zeros(1 + shuffles)
    with np.errstate(invalid='ignore'):  # NaN if a side is constant
        for k in range(2):
            sides = []
            for side in (x_id, x_age):
                side = np.asarray(side, np.float64)
                leading = PCA(size, whiten=True, svd_solver='full').fit(side[half == k])
                sides.append([leading.transform(side[half == of]) for of in (k, 1 - k)])
            (a, a_held), (b, b_held) = sides
            for i in range(1 + shuffles):
                order, held = (rng.permutation(len(x)) if i else slice(None) for x in (a, a_held))
                # of whitened variates the canonical directions are the singular vectors
                u, _, v = np.linalg.svd(a.T @ b[order])
                rho = np.corrcoef(a_held @ u[:, 0], b_held[held] @ v[0])[0, 1]
                rhos[i] += abs(np.nan_to_num(rho)) / 2
    values = rhos[0], rhos[1:].mean(), np.quantile(rhos[1:], 0.95)
    return dict(zip(CORRELATION, (*map(float, values), size), strict=True))
