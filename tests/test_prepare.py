"""The whole job of prepare.py and its report."""

import os

import numpy as np
import pytest
from conftest import ROOT, python
from photographs import (
    Forty,
    bad_files,
    command,
    contents,
    fgnet_marks,
    job,
    needs_detector,
    photograph,
    points_csv,
    pts,
    table,
)
from PIL import Image

import prepare
from dataset import Faces
from preparation import conversion
from preparation.source import find, numbered
from synthesis import drawing
from utils import UserError

ODD = [
    'plain',
    'with, comma',
    'new\nline',
    ' space ',
    'Zoë 李 🙂',
    'per%cent "quote"',
    "it's",
    '-dash',
    os.fsdecode(b'not\xff utf8'),
]


@pytest.fixture
def source(tmp_path):
    """People of odd names with two photographs each; the points of all in a CSV by file name."""
    rows = {}
    for k, person in enumerate(ODD):
        for shot in range(2):
            rows[f'{k}{shot}.png'] = photograph(
                tmp_path / 'source' / person / f'{k}{shot}.png', seed=k, at=(100 + 9 * shot, 60)
            )
    points_csv(tmp_path / 'points.csv', rows)
    (tmp_path / 'ages.csv').write_text(
        'path,age\n' + ''.join(f'{name},{20 + k}\n' for k, name in enumerate(rows))
    )
    return tmp_path


def test_every_name_survives(source, capsys):
    rows = job(source)
    assert len(rows) == 2 * len(ODD) and all(row['target'] for row in rows.values())
    faces = Faces(source / 'target', r'_|\.', 1)
    assert (
        sorted(faces.classes) == sorted(ODD)
        and len(faces) == 2 * len(ODD)
        and faces.check(cache=False) == []
    )
    assert (source / 'target' / 'plain' / '000_20.jpg').exists() and (
        source / 'target' / 'plain' / '001_21.jpg'
    ).exists()
    drawn = drawing.draw(0, 30, 0)
    assert (
        np.abs(
            faces.read(
                [faces.source.name(place) for place in faces.places].index('plain/000_20.jpg')
            ).astype(float)
            - drawn
        )[4:-4, 4:-4].mean()
        < 8
    )
    with Image.open(source / 'target' / 'sheet.jpg') as sheet:
        assert sheet.size[0] > 8 * 96 and sheet.size[1] > len(ODD) * 112
    assert f"'n_cls': {len(ODD)}" in capsys.readouterr().out


def test_skipped_files_and_reasons(source, capsys):
    reasons = bad_files(source / 'source' / 'plain')
    photograph(source / 'source' / 'plain' / 'unknown.jpg')
    photograph(source / 'source' / 'nobody.jpg')
    photograph(source / 'source' / '.hidden' / 'x.jpg')
    rows = job(source)
    for name, reason in reasons.items():
        assert reason in rows[f'plain/{name}']['reason'] and rows[f'plain/{name}']['target'] == ''
    assert (
        'no age: no row for it' in rows['plain/unknown.jpg']['reason']
        and 'no person' in rows['nobody.jpg']['reason']
    )
    assert not [name for name in rows if 'hidden' in name]
    assert 'skipped: not an image' in capsys.readouterr().out


def test_again_and_after_a_stop_is_the_same(source):
    job(source)
    whole = contents(source / 'target')
    times = {
        path: path.stat().st_mtime_ns
        for path in (source / 'target').rglob('*.jpg')
        if path.name != 'sheet.jpg'
    }
    job(source)
    assert contents(source / 'target') == whole and all(
        path.stat().st_mtime_ns == time for path, time in times.items()
    )
    # killed half-way: a row cut short, a face without a row, a file half written
    report = source / 'target' / 'report.csv'
    report.write_bytes(report.read_bytes()[:-90])
    (source / 'target' / 'plain' / '001_21.jpg').unlink()
    (source / 'target' / 'plain' / '.001_21.jpg.12345678.tmp').write_bytes(b'half')
    job(source)
    assert contents(source / 'target') == whole


def test_what_is_added_gets_another_number(source):
    job(source)
    before = contents(source / 'target')
    points = photograph(source / 'source' / 'plain' / '!first.png', seed=0)
    with open(source / 'points.csv', 'a') as file:
        file.write(f'!first.png,{",".join(map(str, points.ravel()))}\n')
    with open(source / 'ages.csv', 'a') as file:
        file.write('!first.png,50\n')
    rows = job(source)
    assert rows['plain/!first.png']['target'] == 'plain/002_50.jpg'
    assert all(
        contents(source / 'target')[name] == data
        for name, data in before.items()
        if name.name[0].isdigit()
    )


def test_nothing_of_the_users_is_written_over(source):
    target = source / 'target'
    target.mkdir()
    (target / 'mine.txt').write_text('mine')
    with pytest.raises(UserError, match='is not of prepare.py'):
        job(source)
    (target / 'mine.txt').unlink()
    job(source)
    with pytest.raises(UserError, match='begun with another face'):
        job(source, '--face', 'central')
    mine = target / 'plain' / '001_21.jpg'
    mine.write_bytes(b'mine')
    report = (target / 'report.csv').read_text(errors='surrogateescape').splitlines(keepends=True)
    (target / 'report.csv').write_text(
        ''.join(line for line in report if '001_21' not in line or 'plain' not in line),
        errors='surrogateescape',
    )
    assert (
        'is none of this run' in job(source)['plain/01.png']['reason']
        and mine.read_bytes() == b'mine'
    )
    with pytest.raises(UserError, match='lies in'):
        command(source / 'source', source / 'source' / 'target')
    (target / 'report.csv').write_text('a,b\n')
    with pytest.raises(UserError, match='not a report'):
        job(source)


def test_people_from_names_and_fgnets_own_points(tmp_path):
    """FG-NET as it comes: a folder of images, one of points; person and age in the name."""
    (tmp_path / 'points').mkdir()
    for name, case in (('001A02', '001a02'), ('001A16', '001a16'), ('002A07b', '002a07b')):
        points = photograph(
            tmp_path / 'images' / f'{name}.JPG',
            seed=int(name[:3]),
            age=int(name[4:6]),
            format='JPEG',
            quality=95,
        )
        (tmp_path / 'points' / f'{case}.pts').write_text(pts(fgnet_marks(points)))
    command(
        tmp_path / 'images',
        tmp_path / 'target',
        '--ages',
        'fgnet',
        '--people',
        'fgnet',
        '--landmarks',
        tmp_path / 'points',
    )
    assert sorted(
        str(path.relative_to(tmp_path / 'target'))
        for path in (tmp_path / 'target').rglob('*_*.jpg')
    ) == ['001/000_2.jpg', '001/001_16.jpg', '002/000_7.jpg']


@needs_detector
def test_no_face_and_many_faces(tmp_path):
    source = tmp_path / 'source' / 'someone'
    source.mkdir(parents=True)
    Image.new('RGB', (300, 200), (90, 120, 60)).save(source / 'meadow_9.jpg')
    photograph(source / 'one_30.png', seed=3, at=(10, 10), size=(900, 700), times=1.2)
    with Image.open(source / 'one_30.png') as image:
        image.paste(Image.fromarray(drawing.draw(5, 30, 0)).resize((288, 336)), (330, 180))
        image.save(source / 'two_30.png')
    command(tmp_path / 'source', tmp_path / 'target', '--ages', 'plain')
    rows = table(tmp_path / 'target')
    assert rows['someone/meadow_9.jpg']['reason'] == 'no face found'
    assert rows['someone/one_30.png']['faces'] == '1' and rows['someone/two_30.png']['faces'] == '2'
    eyes = {name: int(row['eyes']) for name, row in rows.items() if row['eyes']}
    assert eyes['someone/two_30.png'] > 2 * eyes['someone/one_30.png']  # the larger face of the two


def test_estimates_fill_what_the_table_leaves_open(source, monkeypatch):
    monkeypatch.setattr(conversion, 'Offline', Forty)
    (source / 'ages.csv').write_text('path,age\n00.png,77\n')
    rows = job(source, '--ages', source / 'ages.csv', 'estimate')
    assert (rows['plain/00.png']['age'], rows['plain/00.png']['age_from']) == (
        '77',
        str(source / 'ages.csv'),
    )
    assert (rows['plain/01.png']['age'], rows['plain/01.png']['age_from']) == ('40', 'estimate')


def test_birth_and_exif_give_the_age(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = '2001:02:03 04:05:06'
    points = photograph(tmp_path / 'source' / 'A' / '1.jpg', exif=exif)
    points_csv(tmp_path / 'points.csv', {'1.jpg': points})
    (tmp_path / 'ages.csv').write_text('person,birth\nA,1980-02-03\n')
    assert job(tmp_path)['A/1.jpg']['age'] == '21'


def test_several_processes_write_what_one_does(source):
    job(source)
    alone = contents(source / 'target')
    command(
        source / 'source',
        source / 'other',
        '--landmarks',
        source / 'points.csv',
        '--ages',
        source / 'ages.csv',
        '--workers',
        '2',
    )
    assert {
        name: data for name, data in contents(source / 'other').items() if name.suffix == '.jpg'
    } == {name: data for name, data in alone.items() if name.suffix == '.jpg'}


@pytest.mark.parametrize(
    'line',
    [
        [],
        ['a'],
        ['a', 'b', '--check', 'demo'],
        ['a', 'b', '--ages', 'pattern'],
        ['a', 'b', '--ages', 'plain', '--dex', 'x'],
        ['a', 'b', '--weights', 'x'],
        ['a', 'b', '--workers', '0'],
        ['a', 'b', '--people', 'plain'],
    ],
)
def test_usage(line):
    with pytest.raises(SystemExit):
        prepare.arguments(line)


def test_pattern_of_ones_own(tmp_path):
    points = photograph(tmp_path / 'source' / 'A' / 'age-41-x.png')
    points_csv(tmp_path / 'points.csv', {'age-41-x.png': points})
    command(
        tmp_path / 'source',
        tmp_path / 'target',
        '--landmarks',
        tmp_path / 'points.csv',
        '--ages',
        'pattern',
        '--pat',
        '-',
        '--pos',
        '1',
    )
    assert (tmp_path / 'target' / 'A' / '000_41.jpg').exists()


def test_one_line_on_the_command_line(tmp_path):
    done = python(tmp_path, ROOT / 'prepare.py', tmp_path / 'nowhere', tmp_path / 'target')
    assert done.returncode == 1
    assert done.stderr == f'error: {tmp_path}/nowhere: no such folder\n'
    assert not (tmp_path / 'target').exists()


def test_numbers_stay(tmp_path):
    (tmp_path / 'A').mkdir()
    for name in 'bc':
        (tmp_path / 'A' / name).write_bytes(b'')
    first = numbered(find(tmp_path, 'folder'), {})
    assert [(item.relative, item.number) for item in first] == [('A/b', 0), ('A/c', 1)]
    (tmp_path / 'A' / 'a').write_bytes(b'')
    later = numbered(find(tmp_path, 'folder'), {'A/b': ('A', 0)})
    assert {item.relative: item.number for item in later} == {'A/a': 1, 'A/b': 0, 'A/c': 2}
