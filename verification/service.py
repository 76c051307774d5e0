"""One network in memory for many clients: a bounded number of requests, embedded in batches."""

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

from flask import current_app

from utils import UserError
from verification import portraits
from verification.index import Index
from verification.matcher import BATCH, Features, Matcher
from verification.portraits import Portrait

WAITING = 16  # requests that are worked on or wait; more are refused
MOST_PIXELS = 60_000_000  # of a photograph


class Busy(Exception):
    """As many requests as may wait are waiting."""


class Service:
    """The matcher behind a queue: one thread embeds what requests have put there."""

    def __init__(self, matcher: Matcher, waiting: int = WAITING):
        self.matcher = matcher
        self.places = threading.BoundedSemaphore(waiting)
        self.reading = threading.BoundedSemaphore(os.cpu_count() or 1)  # photographs are large
        self.queue: queue.Queue = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Holds one of the places of requests. Raises Busy if none is free."""
        if not self.places.acquire(blocking=False):
            raise Busy('Too many at once: try again in a moment.')
        try:
            yield
        finally:
            self.places.release()

    def read(self, name: str, data: bytes) -> Portrait:
        """portraits.read, at most one a core at a time."""
        with self.reading:
            return portraits.read(data, name, self.matcher.width, MOST_PIXELS)

    def features(self, faces: list[Portrait]) -> list[Features]:
        """Matcher.features, in one batch with those of other requests."""
        future: Future = Future()
        self.queue.put((faces, future))
        return future.result()

    def _work(self):
        while True:
            requests = [self.queue.get()]
            with contextlib.suppress(queue.Empty):
                while sum(len(faces) for faces, _ in requests) < BATCH:
                    requests.append(self.queue.get_nowait())
            try:
                found = self.matcher.features([face for faces, _ in requests for face in faces])
            except BaseException as error:  # every request answers for itself
                for _, future in requests:
                    future.set_exception(error)
                continue
            for faces, future in requests:
                future.set_result(found[: len(faces)])
                found = found[len(faces) :]


class Archive:
    """The index that is served; read again as soon as its file, if it has one, is another."""

    def __init__(self, index: Index, path: str | None = None, weights: str = ''):
        self.index, self.weights = index, weights
        self.path = path if path and os.path.isfile(path) else None
        self.lock, self.stamp = threading.Lock(), self._stamp()

    def current(self) -> Index:
        """If a new file can't be used, why is said once, and the index before it stays."""
        with self.lock:
            stamp = self._stamp()
            if self.path and stamp and stamp != self.stamp:
                self.stamp = stamp
                try:
                    self.index = Index.open(self.path, self.weights)
                except UserError as error:
                    print(f'not served: {error}', file=sys.stderr, flush=True)
            return self.index

    def _stamp(self):
        """What tells the file from one that replaces it; None if there is none."""
        with contextlib.suppress(OSError, TypeError):
            stat = os.stat(self.path)
            return stat.st_ino, stat.st_size, stat.st_mtime_ns


class Site(NamedTuple):
    """What the views of the page serve from."""

    service: Service
    archive: Archive | None
    far: float | None  # the rate to decide at if a request names none
    local: bool  # whether this machine alone is served
    people: Path | None  # the people.csv of the archive's groups, which need not be there


def site() -> Site:
    return current_app.extensions['site']


def index() -> Index | None:
    archive = site().archive
    return archive.current() if archive else None
