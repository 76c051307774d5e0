"""Decorrelated adversarial learning itself: the canonical mapping, the correlation that it climbs,
and whose turn it is."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RIDGE = 1.0  # in units of each feature's variance; keeps w out of directions of low variance
RIDGE_R = 0.05  # the same for R in closed form
NOTHING = 1e-3  # of an age variate's deviation, which is at most 1
TINY = torch.finfo(torch.float32).tiny


def canonical_correlation(v_id: Tensor, v_age: Tensor) -> Tensor:
    """Batch canonical correlation ρ of two variates (N,) -> () in [−1, 1], float32 (DAL eq. 3).

    It is Pearson's, whatever the scale: neither player wins by shrinking its features. A variate
    that is constant (to float32's last digits) has ρ = 0 and no gradient.
    """
    with torch.autocast(v_id.device.type, enabled=False):
        a, b = _standardize(v_id.float()), _standardize(v_age.float())
        return (a * b).sum().clamp(-1, 1)


def _standardize(v: Tensor) -> Tensor:
    """Centred, unit length; zeros where v is constant."""
    centred = v - v.mean()
    spread = centred.detach().abs().max()
    varies = spread > 2e-6 * v.detach().abs().max()
    # dividing by the spread first keeps the squares of tiny or huge features inside float32
    return F.normalize(centred / torch.where(varies, spread, 1), dim=0) * varies


class CanonicalMapping(nn.Module):
    """The adversary w: x_id (N, D) and an age variate (N, A) -> v_id = w_id·x_id and v_age =
    w_age·variate, (N,) each (DAL eq. 2). The variate is x_age, or an age in years with A = 1."""

    def __init__(self, dim: int, age_dim: int):
        super().__init__()
        self.w_id = nn.Parameter(F.normalize(torch.randn(dim), dim=0))
        self.w_age = nn.Parameter(F.normalize(torch.randn(age_dim), dim=0))
        # running moments, for `solve`: of x_id within batches, and of x_id with the variate
        self.covariance = nn.Buffer(torch.zeros(dim, dim))
        self.cross = nn.Buffer(torch.zeros(dim, age_dim))
        self.requires_grad_(False)  # see ascend

    def forward(self, x_id: Tensor, variate: Tensor) -> tuple[Tensor, Tensor]:
        return x_id.float() @ self.w_id, variate.float() @ self.w_age

    @torch.no_grad()
    def renormalize(self) -> None:
        """Back to unit length: ρ ignores the length of w, but a step's relative size does not."""
        for w in self.parameters():
            w.copy_(F.normalize(w, dim=0))


def ascend(
    mapping: CanonicalMapping, optimizer: torch.optim.Optimizer, x_id: Tensor, variate: Tensor
) -> tuple[Tensor, Tensor]:
    """One step of w up |ρ| on detached features, by an optimizer that maximizes; |ρ| before and
    after, () and detached. w requires a gradient in here and nowhere else."""
    x_id, variate = x_id.detach(), variate.detach()
    mapping.requires_grad_(True)
    before = canonical_correlation(*mapping(x_id, variate)).abs()
    optimizer.zero_grad()
    before.backward()
    optimizer.step()
    mapping.renormalize()
    optimizer.zero_grad()
    mapping.requires_grad_(False)
    return before.detach(), canonical_correlation(*mapping(x_id, variate)).abs()


@torch.no_grad()
def solve(
    mapping: CanonicalMapping, x_id: Tensor, variate: Tensor, memory: float
) -> tuple[Tensor, Tensor]:
    """The w_id that correlates most with a supervised variate (N, 1), in closed form; |ρ| before
    and after, as `ascend`.

    w_id ∝ (Σ + RIDGE·diag Σ)⁻¹ cov(x_id, variate), the canonical ridge (Vinod, J. Econometrics
    1976), of moments that run over 1 / (1 − memory) batches: on one of N ≤ D faces some direction
    correlates with anything.
    """
    before = canonical_correlation(*mapping(x_id, variate)).abs()
    x = x_id.float() - x_id.float().mean(0)
    age = variate.float() - variate.float().mean(0)
    mapping.covariance.lerp_(x.T @ x / len(x), 1 - memory)
    mapping.cross.lerp_(x.T @ age / len(x), 1 - memory)
    variance = mapping.covariance.diagonal().clamp(min=TINY)
    ridged = mapping.covariance + torch.diag(RIDGE * variance)
    # not on every release's Apple GPUs; the plain call, without _ex, would wait for the device
    place = torch.device('cpu') if x.device.type == 'mps' else x.device
    factor = torch.linalg.cholesky_ex(ridged.to(place))[0]
    mapping.w_id.copy_(torch.cholesky_solve(mapping.cross.to(place), factor)[:, 0])
    mapping.renormalize()
    return before, canonical_correlation(*mapping(x_id, variate)).abs()


def age_variates(ages: Tensor, count: int) -> Tensor:
    """Ages (N,) in years -> (N, count): the Chebyshev polynomials of degree 1 to `count` over 0 to
    100 years, which span all polynomials of that degree."""
    angle = torch.arccos((ages.float() / 50 - 1).clamp(-1, 1))
    return torch.cos(angle[:, None] * torch.arange(1, count + 1, device=ages.device))


class Eraser(NamedTuple):
    """The affine map x -> x − (x − mean) @ projection; mean (D,), projection (D, D), float64."""

    mean: Tensor
    projection: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x - (x - self.mean) @ self.projection


class EraserFitter:
    """R in closed form, from one pass over faces: `update` adds a block, `solve` gives the Eraser.
    `within_person` takes out what the years change within a person, not the age between people."""

    def __init__(self, dim: int, variates: int, within_person: bool = False):
        self.dim, self.within_person, self.faces = dim, within_person, 0
        self.sum = torch.zeros(dim + variates, dtype=torch.float64)
        self.total = torch.zeros(len(self.sum), len(self.sum), dtype=torch.float64)
        self.between = torch.zeros_like(self.total)  # of the people's means, weighed by faces

    @torch.no_grad()
    def update(self, x: Tensor, z: Tensor, labels: Tensor) -> None:
        """Adds faces: x (N, D), age variates z (N, K), labels (N,); each person's faces come in one
        call."""
        values = torch.cat([x.double(), z.double()], 1)
        _, person, counts = labels.unique(return_inverse=True, return_counts=True)
        sums = values.new_zeros(len(counts), len(self.sum)).index_add_(0, person, values)
        self.faces += len(values)
        self.sum += sums.sum(0)
        self.total += values.T @ values
        self.between += sums.T @ (sums / counts[:, None])

    def solve(self, directions: int = 0, whiten: float = 0.0, ridge: float = RIDGE_R) -> Eraser:
        """The map that leaves no covariance of features with z and changes them least (LEACE,
        Belrose et al., NeurIPS 2023):

            P = S⁻¹ Σ_xz (Σ_zx S⁻¹ Σ_xz)⁻¹ Σ_zx,  S = Σ + ridge·diag Σ

        then one without the first `directions` within people (NAP, Solomonoff et al., ICASSP 2005),
        and a whitening within people (WCCN, Hatch et al., Interspeech 2006) of strength `whiten`,
        from 0 to 1: (whiten·W + (1 − whiten)·w̄·1)^−½, in units of w̄, where W is the covariance
        within people of what is left and w̄ its mean variance.
        """
        D, mean = self.dim, self.sum / self.faces
        covariance = self.total / self.faces - torch.outer(mean, mean)
        within = (self.total - self.between) / self.faces
        cross = (within if self.within_person else covariance)[:D, D:]
        variance = covariance.diagonal()[:D]
        variance = variance.clamp(min=max(1e-6 * float(variance.mean()), TINY))  # dead features
        factor = torch.linalg.cholesky(covariance[:D, :D] + torch.diag(ridge * variance))
        whitened = torch.linalg.solve_triangular(factor, cross, upper=False)
        basis, lengths, _ = torch.linalg.svd(whitened, full_matrices=False)
        basis = basis * (lengths > NOTHING)  # ages of few values have variates that say the same
        identity = torch.eye(D, dtype=torch.float64)
        unwhitened = torch.linalg.solve_triangular(factor.T, basis, upper=True)
        erase = identity - unwhitened @ (factor @ basis).T
        lengths, axes = torch.linalg.eigh(erase.T @ within[:D, :D] @ erase)
        lengths[D - directions :] = 0
        lengths = (lengths / lengths.mean().clamp(min=TINY)).clamp(NOTHING)
        gains = (whiten * lengths + 1 - whiten) ** -0.5
        gains[D - directions :] = 0
        return Eraser(mean[:D], identity - erase @ (axes * gains) @ axes.T)


def is_max_step(step: int, max_steps: int, min_steps: int) -> bool:
    """Whether the global step is the adversary's: `min_steps` of the network come first, then
    `max_steps` of w, and so on. A counter that restarted each epoch would never reach the other
    phase on a small data set."""
    return step % (min_steps + max_steps) >= min_steps


def ramp(progress: float, start: float, end: float) -> float:
    """0 before `start`, 1 after `end`, linear between; all are fractions of the training."""
    if end > start:
        return min(max((progress - start) / (end - start), 0.0), 1.0)
    return float(progress >= start)
