"""Many pairs out of a table: first,second[,first_age,second_age], one decision a row."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from storage import files
from storage.images import to_age
from system.names import shown
from utils import DataError
from verification import answers
from verification.enrolment import embed_files
from verification.matcher import Matcher

COLUMNS = ['first', 'second', 'first_age', 'second_age']
KEYS = ('similarity', 'same', 'threshold', 'by', 'far', 'fitted_on', 'probability', 'caution')


class Row(NamedTuple):
    """A pair: two names of images, two ages in years or None; or an `error`, why it is none."""

    first: str = ''
    second: str = ''
    ages: tuple[float | None, ...] = (None, None)
    error: str | None = None


def read(path: str | Path) -> tuple[list[Row], list[str]]:
    """The rows of a table separated by commas, semicolons or tabs, and its titles of no meaning.
    The first line may hold titles, in any order; without them there are two columns or four, in the
    order of COLUMNS. Ages may be empty. Raises DataError if the columns can't be known."""
    lines = files.lines_of_text(files.read_bytes(path), path)
    mark = files.separator(lines[0][1] if lines else '')
    # line by line: a quotation mark that isn't closed spoils no other
    cut = [(number, next(csv.reader([line], delimiter=mark))) for number, line in lines]
    table = [(number, [*map(str.strip, cells)]) for number, cells in cut if any(cells)]
    titles = [title.lower() for title in table[0][1]] if table else []
    if {'first', 'second'} <= set(titles):
        del table[0]
    else:
        titles = COLUMNS
        for number, cells in table:
            if len(cells) == 3 or len(cells) > 4:
                what = f'{len(cells)} columns without titles: give first,second'
                more = 'or first,second,first_age,second_age, or a first line of titles'
                raise DataError(f'{path}, line {number}: {what} {more}')
    if not table:
        raise DataError(f'{path}: no pairs in it')
    return [_row(number, cells, titles) for number, cells in table], sorted({*titles} - {*COLUMNS})


def _row(number, cells, titles):
    named = dict(zip(titles, cells, strict=False))
    pair = named.get('first', ''), named.get('second', '')
    if not all(pair) or len(cells) > len(titles):
        error = f'line {number}: expected two images, {",".join(titles)}, not {",".join(cells)!r}'
        return Row(*pair, error=error)
    try:
        ages = [to_age(named[key]) if named.get(key) else None for key in COLUMNS[2:]]
    except ValueError as error:
        return Row(*pair, error=f'line {number}: {error}')
    return Row(*pair, tuple(ages))


def compare_all(
    matcher: Matcher, rows: list[Row], folder: str, far: float | None = None
) -> Iterator[dict]:
    """A dict for each row: its images and ages, the decision, and `error`, why there is none.
    Images are looked for from `folder` on, by names as lists write them (storage.files.find). Each
    is read once; the largest face of each counts."""
    names = sorted({name for row in rows if not row.error for name in row[:2]})
    found = {name: place for name in names if (place := files.find(folder, name))}
    unique = sorted(set(found.values()))
    embedded = {one.name: one for one in embed_files(matcher, folder, unique, largest=True)}
    for row in rows:
        result: dict = {}
        ages, error = row.ages, row.error
        if not error:
            images = [embedded.get(found.get(name, '')) for name in row[:2]]
            for name, one in zip(row[:2], images, strict=True):
                if one is None or one.reason:
                    error = one.reason if one else f'{Path(folder, name)}: no such file'
                    break
            else:
                estimated = [answers.features_in(matcher, one.faces[0]).age for one in images]
                decided_by = answers.pair_ages(estimated, row.ages)
                similarity = float(images[0].embeddings[0] @ images[1].embeddings[0])
                answer = matcher.decision.answer(similarity, decided_by, far)
                result = answers.about_pair(answer)
                if decided_by:
                    ages = tuple(round(age, 1) for age in decided_by[:2])
        facts = dict(zip(COLUMNS, (shown(row.first), shown(row.second), *ages), strict=True))
        facts |= {key: result.get(key) for key in KEYS}
        yield facts | {'error': error and shown(error)}
