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


def test_correlation_is_numpys_and_its_gradient_the_closed_form():
    for seed in range(20):
        a, b = variates(30, seed)
        expected = np.corrcoef(a, b)[0, 1]
        assert dal.canonical_correlation(a, b).item() == pytest.approx(expected, abs=1e-6)
    a, b = variates()
    with torch.autocast('cpu', torch.bfloat16):
        rho = dal.canonical_correlation(a.bfloat16(), b.bfloat16())
    assert rho.dtype == torch.float32
    expected = np.corrcoef(a.bfloat16().float(), b.bfloat16().float())[0, 1]
    assert rho.item() == pytest.approx(expected, abs=1e-6)
    a, b = variates(50)
    a.requires_grad_()
    dal.canonical_correlation(a, b).backward()
    u, v = (x - x.mean() for x in (a.detach().double(), b.double()))
    rho = (u @ v) / (u.norm() * v.norm())
    expected = (v / v.norm() - rho * u / u.norm()) / u.norm()
    torch.testing.assert_close(a.grad.double(), expected, atol=1e-6, rtol=1e-4)


def test_correlation_ignores_scale_and_shift_and_a_constant_has_none():
    a, b = variates()
    for scale in (1e-30, 1e-12, 1e-3, -1.0, 7.0, 1e12, 1e30):
        rho = dal.canonical_correlation(a, b).item() * np.sign(scale)
        assert dal.canonical_correlation(a * scale, b).item() == pytest.approx(rho, abs=1e-6)
        assert dal.canonical_correlation(a + 50, b * scale).item() == pytest.approx(rho, abs=1e-5)
    for constant in (0.0, 0.1, -1e20):
        a, b = torch.full((64,), constant, requires_grad=True), variates(64)[0].requires_grad_()
        rho = dal.canonical_correlation(a, b).abs()
        rho.backward()
        assert rho.item() == 0 and not a.grad.any() and not b.grad.any()


@pytest.mark.parametrize('seed', range(3))
def test_ascent_reaches_the_first_canonical_correlation(seed):
    """On badly conditioned features, with the recipe's rate and the function of training."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(4096, 1, generator=generator)
    scales = torch.logspace(-1, 1, 24)
    x, y = (torch.randn(4096, 24, generator=generator) for _ in range(2))
    x[:, 3:4] = 0.9 * shared + 0.4 * x[:, 3:4]  # the direction that they share
    y[:, 9:10] = 0.9 * shared + 0.4 * y[:, 9:10]
    mix = torch.linalg.qr(torch.randn(24, 24, generator=generator))[0]
    x, y = (x * scales) @ mix, (y * scales.flip(0)).relu()
    bases = [torch.linalg.qr((side - side.mean(0)).double())[0] for side in (x, y)]
    best = torch.linalg.svdvals(bases[0].T @ bases[1])[0].item()  # in closed form
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


def test_solve_finds_the_ridge_direction_of_all_batches_that_it_remembers():
    """Against numpy on all faces at once; each batch has fewer faces than features."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(6400, 24)) @ rng.normal(size=(24, 24)) + 5
    age = 40 + 9 * (x[:, :1] - x[:, 1:2]) + 40 * rng.normal(size=(6400, 1))
    mapping = dal.CanonicalMapping(24, 1)
    for batch in range(400):
        part = slice(16 * batch, 16 * (batch + 1))
        parts = (torch.from_numpy(values[part]).float() for values in (x, age))
        dal.solve(mapping, *parts, memory=0.99)
    covariance = np.cov(x.T)
    ridge = covariance + dal.RIDGE * np.diag(np.diag(covariance))
    ridge = np.linalg.solve(ridge, np.cov(x.T, age.T)[:24, 24])
    assert abs(mapping.w_id.numpy() @ ridge) / np.linalg.norm(ridge) > 0.97
    assert mapping.w_id.norm().item() == pytest.approx(1, abs=1e-5)
    assert not any(p.requires_grad for p in mapping.parameters())
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0))
    mapping = dal.CanonicalMapping(4, 1)
    x[:, 2] = 0
    dal.solve(mapping, x, 30 + 5 * x[:, :1], memory=0.5)
    assert mapping.w_id[2] == 0
    assert dal.canonical_correlation(*mapping(x, x[:, :1])).abs() > 0.95
    before, after = dal.solve(dal.CanonicalMapping(4, 1), x, torch.full((32, 1), 30.0), memory=0.5)
    assert before == after == 0


def aged(n=600, dim=12, seed=5):
    """Features (n, dim) in which age, its square and its cube show, and the ages (n,)."""
    generator = torch.Generator().manual_seed(seed)
    ages = 80 * torch.rand(n, generator=generator)
    powers = ((ages[:, None] - 40) / 40) ** torch.arange(1, 4)
    x = torch.randn(n, dim, generator=generator) + 3
    x[:, :4] += powers @ torch.randn(3, 4, generator=generator)
    return x @ torch.randn(dim, dim, generator=generator), ages


def read_by_least_squares(x, ages):
    """R² of the best linear reading of the ages on the faces that it is fitted to."""
    x, ages = np.column_stack([x.double(), np.ones(len(x))]), ages.double().numpy()
    error = ages - x @ np.linalg.lstsq(x, ages, rcond=None)[0]
    return 1 - error.var() / ages.var()


def test_an_eraser_leaves_no_power_of_the_age_and_is_leace_without_a_ridge():
    ages = torch.linspace(0, 100, 51)
    powers = (ages[:, None].double() / 50 - 1) ** torch.arange(4)
    z = dal.age_variates(ages, 3).double()
    rest = z - powers @ torch.linalg.lstsq(powers, z).solution
    assert rest.abs().max() < 1e-5 and torch.linalg.matrix_rank(z - z.mean(0)) == 3
    x, ages = aged()
    erase = fitted(x, dal.age_variates(ages, 3))
    x_id = erase(x.double())
    assert read_by_least_squares(x, ages) > 0.5
    assert read_by_least_squares(x - x_id, ages) > 0.5
    for power in (1, 2, 3):
        assert read_by_least_squares(x_id, (ages / 40 - 1) ** power) < 0.01
        # and so no w of the game finds anything
        assert dal.canonical_correlation(x_id[:, 0], (ages / 40 - 1) ** power).abs() < 1e-3
    assert torch.linalg.matrix_rank(erase.projection, rtol=1e-5) == 3
    torch.testing.assert_close(x_id.mean(0).float(), x.mean(0), rtol=1e-4, atol=1e-4)
    whole = fitted(x, dal.age_variates(ages, 3), torch.zeros(600))
    torch.testing.assert_close(whole.projection, erase.projection)  # whatever the blocks
    # Belrose et al., theorem 4.2: W⁺ P W with W whitening x and P onto the columns of W Σ_xz
    z = dal.age_variates(ages, 3)
    erase = fitted(x, z, ridge=0.0)
    covariance, cross = np.cov(x.T), np.cov(x.T, z.double().numpy().T)[:12, 12:]
    length, axes = np.linalg.eigh(covariance)
    whiten, colour = (axes * length**power @ axes.T for power in (-0.5, 0.5))
    basis = np.linalg.qr(whiten @ cross)[0]
    expected = colour @ basis @ basis.T @ whiten
    np.testing.assert_allclose(erase.projection.T, expected, rtol=1e-5, atol=1e-5)


def fitted(x, z, labels=None, within=False, **how):
    """The Eraser, fitted block by block."""
    labels = torch.arange(len(x)) // 3 if labels is None else labels
    fitter = dal.EraserFitter(x.shape[1], z.shape[1], within)
    order = labels.argsort(stable=True)
    whole = labels[order].diff().nonzero()[::50, 0].add(1).tolist()
    for block in order.tensor_split(whole):
        fitter.update(x[block], z[block], labels[block])
    return fitter.solve(**how)


def test_whitening_after_the_eraser_evens_out_what_changes_within_people():
    x, ages = aged()
    labels = torch.arange(600) // 6
    x[:, 3] += 5 * torch.randn(600)
    z = dal.age_variates(ages, 2)

    def within(values):
        own = values - values.reshape(100, 6, -1).mean(1)[labels]
        return torch.linalg.eigvalsh(own.T @ own / 600)

    erased, white = (fitted(x, z, labels, whiten=w)(x.double()) for w in (0.0, 1.0))
    half = fitted(x, z, labels, whiten=0.5)(x.double())
    assert within(half)[-1] < 0.5 * within(erased)[-1]
    lengths = within(white)[2:]  # the two directions of age are gone
    torch.testing.assert_close(lengths, lengths.mean().expand(10), rtol=1e-6, atol=0)
    assert read_by_least_squares(white, ages) < 0.01
    less = fitted(x, z, labels, directions=1)(x.double())
    torch.testing.assert_close(within(less)[3:], within(erased)[2:-1])
    assert within(less)[2] < 1e-9 * within(less)[-1]


def test_within_a_person_the_age_goes_and_few_ages_do_no_harm():
    """Older people have more of feature 1 here, and everybody's own years move feature 0."""
    labels = torch.arange(600) % 100
    own, between = 20 * torch.randn(600).clamp(-1, 1), 40 + torch.linspace(-10, 10, 100)[labels]
    ages, x = own + between, torch.randn(600, 12)
    x[:, 0] += own / 5
    x[:, 1] += between / 5
    x_id = fitted(x, dal.age_variates(ages, 2), labels, within=True)(x.double())
    within = ages - ages.reshape(6, 100).mean(0)[labels]
    assert read_by_least_squares(x, within) > 0.5 and read_by_least_squares(x_id, within) < 0.05
    assert read_by_least_squares(x_id, between) > 0.9 * read_by_least_squares(x, between)
    for values in [[12.0, 40.0], [33.0]]:
        x, _ = aged()
        ages = torch.tensor(values)[torch.arange(600) % len(values)]
        x[:, 0] += ages / 10
        x_id = fitted(x, dal.age_variates(ages, 4))(x.double())
        assert x_id.isfinite().all()
        if len(values) > 1:
            assert read_by_least_squares(x_id, ages) < 0.05
        else:
            assert (x - x_id).abs().max() < 1e-3
