"""A folder that one process at a time writes into, and signals that end its work between steps."""

import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from utils import UserError


class Interrupted(UserError):
    """A signal asked for an end."""


class Interrupt:
    """Within it SIGINT and SIGTERM are noted in `received` (None or the signal's name), to be acted
    on between two steps.

    A second one ends the process as usual, unless `insistent`: a launcher repeats what reached its
    whole group, and kills in the end. With `at_once` the first one raises Interrupted wherever the
    work is, so that it ends any wait. Signals are the main thread's: in another thread (a
    notebook's, a server's) none is noted, and a line says so.
    """

    received = None

    def __init__(self, insistent: bool = False, at_once: bool = False):
        self.insistent, self.at_once = insistent, at_once
        self.before: dict = {}  # handlers, by their signals

    def __enter__(self) -> 'Interrupt':
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)
        else:
            print('not in the main thread: a signal ends this without a save')
        return self

    def _note(self, number, frame):
        self.received = signal.Signals(number).name
        if not self.insistent:
            signal.signal(number, self.before[number])
        if self.at_once:
            raise Interrupted(self.received)

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self.received:
            raise Interrupted(self.received)

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def claim(folder: str | os.PathLike, option: str = '--save', work: str = 'training') -> Iterator:
    """Makes the folder, the user's `option`, and holds it for this process. Raises UserError if
    it can't be written or another holds it."""
    path = Path(folder, '.lock')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, 'a+b', buffering=0)
    except OSError as error:
        raise _unwritable(folder, option, error) from None
    with file:
        try:
            # goes with the process, however that ends; flock would stay with the decode
            # workers, which outlive a kill by seconds
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            who = file.read().decode()
            remedy = f'{option} DIR starts elsewhere'
            raise UserError(f'{folder}: {who} is {work} into it: {remedy}') from None
        try:
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
            # write_whole's, of a process that was killed in it
            for stale in path.parent.glob('.*.????????.tmp'):
                stale.unlink()
        except OSError as error:
            raise _unwritable(folder, option, error) from None
        yield


def _unwritable(folder, option, error):
    return UserError(f'{folder}: {error.strerror}: {option} names a folder that can be written')
