"""The five points, if the user has them: .pts files as FG-NET's and 300-W's, or a table."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from preparation.tables import composed, matching, read_table, refuse_ambiguous
from storage.images import some
from utils import DataError


def five_points(marks: np.ndarray) -> np.ndarray:
    """The template's five points (5, 2) of five marks, or of 68 in FG-NET's or 300-W's order."""
    if len(marks) == 68:
        # FG-NET's 31 is the pupil among the eye's 27 to 30; 300-W has the bridge of the nose there
        eyes = np.hypot(*(marks[36] - marks[31]))
        if np.hypot(*(marks[27:31].mean(0) - marks[31])) < 0.25 * eyes:
            marks = marks[[31, 36, 67, 48, 54]]
        else:
            marks = np.array([marks[36:42].mean(0), marks[42:48].mean(0), *marks[[30, 48, 54]]])
    if len(marks) != 5:
        raise ValueError(f'{len(marks)} points; expected 5, or 68 as FG-NET or 300-W have them')
    for left, right in ((0, 1), (3, 4)):
        if marks[left, 0] > marks[right, 0]:  # named from the person's side
            marks[[left, right]] = marks[[right, left]]
    return marks


class Landmarks:
    """The points of each photograph, from a folder of <name>.pts, or a CSV of path, x1, y1, … y5.

    These are eyes, nose, corners of the mouth, in pixels of the upright photograph. A path is one
    below the source, or a file's name alone, in any case. Raises DataError if there are none.
    """

    def __init__(self, where: str | os.PathLike):
        self.where = os.fspath(where)
        self.found = _pts_files(where) if os.path.isdir(where) else _table(where)

    def _key(self, relative):
        path = _plain(relative)
        return matching(self.found, (path, os.path.splitext(path)[0]))

    def check(self, photographs: Iterable[str]) -> None:
        """Refuses points under a bare name that fits photographs in several folders: DataError."""
        fits = defaultdict(list)
        for relative in photographs:
            if (key := self._key(relative)) is not None:
                fits[key].append(relative)
        refuse_ambiguous(self.where, fits)

    def of(self, relative: str) -> np.ndarray:
        """Five points (5, 2) of the photograph; ValueError says why there are none."""
        key = self._key(relative)
        if key is None:
            raise ValueError(f'no points for it in {self.where}')
        marks = self.found[key]
        if not isinstance(marks, str):
            return five_points(marks)
        body = re.search(r'\{(.*)\}', Path(marks).read_text(errors='replace'), re.DOTALL)
        if not body:
            raise ValueError(f'{marks}: not a .pts file: no points in braces')
        try:
            return five_points(np.array(body[1].split(), float).reshape(-1, 2))
        except ValueError as error:
            raise ValueError(f'{marks}: {error}') from None


def _plain(path):
    return composed(os.path.normpath(path.replace('\\', '/'))).lower()


def _pts_files(folder):
    """{path below the folder, and name alone if only one has it: file}, without suffix."""
    files = [path for path in sorted(Path(folder).rglob('*')) if path.suffix.lower() == '.pts']
    if not files:
        raise DataError(f'{folder}: no .pts files in this folder or below')
    paths = {_plain(str(x.relative_to(folder).with_suffix(''))): str(x) for x in files}
    names = Counter(map(os.path.basename, paths))
    bare = {os.path.basename(path): file for path, file in paths.items()}
    return {name: file for name, file in bare.items() if names[name] == 1} | paths


def _table(file):
    """{path: points (5, 2)} of a CSV file."""
    found = {}
    for number, row in enumerate(read_table(file)):
        try:
            marks = np.array(row[1:11], float).reshape(5, 2)
        except ValueError:
            if not number:  # the first row may name the columns
                continue
            raise DataError(f'{file}, {some([row[0]])}: expected path, x1, y1, …, x5, y5') from None
        if found.setdefault(_plain(row[0]), marks) is not marks:
            raise DataError(f'{file}: two rows for {some([row[0]])}: remove one')
    if not found:
        raise DataError(f'{file}: no points')
    return found
