"""From photographs to aligned faces with their ages in their names: what, whose, under which name.

A run lists SOURCE, brings TARGET up to date, and converts the rest over several processes.
"""

import io
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from preparation.ages import Ages
from preparation.labels import NAMES, fields_in
from preparation.landmarks import Landmarks
from preparation.target import Report
from preparation.updating import Outcome, digest, name_of, update_target
from recognition.alignment import align, middle, open_photograph
from recognition.detection import Detector, choose_face
from storage.files import below, is_image
from utils import DataError, write_whole

KEPT = '.jpg .jpeg .jpe .jfif .png .bmp .ppm .tif .tiff .webp'.split()  # other suffixes: .jpg
OPTIONS = {'JPEG': {'quality': 95, 'subsampling': 0}, 'WEBP': {'lossless': True}}
NOBODY = 'no person: it lies in no folder of one, or its name does not tell'


class SourceFile(NamedTuple):
    """A file of the source: its path below it, its person, its number among that person's.

    `wrong` says why no face can be made of it.
    """

    relative: str
    person: str
    wrong: str = ''
    number: int = 0


class Converter:
    """All that a process needs to make faces of photographs, by the options of the command line.

    Raises UserError or DataError if something of it is missing.
    """

    def __init__(self, settings: Mapping):
        self.settings, self.source = settings, settings['source']
        self.keep_names, where = settings['keep_names'], settings['landmarks']
        self.ages = Ages({**settings, 'ages': []} if self.keep_names else settings)
        self.landmarks = Landmarks(where) if where else None
        self.detector = None if where else Detector()

    def find(self) -> list[SourceFile]:
        """Every file below the source, sorted, not numbered yet.

        Raises DataError if there is none, and for tables and points that don't fit them.
        """
        there = below(self.source)
        wrong = dict.fromkeys(there.loops, 'a link to a folder that it lies in')
        wrong |= dict.fromkeys(there.special, 'a pipe, a socket or a device')
        found, people = [], self.settings['people']
        for relative in [*there.images, *there.others, *wrong]:
            folder, name = os.path.split(relative)
            person = folder.split(os.sep)[0]
            if people in NAMES:
                person = fields_in(name, people).get('person', '')
            nobody = '' if person or self.keep_names else NOBODY
            if not (self.landmarks and name.lower().endswith('.pts')):
                found.append(SourceFile(relative, person, wrong.get(relative, nobody)))
        if not found:
            raise DataError(f'{self.source}: no files in this folder or below')
        if self.landmarks:
            self.landmarks.check(photograph.relative for photograph in found)
        self.ages.check([(photograph.relative, photograph.person) for photograph in found])
        found.sort(key=lambda item: list(map(os.fsencode, item.relative.split(os.sep))))
        return without_rivals(found) if self.keep_names else found

    def stamp(self, photograph: SourceFile) -> str:
        """What changes when the photograph or its points do; empty if it can't be read."""
        try:
            stat = os.stat(os.path.join(self.source, photograph.relative))
            points = self.landmarks.of(photograph.relative).tolist() if self.landmarks else ''
        except (OSError, ValueError):
            return ''
        return digest(f'{stat.st_size} {stat.st_mtime_ns} {points}'.encode())

    def told(self, photograph: SourceFile) -> tuple[int | None, str]:
        """The age of a photograph, see Ages.told."""
        path = os.path.join(self.source, photograph.relative)
        return self.ages.told(photograph.relative, photograph.person, path)

    def convert(self, photograph: SourceFile) -> Outcome:
        """The Outcome of one SourceFile, its face written."""
        relative, size = photograph.relative, self.settings['size']
        path, stamp = os.path.join(self.source, relative), self.stamp(photograph)
        try:
            if photograph.wrong:
                raise ValueError(photograph.wrong)
            image = open_photograph(path)
            age, origin = self.told(photograph)
            points, faces = self._points(relative, image)
            face = middle(image, size) if points is None else align(image, points, size)
            if age is None and self.ages.estimator:
                age, origin = self.ages.estimate(image, points)
            target = name_of(photograph.person, photograph.number, age)
            target = kept_name(relative) if self.keep_names else target
            written = self._write(face, target)
        except ValueError as error:  # DataError among them
            return Outcome(relative, reason=str(error).removeprefix(f'{path}: '))
        eyes = '' if points is None else f'{np.hypot(*(points[1] - points[0])):.0f}'
        years = '' if age is None else str(age)
        return Outcome(relative, target, years, origin, eyes, faces, '', stamp, written)

    def _points(self, relative, image):
        """The five points and how many faces there are; None and 0 for the middle."""
        if self.landmarks:
            return self.landmarks.of(relative), ''
        faces = self.detector.find(image)
        if faces:
            return choose_face(faces, image.size, self.settings['face']).points, str(len(faces))
        if self.keep_names:  # benchmarks count on every image
            return None, '0'
        raise ValueError('no face found')

    def _write(self, face, target):
        """Writes the face; the digest of the file. ValueError if another of that name is there."""
        file, path = io.BytesIO(), Path(self.settings['target'], target)
        kind = Image.registered_extensions()[path.suffix.lower()]
        face.save(file, kind, **OPTIONS.get(kind, {}))
        data = file.getvalue()
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write_whole(path, lambda temporary: temporary.write_bytes(data))
        elif path.read_bytes() != data:
            raise ValueError(f'{path} is there already and is none of this run')
        return digest(data)


def kept_name(relative: str) -> str:
    """The name of a photograph's face if names are kept."""
    stem, suffix = os.path.splitext(relative)
    return relative if suffix.lower() in KEPT else f'{stem}.jpg'


def without_rivals(found: list[SourceFile]) -> list[SourceFile]:
    """The photographs; of several whose faces would have one name, all but one are `wrong`.

    The name is that of the photograph that has it already, else of the first that is an image.
    """
    names, owners = {one.relative: kept_name(one.relative) for one in found}, dict[str, str]()
    for name in sorted(names, key=lambda name: (name != names[name], not is_image(name))):
        owners.setdefault(names[name], name)
    for k, photograph in enumerate(found):
        name = names[photograph.relative]
        if (owner := owners[name]) != photograph.relative:
            wrong = f'its face would be {name}, which is that of {owner}: rename one of the two'
            found[k] = photograph._replace(wrong=wrong)
    return found


def convert_all(converter: Converter, workers: int, report: Report) -> Counter:
    """Converts what the report doesn't have yet; its rows are then all files of the source.

    Returns how many faces of runs before were changed, by the kind of the change. Raises UserError
    or DataError if the job can't be done, or was stopped.
    """
    found = converter.find()
    changes = update_target(report, {item.relative: item for item in found}, converter)
    made = [] if converter.keep_names else report.rows.values()
    used = {(os.path.dirname(row.target), row.number) for row in made}
    numbers, todo = defaultdict[str, Iterator](itertools.count), []
    for item in found:
        if item.relative not in report.rows:
            free = (n for n in numbers[item.person] if (item.person, n) not in used)
            todo.append(item._replace(number=next(free)))
    report.fill(converter, todo, workers, ' photographs')
    report.rewrite(item.relative for item in found)
    return changes
