"""InsightFace's training sets: train.rec, its train.idx and, if it is there, `property`.

RecordIO: a record is a uint32 magic, a uint32 whose upper 3 bits are a part flag and whose lower 29
the length, the data, zeros up to a multiple of 4; all little-endian. Data that holds the magic is
cut there into parts. The data begin with a header `<IfQQ`: flag, label, id, id2; a flag above 0 is
the number of float32 labels that follow. Then comes the image, encoded.

`.idx` has lines of key and byte offset. Record 0 is no image: its labels are the first key after
the images and one past the last. The keys between are a record an identity, whose labels are the
first key of its images and one past the last. Some packs lack these: then every key is an image.
"""

import os
import struct
import weakref
from pathlib import Path

import numpy as np

from storage.files import read_bytes
from system import foreign
from system.names import naming
from system.progress import progress
from utils import DataError

MAGIC = struct.pack('<I', 0xCED7230A)
WHOLE, FIRST, _, LAST = range(4)  # the part flags
HEADER = struct.Struct('<IfQQ')
TWO_SETS = 'they are of two downloads, or one is cut short: fetch both again'


class RecordFile:
    """A .rec file, read by byte offset. Raises DataError if it is none."""

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        with naming(path):
            self.file = open(path, 'rb', buffering=0)
        weakref.finalize(self, self.file.close)
        self.size = os.fstat(self.file.fileno()).st_size
        head = self._bytes(foreign.READ, 0)
        if not head.startswith(MAGIC):
            known = foreign.what_it_is(head)
            raise DataError(f'{path}: {known or "not a .rec file of InsightFace"}')

    def _bytes(self, size, offset):
        return os.pread(self.file.fileno(), size, offset)

    def data(self, offset: int) -> tuple[bytes, int]:
        """The data of the record that begins at byte `offset`, and the byte at which it ends.

        Raises DataError if there is no whole record.
        """
        parts, flag, before = list[bytes](), -1, -1
        while flag not in (WHOLE, LAST):
            head = self._bytes(8, offset)
            if len(head) < 8 or head[:4] != MAGIC:
                wrong = f'no record at byte {offset} of {self.size}, where the .idx has one'
                raise DataError(f'{self.path}: {wrong}: {TWO_SETS}')
            before, (length,) = flag, struct.unpack('<I', head[4:])
            flag, length = length >> 29, length & (1 << 29) - 1
            parts.append(self._bytes(length, offset + 8))
            if flag > LAST or (flag in (WHOLE, FIRST)) != (before < 0):
                raise DataError(f'{self.path}: damaged at byte {offset}: fetch it again')
            if len(parts[-1]) < length:
                raise DataError(f'{self.path}: cut short at byte {self.size}: fetch it again')
            offset += 8 + length + -length % 4
        return MAGIC.join(parts), offset

    def record(self, offset: int) -> tuple[np.ndarray, bytes]:
        """The labels (k,) float32, k ≥ 1, and the image's bytes of the record at `offset`."""
        data = self.data(offset)[0]
        flag, label = HEADER.unpack_from(data)[:2] if len(data) >= HEADER.size else (0, 0)
        start = HEADER.size + 4 * flag
        if len(data) < start:
            raise DataError(f'{self.path}: the record at byte {offset} is too short for its header')
        labels = np.frombuffer(data[HEADER.size : start], '<f4')
        return labels if flag else np.array([label], np.float32), data[start:]


def identity_of(labels: np.ndarray, where: str) -> int:
    """The identity, a whole number from 0 on, that an image's labels begin with. DataError."""
    label = float(labels[0])
    if not (label >= 0 and label.is_integer()):  # nan neither
        raise DataError(f'{where}: its label {label:g} is no identity: a whole number from 0 on')
    return int(label)


class Records:
    """The images of a .rec file: where each is, and whose.

    keys, offsets, labels   (n,) int64: the keys of the .idx, byte offsets, identities
    Of a pack with records of identities, labels come from them, and who reads an image holds its
    label against them.

    Raises DataError if file, .idx, identities and `property` disagree.
    """

    def __init__(self, path: str | os.PathLike):
        self.file, index = RecordFile(path), Path(path).with_suffix('.idx')
        self.name = f'{path} and {index.name}'
        keys, offsets = _read_index(index)
        end = self.file.data(int(offsets.max()))[1]  # the last one is whole
        labels, image = self.file.record(int(offsets[0]))
        if keys[0] == 0 and not image:
            self.keys, self.labels = self._identities(keys, offsets, labels)
            self.offsets = offsets[self.keys]
        else:
            # records of identities tell of all keys; here only the file's end does
            if end < self.file.size:
                more = f'{path} goes on for {self.file.size - end} bytes after the last record'
                raise DataError(f'{more} that {index.name} has: {TWO_SETS}')
            listed = progress(keys.tolist(), f'listing {path}', len(keys), unit=' records')
            self.keys, self.offsets = keys, offsets
            self.labels = np.array(list(map(self._label, listed, offsets.tolist())))
        self.people = len(np.unique(self.labels))
        self._check_property(Path(path).with_name('property'))

    def __len__(self) -> int:
        return len(self.keys)

    def _label(self, key, offset):
        return identity_of(self.file.record(offset)[0], f'{self.file.path}, key {key}')

    def _identities(self, keys, offsets, labels):
        """The keys of the images and their identities; `labels` are those of record 0."""
        first, end = map(int, labels.tolist()) if len(labels) == 2 else (0, 0)
        if not 1 < first < end or not np.array_equal(keys, np.arange(end)):
            told = f'record 0 tells of keys 0 to {end - 1}, identities from {first} on'
            there = f'the .idx has {len(keys)} keys, up to {keys[-1]}'
            raise DataError(f'{self.name}: {told}; {there}: {TWO_SETS}')
        owner = np.full(first, -1)
        for key in range(first, end):
            labels = self.file.record(int(offsets[key]))[0]
            start, stop = map(int, labels.tolist()) if len(labels) == 2 else (0, 0)
            if not 1 <= start < stop <= first or (owner[start:stop] >= 0).any():
                images = f'{labels.tolist()}, which are not its own among 1 to {first - 1}'
                wrong = f'{self.name}: the identity of key {key} has images {images}'
                raise DataError(f'{wrong}: {TWO_SETS}')
            owner[start:stop] = self._label(start, int(offsets[start]))
        people = len(np.unique(owner[1:]))
        if (owner[1:] < 0).any() or people != end - first:
            counts = f'{end - first} identities by the .idx, {people} by the labels of their images'
            raise DataError(f'{self.name}: {counts}: {TWO_SETS}')
        return np.arange(1, first), owner[1:]

    def _check_property(self, path):
        try:
            classes = int(path.read_text().split(',')[0])
        except (OSError, ValueError):
            return  # not every pack has it
        if classes != self.people:
            there = f'{self.file.path} has {self.people}'
            raise DataError(f'{path}: {classes} identities; {there}: {TWO_SETS}')


def _read_index(path):
    """keys, sorted, and offsets (n,) int64 of a .idx file."""
    text = read_bytes(path, 'it belongs beside the .rec file')
    try:
        numbers = np.array(text.split(), np.int64).reshape(-1, 2)
    except ValueError:
        known = foreign.what_it_is(text[: foreign.READ]) or 'expected lines of key and byte offset'
        raise DataError(f'{path}: {known}: fetch it again') from None
    if not len(numbers) or len(np.unique(numbers[:, 0])) < len(numbers) or numbers.min() < 0:
        raise DataError(f'{path}: empty, or a key is there twice: fetch it again')
    return numbers[np.argsort(numbers[:, 0])].T
