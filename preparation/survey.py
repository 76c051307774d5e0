"""The faces of one root, each read once, as training would read them; and what is there twice."""

import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from dataset import Faces
from recognition.embedding import extract_files
from recognition.weights import load_weights
from storage.files import below, is_system, read_file
from storage.folder import is_list
from storage.images import decode, parse_age
from storage.shards import are_shards
from system.names import seen_from
from system.progress import progress
from utils import DataError, UserError

GREY = 2  # mean difference of the channels below which a face is grey
SAME_IMAGE = 0.99  # cosine of embeddings above which two files show one photograph
# why a face can't be trained on
AGELESS, UNREADABLE, SIZE = 'no age in its name', 'not readable', 'not 112 high × 96 or 112 wide'


class Face(NamedTuple):
    """A face of the set; `wrong` is AGELESS, UNREADABLE or SIZE if it can't be trained on.

    `reason` says more; `pixels` is a hash of them, `redness` red − blue in the middle of the face.
    """

    person: str
    name: str
    age: float | None
    wrong: str
    reason: str
    pixels: str = ''
    grey: bool = False
    redness: float = np.nan


class Root:
    """The faces of one root: a folder, shards or a list.

    faces    list of Face
    people   {name: faces}
    good     the faces that can be trained on; `classes`, `labels`, `ages` are theirs, as Faces' are
    empty    folders without an image
    others   files and folders that nobody will read

    Raises DataError if there is nothing to read.
    """

    def __init__(self, root: str | os.PathLike, pat: str, pos: int, workers: int):
        self.root, self.empty = os.path.expanduser(root), list[str]()
        self.others = list[str]()
        self.folder = not are_shards(self.root) and not is_list(self.root)
        listed = self._listed(pat, pos) if self.folder else self._of_faces(pat, pos)
        if not listed:
            form = f'{self.root}/<identity>/000_[age].jpg'
            raise DataError(f'{self.root}: no images; expected {form}')
        with ThreadPoolExecutor(workers) as pool:
            faces = pool.map(lambda item: _face(*item), listed)
            self.faces = list(progress(faces, f'reading {self.root}', len(listed), unit=' faces'))
        self.people = defaultdict(list)
        for face in self.faces:
            self.people[face.person].append(face)
        self.good = [face for face in self.faces if not face.wrong]
        self.classes = sorted({face.person for face in self.good})
        self.labels = np.searchsorted(self.classes, [face.person for face in self.good])
        self.ages = np.array([face.age for face in self.good])

    def __len__(self) -> int:
        return len(self.good)

    def path(self, face: Face) -> str:
        """Where the face is, for people; of a folder, the file."""
        return os.path.join(self.root, face.person, face.name) if self.folder else face.name

    def _listed(self, pat, pos):
        """(person, name, age, its encoded bytes when called) of each face in a folder."""
        if not os.path.isdir(self.root):
            where = f'no such folder{seen_from(self.root)}'
            raise DataError(f'{self.root}: {where}: expected one with a folder per person')
        listed = []
        for person in sorted(os.listdir(self.root)):
            folder = os.path.join(self.root, person)
            if is_system(person) or not os.path.isdir(folder):
                self.others.append(person)
                continue
            there = below(folder, (self.root,))
            unread = there.others + there.loops + there.special
            self.others += [f'{person}/{name}' for name in unread]
            self.empty += [] if there.images else [person]
            for name in there.images:
                try:
                    age = parse_age(os.path.basename(name), pat, pos)
                except ValueError:
                    age = None
                read = functools.partial(read_file, os.path.join(folder, name))
                listed.append((person, name, age, read))
        return listed

    def _of_faces(self, pat, pos):
        faces = Faces(self.root, pat, pos)
        listed = []
        for k, label in enumerate(faces.labels):
            face = faces.classes[label], faces.path(k), float(faces.ages[k])
            listed.append((*face, functools.partial(faces.encoded, k)))
        return listed


def _face(person: str, name: str, age: float | None, encoded: Callable[[], bytes]) -> Face:
    try:
        image = decode(encoded())
    except (OSError, DataError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        return Face(person, name, age, SIZE if reason.endswith(' wide') else UNREADABLE, reason)
    values = image.astype(np.int16)
    red, _, blue = values[40:100, 24:72].reshape(-1, 3).mean(0)
    grey = bool((values.max(2) - values.min(2)).mean() < GREY)
    wrong, pixels = AGELESS if age is None else '', hashlib.sha256(image.tobytes()).hexdigest()
    return Face(person, name, age, wrong, wrong, pixels, grey, float(red - blue))


def by_content(roots: Mapping[str, Root]) -> list[tuple[str, str]]:
    """Pairs of paths with the same pixels; of many alike, each with the first."""
    first, pairs = dict[str, str](), []
    for root in roots.values():
        for face in root.faces:
            path = root.path(face)
            if face.pixels and first.setdefault(face.pixels, path) != path:
                pairs.append((first[face.pixels], path))
    return pairs


def by_embedding(roots: Mapping[str, Root], weights: str | os.PathLike) -> tuple[list, list]:
    """What a trained network finds alike: two lists.

    (path, path, cosine) of one photograph twice: a cosine over SAME_IMAGE. (folder, folder, cosine)
    of one person twice: the means of two folders are closer than half of all faces are to the mean
    of the rest of their own folder.
    """
    if not all(root.folder for root in roots.values()):
        reason = 'of shards and lists only pixels are compared'
        raise UserError(f'--weights compares image files: {reason}')
    model, _ = load_weights(weights)
    faces = [(root, face) for root in roots.values() for face in root.good]
    paths = [root.path(face) for root, face in faces]
    cpu, title = torch.device('cpu'), Path(weights).name
    features, _ = extract_files(model, paths, cpu, keep=('embedding',), progress=title)
    vectors = torch.from_numpy(features['embedding'])
    people = [os.path.join(root.root, face.person) for root, face in faces]
    folders, numbers = np.unique(people, return_inverse=True)
    labels, counts = torch.from_numpy(numbers), torch.from_numpy(np.bincount(numbers))
    sums = torch.zeros(len(folders), vectors.shape[1]).index_add_(0, labels, vectors)
    close = [(paths[a], paths[b], cosine) for a, b, cosine in _above(vectors, SAME_IMAGE)]
    several = counts[labels] > 1
    if not several.any():
        return close, []
    rest = normalize(sums[labels[several]] - vectors[several])
    usual = float((rest * vectors[several]).sum(1).median())
    akin = [(folders[a], folders[b], cosine) for a, b, cosine in _above(normalize(sums), usual)]
    return close, akin


def _above(vectors, threshold, block=1024):
    """(i, j, cosine), i < j, of unit vectors (n, d) closer than the threshold, closest first."""
    found = []
    starts = range(0, len(vectors), block)
    for start in progress(starts, 'comparing', len(starts), unit=f' times {block} faces'):
        cosines = (vectors[start : start + block] @ vectors[start:].T).triu(1)
        for i, j in (cosines > threshold).nonzero().tolist():
            found.append((start + i, start + j, float(cosines[i, j])))
    return sorted(found, key=lambda pair: -pair[2])
