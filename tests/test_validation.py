"""Sets whose figures would mean nothing are said or refused before training."""

import os
import shutil

import pytest
from conftest import listed, refused
from test_images import encoded

from evaluation import set_checks
from evaluation.set_checks import check_ages, check_list, check_validation
from preparation.sharding import write_shards
from utils import DataError


@pytest.fixture
def train(drawn):
    return listed(drawn / 'train')


def people(root, ages):
    """A folder of people of these ages, {name: ages}."""
    for name, years in ages.items():
        for number, age in enumerate(years):
            path = root / name / f'{number:03d}_{age}.jpg'
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded())
    return listed(root)


def test_a_good_set_is_nothing_to_talk_of_and_known_again_wherever_it_lies(train, drawn, tmp_path):
    val = listed(drawn / 'val')
    assert check_ages(train) == check_ages(val) == check_validation(train, val) == []
    val = listed(drawn / 'val')
    shutil.copytree(drawn / 'val', tmp_path / 'moved')
    moved = listed(tmp_path / 'moved')
    paths = [[faces.path(k) for k in range(len(faces))] for faces in (val, moved)]
    first, second, other = map(set_checks.fingerprint, (*paths, paths[0][:1]))
    assert first == second != other


@pytest.mark.parametrize('way', ['same', 'link', 'copy', 'shards', 'part', 'renamed'])
def test_val_root_is_train_root(train, tmp_path, way):
    root, val = train.root, tmp_path / 'val'
    if way == 'same':
        val = os.path.relpath(root)
    elif way == 'link':
        os.symlink(root, val)
    elif way == 'shards':
        val = write_shards(train, val)
    elif way == 'copy':
        shutil.copytree(root, val, copy_function=shutil.copyfile)  # with times of their own
    elif way == 'renamed':
        for name in train.classes:
            shutil.copytree(f'{root}/{name}', val / f'other-{name}')
    else:
        shutil.copytree(f'{root}/p00003', val / 'p00003')
    with pytest.raises(DataError, match='val_root is train_root|images are in .*train too'):
        check_validation(train, listed(val))


@pytest.mark.parametrize('names', [('p00000', 'p00001'), ('new', 'newer')])
def test_a_leak_is_counted_and_named(train, tmp_path, names):
    """New images of known people, a closed set, or of others; those of the training among them are
    said."""
    val = people(tmp_path / 'val', dict(zip(names, ([3, 4], [5, 6]), strict=True)))
    assert check_validation(train, val) == []
    shutil.copy(train.path(0), tmp_path / 'val' / names[0] / 'renamed_9.jpg')
    val = listed(tmp_path / 'val')
    (notice,) = check_validation(train, val)
    assert '1 of 5 images are in ' in notice and 'renamed_9.jpg' in notice


def test_a_list_of_pairs_is_held_against_the_training_images(train, drawn, tmp_path):
    val = listed(drawn / 'val')
    paths = [val.path(index) for index in range(len(val))]
    assert check_list(train, 'list', paths, paths) == []
    there = train.path(0)
    copy = tmp_path / 'elsewhere' / 'a.jpg'
    copy.parent.mkdir()
    shutil.copy(there, copy)
    (notice,) = check_list(train, 'list', [*paths, str(copy)], [*paths, str(copy)])
    assert f'list: 1 of {len(paths) + 1} images of the list are in ' in notice
    assert 'elsewhere/a.jpg' in notice
    data = [open(path, 'rb').read() for path in paths]
    (notice,) = check_list(train, 'a.bin', paths, [*data[1:], copy.read_bytes()])
    assert 'a.bin: 1 of ' in notice
    images, people = check_list(train, 'list', [*paths, there], [*paths, there])
    assert '1 of 7 people of the list are in ' in people and images != people
    refused('list: all 1 images of the list are in ', check_list, train, 'list', [there], [there])


ALONE = [(dict(new=[3, 40, 50]), 'one person')]
ALONE += [(dict(a=[3], b=[4], c=[5]), 'one image of each person')]


@pytest.mark.parametrize('ages, message', ALONE)
def test_nothing_can_be_measured(train, tmp_path, ages, message):
    with pytest.raises(DataError, match=f'{message}: .* takes two, so nothing can be measured'):
        check_validation(train, people(tmp_path / 'val', ages))
    known = {f'p0000{number}': years for number, years in enumerate(ages.values())}
    (notice,) = check_validation(train, people(tmp_path / 'known', known))
    assert message in notice and 'only closed-set accuracy' in notice


PAT = "'pat' and 'pos'"
NUMBER = 'count up from {}: is the number of the picture'
SUSPECT = [(dict(a=[30, 30], b=[30]), ('every face is of age 30', PAT))]
SUSPECT += [(dict(a=[30] * 19, b=[30] * 12 + [31]), ('31 of 32 faces are of age 30', PAT))]
for first in (0, 1):
    counts = dict(a=4, b=3, c=2, d=4, e=1)
    numbers = {name: range(first, first + count) for name, count in counts.items()}
    SUSPECT += [(numbers, ('the ages of 4 people', 'number of the picture'))]
SUSPECT += [(dict(a=[0, 1, 3], b=[0, 1, 3], c=[0, 1, 3]), (NUMBER.format(0),))]
SUSPECT += [(dict(a=[0, 1, 2, 3], b=[0, 2, 3], c=[1, 2, 3], d=[0, 1]), (NUMBER.format(0),))]
SUSPECT += [(dict(a=[2, 3, 4], b=[2, 3, 4], c=[2, 3, 4]), (NUMBER.format(2),))]
SUSPECT += [(dict.fromkeys('abc', range(10, 14)) | {'d': [10, 11]}, (NUMBER.format(10),))]
COUNTER = {name: range(8 * place, 8 * place + 8) for place, name in enumerate('abcd')}
GAPS = {name: [age for age in ages if age % 5] for name, ages in COUNTER.items()}
SUSPECT += [(COUNTER, ('the ages of all 32 faces count up from 0',))]
SUSPECT += [(GAPS, ('the ages of all 25 faces count up from 1',))]


@pytest.mark.parametrize('ages, said', SUSPECT)
def test_ages_that_are_hardly_ages(tmp_path, ages, said):
    """All equal or nearly; the number of the picture, with gaps or from later on; a counter over
    the set."""
    (notice,) = check_ages(people(tmp_path, ages))
    assert all(part in notice for part in said)


MAY_BE = [dict(a=[20, 21], b=[20, 21], c=[20, 21]), dict(a=[1, 3, 5], b=[1, 4, 8], c=[1, 2, 7])]
MAY_BE += [dict(a=range(20, 24), b=range(40, 44), c=range(30, 34)), dict(a=[0, 1], b=[0, 2])]
MAY_BE += [dict(a=range(0, 12, 2), b=range(1, 13, 2)), dict(a=[30] * 9 + [31], b=[30] * 9 + [50])]
MAY_BE += [dict(a=[0, 1, 2], b=[3, 4, 5]), dict(a=[1, 2], b=[1, 1]), dict(a=[0], b=[1])]
MAY_BE += [dict(a=[0, 1, 2]), dict(a=[20, 21], b=[30, 31])]


@pytest.mark.parametrize('ages', MAY_BE)
def test_ages_that_may_well_be_ages(tmp_path, ages):
    assert check_ages(people(tmp_path, ages)) == []
