"""A folder of folders, one a person, as in torchvision's ImageFolder; ages are in file names."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np

from storage.files import below, is_image, is_system, seen_from
from storage.images import parse_age, some
from utils import DataError


class Folder:
    """`root`/<identity>/…/<image with the age in its name>, in folders of any depth.

    A place is a name below `root`, in bytes as the system has it.

    folder   the part of a path that messages leave out
    beside   the path beside which the pixels are kept
    notices  lines for the user
    """

    def __init__(self, root: str):
        self.root, self.folder, self.notices = root, root, []
        self.beside = Path(os.path.abspath(root))

    def list(self, pat: str, pos: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """classes, the folders' names, sorted; places (n,); labels (n,) int64; ages (n,) float32 in
        years.

        Raises DataError for a missing or empty folder and for names without a readable age.
        """
        classes, names, labels, ages, empty, bad = [], [], [], [], [], []
        others, loops = [], []
        for folder in self._people():
            there = self._below(folder)
            if not there.images:
                empty.append(folder)
            for name in there.images:
                try:
                    ages.append(parse_age(os.path.basename(name), pat, pos))
                except ValueError as error:
                    bad.append((f'{folder}/{name}', error))
                names.append(os.fsencode(f'{folder}/{name}'))
            labels.extend([len(classes)] * len(there.images))
            classes.append(folder)
            others += [f'{folder}/{name}' for name in there.others]
            loops += [f'{folder}/{name}' for name in there.loops]
        if not names:
            raise DataError(
                f'{self.root}: no images; expected {self.root}/<identity>/000_[age].jpg'
            )
        if empty:
            raise DataError(
                f'{self.root}: {len(empty)} identity folder(s) without an image: {some(empty)}: '
                'fill or remove them'
            )
        if bad:
            raise DataError(
                f'{self.root}: {len(bad)} file name(s) without a readable age: '
                f'{some([name for name, _ in bad])}; for the first, {bad[0][1]}: '
                f"rename the files, or mend 'pat' {pat!r} and 'pos' {pos} in meta.py"
            )
        self._notice(others, 'file(s) are no images by their names, and left out')
        self._notice(loops, 'link(s) lead to a folder above them, and are not followed')
        return classes, np.array(names), np.array(labels), np.array(ages, dtype=np.float32)

    def _notice(self, names, what):
        if names:
            self.notices.append(f'{self.root}: {len(names)} {what}: {some(names)}')

    def _people(self):
        try:
            names = sorted(name for name in os.listdir(self.root) if not is_system(name))
        except OSError as error:
            raise DataError(
                f'{self.root}: {error.strerror}{seen_from(self.root)}: '
                'expected a folder with one folder per person'
            ) from None
        people = [name for name in names if os.path.isdir(os.path.join(self.root, name))]
        prepared = 'report.csv' in names  # by prepare.py, which puts its contact sheet there
        alone = [name for name in names if is_image(name) and name not in people]
        alone = [name for name in alone if not (prepared and name == 'sheet.jpg')]
        self._notice(alone, 'image(s) are in no folder of a person, and left out')
        return people

    def _below(self, folder):
        path = os.path.join(self.root, folder)
        try:
            return below(path, (self.root,))
        except OSError as error:
            raise DataError(f'{some([error.filename or path])}: {error.strerror}') from None

    def shard_of(self, places: np.ndarray) -> np.ndarray | None:
        """The number of the shard that each place is in (n,); None where there are no shards."""
        return None

    def name(self, place: bytes) -> str:
        """Where it is below the root."""
        return os.fsdecode(place)

    def path(self, place: bytes) -> str:
        """Where it is, for messages."""
        return os.path.join(self.root, self.name(place))

    def encoded(self, place: bytes) -> bytes:
        """The image file's bytes. Raises OSError."""
        with open(self.path(place), 'rb') as file:
            return file.read()

    def sizes(self, places: np.ndarray) -> np.ndarray:
        """Bytes of each image (n,) int64; -1 for one that is missing."""
        sizes = []
        for name in places:
            try:
                sizes.append(os.stat(os.path.join(os.fsencode(self.root), name)).st_size)
            except OSError:
                sizes.append(-1)
        return np.array(sizes, np.int64)

    def fingerprint(self, places: np.ndarray) -> str:
        """sha256 of names, sizes and modification times, in hexadecimal.

        A file that is missing is left out: that it is missing is said when it is read.
        """
        digest = hashlib.sha256()
        for name in places:
            with contextlib.suppress(OSError):
                stat = os.stat(os.path.join(os.fsencode(self.root), name))
                digest.update(b'%s\0%d\0%d\n' % (name, stat.st_size, stat.st_mtime_ns))
        return digest.hexdigest()
