"""A folder that one process at a time writes into, and signals that end its work between steps."""

import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from system.names import naming
from utils import UserError


class Interrupted(UserError):
    """A signal asked for an end."""


class Interrupt:
    """Within it SIGINT and SIGTERM are noted in `received` (None or the signal's name), to be acted
    on between two steps; with `at_once` the first raises Interrupted wherever the work is. A second
    one ends the process as usual, unless `insistent`: a launcher repeats what reached its whole
    group. In another thread than the main one (a notebook's, a server's) none is noted, and a line
    says so."""

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
    with contextlib.ExitStack() as stack:
        with naming(folder, f'{option} names a folder that can be written', UserError):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, 'a+b', buffering=0))
            try:
                # goes with the process, however that ends; flock would stay with the decode
                # workers, which outlive a kill by seconds
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                held = f'{file.read().decode()} is {work} into it'
                raise UserError(f'{folder}: {held}: {option} DIR starts elsewhere') from None
            file.truncate(0)
            file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
            # write_whole's, of a process that was killed in it
            for stale in path.parent.glob('.*.????????.tmp'):
                stale.unlink()
        yield
