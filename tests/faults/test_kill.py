"""A run that is killed at any moment and started again is the run it would have been."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from conftest import PHASES
from kills import MOMENTS, assert_same_run, ended, ends_as, finish, start

from dataset import Faces
from recognition.weights import load_checkpoint

KILLS = int(os.environ.get('FAULT_KILLS', 4))  # at random moments
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
KINDS = {'phases': PHASES, 'memory': ('split=(.2,.4)', 'game=(.3,.5)', 'read_age=.3')}
FOREVER = 10**6  # epochs
LINE = ('2', '--resume', '--save-every', '3')


@pytest.fixture(scope='session')
def whole(entry, tmp_path_factory):
    """The uninterrupted run of either kind of recipe, and the seconds it took."""
    runs = {}
    for kind, settings in KINDS.items():
        folder, began = tmp_path_factory.mktemp('whole') / kind, time.monotonic()
        assert finish(entry, folder, *LINE, settings=settings)[0] == 0
        runs[kind] = folder, time.monotonic() - began
    return runs


def until_done(entry, save, settings, draw, kills, seconds):
    """Starts and kills until a start comes to its end; the number of kills, at most `kills`."""
    done = 0
    while True:
        moment = None
        if draw.random() < 0.6:
            moment = draw.choice(list(MOMENTS)), draw.randint(1, 9), draw.choice(SIGNALS)
        number = draw.choice(SIGNALS)
        struck = moment if done < kills else None
        with ended(start(entry, save, *LINE, settings=settings, moment=struck)) as process:
            if not moment and done < kills:
                process.join(draw.uniform(0, seconds))
                if process.exitcode is None:
                    os.kill(process.pid, number)
            process.join(120)
        output = Path(f'{save}.0').read_text().splitlines()
        # SIGTERM itself ends it before there is anything to save
        if process.exitcode not in (0, -signal.SIGKILL, -signal.SIGTERM):
            named = (moment[2] if moment else number).name
            saved = f'error: {named} after step' in output[-1]
            assert process.exitcode == 1 and (saved or output[-1] == 'KeyboardInterrupt'), output
        if process.exitcode == 0:
            return done
        if (save / 'last.pth').exists():
            keys = ('model', 'mapping', 'optimizer', 'adversary', 'step')
            load_checkpoint(save / 'last.pth', keys)
        done += 1


def test_killed_at_random_moments_nothing_is_lost_or_different(entry, whole, tmp_path):
    draw, kills = random.Random(KILLS), 0
    for attempt in range(10**6):
        if kills >= KILLS:
            break
        kind = list(KINDS)[attempt % 2]
        reference, seconds = whole[kind]
        save = tmp_path / str(attempt)
        kills += until_done(entry, save, KINDS[kind], draw, KILLS - kills, seconds)
        assert_same_run(save, reference)
    print(f'{kills} kills')


ENDS = [('between steps', 5, signal.SIGTERM), ('between steps', 10, signal.SIGINT)]
ENDS += [('before validation', 1, signal.SIGTERM), ('after a report', 3, signal.SIGKILL)]
ENDS += [('half of a file', 4, signal.SIGKILL), ('before best.pth', 1, signal.SIGTERM)]
ENDS += [('before best.pth', 1, signal.SIGKILL)]


@pytest.mark.parametrize('moment', ENDS, ids=str)
def test_killed_at_the_end_of_an_epoch(entry, whole, tmp_path, moment):
    number = moment[2]
    status, output = finish(entry, tmp_path / 'run', *LINE, settings=PHASES, moment=moment)
    said = number != signal.SIGKILL and f'error: {number.name} after step' in output[-1]
    assert status == (1 if said else -signal.SIGKILL)
    ends_as(whole['phases'][0], entry, tmp_path / 'run', *LINE, settings=PHASES)


def wait_for(file, process):
    while not file.exists():
        assert process.is_alive()
        time.sleep(0.01)


def test_a_second_job_is_refused_until_the_first_is_killed(entry, tmp_path):
    workers = ('--workers', 2, '--save-every', 1)  # which outlive it by seconds
    with ended(start(entry, tmp_path / 'run', FOREVER, *workers)) as first:
        wait_for(tmp_path / 'run/last.pth', first)
        os.rename(tmp_path / 'run.0', tmp_path / 'first.0')
        status, output = finish(entry, tmp_path / 'run', *LINE)
        assert status == 1 and first.is_alive()
        holder = f'process {first.pid} on {os.uname().nodename}'
        said = f'error: {tmp_path}/run: {holder} is training into it: --save DIR starts elsewhere'
        assert output == [said]
    assert finish(entry, tmp_path / 'run', 1, '--resume', *workers)[0] == 0


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_job_reaches_the_workers_too(entry, tmp_path, number):
    """A scheduler and a terminal signal all processes; here while it waits for its workers."""

    def slow():
        os.setpgid(0, 0)
        read = Faces.read
        Faces.read = lambda self, index: (time.sleep(0.05), read(self, index))[1]

    line, options = ('--workers', 2, '--save-every', 1), dict(settings=('cache=False',))
    with ended(start(entry, tmp_path / 'run', FOREVER, *line, **options, prepare=slow)) as process:
        wait_for(tmp_path / 'run/last.pth', process)
        time.sleep(0.2)
        os.killpg(process.pid, number)
        process.join(60)
    *_, last = (tmp_path / 'run.0').read_text().splitlines()
    assert process.exitcode == 1 and f'error: {number.name} after step' in last
