"""Ages from a table of the user's."""
import csv
import os
import re

from PIL import Image

from preparation.labels import taken_on, whole_years, years_between
from storage.images import some
from utils import DataError


class Table:
    """Ages from a CSV file whose first line names its columns.

    They are path or person; age, or birth and, unless EXIF tells, taken. A path is relative to the
    source, or the file's name alone. Without a first line of names the columns are path and age.
    Raises DataError.
    """

    def __init__(self, file: str | os.PathLike):
        self.kind = os.fspath(file)
        rows = read_csv(file)
        head = [field.strip().lower() for field in rows[0]]
        if {'age', 'birth'} & set(head):
            rows = rows[1:]
        elif len(head) == 2 and re.fullmatch(r'\d+(\.\d+)?', head[1]):
            head = ['path', 'age']
        self.key = next((key for key in ('path', 'person') if key in head), None)
        if self.key is None or not {'age', 'birth'} & set(head):
            raise DataError(f'{file}: its first line is {",".join(head)!r}; '
                            'expected columns path or person, and age or birth')
        self.rows = {}
        for row in rows:
            fields = dict(zip(head, map(str.strip, row), strict=False))
            key = fields.get(self.key, '')
            key = os.path.normpath(key) if self.key == 'path' else key
            if self.rows.setdefault(key, fields) != fields:
                raise DataError(f'{file}: two different rows for {some([key])}')

    def age(self, relative: str, person: str | None, image: Image.Image) -> int:
        """Age in whole years of a photograph, by its path or its person. Raises ValueError."""
        if self.key == 'person':
            row = self.rows.get(person)
        else:
            row = self.rows.get(relative) or self.rows.get(os.path.basename(relative))
        if row is None:
            raise ValueError(f'no row for it in {self.kind}')
        if row.get('age'):
            if not re.fullmatch(r'\d+(\.\d+)?', row['age']):
                raise ValueError(f'its age in {self.kind} is {row["age"]!r}')
            return whole_years(float(row['age']), self.kind)
        taken = row.get('taken') or taken_on(image)
        if not taken:
            raise ValueError(f'no date of capture, neither in {self.kind} nor in its EXIF')
        return years_between(row.get('birth') or '', taken)


def read_csv(file: str | os.PathLike) -> list[list[str]]:
    """The rows that aren't empty. Raises DataError.

    Their separator is comma, semicolon or tab, whichever the first line has most.
    """
    try:
        with open(file, newline='', encoding='utf-8-sig', errors='surrogateescape') as stream:
            first = stream.readline()
            stream.seek(0)
            reader = csv.reader(stream, delimiter=max(',;\t', key=first.count))
            rows = [row for row in reader if any(map(str.strip, row))]
    except OSError as error:
        raise DataError(f'{file}: {error.strerror}') from None
    except csv.Error as error:
        raise DataError(f'{file}: not a CSV file ({error})') from None
    if not rows:
        raise DataError(f'{file}: the table is empty')
    return rows
