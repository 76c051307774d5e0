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
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import tables
import torch
from PIL import Image
from steps import iterate
from tables import cell, ratio, spread
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from tqdm import tqdm

import dal
import main
import meta
import utils
from backbones import own
from dataset import Faces, evaluation_loader, training_loader
from model import HEIGHT, WIDTH, DALModel, normalize
from recognition.embedding import extract
from synthesis import drawing
from training.log import run_summary
from training.recipe import recipes

NETWORKS = {  # name: the recipe that trains it
    '64-layer': recipes['paper'],
    'small': recipes['small'],
    'MobileFaceNet': replace(recipes['finetune'], backbone='mobilefacenet'),
    'iresnet50': replace(recipes['finetune'], backbone='iresnet50'),
}
OURS = ['64-layer', 'small']  # what is measured unless --networks asks for others
RESULTS = Path(__file__).resolve().parent / 'results'
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
        loss = F.cross_entropy(self.model.identity(x_id, labels), labels)
        loss = loss + 0.1 * self.model.age.loss(self.model.age(x_age), ages).mean()
        loss = loss + 0.1 * dal.canonical_correlation(*self.mapping(x_id, x_age)).abs()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss.item()


class Apart:
    """Conventional in a process of its own: no setting of this process reaches it."""

    def __init__(self, root, *args):
        self.pool = ProcessPoolExecutor(1, get_context('spawn'), self._begin, (root, args))

    @staticmethod
    def _begin(root, args):
        global trainer
        trainer = Conventional(Faces(root, meta.demo['pat'], meta.demo['pos']), *args)

    @staticmethod
    def _steps(times):
        for _ in range(times):
            trainer.step()
        if torch.cuda.is_initialized():  # so far a GPU has only queued them
            torch.cuda.synchronize()

    def steps(self, times):
        self.pool.submit(self._steps, times).result()


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
        training.model(two_faces(device))
    return counter.get_total_flops() // 2


def clock(work, device):
    """Seconds that work() takes, the device's queue included."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def repeat(work, times):
    return lambda: [work() for _ in range(times)]


def contestants(faces, batch_sizes, device, args):
    """{name: (work, images or operations in one call)}, and the Training of each network."""
    works, trained = {}, {}
    for network, batch_size in batch_sizes.items():
        recipe = replace(NETWORKS[network], batch_size=batch_size)
        steps = 8 if network == 'small' or device.type == 'cuda' else 2
        images, ours = steps * batch_size, Ours(faces, recipe, device)
        theirs, trained[network] = Apart(faces.root, recipe, args.ctx), ours.training
        works[f'{network} train'] = repeat(ours.step, steps), images
        works[f'{network} conventional'] = functools.partial(theirs.steps, steps), images
        alone = convolutions(ours.training, batch_size, device)
        works[f'{network} convolutions'] = repeat(alone, steps), images
        # each face is embedded with its mirror: half the faces make passes of the same size
        half, n = evaluation_loader(faces, batch_size // 2), 2 * steps
        work = functools.partial(embed, ours.training, half, n, device)
        works[f'{network} embed'] = work, n * (batch_size // 2)
    for dtype in (torch.bfloat16, torch.float32):
        for shape in SHAPES[:: 2 if args.quick else 1]:
            name = f'convolution {"×".join(map(str, shape))} {str(dtype).removeprefix("torch.")}'
            works[name] = convolution(*shape, dtype, device)
    return works, trained


def embed(training, loader, batches, device):
    batches, bf16 = itertools.islice(loader, batches), training.executor.precision == 'bf16'
    extract(training.model, batches, device, bf16, ('embedding',))


def one_core(faces, uncached):
    """{name: (work, images)} of the data path, without a network."""
    indices, mean = list(range(min(256, len(faces)))), [0.5] * 3
    steps = [transforms.ToTensor(), transforms.Normalize(mean, mean)]
    transform = transforms.Compose(steps)

    def by_pil():
        torch.stack([transform(Image.open(faces.path(i)).convert('RGB')) for i in indices])

    works = {
        'PIL + ToTensor + Normalize': by_pil,
        'decoded': lambda: uncached.__getitems__(indices),
        'decoded and normalised': lambda: normalize(uncached.__getitems__(indices)[0]),
        'cached': lambda: faces.__getitems__(indices),
        'cached and normalised': lambda: normalize(faces.__getitems__(indices)[0]),
    }
    return {name: (work, len(indices)) for name, work in works.items()}


def measure(works, device, rounds):
    """{name: seconds of each round} and {name: rates}, all in turn, after one round that does not
    count."""
    taken = {name: [] for name in works}
    for _ in tqdm(range(rounds + 1), 'rounds', disable=None):
        for name, (work, _) in works.items():
            taken[name].append(round(clock(work, device), 5))
    seconds = {name: values[1:] for name, values in taken.items()}
    return seconds, {name: [works[name][1] / s for s in seconds[name]] for name in works}


def peak_resident():
    """The most bytes that this process has held.

    On Linux, getrusage's figure may be the parent's; /proc/self/status has the process's own.
    """
    if os.path.exists('/proc/self/status'):
        status = Path('/proc/self/status').read_text()
        return 1024 * int(re.search(r'VmHWM:\s*([0-9]+)', status)[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_memory(network, kind, batch_size, root, ctx):
    """Peak memory in MiB of three steps: of the GPU, or of this process, which must be a fresh
    one."""
    faces = Faces(root, meta.demo['pat'], meta.demo['pos'])
    recipe = replace(NETWORKS[network], batch_size=batch_size)
    faces.check()
    make = Ours if kind == 'train' else Conventional
    trainer = make(faces, recipe, utils.pick_device(ctx) if kind == 'train' else ctx)
    for _ in range(3):
        trainer.step()
    return (torch.cuda.max_memory_allocated(ctx) if ctx >= 0 else peak_resident()) / 2**20


def machine(device):
    """What the figures depend on."""
    name = platform.processor() or platform.machine()
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    elif os.path.exists('/proc/cpuinfo'):
        found = re.search('model name.*: (.*)', Path('/proc/cpuinfo').read_text())
        name = f'{os.cpu_count()} cores {found[1] if found else name}'
    kind = re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')
    about = {'machine': name, 'kind': kind, 'cores': os.cpu_count(), **run_summary(device)}
    return about | {'cpu_bf16': utils.fastest_precision(torch.device('cpu')) == 'bf16'}


def run(args):
    device = utils.pick_device(args.ctx)
    gpu, rounds = device.type == 'cuda', 2 if args.quick else args.rounds
    sizes = {name: 256 if gpu else NETWORKS[name].batch_size for name in args.networks}
    sizes = {name: args.batch_size or size for name, size in sizes.items()}
    if 'small' in sizes:
        sizes['small'] = args.small_batch_size or (1024 if gpu else 64)
    with tempfile.TemporaryDirectory() as folder:
        root, people = os.path.join(folder, 'drawn', 'train'), max(64, max(sizes.values()) // 4)
        drawing.make(Path(root).parent, people=people, val_people=1, images=8, progress=False)
        faces, uncached = (Faces(root, meta.demo['pat'], meta.demo['pos']) for _ in range(2))
        faces.check()
        memory = {}
        for network, kind in itertools.product(sizes, ('train', 'conventional')):
            # a process of its own, since a peak never falls again
            with ProcessPoolExecutor(1, get_context('spawn')) as pool:
                what = network, kind, sizes[network], root, args.ctx
                memory[f'{network} {kind}'] = {'peak': pool.submit(peak_memory, *what).result()}
        works, trained = contestants(faces, sizes, device, args)
        seconds, rates = measure(works, device, rounds)
        operations = {name: operations_of(trained[name], device) for name in sizes}
        torch.set_num_threads(1)
        paths = one_core(faces, uncached)
        path_seconds, path_rates = measure(paths, torch.device('cpu'), 3 * rounds)
        for name in sizes:
            works[f'{name} conventional'][0].func.__self__.pool.shutdown()
    by_pil = path_rates['PIL + ToTensor + Normalize']
    report = {
        **machine(device),
        'command': tables.command(),
        'rounds': rounds,
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
                'training': (3 * passes, rates[f'{network} train']),
                'its convolutions alone': (3 * passes, rates[f'{network} convolutions']),
                'embedding': (2 * passes, rates[f'{network} embed']),
            }
            for name, (each, images) in works.items():
                share = ratio([each * rate for rate in images], rates[best])
                ratios[f'{network}: {name}, of the convolution {dtype} ceiling'] = share
    for network in operations:
        ours = rates[f'{network} train']
        pairs = {'the conventional loop': 'conventional', 'its convolutions alone': 'convolutions'}
        for name, kind in pairs.items():
            ratios[f'{network}: training, of {name}'] = ratio(ours, rates[f'{network} {kind}'])
    images = {n: spread(values) for n, values in rates.items() if not n.startswith('convolution')}
    return {'images_per_s': images, 'ceiling_gflops': ceilings, 'ratios': ratios}


def markdown(report, what='networks'):
    """A table of docs/performance.md: median [smallest, largest] over the rounds, for memory one
    number. `what` may be 'data': the data path on one core."""
    if what == 'data':
        paths = report['data_path_per_core']
        rows = [
            [name, cell(row['images_per_s'], 0), cell(row['against_pil'], 1)]
            for name, row in paths.items()
        ]
        return tables.markdown(['', 'images/s', 'of PIL + ToTensor + Normalize'], rows)
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
    add('--quick', action='store_true', help='two rounds, to see that it runs')
    add('--rounds', type=int, default=5, help='how often everything is measured (%(default)s)')
    add('--networks', nargs='+', default=OURS, choices=NETWORKS, metavar='NAME')
    add('--batch-size', type=int, help='of the 64-layer network (as its recipe; 256 on a GPU)')
    add('--small-batch-size', type=int, help='of the small one (64; 1024 on a GPU)')
    add('--out', help='the JSON file (benchmarks/results/speed-<machine>.json)')
    return parser.parse_args()


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
