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


def test_a_good_set_is_nothing_to_talk_of(train, drawn):
    val = listed(drawn / 'val')
    assert check_ages(train) == check_ages(val) == check_validation(train, val) == []


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


def test_a_leak_is_counted_and_named(train, tmp_path):
    """New images of known people are a closed set; those of the training among them are said."""
    val = people(tmp_path / 'val', {'p00000': [3, 4], 'p00001': [5, 6]})
    assert check_validation(train, val) == []
    shutil.copy(train.path(0), tmp_path / 'val' / 'p00000' / 'renamed_9.jpg')
    val = listed(tmp_path / 'val')
    (notice,) = check_validation(train, val)
    assert '1 of 5 images are in ' in notice and 'renamed_9.jpg' in notice


def test_a_leak_under_another_name(train, tmp_path):
    """One photograph of another person of train_root among a person's own."""
    people(tmp_path / 'val', {'new': [3, 4], 'newer': [5, 6]})
    shutil.copy(train.path(len(train) - 1), tmp_path / 'val' / 'new' / 'renamed_9.jpg')
    (notice,) = check_validation(train, listed(tmp_path / 'val'))
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


def test_a_set_is_known_again_wherever_it_lies(drawn, tmp_path):
    val = listed(drawn / 'val')
    shutil.copytree(drawn / 'val', tmp_path / 'moved')
    moved = listed(tmp_path / 'moved')
    paths = [[faces.path(k) for k in range(len(faces))] for faces in (val, moved)]
    first, second, other = map(set_checks.fingerprint, (*paths, paths[0][:1]))
    assert first == second != other


ALONE = [(dict(new=[3, 40, 50]), 'one person')]
ALONE += [(dict(a=[3], b=[4], c=[5]), 'one image of each person')]


@pytest.mark.parametrize('ages, message', ALONE)
def test_nothing_can_be_measured(train, tmp_path, ages, message):
    with pytest.raises(DataError, match=f'{message}: .* takes two, so nothing can be measured'):
        check_validation(train, people(tmp_path / 'val', ages))
    known = {f'p0000{number}': years for number, years in enumerate(ages.values())}
    (notice,) = check_validation(train, people(tmp_path / 'known', known))
    assert message in notice and 'only closed-set accuracy' in notice


def test_ages_that_are_all_equal_or_nearly(tmp_path):
    (notice,) = check_ages(people(tmp_path / 'all', {'a': [30, 30], 'b': [30]}))
    assert 'every face is of age 30' in notice and "'pat' and 'pos'" in notice
    (notice,) = check_ages(people(tmp_path / 'most', {'a': [30] * 19, 'b': [30] * 12 + [31]}))
    assert '31 of 32 faces are of age 30' in notice and "'pat' and 'pos'" in notice


@pytest.mark.parametrize('first', [0, 1])
def test_the_number_of_the_picture_is_no_age(tmp_path, first):
    counts = dict(a=4, b=3, c=2, d=4, e=1)
    numbers = {name: range(first, first + count) for name, count in counts.items()}
    (notice,) = check_ages(people(tmp_path / 'numbers', numbers))
    assert 'the ages of 4 people' in notice and 'number of the picture' in notice


def test_numbers_of_pictures_with_gaps_or_from_later_on(tmp_path):
    for name, first, ages in (
        ('same', 0, dict(a=[0, 1, 3], b=[0, 1, 3], c=[0, 1, 3])),
        ('other', 0, dict(a=[0, 1, 2, 3], b=[0, 2, 3], c=[1, 2, 3], d=[0, 1])),
        ('from 2', 2, dict(a=[2, 3, 4], b=[2, 3, 4], c=[2, 3, 4])),
        ('from 10', 10, dict(a=range(10, 14), b=range(10, 14), c=range(10, 14), d=[10, 11])),
    ):
        (notice,) = check_ages(people(tmp_path / name, ages))
        assert f'count up from {first}: is the number of the picture' in notice


def test_a_counter_over_the_set_is_no_age(tmp_path):
    ages = {name: range(8 * place, 8 * place + 8) for place, name in enumerate('abcd')}
    (notice,) = check_ages(people(tmp_path / 'whole', ages))
    assert 'the ages of all 32 faces count up from 0' in notice
    ages = {name: [age for age in years if age % 5] for name, years in ages.items()}
    (notice,) = check_ages(people(tmp_path / 'gaps', ages))
    assert 'the ages of all 25 faces count up from 1' in notice


MAY_BE = [dict(a=[20, 21], b=[20, 21], c=[20, 21]), dict(a=[1, 3, 5], b=[1, 4, 8], c=[1, 2, 7])]
MAY_BE += [dict(a=range(20, 24), b=range(40, 44), c=range(30, 34)), dict(a=[0, 1], b=[0, 2])]
MAY_BE += [dict(a=range(0, 12, 2), b=range(1, 13, 2)), dict(a=[30] * 9 + [31], b=[30] * 9 + [50])]
MAY_BE += [dict(a=[0, 1, 2], b=[3, 4, 5]), dict(a=[1, 2], b=[1, 1]), dict(a=[0], b=[1])]
MAY_BE += [dict(a=[0, 1, 2]), dict(a=[20, 21], b=[30, 31])]


@pytest.mark.parametrize('ages', MAY_BE)
def test_ages_that_may_well_be_ages(tmp_path, ages):
    assert check_ages(people(tmp_path, ages)) == []
