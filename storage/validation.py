"""Sets of faces whose figures would mean nothing: said, or refused, before training."""
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from storage.images import some
from utils import DataError

if TYPE_CHECKING:
    from dataset import Faces


def check_ages(faces: 'Faces') -> list[str]:
    """Lines of notice where the ages can't be ages: all equal, or the number of the picture."""
    if len(faces) > 1 and np.ptp(faces.ages) == 0:
        return [
            f'{faces.root}: every face is of age {faces.ages[0]:g}: nothing of ageing can be '
            "learnt or measured; do 'pat' and 'pos' in meta.py point at the age?"
        ]
    several, numbered = 0, []
    order = np.argsort(faces.labels, kind='stable')
    starts = np.flatnonzero(np.diff(faces.labels[order])) + 1
    for label, ages in enumerate(np.split(faces.ages[order], starts)):
        several += len(ages) > 1
        ages = np.sort(ages)
        if len(ages) > 1 and ages[0] in (0, 1) and (np.diff(ages) == 1).all():
            numbered.append(faces.classes[label])
    if len(numbered) > 1 and len(numbered) > 0.9 * several:
        return [
            f'{faces.root}: the ages of {len(numbered)} people, {some(numbered)}, count up from 0 '
            "or 1: is the number of the picture taken for the age? Mend 'pat' and 'pos' in meta.py"
        ]
    return []


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


def shared_images(train: 'Faces', val: 'Faces') -> list[int]:
    """Indices in `val` of the images that `train` holds too, byte for byte, of the same person.

    Files are compared where person and size agree, so that sets of other people cost nothing.
    """
    known = {name: label for label, name in enumerate(train.classes)}
    label_in_train = np.array([known.get(name, -1) for name in val.classes])[val.labels]
    candidates = np.flatnonzero(label_in_train >= 0)
    of_them = np.flatnonzero(np.isin(train.labels, label_in_train[candidates]))
    by_size = defaultdict(list)
    sizes = train.source.sizes(train.places[of_them])
    for index, size in zip(of_them.tolist(), sizes.tolist(), strict=True):
        by_size[train.labels[index], size].append(index)
    shared = []
    sizes = val.source.sizes(val.places[candidates])
    for index, size in zip(candidates.tolist(), sizes.tolist(), strict=True):
        others = by_size.get((label_in_train[index], size), ())
        if others:
            data = val.encoded(index)
            if any(train.encoded(other) == data for other in others):
                shared.append(index)
    return shared
