"""A training step asks a device for no more operations than it did: on a GPU each is a launch."""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from training.recipe import demo, paper, ramped


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')


# counted with torch 2.14; other releases divide a few operations otherwise
@pytest.mark.parametrize(
    'recipe, phase, ceiling',
    [(paper, 'min', 840), (paper, 'max', 480), (ramped, 'min', 925), (demo, 'min', 400)],
)
def test_the_launches_of_a_step(recipe, phase, ceiling):
    from launches import launches

    widths = tuple(width // 16 for width in recipe.widths)  # which changes nothing in their number
    recipe = replace(recipe, widths=widths, dim=16, batch_size=4, precision='bf16')
    counted = launches(recipe, phase)
    assert ceiling * 0.8 < counted.total <= ceiling, counted.counts.most_common(20)


def test_what_is_a_launch():
    from launches import Launches

    with Launches() as counted:
        x = torch.empty(4, 4)
        x.view(16).t()[2:].add_(1)
        torch._foreach_add_([x, x], 1)
        (x @ x.T).relu_()
    assert counted.counts == {'add_': 1, '_foreach_add_': 1, 'mm': 1, 'relu_': 1}
