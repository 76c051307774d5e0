"""R in closed form and the ages, fitted at once to all faces of training: zero epochs, and how
every training ends."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import dal
import utils
from dataset import Faces, evaluation_loader
from model import AgeEstimator, DALModel
from recognition.embedding import FEATURES, check_finite, extract
from recognition.inference import ready
from system.progress import progress
from training.last_blocks import key_of
from training.log import read_log
from training.recipe import Recipe
from training.state import TrainingState
from utils import UserError

BLOCK = 1024  # faces at a time, between two looks for a signal
PER_EPOCH = 20_000  # faces that R is solved over between two epochs
FACES = 10_000  # that the ages are fitted to at most, whole people
WAVES = 2048  # Fourier features of the age estimator
WIDTH = 0.1  # of its kernel: exp(−WIDTH·d²/D) on standardised x
PENALTIES = 10.0 ** np.arange(-3, 2)  # on standardised features, beside their mean squares
FIGURES = {  # that best.pth is reported with
    'auc': 'AUC',
    'auc_gap_21-30': 'at gaps of 21 to 30 years',
    'auc_gap_31+': 'of 31 and more',
    'rank1': 'rank-1',
    'age_r2_id': 'R² of age in x_id',
}
KNOWN = 0.3  # the R² on people never seen below which ages are unknown


def embed(
    training: TrainingState, faces: Faces, folder: Path, kind: str, check: Callable[[], None]
) -> np.ndarray:
    """x of every face and of its mirror, (N, 2, D) float32; kept in `folder` by its `kind`, and
    read back at once if neither faces nor network have changed.

    Raises: UserError if a feature isn't finite, and what `check` raises, between blocks.
    """
    if hasattr(faces, 'vectors'):
        return faces.vectors[:, None]
    path = folder / f'x-{kind}-{key_of(training, [training.model.backbone], faces)}.npy'
    if not path.exists():
        for old in folder.glob(f'x-{kind}-*.npy'):
            old.unlink()
        utils.write_whole(path, lambda temporary: _embed_into(temporary, training, faces, check))
    return np.load(path, mmap_mode='r')


def _embed_into(path, training, faces, check):
    shape, network = (len(faces), 2, training.model.dim), _ready(training)
    x = np.lib.format.open_memmap(path, 'w+', np.float32, shape)
    with progress(None, 'embedding', len(faces), unit=' faces') as bar:
        for start in range(0, len(faces), BLOCK):
            check()
            part = range(start, min(start + BLOCK, len(faces)))
            both = _both_sides(network, faces, part, training.device)
            try:
                check_finite(both[:, 0], [faces.path(index) for index in part])
            except ValueError as error:
                raise UserError(str(error)) from None
            x[part.start : part.stop] = both
            bar.update(len(part))
    x.flush()


def _ready(training):
    """The network made ready for inference, once for all blocks; the next step ends eval mode."""
    return ready(training.model.eval(), training.device, training.executor.precision == 'bf16')


def _both_sides(network, faces, part, device):
    """x of the faces with the indices `part` and of their mirrors, (N, 2, D)."""
    loader, keep = evaluation_loader(torch.utils.data.Subset(faces, part)), ('x', 'x_mirror')
    found = extract(network, loader, device, keep=keep)
    return np.stack([found[name] for name in keep], 1)


def solve_eraser(training: TrainingState, faces: Faces) -> dal.Eraser:
    """R in closed form between two epochs, over PER_EPOCH faces at most."""
    chosen = _first_people(faces.labels, PER_EPOCH, training.recipe.seed)[0]
    x = _both_sides(_ready(training), faces, chosen.tolist(), training.device)
    return solve(x, faces.labels[chosen], faces.ages[chosen], training.recipe)


def fit(training: TrainingState, faces: Faces, folder: Path, check: Callable[[], None]) -> dict:
    """{'eraser', 'centres', 'estimator', 'age_error'} over all faces: an Eraser, if the recipe has
    R in closed form, and the people's centres if nothing was trained; the estimator's state and its
    error."""
    x = embed(training, faces, folder, 'train', check)
    found: dict[str, Any] = {'eraser': None, 'centres': None}
    if training.recipe.factorization == 'solved':
        found['eraser'] = solve(x, faces.labels, faces.ages, training.recipe)
    if not training.step:
        found['centres'] = _centres(x, faces.labels, found['eraser'])
    estimator, found['age_error'] = fit_estimator(x, faces.labels, faces.ages, training.recipe.seed)
    return found | {'estimator': estimator.state_dict()}


def put(training: TrainingState, found: dict) -> None:
    """Gives the network what `fit` found."""
    model, head = training.model, training.model.identity
    if found['eraser']:
        set_eraser(model, found['eraser'])
    if found['centres'] is not None:
        begin = getattr(head, 'begin', 0)  # of this rank's slice
        head.weight.data.copy_(found['centres'][begin : begin + len(head.weight)])
    model.estimator = AgeEstimator(model.dim, WAVES).to(training.device)
    model.estimator.load_state_dict(found['estimator'])
    training.age_error = found['age_error'] | {'people': 'held out of training'}


def set_eraser(model: DALModel, eraser: dal.Eraser) -> None:
    model.factorization.mean.copy_(eraser.mean)
    model.factorization.projection.copy_(eraser.projection)


@torch.no_grad()
def features(model: DALModel, x: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
    """As recognition.embedding.extract, from x (N, S, D) of the S sides of each face."""
    found: dict[str, list] = {name: [] for name in FEATURES}
    for start in range(0, len(x), BLOCK):
        mixed = torch.from_numpy(x[start : start + BLOCK].astype(np.float32)).to(device)
        x_age, x_id = model.factorization(mixed)
        embedding = torch.nn.functional.normalize(x_id.flatten(1))
        for name, value in zip(FEATURES, (embedding, mixed, x_age, x_id), strict=True):
            found[name].append((value if value.ndim == 2 else value[:, 0]).cpu().numpy())
    return {name: np.concatenate(blocks) for name, blocks in found.items()}


def _centres(x, labels, eraser):
    """The mean of x_id over each person's faces, each of unit length; of unit length itself."""
    sums = torch.zeros(labels.max() + 1, x.shape[2], dtype=torch.float64)
    for block in _whole_people(labels):
        x_id = torch.from_numpy(x[block, 0].astype(np.float64))
        x_id = eraser(x_id) if eraser else x_id
        unit = torch.nn.functional.normalize(x_id)
        sums.index_add_(0, torch.from_numpy(labels[block]), unit)
    return torch.nn.functional.normalize(sums)


def solve(x: np.ndarray, labels: np.ndarray, ages: np.ndarray, recipe: Recipe) -> dal.Eraser:
    """R in closed form over all faces: x (N, S, D), labels (N,), ages (N,) in years; S sides of a
    face, a block of whole people at a time."""
    fitter = dal.EraserFitter(x.shape[2], recipe.age_powers, recipe.within_person)
    for block in _whole_people(labels):
        sides = torch.from_numpy(x[block].astype(np.float64))
        z = dal.age_variates(torch.from_numpy(ages[block]), recipe.age_powers)
        of = torch.from_numpy(labels[block]).repeat_interleave(x.shape[1])
        fitter.update(sides.flatten(0, 1), z.repeat_interleave(x.shape[1], 0), of)
    return fitter.solve(recipe.directions, recipe.whiten)


def _whole_people(labels: np.ndarray) -> Iterator[np.ndarray]:
    """Indices of about BLOCK faces at a time, each person's together."""
    order: np.ndarray = np.argsort(labels, kind='stable')
    ends = np.append(np.flatnonzero(np.diff(labels[order])) + 1, len(order))
    start = 0
    while start < len(order):
        end = ends[min(int(np.searchsorted(ends, start + BLOCK)), len(ends) - 1)]
        yield order[start:end]
        start = end


def _first_people(labels, most, seed):
    """Ascending indices of at most so many faces of the people first in a drawn order, and their
    people's places in it."""
    people, person = np.unique(labels, return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(people))[person]
    chosen = np.sort(np.argsort(place, kind='stable')[:most])
    return chosen, place[chosen]


def fit_estimator(
    x: np.ndarray, labels: np.ndarray, ages: np.ndarray, seed: int = 0
) -> tuple[AgeEstimator, dict]:
    """An AgeEstimator of x (N, S, D), labels (N,) and ages (N,) in years, and its error on a fifth
    of the people, on which its penalty was chosen: {'mae', 'r2'}."""
    rng = np.random.default_rng(seed)
    chosen, place = _first_people(labels, FACES, seed)
    held = torch.from_numpy(place % 5 == 0).repeat_interleave(x.shape[1])
    target = torch.from_numpy(ages[chosen]).double().repeat_interleave(x.shape[1])
    values = torch.from_numpy(x[chosen]).flatten(0, 1)
    estimator = AgeEstimator(x.shape[2], WAVES)
    deviation = values.std(0)
    estimator.shift.copy_(values.mean(0))
    estimator.scale.copy_(torch.where(deviation > 1e-7 * values.abs().max(), 1 / deviation, 0))
    waves = rng.normal(size=(x.shape[2], WAVES)) * np.sqrt(2 * WIDTH / x.shape[2])
    estimator.frequencies.copy_(torch.from_numpy(waves))
    estimator.phases.copy_(torch.from_numpy(rng.uniform(0, 2 * np.pi, WAVES)))
    estimator.bounds.copy_(torch.tensor([ages.min(), ages.max()]))
    features, errors = estimator.features(values), []
    if held.any() and not held.all():
        ridge = _Ridge(features[~held], target[~held])
        for penalty in PENALTIES:
            ridge.into(estimator, penalty)
            errors.append(age_error(estimator(values[held]).numpy(), target[held].numpy()))
    best = int(np.argmin([error['mae'] for error in errors])) if errors else len(PENALTIES) // 2
    _Ridge(features, target).into(estimator, PENALTIES[best])
    return estimator, errors[best] if errors else {'mae': None, 'r2': None}


class _Ridge:
    """A ridge regression of target (N,) on features (N, F) for any penalty."""

    def __init__(self, features: Tensor, target: Tensor):
        self.faces, self.mean, self.middle = len(target), features.mean(0), target.mean()
        centred = features - self.mean
        self.gram = (centred.T @ centred).double()
        self.cross = centred.T.double() @ (target - self.middle)

    def into(self, estimator: AgeEstimator, penalty: float) -> None:
        ridged = self.gram + torch.diag(torch.full_like(self.cross, penalty * self.faces))
        factor = torch.linalg.cholesky(ridged)
        weight = torch.cholesky_solve(self.cross[:, None], factor)[:, 0]
        estimator.weight.copy_(weight)
        estimator.offset.copy_(self.middle - self.mean.double() @ weight)


def age_error(estimated: np.ndarray, ages: np.ndarray) -> dict:
    """{'mae', 'r2'} of ages in years (N,); R² is None if all ages are one."""
    spread = np.square(ages - ages.mean()).sum()
    error = estimated - ages
    r2 = float(1 - np.square(error).sum() / spread) if spread else None
    return {'mae': float(np.abs(error).mean()), 'r2': r2}


def judge(training: TrainingState, before: dict | None, report: dict) -> None:
    """Takes the ages' error from validation, if it has ages; they are unknown if R² < KNOWN. Notes
    what a weights file says of validation, {'epoch', 'before', 'auc', …}."""
    if report.get('estimated_r2') is not None:
        error = {'mae': report['estimated_mae'], 'r2': report['estimated_r2']}
        training.age_error = error | {'people': 'of validation'}
    if not training.age_error or (training.age_error['r2'] or 0) < KNOWN:
        training.model.estimator = None
        if training.decision:
            training.decision.pop('estimated', None)
    before = {key.removeprefix('val_'): value for key, value in (before or {}).items()}
    training.figures = {'epoch': training.epoch, 'before': before or None, **report}


def candidates(folder: Path) -> list[dict]:
    """{'epoch', 'score', 'age_r2'} of the epochs that best.pth may be."""
    found = {}
    for row in read_log(folder / 'log.jsonl'):
        if row.get('candidate'):
            score = row.get('val_auc') or row['val_closed_set_accuracy']
            age_r2 = round(row.get('val_age_r2_id') or 0, 2)
            found[row['epoch']] = {'epoch': row['epoch'], 'score': score, 'age_r2': age_r2}
    return list(found.values())


def choose(rows: list[dict], low: float) -> dict:
    """Of the candidates whose score is at least `low` the one with the least age, the later one at
    equal."""
    near = [row for row in rows if row['score'] >= low]
    return min(near or rows, key=lambda row: (row['age_r2'], -row['epoch']))


def report(training: TrainingState, folder: Path) -> None:
    """Says what best.pth is worth, beside the figures before the first step; kept as best.json."""
    after, error = training.figures or {}, training.age_error or {}
    before = after['before'] or {}
    shown = {'epoch': after['epoch'], 'before': after['before'], 'after': after, 'ages': error}
    utils.write_json(shown, folder / 'best.json')
    print(f'{folder}/best.pth is epoch {training.epoch}' + (': before → after' if before else ''))
    for key, title in FIGURES.items():
        if after.get(key) is not None:
            earlier = f'{before[key]:.3f} → ' if before.get(key) is not None else ''
            print(f'  {title:28}{earlier}{after[key]:.3f}')
    if error['mae'] is not None:
        known = '' if training.model.estimator else ': too little, so ages are unknown'
        off = f'off by {error["mae"]:.1f} years on average, R² {error["r2"] or 0:.2f}{known}'
        print(f'  ages of people never seen ({error["people"]}): {off}')
