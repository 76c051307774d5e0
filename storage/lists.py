"""A text file that lists images: `path label age` lines."""

import contextlib
import csv
import os
import unicodedata
from pathlib import Path

import numpy as np

from storage.files import find, is_image, lines_of, seen_from
from storage.folder import Folder
from storage.images import AGE, some, to_age
from utils import DataError

SUFFIXES = '.txt', '.tsv', '.csv', '.lst', '.list'
TITLES = {'age', 'ages', 'years'}  # what the last column is called in a first line of titles


def is_list(root: str) -> bool:
    """Whether `root` names a list, rather than a folder."""
    return os.path.isfile(root) or root.lower().endswith(SUFFIXES) and not os.path.isdir(root)


class List(Folder):
    """The images of a list, a line each: path, label and age in years.

    The three are separated by tabs, in a .csv by commas or semicolons, else by spaces, of which the
    path may hold some. Paths are relative to the list's folder; the label, as it is written, is the
    identity: 0 and 0.0 are two. UTF-8, or UTF-16 with a byte order mark; a first line of titles is
    passed over. A place is a path, in bytes.
    """

    def __init__(self, root: str):
        super().__init__(os.path.dirname(root))
        self.file, self.beside = root, Path(os.path.abspath(root))

    def list(self, pat: str, pos: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """classes, the labels, sorted; places (n,), labels (n,) int64, ages (n,) float32 in years.

        Sorted by label and path. `pat` and `pos` are for ages in file names, and not used. Raises
        DataError for lines that are none, for images that are missing, and for one with two labels
        or ages.
        """
        faces, missing, rows = {}, [], self._rows()
        for number, name, label, age in rows:
            found = find(self.root, name)
            if found is None:
                missing.append(name)
                continue
            found = _plain(found)
            if faces.setdefault(found, (label, age)) != (label, age):
                raise DataError(
                    f'{self.file}, line {number}: {some([name])} stands there before, with '
                    f'another label or age: {faces[found]}, now {(label, age)}'
                )
        if missing:
            raise DataError(
                f'{self.file}: {len(missing)} image(s) of the list are missing: {some(missing)}: '
                f"paths are relative to the list's folder, {os.path.abspath(self.root)}"
            )
        if len(rows) > len(faces):
            self.notices.append(
                f'{self.file}: {len(rows) - len(faces)} line(s) repeat others, and count once'
            )
        classes = sorted({label for label, _ in faces.values()})
        rank = {label: number for number, label in enumerate(classes)}
        order = sorted(faces, key=lambda name: (rank[faces[name][0]], name))
        labels, ages = zip(*(faces[name] for name in order), strict=True)
        places = np.array([os.fsencode(name) for name in order])
        labels = np.array([rank[label] for label in labels])
        return classes, places, labels, np.array(ages, np.float32)

    def _rows(self):
        """(line number, path, label, age) of each line."""
        try:
            with open(self.file, 'rb') as file:
                lines = lines_of(file.read())
        except OSError as error:
            raise DataError(
                f'{self.file}: {error.strerror}{seen_from(self.file)}: expected a list of images'
            ) from None
        if any('\0' in line for line in lines):
            raise DataError(f'{self.file}: no text file: save the list as text, in UTF-8')
        rows, bad = [], []
        for number, line in enumerate(lines, 1):
            fields = [field.strip() for field in self._fields(line)]
            if number == 1 and len(fields) == 3 and fields[2].lower() in TITLES:
                continue
            try:
                if AGE.fullmatch(fields[0]) and any(map(is_image, fields[1:])):
                    raise ValueError(
                        'it begins with a number, as lists of mxnet do, which have no ages'
                    )
                if len(fields) != 3 or not all(fields):
                    raise ValueError('it has no path, label and age')
                label = unicodedata.normalize('NFC', fields[1])
                rows.append((number, fields[0], label, to_age(fields[2])))
            except ValueError as error:
                bad.append(f'line {number}: {line.strip()!r:.80}: {error}')
        if bad:
            raise DataError(
                f'{self.file}: {len(bad)} line(s) are not `path label age`, the age in years; '
                f'{bad[0]}'
            )
        if not rows:
            raise DataError(f'{self.file}: the list is empty; expected `path label age` lines')
        return rows

    def _fields(self, line):
        if '\t' in line:
            return line.split('\t')
        if self.file.lower().endswith('.csv'):
            with contextlib.suppress(csv.Error):
                ways = [next(csv.reader([line], delimiter=mark)) for mark in ',;']
                return ways[1] if len(ways[1]) == 3 != len(ways[0]) else ways[0]
        return line.rsplit(maxsplit=2)


def _plain(path):
    """./a.jpg and sub//a.jpg as a.jpg and sub/a.jpg: one image has one place."""
    first, *rest = path.split('/')
    rest = [part for part in rest if part not in ('', '.')]
    return '/'.join(rest if first == '.' else [first, *rest])
