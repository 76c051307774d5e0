"""Damage that decoders pass over: found by the checksums of PNG and TIFF."""

import io
import zlib

from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

COMPRESSION, OFFSETS, SIZES = 259, (273, 324), (279, 325)  # TIFF 6.0: of strips, of tiles
JPEG_TABLES = 347
JPEG, DEFLATE = 7, (8, 32946)


def check_whole(image: Image.Image, data: bytes) -> None:
    """Raises the decoder's error where the bytes of the opened `image` are damaged.

    Of a PNG every chunk has a checksum, which Pillow's `verify` compares and its `load` does not.
    libtiff stops where the rows are full, before the checksum of Deflate, and only warns of damaged
    JPEG: both are decoded here once more. Other compressions of TIFF have no checksum.
    """
    if image.format == 'PNG':
        with Image.open(io.BytesIO(data), formats=('PNG',)) as again:
            again.verify()
    elif image.format == 'TIFF':
        _check_tiff(image.tag_v2, data)


def _check_tiff(tags, data):
    compression = tags.get(COMPRESSION)
    for part in _parts(tags, data):
        if compression in DEFLATE:
            _inflate(part)
        elif compression == JPEG and simplejpeg:
            # the tables that all strips share end with the marker of the end, strips begin with
            # that of the start
            whole = tags.get(JPEG_TABLES, b'\xff\xd8\xff\xd9')[:-2] + part[2:]
            _, _, colours, _ = simplejpeg.decode_jpeg_header(whole)
            cmyk = colours in ('CMYK', 'YCCK')
            simplejpeg.decode_jpeg(whole, colorspace='CMYK' if cmyk else 'RGB')


def _parts(tags, data):
    """The bytes of each strip or tile."""
    for offsets, sizes in zip(OFFSETS, SIZES, strict=True):
        for start, size in zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=True):
            yield data[start : start + size]


def _inflate(data):
    stream = zlib.decompressobj()
    while data and not stream.eof:
        stream.decompress(data, 1 << 20)  # a little at a time: it may grow a thousandfold
        data = stream.unconsumed_tail
    if not stream.eof:
        raise ValueError('Deflate data cut short')
