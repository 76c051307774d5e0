"""Trains a face backbone whose identity feature knows nothing of age (DAL, CVPR 2019):

    python3 main.py ctx epochs [weights]      # ctx < 0: CPU, else the ctx-th GPU
    torchrun --nproc-per-node N main.py …     # the same training on N GPUs

Without a change it draws its own faces and trains on them. For yours: describe them in meta.py,
then edit `dataset` and `save` here. Every other value, with its reason, is in training/recipe.py.
"""

from functools import partial

import torch

import dal
import meta
import utils
from backbones import own
from model import AGE_HEADS, DALModel, ResidualFactorization, SolvedFactorization
from training import command, session
from training.distributed import Batch
from training.means import Mean, NotFinite
from training.microbatches import MicroBatches
from training.schedule import parameter_groups, warmup_cosine
from training.sharded import identity_head

dataset = meta.demo  # the data set to train on: a dict of meta.py
save = 'runs/demo'  # where weights, state, log and curves go
init = None  # a backbone to fine-tune, as --init: a file of its weights, or 'sface'


def arguments():
    return command.parse(__doc__)


def run(args):
    session.run(Training, args, dataset, save, init)


class Training:
    """The network, its adversary, and one optimizer each.

    `step` and `epoch` are those done; `total_steps` are all that schedule and ramps span.
    """

    def __init__(self, recipe, classes, cutoffs, device):
        utils.seed_everything(recipe.seed)
        self.recipe, self.classes, self.cutoffs = recipe, list(classes), list(cutoffs)
        self.device, self.batch = device, Batch()
        R = (
            partial(SolvedFactorization, variates=recipe.age_powers)
            if recipe.factorization == 'solved'
            else ResidualFactorization
        )
        self.model = DALModel(
            own.make_backbone(recipe),
            len(classes),
            cutoffs,
            identity_head(recipe, self.batch),
            AGE_HEADS[recipe.age_head],
            recipe.scale,
            recipe.margin,
            R,
        )
        age_dim = self.model.dim if recipe.variate == 'learned' else 1
        self.mapping = dal.CanonicalMapping(self.model.dim, age_dim).to(device)
        self.network = MicroBatches(self.model, self.batch, recipe, device)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, recipe), recipe.lr, recipe.momentum, fused=True
        )
        self.adversary = torch.optim.Adam(
            self.mapping.parameters(), recipe.adversary_lr, maximize=True
        )
        self.step = self.epoch = self.total_steps = 0
        self.lambda_dal, self.detach = 0.0, False
        self.best = self.decision = None  # best validation score; its thresholds
        self.pretrained = False  # whether it began with weights that know faces
        self.opening = None  # |ρ| at the first step of the max phase under way
        self.person_means = None  # (C, K): of the age variates, see learn_ages
        self.means, self.climbs, self.epoch_means = Mean(), Mean(), Mean()
        self.watch = NotFinite()

    # The losses: L_id + λ1·L_age + λ2·|ρ|

    def losses(self, x_age, x_id, labels, ages):
        """The three losses of the whole batch and their sum, with the accuracies of both heads."""
        loss_id, right = self.model.identity.loss(x_id, labels)
        logits = self.model.age(x_age)
        loss_id, loss_age, accuracy, age_accuracy = self.batch.mean(
            loss_id, self.model.age.loss(logits, ages), right, self.model.age.correct(logits, ages)
        )
        loss, game = loss_id + self.recipe.lambda_age * loss_age, {}
        if self.lambda_dal:
            variates = self.mapping(x_id, self.variate(x_age, ages))
            rho = dal.canonical_correlation(*self.batch.gather(*variates)).abs()
            loss, game = loss + self.lambda_dal * rho, {'rho': rho}
        return dict(
            loss=loss,
            loss_id=loss_id,
            loss_age=loss_age,
            **game,
            accuracy=accuracy,
            age_accuracy=age_accuracy,
        )

    def variate(self, x_age, ages):
        """What v_age is made of, (N, D) or (N, 1)."""
        return x_age if self.recipe.variate == 'learned' else ages[:, None]

    # 1. The adversary climbs |ρ|; the network is frozen: no gradient, and eval mode, which leaves
    #    the statistics of batch norm alone.

    def max_step(self, images, ages):
        self.model.eval()
        with torch.no_grad():
            x_age, x_id = self.network.features(images)
        return self.climb(x_age, x_id, ages)

    def climb(self, x_age, x_id, ages):
        """w goes up |ρ| of the whole batch: a gradient step, or solved from running
        moments."""
        x_id, variate, x_age = self.batch.gather(
            x_id.detach(), self.variate(x_age, ages).detach(), x_age.detach()
        )
        if self.recipe.memory:
            before, after = dal.solve(self.mapping, x_id, variate, self.recipe.memory)
        else:
            before, after = dal.ascend(self.mapping, self.adversary, x_id, variate)
        with torch.no_grad():
            v_id, v_age = self.mapping(x_id, variate)
            dead = (x_age == 0).all(0).float().mean()
            return dict(
                rho_before=before,
                rho_after=after,
                var_id=v_id.var(),
                var_age=v_age.var(),
                dead=dead,
            )

    # 2. The network, everything but w, descends the losses.

    def min_step(self, images, labels, ages):
        self.network.train()
        x_age, x_id = self.network.features(images, self.detach)
        solved = self.lambda_dal > 0 and self.recipe.memory > 0
        climb = self.climb(x_age, x_id, ages) if solved else {}
        losses = self.losses(x_age, x_id, labels, ages)
        self.optimizer.zero_grad()
        self.network.backward(losses['loss'])
        losses['gradient'] = self.network.clip_gradient(self.optimizer, self.recipe.clip)
        self.network.step(self.optimizer)
        if self.recipe.factorization == 'solved':
            self.solve_factorization(x_age, x_id, labels, ages)
        return losses, climb

    def solve_factorization(self, x_age, x_id, labels, ages):
        """R in closed form: x_id has no covariance with z, and there is no turn to take."""
        R, z = self.model.factorization, dal.age_variates(ages, self.recipe.age_powers)
        if self.recipe.within_person:
            z = z - self.person_means[labels]
        x, z = self.batch.gather((x_id + R.alpha * x_age).detach(), z)
        dal.solve_factorization(R, x, z, self.recipe.memory)

    def learn_ages(self, labels, ages):
        """Before the first step, for a recipe that is within_person: each person's mean age
        variates, of all faces of training. Raises UserError where nobody is seen at two ages."""
        if self.recipe.factorization == 'learned' or not self.recipe.within_person:
            return
        z = dal.age_variates(torch.as_tensor(ages), self.recipe.age_powers)
        labels = torch.as_tensor(labels)
        self.person_means = dal.person_means(z, labels, len(self.classes))
        own = z - self.person_means[labels]
        if own.abs().max() < dal.NOTHING:
            raise utils.UserError(
                'within_person: nobody in the training set is seen at two ages; '
                '--set within_person=False takes out the age between people'
            )
        if (share := own[:, 0].var() / z[:, 0].var()) < 0.25:
            print(
                f'warning: {share:.0%} of the variance of age lies within people: within_person '
                'takes out no more; --set within_person=False goes by the ages as they are'
            )
        self.person_means = self.person_means.to(self.device)

    # Whose turn it is, and what changes as training goes on

    def is_max_step(self):
        turn = dal.is_max_step(self.step, self.recipe.max_steps, self.recipe.min_steps)
        return self.lambda_dal > 0 and turn

    def schedule(self, progress):
        """Sets everything that changes with the fraction of training done."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group['lr'] = recipe.lr * group['factor'] * warmup_cosine(progress, recipe.warmup)
        self.model.identity.m = recipe.margin * dal.ramp(progress, 0.0, recipe.margin_warmup)
        self.model.factorization.alpha.fill_(dal.ramp(progress, *recipe.split))
        self.lambda_dal = recipe.lambda_dal * dal.ramp(progress, *recipe.game)
        self.detach = progress < recipe.read_age
        self.network.freeze(progress < recipe.freeze)

    def settings(self):
        """Where the schedule stands, for the log."""
        return dict(
            lr=self.optimizer.param_groups[-1]['lr'],
            lambda_dal=self.lambda_dal,
            margin=self.model.identity.m,
            alpha=dal.ramp(self.step / self.total_steps, *self.recipe.split),
        )

    def iterate(self, images, labels, ages, sizes=None):
        """One global step, a max or a min step, on faces (n, 3, 112, W) uint8, labels (n,) and ages
        (n,) in years. `sizes`: see Batch; None where these are all of the batch."""
        self.schedule(self.step / self.total_steps)
        # each step has a seed of its own: a resumed run restores no generator
        self.batch.begin(sizes or [len(images)], utils.seed_of(self.recipe.seed, self.step))
        images, labels, ages = utils.to_device(self.device, images, labels, ages)
        flip = (
            self.batch.share(torch.rand(sum(self.batch.sizes), 1, 1, 1, device=self.device)) < 0.5
        )
        images = torch.where(flip, images.flip(-1), images)
        if self.is_max_step():
            climb = self.max_step(images, ages)
            self.opening = climb['rho_before'] if self.opening is None else self.opening
        else:
            losses, climb = self.min_step(images, labels, ages)
            self.means.add(**losses)
            self.epoch_means.add(**losses)
            self.watch.add(self.step, **losses)
        self.step += 1
        if climb and not self.is_max_step():  # |ρ| before a phase's first climb, after its last
            before = climb['rho_before'] if self.opening is None else self.opening
            self.climbs.add(**climb | {'rho_before': before})
            self.opening = None


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
