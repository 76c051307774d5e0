"""From a .rec file of InsightFace to tar shards with ages: each image is copied as it is."""

import contextlib
import csv
import functools
import glob
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from preparation.ages import estimator
from preparation.pictures import contact_sheet
from preparation.recordio import RecordFile, Records, identity_of
from preparation.report import write_csv
from preparation.sharding import write_shards
from preparation.tables import Table
from storage.images import decode, some
from system.locks import Interrupt
from system.processes import each
from system.progress import progress
from utils import DataError, UserError

BATCH = 64  # images that are estimated together
NO_AGE = 'no age: no row for it in a table'
NO_EXIF = Image.new('L', (1, 1))  # of a face in a pack there is none
FIELDS = ('key', 'identity', 'age', 'age_from', 'reason')  # the columns of report.csv


class Look:
    """What looks at images of a .rec file; the arguments are the file, what estimates, and how."""

    def __init__(self, path: str, estimates: bool, dex: str | None):
        self.file, self.origin = RecordFile(path), 'dex' if dex else 'estimate'
        self.estimator = estimator(dex) if estimates else None

    def look(self, batch: tuple[np.ndarray, ...]) -> list[tuple[float, str]]:
        """Estimated age and what is wrong, of each image of a batch; nan where it isn't estimated.

        A batch is their keys, offsets, identities, and whether an age is to be estimated (n,) each.
        Raises DataError where one is of another identity than the .idx says.
        """
        ages, wrong, faces = np.full(len(batch[0]), np.nan), [''] * len(batch[0]), {}
        for place, (key, offset, identity, wanted) in enumerate(zip(*batch, strict=True)):
            labels, data = self.file.record(int(offset))
            where = f'{self.file.path}, key {key}'
            if identity_of(labels, where) != identity:
                raise DataError(
                    f'{where}: its label is {labels[0]:g}, its identity in the .idx '
                    f'{identity}: they are of two sets: fetch both again'
                )
            try:
                pixels = decode(data)
            except DataError as error:
                wrong[place] = str(error)
                continue
            if wanted:
                faces[place] = Image.fromarray(pixels)
        if faces:
            ages[list(faces)] = np.round(self.estimator.estimate_all(list(faces.values())))
        return list(zip(ages.tolist(), wrong, strict=True))


class Faces:
    """Images of a .rec file with their ages, as storage.shards writes them."""

    def __init__(self, records: Records, ages: np.ndarray):
        self.places = np.flatnonzero(np.isfinite(ages))
        self.records, self.ages, self.source = records, ages[self.places], self
        people, self.labels = np.unique(records.labels[self.places], return_inverse=True)
        width = len(str(records.labels.max()))  # sorted as text they stand in the order of numbers
        self.classes = [f'{label:0{width}d}' for label in people.tolist()]

    def __len__(self) -> int:
        return len(self.places)

    def name(self, place: int) -> str:
        """The key in the .idx, as a file's name."""
        return f'{self.records.keys[place]}.jpg'

    def encoded(self, index: int) -> bytes:
        """The image as it is stored."""
        return self.records.file.record(int(self.records.offsets[self.places[index]]))[1]

    def check(self, cache: bool) -> None:
        """Nothing: `Look` decoded every image."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of where the images are and of their ages, in hexadecimal."""
        hashed = hashlib.sha256(str(self.records.file.size).encode())
        for values in (self.records.offsets[self.places], self.labels, self.ages):
            hashed.update(np.ascontiguousarray(values).tobytes())
        return hashed.hexdigest()


def run(
    source: str, target: str, ages: Sequence[str], dex: str | None, workers: int
) -> tuple[str, int, list[str]]:
    """Writes the faces of a .rec file to shards in the folder `target`.

    `ages` are tables, by key or identity, and 'estimate'. Returns the shards' pattern, the number
    of people, and lines that say what came out. What was done before is not done again. Raises
    UserError or DataError.
    """
    records, target = Records(source), Path(target)
    tables = [Table(kind) for kind in ages if kind != 'estimate']
    for table in tables:
        table.check(
            (str(key), str(label))
            for key, label in zip(records.keys.tolist(), records.labels.tolist(), strict=True)
        )
    state = State(records, tables, target / 'report.csv')
    state.look('estimate' in ages, dex, workers)
    faces = Faces(records, state.ages())
    reasons = Counter(row[4] for row in state.rows() if row[4])
    lines = [
        f'{len(faces)} faces of {len(faces.classes)} people in {target}, of {len(records)} '
        f'images; what became of each: {state.path}'
    ]
    lines += [f'{number:7} skipped: {reason}' for reason, number in reasons.most_common(8)]
    if not len(faces):
        raise DataError(f'{source}: no image with an age: {some(reasons)}')
    _sheet(faces, target / 'sheet.jpg')
    shards = target / Path(source).stem
    if _outdated(shards, faces):
        lines.append('The shards are written anew: ages or faces changed')
    return write_shards(faces, shards), len(faces.classes), lines


class State:
    """What is known of each image, kept in report.csv: a run that was stopped goes on.

    known      (n,) ages in years by a table, nan where none tells; `told` (n,) the table's place
    estimated  (n,) ages in years, nan where they weren't estimated; `wrong` {place: reason}
    looked     (n,) whether an image was decoded
    """

    def __init__(self, records: Records, tables: Sequence[Table], path: Path):
        self.records, self.tables, self.path, n = records, tables, path, len(records)
        self.known, self.estimated = np.full((2, n), np.nan)
        self.told, self.looked, self.wrong, self.origin = np.full(n, -1), np.zeros(n, bool), {}, ''
        for place, (key, identity) in enumerate(
            zip(records.keys.tolist(), records.labels.tolist(), strict=True)
        ):
            for number, table in enumerate(tables):
                with contextlib.suppress(ValueError):
                    self.known[place] = table.age(str(key), str(identity), NO_EXIF)
                    self.told[place] = number
                    break
        if path.exists():
            self._read()

    def _read(self):
        with open(self.path, newline='', encoding='utf-8') as file:
            rows = csv.reader(file)
            if tuple(next(rows, ())) != FIELDS:
                raise UserError(
                    f'{self.path}: not a report on a .rec file: TARGET is a folder of its own'
                )
            for row in rows:
                if len(row) < len(FIELDS):  # cut short
                    continue
                place = int(np.searchsorted(self.records.keys, int(row[0])))
                self.looked[place] = True
                if row[3] in ('estimate', 'dex'):
                    self.estimated[place], self.origin = float(row[2]), row[3]
                elif row[4] and row[4] != NO_AGE:
                    self.wrong[place] = row[4]

    def look(self, estimates: bool, dex: str | None, workers: int) -> None:
        """Decodes what wasn't yet, over `workers` processes, and estimates the ages not known."""
        self.origin = 'dex' if dex else 'estimate'
        wanted = np.isnan(self.known) & np.isnan(self.estimated) & estimates
        damaged = np.isin(np.arange(len(wanted)), list(self.wrong))
        todo = np.flatnonzero(~self.looked | wanted & ~damaged)
        records = self.records
        batches = [
            (records.keys[part], records.offsets[part], records.labels[part], wanted[part])
            for part in (todo[start : start + BATCH] for start in range(0, len(todo), BATCH))
        ]
        make = functools.partial(Look, records.file.path, estimates, dex)
        self._write()
        with contextlib.closing(each(Look.look, batches, make(), make, workers)) as looked:
            self._add(
                progress(todo.tolist(), records.file.path, len(todo), unit=' images'),
                itertools.chain.from_iterable(looked),
            )
        self._write()

    def _add(self, places, looked):
        with Interrupt() as interrupt, open(self.path, 'a', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            for place, (age, wrong) in zip(places, looked, strict=True):
                self.estimated[place], self.looked[place] = age, True
                if wrong:
                    self.wrong[place] = wrong
                writer.writerow(self._row(place))
                if interrupt.received:
                    raise UserError(
                        f'{interrupt.received}: stopped; the same command goes on from here'
                    )

    def ages(self) -> np.ndarray:
        """Ages in years (n,), nan where an image is left out."""
        ages = np.where(np.isnan(self.known), self.estimated, self.known)
        ages[list(self.wrong)] = np.nan
        return ages

    def rows(self) -> Iterator[list[str]]:
        """The rows of report.csv: of every image that was looked at."""
        return map(self._row, np.flatnonzero(self.looked).tolist())

    def _row(self, place):
        key, identity = (str(values[place]) for values in (self.records.keys, self.records.labels))
        if place in self.wrong:
            return [key, identity, '', '', self.wrong[place]]
        if self.told[place] >= 0:
            age, origin = self.known[place], self.tables[self.told[place]].kind
        else:
            age, origin = self.estimated[place], self.origin
        return (
            [key, identity, '', '', NO_AGE]
            if np.isnan(age)
            else [key, identity, f'{age:g}', origin, '']
        )

    def _write(self):
        write_csv(self.path, itertools.chain([FIELDS], self.rows()))


def _sheet(faces, path, people=12, images=8):
    """Some faces of some people, to look at."""
    shown = {}
    for label in np.linspace(0, len(faces.classes) - 1, people).round().astype(int).tolist():
        own = np.flatnonzero(faces.labels == label)[:images].tolist()
        shown[faces.classes[label]] = [(faces.encoded(index), faces.ages[index]) for index in own]
    contact_sheet(shown, path)


def _outdated(shards, faces):
    """Whether there were shards of other faces or ages; they are removed, since this made them."""
    about = shards.with_name(f'{shards.name}.json')
    try:
        if json.loads(about.read_text())['fingerprint'] == faces.fingerprint:
            return False
    except (OSError, ValueError, KeyError):
        pass
    there = glob.glob(f'{glob.escape(str(shards))}-{"[0-9]" * 5}*.tar')
    for path in [*there, about]:
        Path(path).unlink(missing_ok=True)
    return bool(there)


def source_of(path: str) -> list[float]:
    """Size and time of the file, by which TARGET knows that it is the same."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}') from None
    return [stat.st_size, stat.st_mtime]
