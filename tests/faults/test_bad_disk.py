"""Disks that fill, faces that vanish or rot, killed workers: one line, a state that resumes."""

import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import PHASES
from kills import ends_as, finish

import main
from dataset import Faces

LINE = ('2', '--resume', '--save-every', '2')
UNCACHED = dict(settings=(*PHASES, 'cache=False'))


def last_step(folder):
    return torch.load(folder / 'run/last.pth', weights_only=True)['step']


@pytest.fixture(scope='module')
def whole(entry, tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole') / 'run'
    assert finish(entry, folder, *LINE, settings=PHASES)[0] == 0
    return folder


@pytest.fixture
def own(entry, tmp_path):
    """A meta.py dict of faces that a test may spoil."""
    shutil.copytree(Path(entry['train_root']).parent, tmp_path / 'set', copy_function=shutil.copy)
    return entry | {f'{part}_root': str(tmp_path / 'set' / part) for part in ('train', 'val')}


def errors(output):
    """What the user sees of an error, which must be one line at the end."""
    found = [line for line in output if line.startswith('error: ')]
    told = [line for line in output if 'Traceback' in line]
    assert len(found) == 1 and found[0] == output[-1], output
    # the thread of Python's own by which a worker hands over files may say that it was cut off
    assert not told or any('resource_sharer.py' in line for line in output), output
    return found[0]


def fails(*args, **options):
    status, output = finish(*args, **options)
    assert status == 1
    return errors(output)


def limit(size):
    """No file of this process may grow beyond `size` bytes: a quota, for tests that can't mount."""

    def prepare():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return prepare


@pytest.mark.parametrize('room', [2_000, 30_000, 60_000])
def test_files_that_may_not_grow(entry, tmp_path, whole, room):
    """From hardly a byte, over room for the log but for no weights, to room for weights alone."""
    status, output = finish(entry, tmp_path / 'run', *LINE, settings=PHASES, prepare=limit(room))
    assert status == 1 or room == 60_000
    if status:
        assert str(tmp_path / 'run') in errors(output)
    ends_as(whole, entry, tmp_path / 'run', *LINE, settings=PHASES)


def test_folders_that_cannot_be_written(entry, tmp_path):
    (tmp_path / 'file').write_text('')
    for folder in (tmp_path / 'file' / 'run', Path('/proc/run')):
        line = fails(entry, folder, 1, out=tmp_path / 'out')
        assert line.endswith('--save names a folder that can be written')


def struck(change, batches=3, every_worker=False):
    """Lets change(faces, indices) change the faces when the first worker, or every one, reads the
    batch after `batches`. A second worker may be ahead of the first.
    """

    def prepare():
        original, count = Faces.__getitems__, [0]

        def read(self, indices):
            count[0] += 1
            worker = torch.utils.data.get_worker_info()
            if count[0] > batches and (every_worker or not worker or worker.id == 0):
                change(self, indices)
            return original(self, indices)

        Faces.__getitems__ = read

    return prepare


@pytest.mark.parametrize('workers', [0, 2])
def test_a_data_set_that_vanishes_in_mid_epoch(own, tmp_path, whole, workers):
    line = tmp_path / 'run', *LINE, '--workers', workers

    def vanish(faces, _):
        if os.path.exists(faces.root):
            os.rename(faces.root, f'{faces.root}.gone')

    prepare = struck(vanish, 1 if workers else 3)
    assert 'No such file or directory' in fails(own, *line, **UNCACHED, prepare=prepare)
    assert last_step(tmp_path) > 0
    assert 'expected a folder with one folder per person' in fails(own, *line, **UNCACHED)
    os.rename(f'{own["train_root"]}.gone', own['train_root'])
    ends_as(whole, own, *line, **UNCACHED)


@pytest.mark.parametrize('workers, allowed', [(0, 2), (2, 2), (2, 0)])
def test_an_image_that_rots_in_mid_epoch(own, tmp_path, workers, allowed):
    rotten = sorted(Path(own['train_root']).rglob('*.jpg'))[11]
    whole = rotten.read_bytes()

    def rot(faces, _):
        if rotten.stat().st_size > 100:
            os.truncate(rotten, 100)

    options = dict(settings=(*PHASES, 'cache=False', f'skip_corrupt={allowed}'))
    prepare, line = struck(rot, 0, every_worker=True), (tmp_path / 'run', '3', '--workers', workers)
    status, output = finish(own, *line, **options, prepare=prepare)
    if allowed:  # met in every epoch, and counted once
        said = [f'warning: left out, 1 so far: {rotten}' in line for line in output]
        assert status == 0 and sum(said) == 3
    else:
        assert status == 1 and f'{rotten}: not readable as an image' in errors(output)
        assert errors(output).endswith('skip_corrupt=1 pass with --set')
        assert finish(own, *line, '--resume', **options)[0] == 1
        rotten.write_bytes(whole)
        assert finish(own, *line, '--resume', **options)[0] == 0


def test_workers_killed_one_after_the_other(entry, tmp_path, whole):
    line = tmp_path / 'run', *LINE, '--workers', 2
    for number, worker in ((signal.SIGKILL, 0), (signal.SIGTERM, 1)):

        def kill(faces, _, number=number, worker=worker):
            info = torch.utils.data.get_worker_info()
            if info and info.id == worker:
                os.kill(os.getpid(), number)

        prepare = struck(kill, 1, every_worker=True)
        said = fails(entry, *line, **UNCACHED, prepare=prepare)
        assert said.endswith('--resume continues from the last save')
        ends = r'DataLoader worker \(.*\) (is killed by signal: \w+|exited unexpectedly)\. It may '
        assert re.search(ends, said)
    ends_as(whole, entry, *line, **UNCACHED)


def test_after_a_nan_an_earlier_state_resumes(entry, tmp_path):
    bad = ('lr=4e9', 'clip=4e9', 'warmup=0.')
    assert finish(entry, tmp_path / 'run', 1)[0] == 0
    assert 'the loss is not finite' in fails(entry, tmp_path / 'run', 3, '--resume', settings=bad)
    report = json.loads((tmp_path / 'run' / 'nan.json').read_text())
    assert None in report['losses'].values()
    assert 5 < report['step'] < 10 and len(report['files']) == 8
    state = torch.load(tmp_path / 'run/last.pth', weights_only=True)
    assert state['step'] == 5 and all(tensor.isfinite().all() for tensor in state['model'].values())
    assert finish(entry, tmp_path / 'run', 3, '--resume')[0] == 0


def test_a_gradient_that_is_not_finite_spoils_no_state(entry, tmp_path):
    """The loss of that step is finite still: the weights after it are not."""

    def prepare():
        begin_step = main.Training.begin_step

        def spoilt(self, *batch):
            if self.step == 3:
                weight = next(self.model.backbone.parameters())
                weight.register_hook(lambda gradient: gradient * float('nan'))
            return begin_step(self, *batch)

        main.Training.begin_step = spoilt

    status, output = finish(entry, tmp_path / 'run', 1, '--save-every', 1, prepare=prepare)
    assert status == 1 and 'step 3: the loss is not finite' in errors(output)
    assert last_step(tmp_path) == 3


@pytest.mark.parametrize('junk', [b'\xff\xfe', b'5\n{"step": "x"}\n', b'[' * 100_000])
def test_a_damaged_log_and_summary(entry, tmp_path, whole, junk):
    shutil.copytree(whole, tmp_path / 'run')
    for name in ('log.jsonl', 'run.json'):
        (tmp_path / 'run' / name).write_bytes(junk)
    status, output = finish(entry, tmp_path / 'run', 3, *LINE[1:], settings=PHASES)
    assert status == 0 and sum('run.json is damaged' in line for line in output) == 1
