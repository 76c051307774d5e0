"""Tar shards against the folder they are of, the converter, shards of others, damaged ones."""

import io
import json
import os
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from conftest import listed, refused
from PIL import Image

import utils
from dataset import Batches, Faces, training_loader
from evaluation import protocols
from preparation.sharding import write_shards
from storage import shards
from storage.shards import Shards


@pytest.fixture
def folder(drawn):
    return listed(drawn / 'train')


@pytest.fixture
def pattern(folder, tmp_path):
    """The drawn training faces in four shards, the last of 4 faces."""
    return write_shards(folder, tmp_path / 'set' / 'train', per_shard=12)


def counted(monkeypatch, kind, name):
    """A list that grows by a call of the method."""
    calls, of = [], getattr(kind, name)
    monkeypatch.setattr(kind, name, lambda *args: calls.append(args) or of(*args))
    return calls


def everything(faces):
    return faces.__getitems__(list(range(len(faces))))


def assert_same_faces(ours, theirs):
    assert ours.classes == theirs.classes and len(ours) == len(theirs)
    for one, other in zip(everything(ours)[:3], everything(theirs)[:3], strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype


@pytest.mark.parametrize('cache', [True, False])
def test_shards_hold_the_samples_of_their_folder(folder, pattern, tmp_path, cache):
    faces = listed(pattern)
    assert faces.check(cache) == [] and bool(faces.pixels) == cache
    assert pattern == f'{tmp_path}/set/train-{{00000..00003}}.tar'
    assert faces.source.paths == [f'{tmp_path}/set/train-{k:05d}.tar' for k in range(4)]
    assert_same_faces(faces, folder)
    assert len(np.unique(faces.labels[faces.places['shard'] == 0])) > 4, 'a shard is of many people'
    assert_same_faces(pickle.loads(pickle.dumps(faces)), folder)
    assert_same_faces(listed(pattern), folder)


@pytest.mark.parametrize('workers', [0, 2])
def test_the_same_batches_for_the_same_seed_from_any_step_on(folder, pattern, workers, monkeypatch):
    loaders = [training_loader(faces, 8, 3, workers, False) for faces in (listed(pattern), folder)]
    if not workers:
        count = counted(monkeypatch, Faces, 'read')
    for epoch, first in ((0, 0), (1, 3), (0, 4)):
        for loader in loaders:
            loader.batch_sampler.epoch, loader.batch_sampler.first = epoch, first
        batches = list(zip(*loaders, strict=True))
        assert len(batches) == 5 - first
        for ours, theirs in batches:
            assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))
    assert workers or len(count) == 2 * 8 * (5 + 2 + 1), 'batches before the first are not decoded'


def test_many_faces_are_shuffled_a_few_shards_at_a_time(monkeypatch):
    """One is read within its own length and a window on either side; a batch is of several."""
    monkeypatch.setattr('dataset.WINDOW', 1000)
    # faces are numbered by person, shards hold a mixture
    owner = np.random.default_rng(0).permutation(np.repeat(np.arange(50), 200))
    batches, orders = Batches(10000, 64, 1, shards=owner), []
    for batches.epoch in (0, 1):
        order = batches.order()
        orders.append(order)
        assert (np.sort(order) == np.arange(10000)).all() and (batches.order() == order).all()
        at = np.argsort(order)
        assert max(np.ptp(at[owner == shard]) for shard in range(50)) < 200 + 2 * 1000
        mixed = [len(np.unique(owner[order[k : k + 64]])) for k in range(1000, 9000, 64)]
        assert min(mixed) >= 4
    assert (orders[0] != orders[1]).mean() > 0.99
    first = [owner[order[:500]] for order in orders]  # other shards come first in another epoch
    assert len(np.intersect1d(*first)) < len(np.unique(first[0]))
    batches.first = 3
    assert next(iter(batches)) == orders[1][3 * 64 : 4 * 64].tolist()
    few, plain = Batches(1000, 64, 1, shards=owner[:1000]), Batches(1000, 64, 1)
    assert (few.order() == plain.order()).all(), 'up to the window it is the order of a folder'


def test_an_index_is_kept_and_made_anew_when_it_must(folder, pattern, monkeypatch):
    listed(pattern)
    (kept,) = Path(pattern).parent.glob('.*.index.npz')
    calls = counted(monkeypatch, Shards, '_read_through')
    assert_same_faces(listed(pattern), folder)
    assert not calls
    whole = kept.read_bytes()
    for content in (b'', b'junk', whole[:-100], whole[:500] + b'\0' + whole[501:]):
        kept.write_bytes(content)
        assert_same_faces(listed(pattern), folder)
        assert calls.pop() and not calls
    os.utime(pattern.replace('{00000..00003}', '00002'))
    assert_same_faces(listed(pattern), folder)
    assert calls and len(list(Path(pattern).parent.glob('.*.index.npz'))) == 1 and not kept.exists()

    def refuse(path, write):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(utils, 'write_whole', refuse)
    os.utime(pattern.replace('{00000..00003}', '00001'))
    faces = listed(pattern)
    assert_same_faces(faces, folder)
    (notice,) = faces.check()
    assert 'No space left on device: the index of the shards is not kept' in notice


def stamps(folder):
    """{shard: (its file and time, its bytes)}."""
    found = {}
    for path in folder.glob('*.tar'):
        found[path.name] = (path.stat().st_ino, path.stat().st_mtime_ns), path.read_bytes()
    return found


def test_a_conversion_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    half, whole = tmp_path / 'half', tmp_path / 'whole'
    write_shards(folder, whole / 'x', per_shard=12)
    original, count = Faces.encoded, []

    def interrupted(self, index):
        count.append(index)
        if len(count) == 40 + 30:  # forty are for the check
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(Faces, 'encoded', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, half / 'x', per_shard=12)
    before = stamps(half)
    assert sorted(os.listdir(half)) == ['x-00000.tar', 'x-00001.tar', 'x.json']
    assert write_shards(folder, half / 'x', per_shard=12) == f'{half}/x-{{00000..00003}}.tar'
    after, expected = stamps(half), stamps(whole)
    assert before.items() <= after.items() and after.keys() == expected.keys()
    assert all(after[name][1] == expected[name][1] for name in after)
    write_shards(folder, half / 'x', per_shard=12)
    assert stamps(half) == after, 'a whole one is left alone'


@pytest.mark.parametrize('options', [{'per_shard': 10}, {'per_shard': 12, 'seed': 1}])
def test_other_shards_are_not_overwritten(folder, pattern, options):
    target, said = Path(pattern).parent, 'train-00000.tar: there are shards of this name already'
    before = stamps(target)
    refused(said, write_shards, folder, target / 'train', **options)
    (target / 'train.json').unlink()
    refused(said, write_shards, folder, target / 'train', per_shard=12)
    for content in ('{"pattern": 1}', '[]', 'null', '"x"'):  # a plan that is not ours
        (target / 'x.json').write_text(content)
        refused('x.json: there are shards of this name already', write_shards, folder, target / 'x')
        assert (target / 'x.json').read_text() == content
    assert stamps(target) == before
    for name in ('few-more', 'few'):  # another name, though it begins alike
        write_shards(folder, target / name, per_shard=40)


def test_odd_names_are_converted(drawn, tmp_path):
    face = next((drawn / 'train').rglob('*.jpg')).read_bytes()
    names = b'J. R./000_12.5.jpg', b'J. R./000_12.25.JPG', b'caf\xe9/new\nline_20.jpeg'
    for name in map(os.fsdecode, (*names, 'Zoë/000_3.jpg'.encode())):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'in' / name).write_bytes(face)
    theirs = listed(tmp_path / 'in')
    assert_same_faces(listed(write_shards(theirs, tmp_path / 'out' / 'x')), theirs)
    with tarfile.open(tmp_path / 'out' / 'x-00000.tar') as tar:
        abouts = [tar.extractfile(name) for name in tar.getnames() if name.endswith('.json')]
        kept = {json.load(about)['file'] for about in abouts}
    assert kept == {theirs.source.name(place) for place in theirs.places}


def test_shards_are_converted_to_shards_and_are_a_benchmark(folder, pattern, tmp_path):
    again = write_shards(listed(pattern), tmp_path / 'again' / 'x', per_shard=7)
    assert_same_faces(listed(again), folder)
    ours, theirs = (protocols.folder(root, r'_|\.', 1) for root in (pattern, folder.root))
    assert [Path(path).read_bytes() for path in theirs.sources] == ours.sources
    assert (ours.labels == theirs.labels).all() and (ours.ages == theirs.ages).all()


def test_a_corrupt_image_and_a_missing_library_are_said(folder, tmp_path, monkeypatch, pattern):
    monkeypatch.setattr(Faces, 'encoded', lambda self, index: b'junk')
    refused('40 image.s. are not 112 high', write_shards, folder, tmp_path / 'out' / 'x')
    assert not (tmp_path / 'out').exists()
    monkeypatch.setitem(sys.modules, 'webdataset', None)
    refused('pip install webdataset', listed, pattern)


@pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='no /proc/self/fd here')
def test_more_shards_than_may_be_open(folder, tmp_path, monkeypatch):
    pattern, opened = write_shards(folder, tmp_path / 'x', per_shard=1), shards._opened.__wrapped__
    monkeypatch.setattr(shards, '_opened', shards.functools.lru_cache(3)(opened))
    before = len(os.listdir('/proc/self/fd'))
    monkeypatch.setattr(os, 'cpu_count', lambda: 8)
    faces = listed(pattern)
    faces.check(cache=False)
    assert_same_faces(faces, folder)
    assert len(os.listdir('/proc/self/fd')) <= before + 4


def test_the_command_writes_what_an_entry_names(entry, folder, tmp_path, monkeypatch, capsys):
    import prepare

    monkeypatch.setattr(prepare.meta, 'here', entry, raising=False)
    prepare.run(['--shards', 'here', str(tmp_path / 'set' / 'train')])
    pattern = capsys.readouterr().out.split("'")[3]
    assert_same_faces(listed(pattern), folder)


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


def test_shards_of_the_library_itself_and_bad_images_in_them(tmp_path):
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
    pixels = np.full((112, 96, 3), 50, np.uint8)
    samples = [{'png': pixels, 'cls': k % 2, 'txt': str(20 + k)} for k in range(4)]
    faces = listed(foreign(tmp_path / 'b', samples))
    faces.check()
    assert faces.classes == ['0', '1'] and faces.ages.tolist() == [20, 22, 21, 23]
    assert (everything(faces)[0] == 50).all()
    samples = [GOOD, GOOD | {'jpg': b'junk'}, GOOD | {'jpg': jpeg()[:300]}, GOOD, GOOD]
    pattern = foreign(tmp_path / 'c', samples, encoder=False)
    first, second = (f'a-00.tar:000{k}.jpg: not readable' for k in (1, 2))
    refused(rf'2 image\(s\) are not .*: {first}.*, {second}', listed(pattern).check)
    faces = listed(pattern)
    assert 'left out' in faces.check(skip_corrupt=2)[0]
    assert [place['name'] for place in faces.places] == [b'0000.jpg', b'0003.jpg', b'0004.jpg']
    assert len(everything(faces)[0]) == 3
    images, *_, (unreadable,) = listed(pattern).__getitems__([0, 1])
    assert len(images) == 1 and unreadable.startswith(f'{tmp_path}/c/{first} as an image')


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


PATTERNS = dict.fromkeys(('train-{0..9}.tar.gz', 'train.tgz'), 'not compressed')
ELSEWHERE = 'http://host/train-{0..9}.tar', 'pipe:cat train.tar'
PATTERNS |= dict.fromkeys(ELSEWHERE, 'a mounted file system')
PATTERNS |= dict.fromkeys(('train-{{0..9}.tar', 'train-${NOWHERE}.tar'), 'not a pattern of shards')
PATTERNS |= {'train-{0..9}.tar': '10 of 10 shard.s. missing: train-0.tar, '}


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


def test_files_that_are_no_shard(tmp_path):
    for content in (b'', b'junk' * 1000, b'PK\3\4' + bytes(1000), bytes(3000)):
        (tmp_path / 'a.tar').write_bytes(content)
        refused(r'a.tar: (damaged|no samples)', listed, tmp_path / 'a.tar')
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        for name in ('1.jpg', '1.jpg'):
            tar.addfile(tarfile.TarInfo(name))
    refused('a.tar: .*1.jpg: duplicate file name', listed, tmp_path / 'a.tar')


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
