"""Trains a face backbone whose identity feature knows nothing of age (DAL, CVPR 2019):

    python3 main.py ctx epochs [weights]      # ctx < 0: CPU, else the ctx-th GPU
    torchrun --nproc-per-node N main.py …     # the same training by N processes, each on a GPU of its own

Without a change it draws its own faces and trains on them. For yours: describe them in meta.py, then edit `dataset` and `save` here.
"""
import contextlib
import time

import torch
from torch.nn import functional as F
from tqdm import tqdm

import dal
import meta
import utils
from dataset import training_loader
from model import Backbone, CosFace, DALModel
from training import head, ranks
from training.command import open_data, parse, plan
from training.reports import Reports, check_finite, introduce, validate
from training.resume import refuse_to_overwrite, save_state, save_weights, start
from utils import DataError

dataset = meta.demo   # the data set to train on: a dict of meta.py
save = 'runs/demo'    # where weights, state, log and curves go

paper = dict(               # the paper's setting; what it leaves open is our choice, see the README
    layers=(3, 4, 10, 3),   # residual blocks per stage: the paper's 64 layers
    widths=(64, 128, 256, 512),  # channels per stage: the paper's
    dim=512,                # length of x: the paper's
    scale=64.,              # CosFace s: the paper's
    margin=0.35,            # CosFace m: the paper's
    margin_warmup=0.,       # fraction of training over which m rises from 0; helps where the loss sticks at its start
    batch_size=64,          # of all processes together; fits a small GPU; ρ is a statistic of the batch, so larger is better
    accumulate=1,           # parts in which a process computes its share: less memory, the same result but for batch norm, which sees parts
    shard_head=False,       # each process holds a slice of the class centres: for more people than one device's memory
    sample_rate=1.,         # of its slice's people that a step compares with, beside those in the batch; below 1 with shard_head alone
    sync_batchnorm=False,   # batch norm sees the whole batch (or its part), not one process's share
    lr=0.02,                # peak learning rate of the network; scale it with the batch size
    warmup=0.03,            # fraction of training over which lr rises to its peak
    momentum=0.9,           # of the network's SGD
    weight_decay=5e-4,      # on matrices and convolutions, not on norms and biases
    clip=5.,                # largest gradient norm of the network: a first batch at s = 64 must not throw it
    horizon=None,           # epochs that schedule and ramps span; None: as many as this call ends with
    lambda_age=0.1,         # λ1, weight of the age loss: the paper's
    lambda_dal=0.1,         # λ2, weight of |ρ|: the paper's
    variate='learned',      # v_age is w_age·x_age: the paper's; 'label': the age
    min_steps=50,           # iterations of the network in turn: the paper's
    max_steps=20,           # iterations of the adversary in turn: the paper's; 0: no such phase
    adversary_lr=0.01,      # the adversary's own (Adam); w has unit length
    memory=0.,              # w solved, in every iteration, from moments that run over 1 / (1 − memory) batches; 0: it climbs, in its turn
    read_age=0.,            # until this fraction of training the age loss trains R alone, not the backbone
    split=(0., 0.),         # between these fractions α rises from 0 to 1 in x_id = x − α·R(x)
    game=(0., 0.),          # between these fractions λ2 rises from 0, and the adversary starts with it
    seed=0,                 # of weights, order and flips
    workers=0,              # processes that decode; needed only where decoded faces can't be cached
    cache=True,             # decoded faces in one file beside the data set (32 kB a face)
    skip_corrupt=0,         # unreadable images that are left out, and counted, before training ends with an error
    bf16=True,              # where the hardware gains from it; False: float32 throughout
    save_every=0,           # also write last.pth every so many steps; 0: after each epoch only
)
ramped = paper | dict(      # identity first, then the split, then the game against a supervised age: what decorrelated in our hands
    read_age=0.3, split=(0.3, 0.5), game=(0.4, 0.6), lambda_dal=5., variate='label', max_steps=0, memory=0.95,
)
small = ramped | dict(      # the same for photographs on a few CPU cores
    layers=(0, 0, 1, 0), widths=(32, 64, 128, 256), dim=256, lr=0.05,
)
demo = small | dict(        # and for the drawn faces: more layers find less there
    layers=(0, 0, 0, 0), widths=(16, 32, 64, 128), dim=128,
)
recipes = {'paper': paper, 'ramped': ramped, 'small': small, 'demo': demo}


def make_backbone(recipe):
    """Any module (N, 3, 112, 96) -> (N, D) may stand here: this is the one line to change."""
    return Backbone(recipe['layers'], recipe['widths'], recipe['dim'])


class Training:
    """The network, its adversary, and one optimizer each; where there are several processes, the same on each of them after every step."""

    def __init__(self, recipe, classes, cutoffs, device):
        utils.seed_everything(recipe['seed'])
        self.recipe, self.classes, self.cutoffs, self.device = recipe, classes, list(cutoffs), device
        self.model = DALModel(make_backbone(recipe), len(classes), len(cutoffs) + 1, recipe['scale'], recipe['margin'],
                              head.ShardedCosFace if recipe['shard_head'] else CosFace)
        self.model.identity.sample_rate = recipe['sample_rate']
        if recipe['sync_batchnorm']:
            self.model = ranks.synchronized(self.model, device)
        self.model.to(device, memory_format=torch.channels_last)
        self.mapping = dal.CanonicalMapping(self.model.dim, self.model.dim if recipe['variate'] == 'learned' else 1).to(device)
        self.network = ranks.replicated(self.model, device, ['identity.weight'] if recipe['shard_head'] else ())
        ranks.same(self.mapping)
        self.optimizer = torch.optim.SGD(utils.split_weight_decay(self.model, recipe['weight_decay']), recipe['lr'],
                                         recipe['momentum'], fused=True)
        self.adversary = torch.optim.Adam(self.mapping.parameters(), recipe['adversary_lr'], maximize=True)
        self.bf16 = recipe['bf16'] and utils.gains_from_bf16(device)
        self.step = self.epoch = self.total_steps = 0  # global steps done; epochs done, validation and report included; steps in all
        self.best = self.decision = None  # the best score of a validation so far; what the last one says of similarities
        self.lambda_dal, self.opening = 0., None  # opening: |ρ| at the first step of the max phase under way
        self.sizes = None  # faces of the batch on each process; None: there is one
        self.means, self.climbs, self.epoch_means, self.watch = utils.Mean(), utils.Mean(), utils.Mean(), utils.NotFinite()

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def variate(self, x_age, ages):
        """What v_age is made of, (N, D) or (N, 1)."""
        return x_age if self.recipe['variate'] == 'learned' else ages[:, None]

    def schedule(self, progress):
        """Everything that changes with the fraction of training done."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group['lr'] = recipe['lr'] * utils.warmup_cosine(progress, recipe['warmup'])
        self.model.identity.margin = recipe['margin'] * dal.ramp(progress, 0., recipe['margin_warmup'])
        self.model.factorization.alpha.fill_(dal.ramp(progress, *recipe['split']))
        self.lambda_dal = recipe['lambda_dal'] * dal.ramp(progress, *recipe['game'])

    def is_max_step(self):
        return self.lambda_dal > 0 and dal.is_max_step(self.step, self.recipe['max_steps'], self.recipe['min_steps'])

    def parts(self, *share):
        """This process's share of the batch in the parts in which it is computed."""
        for number, part in enumerate(zip(*(whole.tensor_split(self.recipe['accumulate']) for whole in share))):
            if ranks.count() * self.recipe['accumulate'] > 1:  # what a backbone of your own draws is another in each part, and the same when asked again
                torch.manual_seed(utils.seed_of(self.recipe['seed'], self.step, ranks.index(), number))
            yield part

    @torch.no_grad()
    def look(self, images, ages, detach=False):
        """x_id, what v_age is made of, and x_age, of this process's share, for those who only look."""
        seen = []
        for images, ages in self.parts(images, ages):
            with self.autocast():
                _, x_age, x_id = self.model.features(images, detach)
                seen.append((x_id, self.variate(x_age, ages), x_age))
        return [torch.cat(column) for column in zip(*seen)]

    # 1. The adversary climbs |ρ|; the network is frozen: no gradient, and eval mode, which leaves batch norm's statistics alone.
    def max_step(self, images, ages):
        self.model.eval()
        return self.climb(*self.look(images, ages))

    def climb(self, x_id, variate, x_age):
        """On the features of all processes, which are few numbers: each of them climbs alike."""
        everyone = [ranks.gathered(part.detach(), self.sizes) for part in (x_id, variate)]
        if self.recipe['memory']:
            before, after = dal.solve(self.mapping, *everyone, self.recipe['memory'])
        else:
            before, after = dal.ascend(self.mapping, self.adversary, *everyone)
        with torch.no_grad():
            v_id, v_age = self.mapping(*everyone)
            dead = ranks.total((x_age != 0).any(0).float()) == 0
            return dict(rho_before=before, rho_after=after, var_id=v_id.var(), var_age=v_age.var(), dead=dead.float().mean())

    # 2. The network, everything but w, descends L_id + λ1·L_age + λ2·|ρ|.
    def min_step(self, images, labels, ages, progress):
        self.model.train()
        recipe, sizes, detach = self.recipe, self.sizes or [len(images)], progress < self.recipe['read_age']
        faces, ahead, climb, sums, done = sum(sizes), None, {}, 0, 0
        if self.lambda_dal and recipe['accumulate'] > 1:  # |ρ| is of the whole batch: all features come before the first gradient
            with ranks.statistics_kept(self.model):
                ahead = self.look(images, ages, detach)
            climb = self.climb(*ahead) if recipe['memory'] else {}
        self.optimizer.zero_grad()
        for number, (part_images, part_labels, part_ages) in enumerate(self.parts(images, labels, ages)):
            begin, done = done, done + len(part_images)
            self.model.identity.sizes = [n // recipe['accumulate'] + (number < n % recipe['accumulate']) for n in sizes]  # of the part on each process
            with contextlib.nullcontext() if done == len(images) else ranks.gradients_stay(self.network):
                with self.autocast():
                    x_age, x_id, logits, age_logits = self.network(part_images, part_labels, detach=detach)
                groups = dal.age_groups(part_ages, self.cutoffs)
                loss_id, right = head.judge(self.model.identity, logits, part_labels)
                loss_age = F.cross_entropy(age_logits, groups, reduction='sum')
                loss, game = loss_id / faces + recipe['lambda_age'] * (loss_age / faces), {}
                if self.lambda_dal:
                    whole = x_id, self.variate(x_age, part_ages)
                    if ahead:  # the other parts are there as values, so that each part adds its own share of the gradient
                        whole = [torch.cat([seen[:begin], part, seen[done:]]) for seen, part in zip(ahead, whole)]
                    elif recipe['memory']:
                        climb = self.climb(*whole, x_age)
                    rho = dal.canonical_correlation(*(ranks.gathered(v, self.sizes) for v in self.mapping(*whole))).abs()
                    loss, game = loss + self.lambda_dal * rho / ranks.count(), {'rho': rho}  # every process has the same ρ
                loss.backward()
            sums = sums + torch.stack([loss_id.detach(), loss_age.detach(), right, (age_logits.argmax(1) == groups).sum()])
        norm = head.clip(self.model, recipe['clip'])
        self.optimizer.step()
        with torch.no_grad():
            ranks.average_statistics(self.model)
            loss_id, loss_age, accuracy, age_accuracy = ranks.total(sums) / faces
            loss = loss_id + recipe['lambda_age'] * loss_age + (self.lambda_dal * rho if game else 0)
            return dict(loss=loss, loss_id=loss_id, loss_age=loss_age, **game, gradient=norm, accuracy=accuracy, age_accuracy=age_accuracy), climb

    def iterate(self, images, labels, ages, sizes=None):
        """One global step, of whoever's turn it is; `sizes` are the numbers of faces that the processes have of its batch."""
        progress, self.sizes = self.step / self.total_steps, sizes or [len(images)]
        self.schedule(progress)
        torch.manual_seed(self.recipe['seed'] << 32 | self.step)  # each step has its own seed: a resumed run restores no generator
        images, labels, ages = (part.to(self.device, non_blocking=True) for part in (images, labels, ages))
        flip = ranks.own(torch.rand(sum(self.sizes), 1, 1, 1, device=self.device), self.sizes) < .5  # drawn for the whole batch
        images = torch.where(flip, images.flip(-1), images)
        if self.is_max_step():
            climb = self.max_step(images, ages)
            self.opening = climb['rho_before'] if self.opening is None else self.opening
        else:
            losses, climb = self.min_step(images, labels, ages, progress)
            self.means.add(**losses)
            self.epoch_means.add(**losses)
            self.watch.add(self.step, **losses)
        self.step += 1
        if climb and not self.is_max_step():  # the end of a max phase: its first and its last correlation; or one in an iteration
            self.climbs.add(**climb | ({} if self.opening is None else {'rho_before': self.opening}))
            self.opening = None

    @property
    def ramps_end(self):
        """The fraction of the training at which everything is in play."""
        return max(self.recipe['read_age'], self.recipe['split'][1], self.recipe['game'][1])

    def settings(self):
        """Where the schedule stands, for the log."""
        return dict(lr=self.optimizer.param_groups[0]['lr'], lambda_dal=self.lambda_dal, margin=self.model.identity.margin,
                    alpha=dal.ramp(self.step / self.total_steps, *self.recipe['split']))


def arguments():
    return parse(__doc__, recipes)


def run(args):
    with ranks.joined(args.ctx) as device, contextlib.ExitStack() as stack:
        name, entry, recipe, folder, weights = ranks.decided(plan, args, dataset, save, recipes)
        ranks.decided(lambda: stack.enter_context(utils.claim(folder)) and None)
        train, val = ranks.leaders_first(open_data, name, entry, recipe)
        loader = training_loader(train, recipe['batch_size'], recipe['seed'], recipe['workers'], device.type == 'cuda', ranks.index(), ranks.count())
        training = Training(recipe, train.classes, meta.age_cutoffs, device)
        same_run = weights and weights.parent.resolve() == folder.resolve()
        exact = weights and ranks.agreed(start, training, weights, same_run, len(loader))
        first = training.epoch
        last = args.epochs if args.resume else first + args.epochs
        if not (exact and weights.resolve() == (folder / 'last.pth').resolve()):
            refuse_to_overwrite(folder, first, last)
        if first >= last:
            print(f'{folder}: {first} epochs are trained already')
            return
        training.total_steps = (recipe['horizon'] or last) * len(loader)
        training.schedule(max(training.step - 1, 0) / training.total_steps)  # as it stood when a resumed run was saved
        introduce(training, name, train, val, (first, last), folder, weights if exact else None)
        fit(training, loader, val, first, last, folder, stack.enter_context(utils.Interrupt(ranks.launched())))


def fit(training, loader, val, first, last, folder, interrupt):
    """Trains and reports epoch by epoch. However it ends, last.pth is there to resume from; a signal or bad data save it first."""
    recipe, steps, skipped = training.recipe, len(loader), set()

    def check():
        check_finite(training, loader, folder)

    def keep():
        check()
        save_state(training, steps, folder)

    if not ranks.decided((folder / 'last.pth').exists):
        keep()  # from the first moment there is something to resume, and a folder that can't be written is found out now
    with contextlib.closing(Reports(training, folder, first, last * steps * recipe['batch_size'], training.step * recipe['batch_size'])) as reports:
        for epoch in range(first, last):
            loader.batch_sampler.epoch, loader.batch_sampler.first = epoch, training.step - epoch * steps
            began, seen = time.perf_counter(), 0
            try:
                for images, labels, ages, sizes, unreadable, stop in ranks.fed(loader, interrupt, recipe['accumulate']):
                    if stop:
                        raise ranks.common(utils.Interrupted(stop))
                    if unreadable:
                        skipped |= set(unreadable)
                        tqdm.write(f'warning: left out, {len(skipped)} so far: {"; ".join(unreadable)}')
                        if len(skipped) > recipe['skip_corrupt']:
                            raise ranks.common(DataError(f'{unreadable[-1]}: mend or remove it, or let skip_corrupt={len(skipped)} pass with --set'))
                    training.iterate(images, labels, ages, sizes)
                    seen += sum(sizes)
                    reports.step(recipe['batch_size'], steps, check)
                    if recipe['save_every'] and training.step % recipe['save_every'] == 0:
                        keep()
                rate = seen / (time.perf_counter() - began)
                report, training.decision = ranks.decided(validate, training, val, interrupt) if val else ({}, None)
            except DataError:
                keep()
                raise
            except utils.Interrupted as signal:
                keep()
                raise ranks.common(utils.UserError(f'{signal} after step {training.step}: saved; --resume continues from {folder}/last.pth')) from None

            training.epoch = epoch + 1
            score = report.get('auc') or report.get('closed_set_accuracy')  # no AUC where nobody has two images
            check()
            better = score is not None and training.step >= training.ramps_end * training.total_steps and (training.best is None or score > training.best)
            training.best = score if better else training.best
            save_weights(training, folder, [f'epoch_{epoch + 1:03d}.pth', *['best.pth'] * better])
            row = reports.epoch(epoch + 1, rate, report)
            keep()
            reports.draw(row, last)


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
