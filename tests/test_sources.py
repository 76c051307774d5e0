"""Folders and lists as people have them: what is read, what is left out and said, or refused."""

import os
import shutil
import tarfile
import unicodedata
from pathlib import Path

import pytest
import torch
from conftest import listed, refused, same
from test_images import encoded
from torchvision.datasets import ImageFolder

from evaluation.protocols import images_below
from preparation.sharding import write_shards
from storage.files import is_system


def face(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded())
    return path


@pytest.fixture
def root(tmp_path):
    for name in ('Ada/000_12.jpg', 'Ada/001_40.jpg', 'Bob/000_7.jpg', 'Bob/001_30.jpg'):
        face(tmp_path / 'set' / name)
    return tmp_path / 'set'


def names(faces):
    return [os.path.relpath(faces.path(index), faces.source.root) for index in range(len(faces))]


SYSTEM = ['@eaDir', '__MACOSX', 'lost+found', '$RECYCLE.BIN', '.AppleDouble', '#recycle']
SYSTEM += ['System Volume Information', '.ipynb_checkpoints', '@Recently-Snapshot', '@appstore']
SYSTEM += ['Network Trash Folder', 'Temporary Items', 'FOUND.000', 'RECYCLED', '~snapshot']
SYSTEM += ['@__thumb', '@sharebin', '_vti_cnf']


def test_what_systems_leave_is_nobody(root, tmp_path):
    clean = names(listed(root))
    for folder in SYSTEM:
        face(root / folder / 'Ada' / 'SYNOPHOTO_30.jpg')
        face(root / 'Ada' / folder / '000_12.jpg')
    (root / 'lost+found' / 'empty').mkdir()
    for name in ('Thumbs.db', 'desktop.ini', '.DS_Store', '._000_12.jpg'):
        (root / 'Ada' / name).write_bytes(b'x')
        (root / name).write_bytes(b'x')
    faces = listed(root)
    assert faces.classes == ['Ada', 'Bob'] and names(faces) == clean
    assert faces.check() == [], 'and nothing is said of it'
    assert images_below(root) == [str(root / name) for name in clean]
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        tar.add(root, '.')
    shards = listed(tmp_path / 'a.tar')
    assert shards.classes == ['Ada', 'Bob'] and len(shards) == 4
    face(root / 'sheet.jpg')  # as prepare.py leaves it
    (root / 'report.csv').write_text('')
    assert listed(root).check() == []
    names_of_people = 'eaDir', 'Thumbs.db.jpg', 'lost', 'MACOSX', '@ada', '#1', 'found.1000'
    assert not any(map(is_system, names_of_people))


def test_images_of_every_suffix_in_folders_of_any_depth_and_of_names_alike(root):
    for name in 'a_1.jfif a_2.jpe A_3.JPEG sub/a_4.jpg sub/deep/a_5.jpg sub-b/a_6.jpg'.split():
        face(root / 'Ada' / name)
    (root / 'Ada' / 'a_8.gif').write_bytes(encoded(kind='GIF'))
    faces = listed(root)
    assert faces.check() == [] and {1, 2, 3, 4, 5, 6, 8} < set(faces.ages.astype(int).tolist())
    theirs = ImageFolder(root, is_valid_file=lambda path: True)
    ours = [(faces.path(k), int(faces.labels[k])) for k in range(len(faces))]
    assert ours == theirs.samples and faces.classes == theirs.classes
    composed, apart = (unicodedata.normalize(form, 'Zoë') for form in ('NFC', 'NFD'))
    for name in (composed, apart):
        face(root / name / '000_3.jpg')
    (notice,) = listed(root).check()
    assert '1 name(s) stand for different people' in notice and composed in notice


def test_what_is_left_out_is_said(root):
    (root / 'Ada' / 'notes.txt').write_text('no face')
    (root / 'Bob' / 'sub').mkdir()
    (root / 'Bob' / 'sub' / 'face_30.raw').write_bytes(b'x')
    face(root / 'alone_30.jpg')
    alone, no_images = listed(root).check()
    assert alone == f'{root}: 1 image(s) are in no folder of a person, and left out: alone_30.jpg'
    assert no_images.startswith(f'{root}: 2 file(s) are no images by their names, and left out: ')
    assert no_images.endswith(': Ada/notes.txt, Bob/sub/face_30.raw')


def test_pipes_and_sockets_are_never_opened(root, tmp_path):
    os.mkfifo(root / 'Ada' / 'pipe_30.jpg')
    (notice,) = listed(root).check()
    assert notice == f'{root}: 1 pipe(s), socket(s) or device(s) are not opened: Ada/pipe_30.jpg'
    (tmp_path / 'a.txt').write_text(f'{root}/Ada/pipe_30.jpg Ada 30\n{root}/Bob/000_7.jpg Bob 7\n')
    refused('pipe_30.jpg: a folder, pipe, socket or device', listed(tmp_path / 'a.txt').check)


def test_folders_that_are_links_are_followed_but_in_circles(root, tmp_path):
    face(tmp_path / 'elsewhere' / 'sub' / 'a_3.jpg')
    os.symlink(tmp_path / 'elsewhere', root / 'Cid')
    os.symlink(tmp_path / 'elsewhere', root / 'Ada' / 'more')
    os.symlink(root, root / 'Ada' / 'round')
    os.symlink('..', tmp_path / 'elsewhere' / 'sub' / 'up')
    os.symlink('itself', root / 'Bob' / 'itself')
    faces = listed(root)
    assert faces.classes == ['Ada', 'Bob', 'Cid']
    linked = [name for name in names(faces) if 'a_3' in name]
    assert linked == ['Ada/more/sub/a_3.jpg', 'Cid/sub/a_3.jpg']
    others, loops = faces.check()
    assert 'left out: Bob/itself' in others
    assert '3 link(s) lead to a folder above them, and are not followed: ' in loops
    assert loops.endswith(': Ada/round, Ada/more/sub/up, Cid/sub/up')


def test_roots_from_elsewhere_and_from_home(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(listed('set')) == 4
    monkeypatch.chdir(root)
    for name, what in (('set', 'a folder with'), ('set.txt', 'a list'), ('set-{0..1}.tar', '')):
        refused(rf'^{name}.*, seen from {root}: .*{what}'.replace('{0..1}', '.*'), listed, name)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert len(listed('~/set')) == 4 and len(listed(Path('~/set'))) == 4


def rows(faces):
    """(path below the root, identity, age) of each face."""
    about = zip(names(faces), faces.labels, faces.ages, strict=True)
    return [(name, faces.classes[label], f'{age:g}') for name, label, age in about]


@pytest.mark.parametrize('sep', ['\t', ' ', '  ', ',', ';'])
@pytest.mark.parametrize('coding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_a_list_holds_the_faces_of_its_folder(root, sep, coding):
    name = 'l.csv' if sep in ',;' else 'l' if sep == '  ' else 'l.txt'
    (root / 'Ada' / '001_40.jpg').rename(root / 'Ada' / '001 b\u2028_40.jpg')
    lines = [sep.join(row) for row in [('path', 'label', 'age'), *reversed(rows(listed(root)))]]
    (root / name).write_bytes('\r\n'.join(lines).encode(coding))
    ours, theirs = listed(root / name), listed(root)
    assert ours.classes == theirs.classes and names(ours) == names(theirs)
    assert (ours.labels == theirs.labels).all() and (ours.ages == theirs.ages).all()
    assert ours.ages.dtype == theirs.ages.dtype and ours.labels.dtype == theirs.labels.dtype
    assert ours.check() == [] and os.path.dirname(ours.pixels.path) == str(root)
    assert ours.path(1) == str(root / 'Ada' / '001 b\u2028_40.jpg')


def test_a_list_names_images_anywhere_and_people_as_it_likes(root, tmp_path):
    list_file = tmp_path / 'lists' / 'a.txt'
    list_file.parent.mkdir()
    list_file.write_text(
        f'../set/Ada/000_12.jpg\tAda King\t12.5\n{root}/Bob/000_7.jpg\t17\t7\n'
        f'../set\\Ada\\001_40.jpg\tAda King\t40\n../set/Bob/001_30.jpg\t17\t30\n'
    )
    faces = listed(list_file)
    assert faces.classes == ['17', 'Ada King'] and faces.ages.tolist() == [30, 7, 12.5, 40]
    assert faces.check() == []
    pattern = write_shards(faces, tmp_path / 'out' / 'x')
    shards = listed(pattern)
    assert shards.classes == faces.classes and sorted(shards.ages) == sorted(faces.ages)


def test_labels_are_text_whichever_way_accents_are_written(root):
    composed, apart = (unicodedata.normalize(form, 'Zoë') for form in ('NFC', 'NFD'))
    labels = zip(names(listed(root)), (composed, apart, '0', '0.0'), strict=True)
    text = ''.join(f'{name} {label} 3\n' for name, label in labels)
    (root / 'a.txt').write_text(text, 'utf-8')
    assert listed(root / 'a.txt').classes == ['0', '0.0', composed]


FACE = 'Ada/000_12.jpg'
NUMBER, TWICE = 'line 1: .*begins with a number, as lists of mxnet', 'stands there before'
NO_LISTS = {
    '': 'the list is empty',
    'path label age\n': 'the list is empty',
    f'{FACE} Ada 12\nAda/001_40.jpg Ada\n': '1 line.*line 2: .*no path, label and age',
    f'0\t17.000000\t{FACE}\n': NUMBER,
    f'1\t{FACE}\t17\n': NUMBER,
    f'7\t17\t12\t{FACE}\n': NUMBER,
    'A\0d\0a\0': 'no text file: save it as text, in UTF-8',
    f'{FACE} Ada old\n': "line 1: .*'old' is no age",
    f'{FACE} Ada 121\n': 'line 1: .*121 is no age between 0 and 120',
    f'{FACE}\t\t12\n': 'line 1: .*no path, label and age',
    'Ada/none.jpg Ada 12\n': r'1 image\(s\) .* missing: Ada/none.jpg: .*list.s folder',
    f'{FACE} Ada 12\n{FACE} Bob 12\n': f'line 2: {FACE} {TWICE}',
    f'{FACE} Ada 12\n./Ada//000_12.jpg Bob 12\n': f'line 2: ./Ada//000_12.jpg {TWICE}',
}


@pytest.mark.parametrize('text, message', NO_LISTS.items())
def test_lists_that_are_none(root, text, message):
    (root / 'a.txt').write_text(text)
    assert refused(f'a.txt.*{message}', listed, root / 'a.txt').isprintable()


def test_lines_that_repeat_count_once_and_decoded_faces_follow_the_list(root):
    again = 'Bob/000_7.jpg Bob 7\nAda/.//000_12.jpg Ada 12\nAda/000_12.jpg Ada 12\n'
    (root / 'a.txt').write_text(f'./Ada/000_12.jpg Ada 12\n{again}')
    faces = listed(root / 'a.txt')
    assert names(faces) == ['Ada/000_12.jpg', 'Bob/000_7.jpg']
    assert faces.check() == [f'{root}/a.txt: 2 line(s) repeat others, and count once']
    (root / 'a.txt').write_text('Ada/000_12.jpg Ada 12\nBob/000_7.jpg Bob 7\n')
    first = listed(root / 'a.txt')
    first.check()
    kept = Path(first.pixels.path)
    del first, faces
    shutil.copy(root / 'Ada' / '001_40.jpg', root / 'Ada' / '000_12.jpg')
    again = listed(root / 'a.txt')
    again.check()
    assert again.pixels.path != str(kept) and not kept.exists()


def test_a_training_on_shards_or_lists_is_that_on_folders(train, entry, drawn, tmp_path):
    shards, lists, states = dict(entry), {}, []  # an entry of lists needs no pattern
    for part in ('train', 'val'):
        faces = listed(drawn / part)
        shards[f'{part}_root'] = write_shards(faces, tmp_path / 'set' / part, per_shard=12)
        lines = [f'{drawn}/{part}/{name}\t{person}\t{age}\n' for name, person, age in rows(faces)]
        (tmp_path / f'{part}.txt').write_text(''.join(lines))
        lists[f'{part}_root'] = str(tmp_path / f'{part}.txt')
    for name, data in (('folder', entry), ('shards', shards), ('list', lists)):
        run = train(-1, 2, save=tmp_path / name, data=data, settings=('cache=False',))
        states.append(torch.load(run / 'epoch_002.pth', weights_only=True))
    for state in states[1:]:
        assert all(same(states[0][key], state[key]) for key in ('best', 'model'))
