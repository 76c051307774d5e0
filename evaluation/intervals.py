"""95 % intervals by a bootstrap over people.

People are drawn with replacement; a genuine pair counts as often as its person was drawn, an
impostor pair as often as the product of its two people's.
"""

import numpy as np

from evaluation.rates import far_thresholds, roc_figures

REPLICATES = 500


def bootstrap(
    scores: np.ndarray,
    same: np.ndarray,
    folds: np.ndarray,
    right: np.ndarray | None,
    people: np.ndarray | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> tuple[dict, dict]:
    """{'accuracy', 'auc', 'eer', 'tar@…'} and far_thresholds, each (replicates,), of n pairs;
    `right` (n,) are the folds' decisions, `people` (n, 2) the two of each pair (None: pairs are
    drawn instead).

    The same pairs and seed draw the same people, so the difference of two models' replicates is a
    paired bootstrap.
    """
    if people is None:
        people = np.repeat(np.arange(len(scores))[:, None], 2, axis=1)
    names, person = np.unique(people, return_inverse=True)
    first, second = person.reshape(-1, 2).T
    in_fold = (folds[:, None] == np.unique(folds)).astype(float)
    rng = np.random.default_rng(seed)
    figures, thresholds, rows = [], [], max(1, 2**21 // max(len(scores), 1))
    for start in range(0, replicates, rows):
        drawn = rng.multinomial(
            len(names), np.full(len(names), 1 / len(names)), size=min(rows, replicates - start)
        ).astype(float)
        weights = drawn[:, first] * np.where(first == second, 1, drawn[:, second])
        accuracy = np.full(len(drawn), np.nan)
        if right is not None:
            count = weights @ in_fold
            accuracy = np.divide(
                weights @ (in_fold * right[:, None]),
                count,
                where=count > 0,
                out=np.zeros_like(count),
            ).sum(1)
            with np.errstate(invalid='ignore'):  # NaN where no pair was drawn
                accuracy = accuracy / (count > 0).sum(1)
        figures.append({'accuracy': accuracy, **roc_figures(scores, same, weights)})
        thresholds.append(far_thresholds(scores, same, weights))
    return tuple(
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in (figures, thresholds)
    )


def share_interval(
    hits: np.ndarray, people: np.ndarray, replicates: int = REPLICATES, seed: int = 0
) -> list | None:
    """95 % interval of the mean of hits (n,), bool or the difference of two, over `people` (n,)."""
    names, person = np.unique(people, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=replicates
    )
    hit, all_ = (np.bincount(person, weight, len(names)) for weight in (hits, np.ones(len(hits))))
    return interval(drawn @ hit / (drawn @ all_))


def interval(values: np.ndarray) -> list | None:
    """The middle 95 % of replicates (R,), [low, high]; those that lack a kind of pair are left
    out; None where none is left."""
    values = values[np.isfinite(values)]
    return [float(value) for value in np.quantile(values, [0.025, 0.975])] if len(values) else None
