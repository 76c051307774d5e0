"""The correlation and its adversary, against closed forms."""
import numpy as np
import pytest
import torch

import dal
from training.recipe import paper


def variates(n=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, generator=generator)
    return a, 0.6 * a + torch.randn(n, generator=generator)


def test_correlation_is_numpys():
    for seed in range(20):
        a, b = variates(30, seed)
        expected = np.corrcoef(a, b)[0, 1]
        assert dal.canonical_correlation(a, b).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('scale', [1e-30, 1e-12, 1e-3, 7., 1e12, 1e30])
def test_correlation_ignores_scale(scale):
    a, b = variates()
    rho = dal.canonical_correlation(a, b)
    assert dal.canonical_correlation(a * scale, b).item() == pytest.approx(rho.item(), abs=1e-6)
    assert dal.canonical_correlation(a, b * scale).item() == pytest.approx(rho.item(), abs=1e-6)


def test_correlation_ignores_shift_and_carries_sign():
    a, b = variates()
    rho = dal.canonical_correlation(a, b).item()
    assert dal.canonical_correlation(a + 50, b - 20).item() == pytest.approx(rho, abs=1e-5)
    assert dal.canonical_correlation(-a, b).item() == pytest.approx(-rho, abs=1e-6)
    assert dal.canonical_correlation(a, 3 * a + 1).item() == pytest.approx(1, abs=1e-6)


def test_correlation_gradient_is_the_closed_form():
    a, b = variates(50)
    a.requires_grad_()
    dal.canonical_correlation(a, b).backward()
    u, v = (x - x.mean() for x in (a.detach().double(), b.double()))
    rho = (u @ v) / (u.norm() * v.norm())
    expected = (v / v.norm() - rho * u / u.norm()) / u.norm()
    torch.testing.assert_close(a.grad.double(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize('constant', [0., 0.1, -1e20])
def test_a_constant_variate_has_no_correlation_and_no_gradient(constant):
    a, b = torch.full((64,), constant, requires_grad=True), variates(64)[0].requires_grad_()
    rho = dal.canonical_correlation(a, b).abs()
    rho.backward()
    assert rho.item() == 0 and not a.grad.any() and not b.grad.any()


def test_correlation_is_float32_under_autocast():
    a, b = variates()
    with torch.autocast('cpu', torch.bfloat16):
        rho = dal.canonical_correlation(a.bfloat16(), b.bfloat16())
    assert rho.dtype == torch.float32
    expected = np.corrcoef(a.bfloat16().float(), b.bfloat16().float())[0, 1]
    assert rho.item() == pytest.approx(expected, abs=1e-6)


def correlated_features(n=4096, dim=24, seed=0):
    """x and y (n, dim), badly conditioned, sharing one direction."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, 1, generator=generator)
    scales = torch.logspace(-1, 1, dim)
    x, y = (torch.randn(n, dim, generator=generator) for _ in range(2))
    x[:, 3:4] = 0.9 * shared + 0.4 * x[:, 3:4]
    y[:, 9:10] = 0.9 * shared + 0.4 * y[:, 9:10]
    mix = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    return (x * scales) @ mix, (y * scales.flip(0)).relu()


@pytest.mark.parametrize('seed', range(3))
def test_ascent_reaches_the_first_canonical_correlation(seed):
    """On badly conditioned features of many more faces than dimensions, with the recipe's rate and
    the function that training calls."""
    x, y = correlated_features(seed=seed)
    best = dal.first_canonical_correlation(x, y)[0].item()
    assert best > 0.5
    torch.manual_seed(seed)
    mapping = dal.CanonicalMapping(24, 24)
    optimizer = torch.optim.Adam(mapping.parameters(), paper.adversary_lr, maximize=True)
    for _ in range(1500):
        _, after = dal.ascend(mapping, optimizer, x, y)
    assert after.item() == pytest.approx(best, rel=0.02)
    assert after <= best + 1e-4
    for w in mapping.parameters():
        assert w.norm().item() == pytest.approx(1, abs=1e-5)


def test_first_canonical_correlation_of_known_mixtures():
    x, _ = correlated_features()
    y = torch.randn(len(x), 5, generator=torch.Generator().manual_seed(9))
    noise = dal.first_canonical_correlation(x, y)[0]
    assert noise < 0.15
    mixed = torch.cat([y, x[:, :1] * 1e-6], 1)
    rho, w_x, w_y = dal.first_canonical_correlation(x, mixed)
    assert rho > 0.999
    assert dal.canonical_correlation(x.double() @ w_x, mixed.double() @ w_y).abs() > 0.999
    assert dal.first_canonical_correlation(x, torch.zeros(len(x), 3))[0] == 0


def test_ascend_leaves_no_gradient_in_features():
    x, y = (f.requires_grad_() for f in correlated_features(64))
    mapping = dal.CanonicalMapping(24, 24)
    before = [w.clone() for w in mapping.parameters()]
    dal.ascend(mapping, torch.optim.Adam(mapping.parameters(), .01, maximize=True), x, y)
    assert x.grad is None and y.grad is None
    assert all((w != old).any() for w, old in zip(mapping.parameters(), before, strict=True))


def test_solve_finds_the_ridge_direction_of_all_batches_that_it_remembers():
    """Against numpy on all faces at once. Each batch has fewer faces than features, so that no
    batch alone could tell."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6400, 24)) @ rng.normal(size=(24, 24)) + 5
    age = 40 + 9 * (x[:, :1] - x[:, 1:2]) + 40 * rng.normal(size=(6400, 1))
    mapping = dal.CanonicalMapping(24, 1)
    for batch in range(400):
        part = slice(16 * batch, 16 * (batch + 1))
        dal.solve(mapping, torch.from_numpy(x[part]).float(), torch.from_numpy(age[part]).float(),
                  memory=.99)
    covariance = np.cov(x.T)
    ridge = np.linalg.solve(covariance + dal.RIDGE * np.diag(np.diag(covariance)),
                            np.cov(x.T, age.T)[:24, 24])
    assert abs(mapping.w_id.numpy() @ ridge) / np.linalg.norm(ridge) > .97
    assert mapping.w_id.norm().item() == pytest.approx(1, abs=1e-5)
    assert not any(p.requires_grad for p in mapping.parameters())


def test_solve_ignores_dead_features_and_a_variate_without_variance():
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    mapping = dal.CanonicalMapping(4, 1)
    x[:, 2] = 0
    dal.solve(mapping, x, 30 + 5 * x[:, :1], memory=.5)
    assert mapping.w_id[2] == 0
    assert dal.canonical_correlation(*mapping(x, x[:, :1])).abs() > .95
    before, after = dal.solve(dal.CanonicalMapping(4, 1), x, torch.full((32, 1), 30.), memory=.5)
    assert before == after == 0


def test_phases_are_a_function_of_the_global_step():
    phases = [dal.is_max_step(step, 20, 50) for step in range(210)]
    assert phases == ([False] * 50 + [True] * 20) * 3
    assert not any(dal.is_max_step(step, 0, 50) for step in range(500))


def test_ramp():
    assert [dal.ramp(p, .3, .5) for p in (0, .3, .4, .5, 1)] == pytest.approx([0, 0, .5, 1, 1])
    assert dal.ramp(0., 0., 0.) == 1
