"""Pairs of faces to compare: the type every list is read into, and pairs drawn from people of
known age."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from storage.images import some
from utils import DataError

GAP_BOUNDS = (5, 10, 20, 30)  # years, upper bounds inclusive
GAP_NAMES = ('0-5', '6-10', '11-20', '21-30', '31+')


class Pairs(NamedTuple):
    """n pairs of images: indices `left` and `right`, whether they are the `same` person, and the
    `fold` they are scored in. `people` (n, 2) are the two identities of each pair and `gap` (n,) is
    in years, None if unknown."""

    left: np.ndarray
    right: np.ndarray
    same: np.ndarray
    fold: np.ndarray
    people: Any = None
    gap: Any = None

    def where(self, kept: np.ndarray) -> 'Pairs':
        return Pairs(*(None if value is None else value[kept] for value in self))  # type: ignore


def check_pairs(pairs: Pairs, names: list, path: Any) -> list[str]:
    """Lines of notice, of pairs that stand in the list again. Raises DataError, which names the
    first pair, for an image with itself, two images as one person and as different people, and
    pairs of one kind alone."""
    two = np.sort(np.stack([pairs.left, pairs.right], 1), axis=1)
    place = np.unique(two, axis=0, return_inverse=True)[1].reshape(-1)
    shares = np.bincount(place, pairs.same) / np.bincount(place)
    contradicted = ((shares > 0) & (shares < 1))[place]
    for wrong, why, remedy in (
        (two[:, 0] == two[:, 1], 'an image is paired with itself', 'remove such pairs'),
        (contradicted, 'the same two images are one person and different people', 'remove one'),
    ):
        if wrong.any():
            first = ' and '.join(some([names[side[wrong.argmax()]]]) for side in pairs[:2])
            count = f'{wrong.sum()} of {len(wrong)} pairs; the first is {first}'
            raise DataError(f'{path}: {why} ({count}): {remedy}')
    if pairs.same.all() or not pairs.same.any():
        kind = 'one person' if pairs.same.all() else 'different people'
        count = f'all {len(pairs.same)} pairs are of {kind}'
        raise DataError(f'{path}: {count}: accuracy, AUC and TAR need pairs of both kinds')
    again = len(place) - len(np.unique(place))
    count = f'{again} of {len(place)} pairs stand in the list before, and count each time'
    return [f'{path}: {count}'] if again else []


def gap_bin(gap: np.ndarray) -> np.ndarray:
    """Age differences in years (n,) -> index into GAP_NAMES, upper bounds inclusive."""
    return np.searchsorted(GAP_BOUNDS, gap)


def gap_masks(gap: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The name of each age gap that occurs, and which of the pairs (n,) have it."""
    bins = gap_bin(gap)
    for k in np.unique(bins):
        yield GAP_NAMES[k], bins == k


def parts(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Which of `count` parts of the people, drawn by the seed, each face (N,) belongs to."""
    people, person = np.unique(labels, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(people)) % count)[person]


def gap_pairs(
    labels: np.ndarray, ages: np.ndarray, seed: int = 0, per_bin: int = 5000, per_person: int = 30
) -> Pairs:
    """Genuine pairs, at most `per_bin` of each age gap and of `per_person` images of anybody, each
    with an impostor pair of the same age gap, of images with labels (N,) int and ages (N,) years.
    The impostor pair has one face of the genuine pair and, for the other, somebody of that age: so
    neither the gap nor the ages separate the two kinds. It comes from the same fold of people if
    one has the age, so that folds share no people; else from anywhere, and from another age within
    the same gap bin; a genuine pair that even then finds none is left out. The same seed gives the
    same pairs. Raises ValueError for an age that isn't finite."""
    ages = np.asarray(ages, np.float64)
    if not np.isfinite(ages).all():
        first = np.flatnonzero(~np.isfinite(ages))[0]
        raise ValueError(f'image {first} (counted from 0): the age is not finite')
    rng = np.random.default_rng(seed)
    names, person = np.unique(labels, return_inverse=True)
    first, second = genuine_pairs(person, rng, per_person)
    gaps = gap_bin(np.abs(ages[first] - ages[second]))
    bins = [np.flatnonzero(gaps == k) for k in range(len(GAP_NAMES))]
    bins = [k if len(k) <= per_bin else rng.choice(k, per_bin, replace=False) for k in bins]
    kept = np.sort(np.concatenate(bins))
    swap = rng.random(len(kept)) < 0.5
    anchor, mate = np.where(swap, (second[kept], first[kept]), (first[kept], second[kept]))
    fold = (rng.permutation(len(names)) % 10)[person]  # ten of people
    other = _impostors(anchor, mate, person, ages, fold, rng)
    anchor, mate, other = (index[other >= 0] for index in (anchor, mate, other))
    left, right = np.tile(anchor, 2), np.concatenate([mate, other])
    same, people = np.repeat([True, False], len(anchor)), np.stack([person[left], person[right]], 1)
    return Pairs(left, right, same, fold[left], people, np.abs(ages[left] - ages[right]))


def genuine_pairs(
    person: np.ndarray, rng: np.random.Generator, per_person: int = 30, limit: int = 1_000_000
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of one person's images, or `limit` of them drawn evenly: two index arrays. `person`
    counts from 0."""
    order, counts = np.lexsort((rng.random(len(person)), person)), np.bincount(person)
    position = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = order[position < per_person]
    counts = np.minimum(counts, per_person)
    starts, ends = np.cumsum(counts) - counts, np.cumsum(counts * (counts - 1) // 2)
    total = int(ends[-1]) if len(ends) else 0
    pick = np.arange(total) if total <= limit else np.sort(rng.choice(total, limit, replace=False))
    who = np.searchsorted(ends, pick, 'right')
    # counted within the person: 0 is (0, 1), then (0, 2), (1, 2), (0, 3) …
    pick = ends[who] - 1 - pick
    high = ((1 + np.sqrt(1 + 8 * pick)) / 2).astype(np.int64)
    return order[starts[who] + pick - high * (high - 1) // 2], order[starts[who] + high]


def _impostors(anchor, mate, person, ages, fold, rng):
    """For each genuine pair a face of somebody else of the mate's age, as gap_pairs says, or −1."""
    found, gaps = np.full(len(anchor), -1), gap_bin(np.abs(ages[anchor] - ages[mate]))
    steps = [(in_fold, years, 4) for in_fold in (True, False) for years in (0.5, 2)]
    for in_fold, years, tries in (*steps, (False, 10, 8), (False, 200, 40)):
        place = ages + in_fold * fold * 1000.0  # one axis: first the fold, then the age
        order = np.argsort(place)
        for _ in range(tries):
            todo = np.flatnonzero(found < 0)
            low = np.searchsorted(place[order], place[mate[todo]] - years)
            high = np.searchsorted(place[order], place[mate[todo]] + years, 'right')
            # the mate itself is always between
            face = order[low + (rng.random(len(todo)) * (high - low)).astype(np.int64)]
            of_gap = gap_bin(np.abs(ages[anchor[todo]] - ages[face])) == gaps[todo]
            fits = (person[face] != person[anchor[todo]]) & of_gap
            found[todo[fits]] = face[fits]
    return found
