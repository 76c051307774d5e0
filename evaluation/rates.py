"""From the scores of pairs to rates (ROC, EER, TAR at a FAR) and their 95 % intervals.

A score is the cosine of two faces' embeddings; a pair is accepted if its score is above the
threshold. Intervals are a bootstrap over people, drawn with replacement: a genuine pair counts as
often as its person was drawn, an impostor pair as often as the product of its two people's.
"""

from collections.abc import Iterator

import numpy as np

from evaluation.pairs import Pairs
from recognition.embedding import check_finite

# the field's thresholds: squared distances 2 − 2·cos of 0, 0.01 … 3.99, as cosines, strictest first
GRID = 1 - np.arange(0, 4, 0.01) / 2
FARS = {'tar@1e-1': 1e-1, 'tar@1e-2': 1e-2, 'tar@1e-3': 1e-3}
THRESHOLD_FARS = (1e-1, 1e-2, 1e-3, 1e-4)
FALSE_ACCEPTS = 10  # that a FAR must lead one to expect to be reported: fewer are an anecdote
REPLICATES = 500


def cosines(embeddings: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Scores (n,) float64 of the pairs left[i], right[i] of unit embeddings (N, D). Raises
    ValueError if an embedding isn't finite."""
    check_finite(embeddings)
    scores = np.empty(len(left))
    for start in range(0, len(left), 8192):
        block = slice(start, start + 8192)
        a, b = embeddings[left[block]].astype(np.float64), embeddings[right[block]]
        scores[block] = np.einsum('nd,nd->n', a, b)
    return scores


def decide(
    scores: np.ndarray, pairs: Pairs, thresholds: np.ndarray | None = GRID
) -> tuple[np.ndarray | None, float | None]:
    """Whether each pair (n,) is decided rightly at the threshold that is best on all other folds,
    None if there are no others; and the threshold that is best on all pairs. Without `thresholds`
    every score is a candidate. The strictest of equals is taken: it lies at a score of the other
    folds, so the fold's scores change no decision."""
    if not len(scores):
        return None, None
    if thresholds is None:
        thresholds = np.append(np.unique(scores)[::-1], -2.0)
    names, fold = np.unique(pairs.fold, return_inverse=True)
    correct = np.empty((len(names), len(thresholds)), np.int64)
    for k in range(len(names)):
        kinds = [(fold == k) & kind for kind in (pairs.same, ~pairs.same)]
        rejected = [np.searchsorted(np.sort(scores[kind]), thresholds, 'right') for kind in kinds]
        correct[k] = kinds[0].sum() - rejected[0] + rejected[1]
    total = correct.sum(0)
    chosen = thresholds[(total - correct).argmax(1)][fold]
    right = (scores > chosen) == pairs.same if len(names) > 1 else None
    return right, float(thresholds[total.argmax()])


def roc(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> list:
    """False and true accept rates, each (W, m + 1), from rejecting all to accepting all, at the m
    distinct scores; NaN if the kind of pair is missing. `weights` (W, n) counts the pairs, a row
    for each replicate; None counts each once."""
    order = np.argsort(-scores, kind='stable')
    steps = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    weights = np.ones((1, len(scores))) if weights is None else weights[:, order]
    rates = []
    for kind in (~same[order], same[order]):
        accepted = np.cumsum(weights * kind, axis=1)[:, steps]
        with np.errstate(invalid='ignore'):
            rates.append(np.pad(accepted / accepted[:, -1:], ((0, 0), (1, 0))))
    return rates


def roc_figures(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> dict:
    """{'auc', 'eer', 'tar@…'}, each (W,) with `weights` as in `roc`: NaN if a kind of pair is
    missing, or if too few impostors carry the FAR. TAR is the largest whose FAR is no larger than
    asked, without interpolation; EER is the FAR at which the ROC, linear between its points,
    crosses FAR = 1 − TAR."""
    if same.all() or not same.any():
        return {name: np.full(1, np.nan) for name in ('auc', 'eer', *FARS)}
    far, tar = roc(scores, same, weights)
    row = np.arange(len(far))
    balance = far + tar - 1
    after = np.maximum((balance < 0).sum(1), 1)
    with np.errstate(invalid='ignore'):  # NaN if a replicate lacks a kind of pair
        share = balance[row, after - 1] / (balance[row, after - 1] - balance[row, after])
    auc = (np.diff(far) * (tar[:, 1:] + tar[:, :-1])).sum(1) / 2
    eer = far[row, after - 1] + share * (far[row, after] - far[row, after - 1])
    figures = {'auc': auc, 'eer': eer}
    for name, rate in FARS.items():
        known = supports((~same).sum(), rate) & ~np.isnan(auc)
        figures[name] = np.where(known, tar[row, (far <= rate + 1e-12).sum(1) - 1], np.nan)
    return figures


def far_thresholds(
    scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """{'0.1': thresholds (W,), …}, with `weights` as in `roc`: the lowest threshold whose false
    accept rate is no larger, an impostor's score, for each of THRESHOLD_FARS that the impostor
    pairs support; NaN in a replicate without impostors."""
    order = np.flatnonzero(~same)[np.argsort(-scores[~same], kind='stable')]
    counts = np.ones((1, len(order))) if weights is None else weights[:, order]
    accepted = np.cumsum(counts, axis=1)
    found = {}
    for rate in THRESHOLD_FARS:
        if supports(len(order), rate):
            allowed = rate * accepted[:, -1:]
            first = (accepted > allowed + 1e-9).argmax(1)
            found[str(rate)] = np.where(allowed[:, 0] > 0, scores[order[first]], np.nan)
    return found


def supports(impostors: int, far: float) -> bool:
    """Whether so many impostor pairs are enough to report this false accept rate."""
    return impostors * far > FALSE_ACCEPTS - 1e-6


def draws(people: np.ndarray | None, n: int, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """Weights (W, n) of n pairs of `people` (n, 2), in blocks of W replicates; None draws pairs.
    The same people and seed draw the same, so the difference of two models is a paired
    bootstrap."""
    people = np.repeat(np.arange(n)[:, None], 2, axis=1) if people is None else people
    names, person = np.unique(people, return_inverse=True)
    first, second = person.reshape(-1, 2).T
    even, rng = np.full(len(names), 1 / len(names)), np.random.default_rng(seed)
    rows = max(1, 2**21 // max(n, 1))
    for start in range(0, replicates, rows):
        drawn = rng.multinomial(len(names), even, size=min(rows, replicates - start)).astype(float)
        yield drawn[:, first] * np.where(first == second, 1, drawn[:, second])


def bootstrap(
    scores: np.ndarray,
    pairs: Pairs,
    right: np.ndarray | None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[dict, dict]:
    """{'accuracy', 'auc', 'eer', 'tar@…'} and far_thresholds, each (replicates,), of n pairs, drawn
    over their people; `right` (n,) are the folds' decisions, None for no accuracy."""
    in_fold = (pairs.fold[:, None] == np.unique(pairs.fold)).astype(float)
    found: list[tuple[dict, dict]] = []
    for weights in draws(pairs.people, len(scores), replicates, seed):
        accuracy = np.full(len(weights), np.nan)
        if right is not None:
            count = weights @ in_fold
            share = weights @ (in_fold * right[:, None]) / np.where(count > 0, count, 1)
            with np.errstate(invalid='ignore'):  # NaN if no pair was drawn
                accuracy = share.sum(1) / (count > 0).sum(1)
        figures = {'accuracy': accuracy, **roc_figures(scores, pairs.same, weights)}
        found.append((figures, far_thresholds(scores, pairs.same, weights)))
    figures, at_far = (
        {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        for blocks in zip(*found, strict=True)
    )
    return figures, at_far


def share_interval(
    hits: np.ndarray, people: np.ndarray, seed: int = 0, of: np.ndarray | float = 1.0
) -> list | None:
    """95 % interval of the mean of hits (n,), bool or the difference of two, over `people` (n,); or
    of the sum of `hits` over the sum of `of` (n,)."""
    names, person = np.unique(people, return_inverse=True)
    even = np.full(len(names), 1 / len(names))
    drawn = np.random.default_rng(seed).multinomial(len(names), even, size=REPLICATES)
    parts = hits, np.broadcast_to(of, len(hits))
    above, below = (drawn @ np.bincount(person, part, len(names)) for part in parts)
    with np.errstate(invalid='ignore'):  # NaN if all that was drawn has none
        return interval(above / below)


def interval(values: np.ndarray) -> list | None:
    """The middle 95 % of replicates (R,), [low, high], of the finite ones; None if none is."""
    values = values[np.isfinite(values)]
    return np.quantile(values, [0.025, 0.975]).tolist() if len(values) else None
