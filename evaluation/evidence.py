"""One network's features on a benchmark, and every figure that they give: a dict for JSON."""

from typing import Any

import numpy as np

from evaluation import leakage, metrics
from evaluation.pairs import gap_masks, gap_pairs
from evaluation.protocols import Benchmark
from evaluation.rates import cosines, share_interval
from recognition.embedding import check_finite
from utils import DataError

RANKS = 100  # a CMC curve's length


class Evidence:
    """One model's scores on a benchmark, from which report, pictures and comparison are made.

    `scores` (n,) are those of `pairs`, the list's or gap_pairs. `probes` (P,) are the images that
    are looked for, `hits` (P,) whether the image found is of the same person; None for a list.
    """

    def __init__(self, benchmark: Benchmark, embeddings: np.ndarray, seed: int):
        self.benchmark, self.embeddings, self.seed = benchmark, embeddings, seed
        labels, self.probes = benchmark.labels, benchmark.probes
        self.hits: Any = None
        self.pairs = benchmark.pairs or gap_pairs(labels, benchmark.ages, seed)
        self.scores = cosines(embeddings, self.pairs.left, self.pairs.right)
        if benchmark.pairs:
            return
        if self.probes is None:
            self.probes, nearest = metrics.leave_one_out(embeddings, labels)
        else:
            gallery = np.setdiff1d(np.arange(len(embeddings)), self.probes)
            nearest = gallery[(embeddings[self.probes] @ embeddings[gallery].T).argmax(1)]
        self.hits = labels[self.probes] == labels[nearest]

    def report(self, intervals: bool = True) -> dict:
        """Counts and verification, and of people of known age also by age gap, rank-1 of probes and
        metrics.percentiles, ready for JSON; with 95 % intervals."""
        known, pairs, facts = self.benchmark, self.pairs, (intervals, self.seed)
        found = metrics.verification(self.scores, pairs, known.thresholds, *facts)
        whose = pairs.people if known.pairs else known.labels
        count = None if whose is None else len(np.unique(whose))
        report: dict[str, Any] = {'images': len(known.names), 'people': count}
        report |= {'interval_over': 'pairs' if count is None else 'people', 'verification': found}
        if known.pairs:
            return report
        if not len(self.scores):
            found['reason'] = 'no pair of different people has the ages of a pair of one person'
            if count == 1:
                found['reason'] = 'there is one person alone'
            if count == len(known.labels):
                found['reason'] = 'every person has one image alone'
        hits, some = self.hits, len(self.hits)
        report |= {'rank1': float(hits.mean()) if some else None, 'rank1_probes': some}
        if intervals:
            who = known.labels[self.probes]
            report['rank1_interval'] = share_interval(hits, who, self.seed) if some else None
        report |= {'percentiles': metrics.percentiles(self.scores, pairs.same), 'by_gap': []}
        for years, here in gap_masks(pairs.gap):
            row = {'years': years, 'mean_gap': float(pairs.gap[here].mean())}
            row |= metrics.verification(self.scores[here], pairs.where(here), None, *facts)
            report['by_gap'].append(row)
        return report


def people_report(
    embeddings: np.ndarray, labels: np.ndarray, ages: np.ndarray, intervals: bool = True
) -> dict:
    """Evidence.report on people of known age: unit embeddings (N, D), labels (N,), ages (N,) in
    years. Without `intervals` it is under a second for 1,000 faces."""
    people = Benchmark([], [''] * len(labels), labels=labels, ages=ages)
    return Evidence(people, embeddings, 0).report(intervals)


def compare_models(first: Evidence, second: Evidence) -> dict:
    """How much better the second is, with paired 95 % intervals: pooled, by gap, rank-1."""
    pairs, seed, grid = first.pairs, first.seed, first.benchmark.thresholds
    gain = metrics.difference(first.scores, second.scores, pairs, grid, seed)
    gains: dict[str, Any] = {'verification': gain}
    if pairs.gap is not None:
        gains['by_gap'] = []
        for years, here in gap_masks(pairs.gap):
            facts = first.scores[here], second.scores[here], pairs.where(here), None, seed
            gains['by_gap'].append({'years': years, **metrics.difference(*facts)})
    if first.hits is not None and len(first.hits):
        more = second.hits.astype(float) - first.hits
        limits = share_interval(more, first.benchmark.labels[first.probes], seed)
        gains['rank1'] = {'difference': float(more.mean()), 'interval': limits}
    return gains


def leakage_report(
    features: dict, labels: np.ndarray, ages: np.ndarray, cutoffs: tuple, seed: int = 0
) -> dict:
    """Age and identity in x, x_age and x_id, as far as they are known, and the correlation of x_id
    and x_age on people it was not fitted on."""
    names = [name for name in ('x', 'x_age', 'x_id') if name in features]
    age = {n: leakage.age_leakage(features[n], labels, ages, cutoffs, seed) for n in names}
    identity = {n: leakage.identity_in(features[n], labels, ages, seed) for n in names}
    rho = dict.fromkeys(leakage.CORRELATION)
    if len(names) == 3:
        rho = leakage.held_out_correlation(features['x_id'], features['x_age'], labels, seed)
    return {'age': age, 'identity': identity, 'correlation': rho}


def distractor_ranks(
    embeddings: np.ndarray, labels: np.ndarray, distractors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """MegaFace's protocol. Every ordered pair of two images of one person is a probe and its mate.
    Returns the rank (Q,) of each mate among the mate and all distractors (M, 2·D), 1 is the best,
    and the index (Q,) of each probe. A distractor that scores the same goes first."""
    check_finite(distractors)
    same = labels[:, None] == labels[None]
    np.fill_diagonal(same, False)
    probe, mate = np.nonzero(same)
    scores = np.float32(cosines(embeddings, probe, mate))
    ranks, cuts = np.ones(len(probe), int), np.searchsorted(probe, np.arange(len(labels) + 1))
    for start in range(0, len(distractors), 2**14):
        against = np.sort(embeddings @ distractors[start : start + 2**14].T, axis=1)
        for i, row in enumerate(against):
            of_probe = slice(cuts[i], cuts[i + 1])
            ranks[of_probe] += len(row) - np.searchsorted(row, scores[of_probe])
    return ranks, probe


def distractor_report(
    embeddings: np.ndarray, labels: np.ndarray, distractors: np.ndarray, seed: int = 0
) -> dict:
    """{'distractors', 'rank1', 'rank1_interval', 'cmc'}: the CMC is the share of probes whose mate
    is at rank 1, 2 … RANKS or better. Raises DataError if nobody has two images."""
    ranks, probe = distractor_ranks(embeddings, labels, distractors)
    if not len(ranks):
        raise DataError('no person has two images: nobody to look for among the distractors')
    cmc = [float((ranks <= rank).mean()) for rank in range(1, RANKS + 1)]
    found = {'distractors': len(distractors), 'rank1': cmc[0], 'cmc': cmc}
    return found | {'rank1_interval': share_interval(ranks == 1, labels[probe], seed)}
