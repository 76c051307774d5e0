"""Who and how old: file names, dates of birth and capture."""

import datetime
import re
from collections.abc import Iterable

from PIL import ExifTags, Image

from recognition.alignment import TAIL
from storage.images import kinds, to_age

DAY = r'\d{4}-\d{1,2}-\d{1,2}'

# file names of well-known sets, up to a dot: the person, where one is named, and age or dates
NAMES = {
    'plain': r'[^_.]*_(?P<age>\d+)',  # 000_12.jpg
    'fgnet': rf'(?P<person>\d{{3}})A(?P<age>\d{{1,2}})[a-z]?{TAIL}',  # 001A43a.JPG
    'morph': rf'(?P<person>\d+)_\d+[MF](?P<age>\d+){TAIL}',  # 009055_1M54.JPG
    'cacd2000': rf'(?P<age>\d+)_(?P<person>.+?)_(?:\d{{4}}{TAIL}|\d+)',  # 53_Robert_Duvall_0001.jpg
    'agedb': rf'\d+_(?P<person>.+)_(?P<age>\d+)_[mf]{TAIL}',  # 0_MariaCallas_35_f.jpg
    'utkface': rf'(?P<age>\d+)_[\d_]+{TAIL}',  # 39_1_20170116174525125.jpg.chip.jpg
    # nm0000002_rm1_1924-9-16_1974.jpg
    'imdb-wiki': rf'(?P<person>[^_]+)_(?:rm\d+_)?(?P<birth>{DAY})_(?P<taken>\d{{4}}){TAIL}',
}
# 1983, 1983-12-21, EXIF's 1983:12:21 10:00:00
DATE = re.compile(r'\s*(\d{4})(?:[-:/.](\d{1,2})[-:/.](\d{1,2})(?!\d).*)?\s*', re.DOTALL)
# 21.12.1983, 21/12/1983, 12/21/1983
LOCAL = re.compile(r'\s*(\d{1,2})([-/.])(\d{1,2})\2(\d{4})(?!\d).*', re.DOTALL)
YEARS = re.compile(r'(?i)\s*(\d+(?:[.,]\d+)?)\s*(?:years?(?: old)?|yrs?\.?|y\.?|y/?o\.?)?\s*')


def fields_in(name: str, kind: str) -> dict[str, str]:
    """Person, age, birth and taken, as far as a file name of this kind of NAMES has them."""
    match = re.fullmatch(NAMES[kind] + r'\..*', name, re.IGNORECASE | re.DOTALL)
    return match.groupdict() if match else {}


def age_in(name: str, kind: str) -> int:
    """Age in whole years that a file name of this kind tells. Raises ValueError."""
    fields = fields_in(name, kind)
    if not fields:
        raise ValueError(f'no name of the kind {kind}')
    if 'age' in fields:
        return int(to_age(fields['age']))
    return years_between(fields['birth'], fields['taken'])


def years_in(text: str) -> str | None:
    """The number in `30`, `30.5`, `30,5` or `30 years`; None if it is no such text."""
    match = YEARS.fullmatch(text)
    return match[1].replace(',', '.') if match else None


def day_is_first(dates: Iterable[str]) -> bool | None:
    """Whether dates as 21/12/1983 begin with the day; None if they don't show it, or differ."""
    numbers = [(int(match[1]), int(match[3])) for match in map(LOCAL.fullmatch, dates) if match]
    first = {one > 12 for one, two in numbers if (one > 12) != (two > 12)}
    return first.pop() if len(first) == 1 else None


def years_between(birth: str, taken: str, day_first: bool | None = None) -> int:
    """Whole years from one date to another; the difference of the years if one is a year alone.

    `day_first` says how 01/02/1983 is meant. Raises ValueError, also for ages beyond 0 to 120.
    """
    (year, *day), (then, *later) = (_date(text, day_first) for text in (birth, taken))
    return int(to_age(then - year - (day[0] > 0 < later[0] and later < day)))


def _date(text, day_first):
    """Year, month and day, 0 where they are not known."""
    match, local = DATE.fullmatch(text), LOCAL.fullmatch(text)
    numbers = [int(number or 0) for number in match.groups()] if match else []
    if local:
        one, two, year = (int(local[group]) for group in (1, 3, 4))
        if local[2] == '.' or one > 12 or one == two:
            day_first = True
        elif two > 12:
            day_first = False
        if day_first is None:
            raise ValueError(f'{text!r} is no date: day or month first? Write 1980-12-21')
        numbers = [year, two, one] if day_first else [year, one, two]
    try:
        year, month, day = numbers
        datetime.date(year, month or 1, day or 1)
    except ValueError:
        raise ValueError(f'{text!r} is no date: expected 1983-12-21, or 1983') from None
    return numbers


def taken_on(path: str | None) -> str | None:
    """When the photograph in the file was taken, by its EXIF; None if that does not say."""
    if path is None:
        return None
    try:
        with Image.open(path, formats=kinds()) as image:
            exif = image.getexif().get_ifd(ExifTags.IFD.Exif)
    except Exception:  # damaged EXIF holds no date; damaged pixels are reported elsewhere
        return None
    text = exif.get(ExifTags.Base.DateTimeOriginal)
    return text if isinstance(text, str) and DATE.fullmatch(text) else None
