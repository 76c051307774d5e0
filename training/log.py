"""What a run says of itself: log, curves, bar, run.json, and a warning if nothing is being
decorrelated."""

import contextlib
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import backbones
import utils
from model import Backbone
from system.progress import progress
from training.distributed import on_rank_zero, rank, world_size
from training.recipe import Recipe
from training.state import TrainingState

REPORT_EVERY = 50  # steps between two lines of the log
LARGE = 20  # millions of parameters from which a CPU's time is told before it is spent
STUCK_AFTER = 3  # reports of a correlation at zero before the warning
PANELS = {  # of curves.png: kind and name of a figure, and what it is called there
    'losses': 'min loss_id L_id, identity; min loss_age L_age, age',
    'accuracy in training': 'min accuracy identity, no margin; min age_accuracy age group of x_age',
    '|ρ| by phase': 'max rho_before max: before; max rho_after max: after; min rho min; '
    'max dead dead fraction of x_age',
    'people of val_root': 'epoch val_auc AUC; epoch val_accuracy accuracy; epoch val_rank1 rank-1; '
    'epoch val_age_r2_id age in x_id, R²; epoch val_age_r2_age age in x_age, R²',
}
ON_SCREEN = (  # name of a figure, and what it is called there
    'loss loss; loss_id identity; loss_age age; rho |ρ|; accuracy accuracy; val_auc val: AUC; '
    'val_accuracy accuracy; val_rank1 rank-1; val_closed_set_accuracy closed set; '
    'val_age_r2_id age R²; images_per_s images/s'
)


class Log:
    """One JSON line a report in `log.jsonl`, the same numbers in TensorBoard. A run resumed at
    `step`, with `epoch` epochs reported, writes what comes after them again."""

    def __init__(self, folder, step, epoch=math.inf):
        self.path = Path(folder, 'log.jsonl')
        if self.path.exists():
            rows = [row for row in read_log(self.path) if row['step'] <= step]
            kept = [json.dumps(row) + '\n' for row in rows if row.get('epoch', 0) <= epoch]
            utils.write_whole(self.path, lambda temporary: temporary.write_text(''.join(kept)))
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.board = SummaryWriter(folder, purge_step=step + 1)

    def report(self, kind: str, step: int, **values: Any) -> dict:
        """`kind` is 'max', 'min' or 'epoch'. Returns the values as written: None if not finite."""
        values = {name: utils.finite(value) for name, value in values.items()}
        try:
            with open(self.path, 'a') as file:
                file.write(json.dumps({'kind': kind, 'step': step, **values}) + '\n')
        except OSError as error:
            error.filename = str(self.path)  # which a full disk does not name
            raise
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.board.add_scalar(f'{kind}/{name}', value, step)
        return values


def read_log(path: str | os.PathLike) -> list[dict]:
    """The rows of a `log.jsonl`; lines that a crash cut short or that aren't ours are left out."""
    rows = []
    for line in Path(path).read_bytes().splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            row = json.loads(line)
            if row['kind'] and row['step'] >= 0:
                rows.append(row)
    return rows


def plot_curves(rows: list[dict], panels: dict[str, str], path: Path) -> None:
    """Draws `panels`, {title: 'kind name label; …'}, from the rows of a log over the step."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for line in lines.split('; '):
            kind, name, label = line.split(' ', 2)
            drawn = [row for row in rows if row['kind'] == kind and row.get(name) is not None]
            if drawn:
                steps, values = zip(*((row['step'], row[name]) for row in drawn), strict=True)
                marker = '.' if len(drawn) < 40 else None
                axis.plot(steps, values, label=label, linewidth=1.2, marker=marker)
        axis.set(title=title, xlabel='global step')
        if axis.lines:
            axis.legend(fontsize='small')
        axis.grid(alpha=0.3)
    utils.write_whole(path, lambda temporary: figure.savefig(temporary, format='png', dpi=110))


def run_summary(device: torch.device) -> dict:
    """Versions, hardware, and the git revision if there is one: a figure depends on them."""
    git, root = '', Path(__file__).parents[1]
    if shutil.which('git'):
        describe = ['git', 'describe', '--always', '--dirty']
        git = subprocess.run(describe, text=True, cwd=root, capture_output=True).stdout.strip()
    on_gpu = device.type == 'cuda'
    return {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'numpy': np.__version__,
        'system': platform.platform(),
        'device': torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
        'threads': torch.get_num_threads(),
        'git': git or None,
    }


def differences(path: Path, summary: dict) -> list[str]:
    """One line for each value of `summary`, or of its recipe, that is another in the JSON file at
    `path`, if there is one."""

    def flat(values):
        recipe = Recipe.of(values.pop('recipe')).as_dict()
        return values | {f'recipe {name}': value for name, value in recipe.items()}

    if not path.exists():
        return []
    now = flat(json.loads(json.dumps(utils.finite(summary))))
    try:
        before = flat(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f'{path} is damaged: whether this run is as it began is not known']
    return [
        f'{name} was {before.get(name)!r} at the call before and is {now[name]!r} now'
        for name in now
        if before.get(name) != now[name]
    ]


def introduce(run: Any, done: int = 0, state: Path | None = None) -> None:
    """Writes run.json of a training.run.Run with `done` epochs behind it, and prints what the run
    is; if the file `state` is resumed, also each value that differs from the run's beginning."""
    training, train, val, last = run.training, run.train, run.val, run.last_epoch
    device, recipe = training.device, training.recipe
    horizon = recipe.horizon or last
    if horizon < last:
        print(f'warning: after epoch {horizon}, the horizon, the learning rate is 0')
    elif run.validates and recipe.ramps_end * horizon > last:
        print('no best.pth yet: this call ends before the ramps do')
    shown, backbone = recipe.as_dict(), training.model.backbone
    if not isinstance(backbone, Backbone | backbones.PretrainedBackbone):  # the user's own
        shown['backbone'] = f'{type(backbone).__module__}.{type(backbone).__qualname__}'
    precision, people = training.executor.precision, len(train.classes)
    summary = run_summary(device) | {'recipe': shown, 'dataset': run.name, 'faces': len(train)}
    summary |= {'people': people, 'fingerprint': train.fingerprint}
    summary |= {'processes': world_size(), 'precision': precision}
    for line in differences(state.parent / 'run.json', summary) if state else ():
        print(f'warning: {line}')
    on_rank_zero(utils.write_json, summary, run.folder / 'run.json')
    faces = f'{len(train)} faces of {people} people'
    print(f'{run.name}: {faces}, ages {train.ages.min():g} to {train.ages.max():g}')
    if val:
        print(f'validation: {len(val)} faces of {len(val.classes)} people')
    elif last and not run.validates:
        print('no validation set, so no best.pth')
    size = sum(p.numel() for p in training.model.parameters()) / 1e6
    several = f'{world_size()} × ' if world_size() > 1 else ''
    network = f'{several}{device} in {precision}, {size:.1f} M parameters'
    span = f'epochs {done + 1} to {last}' if last else 'zero epochs'
    print(f'{span} on {network}, into {run.folder}', flush=True)
    if device.type == 'cpu' and size > LARGE and last:
        rate = images_per_s(training)
        hours = (last - done) * len(train) / rate / world_size() / 3600
        cost = f'about {rate:.0f} images/s on this CPU: {hours:.1f} hours for these epochs'
        print(f'{cost}; --recipe small, or --init FILE, is meant for a CPU')


@torch.no_grad()
def images_per_s(training: Any, faces: int = 4) -> float:
    """A forecast of the speed of training on a CPU: a forward pass in eval mode, times three."""
    images = torch.zeros(faces, 3, 112, training.model.width, dtype=torch.uint8)
    training.model.eval()
    for _ in range(2):  # the first one also sets up
        began = time.perf_counter()
        training.executor.features(images)
    return faces / (3 * (time.perf_counter() - began))


class Reports:
    """Log, bar and curves in `folder`, of rank 0; the others write nothing. `epoch` epochs are
    reported already, `done` of `images` images seen."""

    def __init__(self, training: TrainingState, folder, epoch, images, done):
        self.training, self.folder, self.stuck = training, folder, 0
        self.log = Log(folder, training.step, epoch) if rank() == 0 else None
        how = dict(unit=' images', unit_scale=True, leave=True, dynamic_ncols=True)
        self.bar = progress(None, 'training', images, initial=done, disable=rank() != 0, **how)

    def write(self, kind: str, **values: Any) -> dict:
        return self.log.report(kind, self.training.step, **values) if self.log else values

    def step(self, images: int, steps: int, check: Callable[[], None]) -> None:
        """After a step on `images` images, of `steps` in an epoch: `check()` and a line in the log
        if one is due."""
        training = self.training
        self.bar.update(images)
        due = training.step % REPORT_EVERY == 0 or training.step % steps == 0
        if training.adversary_means.counts and (due or training.recipe.max_steps):
            check()
            self._warn(self.write('max', **training.adversary_means.flush()))
        if training.means.counts and due:
            check()
            row = self.write('min', **training.means.flush(), **training.settings())
            shown = [key for key in ('loss', 'accuracy', 'rho') if key in row]
            self.bar.set_postfix({key: f'{row[key]:.2f}' for key in shown})

    def _warn(self, row):
        rho, var_age, dead = (row[key] or 0 for key in ('rho_after', 'var_age', 'dead'))
        self.stuck = self.stuck + 1 if var_age == 0 or dead == 1 or rho < 1e-3 else 0
        if self.stuck == STUCK_AFTER:
            stuck = f'|ρ| is stuck at {rho:.1e} after the adversary climbed, var(v_age) '
            stuck += f'{var_age:.1e}, {dead:.0%} of x_age dead: nothing is being decorrelated'
            remedy = 'a larger lambda_age, a smaller lambda_dal, or the ramps (--recipe ramped)'
            tqdm.write(f'warning: step {self.training.step}: {stuck}. Try {remedy}')

    def epoch(
        self, epoch: int, rate: float | None, validation: dict, best: bool, candidate: bool
    ) -> dict:
        """The epoch's row, before its state is saved."""
        values = {'epoch': epoch, 'images_per_s': rate, 'best': best, 'candidate': candidate}
        values |= self.training.epoch_means.flush()
        values |= {f'val_{key}': value for key, value in validation.items()}
        return self.write('epoch', **values)

    def draw(self, row: dict, last: int) -> None:
        """The row on the screen, and the curves so far, after it."""
        if self.log:
            plot_curves(read_log(self.log.path), PANELS, self.folder / 'curves.png')
        columns = dict(column.split(' ', 1) for column in ON_SCREEN.split('; '))
        lists = [key for key in row if key.startswith('val_') and key.endswith('_accuracy')]
        columns |= {key: key[4:-9] for key in lists if key not in columns}
        shown = [(title, row[key]) for key, title in columns.items() if row.get(key) is not None]
        # three digits, and no exponent of large numbers
        texts = [f'{title} {x:{".0f" if abs(x) >= 1000 else ".3g"}}' for title, x in shown]
        figures = '  '.join(texts)
        tqdm.write(f'epoch {row["epoch"]}/{last}  {figures}')

    def close(self) -> None:
        self.bar.close()
        if self.log:
            self.log.board.close()
