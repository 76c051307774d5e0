"""The journal of an index in the making: what is embedded so far, however the run ends."""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils import UserError
from verification.index import FACE, Photograph

try:
    import fcntl
except ImportError:  # Windows, where nothing guards an index against a second run
    fcntl = None


class Journal:
    """Photographs that are embedded but in no index yet, in a file beside it, one record each.

    A record is two lengths, of its JSON and of its arrays, and the crc32 of both; a last record
    that isn't whole is what a stopped run was writing, and is cut off.
    """

    def __init__(self, path: Path, facts: dict, dim: int):
        self.path, self.facts, self.dim = path.with_name(f'{path.name}.journal'), facts, dim

    def __enter__(self):
        """Raises UserError where another process holds it, or it is of other weights."""
        self.file = open(self.path, 'a+b')
        try:
            if fcntl:
                try:
                    # not lockf, whose lock goes when this process closes any handle of the file
                    fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    raise UserError(f'{self.path}: another process is at this index') from None
            self.whole = 0
            records = self._records()
            facts = next(records, None)
            if facts is not None and facts[0] != self.facts:
                raise UserError(
                    f'{self.path}: of other weights, another folder, or --people: remove it'
                )
            for _ in records:
                pass
            self.file.truncate(self.whole)
            if facts is None:
                self._append(self.facts, b'')
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, *error):
        self.file.close()

    def add(self, one: Photograph) -> None:
        arrays = one.faces.tobytes() + one.embeddings.tobytes()
        self._append([one.name, one.size, one.mtime, one.reason, len(one.faces)], arrays)

    def photographs(self) -> Iterator[Photograph]:
        """Those of it so far; the last of a name is the one that counts. Arrays are mapped."""
        self.file.flush()
        mapped = np.memmap(self.path, np.uint8, 'r') if self.whole else None
        records = self._records()
        next(records)
        for (*row, count), start in records:
            middle = start + count * FACE.itemsize
            end = middle + count * self.dim * 4
            faces = np.frombuffer(mapped[start:middle], FACE)
            embeddings = np.frombuffer(mapped[middle:end], '<f4').reshape(count, self.dim)
            yield Photograph(*row, faces, embeddings)

    def remove(self) -> None:
        self.path.unlink()

    def _append(self, facts, arrays):
        text = json.dumps(facts).encode()
        lengths = [len(text), len(arrays), zlib.crc32(arrays, zlib.crc32(text))]
        self.file.write(np.array(lengths, '<u8').tobytes() + text + arrays)
        self.file.flush()
        self.whole += 24 + len(text) + len(arrays)

    def _records(self):
        """(JSON, where its arrays begin) of every whole record; `whole` is where they end."""
        size, at = os.fstat(self.file.fileno()).st_size, 0
        with open(self.path, 'rb') as file:
            while at + 24 <= size:
                lengths = np.frombuffer(file.read(24), '<u8')
                text_bytes, array_bytes, crc = map(int, lengths)
                if at + 24 + text_bytes + array_bytes > size:
                    break
                text, arrays = file.read(text_bytes), file.read(array_bytes)
                if zlib.crc32(arrays, zlib.crc32(text)) != crc:
                    break
                yield json.loads(text), at + 24 + text_bytes
                at += 24 + text_bytes + array_bytes
                self.whole = at
