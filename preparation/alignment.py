"""A photograph, opened whatever its kind, and the face in it, turned, scaled and cut to the five points of the template."""
import functools
import importlib.util
import math
import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from storage.images import HEIGHT, WIDTH, some
from utils import DataError

# (x, y) of the eyes, the nose and the corners of the mouth, left to right as one looks at the picture; 0, 0 is the middle of the first pixel
TEMPLATE = np.array([[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366], [33.5493, 92.3655], [62.7299, 92.2041]])


KINDS = ('JPEG', 'MPO', 'PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM', 'JPEG2000', 'AVIF', 'HEIF')  # and not what starts a program, as EPS does


@functools.cache
def _kinds():
    """Those of KINDS that can be read here; HEIF where pillow-heif is installed."""
    if importlib.util.find_spec('pillow_heif'):
        import pillow_heif
        pillow_heif.register_heif_opener()
    Image.init()
    return [kind for kind in KINDS if kind in Image.OPEN]


def open_photograph(path, name=None, most=None):
    """The photograph as a PIL image, RGB, upright as its EXIF says.

    `path` may be an open binary file, which `name` then names. Raises DataError, which names the file, where it can't be read; and,
    before anything is decoded, where it has more than `most` pixels.
    """
    name = path if name is None else name
    try:
        if isinstance(path, (str, os.PathLike)) and os.path.exists(path) and not os.path.isfile(path):
            raise OSError('a folder, a pipe or a device')  # a pipe would be waited for
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)  # of an honest 100 megapixels; twice that is an error
            with Image.open(path, formats=_kinds()) as image:
                if most and image.width * image.height > most:
                    raise DataError(f'{image.width} × {image.height}, more than {most / 1e6:.0f} megapixels: make it smaller')
                if image.mode.startswith('I;16'):
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                return ImageOps.exif_transpose(image).convert('RGB')
    except DataError as error:
        reason = str(error)
    except Image.DecompressionBombError:
        reason = f'of more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels: make it smaller'
    except Image.UnidentifiedImageError:
        heif = str(name).lower().endswith(('.heic', '.heif')) and 'HEIF' not in _kinds()
        reason = 'HEIC needs `pip install pillow-heif`' if heif else 'not an image that can be read here, whatever its name says'
    except FileNotFoundError:
        reason = 'no such file'
    except MemoryError:
        reason = 'too large for the memory of this machine'
    except Exception as error:  # decoders raise whatever they like at damaged bytes
        reason = f'not readable as an image ({" ".join(str(error).split()) or type(error).__name__})'
    raise DataError(f'{some([name])}: {reason}') from None


def similarity(points, template=TEMPLATE):
    """The (2, 3) matrix of the similarity that takes points (n, 2), n ≥ 2, closest to the template (n, 2) by least squares.

    Turning, one scale and a shift, no mirroring (Umeyama, PAMI 1991). Raises ValueError where all points are one.
    """
    points, template = np.asarray(points, float), np.asarray(template, float)
    if points.shape != template.shape or not np.isfinite(points).all():
        raise ValueError(f'expected {len(template)} points (x, y), finite: {points.tolist()}')
    middle, target = points.mean(0), template.mean(0)
    # as complex numbers a similarity is w ↦ a·z + b, and the least squares have a closed form
    z, w = (points - middle) @ [1, 1j], (template - target) @ [1, 1j]
    if not abs(z).max() > 1e-6:
        raise ValueError('all points are one')
    a = np.vdot(z, w) / np.vdot(z, z)
    turn = np.array([[a.real, -a.imag], [a.imag, a.real]])
    return np.hstack([turn, (target - turn @ middle)[:, None]])


def warp(image, matrix, size):
    """`image` under the similarity (2, 3), `size` (width, height) of it, black where it ends; (x, y) are of the middles of pixels.

    Drawn as large as the photograph has it, then averaged: a face of thousands of pixels neither flickers nor shows grain.
    """
    times = max(1, math.ceil(1 / np.hypot(*matrix[:, 0])))
    # Pillow asks where an output pixel comes from, and counts from the pixel's corner
    inverse = np.linalg.inv(matrix[:, :2] * times)
    shift = .5 - inverse @ (times * (matrix[:, 2] + .5))
    large = image.transform((times * size[0], times * size[1]), Image.Transform.AFFINE, np.hstack([inverse, shift[:, None]]).ravel().tolist(),
                            Image.Resampling.BICUBIC)
    return large.reduce(times) if times > 1 else large


def align(image, points):
    """The face with these five points (5, 2) in an RGB image, brought to the template: 96 wide, 112 high."""
    return warp(image, similarity(points), (WIDTH, HEIGHT))
