"""From a .rec file of InsightFace to tar shards with ages: each image is copied as it is."""

import contextlib
import functools
import glob
import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from preparation.ages import estimator
from preparation.pictures import contact_sheet
from preparation.recordio import RecordFile, Records, identity_of
from preparation.sharding import write_shards
from preparation.tables import Table
from preparation.target import append_csv, read_report, write_csv
from storage.images import decode, some
from system.names import naming
from system.processes import each
from system.progress import progress
from utils import DataError

BATCH = 64  # images that are estimated together
NO_AGE = 'no age: no row for it in a table'
FIELDS = ('key', 'identity', 'age', 'age_from', 'reason')  # the columns of report.csv


class Examiner:
    """What examines images of a .rec file; the arguments are the file, what estimates, and how."""

    def __init__(self, path: str, estimates: bool, dex: str | None):
        self.file, self.estimator = RecordFile(path), estimator(dex) if estimates else None

    def examine(self, batch: tuple[np.ndarray, ...]) -> list[tuple[float, str]]:
        """Estimated age and what is wrong, of each image of a batch; nan if it isn't estimated.

        A batch is their keys, offsets, identities, and whether an age is to be estimated (n,) each.
        Raises DataError if one is of another identity than the .idx says.
        """
        ages, wrong, faces = np.full(len(batch[0]), np.nan), [''] * len(batch[0]), {}
        for place, (key, offset, identity, wanted) in enumerate(zip(*batch, strict=True)):
            labels, data = self.file.record(int(offset))
            where = f'{self.file.path}, key {key}'
            if identity_of(labels, where) != identity:
                two = f'its label is {labels[0]:g}, its identity in the .idx {identity}'
                raise DataError(f'{where}: {two}: they are of two sets: fetch both again')
            try:
                pixels = decode(data)
            except DataError as error:
                wrong[place] = str(error)
                continue
            if wanted:
                faces[place] = Image.fromarray(pixels)
        if faces and self.estimator:
            ages[list(faces)] = np.round(self.estimator.estimate_all(list(faces.values())))
        return list(zip(ages.tolist(), wrong, strict=True))


class RecordFaces:
    """Images of a .rec file with their ages, as `write_shards` writes them."""

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
        """Nothing: `Examiner` decoded every image."""

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
    records, folder = Records(source), Path(target)
    tables = [Table(kind) for kind in ages if kind != 'estimate']
    images = list(zip(map(str, records.keys), map(str, records.labels), strict=True))
    for table in tables:
        table.check(images)
    state = State(records, images, tables, folder / 'report.csv')
    state.examine('estimate' in ages, dex, workers)
    faces = RecordFaces(records, state.ages())
    reasons = Counter(reason for *_, reason in state.rows() if reason)
    if not len(faces):
        raise DataError(f'{source}: no image with an age: {some(reasons)}')
    shown = {}  # some faces of some people, to look at
    for label in np.linspace(0, len(faces.classes) - 1, 12).round().astype(int).tolist():
        indices = np.flatnonzero(faces.labels == label)[:8].tolist()
        shown[faces.classes[label]] = [(faces.encoded(k), faces.ages[k]) for k in indices]
    contact_sheet(shown, folder / 'sheet.jpg')
    made = f'{len(faces)} faces of {len(faces.classes)} people in {target}'
    lines = [f'{made}, of {len(records)} images; what became of each: {state.path}']
    lines += [f'{number:7} skipped: {reason}' for reason, number in reasons.most_common(8)]
    shards = folder / Path(source).stem
    if _outdated(shards, faces):
        lines.append('The shards are written anew: ages or faces changed')
    return write_shards(faces, shards), len(faces.classes), lines


class State:
    """What is known of each image, kept in report.csv: a run that was stopped goes on.

    known      (n,) ages in years by a table, nan if none has it; `origin` (n,) names the table
    estimated  (n,) ages in years, nan if they weren't estimated; `wrong` {place: reason}
    examined   (n,) whether an image was decoded
    """

    def __init__(self, records: Records, images: Sequence, tables: Sequence[Table], path: Path):
        self.records, self.images, self.path, n = records, images, path, len(records)
        self.known, self.estimated = np.full((2, n), np.nan)
        self.examined, self.origin, self.wrong = np.zeros(n, bool), [''] * n, {}
        for place, (key, identity) in enumerate(images):
            for table in reversed(tables):  # the first that knows is the last to be heard
                with contextlib.suppress(ValueError):
                    self.known[place] = table.age(key, identity, None)
                    self.origin[place] = table.kind
        for key, _, age, origin, reason in read_report(path, FIELDS):
            place = int(np.searchsorted(records.keys, int(key)))
            self.examined[place] = True
            if origin in ('estimate', 'dex'):
                self.estimated[place] = float(age)
            elif reason and reason != NO_AGE:
                self.wrong[place] = reason

    def examine(self, estimates: bool, dex: str | None, workers: int) -> None:
        """Decodes what wasn't yet, over `workers` processes, and estimates the ages not known."""
        wanted = np.isnan(self.known) & estimates
        for place in np.flatnonzero(wanted).tolist():
            self.origin[place] = 'dex' if dex else 'estimate'
        wanted &= np.isnan(self.estimated)
        wanted[list(self.wrong)] = False
        todo = np.flatnonzero(~self.examined | wanted)
        columns = (self.records.keys, self.records.offsets, self.records.labels, wanted)
        parts = [todo[start : start + BATCH] for start in range(0, len(todo), BATCH)]
        batches = [tuple(column[part] for column in columns) for part in parts]
        make = functools.partial(Examiner, self.records.file.path, estimates, dex)
        self._write()
        with contextlib.closing(each(Examiner.examine, batches, make(), make, workers)) as done:
            places = progress(todo.tolist(), self.records.file.path, len(todo), unit=' images')
            append_csv(self.path, self._add(places, itertools.chain.from_iterable(done)))
        self._write()

    def _add(self, places, examined) -> Iterator[Iterable[str]]:
        """The rows of what was examined, as it comes."""
        for place, (age, wrong) in zip(places, examined, strict=True):
            self.estimated[place], self.examined[place] = age, True
            if wrong:
                self.wrong[place] = wrong
            yield self._row(place)

    def ages(self) -> np.ndarray:
        """Ages in years (n,), nan if an image is left out."""
        ages = np.where(np.isnan(self.known), self.estimated, self.known)
        ages[list(self.wrong)] = np.nan
        return ages

    def rows(self) -> Iterator[tuple[str, ...]]:
        """The rows of report.csv: of every image that was examined."""
        return map(self._row, np.flatnonzero(self.examined).tolist())

    def _row(self, place):
        age = self.known[place] if np.isfinite(self.known[place]) else self.estimated[place]
        wrong = self.wrong.get(place) or (NO_AGE if np.isnan(age) else '')
        known = ('', '') if wrong else (f'{age:g}', self.origin[place])
        return *self.images[place], *known, wrong

    def _write(self):
        write_csv(self.path, itertools.chain([FIELDS], self.rows()))


def _outdated(shards, faces):
    """Whether there were shards of other faces or ages; they are removed, since this made them."""
    about = shards.with_name(f'{shards.name}.json')
    with contextlib.suppress(OSError, ValueError, KeyError):
        if json.loads(about.read_text())['fingerprint'] == faces.fingerprint:
            return False
    there = glob.glob(f'{glob.escape(str(shards))}-{"[0-9]" * 5}*.tar')
    for path in [*there, about]:
        Path(path).unlink(missing_ok=True)
    return bool(there)


def source_of(path: str) -> list[float]:
    """Size and time of the file, by which TARGET knows that it is the same."""
    with naming(path):
        stat = os.stat(path)
    return [stat.st_size, stat.st_mtime]
