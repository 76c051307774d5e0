"""Decoded faces in one file, 32 or 38 kB each, at places known beforehand.

They are read and written by position and never mapped into memory. A map would be as fast, but
where its file is cut short or its disk is full, the system ends the process (SIGBUS) silently.
"""

import contextlib
import glob
import io
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from storage.files import read_into, will_need, write_at
from storage.images import HEIGHT, WIDTH
from utils import DataError

try:
    import fcntl
except ImportError:  # Windows, which keeps files that are open
    fcntl = None


def name_of(root: str, fingerprint: str, width: int) -> str:
    """What the file of `root` is called: .train.0123456789abcdef.npy, and where faces are 112 wide
    .train.0123456789abcdef-112.npy.
    """
    return f'.{root}.{fingerprint[:16]}{"" if width == WIDTH else f"-{width}"}.npy'


def header(n: int, width: int = WIDTH) -> bytes:
    """What a .npy file of n faces begins with."""
    file = io.BytesIO()
    array = {'descr': '|u1', 'fortran_order': False, 'shape': (n, HEIGHT, width, 3)}
    np.lib.format.write_array_header_1_0(file, array)
    return file.getvalue()


def is_whole(path: str | Path, n: int, width: int = WIDTH) -> bool:
    """Whether the file at `path` is one of n faces of this width, of the right length."""
    start = header(n, width)
    try:
        with open(path, 'rb') as file:
            size = os.fstat(file.fileno()).st_size
            return file.read(len(start)) == start and size == len(start) + n * HEIGHT * width * 3
    except OSError:
        return False


class Pixels:
    """The n faces of a file that `is_whole`.

    It is open, and so in use, from the beginning; a process that gets a copy opens it for itself.
    """

    def __init__(self, path: str | Path, n: int, width: int = WIDTH):
        self.path, self.start, self.file = str(path), len(header(n, width)), None
        self.width, self.size = width, HEIGHT * width * 3
        with contextlib.suppress(OSError):  # said when it is read
            self._number()

    def _number(self):
        """The descriptor of the open file."""
        if self.file is None:
            self.file = open(self.path, 'rb', buffering=0)
            if fcntl:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(self.file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return self.file.fileno()

    def __getitem__(self, indices: Sequence[int]) -> np.ndarray:
        """uint8 (N, 112, width, 3). Raises DataError: the file was removed, or ends too early."""
        faces = np.empty((len(indices), HEIGHT, self.width, 3), np.uint8)
        try:
            number = self._number()
            for face, index in zip(faces, indices, strict=True):
                at = self.start + int(index) * self.size
                if read_into(number, face.data, at) != self.size:
                    raise OSError(None, 'cut short while in use')
        except OSError as error:
            raise DataError(
                f'{self.path}, the file of decoded faces: {error.strerror}: '
                'the next start makes it anew'
            ) from None
        return faces

    def will_need(self, indices: Sequence[int]) -> None:
        """Lets the system begin to read faces that are asked for next, all of them at once."""
        with contextlib.suppress(OSError):  # said when they are read
            number = self._number()
            for index in indices:
                will_need(number, self.start + int(index) * self.size, self.size)

    def __getstate__(self):
        return self.__dict__ | {'file': None}


class NewPixels:
    """A file for n faces in the making, which takes the name `path` in the end.

    `error` is why it can't, an OSError or None.
    """

    def __init__(self, path: Path, n: int, width: int = WIDTH):
        self.path, self.n, self.width, self.file, self.error = path, n, width, None, None
        self.start, self.size = len(header(n, width)), HEIGHT * width * 3
        self.temporary = path.with_name(f'{_root_of(path)}.{uuid.uuid4().hex}.tmp')
        try:
            if shutil.disk_usage(path.parent).free < 1.1 * n * self.size:
                raise OSError(None, 'too little free space')
            self.file = open(self.temporary, 'xb', buffering=0)
        except OSError as error:
            self.error = error
        self._write(header(n, width), 0)

    def __setitem__(self, index: int, face: np.ndarray) -> None:
        """Several threads may call it at once. An error is noted."""
        self._write(np.ascontiguousarray(face).data, self.start + index * self.size)

    def _write(self, data, at):
        try:
            if not self.error:
                if write_at(self.file.fileno(), data, at) != memoryview(data).nbytes:
                    raise OSError(None, 'too little free space')
        except OSError as error:
            self.error = error

    def finish(self) -> Pixels | None:
        """The Pixels of the file, which takes its name; None where there is an error.

        Files of other fingerprints are removed, but for those that a run is using.
        """
        try:
            if not self.error:
                os.fsync(self.file.fileno())
                self.file.close()  # Windows renames no file that is open
                os.replace(self.temporary, self.path)
        except OSError as error:
            self.error = error
        if self.error:
            return None
        root = _root_of(self.path)
        fingerprint = self.path.name[len(root) + 1 :][:16]
        for other in self.path.parent.glob(f'{glob.escape(root)}.{"[0-9a-f]" * 16}*.npy'):
            if not other.name.startswith(f'{root}.{fingerprint}'):
                _remove_unless_used(other)
        return Pixels(self.path, self.n, self.width)

    def close(self) -> None:
        """Removes what was not finished."""
        if self.file:  # else there is nothing, and a read-only disk would not let it be removed
            self.file.close()
            self.temporary.unlink(missing_ok=True)


def _remove_unless_used(path):
    """Removes the file where nobody holds it, as Pixels does, and where it may be removed."""
    with contextlib.suppress(OSError):
        if fcntl:
            with open(path, 'r+b') as file:  # NFS locks for one alone what may be written
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        else:
            path.unlink()


def _root_of(path):
    """.train of .train.<fingerprint>.npy"""
    return path.name.rsplit('.', 2)[0]
