"""One image, one age: from bytes to pixels, from text to years; and what is wrong with them."""

import contextlib
import functools
import importlib.util
import io
import os
import re
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

from system import foreign
from utils import DataError

try:
    import simplejpeg  # four times Pillow's rate, and strict; Pillow reads the rest
except ImportError:
    simplejpeg = None

HEIGHT, WIDTH = 112, 96
WIDTHS = 96, 112  # of faces: as in the paper, and as most sets and backbones of the field have it
LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # pixels; Pillow refuses more
AGE = re.compile(r'[0-9]+(\.[0-9]+)?')
# Pillow's formats that are read; EPS is not among them, since it starts a program
KINDS = ('JPEG', 'MPO', 'PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM', 'JPEG2000', 'AVIF', 'HEIF')
# Pillow's warnings that are not about pixels; at 89 megapixels it warns, at twice that it refuses
HARMLESS = 'Metadata Warning|Corrupt EXIF|Invalid APNG|.*malformed MPO|.*decompression bomb'
# tags of EXIF and TIFF 6.0; offsets and sizes are those of strips, and of tiles
ORIENTATION, BITS, COMPRESSION, PHOTOMETRIC, JPEG_TABLES = 274, 258, 259, 262, 347
OFFSETS, SIZES = (273, 324), (279, 325)
JPEG, DEFLATE, WHITE_IS_ZERO = 7, (8, 32946), 0


def some(names: Iterable[str | bytes | os.PathLike]) -> str:
    """The first few names and how many there are, on one line whatever the names hold."""
    all_ = [name if name.isprintable() else ascii(name) for name in map(os.fsdecode, names)]
    return ', '.join(all_[:3]) + (f', … ({len(all_)} in all)' if len(all_) > 3 else '')


def to_age(value: object) -> float:
    """Age in years of a number or its text. ValueError if it is none, or not from 0 to 120."""
    number = float(value) if isinstance(value, str) and AGE.fullmatch(value) else value
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise ValueError(f'{value!r:.60} is no age')
    if not 0 <= number <= 120:  # before it is a float: a whole number can be too large to be one
        raise ValueError(f'{value!s:.60} is no age between 0 and 120')
    return float(number)


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
    """An encoded face, 112×96 or 112×112 -> RGB uint8 (112, width, 3), see `to_width`. Raises
    DataError as `open_image` does, and for another size."""
    return to_width(open_image(data, _check_size), width)


def _check_size(height, width):
    if height != HEIGHT or width not in WIDTHS:
        raise DataError(f'{height} high × {width} wide')


def to_width(face: np.ndarray, width: int) -> np.ndarray:
    """A face (112, 96 or 112, 3) -> (112, width, 3). Both sizes show the face at one scale, 112×112
    with 8 columns more on either side: they are cut off for a width of 96, and for a width of 112
    the outermost columns of 112×96 are repeated."""
    if width not in WIDTHS:
        raise ValueError(f'a face is {" or ".join(map(str, WIDTHS))} wide, not {width!r}')
    extra = width - face.shape[1]
    return face[:, np.clip(np.arange(width) - extra // 2, 0, face.shape[1] - 1)]


def open_image(data: bytes, check: Callable[[int, int], None] | None = None) -> np.ndarray:
    """An encoded image of any size -> RGB uint8 (height, width, 3), upright as EXIF or XMP says.

    What a decoder calls damaged is refused, rather than shown with half of it grey. Greys of 16
    and 32 bits and floats are scaled to 8 bits, transparency is ignored, of an animation the first
    picture is taken. `check(height, width)` may refuse the size, by a DataError, before anything
    but a PNG is decoded. Raises DataError with the decoder's reason, without the file's name."""
    try:
        return _open(data, check or (lambda height, width: None))
    except DataError:
        raise
    except Image.UnidentifiedImageError:
        reason = _what_else(data)
    except Image.DecompressionBombError:
        reason = f'more than {LARGEST / 1e6:.0f} megapixels: make it smaller'
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
        orientation = _orientation_of_jpeg(data) if tagged else 1
        check(*((width, height) if orientation > 4 else (height, width)))
        if height * width > LARGEST:
            raise Image.DecompressionBombError
        if colours not in ('CMYK', 'YCCK'):
            return _upright(simplejpeg.decode_jpeg(data, colorspace='RGB'), orientation)
        simplejpeg.decode_jpeg(data, colorspace='CMYK')  # strictly; Pillow knows what is inverted
    return _open_with_pillow(data, check)


def _open_with_pillow(data, check):
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some libraries set it for everybody
    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # XMP may exceed a megabyte
    with _STRICT, Image.open(io.BytesIO(data), formats=kinds()) as image:
        tags = getattr(image, 'tag_v2', {})
        # of colours of 16 bits Pillow keeps the upper 8
        sixteen = bool(image.tile) and ';16' in str(image.tile[0][3])
        if image.format == 'PNG':  # its EXIF may follow its pixels
            image.load()
        width, height = image.size
        # a TIFF with the tag has its upright size; any TIFF is turned when it is loaded
        lies = _orientation(image) > 4 and ORIENTATION not in tags
        check(*((width, height) if lies else (height, width)))
        _check_sums(image, tags, data)
        image.load()
        orientation = _orientation(image)
    if image.mode.startswith(('I', 'F')):
        greys = _eight_bits(np.asarray(image), tags.get(BITS) == (12,))
        # Pillow inverts those of 8 bits and fewer
        inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
        image = Image.fromarray(255 - greys if inverted else greys)
    elif sixteen and np.asarray(image.convert('RGB')).max() < 16:
        raise ValueError('of its 16 bits only the lowest 12 are used: save it with 8 bits')
    image.info.pop('transparency', None)  # which converting would warn of
    return _upright(np.asarray(image.convert('RGB')), orientation)


def _eight_bits(values, twelve):
    """Greys of more than 8 bits (H, W) as uint8. Raises ValueError if they are no greys.

    Neither TIFF nor Pillow says which scale was meant. 16 bits with no value of 4096 were written
    with 12, or with 8 if none reaches 256; otherwise it is the smallest scale that holds them: of
    32 bits 8, 16 or 31, of floats 1 first."""
    if not np.isfinite(values).all() or values.min() < 0:
        raise ValueError('values below 0, or not finite: it has no greys')
    top = values.max()
    if values.dtype.itemsize == 2:
        if top >= 2**12:
            return (values >> 8).astype(np.uint8)
        scales = (2**12 - 1,) if twelve else (255, 2**12 - 1)
    else:
        floats = values.dtype.kind == 'f'
        scales = (1, 255, 2**16 - 1) if floats else (255, 2**16 - 1, 2**31 - 1)
    scale = next((scale for scale in scales if top <= scale), None)
    if scale is None:
        raise ValueError(f'values up to {top:g}: not greys of an image')
    return np.rint(values * (255 / scale)).astype(np.uint8)


def _check_sums(image, tags, data):
    """Raises the decoder's error if a checksum of the opened `image` says that it is damaged.

    Pillow's `verify` compares those of a PNG's chunks, its `load` does not. libtiff stops where the
    rows are full, before the checksum of Deflate, and only warns of damaged JPEG: both are decoded
    here once more. Other compressions of TIFF have no checksum."""
    if image.format == 'PNG':
        with Image.open(io.BytesIO(data), formats=('PNG',)) as again:
            again.verify()
    if image.format != 'TIFF':
        return
    for offsets, sizes in zip(OFFSETS, SIZES, strict=True):
        for start, size in zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=True):
            part = data[start : start + size]
            if tags.get(COMPRESSION) in DEFLATE:
                _inflate(part)
            elif tags.get(COMPRESSION) == JPEG and simplejpeg:
                # the tables that all strips share end with the marker of the end, strips begin with
                # that of the start
                whole = tags.get(JPEG_TABLES, b'\xff\xd8\xff\xd9')[:-2] + part[2:]
                cmyk = simplejpeg.decode_jpeg_header(whole)[2] in ('CMYK', 'YCCK')
                simplejpeg.decode_jpeg(whole, colorspace='CMYK' if cmyk else 'RGB')


def _inflate(data):
    stream = zlib.decompressobj()
    while data and not stream.eof:
        stream.decompress(data, 1 << 20)  # a little at a time: it may grow a thousandfold
        data = stream.unconsumed_tail
    if not stream.eof:
        raise ValueError('Deflate data cut short')


class _Strict:
    """Within it Pillow's warnings are errors, but HARMLESS ones. Threads may be in it at once: the
    filters are the process's, which the first thread sets and the last sets back."""

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
    """Those of KINDS that can be read here; HEIF if pillow-heif is installed."""
    if importlib.util.find_spec('pillow_heif'):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return [kind for kind in KINDS if kind in Image.OPEN]


def _orientation_of_jpeg(data):
    with contextlib.suppress(Exception):  # the decoder of the pixels says what is wrong with them
        with _STRICT, Image.open(io.BytesIO(data), formats=('JPEG',)) as image:
            return _orientation(image)
    return 1


def _orientation(image):
    """EXIF's number from 1 to 8 for how the picture lies; XMP's if EXIF has none."""
    with contextlib.suppress(Exception):  # damaged EXIF is no damaged picture
        number = image.getexif().get(ORIENTATION, 1)
        return number if number in range(1, 9) else 1
    return 1


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
    if data[4:12] in (b'ftypavif', b'ftypavis'):
        return 'AVIF needs Pillow 11.3 or later'
    if data[4:10] in (b'ftyphe', b'ftypmi', b'ftypms'):
        return 'HEIC needs `pip install pillow-heif`'
    known = foreign.what_it_is(data[: foreign.READ]) if data else 'an empty file'
    return f'not an image but {known}' if known else 'not an image of a kind that is read here'
