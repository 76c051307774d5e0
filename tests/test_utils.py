"""Values of recipes, which weights decay, signals that wait for the step, several processes."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from conftest import ROOT, refused
from photographs import command, contents, photograph, points_csv
from torch import nn

from model import DALModel
from system.locks import Interrupt
from system.processes import each
from training.recipe import Recipe, paper, small
from training.state import parameter_groups


def test_override_and_a_recipe_that_outlives_its_values():
    text = 'lr=1 min_steps=5 widths=(3,4,5,6) variate=label horizon=7 cache=False'
    recipe = paper.override([pair.split('=') for pair in text.split()])
    values = dict(min_steps=5, widths=(3, 4, 5, 6), variate='label', horizon=7, cache=False)
    assert recipe == replace(paper, lr=1.0, **values)
    assert type(recipe.lr) is float and recipe.override([('horizon', 'None')]).horizon is None
    refused('--set Lr', paper.override, [('Lr', '1')])
    assert Recipe.of({'dim': 64, 'ascents': 5}) == replace(paper, dim=64)
    assert Recipe.of(None) == paper
    assert Recipe.of(small.as_dict()) == small


IMPOSSIBLE = """
scale=-1 scale=0 momentum=2 momentum=1 warmup=2 lr=-.1 lr=1e999 dim=0 batch_size=1 seed=-1
seed=4294967296 margin=-.1 margin_warmup=1.5 read_age=2 split=(0,2) split=(.3,) game=(.5,.4)
sample_rate=0 sample_rate=.5 memory=1 memory=.5 variate=age head=sphereface age_head=mean horizon=0
accumulate=0 clip=0 weight_decay=-1 lambda_age=-1 lambda_dal=-1 adversary_lr=0 min_steps=0
max_steps=-1 workers=-1 skip_corrupt=-1 save_every=-1 layers=(1,) layers=() widths=()
widths=(0,1,1,1) layers=(-1,0,0,0) factorization=none age_powers=0 precision=tf32
"""


@pytest.mark.parametrize('setting', IMPOSSIBLE.split())
def test_values_that_can_not_be_are_named(setting):
    key = setting.split('=')[0]
    assert refused(f'{key}.* (is|must) ', paper.override, [setting.split('=')]).isprintable()


def test_weight_decay_not_on_norms_and_biases():
    module = DALModel(nn.Sequential(nn.Conv2d(3, 4, 3, 16), nn.BatchNorm2d(4), nn.Flatten()), 3)
    decayed, free = parameter_groups(module, replace(paper, weight_decay=0.1))
    names = {id(p): name for name, p in module.named_parameters()}
    biases = {name for name in names.values() if name.endswith('bias')}
    assert {names[id(p)] for p in free['params']} == biases | {'backbone.1.weight'}
    assert decayed['weight_decay'] == 0.1 and free['weight_decay'] == 0
    assert len(decayed['params']) + len(free['params']) == len(names)


def test_signals_wait_for_the_step_but_in_another_thread(capsys):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.received == 'SIGTERM'
        again = signal.getsignal(signal.SIGTERM)
        assert again == before[0], 'a second one must end the process as usual'
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interrupt() as interrupt:
            found.append((interrupt.received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)] and 'not in the main thread' in capsys.readouterr().out


def add(tool, item):
    return tool[0] + item, os.getpid()


def end(tool, item):
    os._exit(1)


def make():
    return [100]


def test_in_order_unless_a_process_ends():
    for workers in [1, 2]:
        for count in [0, 1, 200]:
            done = list(each(add, range(count), make(), make, workers))
            assert [value for value, _ in done] == [100 + item for item in range(count)]
            here = {process for _, process in done} == {os.getpid()}
            assert count == 0 or here == (workers == 1 or count == 1)
    refused('a process ended by itself', lambda: list(each(end, range(4), None, list, 2)))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_gone_on_with(tmp_path, number):
    """A signal to the whole group, of which the first process speaks; then the same command."""
    paths = [tmp_path / f'source/P{k % 3}/{k}.png' for k in range(24)]
    rows = {path.name: photograph(path, seed=k) for k, path in enumerate(paths)}
    points_csv(tmp_path / 'points.csv', rows)
    (tmp_path / 'ages.csv').write_text(''.join(f'{k}.png,{20 + k}\n' for k in range(24)))
    files = ['--landmarks', tmp_path / 'points.csv', '--ages', tmp_path / 'ages.csv']
    folders = [tmp_path / 'source', tmp_path / 'target']
    line = [sys.executable, ROOT / 'prepare.py', *folders, *files, '--workers', '2']
    running = subprocess.Popen(line, start_new_session=True, stderr=subprocess.PIPE, text=True)
    report = tmp_path / 'target/report.csv'
    while running.poll() is None and (not report.exists() or report.read_text().count('\n') < 2):
        pass
    if running.poll() is None:
        os.killpg(running.pid, number)
    told = running.communicate()[1]
    expected = f'error: {number.name}: stopped; the same command goes on from here\n'
    assert running.returncode == 0 or told == expected
    command(*folders, *files)
    command(folders[0], tmp_path / 'other', *files)  # one process makes the same faces
    ours, theirs = (contents(tmp_path / name) for name in ('target', 'other'))
    faces = [name for name in ours if name.suffix == '.jpg']
    assert len(faces) == 25 and all(ours[name] == theirs[name] for name in faces)
