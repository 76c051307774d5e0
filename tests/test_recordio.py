"""The reader of .rec files, and what is refused where files disagree."""

import numpy as np
import pytest
from packs import PEOPLE, Pack, header, image, with_identities, without_header

from preparation.recordio import MAGIC, RecordFile, Records
from utils import DataError


@pytest.fixture
def source(tmp_path):
    return with_identities(tmp_path / 'train.rec').write(len(PEOPLE))


def test_records_in_parts(tmp_path):
    """A record that holds the magic is cut there, once or more; the last part may be empty."""
    pack, rng = Pack(tmp_path / 'a.rec'), np.random.default_rng(0)
    bodies = [
        rng.bytes(21),
        MAGIC + rng.bytes(9),
        rng.bytes(8) + 2 * MAGIC + rng.bytes(5),
        rng.bytes(12) + MAGIC,
        rng.bytes(2) + MAGIC + rng.bytes(3),
        b'',
    ]
    for key, body in enumerate(bodies):
        pack.add(key, header(float(key), key) + body)
    file = RecordFile(pack.write())
    assert bytes(pack.data).count(MAGIC) > len(bodies)
    for (key, offset), body in zip(pack.index, bodies, strict=True):
        labels, data = file.record(offset)
        assert labels.tolist() == [key] and data == body


def test_images_and_identities(source):
    pack = Records(source)
    assert pack.keys.tolist() == list(range(1, 10))
    assert pack.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert pack.file.record(int(pack.offsets[4]))[1] == image(1, 1)


def test_without_the_header_every_key_is_an_image(tmp_path):
    pack = Records(without_header(tmp_path / 'train.rec').write())
    assert pack.keys.tolist() == list(range(9))
    assert pack.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert pack.file.record(int(pack.offsets[8]))[1] == image(2, 3)


def no_image(person, shot):
    return b'image'


def written(path, **changes):
    return with_identities(path, no_image, **changes).write()


def edit_index(path, change):
    file = written(path).with_suffix('.idx')
    file.write_text('\n'.join(change(file.read_text().splitlines())))


def cut_index(path, lines):
    """Of a pack without records of identities, the first lines of the .idx."""
    index = without_header(path, no_image).write().with_suffix('.idx')
    index.write_text('\n'.join(index.read_text().splitlines()[:lines]))


DISAGREE = {
    'another property': (
        lambda path: with_identities(path, no_image).write(classes=4),
        'property: 4 identities; .*train.rec has 3',
    ),
    'a label of another': (
        lambda path: written(path, labels={4: 0}),
        '3 identities by the .idx, 2 by the labels',
    ),
    'half a label': (
        lambda path: written(path, labels={1: 0.5}),
        'key 1: its label 0.5 is no identity',
    ),
    'another header': (
        lambda path: written(path, first=5),
        r'the identity of key 5 has images \[1.0\]',
    ),
    'a line less': (
        lambda path: edit_index(path, lambda lines: lines[:-1]),
        'keys 0 to 12, identities from 10 on; the .idx has 12 keys, up to 11',
    ),
    'a key twice': (
        lambda path: edit_index(path, lambda lines: lines + lines[-1:]),
        'a key is there twice',
    ),
    'no numbers': (
        lambda path: edit_index(path, lambda lines: ['x y']),
        'expected lines of key and',
    ),
    'an empty index': (lambda path: edit_index(path, lambda lines: []), 'train.idx: empty'),
    'an offset between': (
        lambda path: edit_index(path, lambda lines: [*lines[:-1], lines[-1][:-1] + '1']),
        'no record at byte',
    ),
    'no index': (
        lambda path: written(path).with_suffix('.idx').unlink(),
        'belongs beside the .rec',
    ),
    'a cut file': (lambda path: written(path).write_bytes(path.read_bytes()[:200]), 'cut short'),
    'a cut record': (
        lambda path: written(path).write_bytes(path.read_bytes()[:-4]),
        'cut short at byte',
    ),
    'lines less, without identities': (
        lambda path: cut_index(path, 6),
        'goes on for .* bytes after the last record that train',
    ),
    'no number for a label': (
        lambda path: written(path, labels={1: np.nan}),
        'key 1: its label nan is no identity',
    ),
    'a pointer': (
        lambda path: written(path).write_text('version https://git-lfs.github.com/spec/v1\n'),
        'git lfs pull',
    ),
    'another file': (lambda path: written(path).write_bytes(b'hello'), 'not a .rec file'),
}


@pytest.mark.parametrize('case', DISAGREE)
def test_what_disagrees_is_refused(tmp_path, case):
    change, reason = DISAGREE[case]
    change(tmp_path / 'train.rec')
    with pytest.raises(DataError, match=reason):
        Records(tmp_path / 'train.rec')
