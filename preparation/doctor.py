"""A set of faces examined before anybody trains on it: what is in it, what is wrong with it."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from dataset import Faces
from evaluation.set_checks import NOTHING, check_ages
from preparation.summary import entry_text
from preparation.survey import Root, by_content, by_embedding
from preparation.target import write_csv
from storage.folder import alike
from storage.images import some
from system.names import naming
from utils import UserError

BLUISH = -4  # red − blue in the middle of a face below which it is hardly skin


def examine(
    name: str, entry: dict, cutoffs: tuple, out: Path, weights: str | None = None, workers: int = 1
) -> str:
    """The report on a checked entry of meta.py, as text; picture and lists go to the folder `out`.

    Raises DataError or UserError.
    """
    named = [entry[key] for key in ('train_root', 'val_root') if entry[key]]
    roots = [Root(root, entry['pat'], entry['pos'], workers) for root in named]
    same = by_content(roots)
    close, akin = by_embedding(roots, weights) if weights else ([], [])
    with naming(out, '--out names a folder that can be written', UserError):
        out.mkdir(parents=True, exist_ok=True)
    draw_histograms(roots, cutoffs, out / 'ages.png')
    listed = [(face.path, face.wrong, '', '') for r in roots for face in r.faces if face.wrong]
    listed += [(a, 'same pixels', b, '') for a, b in same]
    listed += [(a, 'same photograph', b, f'{cosine:.3f}') for a, b, cosine in close]
    listed += [(a, 'same person', b, f'{cosine:.3f}') for a, b, cosine in akin]
    write_csv(out / 'findings.csv', [('file', 'what', 'other', 'cosine'), *listed])
    todo = findings(entry, roots, (same, close, akin), cutoffs)
    people = len(roots[0].people)  # empty folders are to be filled or removed
    lines = [line for root in roots for line in describe(root, cutoffs)]
    found = f'{out / "findings.csv"}: {len(listed)} findings, file by file'
    lines += [f'{out / "ages.png"}: the ages and the images a person; {found}', '']
    lines.append('To do:' if todo else 'Nothing to do.')
    lines += [f'  {number}. {line}' for number, line in enumerate(todo, 1)]
    return '\n'.join([*lines, '', 'For meta.py:', '', entry_text(name, entry | {'n_cls': people})])


def by_group(root: Root, cutoffs: Sequence[float]) -> dict[str, int]:
    """{age group: its images}"""
    names = [*(f'to {cutoff:g}' for cutoff in cutoffs), f'over {cutoffs[-1]:g}']
    groups = np.searchsorted(cutoffs, [face.age for face in root.faces if face.age is not None])
    return dict(zip(names, np.bincount(groups, minlength=len(names)).tolist(), strict=True))


def describe(root: Root, cutoffs: Sequence[float]) -> list[str]:
    """What is in one root, a few lines."""
    counts = sorted(map(len, root.people.values()))
    images = f'{counts[0]} to {counts[-1]} a person (median {np.median(counts):g})'
    lines = [f'{root.root}: {len(root.people)} people, {len(root.faces)} images, {images}']
    known = [[face.age for face in faces if face.age is not None] for faces in root.people.values()]
    ages, spans = sum(known, []), [np.ptp(ages) for ages in known if ages]
    if ages:
        seen = f'{np.median(spans):g} years (median), {np.max(spans):g} at most'
        lines.append(f'  ages {min(ages):g} to {max(ages):g}; a person is seen over {seen}')
        groups = by_group(root, cutoffs).items()
        lines.append('  images by age group: ' + ', '.join(f'{name} {n}' for name, n in groups))
    if root.others:
        unread = f'{len(root.others)} files or folders that training does not read'
        lines.append(f'  {unread}: {some(root.others)}')
    return lines


def findings(entry: dict, roots: list[Root], twice: tuple, cutoffs: Sequence[float]) -> list[str]:
    """The list of what to do about an entry of meta.py, the gravest first; empty if all is well.

    `twice` are survey.by_content's pairs and the two lists of survey.by_embedding.
    """
    train, val = roots[0], roots[1] if len(roots) > 1 else None
    todo = [line for root in roots for line in _files(root)]
    people = len(train.people)
    if entry['n_cls'] not in (people, None):
        kind = f'{"folders" if train.folder else "people"} in train_root are {people}'
        todo.append(f"'n_cls' is {entry['n_cls']}, the {kind}: paste the entry below")
    if val is None:
        remedy = 'move a tenth of the folders there, or nothing tells whether the training works'
        todo.append(f'val_root is None: {remedy}')
    if val and os.path.realpath(val.root) == os.path.realpath(train.root):
        remedy = 'move a tenth of the people to a folder of their own'
        todo.append(f'{val.root}: val_root is train_root: {NOTHING}; {remedy}')
    else:
        todo += _duplicates(train, val, *twice)
        todo += _validation(train, val) if val else []
    for root in roots:
        todo += [*alike(root.root, root.people), *check_ages(cast(Faces, root))]
        todo += [*_people(root), *_colours(root)]
    missing = [name for name, number in by_group(train, cutoffs).items() if not number]
    if 0 < len(missing) <= len(cutoffs):
        remedy = 'nothing is learnt of it; fewer age_cutoffs, or more images'
        todo.append(f'{train.root}: no image of the age group {", ".join(missing)}: {remedy}')
    return todo


def _files(root) -> Iterator[str]:
    """Files that can't be trained on, by what to do about them; empty folders."""
    kinds = defaultdict(list)
    for face in root.faces:
        if face.wrong:
            kinds[face.remedy].append(face)
    for remedy, faces in kinds.items():
        names = some(map(root.short, faces))
        number = f'{root.root}: {len(faces)} of {len(root.faces)} images'
        yield f'{number}: {faces[0].wrong}: {names}: {remedy}'
    if root.empty:
        count = f'{len(root.empty)} folders without an image'
        yield f'{root.root}: {count}: {some(root.empty)}: fill or remove them'


def _duplicates(train, val, same, close, akin) -> Iterator[str]:
    place = {face.path: (root, face.person) for root in (train, val) if root for face in root.faces}
    across = [(a, b) for a, b in same if place[a][1] != place[b][1]]
    leaked = [(a, b) for a, b in same if place[a][0] != place[b][0]]
    within = len(same) - len({*across, *leaked})
    if leaked and len({b for _, b in leaked}) == sum(bool(face.pixels) for face in val.faces):
        copy = f'{val.root}: a copy of images of {train.root}'
        yield f'{copy}: {NOTHING}; take out of train_root the people to validate on'
    elif leaked:
        count = f'{len(leaked)} images are in train_root and in val_root'
        yield f'{count}: {some(b for _, b in leaked)}: remove them from one'
    if across:
        pairs = some(f'{a} = {b}' for a, b in across)
        count = f'{len(across)} images are in the folders of different people'
        yield f'{count}: {pairs}: remove the wrong one'
    if within:
        count = f'{within} images are twice in the folder of their person'
        yield f'{count}: remove the copies (findings.csv)'
    fresh = [f'{a} ~ {b}' for a, b, _ in close if (a, b) not in set(same)]
    if fresh:
        yield f'{len(fresh)} pairs look like one photograph: {some(fresh)}: keep one of each'
    if akin:
        pairs = some(f'{a} ~ {b} ({cosine:.2f})' for a, b, cosine in akin)
        count = f'{len(akin)} pairs of folders may be of one person'
        yield f'{count}: {pairs}: look at them, and join what is one'


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
    """People who teach nothing of ageing."""
    seen = [{face.age for face in faces} for faces in root.people.values() if len(faces) > 1]
    if len(seen) > 2 and all(len(ages) == 1 for ages in seen):
        none = f'none of the {len(seen)} people with several images is seen at two ages'
        yield f"{root.root}: {none}: age and identity can't be told apart; add images years apart"
    alone = [person for person, faces in root.people.items() if len(faces) == 1]
    if len(alone) > 0.1 * len(root.people):
        count = f'{len(alone)} of {len(root.people)} people have one image, {some(alone)}'
        remedy = 'they teach nothing of ageing; add images, or leave them out'
        yield f'{root.root}: {count}: {remedy}'


def _colours(root) -> Iterator[str]:
    """Grey images, and images with red and blue exchanged."""
    coloured = [face for face in root.faces if face.pixels and not face.grey]
    grey = [root.short(face) for face in root.faces if face.grey]
    blue = [root.short(face) for face in coloured if face.redness < BLUISH]
    if grey:
        count = f'{len(grey)} of {len(root.faces)} images are grey: {some(grey)}'
        harm = 'no harm if people and ages are as mixed among them as elsewhere'
        yield f'{root.root}: {count}: {harm}'
    if blue:
        count = f'{len(blue)} of {len(coloured)} images are bluer than skin, {some(blue)}'
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
        ages = [face.age for face in root.faces if face.age is not None]
        left.hist(ages, np.arange(-0.5, max(100, *ages, 0) + 1), color='#4c72b0')
        for cutoff in cutoffs:
            left.axvline(cutoff + 0.5, color='grey', linestyle=':', linewidth=1)
        left.set_title(f'{readable(root.root)}: {len(ages):,} images')
        left.set(xlabel='age in years; dotted: age_cutoffs', ylabel='images', xlim=(-1, 101))
        counts = list(map(len, root.people.values()))
        right.hist(counts, np.linspace(0.5, max(counts) + 0.5, min(max(counts), 30) + 1))
        right.set(xlabel='images of a person', ylabel='people', title=f'{len(counts):,} people')
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in (left, right):
            axis.grid(alpha=0.3)
    save(figure, path)
