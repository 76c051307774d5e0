"""InsightFace's training sets: train.rec, its train.idx and, if it is there, `property`.

RecordIO: a record is a uint32 magic, a uint32 whose upper 3 bits are a part flag and whose lower 29
the length, the data, zeros up to a multiple of 4; all little-endian. Data that holds the magic is
cut there into parts. The data begin with a header `<IfQQ`: flag, label, id, id2; a flag above 0 is
the number of float32 labels that follow. Then comes the image, encoded.

`.idx` has lines of key and byte offset. Record 0 is no image: its labels are the first key after
the images and one past the last. The keys between are a record an identity, whose labels are the
first key of its images and one past the last. Some packs lack these: then every key is an image.
"""

import contextlib
import os
import struct
import weakref
from pathlib import Path

import numpy as np

from storage.files import read_bytes
from system import foreign
from system.names import naming
from utils import DataError

MAGIC = struct.pack('<I', 0xCED7230A)
WHOLE, LAST = 0, 3  # part flags
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
        """The data of the record at byte `offset`, and the byte at which it ends. DataError."""
        parts, flag = list[bytes](), -1
        while flag not in (WHOLE, LAST):
            head = self._bytes(8, offset)
            if len(head) < 8 or head[:4] != MAGIC:
                raise self.lost(offset)
            (length,) = struct.unpack('<I', head[4:])
            flag, length = length >> 29, length & (1 << 29) - 1
            parts.append(self._bytes(length, offset + 8))
            offset += 8 + length + -length % 4
        if offset > self.size:
            raise DataError(f'{self.path}: cut short at byte {self.size}: fetch it again')
        return MAGIC.join(parts), offset

    def lost(self, offset: int) -> DataError:
        """What is said where no record begins at byte `offset`."""
        wrong = f'no record at byte {offset} of {self.size}, where the .idx has one'
        return DataError(f'{self.path}: {wrong}: {TWO_SETS}')

    def record(self, offset: int) -> tuple[np.ndarray, bytes]:
        """The labels (k,) float32, k ≥ 1, and the image's bytes of the record at `offset`."""
        data = self.data(offset)[0]
        try:
            flag, label = HEADER.unpack_from(data)[:2]
            labels = np.frombuffer(data, '<f4', flag, HEADER.size) if flag else np.array([label])
        except (struct.error, ValueError):
            raise DataError(f'{self.path}: no whole header at byte {offset}') from None
        return labels, data[HEADER.size + 4 * flag :]


class Records:
    """The images of a .rec file: where each is, and whose.

    keys, offsets, labels   (n,) int64: the keys of the .idx, byte offsets, identities

    Raises DataError if file, .idx, identities and `property` disagree.
    """

    def __init__(self, path: str | os.PathLike):
        self.file, self.index = RecordFile(path), Path(path).with_suffix('.idx')
        self.keys, self.offsets = _read_index(self.index)
        end = self.file.data(int(self.offsets.max()))[1]  # the last one is whole
        labels, image = self.file.record(int(self.offsets[0]))
        people = None
        if self.keys[0] == 0 and not image:
            first, after = map(int, labels.tolist()) if len(labels) == 2 else (0, 0)
            if not 1 < first < after or not np.array_equal(self.keys, np.arange(after)):
                told = f'record 0 tells of keys 0 to {after - 1}, identities from {first} on'
                there = f'{len(self.keys)} keys, up to {self.keys[-1]}'
                raise self._differ(f'{told}; the .idx has {there}')
            self.keys, self.offsets = self.keys[1:first], self.offsets[1:first]
            people = after - first
        elif end < self.file.size:  # nothing but the file's end tells of all records
            raise self._differ(f'{self.file.size - end} bytes follow the last record of the .idx')
        self.labels = self._identities()
        self.people = len(np.unique(self.labels))
        if people not in (None, self.people):
            by_labels = f'{self.people} by the labels of their images'
            raise self._differ(f'{people} identities by the .idx, {by_labels}')
        classes = self.people
        with contextlib.suppress(OSError, ValueError):  # not every pack has it
            classes = int(Path(path).with_name('property').read_text().split(',')[0])
        if classes != self.people:
            raise self._differ(f'{self.people} identities, {classes} by the file property')

    def __len__(self) -> int:
        return len(self.keys)

    def _identities(self):
        """The identity with which the labels of each image begin: whole numbers from 0 on."""
        words = np.memmap(self.file.path, '<u4', 'r', shape=(self.file.size // 4,))
        places = self.offsets // 4
        lost = (self.offsets % 4 > 0) | (places + HEADER.size // 4 + 2 > len(words))
        lost[~lost] = words[places[~lost]] != np.frombuffer(MAGIC, '<u4')
        if lost.any():
            raise self.file.lost(self.offsets[lost][0])
        beyond = np.minimum(places + 2 + HEADER.size // 4, len(words) - 1)  # read if flag is set
        flag, label, first = words[places + 2], words[places + 3], words[beyond]
        labels = np.where(flag > 0, first, label).view('<f4')
        wrong = ~(labels >= 0) | (labels % 1 != 0)  # nan neither
        if wrong.any():
            where = f'{self.file.path}, key {self.keys[wrong][0]}'
            number = f'its label {labels[wrong][0]:g} is no identity'
            raise DataError(f'{where}: {number}: a whole number from 0 on')
        return labels.astype(np.int64)

    def _differ(self, what):
        return DataError(f'{self.file.path} and {self.index.name}: {what}: {TWO_SETS}')


def _read_index(path):
    """keys, sorted, and offsets (n,) int64 of a .idx file."""
    text = read_bytes(path, 'it belongs beside the .rec file')
    try:
        numbers = np.array(text.split(), np.int64).reshape(-1, 2)
    except (ValueError, OverflowError):
        known = foreign.what_it_is(text[: foreign.READ]) or 'expected lines of key and byte offset'
        raise DataError(f'{path}: {known}: fetch it again') from None
    if not len(numbers) or len(np.unique(numbers[:, 0])) < len(numbers) or numbers.min() < 0:
        raise DataError(f'{path}: empty, or a key is there twice: fetch it again')
    return numbers[np.argsort(numbers[:, 0])].T
