"""Disks that fill, folders that can't be written, faces that vanish or rot, killed workers: one
line, and a state that resumes."""

import os
import re
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import PHASES
from kills import assert_same_run, finish

import main
from dataset import Faces

LINE = ('2', '--resume', '--save-every', '2')


@pytest.fixture(scope='module')
def whole(entry, tmp_path_factory):
    """A run to which nothing happened."""
    folder = tmp_path_factory.mktemp('whole') / 'run'
    assert finish(entry, folder, *LINE, settings=PHASES)[0] == 0
    return folder


@pytest.fixture
def own(entry, tmp_path):
    """A meta.py dict of faces that a test may spoil."""
    shutil.copytree(Path(entry['train_root']).parent, tmp_path / 'set', copy_function=shutil.copy)
    return entry | {
        'train_root': str(tmp_path / 'set/train'),
        'val_root': str(tmp_path / 'set/val'),
    }


@pytest.fixture
def tiny(tmp_path):
    """A disk of one megabyte."""
    folder = tmp_path / 'tiny'
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', folder]
    if not shutil.which('mount') or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('only root may mount a small disk')
    yield folder
    subprocess.run(['umount', '--lazy', folder], check=True)


def errors(output):
    """What the user sees of an error, which must be one line at the end."""
    found = [line for line in output if line.startswith('error: ')]
    told = [line for line in output if 'Traceback' in line]
    assert len(found) == 1 and found[0] == output[-1], output
    # the thread of Python's own by which a worker hands over files may say that it was cut off
    assert not told or any('resource_sharer.py' in line for line in output), output
    return found[0]


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
    assert finish(entry, tmp_path / 'run', *LINE, settings=PHASES)[0] == 0
    assert_same_run(tmp_path / 'run', whole)


@pytest.mark.parametrize('left', [0, 100_000])
def test_a_full_disk(entry, tmp_path, tiny, whole, left):
    filler = tiny / 'filler'
    filler.write_bytes(bytes((1 << 20) - left))
    status, output = finish(entry, tiny / 'run', *LINE, settings=PHASES, out=tmp_path / 'out')
    assert status == 1 and str(tiny / 'run') in errors(output)
    filler.unlink()
    assert finish(entry, tiny / 'run', *LINE, settings=PHASES, out=tmp_path / 'out')[0] == 0
    assert_same_run(tiny / 'run', whole)


def test_folders_that_cannot_be_written(entry, tmp_path):
    (tmp_path / 'file').write_text('')
    for folder in (tmp_path / 'file' / 'run', Path('/proc/run')):
        status, output = finish(entry, folder, 1, out=tmp_path / 'out')
        assert status == 1 and errors(output).endswith('--save names a folder that can be written')


def struck(change, batches=3, every_worker=False):
    """Lets change(faces, indices) change the faces when the batch after `batches` is read.

    By the first worker alone, unless by every one: a second may be ahead of it, and would strike
    before the first batch is read.
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
    options = dict(settings=(*PHASES, 'cache=False'))
    line = (*LINE, '--workers', workers)

    def vanish(faces, _):
        if os.path.exists(faces.root):
            os.rename(faces.root, f'{faces.root}.gone')

    status, output = finish(
        own, tmp_path / 'run', *line, **options, prepare=struck(vanish, 1 if workers else 3)
    )
    assert status == 1 and 'No such file or directory' in errors(output)
    assert torch.load(tmp_path / 'run/last.pth', weights_only=True)['step'] > 0
    status, output = finish(own, tmp_path / 'run', *line, **options)
    assert status == 1 and 'expected a folder with one folder per person' in errors(output)
    os.rename(f'{own["train_root"]}.gone', own['train_root'])
    assert finish(own, tmp_path / 'run', *line, **options)[0] == 0
    assert_same_run(tmp_path / 'run', whole)


def test_faces_to_validate_on_that_vanish(own, tmp_path, whole):
    options = dict(settings=(*PHASES, 'cache=False'))

    def vanish(faces, indices):
        if faces.root.endswith('val'):
            os.rename(faces.path(3), faces.path(3) + '.gone')

    status, output = finish(own, tmp_path / 'run', *LINE, **options, prepare=struck(vanish))
    assert status == 1 and 'No such file' in errors(output)
    assert torch.load(tmp_path / 'run/last.pth', weights_only=True)['step'] == 5
    (gone,) = Path(own['val_root']).rglob('*.gone')
    gone.rename(str(gone).removesuffix('.gone'))
    assert finish(own, tmp_path / 'run', *LINE, **options)[0] == 0
    assert_same_run(tmp_path / 'run', whole)


@pytest.mark.parametrize('workers, allowed', [(0, 2), (2, 2), (2, 0)])
def test_an_image_that_rots_in_mid_epoch(own, tmp_path, workers, allowed):
    rotten = sorted(Path(own['train_root']).rglob('*.jpg'))[11]
    whole = rotten.read_bytes()

    def rot(faces, _):
        if rotten.stat().st_size > 100:
            os.truncate(rotten, 100)

    options = dict(settings=(*PHASES, 'cache=False', f'skip_corrupt={allowed}'))
    prepare = struck(rot, 0, every_worker=True)
    status, output = finish(
        own, tmp_path / 'run', '3', '--workers', workers, **options, prepare=prepare
    )
    if allowed:  # met in every epoch, and counted once
        assert (
            status == 0
            and sum(f'warning: left out, 1 so far: {rotten}' in line for line in output) == 3
        )
    else:
        assert (
            status == 1
            and f'{rotten}: not readable as an image' in errors(output)
            and errors(output).endswith('skip_corrupt=1 pass with --set')
        )
        again = '3', '--resume', '--workers', workers
        assert finish(own, tmp_path / 'run', *again, **options)[0] == 1
        rotten.write_bytes(whole)
        assert finish(own, tmp_path / 'run', *again, **options)[0] == 0


def test_workers_killed_one_after_the_other(entry, tmp_path, whole):
    """As for want of memory, or by somebody."""
    options, line = dict(settings=(*PHASES, 'cache=False')), (*LINE, '--workers', 2)
    for number, worker in ((signal.SIGKILL, 0), (signal.SIGTERM, 1)):

        def kill(faces, _, number=number, worker=worker):
            info = torch.utils.data.get_worker_info()
            if info and info.id == worker:
                os.kill(os.getpid(), number)

        prepare = struck(kill, 1, every_worker=True)
        status, output = finish(entry, tmp_path / 'run', *line, **options, prepare=prepare)
        assert status == 1 and errors(output).endswith('--resume continues from the last save')
        assert re.search(
            r'DataLoader worker \(.*\) (is killed by signal: \w+|exited unexpectedly)\. It may ',
            errors(output),
        )
    assert finish(entry, tmp_path / 'run', *line, **options)[0] == 0
    assert_same_run(tmp_path / 'run', whole)


def test_after_a_nan_an_earlier_state_resumes(entry, tmp_path):
    bad = ('lr=4e9', 'clip=4e9', 'warmup=0.')
    assert finish(entry, tmp_path / 'run', 1)[0] == 0
    status, output = finish(entry, tmp_path / 'run', 3, '--resume', settings=bad)
    assert status == 1 and 'the loss is not finite' in errors(output)
    state = torch.load(tmp_path / 'run/last.pth', weights_only=True)
    assert state['step'] == 5 and all(tensor.isfinite().all() for tensor in state['model'].values())
    assert finish(entry, tmp_path / 'run', 3, '--resume')[0] == 0


def test_a_gradient_that_is_not_finite_spoils_no_state(entry, tmp_path):
    """The loss of that step is finite still: the weights after it are not."""

    def prepare():
        begin_step = main.Training.begin_step

        def spoilt(self, *batch):
            if self.step == 3:
                next(self.model.backbone.parameters()).register_hook(
                    lambda gradient: gradient * float('nan')
                )
            return begin_step(self, *batch)

        main.Training.begin_step = spoilt

    status, output = finish(entry, tmp_path / 'run', 1, '--save-every', 1, prepare=prepare)
    assert status == 1 and 'step 3: the loss is not finite' in errors(output)
    assert torch.load(tmp_path / 'run/last.pth', weights_only=True)['step'] == 3


@pytest.mark.parametrize('junk', [b'\xff\xfe', b'5\n{"step": "x"}\n', b'[' * 100_000])
def test_a_damaged_log_and_summary(entry, tmp_path, whole, junk):
    shutil.copytree(whole, tmp_path / 'run')
    for name in ('log.jsonl', 'run.json'):
        (tmp_path / 'run' / name).write_bytes(junk)
    status, output = finish(entry, tmp_path / 'run', 3, *LINE[1:], settings=PHASES)
    assert status == 0 and sum('run.json is damaged' in line for line in output) == 1
