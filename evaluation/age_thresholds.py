"""Thresholds by age: a similarity for each false accept rate and cell of ages, and P(same).

Two babies are more alike to a network than two adults, and one person's faces less alike the more
years lie between them. So pairs are sorted by the age of the younger face and by the gap, into
cells, whose thresholds age_calibration.py fits.
"""

import math
from typing import Any, NamedTuple

import numpy as np

YOUNGER = (3, 7, 12, 17, 30, 50)  # age of the younger face: upper bounds in years, inclusive
GAP = (5, 10, 20, 30)  # the gap, likewise
SHAPE = len(YOUNGER) + 1, len(GAP) + 1
FARS = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
YOUNGER_KNOTS = (3, 7, 12, 17, 25, 40, 60)  # P's coefficients are linear between them
GAP_KNOTS = (5, 10, 20, 30, 50)
TERMS = len(YOUNGER_KNOTS) + len(GAP_KNOTS)


class Threshold(NamedTuple):
    """A threshold for a pair's ages; how many pairs of different people and of one person are in
    their cell; `caution`, a clause, is why its rate can't be promised."""

    value: float
    impostor: int
    genuine: int
    caution: str | None


class AgeDecision:
    """What fit_by_age found, plain lists and numbers, read back and checked: counts of
    pairs `impostor` and `genuine`, SHAPE, and `thresholds` (len(FARS), *SHAPE), None (here NaN) if
    a cell has too few pairs."""

    def __init__(self, stored: dict):
        """Raises KeyError, TypeError or ValueError if it isn't what fit_by_age gives."""
        counts = (np.array(stored[kind], np.int64) for kind in ('impostor', 'genuine'))
        self.impostor, self.genuine = (count.reshape(SHAPE) for count in counts)
        self.thresholds = np.array(stored['thresholds'], np.float64).reshape(len(FARS), *SHAPE)
        self.oldest, self.largest_gap = float(stored['oldest']), float(stored['largest_gap'])
        self.line = np.array([stored['slope'], stored['offset']], np.float64)  # (2, terms)
        known = np.isfinite([self.oldest, self.largest_gap, *self.line.flat]).all()
        counted = min(self.impostor.min(), self.genuine.min()) >= 0
        cosines = not (abs(self.thresholds) > 1).any()
        if not (known and counted and cosines and self.line.shape == (2, TERMS)):
            raise ValueError('not a calibration by ages')

    def threshold(self, younger: float, gap: float, far: float) -> Threshold | None:
        """The similarity that accepts `far` of the pairs of different people of these ages. If
        their cell has too few pairs for `far`, the highest threshold of the nearest cells that have
        enough decides. None if no cell at all has a threshold."""
        here, table = cell(younger, gap), self._at(far)
        counts, known = (int(self.impostor[here]), int(self.genuine[here])), np.isfinite(table)
        value, caution = table[here], None
        if not known.any():
            if np.isnan(self.thresholds).all():
                return None
            value = np.nanmax(self.thresholds)
            few = 'validation had too few pairs of different people for a FAR of'
            caution = f"{few} {far:g} at any age: it can't be promised"
        elif not known[here]:
            steps = abs(np.indices(SHAPE) - np.reshape(here, (2, 1, 1))).max(0)
            nearest = np.where(known & (steps == steps[known].min()), table, -np.inf)
            at = np.unravel_index(nearest.argmax(), SHAPE)
            easier = self.thresholds[np.array(FARS) > far][:, here[0], here[1]]
            value = np.nanmax(np.append(easier, nearest[at]))  # an easier rate's is a lower bound
            few = f'validation had {counts[0]} pairs of different people with {name(here)}, too few'
            decides = f'the most cautious neighbour decides, {name(at)}'
            caution = f"{few}: a FAR of {far:g} can't be promised; {decides}"
        elif younger + gap > self.oldest or gap > self.largest_gap:
            seen = f'faces up to {self.oldest:g} years and gaps up to {self.largest_gap:g}'
            caution = f"validation had {seen}: a FAR of {far:g} can't be promised"
        return Threshold(float(value), *counts, caution)

    def supported(self, far: float) -> int:
        """How many cells have a threshold of their own at `far`."""
        return int(np.isfinite(self._at(far)).sum())

    def _at(self, far):
        """Thresholds (SHAPE) at any rate: linear in log(far) between two of FARS, the first above
        all of them, NaN below."""
        if far < FARS[-1]:
            return np.full(SHAPE, np.nan)
        place = np.interp(-math.log(far), -np.log(FARS), np.arange(len(FARS)))
        low, share = int(place), place % 1
        if share < 1e-9:
            return self.thresholds[low]
        return (1 - share) * self.thresholds[low] + share * self.thresholds[low + 1]

    def probabilities(self, similarity: Any, younger: Any, gap: Any) -> np.ndarray:
        """P(same | similarity, ages) of pairs (n,), if both kinds were as likely beforehand."""
        slope, offset = self.line @ smooth(younger, gap).T
        return 1 / (1 + np.exp(-np.clip(similarity * slope + offset, -500, 500)))

    def probability(self, similarity: float, younger: float, gap: float) -> float | None:
        """`probabilities` of one pair; None if no pairs of one person were known."""
        if not self.line.any():
            return None
        return float(self.probabilities(similarity, [younger], [gap])[0])

    def even(self, younger: float, gap: float) -> float | None:
        """The similarity at which P(same) is one half; None if P doesn't rise with it."""
        slope, offset = self.line @ smooth([younger], [gap])[0]
        return float(-offset / slope) if slope > 0 else None


def cell(younger: Any, gap: Any) -> tuple:
    """Indices of the cell, of numbers or of arrays (n,)."""
    return np.searchsorted(YOUNGER, younger), np.searchsorted(GAP, gap)


def name(index: Any) -> str:
    """A cell in words."""
    younger, gap = (span(bounds, k) for bounds, k in zip((YOUNGER, GAP), index, strict=True))
    return f'a younger face of {younger} years and a gap of {gap}'


def span(bounds: tuple, k: int) -> str:
    """The k-th range of years between upper bounds."""
    low = 0 if k == 0 else bounds[k - 1] + 1
    return f'{low} or more' if k == len(bounds) else f'{low} to {bounds[k]}'


def smooth(younger: Any, gap: Any) -> np.ndarray:
    """Ages (n,), (n,) -> piecewise linear terms (n, 12), which sum to 1 for each of the two."""
    axes = (younger, YOUNGER_KNOTS), (gap, GAP_KNOTS)
    terms = [np.interp(x, knots, row) for x, knots in axes for row in np.eye(len(knots))]
    return np.stack(terms, 1)
