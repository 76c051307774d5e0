"""From the faces of people of known age to thresholds by age, and how well they keep their rates.

Thresholds: in each cell of ages the similarity that accepts no more of the pairs of different
people than asked, with a confidence. Probability: a logistic regression on the similarity whose
slope and offset are piecewise linear in the age of the younger and in the gap, where each cell's
pairs of one person and of different people weigh alike: what the similarity says if both are
equally likely beforehand.
"""

from typing import Any, NamedTuple

import numpy as np

from evaluation import age_thresholds
from evaluation.age_thresholds import FARS, SHAPE, TERMS, AgeDecision, cell, smooth
from evaluation.pairs import parts
from evaluation.rates import supports
from recognition.embedding import check_finite

CONFIDENCE = 0.95  # that a threshold accepts no more than asked of further people of the same kind
FACES, PER_PERSON = 4000, 30  # at most: a product of 4000 × 4000 is a second's work
RATES = (0.1, 0.01, 0.001)  # at which a calibration is measured
PER_CELL = 500  # pairs of a kind that the regression is fitted on
KINDS = (False, True)  # different people, one person


class Scored(NamedTuple):
    """n pairs: similarity, younger and gap in years, each (n,) float64, same (n,) bool, and the
    numbers of the two people (n, 2)."""

    similarity: np.ndarray
    younger: np.ndarray
    gap: np.ndarray
    same: np.ndarray
    people: np.ndarray

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """The number of each pair's cell (n,); and how many pairs of different people and of one
        person each cell has (2, cells)."""
        place = np.ravel_multi_index(cell(self.younger, self.gap), SHAPE)
        kinds = [place[self.same == kind] for kind in KINDS]
        return place, np.stack([np.bincount(kind, minlength=np.prod(SHAPE)) for kind in kinds])


def score_pairs(
    embeddings: np.ndarray, labels: np.ndarray, ages: np.ndarray, seed: int = 0
) -> Scored:
    """Every pair of the faces, embeddings (N, D) of unit length, labels (N,), ages (N,) in years.
    Of a person at most PER_PERSON faces, and of all at most FACES, whole people at a time, are
    taken, drawn by the seed. Raises ValueError if an embedding isn't finite."""
    check_finite(embeddings)
    rng = np.random.default_rng(seed)
    images: list[np.ndarray] = []
    for person in rng.permutation(np.unique(labels)):
        images.append(rng.permutation(np.flatnonzero(labels == person))[:PER_PERSON])
        if sum(map(len, images)) > FACES:
            break
    chosen = np.sort(np.concatenate(images)[:FACES])
    left, right = np.triu_indices(len(chosen), 1)
    similarity = (embeddings[chosen] @ embeddings[chosen].T)[left, right].astype(np.float64)
    ages, number = np.asarray(ages, np.float64)[chosen], np.unique(labels, return_inverse=True)[1]
    people = number[chosen][np.stack([left, right], 1)]
    younger, gap = np.minimum(ages[left], ages[right]), abs(ages[left] - ages[right])
    return Scored(similarity, younger, gap, people[:, 0] == people[:, 1], people)


def fit_by_age(pairs: Scored, seed: int = 0, confidence: float = CONFIDENCE) -> dict | None:
    """The thresholds by age that Scored pairs lead to, which accept at most their rate of the pairs
    of further people with this `confidence`, and P: lists and numbers that AgeDecision reads. None
    if there are no pairs of one of the two kinds."""
    if not pairs.same.any() or pairs.same.all():
        return None
    slope, offset = _regression(pairs, seed)
    line = {'slope': slope.tolist(), 'offset': offset.tolist()}
    return fit_thresholds(pairs, confidence) | line


def fit_thresholds(pairs: Scored, confidence: float = CONFIDENCE) -> dict:
    """As `fit_by_age`; of pairs of different people alone, P is unknown and its line zero."""
    place, counts = pairs.cells()
    thresholds = np.full((len(FARS), np.prod(SHAPE)), np.nan)
    for k in np.unique(place):
        here = (place == k) & ~pairs.same
        thresholds[:, k] = bounds(pairs.similarity[here], pairs.people[here], FARS, confidence)
    impostor, genuine = counts.reshape(2, *SHAPE).tolist()
    found: dict[str, Any] = {'impostor': impostor, 'genuine': genuine}
    known = np.where(np.isnan(thresholds), np.array(None), thresholds)  # None in JSON
    found['thresholds'] = known.reshape(-1, *SHAPE).tolist()
    oldest, largest = float((pairs.younger + pairs.gap).max()), float(pairs.gap.max())
    found |= {'oldest': oldest, 'largest_gap': largest, 'confidence': confidence}
    return found | {'slope': [0.0] * TERMS, 'offset': [0.0] * TERMS}


def bounds(
    similarity: np.ndarray, people: np.ndarray, rates: tuple, confidence: float = CONFIDENCE
) -> np.ndarray:
    """Thresholds that accept at most `rates` of different people's pairs with this confidence, of
    similarities (n,) and people (n, 2). Pairs that share a person count as the number of
    independent pairs that gives the same variance of the rate. NaN if these are too few. Source:
    Aronow, Samii & Assenova 2015, cluster-robust variance for dyadic data."""
    from scipy.special import bdtrik

    n, thresholds = len(similarity), np.full(len(rates), np.nan)
    low, high = people.min(1).astype(np.int64), people.max(1)
    dyads = np.unique(low * (high.max(initial=0) + 1) + high, return_inverse=True)[1]
    for k, rate in enumerate(rates):
        if not supports(n, rate):
            continue
        residual = similarity > np.quantile(similarity, 1 - rate, method='higher')
        residual = residual - residual.mean()
        person = np.bincount(low, residual, high.max() + 1) + np.bincount(high, residual)
        variance = person @ person - np.square(np.bincount(dyads, residual)).sum()
        independent = n * min(residual @ residual / max(variance, 1e-12), 1)
        # the most that can be accepted by chance alone, if the threshold accepts more than asked
        share = bdtrik(1 - confidence, independent, rate) / independent
        if share > 0:
            thresholds[k] = np.quantile(similarity, 1 - share, method='higher')
    return thresholds


def _regression(pairs, seed):
    """slope, offset (terms,) of logit P(same) = similarity · terms @ slope + terms @ offset."""
    from sklearn.linear_model import LogisticRegression  # a second's import, for those who fit

    place, counts = pairs.cells()
    cells = np.flatnonzero(counts.all(0))
    if not len(cells):  # none has both kinds: ages can't be kept apart
        place, cells = place * 0, np.zeros(1, int)
    chosen, balance, rng = [], [], np.random.default_rng(seed)
    for k in cells:
        kinds = [np.flatnonzero((place == k) & (pairs.same == kind)) for kind in KINDS]
        kinds = [rng.permutation(kind)[:PER_CELL] for kind in kinds]
        chosen += kinds
        balance += [np.full(len(kind), min(map(len, kinds)) / len(kind)) for kind in kinds]
    rows, weights = np.concatenate(chosen), np.concatenate(balance)
    similarity = pairs.similarity[rows, None]
    centre, spread = similarity.mean(), similarity.std() + 1e-9  # the penalty sees one scale
    scaled, terms = (similarity - centre) / spread, smooth(pairs.younger[rows], pairs.gap[rows])
    # the terms are what ages change of a common line, to which the penalty draws ages without pairs
    design = np.concatenate([3 * scaled, scaled * terms, terms], 1)
    regression = LogisticRegression(max_iter=500)
    regression.fit(design, pairs.same[rows], weights * len(rows) / weights.sum())
    common, slope, offset = np.split(regression.coef_[0], [1, 1 + terms.shape[1]])
    slope, offset = slope + 3 * common / 2, offset + regression.intercept_ / 2  # terms sum to 2
    return slope / spread, offset - slope * centre / spread


def measure_cells(
    stored: dict, pairs: Scored, far: float, single: float | None = None
) -> list[dict]:
    """What thresholds by age accept of other people's pairs at `far`, a row for each cell: the cell
    in words, counts, `far` and `tar` (None without such pairs), `promised` (the fitted cell had
    pairs enough), and with `single`, a threshold for all ages, `single_far` and `single_tar`."""
    decision, rows, (place, counts) = AgeDecision(stored), [], pairs.cells()
    for k in np.unique(place):
        here, index = place == k, [int(axis) for axis in np.unravel_index(k, SHAPE)]
        middle, years = (float(np.median(values[here])) for values in (pairs.younger, pairs.gap))
        threshold = decision.threshold(middle, years, far)
        row = {'cell': age_thresholds.name(index), 'younger': index[0], 'gap': index[1]}
        row |= {'impostor': int(counts[0, k]), 'genuine': int(counts[1, k])}
        row |= {'threshold': threshold and threshold.value}
        row |= {'promised': bool(threshold and threshold.caution is None)}
        scores = [pairs.similarity[here & (pairs.same == kind)] for kind in KINDS]
        for prefix, value in (('', row['threshold']), ('single_', single)):
            for rate, kind in zip(('far', 'tar'), scores, strict=True):
                known = value is not None and len(kind)
                row[prefix + rate] = float((kind > value).mean()) if known else None
        rows.append(row)
    return rows


def reliability(stored: dict, pairs: Scored, bins: int = 10) -> dict:
    """How often pairs of a predicted P are one person's, {'bins': [{'predicted', 'observed',
    'weight'}]}, and 'ece', the expected calibration error. Each cell's two kinds weigh alike, as in
    `fit_by_age`; cells that lack a kind are left out."""
    place, counts = pairs.cells()
    weights = (counts.min(0) / np.maximum(counts, 1))[pairs.same.astype(int), place]
    predicted = AgeDecision(stored).probabilities(*pairs[:3])
    place = np.minimum((predicted * bins).astype(int), bins - 1)
    rows, total = [], max(weights.sum(), 1e-12)
    for k in range(bins):
        here = weights * (place == k)
        if here.sum() > 0:
            said, was = (float(here @ values / here.sum()) for values in (predicted, pairs.same))
            weight = float(here.sum() / total)
            rows.append({'predicted': said, 'observed': was, 'weight': weight})
    ece = sum(row['weight'] * abs(row['predicted'] - row['observed']) for row in rows)
    return {'bins': rows, 'ece': float(ece)}


def report_by_age(
    stored: dict,
    embeddings: np.ndarray,
    labels: np.ndarray,
    ages: np.ndarray,
    refit: bool = False,
    seed: int = 0,
) -> dict | None:
    """How thresholds by age do on faces of known age, for JSON: 'cells', `measure` at each of RATES
    with the rate `asked`, and `reliability`. With `refit`, as on the very people of `stored`, a
    half is fitted again and measured on the other, and 'halves' says so; None if it has too few."""
    ages = np.asarray(ages)
    here = parts(labels, 2, seed) == 1 if refit else np.ones(len(labels), bool)
    if refit:
        stored = fit_by_age(score_pairs(embeddings[~here], labels[~here], ages[~here]), seed) or {}
        if not stored or not here.any():
            return None
    pairs = score_pairs(embeddings[here], labels[here], ages[here])
    cells = [row | {'asked': far} for far in RATES for row in measure_cells(stored, pairs, far)]
    return {'cells': cells, 'reliability': reliability(stored, pairs), 'halves': refit}
