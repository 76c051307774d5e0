"""The faces of one root, each read once."""
import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from storage.images import decode, parse_age
from utils import DataError

GREY = 2  # mean difference of the channels below which a face is grey


class Face(NamedTuple):
    """A file of the set; `wrong` says why it can't be trained on.

    `pixels` is a hash of them, `redness` red − blue in the middle of the face.
    """
    person: str
    name: str
    age: float | None
    wrong: str
    pixels: str
    grey: bool
    redness: float


class Part:
    """The faces of one root.

    faces    list of Face
    people   {name: faces}
    good     the faces that can be trained on
    empty    folders without an image
    others   files and folders that nobody will read
    Raises DataError where there is no folder or no image.
    """

    def __init__(self, root: str | os.PathLike, pat: str, pos: int, workers: int):
        self.root, self.empty, self.others = str(root), [], []
        if not os.path.isdir(self.root):
            raise DataError(f'{self.root}: no such folder: expected one with a folder per person')
        todo = []
        for folder in sorted(os.listdir(self.root)):
            if folder.startswith('.') or not os.path.isdir(os.path.join(self.root, folder)):
                self.others.append(folder)
                continue
            names = sorted(os.listdir(os.path.join(self.root, folder)))
            images = [name for name in names
                      if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith('.')]
            self.others += [f'{folder}/{name}' for name in names if name not in set(images)]
            self.empty += [] if images else [folder]
            todo += [(folder, name) for name in images]
        if not todo:
            raise DataError(f'{self.root}: no images; '
                            f'expected {self.root}/<identity>/000_[age].jpg')
        with ThreadPoolExecutor(workers) as pool:
            looks = pool.map(lambda item: self._look(*item, pat, pos), todo)
            self.faces = list(tqdm(looks, f'reading {self.root}', len(todo), leave=False,
                                   unit=' faces', disable=None))
        self.people = defaultdict(list)
        for face in self.faces:
            self.people[face.person].append(face)
        self.good = [face for face in self.faces if not face.wrong]

    def path(self, face: Face) -> str:
        return os.path.join(self.root, face.person, face.name)

    def _look(self, person, name, pat, pos):
        age, wrong = None, ''
        try:
            age = parse_age(name, pat, pos)
        except ValueError:
            wrong = 'no age in its name'
        try:
            image = decode(Path(self.root, person, name).read_bytes())
        except (OSError, DataError) as error:
            reason = getattr(error, 'strerror', None) or str(error)
            return Face(person, name, age, reason, '', False, np.nan)
        values = image.astype(np.int16)
        middle = values[40:100, 24:72].reshape(-1, 3).mean(0)
        grey = bool((values.max(2) - values.min(2)).mean() < GREY)
        return Face(person, name, age, wrong, hashlib.sha256(image.tobytes()).hexdigest(), grey,
                    float(middle[0] - middle[2]))
