"""What is fitted to all faces of training, and best.pth: zero epochs, and how every training
ends."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize
from torch.utils.data import Subset

import dal
import utils
from dataset import Faces, evaluation_loader
from model import AgeEstimator, DALModel
from recognition.embedding import FEATURES, check_finite, extract
from recognition.inference import ready
from system.progress import progress
from training import closed_form
from training.distributed import all_reduce
from training.last_blocks import key_of
from training.log import read_log
from training.sharded import ShardedHead, own_rows
from training.state import TrainingState
from utils import UserError

SIDES = 'x', 'x_mirror'
BLOCK = 1024  # faces at a time, whole batches of evaluation_loader
PER_EPOCH = 20_000  # faces that R is solved over between two epochs
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
    read back at once if neither faces nor network have changed. Raises UserError if a feature isn't
    finite, and what `check` raises, between blocks."""
    if hasattr(faces, 'vectors'):
        return faces.vectors[:, None]
    path = folder / f'x-{kind}-{key_of(training, [training.model.backbone], faces)}.npy'
    if not path.exists():
        for old in folder.glob(f'x-{kind}-*.npy'):
            old.unlink()
        utils.write_whole(path, lambda temporary: _embed_into(temporary, training, faces, check))
    return np.load(path, mmap_mode='r')


def _embed_into(path, training, faces, check):
    x = np.lib.format.open_memmap(path, 'w+', np.float32, (len(faces), 2, training.model.dim))
    for part, found in _extracted(training, faces, range(len(faces)), SIDES, 'embedding'):
        check()
        try:
            check_finite(found['x'], [faces.path(index) for index in part])
        except ValueError as error:
            raise UserError(str(error)) from None
        x[part] = np.stack([found[name] for name in SIDES], 1)
    x.flush()


def _extracted(training, faces, indices, keep, title):
    """Indices of about BLOCK of the faces at a time, and their features."""
    # the next step ends eval mode
    network = ready(training.model.eval(), training.device, training.executor.precision == 'bf16')
    with progress(None, title, len(indices), unit=' faces') as bar:
        for start in range(0, len(indices), BLOCK):
            part = indices[start : start + BLOCK]
            loader = evaluation_loader(Subset(faces, part))
            yield part, extract(network, loader, training.device, keep=keep)
            bar.update(len(part))


def solve_eraser(training: TrainingState, faces: Faces) -> dal.Eraser:
    """R in closed form between two epochs, over PER_EPOCH faces at most."""
    chosen = closed_form.first_people(faces.labels, PER_EPOCH, training.recipe.seed)[0]
    found = [part for _, part in _extracted(training, faces, chosen.tolist(), SIDES, 'R')]
    x = np.stack([np.concatenate([part[name] for part in found]) for name in SIDES], 1)
    return closed_form.solve_r(x, faces.labels[chosen], faces.ages[chosen], training.recipe)


@torch.no_grad()
def set_centres(training: TrainingState, faces: Faces) -> None:
    """As closed_form.centres, of the network as it is, from one pass over the set. Each rank embeds
    the people of its own rows: those of its slice of a sharded head, else an equal share."""
    head = training.model.identity
    begin, end = own_rows(len(faces.classes))
    own = ((faces.labels >= begin) & (faces.labels < end)).nonzero()[0].tolist()
    sums = torch.zeros(end - begin, training.model.dim)
    for part, found in _extracted(training, faces, own, ('x_id',), 'centres of the people'):
        unit = normalize(torch.from_numpy(found['x_id']))
        sums.index_add_(0, torch.from_numpy(faces.labels[part] - begin), unit)
    centres = normalize(sums).to(head.weight)
    if not isinstance(head, ShardedHead):
        whole = torch.zeros_like(head.weight)
        whole[begin:end] = centres
        centres = all_reduce(whole)
    head.weight.copy_(centres)


def fit_all(training: TrainingState, faces: Faces, folder: Path, check: Callable[[], None]) -> dict:
    """{'eraser', 'centres', 'estimator', 'age_error'} over all faces: an Eraser or None; the
    people's centres if nothing was trained; the estimator's state and its error."""
    x = embed(training, faces, folder, 'train', check)
    known, recipe = (x, faces.labels, faces.ages), training.recipe
    eraser = closed_form.solve_r(*known, recipe) if recipe.factorization == 'solved' else None
    centres = None if training.step else closed_form.centres(x, faces.labels, eraser)
    estimator, error = closed_form.fit_estimator(*known, recipe.seed)
    state = estimator.state_dict()
    return {'eraser': eraser, 'centres': centres, 'estimator': state, 'age_error': error}


def put(training: TrainingState, found: dict) -> None:
    """Gives the network what `fit_all` found."""
    model, head = training.model, training.model.identity
    if found['eraser']:
        closed_form.set_eraser(model, found['eraser'])
    if found['centres'] is not None:
        begin = getattr(head, 'begin', 0)  # of this rank's slice
        head.weight.data.copy_(found['centres'][begin : begin + len(head.weight)])
    model.estimator = AgeEstimator(model.dim, closed_form.WAVES).to(training.device)
    model.estimator.load_state_dict(found['estimator'])
    training.age_error = found['age_error'] | {'people': 'held out of training'}


@torch.no_grad()
def features(model: DALModel, x: np.ndarray, device: torch.device) -> dict[str, np.ndarray]:
    """As recognition.embedding.extract, from x (N, S, D) of the S sides of each face."""
    found: dict[str, list] = {name: [] for name in FEATURES}
    for start in range(0, len(x), BLOCK):
        mixed = torch.from_numpy(x[start : start + BLOCK].astype(np.float32)).to(device)
        x_age, x_id = model.factorization(mixed)
        embedding = normalize(x_id.flatten(1))
        for name, value in zip(FEATURES, (embedding, mixed, x_age, x_id), strict=True):
            found[name].append((value if value.ndim == 2 else value[:, 0]).cpu().numpy())
    return {name: np.concatenate(blocks) for name, blocks in found.items()}


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


def report_best(training: TrainingState, folder: Path) -> None:
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
