"""A run from its first step to its last: what it starts from, epochs, saves, and how it ends."""

import contextlib
import time

from tqdm import tqdm

import meta
from dataset import training_loader
from system.locks import Interrupt, Interrupted, claim
from training import pretrained
from training.command import decode_data, open_data, plan
from training.distributed import (
    broadcast,
    launched,
    lockstep,
    on_every_rank,
    on_rank_zero,
    process_group,
    raised_by_all,
    rank,
    rank_zero_first,
    world_size,
)
from training.reports import Reports, introduce
from training.resume import refuse_to_overwrite, save_state, save_weights, start
from training.validation import check_finite, read_lists, validate
from utils import DataError, UserError


def run(make_training, args, dataset, save, init) -> None:
    """Trains as the command line says; `make_training` is main.Training. Raises UserError and
    DataError before the first step for what can't be; however it ends, last.pth can be resumed."""
    with process_group(args.ctx) as device, contextlib.ExitStack() as stack:
        name, entry, recipe, folder, weights, init = on_rank_zero(plan, args, dataset, save, init)
        on_rank_zero(lambda: stack.enter_context(claim(folder)) and None)
        train, val = rank_zero_first(open_data, name, entry)
        pair_lists = {}  # of rank 0, which validates
        wanted = [*args.validate, *([] if val or not entry['val_root'] else [entry['val_root']])]
        on_rank_zero(lambda: pair_lists.update(read_lists(wanted)))
        training = make_training(recipe, train.classes, meta.age_cutoffs, device)
        on_every_rank(training.learn_ages, train.labels, train.ages)
        broadcast(training.mapping)
        if init:
            on_every_rank(pretrained.load, training, init, recipe)
        faces = [train, val] if val else [train]
        rank_zero_first(decode_data, faces, training.model.width, recipe)
        loader = training_loader(
            train,
            recipe.batch_size,
            recipe.seed,
            recipe.workers,
            device.type == 'cuda',
            rank(),
            world_size(),
        )
        same_run = weights and weights.parent.resolve() == folder.resolve()
        exact = weights and on_every_rank(start, training, weights, same_run, len(loader))
        first = training.epoch
        last = args.epochs if args.resume else first + args.epochs
        if not (exact and weights.resolve() == (folder / 'last.pth').resolve()):
            refuse_to_overwrite(folder, first, last)
        if first >= last:
            print(f'{folder}: {first} epochs are trained already')
            return
        training.total_steps = (recipe.horizon or last) * len(loader)
        # as it stood when a resumed run was saved
        training.schedule(max(training.step - 1, 0) / training.total_steps)
        introduce(training, name, train, val, (first, last), folder, weights if exact else None)
        if init:
            pretrained.set_centres(training, train)
        interrupt = stack.enter_context(Interrupt(insistent=launched()))
        validation = (val, pair_lists) if val or wanted else None
        Session(training, loader, validation, last, folder, interrupt).train()


class Session:
    """The epochs of a training up to the `last`, into `folder`. `validation` are the faces or None,
    and the lists of pairs, of validation.validate; None where there is neither."""

    def __init__(self, training, loader, validation, last, folder, interrupt):
        self.training, self.loader, self.validation = training, loader, validation
        self.last, self.folder, self.interrupt, self.skipped = last, folder, interrupt, set()
        self.steps = len(loader)  # of an epoch

    def train(self) -> None:
        training, batch_size = self.training, self.training.recipe.batch_size
        if not on_rank_zero((self.folder / 'last.pth').exists):
            self.save()  # from the start there is something to resume, and the folder is writable
        self.reports = Reports(
            training,
            self.folder,
            training.epoch,
            self.last * self.steps * batch_size,
            training.step * batch_size,
        )
        with contextlib.closing(self.reports):
            new = training.step == 0 and training.best is None
            if self.validation and training.pretrained and new:
                self.close_epoch(None, self.saved_however_it_ends(self.validate))
            while training.epoch < self.last:
                rate = self.saved_however_it_ends(self.epoch)
                report = self.saved_however_it_ends(self.validate) if self.validation else {}
                training.epoch += 1
                self.close_epoch(rate, report)
            self.reports.compare()

    def saved_however_it_ends(self, work):
        """What work() returns; before a signal or bad data end the run, its state is saved."""
        try:
            return work()
        except DataError:
            self.save()
            raise
        except Interrupted as signal:
            self.save()
            raise raised_by_all(
                UserError(
                    f'{signal} after step {self.training.step}: saved; --resume continues from '
                    f'{self.folder}/last.pth'
                )
            ) from None

    def validate(self) -> dict:
        report, self.training.decision = on_rank_zero(
            validate, self.training, *self.validation, self.interrupt
        )
        return report

    def epoch(self) -> float:
        """The rest of an epoch; its images a second."""
        training, recipe, batches = self.training, self.training.recipe, self.loader.batch_sampler
        batches.epoch, batches.first = training.epoch, training.step - training.epoch * self.steps
        began, seen = time.perf_counter(), 0
        for images, labels, ages, sizes, unreadable, signal in lockstep(
            self.loader, self.interrupt, recipe.accumulate
        ):
            if signal:
                raise raised_by_all(Interrupted(signal))
            if unreadable:
                self.leave_out(unreadable)
            training.iterate(images, labels, ages, sizes)
            seen += sum(sizes)
            self.reports.step(recipe.batch_size, self.steps, self.check)
            if recipe.save_every and training.step % recipe.save_every == 0:
                self.save()
        return seen / (time.perf_counter() - began)

    def leave_out(self, unreadable):
        """Notes images that can't be read. Raises DataError where they are more than may be."""
        self.skipped |= set(unreadable)
        count = len(self.skipped)
        tqdm.write(f'warning: left out, {count} so far: {"; ".join(unreadable)}')
        if count > self.training.recipe.skip_corrupt:
            raise raised_by_all(
                DataError(
                    f'{unreadable[-1]}: mend or remove it, or let '
                    f'skip_corrupt={count} pass with --set'
                )
            )

    def close_epoch(self, rate, report):
        """The weights of an epoch that is done, best.pth where it is, the epoch's row, the
        state."""
        training, start = self.training, self.training.step == 0
        # no AUC where nobody has two images
        score = report.get('auc') or report.get('closed_set_accuracy')
        self.check()
        ramped = training.step >= training.recipe.ramps_end * training.total_steps
        better = (
            score is not None
            and (ramped or start)
            and (training.best is None or score > training.best)
        )
        training.best = score if better else training.best
        epoch = [] if start else [f'epoch_{training.epoch:03d}.pth']
        save_weights(training, self.folder, [*epoch, *['best.pth'] * better])
        row = self.reports.epoch(training.epoch, rate, report, better)
        self.save()
        self.reports.draw(row, self.last)

    def check(self):
        check_finite(self.training, self.loader, self.folder)

    def save(self):
        self.check()
        save_state(self.training, self.steps, self.folder)
