"""Faces into groups, one a person: average linkage on the log-odds of one person.

Two groups are one person if the mean log-odds over their pairs of faces, which more faces make
surer, outweigh the odds that one of the other groups is this one by chance: see `evidence`.
Groups that are each other's nearest merge, all at once, round after round: over the matrix of all
groups if they are few enough, before that over the pairs of nearest neighbours.
"""

import copy

import numpy as np
from numpy.typing import ArrayLike

from evaluation.age_thresholds import AgeDecision, smooth
from system.progress import progress

OLDEST = 120  # ages are rounded to whole years
NEVER = np.float32(-1e30)  # log-odds of groups that can't be one person; no mean makes it likely
SIZES = 0.25  # evidence grows with this power of the number of pairs, as pairs aren't independent
PRIOR = 0.65  # of the log of the number of groups, from real faces: benchmarks/groups.py
ROWS = 512  # faces that are compared with all others at a time
DENSE = 14_000  # groups of which a matrix is made, of 784 MB
NEIGHBOURS = 64  # of each face, if there are more


class LogOdds:
    """Log-odds that two faces are one person, as likely as not beforehand. embeddings (N, D) of
    unit length; ages (N,) in years, of which a NaN is unknown. By the ages, if there is an
    AgeDecision and all ages are known; else `slope` · (similarity − `threshold`)."""

    def __init__(
        self,
        embeddings: np.ndarray,
        ages: np.ndarray,
        decision: AgeDecision | None = None,
        threshold: float = 0.0,
        slope: float = 1.0,
    ):
        self.embeddings = embeddings
        self.years = np.clip(np.nan_to_num(ages).round(), 0, OLDEST).astype(np.intp)
        self.slope = np.full((OLDEST + 1, OLDEST + 1), slope, np.float32)
        self.offset = np.full_like(self.slope, -slope * threshold)
        if decision and np.isfinite(ages).all():
            first, second = np.indices(self.slope.shape).reshape(2, -1)
            terms = smooth(np.minimum(first, second), abs(first - second))
            tables = (decision.line @ terms.T).astype(np.float32)
            self.slope, self.offset = tables.reshape(2, *self.slope.shape)

    def __len__(self) -> int:
        return len(self.embeddings)

    def rows(self, start: int, end: int) -> np.ndarray:
        """(end − start, N) float32: of faces with every face; fewer rows if `end` is beyond."""
        values = self.embeddings[start:end] @ self.embeddings.T
        for row, years in zip(values, self.years[start:end], strict=True):
            row *= self.slope[years][self.years]
            row += self.offset[years][self.years]
        return values

    def means(self, groups: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Means (n,) over the pairs of faces of groups first (n,) and second (n,), of groups (N,)
        from 0 on. Exact: similarities are summed by years of age."""
        keys = groups * (OLDEST + 1) + self.years
        order = np.argsort(keys, kind='stable')
        keys, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
        begin = np.searchsorted(keys, np.arange(groups.max() + 2) * (OLDEST + 1))
        sums = np.add.reduceat(self.embeddings[order], starts)
        pairs = np.diff(begin)[first] * np.diff(begin)[second]  # of cells: a group at an age
        totals = np.zeros(len(first))
        for part in np.array_split(np.arange(len(first)), pairs.sum() // 50_000 + 1):
            which, before = np.repeat(part, pairs[part]), np.cumsum(pairs[part]) - pairs[part]
            place = np.arange(len(which)) - np.repeat(before, pairs[part])
            columns = np.diff(begin)[second[which]]
            a = begin[first[which]] + place // columns
            b = begin[second[which]] + place % columns
            years = keys[a] % (OLDEST + 1), keys[b] % (OLDEST + 1)
            value = np.einsum('ij,ij->i', sums[a], sums[b]) * self.slope[years]
            value += self.offset[years] * counts[a] * counts[b]
            totals += np.bincount(which, value, len(totals))
        sizes = np.bincount(groups)
        return totals / (sizes[first] * sizes[second])


def evidence(means: np.ndarray, first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """Log-odds of one person of mean log-odds over the pairs of groups of these sizes."""
    return means * np.where(means > 0, np.multiply(first, second) ** SIZES, 1).astype(means.dtype)


def prior(groups: int) -> float:
    """The evidence at which P is one half, among so many groups."""
    return PRIOR * float(np.log(max(groups, 2)))


def probability(evidence: np.ndarray, groups: int) -> np.ndarray:
    """P that a group is the one that the evidence is for, not one of so many others."""
    return 1 / (1 + np.exp(-np.clip(evidence - prior(groups), -500, 500)))


def cluster(
    pairs: LogOdds,
    groups: np.ndarray,
    apart: np.ndarray,
    fixed: np.ndarray | None = None,
    sure: float = 0.5,
) -> np.ndarray:
    """Numbers of groups (N,) from 0 on. Faces of one number in `groups` (N,) are one person from
    the start. Two groups never merge if a pair of their faces is in `apart` (n, 2), or if both have
    a face that is `fixed` (N,). Others merge if P of one person is at least `sure`."""
    groups = np.unique(groups, return_inverse=True)[1]
    fixed = np.zeros(len(groups), bool) if fixed is None else fixed
    more = float(np.log(sure / (1 - sure)))
    if groups.max() >= DENSE:
        groups = _by_neighbours(pairs, groups, apart, fixed, more)
    return _by_matrix(pairs, groups, apart, fixed, more) if groups.max() < DENSE else groups


def _by_matrix(pairs, groups, apart, fixed, more):
    """Average linkage over the matrix of all pairs of groups."""
    matrix, sizes = _matrix(pairs, groups), np.bincount(groups).astype(np.float32)
    a, b = groups[apart].T
    matrix[a, b] = matrix[b, a] = NEVER
    never = np.bincount(groups, fixed) > 0
    matrix[np.ix_(never, never)] = NEVER
    np.fill_diagonal(matrix, NEVER)
    members = np.arange(len(sizes))  # the row of each of the first groups
    while len(sizes) > 1:
        best, value = np.empty(len(sizes), int), np.empty(len(sizes), np.float32)
        weights = sizes**SIZES
        for start in range(0, len(sizes), ROWS):
            part = slice(start, start + ROWS)
            values = matrix[part] * weights * weights[part, None]  # evidence where it is positive
            best[part], value[part] = values.argmax(1), values.max(1)
        here = np.arange(len(sizes))
        first = here[(best[best] == here) & (here < best) & (value >= prior(len(sizes)) + more)]
        if not len(first):
            break
        second = best[first]
        share = (sizes[first] / (sizes[first] + sizes[second]))[:, None]
        for k in range(0, len(first), ROWS):
            one, other, part = first[k : k + ROWS], second[k : k + ROWS], share[k : k + ROWS]
            matrix[one] = part * matrix[one] + (1 - part) * matrix[other]
        for k in range(0, len(sizes), ROWS):
            rows = matrix[k : k + ROWS]
            rows[:, first] = share.T * rows[:, first] + (1 - share.T) * rows[:, second]
        matrix[first, first] = NEVER
        sizes[first] += sizes[second]
        target = here.copy()
        target[second] = first
        left = np.flatnonzero(target == here)
        for k, row in enumerate(left):  # in its place: a copy would take as much memory again
            matrix[k, : len(left)] = matrix[row, left]
        matrix, sizes = matrix[: len(left), : len(left)], sizes[left]
        members = np.searchsorted(left, target)[members]
    return members[groups]


def _matrix(pairs, groups):
    """Mean log-odds of every two groups."""
    sizes = np.bincount(groups).astype(np.float32)
    matrix = np.zeros((len(sizes), len(sizes)), np.float32)
    for faces, _, sums in _sums(pairs, groups, 'pairs'):
        here = groups[faces]
        inner = np.flatnonzero(np.diff(here, prepend=-1))
        matrix[here[inner]] += np.add.reduceat(sums, inner, 0)
    matrix /= sizes
    matrix /= sizes[:, None]
    return matrix


def _sums(pairs, groups, what):
    """Of ROWS faces at a time, in order of their groups: which they are (n,), the log-odds of each
    with itself (n,), and the sums (n, groups) of those with the faces of every group."""
    order = np.argsort(groups, kind='stable')
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    pairs = copy.copy(pairs)
    pairs.embeddings, pairs.years = pairs.embeddings[order], pairs.years[order]
    for start in progress(range(0, len(pairs), ROWS), what, unit=f' × {ROWS} faces'):
        rows = pairs.rows(start, start + ROWS)
        sums = np.add.reduceat(rows, starts, 1) if len(starts) < len(pairs) else rows
        yield order[start : start + ROWS], rows.diagonal(start), sums


def _by_neighbours(pairs, groups, apart, fixed, more):
    """Linkage over the pairs of groups of which a face is among the other's nearest ones; ends as
    soon as a matrix can be made."""
    edges = groups[_neighbours(pairs)]
    means = np.full(len(edges), np.nan)  # known of pairs that are as they were in the round before
    while groups.max() >= DENSE:
        sizes, count = np.bincount(groups), groups.max() + 1
        keys, places = np.unique(np.sort(edges, 1) @ [count, 1], return_index=True)
        edges, means = np.stack(np.divmod(keys, count), 1), means[places]
        never = np.sort(groups[apart], 1) @ [count, 1]
        may = (edges[:, 0] != edges[:, 1]) & ~np.isin(keys, never)
        may &= ~(np.bincount(groups, fixed) > 0)[edges].all(1)
        edges, means = edges[may], means[may]
        first, second = edges.T
        new = np.isnan(means)
        means[new] = pairs.means(groups, first[new], second[new])
        value = evidence(means, sizes[first], sizes[second])
        order = np.argsort(-value, kind='stable')
        # the best pair of a group is the first that names it; it is both's best if both name it
        places = np.unique(edges[order].ravel(), return_index=True)[1] // 2
        mutual = order[np.flatnonzero(np.bincount(places, minlength=len(order)) == 2)]
        mutual = mutual[value[mutual] >= prior(count) + more]
        if not len(mutual):
            break
        target = np.arange(count)
        target[second[mutual]] = first[mutual]
        means[np.isin(edges, edges[mutual]).any(1)] = np.nan
        number = np.unique(target, return_inverse=True)[1]
        groups, edges = number[groups], number[edges]
    return groups


def _neighbours(pairs):
    """Pairs (n, 2) of a face and one of its NEIGHBOURS nearest, of positive log-odds."""
    found = []
    for start in progress(range(0, len(pairs), ROWS), 'neighbours', unit=f' × {ROWS} faces'):
        rows = pairs.rows(start, start + ROWS)
        here = np.arange(start, start + len(rows))
        rows[here - start, here] = NEVER
        nearest = np.argpartition(rows, -NEIGHBOURS, 1)[:, -NEIGHBOURS:]
        likely = np.take_along_axis(rows, nearest, 1) > 0
        found.append(np.stack([np.repeat(here, likely.sum(1)), nearest[likely]], 1))
    return np.concatenate(found)


def belonging(pairs: LogOdds, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each face (N,): evidence for its own group without it (NaN if it is alone), the nearest
    other group (−1 if there is none), and evidence for that."""
    sizes, number = np.bincount(groups), len(groups)
    own, other, value = np.empty(number), np.empty(number, int), np.empty(number)
    for faces, alone, sums in _sums(pairs, groups, 'belonging'):
        row, here = np.arange(len(faces)), groups[faces]
        rest = np.where(sizes[here] > 1, sizes[here] - 1, np.nan)
        own[faces] = evidence((sums[row, here] - alone) / rest, 1, rest)
        means = evidence(sums / sizes.astype(np.float32), 1, sizes)
        means[row, here] = NEVER
        other[faces], value[faces] = means.argmax(1), means.max(1)
    other[value <= NEVER] = -1
    return own, other, value
