"""The same command again: TARGET follows SOURCE, its names and tables, and nothing else."""

import os
import shutil

import pytest
from conftest import refused
from photographs import job, photograph, points_csv
from PIL import Image

AGES = {'a': 20, 'b': 30, 'c': 40}


@pytest.fixture
def source(tmp_path):
    """One person of three photographs, their points and their ages."""
    files = [tmp_path / f'source/A/{name}.png' for name in AGES]
    rows = {file.name: photograph(file, seed=k) for k, file in enumerate(files)}
    points_csv(tmp_path / 'points.csv', rows)
    write_ages(tmp_path)
    job(tmp_path)
    return tmp_path


def write_ages(folder, **changes):
    rows = ''.join(
        f'A/{name}.png,{age}\n' for name, age in (AGES | changes).items() if age is not None
    )
    (folder / 'ages.csv').write_text('path,age\n' + rows)


def faces(folder):
    return sorted(path.name for path in (folder / 'target/A').iterdir())


def test_an_age_that_is_corrected_or_known_no_longer(source, capsys):
    face = (source / 'target/A/001_30.jpg').read_bytes()
    write_ages(source, b=63)
    rows = job(source)
    assert '1 renamed: another age is known now' in capsys.readouterr().out
    assert faces(source) == ['000_20.jpg', '001_63.jpg', '002_40.jpg']
    assert (source / 'target/A/001_63.jpg').read_bytes() == face
    assert rows['A/b.png']['age'] == '63'
    job(source)
    assert 'renamed' not in capsys.readouterr().out
    # killed between a rename and the report
    os.rename(source / 'target/A/001_63.jpg', source / 'target/A/001_64.jpg')
    write_ages(source, b=64)
    job(source)
    assert faces(source) == ['000_20.jpg', '001_64.jpg', '002_40.jpg']
    write_ages(source, b=None)
    job(source)
    printed = capsys.readouterr().out
    assert '1 removed: no age is known any longer' in printed
    assert '1 skipped: no age: no row for it' in printed
    assert faces(source) == ['000_20.jpg', '002_40.jpg']


def test_a_withdrawn_photograph_and_the_last_of_a_person(source, capsys):
    (source / 'source/A/b.png').unlink()
    rows = job(source)
    printed = capsys.readouterr().out
    assert '2 faces of 1 people' in printed and '1 removed: no longer in SOURCE' in printed
    assert faces(source) == ['000_20.jpg', '002_40.jpg']
    assert set(rows) == {'A/a.png', 'A/c.png'}
    photograph(source / 'source/B/d.png', seed=3)
    shutil.rmtree(source / 'source/A')
    with open(source / 'points.csv', 'a') as file:
        file.write((source / 'points.csv').read_text().splitlines()[1].replace('a.png', 'd.png'))
    (source / 'ages.csv').write_text('path,age\nB/d.png,50\n')
    job(source)
    assert not (source / 'target/A').exists() and (source / 'target/B/000_50.jpg').exists()


def test_another_photograph_of_the_same_name_and_corrected_points(source, capsys):
    before = [path.read_bytes() for path in sorted((source / 'target/A').iterdir())]
    photograph(source / 'source/A/b.png', seed=7)
    head, first, *rest = (source / 'points.csv').read_text().splitlines()
    name, x, *others = first.split(',')
    first = ','.join([name, f'{float(x) + 9:.3f}', *others])
    (source / 'points.csv').write_text('\n'.join([head, first, *rest]))
    job(source)
    assert '2 to be made anew' in capsys.readouterr().out
    assert faces(source) == ['000_20.jpg', '001_30.jpg', '002_40.jpg']
    after = [path.read_bytes() for path in sorted((source / 'target/A').iterdir())]
    assert [a == b for a, b in zip(before, after, strict=True)] == [False, False, True]


def test_what_somebody_else_changed_stays(source, capsys):
    (source / 'target/A/001_30.jpg').write_bytes(b'mine')
    Image.new('RGB', (96, 112)).save(source / 'target/A/900_50.jpg')
    (source / 'source/A/b.png').unlink()
    job(source)
    printed = capsys.readouterr().out
    assert 'changed since they were written: left where they are' in printed
    assert '2 image(s) in' in printed and 'A/001_30.jpg, A/900_50.jpg' in printed
    assert (source / 'target/A/001_30.jpg').read_bytes() == b'mine'
    assert (source / 'target/A/900_50.jpg').exists()


def test_people_that_are_not_of_this_run_are_told(source, capsys):
    for name in ('Foreign/000_12.jpg', 'Foreign/deeper/001_13.jpg', 'here_14.jpg'):
        (source / 'target' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (96, 112)).save(source / 'target' / name)
    job(source)
    printed = capsys.readouterr().out
    assert '2 image(s) in' in printed and 'here_14' not in printed
    assert 'Foreign/000_12.jpg, Foreign/deeper/001_13.jpg' in printed
    assert "2 identities with them, and 'n_cls': 1 below is without" in printed


def test_a_name_that_is_taken(source):
    """The age is corrected, but a file of the user's has the new name: it stays."""
    (source / 'target/A/001_63.jpg').write_bytes(b'mine')
    write_ages(source, b=63)
    rows = job(source)
    assert (source / 'target/A/001_63.jpg').read_bytes() == b'mine'
    assert not (source / 'target/A/001_30.jpg').exists()
    assert 'is none of this run' in rows['A/b.png']['reason']


def test_ages_that_mean_nothing_are_told(source, capsys):
    write_ages(source, a=30, c=30)
    job(source)
    assert 'Beware: ' in (printed := capsys.readouterr().out)
    assert 'every face is of age 30' in printed


def test_a_table_of_corrections_is_added(source):
    """What was asked before is still asked; a source that is left out needs another TARGET."""
    (source / 'fix.csv').write_text('path,age\nA/b.png,63\n')
    job(source, '--ages', source / 'fix.csv', source / 'ages.csv')
    assert faces(source) == ['000_20.jpg', '001_63.jpg', '002_40.jpg']
    refused('begun with another ages', job, source)
