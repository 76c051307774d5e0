"""`verify.py --calibrate NAME`: a decision from a user's own people, without training."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

import meta
from dataset import Faces, check_entry, evaluation_loader
from evaluation import age_calibration
from evaluation.age_thresholds import SHAPE, AgeDecision
from evaluation.metrics import decision, people_report
from recognition.embedding import extract
from utils import DataError, UserError
from verification.decision import write_calibration
from verification.matcher import Matcher

RATES = (0.1, 0.01)  # at which it is told how the thresholds do on other people


def calibrate(matcher: Matcher, name: str, path: Path) -> Iterator[str]:
    """Writes the file, and yields lines for the user: what half of the people say of the other.

    `name` is an entry of meta.py; its val_root is read, else its train_root. Raises UserError or
    DataError where there is no such entry, or no people to calibrate on.
    """
    entry = getattr(meta, name, None)
    if not isinstance(entry, dict):
        raise UserError(f'--calibrate {name}: meta.py has no such entry')
    entry = check_entry(name, entry, meta.age_cutoffs)
    root = entry['val_root'] or entry['train_root']
    faces = Faces(root, entry['pat'], entry['pos'], matcher.width)
    embeddings = embed(matcher, faces)
    stored = decision(people_report(embeddings, faces.labels, faces.ages, intervals=False))
    ages = age_calibration.fit(age_calibration.score_pairs(embeddings, faces.labels, faces.ages))
    if stored is None or ages is None:
        raise DataError(f'{root}: nobody has two faces, or there is one person: no pairs')
    write_calibration(stored | {'ages': ages}, name, matcher.info, path)
    people = len(faces.classes)
    enough = AgeDecision(ages).supported(0.001)
    yield (
        f'{path}: from {len(faces)} faces of {people} people in {root}; at a false accept rate of '
        f'0.001 {enough} of {np.prod(SHAPE)} cells of ages have pairs enough'
    )
    yield from held_out(embeddings, faces.labels, faces.ages)


def embed(matcher: Matcher, faces: Faces) -> np.ndarray:
    """Embeddings (N, 2·D) of a data set's faces. Raises DataError where one can't be read."""
    batches = evaluation_loader(faces)
    return extract(matcher.model, batches, matcher.device, keep=('embedding',), progress='faces')[
        'embedding'
    ]


def held_out(embeddings, labels, ages, seed: int = 0) -> Iterator[str]:
    """Thresholds of one half of the people on the other's pairs, in lines."""
    half = age_calibration.halves(labels, seed)
    first, second = (
        age_calibration.score_pairs(embeddings[k], labels[k], np.asarray(ages)[k])
        for k in (half, ~half)
    )
    fitted = age_calibration.fit(first)
    if fitted is None or not second.same.any():
        return
    for far in RATES:
        rows = [
            row
            for row in age_calibration.measure(fitted, second, far)
            if row['impostor'] >= 200 and row['promised']
        ]
        if rows:
            worst = max(rows, key=lambda row: row['far'])
            yield (
                f'asked for {far:g} of half of the people, the other half has at most '
                f'{worst["far"]:.3g} in any of {len(rows)} cells of 200 pairs or more '
                f'({worst["cell"]})'
            )
    error = age_calibration.reliability(fitted, second)['ece']
    yield f'the probability is off by {100 * error:.1f} points on average, on the other half'
