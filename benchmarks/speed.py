"""How fast training, embedding and the data path are, and what the machine could do at best.

    python3 benchmarks/speed.py              # the CPU
    python3 benchmarks/speed.py --ctx 0      # the first GPU

Everything takes turns, round after round, so that whatever else the machine does affects all alike.
A figure is the median over the rounds, a ratio the median of the rounds' ratios, each with its
smallest and largest value. Training is the real loop, main.Training with the real loader on drawn
faces; beside it the loop that most face repositories have, written out here, on the same network.
"""

import collections
import functools
import itertools
import math
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import tables
import torch
from measuring import CPU, RESULTS, in_turns, iterate, machine, peak_resident, ratio, spread
from PIL import Image
from tables import cell
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

import dal
import main
import meta
import utils
from backbones import own
from dataset import Faces, evaluation_loader, training_loader
from model import HEIGHT, WIDTH, DALModel, normalize
from recognition.embedding import extract
from synthesis import drawing
from training.recipe import recipes

NETWORKS = {  # name: the recipe that trains it
    '64-layer': recipes['paper'],
    'small': recipes['small'],
    'MobileFaceNet': replace(recipes['finetune'], backbone='mobilefacenet'),
    'iresnet50': replace(recipes['finetune'], backbone='iresnet50'),
}
OURS = ['64-layer', 'small']  # what is measured unless --networks asks for others
SHAPES = (64, 56, 48), (128, 28, 24), (256, 14, 12), (512, 7, 6), (256, 28, 24), (512, 14, 12)


def endless(loader):
    """The batches of one epoch after another, as training asks for them."""
    for epoch in itertools.count():
        if hasattr(loader.batch_sampler, 'epoch'):
            loader.batch_sampler.epoch = epoch
        yield from loader


class Ours:
    """main.Training over the cached faces, in the middle of a run: every ramp is open, and the step
    is the network's."""

    def __init__(self, faces, recipe, device):
        self.training = main.Training(recipe, faces.classes, meta.age_cutoffs, device)
        self.period = recipe.min_steps + recipe.max_steps
        self.training.total_steps = 1000 * self.period
        pin = device.type == 'cuda'
        self.batches = endless(training_loader(faces, recipe.batch_size, 0, recipe.workers, pin))

    def step(self):
        images, labels, ages, _ = next(self.batches)
        self.training.step = 700 * self.period
        iterate(self.training, images, labels, ages)


class Conventional:
    """The same network and losses as the field's trainers run them: fp32, contiguous, PIL in the
    training process, one `.item()` per step."""

    def __init__(self, faces, recipe, ctx):
        # not utils.pick_device, which changes how a CPU's memory is handled
        self.device = torch.device('cuda', ctx) if ctx >= 0 else torch.device('cpu')
        self.faces = faces
        model = DALModel(own.make_backbone(recipe), len(faces.classes))
        self.model = model.to(self.device).train()
        self.mapping = dal.CanonicalMapping(self.model.dim, self.model.dim).to(self.device)
        options = dict(momentum=recipe.momentum, weight_decay=recipe.weight_decay)
        self.optimizer = torch.optim.SGD(self.model.parameters(), recipe.lr / 10, **options)
        flip, mean = transforms.RandomHorizontalFlip(), [0.5] * 3
        steps = [flip, transforms.ToTensor(), transforms.Normalize(mean, mean)]
        self.transform = transforms.Compose(steps)
        self.batches = endless(DataLoader(self, recipe.batch_size, shuffle=True, drop_last=True))

    def __len__(self):
        return len(self.faces)

    def __getitem__(self, index):
        image = Image.open(self.faces.path(index)).convert('RGB')
        return self.transform(image), self.faces.labels[index], self.faces.ages[index]

    def step(self):
        images, labels, ages = (part.to(self.device) for part in next(self.batches))
        x_age, x_id = self.model.factorization(self.model.backbone(images))
        loss = self.model.identity.loss(x_id, labels)[0].mean()
        loss = loss + 0.1 * self.model.age.loss(self.model.age(x_age), ages).mean()
        loss = loss + 0.1 * dal.canonical_correlation(*self.mapping(x_id, x_age)).abs()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss.item()


class Apart:
    """A trainer in a process of its own: no setting of this process reaches it, and the peak of its
    memory is its own."""

    def __init__(self, *args):
        self.pool = ProcessPoolExecutor(1, get_context('spawn'), self._begin, args)

    @staticmethod
    def _begin(kind, root, recipe, ctx):
        global trainer
        faces = Faces(root, meta.demo['pat'], meta.demo['pos'])
        if kind is Ours:
            faces.check()
            ctx = utils.pick_device(ctx)
        trainer = kind(faces, recipe, ctx)

    @staticmethod
    def _steps(times):
        for _ in range(times):
            trainer.step()
        if torch.cuda.is_initialized():  # so far a GPU has only queued them
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() / 2**20
        return peak_resident() / 2**20

    def steps(self, times):
        """`times` steps; the peak memory so far in MiB: of the GPU, or of the process."""
        return self.pool.submit(self._steps, times).result()


def random(*shape, dtype, device):
    return torch.randn(*shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)


def convolution(channels, height, width, dtype, device):
    """A 3×3 convolution of about 25 GFLOP (400 on a GPU), and how many operations it takes."""
    wanted, each = 4e11 if device.type == 'cuda' else 2.5e10, 18 * channels**2 * height * width
    batch = max(1, round(wanted / each))
    image = random(batch, channels, height, width, dtype=dtype, device=device)
    weight = random(channels, channels, 3, 3, dtype=dtype, device=device)
    return lambda: F.conv2d(image, weight, padding=1), batch * each


def convolutions(training, batch_size, device):
    """The backbone's convolutions alone, forward and backward: a training step in which everything
    else takes no time."""
    shapes = collections.Counter()
    kinds = {'bf16': torch.bfloat16, 'fp16': torch.float16}
    dtype = kinds.get(training.executor.precision, torch.float32)

    def note(module, inputs):
        how = module.stride, module.padding, (1, 1), module.groups
        shapes.update([(module.weight.shape, how, inputs[0].shape[1:])])

    found = [module for module in training.model.modules() if isinstance(module, torch.nn.Conv2d)]
    hooks = [module.register_forward_pre_hook(note) for module in found]
    with torch.no_grad():
        training.executor.features(two_faces(device))
    for hook in hooks:
        hook.remove()
    works = []
    for (kernel, how, size), times in shapes.items():
        image = random(batch_size, *size, dtype=dtype, device=device)
        weight = random(*kernel, dtype=dtype, device=device).requires_grad_()
        image.requires_grad_(size[0] > 3)  # nobody asks for the gradient of pixels
        gradient = torch.randn_like(F.conv2d(image, weight, None, *how).detach())
        works += times * [functools.partial(_there_and_back, image, weight, how, gradient)]
    return lambda: [work() for work in works]


def _there_and_back(image, weight, how, gradient):
    wanted = [part for part in (image, weight) if part.requires_grad]
    torch.autograd.grad(F.conv2d(image, weight, None, *how), wanted, gradient)


def two_faces(device):
    """Batch norm on 1 × 1 takes no single one."""
    return torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.uint8, device=device)


def operations_of(training, device):
    """Operations (two for a multiplication and an addition) of one face's pass through the backbone
    and both heads."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        x_age, x_id = training.executor.features(two_faces(device))
        training.model.identity(x_id), training.model.age(x_age)
    return counter.get_total_flops() // 2


def repeat(work, times):
    return lambda: [work() for _ in range(times)]


def contestants(faces, sizes, device, ctx):
    """{name: (work, images or operations in one call)}; of each network operations a pass, and
    what its trainers hold at most."""
    works, operations, memory = {}, {}, {}
    for network, size in sizes.items():
        recipe = replace(NETWORKS[network], batch_size=size)
        apart = {'train': Apart(Ours, faces.root, recipe, ctx)}
        apart['conventional'] = theirs = Apart(Conventional, faces.root, recipe, ctx)
        for kind, one in apart.items():
            memory[f'{network} {kind}'] = {'peak': one.steps(3)}
        apart['train'].pool.shutdown()
        steps = 8 if network == 'small' or device.type == 'cuda' else 2
        images, ours = steps * size, Ours(faces, recipe, device)
        works[f'{network} train'] = repeat(ours.step, steps), images
        works[f'{network} conventional'] = functools.partial(theirs.steps, steps), images
        alone = convolutions(ours.training, size, device)
        works[f'{network} convolutions'] = repeat(alone, steps), images
        # each face is embedded with its mirror: half the faces make passes of the same size
        half, n = evaluation_loader(faces, size // 2), 2 * steps
        work = functools.partial(embed, ours.training, half, n, device)
        works[f'{network} embed'] = work, n * (size // 2)
        operations[network] = operations_of(ours.training, device)
    for dtype in (torch.bfloat16, torch.float32):
        for shape in SHAPES:
            name = f'convolution {"×".join(map(str, shape))} {str(dtype).removeprefix("torch.")}'
            works[name] = convolution(*shape, dtype, device)
    return works, operations, memory


def embed(training, loader, batches, device):
    batches, bf16 = itertools.islice(loader, batches), training.executor.precision == 'bf16'
    extract(training.model, batches, device, bf16, ('embedding',))


def one_core(faces):
    """{name: (work, images)} of the data path, without a network."""
    indices, mean = list(range(min(256, len(faces)))), [0.5] * 3
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, mean)])

    def by_pil():
        torch.stack([transform(Image.open(faces.path(i)).convert('RGB')) for i in indices])

    works = {
        'PIL + ToTensor + Normalize': by_pil,
        'cached and normalised': lambda: normalize(faces.__getitems__(indices)[0]),
    }
    return {name: (work, len(indices)) for name, work in works.items()}


def run(args):
    device = utils.pick_device(args.ctx)
    usual = dict.fromkeys(NETWORKS, 256) | {'small': 1024} if device.type == 'cuda' else {}
    sizes = {name: args.batch_size or usual.get(name, 64) for name in args.networks}
    with tempfile.TemporaryDirectory() as folder:
        root, people = os.path.join(folder, 'drawn', 'train'), max(64, max(sizes.values()) // 4)
        drawing.draw_set(Path(root).parent, people=people, val_people=1, images=8)
        faces = Faces(root, meta.demo['pat'], meta.demo['pos'])
        faces.check()
        works, operations, memory = contestants(faces, sizes, device, args.ctx)
        seconds, rates = in_turns(works, device, args.rounds)
        torch.set_num_threads(1)
        path_seconds, path_rates = in_turns(one_core(faces), CPU, 3 * args.rounds)
        for name in sizes:
            works[f'{name} conventional'][0].func.__self__.pool.shutdown()
    by_pil = path_rates['PIL + ToTensor + Normalize']
    report = {
        **machine(device),
        'rounds': args.rounds,
        'batch_sizes': sizes,
        'faces': len(faces),
        'operations_per_pass': operations,
        **summary(rates, operations),
        'data_path_per_core': {
            name: {'images_per_s': spread(values), 'against_pil': ratio(values, by_pil)}
            for name, values in path_rates.items()
        },
        'memory_mib': memory,
        'seconds': seconds | path_seconds,
    }
    others = '' if args.networks == OURS else f'-{"-".join(args.networks).lower()}'
    out = args.out or RESULTS / f'speed-{report["kind"]}{others}.json'
    tables.write(report, out)
    print(markdown(report), out, sep='\n\n')


def summary(rates, operations):
    """images_per_s, ceiling_gflops, and the ratios that are made of both."""
    ceilings, ratios = {}, {}
    for dtype in ('bfloat16', 'float32'):
        names = [n for n in rates if n.startswith('convolution') and n.endswith(dtype)]
        best = max(names, key=lambda name: statistics.median(rates[name]))
        gflops = [rate / 1e9 for rate in rates[best]]
        ceilings[f'convolution {dtype}'] = {'which': best, **spread(gflops)}
        for network, passes in operations.items():
            works = {  # a backward pass counts as two passes; embedding passes face and mirror
                'training': (3 * passes, 'train'),
                'its convolutions alone': (3 * passes, 'convolutions'),
                'embedding': (2 * passes, 'embed'),
            }
            for name, (each, kind) in works.items():
                share = ratio([each * rate for rate in rates[f'{network} {kind}']], rates[best])
                ratios[f'{network}: {name}, of the convolution {dtype} ceiling'] = share
    for network in operations:
        for name in ('the conventional loop', 'its convolutions alone'):
            other = rates[f'{network} {name.split()[1]}']
            ratios[f'{network}: training, of {name}'] = ratio(rates[f'{network} train'], other)
    images = {n: spread(values) for n, values in rates.items() if not n.startswith('convolution')}
    return {'images_per_s': images, 'ceiling_gflops': ceilings, 'ratios': ratios}


def markdown(report):
    """The table of docs/performance.md: median [smallest, largest] over the rounds, for memory one
    number."""
    networks, ceiling = list(report['batch_sizes']), 'of the convolution bfloat16 ceiling'

    def rate(kind):
        values = [report['images_per_s'][f'{network} {kind}'] for network in networks]
        return [cell(value, max(0, 2 - int(math.log10(value['median'])))) for value in values]

    def share(kind):
        return [cell(report['ratios'][f'{network}: {kind}']) for network in networks]

    def peak(name):
        return f'{report["memory_mib"][name]["peak"] * 2**20 / 1e9:.1f}'

    peaks = [f'{peak(f"{n} train")} of {peak(f"{n} conventional")} GB' for n in networks]
    rows = {
        'training, images/s': rate('train'),
        'of the conventional loop': share('training, of the conventional loop'),
        'of the best bf16 convolution, in operations': share(f'training, {ceiling}'),
        'of its own convolutions, all else left out': share('training, of its convolutions alone'),
        'those, of the best bf16 convolution': share(f'its convolutions alone, {ceiling}'),
        'embedding (face and mirror), images/s': rate('embed'),
        'that, of the best bf16 convolution': share(f'embedding, {ceiling}'),
        "peak memory, of the conventional loop's": peaks,
    }
    return tables.markdown(['', *networks], [[name, *row] for name, row in rows.items()])


def arguments():
    parser = tables.parser(__doc__)
    add = parser.add_argument
    add('--ctx', type=int, default=-1, help='below 0 the CPU, else the ctx-th GPU (%(default)s)')
    add('--rounds', type=int, default=5, help='how often everything is measured (%(default)s)')
    add('--networks', nargs='+', default=OURS, choices=NETWORKS, metavar='NAME')
    add('--batch-size', type=int, help='64; on a GPU 256, of the small network 1,024')
    add('--out', help='the JSON file (benchmarks/results/speed-<machine>.json)')
    return parser.parse_args()


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
