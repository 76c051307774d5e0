"""Many pairs out of a table: first,second[,first_age,second_age], one decision a row."""

import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from storage.images import to_age
from utils import DataError
from verification import answers
from verification.indexing import embed_files
from verification.matcher import Matcher

COLUMNS = ('first', 'second', 'first_age', 'second_age')
KEYS = ('similarity', 'same', 'threshold', 'by', 'far', 'probability', 'caution')


class Row(NamedTuple):
    first: str
    second: str
    ages: tuple[float | None, float | None]


def read(path: str | Path) -> list[Row]:
    """The rows of a table, separated by commas, semicolons or tabs.

    A first line that names the columns may be there; without it they come in the order of COLUMNS.
    Ages may be empty. Raises DataError naming the line that isn't so.
    """
    try:
        text = Path(path).read_bytes().decode('utf-8-sig')
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from None
    except UnicodeDecodeError:
        raise DataError(f'{path}: not UTF-8: save the table as CSV in UTF-8') from None
    first = text.partition('\n')[0]
    delimiter = max(',;\t', key=first.count)
    lines = [
        (number, [cell.strip() for cell in line])
        for number, line in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter), 1)
        if any(cell.strip() for cell in line)
    ]
    columns = COLUMNS
    if lines and {'first', 'second'} <= set(lines[0][1]):
        columns = lines.pop(0)[1]
    if not lines:
        raise DataError(f'{path}: no pairs in it')
    return [_row(path, number, dict(zip(columns, line, strict=False))) for number, line in lines]


def _row(path, number, cells):
    where = f'{path}, line {number}'
    if not cells.get('first') or not cells.get('second'):
        raise DataError(f'{where}: expected two images, first and second')
    try:
        ages = [to_age(cells[key]) if cells.get(key) else None for key in COLUMNS[2:]]
    except ValueError as error:
        raise DataError(f'{where}: {error}') from None
    return Row(cells['first'], cells['second'], tuple(ages))


def compare(matcher: Matcher, rows: list[Row], folder: str, far: float | None) -> Iterator[dict]:
    """A dict for each row: its images and ages, the decision, and `error`, why there is none.

    Images are looked for from `folder` on, each is read once; the largest face of each counts.
    """
    names = sorted({name for row in rows for name in row[:2]})
    known = {one.name: one for one in embed_files(matcher, folder, names, largest=True)}
    for row in rows:
        images = [known.get(name) for name in row[:2]]
        error = next(
            (
                f'{os.path.join(folder, name)}: no such file' if one is None else one.reason
                for name, one in zip(row[:2], images, strict=True)
                if one is None or one.reason
            ),
            None,
        )
        result = dict.fromkeys(KEYS)
        ages = row.ages
        if error is None:
            estimated = [answers.features_of(matcher, one.faces[0]).age for one in images]
            similarity = float(images[0].embeddings[0] @ images[1].embeddings[0])
            pair = answers.pair_ages(estimated, row.ages)
            decided = answers.decision(matcher.decision.answer(similarity, pair, far))
            result = {key: decided[key] for key in KEYS}
            ages = ages if pair is None else [round(age, 1) for age in pair[:2]]
        yield {
            'first': row.first,
            'second': row.second,
            'first_age': ages[0],
            'second_age': ages[1],
            **result,
            'error': error,
        }
