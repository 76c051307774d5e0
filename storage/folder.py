"""A folder of folders, one a person, as in torchvision's ImageFolder; ages are in file names. And a
text file that lists images: `path label age` lines."""

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from storage import files
from storage.files import Below, is_image, is_system
from storage.images import AGE, parse_age, some, to_age
from system.names import naming
from utils import DataError

SUFFIXES = '.txt', '.tsv', '.csv', '.lst', '.list'
TITLES = {'age', 'ages', 'years'}  # of the last column, in a first line of titles


def is_list(root: str) -> bool:
    """Whether `root` names a list, rather than a folder."""
    return os.path.isfile(root) or root.lower().endswith(SUFFIXES) and not os.path.isdir(root)


class Folder:
    """`root`/<identity>/…/<image with the age in its name>, in folders of any depth. A place is a
    name below `root`, in bytes as the system has it."""

    def __init__(self, root: str):
        self.root = self.folder = root  # `folder` is the part of a path that messages leave out
        self.notices: list[str] = []  # lines for the user
        self.beside = Path(os.path.abspath(root))  # beside which decoded faces are kept

    def list(self, pat: str, pos: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """classes, the folders' names, sorted; places (n,); labels (n,) int64; ages (n,) float32 in
        years. Raises DataError for a missing or empty folder and names without a readable age."""
        classes, found, labels, empty = self._people(), Below([], [], [], []), [], []
        for label, folder in enumerate(classes):
            there = files.below(os.path.join(self.root, folder), (self.root,))
            for all_, names in zip(found, there, strict=True):
                all_ += [f'{folder}/{name}' for name in names]
            labels += [label] * len(there.images)
            empty += [] if there.images else [folder]
        if not labels:
            form = f'{self.root}/<identity>/000_[age].jpg'
            raise DataError(f'{self.root}: no images; expected {form}')
        if empty:
            what = f'{len(empty)} identity folder(s) without an image'
            raise DataError(f'{self.root}: {what}: {some(empty)}: fill or remove them')
        ages, bad = [], {}
        for name in found.images:
            try:
                ages.append(parse_age(os.path.basename(name), pat, pos))
            except ValueError as error:
                bad[name] = error
        if bad:
            which = f'{len(bad)} file name(s) without a readable age: {some(bad)}'
            remedy = f"rename the files, or mend 'pat' {pat!r} and 'pos' {pos} in meta.py"
            first = next(iter(bad.values()))
            raise DataError(f'{self.root}: {which}; for the first, {first}: {remedy}')
        self._notice(found.others, 'file(s) are no images by their names, and left out')
        self._notice(found.loops, 'link(s) lead to a folder above them, and are not followed')
        self._notice(found.special, 'pipe(s), socket(s) or device(s) are not opened')
        places = np.array([*map(os.fsencode, found.images)])
        return classes, places, np.array(labels), np.array(ages, np.float32)

    def _notice(self, names, what):
        if names:
            self.notices.append(f'{self.root}: {len(names)} {what}: {some(names)}')

    def _people(self):
        with naming(self.root, 'expected a folder with one folder per person'):
            names = sorted(name for name in os.listdir(self.root) if not is_system(name))
        people = [name for name in names if os.path.isdir(os.path.join(self.root, name))]
        # prepare.py writes a report, and its contact sheet beside it
        alone = {name for name in names if is_image(name)} - {*people}
        alone -= {'sheet.jpg'} if 'report.csv' in names else set()
        self._notice(sorted(alone), 'image(s) are in no folder of a person, and left out')
        return people

    def name(self, place: Any) -> str:
        """Where it is below the root."""
        return os.fsdecode(place)

    def path(self, place: Any) -> str:
        """Where it is, for messages."""
        return os.path.join(self.root, self.name(place))

    def encoded(self, place: Any) -> bytes:
        """The image file's bytes. Raises OSError."""
        return files.read_file(self.path(place))

    def _stats(self, places):
        """(name, size, modification time in ns) of each place; size -1 for one that is missing."""
        for name in places:
            try:
                status = os.stat(os.path.join(os.fsencode(self.root), name))
                yield name, status.st_size, status.st_mtime_ns
            except OSError:
                yield name, -1, 0

    def sizes(self, places: np.ndarray) -> np.ndarray:
        """Bytes of each image (n,) int64; -1 for one that is missing."""
        return np.array([size for _, size, _ in self._stats(places)], np.int64)

    def fingerprint(self, places: np.ndarray | None) -> str:
        """sha256 of names, sizes and modification times of what isn't missing, in hexadecimal."""
        digest = hashlib.sha256()
        for values in self._stats(places):
            if values[1] >= 0:
                digest.update(b'%s\0%d\0%d\n' % values)
        return digest.hexdigest()


class List(Folder):
    """The images of a list, a line each: path, label and age in years.

    The three are separated by tabs, in a .csv by commas or semicolons, else by spaces, of which the
    path may hold some. Paths are relative to the list's folder; the label, as it is written, is the
    identity: 0 and 0.0 are different people. UTF-8, or UTF-16 with a byte order mark; a first line
    of titles is passed over. A place is a path, in bytes."""

    def __init__(self, root: str):
        super().__init__(os.path.dirname(root))
        self.file, self.beside = root, Path(os.path.abspath(root))

    def list(self, pat: str, pos: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """As of a folder, sorted by label and path; `pat` and `pos` are not used. Raises DataError
        for lines that are none, images that are missing, and one with two labels or ages."""
        faces: dict[str, tuple[str, float]] = {}
        missing, rows = [], self._rows()
        for number, name, label, age in rows:
            found = files.find_file(self.root, name)
            if found is None:
                missing.append(name)
                continue
            found = os.path.normpath(found)  # one image has one place
            if faces.setdefault(found, (label, age)) != (label, age):
                before = f'{some([name])} stands there before, with another label or age'
                differ = f'{faces[found]}, now {(label, age)}'
                raise DataError(f'{self.file}, line {number}: {before}: {differ}')
        if missing:
            what = f'{len(missing)} image(s) of the list are missing: {some(missing)}'
            where = f"paths are relative to the list's folder, {os.path.abspath(self.root)}"
            raise DataError(f'{self.file}: {what}: {where}')
        if len(rows) > len(faces):
            repeated = f'{len(rows) - len(faces)} line(s) repeat others'
            self.notices.append(f'{self.file}: {repeated}, and count once')
        order = sorted(faces, key=lambda name: (faces[name][0], name))
        people = np.array([faces[name][0] for name in order])
        classes, labels = np.unique(people, return_inverse=True)
        ages = np.array([faces[name][1] for name in order], np.float32)
        return classes.tolist(), np.array([os.fsencode(name) for name in order]), labels, ages

    def _rows(self):
        """(line number, path, label, age) of each line."""
        data = files.read_bytes(self.file, 'expected a list of images')
        lines = files.lines_of_text(data, self.file)
        rows, bad = [], []
        for place, (number, line) in enumerate(lines):
            fields = [field.strip() for field in self._fields(line)]
            if not place and len(fields) == 3 and fields[2].lower() in TITLES:
                continue
            try:
                if AGE.fullmatch(fields[0]) and any(map(is_image, fields[1:])):
                    raise ValueError('it begins with a number, as lists of mxnet without ages do')
                if len(fields) != 3 or not all(fields):
                    raise ValueError('it has no path, label and age')
                label = unicodedata.normalize('NFC', fields[1])
                rows.append((number, fields[0], label, to_age(fields[2])))
            except ValueError as error:
                bad.append(f'line {number}: {line.strip()!r:.80}: {error}')
        if bad:
            form = '`path label age`, the age in years'
            raise DataError(f'{self.file}: {len(bad)} line(s) are not {form}; {bad[0]}')
        if not rows:
            raise DataError(f'{self.file}: the list is empty; expected `path label age` lines')
        return rows

    def _fields(self, line):
        if '\t' in line:
            return line.split('\t')
        if self.file.lower().endswith('.csv'):
            return files.cells(line, files.separator(line))
        return line.rsplit(maxsplit=2)


def alike(root: str, people: Iterable[str]) -> list[str]:
    """A notice of people whose names differ in their Unicode form alone."""
    forms = defaultdict(list)
    for name in people:
        forms[unicodedata.normalize('NFC', name)].append(name)
    names = [name for name, spellings in forms.items() if len(spellings) > 1]
    what = 'stand for different people that differ only in how accents are stored (NFC, NFD)'
    line = f'{root}: {len(names)} name(s) {what}: {some(names)}: if they are one person, merge them'
    return [line] if names else []
