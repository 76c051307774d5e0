"""What a run says of itself: validation, the log and its curves, the bar, and a warning where nothing is being decorrelated."""
import torch
from tqdm import tqdm

import utils
from dataset import evaluation_loader
from evaluation.extraction import extract
from evaluation.leakage import age_r2
from evaluation.metrics import decision, people_report
from training import ranks
from training.log import Log, differences, plot_curves, read_log, run_summary
from utils import DataError

REPORT_EVERY = 50   # steps between two lines of the log
STUCK_AFTER = 3     # reports of a correlation at zero before the warning
PANELS = [
    ('losses', [('min', 'loss_id', 'L_id, identity'), ('min', 'loss_age', 'L_age, age')]),
    ('accuracy in training', [('min', 'accuracy', 'identity, no margin'), ('min', 'age_accuracy', 'age group of x_age')]),
    ('|ρ| by phase', [('max', 'rho_before', 'max: before'), ('max', 'rho_after', 'max: after'), ('min', 'rho', 'min'),
                      ('max', 'dead', 'dead fraction of x_age')]),
    ('people of val_root', [('epoch', 'val_auc', 'AUC'), ('epoch', 'val_accuracy', 'accuracy'), ('epoch', 'val_rank1', 'rank-1'),
                            ('epoch', 'val_age_r2_id', 'age in x_id, R²'), ('epoch', 'val_age_r2_age', 'age in x_age, R²')]),
]
COLUMNS = (('loss', 'loss'), ('identity', 'loss_id'), ('age', 'loss_age'), ('|ρ|', 'rho'), ('accuracy', 'accuracy'), ('val: AUC', 'val_auc'),
           ('accuracy', 'val_accuracy'), ('rank-1', 'val_rank1'), ('closed set', 'val_closed_set_accuracy'), ('age R²', 'val_age_r2_id'),
           ('images/s', 'images_per_s'))


def introduce(training, name, train, val, epochs, folder, state):
    """Before the first of `epochs` (done, last): run.json and a line on the screen; and where a run goes on, what is not as at its beginning.

    `name` is the data set's; `state` the file that is resumed, or None.
    """
    (done, last), device, horizon = epochs, training.device, training.recipe['horizon'] or epochs[1]
    if horizon < last:
        print(f'warning: the horizon is {horizon} epochs: from there to epoch {last} the learning rate is 0')
    elif val and training.ramps_end * horizon > last:
        print(f'this call ends before the ramps do, at {training.ramps_end:.0%} of {horizon} epochs: no best.pth yet')
    summary = run_summary(device) | {'recipe': training.recipe, 'dataset': name, 'faces': len(train), 'people': len(train.classes),
                                     'fingerprint': train.fingerprint, 'processes': ranks.count()}
    for line in differences(state.parent / 'run.json', summary) if state else ():
        print(f'warning: {line}')
    ranks.decided(utils.write_json, summary, folder / 'run.json')
    size = sum(p.numel() for p in training.model.parameters()) / 1e6
    print(f'{name}: {len(train)} faces of {len(train.classes)} people, ages {train.ages.min():g} to {train.ages.max():g}; '
          + (f'validation: {len(val)} faces of {len(val.classes)} people' if val else 'no validation set, so no best.pth') + '\n'
          f'epochs {done + 1} to {last} on {f"{ranks.count()} × " if ranks.count() > 1 else ""}{device}{" in bf16" if training.bf16 else ""}, '
          f'{size:.1f} M parameters, into {folder}', flush=True)


class Reports:
    """Log, bar and curves in `folder`, of the first process; the others keep the same means and write nothing."""

    def __init__(self, training, folder, epoch, images, done):
        """`epoch` epochs are reported already, `done` of `images` images seen."""
        self.training, self.folder, self.stuck = training, folder, 0
        self.log = Log(folder, training.step, epoch) if ranks.first() else None
        self.bar = tqdm(total=images, initial=done, unit=' images', unit_scale=True, disable=None if ranks.first() else True, dynamic_ncols=True)

    def write(self, kind, **values):
        return self.log.report(kind, self.training.step, **values) if self.log else values

    def step(self, images, steps, check):
        """After a step on `images` images, of `steps` in an epoch: a line in the log where one is due; `check()` comes before it."""
        training = self.training
        self.bar.update(images)
        due = training.step % REPORT_EVERY == 0 or training.step % steps == 0
        if training.climbs and (due or training.recipe['max_steps']):
            check()
            self._warn(self.write('max', **training.climbs.flush()))
        if training.means and due:
            check()
            row = self.write('min', **training.means.flush(), **training.settings())
            self.bar.set_postfix({key: f'{row[key]:.2f}' for key in ('loss', 'accuracy', 'rho') if key in row})

    def _warn(self, row):
        self.stuck = self.stuck + 1 if row['var_age'] == 0 or row['dead'] == 1 or (row['rho_after'] or 0) < 1e-3 else 0
        if self.stuck == STUCK_AFTER:
            tqdm.write(f'warning: step {self.training.step}: |ρ| is stuck at {row["rho_after"] or 0:.1e} after the adversary climbed, '
                       f'var(v_age) {row["var_age"] or 0:.1e}, {row["dead"] or 0:.0%} of x_age dead: nothing is being decorrelated. '
                       'Try a larger lambda_age, a smaller lambda_dal, or the ramps (--recipe ramped)')

    def epoch(self, epoch, rate, validation):
        """The epoch's row, before its state is saved."""
        return self.write('epoch', epoch=epoch, images_per_s=rate, **self.training.epoch_means.flush(),
                          **{f'val_{key}': value for key, value in validation.items()})

    def draw(self, row, last):
        """The row on the screen, and the curves so far, after it."""
        if self.log:
            plot_curves(read_log(self.log.path), PANELS, self.folder / 'curves.png')
        tqdm.write(f'epoch {row["epoch"]}/{last}  ' + '  '.join(f'{title} {row[key]:.3g}' for title, key in COLUMNS if row.get(key) is not None))

    def close(self):
        self.bar.close()
        if self.log:
            self.log.close()


def check_finite(training, loader, folder):
    """Raises UserError, and leaves `nan.json`, where a loss of any step so far was not finite; `folder` then holds no such weights."""
    found = training.watch.first()
    if found:
        step, losses = found
        batches = loader.batch_sampler
        files = [loader.dataset.path(index) for index in batches.order()[step % len(batches) * batches.batch_size:][:batches.batch_size]]
        report = {'step': step, 'phase': 'min', 'losses': losses, **training.settings(), 'files': files}
        ranks.decided(utils.write_json, report, folder / 'nan.json')
        raise ranks.common(utils.UserError(f'step {step}: the loss is not finite ({folder}/nan.json has its parts and its images); '
                                           'last.pth is from before: --resume with a lower --lr or clip'))


def validate(training, val, interrupt):
    """One flat dict of what is known of `val`: verification, rank-1, the age left in x_id, closed-set accuracy where people are shared.

    And what the weights file keeps of it: metrics.decision. Raises the interrupt's Interrupted where a signal came meanwhile.
    """
    def batches():
        for batch in evaluation_loader(val):
            interrupt.check()
            yield batch
    try:
        features = extract(training.model.eval(), batches(), training.device, bf16=training.bf16)
    except (DataError, utils.Interrupted):
        raise
    except ValueError as error:
        raise utils.UserError(f'step {training.step}: {val.root}: {error}: last.pth is from before: --resume with a lower --lr') from None
    people = people_report(features['embedding'], val.labels, val.ages, intervals=False)
    report = {key: people['verification'][key] for key in ('auc', 'accuracy', 'eer')} | {'rank1': people['rank1']}
    report |= {f'auc_gap_{row["years"]}': row['auc'] for row in people['by_gap']}
    report |= {f'age_r2_{part}': age_r2(features[f'x_{part}'], val.labels, val.ages) for part in ('id', 'age')}
    index = {name: label for label, name in enumerate(training.classes)}
    own = torch.tensor([index.get(name, -1) for name in val.classes])[torch.from_numpy(val.labels)]
    if (own >= 0).any() and not training.recipe['shard_head']:  # which no process has whole
        with torch.no_grad():
            logits = training.model.identity(torch.from_numpy(features['x_id'])[own >= 0].to(training.device)).cpu()
        report['closed_set_accuracy'] = (logits.argmax(1) == own[own >= 0]).float().mean().item()
    return report, decision(people)
