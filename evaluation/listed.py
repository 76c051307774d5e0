"""What every benchmark is read into: its images, and its pairs or its people and ages."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from evaluation.listfile import locate, root_of
from evaluation.pairs import Pairs
from evaluation.rates import GRID


class Listed(NamedTuple):
    """N images, `sources` (paths or encoded bytes) and their `names`; and of a benchmark what its
    list tells.

    `pairs` is a verification list. Without one, `labels` (N,) int and `ages` (N,) years are needed:
    pairs are drawn by age gap, each image is looked for among all others, and the age in the
    features is measured. With `probes`, indices of images, these alone are looked for, among those
    that are no probes. `digest` is the sha256 of the list file, None where the file names are the
    list. `every_score`: thresholds are chosen among all scores, not from the field's grid.
    `notices` are lines for the user: what was left out, what looks wrong.
    """

    sources: list
    names: list
    pairs: Pairs | None = None
    labels: np.ndarray | None = None
    ages: np.ndarray | None = None
    digest: str | None = None
    probes: np.ndarray | None = None
    every_score: bool = False
    notices: tuple = ()

    @property
    def thresholds(self) -> np.ndarray | None:
        """The candidates, as rates.decide takes them: published lists are scored on the grid, pairs
        that are drawn here at every score."""
        return GRID if self.pairs and not self.every_score else None


def listed_pairs(
    rows: list, path: Path, below: tuple, digest: str | None, people: list | None = None
) -> Listed:
    """Rows (image, image, same, fold) as Listed, each image once; they lie below the first of the
    folders path/<below> that holds any. `people` are the two names of each row."""
    names = list(dict.fromkeys(name for row in rows for name in row[:2]))
    root = root_of(path, names, *below)
    paths = [locate(root, name) for name in names]
    unique = {source: index for index, source in enumerate(dict.fromkeys(paths))}
    index = {name: unique[source] for name, source in zip(names, paths, strict=True)}
    left, right = np.array([[index[name] for name in row[:2]] for row in rows]).T
    if people is not None:
        people = np.unique(np.array(people), return_inverse=True)[1].reshape(-1, 2)
    same, fold = np.array([row[2] for row in rows]), np.array([row[3] for row in rows])
    return Listed(list(unique), list(unique), Pairs(left, right, same, fold, people), digest=digest)
