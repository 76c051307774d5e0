"""Tar shards against the folder they are of, shards of others, damaged ones, and the converter."""
import builtins
import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

import utils
from dataset import Batches, Faces, training_loader
from evaluation import lists
from storage import shards
from storage.sharding import write_shards
from storage.shards import Shards
from utils import DataError


def listed(root):
    return Faces(root, r'_|\.', 1)


@pytest.fixture
def folder(drawn):
    return listed(drawn / 'train')


@pytest.fixture
def pattern(folder, tmp_path):
    """The drawn training faces in four shards, the last of 4 faces."""
    return write_shards(folder, tmp_path / 'set' / 'train', per_shard=12)


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
        read, count = Faces.read, []
        monkeypatch.setattr(
            Faces, 'read', lambda self, index: count.append(index) or read(self, index)
        )
    for epoch, first in ((0, 0), (1, 3), (0, 4)):
        for loader in loaders:
            loader.batch_sampler.epoch, loader.batch_sampler.first = epoch, first
        batches = list(zip(*loaders, strict=True))
        assert len(batches) == 5 - first
        for ours, theirs in batches:
            assert all(torch.equal(a, b) for a, b in zip(ours[:3], theirs[:3], strict=True))
    assert workers or len(count) == 2 * 8 * (5 + 2 + 1), 'batches before the first are not decoded'


def test_a_training_on_shards_is_the_training_on_the_folder(train, entry, drawn, pattern, tmp_path):
    val = write_shards(listed(drawn / 'val'), tmp_path / 'set' / 'val', per_shard=50)
    runs = [
        train(-1, 2, save=tmp_path / name, data=data, settings=('cache=False',))
        for name, data in (
            ('folder', entry),
            ('shards', entry | {'train_root': pattern, 'val_root': val}),
        )
    ]
    ours, theirs = (torch.load(run / 'epoch_002.pth', weights_only=True) for run in runs)
    assert ours['best'] == theirs['best'] and all(
        torch.equal(ours['model'][name], theirs['model'][name]) for name in ours['model']
    )


def test_many_faces_are_shuffled_a_few_shards_at_a_time(monkeypatch):
    monkeypatch.setattr('storage.batches.WINDOW', 1000)
    # faces are numbered by person, shards hold a mixture
    owner = np.random.default_rng(0).permutation(np.repeat(np.arange(50), 200))
    batches, orders = Batches(10000, 64, 1, shards=owner), []
    for batches.epoch in (0, 1):
        orders.append(batches.order())
        assert (np.sort(orders[-1]) == np.arange(10000)).all()
        assert (batches.order() == orders[-1]).all()
        at = np.argsort(orders[-1])
        spans = [np.ptp(at[owner == shard]) for shard in range(50)]
        assert max(spans) < 200 + 2 * 1000, (
            'a shard is read within its own length and a window on either side'
        )
        mixed = [
            len(np.unique(owner[orders[-1][start : start + 64]])) for start in range(1000, 9000, 64)
        ]
        assert min(mixed) >= 4, 'and a batch is of several shards'
    assert (orders[0] != orders[1]).mean() > .99
    first = [owner[order[:500]] for order in orders]
    assert len(np.intersect1d(*first)) < len(np.unique(first[0])), (
        'other shards come first in another epoch'
    )
    batches.first = 3
    assert next(iter(batches)) == orders[1][3 * 64:4 * 64].tolist()
    assert (
        Batches(1000, 64, 1, shards=owner[:1000]).order() == Batches(1000, 64, 1).order()
    ).all(), 'up to the window it is the order of a folder'


# shards of others

def jpeg(shade=100):
    buffer = io.BytesIO()
    Image.new('RGB', (96, 112), (shade, 90, 80)).save(buffer, 'JPEG')
    return buffer.getvalue()


def foreign(root, samples, **options):
    """Written by the library's own ShardWriter, three in a shard; the pattern."""
    root.mkdir()
    with webdataset.ShardWriter(
        str(root / 'a-%02d.tar'), maxcount=3, verbose=0, **options
    ) as writer:
        for key, sample in enumerate(samples):
            writer.write({'__key__': f'{key:04d}', **sample})
    return f'{root}/a-{{00..{(len(samples) - 1) // 3:02d}}}.tar'


def test_shards_of_the_library_itself(tmp_path):
    samples = [
        {
            'jpg': jpeg(20 * k),
            'json': {'identity': ('Ada', 7)[k % 2], 'age': (35, 12.5)[k % 2], 'more': [k]},
        }
        for k in range(7)
    ]
    faces = listed(foreign(tmp_path / 'a', samples))
    assert (
        faces.classes == ['7', 'Ada']
        and faces.labels.tolist() == [0] * 3 + [1] * 4
        and faces.ages.tolist() == [12.5] * 3 + [35] * 4
    )
    faces.check()
    shades = [round(int(image[0, 0, 0]) / 20) for image in everything(faces)[0]]
    assert shades == [1, 3, 5, 0, 2, 4, 6]
    assert faces.path(3) == f'{tmp_path}/a/a-00.tar:0000.jpg'


def test_a_class_and_a_text_beside_each_image(tmp_path):
    pixels = np.full((112, 96, 3), 50, np.uint8)
    faces = listed(
        foreign(
            tmp_path / 'a', [{'png': pixels, 'cls': k % 2, 'txt': str(20 + k)} for k in range(4)]
        )
    )
    faces.check()
    assert (
        faces.classes == ['0', '1']
        and faces.ages.tolist() == [20, 22, 21, 23]
        and (everything(faces)[0] == 50).all()
    )


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


@pytest.mark.parametrize(
    'change, message',
    [
        ({'json': b'{"identity": "Ada", "age": 121}'}, '121 is no age between 0 and 120'),
        ({'json': b'{"identity": "Ada", "age": -1}'}, '-1 is no age between'),
        ({'json': b'{"identity": "Ada", "age": NaN}'}, 'nan is no age between'),
        ({'json': b'{"identity": "Ada", "age": true}'}, 'True is no age'),
        ({'json': b'{"identity": "Ada", "age": "35 years"}'}, "'35 years' is no age"),
        ({'json': b'{"identity": "Ada"}'}, 'None is no age'),
        ({'json': b'{"identity": "Ada", "age": 1%s}' % (b'0' * 400)}, 'no age between'),
        ({'json': b'{"age": 3}'}, 'its identity is None'),
        ({'json': b'{"identity": "", "age": 3}'}, "its identity is ''"),
        ({'json': b'{"identity": [1], "age": 3}'}, r'its identity is \[1\]'),
        ({'json': b'[1]'}, 'its .json is not {"identity"'),
        ({'json': b'{"identity": '}, 'its .json is not'),
        ({'json': b'[' * 100_000}, 'its .json is not'),
        ({'png': jpeg()}, 'it has 2 images'),
        ({'jpg': None}, 'it has 0 images'),
        ({'json': None, 'cls': b'3'}, "'' is no age"),
        ({'json': None, 'txt': b'30'}, "its identity is ''"),
        ({'json': None}, 'at position 1 is no age.*mend .pat.'),
    ],
)
def test_samples_without_what_is_needed(tmp_path, change, message):
    bad = {suffix: data for suffix, data in (GOOD | change).items() if data is not None}
    pattern = foreign(tmp_path / 'a', [GOOD] * 4 + [bad], encoder=False)
    with pytest.raises(
        DataError,
        match=r'1 sample\(s\) without one image, an identity and a readable age: a-01.tar:0004; .*'
        + message,
    ) as error:
        listed(pattern)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_bad_samples_are_counted(tmp_path):
    with pytest.raises(
        DataError, match='5 sample.*a-00.tar:0000, a-00.tar:0001, a-00.tar:0002, … .5 in all.'
    ):
        listed(foreign(tmp_path / 'a', [GOOD | {'json': b'{}'}] * 5, encoder=False))


def test_bad_images_are_named_and_counted_or_left_out(tmp_path):
    pattern = foreign(
        tmp_path / 'a',
        [GOOD, GOOD | {'jpg': b'junk'}, GOOD | {'jpg': jpeg()[:300]}, GOOD, GOOD],
        encoder=False,
    )
    with pytest.raises(
        DataError,
        match=r'2 image\(s\) are not .*: a-00.tar:0001.jpg: not readable.*, '
        'a-00.tar:0002.jpg: not readable',
    ):
        listed(pattern).check()
    faces = listed(pattern)
    assert 'left out' in faces.check(skip_corrupt=2)[0]
    assert [place['name'] for place in faces.places] == [b'0000.jpg', b'0003.jpg', b'0004.jpg']
    assert len(everything(faces)[0]) == 3
    images, *_, unreadable = listed(pattern).__getitems__([0, 1])
    assert len(images) == 1 and unreadable == [
        f'{tmp_path}/a/a-00.tar:0001.jpg: not readable as an image '
        '(not an image of a kind that is read here, whatever its name says)'
    ]


@pytest.mark.parametrize(
    'root, message',
    [
        ('train-{0..9}.tar.gz', 'not compressed'),
        ('train.tgz', 'not compressed'),
        ('http://host/train-{0..9}.tar', 'a mounted file system'),
        ('pipe:cat train.tar', 'a mounted file system'),
        ('train-{{0..9}.tar', 'not a pattern of shards'),
        ('train-{0..9}.tar', '10 of 10 shard.s. missing: train-0.tar, '),
        ('train-${NOWHERE}.tar', 'not a pattern of shards'),
    ],
)
def test_patterns_that_are_none(root, message):
    with pytest.raises(DataError, match=message):
        listed(root)


def test_a_missing_shard(pattern):
    os.remove(pattern.replace('{00000..00003}', '00002'))
    with pytest.raises(DataError, match='1 of 4 shard.s. missing: .*train-00002.tar: restore'):
        listed(pattern)


def test_a_shard_cut_short_anywhere(pattern):
    path = Path(pattern.replace('{00000..00003}', '00001'))
    whole, last = path.read_bytes(), max(listed(pattern).places['offset'])
    with tarfile.open(path) as tar:
        end = max(-(-(member.offset_data + member.size) // 512) * 512 for member in tar)
    draw = np.random.default_rng(0)
    lengths = [
        *draw.integers(0, end, 20).tolist(),
        *(512 * draw.integers(0, end // 512, 20)).tolist(),
    ]
    for length in [0, 1, 511, 512, 513, last, end - 512, end - 1, end, end + 511, *lengths]:
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r'train-00001.tar: (damaged|cut short|\d+ sample)'):
            listed(pattern)
    path.write_bytes(whole[:end + 512])  # all that is lost are zeros after the end
    assert len(listed(pattern)) == 40


@pytest.mark.parametrize('content', [b'', b'junk' * 1000, b'PK\3\4' + bytes(1000), bytes(3000)])
def test_files_that_are_no_shard(tmp_path, content):
    (tmp_path / 'a.tar').write_bytes(content)
    with pytest.raises(DataError, match=r'a.tar: (damaged|no samples)'):
        listed(tmp_path / 'a.tar')


def test_two_files_of_one_name(tmp_path):
    with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
        for name in ('1.jpg', '1.jpg'):
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DataError, match='a.tar: 1.jpg: duplicate file name'):
        listed(tmp_path / 'a.tar')


@pytest.mark.parametrize(
    'change, why',
    [
        (lambda path: os.truncate(path, 2000), 'cut short'),
        (os.remove, 'No such file'),
        (lambda path: path.write_bytes(path.read_bytes()), 'changed'),
    ],
)
@pytest.mark.parametrize('opened', [True, False])
def test_a_shard_that_changes_after_it_was_listed(pattern, change, why, opened):
    faces = listed(pattern)
    if opened:
        everything(faces)
    path = Path(faces.source.paths[2])
    os.utime(path, (1, 1)) if why == 'changed' else change(path)
    there = np.flatnonzero(faces.places['shard'] == 2)
    index = int(there[np.argmax(faces.places['offset'][there])])
    if opened and why != 'cut short':  # what is open stays there
        assert len(faces.__getitems__([index])[0]) == 1
    else:
        with pytest.raises(
            DataError,
            match=rf'train-00002.tar:{faces.source.name(faces.places[index])}: .*({why}|changed)',
        ):
            faces.__getitems__([index])


def test_without_the_library(pattern, monkeypatch):
    original = builtins.__import__

    def missing(name, *args, **options):
        if name == 'webdataset':
            raise ImportError(name)
        return original(name, *args, **options)
    monkeypatch.setattr(builtins, '__import__', missing)
    with pytest.raises(DataError, match='pip install webdataset'):
        listed(pattern)


# the index

def test_an_index_is_kept_and_made_anew_when_it_must(folder, pattern, monkeypatch):
    listed(pattern)
    kept, = Path(pattern).parent.glob('.*.index.npz')
    calls, read_through = [], Shards._read_through
    monkeypatch.setattr(
        Shards, '_read_through', lambda self, *args: calls.append(1) or read_through(self, *args)
    )
    assert_same_faces(listed(pattern), folder)
    assert not calls
    for content in (
        b'',
        b'junk',
        kept.read_bytes()[:-100],
        kept.read_bytes()[:500] + b'\0' + kept.read_bytes()[501:],
    ):
        kept.write_bytes(content)
        assert_same_faces(listed(pattern), folder)
        assert calls.pop() and not calls
    os.utime(pattern.replace('{00000..00003}', '00002'))
    assert_same_faces(listed(pattern), folder)
    assert calls and len(list(Path(pattern).parent.glob('.*.index.npz'))) == 1 and not kept.exists()


def test_an_index_that_cannot_be_kept(folder, pattern, monkeypatch):
    def refuse(path, write):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(utils, 'write_whole', refuse)
    faces = listed(pattern)
    assert_same_faces(faces, folder)
    notice, = faces.check()
    assert 'No space left on device: the index of the shards is not kept' in notice


# the converter

def stamps(folder):
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.glob('*.tar')
    }


def test_a_conversion_goes_on_where_it_stopped(folder, tmp_path, monkeypatch):
    whole = tmp_path / 'whole'
    write_shards(folder, whole / 'x', per_shard=12)
    original, count = Faces.encoded, []

    def interrupted(self, index):
        count.append(index)
        if len(count) == 40 + 30:  # forty are for the check
            raise KeyboardInterrupt
        return original(self, index)
    monkeypatch.setattr(Faces, 'encoded', interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, tmp_path / 'half' / 'x', per_shard=12)
    before = stamps(tmp_path / 'half')
    assert sorted(os.listdir(tmp_path / 'half')) == ['x-00000.tar', 'x-00001.tar', 'x.json']
    assert (
        write_shards(folder, tmp_path / 'half' / 'x', per_shard=12)
        == f'{tmp_path}/half/x-{{00000..00003}}.tar'
    )
    after = stamps(tmp_path / 'half')
    assert before.items() <= after.items()
    assert {name: stamp[2] for name, stamp in after.items()} == {
        name: stamp[2] for name, stamp in stamps(whole).items()
    }
    write_shards(folder, tmp_path / 'half' / 'x', per_shard=12)
    assert stamps(tmp_path / 'half') == after, 'a whole one is left alone'


@pytest.mark.parametrize('options', [{'per_shard': 10}, {'per_shard': 12, 'seed': 1}])
def test_other_shards_are_not_overwritten(folder, pattern, options):
    target = Path(pattern).parent
    before = stamps(target)
    with pytest.raises(DataError, match='train-00000.tar: there are shards of this name already'):
        write_shards(folder, target / 'train', **options)
    (target / 'train.json').unlink()
    with pytest.raises(DataError, match='train-00000.tar: there are shards of this name already'):
        write_shards(folder, target / 'train', per_shard=12)
    assert stamps(target) == before
    for name in ('few-more', 'few'):  # another name, though it begins alike
        write_shards(folder, target / name, per_shard=40)


def test_odd_names_are_converted(drawn, tmp_path):
    face = next((drawn / 'train').rglob('*.jpg')).read_bytes()
    for person, name in (
        (b'J. R.', b'000_12.5.jpg'),
        (b'J. R.', b'000_12.25.JPG'),
        (b'caf\xe9', b'new\nline_20.jpeg'),
        ('Zoë'.encode(), b'000_3.jpg'),
    ):
        os.makedirs(os.path.join(os.fsencode(tmp_path), b'in', person), exist_ok=True)
        path = os.path.join(os.fsencode(tmp_path), b'in', person, name)
        Path(os.fsdecode(path)).write_bytes(face)
    theirs = listed(tmp_path / 'in')
    assert_same_faces(listed(write_shards(theirs, tmp_path / 'out' / 'x')), theirs)
    with tarfile.open(tmp_path / 'out' / 'x-00000.tar') as tar:
        kept = [
            json.loads(tar.extractfile(name).read())
            for name in tar.getnames()
            if name.endswith('.json')
        ]
    assert {about['file'] for about in kept} == {
        theirs.source.name(place) for place in theirs.places
    }


def test_shards_are_converted_to_shards(folder, pattern, tmp_path):
    assert_same_faces(
        listed(write_shards(listed(pattern), tmp_path / 'again' / 'x', per_shard=7)), folder
    )


def test_a_corrupt_image_is_found_before_anything_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Faces, 'encoded', lambda self, index: b'junk')
    with pytest.raises(DataError, match='40 image.s. are not 112 high'):
        write_shards(folder, tmp_path / 'out' / 'x')
    assert not (tmp_path / 'out').exists()


def test_more_shards_than_may_be_open(folder, tmp_path, monkeypatch):
    pattern = write_shards(folder, tmp_path / 'x', per_shard=1)
    monkeypatch.setattr(
        shards, '_opened', shards.functools.lru_cache(3)(shards._opened.__wrapped__)
    )
    before = len(os.listdir('/proc/self/fd')) if os.path.isdir('/proc/self/fd') else None
    faces = listed(pattern)
    faces.check(cache=False, workers=8)
    assert_same_faces(faces, folder)
    assert before is None or len(os.listdir('/proc/self/fd')) <= before + 4


def test_a_benchmark_on_shards(folder, pattern):
    ours, theirs = (lists.folder(root, r'_|\.', 1) for root in (pattern, folder.root))
    assert [Path(path).read_bytes() for path in theirs.sources] == ours.sources
    assert (ours.labels == theirs.labels).all() and (ours.ages == theirs.ages).all()


def test_the_command_writes_what_an_entry_names(entry, folder, tmp_path, monkeypatch, capsys):
    import prepare
    monkeypatch.setattr(prepare.meta, 'here', entry, raising=False)
    prepare.main(['--shards', 'here', str(tmp_path / 'set' / 'train')])
    pattern = capsys.readouterr().out.split("'")[3]
    assert_same_faces(listed(pattern), folder)
