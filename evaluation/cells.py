"""The decision by ages: thresholds at false accept rates for cells of ages, and P(same).

Two babies are more alike to a network than two adults, and one person's faces less alike the more
years lie between them. So pairs are told apart by the age of the younger face and by the gap, in
cells; validation gives each cell its thresholds (evaluation/calibration.py fits them).
"""

import math
from typing import NamedTuple

import numpy as np

from evaluation.rates import FALSE_ACCEPTS

YOUNGER = (3, 7, 12, 17, 30, 50)  # age of the younger face: upper bounds in years, inclusive
GAP = (5, 10, 20, 30)  # the gap, likewise
SHAPE = len(YOUNGER) + 1, len(GAP) + 1
FARS = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
YOUNGER_KNOTS = (3, 7, 12, 17, 25, 40, 60)  # P's coefficients are linear between them
GAP_KNOTS = (5, 10, 20, 30, 50)


class Threshold(NamedTuple):
    """A threshold for a pair's ages; `caution`, a clause, is why its rate can't be promised.

    impostor, genuine  pairs of two people and of one that validation had in the pair's own cell
    """

    value: float
    impostor: int
    genuine: int
    caution: str | None


class AgeDecision:
    """What calibration.fit found, plain lists and numbers, read back and checked.

    impostor, genuine  counts of pairs, SHAPE
    thresholds         (len(FARS), *SHAPE), None (here NaN) where a cell has too few pairs
    """

    def __init__(self, stored: dict):
        """Raises KeyError, TypeError or ValueError where it isn't what calibration.fit gives."""
        self.impostor, self.genuine = (
            np.array(stored[kind], np.int64).reshape(SHAPE) for kind in ('impostor', 'genuine')
        )
        self.thresholds = np.array(stored['thresholds'], np.float64).reshape(len(FARS), *SHAPE)
        self.oldest, self.largest_gap = float(stored['oldest']), float(stored['largest_gap'])
        self.slope, self.offset = (
            np.array(stored[name], np.float64) for name in ('slope', 'offset')
        )
        known = self.thresholds[np.isfinite(self.thresholds)]
        terms = (len(YOUNGER_KNOTS) + len(GAP_KNOTS),)
        if (
            not (np.isfinite(self.slope).all() and np.isfinite(self.offset).all())
            or (self.slope.shape, self.offset.shape) != (terms, terms)
            or not np.isfinite([self.oldest, self.largest_gap]).all()
            or min(self.impostor.min(), self.genuine.min()) < 0
            or (abs(known) > 1).any()
        ):
            raise ValueError('not a calibration by ages')

    def threshold(self, younger: float, gap: float, far: float) -> Threshold | None:
        """The similarity that accepts `far` of the pairs of two people of these ages.

        None where no cell at all has a threshold. Where the pair's cell has too few pairs for
        `far`, the highest threshold of the nearest cells that have enough decides.
        """
        here = cell(younger, gap)
        counts = int(self.impostor[here]), int(self.genuine[here])
        table = self._at(far)
        if not np.isfinite(table).any():
            table = np.nanmax(self.thresholds, 0, initial=-np.inf)  # the strictest that there are
            if not np.isfinite(table).any():
                return None
            caution = f'validation had too few pairs of two people for a FAR of {far:g} at any age'
            return Threshold(float(table[np.isfinite(table)].max()), *counts, caution)
        caution = None
        if younger + gap > self.oldest or gap > self.largest_gap:
            caution = (
                f'validation had faces up to {self.oldest:g} years and gaps up to '
                f"{self.largest_gap:g}: a FAR of {far:g} can't be promised"
            )
        if np.isfinite(table[here]):
            return Threshold(float(table[here]), *counts, caution)
        rows, columns = np.indices(SHAPE)
        steps = np.maximum(abs(rows - here[0]), abs(columns - here[1])).astype(float)
        steps[~np.isfinite(table)] = np.inf
        nearest = np.where(steps == steps.min(), table, -np.inf)
        at = np.unravel_index(nearest.argmax(), SHAPE)
        # the cell's own threshold at an easier rate is a lower bound
        easier = np.array(FARS) > far
        loose = self.thresholds[(slice(None), *here)][easier]
        value = np.nanmax(np.append(loose[np.isfinite(loose)], nearest[at]))
        caution = (
            f'validation had {counts[0]} pairs of two people with {name(here)}, too few: '
            f"a FAR of {far:g} can't be promised; the most cautious neighbour decides, {name(at)}"
        )
        return Threshold(float(value), *counts, caution)

    def supported(self, far: float) -> int:
        """How many cells have a threshold of their own at `far`."""
        return int(np.isfinite(self._at(far)).sum())

    def _at(self, far):
        """Thresholds (SHAPE) at any rate: linear in log(far) between two of FARS.

        A rate above all of them takes the first, one below has NaN.
        """
        if far < FARS[-1]:
            return np.full(SHAPE, np.nan)
        place = np.interp(-math.log(far), -np.log(FARS), np.arange(len(FARS)))
        low, share = int(place), place % 1
        if share < 1e-9:
            return self.thresholds[low]
        return (1 - share) * self.thresholds[low] + share * self.thresholds[low + 1]

    def probability(self, similarity: float, younger: float, gap: float) -> float:
        """P(same | similarity, ages), where one person was as likely as two beforehand."""
        terms = smooth(np.array([younger]), np.array([gap]))[0]
        logit = float(similarity * (terms @ self.slope) + terms @ self.offset)
        return 1 / (1 + math.exp(-min(max(logit, -500), 500)))

    def even(self, younger: float, gap: float) -> float | None:
        """The similarity at which P(same) is one half; None where P doesn't rise with it."""
        terms = smooth(np.array([younger]), np.array([gap]))[0]
        slope = float(terms @ self.slope)
        return float(-(terms @ self.offset) / slope) if slope > 0 else None


def cell(younger, gap):
    """Indices of the cell, of numbers or of arrays (n,)."""
    return np.searchsorted(YOUNGER, younger), np.searchsorted(GAP, gap)


def name(index) -> str:
    """A cell in words."""
    younger, gap = (span(bounds, k) for bounds, k in zip((YOUNGER, GAP), index, strict=True))
    return f'a younger face of {younger} years and a gap of {gap}'


def span(bounds, k: int) -> str:
    """The k-th range of years between upper bounds."""
    low = 0 if k == 0 else bounds[k - 1] + 1
    return f'{low} or more' if k == len(bounds) else f'{low} to {bounds[k]}'


def supports(impostor: int, far: float) -> bool:
    """Whether so many pairs of two people carry a threshold at `far`."""
    return impostor * far > FALSE_ACCEPTS - 1e-6


def smooth(younger, gap):
    """Ages (n,), (n,) -> piecewise linear terms (n, 12), which sum to 1 for each of the two."""
    return np.concatenate(
        [
            np.stack([np.interp(values, knots, row) for row in np.eye(len(knots))], 1)
            for values, knots in ((younger, YOUNGER_KNOTS), (gap, GAP_KNOTS))
        ],
        1,
    )
