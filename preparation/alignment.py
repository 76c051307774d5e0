"""A photograph, opened whatever its format, and the face in it brought to the template."""
import functools
import importlib.util
import math
import os
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from storage.images import HEIGHT, WIDTH, some
from utils import DataError

# (x, y) of the eyes, the nose and the corners of the mouth, left to right in the picture;
# (0, 0) is the middle of the first pixel
TEMPLATE = np.array([[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366],
                     [33.5493, 92.3655], [62.7299, 92.2041]])

# Pillow's formats that are read; EPS is not among them, since it starts a program
KINDS = ('JPEG', 'MPO', 'PNG', 'WEBP', 'TIFF', 'BMP', 'GIF', 'PPM', 'JPEG2000', 'AVIF', 'HEIF')


@functools.cache
def _kinds():
    """Those of KINDS that can be read here; HEIF where pillow-heif is installed."""
    if importlib.util.find_spec('pillow_heif'):
        import pillow_heif
        pillow_heif.register_heif_opener()
    Image.init()
    return [kind for kind in KINDS if kind in Image.OPEN]


def open_photograph(path: str | os.PathLike | BinaryIO, name: str | None = None,
                    most: int | None = None) -> Image.Image:
    """The photograph as a PIL image, RGB, upright as its EXIF says.

    `path` may be an open binary file, which `name` then names in messages. Raises DataError, which
    names the file, where it can't be read, and, before anything is decoded, where it has more than
    `most` pixels.
    """
    name = path if name is None else name
    try:
        named = isinstance(path, (str, os.PathLike))
        if named and os.path.exists(path) and not os.path.isfile(path):
            raise OSError('a folder, a pipe or a device')  # reading a pipe would wait
        with warnings.catch_warnings():
            # at 89 megapixels Pillow warns, at twice that it refuses
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(path, formats=_kinds()) as image:
                if most and image.width * image.height > most:
                    raise DataError(f'{image.width} × {image.height}, more than '
                                    f'{most / 1e6:.0f} megapixels: make it smaller')
                if image.mode.startswith('I;16'):
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                return ImageOps.exif_transpose(image).convert('RGB')
    except DataError as error:
        reason = str(error)
    except Image.DecompressionBombError:
        reason = f'of more than {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} megapixels: make it smaller'
    except Image.UnidentifiedImageError:
        heif = str(name).lower().endswith(('.heic', '.heif')) and 'HEIF' not in _kinds()
        reason = ('HEIC needs `pip install pillow-heif`' if heif else
                  'not an image that can be read here, whatever its name says')
    except FileNotFoundError:
        reason = 'no such file'
    except MemoryError:
        reason = 'too large for the memory of this machine'
    except Exception as error:  # decoders raise whatever they like at damaged bytes
        what = ' '.join(str(error).split()) or type(error).__name__
        reason = f'not readable as an image ({what})'
    raise DataError(f'{some([name])}: {reason}') from None


def similarity(points: np.ndarray, template: np.ndarray = TEMPLATE) -> np.ndarray:
    """The (2, 3) matrix of the similarity that takes points (n, 2), n ≥ 2, closest to the template.

    Rotation, one scale and a shift, no mirroring, by least squares (Umeyama, PAMI 1991). Raises
    ValueError where all points are one.
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


def warp(image: Image.Image, matrix: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """`image` under the similarity (2, 3), `size` (width, height) of it, black beyond its edges.

    Points (x, y) are counted from the middle of the first pixel. A large face is drawn at its own
    resolution and then averaged, so that it shows no aliasing.
    """
    times = max(1, math.ceil(1 / np.hypot(*matrix[:, 0])))
    # Pillow asks where an output pixel comes from, and counts from the pixel's corner
    inverse = np.linalg.inv(matrix[:, :2] * times)
    shift = .5 - inverse @ (times * (matrix[:, 2] + .5))
    large = image.transform((times * size[0], times * size[1]), Image.Transform.AFFINE,
                            np.hstack([inverse, shift[:, None]]).ravel().tolist(),
                            Image.Resampling.BICUBIC)
    return large.reduce(times) if times > 1 else large


def align(image: Image.Image, points: np.ndarray) -> Image.Image:
    """The face with these five points (5, 2) in an RGB image, aligned: 96 wide, 112 high."""
    return warp(image, similarity(points), (WIDTH, HEIGHT))
