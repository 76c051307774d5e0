"""One network's features on a benchmark, and every figure that they give: a dict for JSON."""

from typing import Any

import numpy as np

from evaluation import leakage, metrics
from evaluation.pairs import gap_masks, gap_pairs
from evaluation.protocols import Benchmark
from evaluation.rates import REPLICATES, cosines, share_interval
from recognition.embedding import check_finite
from utils import DataError

RANKS = 100  # a CMC curve's length


class Evidence:
    """One model's scores on a benchmark, from which report, pictures and comparison are made.

    pairs, scores     (n,): the list's pairs, or gap_pairs if there is no list
    probes, nearest   (P,): images that are looked for, and the image found; None for a list
    hits              (P,): whether that image is of the probe's person
    """

    def __init__(self, benchmark: Benchmark, embeddings: np.ndarray, seed: int):
        self.benchmark, self.embeddings, self.seed = benchmark, embeddings, seed
        labels, ages = benchmark.labels, benchmark.ages
        self.pairs = benchmark.pairs or gap_pairs(labels, ages, seed)
        self.scores = cosines(embeddings, self.pairs.left, self.pairs.right)
        probes: Any = benchmark.probes
        nearest: Any = None
        if probes is not None:
            gallery = np.setdiff1d(np.arange(len(embeddings)), probes)
            nearest = gallery[(embeddings[probes] @ embeddings[gallery].T).argmax(1)]
        elif not benchmark.pairs:
            probes, nearest = metrics.leave_one_out(embeddings, labels)
        self.probes, self.nearest = probes, nearest
        self.hits: Any = None if benchmark.pairs else labels[probes] == labels[nearest]

    def report(self) -> dict:
        """Counts, verification, by age gap if ages are known, rank-1 of probes; with intervals."""
        known, seed = self.benchmark, self.seed
        if not known.pairs:
            people = self.embeddings, known.labels, known.ages, seed
            report = metrics.people_report(*people, found=(self.probes, self.nearest))
            return report | {'interval_over': 'people'}
        facts = known.pairs, known.thresholds, REPLICATES, seed
        report = metrics.verification(self.scores, *facts)
        count = None if known.pairs.people is None else len(np.unique(known.pairs.people))
        counts = {'images': len(known.sources), 'people': count}
        over = 'pairs' if count is None else 'people'
        return counts | {'interval_over': over, 'verification': report}


def compare(first: Evidence, second: Evidence) -> dict:
    """What the second is better by, with paired 95 % intervals: pooled, by gap, rank-1."""
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
    rho = dict.fromkeys(('rho', 'shuffled', 'shuffled_95', 'dimensions'))
    if len(names) == 3:
        rho = leakage.held_out_correlation(features['x_id'], features['x_age'], labels, seed)
    return {'age': age, 'identity': identity, 'correlation': rho}


def distractor_ranks(
    embeddings: np.ndarray, labels: np.ndarray, distractors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """MegaFace's protocol: the rank (Q,) of each probe's mate among the mate and all distractors,
    1 the best, and the probe (Q,).

    Every image of a person with at least two is in turn the mate that joins the distractors (M,
    2·D), the person's others are the probes: Q ordered pairs. A distractor that scores the same
    goes first.
    """
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
