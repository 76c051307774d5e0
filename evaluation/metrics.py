"""What is counted: verification over folds, by age gap with matched impostors, leave-one-out; numpy on scores and embeddings alone.

A score is the cosine of two faces' embeddings, a pair is accepted where its score is above the threshold. Every dict is ready for
JSON: floats, and None where the data can't tell. Intervals are 95 % by a bootstrap over people: people are drawn with replacement,
a genuine pair counts as often as its person was drawn and an impostor pair as often as the product of its two people's.
"""
import numpy as np

from evaluation.pairs import GAP_NAMES, gap_bin, gap_pairs

GRID = 1 - np.arange(0, 4, .01) / 2  # the field's thresholds: squared distances 2 − 2·cos of 0, 0.01 … 3.99, as cosines, strictest first
FARS = {'tar@1e-1': 1e-1, 'tar@1e-2': 1e-2, 'tar@1e-3': 1e-3}
FALSE_ACCEPTS = 10  # TAR@FAR is reported from this many expected false accepts up: fewer are an anecdote
REPLICATES = 500


def check_finite(features, names=None):
    """Raises ValueError naming the first row of features (N, D) that holds a NaN or an infinity, by its index where there are no names."""
    faulty = np.flatnonzero(~np.isfinite(features).all(1))
    if len(faulty):
        first = f'image {faulty[0]} (counted from 0)' if names is None else names[faulty[0]]
        raise ValueError(f'{first}: its features are not finite (NaN or infinite), as are those of {len(faulty)} of {len(features)} images')


def cosines(embeddings, left, right):
    """Scores (n,) float64 of the pairs left[i], right[i] of unit embeddings (N, D). Raises ValueError where one isn't finite."""
    check_finite(embeddings)
    scores = np.empty(len(left))
    for start in range(0, len(left), 8192):
        part = slice(start, start + 8192)
        scores[part] = np.einsum('nd,nd->n', embeddings[left[part]].astype(np.float64), embeddings[right[part]])
    return scores


def verification(scores, same, folds, people=None, thresholds=GRID, replicates=0, seed=0):
    """Accuracy over the folds, AUC, EER and TAR@FAR of n scores (n,) with `same` (n,) bool and `folds` (n,) any tokens.

    Each fold is scored at the threshold that is best on all the others, the strictest of equals (InsightFace's verification);
    `thresholds` are the candidates, strictest first, None for every score that occurs. 'threshold' is the best on all pairs: for
    deployment, nothing here is scored with it. With `replicates`, 'intervals' holds the 95 % of each figure over `people` (n, 2)
    (over pairs where people is None; the folds' thresholds are held). Raises ValueError for scores that aren't finite.
    """
    scores, same, folds = np.asarray(scores, np.float64), np.asarray(same, bool), np.asarray(folds)
    if not np.isfinite(scores).all():
        raise ValueError(f'pair {np.flatnonzero(~np.isfinite(scores))[0]} (counted from 0): the score is not finite')
    report = {'pairs': len(scores), 'genuine': int(same.sum()), 'impostor': int((~same).sum())}
    right, best = decide(scores, same, folds, thresholds)
    by_fold = [] if right is None else [right[folds == fold].mean() for fold in np.unique(folds)]
    report |= {'accuracy': number(np.mean(by_fold)) if by_fold else None, 'accuracy_std': number(np.std(by_fold)) if by_fold else None,
               'fold_accuracy': [number(value) for value in by_fold], 'threshold': best}
    report |= {name: number(values[0]) for name, values in roc_figures(scores, same).items()}
    if replicates and len(scores):
        drawn = bootstrap(scores, same, folds, right, people, replicates, seed)
        report['intervals'] = {name: interval(values) if report[name] is not None else None for name, values in drawn.items()}
    return report


def decide(scores, same, folds, thresholds=GRID):
    """Whether each pair (n,) is decided rightly at the threshold best on all other folds, None without others; the best on all pairs.

    With the candidates taken from all scores, the strictest of equals accepts what lies at or above a score of the other folds: the
    fold's own scores, though candidates, move no decision.
    """
    if not len(scores):
        return None, None
    if thresholds is None:
        thresholds = np.append(np.unique(scores)[::-1], -2.)
    names, fold = np.unique(folds, return_inverse=True)
    correct = np.empty((len(names), len(thresholds)), np.int64)
    for k in range(len(names)):
        genuine, impostor = np.sort(scores[(fold == k) & same]), np.sort(scores[(fold == k) & ~same])
        correct[k] = len(genuine) - np.searchsorted(genuine, thresholds, 'right') + np.searchsorted(impostor, thresholds, 'right')
    total = correct.sum(0)
    chosen = thresholds[(total - correct).argmax(1)][fold]
    return ((scores > chosen) == same if len(names) > 1 else None), float(thresholds[total.argmax()])


def roc(scores, same, weights=None):
    """False and true accept rates, each (W, m + 1), from rejecting all to accepting all, at the m distinct scores.

    `weights` (W, n) counts the pairs, a row a replicate; None counts each once. Where a kind of pair is missing its rate is NaN.
    """
    order = np.argsort(-scores, kind='stable')
    steps = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    weights = np.ones((1, len(scores))) if weights is None else weights[:, order]
    rates = []
    for kind in (~same[order], same[order]):
        accepted = np.cumsum(weights * kind, axis=1)[:, steps]
        with np.errstate(invalid='ignore'):
            rates.append(np.pad(accepted / accepted[:, -1:], ((0, 0), (1, 0))))
    return rates


def roc_figures(scores, same, weights=None):
    """{'auc', 'eer', 'tar@…'}, each (W,): NaN where a kind of pair is missing or too few impostors carry the FAR.

    TAR is the largest whose FAR is no larger than asked, without interpolation; EER is where the ROC, linear between its points,
    crosses FAR = 1 − TAR.
    """
    if not (same.any() and not same.all()):
        return {name: np.full(1, np.nan) for name in ('auc', 'eer', *FARS)}
    far, tar = roc(scores, same, weights)
    row = np.arange(len(far))
    balance = far + tar - 1
    after = np.maximum((balance < 0).sum(1), 1)
    part = balance[row, after - 1] / (balance[row, after - 1] - balance[row, after])
    figures = {'auc': (np.diff(far) * (tar[:, 1:] + tar[:, :-1])).sum(1) / 2,
               'eer': far[row, after - 1] + part * (far[row, after] - far[row, after - 1])}
    for name, rate in FARS.items():
        enough = (~same).sum() * rate > FALSE_ACCEPTS - 1e-6
        figures[name] = tar[row, (far <= rate + 1e-12).sum(1) - 1] if enough else np.full(len(far), np.nan)
        figures[name][np.isnan(figures['auc'])] = np.nan
    return figures


def bootstrap(scores, same, folds, right, people=None, replicates=REPLICATES, seed=0):
    """{'accuracy', 'auc', 'eer', 'tar@…'}, each (replicates,), under the module's scheme; `right` (n,) are the folds' decisions.

    The same pairs and seed draw the same people, so the difference of two models' replicates is a paired bootstrap.
    """
    if people is None:
        people = np.repeat(np.arange(len(scores))[:, None], 2, axis=1)
    names, person = np.unique(people, return_inverse=True)
    first, second = person.reshape(-1, 2).T
    in_fold = (folds[:, None] == np.unique(folds)).astype(float)
    rng = np.random.default_rng(seed)
    parts, rows = [], max(1, 2 ** 21 // max(len(scores), 1))
    for start in range(0, replicates, rows):
        drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=min(rows, replicates - start)).astype(float)
        weights = drawn[:, first] * np.where(first == second, 1, drawn[:, second])
        accuracy = np.full(len(drawn), np.nan)
        if right is not None:
            count = weights @ in_fold
            accuracy = np.divide(weights @ (in_fold * right[:, None]), count, where=count > 0, out=np.zeros_like(count)).sum(1)
            accuracy = accuracy / (count > 0).sum(1)
        parts.append({'accuracy': accuracy, **roc_figures(scores, same, weights)})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def by_gap(scores, pairs, replicates=0, seed=0):
    """verification(), thresholds included, within each age gap that has pairs: a list of dicts with 'years' and 'mean_gap'."""
    rows, gaps = [], gap_bin(pairs.gap)
    for k in np.unique(gaps):
        here = gaps == k
        people = None if pairs.people is None else pairs.people[here]
        rows.append({'years': GAP_NAMES[k], 'mean_gap': float(pairs.gap[here].mean()),
                     **verification(scores[here], pairs.same[here], pairs.fold[here], people, None, replicates, seed)})
    return rows


def leave_one_out(embeddings, labels):
    """Each probe and the image nearest to it among all the others: two index arrays (P,).

    Probes are the images of people with at least two; all N images are the gallery, the probe's own score at −inf. Works in blocks:
    100,000 faces need no N × N matrix. Raises ValueError where an embedding isn't finite.
    """
    check_finite(embeddings)
    _, person, counts = np.unique(labels, return_inverse=True, return_counts=True)
    probes = np.flatnonzero(counts[person] > 1)
    nearest, rows = np.empty_like(probes), max(1, 2 ** 24 // max(len(embeddings), 1))
    for start in range(0, len(probes), rows):
        part = probes[start:start + rows]
        scores = embeddings[part] @ embeddings.T
        scores[np.arange(len(part)), part] = -np.inf
        nearest[start:start + rows] = scores.argmax(1)
    return probes, nearest


def leave_one_out_rank1(embeddings, labels):
    """The share of probes whose nearest other image is of the same person (leave_one_out), None without probes."""
    probes, nearest = leave_one_out(embeddings, labels)
    return number((labels[probes] == labels[nearest]).mean()) if len(probes) else None


def share_interval(hits, people, replicates=REPLICATES, seed=0):
    """95 % interval of the mean of hits (n,), bool or the difference of two, under the bootstrap over `people` (n,)."""
    names, person = np.unique(people, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=replicates)
    hit, all_ = (np.bincount(person, weight, len(names)) for weight in (hits, np.ones(len(hits))))
    return interval(drawn @ hit / (drawn @ all_))


def rank1_report(hits, people, intervals=True, seed=0):
    """{'rank1', 'rank1_probes', 'rank1_interval'} of probes' hits (P,) bool and the probes' people (P,)."""
    report = {'rank1': number(hits.mean()) if len(hits) else None, 'rank1_probes': len(hits)}
    if intervals:
        report['rank1_interval'] = share_interval(hits, people, seed=seed) if len(hits) else None
    return report


def percentiles(scores, same):
    """{'genuine', 'impostor'}: the scores (n,) of each kind as 101 percentiles, the 0th to the 100th, lowest first; none of no scores."""
    return {name: np.quantile(scores[kind], np.linspace(0, 1, 101)).tolist() if kind.any() else []
            for name, kind in (('genuine', same), ('impostor', ~same))}


def gap_report(embeddings, labels, ages, seed=0, intervals=True):
    """{'verification', 'percentiles', 'by_gap'} over gap_pairs of unit embeddings (N, D), labels (N,) and ages (N,) in years.

    No published rule binds these pairs, so each score is a threshold candidate, and a network whose cosines are all alike is fairly read.
    """
    replicates = REPLICATES * intervals
    pairs = gap_pairs(labels, ages, seed)
    scores = cosines(embeddings, pairs.left, pairs.right)
    return {'verification': verification(scores, pairs.same, pairs.fold, pairs.people, None, replicates, seed),
            'percentiles': percentiles(scores, pairs.same), 'by_gap': by_gap(scores, pairs, replicates, seed)}


def people_report(embeddings, labels, ages, seed=0, intervals=True):
    """Recognition of people of known age: {'images', 'people', 'rank1', 'rank1_probes', 'verification', 'percentiles', 'by_gap'},
    ready for JSON.

    Training's validation (intervals=False: under a second for 1,000 faces) and `evaluate.py … folder` are this function.
    """
    probes, nearest = leave_one_out(embeddings, labels)
    return {'images': len(labels), 'people': len(np.unique(labels)),
            **rank1_report(labels[probes] == labels[nearest], labels[probes], intervals, seed),
            **gap_report(embeddings, labels, ages, seed, intervals)}


def decision(report):
    """What a weights file keeps of a people_report, to decide by: {'threshold', 'accuracy', 'genuine', 'impostor'}.

    The threshold that is best on all pairs, the accuracy that thresholds have on people they weren't fitted on, the percentiles of both
    kinds of pair. None where nobody has two images.
    """
    kept = {key: report['verification'][key] for key in ('threshold', 'accuracy')}
    return None if kept['threshold'] is None else kept | report['percentiles']


def difference(first, second, pairs, thresholds=GRID, replicates=REPLICATES, seed=0):
    """What the second model's scores (n,) are better by than the first's on the same pairs: {figure: {'difference', 'interval'}}.

    Second minus first; a paired bootstrap: every replicate draws the same people for both. A figure that either lacks is left out.
    """
    point, drawn = [], []
    for scores in (first, second):
        right, _ = decide(scores, pairs.same, pairs.fold, thresholds)
        point.append(verification(scores, pairs.same, pairs.fold, thresholds=thresholds))
        drawn.append(bootstrap(scores, pairs.same, pairs.fold, right, pairs.people, replicates, seed) if len(scores) else {})
    return {name: {'difference': point[1][name] - point[0][name], 'interval': interval(drawn[1][name] - drawn[0][name])}
            for name in drawn[0] if point[0][name] is not None and point[1][name] is not None}


def interval(values):
    """The middle 95 % of replicates (R,), [low, high]; replicates that lack a kind of pair are left out; None where none is left."""
    values = values[np.isfinite(values)]
    return [float(value) for value in np.quantile(values, [.025, .975])] if len(values) else None


def number(value):
    """A float for JSON, None where it isn't finite."""
    return float(value) if np.isfinite(value) else None
