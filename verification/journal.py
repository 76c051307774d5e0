"""The journal of an index in the making: what is embedded so far, however the run ends."""

import fcntl
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils import UserError
from verification.index import FACE, Photograph


class Journal:
    """Photographs that are embedded but in no index yet, in a file beside it, one record each. A
    record is two lengths, of its JSON and of its arrays, the crc32 of both, and then both; a last
    record that isn't whole is what a stopped run was writing, and is cut off."""

    def __init__(self, path: Path, facts: dict, dim: int):
        self.path, self.facts, self.dim = path.with_name(f'{path.name}.journal'), facts, dim

    def __enter__(self) -> 'Journal':
        """Raises UserError if another process holds it, or it is of other weights."""
        self.file = open(self.path, 'a+b')
        try:
            try:
                # not lockf, whose lock goes when this process closes any handle of the file
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f'{self.path}: another process is at this index') from None
            records = [*self._records()]
            if records and records[0][0] != self.facts:
                other = 'of other weights, another folder, or --people'
                raise UserError(f'{self.path}: {other}: remove it')
            self.file.truncate(records[-1][2] if records else 0)
            if not records:
                self._append(self.facts, b'')
        except BaseException:
            self.file.close()
            raise
        return self

    def __exit__(self, *error):
        self.file.close()

    def add(self, one: Photograph) -> None:
        arrays = one.faces.tobytes() + one.embeddings.tobytes()
        self._append([*one[:4], len(one.faces)], arrays)

    def photographs(self) -> Iterator[Photograph]:
        """Those of it so far; the last of a name is the one that counts. Arrays are mapped."""
        data = np.memmap(self.path, np.uint8, 'r')
        for (*row, count), start, end in [*self._records()][1:]:
            middle = start + count * FACE.itemsize
            faces = np.frombuffer(data[start:middle], FACE)
            embeddings = np.frombuffer(data[middle:end], '<f4').reshape(count, self.dim)
            yield Photograph._make([*row, faces, embeddings])

    def remove(self) -> None:
        self.path.unlink()

    def _append(self, facts, arrays):
        text = json.dumps(facts).encode()
        lengths = [len(text), len(arrays), zlib.crc32(arrays, zlib.crc32(text))]
        self.file.write(np.array(lengths, '<u8').tobytes() + text + arrays)
        self.file.flush()

    def _records(self):
        """(JSON, where its arrays begin, where they end) of every whole record."""
        size = self.path.stat().st_size
        with open(self.path, 'rb') as file:
            while len(head := file.read(24)) == 24:
                text_bytes, array_bytes, crc = np.frombuffer(head, '<u8').tolist()
                start, end = file.tell() + text_bytes, file.tell() + text_bytes + array_bytes
                if end > size:
                    return
                text, arrays = file.read(text_bytes), file.read(array_bytes)
                if zlib.crc32(arrays, zlib.crc32(text)) != crc:
                    return
                yield json.loads(text), start, end
