"""The archive index: one file with the faces of many photographs, mapped into memory.

    bytes 0 to 7    b'DALINDEX'
    bytes 8 to 15   length of the header, little-endian; bytes 16 to 23 its crc32
    then            the header, JSON: `version`, `weights` (sha256 of the weights file), `root` (the
                    folder), `people`, `photographs`, and of each array its `dtype`, `shape`,
                    `offset` from the header's end, and `crc`
    then            the arrays, each at a multiple of 64 bytes:
                    `embeddings` float32 (faces, 2·D), of unit length; `faces`, a row for each, see
                    FACE

Every photograph is [name below root, bytes, modification time in ns, why it has no face or '',
number of faces], and its faces are consecutive rows. A face whose age is unknown is in group −1.
"""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import utils
from utils import UserError

MAGIC, VERSION = b'DALINDEX', 1
FACE = np.dtype(
    [
        ('photograph', '<i4'),
        ('person', '<i4'),
        ('box', '<f4', 4),
        ('points', '<f4', (5, 2)),
        ('age', '<f4'),
        ('group', '<i4'),
        ('probability', '<f4'),
    ]
)
START = 24  # where the header begins
BLOCK = 8192  # rows that are written at a time


class Photograph(NamedTuple):
    """What the index keeps of an image: its faces (n,) of FACE, their embeddings (n, 2·D)."""

    name: str
    size: int
    mtime: int
    reason: str
    faces: np.ndarray
    embeddings: np.ndarray


class Index:
    """Photographs and their faces, in memory or mapped from a file.

    embeddings (N, 2·D) float32, faces (N,) of FACE; people are names, of which faces['person'] is
    the number, −1 for nobody; root is the folder that the names of the photographs begin in.
    """

    def __init__(self, root: str, people: list[str], rows: list, faces, embeddings):
        self.root, self.people, self.rows = root, people, rows
        self.faces, self.embeddings = faces, embeddings

    @classmethod
    def of(cls, root: str, photographs: list[Photograph], people: bool, dim: int) -> 'Index':
        """Photographs that are in memory. With `people`, the first folders below root are names."""
        names, rows, faces = _table(photographs, people)
        embeddings = [np.empty((0, dim), '<f4'), *(one.embeddings for one in photographs)]
        return cls(root, names, rows, faces, np.concatenate(embeddings))

    @classmethod
    def open(cls, path: str | Path, weights: str) -> 'Index':
        """The index in a file, made by weights of this sha256. Raises UserError, one line."""
        header, arrays = _read(path)
        if header['weights'] != weights:
            raise UserError(
                f'{path}: made by other weights ({header["weights"][:8]}…, not {weights[:8]}…): '
                'name another file, or remove it and run --index again'
            )
        return cls(header['root'], header['people'], header['photographs'], **arrays)

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def left_out(self) -> list[str]:
        """A line for every image without a face."""
        return [row[3] for row in self.rows if row[3]]

    def photographs(self) -> Iterator[Photograph]:
        """All of them, faces and embeddings as views."""
        ends = np.searchsorted(self.faces['photograph'], np.arange(len(self.rows)), 'right')
        start = 0
        for row, end in zip(self.rows, ends, strict=True):
            yield Photograph(*row[:4], self.faces[start:end], self.embeddings[start:end])
            start = end

    def name(self, face: int) -> str:
        return self.rows[self.faces['photograph'][face]][0]

    def path(self, face: int) -> str:
        return os.path.join(self.root, self.name(face))

    def is_aligned(self, face: int) -> bool:
        """Whether the image is an aligned face itself, and no photograph."""
        return tuple(self.faces['box'][face]) in ((0, 0, 96, 112), (0, 0, 112, 112))

    def person(self, face: int) -> str | None:
        number = self.faces['person'][face]
        return None if number < 0 else self.people[number]

    def nearest(
        self, embedding: np.ndarray, most: int, but: str | None = None
    ) -> list[tuple[int, float]]:
        """The `most` faces most like an embedding (2·D,): (face, similarity), the best first.

        Where there are people, the best face of each. `but` is a file whose faces are left out.
        Exact: a product with every face.
        """
        scores = self.similarities(embedding)
        if but is not None:
            scores[self._faces_of(but)] = -np.inf
        if self.people:
            person = self.faces['person'].astype(np.int64)
            person = np.where(person < 0, -1 - np.arange(len(person)), person)  # nobody: each alone
            order = np.lexsort((-scores, person))
            candidates = order[np.diff(person[order], prepend=person.min() - 1) > 0]
        elif most < len(scores):
            # everything that ties with the last is in, so that ties keep the order of the faces
            candidates = np.flatnonzero(scores >= np.partition(scores, -most)[-most])
        else:
            candidates = np.arange(len(scores))
        candidates = candidates[np.argsort(-scores[candidates], kind='stable')][:most]
        return [(int(k), float(scores[k])) for k in candidates if np.isfinite(scores[k])]

    def similarities(self, embedding: np.ndarray) -> np.ndarray:
        """With every face (N,), of an embedding (2·D,); (N, Q) of (2·D, Q)."""
        return self.embeddings @ embedding  # at once: in blocks it took ten times as long

    def _faces_of(self, path):
        """The faces of a file, by its real path."""
        here = os.path.realpath(path)
        below = os.path.relpath(here, os.path.realpath(self.root))
        names = {k for k, row in enumerate(self.rows) if row[0] == below}
        names |= {
            k
            for k, row in enumerate(self.rows)
            if os.path.basename(row[0]) == os.path.basename(str(path))
            and os.path.realpath(os.path.join(self.root, row[0])) == here
        }
        return np.isin(self.faces['photograph'], list(names))


def write(
    path: Path, root: str, weights: str, photographs: list[Photograph], people: bool, dim: int
) -> None:
    """The file, whole or not at all. The embeddings may be views of larger ones: they are read in
    blocks, once for the checksum and once to be written."""
    names, rows, faces = _table(photographs, people)
    header = {'version': VERSION, 'weights': weights, 'root': root, 'people': names}
    header |= {'photographs': rows, 'arrays': {}}
    arrays = {
        'embeddings': ('<f4', (len(faces), dim), lambda: _blocks(photographs, dim)),
        'faces': (faces.dtype.descr, faces.shape, lambda: iter([faces])),
    }
    offset = 0  # from the end of the header on, whose length depends on what it says
    for name, (dtype, shape, blocks) in arrays.items():
        crc, size = 0, 0
        for block in blocks():
            crc, size = zlib.crc32(block, crc), size + block.nbytes
        entry = {'dtype': dtype, 'shape': shape, 'offset': offset, 'crc': crc}
        header['arrays'][name] = entry
        offset = _aligned(offset + size)
    text = json.dumps(header).encode()
    text += b' ' * (_aligned(START + len(text)) - START - len(text))
    crc = zlib.crc32(text)

    def fill(temporary):
        with open(temporary, 'wb') as file:
            file.write(MAGIC + b''.join(value.to_bytes(8, 'little') for value in (len(text), crc)))
            file.write(text)
            for name, (_, _, blocks) in arrays.items():
                file.seek(START + len(text) + header['arrays'][name]['offset'])
                for block in blocks():
                    file.write(block)
            file.truncate(START + len(text) + offset)

    utils.write_whole(path, fill)


def _table(photographs, people):
    """Names of people, rows of the header, and the faces with their numbers set."""
    whose = [_folder(one.name) if people and len(one.faces) else None for one in photographs]
    names = sorted(set(whose) - {None})
    number = {None: -1, **{name: k for k, name in enumerate(names)}}
    faces = np.concatenate([np.empty(0, FACE), *(one.faces for one in photographs)])
    counts = [len(one.faces) for one in photographs]
    faces['photograph'] = np.repeat(np.arange(len(photographs)), counts)
    faces['person'] = np.repeat(np.array([number[name] for name in whose], np.int32), counts)
    rows = [[*one[:4], count] for one, count in zip(photographs, counts, strict=True)]
    return names, rows, faces


def _folder(name):
    first, separator, _ = name.partition(os.sep)
    return first if separator else None


def _blocks(photographs, dim):
    """Embeddings of all photographs, BLOCK rows or so at a time."""
    waiting, rows = [], 0
    for photograph in photographs:
        waiting.append(photograph.embeddings)
        rows += len(photograph.embeddings)
        if rows >= BLOCK:
            yield np.concatenate(waiting)
            waiting, rows = [], 0
    yield np.concatenate([np.empty((0, dim), '<f4'), *waiting])


def _aligned(offset):
    return -(-offset // 64) * 64


def _read(path):
    """Header and arrays, checked: every byte counts in a checksum. Raises UserError."""
    damaged = UserError(f'{path}: damaged: remove it, and --index makes it anew')
    try:
        with open(path, 'rb') as file:
            if file.read(8) != MAGIC:
                raise UserError(f'{path}: no index that --index made')
            length, crc = (int.from_bytes(file.read(8), 'little') for _ in range(2))
            size = os.fstat(file.fileno()).st_size
            text = file.read(length) if length <= size else b''
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}: --index FOLDER makes an index') from None
    try:
        if not text or zlib.crc32(text) != crc:
            raise ValueError('checksum')
        header = json.loads(text)
        if header['version'] != VERSION:
            raise UserError(f'{path}: of another version: remove it, and --index again')
        start, arrays = START + len(text), {}
        for name, entry in header['arrays'].items():
            dtype = entry['dtype']
            dtype = np.dtype(
                dtype
                if isinstance(dtype, str)
                else [
                    (field, kind, *map(tuple, shape)) if shape else (field, kind)
                    for field, kind, *shape in dtype
                ]
            )
            shape, offset = tuple(entry['shape']), start + entry['offset']
            if offset + int(np.prod(shape)) * dtype.itemsize > size:
                raise ValueError('it ends before its arrays do')
            if 0 in shape:
                arrays[name] = np.empty(shape, dtype)
                continue
            arrays[name] = np.asarray(np.memmap(path, dtype, 'r', offset, shape))
            if zlib.crc32(arrays[name]) != entry['crc']:
                raise ValueError('checksum')
        if arrays['faces'].dtype != FACE or len(arrays['faces']) != len(arrays['embeddings']):
            raise ValueError('another table')
        header['weights'][:8], header['root'], header['people'], header['photographs']
        return header, arrays
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError):
        raise damaged from None
