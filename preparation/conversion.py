"""The job: each photograph turned into an aligned face by one of several processes."""
import io
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from preparation.ages import Dex, Offline
from preparation.alignment import align, open_photograph
from preparation.detection import Detector, choose
from preparation.labels import NAMES, Named
from preparation.landmarks import Landmarks
from preparation.report import Outcome, Report
from preparation.source import Photograph, photographs
from preparation.tables import Table
from utils import UserError, write_whole


class Converter:
    """All that a process needs to make faces of photographs; the arguments are the options.

    Raises UserError or DataError where something of it is missing.
    """

    def __init__(self, source: str, target: str, ages: Sequence[str], pat: str | None,
                 pos: int | None, dex: str | None, landmarks: str | None, face: str):
        self.source, self.target, self.face = source, target, face
        self.ages = [_ages_of(kind, pat, pos) for kind in ages if kind != 'estimate']
        self.estimator = None
        if 'estimate' in ages:
            self.estimator = Dex(dex) if dex else Offline()
        self.landmarks = Landmarks(landmarks) if landmarks else None
        self.detector = None if landmarks else Detector()

    def convert(self, photograph: Photograph) -> Outcome:
        """The Outcome of one Photograph, its face written."""
        path = os.path.join(self.source, photograph.relative)
        try:
            if photograph.person is None:
                raise ValueError('no person: it lies in no folder of one, '
                                 'or its name does not tell')
            image = open_photograph(path)
            age, origin = self._known_age(photograph, image)
            points, faces = self._points(photograph.relative, image)
            face = align(image, points)
            if age is None:
                age = round(self.estimator.estimate(image, points))
                origin = 'dex' if isinstance(self.estimator, Dex) else 'estimate'
            target = os.path.join(photograph.person, f'{photograph.number:03d}_{age}.jpg')
            self._write(face, target)
        except ValueError as error:  # DataError among them
            return Outcome(photograph.relative, reason=str(error).removeprefix(f'{path}: '))
        eyes = np.hypot(*(points[1] - points[0]))
        return Outcome(photograph.relative, target, str(age), origin, f'{eyes:.0f}', faces)

    def _known_age(self, photograph, image):
        """The first age that a name or a table tells, and its origin; None where it is to be
        estimated. ValueError where nothing tells and nothing is to be estimated."""
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
        """Writes the face, a JPEG of high quality.

        ValueError where another file of that name is there, OSError where it can't.
        """
        data, path = io.BytesIO(), Path(self.target, target)
        face.save(data, 'JPEG', quality=95, subsampling=0)
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            write_whole(path, lambda temporary: temporary.write_bytes(data.getvalue()))
        elif path.read_bytes() != data.getvalue():
            raise ValueError(f'{path} is there already and is none of this run')


def _ages_of(kind, pat, pos):
    if kind == 'pattern':
        return Named(kind, pat, pos)
    return Named(kind) if kind in NAMES else Table(kind)


def _start(settings):
    global converter_here
    for number in (signal.SIGINT, signal.SIGTERM):
        # they reach the whole group; the process that writes the report stops the others
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # the processes share the cores
    converter_here = Converter(**settings)


def _end_with_parent():
    parent_process().join()
    os._exit(1)


def _convert(photograph):
    return converter_here.convert(photograph)


def run(converter: Converter, settings: dict, people: str, workers: int, report: Report) -> None:
    """Converts what the report doesn't have yet; its rows are then all files of the source.

    `converter` is the Converter of `settings`, for one process; several make their own. Raises
    UserError or DataError where the job can't be done, or was stopped.
    """
    todo = [photograph for photograph in photographs(settings['source'], people, report.done())
            if photograph.relative not in report.rows
            and not (settings['landmarks'] and photograph.relative.lower().endswith('.pts'))]
    workers = min(workers, len(todo))
    # the pool starts nothing before the first map
    pool = ProcessPoolExecutor(max(1, workers), get_context('spawn'), _start, (settings,))
    try:
        if workers > 1:
            outcomes = pool.map(_convert, todo,
                                chunksize=max(1, min(16, len(todo) // (4 * workers))))
        else:
            outcomes = map(converter.convert, todo)
        report.add_all(tqdm(outcomes, settings['source'], len(todo), unit=' photographs',
                            disable=None))
    except BrokenProcessPool:
        raise UserError('a process ended by itself, perhaps out of memory: fewer --workers; '
                        'the same command goes on from here') from None
    finally:
        pool.shutdown(cancel_futures=True)
    report.rewrite()
