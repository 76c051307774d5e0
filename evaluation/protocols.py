"""What each benchmark counts, on features that are already there: every report is a dict ready for JSON."""
import hashlib

import numpy as np

from evaluation import leakage, metrics
from evaluation.pairs import gap_bin, gap_pairs
from utils import DataError

READ_BY_AGE = ('fgnet', 'folder', 'morph')  # ages known, no list of pairs
RANKS = 100  # a CMC curve's length


class Evidence:
    """One model's scores on a benchmark, from which report, pictures and comparison are made.

    pairs, scores (n,): the list's pairs, or gap_pairs where there is no list; hits, probes (P,): whether each probe image's nearest
    gallery image is of its person, None where the benchmark is verification alone.
    """

    def __init__(self, benchmark, listed, embeddings, seed):
        self.benchmark, self.listed, self.embeddings, self.seed = benchmark, listed, embeddings, seed
        self.pairs = listed.pairs or gap_pairs(listed.labels, listed.ages, seed)
        self.scores = metrics.cosines(embeddings, self.pairs.left, self.pairs.right)
        self.thresholds = metrics.GRID if listed.pairs else None
        self.hits = self.probes = None
        if benchmark == 'morph':  # gallery, probe, gallery, probe …
            self.probes = np.arange(1, len(embeddings), 2)
            self.hits = (embeddings[1::2] @ embeddings[::2].T).argmax(1) == np.arange(len(self.probes))
        elif benchmark in READ_BY_AGE:
            self.probes, nearest = metrics.leave_one_out(embeddings, listed.labels)
            self.hits = listed.labels[self.probes] == listed.labels[nearest]

    def report(self):
        """Counts, verification over the folds, by age gap where ages are known, rank-1 where there are probes; with intervals."""
        listed = self.listed
        if listed.pairs:
            people = None if listed.pairs.people is None else len(np.unique(listed.pairs.people))
            return {'images': len(listed.sources), 'people': people, 'interval_over': 'pairs' if people is None else 'people',
                    'verification': metrics.verification(self.scores, *listed.pairs[2:5], replicates=metrics.REPLICATES, seed=self.seed)}
        counts = {'images': len(listed.sources), 'people': len(np.unique(listed.labels)), 'interval_over': 'people'}
        if self.benchmark == 'morph':
            return counts | metrics.rank1_report(self.hits, listed.labels[self.probes], seed=self.seed) | metrics.gap_report(
                self.embeddings, listed.labels, listed.ages, self.seed)
        return counts | metrics.people_report(self.embeddings, listed.labels, listed.ages, self.seed)


def compare(first, second):
    """What the second Evidence is better by than the first, each figure with its paired 95 % interval: pooled, by gap, rank-1."""
    pairs, result = first.pairs, {}
    result['verification'] = metrics.difference(first.scores, second.scores, pairs, first.thresholds, seed=first.seed)
    if pairs.gap is not None:
        gaps = gap_bin(pairs.gap)
        result['by_gap'] = []
        for k in np.unique(gaps):
            here = pairs._replace(**{name: value[gaps == k] for name, value in pairs._asdict().items() if value is not None})
            result['by_gap'].append({'years': metrics.GAP_NAMES[k], **metrics.difference(
                first.scores[gaps == k], second.scores[gaps == k], here, None, seed=first.seed)})
    if first.hits is not None and len(first.hits):
        gain = second.hits.astype(float) - first.hits
        result['rank1'] = {'difference': float(gain.mean()),
                           'interval': metrics.share_interval(gain, first.listed.labels[first.probes], seed=first.seed)}
    return result


def leakage_report(features, labels, ages, cutoffs, seed=0):
    """Age in x, x_age and x_id, identity in x_age and x_id, and the correlation of the two on people it was not fitted on."""
    return {'age': {part: leakage.age_leakage(features[part], labels, ages, cutoffs, seed) for part in ('x', 'x_age', 'x_id')},
            'identity': {part: leakage.identity_in(features[part], labels, ages, seed) for part in ('x', 'x_age', 'x_id')},
            'correlation': leakage.held_out_correlation(features['x_id'], features['x_age'], labels, seed)}


def distractor_ranks(embeddings, labels, distractors):
    """MegaFace's protocol: the rank (Q,) of each probe's mate among the mate and all distractors, 1 the best, and the probe (Q,).

    Every image of a person with at least two is in turn the mate that joins the distractors (M, 2·D), the person's others are the
    probes: Q ordered pairs. A distractor that scores the same goes first.
    """
    metrics.check_finite(distractors)
    same = labels[:, None] == labels[None]
    np.fill_diagonal(same, False)
    probe, mate = np.nonzero(same)
    scores = np.float32(metrics.cosines(embeddings, probe, mate))
    ranks, cuts = np.ones(len(probe), int), np.searchsorted(probe, np.arange(len(labels) + 1))
    for start in range(0, len(distractors), 2 ** 14):
        against = np.sort(embeddings @ distractors[start:start + 2 ** 14].T, axis=1)
        for i, row in enumerate(against):
            own = slice(cuts[i], cuts[i + 1])
            ranks[own] += len(row) - np.searchsorted(row, scores[own])
    return ranks, probe


def distractor_report(embeddings, labels, distractors, seed=0):
    """{'distractors', 'rank1', 'rank1_interval', 'cmc'}: the CMC is the share of probes whose mate is at rank 1, 2 … RANKS or better."""
    ranks, probe = distractor_ranks(embeddings, labels, distractors)
    if not len(ranks):
        raise DataError('no person has two images: nobody to look for among the distractors')
    return {'distractors': len(distractors), 'rank1': float((ranks == 1).mean()),
            'rank1_interval': metrics.share_interval(ranks == 1, labels[probe], seed=seed),
            'cmc': [float((ranks <= rank).mean()) for rank in range(1, RANKS + 1)]}


def morph_subjects(listed, subjects, seed):
    """`subjects` people of MORPH, each a gallery and a probe image, in turns; and the text of that list, whose sha256 is its digest.

    Of each subject the youngest image is gallery and the oldest of the others probe; of one age, the lowest picture number. The
    subjects are drawn from those with two or more images by the seed. Raises DataError where there are fewer.
    """
    starts = np.append(np.flatnonzero(np.diff(listed.labels, prepend=-1)), len(listed.labels))  # sorted by subject, then picture
    chosen = [(start, end) for start, end in zip(starts, starts[1:]) if end - start > 1]
    if len(chosen) < subjects:
        raise DataError(f'{len(chosen)} subjects have two or more images: --subjects {subjects} can\'t be drawn from them')
    order = []
    for k in np.sort(np.random.default_rng(seed).choice(len(chosen), subjects, replace=False)):
        images = np.arange(*chosen[k])
        youngest = images[listed.ages[images].argmin()]
        rest = images[images != youngest]
        order += [youngest, rest[listed.ages[rest].argmax()]]
    paths = [listed.sources[i] for i in order]
    text = ''.join(f'{gallery.rpartition("/")[2]} {probe.rpartition("/")[2]}\n' for gallery, probe in zip(paths[::2], paths[1::2]))
    return listed._replace(sources=paths, names=paths, labels=listed.labels[order], ages=listed.ages[order],
                           digest=hashlib.sha256(text.encode()).hexdigest()), text
