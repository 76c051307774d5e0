"""Shards of others: what the library itself writes, folders that tar packed, and damaged ones."""

# ruff: noqa: F811, a fixture is imported and is a parameter
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from conftest import listed, refused
from PIL import Image
from test_shards import assert_same_faces, everything, folder, pattern  # noqa: F401


def jpeg(shade=100):
    buffer = io.BytesIO()
    Image.new('RGB', (96, 112), (shade, 90, 80)).save(buffer, 'JPEG')
    return buffer.getvalue()


def foreign(root, samples, **options):
    """Written by the library's own ShardWriter, three in a shard; the pattern."""
    root.mkdir()
    name = str(root / 'a-%02d.tar')
    with webdataset.ShardWriter(name, maxcount=3, verbose=0, **options) as writer:
        for key, sample in enumerate(samples):
            writer.write({'__key__': f'{key:04d}', **sample})
    return f'{root}/a-{{00..{(len(samples) - 1) // 3:02d}}}.tar'


def test_shards_of_the_library_itself(tmp_path):
    two, samples = [{'identity': 'Ada', 'age': 35}, {'identity': 7, 'age': 12.5}], []
    for k in range(7):
        samples.append({'jpg': jpeg(20 * k), 'json': two[k % 2] | {'more': [k]}})
    faces = listed(foreign(tmp_path / 'a', samples))
    assert faces.classes == ['7', 'Ada'] and faces.labels.tolist() == [0] * 3 + [1] * 4
    assert faces.ages.tolist() == [12.5] * 3 + [35] * 4
    faces.check()
    shades = [round(int(image[0, 0, 0]) / 20) for image in everything(faces)[0]]
    assert shades == [1, 3, 5, 0, 2, 4, 6]
    assert faces.path(3) == f'{tmp_path}/a/a-00.tar:0000.jpg'


def test_a_class_and_a_text_beside_each_image(tmp_path):
    pixels = np.full((112, 96, 3), 50, np.uint8)
    samples = [{'png': pixels, 'cls': k % 2, 'txt': str(20 + k)} for k in range(4)]
    faces = listed(foreign(tmp_path / 'a', samples))
    faces.check()
    assert faces.classes == ['0', '1'] and faces.ages.tolist() == [20, 22, 21, 23]
    assert (everything(faces)[0] == 50).all()


@pytest.mark.parametrize('format', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_folder_as_tar_packs_it(drawn, folder, tmp_path, format):
    for k in range(2):
        with tarfile.open(tmp_path / f'a{k}.tar', 'w', format=format) as tar:
            for person in sorted(os.listdir(drawn / 'train'))[k::2]:
                tar.add(drawn / 'train' / person, f'./{person}')
            tar.addfile(tarfile.TarInfo('README'))
    assert_same_faces(listed(tmp_path / 'a{0,1}.tar'), folder)
    assert_same_faces(listed(f'{tmp_path}/a0.tar::{tmp_path}/a1.tar'), folder)


GOOD = {'jpg': jpeg(), 'json': b'{"identity": "Ada", "age": 35}'}


AGES = {121: '121 is no age between 0 and 120', -1: '-1 is no age between', None: 'None is no age'}
AGES |= {float('nan'): 'nan is no age between', True: 'True is no age'}
AGES |= {'35 years': "'35 years' is no age", 10**400: 'no age between'}
IDENTITIES = [(None, 'its identity is None'), ('', "its identity is ''")]
IDENTITIES += [([1], r'its identity is \[1\]')]
ABOUTS = [({'identity': 'Ada', 'age': age}, message) for age, message in AGES.items()]
ABOUTS += [({'identity': name, 'age': 3}, message) for name, message in IDENTITIES]
ABOUTS = [(json.dumps(about), message) for about, message in ABOUTS]
ABOUTS += [('{"age": 3}', 'its identity is None'), ('{"identity": "Ada"}', 'None is no age')]
ABOUTS += [('[1]', 'its .json is not {"identity"'), ('{"identity": ', 'its .json is not')]
ABOUTS += [('[' * 100_000, 'its .json is not')]
CHANGES = [({'json': about.encode()}, message) for about, message in ABOUTS]
CHANGES += [({'png': jpeg()}, 'it has 2 images'), ({'jpg': None}, 'it has 0 images')]
CHANGES += [({'json': None, 'cls': b'3'}, "'' is no age")]
CHANGES += [({'json': None, 'txt': b'30'}, "its identity is ''")]
CHANGES += [({'json': None}, 'at position 1 is no age.*mend .pat.')]


@pytest.mark.parametrize('change, message', CHANGES)
def test_samples_without_what_is_needed(tmp_path, change, message):
    bad = {suffix: data for suffix, data in (GOOD | change).items() if data is not None}
    pattern = foreign(tmp_path / 'a', [GOOD] * 4 + [bad], encoder=False)
    said = r'1 sample\(s\) without one image, an identity and a readable age: a-01.tar:0004; .*'
    error = refused(said + message, listed, pattern)
    assert error.isprintable() and len(error) < 500


def test_bad_samples_are_counted(tmp_path):
    pattern = foreign(tmp_path / 'a', [GOOD | {'json': b'{}'}] * 5, encoder=False)
    said = '5 sample.*a-00.tar:0000, a-00.tar:0001, a-00.tar:0002, … .5 in all.'
    refused(said, listed, pattern)


def test_bad_images_are_named_and_counted_or_left_out(tmp_path):
    samples = [GOOD, GOOD | {'jpg': b'junk'}, GOOD | {'jpg': jpeg()[:300]}, GOOD, GOOD]
    pattern = foreign(tmp_path / 'a', samples, encoder=False)
    first, second = (f'a-00.tar:000{k}.jpg: not readable' for k in (1, 2))
    refused(rf'2 image\(s\) are not .*: {first}.*, {second}', listed(pattern).check)
    faces = listed(pattern)
    assert 'left out' in faces.check(skip_corrupt=2)[0]
    assert [place['name'] for place in faces.places] == [b'0000.jpg', b'0003.jpg', b'0004.jpg']
    assert len(everything(faces)[0]) == 3
    images, *_, (unreadable,) = listed(pattern).__getitems__([0, 1])
    assert len(images) == 1 and unreadable.startswith(f'{tmp_path}/a/{first} as an image')


PATTERNS = dict.fromkeys(('train-{0..9}.tar.gz', 'train.tgz'), 'not compressed')
ELSEWHERE = 'http://host/train-{0..9}.tar', 'pipe:cat train.tar'
PATTERNS |= dict.fromkeys(ELSEWHERE, 'a mounted file system')
PATTERNS |= dict.fromkeys(('train-{{0..9}.tar', 'train-${NOWHERE}.tar'), 'not a pattern of shards')
PATTERNS |= {'train-{0..9}.tar': '10 of 10 shard.s. missing: train-0.tar, '}


@pytest.mark.parametrize('root, message', PATTERNS.items())
def test_patterns_that_are_none(root, message):
    refused(message, listed, root)


def test_a_missing_shard(pattern):
    os.remove(pattern.replace('{00000..00003}', '00002'))
    refused('1 of 4 shard.s. missing: .*train-00002.tar: restore', listed, pattern)


def test_a_shard_cut_short_anywhere(pattern):
    path = Path(pattern.replace('{00000..00003}', '00001'))
    whole, last = path.read_bytes(), max(listed(pattern).places['offset'])
    with tarfile.open(path) as tar:
        end = max(-(-(member.offset_data + member.size) // 512) * 512 for member in tar)
    draw = np.random.default_rng(0)
    lengths = [*draw.integers(0, end, 20), *512 * draw.integers(0, end // 512, 20)]
    for length in [0, 1, 511, 512, 513, last, end - 512, end - 1, end, end + 511, *lengths]:
        path.write_bytes(whole[:length])
        refused(r'train-00001.tar: (damaged|cut short|\d+ sample)', listed, pattern)
    path.write_bytes(whole[: end + 512])  # all that is lost are zeros after the end
    assert len(listed(pattern)) == 40


@pytest.mark.parametrize('content', [b'', b'junk' * 1000, b'PK\3\4' + bytes(1000), bytes(3000)])
def test_files_that_are_no_shard(tmp_path, content):
    (tmp_path / 'a.tar').write_bytes(content)
    refused(r'a.tar: (damaged|no samples)', listed, tmp_path / 'a.tar')


def test_two_files_of_one_name(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        for name in ('1.jpg', '1.jpg'):
            tar.addfile(tarfile.TarInfo(name))
    refused('a.tar: 1.jpg: duplicate file name', listed, tmp_path / 'a.tar')


@pytest.mark.parametrize('why', ['cut short', 'No such file', 'changed'])
@pytest.mark.parametrize('opened', [True, False])
def test_a_shard_that_changes_after_it_was_listed(pattern, why, opened):
    faces = listed(pattern)
    if opened:
        everything(faces)
    path = Path(faces.source.paths[2])
    if why == 'cut short':
        os.truncate(path, 2000)
    elif why == 'changed':
        os.utime(path, (1, 1))
    else:
        path.unlink()
    there = np.flatnonzero(faces.places['shard'] == 2)
    index = int(there[np.argmax(faces.places['offset'][there])])
    if opened and why != 'cut short':  # what is open stays there
        assert len(faces.__getitems__([index])[0]) == 1
    else:
        name = faces.source.name(faces.places[index])
        refused(rf'train-00002.tar:{name}: .*({why}|changed)', faces.__getitems__, [index])


def test_without_the_library(pattern, monkeypatch):
    monkeypatch.setitem(sys.modules, 'webdataset', None)
    refused('pip install webdataset', listed, pattern)
