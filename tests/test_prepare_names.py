"""Folders and names as people have them; names kept, and faces of 112 columns."""

import os

import numpy as np
import pytest
from conftest import ROOT, python
from photographs import command, contents, job, needs_detector, photograph, points_csv, table
from PIL import Image

import prepare
from dataset import Faces
from storage.images import kinds
from synthesis import drawing

PEOPLE = ['plain', 'Zoë 李']


@pytest.fixture
def source(tmp_path):
    """Two people with a photograph each; their points and ages."""
    rows = {
        f'{k}.png': photograph(tmp_path / 'source' / person / f'{k}.png', seed=k)
        for k, person in enumerate(PEOPLE)
    }
    points_csv(tmp_path / 'points.csv', rows)
    (tmp_path / 'ages.csv').write_text('path,age\n0.png,20\n1.png,30\n')
    return tmp_path


def test_folders_and_files_of_the_system_are_nobodys(source):
    for name in ('@eaDir', '__MACOSX', 'lost+found', '$RECYCLE.BIN', '.AppleDouble'):
        photograph(source / 'source' / name / '0.png')
        photograph(source / 'source/plain' / name / '0.png')
    photograph(source / 'source/plain/._0.png')
    assert len(job(source)) == 2
    assert sorted(path.name for path in (source / 'target').iterdir() if path.is_dir()) == sorted(
        PEOPLE
    )


def test_links_to_folders(tmp_path):
    """They are followed; one that leads to a folder above it has its row instead."""
    points = photograph(tmp_path / 'elsewhere/deeper/a_30.png')
    (tmp_path / 'source/A').mkdir(parents=True)
    (tmp_path / 'source/B').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'source/A/back').symlink_to(tmp_path / 'source')
    points_csv(tmp_path / 'points.csv', {'a_30.png': points})
    command(
        tmp_path / 'source',
        tmp_path / 'target',
        '--ages',
        'plain',
        '--landmarks',
        tmp_path / 'points.csv',
    )
    rows = table(tmp_path / 'target')
    assert rows['B/deeper/a_30.png']['target'] == 'B/000_30.jpg'
    assert rows['A/back']['reason'] == 'a link to a folder that it lies in'


@pytest.mark.parametrize(
    'suffix, kind',
    [
        ('jfif', 'JPEG'),
        ('jpe', 'JPEG'),
        ('gif', 'GIF'),
        ('avif', 'AVIF'),
        ('JPG', 'JPEG'),
        ('webp', 'WEBP'),
    ],
)
def test_suffixes(tmp_path, suffix, kind):
    if kind not in kinds():
        pytest.skip(f'no {kind} here')
    points = photograph(tmp_path / f'source/A/a_30.{suffix}', format=kind)
    points_csv(tmp_path / 'points.csv', {f'a_30.{suffix}': points})
    command(
        tmp_path / 'source',
        tmp_path / 'target',
        '--ages',
        'plain',
        '--landmarks',
        tmp_path / 'points.csv',
    )
    assert (tmp_path / 'target/A/000_30.jpg').exists()


def test_names_kept(tmp_path, capsys):
    """Each face is where its photograph is, in the format of its suffix; files in SOURCE itself
    too."""
    names = {'A/A_0001.jpg': 'JPEG', 'A/b/c.png': 'PNG', '001A02.JPG': 'JPEG', 'A/d.gif': 'GIF'}
    rows = {
        name: photograph(tmp_path / 'source' / name, seed=3, format=kind)
        for name, kind in names.items()
    }
    line = [
        tmp_path / 'source',
        tmp_path / 'target',
        '--keep-names',
        '--landmarks',
        points_csv(tmp_path / 'points.csv', rows),
    ]
    command(*line)
    assert 'n_cls' not in capsys.readouterr().out
    drawn = drawing.draw(3, 30, 0).astype(float)
    for name, kind in {
        'A/A_0001.jpg': 'JPEG',
        'A/b/c.png': 'PNG',
        '001A02.JPG': 'JPEG',
        'A/d.jpg': 'JPEG',
    }.items():
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


def test_names_kept_that_would_be_one(tmp_path, capsys):
    """Only JPEG's own name is written; who has to change is told, whatever came first."""
    rows = {
        name: photograph(tmp_path / 'source' / name, seed=3, format=kind)
        for name, kind in {'A/a.gif': 'GIF', 'A/a.mpo': 'JPEG', 'A/b.gif': 'GIF'}.items()
    }
    rows['A/a.jpg'] = rows['A/a.gif']
    line = [
        tmp_path / 'source',
        tmp_path / 'target',
        '--keep-names',
        '--landmarks',
        points_csv(tmp_path / 'points.csv', rows),
    ]
    command(*line)
    made = table(tmp_path / 'target')
    assert made['A/a.gif']['target'] == 'A/a.jpg' and made['A/b.gif']['target'] == 'A/b.jpg'
    assert made['A/a.mpo']['reason'] == (
        'its face would be A/a.jpg, which is that of A/a.gif: rename one of the two'
    )
    photograph(tmp_path / 'source/A/a.jpg', seed=5, format='JPEG')
    capsys.readouterr()
    command(*line)
    assert '2 faces of 1 folder(s)' in capsys.readouterr().out
    made = table(tmp_path / 'target')
    assert made['A/a.jpg']['target'] == 'A/a.jpg' and not made['A/a.gif']['target']
    assert len(list((tmp_path / 'target').glob('A/*'))) == 2
    # releases before had a row of the same face for each
    report = tmp_path / 'target/report.csv'
    whole = contents(tmp_path / 'target')
    row = next(line for line in report.read_text().splitlines() if line.startswith('A/a.jpg'))
    text = report.read_text().splitlines()
    report.write_text('\n'.join([text[0], row.replace('A/a.jpg', 'A/a.gif', 1), *text[2:]]) + '\n')
    command(*line)
    assert contents(tmp_path / 'target') == whole


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
    assert np.abs(rows - (62 + (np.arange(112) + 0.5) * 125 / 112)).max() < 1
    assert table(tmp_path / 'target')['A/A_0001.png']['faces'] == '0'


def test_112_wide(source):
    """The same face with 8 columns more on either side."""
    job(source)
    command(
        source / 'source',
        source / 'wide',
        '--landmarks',
        source / 'points.csv',
        '--ages',
        source / 'ages.csv',
        '--size',
        '112',
    )
    for narrow in (source / 'target').glob('*/*.jpg'):
        with (
            Image.open(narrow) as face,
            Image.open(source / 'wide' / narrow.relative_to(source / 'target')) as wide,
        ):
            assert wide.size == (112, 112)
            assert np.abs(np.asarray(wide, float)[:, 8:-8] - np.asarray(face, float)).mean() < 2
    assert len(Faces(source / 'wide', r'_|\.', 1)) == 2


@pytest.mark.parametrize(
    'line',
    [
        ['a', 'b', '--keep-names', '--ages', 'plain'],
        ['--check', 'demo', '--keep-names'],
        ['a', 'b', '--size', '100'],
        ['a.rec', 'b', '--keep-names'],
        ['a.rec', 'b', '--size', '112'],
        ['a.rec', 'b', '--ages', 'plain'],
    ],
)
def test_usage_of_sizes_and_names(line):
    with pytest.raises(SystemExit):
        prepare.arguments(line)


def test_terminals_that_are_not_utf8(tmp_path):
    """What a terminal can't show ends nothing, and in files names are as they were."""
    odd = os.fsdecode(b't\xff') + '²'
    points = photograph(tmp_path / 'source/Zoë/a_30.png')
    points_csv(tmp_path / 'points.csv', {'a_30.png': points})
    for encoding in ('ascii', 'gbk', 'cp1251'):
        done = python(
            tmp_path,
            ROOT / 'prepare.py',
            tmp_path / 'source',
            tmp_path / odd,
            '--ages',
            'plain',
            '--landmarks',
            tmp_path / 'points.csv',
            '--workers',
            '1',
            text=False,
            env=os.environ | {'PYTHONIOENCODING': encoding},
        )
        assert done.returncode == 0 and done.stderr == b''
        assert b'1 faces of 1 people' in done.stdout
    assert (tmp_path / odd / 'Zoë/000_30.jpg').exists()
