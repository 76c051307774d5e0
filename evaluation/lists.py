"""The published list formats, each read into Listed: what is where, which pairs, which fold.

Every reader takes the folder or file that the user names, tells in one DataError line what is
missing and where it looked, and refuses another count than the published one (the keyword
arguments, there for lists of one's own).
"""
import hashlib
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from dataset import Faces
from evaluation.pairs import Pairs
from evaluation.pickled import read_bin
from storage.images import some
from utils import DataError

# 001A43a.JPG: subject 1 at 43, the second picture
FGNET = re.compile(r'(\d{3})a(\d{1,2})[a-z]?', re.IGNORECASE | re.ASCII)
# 009055_1M54.JPG: subject, picture, sex, age
MORPH = re.compile(r'(\d{1,18})_(\d+)([MF])(\d{1,3})', re.IGNORECASE | re.ASCII)
NUMBER = re.compile(r'[0-9]{1,9}')


class Listed(NamedTuple):
    """N images, `sources` (paths or encoded bytes) and their `names`; and of a benchmark what its
    list tells.

    `pairs` is a verification list. `labels` (N,) int and `ages` (N,) years are of image files that
    are named after them. `digest` is the sha256 of the list file, None where the file names are the
    list.
    """
    sources: list
    names: list
    pairs: Pairs | None = None
    labels: np.ndarray | None = None
    ages: np.ndarray | None = None
    digest: str | None = None


def lfw(path, folds: int = 10, per_fold: int = 300) -> Listed:
    """LFW: path/pairs.txt, images path/<Name>/<Name>_0001.jpg, or the same below path/images."""
    file = Path(path, 'pairs.txt')
    lines, digest = _lines(file)
    if lines[0].split() != [str(folds), str(per_fold)]:
        raise DataError(f'{file}: the first line is {lines[0]!r}; LFW has {folds} folds of '
                        f'{per_fold} and {per_fold} pairs')
    if len(lines) != 1 + 2 * folds * per_fold:
        raise DataError(f'{file}: {len(lines) - 1} pairs; expected {2 * folds * per_fold}')
    rows, people = [], []
    for number, line in enumerate(lines[1:]):
        fields, same = line.split(), number // per_fold % 2 == 0
        if (len(fields) != 4 - same or not NUMBER.fullmatch(fields[1])
                or not NUMBER.fullmatch(fields[-1])):
            form = 'name number number' if same else 'name number name number'
            raise DataError(f'{file}, line {number + 2}: {line!r}: expected {form}')
        a, i, b, j = (fields[0], fields[1], fields[0], fields[2]) if same else fields
        rows.append((f'{a}/{a}_{int(i):04d}.jpg', f'{b}/{b}_{int(j):04d}.jpg', same,
                     number // (2 * per_fold)))
        people.append((a, b))
    return _listed(rows, _folder_of(path, rows[0][0], 'images', ''), digest, people)


def calfw(path, folds: int = 10, per_fold: int = 300) -> Listed:
    """CALFW: path/pairs_CALFW.txt, images in path/'aligned images', path/images or path.

    Lines `file token`, two a pair: first the genuine pairs, whose token is the fold, 1 to 10; then
    the impostors, token 0, a fold every 300.
    """
    file = Path(path, 'pairs_CALFW.txt')
    lines, digest = _lines(file)
    if len(lines) != 4 * folds * per_fold:
        raise DataError(f'{file}: {len(lines)} lines; expected {4 * folds * per_fold}, two a pair')
    rows, people = [], []
    for number in range(0, len(lines), 2):
        (a, token), (b, other) = ((line.rsplit(maxsplit=1) + [''])[:2]
                                  for line in lines[number:number + 2])
        same = number < len(lines) // 2
        if token != other or not NUMBER.fullmatch(token) or (
                not 1 <= int(token) <= folds if same else int(token)):
            raise DataError(f'{file}, line {number + 1}: tokens {token!r} and {other!r}: expected '
                            + (f'one fold of 1 to {folds}' if same else '0'))
        fold = int(token) - 1 if same else (number // 2 - folds * per_fold) // per_fold
        rows.append((a, b, same, fold))
        people.append(tuple(re.sub(r'_\d+\.\w+$', '', name) for name in (a, b)))
    counts = np.bincount([fold for *_, same, fold in rows if same], minlength=folds)
    if (counts != per_fold).any():
        raise DataError(f'{file}: {counts.tolist()} genuine pairs in the folds; expected '
                        f'{per_fold} in each')
    root = _folder_of(path, rows[0][0], 'aligned images', 'images', '')
    return _listed(rows, root, digest, people)


def cacd_vs(path, folds: int = 10, per_fold: int = 200) -> Listed:
    """CACD-VS: path/0000_0.jpg and 0000_1.jpg to 3999, or below path/images; no list: in each 400
    pairs, 200 genuine and 200 not."""
    rows = [(f'{i:04d}_0.jpg', f'{i:04d}_1.jpg', i // per_fold % 2 == 0, i // (2 * per_fold))
            for i in range(2 * folds * per_fold)]
    return _listed(rows, _folder_of(path, rows[0][0], 'images', ''), None)


def bin_file(path) -> Listed:
    """InsightFace's .bin (lfw, agedb_30, cfp_fp, calfw, cplfw): ten contiguous folds, as
    InsightFace cuts them."""
    images, same = read_bin(path)
    index, fold = np.arange(len(same)), np.empty(len(same), int)
    for k, part in enumerate(np.array_split(index, 10)):
        fold[part] = k
    return Listed(images, [f'{path}: image {i}' for i in range(len(images))],
                  Pairs(2 * index, 2 * index + 1, same, fold),
                  digest=hashlib.sha256(Path(path).read_bytes()).hexdigest())


def pair_list(path) -> Listed:
    """Lines `label pathA pathB`, label 1 or 0, paths from the list's folder or its images/: LAG,
    AgeDB-C20, FGNET-C30 …

    Such lists have no folds: ten are cut in the order of the list, each with a tenth of either
    kind. The folders are taken for people where they agree with every label.
    """
    file = Path(path)
    lines, digest = _lines(file)
    rows, counts = [], [0, 0]
    total = [sum(line.split()[0] == label for line in lines) for label in '01']
    for number, line in enumerate(lines):
        fields = line.split()
        if len(fields) != 3 or fields[0] not in ('0', '1'):
            raise DataError(f'{file}, line {number + 1}: {line!r}: expected `label pathA pathB`, '
                            'the label 1 or 0')
        kind = int(fields[0])
        rows.append((fields[1], fields[2], kind == 1, counts[kind] * 10 // total[kind]))
        counts[kind] += 1
    people = [(str(Path(a).parent), str(Path(b).parent)) for a, b, *_ in rows]
    agree = all((a == b) == same
                for (a, b), (_, _, same, _) in zip(people, rows, strict=True))
    root = _folder_of(file.parent, rows[0][0], '', 'images')
    return _listed(rows, root, digest, people if agree else None)


def fgnet(path, images: int = 1002, people: int = 82) -> Listed:
    """FG-NET: 001A02.JPG … 082A18.jpg, in whatever case, anywhere below path."""
    return _named(path, FGNET, 'subject, A, age: 001A02.JPG', lambda match: (match[1], match[2]),
                  images, people)


def morph(path) -> Listed:
    """MORPH Album 2: 009055_1M54.JPG …, anywhere below path; sources are sorted by subject and
    picture number."""
    return _named(path, MORPH, 'subject_picture, sex, age: 009055_1M54.JPG',
                  lambda match: (match[1], match[4]))


def folder(path, pat: str, pos: int) -> Listed:
    """People of known age, path/<identity>/<image>, re.split(pat, name)[pos] the age; or tar
    shards, as in meta.py."""
    faces = Faces(path, pat, pos)
    sources = paths = [faces.path(i) for i in range(len(faces))]
    if faces.source.shard_of(faces.places) is not None:  # entries of tar files, which have no path
        sources = [faces.encoded(i) for i in range(len(faces))]
    return Listed(sources, paths, labels=faces.labels, ages=faces.ages)


def images_below(path) -> list[str]:
    """All image files below a folder, sorted. Raises DataError where there are none."""
    found = sorted(str(file) for file in Path(path).rglob('*')
                   if file.suffix.lower() in IMG_EXTENSIONS)
    if not found:
        there = Path(path).is_dir()
        raise DataError(f'{path}: ' + ('no images in this folder or below' if there
                                       else 'no such folder'))
    return found


def _named(path, pattern, shape, fields, images=None, people=None):
    """Images whose names tell subject and age, in order of subject and of numbers in the name."""
    found = [(match, file) for file in images_below(path)
             if (match := pattern.fullmatch(Path(file).stem))]
    found.sort(key=lambda item: [int(text) if text.isdigit() else text.lower()
                                 for text in re.split(r'(\d+)', Path(item[1]).stem)])
    if not found:
        raise DataError(f'{path}: no image here or below is named {shape}')
    subjects, ages = zip(*(fields(match) for match, _ in found), strict=True)
    names, labels = np.unique(np.array(subjects, int), return_inverse=True)
    if images is not None and (len(found), len(names)) != (images, people):
        raise DataError(f'{path}: {len(found)} images of {len(names)} people named {shape}; '
                        f'the published set has {images} of {people}')
    paths = [file for _, file in found]
    return Listed(paths, paths, labels=labels, ages=np.array(ages, np.float32))


def _lines(file):
    """The lines that aren't empty, whatever their ends, and the file's sha256."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f'{file}: {error.strerror}: the list is looked for there') from None
    # bytes end their lines at \r and \n alone, text at characters that names may hold; names that
    # aren't UTF-8 stay the names they are
    lines = [line for line in (os.fsdecode(line) for line in data.splitlines()) if line.strip()]
    if not lines:
        raise DataError(f'{file}: the list is empty')
    return lines, hashlib.sha256(data).hexdigest()


def _folder_of(path, first, *below):
    """The first of the folders path/<below> that holds the list's first image."""
    for part in below:
        # False, where Path.exists raises, for a name too long
        if os.path.exists(Path(path, part, first)):
            return Path(path, part)
    places = some([str(Path(path, part, first)) for part in below])
    raise DataError(f'{some([first])}, the first image of the list, is not there: looked for '
                    f'{places}')


def _listed(rows, root, digest, people=None):
    """Rows (image, image, same, fold) below `root`, each image once; `people` the two names of
    each."""
    index = {}
    left, right = np.array([[index.setdefault(name, len(index)) for name in row[:2]]
                            for row in rows]).T
    paths = [str(root / name) for name in index]
    if people is not None:
        people = np.unique(np.array(people), return_inverse=True)[1].reshape(-1, 2)
    same, fold = np.array([row[2] for row in rows]), np.array([row[3] for row in rows])
    return Listed(paths, paths, Pairs(left, right, same, fold, people), digest=digest)
