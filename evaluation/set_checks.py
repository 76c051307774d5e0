"""Sets of faces whose figures would mean nothing: a notice, or a refusal, before training."""

import hashlib
import itertools
import os
from pathlib import Path

import numpy as np

from dataset import Faces
from storage.images import some
from utils import DataError

READS = 50_000  # files of train_root that are compared with those of val_root at every start
FILLED = 1.45  # numbers to a picture at most, if pictures are numbered and some were removed
MEND = "'pat' and 'pos' in meta.py"
NOTHING = 'what was trained on says nothing of new faces'
BETTER = 'make validation look better than it is'


def check_ages(faces: Faces) -> list[str]:
    """Lines of notice if the ages can't be ages: (nearly) all equal, or numbers of pictures."""
    ages, numbers = np.unique(faces.ages, return_counts=True)
    most, all_ = numbers.max(), len(faces)
    if most == all_ > 1 or all_ >= 20 and most >= 0.95 * all_:
        which = 'every face is' if most == all_ else f'{most} of {all_} faces are'
        said = f'{which} of age {ages[numbers.argmax()]:g}: '
        said += f'{"nothing" if most == all_ else "little"} of ageing can be learnt or measured'
        return [f'{faces.root}: {said}; do {MEND} point at the age?']
    people = {k: np.sort(faces.ages[faces.labels == k]) for k in np.unique(faces.labels)}
    people = {label: ages for label, ages in people.items() if len(ages) > 1}
    said = ''
    if len(people) > 1 and _is_counter(faces.ages, people.values()):
        said = f'all {all_} faces count up from {faces.ages.min():g}, person after person'
    elif numbered := _numbered(people):
        names = some([faces.classes[label] for label in numbered])
        first = min(people[label][0] for label in numbered)
        said = f'{len(numbered)} people, {names}, count up from {first:g}'
    ask = f'is the number of the picture taken for the age? Mend {MEND}'
    return [f'{faces.root}: the ages of {said}: {ask}'] if said else []


def _is_counter(ages, people):
    """Whether one counter runs over the set: no number twice, few missing, people one by one."""
    spans = sorted((ages[0], ages[-1]) for ages in people)
    apart = all(last < first for (_, last), (first, _) in itertools.pairwise(spans))
    several = len(np.unique(ages)) == len(ages) >= 12
    return several and apart and np.ptp(ages) + 1 <= FILLED * len(ages)


def _numbered(people):
    """The labels in {label: sorted ages} of those whose pictures are numbered from one number on,
    if nearly all are; else none. Two people are enough if no number from 0 or 1 on is missing, else
    it takes three, and three pictures of each if it starts later: that may well be a life."""
    from_one = [k for k, ages in people.items() if ages[0] in (0, 1) and (np.diff(ages) == 1).all()]
    if len(from_one) > 1 and len(from_one) > 0.9 * len(people):
        return from_one
    start = min((ages[0] for ages in people.values()), default=0)
    people = {label: ages for label, ages in people.items() if len(ages) > 2 or start <= 1}
    counting = {
        label: ages
        for label, ages in people.items()
        if (ages % 1 == 0).all() and (np.diff(ages) > 0).all()
    }
    places = sum(ages[-1] - start + 1 for ages in counting.values())
    enough = len(counting) > max(2, 0.9 * len(people))
    return [*counting] if enough and places <= FILLED * sum(map(len, counting.values())) else []


def check_validation(train: Faces, val: Faces) -> list[str]:
    """Lines of notice of what is wrong with `val` as a validation set for `train`. Raises DataError
    if all of its images are in `train` too, or if neither verification (different people, one of
    them twice) nor closed-set accuracy (people of `train`) can be measured."""
    if val.source.beside.resolve() == train.source.beside.resolve():
        remedy = 'move a tenth of the people to a folder of their own, or set val_root to None'
        raise DataError(f'{val.root}: val_root is train_root: {NOTHING}; {remedy}')
    folders, sizes = np.array(val.classes)[val.labels], val.source.sizes(val.places)
    shared = [val.path(index) for index in _shared(train, folders, sizes, val.encoded)]
    notices = _shared_notices(train, val.root, shared, len(val), 'images')
    missing = None
    if len(val.classes) < 2:
        missing = 'one person: telling people apart takes two'
    elif np.bincount(val.labels).max() < 2:
        missing = 'one image of each person: recognising somebody takes two'
    if missing and not set(val.classes) & set(train.classes):
        remedy = 'add images, or set val_root to None'
        raise DataError(f'{val.root}: {missing}, so nothing can be measured: {remedy}')
    if missing:
        notices.append(f'{val.root}: {missing}: only closed-set accuracy can be measured')
    return notices


def check_list(train: Faces, path: str, names: list, sources: list) -> list[str]:
    """Lines of notice if images of the list of pairs at `path`, `sources` (paths or bytes) with
    their `names`, are in `train` too, or if their folders are called like people of `train`. Raises
    DataError if all of the images are."""

    def read(index):
        return x if isinstance(x := sources[index], bytes) else Path(x).read_bytes()

    folders = ['' if isinstance(x, bytes) else Path(x).parent.name for x in sources]
    sizes = np.array([len(x) if isinstance(x, bytes) else _size(x) for x in sources])
    shared = [names[index] for index in _shared(train, folders, sizes, read)]
    notices = _shared_notices(train, path, shared, len(sources), 'images of the list')
    known = sorted(set(folders) & set(train.classes))
    if known:
        count = f'{len(known)} of {len(set(folders))} people of the list'
        notices.append(f'{path}: {count} are in {train.root} too, and {BETTER}: {some(known)}')
    return notices


def _shared_notices(train, where, names, total, images):
    """A line if some of `total` images, called `names`, are in `train`. DataError if all are."""
    known = f'{images} are in {train.root} too'
    if len(names) == total:
        remedy = '' if 'list' in images else ', or set val_root to None'
        wrong = f'all {total} {known}: {NOTHING}'
        raise DataError(f'{where}: {wrong}; take them out of one of the two{remedy}')
    line = f'{where}: {len(names)} of {total} {known}, and {BETTER}: {some(names)}'
    return [line] if names else []


def fingerprint(names: list) -> str:
    """sha256 of a set of faces: the last folder and the file of each path in `names`, sorted."""
    short = sorted('/'.join(Path(name).parts[-2:]) for name in names)
    return hashlib.sha256(os.fsencode('\n'.join(short))).hexdigest()


def _shared(train, folders, sizes, read):
    """The indices of images, each of a person called folders[index], of sizes[index] and of the
    bytes read(index), that `train` holds too, byte for byte, of whichever person. Files are read if
    their sizes agree: all of people of the same name, and of the others up to READS files of
    `train`, those of the rarest sizes first; the rest only if one of them is found."""
    sizes_in_train = train.source.sizes(train.places)
    both, numbers = np.unique(sizes_in_train, return_counts=True)
    in_both = np.isin(both, sizes) & (both > 0)  # -1: missing, which is said when they are read
    both, numbers = both[in_both], numbers[in_both]
    rarest = np.argsort(numbers, kind='stable')
    few = both[rarest[np.cumsum(numbers[rarest]) <= READS]]
    known = np.isin(np.array(train.classes), folders)[train.labels]
    known &= np.isin(sizes_in_train, both)

    def same_bytes(of_train):
        there = {_digest(train.encoded, index) for index in np.flatnonzero(of_train).tolist()}
        there.discard(None)
        candidates = np.flatnonzero(np.isin(sizes, sizes_in_train[of_train])).tolist()
        return [index for index in candidates if _digest(read, index) in there]

    shared = same_bytes(known | np.isin(sizes_in_train, few))
    if shared and len(few) < len(both):
        shared = same_bytes(np.isin(sizes_in_train, both))
    return shared


def _size(path):
    return os.path.getsize(path) if os.path.exists(path) else -1


def _digest(read, index):
    try:
        return hashlib.sha256(read(index)).digest()
    except (DataError, OSError):  # what can't be read is counted when the images are decoded
        return None
