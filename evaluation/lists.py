"""The published list formats, each read into Listed: what is where, which pairs, which fold.

Every reader takes the folder or file that the user names, tells in one DataError line what is
missing and where it looked, and refuses another count than the published one (the keyword
arguments, there for lists of one's own).
"""

import hashlib
import os
import re
from pathlib import Path

import numpy as np

from dataset import Faces
from evaluation.listed import Listed, listed_pairs
from evaluation.listfile import EVERY_SCORE, is_header, pair_of, read_lines, why_no_pair
from evaluation.pairs import Pairs
from evaluation.pickled import read_bin
from evaluation.set_checks import check_ages
from recognition.alignment import TAIL
from storage import files
from storage.images import some
from utils import DataError

# 001A43a.JPG: subject 1 at 43, the second picture; aligners append to it: 001A43a_0.JPG
FGNET = re.compile(
    rf'(?P<photograph>(?P<subject>\d{{3}})a(?P<age>\d{{1,2}})[a-z]?){TAIL}',
    re.IGNORECASE | re.ASCII,
)
# 009055_1M54.JPG: subject, picture, sex, age
MORPH = re.compile(
    rf'(?P<photograph>(?P<subject>\d{{1,18}})_\d+[MF](?P<age>\d{{1,3}})){TAIL}',
    re.IGNORECASE | re.ASCII,
)
NUMBER = re.compile(r'[0-9]{1,9}')
# what LFW's archives unpack to
LFW_FOLDERS = ('lfw', 'lfw_funneled', 'lfw-deepfunneled', 'lfw-deepfunneled/lfw-deepfunneled')


def lfw(path, folds: int = 10, per_fold: int = 300) -> Listed:
    """LFW: pairs.txt in path or beside it, images <Name>/<Name>_0001.jpg in path, in path/images or
    in the folder that a download unpacks to."""
    file = Path(path, 'pairs.txt')
    if not file.exists() and file.parent.with_name('pairs.txt').exists():
        file = file.parent.with_name('pairs.txt')
    lines, digest = read_lines(file)
    if lines[0][1].split() != [str(folds), str(per_fold)]:
        raise DataError(
            f'{file}: the first line is {lines[0][1]!r}; LFW has {folds} folds of '
            f'{per_fold} and {per_fold} pairs; a list of your own in this format is '
            f'read by the benchmark `pairs`'
        )
    rows, people = _lfw_rows(file, lines[1:], per_fold, folds)
    return listed_pairs(rows, Path(path), ('images', '', *LFW_FOLDERS), digest, people)


def _lfw_rows(file, lines, per_fold, folds):
    """Rows and people of LFW's lines: in each fold `per_fold` genuine pairs, then as many not."""
    if len(lines) != 2 * folds * per_fold:
        raise DataError(f'{file}: {len(lines)} pairs; expected {2 * folds * per_fold}')
    rows, people = [], []
    for index, (number, line) in enumerate(lines):
        fields = [field.strip() for field in line.split('\t' if '\t' in line else None)]
        same = index // per_fold % 2 == 0
        if (
            len(fields) != 4 - same
            or not NUMBER.fullmatch(fields[1])
            or not NUMBER.fullmatch(fields[-1])
        ):
            form = 'name number number' if same else 'name number name number'
            raise DataError(f'{file}, line {number}: {line!r}: expected {form}')
        a, i, b, j = (fields[0], fields[1], fields[0], fields[2]) if same else fields
        rows.append(
            (
                f'{a}/{a}_{int(i):04d}.jpg',
                f'{b}/{b}_{int(j):04d}.jpg',
                same,
                index // (2 * per_fold),
            )
        )
        people.append((a, b))
    return rows, people


def calfw(path, folds: int = 10, per_fold: int = 300) -> Listed:
    """CALFW: path/pairs_CALFW.txt, images in path/'aligned images', path/images or path.

    Lines `file token`, two a pair: first the genuine pairs, whose token is the fold, 1 to 10; then
    the impostors, token 0, a fold every 300.
    """
    file = Path(path, 'pairs_CALFW.txt')
    lines, digest = read_lines(file)
    if len(lines) != 4 * folds * per_fold:
        raise DataError(f'{file}: {len(lines)} lines; expected {4 * folds * per_fold}, two a pair')
    rows, people = [], []
    for index in range(0, len(lines), 2):
        (a, token), (b, other) = (
            (line.rsplit(maxsplit=1) + [''])[:2] for _, line in lines[index : index + 2]
        )
        same = index < len(lines) // 2
        if (
            token != other
            or not NUMBER.fullmatch(token)
            or (not 1 <= int(token) <= folds if same else int(token))
        ):
            raise DataError(
                f'{file}, line {lines[index][0]}: tokens {token!r} and {other!r}: '
                'expected ' + (f'one fold of 1 to {folds}' if same else '0')
            )
        fold = int(token) - 1 if same else (index // 2 - folds * per_fold) // per_fold
        rows.append((a, b, same, fold))
        people.append(tuple(re.sub(r'_\d+\.\w+$', '', name) for name in (a, b)))
    counts = np.bincount([fold for *_, same, fold in rows if same], minlength=folds)
    if (counts != per_fold).any():
        raise DataError(
            f'{file}: {counts.tolist()} genuine pairs in the folds; expected {per_fold} in each'
        )
    return listed_pairs(rows, Path(path), ('aligned images', 'images', ''), digest, people)


def cacd_vs(path, folds: int = 10, per_fold: int = 200) -> Listed:
    """CACD-VS: path/0000_0.jpg and 0000_1.jpg to 3999, or below path/images; no list: in each 400
    pairs, 200 genuine and 200 not."""
    rows = [
        (f'{i:04d}_0.jpg', f'{i:04d}_1.jpg', i // per_fold % 2 == 0, i // (2 * per_fold))
        for i in range(2 * folds * per_fold)
    ]
    return listed_pairs(rows, Path(path), ('images', ''), None)


def bin_file(path) -> Listed:
    """InsightFace's .bin (lfw, agedb_30, cfp_fp, calfw, cplfw): ten contiguous folds, as
    InsightFace cuts them."""
    images, same = read_bin(path)
    index, fold = np.arange(len(same)), np.empty(len(same), int)
    for k, part in enumerate(np.array_split(index, 10)):
        fold[part] = k
    return Listed(
        images,
        [f'{path}: image {i}' for i in range(len(images))],
        Pairs(2 * index, 2 * index + 1, same, fold),
        digest=hashlib.sha256(Path(path).read_bytes()).hexdigest(),
    )


def pair_list(path) -> Listed:
    """Lines `label pathA pathB`, label 1 or 0, paths from the list's folder or its images/: LAG,
    AgeDB-C20, FGNET-C30 … And lists of one's own in LFW's format, whatever their size.

    Columns are cut at tabs, spaces or commas; the label may come last, a fourth column is the fold.
    Without one, ten folds are cut in the order of the list, each with a tenth of either kind. The
    folders are taken for people where they agree with every label. A first line `# thresholds:
    every score`, as --write-pairs has it, makes the thresholds those of pairs drawn by age gap.
    """
    file = Path(path).expanduser()
    lines, digest = read_lines(file)
    head = lines[0][1].split()
    if len(lines) > 1 and len(head) < 3 and all(NUMBER.fullmatch(field) for field in head):
        folds = int(head[0]) if len(head) == 2 else 1
        rows, people = _lfw_rows(file, lines[1:], int(head[-1]), folds)
        rows = rows if folds > 1 else _in_ten_folds(rows)
        return listed_pairs(rows, file.parent, ('', 'images', *LFW_FOLDERS), digest, people)
    rows = []
    for number, line in lines:
        pair = pair_of(line)
        if pair:
            same, a, b, fold = pair
            rows.append((a, b, same, fold))
        elif not line.startswith('#') and not (line == lines[0][1] and is_header(line)):
            raise DataError(f'{file}, line {number}: {line!r:.200}: {why_no_pair(line)}')
    if not rows:
        raise DataError(f'{file}: no pair in it: expected lines `label pathA pathB`')
    if any(fold is None for *_, fold in rows):
        rows = _in_ten_folds(rows)
    listed = listed_pairs(rows, file.parent, ('', 'images'), digest)
    if lines[0][1].startswith('#') and EVERY_SCORE in lines[0][1]:
        listed = listed._replace(every_score=True)
    folders = [str(Path(source).parent) for source in listed.sources]
    people = np.unique(folders, return_inverse=True)[1][np.stack(listed.pairs[:2], 1)]
    agree = ((people[:, 0] == people[:, 1]) == listed.pairs.same).all()
    return listed._replace(pairs=listed.pairs._replace(people=people)) if agree else listed


def _in_ten_folds(rows):
    """The rows, a tenth of either kind in each fold, in their order."""
    total = [sum(same == kind for _, _, same, _ in rows) for kind in (False, True)]
    counts, cut = [0, 0], []
    for a, b, same, _ in rows:
        cut.append((a, b, same, counts[same] * 10 // total[same]))
        counts[same] += 1
    return cut


def fgnet(path, images: int = 1002, people: int = 82) -> Listed:
    """FG-NET: 001A02.JPG … 082A18.jpg, in whatever case, anywhere below path."""
    return _named(path, FGNET, 'subject, A, age: 001A02.JPG', images, people)


def morph(path) -> Listed:
    """MORPH Album 2: 009055_1M54.JPG …, anywhere below path; sources are sorted by subject and
    picture number."""
    return _named(path, MORPH, 'subject_picture, sex, age: 009055_1M54.JPG')


def folder(path, pat: str, pos: int) -> Listed:
    """People of known age, path/<identity>/<image>, re.split(pat, name)[pos] the age; or tar
    shards, as in meta.py."""
    faces = Faces(path, pat, pos)
    sources = paths = [faces.path(i) for i in range(len(faces))]
    if faces.source.shard_of(faces.places) is not None:  # entries of tar files, which have no path
        sources = [faces.encoded(i) for i in range(len(faces))]
    return Listed(
        sources,
        paths,
        labels=faces.labels,
        ages=faces.ages,
        notices=(*faces.source.notices, *check_ages(faces)),
    )


def images_below(path) -> list[str]:
    """All image files below a folder, sorted. Raises DataError where there are none."""
    try:
        found = files.images_below(path)
    except OSError as error:
        reason = 'no such folder' if isinstance(error, FileNotFoundError) else error.strerror
        raise DataError(f'{path}: {reason}{files.seen_from(str(path))}') from None
    if not found:
        raise DataError(f'{path}: no images in this folder or below')
    return found


def _named(path, pattern, shape, images=None, people=None):
    """Images whose names tell subject and age, in order of subject and of numbers in the name.

    Raises DataError where two are of one photograph: they would be a pair that tells nothing.
    """
    found, others = [], []
    for file in images_below(path):
        match = pattern.fullmatch(Path(file).stem)
        if match:
            found.append((match, file))
        else:
            others.append(os.path.relpath(file, path))
    found.sort(
        key=lambda item: [
            int(text) if text.isdigit() else text.lower()
            for text in re.split(r'(\d+)', Path(item[1]).stem)
        ]
    )
    if not found:
        raise DataError(f'{path}: no image here or below is named {shape}')
    first = {}
    for match, file in found:
        other = first.setdefault(match['photograph'].lower(), file)
        if other != file:
            raise DataError(
                f'{path}: two images of one photograph, {some([other, file])}: remove one of them'
            )
    subjects, ages = zip(*((match['subject'], match['age']) for match, _ in found), strict=True)
    names, labels = np.unique(np.array(subjects, int), return_inverse=True)
    if images is not None and (len(found), len(names)) != (images, people):
        absent = [str(number) for number in range(1, people + 1) if number not in names]
        raise DataError(
            f'{path}: {len(found)} images of {len(names)} people named {shape}; '
            f'the published set has {images} of {people}'
            + (f'; no image of subject {some(absent)}' if absent else '')
        )
    paths = [file for _, file in found]
    notices = (
        [f'{path}: {len(others)} image(s) left out, whose names are not {shape}: {some(others)}']
        if others
        else []
    )
    return Listed(
        paths, paths, labels=labels, ages=np.array(ages, np.float32), notices=tuple(notices)
    )
