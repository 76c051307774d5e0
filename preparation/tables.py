"""Ages from a table of the user's: a CSV file, a list of images, or a published set's .mat file."""

import contextlib
import csv
import datetime
import io
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence

import numpy as np

from preparation.labels import day_is_first, taken_on, years_between, years_in
from storage.files import lines_of_text, read_bytes, separator
from storage.folder import TITLES
from storage.images import some, to_age
from utils import DataError

KEYS = {'path': 'path', 'key': 'path', 'person': 'person', 'identity': 'person'}
# of .mat files; the first path that is there, since IMDB's name is the person's
PATHS = 'full_path', 'path', 'name'
FIELDS = {'age': 'age', 'dob': 'birth', 'birth': 'birth', 'photo_taken': 'taken', 'taken': 'taken'}
UNTITLED = {2: ['path', 'age'], 3: ['path', 'label', 'age']}  # columns, without titles


class Table:
    """Ages from a table whose first line names its columns, or is a row of UNTITLED.

    They are path or person (of a .rec file key or identity), and age, or birth and, unless EXIF has
    it, taken. A path is absolute, or relative to the source or to the table's folder, or the file's
    name alone; accents (NFC, NFD) and slashes may be written either way. Raises DataError, also if
    most ages can't be read.
    """

    def __init__(self, file: str | os.PathLike, source: str | os.PathLike = ''):
        self.file, self.source = os.fspath(file), os.path.abspath(source)
        titles, column, lines = self._titled(read_table(file))
        self.key, self.rows = KEYS[column], dict[str, dict[str, str]]()
        for line in lines:
            row = dict(zip(titles, map(str.strip, line), strict=False))
            name = row.pop(column, '')
            key = self._path(name) if self.key == 'path' else composed(name)
            if self.rows.setdefault(key, row) != row:
                raise DataError(f'{file}: two different rows for {some([name])}: remove one')
        dates = (row.get(name, '') for row in self.rows.values() for name in ('birth', 'taken'))
        self.day_first = day_is_first(dates)
        self._check_ages()
        self.found = self.rows
        if source and self.key == 'path':  # a list that training takes has paths from its folder
            folder = os.path.dirname(os.path.abspath(file))
            beside = {os.path.join(folder, key): row for key, row in self.rows.items()}
            self.found = {self._path(path): row for path, row in beside.items()} | self.rows

    def _titled(self, rows):
        """The titles, that of the column of names, and the rows below."""
        titles = [field.strip().lower() for field in rows[0]]
        if len(titles) == 3 and titles[2] in TITLES and not KEYS.keys() & set(titles):
            titles, rows = UNTITLED[3], rows[1:]  # a list, whatever training may call its paths
        elif {'age', 'birth'} & set(titles):
            rows = rows[1:]
        elif years_in(titles[-1]) is not None:
            titles = UNTITLED.get(len(titles), titles)
        column = next((name for name in KEYS if name in titles), None)
        if column is None or not {'age', 'birth'} & set(titles):
            first = f'its first line is {",".join(titles)!r:.200}'
            form = 'expected columns path or person, and age or birth'
            raise DataError(f'{self.file}: {first}; {form}')
        for name in (*KEYS, 'age', 'birth', 'taken'):
            if titles.count(name) > 1:
                several = f'{titles.count(name)} columns {name!r}: which one is meant?'
                raise DataError(f'{self.file}: {several} Remove the other')
        return titles, column, rows

    def _path(self, name):
        """A path of the table as one below the source."""
        path = os.path.normpath(os.path.expanduser(name.replace('\\', '/')))
        return composed(os.path.relpath(path, self.source) if os.path.isabs(path) else path)

    def _check_ages(self):
        """Refuses a table most of whose ages, where they are stated, can't be read."""
        stated = {key: row for key, row in self.rows.items() if row.get('age') or row.get('birth')}
        wrong = []
        for key, row in stated.items():
            try:
                self._age_of(row, row.get('taken') or row.get('birth'))
            except ValueError as error:
                wrong.append(f'as that of {some([key])}: {error}')
        if 2 * len(wrong) > len(stated):
            count = f"{len(wrong)} of {len(stated)} ages can't be read"
            raise DataError(f'{self.file}: {count}, {wrong[0]}')

    def _key(self, relative, person):
        """The key of the photograph's row; None if there is none."""
        name = relative.replace('\\', '/') if self.key == 'path' else person or ''
        return matching(self.found, _spellings(name))

    def check(self, photographs: Iterable[tuple[str, str | None]]) -> None:
        """DataError if the table doesn't fit the source, (path, person) of each photograph.

        That is if no row fits any, if a bare file name fits several, and if none of the names that
        aren't UTF-8 fits, but photographs are left that they may mean.
        """
        fits, example, left = defaultdict(list), None, None
        for relative, person in photographs:
            example = example or (person if self.key == 'person' else relative)
            key = self._key(relative, person)
            if key is not None:
                fits[key].append(relative)
            elif not relative.isascii():
                left = left or relative
        if not fits:
            none = f'{self.file}: none of its {len(self.rows)} rows fits'
            first = f'it has {some(list(self.rows)[:1])}, where {self.source} has {example!r}'
            raise DataError(f'{none}: {first}: write each {self.key} as it is there')
        western = {key for key in self.found if re.search('[\udc80-\udcff]', key)}
        if left and western and not western & set(fits):
            wrong = f'{self.file}: not UTF-8, and {some(western)} fit no photograph'
            there = f'{self.source} has {some([left])}'
            raise DataError(f'{wrong}, where {there}: save it as UTF-8')
        if self.key == 'path':
            refuse_ambiguous(self.file, fits)

    def age(self, relative: str, person: str | None, path: str | None) -> int:
        """Age in whole years of a photograph; `path` is its file, for EXIF. Raises ValueError."""
        key = self._key(relative, person)
        if key is None:
            raise ValueError(f'no row for it in {self.file}')
        row = self.found[key]
        taken = row.get('taken') or (None if row.get('age') else taken_on(path))
        if not (taken or row.get('age')):
            raise ValueError(f'no date of capture, neither in {self.file} nor in its EXIF')
        return self._age_of(row, taken)

    def _age_of(self, row, taken):
        if not row.get('age'):
            return years_between(row.get('birth') or '', taken, self.day_first)
        years = years_in(row['age'])
        if years is None:
            raise ValueError(f'its age in {self.file} is {row["age"]!r}: expected 30 or 30.5')
        return int(to_age(years))


def matching(rows: Container[str], paths: Iterable[str]) -> str | None:
    """The first of the paths, or of the file names at their ends, that is among `rows`."""
    paths = list(paths)
    return next((name for name in (*paths, *map(os.path.basename, paths)) if name in rows), None)


def refuse_ambiguous(file: str, fits: Mapping[str, Sequence[str]]) -> None:
    """DataError if a name of the user's `file` fits photographs in several folders."""
    for name, paths in fits.items():
        if len(set(map(os.path.dirname, paths))) > 1:
            remedy = f'write the folders too, as in {paths[0]!r}'
            raise DataError(f'{file}: {some([name])} fits {some(paths)}: {remedy}')


def _spellings(name) -> Iterator[str]:
    """A name as a table may have it: in UTF-8, or as the bytes of cp1252, Western Europe's."""
    yield composed(name)
    with contextlib.suppress(UnicodeEncodeError):
        yield composed(name).encode('cp1252').decode('utf-8', 'surrogateescape')


def composed(name: str) -> str:
    """The name in NFC, since macOS writes é as two characters and Linux as one."""
    return unicodedata.normalize('NFC', name)


def read_table(file: str | os.PathLike) -> list[list[str]]:
    """The rows of a CSV file, a list or a .mat file; the first may have titles. DataError."""
    ending = os.fspath(file).lower().rpartition('.')[2]
    if ending in ('xlsx', 'xls', 'ods', 'numbers'):
        raise DataError(f'{file}: a spreadsheet: save it as CSV (UTF-8) and give that')
    data = read_bytes(file)
    if ending == 'mat':
        return _rows_of_mat(file, data)
    lines = [line for _, line in lines_of_text(data, file)]
    if not lines:
        raise DataError(f'{file}: the table is empty')
    mark = separator(lines[0])
    if mark not in lines[0]:  # then only the first of three fields may have spaces
        return [line.rsplit(maxsplit=2) for line in lines]
    try:
        return list(csv.reader((f'{line}\n' for line in lines), delimiter=mark))
    except csv.Error as error:
        raise DataError(f'{file}: not a CSV file ({error})') from None


def _rows_of_mat(file, data):
    """IMDB-WIKI's and CACD2000's files hold structs; others may hold variables."""
    from scipy.io import loadmat  # slow to import

    try:
        variables = loadmat(io.BytesIO(data), simplify_cells=True)
    except Exception as error:  # of any kind, if the file is damaged
        reason = f'not readable as a .mat file ({" ".join(str(error).split())})'
        remedy = "save it in MATLAB with '-v7', or path and age as CSV"
        raise DataError(f'{file}: {reason}: {remedy}') from None
    for columns in [variables, *(value for value in variables.values() if isinstance(value, dict))]:
        path = next((name for name in PATHS if name in columns), None)
        known = [name for name in FIELDS if name in columns]
        # CACD2000 has a second struct, of people: name and birth
        if path and ('age' in known or path != 'name' and {'dob', 'birth'} & set(known)):
            titles = ['path', *(FIELDS[name] for name in known)]
            texts = [
                [_text(name, value) for value in np.atleast_1d(columns[name])]
                for name in (path, *known)
            ]
            if len(set(map(len, texts))) == 1:
                return [titles, *map(list, zip(*texts, strict=True))]
    names = ', '.join(name for name in variables if not name.startswith('__')) or 'nothing'
    form = 'full_path, path or name, the file names, with age, or dob and photo_taken'
    raise DataError(f'{file}: holds {names}; expected {form}: save path and age as CSV')


def _text(name, value):
    """A cell as text, empty for nan; a `dob` is a day, which MATLAB counts from the year 0."""
    value = value.ravel()[0] if isinstance(value, np.ndarray) and value.size else value
    if isinstance(value, str):
        return value.strip()
    if not np.size(value) or not np.isfinite(value):
        return ''
    days = int(value) - 366  # Python counts from the year 1
    if name == 'dob':
        return str(datetime.date.fromordinal(days)) if days > 0 else ''
    return f'{float(value):g}'
