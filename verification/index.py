"""The archive index: one file with the faces of many photographs, mapped into memory.

    bytes 0 to 7    b'DALINDEX'
    bytes 8 to 15   length of the header, little-endian; bytes 16 to 23 its crc32
    then            the header, JSON: `version`, `weights` (sha256 of the weights file), `root` (the
                    folder), `beside` (the same, seen from the index's own folder), `people`,
                    `photographs`, and of each array its `dtype`, `shape`, `offset` from the
                    header's end, and `crc`
    then            the arrays, each at a multiple of 64 bytes: `embeddings` float32 (faces, 2·D),
                    of unit length; `faces`, a row of FACE for each face

Every photograph is [name below root, bytes, modification time in ns, why it has no face or '',
number of faces], and its faces are consecutive rows. A face whose age is unknown is in group −1.
"""

import functools
import json
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import utils
from system.names import naming
from utils import UserError

MAGIC, VERSION = b'DALINDEX', 1
FACE = np.dtype(
    [(name, '<i4') for name in ('photograph', 'person')]
    + [('box', '<f4', 4), ('points', '<f4', (5, 2)), ('age', '<f4')]
    + [('group', '<i4'), ('probability', '<f4')]
)
START = 24  # where the header begins


class Photograph(NamedTuple):
    """What the index holds of an image: its faces (n,) of FACE, their embeddings (n, 2·D)."""

    name: str
    size: int
    mtime: int
    reason: str
    faces: np.ndarray
    embeddings: np.ndarray


class Index:
    """Photographs and their faces, in memory or mapped from a file. embeddings (N, 2·D) float32,
    faces (N,) of FACE; people are names, of which faces['person'] is the number, −1 for nobody;
    root is the folder that the names of the photographs begin in."""

    def __init__(self, root: str, people: list[str], rows: list, faces, embeddings):
        self.root, self.people, self.rows = root, people, rows
        self.faces, self.embeddings = faces, embeddings

    @classmethod
    def of(cls, root: str, photographs: list[Photograph], people: bool) -> 'Index':
        """Photographs that are in memory. With `people`, the first folders below root are names."""
        names, rows, faces = _table(photographs, people)
        embeddings = np.concatenate([one.embeddings for one in photographs])
        return cls(root, names, rows, faces, embeddings)

    @classmethod
    def open(cls, path: str | Path, weights: str) -> 'Index':
        """The index in a file, made by weights of this sha256; every byte counts in a checksum.
        Raises UserError."""
        with naming(path, '--index FOLDER makes an index', UserError):
            # a pipe, which would wait to be read, is as empty
            is_empty = os.stat(path).st_size == 0
            data = np.empty(0, np.uint8) if is_empty else np.memmap(path, mode='r')
        if len(data) < START or data[:8].tobytes() != MAGIC:
            raise UserError(f'{path}: no index that --index made')
        damaged = f'{path}: damaged: remove it, and --index makes it anew'
        length, crc = data[8:START].view('<u8').tolist()
        text, data = data[START : START + length].tobytes(), data[START + length :]
        if zlib.crc32(text) != crc:
            raise UserError(damaged)
        header, arrays = json.loads(text), {}
        if header['version'] != VERSION:
            raise UserError(f'{path}: of another version: remove it, and --index again')
        for name, dtype in (('embeddings', np.dtype('<f4')), ('faces', FACE)):
            entry = header['arrays'][name]
            size = math.prod(entry['shape']) * dtype.itemsize
            part = data[entry['offset'] : entry['offset'] + size]
            if zlib.crc32(part.data) != entry['crc']:
                raise UserError(damaged)
            arrays[name] = np.ndarray(entry['shape'], dtype, part)
        if header['weights'] != weights:
            which = f'made by other weights ({header["weights"][:8]}…, not {weights[:8]}…)'
            remedy = 'name another file, or remove it and run --index again'
            raise UserError(f'{path}: {which}: {remedy}')
        root, beside = header['root'], Path(path).parent / header['beside']
        if not os.path.isdir(root) and beside.is_dir():  # both have moved
            root = os.path.abspath(beside)
        return cls(root, header['people'], header['photographs'], **arrays)

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def left_out(self) -> list[str]:
        """A line for every image without a face."""
        return [row[3] for row in self.rows if row[3]]

    def photographs(self) -> Iterator[Photograph]:
        """All of them, faces and embeddings as views."""
        start = 0
        for *row, count in self.rows:
            end = start + count
            yield Photograph._make([*row, self.faces[start:end], self.embeddings[start:end]])
            start = end

    def in_one_photograph(self) -> np.ndarray:
        """The pairs (n, 2) of faces that one photograph shows."""
        counts = np.array([row[-1] for row in self.rows], int)
        starts = np.cumsum(counts) - counts
        several = zip(starts[counts > 1], counts[counts > 1], strict=True)
        pairs = [start + np.stack(np.triu_indices(count, 1), 1) for start, count in several]
        return np.concatenate([np.empty((0, 2), int), *pairs])

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
        """The `most` faces most like an embedding (2·D,): (face, similarity), best first. Exact. If
        there are people, the best face of each. `but` is a file whose faces are left out."""
        scores = self.embeddings @ embedding  # at once: in blocks it took ten times as long
        if but is not None:
            scores[self._faces_of(but)] = -np.inf
        if self.people:
            order = np.argsort(-scores, kind='stable')
            person = self.faces['person'][order].astype(np.int64)
            person = np.where(person < 0, -1 - order, person)  # nobody: each alone
            candidates = order[np.unique(person, return_index=True)[1]]
        else:
            # everything that ties with the last is in, so that ties keep the order of the faces
            last = np.partition(scores, -most)[-most] if most < len(scores) else -np.inf
            candidates = np.flatnonzero(scores >= last)
        candidates = candidates[np.lexsort((candidates, -scores[candidates]))][:most]
        return [(int(k), float(scores[k])) for k in candidates if np.isfinite(scores[k])]

    def _faces_of(self, path):
        """The faces of a file, by its real path."""
        here = os.path.realpath(path)
        called = os.path.basename(here), os.path.basename(path)
        near = [(k, row[0]) for k, row in enumerate(self.rows) if row[0].endswith(called)]
        same = [k for k, name in near if os.path.realpath(os.path.join(self.root, name)) == here]
        return np.isin(self.faces['photograph'], same)


def write_index(
    path: str | Path, root: str, weights: str, photographs: list[Photograph], people: bool
) -> None:
    """The file, whole or not at all."""
    names, rows, faces = _table(photographs, people)
    embeddings = [one.embeddings for one in photographs]
    crc = functools.reduce(lambda crc, part: zlib.crc32(part.data, crc), embeddings, 0)
    shape = len(faces), embeddings[0].shape[1]
    end = _aligned(4 * math.prod(shape))  # offsets count from the header's end
    first = {'dtype': '<f4', 'shape': shape, 'offset': 0, 'crc': crc}
    second = {'dtype': FACE.descr, 'shape': faces.shape, 'offset': end}
    second['crc'] = zlib.crc32(faces.data)
    header = {'version': VERSION, 'weights': weights, 'root': root, 'people': names}
    header |= {'beside': os.path.relpath(root, Path(path).absolute().parent), 'photographs': rows}
    text = json.dumps(header | {'arrays': {'embeddings': first, 'faces': second}}).encode()
    text = text.ljust(_aligned(START + len(text)) - START)

    def fill(temporary):
        with open(temporary, 'wb') as file:
            file.write(MAGIC + np.array([len(text), zlib.crc32(text)], '<u8').tobytes() + text)
            file.writelines(embeddings)
            file.seek(START + len(text) + end)
            file.write(faces)

    utils.write_whole(path, fill)


def _table(photographs, people):
    """Names of people, rows of the header, and the faces with their numbers set."""
    rows = [[*one[:4], len(one.faces)] for one in photographs]
    folders = [row[0].partition(os.sep)[:2] for row in rows for _ in range(row[4])]  # of each face
    names = sorted({name for name, below in folders if below}) if people else []
    number = {name: k for k, name in enumerate(names)}
    faces = np.concatenate([one.faces for one in photographs])
    faces['photograph'] = np.repeat(np.arange(len(rows)), [row[4] for row in rows])
    faces['person'] = [number.get(name, -1) for name, _ in folders]
    return names, rows, faces


def _aligned(offset):
    return -(-offset // 64) * 64
