"""Decorrelated adversarial learning itself: the canonical mapping, the correlation that it climbs, and when who moves."""
import torch
from torch import nn
from torch.nn import functional as F

RIDGE = 1.  # of the mean square of each feature: w then follows the directions along which age is read, not the thinnest ones


def canonical_correlation(v_id, v_age):
    """Batch canonical correlation ρ of two variates (N,) -> () in [−1, 1], float32 (DAL eq. 3; L_DAL is its absolute value).

    Of several pairs of variates, (N, K) each -> (K,).
    Pearson's: whatever scale and shift the inputs have, ρ is the same, so neither side wins by shrinking its features; there is
    no epsilon beside the variances. A variate that is constant (to float32's last digits) has ρ = 0 and no gradient.
    """
    with torch.autocast(v_id.device.type, enabled=False):
        a, b = _standardize(v_id.float()), _standardize(v_age.float())
        return (a * b).sum(0).clamp(-1, 1)


def _standardize(v):
    """Centred, unit length; zeros where v is constant."""
    centred = v - v.mean(0)
    spread = centred.detach().abs().amax(0)
    varies = spread > 2e-6 * v.detach().abs().amax(0)
    # dividing by the spread first keeps the squares of tiny or huge features inside float32
    return F.normalize(centred / torch.where(varies, spread, 1), dim=0) * varies


class CanonicalMapping(nn.Module):
    """v_id = w_id·x_id, v_age = w_age·variate, no bias (DAL eq. 2); the adversary's whole strength is the directions w.

    x_id (N, D) and an age variate (N, A) -> v_id (N,), v_age (N,). With the paper's learned variate, A is D and the variate is
    x_age; with a supervised one it is an age in years, A = 1, and w_id alone has something to learn.
    """

    def __init__(self, dim, age_dim, directions=1):
        super().__init__()
        self.w_id = nn.Parameter(F.normalize(torch.randn(dim, directions), dim=0))
        self.w_age = nn.Parameter(F.normalize(torch.randn(age_dim, directions), dim=0))
        self.register_buffer('covariance', torch.zeros(dim, dim))      # of x_id, within batches, running
        self.register_buffer('cross', torch.zeros(dim, age_dim))  # of x_id and the variate, likewise
        self.requires_grad_(False)  # see ascend

    def forward(self, x_id, variate):
        return x_id.float() @ self.w_id, variate.float() @ self.w_age

    def rho(self, x_id, variate):
        return canonical_correlation(*self(x_id, variate)).abs().mean()

    @torch.no_grad()
    def renormalize(self):
        """Back to unit length: ρ does not see the length of w, but the size of a step relative to it does."""
        for w in self.parameters():
            if 1 < w.shape[1] <= w.shape[0]:  # orthogonal, by the nearest such frame
                u, _, v = torch.linalg.svd(w, full_matrices=False)
                w.copy_(u @ v)
            else:
                w.copy_(F.normalize(w, dim=0))


def ascend(mapping, optimizer, x_id, variate, steps=1):
    """`steps` gradient steps of w up |ρ| on detached features; returns |ρ| before and after, each () and detached.

    The loss is |ρ| unweighted, with the adversary's own optimizer (maximize=True): scaled by λ2 it would be too slow to matter.
    w requires a gradient in here and nowhere else, so that the network's backward pass leaves none in it.
    """
    x_id, variate = x_id.detach(), variate.detach()
    mapping.requires_grad_(True)
    for step in range(steps):
        rho = mapping.rho(x_id, variate)
        before = rho.detach() if step == 0 else before
        optimizer.zero_grad()
        rho.backward()
        optimizer.step()
        mapping.renormalize()
    optimizer.zero_grad()
    mapping.requires_grad_(False)
    return before, mapping.rho(x_id, variate)


@torch.no_grad()
def solve(mapping, x_id, variate, memory):
    """The direction w_id that tells most of a supervised variate (N, 1) over the last 1 / (1 − memory) batches, in closed form.

    The canonical ridge (Vinod 1976) on running moments: w_id ∝ (Σ + RIDGE · diag Σ)⁻¹ cov(x_id, variate). One batch says little of
    w: of D directions, some correlate with anything. Returns |ρ| on this batch before and after, each ().
    """
    before = mapping.rho(x_id, variate)
    x, a = x_id.float() - x_id.float().mean(0), variate.float() - variate.float().mean(0)
    mapping.covariance.lerp_(x.T @ x / len(x), 1 - memory)
    mapping.cross.lerp_(x.T @ a / len(x), 1 - memory)
    ridge = RIDGE * mapping.covariance.diagonal().clamp(min=torch.finfo(torch.float32).tiny)
    mapping.w_id.copy_(torch.linalg.solve_ex(mapping.covariance + torch.diag(ridge), mapping.cross)[0])
    mapping.renormalize()
    return before, mapping.rho(x_id, variate)


def is_max_step(step, max_steps, min_steps):
    """Whether the global step belongs to the adversary: `min_steps` of the network come first, then `max_steps` of w, and so on.

    A function of the global step alone: a counter that restarts each epoch never reaches the other phase on a small data set.
    """
    return step % (min_steps + max_steps) >= min_steps


def ramp(progress, start, end):
    """0 before `start`, 1 after `end`, linear between; all three are fractions of the training."""
    return min(max((progress - start) / (end - start), 0.), 1.) if end > start else float(progress >= start)


def age_groups(ages, cutoffs):
    """Ages in years (N,) -> group indices (N,): upper bounds inclusive, so that 12 is in group 0 and 13 in group 1 for (12, 18, …)."""
    return torch.bucketize(ages, torch.tensor(cutoffs, dtype=ages.dtype, device=ages.device))


def expected_age(logits, cutoffs):
    """The age in years (N, 1) that group logits (N, len(cutoffs) + 1) expect: Σ p_g · centre of group g, open ends 0 and 90."""
    bounds = torch.tensor([0., *cutoffs, 90.], device=logits.device)
    return (logits.float().softmax(1) @ ((bounds[1:] + bounds[:-1]) / 2))[:, None]


def first_canonical_correlation(x, y, ridge=1e-6):
    """Largest canonical correlation of x (N, A) and y (N, B) in closed form, with its directions: ρ (), w_x (A,), w_y (B,).

    Meaningful only where N is much larger than A + B. Columns without variance (a dead unit) and directions with less than `ridge`
    of the mean variance of standardized columns drop out. Float64 inside.
    """
    (x, whiten_x), (y, whiten_y) = _whiten(x, ridge), _whiten(y, ridge)
    u, s, v = torch.linalg.svd(x.T @ y / len(x))
    if not len(s):
        return x.new_zeros(()), x.new_zeros(len(whiten_x)), x.new_zeros(len(whiten_y))
    return s[0].clamp(max=1), whiten_x @ u[:, 0], whiten_y @ v[0]


def _whiten(x, ridge):
    """Centred x·W (N, K), of unit covariance, and W (A, K)."""
    x = x.double() - x.double().mean(0)
    deviation = x.square().mean(0).sqrt()
    standardize = torch.where(deviation > 0, 1 / deviation, 0)
    values, vectors = torch.linalg.eigh((x * standardize).T @ (x * standardize) / len(x))
    keep = values > ridge * values.mean()
    whitener = standardize[:, None] * vectors[:, keep] / values[keep].sqrt()
    return x @ whitener, whitener
