"""Who and how old: file names, dates of birth and capture."""

import contextlib
import datetime
import os
import re
from collections.abc import Iterable

from PIL import ExifTags, Image

from recognition.alignment import TAIL
from storage.images import kinds, parse_age

# file names of well-known sets: the person, where one is named, and the age or the two dates
NAMES = {
    # 000_12.jpg
    'plain': r'[^_.]*_(?P<age>\d+)\..*',
    # 001A43a.JPG
    'fgnet': rf'(?P<person>\d{{3}})A(?P<age>\d{{1,2}})[a-z]?{TAIL}\..*',
    # 009055_1M54.JPG
    'morph': rf'(?P<person>\d+)_\d+[MF](?P<age>\d+){TAIL}\..*',
    # 53_Robert_Duvall_0001.jpg
    'cacd2000': rf'(?P<age>\d+)_(?P<person>.+?)_(?:\d{{4}}{TAIL}|\d+)\..*',
    # 0_MariaCallas_35_f.jpg
    'agedb': rf'\d+_(?P<person>.+)_(?P<age>\d+)_[mf]{TAIL}\..*',
    # 39_1_20170116174525125.jpg.chip.jpg
    'utkface': rf'(?P<age>\d+)_[\d_]+{TAIL}\..*',
    # nm0000002_rm1_1924-9-16_1974.jpg
    'imdb-wiki': (
        r'(?P<person>[^_]+)_(?:rm\d+_)?(?P<birth>\d{4}-\d{1,2}-\d{1,2})'
        rf'_(?P<taken>\d{{4}}){TAIL}\..*'
    ),
}
# 1983, 1983-12-21, EXIF's 1983:12:21 10:00:00
DATE = re.compile(r'\s*(\d{4})(?:[-:/.](\d{1,2})[-:/.](\d{1,2})(?!\d).*)?\s*', re.DOTALL)

# 21.12.1983, 21/12/1983, 12/21/1983
LOCAL = re.compile(r'\s*(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(?!\d).*', re.DOTALL)
# 30, 30.5, 30,5, 30 years
YEARS = re.compile(
    r'\s*(\d+(?:[.,]\d+)?)\s*(?:years?(?: old)?|yrs?\.?|y\.?|y/?o\.?)?\s*', re.IGNORECASE
)


def person_in(name: str, kind: str) -> str | None:
    """The person whom a file name of this kind of NAMES tells, or None."""
    match = re.fullmatch(NAMES[kind], name, re.IGNORECASE | re.DOTALL)
    return match and match.groupdict().get('person')


def years_between(birth: str, taken: str) -> int:
    """Whole years from one date to another; the difference of the years where one is a year alone.

    Raises ValueError where a text is no date or the age no age.
    """
    dates = []
    for text in (birth, taken):
        match = DATE.fullmatch(text)
        if not match or match[1] == '0000':
            what = (
                'day or month first? Write 1980-12-21'
                if LOCAL.fullmatch(text)
                else 'expected 1983-12-21, or 1983'
            )
            raise ValueError(f'{text!r} is no date: {what}')
        year, month, day = (int(part or 0) for part in match.groups())
        try:
            datetime.date(year, month or 1, day or 1)  # 0 where it isn't known
        except ValueError:
            raise ValueError(f'{text!r} is no date: there is no such day') from None
        dates.append((year, month, day))
    (year, *day), (then, *later) = dates
    return whole_years(
        then - year - (day[0] > 0 < later[0] and later < day), f'from {birth} to {taken}'
    )


def whole_years(age: float, what: str) -> int:
    """`age` without its fraction. Raises ValueError, which begins with `what`, beyond 0 to 120."""
    if not 0 <= age <= 120:
        raise ValueError(f'{what}: {age:g} is no age between 0 and 120')
    return int(age)


def years_in(text: str) -> float | None:
    """The number of years in `30`, `30.5`, `30,5` or `30 years`; None where it is no such text."""
    match = YEARS.fullmatch(text)
    return float(match[1].replace(',', '.')) if match else None


def day_is_first(dates: Iterable[str]) -> bool | None:
    """Whether dates as 21/12/1983 begin with the day; None where they don't tell, or differ."""
    first = {
        int(match[1]) > 12
        for text in dates
        if (match := LOCAL.fullmatch(text)) and (int(match[1]) > 12) != (int(match[3]) > 12)
    }
    return first.pop() if len(first) == 1 else None


def iso_date(text: str, day_first: bool | None) -> str:
    """1983-12-21 for 21.12.1983 or 21/12/1983; any other text, and an unclear date, as it is.

    With dots the day is first; otherwise as `day_first` says, or as a number above 12 does.
    """
    match = LOCAL.fullmatch(text)
    if not match:
        return text
    first, second = int(match[1]), int(match[3])
    if match[2] == '.' or first > 12 or first == second:
        day_first = True
    elif second > 12:
        day_first = False
    if day_first is None:
        return text
    day, month = (first, second) if day_first else (second, first)
    return f'{match[4]}-{month:02}-{day:02}'


def taken_on(image: Image.Image | str) -> str | None:
    """When a photograph, or the one in the file, was taken, as its EXIF says, or None."""
    if isinstance(image, str):
        with contextlib.suppress(Exception), Image.open(image, formats=kinds()) as opened:
            return taken_on(opened)
        return None  # what is damaged says nothing
    text = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
    return text if isinstance(text, str) and DATE.fullmatch(text) else None


class Named:
    """Ages from file names, of a kind of NAMES or by pat and pos as in meta.py."""

    def __init__(self, kind: str, pat: str | None = None, pos: int | None = None):
        self.kind, self.pat, self.pos = kind, pat, pos

    def age(self, relative: str, person: str | None, image: Image.Image | str | None) -> int:
        """Age in whole years of a photograph, by its path below the source. Raises ValueError."""
        name = os.path.basename(relative)
        if self.pat is not None:
            return int(parse_age(name, self.pat, self.pos))
        match = re.fullmatch(NAMES[self.kind], name, re.IGNORECASE | re.DOTALL)
        if not match:
            raise ValueError(f'no name of the kind {self.kind}')
        fields = match.groupdict()
        if 'age' in fields:
            return whole_years(float(fields['age']), name)
        return years_between(fields['birth'], fields['taken'])
