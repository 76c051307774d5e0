"""What each benchmark counts, on features that are there: every report is a dict for JSON."""

import hashlib

import numpy as np

from evaluation import metrics
from evaluation.intervals import REPLICATES, share_interval
from evaluation.lists import Listed
from evaluation.pairs import GAP_NAMES, gap_bin, gap_pairs
from evaluation.rates import cosines
from recognition.embedding import check_finite
from utils import DataError

RANKS = 100  # a CMC curve's length


class Evidence:
    """One model's scores on a benchmark, from which report, pictures and comparison are made.

    pairs, scores (n,): the list's pairs, or gap_pairs where there is no list; hits, probes (P,):
    whether each probe image's nearest gallery image is of its person, None where the benchmark is
    verification alone.
    """

    def __init__(self, listed: Listed, embeddings: np.ndarray, seed: int):
        self.listed, self.embeddings, self.seed = listed, embeddings, seed
        self.pairs = listed.pairs or gap_pairs(listed.labels, listed.ages, seed)
        self.scores = cosines(embeddings, self.pairs.left, self.pairs.right)
        self.hits = self.probes = None
        if listed.pairs:
            return
        if listed.probes is None:
            self.probes, nearest = metrics.leave_one_out(embeddings, listed.labels)
        else:
            self.probes = listed.probes
            gallery = np.setdiff1d(np.arange(len(embeddings)), self.probes)
            nearest = gallery[(embeddings[self.probes] @ embeddings[gallery].T).argmax(1)]
        self.hits = listed.labels[self.probes] == listed.labels[nearest]

    def report(self) -> dict:
        """Counts, verification over the folds, by age gap where ages are known, rank-1 where there
        are probes; with intervals."""
        listed = self.listed
        if listed.pairs:
            people = None if listed.pairs.people is None else len(np.unique(listed.pairs.people))
            report = metrics.verification(
                self.scores, *listed.pairs[2:5], listed.thresholds, REPLICATES, self.seed
            )
            return {
                'images': len(listed.sources),
                'people': people,
                'interval_over': 'pairs' if people is None else 'people',
                'verification': report,
            }
        people = self.embeddings, listed.labels, listed.ages, self.seed
        counts = {
            'images': len(listed.sources),
            'people': len(np.unique(listed.labels)),
            'interval_over': 'people',
        }
        if listed.probes is not None:
            rank1 = metrics.rank1_report(self.hits, listed.labels[self.probes], seed=self.seed)
            return counts | rank1 | metrics.gap_report(*people)
        return counts | metrics.people_report(*people)


def compare(first: Evidence, second: Evidence) -> dict:
    """What the second Evidence is better by than the first, each figure with its paired 95 %
    interval: pooled, by gap, rank-1."""
    pairs, result = first.pairs, {}
    result['verification'] = metrics.difference(
        first.scores, second.scores, pairs, first.listed.thresholds, seed=first.seed
    )
    if pairs.gap is not None:
        gaps = gap_bin(pairs.gap)
        result['by_gap'] = []
        for k in np.unique(gaps):
            here = gaps == k
            gain = metrics.difference(
                first.scores[here], second.scores[here], pairs.where(here), None, seed=first.seed
            )
            result['by_gap'].append({'years': GAP_NAMES[k], **gain})
    if first.hits is not None and len(first.hits):
        gain = second.hits.astype(float) - first.hits
        people = first.listed.labels[first.probes]
        result['rank1'] = {
            'difference': float(gain.mean()),
            'interval': share_interval(gain, people, seed=first.seed),
        }
    return result


def leakage_report(
    features: dict, labels: np.ndarray, ages: np.ndarray, cutoffs: tuple, seed: int = 0
) -> dict:
    """Age and identity in x, x_age and x_id, and the correlation of x_id and x_age on people it was
    not fitted on."""
    from evaluation import leakage  # scikit-learn is slow to import

    parts = {part: features[part] for part in ('x', 'x_age', 'x_id')}
    return {
        'age': {
            part: leakage.age_leakage(feature, labels, ages, cutoffs, seed)
            for part, feature in parts.items()
        },
        'identity': {
            part: leakage.identity_in(feature, labels, ages, seed)
            for part, feature in parts.items()
        },
        'correlation': leakage.held_out_correlation(
            features['x_id'], features['x_age'], labels, seed
        ),
    }


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
            own = slice(cuts[i], cuts[i + 1])
            ranks[own] += len(row) - np.searchsorted(row, scores[own])
    return ranks, probe


def distractor_report(
    embeddings: np.ndarray, labels: np.ndarray, distractors: np.ndarray, seed: int = 0
) -> dict:
    """{'distractors', 'rank1', 'rank1_interval', 'cmc'}: the CMC is the share of probes whose mate
    is at rank 1, 2 … RANKS or better. Raises DataError where nobody has two images."""
    ranks, probe = distractor_ranks(embeddings, labels, distractors)
    if not len(ranks):
        raise DataError('no person has two images: nobody to look for among the distractors')
    return {
        'distractors': len(distractors),
        'rank1': float((ranks == 1).mean()),
        'rank1_interval': share_interval(ranks == 1, labels[probe], seed=seed),
        'cmc': [float((ranks <= rank).mean()) for rank in range(1, RANKS + 1)],
    }


def morph_subjects(listed: Listed, subjects: int, seed: int) -> tuple[Listed, str]:
    """`subjects` people of MORPH, each a gallery and a probe image, in turns; and the text of that
    list, whose sha256 is its digest.

    Of each subject the youngest image is gallery and the oldest of the others probe; of one age,
    the lowest picture number. The subjects are drawn from those with two or more images by the
    seed. Raises DataError where there are fewer.
    """
    # sorted by subject, then picture
    starts = np.append(np.flatnonzero(np.diff(listed.labels, prepend=-1)), len(listed.labels))
    spans = zip(starts[:-1], starts[1:], strict=True)
    chosen = [(start, end) for start, end in spans if end - start > 1]
    if len(chosen) < subjects:
        raise DataError(
            f'{len(chosen)} subjects have two or more images: --subjects {subjects} '
            "can't be drawn from them"
        )
    order = []
    for k in np.sort(np.random.default_rng(seed).choice(len(chosen), subjects, replace=False)):
        images = np.arange(*chosen[k])
        youngest = images[listed.ages[images].argmin()]
        rest = images[images != youngest]
        order += [youngest, rest[listed.ages[rest].argmax()]]
    paths = [listed.sources[i] for i in order]
    names = [path.rpartition('/')[2] for path in paths]
    text = ''.join(
        f'{gallery} {probe}\n' for gallery, probe in zip(names[::2], names[1::2], strict=True)
    )
    drawn = listed._replace(
        sources=paths,
        names=paths,
        labels=listed.labels[order],
        ages=listed.ages[order],
        probes=np.arange(1, len(order), 2),
        digest=hashlib.sha256(text.encode()).hexdigest(),
    )
    return drawn, text
