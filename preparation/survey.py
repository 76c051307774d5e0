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
from system.names import naming
from system.progress import progress
from utils import DataError, UserError

GREY = 2  # mean difference of the channels below which a face is grey
BLUISH = -4  # red − blue in the middle of a face below which it is hardly skin
SAME_IMAGE = 0.99  # cosine of embeddings above which two files show one photograph
SAME_PIXELS, SAME_PHOTOGRAPH, SAME_PERSON = 'same pixels', 'same photograph', 'same person'
# what to do about a face that can't be trained on
RENAME = "rename them, or mend 'pat' and 'pos'"
FETCH = 'copy or download them again, or remove them'
ALIGN = 'align them (prepare.py), or remove them'


class SurveyedFace(NamedTuple):
    """A face of the set, with a hash of its pixels.

    If it can't be trained on, `wrong` says why, and `remedy`, of those above, what to do.
    """

    person: str
    path: str
    age: float | None
    wrong: str = ''
    remedy: str = ''
    pixels: str = ''
    grey: bool = False
    bluish: bool = False


class Root:
    """The faces of one root: a folder, shards or a list. Raises DataError if there are none.

    faces    list of Face
    people   {name: faces}
    known    their ages, where they are known
    classes, labels, ages   as those of Faces, of the faces that can be trained on, which are `good`
    empty    folders without an image
    others   files and folders that nobody will read
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
        self.known = [face.age for face in self.faces if face.age is not None]

    def __len__(self) -> int:
        return len(self.good)

    def short(self, face: SurveyedFace) -> str:
        """Where the face is below the root."""
        return face.path.removeprefix(os.path.join(self.root, ''))

    def _in_folder(self, pat, pos) -> Iterator[tuple]:
        """(person, path, age, its encoded bytes when called) of each face."""
        with naming(self.root, 'expected a folder with one folder per person'):
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


def _face(person: str, path: str, age: float | None, encoded: Callable[[], bytes]) -> SurveyedFace:
    try:
        image = decode(encoded())
    except (OSError, DataError) as error:
        reason = getattr(error, 'strerror', None) or str(error)
        return SurveyedFace(person, path, age, reason, ALIGN if reason.endswith(' wide') else FETCH)
    values = image.astype(np.int16)
    red, _, blue = values[40:100, 24:72].reshape(-1, 3).mean(0)
    grey = bool((values.max(2) - values.min(2)).mean() < GREY)
    wrong = ('no age in its name', RENAME) if age is None else ('', '')
    pixels = hashlib.sha256(image.tobytes()).hexdigest()
    return SurveyedFace(
        person, path, age, *wrong, pixels, grey, not grey and bool(red - blue < BLUISH)
    )


def by_content(roots: list[Root]) -> list[tuple]:
    """Rows (path, SAME_PIXELS, path, '') of two files; of many alike, each with the first."""
    first, pairs = dict[str, str](), []
    for face in (face for root in roots for face in root.faces if face.pixels):
        if first.setdefault(face.pixels, face.path) != face.path:
            pairs.append((first[face.pixels], SAME_PIXELS, face.path, ''))
    return pairs


def by_embedding(roots: list[Root], weights: str | os.PathLike) -> list[tuple]:
    """What a trained network finds alike, but pixels don't show: rows (path, what, path, cosine).

    SAME_PHOTOGRAPH is a cosine over SAME_IMAGE; SAME_PERSON is said of two folders whose means are
    closer than half of all faces are to the mean of the rest of their own folder.
    """
    if not all(root.folder for root in roots):
        reason = 'of shards and lists only pixels are compared'
        raise UserError(f'--weights compares image files: {reason}')
    model, _ = load_weights(weights)
    faces = [face for root in roots for face in root.good]
    people = [os.path.join(root.root, face.person) for root in roots for face in root.good]
    cpu, title = torch.device('cpu'), Path(weights).name
    paths = [face.path for face in faces]
    features, _ = extract_files(model, paths, cpu, keep=('embedding',), progress=title)
    vectors = torch.from_numpy(features['embedding'])
    close = [
        (paths[i], SAME_PHOTOGRAPH, paths[j], cosine)
        for i, j, cosine in _above(vectors, SAME_IMAGE)
        if faces[i].pixels != faces[j].pixels
    ]
    folders, numbers = np.unique(people, return_inverse=True)
    labels, counts = torch.from_numpy(numbers), torch.from_numpy(np.bincount(numbers))
    sums = torch.zeros(len(folders), vectors.shape[1]).index_add_(0, labels, vectors)
    several = counts[labels] > 1
    if not several.any():
        return close
    rest = normalize(sums[labels[several]] - vectors[several])
    akin = _above(normalize(sums), float((rest * vectors[several]).sum(1).median()))
    return close + [(folders[i], SAME_PERSON, folders[j], cosine) for i, j, cosine in akin]


def _above(vectors, threshold, block=1024):
    """(i, j, cosine), i < j, of unit vectors (n, d) closer than the threshold, closest first."""
    found = []
    starts = range(0, len(vectors), block)
    for start in progress(starts, 'comparing', len(starts), unit=f' times {block} faces'):
        cosines = (vectors[start : start + block] @ vectors[start:].T).triu(1)
        for i, j in (cosines > threshold).nonzero().tolist():
            found.append((start + i, start + j, f'{cosines[i, j]:.3f}'))
    return sorted(found, key=lambda pair: pair[2], reverse=True)
