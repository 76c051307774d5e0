"""One image, one age: from bytes to pixels, from text to years; and what is wrong with them."""
import io
import os
import re
from collections.abc import Iterable

import numpy as np
from PIL import Image

from utils import DataError

try:
    import simplejpeg  # four times Pillow's rate; Pillow reads the rest
except ImportError:
    simplejpeg = None

HEIGHT, WIDTH = 112, 96
WIDTHS = 96, 112  # of faces: as in the paper, and as most sets and backbones of the field have it
AGE = re.compile(r'[0-9]+(\.[0-9]+)?')


def some(names: Iterable[str | bytes | os.PathLike]) -> str:
    """The first few names and how many there are, on one line whatever the names hold."""
    names = [name if name.isprintable() else ascii(name) for name in map(os.fsdecode, names)]
    return ', '.join(names[:3]) + (f', … ({len(names)} in all)' if len(names) > 3 else '')


def to_age(value: object) -> float:
    """Age in years of a number or its text. ValueError where it is none, or not from 0 to 120."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number and not (isinstance(value, str) and AGE.fullmatch(value)):
        raise ValueError(f'{value!r:.60} is no age')
    # text is made a float first; a whole number can be too large to be one
    if not 0 <= (float(value) if isinstance(value, str) else value) <= 120:
        raise ValueError(f'{value!s:.60} is no age between 0 and 120')
    return float(value)


def parse_age(name: str, pat: str, pos: int) -> float:
    """Age in years in a file name: re.split(pat, name)[pos]. ValueError says what stands there."""
    fields = re.split(pat, name)
    try:
        field = fields[pos]
    except IndexError:
        raise ValueError(f'it splits into {fields}, which has no position {pos}') from None
    if field is None or not AGE.fullmatch(field):
        raise ValueError(f'it splits into {fields}, and {field!r} at position {pos} is no age')
    return to_age(field)


def decode(data: bytes, width: int = WIDTH) -> np.ndarray:
    """An encoded face, 112×96 or 112×112 -> RGB uint8 (112, width, 3), see `to_width`.

    Raises DataError, which doesn't know the file's name, where the image is of another size or
    can't be read. The size is checked before anything is decoded.
    """
    jpeg = simplejpeg and simplejpeg.is_jpeg(data)
    try:
        if jpeg:
            height, columns = simplejpeg.decode_jpeg_header(data)[:2]
        else:
            image = Image.open(io.BytesIO(data))
            columns, height = image.size
    except Exception as error:  # decoders raise whatever they like at damaged bytes
        raise DataError(f'not readable as an image ({type(error).__name__})') from None
    if height != HEIGHT or columns not in WIDTHS:
        raise DataError(f'{height} high × {columns} wide')
    try:
        if jpeg:
            pixels = simplejpeg.decode_jpeg(data, colorspace='RGB')
        else:
            pixels = np.asarray(image.convert('RGB'))
    except Exception as error:
        if jpeg:  # CMYK and other rarities
            try:
                pixels = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
            except Exception:
                raise DataError(f'not readable as an image ({type(error).__name__})') from None
        else:
            raise DataError(f'not readable as an image ({type(error).__name__})') from None
    return to_width(pixels, width)


def to_width(face: np.ndarray, width: int) -> np.ndarray:
    """A face (112, 96 or 112, 3) -> (112, width, 3).

    Both sizes show the face at one scale, 112×112 with 8 columns more on either side: they are cut
    off for a width of 96, and for a width of 112 the outermost columns of 112×96 are repeated.
    """
    if width not in WIDTHS:
        raise ValueError(f'a face is {" or ".join(map(str, WIDTHS))} wide, not {width!r}')
    missing = width - face.shape[1]
    if missing > 0:
        return np.pad(face, ((0, 0), (missing // 2, missing // 2), (0, 0)), 'edge')
    return face[:, -missing // 2:][:, :width]
