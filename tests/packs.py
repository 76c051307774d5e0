"""InsightFace's .rec files, written as MXNet writes them."""

import io
import struct

import numpy as np
from PIL import Image

from preparation.recordio import MAGIC
from synthesis import drawing

PEOPLE = [3, 2, 4]  # images of each


def image(person, number, wide=True):
    """An encoded face, 112 wide or 96."""
    face = np.pad(drawing.draw(person, 20 + 9 * number, number), ((0, 0), (8, 8), (0, 0)), 'edge')
    file = io.BytesIO()
    Image.fromarray(face if wide else face[:, 8:-8]).save(file, 'JPEG', quality=95)
    return file.getvalue()


def header(labels, key):
    """IRHeader: one label stands in it, several behind it."""
    if np.isscalar(labels):
        return struct.pack('<IfQQ', 0, labels, key, 0)
    return struct.pack('<IfQQ', len(labels), 0, key, 0) + np.asarray(labels, '<f4').tobytes()


class Pack:
    """Writes a .rec file and its .idx, as MXNet's writer does."""

    def __init__(self, path):
        self.path, self.data, self.index = path, bytearray(), []

    def add(self, key, data):
        """A record; where its data hold the magic at a multiple of four, it is cut there."""
        self.index.append((key, len(self.data)))
        cuts = [at for at in range(0, len(data) - 3, 4) if data[at : at + 4] == MAGIC]
        starts, ends = [0, *(at + 4 for at in cuts)], [*cuts, len(data)]
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            flag = 0 if not cuts else 1 if not number else 3 if end == len(data) else 2
            part = data[start:end]
            self.data += MAGIC + struct.pack('<I', flag << 29 | len(part)) + part
            self.data += bytes(-len(part) % 4)

    def write(self, classes=None):
        self.path.write_bytes(self.data)
        lines = [f'{key}\t{at}\n' for key, at in self.index]
        self.path.with_suffix('.idx').write_text(''.join(lines))
        if classes is not None:
            (self.path.parent / 'property').write_text(f'{classes},112,112')
        return self.path


def with_identities(path, images=image, people=PEOPLE, first=None, labels=None):
    """A pack as InsightFace's: record 0, the images, a record an identity."""
    pack, count = Pack(path), sum(people)
    pack.add(0, header([first or count + 1, count + 1 + len(people)], 0))
    key, ranges = 1, []
    for person, number in enumerate(people):
        ranges.append((key, key + number))
        for shot in range(number):
            pack.add(key, header((labels or {}).get(key, person), key) + images(person, shot))
            key += 1
    for start, end in ranges:
        pack.add(key, header([start, end], key))
        key += 1
    return pack


def without_header(path, images=image):
    pack, keys = Pack(path), iter(range(99))
    for person, number in enumerate(PEOPLE):
        for shot in range(number):
            key = next(keys)
            # some packs have two labels, of which the first is the identity
            pack.add(key, header(person if key % 2 else [person, 7], key) + images(person, shot))
    return pack
