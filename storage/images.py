"""One image, one age: from bytes to pixels, from text to years; and the one line that says what is wrong with them."""
import io
import os
import re

import numpy as np
from PIL import Image

from utils import DataError

try:
    import simplejpeg  # four times Pillow's rate; what it can't read, and where it can't be installed, Pillow reads
except ImportError:
    simplejpeg = None

HEIGHT, WIDTH = 112, 96
AGE = re.compile(r'[0-9]+(\.[0-9]+)?')


def some(names):
    """The first few names and how many more, on one line whatever the names hold."""
    names = [name if name.isprintable() else ascii(name) for name in map(os.fsdecode, names)]
    return ', '.join(names[:3]) + (f', … ({len(names)} in all)' if len(names) > 3 else '')


def to_age(value):
    """Age in years (float) of a number or its text. ValueError where it is none, or not between 0 and 120."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) and not (isinstance(value, str) and AGE.fullmatch(value)):
        raise ValueError(f'{value!r:.60} is no age')
    if not 0 <= (float(value) if isinstance(value, str) else value) <= 120:  # a whole number can be too large to be a float
        raise ValueError(f'{value!s:.60} is no age between 0 and 120')
    return float(value)


def parse_age(name, pat, pos):
    """Age in years (float) in a file name: re.split(pat, name)[pos]. ValueError says what stands there instead."""
    fields = re.split(pat, name)
    try:
        field = fields[pos]
    except IndexError:
        raise ValueError(f'it splits into {fields}, which has no position {pos}') from None
    if field is None or not AGE.fullmatch(field):
        raise ValueError(f'it splits into {fields}, and {field!r} at position {pos} is no age')
    return to_age(field)


def decode(data, crop=False):
    """An encoded image (bytes) -> RGB uint8 (112, 96, 3). With `crop`, 112×112 loses 8 columns on either side first.

    Raises DataError, which doesn't know the file's name, where the image is of another size or can't be read. The size is
    checked before anything is decoded.
    """
    jpeg = simplejpeg and simplejpeg.is_jpeg(data)
    try:
        if jpeg:
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
        else:
            image = Image.open(io.BytesIO(data))
            width, height = image.size
    except Exception as error:  # decoders raise whatever they like at damaged bytes
        raise DataError(f'not readable as an image ({type(error).__name__})') from None
    if (height, width) != (HEIGHT, WIDTH) and not (crop and height == width == HEIGHT):
        raise DataError(f'{height} high × {width} wide')
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace='RGB') if jpeg else np.asarray(image.convert('RGB'))
    except Exception as error:
        if jpeg:  # CMYK and other rarities
            try:
                pixels = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
            except Exception:
                raise DataError(f'not readable as an image ({type(error).__name__})') from None
        else:
            raise DataError(f'not readable as an image ({type(error).__name__})') from None
    return pixels[:, (width - WIDTH) // 2:][:, :WIDTH]
