"""Many pairs out of a table: first,second[,first_age,second_age], one decision a row."""

from collections.abc import Iterator
from pathlib import Path

from storage import files
from storage.images import to_age
from system.names import shown
from utils import DataError
from verification.decision import pair_ages
from verification.enrolment import embed_files
from verification.matcher import Matcher

COLUMNS = ['first', 'second', 'first_age', 'second_age']
KEYS = ('similarity', 'same', 'threshold', 'by', 'far', 'fitted_on', 'probability', 'caution')


def read_pairs(path: Path) -> tuple[list[dict], list[str]]:
    """The rows of a table separated by commas, semicolons or tabs, and its titles of no meaning.
    The first line may hold titles, in any order; without them there are two columns or four, in the
    order of COLUMNS. A row has these, ages in years or None, and `error`, why it is no pair, or
    None. Raises DataError if the columns can't be known."""
    lines = files.lines_of_text(files.read_bytes(path), path)
    mark = files.separator(lines[0][1] if lines else '')
    # line by line: a quotation mark that isn't closed spoils no other
    table = [(f'line {number}', line, files.cells(line, mark)) for number, line in lines]
    table = [one for one in table if any(one[2])]
    titles = [title.lower() for title in table[0][2]] if table else []
    if {'first', 'second'} <= set(titles):
        del table[0]
    else:
        titles = COLUMNS
        for where, _, cells in table:
            if len(cells) == 3 or len(cells) > 4:
                what = f'{len(cells)} columns without titles: give first,second'
                more = 'or first,second,first_age,second_age, or a first line of titles'
                raise DataError(f'{path}, {where}: {what} {more}')
    if not table:
        raise DataError(f'{path}: no pairs in it')
    return [_row(*one, titles) for one in table], sorted({*titles} - {*COLUMNS})


def _row(where, line, cells, titles):
    named = dict(zip(titles, cells, strict=False))
    row = {'first': named.get('first', ''), 'second': named.get('second', '')}
    row |= {'first_age': None, 'second_age': None, 'error': None}
    if not (row['first'] and row['second']) or len(cells) > len(titles):
        return row | {'error': f'{where}: expected two images, {",".join(titles)}, not {line!r}'}
    try:
        return row | {key: to_age(named[key]) for key in COLUMNS[2:] if named.get(key)}
    except ValueError as error:
        return row | {'error': f'{where}: {error}'}


def compare_all(
    matcher: Matcher, rows: list[dict], folder: str, far: float | None = None
) -> Iterator[dict]:
    """A dict for each row: its images and ages, the decision, and `error`, why there is none.
    Images are looked for from `folder` on, by names as lists write them (storage.files.find). Each
    is read once; the largest face of each counts."""
    names = {row[key] for row in rows if not row['error'] for key in COLUMNS[:2]}
    found = {name: place for name in names if (place := files.find_file(folder, name))}
    unique = sorted(set(found.values()))
    embedded = {one.name: one for one in embed_files(matcher, folder, unique, largest=True)}
    reasons = {name: f'{Path(folder, name)}: no such file' for name in names}
    reasons |= {name: embedded[place].reason for name, place in found.items()}
    for row in rows:
        both = row['first'], row['second']
        facts: dict = dict(zip(COLUMNS, map(shown, both), strict=False))
        facts |= {key: row[key] for key in COLUMNS[2:]} | dict.fromkeys(KEYS)
        error = row['error'] or reasons[both[0]] or reasons[both[1]]
        if not error:
            first, second = (embedded[found[name]] for name in both)
            estimated = [matcher.age_in(one.faces[0]).years for one in (first, second)]
            ages = pair_ages(estimated, (row['first_age'], row['second_age']))
            similarity = float(first.embeddings[0] @ second.embeddings[0])
            answer = matcher.decision.answer(similarity, ages, far).facts()
            facts |= {key: answer[key] for key in KEYS}
            if ages:
                facts |= {'first_age': round(ages.first, 1), 'second_age': round(ages.second, 1)}
        yield facts | {'error': shown(error) if error else None}
