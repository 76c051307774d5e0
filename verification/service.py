"""One network in memory for many clients: a bounded number of requests, embedded in batches."""

import contextlib
import os
import queue
import threading
from concurrent.futures import Future

import numpy as np

from verification import portraits
from verification.matcher import BATCH, Features, Matcher
from verification.portraits import Portrait

WAITING = 16  # requests that are worked on or wait; more are refused
MOST_PIXELS = 60_000_000  # of a photograph


class Busy(Exception):
    """As many requests as may wait are waiting."""


class Service:
    """The matcher behind a queue: a thread of its own embeds what requests have put there."""

    def __init__(self, matcher: Matcher, waiting: int = WAITING):
        self.matcher = matcher
        self.places = threading.BoundedSemaphore(waiting)
        self.reading = threading.BoundedSemaphore(os.cpu_count() or 1)  # photographs are large
        self.queue: queue.Queue = queue.Queue()
        threading.Thread(target=self._work, daemon=True).start()

    @contextlib.contextmanager
    def admitted(self):
        """Holds one of the places of requests. Raises Busy where none is free."""
        if not self.places.acquire(blocking=False):
            raise Busy
        try:
            yield
        finally:
            self.places.release()

    def read(self, name: str, data: bytes) -> Portrait:
        """portraits.read, at most one a core at a time."""
        with self.reading:
            return portraits.read(data, name, self.matcher.width, MOST_PIXELS)

    def features(self, faces: list[np.ndarray]) -> list[Features]:
        """Matcher.features, in one batch with those of other requests."""
        future: Future = Future()
        self.queue.put((faces, future))
        return future.result()

    def _work(self):
        while True:
            requests = [self.queue.get()]
            while sum(len(faces) for faces, _ in requests) < BATCH:
                try:
                    requests.append(self.queue.get_nowait())
                except queue.Empty:
                    break
            try:
                features = self.matcher.features([face for faces, _ in requests for face in faces])
            except BaseException as error:  # every request answers for itself
                for _, future in requests:
                    future.set_exception(error)
                continue
            start = 0
            for faces, future in requests:
                future.set_result(features[start : start + len(faces)])
                start += len(faces)
