"""Between two reports the host never waits for a GPU; shown with a fake one."""

from dataclasses import replace

import pytest
import torch
from conftest import iterate
from fake_gpu import NoWaits, Waited, fake_gpu, trained

from training.recipe import finetune, paper, ramped

SMALL = dict(layers=(0, 0, 0, 1), widths=(4, 8, 8, 16), dim=16, batch_size=8)
RECIPES = {
    'paper': paper,
    'ramped': ramped,
    'solved': replace(ramped, factorization='solved', lambda_dal=0.0),
    'fine-tuning': replace(finetune, freeze=0.05, batchnorm='frozen', margin_warmup=0.1),
    'sharded': replace(ramped, shard_head=True, sample_rate=0.3),
    'accumulate': replace(paper, accumulate=3),
    'ordinal': replace(ramped, age_head='ordinal'),
    'arcface': replace(paper, head='arcface'),
    'fp16': replace(paper, precision='fp16'),
    'float32': replace(ramped, precision='float32'),
}


@pytest.mark.parametrize('recipe', RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize('phase', ['min', 'max'])
def test_no_wait_in_a_step(recipe, phase):
    if phase == 'max' and not recipe.max_steps:
        pytest.skip('it has no max phase')
    with fake_gpu() as device:
        run, batch = trained(replace(recipe, **SMALL), device)
        run.step = 700 if phase == 'min' else 750  # of cycles of 70; every ramp is open
        assert run.is_max_step() == (phase == 'max') or not run.lambda_dal
        iterate(run, *batch)
        with NoWaits():
            iterate(run, *batch)
        assert run.step == (702 if phase == 'min' else 752)
        assert run.executor.scaler.is_enabled() == (recipe.precision == 'fp16')


WAITS = [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.cpu()]
WAITS += [lambda x: torch.tensor([1.0, 2.0], device=x.device)]


@pytest.mark.parametrize('wait', WAITS)
def test_a_wait_is_seen(wait):
    with fake_gpu() as device, pytest.raises(Waited), NoWaits():
        wait(torch.zeros(3, device=device))
