"""Who and how old, from what a user has: file names, a table, dates of birth and capture."""
import csv
import os
import re

from PIL import ExifTags

from storage.images import parse_age, some
from utils import DataError

# file names of well-known sets: the person, where one is named, and the age or the two dates that give it
NAMES = {
    'plain': r'[^_.]*_(?P<age>\d+)\..*',                                     # 000_12.jpg
    'fgnet': r'(?P<person>\d{3})A(?P<age>\d{1,2})[a-z]?\..*',                # 001A43a.JPG
    'morph': r'(?P<person>\d+)_\d+[MF](?P<age>\d+)\..*',                     # 009055_1M54.JPG
    'cacd2000': r'(?P<age>\d+)_(?P<person>.+)_\d+\..*',                      # 53_Robert_Duvall_0001.jpg
    'agedb': r'\d+_(?P<person>.+)_(?P<age>\d+)_[mf]\..*',                    # 0_MariaCallas_35_f.jpg
    'utkface': r'(?P<age>\d+)_[\d_]+\..*',                                   # 39_1_20170116174525125.jpg.chip.jpg
    'imdb-wiki': r'(?P<person>[^_]+)_(?:rm\d+_)?(?P<birth>\d{4}-\d{1,2}-\d{1,2})_(?P<taken>\d{4})\..*',  # nm0000002_rm1_1924-9-16_1974.jpg
}
DATE = re.compile(r'\s*(\d{4})(?:[-:/.](\d{1,2})[-:/.](\d{1,2})(?!\d).*)?\s*', re.DOTALL)  # 1983, 1983-12-21, EXIF's 1983:12:21 10:00:00


def person_in(name, kind):
    """The person whom a file name of this kind of NAMES tells, or None."""
    match = re.fullmatch(NAMES[kind], name, re.IGNORECASE | re.DOTALL)
    return match and match.groupdict().get('person')


def years_between(birth, taken):
    """Whole years from one date to another, each text; the difference of the years where one of them is a year alone.

    Raises ValueError where a text is no date or the age no age.
    """
    dates = []
    for text in (birth, taken):
        match = DATE.fullmatch(text)
        if not match or match[1] == '0000':
            raise ValueError(f'{text!r} is no date: expected 1983-12-21, or 1983')
        dates.append([int(part or 0) for part in match.groups()])
    (year, *day), (then, *later) = dates
    return _checked(then - year - (day[0] > 0 < later[0] and later < day), f'from {birth} to {taken}')


def _checked(age, what):
    if not 0 <= age <= 120:
        raise ValueError(f'{what}: {age:g} is no age between 0 and 120')
    return int(age)


def taken_on(image):
    """When a photograph was taken, as its EXIF says (DateTimeOriginal), or None."""
    text = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
    return text if isinstance(text, str) and DATE.fullmatch(text) else None


class Named:
    """Ages from file names, of a kind of NAMES or by pat and pos as in meta.py."""

    def __init__(self, kind, pat=None, pos=None):
        self.kind, self.pat, self.pos = kind, pat, pos

    def age(self, relative, person, image):
        name = os.path.basename(relative)
        if self.pat is not None:
            return int(parse_age(name, self.pat, self.pos))
        match = re.fullmatch(NAMES[self.kind], name, re.IGNORECASE | re.DOTALL)
        if not match:
            raise ValueError(f'no name of the kind {self.kind}')
        fields = match.groupdict()
        return _checked(float(fields['age']), name) if 'age' in fields else years_between(fields['birth'], fields['taken'])


class Table:
    """Ages from a CSV file whose first line names its columns: path or person; age, or birth and, unless EXIF tells, taken.

    A path is relative to the source, or the file's name alone. Without such a line the columns are path and age. Raises DataError.
    """

    def __init__(self, file):
        self.kind = os.fspath(file)
        rows = read_csv(file)
        head = [field.strip().lower() for field in rows[0]]
        if {'age', 'birth'} & set(head):
            rows = rows[1:]
        elif len(head) == 2 and re.fullmatch(r'\d+(\.\d+)?', head[1]):
            head = ['path', 'age']
        self.key = next((key for key in ('path', 'person') if key in head), None)
        if self.key is None or not {'age', 'birth'} & set(head):
            raise DataError(f'{file}: its first line is {",".join(head)!r}; expected columns path or person, and age or birth')
        self.rows = {}
        for row in rows:
            fields = dict(zip(head, (field.strip() for field in row)))
            key = fields.get(self.key, '')
            key = os.path.normpath(key) if self.key == 'path' else key
            if self.rows.setdefault(key, fields) != fields:
                raise DataError(f'{file}: two different rows for {some([key])}')

    def age(self, relative, person, image):
        row = self.rows.get(person) if self.key == 'person' else self.rows.get(relative) or self.rows.get(os.path.basename(relative))
        if row is None:
            raise ValueError(f'no row for it in {self.kind}')
        if row.get('age'):
            if not re.fullmatch(r'\d+(\.\d+)?', row['age']):
                raise ValueError(f'its age in {self.kind} is {row["age"]!r}')
            return _checked(float(row['age']), self.kind)
        taken = row.get('taken') or taken_on(image)
        if not taken:
            raise ValueError(f'no date of capture, neither in {self.kind} nor in its EXIF')
        return years_between(row.get('birth') or '', taken)


def read_csv(file):
    """The rows that aren't empty, fields apart at comma, semicolon or tab, whichever the first line has most. Raises DataError."""
    try:
        with open(file, newline='', encoding='utf-8-sig', errors='surrogateescape') as stream:
            first = stream.readline()
            stream.seek(0)
            rows = [row for row in csv.reader(stream, delimiter=max(',;\t', key=first.count)) if any(map(str.strip, row))]
    except OSError as error:
        raise DataError(f'{file}: {error.strerror}') from None
    except csv.Error as error:
        raise DataError(f'{file}: not a CSV file ({error})') from None
    if not rows:
        raise DataError(f'{file}: the table is empty')
    return rows
