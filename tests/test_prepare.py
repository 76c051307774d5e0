"""The whole job of prepare.py: names, ages, reports, and what is never written over."""

import os

import numpy as np
import photographs
import pytest
from conftest import ROOT, python, refused
from photographs import contents, job, needs_detector, photograph, points_csv
from PIL import Image

import meta
import prepare
from dataset import Faces
from preparation import ages
from synthesis import drawing

ODD = ['plain', 'with, comma', 'new\nline', ' space ', 'Zoë 李 🙂', 'per%cent "quote"', "it's"]
ODD += ['-dash', os.fsdecode(b'not\xff utf8')]


@pytest.fixture
def source(tmp_path):
    """People of odd names with two photographs each; the points of all in a CSV by file name."""
    rows = {}
    for k, person in enumerate(ODD):
        for shot in range(2):
            path = tmp_path / 'source' / person / f'{k}{shot}.png'
            rows[path.name] = photograph(path, seed=k, at=(100 + 9 * shot, 60))
    points_csv(tmp_path / 'points.csv', rows)
    lines = [f'{name},{20 + k}\n' for k, name in enumerate(rows)]
    (tmp_path / 'ages.csv').write_text('path,age\n' + ''.join(lines))
    return tmp_path


def one(folder, name, text=None, **options):
    """One photograph, folder/source/name, with its points and, if there is a text, its ages.csv."""
    points = photograph(folder / 'source' / name, **options)
    points_csv(folder / 'points.csv', {os.path.basename(name): points})
    if text:
        (folder / 'ages.csv').write_text(text)


def difference(path, drawn):
    """The mean difference of a face in a file from a drawn one, edges aside."""
    with Image.open(path) as face:
        return np.abs(np.asarray(face, float) - drawn)[4:-4, 4:-4].mean()


def test_every_name_survives(source, capsys):
    rows, target = job(source), source / 'target'
    assert len(rows) == 2 * len(ODD) and all(row['target'] for row in rows.values())
    faces = Faces(target, r'_|\.', 1)
    assert sorted(faces.classes) == sorted(ODD) and len(faces) == 2 * len(ODD)
    assert faces.check(cache=False) == []
    assert (target / 'plain/001_21.jpg').exists()
    assert difference(target / 'plain/000_20.jpg', drawing.draw(0, 30, 0)) < 8
    with Image.open(target / 'sheet.jpg') as sheet:
        assert sheet.size[0] > 8 * 96 and sheet.size[1] > len(ODD) * 112
    assert f"'n_cls': {len(ODD)}" in capsys.readouterr().out


def test_skipped_files_and_reasons(source, capsys):
    reasons = photographs.bad_files(source / 'source' / 'plain')
    for name in ('plain/unknown.jpg', 'nobody.jpg', '.hidden/x.jpg', 'plain/@eaDir/hidden.jpg'):
        photograph(source / 'source' / name)
    (source / 'source' / '-dash').rename(source / 'elsewhere')
    (source / 'source' / '-dash').symlink_to(source / 'elsewhere')
    (source / 'source' / 'plain' / 'back').symlink_to(source / 'source')
    reasons['back'] = 'a link to a folder that it lies in'
    rows = job(source)
    assert rows['-dash/70.png']['target'] == '-dash/000_34.jpg'  # a link is followed
    for name, reason in reasons.items():
        assert reason in rows[f'plain/{name}']['reason'] and rows[f'plain/{name}']['target'] == ''
    assert 'no age: no row for it' in rows['plain/unknown.jpg']['reason']
    assert 'no person' in rows['nobody.jpg']['reason']
    assert not [name for name in rows if 'hidden' in name]
    assert 'skipped: not an image' in capsys.readouterr().out


def test_again_and_after_a_stop_is_the_same(source):
    job(source)
    target = source / 'target'
    whole, faces = contents(target), [*target.glob('*/*.jpg')]
    times = {path: path.stat().st_mtime_ns for path in faces}
    job(source)
    assert contents(target) == whole
    assert times == {path: path.stat().st_mtime_ns for path in faces}
    # killed half-way: a row cut short, a face without a row, a file half written
    report = target / 'report.csv'
    report.write_bytes(report.read_bytes()[:-90])
    (target / 'plain' / '001_21.jpg').unlink()
    (target / 'plain' / '.001_21.jpg.12345678.tmp').write_bytes(b'half')
    job(source)
    assert contents(target) == whole
    # what is added gets another number
    points = photograph(source / 'source' / 'plain' / '!first.png', seed=0)
    with open(source / 'points.csv', 'a') as file:
        file.write(f'!first.png,{",".join(map(str, points.ravel()))}\n')
    with open(source / 'ages.csv', 'a') as file:
        file.write('!first.png,50\n')
    assert job(source)['plain/!first.png']['target'] == 'plain/002_50.jpg'
    after = contents(source / 'target')
    assert all(after[name] == data for name, data in whole.items() if name.name[0].isdigit())


def test_nothing_of_the_users_is_written_over(source):
    target = source / 'target'
    target.mkdir()
    (target / 'mine.txt').write_text('mine')
    refused('is not of prepare.py', job, source)
    (target / 'mine.txt').unlink()
    job(source)
    refused('begun with another face', job, source, '--face', 'central')
    mine, report = target / 'plain' / '001_21.jpg', target / 'report.csv'
    mine.write_bytes(b'mine')
    lines = report.read_bytes().splitlines(keepends=True)
    report.write_bytes(b''.join(line for line in lines if b'plain/001_21' not in line))
    assert 'is none of this run' in job(source)['plain/01.png']['reason']
    assert mine.read_bytes() == b'mine'
    refused('lies in', photographs.command, source / 'source', source / 'source' / 'target')
    report.write_text('a,b\n')
    refused('not a report', job, source)


def test_people_from_names_and_fgnets_own_points(tmp_path):
    """FG-NET as it comes: a folder of images, one of points; person and age in the name."""
    (tmp_path / 'points').mkdir()
    for name in ('001A02', '001A16', '002A07b'):
        path = tmp_path / 'source' / f'{name}.JPG'
        points = photograph(path, seed=int(name[:3]), age=int(name[4:6]), format='JPEG')
        marks = photographs.pts(photographs.fgnet_marks(points))
        (tmp_path / 'points' / f'{name.lower()}.pts').write_text(marks)
    job(tmp_path, '--ages', 'fgnet', '--people', 'fgnet', '--landmarks', tmp_path / 'points')
    faces = [str(path.relative_to(tmp_path / 'target')) for path in tmp_path.glob('target/*/*')]
    assert sorted(faces) == ['001/000_2.jpg', '001/001_16.jpg', '002/000_7.jpg']


@needs_detector
def test_no_face_and_many_faces(tmp_path):
    source = tmp_path / 'source' / 'someone'
    photograph(source / 'one_30.png', seed=3, at=(10, 10), size=(900, 700), times=1.2)
    Image.new('RGB', (300, 200), (90, 120, 60)).save(source / 'meadow_9.jpg')
    with Image.open(source / 'one_30.png') as image:
        image.paste(Image.fromarray(drawing.draw(5, 30, 0)).resize((288, 336)), (330, 180))
        image.save(source / 'two_30.png')
    rows = job(tmp_path, '--ages', 'plain')
    meadow, first, two = (rows[f'someone/{name}'] for name in sorted(os.listdir(source)))
    assert meadow['reason'] == 'no face found' and (first['faces'], two['faces']) == ('1', '2')
    assert int(two['eyes']) > 2 * int(first['eyes'])  # the larger face of the two


def test_estimates_fill_what_the_table_leaves_open(source, monkeypatch):
    monkeypatch.setattr(ages, 'Offline', photographs.Forty)
    (source / 'ages.csv').write_text('path,age\n00.png,77\n')
    rows = job(source, '--ages', source / 'ages.csv', 'estimate')
    found = [(row['age'], row['age_from']) for row in (rows['plain/00.png'], rows['plain/01.png'])]
    assert found == [('77', str(source / 'ages.csv')), ('40', 'estimate')]


LISTS = {'faces.csv': 'source/A/1.png,A,12\n', 'faces.txt': 'path label age\nsource/A/1.png A 12\n'}
LISTS |= {'tabs.txt': 'source/A/1.png\tAda King\t12\n'}
LISTS |= {'source/faces.csv': 'image;who;age\nA/1.png;A;12\n'}


@pytest.mark.parametrize('name', LISTS)
def test_a_list_that_training_takes_has_the_ages(tmp_path, name):
    one(tmp_path, 'A/1.png')
    (tmp_path / name).write_text(LISTS[name])
    assert Faces(tmp_path / name, '', 0).ages.tolist() == [12]
    assert job(tmp_path, '--ages', tmp_path / name)['A/1.png']['target'] == 'A/000_12.jpg'


WRONG = ['', 'a', 'a b --check demo', 'a b --ages pattern', 'a b --ages plain --dex x']
WRONG += ['a b --weights x', 'a b --workers 0', 'a b --people plain', '--check demo --keep-names']
WRONG += ['a b --keep-names --ages plain', 'a b --size 100', 'a.rec b --keep-names']
WRONG += ['a.rec b --size 112', 'a.rec b --ages plain']


def test_usage_and_one_line_on_the_command_line(tmp_path):
    for line in WRONG:
        with pytest.raises(SystemExit):
            prepare.arguments(line.split())
    done = python(tmp_path, ROOT / 'prepare.py', tmp_path / 'nowhere', tmp_path / 'target')
    assert done.returncode == 1
    assert done.stderr == f'error: {tmp_path}/nowhere: no such folder\n'
    assert not (tmp_path / 'target').exists()


def test_pattern_of_ones_own(tmp_path):
    one(tmp_path, 'A/age-41-x.png')
    job(tmp_path, '--ages', 'pattern', '--pat=-', '--pos', '1')
    assert (tmp_path / 'target/A/000_41.jpg').exists()


def kept(folder, **kinds):
    """Photographs of these names and kinds, as --keep-names takes them."""
    rows = {}
    for name, kind in kinds.items():
        rows[name] = photograph(folder / 'source' / name, seed=3, format=kind)
    points_csv(folder / 'points.csv', rows)


def test_names_kept(tmp_path, capsys):
    """Each face is where its photograph is, in the format of its suffix; in SOURCE itself too."""
    names = {'A/A_0001.jpg': 'JPEG', 'A/b/c.png': 'PNG', '001A02.JPG': 'JPEG'}
    kept(tmp_path, **names, **{'A/d.gif': 'GIF'})
    job(tmp_path, '--keep-names')
    assert 'n_cls' not in capsys.readouterr().out
    for name, kind in (names | {'A/d.jpg': 'JPEG'}).items():
        with Image.open(tmp_path / 'target' / name) as face:
            assert face.format == kind and face.size == (96, 112)
        away = difference(tmp_path / 'target' / name, drawing.draw(3, 30, 0))
        assert away < (20 if name == 'A/d.jpg' else 8)  # a GIF has few colours
    before = contents(tmp_path / 'target')
    job(tmp_path, '--keep-names')
    assert contents(tmp_path / 'target') == before
    (tmp_path / 'source/A/b/c.png').unlink()
    job(tmp_path, '--keep-names')
    assert not (tmp_path / 'target/A/b').exists()
    assert '1 removed: no longer in SOURCE' in capsys.readouterr().out


def test_names_kept_that_would_be_one(tmp_path, capsys):
    """Only JPEG's own name is written; who has to change is told, whatever came first."""
    kept(tmp_path, **{'A/a.gif': 'GIF', 'A/a.mpo': 'JPEG', 'A/b.gif': 'GIF', 'A/a.jpg': 'JPEG'})
    (tmp_path / 'source/A/a.jpg').unlink()
    made = job(tmp_path, '--keep-names')
    assert made['A/a.gif']['target'] == 'A/a.jpg' and made['A/b.gif']['target'] == 'A/b.jpg'
    assert 'would be A/a.jpg, which is that of A/a.gif: rename' in made['A/a.mpo']['reason']
    photograph(tmp_path / 'source/A/a.jpg', seed=5, format='JPEG')
    capsys.readouterr()
    made = job(tmp_path, '--keep-names')
    assert '2 faces of 1 folder(s)' in capsys.readouterr().out
    assert made['A/a.jpg']['target'] == 'A/a.jpg' and not made['A/a.gif']['target']
    assert len(list((tmp_path / 'target').glob('A/*'))) == 2


@needs_detector
def test_names_kept_where_no_face_is_found(tmp_path, capsys):
    """Benchmarks count on every image: it is cut from the middle, and the share is told."""
    (tmp_path / 'source/A').mkdir(parents=True)
    ramp = np.tile(np.arange(250, dtype=np.uint8)[:, None, None], (1, 250, 3))
    Image.fromarray(ramp).save(tmp_path / 'source/A/A_0001.png')
    rows = job(tmp_path, '--keep-names')
    assert '1 photograph(s) without a face that was found, 100.0 %' in capsys.readouterr().out
    with Image.open(tmp_path / 'target/A/A_0001.png') as face:
        means = np.asarray(face, float).mean((1, 2))
    # 112 rows are the middle 125 of 250, from row 62 on
    assert np.abs(means - (62 + (np.arange(112) + 0.5) * 125 / 112)).max() < 1
    assert rows['A/A_0001.png']['faces'] == '0'


def test_112_wide(tmp_path):
    one(tmp_path, 'Zoë/0.png', 'path,age\n0.png,20\n')
    job(tmp_path)
    job(tmp_path, '--size', '112', target='wide')
    narrow, wide = (Image.open(tmp_path / name / 'Zoë/000_20.jpg') for name in ('target', 'wide'))
    assert wide.size == (112, 112)
    assert np.abs(np.asarray(wide, float)[:, 8:-8] - np.asarray(narrow, float)).mean() < 2
    assert len(Faces(tmp_path / 'wide', r'_|\.', 1)) == 1


def test_terminals_that_are_not_utf8(tmp_path):
    """What a terminal can't show ends nothing, and in files names are as they were."""
    odd = os.fsdecode(b't\xff') + '²'
    one(tmp_path, 'Zoë/a_30.png')
    line = ['--ages', 'plain', '--landmarks', tmp_path / 'points.csv', '--workers', '1']
    line = [ROOT / 'prepare.py', tmp_path / 'source', tmp_path / odd, *line]
    for encoding in ('ascii', 'gbk'):
        environment = os.environ | {'PYTHONIOENCODING': encoding}
        done = python(tmp_path, *line, text=False, env=environment)
        assert done.returncode == 0 and done.stderr == b''
        assert b'1 faces of 1 people' in done.stdout
    assert (tmp_path / odd / 'Zoë/000_30.jpg').exists()
    assert photographs.table(tmp_path / odd)['Zoë/a_30.png']['target'] == 'Zoë/000_30.jpg'


def test_shards_where_nothing_can_be_written(tmp_path, monkeypatch):
    photograph(tmp_path / 'faces/A/0_30.png', size=(9, 9))
    entry = {'train_root': str(tmp_path / 'faces'), 'val_root': None, 'pat': r'_|\.', 'pos': 1}
    monkeypatch.setattr(meta, 'mine', entry | {'n_cls': 1}, raising=False)
    (tmp_path / 'file').write_text('')
    line = '--shards', 'mine', tmp_path / 'file/x'
    refused('(Not a directory|File exists): TARGET names shards', photographs.command, *line)
