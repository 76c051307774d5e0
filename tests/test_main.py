"""Who moves when: what a step of either player changes, whose turn it is, and the ramps."""

import numpy as np
import pytest
import torch
from conftest import batch, moved, new_training, snapshot, tiny

import dal
from recognition.weights import load_weights, save_checkpoint
from training import closed_form
from training.resume import weights_of


def training(**values):
    recipe = tiny(**dict(split=(0.0, 0.0), game=(0.0, 0.0), read_age=0.0, warmup=0.0) | values)
    result = new_training(recipe, people=4)
    result.total_steps = 100
    result.schedule(0.1)
    result.layout.begin([8], 0)
    return result


def test_w_solved_within_an_iteration_touches_no_gradient_of_the_network():
    gradients = []
    for memory in (0.0, 0.5):
        run = training(variate='label', memory=memory, lambda_dal=1e-12)
        w = snapshot(run.mapping)
        run.min_step(*batch())
        assert moved(w, run.mapping) == ({'w_id', 'covariance', 'cross'} if memory else set())
        gradients.append(run.model.backbone.project.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_a_solved_factorization_stays_through_the_steps_and_its_file_holds_it(tmp_path):
    run = training(factorization='solved', variate='label', max_steps=0, lambda_dal=0.0)
    x = run.model.eval().embed_mixed(batch()[0])
    fitter = dal.EraserFitter(run.model.dim, 2)
    fitter.update(x, dal.age_variates(batch()[2], 2), batch()[1])
    closed_form.set_eraser(run.model, fitter.solve())
    network, w = snapshot(run.model), snapshot(run.mapping)
    for _ in range(3):
        run.min_step(*batch())
    still = set(network) - moved(network, run.model)
    assert still == {'factorization.alpha', 'factorization.mean', 'factorization.projection'}
    assert not moved(w, run.mapping)
    assert not run.is_max_step() and not list(run.model.factorization.parameters())
    old = weights_of(run)  # a file may hold running moments too
    old['model'] |= {f'factorization.{name}': torch.zeros(3) for name in ('cross', 'filled')}
    save_checkpoint(old, tmp_path / 'weights.pth')
    model, _ = load_weights(tmp_path / 'weights.pth')
    x, x_age, x_id = found = model.features(batch()[0])
    torch.testing.assert_close(found, run.model.eval().features(batch()[0]))
    assert x_age.abs().max() > 0
    torch.testing.assert_close(x - x_age, x_id)


@pytest.mark.parametrize('variate', ['learned', 'label'])
def test_the_correlation_reaches_the_backbone_and_r_and_who_moves(variate):
    images, _, ages = batch()
    run = training(variate=variate, memory=0.0)
    run.model.train()
    _, x_age, x_id = run.model.features(images)
    dal.canonical_correlation(*run.mapping(x_id, run.variate(x_age, ages))).abs().backward()
    assert run.model.backbone.project.weight.grad.abs().sum() > 0
    assert run.model.factorization.age[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in run.model.age.parameters()), 'the age head unlearns age'
    run = training(variate=variate, memory=0.0)
    network, w = snapshot(run.model), snapshot(run.mapping)
    run.max_step(images, ages)
    assert not moved(network, run.model), 'weights or batch-norm statistics moved'
    assert moved(w, run.mapping) == ({'w_id', 'w_age'} if variate == 'learned' else {'w_id'})
    assert all(p.grad is None for p in run.model.parameters())
    w = snapshot(run.mapping)
    run.min_step(*batch())
    assert set(network) - moved(network, run.model) == {'factorization.alpha'}
    assert not moved(w, run.mapping) and all(p.grad is None for p in run.mapping.parameters())


def test_phases_cross_epochs_and_ramps_reach_the_networks():
    run = training(max_steps=20, min_steps=50, memory=0.0)
    turns = []
    # a counter that began anew each epoch would, at 7 steps an epoch, never reach the max phase
    for run.step in range(140):
        turns.append(run.is_max_step())
    assert turns == ([False] * 50 + [True] * 20) * 2
    ramps = dict(split=(0.2, 0.4), game=(0.4, 0.8), margin_warmup=0.5, warmup=0.1)
    values = dict(lambda_dal=3.0, margin=0.4, lr=0.1, memory=0.0, max_steps=20)
    run, seen = training(**ramps, **values), []
    for progress in (0.0, 0.3, 0.6, 1.0):
        run.schedule(progress)
        alpha, rate = run.model.factorization.alpha.item(), run.optimizer.param_groups[1]['lr']
        seen.append((alpha, run.lambda_dal, run.model.identity.m, rate))
    expected = [(0, 0, 0, 0), (0.5, 0, 0.24, 0.0883), (1, 1.5, 0.4, 0.0413), (1, 3, 0.4, 0)]
    np.testing.assert_allclose(seen, expected, atol=1e-3)
    run.step = 60
    run.schedule(0.3)
    assert not run.is_max_step(), 'the adversary waits for the game to begin'


def test_two_seeds_flip_differently():
    """A CPU's generator keeps 32 bits of a seed: of seed << 32 | step, the step alone."""
    faces, zeros = torch.arange(96, dtype=torch.uint8).expand(64, 3, 112, 96), torch.zeros(64)
    flips = {}
    for seed in (0, 1, 0):
        run, seen = training(seed=seed), []
        for run.step in (0, 1):
            images, _, _ = run.begin_step(faces, zeros, zeros)
            seen.append(images[:, 0, 0, 0] > 0)
        first, second = seen
        assert 16 < first.sum() < 48 and (first != second).any()
        assert seed not in flips or torch.equal(flips[seed], first)
        flips[seed] = first
    assert 16 < (flips[0] != flips[1]).sum() < 48
