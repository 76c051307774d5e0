"""Values of recipes, which weights decay, and signals that wait for the step."""

import signal
import threading
from dataclasses import replace

import pytest
from conftest import refused
from torch import nn

import utils
from model import DALModel
from system.locks import Interrupt
from training.recipe import Recipe, paper, small
from training.state import parameter_groups


def test_override():
    text = 'lr=1 min_steps=5 widths=(3,4,5,6) variate=label horizon=7 cache=False'
    recipe = paper.override([pair.split('=') for pair in text.split()])
    values = dict(min_steps=5, widths=(3, 4, 5, 6), variate='label', horizon=7, cache=False)
    assert recipe == replace(paper, lr=1.0, **values)
    assert type(recipe.lr) is float and recipe.override([('horizon', 'None')]).horizon is None
    refused('--set Lr', paper.override, [('Lr', '1')])


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
    with pytest.raises(utils.UserError, match=f'{key}.* (is|must) ') as error:
        paper.override([setting.split('=')])
    assert str(error.value).isprintable()


def test_a_recipe_outlives_its_values():
    """In an older file: missing values are the paper's, retired ones are left out."""
    assert Recipe.of({'dim': 64, 'ascents': 5}) == replace(paper, dim=64)
    assert Recipe.of(None) == paper
    assert Recipe.of(small.as_dict()) == small


def test_weight_decay_not_on_norms_and_biases():
    module = DALModel(nn.Sequential(nn.Conv2d(3, 4, 3, 16), nn.BatchNorm2d(4), nn.Flatten()), 3)
    decayed, free = parameter_groups(module, replace(paper, weight_decay=0.1))
    names = {id(p): name for name, p in module.named_parameters()}
    biases = {name for name in names.values() if name.endswith('bias')}
    assert {names[id(p)] for p in free['params']} == biases | {'backbone.1.weight'}
    assert decayed['weight_decay'] == 0.1 and free['weight_decay'] == 0
    assert len(decayed['params']) + len(free['params']) == len(names)


def test_interrupt_waits_for_the_step():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.received == 'SIGTERM'
        again = signal.getsignal(signal.SIGTERM)
        assert again == before[0], 'a second one must end the process as usual'
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_another_thread_does_without_signals(capsys):
    """As where a notebook or a server trains in one."""
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interrupt() as interrupt:
            found.append((interrupt.received, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(None, before)] and 'not in the main thread' in capsys.readouterr().out
