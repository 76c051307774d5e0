"""Ages that nobody wrote down, estimated from the face."""
from typing import Protocol

from preparation.alignment import TEMPLATE


class Estimator(Protocol):
    """What estimates an age: `Offline()`, or `Dex(weights)`."""

    def estimate(self, image, points=TEMPLATE):
        """Years (float) of the face with these five points (5, 2) in an RGB image; by default of an aligned face, 96 × 112."""
