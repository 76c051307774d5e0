"""The faces of one root, each read once, as training would read them."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from dataset import Faces, are_shards
from storage.files import below, is_system, seen_from
from storage.folder import is_list
from storage.images import decode, parse_age
from system.progress import progress
from utils import DataError

GREY = 2  # mean difference of the channels below which a face is grey
# why a face can't be trained on
AGELESS, UNREADABLE, SIZE = 'no age in its name', 'not readable', 'not 112 high × 96 or 112 wide'


class Face(NamedTuple):
    """A face of the set; `wrong` is AGELESS, UNREADABLE or SIZE where it can't be trained on.

    `reason` says more; `pixels` is a hash of them, `redness` red − blue in the middle of the face.
    """

    person: str
    name: str
    age: float | None
    wrong: str
    reason: str
    pixels: str
    grey: bool
    redness: float


class Part:
    """The faces of one root: a folder, shards or a list.

    faces    list of Face
    people   {name: faces}
    good     the faces that can be trained on; `classes`, `labels`, `ages` are theirs, as Faces' are
    empty    folders without an image
    others   files and folders that nobody will read
    Raises DataError where there is nothing to read.
    """

    def __init__(self, root: str | os.PathLike, pat: str, pos: int, workers: int):
        self.root, self.empty, self.others = os.path.expanduser(root), [], []
        self.folder = not are_shards(self.root) and not is_list(self.root)
        listed = self._listed(pat, pos) if self.folder else self._of_faces(pat, pos)
        if not listed:
            raise DataError(
                f'{self.root}: no images; expected {self.root}/<identity>/000_[age].jpg'
            )
        with ThreadPoolExecutor(workers) as pool:
            looks = pool.map(lambda item: _look(*item), listed)
            self.faces = list(progress(looks, f'reading {self.root}', len(listed), unit=' faces'))
        self.people = defaultdict(list)
        for face in self.faces:
            self.people[face.person].append(face)
        self.good = [face for face in self.faces if not face.wrong]
        self.classes = sorted({face.person for face in self.good})
        rank = {person: label for label, person in enumerate(self.classes)}
        self.labels = np.array([rank[face.person] for face in self.good], int)
        self.ages = np.array([face.age for face in self.good])

    def __len__(self) -> int:
        return len(self.good)

    def path(self, face: Face) -> str:
        """Where the face is, for people; of a folder, the file."""
        return os.path.join(self.root, face.person, face.name) if self.folder else face.name

    def _listed(self, pat, pos):
        """(person, name, age, its encoded bytes when called) of each face in a folder."""
        if not os.path.isdir(self.root):
            raise DataError(
                f'{self.root}: no such folder{seen_from(self.root)}: '
                'expected one with a folder per person'
            )
        listed = []
        for person in sorted(os.listdir(self.root)):
            folder = os.path.join(self.root, person)
            if is_system(person) or not os.path.isdir(folder):
                self.others.append(person)
                continue
            there = below(folder, (self.root,))
            self.others += [f'{person}/{name}' for name in there.others + there.loops]
            self.empty += [] if there.images else [person]
            listed += [
                (
                    person,
                    name,
                    _age(os.path.basename(name), pat, pos),
                    _reader(os.path.join(folder, name)),
                )
                for name in there.images
            ]
        return listed

    def _of_faces(self, pat, pos):
        faces = Faces(self.root, pat, pos)
        return [
            (
                faces.classes[faces.labels[index]],
                faces.path(index),
                float(faces.ages[index]),
                lambda index=index: faces.encoded(index),
            )
            for index in range(len(faces))
        ]


def _age(name, pat, pos):
    try:
        return parse_age(name, pat, pos)
    except ValueError:
        return None


def _reader(path) -> Callable[[], bytes]:
    def read():
        with open(path, 'rb') as file:
            return file.read()

    return read


def _look(person, name, age, encoded):
    try:
        image = decode(encoded())
    except (OSError, DataError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        wrong = SIZE if reason.endswith(' wide') else UNREADABLE
        return Face(person, name, age, wrong, reason, '', False, np.nan)
    values = image.astype(np.int16)
    middle = values[40:100, 24:72].reshape(-1, 3).mean(0)
    grey = bool((values.max(2) - values.min(2)).mean() < GREY)
    wrong = AGELESS if age is None else ''
    return Face(
        person,
        name,
        age,
        wrong,
        wrong,
        hashlib.sha256(image.tobytes()).hexdigest(),
        grey,
        float(middle[0] - middle[2]),
    )
