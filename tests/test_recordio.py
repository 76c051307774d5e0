"""The reader of .rec files, and what is refused where files disagree."""

import os

import numpy as np
import pytest
from conftest import refused
from packs import PEOPLE, Pack, header, image, with_identities, without_header

from preparation.recordio import MAGIC, RecordFile, Records


def test_records_in_parts(tmp_path):
    """A record that holds the magic is cut there, once or more; the last part may be empty."""
    pack, rng = Pack(tmp_path / 'a.rec'), np.random.default_rng(0)
    bodies = [b'', rng.bytes(21), MAGIC + rng.bytes(9), rng.bytes(8) + 2 * MAGIC + rng.bytes(5)]
    bodies += [rng.bytes(12) + MAGIC, rng.bytes(2) + MAGIC + rng.bytes(3)]
    for key, body in enumerate(bodies):
        pack.add(key, header(float(key), key) + body)
    file = RecordFile(pack.write())
    assert bytes(pack.data).count(MAGIC) > len(bodies)
    for (key, offset), body in zip(pack.index, bodies, strict=True):
        labels, data = file.record(offset)
        assert labels.tolist() == [key] and data == body


@pytest.mark.parametrize('make, first', [(with_identities, 1), (without_header, 0)])
def test_images_and_identities(tmp_path, make, first):
    """Without a header every key is an image."""
    pack = Records(make(tmp_path / 'train.rec').write(len(PEOPLE)))
    assert pack.keys.tolist() == list(range(first, first + 9))
    assert pack.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert pack.file.record(int(pack.offsets[4]))[1] == image(1, 1)
    assert pack.file.record(int(pack.offsets[8]))[1] == image(2, 3)


def no_image(person, shot):
    return b'image'


def written(path, **changes):
    return with_identities(path, no_image, **changes).write()


def indexed(change, make=with_identities):
    """What changes the lines of the index."""

    def write(path):
        index = make(path, no_image).write().with_suffix('.idx')
        index.write_text('\n'.join(change(index.read_text().splitlines())))

    return write


def counted(path):
    with_identities(path, no_image).write(classes=4)


def cut(size):
    return lambda path: os.truncate(written(path), os.path.getsize(path) - size)


def replaced(data):
    return lambda path: written(path).write_bytes(data)


def labelled(**changes):
    return lambda path: written(path, **changes)


POINTER = b'version https://git-lfs.github.com/spec/v1\n'
DISAGREE = [
    (counted, 'property: 4 identities; .*train.rec has 3'),
    (labelled(labels={4: 0}), '3 identities by the .idx, 2 by the labels'),
    (labelled(labels={1: 0.5}), 'key 1: its label 0.5 is no identity'),
    (labelled(labels={1: np.nan}), 'key 1: its label nan is no identity'),
    (labelled(first=5), r'the identity of key 5 has images \[1.0\]'),
    (indexed(lambda lines: lines[:-1]), 'keys 0 to 12, .* 10 on; the .idx has 12 keys, up to 11'),
    (indexed(lambda lines: lines + lines[-1:]), 'a key is there twice'),
    (indexed(lambda lines: ['x y']), 'expected lines of key and'),
    (indexed(lambda lines: []), 'train.idx: empty'),
    (indexed(lambda lines: [*lines[:-1], lines[-1][:-1] + '1']), 'no record at byte'),
    (lambda path: written(path).with_suffix('.idx').unlink(), 'belongs beside the .rec'),
    (cut(200), 'cut short'),
    (cut(4), 'cut short at byte'),
    (indexed(lambda lines: lines[:6], without_header), 'goes on for .* bytes after the last rec'),
    (replaced(POINTER), 'git lfs pull'),
    (replaced(b'hello'), 'not a .rec file'),
]


@pytest.mark.parametrize('change, reason', DISAGREE)
def test_what_disagrees_is_refused(tmp_path, change, reason):
    change(tmp_path / 'train.rec')
    refused(reason, Records, tmp_path / 'train.rec')
