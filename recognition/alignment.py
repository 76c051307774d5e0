"""A photograph, opened whatever its format, and the face in it brought to the template."""

import math
import os
import re

import numpy as np
from PIL import Image

from storage.files import read_file
from storage.images import HEIGHT, WIDTH, open_image, some
from utils import DataError

# what aligners and copies append to a name: _0, _001, -aligned, _crop, (1)
TAIL = r'(?:[-_ ]+(?:\d{1,3}|aligned|align|cropped|crop|face|mtcnn)|\s*\(\d+\))*'
# (x, y) of the eyes, the nose and the corners of the mouth, left to right in the picture;
# (0, 0) is the middle of the first pixel
TEMPLATE = np.array(
    [[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366]]
    + [[33.5493, 92.3655], [62.7299, 92.2041]]
)


def open_photograph(
    source: str | os.PathLike | bytes, name: str | None = None, most: int | None = None
) -> Image.Image:
    """The photograph of a path or of encoded bytes as a PIL image, RGB, upright as its EXIF says.

    Raises DataError, which names the file (or `name`), where it can't be read, and, before anything
    is decoded, where it has more than `most` pixels.
    """

    def check(height, width):
        if most and width * height > most:
            limit = f'{most / 1e6:.0f} megapixels'
            raise DataError(f'{width} × {height}, more than {limit}: make it smaller')

    try:
        data = source if isinstance(source, bytes) else read_file(source)
        return Image.fromarray(open_image(data, check))
    except DataError as error:
        # of what is no image at all, that is enough
        reason = re.sub(r'.*\((not an image .*|\w+ needs .*)\)$', r'\1', str(error))
    except OSError as error:
        reason = 'no such file' if isinstance(error, FileNotFoundError) else str(error.strerror)
    raise DataError(f'{some([name or source])}: {reason}')


def similarity(points: np.ndarray, template: np.ndarray = TEMPLATE) -> np.ndarray:
    """The (2, 3) matrix of rotation, one scale and a shift that takes points (n, 2), n ≥ 2, closest
    to the template, by least squares (Umeyama, PAMI 1991). Raises ValueError where all points are
    one."""
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
    """`image` under the similarity (2, 3), `size` (width, height) of it, black beyond its edges. A
    large face is drawn at its own resolution and then averaged, so that it shows no aliasing."""
    times = max(1, math.ceil(1 / np.hypot(*matrix[:, 0])))
    # Pillow asks where an output pixel comes from, and counts from the pixel's corner
    inverse = np.linalg.inv(matrix[:, :2] * times)
    shift = 0.5 - inverse @ (times * (matrix[:, 2] + 0.5))
    whole = times * size[0], times * size[1]
    data = np.column_stack([inverse, shift]).ravel().tolist()
    large = image.transform(whole, Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)
    return large.reduce(times) if times > 1 else large


def align(image: Image.Image, points: np.ndarray, width: int = WIDTH) -> Image.Image:
    """The face with these points (5, 2) in an RGB image, aligned: 112 high, `width` wide; at 112,
    the same face with 8 columns more on either side."""
    template = TEMPLATE + [(width - WIDTH) / 2, 0]
    return warp(image, similarity(points, template), (width, HEIGHT))


def middle(image: Image.Image, width: int = WIDTH) -> Image.Image:
    """The middle of an RGB image in which no face is found, half of its shorter side: about what a
    face fills in LFW's photographs."""
    scale = 2 * HEIGHT / min(image.size)
    shift = np.subtract((width, HEIGHT), 1) / 2 - scale * np.subtract(image.size, 1) / 2
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    return warp(image, matrix, (width, HEIGHT))
