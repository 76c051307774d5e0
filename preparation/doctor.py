"""A set of faces examined before anybody trains on it: what is in it, what is wrong with it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from preparation.findings import findings
from preparation.pictures import draw_histograms
from preparation.summary import entry_text
from preparation.survey import Root, by_content, by_embedding
from preparation.target import write_csv
from storage.images import some
from utils import UserError


def examine(
    name: str, entry: dict, cutoffs: tuple, out: Path, weights: str | None = None, workers: int = 1
) -> str:
    """The report on a checked entry of meta.py, as text; picture and lists go to the folder `out`.

    Raises DataError or UserError.
    """
    keys = [key for key in ('train_root', 'val_root') if entry[key]]
    roots = {key: Root(entry[key], entry['pat'], entry['pos'], workers) for key in keys}
    same = by_content(roots)
    close, akin = by_embedding(roots, weights) if weights else ([], [])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        remedy = '--out names a folder that can be written'
        raise UserError(f'{out}: {error.strerror}: {remedy}') from None
    sets, listed = {}, []
    for root in roots.values():
        known = [face.age for face in root.faces if face.age is not None]
        sets[root.root] = known, list(map(len, root.people.values()))
        listed += [(root.path(face), face.reason, '', '') for face in root.faces if face.wrong]
    draw_histograms(sets, cutoffs, out / 'ages.png')
    listed += [(a, 'same pixels', b, '') for a, b in same]
    listed += [(a, 'same photograph', b, f'{cosine:.3f}') for a, b, cosine in close]
    listed += [(a, 'same person', b, f'{cosine:.3f}') for a, b, cosine in akin]
    write_csv(out / 'findings.csv', [('file', 'what', 'other', 'cosine'), *listed])
    todo = findings(entry, roots, (same, close, akin), cutoffs)
    people = len(roots['train_root'].people)  # empty folders are to be filled or removed
    lines = [line for root in roots.values() for line in describe(root, cutoffs)]
    found = f'{out / "findings.csv"}: {len(listed)} findings, file by file'
    lines += [f'{out / "ages.png"}: the ages and the images a person; {found}', '']
    lines.append('To do:' if todo else 'Nothing to do.')
    lines += [f'  {number}. {line}' for number, line in enumerate(todo, 1)]
    return '\n'.join([*lines, '', 'For meta.py:', '', entry_text(name, entry | {'n_cls': people})])


def describe(root: Root, cutoffs: Sequence[float]) -> list[str]:
    """What is in one root, a few lines."""
    counts = sorted(map(len, root.people.values()))
    images = f'{counts[0]} to {counts[-1]} a person (median {np.median(counts):g})'
    lines = [f'{root.root}: {len(root.people)} people, {len(root.faces)} images, {images}']
    known = [[face.age for face in faces if face.age is not None] for faces in root.people.values()]
    ages, spans = np.array(sum(known, [])), [np.ptp(ages) for ages in known if ages]
    if len(ages):
        groups = np.bincount(np.searchsorted(cutoffs, ages), minlength=len(cutoffs) + 1)
        names = [*(f'to {cutoff:g}' for cutoff in cutoffs), f'over {cutoffs[-1]:g}']
        shown = ', '.join(f'{group} {count}' for group, count in zip(names, groups, strict=True))
        seen = f'{np.median(spans):g} years (median), {np.max(spans):g} at most'
        lines.append(f'  ages {ages.min():g} to {ages.max():g}; a person is seen over {seen}')
        lines.append(f'  images by age group: {shown}')
    if root.others:
        unread = f'{len(root.others)} files or folders that training does not read'
        lines.append(f'  {unread}: {some(root.others)}')
    return lines
