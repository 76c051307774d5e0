"""From the scores of pairs to rates: which pairs a threshold accepts, ROC, EER, TAR at a FAR.

A score is the cosine of two faces' embeddings; a pair is accepted where its score is above the
threshold.
"""

import numpy as np

from recognition.embedding import check_finite

# the field's thresholds: squared distances 2 − 2·cos of 0, 0.01 … 3.99, as cosines, strictest first
GRID = 1 - np.arange(0, 4, 0.01) / 2
FARS = {'tar@1e-1': 1e-1, 'tar@1e-2': 1e-2, 'tar@1e-3': 1e-3}
THRESHOLD_FARS = (1e-1, 1e-2, 1e-3, 1e-4)
# a FAR is spoken of from this many expected false accepts up: fewer are an anecdote
FALSE_ACCEPTS = 10


def cosines(embeddings: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Scores (n,) float64 of the pairs left[i], right[i] of unit embeddings (N, D).

    Raises ValueError where an embedding isn't finite.
    """
    check_finite(embeddings)
    scores = np.empty(len(left))
    for start in range(0, len(left), 8192):
        part = slice(start, start + 8192)
        scores[part] = np.einsum(
            'nd,nd->n', embeddings[left[part]].astype(np.float64), embeddings[right[part]]
        )
    return scores


def decide(
    scores: np.ndarray, same: np.ndarray, folds: np.ndarray, thresholds: np.ndarray | None = GRID
) -> tuple[np.ndarray | None, float | None]:
    """Whether each pair (n,) is decided rightly at the threshold that is best on all other folds,
    None where there are no others; and the threshold that is best on all pairs.

    With the candidates taken from all scores, the strictest of equals accepts what lies at or above
    a score of the other folds: the fold's own scores, though candidates, move no decision.
    """
    if not len(scores):
        return None, None
    if thresholds is None:
        thresholds = np.append(np.unique(scores)[::-1], -2.0)
    names, fold = np.unique(folds, return_inverse=True)
    correct = np.empty((len(names), len(thresholds)), np.int64)
    for k in range(len(names)):
        genuine = np.sort(scores[(fold == k) & same])
        impostor = np.sort(scores[(fold == k) & ~same])
        correct[k] = (
            len(genuine)
            - np.searchsorted(genuine, thresholds, 'right')
            + np.searchsorted(impostor, thresholds, 'right')
        )
    total = correct.sum(0)
    chosen = thresholds[(total - correct).argmax(1)][fold]
    right = (scores > chosen) == same if len(names) > 1 else None
    return right, float(thresholds[total.argmax()])


def roc(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> list:
    """False and true accept rates, each (W, m + 1), from rejecting all to accepting all, at the m
    distinct scores.

    `weights` (W, n) counts the pairs, a row a replicate; None counts each once. Where a kind of
    pair is missing, its rate is NaN.
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


def roc_figures(scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> dict:
    """{'auc', 'eer', 'tar@…'}, each (W,): NaN where a kind of pair is missing or too few impostors
    carry the FAR.

    TAR is the largest whose FAR is no larger than asked, without interpolation; EER is where the
    ROC, linear between its points, crosses FAR = 1 − TAR.
    """
    if not (same.any() and not same.all()):
        return {name: np.full(1, np.nan) for name in ('auc', 'eer', *FARS)}
    far, tar = roc(scores, same, weights)
    row = np.arange(len(far))
    balance = far + tar - 1
    after = np.maximum((balance < 0).sum(1), 1)
    with np.errstate(invalid='ignore'):  # NaN where a replicate lacks a kind of pair
        part = balance[row, after - 1] / (balance[row, after - 1] - balance[row, after])
    figures = {
        'auc': (np.diff(far) * (tar[:, 1:] + tar[:, :-1])).sum(1) / 2,
        'eer': far[row, after - 1] + part * (far[row, after] - far[row, after - 1]),
    }
    for name, rate in FARS.items():
        figures[name] = np.full(len(far), np.nan)
        if _supported(same, rate):
            figures[name] = tar[row, (far <= rate + 1e-12).sum(1) - 1]
        figures[name][np.isnan(figures['auc'])] = np.nan
    return figures


def far_thresholds(
    scores: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """{'0.1': thresholds (W,), …}: the lowest threshold whose false accept rate is no larger, for
    each of THRESHOLD_FARS that the impostor pairs support.

    `weights` (W, n) as in `roc`. A threshold is an impostor's score, which it does not accept; NaN
    in a replicate without impostors.
    """
    order = np.flatnonzero(~same)[np.argsort(-scores[~same], kind='stable')]
    counts = np.ones((1, len(order))) if weights is None else weights[:, order]
    accepted = np.cumsum(counts, axis=1)
    found = {}
    for rate in THRESHOLD_FARS:
        if _supported(same, rate):
            allowed = rate * accepted[:, -1:]
            first = (accepted > allowed + 1e-9).argmax(1)
            found[str(rate)] = np.where(allowed[:, 0] > 0, scores[order[first]], np.nan)
    return found


def _supported(same, rate):
    """Whether the impostor pairs are enough to speak of this false accept rate."""
    return (~same).sum() * rate > FALSE_ACCEPTS - 1e-6
