"""The job: photographs listed, each turned into an aligned face by one of several processes, each outcome a row of report.csv."""
import contextlib
import csv
import io
import json
import os
import signal
import threading
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import utils
from preparation.ages import Dex, Offline
from preparation.alignment import align, open_photograph
from preparation.detection import Detector, choose
from preparation.labels import NAMES, Named, Table, person_in
from preparation.landmarks import Landmarks
from utils import DataError, Interrupt, UserError, write_whole


class Photograph(NamedTuple):
    """A file of the source, `relative` its path from there; the person, None where nothing tells; `number` its place among theirs."""
    relative: str
    person: str | None
    number: int


class Outcome(NamedTuple):
    """A row of report.csv: what became of a file, all of it text. `target` is empty where it was skipped, and `reason` says why.

    `eyes` is the distance between the eyes in the photograph, in pixels (aligned it is 35); `faces` how many were found.
    """
    source: str
    target: str = ''
    age: str = ''
    age_from: str = ''
    eyes: str = ''
    faces: str = ''
    reason: str = ''


def photographs(source, people, done):
    """Every file below `source` but hidden ones, as a list of Photograph, sorted.

    `people` is 'folder', where the first folder of the path is the person, or a kind of NAMES. What `done`, {relative: (person, number)},
    has keeps its number, and nothing else gets it. Raises DataError where there are no files.
    """
    found = []
    for folder, below, files in os.walk(source, onerror=_refuse):
        below[:] = sorted(name for name in below if not name.startswith('.'))
        for name in files:
            if not name.startswith('.'):
                relative = os.path.relpath(os.path.join(folder, name), source)
                found.append((relative, person_in(name, people) if people in NAMES else os.path.dirname(relative).split(os.sep)[0] or None))
    if not found:
        raise DataError(f'{source}: no files in this folder or below')
    listed, place, used = [], defaultdict(int), set(done.values())
    for relative, person in sorted(found, key=lambda item: [os.fsencode(part) for part in item[0].split(os.sep)]):
        number = place[person]  # a run that was stopped and goes on gives the numbers of one that was not
        place[person] += 1
        if relative in done:
            number = done[relative][1]
        else:
            while (person, number) in used:
                number += 1
            used.add((person, number))
        listed.append(Photograph(relative, person, number))
    return listed


def _refuse(error):
    raise DataError(f'{error.filename}: {error.strerror}')


class Converter:
    """All that a process needs to make faces of photographs. Raises UserError or DataError where something of it is missing."""

    def __init__(self, source, target, ages, pat, pos, dex, landmarks, face):
        self.source, self.target, self.face = source, target, face
        self.ages = [Named('pattern', pat, pos) if kind == 'pattern' else Named(kind) if kind in NAMES else Table(kind)
                     for kind in ages if kind != 'estimate']
        self.estimator = None if 'estimate' not in ages else Dex(dex) if dex else Offline()
        self.landmarks, self.detector = (Landmarks(landmarks), None) if landmarks else (None, Detector())

    def convert(self, photograph):
        """The Outcome of one Photograph, its face written."""
        try:
            if photograph.person is None:
                raise ValueError('no person: it lies in no folder of one, or its name does not tell')
            image = open_photograph(os.path.join(self.source, photograph.relative))
            age, origin = self._known_age(photograph, image)
            points, faces = self._points(photograph.relative, image)
            face = align(image, points)
            if age is None:
                age, origin = round(self.estimator.estimate(image, points)), 'dex' if isinstance(self.estimator, Dex) else 'estimate'
            target = os.path.join(photograph.person, f'{photograph.number:03d}_{age}.jpg')
            self._write(face, target)
        except ValueError as error:  # DataError among them
            return Outcome(photograph.relative, reason=str(error).removeprefix(os.path.join(self.source, photograph.relative) + ': '))
        return Outcome(photograph.relative, target, str(age), origin, f'{np.hypot(*(points[1] - points[0])):.0f}', faces)

    def _known_age(self, photograph, image):
        """The first age that a name or a table tells and its origin; None where it is to be estimated. ValueError where that is not wanted."""
        reasons = []
        for ages in self.ages:
            try:
                return ages.age(photograph.relative, photograph.person, image), ages.kind
            except ValueError as error:
                reasons.append(str(error))
        if self.estimator is None:
            raise ValueError(f'no age: {"; ".join(reasons)}')
        return None, None

    def _points(self, relative, image):
        if self.landmarks:
            return self.landmarks.of(relative), ''
        faces = self.detector.find(image)
        if not faces:
            raise ValueError('no face found')
        return choose(faces, image.size, self.face).points, str(len(faces))

    def _write(self, face, target):
        """Writes the face, JPEG of the best quality; ValueError where another file of that name is there, OSError where it can't."""
        data, path = io.BytesIO(), Path(self.target, target)
        face.save(data, 'JPEG', quality=95, subsampling=0)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_whole(path, lambda temporary: temporary.write_bytes(data.getvalue()))
        elif path.read_bytes() != data.getvalue():
            raise ValueError(f'{path} is there already and is none of this run')


def _start(settings):
    global converter_here
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # which reach the whole group; the process that writes the report stops the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # the processes share the cores
    converter_here = Converter(**settings)


def _end_with_parent():
    parent_process().join()
    os._exit(1)


def _convert(photograph):
    return converter_here.convert(photograph)


@contextlib.contextmanager
def claim(target, settings):
    """Holds TARGET for this process and writes `settings` down there. Raises UserError where it is in use, or holds what is not of them."""
    file = Path(target, 'prepare.json')
    if file.exists():
        try:
            before = json.loads(file.read_text())
            changed = [name for name in settings if before[name] != settings[name]]
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{file} is damaged: remove it to go on with the options of this command') from None
        if changed and any(Path(target).glob('*/*.jpg')):
            raise UserError(f'{target} was begun with another {", ".join(changed)}, {before[changed[0]]!r}, now it is {settings[changed[0]]!r}: '
                            'repeat the options, or choose another TARGET')
    elif os.path.isdir(target) and not Path(target, 'report.csv').exists() and set(os.listdir(target)) - {'.lock'}:
        raise UserError(f'{target} is there already and is not of prepare.py: TARGET is a new folder, or one to go on with')
    with utils.claim(target, 'TARGET', 'writing'):
        for stale in Path(target).glob('*/.*.????????.tmp'):  # write_whole's, of a process that was killed in it
            stale.unlink()
        utils.write_json(settings, file)
        yield


class Report:
    """TARGET/report.csv: a row an Outcome, written as they come, so that a run that was stopped goes on where it was."""

    def __init__(self, target):
        self.target, self.path, self.rows = Path(target), Path(target, 'report.csv'), {}
        if self.path.exists():
            with open(self.path, newline='', encoding='utf-8', errors='surrogateescape') as file:
                head, *rows = list(csv.reader(file)) or [[]]
            if tuple(head) != Outcome._fields:
                raise UserError(f'{self.path}: not a report of prepare.py: TARGET is a folder of its own')
            # what was skipped is tried again, and what was deleted, and a line that was cut short
            rows = [Outcome(*row) for row in rows if len(row) == len(Outcome._fields)]
            self.rows = {row.source: row for row in rows if row.target and (self.target / row.target).is_file()}
        self.rewrite()

    def rewrite(self):
        def write(temporary):
            with open(temporary, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
                csv.writer(file).writerows([Outcome._fields, *sorted(self.rows.values())])
        write_whole(self.path, write)

    def done(self):
        """{source: (person, number)} of the faces that are there."""
        return {row.source: (os.path.dirname(row.target), int(os.path.basename(row.target).split('_')[0])) for row in self.rows.values()}

    def faces(self):
        """{person: [(file, age), …]} of the faces that are there."""
        people = defaultdict(list)
        for row in self.rows.values():
            if row.target:
                people[os.path.dirname(row.target)].append((self.target / row.target, int(row.age)))
        return people

    def add_all(self, outcomes):
        """Raises UserError after the row at which SIGINT or SIGTERM came."""
        with Interrupt() as interrupt, open(self.path, 'a', newline='', encoding='utf-8', errors='surrogateescape', buffering=1) as file:
            writer = csv.writer(file)
            for outcome in outcomes:
                self.rows[outcome.source] = outcome
                writer.writerow(outcome)
                if interrupt.received:
                    raise UserError(f'{interrupt.received}: stopped; the same command goes on from here')


def run(converter, settings, people, workers, report):
    """Converts what the report doesn't have yet, over `workers` processes; its rows are then all files of the source.

    `converter` is the Converter of `settings`, for one process. Raises UserError or DataError where the job can't be done, or was stopped.
    """
    todo = [photograph for photograph in photographs(settings['source'], people, report.done()) if photograph.relative not in report.rows
            and not (settings['landmarks'] and photograph.relative.lower().endswith('.pts'))]
    workers = min(workers, len(todo))
    pool = ProcessPoolExecutor(max(1, workers), get_context('spawn'), _start, (settings,))  # starts nothing before the first map
    try:
        outcomes = pool.map(_convert, todo, chunksize=max(1, min(16, len(todo) // (4 * workers)))) if workers > 1 else map(converter.convert, todo)
        report.add_all(tqdm(outcomes, settings['source'], len(todo), unit=' photographs', disable=None))
    except BrokenProcessPool:
        raise UserError('a process ended by itself, perhaps out of memory: fewer --workers; the same command goes on from here') from None
    finally:
        pool.shutdown(cancel_futures=True)
    report.rewrite()
