"""What is counted: verification over folds, by age gap with matched impostors, leave-one-out.

numpy on scores and embeddings alone. Every dict is ready for JSON: floats, and None if the data
can't say.
"""

from collections import Counter
from typing import Any

import numpy as np

from evaluation import rates
from evaluation.pairs import GAP_NAMES, Pairs, gap_bin, gap_pairs
from evaluation.rates import FARS, GRID, REPLICATES, bootstrap, cosines, decide, interval
from recognition.embedding import check_finite

ENOUGH = 10  # pairs of either kind: below, one more or less moves every figure by points
FEW_ERRORS = 30  # with fewer beneath it, a rate's true value may be further than 30 % away


def verification(
    scores: np.ndarray,
    same: np.ndarray,
    folds: np.ndarray,
    people: np.ndarray | None = None,
    thresholds: np.ndarray | None = GRID,
    replicates: int = 0,
    seed: int = 0,
) -> dict:
    """Accuracy over the folds, AUC, EER and TAR@FAR of n scores (n,) with `same` (n,) bool and
    `folds` (n,) any tokens.

    Each fold is scored at the threshold that is best on all the others, the strictest of equals
    (InsightFace's verification); `thresholds` are the candidates, strictest first, None for every
    score that occurs. 'threshold' is the best on all pairs: for deployment, no figure here uses it;
    'far' holds those of far_thresholds, {'0.001': {'threshold', 'interval'}}. With `replicates`,
    'intervals' holds the 95 % of each figure over `people` (n, 2) (over pairs if people is None;
    the folds' thresholds are held). 'few_errors' names the figures with fewer than FEW_ERRORS
    errors beneath. If a kind of pair is missing there are no figures, if there are
    fewer than ENOUGH of a kind no accuracy and no intervals, if the folds can't be folds no
    accuracy; 'reason' says so. Raises ValueError for scores that aren't finite.
    """
    scores, same, folds = np.asarray(scores, np.float64), np.asarray(same, bool), np.asarray(folds)
    if not np.isfinite(scores).all():
        first = np.flatnonzero(~np.isfinite(scores))[0]
        raise ValueError(f'pair {first} (counted from 0): the score is not finite')
    reason = _missing(same, folds)
    right, best = decide(scores, same, folds, thresholds)
    both = same.any() and not same.all()  # else accepting all, or nothing, would be right
    right = None if reason else right
    by_fold = [] if right is None else [right[folds == fold].mean() for fold in np.unique(folds)]
    figures = {name: number(values[0]) for name, values in rates.roc_figures(scores, same).items()}
    report: dict[str, Any] = {'pairs': len(scores), 'genuine': int(same.sum())}
    report['impostor'] = len(scores) - report['genuine']
    mean, std = (number(f(by_fold)) if by_fold else None for f in (np.mean, np.std))
    report |= {'accuracy': mean, 'accuracy_std': std}
    report['fold_accuracy'] = [number(value) for value in by_fold]
    report |= {'threshold': best if both else None, **figures}
    at_far = rates.far_thresholds(scores, same).items()
    report['far'] = {k: {'threshold': float(v[0]), 'interval': None} for k, v in at_far}
    report['few_errors'] = _few_errors(report)
    if reason:
        report['reason'] = reason
    if replicates and _few(same):
        report['intervals'] = dict.fromkeys(('accuracy', *figures))
    elif replicates:
        drawn, drawn_at = bootstrap(scores, same, folds, right, people, replicates, seed)
        known = {name: values for name, values in drawn.items() if report[name] is not None}
        report['intervals'] = dict.fromkeys(drawn) | {k: interval(v) for k, v in known.items()}
        for rate, values in drawn_at.items():
            report['far'][rate]['interval'] = interval(values)
    return report


def _few_errors(report):
    """The names of figures that rest on fewer than FEW_ERRORS errors (the rule of 30)."""
    genuine, impostor = report['genuine'], report['impostor']
    errors = {'accuracy': (1 - (report['accuracy'] or 0)) * report['pairs']}
    errors['eer'] = (report['eer'] or 0) * min(genuine, impostor)
    for name, far in FARS.items():
        errors[name] = min((1 - (report[name] or 0)) * genuine, far * impostor)
    known = {name: count for name, count in errors.items() if report[name] is not None}
    return [name for name, count in known.items() if count < FEW_ERRORS - 0.5]


def _missing(same, folds):
    """Why accuracy, and what else, can't be had of these pairs, None if it can."""
    if not len(same):
        return 'there are no pairs'
    if same.all() or not same.any():
        return f'all pairs are of {"one person" if same.all() else "different people"}'
    if _few(same):
        kinds = f'{same.sum()} pairs of one person and {(~same).sum()} of different people'
        return f'{kinds}: accuracy and intervals need {ENOUGH} of each'
    counts = Counter(zip(folds.tolist(), same.tolist(), strict=True))
    names = sorted({fold for fold, _ in counts})
    if len(names) < 2:
        return 'all pairs are in one fold: accuracy needs two, a threshold is fitted on the others'
    sizes = [counts[fold, True] + counts[fold, False] for fold in names]
    ask = 'is the column of folds something else? Without it, ten folds are cut'
    one = [fold for fold in names if not (counts[fold, True] and counts[fold, False])]
    if one:
        count = f'{len(one)} of {len(names)} folds, {one[0]} first'
        return f'{count}, have pairs of one kind alone, and no accuracy: {ask}'
    if len(names) > 10 and max(sizes) > 2 * min(sizes):
        return f'{len(names)} folds of {min(sizes)} to {max(sizes)} pairs give no accuracy: {ask}'
    return None


def _few(same):
    """Whether either kind of pair is too rare for accuracy and intervals."""
    return min(same.sum(), (~same).sum()) < ENOUGH


def by_gap(scores: np.ndarray, pairs: Pairs, replicates: int = 0, seed: int = 0) -> list[dict]:
    """verification() within each age gap that has pairs; with 'years' and 'mean_gap'."""
    rows, gaps = [], gap_bin(pairs.gap)
    for k in np.unique(gaps):
        here = pairs.where(gaps == k)
        facts = here.same, here.fold, here.people, None, replicates, seed
        found = verification(scores[gaps == k], *facts)
        rows.append({'years': GAP_NAMES[k], 'mean_gap': float(here.gap.mean()), **found})
    return rows


def leave_one_out(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each probe and the image nearest to it among all the others: two index arrays (P,).

    Probes are the images of people with at least two; all N images are the gallery, the probe's own
    score at −inf. Works in blocks: 100,000 faces need no N × N matrix. Raises ValueError if an
    embedding isn't finite.
    """
    check_finite(embeddings)
    _, person, counts = np.unique(labels, return_inverse=True, return_counts=True)
    probes = np.flatnonzero(counts[person] > 1)
    nearest, rows = np.empty_like(probes), max(1, 2**24 // max(len(embeddings), 1))
    for start in range(0, len(probes), rows):
        block = probes[start : start + rows]
        scores = embeddings[block] @ embeddings.T
        scores[np.arange(len(block)), block] = -np.inf
        nearest[start : start + rows] = scores.argmax(1)
    return probes, nearest


def leave_one_out_rank1(embeddings: np.ndarray, labels: np.ndarray) -> float | None:
    """The share of leave_one_out's probes that find their person, None without probes."""
    probes, nearest = leave_one_out(embeddings, labels)
    return number((labels[probes] == labels[nearest]).mean()) if len(probes) else None


def percentiles(scores: np.ndarray, same: np.ndarray) -> dict:
    """{'genuine', 'impostor'}: the scores (n,) of each kind as 101 percentiles, the 0th to the
    100th, lowest first; an empty list if there are none."""
    kinds = {'genuine': scores[same], 'impostor': scores[~same]}
    at = np.linspace(0, 1, 101)
    return {k: np.quantile(v, at).tolist() if len(v) else [] for k, v in kinds.items()}


def people_report(
    embeddings: np.ndarray,
    labels: np.ndarray,
    ages: np.ndarray,
    seed: int = 0,
    intervals: bool = True,
    found: tuple | None = None,
) -> dict:
    """Recognition of people of known age: {'images', 'people', 'rank1', 'rank1_probes',
    'verification', 'percentiles', 'by_gap'}, ready for JSON, of unit embeddings (N, D), labels (N,)
    and ages (N,) in years.

    Verification is over gap_pairs. No published rule binds these pairs, so each score is a
    threshold candidate, and a network whose cosines are all alike is fairly read. `found` are the
    probes and the images nearest to them, by default leave_one_out's. Training's validation
    (intervals=False: under a second for 1,000 faces) and `evaluate.py … folder` are this function.
    """
    replicates = REPLICATES * intervals
    probes, nearest = found or leave_one_out(embeddings, labels)
    pairs = gap_pairs(labels, ages, seed)
    scores = cosines(embeddings, pairs.left, pairs.right)
    report = verification(scores, *pairs[2:5], None, replicates, seed)
    counts = np.unique(labels, return_counts=True)[1]
    if not len(scores):
        report['reason'] = 'no pair of different people has the ages of a pair of one person'
        if len(counts) == 1:
            report['reason'] = 'there is one person alone'
        if counts.max() == 1:
            report['reason'] = 'every person has one image alone'
    rows: dict[str, Any] = {'images': len(labels), 'people': len(counts), 'verification': report}
    hits, who = labels[probes] == labels[nearest], labels[probes]
    rows |= {'rank1': number(hits.mean()) if len(hits) else None, 'rank1_probes': len(hits)}
    if intervals:
        limits = rates.share_interval(hits, who, seed=seed) if len(hits) else None
        rows['rank1_interval'] = limits
    rows['percentiles'] = percentiles(scores, pairs.same)
    return rows | {'by_gap': by_gap(scores, pairs, replicates, seed)}


def decision(report: dict) -> dict | None:
    """What a weights file keeps of a people_report, to decide by: {'threshold', 'accuracy',
    'genuine', 'impostor', 'far'}.

    The threshold that is best on all pairs, the accuracy that thresholds have on people they
    weren't fitted on, the percentiles of both kinds of pair, and the thresholds at a false accept
    rate, {'0.001': {'threshold', 'interval'}} for each rate that the impostor pairs support (the
    interval is None without a bootstrap). None if there are no pairs of both kinds.
    """
    kept = {key: report['verification'][key] for key in ('threshold', 'accuracy', 'far')}
    return None if kept['threshold'] is None else kept | report['percentiles']


def difference(
    first: np.ndarray,
    second: np.ndarray,
    pairs: Pairs,
    thresholds: np.ndarray | None = GRID,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> dict:
    """What the second model's scores (n,) are better by than the first's on the same pairs:
    {figure: {'difference', 'interval'}}.

    Second minus first; a paired bootstrap: every replicate draws the same people for both. A figure
    that either lacks is left out, and all are if there are fewer than ENOUGH pairs of a kind.
    """
    if _few(pairs.same):
        return {}
    point, drawn = [], []
    for scores in (first, second):
        right, _ = decide(scores, pairs.same, pairs.fold, thresholds)
        point.append(verification(scores, pairs.same, pairs.fold, thresholds=thresholds))
        facts = pairs.same, pairs.fold, right, pairs.people
        drawn.append(bootstrap(scores, *facts, replicates, seed)[0])
    found = {}
    for name in drawn[0]:
        if point[0][name] is not None and point[1][name] is not None:
            gain, limits = point[1][name] - point[0][name], drawn[1][name] - drawn[0][name]
            found[name] = {'difference': gain, 'interval': interval(limits)}
    return found


def number(value: float) -> float | None:
    """A float for JSON, None if it isn't finite."""
    return float(value) if np.isfinite(value) else None
