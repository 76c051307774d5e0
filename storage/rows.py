"""Rows of numbers in one .npy file, each at a place known beforehand: decoded faces, 32 or 38 kB
each, or activations of a network.

They are read and written by position and never mapped into memory. A map would be as fast, but if
its file is cut short or its disk is full, the system ends the process (SIGBUS) silently.
"""

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
from typing import NamedTuple

import numpy as np

from utils import DataError


class Layout(NamedTuple):
    """n rows of one shape and type, and what a message calls them."""

    n: int
    shape: tuple[int, ...]
    dtype: str = 'uint8'
    what: str = 'decoded faces'

    @property
    def size(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def gib(self) -> float:
        """GiB of all rows."""
        return self.n * self.size / 2**30

    def header(self) -> bytes:
        """The bytes that the .npy file begins with."""
        file, descr = io.BytesIO(), np.lib.format.dtype_to_descr(np.dtype(self.dtype))
        array = {'descr': descr, 'fortran_order': False, 'shape': (self.n, *self.shape)}
        np.lib.format.write_array_header_1_0(file, array)
        return file.getvalue()

    def is_whole(self, path: str | Path) -> bool:
        """Whether the file at `path` is of this layout, and of the right length."""
        start = self.header()
        try:
            with open(path, 'rb') as file:
                size = os.fstat(file.fileno()).st_size
                return file.read(len(start)) == start and size == len(start) + self.n * self.size
        except OSError:
            return False


class Rows:
    """The rows of a file that `is_whole`, which is open, and so in use, from the beginning; a
    process that gets a copy opens it for itself."""

    def __init__(self, path: str | Path, layout: Layout):
        self.path, self.layout, self.file = str(path), layout, None
        self.start = len(layout.header())
        with contextlib.suppress(OSError):  # said when it is read
            self._number()

    def _number(self):
        """The descriptor of the open file."""
        if self.file is None:
            self.file = open(self.path, 'rb', buffering=0)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self.file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return self.file.fileno()

    def __getitem__(self, indices: Sequence[int]) -> np.ndarray:
        """The rows (N, *shape). Raises DataError: the file was removed, or ends too early."""
        rows = np.empty((len(indices), *self.layout.shape), self.layout.dtype)
        size = self.layout.size
        try:
            number, places = self._number(), [self.start + int(index) * size for index in indices]
            for at in places if hasattr(os, 'posix_fadvise') else ():  # a disk reads all at once
                os.posix_fadvise(number, at, size, os.POSIX_FADV_WILLNEED)
            for row, at in zip(rows, places, strict=True):
                if os.preadv(number, [row.data], at) != size:
                    raise OSError(None, 'cut short while in use')
        except OSError as error:
            what = f'{self.path}, the file of {self.layout.what}'
            raise DataError(f'{what}: {error.strerror}: the next start makes it anew') from None
        return rows

    def __getstate__(self):
        return self.__dict__ | {'file': None}


class NewRows:
    """A file of a layout in the making, which takes the name `path` in the end, .<root>.<16
    hexadecimal digits>….npy; `error` is why it can't be made, an OSError or None."""

    def __init__(self, path: Path, layout: Layout):
        self.path, self.layout, self.file, self.error = path, layout, None, None
        self.root = path.name.rsplit('.', 2)[0]  # .train of .train.<digits>.npy
        self.temporary = path.with_name(f'{self.root}.{uuid.uuid4().hex}.tmp')
        self.start = len(layout.header())
        try:
            if shutil.disk_usage(path.parent).free < 1.1 * layout.n * layout.size:
                raise OSError(None, 'too little free space')
            self.file = open(self.temporary, 'xb', buffering=0)
        except OSError as error:
            self.error = error
        self._write(layout.header(), 0)

    def __setitem__(self, index: int, row: np.ndarray) -> None:
        """Several threads may call it at once. An error is noted."""
        self._write(np.ascontiguousarray(row).data, self.start + index * self.layout.size)

    def _write(self, data, at):
        try:
            if self.file and not self.error:
                if os.pwrite(self.file.fileno(), data, at) != memoryview(data).nbytes:
                    raise OSError(None, 'too little free space')
        except OSError as error:
            self.error = error

    def finish(self) -> Rows | None:
        """The Rows of the file, which takes its name; None if there is an error. Files of the same
        root with other digits are removed, except those that a run is using."""
        try:
            if self.file and not self.error:
                os.fsync(self.file.fileno())
                os.replace(self.temporary, self.path)
        except OSError as error:
            self.error = error
        if self.error:
            return None
        digits = self.path.name.removeprefix(f'{self.root}.')[:16]
        for other in self.path.parent.glob(f'{glob.escape(self.root)}.{"[0-9a-f]" * 16}*.npy'):
            if not other.name.startswith(f'{self.root}.{digits}'):
                with contextlib.suppress(OSError):  # locked by another Rows, or not ours to remove
                    with open(other, 'r+b') as file:  # NFS locks for one what may be written
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        other.unlink()
        return Rows(self.path, self.layout)

    def close(self) -> None:
        """Removes what was not finished."""
        if self.file:  # else there is nothing, and a read-only disk would not let it be removed
            self.file.close()
            self.temporary.unlink(missing_ok=True)
