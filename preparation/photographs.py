"""From photographs to aligned faces with their ages in their names: what, whose, under which name.

A run lists SOURCE, brings TARGET up to date, and converts the rest over several processes.
"""

import contextlib
import functools
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from preparation.ages import estimator
from preparation.labels import NAMES, Named, fields_in
from preparation.landmarks import Landmarks
from preparation.tables import Table
from preparation.target import Outcome, Report, digest
from recognition.alignment import align, middle, open_photograph
from recognition.detection import Detector, choose
from storage.files import below, is_image
from system.processes import each
from system.progress import progress
from utils import DataError, write_whole

KEPT = '.jpg .jpeg .jpe .jfif .png .bmp .ppm .tif .tiff .webp'.split()  # other suffixes: .jpg
OPTIONS = {'JPEG': {'quality': 95, 'subsampling': 0}, 'WEBP': {'lossless': True}}
NOBODY = 'no person: it lies in no folder of one, or its name does not tell'
# what a run changes of the faces of runs before
RENAMED = 'renamed: another age is known now'
WITHDRAWN = 'removed: no longer in SOURCE'
AGELESS = 'removed: no age is known any longer'
AGAIN = 'to be made anew: the photograph, its points or its person changed'
LEFT = 'no longer of this set, but changed since they were written: left where they are'


class Photograph(NamedTuple):
    """A file of the source: its path below it, its person, its number among that person's.

    The person is None if nothing tells; `wrong` says why no face can be made of it.
    """

    relative: str
    person: str | None
    number: int = 0
    wrong: str = ''


def find(source: str | os.PathLike, people: str) -> list[Photograph]:
    """Every file below `source` that isn't the system's, sorted, not numbered yet.

    Folders that are links are followed. `people` is 'folder', if the first folder of the path is
    the person, or a kind of NAMES. Raises DataError if there are no files.
    """
    there = below(source)
    wrong = dict.fromkeys(there.loops, 'a link to a folder that it lies in')
    wrong |= dict.fromkeys(there.special, 'a pipe, a socket or a device')
    found = []
    for relative in [*there.images, *there.others, *wrong]:
        folder, name = os.path.split(relative)
        named = folder.split(os.sep)[0] or None
        if people in NAMES:
            named = fields_in(name, people).get('person')
        found.append(Photograph(relative, named, 0, wrong.get(relative, '')))
    if not found:
        raise DataError(f'{source}: no files in this folder or below')
    return sorted(found, key=lambda item: list(map(os.fsencode, item.relative.split(os.sep))))


def numbered(found: list[Photograph], done: Mapping[str, tuple[str, int]]) -> list[Photograph]:
    """`found` with the numbers that name the faces.

    What is in `done`, {relative: (person, number)}, keeps its number, and nothing else gets it.
    """
    listed, place, used = [], Counter[str | None](), set[tuple](done.values())
    for photograph in found:
        person = photograph.person
        # counted over all files: a run that was stopped gives the numbers of one that wasn't
        _, number = done.get(photograph.relative, (person, place[person]))
        place[person] += 1
        while photograph.relative not in done and (person, number) in used:
            number += 1
        used.add((person, number))
        listed.append(photograph._replace(number=number))
    return listed


def kept_name(relative: str) -> str:
    """The name of a photograph's face if names are kept."""
    stem, suffix = os.path.splitext(relative)
    return relative if suffix.lower() in KEPT else f'{stem}.jpg'


def without_rivals(found: Sequence[Photograph]) -> list[Photograph]:
    """The photographs; of several whose faces would have one name, all but one are `wrong`.

    The name is that of the photograph that has it already, else of the first that is an image.
    """
    owners, names = dict[str, str](), [photograph.relative for photograph in found]
    for name in sorted(names, key=lambda name: (name != kept_name(name), not is_image(name))):
        owners.setdefault(kept_name(name), name)
    listed = []
    for photograph in found:
        name = kept_name(photograph.relative)
        if (owner := owners[name]) != photograph.relative:
            wrong = f'its face would be {name}, which is that of {owner}: rename one of the two'
            photograph = photograph._replace(wrong=wrong)
        listed.append(photograph)
    return listed


class Converter:
    """All that a process needs to make faces of photographs, by the options of the command line.

    Raises UserError or DataError if something of it is missing.
    """

    def __init__(self, settings: Mapping):
        self.settings, self.source = settings, settings['source']
        self.keep_names, dex = settings['keep_names'], settings['dex']
        self.estimate, self.estimator = 'dex' if dex else 'estimate', None
        self.ages = list[Named | Table]()
        for kind in [] if self.keep_names else settings['ages']:
            if kind == 'estimate':
                self.estimator = estimator(dex)
            elif kind == 'pattern':
                self.ages.append(Named(kind, settings['pat'], settings['pos']))
            else:
                self.ages.append(Named(kind) if kind in NAMES else Table(kind, self.source))
        landmarks = settings['landmarks']
        self.landmarks = Landmarks(landmarks) if landmarks else None
        self.detector = None if landmarks else Detector()

    def find(self) -> list[Photograph]:
        """The photographs of the source. Raises DataError, also for tables that don't fit them."""
        found = find(self.source, self.settings['people'])
        if self.landmarks:
            found = [item for item in found if not item.relative.lower().endswith('.pts')]
            self.landmarks.check(photograph.relative for photograph in found)
        for ages in self.ages:
            if isinstance(ages, Table):
                ages.check((photograph.relative, photograph.person) for photograph in found)
        return without_rivals(found) if self.keep_names else found

    def stamp(self, photograph: Photograph) -> str:
        """What changes when the photograph or its points do; empty if it can't be read."""
        try:
            stat = os.stat(os.path.join(self.source, photograph.relative))
            points = self.landmarks.of(photograph.relative).tolist() if self.landmarks else ''
        except (OSError, ValueError):
            return ''
        return digest(f'{stat.st_size} {stat.st_mtime_ns} {points}'.encode())

    def convert(self, photograph: Photograph) -> Outcome:
        """The Outcome of one Photograph, its face written."""
        relative, stamp = photograph.relative, self.stamp(photograph)
        path = os.path.join(self.source, relative)
        try:
            if photograph.wrong:
                raise ValueError(photograph.wrong)
            if photograph.person is None and not self.keep_names:
                raise ValueError(NOBODY)
            image = open_photograph(path)
            age, origin = self.known_age(photograph)
            points, faces = self._points(relative, image)
            size = self.settings['size']
            face = middle(image, size) if points is None else align(image, points, size)
            if age is None and self.estimator:
                age, origin = round(self.estimator.estimate(image, points)), self.estimate
            target = os.path.join(photograph.person or '', f'{photograph.number:03d}_{age}.jpg')
            target = kept_name(relative) if self.keep_names else target
            written = self._write(face, target)
        except ValueError as error:  # DataError among them
            return Outcome(relative, reason=str(error).removeprefix(f'{path}: '))
        eyes = '' if points is None else f'{np.hypot(*(points[1] - points[0])):.0f}'
        years = '' if age is None else str(age)
        return Outcome(relative, target, years, origin, eyes, faces, '', stamp, written)

    def known_age(self, photograph: Photograph) -> tuple[int | None, str]:
        """The first age that a name or a table tells, and its origin; None: to be estimated.

        Raises ValueError if nothing tells and nothing is to be estimated.
        """
        reasons, path = [], os.path.join(self.source, photograph.relative)
        for ages in self.ages:
            try:
                return ages.age(photograph.relative, photograph.person, path), ages.kind
            except ValueError as error:
                reasons.append(str(error))
        if self.estimator is None and not self.keep_names:
            raise ValueError(f'no age: {"; ".join(reasons)}')
        return None, ''

    def _points(self, relative, image):
        """The five points and how many faces there are; None and 0 for the middle."""
        if self.landmarks:
            return self.landmarks.of(relative), ''
        faces = self.detector.find(image)
        if faces:
            return choose(faces, image.size, self.settings['face']).points, str(len(faces))
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


def update(report: Report, found: Sequence[Photograph], converter: Converter) -> Counter:
    """Renames and removes faces as SOURCE, names and tables now say; how many of each kind.

    `found` are the photographs of SOURCE. What is to be made anew has no row afterwards.
    """
    listed, changes = {photograph.relative: photograph for photograph in found}, Counter[str]()
    for source, row in sorted(report.rows.items()):
        change = _change(report, row, listed.get(source), converter)
        if change and change != RENAMED:
            change = change if report.withdraw(source) else LEFT
        if change:
            changes[change] += 1
    if changes:
        report.rewrite()
    return changes


def _change(report, row, photograph, converter):
    """What is to become of a face; None if nothing, or nothing to tell."""
    if photograph is None:
        return WITHDRAWN
    if row.stamp != converter.stamp(photograph) or photograph.wrong:
        return AGAIN
    if converter.keep_names:
        return None
    if os.path.dirname(row.target) != photograph.person:
        return AGAIN
    try:
        age, origin = converter.known_age(photograph)
    except ValueError:
        return AGELESS
    if age is None:  # to be estimated, and perhaps is
        return None if row.age_from == converter.estimate else AGAIN
    if not report.rename(row, age, origin):
        return AGAIN
    return None if row.age == str(age) else RENAMED


def run(converter: Converter, workers: int, report: Report) -> Counter:
    """Converts what the report doesn't have yet; its rows are then all files of the source.

    Returns how many faces of runs before were changed, by the kind of the change.

    Raises UserError or DataError if the job can't be done, or was stopped.
    """
    found = converter.find()
    changes = update(report, found, converter)
    done = {} if converter.keep_names else report.done()
    todo = [item for item in numbered(found, done) if item.relative not in report.rows]
    make = functools.partial(Converter, converter.settings)
    with contextlib.closing(each(Converter.convert, todo, converter, make, workers)) as outcomes:
        report.add_all(progress(outcomes, converter.source, len(todo), unit=' photographs'))
    report.rewrite()
    return changes
