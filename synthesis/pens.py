"""Curves, colours and soft blobs that faces are drawn with."""

import functools
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike


def ramp(age: float, start: float, stop: float) -> float:
    """0 before start, 1 after stop, smooth between."""
    t = min(max((age - start) / (stop - start), 0), 1)
    return t * t * (3 - 2 * t)


def rgb(colour: Iterable[float]) -> tuple[int, ...]:
    """A colour as Pillow takes it: three whole numbers from 0 to 255."""
    return tuple(min(255, max(0, int(v))) for v in colour)


@functools.cache
def spline(k: int, n: int = 6) -> np.ndarray:
    """The matrix ((k - 1) * n + 1, k) that takes k points to a Catmull-Rom curve through them."""
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    terms = [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2]
    weights = np.hstack(terms) / 2
    padded = np.eye(k)[[0, *range(k), k - 1]]
    padded[0], padded[-1] = 2 * padded[1] - padded[2], 2 * padded[-2] - padded[-3]
    return np.vstack([weights @ padded[i : i + 4] for i in range(k - 1)] + [padded[-2]])


def points(xs: ArrayLike, ys: ArrayLike) -> np.ndarray:
    """Points (k, 2) of their coordinates."""
    return np.stack([np.asarray(xs), np.asarray(ys)], 1)


def curve(through: ArrayLike) -> np.ndarray:
    """Points (6 (k - 1) + 1, 2) of a smooth line through k points."""
    through = np.asarray(through, float)
    return spline(len(through)) @ through


def mirrored(right: ArrayLike) -> np.ndarray:
    """Points from the right side to the midline (k, 2) -> on to the left side (2k - 1, 2)."""
    right = np.asarray(right, float)
    return np.vstack([right, right[-2::-1] * (-1, 1)])


def both(x: float, *rest: float) -> list[tuple]:
    """The same on the right and on the left of the midline."""
    return [(x, *rest), (-x, *rest)]


def tone(a: float, *where: float) -> tuple:
    """A soft blob of light (a > 0) or shadow: skin turns redder as it darkens."""
    return (*where, a, 1.25 * a, 1.3 * a)
