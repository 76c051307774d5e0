"""Decoded pixels and shards that are cut, removed or damaged while in use; disks that fill."""
# ruff: noqa: F811, fixtures are imported and are parameters

import contextlib
import multiprocessing
import os
import random
import shutil
from pathlib import Path

import pytest
from conftest import PHASES, listed
from kills import ends_as, finish
from test_bad_disk import LINE, fails, last_step, limit, own, struck, whole  # noqa: F401
from test_strangers import damaged, fuzz

from preparation.sharding import write_shards
from utils import DataError


def test_decoded_faces_that_are_damaged_or_half_made(own, tmp_path):
    first = listed(own['train_root'])
    first.check()
    file, good = Path(first.pixels.path), first.__getitems__([39])[0]
    data = file.read_bytes()
    other = data.replace(b'|u1', b'|O8'), b'PK\3\4' + data
    for spoilt in (b'', data[:50], data[:-1], data[:4000], b'junk' * 9000, *other):
        file.write_bytes(spoilt)
        again = listed(own['train_root'])
        again.check()
        assert again.pixels.path == str(file) and (again.__getitems__([39])[0] == good).all()
    names = [f'.train.{"0" * 32}.tmp', f'.train.{"1" * 32}.tmp', f'.val.{"2" * 32}.tmp']
    old, young, other = files = [tmp_path / 'set' / name for name in names]
    for file in files:
        file.write_bytes(b'')
        os.utime(file, (0, 0) if file != young else None)
    listed(own['train_root']).check()
    assert not old.exists() and young.exists() and other.exists()


CHANGES = [
    (lambda path: os.truncate(path, 5000), 'cut short while in use'),
    (os.remove, 'No such file or directory'),
]


@pytest.mark.parametrize('change, why', CHANGES)
def test_decoded_faces_that_are_cut_or_removed_in_mid_epoch(own, whole, tmp_path, change, why):
    """Here a memory map would end the process without a word."""
    line = (*LINE, '--workers', 2)

    def strike(faces, _):
        if faces.root.endswith('train') and os.path.exists(faces.pixels.path):
            faces.pixels.file = None  # as in a worker that has read nothing yet
            change(faces.pixels.path)

    options = dict(settings=PHASES, prepare=struck(strike, 1))
    said = fails(own, tmp_path / 'run', *line, **options)
    assert why in said and '.npy, the file of decoded faces' in said
    assert 0 < last_step(tmp_path) < 5, 'saved where it stopped'
    ends_as(whole, own, tmp_path / 'run', *line, settings=PHASES)


def elsewhere(work, prepare):
    """What work() returns in a process of its own, after prepare() there."""

    def run():
        prepare()
        pipe[1].send(work())

    pipe = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    pipe[1].close()
    with contextlib.suppress(EOFError):  # it ended without a word
        return pipe[0].recv()
    process.join()
    pytest.fail(f'exit status {process.exitcode}')


def test_a_disk_that_fills_while_faces_are_decoded_or_shards_written(own, tmp_path):
    def check():
        faces = listed(own['train_root'])
        return faces.check(), faces.pixels, len(faces.__getitems__([0, 39])[0])

    before = set((tmp_path / 'set').glob('.*'))
    (notice,), pixels, n = elsewhere(check, limit(100_000))
    assert 'every epoch decodes anew' in notice and pixels is None and n == 2
    assert set((tmp_path / 'set').glob('.*')) == before

    def write():
        try:
            return write_shards(listed(own['train_root']), tmp_path / 'out' / 'x', per_shard=12)
        except OSError as error:
            return f'{error.filename}: {error.strerror}'

    assert elsewhere(write, limit(50_000)) == f'{tmp_path}/out/x-00000.tar: File too large'
    assert os.listdir(tmp_path / 'out') == ['x.json']
    assert len(listed(write())) == 40


def shards_of(entry, folder):
    root = write_shards(listed(entry['train_root']), folder / 'set' / 'train', per_shard=10)
    return entry | {'train_root': root}


@pytest.fixture
def sharded(entry, tmp_path):
    return shards_of(entry, tmp_path)


OPTIONS = dict(settings=(*PHASES, 'cache=False'))


@pytest.fixture(scope='module')
def whole_on_shards(entry, tmp_path_factory):
    folder = tmp_path_factory.mktemp('shards')
    assert finish(shards_of(entry, folder), folder / 'run', *LINE, **OPTIONS)[0] == 0
    return folder / 'run'


@pytest.mark.parametrize('change', [lambda path: os.truncate(path, 512), os.remove])
def test_a_shard_that_is_cut_or_vanishes_in_mid_epoch(sharded, whole_on_shards, tmp_path, change):
    options, line = OPTIONS, (*LINE, '--workers', 0 if change is os.remove else 2)
    path = Path(sharded['train_root'].replace('{00000..00003}', '00001'))
    shutil.copy2(path, tmp_path / 'kept')

    def strike(faces, _):
        from storage.shards import _opened

        if faces.root == sharded['train_root'] and path.exists() and path.stat().st_size > 512:
            _opened.cache_clear()
            change(path)

    said = fails(sharded, tmp_path / 'run', *line, **options, prepare=struck(strike, 1))
    assert 'train-00001.tar:0000000' in said
    assert last_step(tmp_path) > 0
    why = '1 of 4 shard(s) missing' if change is os.remove else 'cut short'
    assert why in fails(sharded, tmp_path / 'run', *line, **options)
    shutil.copy2(tmp_path / 'kept', path)
    ends_as(whole_on_shards, sharded, tmp_path / 'run', *line, **options)


def test_fuzzed_shards(sharded):
    path = Path(sharded['train_root'].replace('{00000..00003}', '00001'))
    draw, ends, intact = random.Random(0), set(), path.read_bytes()

    def check(data):
        if draw.random() < 0.3:  # in what is said of a face, since most of a tar is image
            at = intact.index(b'{"identity"', draw.randrange(len(intact) // 2))
            spoilt = damaged(intact[at : at + 64], draw)[:64].ljust(64)
            data = intact[:at] + spoilt + intact[at + 64 :]
        path.write_bytes(data)
        try:
            faces = listed(sharded['train_root'])
            faces.check(cache=False, skip_corrupt=len(faces))
            assert 0 <= faces.ages.min() and faces.ages.max() <= 120
            assert faces.labels.max() < len(faces.classes)
            assert len(faces.__getitems__([0])[0]) == 1
            ends.add('faces')
        except DataError as error:
            assert str(error).isprintable() and len(str(error)) < 1000
            ends.add('refused')

    fuzz(0.5, [intact], check)
    assert ends == {'faces', 'refused'}
