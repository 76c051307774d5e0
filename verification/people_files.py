"""The tables and sheets of `verify.py --group`."""

import contextlib
import csv
import functools
import hashlib
import io
import itertools
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from storage.files import read_bytes, separator
from storage.images import HEIGHT, WIDTH
from system.processes import each
from system.progress import progress
from utils import DataError, write_whole
from verification import portraits
from verification.index import Index

COLUMNS = ['face', 'photograph', 'box', 'group', 'name', 'age', 'probability', 'nearest']
COLUMNS += ['nearest_probability', 'born', 'taken']
PAIRS = ['accept', 'first', 'second', 'probability', 'years_between']
PAIRS += ['first_face', 'first_photograph', 'second_face', 'second_photograph']
NEEDED = ['photograph', 'box', 'group']  # without these a row is of no face
ROW, MOST = 10, 120  # faces side by side on a sheet, and of a group


def read_people(path: Path, needed: Sequence[str] = NEEDED) -> list[dict[str, str]]:
    """Rows of a CSV with commas, semicolons or tabs; what a row lacks is ''. Raises DataError if it
    can't be read, or lacks a column of `needed`."""
    try:
        text = read_bytes(path).decode('utf-8-sig')
    except UnicodeDecodeError:
        raise DataError(f'{path}: not UTF-8: save the table as CSV in UTF-8') from None
    table = csv.DictReader(io.StringIO(text), delimiter=separator(text.partition('\n')[0]))
    missing = [name for name in needed if name not in (table.fieldnames or ())]
    if missing:
        raise DataError(f'{path}: no column {missing[0]}: start from the file that --group wrote')
    empty = dict.fromkeys([*COLUMNS, *PAIRS], '')
    filled = ({key: cell.strip() for key, cell in row.items() if key and cell} for row in table)
    return [empty | row for row in filled]


def table_text(columns: Iterable[str], rows: list[dict]) -> str:
    """The rows as CSV, a first line of titles before them."""
    file = io.StringIO()
    table = csv.DictWriter(file, [*columns], extrasaction='ignore', lineterminator='\n')
    table.writeheader()
    table.writerows(rows)
    return file.getvalue()


def write_table(path: Path, columns: list[str], rows: list[dict]) -> None:
    text = table_text(columns, rows)
    write_whole(path, lambda temporary: temporary.write_text(text, 'utf-8'))


def by_group(rows: list[dict]) -> list[dict]:
    """The groups of rows of people.csv, for JSON; None for a number that is not known."""
    groups: dict[object, dict] = {}
    for row in rows:
        face = {key: row[key] for key in ('face', 'photograph')}
        face |= {key: row[key] or None for key in ('born', 'taken')}
        face |= {'nearest': row['nearest'] or None, 'box': [*map(int, row['box'].split())]}
        for key in ('age', 'probability', 'nearest_probability'):
            face[key] = None if row[key] == '' else float(row[key])
        person = {'group': row['group'], 'name': '', 'born': '', 'faces': []}
        group = groups.setdefault(row['group'], person)
        group |= {key: group[key] or row[key] for key in ('name', 'born')}
        group['faces'].append(face)
    return [*groups.values()]


def draw_sheets(archive: Index, rows: list[dict], folder: Path) -> int:
    """A JPEG for each group of the sorted rows, its faces in order of age, in `folder`; returns how
    many were drawn: a sheet that shows the same already stays, and of a group that is no more it
    goes."""
    folder.mkdir(exist_ok=True)
    jobs, stale = [], set(folder.glob('[0-9]*.jpg'))
    for number, group in itertools.groupby(rows, operator.itemgetter('group')):
        members = list(group)
        chosen = np.unique(np.linspace(0, len(members) - 1, min(len(members), MOST)).astype(int))
        faces = [members[k] for k in chosen]
        name = f': {faces[0]["name"]}' if faces[0]['name'] else ''
        title, here = f'group {number}{name}, {len(members)} faces', [row['face'] for row in faces]
        points, paths = archive.faces['points'][here], map(archive.path, here)
        parts = [*zip(paths, points, map(_beneath, faces), strict=True)]
        path = folder / f'{number:04}.jpg'
        stale.discard(path)
        mark = hashlib.sha256(repr((title, [(a, c) for a, _, c in parts])).encode()).hexdigest()
        with contextlib.suppress(OSError), Image.open(path) as image:
            if image.info.get('comment') == mark.encode():
                continue
        jobs.append((path, title, parts, mark))
    for path in stale:
        path.unlink()
    workers = os.cpu_count() or 1 if len(jobs) > 32 else 1
    work = each(_draw, jobs, None, functools.partial(bool), workers)
    return sum(1 for _ in progress(work, 'sheets', len(jobs), unit=' groups'))


def _beneath(row):
    taken = f' ({row["taken"][:4]})' if row['taken'] else ''
    return f'{row["age"]:.0f} years{taken}' if row['age'] != '' else row['taken'][:10]


def _draw(tool, job):
    from matplotlib.font_manager import FontProperties, findfont  # slow to import

    path, title, parts, mark = job
    rows, high = -(-len(parts) // ROW), HEIGHT + 20
    sheet = Image.new('RGB', (max(min(len(parts), ROW), 3) * WIDTH, 24 + rows * high), 'white')
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(findfont(FontProperties()), 12)
    draw.text((4, 4), title, 'black', font)
    for k, (photograph, points, beneath) in enumerate(parts):
        at = k % ROW * WIDTH, 24 + k // ROW * high
        sheet.paste(Image.fromarray(portraits.cut_again(photograph, points)), at)
        draw.text((at[0] + 4, at[1] + HEIGHT + 2), beneath, 'black', font)
    write_whole(path, lambda temporary: sheet.save(temporary, 'JPEG', quality=90, comment=mark))
