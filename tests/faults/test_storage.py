"""Decoded pixels and shards that are cut, removed or damaged while in use; disks that fill."""

import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import PHASES
from kills import assert_same_run, finish
from test_bad_disk import LINE, errors, limit, own, struck, tiny, whole  # noqa: F401
from test_strangers import damaged

from dataset import Faces
from preparation.sharding import write_shards
from utils import DataError

SECONDS = float(os.environ.get('FAULT_SECONDS', 4))  # of fuzzing


@pytest.mark.parametrize(
    'spoil',
    [
        lambda data: b'',
        lambda data: data[:50],
        lambda data: data[:-1],
        lambda data: data[:4000],
        lambda data: b'junk' * 9000,
        lambda data: data.replace(b'|u1', b'|O8'),
        lambda data: b'PK\3\4' + data,
    ],
)
def test_decoded_faces_that_somebody_damaged_are_decoded_again(own, spoil):  # noqa: F811
    first = Faces(own['train_root'], own['pat'], own['pos'])
    first.check()
    file, good = Path(first.pixels.path), first.__getitems__([39])[0]
    file.write_bytes(spoil(file.read_bytes()))
    again = Faces(own['train_root'], own['pat'], own['pos'])
    again.check()
    assert again.pixels.path == str(file) and (again.__getitems__([39])[0] == good).all()


def test_what_a_killed_decoding_left_goes_after_a_day(own, tmp_path):  # noqa: F811
    old, young, other = (
        tmp_path / 'set' / f'.{name}.{k * 32}.tmp'
        for name, k in (('train', '0'), ('train', '1'), ('val', '2'))
    )
    for file in (old, young, other):
        file.write_bytes(b'')
        os.utime(file, (0, 0) if file != young else None)
    Faces(own['train_root'], own['pat'], own['pos']).check()
    assert [file.exists() for file in (old, young, other)] == [False, True, True]


@pytest.mark.parametrize(
    'workers, change, why',
    [
        (2, lambda path: os.truncate(path, 5000), 'cut short while in use'),
        (2, os.remove, 'No such file or directory'),
    ],
)
def test_decoded_faces_that_are_cut_or_removed_in_mid_epoch(
    own,  # noqa: F811
    whole,  # noqa: F811
    tmp_path,
    workers,
    change,
    why,
):
    """Here a memory map would end the process without a word."""
    line = (*LINE, '--workers', workers)

    def strike(faces, _):
        if faces.root.endswith('train') and os.path.exists(faces.pixels.path):
            faces.pixels.file = None  # as in a worker that has read nothing yet
            change(faces.pixels.path)

    status, output = finish(
        own, tmp_path / 'run', *line, settings=PHASES, prepare=struck(strike, 1)
    )
    assert (
        status == 1
        and why in errors(output)
        and '.npy, the file of decoded faces' in errors(output)
    )
    assert 0 < torch.load(tmp_path / 'run/last.pth', weights_only=True)['step'] < 5, (
        'saved where it stopped'
    )
    assert finish(own, tmp_path / 'run', *line, settings=PHASES)[0] == 0
    assert_same_run(tmp_path / 'run', whole)


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


def test_a_disk_that_fills_while_faces_are_decoded(own, tmp_path):  # noqa: F811
    def check():
        faces = Faces(own['train_root'], own['pat'], own['pos'])
        return faces.check(), faces.pixels, len(faces.__getitems__([0, 39])[0])

    before = set((tmp_path / 'set').glob('.*'))
    notices, pixels, n = elsewhere(check, limit(100_000))
    assert (
        len(notices) == 1 and 'every epoch decodes anew' in notices[0] and pixels is None and n == 2
    )
    assert set((tmp_path / 'set').glob('.*')) == before


def test_a_disk_that_is_full_although_the_system_says_it_is_not(own, tiny, monkeypatch):  # noqa: F811
    shutil.copytree(own['train_root'], tiny / 'train')
    monkeypatch.setattr(
        shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)
    )
    notices = elsewhere(lambda: Faces(tiny / 'train', own['pat'], own['pos']).check(), lambda: None)
    assert (
        len(notices) == 1 and 'every epoch decodes anew' in notices[0] and not list(tiny.glob('.*'))
    )


def test_a_disk_that_fills_while_shards_are_written(own, tmp_path):  # noqa: F811
    def write():
        try:
            return write_shards(
                Faces(own['train_root'], own['pat'], own['pos']),
                tmp_path / 'out' / 'x',
                per_shard=12,
            )
        except OSError as error:
            return f'{error.filename}: {error.strerror}'

    assert elsewhere(write, limit(50_000)) == f'{tmp_path}/out/x-00000.tar: File too large'
    assert os.listdir(tmp_path / 'out') == ['x.json']
    assert len(Faces(write(), own['pat'], own['pos'])) == 40


# a training on shards


@pytest.fixture
def sharded(entry, tmp_path):
    """A meta.py dict of shards that a test may spoil."""
    faces = Faces(entry['train_root'], entry['pat'], entry['pos'])
    return entry | {'train_root': write_shards(faces, tmp_path / 'set' / 'train', per_shard=10)}


OPTIONS = dict(settings=(*PHASES, 'cache=False'))


@pytest.fixture(scope='module')
def whole_on_shards(entry, tmp_path_factory):
    """A run on such shards to which nothing happened."""
    folder = tmp_path_factory.mktemp('shards')
    faces = Faces(entry['train_root'], entry['pat'], entry['pos'])
    shards = entry | {'train_root': write_shards(faces, folder / 'set' / 'train', per_shard=10)}
    assert finish(shards, folder / 'run', *LINE, **OPTIONS)[0] == 0
    return folder / 'run'


def test_killed_in_mid_epoch_it_is_the_run_it_would_have_been(sharded, whole_on_shards, tmp_path):
    options, line = OPTIONS, (*LINE, '--workers', 2)
    for number, step in ((signal.SIGKILL, 3), (signal.SIGTERM, 2)):
        assert (
            finish(
                sharded, tmp_path / 'run', *line, **options, moment=('between steps', step, number)
            )[0]
            != 0
        )
    assert finish(sharded, tmp_path / 'run', *line, **options)[0] == 0
    assert_same_run(tmp_path / 'run', whole_on_shards)


@pytest.mark.parametrize(
    'workers, change', [(2, lambda path: os.truncate(path, 512)), (0, os.remove)]
)
def test_a_shard_that_is_cut_or_vanishes_in_mid_epoch(
    sharded, whole_on_shards, tmp_path, workers, change
):
    options, line = OPTIONS, (*LINE, '--workers', workers)
    path = Path(sharded['train_root'].replace('{00000..00003}', '00001'))
    shutil.copy2(path, tmp_path / 'kept')

    def strike(faces, _):
        from storage.shards import _opened

        if faces.root == sharded['train_root'] and path.exists() and path.stat().st_size > 512:
            _opened.cache_clear()
            change(path)

    status, output = finish(sharded, tmp_path / 'run', *line, **options, prepare=struck(strike, 1))
    assert status == 1 and 'train-00001.tar:0000000' in errors(output)
    assert torch.load(tmp_path / 'run/last.pth', weights_only=True)['step'] > 0
    status, output = finish(sharded, tmp_path / 'run', *line, **options)
    assert status == 1 and (
        '1 of 4 shard(s) missing' in errors(output) or 'cut short' in errors(output)
    )
    shutil.copy2(tmp_path / 'kept', path)
    assert finish(sharded, tmp_path / 'run', *line, **options)[0] == 0
    assert_same_run(tmp_path / 'run', whole_on_shards)


def test_fuzzed_shards(sharded, tmp_path):
    """Whatever is in them: faces, or one line."""
    path, draw, ends = (
        Path(sharded['train_root'].replace('{00000..00003}', '00001')),
        random.Random(0),
        [],
    )
    intact, until = path.read_bytes(), time.monotonic() + SECONDS / 2
    while time.monotonic() < until:
        data = damaged(intact, draw)
        if draw.random() < 0.3:  # in what is said of a face, since most of a tar is image
            at = intact.index(b'{"identity"', draw.randrange(len(intact) // 2))
            data = (
                intact[:at]
                + bytes(damaged(intact[at : at + 64], draw))[:64].ljust(64)
                + intact[at + 64 :]
            )
        path.write_bytes(data)
        try:
            faces = Faces(sharded['train_root'], sharded['pat'], sharded['pos'])
            faces.check(cache=False, skip_corrupt=len(faces))
            assert (
                faces.ages.min() >= 0
                and faces.ages.max() <= 120
                and faces.labels.max() < len(faces.classes)
            )
            assert len(faces.__getitems__([0])[0]) == 1
            ends.append('faces')
        except DataError as error:
            assert str(error).isprintable() and len(str(error)) < 1000
            ends.append('refused')
    assert {'faces', 'refused'} <= set(ends), len(ends)


@pytest.mark.parametrize('content', [{'pattern': 1}, [], None, 'x'])
def test_a_plan_that_is_not_ours_is_not_overwritten(own, tmp_path, content):  # noqa: F811
    (tmp_path / 'x.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match='x.json: there are shards of this name already'):
        write_shards(Faces(own['train_root'], own['pat'], own['pos']), tmp_path / 'x')
    assert json.loads((tmp_path / 'x.json').read_text()) == content
