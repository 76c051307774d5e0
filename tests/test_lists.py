"""Lists as people have them: each kind is read to the right pairs, or refused in one clear line."""

import os
import unicodedata

import numpy as np
import pytest
from conftest import refused
from PIL import Image

from evaluation import protocols
from evaluation.pair_files import write_pairs
from evaluation.pairs import Pairs, check_pairs, gap_pairs

NAMES = [f'p{k}/{image}.jpg' for k in range(10) for image in 'ab']


@pytest.fixture
def faces(tmp_path):
    """A folder of ten people, two images each."""
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new('RGB', (96, 112)).save(tmp_path / name)
    return tmp_path


def rows(true='1', false='0', cut=' ', order=(0, 1, 2)):
    """Ten pairs of one person, ten of two, as lines."""
    found = []
    for k in range(10):
        found.append((true, f'p{k}/a.jpg', f'p{k}/b.jpg'))
        found.append((false, f'p{k}/a.jpg', f'p{(k + 1) % 10}/b.jpg'))
    return '\n'.join(cut.join(row[i] for i in order) for row in found) + '\n'


def right(listed, root):
    names, two = [os.path.relpath(source, root) for source in listed.sources], listed.pairs[:2]
    two = [[names[i] for i in pair] for pair in zip(*two, strict=True)]
    expected = [line.split()[1:] for line in rows().splitlines()]
    return two == expected and listed.pairs.same.tolist() == [True, False] * 10


REVERSED = rows(cut=',', order=(1, 2, 0))
QUOTES = ''.join('{} "{}" "{}"\n'.format(*line.split()) for line in rows().splitlines())
KINDS = [rows(cut=cut) for cut in (' ', '\t', ',', ', ', ';', '  ')]  # spaces, tabs, commas
KINDS += [rows().replace('\n', end) for end in ('\r\n', '\r', '\n\n ')]  # ends of lines
KINDS += ['\ufeff' + rows(), rows().encode('utf-16'), b'\xfe\xff' + rows().encode('utf-16-be')]
KINDS += [rows('1.0', '0.0'), rows('True', 'False'), rows('1', '-1'), rows('+1', '-1')]
KINDS += [rows(order=(1, 2, 0)), REVERSED, REVERSED.replace('\n', ', \n')]
KINDS += [rows(cut=',').replace('\n', ',\n'), rows().replace('\n', ' ,\n')]  # a comma at the end
KINDS += ['label path1 path2\n' + rows(), 'same,image_a,image_b\n' + rows(cut=',')]  # with titles
KINDS += ['# mine, 2 kinds\n' + rows(), rows().replace('/', '\\'), QUOTES]


@pytest.mark.parametrize('data', KINDS)
def test_a_list_of_every_kind(faces, data):
    (faces / 'list').write_bytes(data if isinstance(data, bytes) else data.encode())
    assert right(protocols.pair_list(faces / 'list'), faces)


def test_names_with_spaces_between_tabs_quotes_or_commas(faces):
    (faces / 'p0').rename(faces / 'Anna Maria')
    for text in (rows(cut='\t'), rows(cut=','), QUOTES):
        (faces / 'list').write_text(text.replace('p0/', 'Anna Maria/'))
        listed = protocols.pair_list(faces / 'list')
        assert all(map(os.path.exists, listed.sources)) and len(listed.pairs.same) == 20
    (faces / 'list').write_text(rows().replace('p0/', 'Anna Maria/'))
    refused('line 1: .*names with spaces need tabs', protocols.pair_list, faces / 'list')


@pytest.mark.parametrize('listed, there', [('NFC', 'NFD'), ('NFD', 'NFC')])
def test_names_in_the_other_unicode_form(faces, listed, there):
    folder, image = 'Zoë', 'é.jpg'
    (faces / 'p0').rename(faces / unicodedata.normalize(there, folder))
    old = faces / unicodedata.normalize(there, folder)
    (old / 'a.jpg').rename(old / unicodedata.normalize(there, image))
    text = rows().replace('p0/a.jpg', f'{folder}/{image}').replace('p0/', f'{folder}/')
    (faces / 'list').write_text(unicodedata.normalize(listed, text), encoding='utf-8')
    assert all(map(os.path.exists, protocols.pair_list(faces / 'list').sources))


def test_home_is_expanded_and_one_missing_image_is_not_the_folder(faces, monkeypatch):
    monkeypatch.setenv('HOME', str(faces))
    (faces / 'elsewhere').mkdir()
    (faces / 'elsewhere' / 'list').write_text(rows().replace('p', '~/p').replace('j~/p', 'jp'))
    assert right(protocols.pair_list('~/elsewhere/list'), faces)
    (faces / 'list').write_text('1 gone/a.jpg gone/b.jpg\n' + rows())
    listed = protocols.pair_list(faces / 'list')
    assert sum(map(os.path.exists, listed.sources)) == 20 and len(listed.sources) == 22


@pytest.mark.parametrize('head, per_fold, folds', [('2\t3', 3, 2), ('10 1', 1, 10), ('7', 7, 1)])
def test_a_list_of_ones_own_in_the_format_of_lfw(faces, head, per_fold, folds):
    for name in NAMES:
        person, image = name.split('/')
        (faces / name).rename(faces / person / f'{person}_{"ab".index(image[0]) + 1:04d}.jpg')
    block = [f'p{k}\t1\t2' for k in range(per_fold)]
    block += [f'p{k}\t1\tp{k + 1}\t2' for k in range(per_fold)]
    (faces / 'mine.txt').write_text('\n'.join([head, *block * folds]))
    listed = protocols.pair_list(faces / 'mine.txt')
    assert listed.pairs.same.tolist() == ([True] * per_fold + [False] * per_fold) * folds
    if folds > 1:
        assert listed.pairs.fold.tolist() == np.repeat(np.arange(folds), 2 * per_fold).tolist()
    assert all(map(os.path.exists, listed.sources))
    (faces / 'pairs.txt').write_text('5\t300\n' + '\n'.join(block))
    refused('read by the benchmark `pairs`', protocols.lfw, faces)


@pytest.mark.parametrize('folder', ['lfw', 'lfw_funneled', 'lfw-deepfunneled/lfw-deepfunneled'])
def test_lfw_as_its_archive_unpacks(tmp_path, folder):
    (tmp_path / 'pairs.txt').write_text('1\t1\nA\t1\t2\nA\t1\tB\t1\n')
    (tmp_path / folder / 'A').mkdir(parents=True)
    Image.new('RGB', (250, 250)).save(tmp_path / folder / 'A' / 'A_0001.jpg')
    for path in (tmp_path, tmp_path / folder.partition('/')[0]):  # the list is in it, or beside it
        assert os.path.exists(protocols.lfw(path, 1, 1).sources[0])


NO_LISTS = [(b'', 'empty'), (b'# nothing\n', 'no pair in it'), (b'PK\3\4\0\0', 'no text file')]
NO_LISTS += [(rows().encode('utf-16-le'), 'no text file'), (b'1 a.jpg\n', 'line 1')]
NO_LISTS += [(b'1 p0/a.jpg p0/b.jpg\n3 p0/a.jpg p0/b.jpg\n', 'line 2')]
NO_LISTS += [(b'label a b\nlabel a b\n', 'no pair'), (b'2\n1 a\n', 'expected 4')]


WRONG = {
    'yes,p0/a.jpg,p0/b.jpg': "line 1: .*first column, 'yes', and in the last, 'p0/b.jpg'",
    'p0/a.jpg p0/b.jpg same': "first column, 'p0/a.jpg', and in the last, 'same': expected",
    '1|p0/a.jpg|p0/b.jpg': r"not at '\|': expected `label pathA pathB`",
    '1 | p0/a.jpg | p0/b.jpg': r"not at '\|'",
    '0,1,p0/a.jpg,p0/b.jpg': "first, '0', seems to be an index: write the list without it",
    '7,p0/a.jpg,p0/b.jpg,0': "first, '7', seems to be an index",
    '1 p0/a.jpg p0/b.jpg young': "fourth column, 'young', is no number of a fold",
    'p0/a.jpg': r'1 column\(s\): expected',
}


def test_what_is_wrong_with_a_list_or_a_line_is_said(faces):
    for data, why in NO_LISTS:
        (faces / 'list').write_bytes(data)
        assert refused(why, protocols.pair_list, faces / 'list').startswith(str(faces))
    for line, why in WRONG.items():
        (faces / 'list').write_text(line + '\n' + rows(cut=','))
        refused(why, protocols.pair_list, faces / 'list')


def pairs(*two, same):
    left, right = np.array(two).T
    return Pairs(left, right, np.array(same, bool), np.arange(len(two)))


TELL_NOTHING = [
    (pairs((0, 1), (2, 2), same=[1, 0]), r'itself \(1 of 2 pairs; the first is c and c'),
    (pairs((0, 1), (0, 2), (1, 0), same=[1, 0, 0]), r'different people \(2 of 3 .* a and b'),
    (pairs((0, 1), (0, 2), same=[1, 1]), 'all 2 pairs are of one person'),
    (pairs((0, 1), (0, 2), same=[0, 0]), 'all 2 pairs are of different people'),
]


def test_pairs_that_tell_nothing_are_refused_and_written_ones_read_back(tmp_path):
    for bad, why in TELL_NOTHING:
        refused('list: .*' + why, check_pairs, bad, ['a', 'b', 'c'], 'list')
    twice = pairs((0, 1), (1, 0), (0, 2), same=[1, 1, 0])
    (notice,) = check_pairs(twice, ['a', 'b', 'c'], 'list')
    assert '1 of 3 pairs stand in the list before' in notice
    assert check_pairs(twice.where(np.array([1, 0, 1], bool)), ['a', 'b', 'c'], 'list') == []
    names = [str(tmp_path / 'a b' / f'{k},é.jpg') for k in range(40)]
    (tmp_path / 'a b').mkdir()
    for name in names:
        open(name, 'w').close()
    drawn = gap_pairs(np.repeat(np.arange(10), 4), np.arange(40.0), seed=3)
    write_pairs(tmp_path / 'list', drawn, names, 'seed 3')
    listed = protocols.pair_list(tmp_path / 'list')
    for side, found in zip(drawn[:2], listed.pairs[:2], strict=True):
        assert [names[i] for i in side] == [listed.sources[i] for i in found]
    assert (listed.pairs.same == drawn.same).all() and (listed.pairs.fold == drawn.fold).all()
    refused('no tab', write_pairs, tmp_path / 'list', drawn, ['a\tb'] * 40, '')


EVERY = {'# thresholds: every score\n': True, '# mine\n': False, '': False}


def test_a_list_says_its_folds_and_whether_its_thresholds_are_every_score(faces):
    for first, every in EVERY.items():
        (faces / 'list').write_text(first + rows())
        listed = protocols.pair_list(faces / 'list')
        assert listed.every_score is every and (listed.thresholds is None) is every
    lines = [f'{line} {7 - number % 3}' for number, line in enumerate(rows().splitlines())]
    (faces / 'list').write_text('\n'.join(lines))
    assert protocols.pair_list(faces / 'list').pairs.fold.tolist() == [7 - k % 3 for k in range(20)]
