"""What a run says of itself: the log and its curves, the bar, and a warning if nothing is being
decorrelated."""

import time

import torch
from tqdm import tqdm

import backbones
import utils
from model import Backbone
from system.progress import progress
from training.distributed import on_rank_zero, rank, world_size
from training.log import Log, differences, plot_curves, read_log, run_summary
from training.schedule import settings
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


def introduce(training: TrainingState, name, train, val, epochs, folder, state) -> None:
    """Before the first of `epochs` (done, last): run.json and a line on the screen; and if the file
    `state` is resumed, what is not as at its beginning. `name` is the data set's."""
    (done, last), device, recipe = epochs, training.device, training.recipe
    horizon = recipe.horizon or last
    if horizon < last:
        rest = f'from there to epoch {last} the learning rate is 0'
        print(f'warning: the horizon is {horizon} epochs: {rest}')
    elif val and recipe.ramps_end * horizon > last:
        ramps = f'the ramps do, at {recipe.ramps_end:.0%} of {horizon} epochs'
        print(f'this call ends before {ramps}: no best.pth yet')
    shown, backbone = recipe.as_dict(), training.model.backbone
    if not isinstance(backbone, Backbone | backbones.PretrainedBackbone):  # the user's own
        shown['backbone'] = f'{type(backbone).__module__}.{type(backbone).__qualname__}'
    precision, people = training.executor.precision, len(train.classes)
    summary = run_summary(device) | {'recipe': shown, 'dataset': name, 'faces': len(train)}
    summary |= {'people': people, 'fingerprint': train.fingerprint}
    summary |= {'processes': world_size(), 'precision': precision}
    for line in differences(state.parent / 'run.json', summary) if state else ():
        print(f'warning: {line}')
    on_rank_zero(utils.write_json, summary, folder / 'run.json')
    size = sum(p.numel() for p in training.model.parameters()) / 1e6
    validation = 'no validation set' + ', so no best.pth' * bool(last)
    if val:
        validation = f'validation: {len(val)} faces of {len(val.classes)} people'
    several = f'{world_size()} × ' if world_size() > 1 else ''
    ages = f'ages {train.ages.min():g} to {train.ages.max():g}'
    print(f'{name}: {len(train)} faces of {people} people, {ages}; {validation}')
    span = f'epochs {done + 1} to {last}' if last else 'zero epochs'
    network = f'{several}{device} in {precision}, {size:.1f} M parameters'
    print(f'{span} on {network}, into {folder}', flush=True)
    if device.type == 'cpu' and size > LARGE:
        rate = images_per_s(training)
        hours = (last - done) * len(train) / rate / world_size() / 3600
        cost = f'about {rate:.0f} images/s on this CPU: {hours:.1f} hours for these epochs'
        print(f'{cost}; --recipe small, or --init FILE, is meant for a CPU')


@torch.no_grad()
def images_per_s(training: TrainingState, faces: int = 4) -> float:
    """A forecast of the speed of training on a CPU: a forward pass in eval mode, times three."""
    images = torch.zeros(faces, 3, 112, training.model.width, dtype=torch.uint8)
    training.model.eval()
    seconds = []
    for _ in range(2):  # the first one also sets up
        began = time.perf_counter()
        training.executor.features(images)
        seconds.append(time.perf_counter() - began)
    return faces / (3 * seconds[-1])


def short(value: float) -> str:
    """Three digits, and no exponent of large numbers."""
    return f'{value:.0f}' if abs(value) >= 1000 else f'{value:.3g}'


class Reports:
    """Log, bar and curves in `folder`, of rank 0; the others write nothing."""

    def __init__(self, training: TrainingState, folder, epoch, images, done):
        """`epoch` epochs are reported already, `done` of `images` images seen."""
        self.training, self.folder, self.stuck = training, folder, 0
        self.log = Log(folder, training.step, epoch) if rank() == 0 else None
        how = dict(unit=' images', unit_scale=True, leave=True, dynamic_ncols=True)
        self.bar = progress(None, 'training', images, initial=done, disable=rank() != 0, **how)

    def write(self, kind, **values):
        return self.log.report(kind, self.training.step, **values) if self.log else values

    def step(self, images, steps, check):
        """After a step on `images` images, of `steps` in an epoch: `check()` and a line in the log
        if one is due."""
        training = self.training
        self.bar.update(images)
        due = training.step % REPORT_EVERY == 0 or training.step % steps == 0
        if training.adversary_means and (due or training.recipe.max_steps):
            check()
            self._warn(self.write('max', **training.adversary_means.flush()))
        if training.means and due:
            check()
            row = self.write('min', **training.means.flush(), **settings(training))
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

    def epoch(self, epoch, rate, validation, best, candidate):
        """The epoch's row, before its state is saved."""
        values = {'epoch': epoch, 'images_per_s': rate, 'best': best, 'candidate': candidate}
        values |= self.training.epoch_means.flush()
        values |= {f'val_{key}': value for key, value in validation.items()}
        return self.write('epoch', **values)

    def draw(self, row, last):
        """The row on the screen, and the curves so far, after it."""
        if self.log:
            plot_curves(read_log(self.log.path), PANELS, self.folder / 'curves.png')
        lists = [key for key in row if key.startswith('val_') and key.endswith('_accuracy')]
        columns = dict(column.split(' ', 1) for column in ON_SCREEN.split('; '))
        columns |= {key: key[4:-9] for key in lists if key not in columns}
        shown = [key for key in columns if row.get(key) is not None]
        figures = '  '.join(f'{columns[key]} {short(row[key])}' for key in shown)
        tqdm.write(f'epoch {row["epoch"]}/{last}  {figures}')

    def close(self):
        self.bar.close()
        if self.log:
            self.log.close()
