"""A set of faces examined before anybody trains on it: what is in it, what is wrong with it."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from dataset import Faces
from evaluation.set_checks import NOTHING, check_ages
from preparation import survey
from preparation.summary import entry_text
from preparation.survey import Root, by_content, by_embedding
from preparation.target import write_csv
from storage.folder import alike
from storage.images import some
from system.names import naming
from utils import UserError


def examine(
    name: str, entry: dict, cutoffs: tuple, out: Path, weights: str | None = None, workers: int = 1
) -> str:
    """The report on a checked entry of meta.py, as text; picture and lists go to the folder `out`.

    Raises DataError or UserError.
    """
    named = [entry[key] for key in ('train_root', 'val_root') if entry[key]]
    roots = [Root(root, entry['pat'], entry['pos'], workers) for root in named]
    pairs = by_content(roots) + (by_embedding(roots, weights) if weights else [])
    with naming(out, '--out names a folder that can be written', UserError):
        out.mkdir(parents=True, exist_ok=True)
    draw_histograms(roots, cutoffs, out / 'ages.png')
    listed = [(face.path, face.wrong, '', '') for r in roots for face in r.faces if face.wrong]
    write_csv(out / 'findings.csv', [('file', 'what', 'other', 'cosine'), *listed, *pairs])
    todo = findings(entry, roots, pairs, cutoffs)
    people = len(roots[0].people)  # empty folders are to be filled or removed
    lines = [line for root in roots for line in describe(root, cutoffs)]
    found = f'{out / "findings.csv"}: {len(listed) + len(pairs)} findings, file by file'
    lines += [f'{out / "ages.png"}: the ages and the images a person; {found}', '']
    lines.append('To do:' if todo else 'Nothing to do.')
    lines += [f'  {number}. {line}' for number, line in enumerate(todo, 1)]
    return '\n'.join([*lines, '', 'For meta.py:', '', entry_text(name, entry | {'n_cls': people})])


def count_by_age(root: Root, cutoffs: Sequence[float]) -> dict[str, int]:
    """{age group: its images}"""
    names = [*(f'to {cutoff:g}' for cutoff in cutoffs), f'over {cutoffs[-1]:g}']
    groups = np.searchsorted(cutoffs, root.known)
    return dict(zip(names, np.bincount(groups, minlength=len(names)).tolist(), strict=True))


def describe(root: Root, cutoffs: Sequence[float]) -> list[str]:
    """What is in one root, a few lines."""
    counts = sorted(map(len, root.people.values()))
    images = f'{counts[0]} to {counts[-1]} a person (median {np.median(counts):g})'
    lines = [f'{root.root}: {len(root.people)} people, {len(root.faces)} images, {images}']
    if root.known:
        ages = [[x.age for x in faces if x.age is not None] for faces in root.people.values()]
        spans = [np.ptp(known) for known in ages if known]
        seen = f'{np.median(spans):g} years (median), {np.max(spans):g} at most'
        span = f'{min(root.known):g} to {max(root.known):g}; a person is seen over {seen}'
        groups = ', '.join(f'{name} {n}' for name, n in count_by_age(root, cutoffs).items())
        lines += [f'  ages {span}', f'  images by age group: {groups}']
    if root.others:
        unread = f'{len(root.others)} files or folders that training does not read'
        lines.append(f'  {unread}: {some(root.others)}')
    return lines


def findings(entry: dict, roots: list[Root], pairs: list, cutoffs: Sequence[float]) -> list[str]:
    """The list of what to do about an entry of meta.py, the gravest first; empty if all is well.

    `pairs` are survey.by_content's and survey.by_embedding's.
    """
    train, val = roots[0], roots[-1]
    todo, people = [line for root in roots for line in _files(root)], len(train.people)
    if entry['n_cls'] not in (people, None):
        kind = f'{"folders" if train.folder else "people"} in train_root are {people}'
        todo.append(f"'n_cls' is {entry['n_cls']}, the {kind}: paste the entry below")
    if val is train:
        remedy = 'move a tenth of the folders there, or nothing tells whether the training works'
        todo.append(f'val_root is None: {remedy}')
    elif os.path.realpath(val.root) == os.path.realpath(train.root):
        remedy = 'move a tenth of the people to a folder of their own'
        todo.append(f'{val.root}: val_root is train_root: {NOTHING}; {remedy}')
        pairs = []
    else:
        todo += _validation(train, val)
    todo += _duplicates(train, val, pairs)
    for root in roots:
        todo += [*alike(root.root, root.people), *check_ages(cast(Faces, root)), *_people(root)]
    missing = [name for name, number in count_by_age(train, cutoffs).items() if not number]
    if train.known and missing:
        remedy = 'nothing is learnt of it; fewer age_cutoffs, or more images'
        todo.append(f'{train.root}: no image of the age group {", ".join(missing)}: {remedy}')
    return todo


def _files(root) -> Iterator[str]:
    """Files that can't be trained on, by what to do about them; empty folders."""
    for remedy in (survey.RENAME, survey.ALIGN, survey.FETCH):
        faces = [face for face in root.faces if face.remedy == remedy]
        if faces:
            number = f'{root.root}: {len(faces)} of {len(root.faces)} images: {faces[0].wrong}'
            yield f'{number}: {some(map(root.short, faces))}: {remedy}'
    if root.empty:
        count = f'{len(root.empty)} folders without an image'
        yield f'{root.root}: {count}: {some(root.empty)}: fill or remove them'


def _duplicates(train, val, pairs) -> Iterator[str]:
    place = {face.path: (root, face.person) for root in (train, val) for face in root.faces}
    same = [(a, b) for a, what, b, _ in pairs if what == survey.SAME_PIXELS]
    across = [(a, b) for a, b in same if place[a][1] != place[b][1]]
    leaked = [(a, b) for a, b in same if place[a][0] != place[b][0]]
    if leaked and len({b for _, b in leaked}) == sum(bool(face.pixels) for face in val.faces):
        copy = f'{val.root}: a copy of images of {train.root}'
        yield f'{copy}: {NOTHING}; take out of train_root the people to validate on'
    elif leaked:
        count = f'{len(leaked)} images are in train_root and in val_root'
        yield f'{count}: {some(b for _, b in leaked)}: remove them from one'
    if across:
        found = some(f'{a} = {b}' for a, b in across)
        count = f'{len(across)} images are in the folders of different people'
        yield f'{count}: {found}: remove the wrong one'
    if within := len(same) - len({*across, *leaked}):
        count = f'{within} images are twice in the folder of their person'
        yield f'{count}: remove the copies (findings.csv)'
    close = [f'{a} ~ {b}' for a, what, b, _ in pairs if what == survey.SAME_PHOTOGRAPH]
    if close:
        yield f'{len(close)} pairs look like one photograph: {some(close)}: keep one of each'
    akin = [f'{a} ~ {b} ({cosine})' for a, what, b, cosine in pairs if what == survey.SAME_PERSON]
    if akin:
        count = f'{len(akin)} pairs of folders may be of one person'
        yield f'{count}: {some(akin)}: look at them, and join what is one'


def _validation(train, val) -> Iterator[str]:
    """What a validation set lacks."""
    nothing = 'nothing can be measured of new people'
    if len(val.classes) < 2:
        yield f'{val.root}: one person: telling people apart takes two: {nothing}'
    elif max(map(len, val.people.values())) < 2:
        yield f'{val.root}: one image of each person: recognising somebody takes two: {nothing}'
    both = sorted(train.people.keys() & val.people.keys())
    if both and len(both) < len(val.people):
        count = f'{len(both)} of the {len(val.people)} people of val_root are in train_root too'
        remedy = 'all of them (closed set) or none (verification) makes a figure that can be read'
        yield f'{count}: {some(both)}: {remedy}'


def _people(root) -> Iterator[str]:
    """People who teach nothing of ageing; grey images, and red and blue exchanged."""
    seen = [{face.age for face in faces} for faces in root.people.values() if len(faces) > 1]
    if len(seen) > 2 and all(len(ages) == 1 for ages in seen):
        none = f'none of the {len(seen)} people with several images is seen at two ages'
        yield f"{root.root}: {none}: age and identity can't be told apart; add images years apart"
    alone = [person for person, faces in root.people.items() if len(faces) == 1]
    if len(alone) > 0.1 * len(root.people):
        count = f'{len(alone)} of {len(root.people)} people have one image, {some(alone)}'
        remedy = 'they teach nothing of ageing; add images, or leave them out'
        yield f'{root.root}: {count}: {remedy}'
    grey = [root.short(face) for face in root.faces if face.grey]
    if grey:
        count = f'{len(grey)} of {len(root.faces)} images are grey: {some(grey)}'
        harm = 'no harm if people and ages are as mixed among them as elsewhere'
        yield f'{root.root}: {count}: {harm}'
    blue = [root.short(face) for face in root.faces if face.bluish]
    if blue:
        count = f'{len(blue)} of {len(root.faces)} images are bluer than skin, {some(blue)}'
        cause = 'red and blue are probably exchanged (by a program that counts BGR)'
        yield f'{root.root}: {count}: {cause}: write them again'


def draw_histograms(roots: Sequence[Root], cutoffs: Sequence[float], path: Path) -> None:
    """Writes a PNG: for each root the images at each age, with the bounds of the age groups, and
    how many a person has."""
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.ticker import MaxNLocator

    from evaluation.plots import readable, save

    figure = Figure(figsize=(11, 3.2 * len(roots)), layout='constrained')
    axes = figure.subplots(len(roots), 2, squeeze=False, width_ratios=(2, 1))
    for root, (left, right) in zip(roots, axes, strict=True):
        left.hist(root.known, np.arange(-0.5, max(100, *root.known, 0) + 1), color='#4c72b0')
        for cutoff in cutoffs:
            left.axvline(cutoff + 0.5, color='grey', linestyle=':', linewidth=1)
        left.set_title(f'{readable(root.root)}: {len(root.known):,} images')
        left.set(xlabel='age in years; dotted: age_cutoffs', ylabel='images', xlim=(-1, 101))
        counts = list(map(len, root.people.values()))
        right.hist(counts, np.linspace(0.5, max(counts) + 0.5, min(max(counts), 30) + 1))
        right.set(xlabel='images of a person', ylabel='people', title=f'{len(counts):,} people')
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in (left, right):
            axis.grid(alpha=0.3)
    save(figure, path)
