"""A set of faces examined before anybody trains on it: what is in it, what is wrong with it."""

import keyword
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from preparation.duplicates import by_content, by_embedding
from preparation.findings import findings
from preparation.pictures import draw_histograms
from preparation.report import write_csv
from preparation.survey import Part
from storage.images import some
from utils import UserError


def examine(
    name: str,
    entry: dict,
    cutoffs: Sequence[float],
    out: Path,
    weights: str | None = None,
    workers: int = 1,
) -> str:
    """The report on a checked entry of meta.py, as text; picture and lists go to the folder `out`.

    Raises DataError or UserError.
    """
    parts = {
        root: Part(entry[root], entry['pat'], entry['pos'], workers)
        for root in ('train_root', 'val_root')
        if entry[root]
    }
    same = by_content(parts)
    close, akin = by_embedding(parts, weights) if weights else ([], [])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f'{out}: {error.strerror}: --out names a folder that can be written'
        ) from None
    ages = {
        part.root: (
            [face.age for face in part.faces if face.age is not None],
            list(map(len, part.people.values())),
        )
        for part in parts.values()
    }
    draw_histograms(ages, cutoffs, out / 'ages.png')
    listed = [('file', 'what', 'other', 'cosine')]
    listed += [
        (part.path(face), face.reason, '', '')
        for part in parts.values()
        for face in part.faces
        if face.wrong
    ]
    listed += [(a, 'same pixels', b, '') for a, b in same]
    listed += [(a, 'same photograph', b, f'{cosine:.3f}') for a, b, cosine in close]
    listed += [(a, 'same person', b, f'{cosine:.3f}') for a, b, cosine in akin]
    write_csv(out / 'findings.csv', listed)
    facts = [line for part in parts.values() for line in describe(part, cutoffs)]
    todo = findings(entry, parts, same, close, akin, cutoffs)
    people = len(parts['train_root'].people)  # empty folders are to be filled or removed
    return '\n'.join(
        [
            *facts,
            f'{out / "ages.png"}: the ages and the images a person; '
            f'{out / "findings.csv"}: {len(listed) - 1} findings, file by file',
            '',
            'To do:' if todo else 'Nothing to do.',
            *(f'  {number}. {line}' for number, line in enumerate(todo, 1)),
            '',
            'For meta.py:',
            '',
            entry_called(name, entry, people),
        ]
    )


def describe(part: Part, cutoffs: Sequence[float]) -> list[str]:
    """What is in one root, a few lines."""
    counts = sorted(map(len, part.people.values()))
    lines = [
        f'{part.root}: {len(part.people)} people, {len(part.faces)} images, '
        f'{counts[0]} to {counts[-1]} a person (median {np.median(counts):g})'
    ]
    known = [[face.age for face in faces if face.age is not None] for faces in part.people.values()]
    ages = np.array(sum(known, []))
    spans = [np.ptp(one) for one in known if one]
    if len(ages):
        groups = np.bincount(np.searchsorted(cutoffs, ages), minlength=len(cutoffs) + 1)
        names = [f'to {cutoff:g}' for cutoff in cutoffs] + [f'over {cutoffs[-1]:g}']
        groups = ', '.join(f'{group} {count}' for group, count in zip(names, groups, strict=True))
        lines += [
            f'  ages {ages.min():g} to {ages.max():g}; a person is seen over '
            f'{np.median(spans):g} years (median), {np.max(spans):g} at most',
            f'  images by age group: {groups}',
        ]
    if part.others:
        lines.append(
            f'  {len(part.others)} files or folders that training does not read: '
            f'{some(part.others)}'
        )
    return lines


def identifier(name: str) -> str:
    """A Python name like this one."""
    word = re.sub(r'\W', '_', name, flags=re.ASCII) or '_'
    return f'_{word}' if word[0].isdigit() or keyword.iskeyword(word) else word


def entry(
    train_root: str | os.PathLike, val_root: str | None, pat: str, pos: int, n_cls: int
) -> str:
    """The text of an entry of meta.py, named after its folder."""
    train_root = os.path.abspath(train_root)
    values = {'train_root': train_root, 'val_root': val_root, 'pat': pat, 'pos': pos}
    return entry_called(identifier(os.path.basename(train_root)), values, n_cls)


def entry_called(name: str, values: dict, n_cls: int) -> str:
    """The text of an entry of meta.py with another n_cls."""
    pat = values['pat']
    raw = "'" not in pat and not pat.endswith('\\') and pat.isprintable()
    train, val = (
        _literal(value if value is None else os.fspath(value))
        for value in (values['train_root'], values['val_root'])
    )
    pat = f"r'{pat}'" if raw else repr(pat)
    return '\n'.join(
        [
            f'{name} = {{',
            f"    'train_root': {train},",
            f"    'val_root': {val},",
            f"    'pat': {pat},",
            f"    'pos': {values['pos']},",
            f"    'n_cls': {n_cls},",
            '}',
        ]
    )


def _literal(value):
    """As Python writes it, in characters that the terminal has."""
    try:
        repr(value).encode(sys.stdout.encoding or 'utf-8')
    except UnicodeEncodeError:
        return ascii(value)
    return repr(value)
