"""Trains a face backbone whose identity feature knows nothing of age (DAL, CVPR 2019):

    python3 main.py ctx epochs [weights]      # ctx < 0: CPU, else the ctx-th GPU
    torchrun --nproc-per-node N main.py …     # the same training on N GPUs

Without a change it draws its own faces and trains on them. For yours: describe them in meta.py,
then edit `dataset` and `save` here. Every other value, with its reason, is in training/recipe.py;
a network of your own goes into backbones/own.py.
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

import dal
import meta
import utils
from backbones import own
from model import AGE_HEADS, DALModel, ResidualFactorization, SolvedFactorization
from training.distributed import BatchLayout
from training.executor import Executor
from training.recipe import Recipe
from training.sharded import identity_head
from training.state import TrainingState, parameter_groups, warmup_cosine

dataset = meta.demo  # the data set to train on: a dict of meta.py
save = 'runs/demo'  # where weights, state, log and curves go
init = None  # a backbone to fine-tune, as --init: a file of its weights, or 'sface'


def arguments() -> argparse.Namespace:
    from training import command  # here, as open_run below: whoever imports this file needs neither

    return command.parse(__doc__)


def run(args: argparse.Namespace) -> None:
    """The whole training. Raises UserError and DataError before the first step for bad input."""
    from training.run import open_run

    with open_run(args, dataset, save, init) as run:  # all is checked; the folder is ours
        training = Training(run.recipe, run.train.classes, meta.age_cutoffs, run.device)
        run.start(training)  # from nothing, a backbone, weights, or where a state stands

        for epoch in range(training.epoch, run.last_epoch):
            for images, labels, ages, sizes in run.batches(epoch):
                images, labels, ages = training.begin_step(images, labels, ages, sizes)
                if training.is_max_step():
                    training.max_step(images, ages)
                else:
                    training.min_step(images, labels, ages)
                training.step += 1
                run.report_step()
            run.solve()  # R in closed form, if the recipe has it
            report = run.validate()
            run.close_epoch(report)  # weights, best.pth if it is, the log, last.pth

        run.finish()  # best.pth: the epoch, R and ages from all faces of training


class Training(TrainingState):
    """The network, its adversary, and one optimizer each."""

    def __init__(self, recipe: Recipe, classes: Sequence, cutoffs: Sequence, device: torch.device):
        super().__init__()
        utils.seed_everything(recipe.seed)
        self.recipe, self.classes, self.cutoffs = recipe, list(classes), list(cutoffs)
        self.device, self.layout = device, BatchLayout()
        R = SolvedFactorization if recipe.factorization == 'solved' else ResidualFactorization
        heads = identity_head(recipe, self.layout), AGE_HEADS[recipe.age_head]
        backbone, s_and_m = own.make_backbone(recipe), (recipe.scale, recipe.margin)
        self.model = DALModel(backbone, len(classes), cutoffs, *heads, *s_and_m, R)
        self.margin = self.model.identity.m
        age_dim = self.model.dim if recipe.variate == 'learned' else 1
        self.mapping = dal.CanonicalMapping(self.model.dim, age_dim).to(device)
        self.executor = Executor(self.model, self.layout, recipe, device)
        groups, w = parameter_groups(self.model, recipe), self.mapping.parameters()
        self.optimizer = torch.optim.SGD(groups, recipe.lr, recipe.momentum, fused=True)
        self.adversary_optimizer = torch.optim.Adam(w, recipe.adversary_lr, maximize=True)

    # The losses: L_id + λ1·L_age + λ2·|ρ|

    def losses(self, x_age: Tensor, x_id: Tensor, labels: Tensor, ages: Tensor) -> dict:
        """The three losses of the whole batch and their sum, with the accuracies of both heads."""
        loss_id, right = self.model.identity.loss(x_id, labels)
        logits, age = self.model.age(x_age), self.model.age
        of_faces = loss_id, age.loss(logits, ages), right, age.correct(logits, ages)
        loss_id, loss_age, accuracy, age_accuracy = self.layout.mean(*of_faces)
        loss, game = loss_id + self.recipe.lambda_age * loss_age, {}
        if self.lambda_dal:
            variates = self.mapping(x_id, self.variate(x_age, ages))
            rho = dal.canonical_correlation(*self.layout.gather(*variates)).abs()
            loss, game = loss + self.lambda_dal * rho, {'rho': rho}
        losses = {'loss': loss, 'loss_id': loss_id, 'loss_age': loss_age, **game}
        return losses | {'accuracy': accuracy, 'age_accuracy': age_accuracy}

    def variate(self, x_age: Tensor, ages: Tensor) -> Tensor:
        """The variate that v_age is made of: x_age (N, D), or the ages in years (N, 1)."""
        return x_age if self.recipe.variate == 'learned' else ages[:, None]

    # 1. Max: the adversary climbs |ρ|. The network is frozen: no gradient, and eval mode, which
    #    leaves the statistics of batch norm alone.

    def max_step(self, images: Tensor, ages: Tensor) -> None:
        self.model.eval()
        with torch.no_grad():
            x_age, x_id = self.executor.features(images)
        self.update_adversary(x_age, x_id, ages, ends=not self.is_max_step(self.step + 1))

    def update_adversary(
        self, x_age: Tensor, x_id: Tensor, ages: Tensor, ends: bool = True
    ) -> None:
        """w goes up |ρ| of the whole batch: by a gradient step, or solved from running moments.
        `ends` says whether the phase ends with this step."""
        of_faces = [value.detach() for value in (x_id, self.variate(x_age, ages), x_age)]
        x_id, variate, x_age = self.layout.gather(*of_faces)
        if self.recipe.memory:
            before, after = dal.solve(self.mapping, x_id, variate, self.recipe.memory)
        else:
            before, after = dal.ascend(self.mapping, self.adversary_optimizer, x_id, variate)
        with torch.no_grad():
            v_id, v_age = self.mapping(x_id, variate)
            dead = (x_age == 0).all(0).float().mean()
        self.adversary_means.add_step(
            ends, before, rho_after=after, var_id=v_id.var(), var_age=v_age.var(), dead=dead
        )

    # 2. Min: the network, everything but w, descends the losses.

    def min_step(self, images: Tensor, labels: Tensor, ages: Tensor) -> None:
        self.executor.train()
        x_age, x_id = self.executor.features(images, self.detach_backbone)
        if self.lambda_dal > 0 and self.recipe.memory > 0:
            self.update_adversary(x_age, x_id, ages)
        losses = self.losses(x_age, x_id, labels, ages)
        self.optimizer.zero_grad()
        self.executor.backward(losses['loss'])
        losses['gradient'] = self.executor.clip_gradient(self.optimizer, self.recipe.clip)
        self.executor.step(self.optimizer)
        self.means.add(**losses)
        self.epoch_means.add(**losses)
        self.not_finite.add(self.step, **losses)

    # Whose turn it is, and what changes as training goes on

    def is_max_step(self, step: int | None = None) -> bool:
        step = self.step if step is None else step
        turn = dal.is_max_step(step, self.recipe.max_steps, self.recipe.min_steps)
        return self.lambda_dal > 0 and turn

    def begin_step(
        self, images: Tensor, labels: Tensor, ages: Tensor, sizes: list[int] | None = None
    ) -> list[Tensor]:
        """A global step's faces (n, 3, 112, W) uint8, labels (n,) and ages (n,) in years, on the
        device, faces flipped at random. `sizes`: see BatchLayout; None if these are the batch."""
        self.schedule(self.step / self.total_steps)
        # each step has a seed of its own: a resumed run restores no generator
        self.layout.begin(sizes or [len(images)], utils.seed_of(self.recipe.seed, self.step))
        images, labels, ages = utils.to_device(self.device, images, labels, ages)
        flips = torch.rand(sum(self.layout.sizes), 1, 1, 1, device=self.device) < 0.5
        return [torch.where(self.layout.share(flips), images.flip(-1), images), labels, ages]

    def schedule(self, progress: float) -> None:
        """Sets everything that changes with the fraction of training done."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group['lr'] = recipe.lr * group['factor'] * warmup_cosine(progress, recipe.warmup)
        self.model.identity.m = self.margin * dal.ramp(progress, 0.0, recipe.margin_warmup)
        self.model.factorization.alpha.fill_(dal.ramp(progress, *recipe.split))
        self.lambda_dal = recipe.lambda_dal * dal.ramp(progress, *recipe.game)
        self.detach_backbone = progress < recipe.read_age
        self.executor.freeze(progress < recipe.freeze)


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
