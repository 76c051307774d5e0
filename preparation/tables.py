"""Ages from a table of the user's: a CSV file, or the .mat file of a published set."""

import csv
import io
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable

from PIL import Image

from preparation.labels import (
    day_is_first,
    iso_date,
    taken_on,
    whole_years,
    years_between,
    years_in,
)
from preparation.matlab import read_mat
from storage.files import seen_from
from storage.images import some
from system import foreign
from utils import DataError

KEYS = {'path': 'path', 'key': 'path', 'person': 'person', 'identity': 'person'}
DATES = 'birth', 'taken'
FIELDS = (*KEYS, 'age', *DATES)


class Table:
    """Ages from a table whose first line names its columns.

    They are path or person; age, or birth and, unless EXIF tells, taken. A path is absolute, or
    relative to the source, or the file's name alone. A table for a .rec file has key or identity in
    place of them. Without a first line of names the columns are path and age. Names match however
    they are composed (NFC, NFD), and with either slash. Ages may be written 30, 30,5 or 30 years,
    dates 1980-12-21, 21.12.1980 or, where the table tells which is the month, 21/12/1980. Raises
    DataError, also where most ages can't be read.
    """

    def __init__(self, file: str | os.PathLike, source: str | os.PathLike = ''):
        self.kind, self.source = os.fspath(file), os.path.abspath(source)
        rows = read_table(file)
        head = [field.strip().lower() for field in rows[0]]
        if {'age', 'birth'} & set(head):
            rows = rows[1:]
        elif len(head) == 2 and years_in(head[1]) is not None:
            head = ['path', 'age']
        column = next((name for name in KEYS if name in head), None)
        if column is None or not {'age', 'birth'} & set(head):
            raise DataError(
                f'{file}: its first line is {",".join(head)!r:.200}; '
                'expected columns path or person, and age or birth'
            )
        twice = [name for name in FIELDS if head.count(name) > 1]
        if twice:
            raise DataError(
                f'{file}: {head.count(twice[0])} columns {twice[0]!r}: which one is '
                'meant? Remove the other'
            )
        self.key, self.rows = KEYS[column], {}
        for row in rows:
            fields = dict(zip(head, map(str.strip, row), strict=False))
            name = fields.pop(column, '')
            key = self._path(name) if self.key == 'path' else composed(name)
            if self.rows.setdefault(key, fields) != fields:
                raise DataError(f'{file}: two different rows for {some([name])}: remove one')
        # bytes that are no UTF-8 are most often those of Western Europe
        self.western = {_western(key): key for key in self.rows if not _is_text(key)}
        self._read_dates()
        self._check_ages()

    def _read_dates(self):
        """All dates begin with the day, or all with the month, as those tell that are clear."""
        day_first = day_is_first(row.get(name, '') for row in self.rows.values() for name in DATES)
        for row in self.rows.values():
            row |= {name: iso_date(row[name], day_first) for name in DATES if row.get(name)}

    def _check_ages(self):
        """Refuses a table most of whose ages, where they are stated, can't be read."""
        stated, wrong, first = 0, 0, None
        for key, row in self.rows.items():
            if row.get('age') or row.get('birth'):
                stated += 1
                try:
                    self._age_of(row, row.get('taken') or row.get('birth'))
                except ValueError as error:
                    wrong, first = wrong + 1, first or (key, error)
        if 2 * wrong > stated:
            raise DataError(
                f"{self.kind}: {wrong} of {stated} ages can't be read, as that of "
                f'{some(first[:1])}: {first[1]}'
            )

    def _path(self, name):
        """A path of the table as one below the source."""
        path = os.path.normpath(os.path.expanduser(name.replace('\\', '/')))
        if os.path.isabs(path):
            path = os.path.relpath(path, self.source)
        return composed(path)

    def _row(self, relative, person):
        """The key of the photograph's row, None where there is none."""
        if self.key == 'person':
            keys = [composed(person or '')]
        else:
            path = composed(relative.replace('\\', '/'))
            keys = [path, os.path.basename(path)]
        row = next((key for key in keys if key in self.rows), None)
        return row or next((self.western[key] for key in keys if key in self.western), None)

    def check(self, photographs: Iterable[tuple[str, str | None]]) -> None:
        """Refuses a table that doesn't fit the source, given as (path, person) of each photograph.

        Raises DataError where no row fits any, where a bare file name fits several, and where none
        of the names that aren't UTF-8 fits, but photographs are left that may be theirs.
        """
        paths, example, left = {}, None, None
        for relative, person in photographs:
            example = example or (person if self.key == 'person' else relative)
            row = self._row(relative, person)
            if row is not None:
                fits = paths.setdefault(row, [])
                fits += [relative] if self.key == 'path' else []
            elif not (relative.isascii() or left):
                left = relative
        if not paths:
            raise DataError(
                f'{self.kind}: none of its {len(self.rows)} rows fits: it has '
                f'{some(list(self.rows)[:1])}, where {self.source} has {example!r}: '
                f'write each {self.key} as it is there'
            )
        if left and self.western and not set(self.western.values()) & set(paths):
            raise DataError(
                f'{self.kind}: not UTF-8, and {some(self.western.values())} fit no '
                f'photograph, where {self.source} has {some([left])}: save it as UTF-8'
            )
        several = {row: fits for row, fits in paths.items() if len(fits) > 1}
        if several:
            row, fits = next(iter(several.items()))
            raise DataError(
                f'{self.kind}: {len(several)} bare name(s) fit several photographs: '
                f'{some([row])} fits {some(fits)}: '
                f'write paths below {self.source}, as {fits[0]!r}'
            )

    def age(self, relative: str, person: str | None, image: Image.Image | str) -> int:
        """Age in whole years of a photograph, by its path or its person. Raises ValueError.

        `image` is the photograph or its file, whose EXIF is asked for a date.
        """
        key = self._row(relative, person)
        if key is None:
            raise ValueError(f'no row for it in {self.kind}')
        row = self.rows[key]
        taken = row.get('taken') or (None if row.get('age') else taken_on(image))
        if not (taken or row.get('age')):
            raise ValueError(f'no date of capture, neither in {self.kind} nor in its EXIF')
        return self._age_of(row, taken)

    def _age_of(self, row, taken):
        if row.get('age'):
            years = years_in(row['age'])
            if years is None:
                raise ValueError(f'its age in {self.kind} is {row["age"]!r}: expected 30 or 30.5')
            return whole_years(years, self.kind)
        return years_between(row.get('birth') or '', taken)


def _is_text(name):
    """Whether the bytes of a name were UTF-8."""
    return not any('\udc80' <= character <= '\udcff' for character in name)


def _western(name):
    data = name.encode('utf-8', 'surrogateescape')
    try:
        return composed(data.decode('cp1252'))
    except UnicodeDecodeError:
        return composed(data.decode('latin-1'))


def composed(name: str) -> str:
    """The name in NFC, since macOS writes é as two characters and Linux as one."""
    return unicodedata.normalize('NFC', name)


def read_table(file: str | os.PathLike) -> list[list[str]]:
    """The rows of a CSV or .mat file, the first of which may name the columns. Raises DataError."""
    return read_mat(file) if os.fspath(file).lower().endswith('.mat') else read_csv(file)


def read_csv(file: str | os.PathLike) -> list[list[str]]:
    """The rows that aren't empty. Raises DataError.

    Their separator is semicolon, tab or comma, whichever the first line has most; of as many not
    the comma, which numbers may hold. The text is UTF-8 or, as its first bytes tell, UTF-16; bytes
    that are neither stay as they are.
    """
    try:
        with open(file, 'rb') as stream:
            data = stream.read()
    except OSError as error:
        raise DataError(f'{file}: {error.strerror}{seen_from(os.fspath(file))}') from None
    text = _decoded(file, data)
    first = Counter(text.partition('\n')[0])
    try:
        mark = max(';\t,', key=first.__getitem__)
        reader = csv.reader(io.StringIO(text, newline=''), delimiter=mark)
        rows = [row for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f'{file}: not a CSV file ({error})') from None
    if not rows:
        raise DataError(f'{file}: the table is empty')
    return rows


def _decoded(file, data):
    book = os.fspath(file).lower().endswith(('.xlsx', '.xls', '.ods', '.numbers'))
    if book or data.startswith(b'\xd0\xcf\x11\xe0'):
        raise DataError(f'{file}: a spreadsheet: save it as CSV (UTF-8) and give that')
    if what := foreign.what_it_is(data[: foreign.READ]):
        raise DataError(f'{file}: {what}')
    for mark, encoding in ((b'\xff\xfe', 'utf-16'), (b'\xfe\xff', 'utf-16')):
        if data.startswith(mark):
            try:
                return data.decode(encoding)
            except UnicodeDecodeError:
                raise DataError(f'{file}: damaged UTF-16: save it as UTF-8') from None
    if b'\0' in data[:1000]:
        raise DataError(f'{file}: not a text: expected a CSV file in UTF-8')
    return data.decode('utf-8-sig', 'surrogateescape')
