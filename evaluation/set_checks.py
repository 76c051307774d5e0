"""Sets of faces whose figures would mean nothing: said, or refused, before training."""

import hashlib
import itertools
from typing import TYPE_CHECKING

import numpy as np

from storage.images import some
from utils import DataError

if TYPE_CHECKING:
    from dataset import Faces

READS = 50_000  # files of train_root that are compared with those of val_root at every start
FILLED = 1.45  # numbers to a picture at most, where pictures are numbered and some were removed


def check_ages(faces: 'Faces') -> list[str]:
    """Lines of notice where the ages can't be ages: (nearly) all equal, or numbers of pictures."""
    if len(faces) > 1 and np.ptp(faces.ages) == 0:
        return [
            f'{faces.root}: every face is of age {faces.ages[0]:g}: nothing of ageing can be '
            "learnt or measured; do 'pat' and 'pos' in meta.py point at the age?"
        ]
    ages, numbers = np.unique(faces.ages, return_counts=True)
    if len(faces) >= 20 and numbers.max() >= 0.95 * len(faces):
        return [
            f'{faces.root}: {numbers.max()} of {len(faces)} faces are of age '
            f'{ages[numbers.argmax()]:g}: little of ageing can be learnt or measured; do '
            "'pat' and 'pos' in meta.py point at the age?"
        ]
    order = np.argsort(faces.labels, kind='stable')
    starts = np.flatnonzero(np.diff(faces.labels[order])) + 1
    people = dict(enumerate(map(np.sort, np.split(faces.ages[order], starts))))
    people = {label: ages for label, ages in people.items() if len(ages) > 1}
    if len(people) > 1 and _is_counter(faces.ages, people.values()):
        return [
            f'{faces.root}: the ages of all {len(faces)} faces count up from '
            f'{faces.ages.min():g}, person after person: is the number of the picture taken for '
            "the age? Mend 'pat' and 'pos' in meta.py"
        ]
    numbered = _numbered(people)
    if numbered:
        return [
            f'{faces.root}: the ages of {len(numbered)} people, '
            f'{some([faces.classes[label] for label in numbered])}, count up from '
            f'{min(people[label][0] for label in numbered):g}: is the number of the picture taken '
            "for the age? Mend 'pat' and 'pos' in meta.py"
        ]
    return []


def _is_counter(ages, people):
    """Whether one counter runs over the set: no number twice, few missing, each person's beside one
    another. `people`: the sorted ages of each.
    """
    spans = sorted((ages[0], ages[-1]) for ages in people)
    apart = all(last < first for (_, last), (first, _) in itertools.pairwise(spans))
    several = len(np.unique(ages)) == len(ages) >= 12
    return several and apart and np.ptp(ages) + 1 <= FILLED * len(ages)


def _numbered(people):
    """The labels in {label: sorted ages} of those whose pictures are numbered from one number on,
    where nearly all are; else none.

    Two people are enough where no number from 0 or 1 on is missing, else it takes three, and three
    pictures of each where it starts later: that may well be a life.
    """
    from_one = [
        label for label, ages in people.items() if ages[0] in (0, 1) and (np.diff(ages) == 1).all()
    ]
    if len(from_one) > 1 and len(from_one) > 0.9 * len(people):
        return from_one
    start = min((ages[0] for ages in people.values()), default=0)
    if start > 1:
        people = {label: ages for label, ages in people.items() if len(ages) > 2}
    counting = [
        label
        for label, ages in people.items()
        if (np.diff(ages) > 0).all() and (ages % 1 == 0).all()
    ]
    places = sum(people[label][-1] - start + 1 for label in counting)
    pictures = sum(len(people[label]) for label in counting)
    enough = len(counting) > max(2, 0.9 * len(people)) and places <= FILLED * pictures
    return counting if enough else []


def check_validation(train: 'Faces', val: 'Faces') -> list[str]:
    """Lines of notice of what is wrong with `val` as a validation set for `train`.

    Raises DataError where all of its images are in `train` too, or where neither verification
    (two people, one of them twice) nor closed-set accuracy (people of `train`) can be measured.
    """
    if val.source.beside.resolve() == train.source.beside.resolve():
        raise DataError(
            f'{val.root}: val_root is train_root: what was trained on says nothing of new faces; '
            'move a tenth of the people to a folder of their own, or set val_root to None'
        )
    shared = shared_images(train, val)
    if len(shared) == len(val):
        raise DataError(
            f'{val.root}: all {len(val)} images are in {train.root} too: what was trained on says '
            'nothing of new faces; take them out of one of the two, or set val_root to None'
        )
    notices = []
    if shared:
        notices.append(
            f'{val.root}: {len(shared)} of {len(val)} images are in {train.root} too, and make '
            f'validation look better than it is: {some([val.path(index) for index in shared])}'
        )
    known = len(set(val.classes) & set(train.classes))
    missing = None
    if len(val.classes) < 2:
        missing = 'one person: telling people apart takes two'
    elif np.bincount(val.labels).max() < 2:
        missing = 'one image of each person: recognising somebody takes two'
    if missing and not known:
        raise DataError(
            f'{val.root}: {missing}, so nothing can be measured: add images, or set val_root to '
            'None'
        )
    if missing:
        notices.append(f'{val.root}: {missing}: only closed-set accuracy can be measured')
    return notices


def shared_images(train: 'Faces', val: 'Faces', most: int = READS) -> list[int]:
    """Indices in `val` of the images that `train` holds too, byte for byte, whosever they are.

    Files are read where their sizes agree: all of people of the same name, and of the others up to
    `most` files of `train`, those of the rarest sizes first; the rest only where one of them is
    found, so that sets of other people cost little.
    """
    known = {name: label for label, name in enumerate(train.classes)}
    label_in_train = np.array([known.get(name, -1) for name in val.classes])[val.labels]
    sizes, sizes_in_train = val.source.sizes(val.places), train.source.sizes(train.places)
    both, numbers = np.unique(sizes_in_train, return_counts=True)
    in_both = np.isin(both, sizes) & (both > 0)  # -1: missing, which is said when they are read
    both, numbers = both[in_both], numbers[in_both]
    rarest = np.argsort(numbers, kind='stable')
    few = both[rarest[np.cumsum(numbers[rarest]) <= most]]
    of_known = np.isin(train.labels, label_in_train) & np.isin(sizes_in_train, both)
    shared = _same_bytes(train, val, of_known | np.isin(sizes_in_train, few), sizes_in_train, sizes)
    if shared and len(few) < len(both):
        shared = _same_bytes(train, val, np.isin(sizes_in_train, both), sizes_in_train, sizes)
    return shared


def _same_bytes(train, val, of_train, sizes_in_train, sizes):
    """Indices in `val` of the images whose bytes are those of one of `train` in the mask."""
    there = {_digest(train, index) for index in np.flatnonzero(of_train).tolist()} - {None}
    candidates = np.flatnonzero(np.isin(sizes, sizes_in_train[of_train]))
    return [index for index in candidates.tolist() if _digest(val, index) in there]


def _digest(faces, index):
    try:
        return hashlib.sha256(faces.encoded(index)).digest()
    except DataError:  # what can't be read is counted when the images are decoded
        return None
