"""Error rates in the words of ISO/IEC 19795, and what they depend on: age, years, enrolment.

FMR, FNMR    false match and false non-match rate: of comparisons, at one threshold for all ages
FPIR, FNIR   false positive and false negative identification rate: of searches
FTA          failure to acquire: a photograph in which no face is found

A pair matches if its score is above the threshold.
"""

from typing import Any

import numpy as np

from evaluation import rates
from evaluation.age_calibration import Scored, score_pairs
from evaluation.metrics import FEW_ERRORS, number
from evaluation.pairs import Pairs, gap_masks, parts
from evaluation.rates import REPLICATES, roc, roc_figures, share_interval, supports

RATE = 1e-3  # the FMR of the global threshold, ten or a hundred times it if the pairs are few
FPIRS = (0.1, 0.01)
CURVE = np.geomspace(1e-4, 1, 41)  # the false match rates of a DET curve


def rate(errors: np.ndarray, people: np.ndarray | None = None) -> dict:
    """{'rate', 'errors', 'trials', 'few'} of errors (n,) bool, and with `people` (n,) 'interval',
    the 95 % over them. 'few' are fewer errors than FEW_ERRORS."""
    count, trials = int(errors.sum()), len(errors)
    found: dict[str, Any] = {'rate': count / trials if trials else None}
    found |= {'errors': count, 'trials': trials}
    if people is not None:
        found['interval'] = share_interval(errors, people) if trials else None
    return found | {'few': count < FEW_ERRORS}


def global_threshold(scores: np.ndarray, same: np.ndarray) -> dict | None:
    """{'fmr', 'threshold'} of n pairs: the asked FMR, RATE or what the pairs carry with 30 false
    matches, and the lowest threshold that keeps it. None if there are too few of either kind."""
    found = rates.far_thresholds(scores, same)
    for asked in (RATE, 10 * RATE, 100 * RATE):
        if same.any() and (~same).sum() * asked >= FEW_ERRORS:
            return {'fmr': asked, 'threshold': float(found[str(asked)][0])}
    return None


def by_ages(pairs: Scored, threshold: float, cutoffs: tuple) -> dict:
    """The FMR of each pair of age groups: {'groups': names, 'fmr', 'errors', 'trials', 'few'}, the
    last four matrices (groups, groups), younger × older."""
    impostor, size = ~pairs.same, len(cutoffs) + 1
    younger = np.searchsorted(cutoffs, pairs.younger[impostor])
    older = np.searchsorted(cutoffs, (pairs.younger + pairs.gap)[impostor])
    errors, place = pairs.similarity[impostor] > threshold, younger * size + older
    counts = (np.bincount(place, weights, size**2) for weights in (None, errors))
    trials, wrong = (count.reshape(size, size).astype(int) for count in counts)
    shares = (wrong / np.maximum(trials, 1)).astype(object)
    shares[trials == 0] = None
    starts = [0, *(bound + 1 for bound in cutoffs)]
    names = [f'{low}-{high}' for low, high in zip(starts, cutoffs, strict=False)]
    tables = {'fmr': shares, 'errors': wrong, 'trials': trials, 'few': wrong < FEW_ERRORS}
    tables = {key: table.tolist() for key, table in tables.items()}
    return {'groups': [*names, f'{starts[-1]}+'], **tables}


def by_years(pairs: Scored, threshold: float) -> list[dict]:
    """The FNMR of each range of years elapsed: `rate` with 'years', over people."""
    errors, people = pairs.similarity[pairs.same] <= threshold, pairs.people[pairs.same, 0]
    masks = gap_masks(pairs.gap[pairs.same])
    return [{'years': years, **rate(errors[here], people[here])} for years, here in masks]


def slope(pairs: Scored, seed: int = 0) -> dict | None:
    """How the similarity of one person's faces changes with the years between them: {'per_decade',
    'interval' over people, 'people'}; None if no two pairs of a person differ in years. Least
    squares with an intercept for each person, so people who were photographed over few years and
    alike faces don't count as ageing."""
    years, scores = pairs.gap[pairs.same], pairs.similarity[pairs.same]
    person = np.unique(pairs.people[pairs.same, 0], return_inverse=True)[1]
    centred = years - (np.bincount(person, years) / np.bincount(person))[person]
    squares = centred**2
    if not squares.any():
        return None
    point = 10 * (centred * scores).sum() / squares.sum()
    limits = share_interval(10 * centred * scores, person, seed, squares)
    count = len(np.unique(person[squares > 0]))
    return {'per_decade': float(point), 'interval': limits, 'people': count}


def det(
    scores: np.ndarray, same: np.ndarray, people: np.ndarray | None, seed: int = 0
) -> dict | None:
    """The DET curve: {'fmr': CURVE, 'fnmr', 'low', 'high'}, its 95 % band over `people` (n, 2),
    over pairs if that is None. FNMR is at the lowest threshold that keeps the FMR; None below what
    one impostor pair is, and the curve None without pairs of both kinds."""
    if not same.any() or same.all():
        return None
    known = CURVE >= 1 / (~same).sum()

    def curves(weights):
        for far, tar in zip(*roc(scores, same, weights), strict=True):
            yield 1 - tar[np.searchsorted(far, CURVE[known] + 1e-12, 'right') - 1]

    (middle,) = curves(None)
    blocks = rates.draws(people, len(same), REPLICATES, seed)
    drawn = np.array([curve for weights in blocks for curve in curves(weights)])
    low, high = np.quantile(drawn[np.isfinite(drawn).all(1)], (0.025, 0.975), axis=0)
    gap, found = [None] * int((~known).sum()), {'fmr': CURVE.tolist()}
    for name, curve in {'fnmr': middle, 'low': low, 'high': high}.items():
        found[name] = gap + curve.tolist()
    return found


def cllr(scores: np.ndarray, same: np.ndarray, folds: np.ndarray) -> dict | None:
    """{'cllr', 'min_cllr'}: the cost in bits of log-likelihood ratios made from the scores, by a
    logistic regression that was fitted on the other folds, each kind of pair weighing the same;
    and its minimum over all increasing maps (isotonic regression, PAV). None if a fold lacks
    pairs of a kind. Source: Brümmer & du Preez 2006, Application-independent evaluation of
    speaker detection."""
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict

    names = np.unique(folds)
    if len(names) < 2 or any(len(np.unique(folds[kind])) < len(names) for kind in (same, ~same)):
        return None
    spread = ((scores - scores.mean()) / max(scores.std(), 1e-12))[:, None]
    probe = LogisticRegression(C=1e3, class_weight='balanced')
    splits = LeaveOneGroupOut().split(spread, same, folds)
    ratios = cross_val_predict(probe, spread, same, cv=splits, method='decision_function')
    weights = np.where(same, 1 / same.sum(), 1 / (~same).sum())
    best = IsotonicRegression(y_min=0, y_max=1).fit(scores, same, weights).predict(scores)
    with np.errstate(divide='ignore'):
        best = np.log(best) - np.log1p(-best)
    return {'cllr': cost(ratios, same), 'min_cllr': cost(best, same)}


def cost(ratios: np.ndarray, same: np.ndarray) -> float:
    """Cllr in bits of natural log-likelihood ratios (n,)."""
    genuine, impostor = np.logaddexp(0, -ratios[same]), np.logaddexp(0, ratios[~same])
    return float((genuine.mean() + impostor.mean()) / 2 / np.log(2))


def open_set(
    embeddings: np.ndarray, labels: np.ndarray, ages: np.ndarray, seed: int = 0
) -> dict | None:
    """Identification if a half of the people, drawn by the seed, are not enrolled: {'enrolled',
    'unenrolled', 'searches', 'fnir': {'0.1': {'threshold', **rate}, …}}. The gallery is the
    youngest image of each enrolled person. Images of the others must find nobody: the lowest
    threshold that keeps an FPIR. An enrolled person's other images must find the person, first and
    above it. None if nobody is left to search."""
    people, person = np.unique(labels, return_inverse=True)
    enrolled = parts(labels, 2, seed) == 0
    order = np.lexsort((ages, person))
    youngest = order[np.diff(person[order], prepend=-1) > 0]
    gallery = youngest[enrolled[youngest]]
    mated, others = np.setdiff1d(np.flatnonzero(enrolled), gallery), np.flatnonzero(~enrolled)
    if not len(mated) or not len(others):
        return None
    highest = np.sort((embeddings[others] @ embeddings[gallery].T).max(1))[::-1]
    scores = embeddings[mated] @ embeddings[gallery].T
    right = labels[gallery[scores.argmax(1)]] == labels[mated]
    found = {}
    for asked in FPIRS:
        if supports(len(highest), asked):
            threshold = highest[int(asked * len(highest) + 1e-9)]
            missed = ~(right & (scores.max(1) > threshold))
            found[str(asked)] = {'threshold': float(threshold), **rate(missed, labels[mated])}
    counts = {'enrolled': len(gallery), 'unenrolled': len(people) - len(gallery)}
    return counts | {'searches': len(others), 'fnir': found}


def failures(missed: np.ndarray, pairs: Pairs, scores: np.ndarray) -> dict:
    """Photographs (N,) in which no face was found: {'fta': rate, 'pairs_lost', 'without', 'with'}.
    The last two are roc_figures of the pairs (n,) whose faces were both found, and of all pairs, if
    one with a failure never matches: what a system as a whole achieves."""
    lost = missed[pairs.left] | missed[pairs.right]
    without = roc_figures(scores[~lost], pairs.same[~lost])
    whole = roc_figures(np.where(lost, -2.0, scores), pairs.same)
    found = {'fta': rate(missed), 'pairs_lost': int(lost.sum())}
    for name, values in {'without': without, 'with': whole}.items():
        found[name] = {key: number(value[0]) for key, value in values.items()}
    return found


def error_report(evidence: Any, cutoffs: tuple, missed: np.ndarray | None = None) -> dict:
    """Every figure of this file that an Evidence carries, ready for JSON. `cutoffs` bound the age
    groups, `missed` (N,) are photographs without a face."""
    benchmark, pairs, scores = evidence.benchmark, evidence.pairs, evidence.scores
    seed, report = evidence.seed, {'cllr': cllr(scores, pairs.same, pairs.fold)}
    report['det'] = det(scores, pairs.same, pairs.people, seed)
    if missed is not None:
        report['failure_to_acquire'] = failures(missed, pairs, scores)
    if benchmark.labels is None:
        return report
    people = evidence.embeddings, benchmark.labels, benchmark.ages
    report['open_set'] = open_set(*people, seed)
    every = score_pairs(*people, seed)
    report['slope'] = slope(every, seed)
    report['global'] = found = global_threshold(every.similarity, every.same)
    if found:
        found['fmr_by_ages'] = by_ages(every, found['threshold'], cutoffs)
        found['fnmr_by_years'] = by_years(every, found['threshold'])
        errors = every.similarity[every.same] <= found['threshold']
        found['fnmr'] = rate(errors, every.people[every.same, 0])
    return report
