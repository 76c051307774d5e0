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

import json
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
        scores = self.similarities(embedding)
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

    def similarities(self, embedding: np.ndarray) -> np.ndarray:
        """With every face (N,), of an embedding (2·D,); (N, Q) of (2·D, Q)."""
        return self.embeddings @ embedding  # at once: in blocks it took ten times as long

    def _faces_of(self, path):
        """The faces of a file, by its real path."""
        here = os.path.realpath(path)
        called = os.path.basename(here), os.path.basename(path)
        paths = {k: row[0] for k, row in enumerate(self.rows) if row[0].endswith(called)}
        real = {k: os.path.realpath(os.path.join(self.root, name)) for k, name in paths.items()}
        return np.isin(self.faces['photograph'], [k for k, one in real.items() if one == here])


def write(
    path: Path, root: str, weights: str, photographs: list[Photograph], people: bool, dim: int
) -> None:
    """The file, whole or not at all."""
    names, rows, faces = _table(photographs, people)
    header = {'version': VERSION, 'weights': weights, 'root': root, 'people': names}
    header |= {'beside': os.path.relpath(root, Path(path).absolute().parent), 'photographs': rows}
    end = _aligned(4 * len(faces) * dim)  # offsets count from the header's end
    first = {'dtype': '<f4', 'shape': (len(faces), dim), 'offset': 0, 'crc': 2**32 - 1}
    second = {'dtype': FACE.descr, 'shape': faces.shape, 'offset': end, 'crc': 2**32 - 1}
    header['arrays'] = {'embeddings': first, 'faces': second}
    length = _aligned(START + len(json.dumps(header))) - START

    def fill(temporary):
        with open(temporary, 'wb') as file:
            for entry, parts in (first, (one.embeddings for one in photographs)), (second, [faces]):
                file.seek(START + length + entry['offset'])
                entry['crc'] = 0
                for part in parts:
                    entry['crc'] = zlib.crc32(part, entry['crc'])
                    file.write(part)
            file.truncate(START + length + end + _aligned(faces.nbytes))
            text = json.dumps(header).encode().ljust(length)
            file.seek(0)
            file.write(MAGIC + np.array([length, zlib.crc32(text)], '<u8').tobytes() + text)

    utils.write_whole(path, fill)


def _table(photographs, people):
    """Names of people, rows of the header, and the faces with their numbers set."""
    whose = [one.name.rpartition(os.sep)[0].split(os.sep)[0] for one in photographs]
    whose = ['' if not len(one.faces) else who for one, who in zip(photographs, whose, strict=True)]
    names = sorted(set(whose) - {''}) if people else []
    number = {name: k for k, name in enumerate(names)}
    faces = np.concatenate([np.empty(0, FACE), *(one.faces for one in photographs)])
    counts = [len(one.faces) for one in photographs]
    faces['photograph'] = np.repeat(np.arange(len(photographs)), counts)
    faces['person'] = np.repeat(np.array([number.get(who, -1) for who in whose], int), counts)
    rows = [[*one[:4], count] for one, count in zip(photographs, counts, strict=True)]
    return names, rows, faces


def _aligned(offset):
    return -(-offset // 64) * 64


def _read(path):
    """Header and arrays, checked: every byte counts in a checksum. Raises UserError."""
    # a pipe is no index either, and would wait to be read
    plain = path if os.path.isfile(path) else os.devnull
    with naming(path, '--index FOLDER makes an index', UserError), open(plain, 'rb') as file:
        os.stat(path)
        if file.read(8) != MAGIC:
            raise UserError(f'{path}: no index that --index made')
        length, crc = (int.from_bytes(file.read(8), 'little') for _ in range(2))
        text = file.read(length) if length <= os.fstat(file.fileno()).st_size else b''
    try:
        if not text or zlib.crc32(text) != crc:
            raise ValueError('checksum')
        header = json.loads(text)
        if header['version'] != VERSION:
            raise UserError(f'{path}: of another version: remove it, and --index again')
        data, arrays = np.memmap(path, np.uint8, 'r', START + length), {}
        for name, dtype in (('embeddings', np.dtype('<f4')), ('faces', FACE)):
            entry = header['arrays'][name]
            arrays[name] = np.ndarray(entry['shape'], dtype, data, entry['offset'])
            if zlib.crc32(arrays[name]) != entry['crc']:
                raise ValueError('checksum')
        if len(arrays['faces']) != len(arrays['embeddings']):
            raise ValueError('another table')
        header['weights'][:8], header['root'], header['beside'], header['people']
        return header, arrays
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, MemoryError):
        raise UserError(f'{path}: damaged: remove it, and --index makes it anew') from None
