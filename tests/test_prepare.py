"""The whole job of prepare.py and its report."""
import os

import numpy as np
import pytest
from conftest import ROOT, python
from photographs import (
    Forty,
    bad_files,
    command,
    fgnet_marks,
    needs_detector,
    photograph,
    points_csv,
    pts,
    table,
)
from PIL import Image

import prepare
import synthetic
from dataset import Faces
from preparation import conversion
from preparation.source import find, numbered
from storage.images import kinds
from utils import UserError

ODD = [
    'plain', 'with, comma', 'new\nline', ' space ', 'Zoë 李 🙂', 'per%cent "quote"', "it's",
    '-dash', os.fsdecode(b'not\xff utf8')
]


@pytest.fixture
def source(tmp_path):
    """People of odd names with two photographs each; the points of all in a CSV by file name."""
    rows = {}
    for k, person in enumerate(ODD):
        for shot in range(2):
            rows[f'{k}{shot}.png'] = photograph(tmp_path / 'source' / person / f'{k}{shot}.png',
                                                seed=k, at=(100 + 9 * shot, 60))
    points_csv(tmp_path / 'points.csv', rows)
    (tmp_path / 'ages.csv').write_text('path,age\n' + ''.join(f'{name},{20 + k}\n'
                                                              for k, name in enumerate(rows)))
    return tmp_path


def job(folder, *more):
    command(folder / 'source', folder / 'target', '--landmarks', folder / 'points.csv', '--ages',
            folder / 'ages.csv', *more)
    return table(folder / 'target')


def test_every_name_survives(source, capsys):
    rows = job(source)
    assert len(rows) == 2 * len(ODD) and all(row['target'] for row in rows.values())
    faces = Faces(source / 'target', r'_|\.', 1)
    assert sorted(faces.classes) == sorted(ODD) and len(faces) == 2 * len(ODD) and faces.check(
        cache=False) == []
    assert (source / 'target' / 'plain' / '000_20.jpg').exists() and (source / 'target' / 'plain'
                                                                      / '001_21.jpg').exists()
    drawn = synthetic.draw(0, 30, 0)
    assert np.abs(
        faces.read([faces.source.name(place)
                    for place in faces.places].index('plain/000_20.jpg')).astype(float)
        - drawn)[4:-4, 4:-4].mean() < 8
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
    assert 'no age: no row for it' in rows['plain/unknown.jpg']['reason'] and 'no person' in rows[
        'nobody.jpg']['reason']
    assert not [name for name in rows if 'hidden' in name]
    assert 'skipped: not an image' in capsys.readouterr().out


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob('*'))
        if path.is_file() and path.name != '.lock'
    }


def test_again_and_after_a_stop_is_the_same(source):
    job(source)
    whole = contents(source / 'target')
    times = {
        path: path.stat().st_mtime_ns
        for path in (source / 'target').rglob('*.jpg')
        if path.name != 'sheet.jpg'
    }
    job(source)
    assert contents(source / 'target') == whole and all(path.stat().st_mtime_ns == time
                                                        for path, time in times.items())
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
        if name.name[0].isdigit())


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
        errors='surrogateescape')
    assert 'is none of this run' in job(
        source)['plain/01.png']['reason'] and mine.read_bytes() == b'mine'
    with pytest.raises(UserError, match='lies in'):
        command(source / 'source', source / 'source' / 'target')
    (target / 'report.csv').write_text('a,b\n')
    with pytest.raises(UserError, match='not a report'):
        job(source)


def test_people_from_names_and_fgnets_own_points(tmp_path):
    """FG-NET as it comes: a folder of images, one of points; person and age in the name."""
    (tmp_path / 'points').mkdir()
    for name, case in (('001A02', '001a02'), ('001A16', '001a16'), ('002A07b', '002a07b')):
        points = photograph(tmp_path / 'images' / f'{name}.JPG', seed=int(name[:3]), age=int(
            name[4:6]), format='JPEG', quality=95)
        (tmp_path / 'points' / f'{case}.pts').write_text(pts(fgnet_marks(points)))
    command(tmp_path / 'images', tmp_path / 'target', '--ages', 'fgnet', '--people', 'fgnet',
            '--landmarks', tmp_path / 'points')
    assert sorted(
        str(path.relative_to(tmp_path / 'target'))
        for path in (tmp_path / 'target').rglob('*_*.jpg')) == [
            '001/000_2.jpg', '001/001_16.jpg', '002/000_7.jpg'
        ]


@needs_detector
def test_no_face_and_many_faces(tmp_path):
    source = tmp_path / 'source' / 'someone'
    source.mkdir(parents=True)
    Image.new('RGB', (300, 200), (90, 120, 60)).save(source / 'meadow_9.jpg')
    photograph(source / 'one_30.png', seed=3, at=(10, 10), size=(900, 700), times=1.2)
    with Image.open(source / 'one_30.png') as image:
        image.paste(Image.fromarray(synthetic.draw(5, 30, 0)).resize((288, 336)), (330, 180))
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
    assert (rows['plain/00.png']['age'],
            rows['plain/00.png']['age_from']) == ('77', str(source / 'ages.csv'))
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
    command(source / 'source', source / 'other', '--landmarks', source / 'points.csv', '--ages',
            source / 'ages.csv', '--workers', '2')
    assert {
        name: data
        for name, data in contents(source / 'other').items()
        if name.suffix == '.jpg'
    } == {
        name: data
        for name, data in alone.items()
        if name.suffix == '.jpg'
    }


@pytest.mark.parametrize('line',
                         [[], ['a'], ['a', 'b', '--check', 'demo'], ['a', 'b', '--ages', 'pattern'],
                          ['a', 'b', '--ages', 'plain', '--dex', 'x'], ['a', 'b', '--weights', 'x'],
                          ['a', 'b', '--workers', '0'], ['a', 'b', '--people', 'plain']])
def test_usage(line):
    with pytest.raises(SystemExit):
        prepare.arguments(line)


def test_pattern_of_ones_own(tmp_path):
    points = photograph(tmp_path / 'source' / 'A' / 'age-41-x.png')
    points_csv(tmp_path / 'points.csv', {'age-41-x.png': points})
    command(tmp_path / 'source', tmp_path / 'target', '--landmarks', tmp_path / 'points.csv',
            '--ages', 'pattern', '--pat', '-', '--pos', '1')
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


def test_folders_and_files_of_the_system_are_nobodys(source):
    for name in ('@eaDir', '__MACOSX', 'lost+found', '$RECYCLE.BIN', '.AppleDouble'):
        photograph(source / 'source' / name / '00.png')
        photograph(source / 'source/plain' / name / '00.png')
    photograph(source / 'source/plain/._00.png')
    assert len(job(source)) == 2 * len(ODD)
    assert sorted(path.name for path in (source / 'target').iterdir() if path.is_dir()) == sorted(
        ODD)


def test_links_to_folders(tmp_path):
    """They are followed; one that leads to a folder above it has its row instead."""
    points = photograph(tmp_path / 'elsewhere/deeper/a_30.png')
    (tmp_path / 'source/A').mkdir(parents=True)
    (tmp_path / 'source/B').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'source/A/back').symlink_to(tmp_path / 'source')
    points_csv(tmp_path / 'points.csv', {'a_30.png': points})
    command(tmp_path / 'source', tmp_path / 'target', '--ages', 'plain', '--landmarks',
            tmp_path / 'points.csv')
    rows = table(tmp_path / 'target')
    assert rows['B/deeper/a_30.png']['target'] == 'B/000_30.jpg'
    assert rows['A/back']['reason'] == 'a link to a folder that it lies in'


@pytest.mark.parametrize('suffix, kind', [('jfif', 'JPEG'), ('jpe', 'JPEG'), ('gif', 'GIF'),
                                          ('avif', 'AVIF'), ('JPG', 'JPEG'), ('webp', 'WEBP')])
def test_suffixes(tmp_path, suffix, kind):
    if kind not in kinds():
        pytest.skip(f'no {kind} here')
    points = photograph(tmp_path / f'source/A/a_30.{suffix}', format=kind)
    points_csv(tmp_path / 'points.csv', {f'a_30.{suffix}': points})
    command(tmp_path / 'source', tmp_path / 'target', '--ages', 'plain', '--landmarks',
            tmp_path / 'points.csv')
    assert (tmp_path / 'target/A/000_30.jpg').exists()


def test_names_kept(tmp_path, capsys):
    """Each face is where its photograph is, in the format of its suffix; files in SOURCE itself
    too."""
    names = {'A/A_0001.jpg': 'JPEG', 'A/b/c.png': 'PNG', '001A02.JPG': 'JPEG', 'A/d.gif': 'GIF'}
    rows = {name: photograph(tmp_path / 'source' / name, seed=3, format=kind)
            for name, kind in names.items()}
    line = [tmp_path / 'source', tmp_path / 'target', '--keep-names', '--landmarks',
            points_csv(tmp_path / 'points.csv', rows)]
    command(*line)
    assert 'n_cls' not in capsys.readouterr().out
    drawn = synthetic.draw(3, 30, 0).astype(float)
    for name, kind in {'A/A_0001.jpg': 'JPEG', 'A/b/c.png': 'PNG', '001A02.JPG': 'JPEG',
                       'A/d.jpg': 'JPEG'}.items():
        with Image.open(tmp_path / 'target' / name) as face:
            assert face.format == kind and face.size == (96, 112)
            if name != 'A/d.jpg':  # a GIF has few colours
                assert np.abs(np.asarray(face, float) - drawn)[4:-4, 4:-4].mean() < 8
    before = contents(tmp_path / 'target')
    command(*line)
    assert contents(tmp_path / 'target') == before
    (tmp_path / 'source/A/b/c.png').unlink()
    command(*line)
    assert not (tmp_path / 'target/A/b').exists()
    assert '1 removed: no longer in SOURCE' in capsys.readouterr().out


@needs_detector
def test_names_kept_where_no_face_is_found(tmp_path, capsys):
    """Benchmarks count on every image: it is cut from the middle, and the share is told."""
    (tmp_path / 'source/A').mkdir(parents=True)
    ramp = np.tile(np.arange(250, dtype=np.uint8)[:, None, None], (1, 250, 3))
    Image.fromarray(ramp).save(tmp_path / 'source/A/A_0001.png')
    command(tmp_path / 'source', tmp_path / 'target', '--keep-names')
    assert '1 photograph(s) without a face that was found, 100.0 %' in capsys.readouterr().out
    with Image.open(tmp_path / 'target/A/A_0001.png') as face:
        rows = np.asarray(face, float).mean((1, 2))
    # 112 rows are the middle 125 of 250, from row 62 on
    assert np.abs(rows - (62 + (np.arange(112) + .5) * 125 / 112)).max() < 1
    assert table(tmp_path / 'target')['A/A_0001.png']['faces'] == '0'


def test_112_wide(source):
    """The same face with 8 columns more on either side."""
    job(source)
    command(source / 'source', source / 'wide', '--landmarks', source / 'points.csv', '--ages',
            source / 'ages.csv', '--size', '112')
    for narrow in (source / 'target').glob('*/*.jpg'):
        with Image.open(narrow) as face, \
                Image.open(source / 'wide' / narrow.relative_to(source / 'target')) as wide:
            assert wide.size == (112, 112)
            assert np.abs(np.asarray(wide, float)[:, 8:-8] - np.asarray(face, float)).mean() < 2
    assert len(Faces(source / 'wide', r'_|\.', 1)) == 2 * len(ODD)


@pytest.mark.parametrize('line', [['a', 'b', '--keep-names', '--ages', 'plain'],
                                  ['--check', 'demo', '--keep-names'], ['a', 'b', '--size', '100'],
                                  ['a.rec', 'b', '--keep-names'], ['a.rec', 'b', '--size', '112'],
                                  ['a.rec', 'b', '--ages', 'plain']])
def test_usage_of_sizes_and_names(line):
    with pytest.raises(SystemExit):
        prepare.arguments(line)


def test_terminals_that_are_not_utf8(tmp_path):
    """Names that a terminal can't show are told by their numbers, in files they are as they were.
    """
    odd = os.fsdecode(b't\xff') + '²'
    points = photograph(tmp_path / 'source/Zoë/a_30.png')
    points_csv(tmp_path / 'points.csv', {'a_30.png': points})
    for encoding in ('ascii', 'gbk', 'cp1251'):
        done = python(
            tmp_path, ROOT / 'prepare.py', tmp_path / 'source', tmp_path / odd, '--ages', 'plain',
            '--landmarks', tmp_path / 'points.csv', '--workers', '1', text=False,
            env=os.environ | {'PYTHONIOENCODING': encoding})
        assert done.returncode == 0 and done.stderr == b''
        assert b'1 faces of 1 people' in done.stdout
    assert (tmp_path / odd / 'Zoë/000_30.jpg').exists()
