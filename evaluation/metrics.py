"""What is counted: verification over folds, leave-one-out. Every dict is ready for JSON: floats,
and None if the data can't say."""

from typing import Any

import numpy as np

from evaluation import rates
from evaluation.pairs import Pairs
from evaluation.rates import FARS, GRID, bootstrap, decide, interval
from recognition.embedding import check_finite

ENOUGH = 10  # pairs of either kind: below, one more or less moves every figure by points
FEW_ERRORS = 30  # with fewer beneath it, a rate's true value may be further than 30 % away


def verification(
    scores: np.ndarray,
    pairs: Pairs,
    thresholds: np.ndarray | None = GRID,
    intervals: bool = False,
    seed: int = 0,
) -> dict:
    """Accuracy over the folds, AUC, EER and TAR@FAR of the scores (n,) of n pairs. Each fold is
    scored at the threshold that is best on all the others (InsightFace's verification), of the
    candidates `thresholds`, strictest first, None for every score that occurs. 'threshold' is the
    best on all pairs, for deployment; 'far' holds far_thresholds, {'0.001': {'threshold',
    'interval'}}; 'intervals', if asked for, the 95 % of each figure over people, else over pairs,
    with the folds' thresholds held; 'few_errors' names the figures with fewer than FEW_ERRORS
    errors beneath; 'reason' says why figures are None: pairs of a kind are missing or too few, or
    the folds can't be folds. Raises ValueError for scores not finite."""
    scores, same = np.asarray(scores, np.float64), pairs.same
    if not np.isfinite(scores).all():
        first = np.flatnonzero(~np.isfinite(scores))[0]
        raise ValueError(f'pair {first} (counted from 0): the score is not finite')
    reason = _missing(same, pairs.fold)
    right, best = decide(scores, pairs, thresholds)
    right = None if reason else right
    by_fold, folds = [], np.unique(pairs.fold)
    if right is not None:
        by_fold = [float(right[pairs.fold == fold].mean()) for fold in folds]
    figures = {name: number(values[0]) for name, values in rates.roc_figures(scores, same).items()}
    report: dict[str, Any] = {'pairs': len(scores), 'genuine': int(same.sum())}
    report['impostor'] = len(scores) - report['genuine']
    mean, std = (float(f(by_fold)) if by_fold else None for f in (np.mean, np.std))
    report |= {'accuracy': mean, 'accuracy_std': std, 'fold_accuracy': by_fold}
    # with one kind alone, accepting all, or nothing, would be right
    report |= {'threshold': None if figures['auc'] is None else best, **figures}
    at_far = rates.far_thresholds(scores, same).items()
    report['far'] = {k: {'threshold': float(v[0]), 'interval': None} for k, v in at_far}
    report['few_errors'] = _few_errors(report)
    if reason:
        report['reason'] = reason
    if intervals:
        report['intervals'] = dict.fromkeys(('accuracy', *figures))
    if intervals and not _few(same):
        drawn, drawn_at = bootstrap(scores, pairs, right, seed=seed)
        for name, values in drawn.items():
            if report[name] is not None:
                report['intervals'][name] = interval(values)
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
    names, fold = np.unique(folds, return_inverse=True)
    if len(names) < 2:
        return 'all pairs are in one fold: accuracy needs two, a threshold is fitted on the others'
    counts = np.stack([np.bincount(fold[kind], minlength=len(names)) for kind in (same, ~same)])
    sizes, lack = counts.sum(0), names[~counts.all(0)]
    wrong = None
    if len(lack):
        wrong = f'{len(lack)} of {len(names)} folds, {lack[0]} first, have pairs of one kind alone'
    elif len(names) > 10 and sizes.max() > 2 * sizes.min():
        wrong = f'{len(names)} folds of {sizes.min()} to {sizes.max()} pairs'
    ask = 'no accuracy: is the column of folds something else? Without it, ten folds are cut'
    return wrong and f'{wrong}: {ask}'


def _few(same):
    """Whether either kind of pair is too rare for accuracy and intervals."""
    return min(same.sum(), (~same).sum()) < ENOUGH


def leave_one_out(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each probe and the image nearest to it among all the others: two index arrays (P,). Probes
    are the images of people with at least two. Works in blocks: 100,000 faces need no N × N matrix.
    Raises ValueError if an embedding isn't finite."""
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
    return float((labels[probes] == labels[nearest]).mean()) if len(probes) else None


def percentiles(scores: np.ndarray, same: np.ndarray) -> dict:
    """{'genuine', 'impostor'}: the scores (n,) of each kind as 101 percentiles, the 0th to the
    100th, lowest first; an empty list if there are none."""
    kinds = {'genuine': scores[same], 'impostor': scores[~same]}
    at = np.linspace(0, 1, 101)
    return {k: np.quantile(v, at).tolist() if len(v) else [] for k, v in kinds.items()}


def decision(report: dict) -> dict | None:
    """What a weights file keeps of an evidence.people_report, to decide by: the 'threshold',
    'accuracy' and 'far' of its verification, and its percentiles, 'genuine' and 'impostor'. None if
    there are no pairs of both kinds."""
    kept = {key: report['verification'][key] for key in ('threshold', 'accuracy', 'far')}
    return None if kept['threshold'] is None else kept | report['percentiles']


def difference(
    first: np.ndarray,
    second: np.ndarray,
    pairs: Pairs,
    thresholds: np.ndarray | None,
    seed: int = 0,
) -> dict:
    """What the second model's scores (n,) are better by than the first's on the same pairs, by a
    paired bootstrap: {figure: {'difference', 'interval'}}. A figure that either lacks is left out,
    and all are if there are fewer than ENOUGH pairs of a kind."""
    if _few(pairs.same):
        return {}
    point, drawn = [], []
    for scores in (first, second):
        right, _ = decide(scores, pairs, thresholds)
        point.append(verification(scores, pairs, thresholds))
        drawn.append(bootstrap(scores, pairs, right, seed=seed)[0])
    found = {}
    for name in drawn[0]:
        if point[0][name] is not None and point[1][name] is not None:
            gain, limits = point[1][name] - point[0][name], drawn[1][name] - drawn[0][name]
            found[name] = {'difference': gain, 'interval': interval(limits)}
    return found


def number(value: float) -> float | None:
    """A float for JSON, None if it isn't finite."""
    return float(value) if np.isfinite(value) else None
