"""InsightFace's training sets: train.rec, its train.idx and, where it is there, `property`.

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
from pathlib import Path

import numpy as np

from system import foreign
from system.progress import progress
from utils import DataError

MAGIC = struct.pack('<I', 0xCED7230A)
WHOLE, FIRST, MIDDLE, LAST = range(4)  # the part flags
HEADER = struct.Struct('<IfQQ')


class RecordFile:
    """A .rec file, read by byte offset. Raises DataError where it is none."""

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        try:
            self.file = open(path, 'rb', buffering=0)
        except OSError as error:
            raise DataError(f'{path}: {error.strerror}') from None
        self.size = os.fstat(self.file.fileno()).st_size
        head = os.pread(self.file.fileno(), foreign.READ, 0)
        if not head.startswith(MAGIC):
            raise DataError(
                f'{path}: {foreign.what_it_is(head) or "not a .rec file of InsightFace"}'
            )

    def data(self, offset: int) -> bytes:
        """The data of the record that begins at `offset`. Raises DataError where there is none."""
        return self._read(offset)[0]

    def end(self, offset: int) -> int:
        """The byte at which the record that begins at `offset` ends. Raises DataError."""
        return self._read(offset)[1]

    def _read(self, offset):
        parts, flag = [], None
        while flag not in (WHOLE, LAST):
            head = os.pread(self.file.fileno(), 8, offset)
            if len(head) < 8 or head[:4] != MAGIC:
                raise DataError(
                    f'{self.path}: no record at byte {offset} of {self.size}, where '
                    'the .idx has one: cut short, or of another download: '
                    'fetch both again'
                )
            before, (length,) = flag, struct.unpack('<I', head[4:])
            flag, length = length >> 29, length & (1 << 29) - 1
            if flag > LAST or (flag in (WHOLE, FIRST)) != (before is None):
                raise DataError(f'{self.path}: damaged at byte {offset}: fetch it again')
            parts.append(os.pread(self.file.fileno(), length, offset + 8))
            if len(parts[-1]) < length:
                raise DataError(f'{self.path}: cut short at byte {self.size}: fetch it again')
            offset += 8 + length + -length % 4
        return MAGIC.join(parts), offset

    def record(self, offset: int) -> tuple[np.ndarray, bytes]:
        """The labels (k,) float32, k ≥ 1, and the image's bytes of the record at `offset`."""
        data = self.data(offset)
        if len(data) < HEADER.size:
            raise DataError(f'{self.path}: the record at byte {offset} is too short for its header')
        flag, label, _, _ = HEADER.unpack_from(data)
        if not flag:
            return np.float32([label]), data[HEADER.size :]
        start = HEADER.size + 4 * flag
        if len(data) < start:
            raise DataError(
                f'{self.path}: the record at byte {offset} is too short for its {flag} labels'
            )
        return np.frombuffer(data[HEADER.size : start], '<f4'), data[start:]


def identity_of(labels: np.ndarray, where: str) -> int:
    """The identity, a whole number from 0 on, that an image's labels begin with. DataError."""
    label = float(labels[0])
    if not (label >= 0 and label.is_integer()):  # nan neither
        raise DataError(f'{where}: its label {label:g} is no identity: a whole number from 0 on')
    return int(label)


class Records:
    """The images of a .rec file: where each is, and whose.

    keys, offsets, labels   (n,) int64: the keys of the .idx, byte offsets, identities
    Where the pack has records of identities, labels come from them, and `read` holds each image's
    own label against them. Raises DataError where file, .idx, identities and `property` disagree.
    """

    def __init__(self, path: str | os.PathLike):
        self.file, index = RecordFile(path), Path(path).with_suffix('.idx')
        keys, offsets = _read_index(index)
        if offsets.max() >= self.file.size:
            raise DataError(
                f'{path}: {self.file.size} bytes, but {index.name} has a record at '
                f'byte {offsets.max()}: cut short, or of another download: '
                'fetch both again'
            )
        end = self.file.end(int(offsets.max()))  # the last one is whole
        labels, image = self.file.record(int(offsets[0]))
        if keys[0] == 0 and not image:
            self.keys, self.labels = self._identities(keys, offsets, labels, index)
            self.offsets = offsets[self.keys]
        else:
            # records of identities tell of all keys; here only the file's end does
            if end < self.file.size:
                raise DataError(
                    f'{path} goes on for {self.file.size - end} bytes after the last '
                    f'record that {index.name} has: the .idx is cut short, or of '
                    'another download: fetch both again'
                )
            self.keys, self.offsets = keys, offsets
            self.labels = self._labels_of_each()
        self._check_property(Path(path).with_name('property'))

    def __len__(self) -> int:
        return len(self.keys)

    def _labels_of_each(self):
        numbers = progress(
            range(len(self.keys)), f'listing {self.file.path}', len(self.keys), unit=' records'
        )
        return np.array(
            [self._label(int(self.offsets[number]), int(self.keys[number])) for number in numbers]
        )

    def _label(self, offset, key):
        return identity_of(self.file.record(offset)[0], f'{self.file.path}, key {key}')

    def _identities(self, keys, offsets, labels, index):
        """The keys of the images and their identities, by the records of the identities.

        `labels` are those of record 0.
        """
        name = f'{self.file.path} and {index.name}'
        if len(labels) != 2:
            raise DataError(f'{self.file.path}: record 0 has {len(labels)} labels; expected 2')
        first, end = map(int, labels.tolist())
        if not 1 < first < end or not np.array_equal(keys, np.arange(end)):
            raise DataError(
                f'{name}: record 0 tells of keys 0 to {end - 1}, identities from '
                f'{first} on; {index.name} has {len(keys)} keys, up to {keys[-1]}: '
                'they are of two downloads, or one is cut short: fetch both again'
            )
        owner = np.full(first, -1)
        for key in range(first, end):
            labels = self.file.record(int(offsets[key]))[0]
            start, stop = map(int, labels.tolist()) if len(labels) == 2 else (0, 0)
            if not 1 <= start < stop <= first or (owner[start:stop] >= 0).any():
                raise DataError(
                    f'{name}: the identity of key {key} has images {labels.tolist()}, '
                    f'which are not its own among 1 to {first - 1}: fetch both again'
                )
            owner[start:stop] = self._label(int(offsets[start]), start)
        if (owner[1:] < 0).any():
            raise DataError(
                f'{name}: the image of key {1 + int(np.argmin(owner[1:]))} is of no '
                'identity: fetch both again'
            )
        people = len(np.unique(owner[1:]))
        if people != end - first:
            raise DataError(
                f'{name}: {end - first} identities by the .idx, {people} by the labels '
                'of their images: they are of two sets: fetch both again'
            )
        return np.arange(1, first), owner[1:]

    def _check_property(self, path):
        try:
            classes = int(path.read_text().split(',')[0])
        except (OSError, ValueError):
            return  # not every pack has it
        people = len(np.unique(self.labels))
        if classes != people:
            raise DataError(
                f'{path}: {classes} identities; {self.file.path} has {people}: '
                'they are of two sets: fetch both again'
            )


def _read_index(path):
    """keys, sorted, and offsets (n,) int64 of a .idx file."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}: it belongs beside the .rec file') from None
    if what := foreign.what_it_is(text[: foreign.READ]):
        raise DataError(f'{path}: {what}')
    try:
        numbers = np.array(text.split(), np.int64).reshape(-1, 2)
    except ValueError:
        raise DataError(f'{path}: expected lines of key and byte offset: fetch it again') from None
    if not len(numbers) or len(np.unique(numbers[:, 0])) < len(numbers) or numbers.min() < 0:
        raise DataError(f'{path}: empty, or a key is there twice: fetch it again')
    return numbers[np.argsort(numbers[:, 0])].T
