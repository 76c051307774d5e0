"""From a .rec file of InsightFace to tar shards with ages: each image is copied as it is."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from preparation import summary
from preparation.ages import Ages
from preparation.recordio import RecordFile, Records
from preparation.sharding import write_shards
from preparation.target import Report
from storage.images import decode, some
from utils import DataError


class Row(NamedTuple):
    """A row of report.csv: the age of an image, or the reason why it has none."""

    key: str
    identity: str
    age: str = ''
    age_from: str = ''
    reason: str = ''


class Examiner:
    """What a process examines images of a .rec file with, by the options of the command line."""

    def __init__(self, settings: Mapping):
        self.settings, self.ages = settings, Ages(settings)
        self.file = RecordFile(settings['source'])

    def convert(self, image: np.ndarray) -> Row:
        """The Row of an image, given by its key, offset and identity (3,)."""
        key, offset, identity = image.tolist()
        row = Row(str(key), str(identity))
        try:
            age, origin = self.ages.told(row.key, row.identity)
            face = Image.fromarray(decode(self.file.record(offset)[1]))
        except ValueError as error:  # DataError among them
            return row._replace(reason=str(error))
        if age is None:
            age, origin = self.ages.estimate(face)
        return row._replace(age=str(age), age_from=origin)

    def holds(self, row: Row) -> bool:
        """Whether a row of a run before is what `convert` would find now."""
        try:
            age, origin = self.ages.told(row.key, row.identity)
        except ValueError:
            return False
        if age is None:
            return row.age_from == self.ages.estimated
        return (row.age, row.age_from) == (str(age), origin)


class RecordFaces:
    """Images of a .rec file with their ages, as `write_shards` writes them."""

    def __init__(self, records: Records, ages: np.ndarray):
        self.places = np.flatnonzero(np.isfinite(ages))
        self.records, self.ages, self.source = records, ages[self.places], self
        people, self.labels = np.unique(records.labels[self.places], return_inverse=True)
        width = len(str(records.labels.max()))  # sorted as text they stand in the order of numbers
        self.classes = [f'{label:0{width}d}' for label in people.tolist()]
        what = np.stack([records.offsets[self.places], self.labels, self.ages])
        self.fingerprint = hashlib.sha256(what.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.places)

    def name(self, place: int) -> str:
        return f'{self.records.keys[place]}.jpg'

    def encoded(self, index: int) -> bytes:
        return self.records.file.record(int(self.records.offsets[self.places[index]]))[1]

    def check(self, cache: bool) -> None:
        """Nothing: `Examiner` decoded every image."""


def convert_records(settings: Mapping, target: str, workers: int) -> str:
    """Writes the faces of a .rec file to shards in the folder `target`; what to tell of them.

    `settings` are source, ages and dex of the command line. Raises UserError or DataError.
    """
    records, examiner = Records(settings['source']), Examiner(settings)
    report, keys = Report(target, Row), [*map(str, records.keys)]
    examiner.ages.check(list(zip(keys, map(str, records.labels), strict=True)))
    report.rows = {key: row for key, row in report.rows.items() if examiner.holds(row)}
    images = np.stack([records.keys, records.offsets, records.labels], 1)
    todo = images[[key not in report.rows for key in keys]]
    report.fill(examiner, todo, workers, ' images')
    report.rewrite(keys)
    faces = RecordFaces(records, np.array([float(report.rows[key].age or 'nan') for key in keys]))
    people = len(faces.classes)
    lines = summary.of(report, f'{len(faces)} faces of {people} people', {})
    if not people:
        raise DataError(f'{records.file.path}: no image with an age: {some(lines[1:])}')
    shown = {}  # some faces of some people, to look at
    for label in np.linspace(0, people - 1, 12).round().astype(int).tolist():
        indices = np.flatnonzero(faces.labels == label)[:8].tolist()
        shown[faces.classes[label]] = [(faces.encoded(k), faces.ages[k]) for k in indices]
    summary.contact_sheet(shown, Path(target, 'sheet.jpg'))
    pattern = write_shards(faces, Path(target, Path(records.file.path).stem), replace=True)
    return '\n'.join([*lines, summary.entry(target, pattern, people)])
