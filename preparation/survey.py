"""The faces of one root, each read once, as training would read them; and what is there twice."""

import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
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
from system.progress import progress
from utils import DataError, UserError

GREY = 2  # mean difference of the channels below which a face is grey
SAME_IMAGE = 0.99  # cosine of embeddings above which two files show one photograph
# what to do about a face that can't be trained on
RENAME = "rename them, or mend 'pat' and 'pos'"
FETCH = 'copy or download them again, or remove them'
ALIGN = 'align them (prepare.py), or remove them'


class Face(NamedTuple):
    """A face of the set; if it can't be trained on, `wrong` says why, and `remedy` what to do.

    `pixels` is a hash of them, `redness` red − blue in the middle of the face.
    """

    person: str
    path: str
    age: float | None
    wrong: str = ''
    remedy: str = ''
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
        listed = [*(self._in_folder(pat, pos) if self.folder else self._of_faces(pat, pos))]
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

    def short(self, face: Face) -> str:
        """Where the face is below the root."""
        return face.path.removeprefix(os.path.join(self.root, ''))

    def _in_folder(self, pat, pos) -> Iterator[tuple]:
        """(person, path, age, its encoded bytes when called) of each face."""
        there = below(self.root)
        people = {name.split(os.sep)[0] for name in there.images}
        for name in sorted(os.listdir(self.root)):
            if not is_system(name) and os.path.isdir(os.path.join(self.root, name)):
                self.empty += [] if name in people else [name]
        self.others = there.others + there.loops + there.special
        for name in there.images:
            person, _, below_it = name.partition(os.sep)
            if not below_it:
                self.others.append(name)
                continue
            try:
                age = parse_age(os.path.basename(name), pat, pos)
            except ValueError:
                age = None
            path = os.path.join(self.root, name)
            yield person, path, age, functools.partial(read_file, path)

    def _of_faces(self, pat, pos) -> Iterator[tuple]:
        faces = Faces(self.root, pat, pos)
        for k, label in enumerate(faces.labels):
            face = faces.classes[label], faces.path(k), float(faces.ages[k])
            yield *face, functools.partial(faces.encoded, k)


def _face(person: str, path: str, age: float | None, encoded: Callable[[], bytes]) -> Face:
    try:
        image = decode(encoded())
    except (OSError, DataError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        return Face(person, path, age, reason, ALIGN if reason.endswith(' wide') else FETCH)
    values = image.astype(np.int16)
    red, _, blue = values[40:100, 24:72].reshape(-1, 3).mean(0)
    grey = bool((values.max(2) - values.min(2)).mean() < GREY)
    wrong = ('no age in its name', RENAME) if age is None else ('', '')
    pixels = hashlib.sha256(image.tobytes()).hexdigest()
    return Face(person, path, age, *wrong, pixels, grey, float(red - blue))


def by_content(roots: list[Root]) -> list[tuple[str, str]]:
    """Pairs of paths with the same pixels; of many alike, each with the first."""
    first, pairs = dict[str, str](), []
    for face in (face for root in roots for face in root.faces if face.pixels):
        if first.setdefault(face.pixels, face.path) != face.path:
            pairs.append((first[face.pixels], face.path))
    return pairs


def by_embedding(roots: list[Root], weights: str | os.PathLike) -> tuple[list, list]:
    """What a trained network finds alike: two lists.

    (path, path, cosine) of one photograph twice: a cosine over SAME_IMAGE. (folder, folder, cosine)
    of one person twice: the means of two folders are closer than half of all faces are to the mean
    of the rest of their own folder.
    """
    if not all(root.folder for root in roots):
        reason = 'of shards and lists only pixels are compared'
        raise UserError(f'--weights compares image files: {reason}')
    model, _ = load_weights(weights)
    faces = [
        (os.path.join(root.root, face.person), face.path) for root in roots for face in root.good
    ]
    people, paths = zip(*faces, strict=True)
    cpu, title = torch.device('cpu'), Path(weights).name
    features, _ = extract_files(model, list(paths), cpu, keep=('embedding',), progress=title)
    vectors = torch.from_numpy(features['embedding'])
    folders, numbers = np.unique(people, return_inverse=True)
    labels, counts = torch.from_numpy(numbers), torch.from_numpy(np.bincount(numbers))
    sums = torch.zeros(len(folders), vectors.shape[1]).index_add_(0, labels, vectors)
    close = _above(vectors, SAME_IMAGE, paths)
    several = counts[labels] > 1
    if not several.any():
        return close, []
    rest = normalize(sums[labels[several]] - vectors[several])
    usual = float((rest * vectors[several]).sum(1).median())
    return close, _above(normalize(sums), usual, folders)


def _above(vectors, threshold, names, block=1024):
    """(name, name, cosine) of unit vectors (n, d) closer than the threshold, closest first."""
    found = []
    starts = range(0, len(vectors), block)
    for start in progress(starts, 'comparing', len(starts), unit=f' times {block} faces'):
        cosines = (vectors[start : start + block] @ vectors[start:].T).triu(1)
        for i, j in (cosines > threshold).nonzero().tolist():
            found.append((names[start + i], names[start + j], float(cosines[i, j])))
    return sorted(found, key=lambda pair: -pair[2])
