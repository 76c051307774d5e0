"""One image, one age: from bytes to pixels, from text to years; and what is wrong with them."""

import codecs
import functools
import importlib.util
import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageFile

from storage.greys import Depth
from storage.strict import check_whole
from utils import DataError

try:
    import simplejpeg  # four times Pillow's rate, and strict; Pillow reads the rest
except ImportError:
    simplejpeg = None

HEIGHT, WIDTH = 112, 96
WIDTHS = 96, 112  # of faces: as in the paper, and as most sets and backbones of the field have it
ORIENTATION = 0x0112  # the tag of EXIF and TIFF
AGE = re.compile(r'[0-9]+(\.[0-9]+)?')
# Pillow's formats that are read; EPS is not among them, since it starts a program
KINDS = ('JPEG', 'MPO', 'PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM', 'JPEG2000', 'AVIF', 'HEIF')
# Pillow's warnings that are not about pixels; at 89 megapixels it warns, at twice that it refuses
HARMLESS = 'Metadata Warning|Corrupt EXIF|Invalid APNG|.*malformed MPO|.*decompression bomb'


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
    can't be read. The size is checked before anything but a PNG is decoded.
    """
    return to_width(open_image(data, _check_size), width)


def _check_size(height, width):
    if height != HEIGHT or width not in WIDTHS:
        raise DataError(f'{height} high × {width} wide')


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
    return face[:, -missing // 2 :][:, :width]


def open_image(data: bytes, check: Callable[[int, int], None] | None = None) -> np.ndarray:
    """An encoded image of any size -> RGB uint8 (height, width, 3), upright as EXIF or XMP says.

    What a decoder calls damaged is refused, rather than shown with half of it grey. Greys of 16
    and 32 bits and floats are scaled to 8 bits, transparency is ignored, of an animation the first
    picture is taken. `check(height, width)` may refuse the size, by a DataError, before anything
    but a PNG is decoded. Raises DataError, which doesn't know the file's name, with the decoder's
    reason.
    """
    try:
        return _open(data, check or (lambda height, width: None))
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        reason = _what_else(data)
    except Image.DecompressionBombError:
        reason = f'more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels: make it smaller'
    except MemoryError:
        reason = 'too large for the memory of this machine'
    except Exception as error:  # decoders raise whatever they like at damaged bytes
        reason = ' '.join(str(error).split()) or type(error).__name__
    raise DataError(f'not readable as an image ({reason})')


def _open(data, check):
    if simplejpeg and data[:3] == b'\xff\xd8\xff':
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:  # of a kind that it doesn't know, or no JPEG at all
            return _open_with_pillow(data, check)
        tagged = b'Exif\0\0' in data or b'tiff:Orientation' in data
        orientation = _orientation(data) if tagged else 1
        check(*((width, height) if orientation > 4 else (height, width)))
        if height * width > 2 * Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        if colours not in ('CMYK', 'YCCK'):
            return _upright(simplejpeg.decode_jpeg(data, colorspace='RGB'), orientation)
        simplejpeg.decode_jpeg(data, colorspace='CMYK')  # strictly; Pillow knows what is inverted
    return _open_with_pillow(data, check)


def _open_with_pillow(data, check):
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some libraries set it for everybody
    with _STRICT, Image.open(io.BytesIO(data), formats=kinds()) as image:
        depth = Depth(image)
        if image.format == 'PNG':  # its EXIF may follow its pixels
            image.load()
        width, height = image.size
        # a TIFF with the tag tells its upright size; any TIFF is turned when it is loaded
        told = ORIENTATION in getattr(image, 'tag_v2', ())
        lies = _orientation_of(image) > 4 and not told
        check(*((width, height) if lies else (height, width)))
        check_whole(image, data)
        image.load()
        orientation = _orientation_of(image)
    image = depth.eight_bits(image)
    image.info.pop('transparency', None)  # which converting would warn of
    return _upright(np.asarray(image.convert('RGB')), orientation)


class _Strict:
    """Within it Pillow's warnings are errors, but HARMLESS ones. Threads may be in it at once.

    The filters of warnings are the process's: the first thread sets them, the last sets them back.
    """

    def __init__(self):
        self.lock, self.inside = threading.Lock(), 0

    def __enter__(self):
        with self.lock:
            if not self.inside:
                self.filters = warnings.catch_warnings()
                self.filters.__enter__()
                warnings.filterwarnings('error', module=r'PIL\.')
                warnings.filterwarnings('ignore', HARMLESS, module=r'PIL\.')
            self.inside += 1

    def __exit__(self, *error):
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.filters.__exit__(*error)


_STRICT = _Strict()


@functools.cache
def kinds() -> list[str]:
    """Those of KINDS that can be read here; HEIF where pillow-heif is installed."""
    if importlib.util.find_spec('pillow_heif'):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return [kind for kind in KINDS if kind in Image.OPEN]


def _orientation(data):
    """That of a JPEG; 1 where its EXIF is damaged."""
    try:
        with _STRICT, Image.open(io.BytesIO(data), formats=('JPEG',)) as image:
            return _orientation_of(image)
    except Exception:  # the decoder of the pixels says what is wrong with them
        return 1


def _orientation_of(image):
    """EXIF's number from 1 to 8 for how the picture lies; XMP's where EXIF has none."""
    try:
        number = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF is no damaged picture
        return 1
    return number if number in range(1, 9) else 1


def _upright(pixels, orientation):
    """Turned and mirrored as EXIF's orientation says; above 4, rows are columns."""
    if orientation > 4:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _what_else(data):
    """What bytes are that no decoder knows, as far as a user may want to know."""
    start = data[:64].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if not data:
        return 'not an image but an empty file'
    if start.startswith((b'<!doctype', b'<html')):
        return 'not an image but a web page'
    if start.startswith(b'version https://git-lfs'):
        return 'not an image but a pointer of git-lfs: `git lfs pull` fetches what it stands for'
    if data[4:12] in (b'ftypavif', b'ftypavis'):
        return 'AVIF needs Pillow 11.3 or later'
    if data[4:10] in (b'ftyphe', b'ftypmi', b'ftypms'):
        return 'HEIC needs `pip install pillow-heif`'
    return 'not an image of a kind that is read here, whatever its name says'
