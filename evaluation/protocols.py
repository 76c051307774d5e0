"""The benchmarks: a reader for each published layout, and one for people's own lists and folders.
Every reader takes the folder or file that the user names, says in one DataError line what is
missing and where it looked, and refuses another count than the published one, which its keyword
arguments are for."""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataset import Faces
from evaluation import pair_files
from evaluation.pairs import Pairs
from evaluation.rates import GRID
from evaluation.set_checks import check_ages
from recognition.alignment import TAIL
from storage import files
from storage.images import some
from storage.shards import shards_of
from system.names import seen_from
from utils import DataError

# 001A43a.JPG: subject 1 at 43, the second picture; aligners append to it: 001A43a_0.JPG
FGNET = rf'(?ai)(?P<photograph>(?P<subject>\d{{3}})a(?P<age>\d{{1,2}})[a-z]?){TAIL}'
# 009055_1M54.JPG: subject, picture, sex, age
MORPH = rf'(?ai)(?P<photograph>(?P<subject>\d{{1,18}})_\d+[MF](?P<age>\d{{1,3}})){TAIL}'
NUMBER = re.compile(r'[0-9]{1,9}')
# what LFW's archives unpack to
LFW_FOLDERS = ('lfw', 'lfw_funneled', 'lfw-deepfunneled', 'lfw-deepfunneled/lfw-deepfunneled')


class Benchmark(NamedTuple):
    """N images, `sources` (paths or encoded bytes) and their `names`, and either pairs or people.

    pairs        a verification list; without one, labels and ages are needed
    labels, ages (N,) int and (N,) years: pairs are drawn by age gap, each image is looked for among
                 all others, and the age in the features is measured
    probes       indices of images: these alone are looked for, among those that are no probes
    digest       sha256 of the list file, None if the file names are the list
    every_score  thresholds are chosen among all scores, not from the field's grid
    notices      lines for the user: what was left out, what looks wrong
    vectors      (N, D): stored features, which stand in for sources
    drawn        the text of a list that was drawn here, to be kept
    """

    sources: list
    names: list
    pairs: Any = None
    labels: Any = None
    ages: Any = None
    digest: str | None = None
    probes: Any = None
    every_score: bool = False
    notices: tuple = ()
    vectors: Any = None
    drawn: str = ''

    @property
    def thresholds(self) -> np.ndarray | None:
        """Of rates.decide: published lists are scored on the grid, drawn pairs at every score."""
        return GRID if self.pairs and not self.every_score else None


def of_pairs(
    rows: list, path: Path, below: tuple, digest: str | None, person=os.path.dirname
) -> Benchmark:
    """Rows (image, image, same, fold) as a Benchmark, each image once. The images lie below the
    first of the folders path/<below> that holds any. person(path) says whose an image is, and is
    believed if that agrees with every row. If a fold is None, ten are cut in the order of the rows,
    each with a tenth of either kind."""
    names = list(dict.fromkeys(name for row in rows for name in row[:2]))
    root = pair_files.root_of(path, names, *below)
    paths = {name: pair_files.locate(root, name) for name in names}
    unique = {source: index for index, source in enumerate(dict.fromkeys(paths.values()))}
    two = np.array([[unique[paths[name]] for name in row[:2]] for row in rows])
    same, fold = np.array([row[2] for row in rows]), np.array([row[3] for row in rows])
    if None in fold:
        count = np.where(same, same.cumsum(), (~same).cumsum()) - 1
        fold = count * 10 // np.where(same, same.sum(), (~same).sum())
    people = np.unique([person(source) for source in unique], return_inverse=True)[1][two]
    agree = ((people[:, 0] == people[:, 1]) == same).all()
    pairs = Pairs(two[:, 0], two[:, 1], same, fold, people if agree else None)
    return Benchmark(list(unique), list(unique), pairs, digest=digest)


def lfw(path: str, folds: int = 10, per_fold: int = 300) -> Benchmark:
    """LFW: pairs.txt in path or beside it, images <Name>/<Name>_0001.jpg in path, in path/images or
    in the folder that a download unpacks to."""
    file = Path(path, 'pairs.txt')
    if not file.exists() and file.parent.with_name('pairs.txt').exists():
        file = file.parent.with_name('pairs.txt')
    lines, digest = pair_files.read_lines(file)
    if lines[0][1].split() != [str(folds), str(per_fold)]:
        shape = f'LFW has {folds} folds of {per_fold} and {per_fold} pairs'
        remedy = 'a list of your own in this format is read by the benchmark `pairs`'
        raise DataError(f'{file}: the first line is {lines[0][1]!r}; {shape}; {remedy}')
    rows = _lfw_rows(file, lines[1:], per_fold, folds)
    return of_pairs(rows, Path(path), ('images', '', *LFW_FOLDERS), digest)


def _lfw_rows(file, lines, per_fold, folds):
    """Rows of LFW's lines: in each fold `per_fold` genuine pairs, then as many that are not."""
    if len(lines) != 2 * folds * per_fold:
        raise DataError(f'{file}: {len(lines)} pairs; expected {2 * folds * per_fold}')
    rows = []
    for index, (number, line) in enumerate(lines):
        fields = [field.strip() for field in line.split('\t' if '\t' in line else None)]
        same, numbers = index // per_fold % 2 == 0, fields[1:2] + fields[-1:]
        if len(fields) != 4 - same or not all(map(NUMBER.fullmatch, numbers)):
            form = 'name number number' if same else 'name number name number'
            raise DataError(f'{file}, line {number}: {line!r}: expected {form}')
        two = zip((fields[0], fields[0 if same else 2]), numbers, strict=True)
        images = [f'{name}/{name}_{int(k):04d}.jpg' for name, k in two]
        rows.append((*images, same, index // (2 * per_fold) if folds > 1 else None))
    return rows


def calfw(path: str, folds: int = 10, per_fold: int = 300) -> Benchmark:
    """CALFW: path/pairs_CALFW.txt, images in path/'aligned images', path/images or path. Lines
    `file token`, two a pair: first the genuine pairs, whose token is the fold, 1 to 10; then the
    impostors, token 0, a fold every 300."""
    file = Path(path, 'pairs_CALFW.txt')
    lines, digest = pair_files.read_lines(file)
    if len(lines) != 4 * folds * per_fold:
        raise DataError(f'{file}: {len(lines)} lines; expected {4 * folds * per_fold}, two a pair')
    rows, half = [], folds * per_fold
    cut = [(line.rsplit(maxsplit=1) + [''])[:2] for _, line in lines]
    for index, ((a, token), (b, other)) in enumerate(zip(cut[::2], cut[1::2], strict=True)):
        same = index < half
        allowed = range(1, folds + 1) if same else (0,)
        if token != other or not NUMBER.fullmatch(token) or int(token) not in allowed:
            expected = f'one fold of 1 to {folds}' if same else '0'
            wrong = f'tokens {token!r} and {other!r}: expected {expected}'
            raise DataError(f'{file}, line {lines[2 * index][0]}: {wrong}')
        rows.append((a, b, same, int(token) - 1 if same else (index - half) // per_fold))
    counts = np.bincount([fold for *_, same, fold in rows if same], minlength=folds).tolist()
    if counts != [per_fold] * folds:
        raise DataError(f'{file}: {counts} genuine pairs in the folds; expected {per_fold} in each')
    below = ('aligned images', 'images', '')
    return of_pairs(rows, Path(path), below, digest, lambda name: re.sub(r'_\d+\.\w+$', '', name))


def cacd_vs(path: str, folds: int = 10, per_fold: int = 200) -> Benchmark:
    """CACD-VS: path/0000_0.jpg and 0000_1.jpg to 3999, or below path/images; no list: in each 400
    pairs, 200 genuine and 200 not."""
    rows: list[tuple] = []
    for i in range(2 * folds * per_fold):
        fold, impostor = divmod(i // per_fold, 2)
        rows.append((f'{i:04d}_0.jpg', f'{i:04d}_1.jpg', not impostor, fold))
    return of_pairs(rows, Path(path), ('images', ''), None)


def bin_file(path: str) -> Benchmark:
    """InsightFace's .bin (lfw, agedb_30, cfp_fp, calfw, cplfw), in its ten contiguous folds."""
    images, same = pair_files.read_bin(path)
    index = np.arange(len(same))
    fold = np.repeat(np.arange(10), [len(part) for part in np.array_split(index, 10)])
    names = [f'{path}: image {i}' for i in range(len(images))]
    digest = hashlib.sha256(files.read_bytes(path)).hexdigest()
    return Benchmark(images, names, Pairs(2 * index, 2 * index + 1, same, fold), digest=digest)


def pair_list(path: str) -> Benchmark:
    """Lines `label pathA pathB`, label 1 or 0, paths from the list's folder or its images/: LAG,
    AgeDB-C20, FGNET-C30 … And lists of the user's in LFW's format, whatever their size. A first
    line `# thresholds: every score`, as --write-pairs has it, makes the thresholds those of pairs
    drawn by age gap."""
    file = Path(path).expanduser()
    lines, digest = pair_files.read_lines(file)
    first = lines[0][1]
    head = first.split()
    if len(lines) > 1 and len(head) < 3 and all(map(NUMBER.fullmatch, head)):
        folds = int(head[0]) if len(head) == 2 else 1
        rows = _lfw_rows(file, lines[1:], int(head[-1]), folds)
        return of_pairs(rows, file.parent, ('', 'images', *LFW_FOLDERS), digest)
    rows = []
    for number, line in lines:
        if pair := pair_files.pair_of(line):
            rows.append(pair)
        elif not line.startswith('#') and not (line == first and pair_files.is_header(line)):
            raise DataError(f'{file}, line {number}: {line!r:.200}: {pair_files.why_no_pair(line)}')
    if not rows:
        raise DataError(f'{file}: no pair in it: expected lines `label pathA pathB`')
    every_score = first.startswith('#') and pair_files.EVERY_SCORE in first
    return of_pairs(rows, file.parent, ('', 'images'), digest)._replace(every_score=every_score)


def fgnet(path: str, images: int = 1002, people: int = 82) -> Benchmark:
    """FG-NET: 001A02.JPG … 082A18.jpg, in whatever case, anywhere below path."""
    found = _named(path, FGNET, form := 'subject, A, age: 001A02.JPG')
    there = np.unique([int(Path(x).stem[:3]) for x in found.sources])
    if (len(found.sources), len(there)) != (images, people):
        absent = [str(number) for number in range(1, people + 1) if number not in there]
        count = f'{len(found.sources)} images of {len(there)} people named {form}'
        missing = f'; no image of subject {some(absent)}' if absent else ''
        raise DataError(f'{path}: {count}; the published set has {images} of {people}{missing}')
    return found


def morph(path: str) -> Benchmark:
    """MORPH Album 2: 009055_1M54.JPG …, anywhere below path; sorted by subject and picture."""
    return _named(path, MORPH, 'subject_picture, sex, age: 009055_1M54.JPG')


def morph_subjects(album: Benchmark, subjects: int, seed: int) -> Benchmark:
    """`subjects` people of MORPH with two images or more, drawn by the seed, each a gallery and a
    probe image, in turns: the youngest, and the oldest of the others; of one age, the lowest
    picture number. `digest` is that of the `drawn` list. Raises DataError if there are fewer."""
    starts = np.flatnonzero(np.diff(album.labels)) + 1  # sorted by subject, then picture
    several = [one for one in np.split(np.arange(len(album.labels)), starts) if len(one) > 1]
    if len(several) < subjects:
        count = f'{len(several)} subjects have two or more images'
        raise DataError(f"{count}: --subjects {subjects} can't be drawn from them")
    order = []
    for k in np.sort(np.random.default_rng(seed).choice(len(several), subjects, replace=False)):
        youngest = several[k][album.ages[several[k]].argmin()]
        rest = several[k][several[k] != youngest]
        order += [youngest, rest[album.ages[rest].argmax()]]
    paths, people = [album.sources[i] for i in order], (album.labels[order], album.ages[order])
    names = [Path(path).name for path in paths]
    drawn = ''.join(f'{a} {b}\n' for a, b in zip(names[::2], names[1::2], strict=True))
    digest, probes = hashlib.sha256(drawn.encode()).hexdigest(), np.arange(1, len(order), 2)
    listed = Benchmark(paths, paths, None, *people, digest, probes, notices=album.notices)
    return listed._replace(drawn=drawn)


def folder(path: str, pat: str, pos: int) -> Benchmark:
    """People of known age, path/<identity>/<image>, re.split(pat, name)[pos] the age; or tar
    shards, as in meta.py."""
    faces = Faces(path, pat, pos)
    paths = [faces.path(i) for i in range(len(faces))]
    sources: list = paths
    if shards_of(faces.places) is not None:  # entries of tar files, which have no path
        sources = [faces.encoded(i) for i in range(len(faces))]
    notices = (*faces.source.notices, *check_ages(faces))
    return Benchmark(sources, paths, labels=faces.labels, ages=faces.ages, notices=notices)


def embeddings(path: str) -> Benchmark:
    """Stored vectors, whatever made them: a .npz or .safetensors of `embeddings` (N, D),
    `identities` (N,) and `ages` (N,) in years."""
    from storage.vectors import VectorFaces

    faces = VectorFaces(path)
    names = list(map(faces.path, range(len(faces))))
    found = Benchmark([], names, labels=faces.labels, ages=faces.ages, vectors=faces.vectors)
    return found._replace(digest=faces.fingerprint)


def images_below(path: str) -> list[str]:
    """All image files below a folder, sorted. Raises DataError if there are none."""
    if not os.path.isdir(path):
        raise DataError(f'{path}: no such folder{seen_from(path)}')
    found = sorted(os.path.join(path, name) for name in files.below(path).images)
    if not found:
        raise DataError(f'{path}: no images in this folder or below')
    return found


def _named(path, pattern, form):
    """Images whose names hold subject and age, sorted by these numbers. DataError if two are of one
    photograph: they would be a pair that says nothing."""
    found, others, first = [], [], {}
    for file in images_below(path):
        match = re.fullmatch(pattern, Path(file).stem)
        if not match:
            others.append(os.path.relpath(file, path))
            continue
        two = some([first.setdefault(match['photograph'].lower(), file), file])
        if first[match['photograph'].lower()] != file:
            raise DataError(f'{path}: two images of one photograph, {two}: remove one of them')
        numbers = re.split(r'(\d+)', match.string)
        order = [int(text) if text.isdigit() else text.lower() for text in numbers]
        found.append((order, file, int(match['subject']), float(match['age'])))
    if not found:
        raise DataError(f'{path}: no image here or below is named {form}')
    _, paths, subjects, ages = map(list, zip(*sorted(found), strict=True))
    labels = np.unique(subjects, return_inverse=True)[1]
    rest = f'{len(others)} image(s) left out, whose names are not {form}: {some(others)}'
    notices = (f'{path}: {rest}',) if others else ()
    return Benchmark(paths, paths, labels=labels, ages=np.float32(ages), notices=notices)


READERS: dict[str, Callable[..., Benchmark]] = {'lfw': lfw, 'calfw': calfw, 'cacd-vs': cacd_vs}
READERS |= {'bin': bin_file, 'pairs': pair_list, 'fgnet': fgnet, 'morph': morph}
READERS |= {'folder': folder, 'embeddings': embeddings}
PUBLISHED = ('lfw', 'calfw', 'cacd-vs')  # taken as they are; other lists are checked
