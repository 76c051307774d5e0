"""Greys of more than 8 bits as 8; which scale was meant is told by the file, or by the values."""

import numpy as np
from PIL import Image

from utils import DataError

PHOTOMETRIC, BITS = 262, 258  # tags of TIFF 6.0
WHITE_IS_ZERO = 0


class Depth:
    """What an opened image tells of its greys, read before it is loaded."""

    def __init__(self, image: Image.Image):
        tags = getattr(image, 'tag_v2', {})
        self.inverted = tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
        self.twelve = tags.get(BITS) == (12,)
        # of these Pillow keeps the upper 8
        self.sixteen = bool(image.tile) and ';16' in str(image.tile[0][3])

    def eight_bits(self, image: Image.Image) -> Image.Image:
        """The loaded image with 8 bits a channel. Raises DataError where it has no greys.

        A black picture of 16 bits, with no value of 4096, was written with fewer: 12, or 8 where
        none reaches 256. Of colours Pillow has by then dropped the lower 8 bits: refused.
        """
        if image.mode.startswith(('I', 'F')):
            greys = _eight_bits(np.asarray(image), self.twelve)
            # Pillow turns those of 8 bits and fewer
            return Image.fromarray(255 - greys if self.inverted else greys)
        if self.sixteen and np.asarray(image.convert('RGB')).max() < 16:
            raise DataError(
                'not readable as an image (colours of 16 bits of which only the lowest 12 are '
                'used: save it with 8 bits)'
            )
        return image


def _eight_bits(values, twelve):
    """The scale is the least of those below that holds them, since neither TIFF nor Pillow says
    which was meant: of 16 bits see above, of 32 bits 8, 16 or 31 bits, of floats 1 first.
    """
    if not np.isfinite(values).all() or values.min() < 0:
        raise DataError('not readable as an image (values below 0, or not finite: it has no greys)')
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
        raise DataError(f'not readable as an image (values up to {top:g}: not greys of an image)')
    return np.rint(values * (255 / scale)).astype(np.uint8)
