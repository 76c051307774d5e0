"""A job of several ranks that is killed, or told to end, resumes as if nothing had been."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, command_line, same
from processes import SETTINGS, job, state

import main
from dataset import evaluation_loader
from training import distributed, validation


def assert_same_run(save, undisturbed):
    """The states are equal to the last bit, but for the recipe: how often it saves differs."""
    assert same(state(save) | {'recipe': 0}, state(undisturbed) | {'recipe': 0})


@pytest.mark.parametrize('seed', [0, 1])
def test_a_killed_rank_ends_the_job_and_it_resumes(entry, undisturbed, tmp_path, seed):
    """kill −9 of either of two, in the middle of a random step."""
    draw = random.Random(seed)
    victim, nth = seed, draw.randint(2, 14)

    def prepare():
        step, calls = torch.optim.SGD.step, [0]

        def struck(self, *args):
            calls[0] += 1
            if calls[0] == nth and distributed.rank() == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *args)

        torch.optim.SGD.step = struck

    line = (3, '--save-every', 2)
    statuses, said = job(2, entry, tmp_path / 'run', *line, prepare=prepare)
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 1
    assert f'error: process {1 - victim} of 2 lost the others' in said[1 - victim]
    assert 'Traceback' not in said[1 - victim]
    statuses, said = job(2, entry, tmp_path / 'run', *line, '--resume')
    assert statuses == [0, 0], said
    assert_same_run(tmp_path / 'run', undisturbed)


SIGNALS = [('step', (0,)), ('step', (1,)), ('step', (0, 1, 1))]
SIGNALS += [('validation', (0,)), ('validation', (0, 1, 1))]  # by rank 0: rank 1 waits for it


@pytest.mark.parametrize('moment, signalled', SIGNALS)
def test_a_signal_to_any_rank_ends_all(entry, undisturbed, tmp_path, moment, signalled):
    """(0, 1, 1): as where a scheduler signals the whole job and the launcher passes it on."""

    def prepare():
        if moment == 'step':
            owner, name, nth = main.Training, 'begin_step', 7
        else:
            owner, name, nth = main.DALModel, 'features', 1
        original, calls = getattr(owner, name), [0]

        def struck(self, *args, **options):
            calls[0] += moment == 'step' or torch.is_inference_mode_enabled() and not self.training
            if calls[0] == nth:
                for _ in range(signalled.count(distributed.rank())):
                    os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *args, **options)

        setattr(owner, name, struck)
        validation.evaluation_loader = lambda faces: evaluation_loader(faces, 4)

    statuses, said = job(2, entry, tmp_path / 'run', 3, prepare=prepare)
    assert statuses == [1, 1], said
    after = 7 if moment == 'step' else 5
    assert f'error: SIGTERM after step {after}: saved; --resume continues' in said[0]
    assert 'error' not in said[1]
    saved = state(tmp_path / 'run')
    assert saved['step'] == after and saved['epoch'] == after // 7
    statuses, said = job(2, entry, tmp_path / 'run', 3, '--resume')
    assert statuses == [0, 0], said
    assert_same_run(tmp_path / 'run', undisturbed)


def test_torchrun_restarts_what_was_killed(entry, tmp_path):
    """PyTorch's own launcher, as a user types it. kill −9 of one rank: both start anew."""
    save, script = tmp_path / 'run', tmp_path / 'meta_here.py'
    script.write_text(
        f'import meta\nmeta.here = {entry!r}\n'
        f'import runpy, sys\nsys.argv[0] = "main.py"\n'
        f'sys.path.insert(0, {str(ROOT)!r})\n'
        f'runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")\n'
    )
    torchrun = ['-m', 'torch.distributed.run', '--nproc-per-node', '2', '--max-restarts', '1']
    torchrun += ['--monitor-interval', '.1', '--standalone', str(script)]
    _, *line = command_line(save, -1, 3, '--resume', '--save-every', 1, settings=SETTINGS)
    output = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    line = [sys.executable, *torchrun, *line]
    process = subprocess.Popen(line, cwd=tmp_path, env=environment, **output)
    while not (save / 'epoch_001.pth').exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    holder = int((save / '.lock').read_text().split()[1])
    os.kill(holder, signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and 'epoch 3/3' in said, said
    assert state(save)['step'] == 15
    assert int((save / '.lock').read_text().split()[1]) != holder
