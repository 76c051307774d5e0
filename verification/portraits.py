"""The face in an image: as it is where the image is an aligned face, else found and aligned."""

import functools
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from preparation.alignment import align, open_photograph
from preparation.detection import Detector, choose
from storage.images import HEIGHT, WIDTH, decode, some
from utils import DataError, UserError

ALIGNED = (
    (WIDTH, HEIGHT),
    (HEIGHT, HEIGHT),
)  # sizes (width, height) of images that are taken for aligned faces
SHOWN = 320  # pixels of the longer side of a photograph that is kept to be shown


class Portrait(NamedTuple):
    """face (112, 96, 3) uint8 RGB; of a photograph also `shown`, a small picture with the face
    marked, and the number of `faces` in it."""

    name: str
    face: np.ndarray
    shown: Image.Image | None = None
    faces: int = 1

    @property
    def about(self):
        """How the face was come by, in a few words."""
        if self.shown is None:
            return 'aligned'
        return (
            'found in a photograph'
            if self.faces == 1
            else f'the largest of {self.faces} faces in a photograph'
        )


@functools.cache
def detector():
    return Detector()


def read(data, name, most=None):
    """The Portrait in an encoded image (bytes) called `name`; of several faces the largest.

    Raises DataError where it is no image, has more than `most` pixels, shows no face, or is a
    photograph and the detector isn't installed.
    """
    image = open_photograph(io.BytesIO(data), name, most)
    if image.size in ALIGNED:
        return Portrait(name, decode(data))
    try:
        faces = detector().find(image)
    except UserError:
        raise DataError(
            f'{some([name])}: {image.height} high × {image.width} wide, so no aligned face of '
            f'{HEIGHT} × {WIDTH}; to find '
            'faces in photographs: pip install -r requirements-prepare.txt'
        ) from None
    if not faces:
        raise DataError(f'{some([name])}: no face found')
    face = choose(faces, image.size, 'largest')
    return Portrait(name, np.asarray(align(image, face.points)), _marked(image, face), len(faces))


def read_file(path):
    """read() of a file. Raises DataError where it can't be opened either."""
    try:
        return read(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise DataError(f'{some([path])}: {error.strerror}') from None


def _marked(image, face):
    """The photograph made small, the face's box and five points drawn into it."""
    scale = min(1, SHOWN / max(image.size))
    shown = image.resize([max(1, round(side * scale)) for side in image.size], reducing_gap=3.0)
    draw = ImageDraw.Draw(shown)
    draw.rectangle([side * scale for side in face.box], outline='#ffcc00', width=2)
    for x, y in (face.points + 0.5) * scale:
        draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill='#ffcc00', outline='black')
    return shown
