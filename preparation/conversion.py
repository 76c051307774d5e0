"""A photograph turned into an aligned face with its age in its name."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from preparation.ages import Dex, Offline
from preparation.labels import NAMES, Named
from preparation.landmarks import Landmarks
from preparation.report import Outcome, digest
from preparation.source import Photograph
from preparation.tables import Table
from recognition.alignment import align, middle, open_photograph
from recognition.detection import Detector, choose
from storage.files import is_image
from utils import write_whole

# how faces are written under their own names, by the suffix; any other suffix becomes .jpg
JPEG = {'format': 'JPEG', 'quality': 95, 'subsampling': 0}
FORMATS = {
    '.jpg': JPEG,
    '.jpeg': JPEG,
    '.jpe': JPEG,
    '.jfif': JPEG,
    '.png': {'format': 'PNG'},
    '.bmp': {'format': 'BMP'},
    '.ppm': {'format': 'PPM'},
    '.tif': {'format': 'TIFF'},
    '.tiff': {'format': 'TIFF'},
    '.webp': {'format': 'WEBP', 'lossless': True},
}


class Converter:
    """All that a process needs to make faces of photographs; the arguments are the options.

    Raises UserError or DataError where something of it is missing.
    """

    def __init__(
        self,
        source: str,
        target: str,
        ages: Sequence[str],
        pat: str | None,
        pos: int | None,
        dex: str | None,
        landmarks: str | None,
        face: str,
        size: int = 96,
        keep_names: bool = False,
    ):
        self.source, self.target, self.face = source, target, face
        self.size, self.keep_names = size, keep_names
        self.ages = (
            []
            if keep_names
            else [_ages_of(kind, source, pat, pos) for kind in ages if kind != 'estimate']
        )
        self.estimator = None
        if 'estimate' in ages and not keep_names:
            self.estimator = Dex(dex) if dex else Offline()
        self.landmarks = Landmarks(landmarks) if landmarks else None
        self.detector = None if landmarks else Detector()

    def check(self, found: Sequence[Photograph]) -> None:
        """Refuses tables that don't fit the photographs: DataError."""
        for ages in self.ages:
            if isinstance(ages, Table):
                ages.check((photograph.relative, photograph.person) for photograph in found)
        if self.landmarks:
            self.landmarks.check(photograph.relative for photograph in found)

    def path(self, photograph: Photograph) -> str:
        return os.path.join(self.source, photograph.relative)

    def stamp(self, photograph: Photograph) -> str:
        """What changes when the photograph or its points do; empty where it can't be read."""
        try:
            stat = os.stat(self.path(photograph))
            points = self.landmarks.of(photograph.relative).tolist() if self.landmarks else ''
        except (OSError, ValueError):
            return ''
        return digest(f'{stat.st_size} {stat.st_mtime_ns} {points}'.encode())

    def convert(self, photograph: Photograph) -> Outcome:
        """The Outcome of one Photograph, its face written."""
        path, stamp = self.path(photograph), self.stamp(photograph)
        try:
            if photograph.wrong:
                raise ValueError(photograph.wrong)
            if photograph.person is None and not self.keep_names:
                raise ValueError(
                    'no person: it lies in no folder of one, or its name does not tell'
                )
            image = open_photograph(path)
            if photograph.rival:
                raise ValueError(
                    f'its face would be {kept_name(photograph.relative)}, which is '
                    f'that of {photograph.rival}: rename one of the two'
                )
            age, origin = (None, '') if self.keep_names else self.known_age(photograph)
            points, faces = self._points(photograph.relative, image)
            face = middle(image, self.size) if points is None else align(image, points, self.size)
            if age is None and not self.keep_names:
                age = round(self.estimator.estimate(image, points))
                origin = 'dex' if isinstance(self.estimator, Dex) else 'estimate'
            target, options = self._target(photograph, age)
            written = self._write(face, target, options)
        except ValueError as error:  # DataError among them
            return Outcome(photograph.relative, reason=str(error).removeprefix(f'{path}: '))
        eyes = '' if points is None else f'{np.hypot(*(points[1] - points[0])):.0f}'
        return Outcome(
            photograph.relative,
            target,
            '' if age is None else str(age),
            origin,
            eyes,
            faces,
            '',
            stamp,
            written,
        )

    def known_age(self, photograph: Photograph) -> tuple[int | None, str]:
        """The first age that a name or a table tells, and its origin; None: to be estimated.

        Raises ValueError where nothing tells and nothing is to be estimated.
        """
        reasons, path = [], self.path(photograph)
        for ages in self.ages:
            try:
                return ages.age(photograph.relative, photograph.person, path), ages.kind
            except ValueError as error:
                reasons.append(str(error))
        if self.estimator is None:
            raise ValueError(f'no age: {"; ".join(reasons)}')
        return None, ''

    def _points(self, relative, image):
        """The five points and how many faces there are; None and 0 where the middle is to do."""
        if self.landmarks:
            return self.landmarks.of(relative), ''
        faces = self.detector.find(image)
        if faces:
            return choose(faces, image.size, self.face).points, str(len(faces))
        if self.keep_names:  # benchmarks count on every image
            return None, '0'
        raise ValueError('no face found')

    def _target(self, photograph, age):
        """The name of the face below TARGET, and how it is written."""
        if not self.keep_names:
            name = f'{photograph.number:03d}_{age}.jpg'
            return os.path.join(photograph.person, name), JPEG
        name = kept_name(photograph.relative)
        return name, FORMATS[os.path.splitext(name)[1].lower()]

    def _write(self, face, target, options):
        """Writes the face; the digest of the file.

        ValueError where another file of that name is there, OSError where it can't.
        """
        file, path = io.BytesIO(), Path(self.target, target)
        face.save(file, **options)
        data = file.getvalue()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, lambda temporary: temporary.write_bytes(data))
        elif path.read_bytes() != data:
            raise ValueError(f'{path} is there already and is none of this run')
        return digest(data)


def kept_name(relative: str) -> str:
    """The name of a photograph's face where names are kept."""
    stem, suffix = os.path.splitext(relative)
    return relative if suffix.lower() in FORMATS else f'{stem}.jpg'


def with_rivals(found: Sequence[Photograph]) -> list[Photograph]:
    """The photographs, with the `rival` of each whose name is kept by another's face.

    The name is that of the photograph that has it already, else of the first that is an image.
    """

    def rank(photograph):
        return photograph.relative != kept_name(photograph.relative), not is_image(
            photograph.relative
        )

    owners = {}
    for photograph in sorted(found, key=rank):
        owners.setdefault(kept_name(photograph.relative), photograph.relative)
    return [
        photograph if owner == photograph.relative else photograph._replace(rival=owner)
        for photograph in found
        for owner in [owners[kept_name(photograph.relative)]]
    ]


def _ages_of(kind, source, pat, pos):
    if kind == 'pattern':
        return Named(kind, pat, pos)
    return Named(kind) if kind in NAMES else Table(kind, source)
