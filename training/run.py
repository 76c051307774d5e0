"""The engineering behind main.run: what a run starts from, its batches, reports and saves, and how
it ends."""

import contextlib
import copy
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import is_torchelastic_launched
from tqdm import tqdm

from dataset import Batches, training_loader
from evaluation.protocols import Benchmark
from system.locks import Interrupt, Interrupted, claim
from training import closed_form, command, distributed, last_blocks, posthoc, resume
from training.distributed import on_every_rank, on_rank_zero, rank, rank_zero_first
from training.log import Reports, introduce
from training.state import TrainingState
from training.validation import read_lists, refuse_not_finite, validate
from utils import DataError, UserError


@contextlib.contextmanager
def open_run(args: Namespace, dataset: dict, save: str, init: str | None) -> Iterator['Run']:
    """Yields the Run of a command line, beside main.py's `dataset`, `save` and `init`. Within it
    this process belongs to its job of ranks, and rank 0 holds the save folder. Raises UserError and
    DataError for bad input."""
    with distributed.process_group(args.ctx) as device, contextlib.ExitStack() as stack:
        plan = on_rank_zero(command.plan, args, dataset, save, init)
        folder, *_ = plan
        on_rank_zero(lambda: stack.enter_context(claim(folder)) and None)
        run = Run(args, device, plan)
        run.interrupt = stack.enter_context(Interrupt(insistent=is_torchelastic_launched()))
        try:
            yield run
        finally:
            if run.reports:
                run.reports.close()


class Run:
    """A run into a save folder."""

    interrupt: Interrupt
    images_per_s: float | None = None  # of the last epoch
    ends = False  # whether the weights are no longer those of the last step

    def __init__(self, args: Namespace, device: torch.device, plan: tuple):
        self.args, self.device = args, device
        self.folder, self.name, entry, self.recipe, self.weights, self.init = plan
        self.train, self.val = rank_zero_first(command.open_data, self.name, entry)
        root = entry['val_root']
        lists = [*args.validate, *([root] if root and not self.val else [])]
        self.validates = bool(self.val or lists)
        self.pair_lists: dict[str, Benchmark] = {}  # of rank 0, which validates
        on_rank_zero(lambda: self.pair_lists.update(read_lists(lists, self.train)))
        self.skipped: set[str] = set()  # images that can't be read
        self.reports: Any = None  # Reports, from `start` on
        self.before: dict | None = None  # the figures before the first step, if they were measured

    def start(self, training: TrainingState) -> None:
        """Gives `training` the weights or the state that it starts from, decodes the faces, saves
        for the first time. Sets `last_epoch`, which ends the run."""
        recipe, self.training = self.recipe, training
        on_rank_zero(closed_form.check_ages_for_r, recipe, self.train.labels, self.train.ages)
        distributed.broadcast(training.mapping)
        if self.init:
            on_every_rank(resume.load_backbone, training, self.init)
        for faces in filter(None, (self.train, self.val)):
            faces.width = training.model.width
            for notice in rank_zero_first(faces.check, recipe.cache, recipe.skip_corrupt):
                print(notice)
        if not self.args.epochs:
            self.last_epoch = training.total_steps = 0
            introduce(self)
            self.before = self.validate(self.folder)
            return
        how = recipe.batch_size, recipe.seed, recipe.workers, self.device.type == 'cuda'
        self.loader = training_loader(self.train, *how, rank(), distributed.world_size())
        self.steps = len(self.loader)  # of an epoch
        exact = False  # whether `training` stands where a state was saved
        if self.weights:
            same_run = self.weights.parent.resolve() == self.folder.resolve()
            exact = on_every_rank(resume.start, training, self.weights, same_run, self.steps)
        first, last = training.epoch, self.folder / 'last.pth'
        self.last_epoch = self.args.epochs + first * (not self.args.resume)
        if not (exact and self.weights and self.weights.resolve() == last.resolve()):
            resume.refuse_to_overwrite(self.folder, first, self.last_epoch)
        if first >= self.last_epoch:
            print(f'{self.folder}: {first} epochs are trained already')
            return
        training.total_steps = (recipe.horizon or self.last_epoch) * self.steps
        # as it stood when a resumed run was saved
        training.schedule(max(training.step - 1, 0) / training.total_steps)
        introduce(self, first, self.weights if exact else None)
        new = training.pretrained and training.step == 0 and training.best is None
        before = self.validate() if new and self.validates else None
        if recipe.last_blocks:
            rank_zero_first(last_blocks.keep_activations, training, self.train)
        if self.init:
            self.solve()
            posthoc.set_centres(training, self.train)
        if not on_rank_zero(last.exists):
            self.save()  # from the start there is something to resume, and the folder is writable
        on_rank_zero((self.folder / 'best.json').unlink, True)
        images, done = self.steps * recipe.batch_size, training.step * recipe.batch_size
        self.reports = Reports(training, self.folder, first, self.last_epoch * images, done)
        if before is not None:
            self.before = self.reports.epoch(0, None, before, False, False)
            self.close_epoch(self.validate(), epochs=0)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor, list[int]]]:
        """The rest of an epoch: this rank's images, labels and ages, and all ranks' sizes. The
        state is saved before this raises UserError, if a signal came, or DataError, if too many
        images can't be read."""
        training, sampler = self.training, self.loader.batch_sampler
        assert isinstance(sampler, Batches)
        sampler.epoch, sampler.first = epoch, training.step - epoch * self.steps
        began, seen = time.perf_counter(), 0
        found = distributed.lockstep(self.loader, self.interrupt, self.recipe.accumulate)
        with self._saved_before_the_end():
            for images, labels, ages, sizes, unreadable, signal in found:
                if signal:
                    raise Interrupted(signal)
                if unreadable:
                    self._leave_out(unreadable)
                yield images, labels, ages, sizes
                seen += sum(sizes)
        self.images_per_s = seen / (time.perf_counter() - began)

    def report_step(self) -> None:
        self.reports.step(self.recipe.batch_size, self.steps, self.refuse_not_finite)
        if self.recipe.save_every and self.training.step % self.recipe.save_every == 0:
            self.save()

    def solve(self) -> None:
        """R in closed form over the faces of training, if the recipe has it."""
        if self.recipe.factorization == 'solved':
            with self._saved_before_the_end():
                eraser = on_rank_zero(lambda: posthoc.solve_eraser(self.training, self._readable()))
            closed_form.set_eraser(self.training.model, eraser)

    def validate(self, kept: Path | None = None, intervals: bool = False) -> dict:
        """The figures of the validation set, {} if there is none; the thresholds go to
        training.decision. See validation.validate."""
        if not self.validates:
            return {}
        about = self.training, self.val, self.pair_lists, self.interrupt, kept, intervals
        with self._saved_before_the_end():
            report, self.training.decision = on_rank_zero(validate, *about)
        return report

    def close_epoch(self, report: dict, epochs: int = 1) -> None:
        """Saves an epoch: weights, best.pth if it is the best, its row, the state."""
        training, name = self.training, f'epoch_{self.training.epoch + epochs:03d}.pth'
        training.epoch += epochs
        # no AUC if nobody has two images
        score = report.get('auc') or report.get('closed_set_accuracy')
        self.refuse_not_finite()
        ramped = training.step >= self.recipe.ramps_end * training.total_steps
        better = score is not None and ramped and (training.best is None or score > training.best)
        training.best = score if better else training.best
        resume.save_weights(training, self.folder, [name, *['best.pth'] * better])
        candidate = score is not None and (ramped or training.step == 0)
        speed = self.images_per_s
        row = self.reports.epoch(training.epoch, speed, report, better, candidate)
        self.save()
        self.reports.draw(row, self.last_epoch)

    def finish(self) -> None:
        """Writes best.pth, the weights of the chosen epoch with R and the ages fitted to all faces
        of training, and prints its figures."""
        training, folder = self.training, self.folder
        if self.args.epochs:
            done = on_rank_zero((folder / 'best.json').exists)  # which is written last
            trained = on_rank_zero((folder / 'log.jsonl').exists)  # else into another folder
            if done or not (trained and self.validates and training.best):
                return
            self.ends = True
            self._choose_epoch()
        training.model.estimator, training.age_error = None, None
        with self._saved_before_the_end():
            found = on_rank_zero(
                lambda: posthoc.fit_all(training, self._readable(), folder, self.interrupt.check)
            )
        posthoc.put(training, found)
        on_every_rank(posthoc.judge, training, self.before, self.validate(folder))
        resume.save_weights(training, folder, ['best.pth'])
        on_rank_zero(posthoc.report_best, training, folder)
        for path in folder.glob('x-*.npy') if self.args.epochs and not rank() else ():
            path.unlink()  # the features that posthoc.embed kept

    def _choose_epoch(self):
        """Gives `training` the weights of the epoch that is to be best.pth: of those whose AUC is
        within the best one's interval over people, the one with the least age."""
        rows = on_rank_zero(posthoc.candidates, self.folder)
        best = max(rows, key=lambda row: row['score'])
        on_every_rank(resume.load_epoch, self.training, self.folder, best['epoch'])
        low = (self.validate(intervals=True).get('auc_interval') or [best['score']])[0]
        on_every_rank(
            resume.load_epoch, self.training, self.folder, posthoc.choose(rows, low)['epoch']
        )

    def _readable(self):
        """The faces of training, without those that could not be read meanwhile."""
        faces = self.train
        if self.skipped:
            faces = copy.copy(faces)
            faces.check(False, self.recipe.skip_corrupt)
        return faces

    def save(self) -> None:
        """Writes last.pth, from which any training can be resumed."""
        if self.ends or not self.args.epochs:
            return
        self.refuse_not_finite()
        resume.save_state(self.training, self.steps, self.folder)

    def refuse_not_finite(self) -> None:
        refuse_not_finite(self.training, self.loader, self.folder)

    @contextlib.contextmanager
    def _saved_before_the_end(self):
        """Saves the state before a signal or bad data end the run."""
        try:
            yield
        except DataError:
            self.save()
            raise
        except Interrupted as signal:
            self.save()
            saved = f'after step {self.training.step}: saved; --resume continues the run'
            said = saved if self.args.epochs else 'came: the same command starts again'
            raise UserError(f'{signal} {said}') from None

    def _leave_out(self, unreadable):
        """Notes images that can't be read. Raises DataError if they are more than may be."""
        self.skipped |= set(unreadable)
        count = len(self.skipped)
        tqdm.write(f'warning: left out, {count} so far: {"; ".join(unreadable)}')
        if count > self.recipe.skip_corrupt:
            mend = f'mend it, or let skip_corrupt={count} pass with --set'
            raise DataError(f'{unreadable[-1]}: {mend}')
