"""Trains a face backbone whose identity feature knows nothing of age (DAL, CVPR 2019):

    python3 main.py ctx epochs [weights]      # ctx < 0: CPU, else the ctx-th GPU

Without a change it draws its own faces and trains on them. For yours: describe them in meta.py, then edit `dataset` and `save` here.
"""
import argparse
import contextlib
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

import dal
import meta
import utils
from dataset import DataError, Faces, check_entry, evaluation_loader, training_loader
from evaluation.extraction import extract
from evaluation.leakage import age_r2
from evaluation.metrics import people_report
from model import Backbone, DALModel

dataset = meta.demo   # the data set to train on: a dict of meta.py
save = 'runs/demo'    # where weights, state, log and curves go

paper = dict(               # the paper's setting; what it leaves open is our choice, see the README
    layers=(3, 4, 10, 3),   # residual blocks per stage: the paper's 64 layers
    widths=(64, 128, 256, 512),  # channels per stage: the paper's
    dim=512,                # length of x: the paper's
    scale=64.,              # CosFace s: the paper's
    margin=0.35,            # CosFace m: the paper's
    margin_warmup=0.,       # fraction of training over which m rises from 0; helps where the loss sticks at its start
    batch_size=64,          # fits a small GPU; ρ is a statistic of the batch, so larger is better
    lr=0.02,                # peak learning rate of the network; scale it with the batch size
    warmup=0.03,            # fraction of training over which lr rises to its peak
    momentum=0.9,           # of the network's SGD
    weight_decay=5e-4,      # on matrices and convolutions, not on norms and biases
    clip=5.,                # largest gradient norm of the network: a first batch at s = 64 must not throw it
    horizon=None,           # epochs that schedule and ramps span; None: as many as this call ends with
    lambda_age=0.1,         # λ1, weight of the age loss: the paper's
    lambda_dal=0.1,         # λ2, weight of |ρ|: the paper's
    variate='learned',      # v_age is w_age·x_age: the paper's; 'label': the age; 'expected': the age that the age head expects
    min_steps=50,           # iterations of the network in turn: the paper's
    max_steps=20,           # iterations of the adversary in turn: the paper's; 0: no such phase
    memory=0.,              # w in closed form on moments that run over 1 / (1 − memory) batches, in every iteration; 0: it climbs
    directions=1,           # pairs of w, kept orthogonal
    leak=0.,                # slope of R's ReLUs below zero: a unit that leaks can't die
    ascent=0,               # steps of the adversary on the current features within every iteration of the network
    adversary_lr=0.01,      # the adversary's own (Adam); w has unit length
    read_age=0.,            # until this fraction of training the age loss trains R alone, not the backbone
    split=(0., 0.),         # between these fractions α rises from 0 to 1 in x_id = x − α·R(x)
    game=(0., 0.),          # between these fractions λ2 rises from 0, and the adversary starts with it
    seed=0,                 # of weights, order and flips
    workers=0,              # processes that decode; needed only where decoded faces can't be cached
    cache=True,             # decoded faces in one memory-mapped file beside the data set (32 kB a face)
    skip_corrupt=0,         # unreadable images that are left out, and counted, before training ends with an error
    save_every=0,           # also write last.pth every so many steps; 0: after each epoch only
)
ramped = paper | dict(      # identity first, then the split, then the game against a supervised age: what decorrelated in our hands
    read_age=0.3, split=(0.3, 0.5), game=(0.4, 0.6), lambda_age=0.3, lambda_dal=2., variate='expected', max_steps=0, ascent=5,
)
small = ramped | dict(      # the same for two CPU cores
    layers=(1, 1, 1, 1), widths=(16, 32, 64, 128), dim=128, lr=0.05,
)
recipes = {'paper': paper, 'ramped': ramped, 'small': small}


def make_backbone(recipe):
    """Any module (N, 3, 112, 96) -> (N, D) may stand here: this is the one line to change."""
    return Backbone(recipe['layers'], recipe['widths'], recipe['dim'])


class Training:
    """The network, its adversary, and one optimizer each."""

    def __init__(self, recipe, classes, cutoffs, device):
        utils.seed_everything(recipe['seed'])
        self.recipe, self.classes, self.cutoffs, self.device = recipe, classes, list(cutoffs), device
        self.model = DALModel(make_backbone(recipe), len(classes), len(cutoffs) + 1, recipe['scale'], recipe['margin'])
        for layer in self.model.factorization.age:
            if isinstance(layer, torch.nn.ReLU) and recipe['leak']:
                self.model.factorization.age[[*self.model.factorization.age].index(layer)] = torch.nn.LeakyReLU(recipe['leak'])
        self.model.to(device, memory_format=torch.channels_last)
        width = {'learned': self.model.dim, 'groups': len(cutoffs) + 1}.get(recipe['variate'], 1)
        self.mapping = dal.CanonicalMapping(self.model.dim, width, recipe['directions']).to(device)
        self.optimizer = torch.optim.SGD(utils.split_weight_decay(self.model, recipe['weight_decay']), recipe['lr'],
                                         recipe['momentum'], fused=True)
        self.adversary = torch.optim.Adam(self.mapping.parameters(), recipe['adversary_lr'], maximize=True)
        self.bf16 = utils.gains_from_bf16(device)
        self.step = self.epoch = self.total_steps = 0  # global steps done; epochs done, validation and report included; steps in all
        self.best = None  # the best score of a validation so far
        self.lambda_dal, self.opening = 0., None  # opening: |ρ| at the first step of the max phase under way
        self.means, self.climbs, self.epoch_means, self.watch = utils.Mean(), utils.Mean(), utils.Mean(), utils.NotFinite()

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def variate(self, x_age, age_logits, ages):
        """What v_age is made of, (N, D) or (N, 1)."""
        if self.recipe['variate'] == 'learned':
            return x_age
        if self.recipe['variate'] == 'label':
            return ages[:, None]
        if self.recipe['variate'] == 'groups':
            return age_logits.detach().float().softmax(1)
        return dal.expected_age(age_logits, self.cutoffs).detach()  # the age head stands for the label: it shall not unlearn age

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

    # 1. The adversary climbs |ρ|; the network is frozen: no gradient, and eval mode, which leaves batch norm's statistics alone.
    def max_step(self, images, ages):
        self.model.eval()
        with torch.no_grad(), self.autocast():
            _, x_age, x_id = self.model.features(images)
            variate = self.variate(x_age, self.model.age(x_age), ages)
        return self.climb(x_id, variate, x_age, 1)

    def climb(self, x_id, variate, x_age, steps):
        if self.recipe['memory']:
            before, after = dal.solve(self.mapping, x_id.detach(), variate, self.recipe['memory'])
        else:
            before, after = dal.ascend(self.mapping, self.adversary, x_id, variate, steps)
        with torch.no_grad():
            v_id, v_age = self.mapping(x_id, variate)
            return dict(rho_before=before, rho_after=after, var_id=v_id.var(0).mean(), var_age=v_age.var(0).mean(),
                        dead=(x_age == 0).all(0).float().mean())

    # 2. The network, everything but w, descends L_id + λ1·L_age + λ2·|ρ|.
    def min_step(self, images, labels, ages, progress):
        self.model.train()
        with self.autocast():
            x_age, x_id, logits, age_logits = self.model(images, labels, detach=progress < self.recipe['read_age'])
        groups = dal.age_groups(ages, self.cutoffs)
        loss_id, loss_age = F.cross_entropy(logits, labels), F.cross_entropy(age_logits, groups)
        loss, game, climb = loss_id + self.recipe['lambda_age'] * loss_age, {}, {}
        if self.lambda_dal:
            variate = self.variate(x_age, age_logits, ages)
            if self.recipe['ascent'] or self.recipe['memory']:
                climb = self.climb(x_id, variate, x_age, self.recipe['ascent'])
            rho = self.mapping.rho(x_id, variate)
            loss, game = loss + self.lambda_dal * rho, {'rho': rho}
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe['clip'])
        self.optimizer.step()
        with torch.no_grad():  # accuracy without the margin: the label's logit gets it back
            own = logits.gather(1, labels[:, None])[:, 0] + self.model.identity.scale * self.model.identity.margin
            return dict(loss=loss, loss_id=loss_id, loss_age=loss_age, **game, gradient=norm, accuracy=(own >= logits.max(1).values).float().mean(),
                        age_accuracy=(age_logits.argmax(1) == groups).float().mean()), climb

    def iterate(self, images, labels, ages):
        """One global step, of whoever's turn it is."""
        progress = self.step / self.total_steps
        self.schedule(progress)
        torch.manual_seed(self.recipe['seed'] << 32 | self.step)  # each step has its own seed: a resumed run restores no generator
        images, labels, ages = (part.to(self.device, non_blocking=True) for part in (images, labels, ages))
        images = torch.where(torch.rand(len(images), 1, 1, 1, device=self.device) < .5, images.flip(-1), images)
        if self.is_max_step():
            climb = self.max_step(images, ages)
            self.opening = climb['rho_before'] if self.opening is None else self.opening
        else:
            losses, climb = self.min_step(images, labels, ages, progress)
            self.means.add(**losses)
            self.epoch_means.add(**losses)
            self.watch.add(self.step, **losses)
        self.step += 1
        if climb and not self.is_max_step():  # the end of a max phase: its first and its last correlation; or an own ascent
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

    def check_finite(self, loader, folder):
        """Raises UserError, and leaves `nan.json`, where a loss of any step so far was not finite; `folder` then holds no such weights."""
        found = self.watch.first()
        if found:
            step, losses = found
            batches = loader.batch_sampler
            files = [loader.dataset.path(index) for index in batches.order()[step % len(batches) * batches.batch_size:][:batches.batch_size]]
            utils.write_json({'step': step, 'phase': 'min', 'losses': losses, **self.settings(), 'files': files}, folder / 'nan.json')
            raise utils.UserError(f'step {step}: the loss is not finite ({folder}/nan.json has its parts and its images); last.pth is from '
                                  'before: --resume with a lower --lr or clip')

    def weights(self):
        """What `DALModel.load` reads, and what a run can start from."""
        backbone = self.model.backbone.config if type(self.model.backbone) is Backbone else None
        return {'model': self.model.state_dict(), 'backbone': backbone, 'classes': self.classes, 'age_cutoffs': self.cutoffs,
                'epoch': self.epoch, 'best': self.best, 'recipe': self.recipe}

    def state(self, steps_per_epoch):
        """What resumes the run: order, flips and ramps are functions of the seed and the global step; the means are those under way."""
        return self.weights() | {'mapping': self.mapping.state_dict(), 'optimizer': self.optimizer.state_dict(),
                                 'adversary': self.adversary.state_dict(), 'step': self.step, 'steps_per_epoch': steps_per_epoch,
                                 'opening': self.opening, 'means': {name: getattr(self, name).state_dict() for name in MEANS}}

    def restore(self, state, steps_per_epoch):
        """Takes over all of `state` but the network's weights and the best score."""
        self.mapping.load_state_dict(state['mapping'])
        utils.restore_optimizer(self.optimizer, state['optimizer'])
        utils.restore_optimizer(self.adversary, state['adversary'])
        for name in MEANS:
            getattr(self, name).load_state_dict(state['means'][name], self.device)
        self.opening = None if state['opening'] is None else state['opening'].to(self.device).reshape(())
        self.epoch, self.step = state['epoch'], state['step'] * steps_per_epoch // state['steps_per_epoch']
        if not 0 <= self.epoch * steps_per_epoch <= self.step <= (self.epoch + 1) * steps_per_epoch:
            raise ValueError(f'step {state["step"]} is not in epoch {self.epoch}')


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('ctx', type=int, help='device: below 0 the CPU, else the ctx-th GPU')
    parser.add_argument('epochs', type=int, help='how many epochs to train in this call (with --resume: in total)')
    parser.add_argument('weights', nargs='?', help='last.pth of a run resumes it exactly; a weights-only file (epoch_*.pth, best.pth) '
                        'starts with its weights, and with a new head where the people differ')
    parser.add_argument('--resume', nargs='?', const=True, metavar='STATE', help='continue from STATE, by default from last.pth in '
                        'SAVE if there is one, up to `epochs` in total: a restarted job is the same command')
    parser.add_argument('--dataset', metavar='NAME', help="a data set of meta.py, instead of main.py's `dataset`")
    parser.add_argument('--save', metavar='DIR', help="where weights, state, log and curves go, instead of main.py's `save`; with --dataset NAME it is runs/NAME")
    parser.add_argument('--recipe', choices=recipes, help='one of the recipes in main.py (small for the demo, paper for other data)')
    parser.add_argument('--set', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help="other values for the recipe, as in --set ascent=5 split='(.3,.5)'")
    for key, kind in (('batch_size', int), ('lr', float), ('workers', int), ('seed', int), ('horizon', int), ('save_every', int)):
        parser.add_argument('--' + key.replace('_', '-'), type=kind, help=f'the same as --set {key}=…')
    return parser.parse_args()


def chosen_recipe(args, is_demo):
    """The recipe of the command line. Raises UserError for a key or a value that no recipe can have."""
    pairs = [pair.partition('=')[::2] for pair in args.set]
    pairs += [(key, str(value)) for key, value in vars(args).items() if key in paper and value is not None]
    recipe = utils.override(recipes[args.recipe or ('small' if is_demo else 'paper')], pairs)
    for key, least in (('batch_size', 2), ('seed', 0), ('horizon', 1), ('lr', 0), ('workers', 0), ('min_steps', 1), ('max_steps', 0), ('ascent', 0),
                       ('dim', 1), ('save_every', 0), ('skip_corrupt', 0), ('clip', 1e-9)):
        if recipe[key] is not None and not least <= recipe[key] < 2 ** 32:
            raise utils.UserError(f'{key} is {recipe[key]}; it must be at least {least}, and below 2³²')
    for key in ('split', 'game'):
        if len(recipe[key]) != 2 or not 0 <= recipe[key][0] <= recipe[key][1]:
            raise utils.UserError(f'{key} is {recipe[key]}; it must be where its ramp begins and where it ends, as fractions of the training')
    if recipe['variate'] not in ('learned', 'label', 'expected', 'groups'):
        raise utils.UserError(f"variate is {recipe['variate']!r}; it must be 'learned', 'label' or 'expected'")
    if not len(recipe['layers']) == len(recipe['widths']) > 0 or min(recipe['layers']) < 0 or min(recipe['widths']) < 1:
        raise utils.UserError(f"layers {recipe['layers']} and widths {recipe['widths']} must name the same stages")
    return recipe


def open_data(name, entry, recipe):
    """Training and validation faces (or None), everything about them checked. Raises DataError."""
    check_entry(name, entry, meta.age_cutoffs)
    if entry is meta.demo and not Path(entry['train_root']).parent.exists():
        import synthetic
        synthetic.make(Path(entry['train_root']).parent, people=entry['n_cls'], val_people=100)
    train = Faces(entry['train_root'], entry['pat'], entry['pos'])
    if len(train.classes) != entry['n_cls']:
        raise DataError(f"meta.py, {name}: 'n_cls' is {entry['n_cls']}, but {train.root} has {len(train.classes)} identity folders: "
                        f"set 'n_cls': {len(train.classes)}")
    if len(train.classes) < 2:
        raise DataError(f'{train.root}: one person; to tell people apart it takes two')
    val = Faces(entry['val_root'], entry['pat'], entry['pos']) if entry['val_root'] else None
    for faces in filter(None, (train, val)):
        for notice in faces.check(recipe['cache'], recipe['skip_corrupt']):
            print(notice)
    return train, val


def start(training, path, same_run, steps_per_epoch):
    """Loads `path` into `training`; whether it resumes exactly where the file stands. Raises UserError where it can't be used.

    The network with its heads where the people and age groups are the same, else the backbone and the factorization; optimizers,
    adversary, step and best score too where the file is a state and everything fits.
    """
    state = utils.load_checkpoint(path, {'model': dict, 'backbone': (dict, type(None)), 'classes': list, 'age_cutoffs': list, 'epoch': int})
    fresh = [part for part, same in (('identity', state['classes'] == training.classes), ('age', state['age_cutoffs'] == training.cutoffs))
             if not same]
    own = training.model.state_dict()
    weights = {name: own[name] if name in own and name.split('.')[0] in fresh else tensor for name, tensor in state['model'].items()}
    differ = [name for name in own if getattr(weights.get(name), 'shape', None) != own[name].shape] + [n for n in weights if n not in own]
    if differ:
        raise utils.UserError(f'{path}: its network is not the one that main.py builds (first difference: {differ[0]!r}); it was saved with '
                              f'backbone {state["backbone"]}: choose the same recipe, or set layers, widths and dim to these')
    try:
        training.model.load_state_dict(weights)
    except RuntimeError as error:
        raise utils.UserError(f'{path}: its tensors are of another kind ({str(error).splitlines()[-1].strip()})') from None
    if fresh:
        what = {'identity': f"the identity head ({len(state['classes'])} people there, {len(training.classes)} here)", 'age': 'the age head'}
        print(f'{path}: other people or age groups: keeping the backbone, starting anew: {" and ".join(what[part] for part in fresh)}')
        return False
    if 'optimizer' not in state:
        print(f'{path}: weights alone: optimizer and adversary start anew (last.pth would resume exactly)')
        training.epoch = max(0, state['epoch']) if same_run else 0
        training.step, training.best = training.epoch * steps_per_epoch, _score(state) if same_run else None
        return False
    try:
        training.restore(state, steps_per_epoch)
        training.best = _score(state)
        return True
    except Exception as error:  # a state of another variate or version, or of a stranger, can fail in any way
        raise utils.UserError(f'{path}: its optimizers do not fit this recipe ({[*str(error).splitlines(), type(error).__name__][0]}): start '
                              'from an epoch_*.pth or best.pth, which hold weights alone') from None


def _score(state):
    return None if state.get('best') is None else float(state['best'])


def validate(training, val):
    """One flat dict of what is known of `val`: verification, rank-1, the age left in x_id, closed-set accuracy where people are shared."""
    try:
        features = extract(training.model.eval(), evaluation_loader(val), training.device, bf16=training.bf16)
    except DataError:
        raise
    except ValueError as error:
        raise utils.UserError(f'step {training.step}: {val.root}: {error}: last.pth is from before: --resume with a lower --lr') from None
    people = people_report(features['embedding'], val.labels, val.ages, intervals=False)
    report = {key: people['verification'][key] for key in ('auc', 'accuracy', 'eer')} | {'rank1': people['rank1']}
    report |= {f'auc_gap_{row["years"]}': row['auc'] for row in people['by_gap']}
    report |= {f'age_r2_{part}': age_r2(features[f'x_{part}'], val.labels, val.ages) for part in ('id', 'age')}
    index = {name: label for label, name in enumerate(training.classes)}
    own = torch.tensor([index.get(name, -1) for name in val.classes])[torch.from_numpy(val.labels)]
    if (own >= 0).any():
        with torch.no_grad():
            logits = training.model.identity(torch.from_numpy(features['x_id'])[own >= 0].to(training.device)).cpu()
        report['closed_set_accuracy'] = (logits.argmax(1) == own[own >= 0]).float().mean().item()
    return report


def starting_point(args):
    """The save folder and the file to start from (or None). Raises UserError rather than overwrite another run."""
    folder, state = Path(args.save), Path(args.save, 'last.pth')
    if args.weights and args.resume:
        raise utils.UserError('give either weights or --resume')
    weights = args.weights or (args.resume if args.resume is not True else state if state.exists() else None)
    taken = sorted(path.name for path in folder.glob('*.pth'))
    if taken and not (weights and Path(weights).parent.resolve() == folder.resolve()):
        raise utils.UserError(f'{folder} holds a run already ({taken[0]}, {len(taken)} weights files): --resume continues it, --save DIR starts elsewhere')
    return folder, weights and Path(weights)


def run(args):
    entry = getattr(meta, args.dataset, None) if args.dataset else dataset
    name = args.dataset or next((name for name, value in vars(meta).items() if value is entry), 'dataset')
    if entry is None:
        known = [key for key, value in vars(meta).items() if isinstance(value, dict) and not key.startswith('_')]
        raise utils.UserError(f'--dataset {name}: meta.py has {", ".join(known)}')
    recipe, device = chosen_recipe(args, entry is meta.demo), utils.pick_device(args.ctx)
    if args.epochs < 1:
        raise utils.UserError(f'epochs is {args.epochs}; it must be at least 1')
    args.save = args.save or (f'runs/{name}' if args.dataset else save)
    folder, weights = starting_point(args)
    with utils.claim(folder):
        train, val = open_data(name, entry, recipe)
        loader = training_loader(train, recipe['batch_size'], recipe['seed'], recipe['workers'], device.type == 'cuda')
        training = Training(recipe, train.classes, meta.age_cutoffs, device)
        same_run = weights and weights.parent.resolve() == folder.resolve()
        exact = weights and start(training, weights, same_run, len(loader))
        first = training.epoch
        last = args.epochs if args.resume else first + args.epochs
        if not (exact and weights.resolve() == (folder / 'last.pth').resolve()):
            taken = [epoch for epoch in range(first + 1, last + 1) if (folder / f'epoch_{epoch:03d}.pth').exists()]
            if taken:
                raise utils.UserError(f'{folder} holds epoch_{taken[0]:03d}.pth already, which this run would write anew: --save DIR starts elsewhere')
        if first >= last:
            print(f'{folder}: {first} epochs are trained already')
            return
        training.total_steps = (recipe['horizon'] or last) * len(loader)
        training.schedule(max(training.step - 1, 0) / training.total_steps)  # as it stood when a resumed run was saved
        if training.total_steps < last * len(loader):
            print(f'warning: the horizon is {recipe["horizon"]} epochs: from there to epoch {last} the learning rate is 0')
        elif val and training.ramps_end * training.total_steps > last * len(loader):
            print(f'this call ends before the ramps do, at {training.ramps_end:.0%} of {recipe["horizon"]} epochs: no best.pth yet')
        summary = utils.run_summary(device) | {'recipe': recipe, 'dataset': name, 'faces': len(train), 'people': len(train.classes),
                                               'fingerprint': train.fingerprint}
        if exact:
            for line in utils.differences(weights.parent / 'run.json', summary):
                print(f'warning: {line}')
        utils.write_json(summary, folder / 'run.json')
        size = sum(p.numel() for p in training.model.parameters()) / 1e6
        print(f'{name}: {len(train)} faces of {len(train.classes)} people, ages {train.ages.min():g} to {train.ages.max():g}; '
              + (f'validation: {len(val)} faces of {len(val.classes)} people' if val else 'no validation set, so no best.pth') + '\n'
              f'epochs {first + 1} to {last} on {device}{" in bf16" if training.bf16 else ""}, {size:.1f} M parameters, into {folder}', flush=True)
        with utils.Interrupt() as interrupt:
            fit(training, loader, val, first, last, folder, interrupt)


def fit(training, loader, val, first, last, folder, interrupt):
    """Trains and reports epoch by epoch. However it ends, last.pth is there to resume from; a signal or bad data save it first."""
    recipe, steps, log, stuck, skipped = training.recipe, len(loader), utils.Log(folder, training.step, first), 0, set()
    bar = tqdm(total=last * steps * recipe['batch_size'], initial=training.step * recipe['batch_size'], unit=' images', unit_scale=True,
               disable=None, dynamic_ncols=True)

    def save_state():
        training.check_finite(loader, folder)
        utils.save_checkpoint(training.state(steps), folder / 'last.pth')

    if not (folder / 'last.pth').exists():
        save_state()  # from the first moment there is something to resume, and a folder that can't be written is found out now
    with contextlib.closing(log), contextlib.closing(bar):
        for epoch in range(first, last):
            loader.batch_sampler.epoch, loader.batch_sampler.first = epoch, training.step - epoch * steps
            began, seen = time.perf_counter(), 0
            try:
                for images, labels, ages, unreadable in loader:
                    if unreadable:
                        skipped |= set(unreadable)
                        tqdm.write(f'warning: left out, {len(skipped)} so far: {"; ".join(unreadable)}')
                        if len(skipped) > recipe['skip_corrupt']:
                            raise DataError(f'{unreadable[-1]}: mend or remove it, or let skip_corrupt={len(skipped)} pass with --set')
                    training.iterate(images, labels, ages)
                    seen += len(images)
                    bar.update(recipe['batch_size'])
                    due = training.step % REPORT_EVERY == 0 or training.step % steps == 0
                    if training.climbs and (due or recipe['max_steps']):
                        training.check_finite(loader, folder)
                        row = log.report('max', training.step, **training.climbs.flush())
                        stuck = stuck + 1 if row['var_age'] == 0 or row['dead'] == 1 or (row['rho_after'] or 0) < 1e-3 else 0
                        if stuck == STUCK_AFTER:
                            tqdm.write(f'warning: step {training.step}: |ρ| is stuck at {row["rho_after"] or 0:.1e} after the adversary climbed, '
                                       f'var(v_age) {row["var_age"] or 0:.1e}, {row["dead"] or 0:.0%} of x_age dead: nothing is being decorrelated. '
                                       'Try a larger lambda_age, a smaller lambda_dal, or the ramps (--recipe ramped)')
                    if training.means and due:
                        training.check_finite(loader, folder)
                        row = log.report('min', training.step, **training.means.flush(), **training.settings())
                        bar.set_postfix({key: f'{row[key]:.2f}' for key in ('loss', 'accuracy', 'rho') if key in row})
                    if interrupt.received or recipe['save_every'] and training.step % recipe['save_every'] == 0:
                        save_state()
                    if interrupt.received:
                        raise utils.UserError(f'{interrupt.received} after step {training.step}: saved; --resume continues from {folder}/last.pth')
                rate = seen / (time.perf_counter() - began)
                report = validate(training, val) if val else {}
            except DataError:
                save_state()
                raise

            training.epoch = epoch + 1
            score = report.get('auc') or report.get('closed_set_accuracy')  # no AUC where nobody has two images
            training.check_finite(loader, folder)
            better = score is not None and training.step >= training.ramps_end * training.total_steps and (training.best is None or score > training.best)
            training.best = score if better else training.best
            utils.save_checkpoint(training.weights(), folder / f'epoch_{epoch + 1:03d}.pth')
            if better:
                utils.save_checkpoint(training.weights(), folder / 'best.pth')
            row = log.report('epoch', training.step, epoch=epoch + 1, images_per_s=rate, **training.epoch_means.flush(),
                             **{f'val_{key}': value for key, value in report.items()})
            save_state()
            utils.plot_curves(utils.read_log(log.path), PANELS, folder / 'curves.png')
            tqdm.write(f'epoch {epoch + 1}/{last}  ' + '  '.join(f'{title} {row[key]:.3g}' for title, key in COLUMNS if row.get(key) is not None))


MEANS = ('means', 'climbs', 'epoch_means')
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

if __name__ == '__main__':
    with utils.one_line_errors(DataError):
        run(arguments())
