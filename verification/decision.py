"""What a similarity means: the threshold and the scores of validation, from the weights file."""

import math
from typing import NamedTuple

import numpy as np

from utils import UserError


class Decision(NamedTuple):
    """The threshold, and percentiles (101,) of the similarities that pairs had in validation:
    `genuine` those of one person, `impostor` those of two.

    Each is None where it isn't known, and so is the accuracy of thresholds on people that they
    weren't fitted on.
    """

    threshold: float | None = None
    accuracy: float | None = None
    genuine: np.ndarray | None = None
    impostor: np.ndarray | None = None

    @classmethod
    def of(cls, stored, path, threshold=None):
        """That of the `decision` in a weights file, with another `threshold` if one is given.

        Raises UserError where it isn't what training writes.

        Weights trained without a val_root have none, nor have those of before it was kept.
        """
        if stored is None:
            return cls(threshold)
        try:
            percentiles = [np.array(stored[kind], np.float64) for kind in ('genuine', 'impostor')]
            numbers = [
                float(stored['threshold']),
                math.nan if stored['accuracy'] is None else float(stored['accuracy']),
            ]
            if any(
                row.shape != (101,) or not (np.diff(row) >= 0).all() for row in percentiles
            ) or not math.isfinite(numbers[0]):
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UserError(
                f'{path}: what it says of its threshold is damaged: validate again, or train on'
            ) from None
        return cls(
            numbers[0] if threshold is None else threshold,
            None if math.isnan(numbers[1]) else numbers[1],
            *percentiles,
        )

    def same(self, similarity):
        """Whether it is the same person, None without a threshold."""
        return None if self.threshold is None else bool(similarity > self.threshold)

    def verdict(self, similarity):
        """The decision in a few words."""
        if self.threshold is None:
            return 'no decision: these weights hold no threshold, --threshold gives one'
        verdict = 'the same person' if self.same(similarity) else 'two people'
        return f'{verdict} (the threshold is {self.threshold:.3f})'

    def meaning(self, similarity):
        """How usual such a similarity is, a clause; '' where validation left no scores."""
        if self.genuine is None:
            return ''
        lower, higher = (
            float(np.interp(similarity, row, np.linspace(0, 1, 101)))
            for row in (self.genuine, self.impostor)
        )
        return (
            f'in validation {_share(lower)} of the pairs of one person were less similar than '
            f'this, and {_share(1 - higher)} of the pairs of two people more.'
        )


def _share(part):
    return 'under 1 %' if part < 0.01 else 'over 99 %' if part > 0.99 else f'{100 * part:.0f} %'
