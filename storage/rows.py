"""Rows of numbers in one .npy file, each at a place known beforehand: decoded faces, 32 or 38 kB
each, or activations of a network.

They are read and written by position and never mapped into memory. A map would be as fast, but if
its file is cut short or its disk is full, the system ends the process (SIGBUS) silently."""

import contextlib
import fcntl
import glob
import io
import math
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from system.names import naming


class Rows:
    """`n` rows of one shape and type in the file at `path`; `what` is what a message calls them.

    Either the file `is_whole`, or it is made: `begin`, set each row, `finish`, and `close` in any
    case. `error` is why it can't be made, an OSError or None."""

    def __init__(
        self, path: Path, n: int, shape: Sequence[int], dtype: str, what: str = 'decoded faces'
    ):
        self.path, self.n, self.shape, self.dtype, self.what = str(path), n, shape, dtype, what
        self.size = math.prod(shape) * np.dtype(dtype).itemsize  # bytes of a row
        self.gib = n * self.size / 2**30
        head, descr = io.BytesIO(), np.lib.format.dtype_to_descr(np.dtype(dtype))
        array = {'descr': descr, 'fortran_order': False, 'shape': (n, *shape)}
        np.lib.format.write_array_header_1_0(head, array)
        self.header = head.getvalue()
        self.file: Any = None
        self.temporary: Any = None  # its path until it is finished
        self.error: Any = None

    def is_whole(self) -> bool:
        """Whether the file is there, of this layout and length. It is then open, and so in use; a
        process that gets a copy opens it for itself."""
        with contextlib.suppress(OSError):
            number, length = self._number(), len(self.header)
            if os.fstat(number).st_size == length + self.n * self.size:
                if os.pread(number, length, 0) == self.header:
                    return True
        self.file = None
        return False

    def _number(self):
        """The descriptor of the open file."""
        if self.file is None:
            self.file = open(self.path, 'rb', buffering=0)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self.file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return self.file.fileno()

    def __getitem__(self, indices: Sequence[int]) -> np.ndarray:
        """The rows (N, *shape). Raises DataError: the file was removed, or ends too early."""
        rows = np.empty((len(indices), *self.shape), self.dtype)
        places = [len(self.header) + int(index) * self.size for index in indices]
        with naming(f'{self.path}, the file of {self.what}', 'the next start makes it anew'):
            number = self._number()
            for at in places if hasattr(os, 'posix_fadvise') else ():  # a disk reads all at once
                os.posix_fadvise(number, at, self.size, os.POSIX_FADV_WILLNEED)
            for row, at in zip(rows, places, strict=True):
                if os.preadv(number, [row.data], at) != self.size:
                    raise OSError(None, 'cut short while in use')
        return rows

    def __getstate__(self):
        return self.__dict__ | {'file': None}

    def begin(self) -> 'Rows':
        """Makes room for the rows, under another name. Returns itself."""
        path = Path(self.path)
        self.temporary = path.with_name(f'{self._root()}.{uuid.uuid4().hex}.tmp')
        try:
            if shutil.disk_usage(path.parent).free < 1.1 * self.n * self.size:
                raise OSError(None, 'too little free space')
            self.file = open(self.temporary, 'xb', buffering=0)
        except OSError as error:
            self.error = error
        self._write(self.header, 0)
        return self

    def _root(self):
        return os.path.basename(self.path).rsplit('.', 2)[0]  # .train of .train.<digits>.npy

    def __setitem__(self, index: int, row: np.ndarray) -> None:
        """Several threads may call it at once. An error is noted."""
        self._write(np.ascontiguousarray(row).data, len(self.header) + index * self.size)

    def _write(self, data, at):
        try:
            if not self.error:
                if os.pwrite(self.file.fileno(), data, at) != memoryview(data).nbytes:
                    raise OSError(None, 'too little free space')
        except OSError as error:
            self.error = error

    def finish(self) -> bool:
        """Whether there was no error: the file takes its name, and is open to be read. Files of the
        same root with other digits are removed, except those that a run is using."""
        try:
            if not self.error:
                os.fsync(self.file.fileno())
                os.replace(self.temporary, self.path)
                self.file = self.temporary = None
                self._number()
        except OSError as error:
            self.error = error
        if self.error:
            return False
        path, root = Path(self.path), self._root()
        for other in path.parent.glob(f'{glob.escape(root)}.{"[0-9a-f]" * 16}*.npy'):
            if not other.name.startswith(path.name[: len(root) + 17]):
                with contextlib.suppress(OSError):  # locked by another Rows, or not ours to remove
                    with open(other, 'r+b') as file:  # NFS locks for one what may be written
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        other.unlink()
        return True

    def close(self) -> None:
        """Removes what was not finished."""
        if self.file and self.temporary:  # a read-only disk would let nothing be removed
            self.file.close()
            self.temporary.unlink(missing_ok=True)
