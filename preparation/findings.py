"""What is wrong with a set, and what to do about it, one line each."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.set_checks import check_ages
from preparation.survey import AGELESS, SIZE, UNREADABLE, Part
from storage.images import some

REMEDIES = {
    AGELESS: "rename them, or mend 'pat' and 'pos'",
    UNREADABLE: 'copy or download them again, or remove them',
    SIZE: 'align them (prepare.py), or remove them',
}
BLUISH = -4  # red − blue in the middle of a face below which it is hardly skin


def findings(
    entry: dict,
    parts: Mapping[str, Part],
    same: Sequence[tuple],
    close: Sequence[tuple],
    akin: Sequence[tuple],
    cutoffs: Sequence[float],
) -> list[str]:
    """The list of what to do about an entry of meta.py, the gravest first; empty where all is well.

    `parts` are its roots; `same`, `close` and `akin` are what `duplicates` found in them.
    """
    train, val = parts['train_root'], parts.get('val_root')
    todo = [line for part in parts.values() for line in _files(part)]
    people = len(train.people)
    if entry['n_cls'] not in (people, None):
        kind = 'folders' if train.folder else 'people'
        todo.append(
            f"'n_cls' is {entry['n_cls']}, the {kind} in train_root are {people}: "
            'paste the entry below'
        )
    if val and os.path.realpath(val.root) == os.path.realpath(train.root):
        todo.append(
            f'{val.root}: val_root is train_root: what was trained on says nothing of new '
            'faces; move a tenth of the people to a folder of their own'
        )
        val = None
    else:
        todo += _duplicates(parts, same, close, akin)
    if val:
        for missing in _missing(val):
            todo.append(f'{val.root}: {missing}: nothing can be measured of new people')
        both = sorted(train.people.keys() & val.people.keys())
        if both and len(both) < len(val.people):
            todo.append(
                f'{len(both)} of the {len(val.people)} people of val_root are in '
                f'train_root too: {some(both)}: all of them (closed set) or none '
                '(verification) makes a figure that can be read'
            )
    elif 'val_root' not in parts:
        todo.append(
            'val_root is None: move a tenth of the folders there, or nothing tells whether '
            'the training works'
        )
    for part in parts.values():
        todo += check_ages(part) + apart(part)
        todo += _colours(part)
        alone = [person for person, faces in part.people.items() if len(faces) == 1]
        if len(alone) > 0.1 * len(part.people):
            todo.append(
                f'{part.root}: {len(alone)} of {len(part.people)} people have one image, '
                f'{some(alone)}: they teach nothing of ageing; add images, or leave them '
                'out'
            )
        if part is train:
            todo += _groups(part, cutoffs)
    return todo


def _files(part):
    """Files that can't be trained on, by what is wrong with them; empty folders."""
    todo, kinds = [], defaultdict(list)
    for face in part.faces:
        if face.wrong:
            kinds[face.wrong].append(face)
    for wrong, faces in kinds.items():
        names = [f'{face.person}/{face.name}' for face in faces]
        what = f'{wrong}: {some(names)}'
        if wrong != AGELESS:
            what = f'{faces[0].reason}: {some(names)}'
        todo.append(
            f'{part.root}: {len(faces)} of {len(part.faces)} images: {what}: {REMEDIES[wrong]}'
        )
    if part.empty:
        todo.append(
            f'{part.root}: {len(part.empty)} folders without an image: {some(part.empty)}: '
            'fill or remove them'
        )
    return todo


def _duplicates(parts, same, close, akin):
    todo = []
    folder_of = {
        part.path(face): (root, face.person) for root, part in parts.items() for face in part.faces
    }
    across = [(a, b) for a, b in same if folder_of[a][1] != folder_of[b][1]]
    leaked = [(a, b) for a, b in same if folder_of[a][0] != folder_of[b][0]]
    within = len(same) - len({*across, *leaked})
    copied = {b for _, b in leaked}
    if leaked and len(copied) == len([face for face in parts['val_root'].faces if face.pixels]):
        todo.append(
            f'{parts["val_root"].root}: a copy of images of {parts["train_root"].root}: '
            'what was trained on says nothing of new faces; take out of train_root the '
            'people to validate on'
        )
    elif leaked:
        todo.append(
            f'{len(leaked)} images are in train_root and in val_root: '
            f'{some([b for _, b in leaked])}: remove them from one'
        )
    if across:
        todo.append(
            f'{len(across)} images are in the folders of two people: '
            f'{some([f"{a} = {b}" for a, b in across])}: remove the wrong one'
        )
    if within:
        todo.append(
            f'{within} images are twice in the folder of their person: '
            'remove the copies (findings.csv)'
        )
    fresh = [(a, b) for a, b, _ in close if (a, b) not in set(same)]
    if fresh:
        todo.append(
            f'{len(fresh)} pairs look like one photograph: '
            f'{some([f"{a} ~ {b}" for a, b in fresh])}: keep one of each'
        )
    if akin:
        pairs = some([f'{a} ~ {b} ({cosine:.2f})' for a, b, cosine in akin])
        todo.append(
            f'{len(akin)} pairs of folders may be of one person: {pairs}: '
            'look at them, and join what is one'
        )
    return todo


def _missing(val):
    """What a validation set lacks, as training says it too."""
    if len(val.classes) < 2:
        yield 'one person: telling people apart takes two'
    elif max(map(len, val.people.values())) < 2:
        yield 'one image of each person: recognising somebody takes two'


def _colours(part):
    """What the colours of a root say: grey images, red and blue exchanged."""
    todo, read = [], [face for face in part.faces if face.pixels]
    grey = [f'{face.person}/{face.name}' for face in read if face.grey]
    coloured = [face for face in read if not face.grey]
    blue = [f'{face.person}/{face.name}' for face in coloured if face.redness < BLUISH]
    if grey:
        todo.append(
            f'{part.root}: {len(grey)} of {len(read)} images are grey: {some(grey)}: '
            'no harm if people and ages are as mixed among them as elsewhere'
        )
    if len(blue) > 0.5 * len(coloured):
        todo.append(
            f'{part.root}: faces are bluer than skin in {len(blue)} of {len(coloured)} '
            'images: red and blue are probably exchanged (written by a program that counts '
            'BGR): write them again'
        )
    elif blue:
        todo.append(
            f'{part.root}: {len(blue)} of {len(coloured)} images are bluer than skin, '
            f'{some(blue)}: look whether red and blue are exchanged in them'
        )
    return todo


def _groups(part, cutoffs):
    """Age groups of which there is no image."""
    known = [face.age for face in part.faces if face.age is not None]
    missing = set(range(len(cutoffs) + 1)) - set(np.searchsorted(cutoffs, known).tolist())
    if not known or not missing:
        return []
    names = [
        f'to {cutoffs[group]:g}' if group < len(cutoffs) else f'over {cutoffs[-1]:g}'
        for group in sorted(missing)
    ]
    return [
        f'{part.root}: no image of the age group {", ".join(names)}: nothing is learnt of it; '
        'fewer age_cutoffs, or more images'
    ]


def apart(part: Part) -> list[str]:
    """Whether nobody is seen at two ages, though many are seen twice: then age tells who it is."""
    seen = [{face.age for face in faces} for faces in part.people.values() if len(faces) > 1]
    if len(seen) > 2 and all(len(ages) == 1 for ages in seen):
        return [
            f'{part.root}: none of the {len(seen)} people with several images is seen at two '
            "ages: age and identity can't be told apart; add images years apart"
        ]
    return []
