"""`verify.py --calibrate`: a decision from a user's people or archive, without training."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import meta
from dataset import Faces, check_entry, evaluation_loader
from evaluation import age_calibration
from evaluation.age_calibration import Scored
from evaluation.age_thresholds import SHAPE, AgeDecision
from evaluation.evidence import people_report
from evaluation.metrics import decision, percentiles
from evaluation.rates import THRESHOLD_FARS
from recognition.embedding import extract
from storage.images import WIDTH, to_width
from system.names import shown
from utils import DataError, UserError
from verification.decision import write_calibration
from verification.index import Index
from verification.matcher import BY_PACKAGE, BY_WEIGHTS, KEPT, Matcher
from verification.portraits import age_model


def calibrate_people(matcher: Matcher, name: str, path: Path) -> Iterator[str]:
    """Writes the file, and yields lines for the user: half of the people's thresholds on the other.
    `name` is an entry of meta.py, whose val_root is read, else its train_root; or an index. Raises
    UserError or DataError if there is neither, or no people to calibrate on."""
    entry = getattr(meta, name, None)
    if not isinstance(entry, dict):
        if not Path(name).is_file():
            raise UserError(f'--calibrate {name}: no index, and meta.py has no such entry')
        yield from calibrate_archive(matcher, name, path)
        return
    entry = check_entry(name, entry, meta.age_cutoffs)
    root = entry['val_root'] or entry['train_root']
    faces = Faces(root, entry['pat'], entry['pos'], matcher.width)
    batches = evaluation_loader(faces)
    found = extract(matcher.network, batches, matcher.device, keep=KEPT, progress='faces')
    people = found['embedding'], faces.labels
    stored = decision(people_report(*people, faces.ages, intervals=False))
    fitted = {'ages': age_calibration.fit_by_age(age_calibration.score_pairs(*people, faces.ages))}
    if stored is None or fitted['ages'] is None:
        raise DataError(f'{root}: nobody has two faces, or there is one person: no pairs')
    estimates = _estimates(matcher, faces, found)
    errors = {by: abs(years - faces.ages).mean() for by, years in estimates.items()}
    by = min(errors, key=errors.__getitem__, default='')
    if by:
        pairs = age_calibration.score_pairs(*people, estimates[by])
        fitted['estimated'] = age_calibration.fit_by_age(pairs)
    write_calibration(stored | fitted, name, matcher.info, path)
    enough = f'{AgeDecision(fitted["ages"]).supported(0.001)} of {np.prod(SHAPE)} cells of ages'
    whose = f'{len(faces)} faces of {len(faces.classes)} people in {root}'
    yield f'{path}: from {whose}; {enough} have enough pairs for a false accept rate of 0.001'
    if by:
        off = f'off by {errors[by]:.1f} years here'
        yield f'where ages are estimated, thresholds go by estimates of {by}, which are {off}'
    yield from held_out(*people, faces.ages)


def _estimates(matcher, faces, found):
    """Estimated years (N,) of a data set's faces, by who estimates them; `found` are extract's."""
    estimates = {}
    if matcher.knows_ages:
        estimates[BY_WEIGHTS] = np.array(matcher.ages(found)[0])
    if model := age_model():
        images = (Image.fromarray(to_width(faces.read(k), WIDTH)) for k in range(len(faces)))
        estimates[BY_PACKAGE] = np.array([model.estimate(image) for image in images])
    return estimates


def calibrate_archive(matcher: Matcher, archive: str, path: Path) -> Iterator[str]:
    """Writes the file from an index without names: faces in one photograph are different people.

    The thresholds at rates are fitted on those pairs, by estimated ages; all about pairs of one
    person stays as the weights have it. Yields lines for the user. Raises DataError if there are
    too few pairs for any threshold.
    """
    index = Index.open(archive, matcher.info.sha256)
    people = index.in_one_photograph()
    first, second = people.T
    photographs = len(np.unique(index.faces['photograph'][first]))
    similarity = np.einsum('nd,nd->n', index.embeddings[first], index.embeddings[second])
    rates = age_calibration.bounds(similarity, people, THRESHOLD_FARS)
    if not np.isfinite(rates).any():
        few = f'{len(first)} pairs of faces stand in one photograph, in {photographs} photographs'
        raise DataError(f'{archive}: {few}: too few for a threshold at any rate')
    stored = dict.fromkeys(('threshold', 'accuracy', 'genuine', 'ages'))
    stored |= matcher.info.decision or {}
    stored['impostor'] = percentiles(similarity, np.zeros(len(similarity), bool))['impostor']
    found = {str(far): t for far, t in zip(THRESHOLD_FARS, rates.tolist(), strict=True) if t == t}
    stored['far'] = {far: {'threshold': t, 'interval': None} for far, t in found.items()}
    known = (index.faces['group'][people] >= 0).all(1)
    if known.any():
        ages = index.faces['age'][people[known]].astype(np.float64)
        younger, gap = ages.min(1), abs(ages[:, 0] - ages[:, 1])
        pairs = Scored(similarity[known], younger, gap, np.zeros(len(gap), bool), people[known])
        fitted = age_calibration.fit_thresholds(pairs)
        for kind in ('ages', 'estimated'):
            before = stored.get(kind) or {}
            line = {key: before[key] for key in ('slope', 'offset') if key in before}
            stored[kind] = fitted | line if before or kind == 'ages' else None
    write_calibration(stored, shown(Path(archive).name), matcher.info, path)
    alike = int(first[similarity.argmax()])
    yield (
        f'{path}: thresholds at false accept rates of {", ".join(found)} from {len(first)} pairs '
        f'of faces that stand in one photograph, in {photographs} photographs of {archive}'
    )
    yield (
        f'the two most alike are in {shown(index.name(alike))}, at {similarity.max():.3f}: if they '
        'are one person (a mirror, a photograph on the wall), the thresholds are too strict'
    )


def held_out(embeddings: np.ndarray, labels: np.ndarray, ages: np.ndarray) -> Iterator[str]:
    """Thresholds of one half of the people on the other's pairs, in lines."""
    found = age_calibration.report_by_age({}, embeddings, labels, ages, refit=True)
    if found is None or not found['reliability']['bins']:
        return
    for far in age_calibration.RATES:
        cells = [cell for cell in found['cells'] if cell['asked'] == far and cell['promised']]
        rows = [cell for cell in cells if cell['impostor'] >= 200]
        if rows:
            worst = max(rows, key=lambda row: row['far'])
            where = f'in any of {len(rows)} cells of 200 pairs or more ({worst["cell"]})'
            most = f'the thresholds accept at most {worst["far"]:.3g} of the other half'
            yield f'asked for {far:g} of half of the people, {most}, {where}'
    error = found['reliability']['ece']
    yield f'the probability is off by {100 * error:.1f} points on average, on the other half'
