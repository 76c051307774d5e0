"""Files that are whole or not there, checkpoints that run no code, recipe values, schedule, log."""

import json
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from torch import nn

import utils
from model import DALModel
from recognition.weights import load_checkpoint, save_checkpoint
from training.log import Log, differences, read_log
from training.means import Mean
from training.recipe import Recipe, paper, small
from training.schedule import parameter_groups, warmup_cosine


def test_a_kill_during_a_save_leaves_a_whole_file(tmp_path):
    """kill −9 at several moments of a process that does nothing but save."""
    script = (
        'import sys, torch\n'
        'sys.path.insert(0, sys.argv[1])\n'
        'from recognition.weights import save_checkpoint\n'
        'for k in range(10**9):\n'
        '    state = {"k": k, "model": torch.full((3_000_000,), float(k))}\n'
        '    save_checkpoint(state, sys.argv[2])\n'
        '    print(k, flush=True)\n'
    )
    file = tmp_path / 'last.pth'
    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, '-c', script, str(ROOT), str(file)], stdout=subprocess.PIPE
        )
        process.stdout.readline()
        time.sleep(0.013 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        state = load_checkpoint(file, ('k', 'model'))
        assert (state['model'] == state['k']).all()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / 'a'
    utils.write_whole(file, lambda temporary: temporary.write_text('old'))

    def write(temporary):
        temporary.write_text('half')
        raise OSError('disk full')

    with pytest.raises(OSError):
        utils.write_whole(file, write)
    assert file.read_text() == 'old' and list(tmp_path.iterdir()) == [file]


class Hostile:
    def __reduce__(self):
        return print, ('this ran',)


@pytest.mark.parametrize(
    'content, message',
    [
        (None, 'no such file'),
        (b'', 'empty'),
        (b'junk' * 100, 'no file of torch.save'),
        (pickle.dumps(Hostile()), 'no file of torch.save'),
        ({'layers': 1}, 'lacks model'),
        ([1, 2], 'lacks model'),
    ],
)
def test_checkpoints_from_strangers(tmp_path, capfd, content, message):
    file = tmp_path / 'w.pth'
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(utils.UserError, match=message):
        load_checkpoint(file, ('model',))
    assert 'this ran' not in capfd.readouterr().out


def test_damage_within_a_tensor_is_found(tmp_path):
    """Of which the archive knows by its checksums; torch.load would take other weights."""
    file = tmp_path / 'w.pth'
    save_checkpoint({'model': torch.ones(100_000)}, file)
    data = bytearray(file.read_bytes())
    data[200_000:202_000] = bytes(2000)
    file.write_bytes(data)
    assert len(torch.load(file, weights_only=True)['model']) == 100_000
    with pytest.raises(utils.UserError, match='damaged in model .its checksum'):
        load_checkpoint(file, ('model',))


def test_a_truncated_checkpoint(tmp_path):
    file = tmp_path / 'w.pth'
    save_checkpoint({'model': torch.zeros(1000)}, file)
    file.write_bytes(file.read_bytes()[:-700])
    with pytest.raises(utils.UserError, match='cut: its'):
        load_checkpoint(file, ('model',))


def test_override():
    pairs = [
        ('lr', '1'),
        ('min_steps', '5'),
        ('widths', '(3, 4, 5, 6)'),
        ('variate', 'label'),
        ('horizon', '7'),
        ('cache', 'False'),
    ]
    recipe = paper.override(pairs)
    assert recipe == replace(
        paper, lr=1.0, min_steps=5, widths=(3, 4, 5, 6), variate='label', horizon=7, cache=False
    )
    assert type(recipe.lr) is float and recipe.override([('horizon', 'None')]).horizon is None


@pytest.mark.parametrize(
    'key, text',
    [
        ('lr', 'fast'),
        ('min_steps', '1.5'),
        ('min_steps', 'True'),
        ('layers', '3'),
        ('cache', '1'),
        ('Lr', '1'),
        ('lr', 'exit()'),
        ('split', '(1, None)'),
    ],
)
def test_override_refuses_another_kind(key, text):
    with pytest.raises(utils.UserError, match=f'--set {key}'):
        paper.override([(key, text)])


@pytest.mark.parametrize(
    'setting',
    [
        'scale=-1',
        'scale=0',
        'momentum=2',
        'momentum=1',
        'warmup=2',
        'lr=-.1',
        'lr=1e999',
        'dim=0',
        'batch_size=1',
        'seed=-1',
        'seed=4294967296',
        'margin=-.1',
        'margin_warmup=1.5',
        'read_age=2',
        'split=(0,2)',
        'game=(.5,.4)',
        'sample_rate=0',
        'sample_rate=.5',
        'memory=1',
        'memory=.5',
        'variate=age',
        'head=sphereface',
        'age_head=mean',
        'horizon=0',
        'accumulate=0',
        'clip=0',
        'weight_decay=-1',
        'lambda_age=-1',
        'lambda_dal=-1',
        'adversary_lr=0',
        'min_steps=0',
        'max_steps=-1',
        'workers=-1',
        'skip_corrupt=-1',
        'save_every=-1',
        'layers=(1,)',
        'widths=()',
        'widths=(0,1,1,1)',
        'layers=(-1,0,0,0)',
        'factorization=none',
        'age_powers=0',
    ],
)
def test_values_that_can_not_be_are_named(setting):
    key = setting.split('=')[0]
    with pytest.raises(utils.UserError, match=f'{key}.* (is|must) ') as error:
        paper.override([setting.split('=')])
    assert str(error.value).isprintable()


def test_a_recipe_outlives_its_values():
    """In an older file: missing values are the paper's, retired ones are left out."""
    assert Recipe.of({'dim': 64, 'ascents': 5}) == replace(paper, dim=64)
    assert Recipe.of(None) == paper
    assert Recipe.of(small.as_dict()) == small


def test_no_such_gpu():
    with pytest.raises(utils.UserError, match='ctx 99: this machine has'):
        utils.pick_device(99)


def test_warmup_cosine():
    factors = [warmup_cosine(p, 0.2) for p in (0, 0.1, 0.2, 0.6, 1, 1.5)]
    assert factors == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert warmup_cosine(0, 0) == 1


def test_weight_decay_not_on_norms_and_biases():
    module = DALModel(nn.Sequential(nn.Conv2d(3, 4, 3, 16), nn.BatchNorm2d(4), nn.Flatten()), 3)
    decayed, free = parameter_groups(module, replace(paper, weight_decay=0.1))
    names = {id(p): name for name, p in module.named_parameters()}
    assert {names[id(p)] for p in free['params']} == {
        name for name in names.values() if name.endswith('bias') or name == 'backbone.1.weight'
    }
    assert decayed['weight_decay'] == 0.1 and free['weight_decay'] == 0
    assert len(decayed['params']) + len(free['params']) == len(names)


def test_mean():
    mean = Mean()
    assert not mean and mean.flush() == {}
    for value in (1.0, 2.0, 6.0):
        mean.add(a=torch.tensor(value))
    mean.add(b=torch.tensor(5))
    assert mean and mean.flush() == {'a': 3.0, 'b': 5.0} and not mean


def test_log_forgets_what_a_resumed_run_writes_again(tmp_path):
    log = Log(tmp_path, 0)
    for step in (10, 20, 30):
        loss, written = (float('nan'), None) if step == 20 else (1.5, 1.5)
        assert log.report('min', step, loss=loss) == {'loss': written}
    log.close()
    with open(log.path, 'a') as file:
        file.write('{"kind": "min", "st')
    assert [row['step'] for row in read_log(log.path)] == [10, 20, 30]
    Log(tmp_path, 20).close()
    assert [json.loads(line)['loss'] for line in log.path.read_text().splitlines()] == [1.5, None]
    assert list(tmp_path.glob('events*'))


def test_what_differs_from_the_call_before(tmp_path):
    """A value that is newer than the run was the paper's."""
    now = {'recipe': small.as_dict(), 'faces': 40}
    older = {
        key: value
        for key, value in small.as_dict().items()
        if key not in ('freeze', 'precision', 'compile')
    }
    utils.write_json({'recipe': older, 'faces': 40}, tmp_path / 'run.json')
    assert differences(tmp_path / 'run.json', now) == []
    utils.write_json({'recipe': older | {'lr': 1.0}, 'faces': 39}, tmp_path / 'run.json')
    assert differences(tmp_path / 'run.json', now) == [
        'faces was 39 at the call before and is 40 now',
        'recipe lr was 1.0 at the call before and is 0.05 now',
    ]
    (tmp_path / 'run.json').write_text('{"recipe": {"lr": "fast"}}')
    assert 'is damaged' in differences(tmp_path / 'run.json', now)[0]
