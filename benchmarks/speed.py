"""How fast training, embedding and the data path are, and what the machine could do at best: one table, measured side by side.

    python3 benchmarks/speed.py              # the CPU
    python3 benchmarks/speed.py --ctx 0      # the first GPU

Everything takes turns, round after round, so that whatever else the machine does hits all alike; a figure is the median over the
rounds, a ratio the median of the rounds' ratios, each with its smallest and largest value. Training is the real loop, main.Training
over the real loader on drawn faces; beside it the loop that most face repositories have, written out here, on the same network.
"""
import argparse
import collections
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
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms
from tqdm import tqdm

import dal
import main
import meta
import synthetic
import utils
from dataset import Faces, evaluation_loader, training_loader
from evaluation.extraction import extract
from model import normalize
from storage.images import HEIGHT, WIDTH
from training.log import run_summary

NETWORKS = {'64-layer': 'paper', 'small': 'small'}  # and the recipes that they are trained with


def endless(loader):
    """The batches of one epoch after another, as main.fit asks for them."""
    for epoch in itertools.count():
        if hasattr(loader.batch_sampler, 'epoch'):
            loader.batch_sampler.epoch = epoch
        yield from loader


class Ours:
    """main.Training over the cached faces, in the middle of a run: every ramp is open, and `phase` says whose turn it is."""

    def __init__(self, faces, recipe, device):
        self.training = main.Training(recipe, faces.classes, meta.age_cutoffs, device)
        self.period = recipe['min_steps'] + recipe['max_steps']
        self.training.total_steps = 1000 * self.period
        self.batches = endless(training_loader(faces, recipe['batch_size'], 0, recipe['workers'], device.type == 'cuda'))
        self.waited = 0.

    def step(self, phase):
        begin = time.perf_counter()
        images, labels, ages, _ = next(self.batches)
        self.waited += time.perf_counter() - begin
        self.training.step = 700 * self.period + (self.training.recipe['min_steps'] if phase == 'max' else 0)
        self.training.iterate(images, labels, ages)


class Conventional:
    """The same network and losses as the field's trainers run them: fp32, contiguous, PIL in the training process, a number a step."""

    def __init__(self, faces, recipe, ctx):
        device = torch.device('cuda', ctx) if ctx >= 0 else torch.device('cpu')  # by utils.pick_device a CPU's memory would be as for ours
        self.faces, self.device = faces, device
        self.model = main.DALModel(main.make_backbone(recipe), len(faces.classes)).to(device).train()
        self.mapping = dal.CanonicalMapping(self.model.dim, self.model.dim).to(device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), recipe['lr'] / 10, recipe['momentum'], weight_decay=recipe['weight_decay'])
        self.transform = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([.5] * 3, [.5] * 3)])
        self.batches = endless(DataLoader(self, recipe['batch_size'], shuffle=True, drop_last=True))
        self.waited = 0.

    def __len__(self):
        return len(self.faces)

    def __getitem__(self, index):
        return self.transform(Image.open(self.faces.path(index)).convert('RGB')), self.faces.labels[index], self.faces.ages[index]

    def step(self, phase):
        begin = time.perf_counter()
        images, labels, ages = next(self.batches)
        self.waited += time.perf_counter() - begin
        images, labels, ages = images.to(self.device), labels.to(self.device), ages.to(self.device)
        x_age, x_id = self.model.factorization(self.model.backbone(images))
        loss = F.cross_entropy(self.model.identity(x_id, labels), labels)
        loss = loss + .1 * F.cross_entropy(self.model.age(x_age), dal.age_groups(ages, meta.age_cutoffs))
        loss = loss + .1 * dal.canonical_correlation(*self.mapping(x_id, x_age)).abs()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.loss = loss.item()


class Apart:
    """The trainer that make(faces, …) returns, in a process of its own, for which nothing is set that this one sets for ours."""

    def __init__(self, make, root, *args):
        self.waited = 0.
        self.pool = ProcessPoolExecutor(1, get_context('spawn'), self._begin, (make, root, args))

    @staticmethod
    def _begin(make, root, args):
        global trainer
        trainer = make(Faces(root, meta.demo['pat'], meta.demo['pos']), *args)

    @staticmethod
    def _step(phase, times):
        trainer.waited = 0.
        for _ in range(times):
            trainer.step(phase)
        if torch.cuda.is_initialized():  # a GPU has queued them only
            torch.cuda.synchronize()
        return trainer.waited

    def step(self, phase, times=1):
        self.waited += self.pool.submit(self._step, phase, times).result()


def convolution(channels, height, width, dtype, device):
    """A 3×3 convolution of about 25 GFLOP (400 on a GPU) and how many operations it takes."""
    batch = max(1, round((4e11 if device.type == 'cuda' else 2.5e10) / (18 * channels ** 2 * height * width)))
    image = torch.randn(batch, channels, height, width, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    return lambda: F.conv2d(image, weight, padding=1), 18 * batch * channels ** 2 * height * width


def product(size, dtype, device):
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b, 2 * size ** 3


def convolutions(training, batch_size, device):
    """The backbone's convolutions alone, forward and backward: a training step in which all else took nothing."""
    shapes, dtype = collections.Counter(), torch.bfloat16 if training.bf16 else torch.float32
    hooks = [module.register_forward_pre_hook(lambda module, inputs: shapes.update([(module.out_channels, module.stride, *inputs[0].shape[1:])]))
             for module in training.model.modules() if isinstance(module, torch.nn.Conv2d)]
    training.look(torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8, device=device), torch.zeros(1, device=device))
    for hook in hooks:
        hook.remove()
    works = []
    for (outputs, stride, inputs, *size), times in shapes.items():
        image, weight = (torch.randn(*shape, device=device, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_(wanted)
                         for shape, wanted in (((batch_size, inputs, *size), inputs > 3), ((outputs, inputs, 3, 3), True)))
        result = F.conv2d(image, weight, stride=stride, padding=1).detach()
        works += times * [lambda image=image, weight=weight, stride=stride, gradient=torch.randn_like(result): torch.autograd.grad(
            F.conv2d(image, weight, stride=stride, padding=1), [part for part in (image, weight) if part.requires_grad], gradient)]
    return lambda: [work() for work in works]


def clock(work, device):
    """Seconds that work() takes, the device's queue included."""
    if device.type != 'cuda':
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3


def repeat(work, times):
    return lambda: [work() for _ in range(times)]


def contestants(faces, batch_sizes, device, args):
    """{name: (work, images or operations in one call)}, and the trainers by name."""
    works, trainers = {}, {}
    for network, recipe in NETWORKS.items():
        recipe = main.recipes[recipe] | {'batch_size': batch_sizes[network]}
        steps = 2 if network == '64-layer' and device.type == 'cpu' else 8
        for name, trainer in ((f'{network} train', Ours(faces, recipe, device)), (f'{network} conventional', Apart(Conventional, faces.root, recipe, args.ctx))):
            works[name] = repeat(lambda trainer=trainer: trainer.step('min'), steps), steps * recipe['batch_size']
            trainers[name] = trainer
        ours = trainers[f'{network} train']
        if recipe['max_steps']:
            works[f'{network} max step'] = repeat(lambda ours=ours: ours.step('max'), steps), steps * recipe['batch_size']
        works[f'{network} convolutions'] = repeat(convolutions(ours.training, recipe['batch_size'], device), steps), steps * recipe['batch_size']
        half = evaluation_loader(faces, recipe['batch_size'] // 2)  # each face is embedded with its mirror: passes of the same size
        works[f'{network} embed'] = (lambda ours=ours, half=half, n=2 * steps: extract(
            ours.training.model, itertools.islice(half, n), device, ours.training.bf16, ('embedding',))), 2 * steps * (recipe['batch_size'] // 2)
    for dtype in (torch.bfloat16, torch.float32):
        for shape in ((64, 56, 48), (128, 28, 24), (256, 14, 12), (512, 7, 6), (256, 28, 24), (512, 14, 12))[::2 if args.quick else 1]:
            works[f'convolution {"×".join(map(str, shape))} {str(dtype)[6:]}'] = convolution(*shape, dtype, device)
        for size in (8192, 4096) if device.type == 'cuda' else (3072, 1024):
            works[f'product {size} {str(dtype)[6:]}'] = product(size, dtype, device)
    return works, trainers


def one_core(faces, uncached):
    """{name: (work, images)} of the data path, without a network."""
    indices = list(range(min(256, len(faces))))
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([.5] * 3, [.5] * 3)])
    return {'PIL + ToTensor + Normalize': (lambda: torch.stack([transform(Image.open(faces.path(i)).convert('RGB')) for i in indices]), len(indices)),
            'decoded': (lambda: uncached.__getitems__(indices), len(indices)),
            'decoded and normalised': (lambda: normalize(uncached.__getitems__(indices)[0]), len(indices)),
            'cached': (lambda: faces.__getitems__(indices), len(indices)),
            'cached and normalised': (lambda: normalize(faces.__getitems__(indices)[0]), len(indices))}


def measure(works, device, rounds):
    """{name: seconds per round}, all in turn after one round that does not count."""
    taken = {name: [] for name in works}
    for _ in tqdm(range(rounds + 1), 'rounds', disable=None):
        for name, (work, _) in works.items():
            taken[name].append(clock(work, device))
    return {name: seconds[1:] for name, seconds in taken.items()}


def middle(values):
    """Median, smallest and largest."""
    return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}


def ratio(above, below):
    """Of two lists of rates, round by round."""
    return middle([a / b for a, b in zip(above, below, strict=True)])


def peak_resident():
    """The most bytes that this process has held. Linux carries getrusage's figure over from the parent, its own status file doesn't."""
    if os.path.exists('/proc/self/status'):
        return 1024 * int(re.search(r'VmHWM:\s*([0-9]+)', Path('/proc/self/status').read_text())[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def peak_memory(network, kind, batch_size, root, ctx):
    """The most memory in MiB that three steps take: of the GPU, or of this process, which must be a fresh one; and before them."""
    faces, recipe = Faces(root, meta.demo['pat'], meta.demo['pos']), main.recipes[NETWORKS[network]] | {'batch_size': batch_size}
    faces.check()
    trainer = Ours(faces, recipe, utils.pick_device(ctx)) if kind == 'train' else Conventional(faces, recipe, ctx)
    most = (lambda: torch.cuda.max_memory_allocated(ctx)) if ctx >= 0 else peak_resident
    before = most()
    for _ in range(3):
        trainer.step('min')
    return {'peak': most() / 2**20, 'before the first step': before / 2**20}


def machine(device):
    """What the figures depend on."""
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else platform.processor() or platform.machine()
    if device.type == 'cpu' and os.path.exists('/proc/cpuinfo'):
        name = re.search('model name.*: (.*)', Path('/proc/cpuinfo').read_text() + '\nmodel name: ' + name)[1]
    kind = name if device.type == 'cuda' else f'{os.cpu_count()} cores {name}'
    return {'machine': kind, 'kind': re.sub('[^a-z0-9]+', '-', kind.lower()).strip('-'), 'cores': os.cpu_count(), **run_summary(device),
            'cpu_bf16': utils.gains_from_bf16(torch.device('cpu')), 'THP_MEM_ALLOC_ENABLE': os.environ.get('THP_MEM_ALLOC_ENABLE')}


def run(args):
    device = utils.pick_device(args.ctx)
    batch_sizes = {'64-layer': args.batch_size or (256 if device.type == 'cuda' else main.paper['batch_size']),
                   'small': args.small_batch_size or (1024 if device.type == 'cuda' else 64)}
    rounds = 2 if args.quick else args.rounds
    with tempfile.TemporaryDirectory() as folder:
        root = os.path.join(folder, 'drawn', 'train')
        images = 8
        synthetic.make(Path(root).parent, people=max(64, 2 * max(batch_sizes.values()) // images), val_people=1, images=images, progress=False)
        faces, uncached = (Faces(root, meta.demo['pat'], meta.demo['pos']) for _ in range(2))
        faces.check()
        works, trainers = contestants(faces, batch_sizes, device, args)
        waited = {name: [] for name in trainers}
        for name, trainer in trainers.items():
            works[name] = (lambda trainer=trainer, work=works[name][0], waits=waited[name]: waits.append(_waited(trainer, work))), works[name][1]
        seconds = measure(works, device, rounds)
        rates = {name: [works[name][1] / s for s in seconds[name]] for name in works}
        waiting = {name: [w / s for w, s in zip(waited[name][1:], seconds[name], strict=True)] for name in trainers}
        operations = {name: count(trainers[f'{name} train'].training, device) for name in NETWORKS}

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        paths = one_core(faces, uncached)
        path_seconds = measure(paths, torch.device('cpu'), 3 * rounds)
        path_rates = {name: [paths[name][1] / s for s in path_seconds[name]] for name in paths}
        torch.set_num_threads(threads)

        memory = {}
        del works, trainers
        for network, kind in itertools.product(NETWORKS, ('train', 'conventional')):
            with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:  # a process's peak never falls again
                memory[f'{network} {kind}'] = pool.submit(peak_memory, network, kind, batch_sizes[network], root, args.ctx).result()
    conventional = path_rates['PIL + ToTensor + Normalize']
    report = {**machine(device), 'command': ' '.join(['python3', 'benchmarks/speed.py', *sys.argv[1:]]), 'rounds': rounds, 'batch_sizes': batch_sizes,
              'faces': len(faces), 'operations_per_pass': operations, **summary(rates, operations),
              'data_path_per_core': {name: {'images_per_s': middle(values), 'against_pil': ratio(values, conventional)}
                                     for name, values in path_rates.items()},
              'waiting_for_data': {name: middle(shares) for name, shares in waiting.items()}, 'memory_mib': memory,
              'seconds': {name: [round(s, 5) for s in values] for name, values in (seconds | path_seconds).items()}}
    out = Path(args.out or Path(__file__).parent / 'results' / f'speed-{report["kind"]}.json')
    out.parent.mkdir(parents=True, exist_ok=True)
    utils.write_json(report, out)
    picture(report, out.with_suffix('.png'))
    print(table(report), markdown(report), f'{out} and {out.with_suffix(".png").name}', sep='\n\n')


def _waited(trainer, work):
    """Seconds of work() in which the trainer waited for its loader."""
    trainer.waited = 0.
    work()
    return trainer.waited


def count(training, device):
    """Operations (two for a multiplication and an addition) of one face's pass through the backbone and both heads."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        training.model(torch.zeros(1, 3, HEIGHT, WIDTH, dtype=torch.uint8, device=device))
    return counter.get_total_flops()


def summary(rates, operations):
    """images_per_s, ceiling_gflops, and what is made of both: the ratios that the targets are about."""
    ceilings = {}
    for kind, dtype in itertools.product(('convolution', 'product'), ('bfloat16', 'float32')):
        names = [name for name in rates if name.startswith(kind) and name.endswith(dtype)]
        best = max(names, key=lambda name: statistics.median(rates[name]))
        ceilings[f'{kind} {dtype}'] = {'which': best, 'rates': rates[best]}
    images = {name: values for name, values in rates.items() if name.split()[0] in NETWORKS}
    ratios = {}
    for network, passes in operations.items():
        ours = images[f'{network} train']
        ratios[f'{network}: training, of the conventional loop'] = ratio(ours, images[f'{network} conventional'])
        ratios[f'{network}: training, of its convolutions alone'] = ratio(ours, images[f'{network} convolutions'])
        embed = [2 * rate for rate in images[f'{network} embed']]  # the face and its mirror
        for kind, ceiling in ceilings.items():
            work = [3 * passes * rate for rate in ours]  # a backward pass is two more
            ratios[f'{network}: training, of the {kind} ceiling'] = ratio(work, ceiling['rates'])
            ratios[f'{network}: its convolutions alone, of the {kind} ceiling'] = ratio(
                [3 * passes * rate for rate in images[f'{network} convolutions']], ceiling['rates'])
            ratios[f'{network}: embedding, of the {kind} ceiling'] = ratio([passes * rate for rate in embed], ceiling['rates'])
        if f'{network} max step' in images:
            ratios[f'{network}: max step, of embedding, in passes'] = ratio(images[f'{network} max step'], embed)
    return {'images_per_s': {name: middle(values) for name, values in images.items()},
            'ceiling_gflops': {kind: {'which': ceiling['which'], **middle([rate / 1e9 for rate in ceiling['rates']])}
                               for kind, ceiling in ceilings.items()}, 'ratios': ratios}


def table(report):
    lines = [f'{report["machine"]}, {report["threads"]} threads, torch {report["torch"]}; batches of '
             + ', '.join(f'{size} ({name})' for name, size in report['batch_sizes'].items())
             + f'; median of {report["rounds"]} rounds [smallest, largest]']

    def block(title, rows):
        lines.extend(['', title, *(f'  {name:60} {value["median"]:>10.4g} [{value["min"]:.4g}, {value["max"]:.4g}]{extra}' for name, value, extra in rows)])

    block('images/s', [(name, value, f'  waits for data {report["waiting_for_data"][name]["median"]:.1%}' if name in report['waiting_for_data'] else '')
                       for name, value in report['images_per_s'].items()])
    block('ceiling, GFLOP/s', [(f'best {kind}', value, f'  {value["which"]}') for kind, value in report['ceiling_gflops'].items()])
    block('ratios', [(name, value, '') for name, value in report['ratios'].items()])
    block('data path, images/s on one core', [(name, value['images_per_s'], f'  {value["against_pil"]["median"]:.1f}×')
                                              for name, value in report['data_path_per_core'].items()])
    lines += ['', 'peak memory, MiB', *(f'  {name:60} {value["peak"]:>10.0f}' for name, value in report['memory_mib'].items())]
    return '\n'.join(lines)


def markdown(report):
    """The README's table: median [smallest, largest] over the rounds; of waiting and of memory, one number."""
    networks, rates, ratios = list(report['batch_sizes']), report['images_per_s'], report['ratios']

    def cell(value, digits):
        return f'{value["median"]:.{digits}f} [{value["min"]:.{digits}f}, {value["max"]:.{digits}f}]'

    def row(title, cells):
        return f'| {title} | {" | ".join(cells)} |'

    def rate(title, what):  # three digits
        return row(title, [cell(rates[f'{network} {what}'], max(0, 2 - int(math.log10(rates[f'{network} {what}']['median'])))) for network in networks])

    def share(title, what):
        return row(title, [cell(ratios[f'{network}: {what}'], 2) if f'{network}: {what}' in ratios else '' for network in networks])
    return '\n'.join([
        row('', networks), '|---' * (1 + len(networks)) + '|',
        rate('training, images/s', 'train'),
        share('of the conventional loop', 'training, of the conventional loop'),
        share('of the best bf16 convolution, in operations', 'training, of the convolution bfloat16 ceiling'),
        share('of its own convolutions, all else left out', 'training, of its convolutions alone'),
        share('those, of the best bf16 convolution', 'its convolutions alone, of the convolution bfloat16 ceiling'),
        rate('embedding (face and mirror), images/s', 'embed'),
        share('of the best bf16 convolution', 'embedding, of the convolution bfloat16 ceiling'),
        share('a step of the adversary, of embedding, in passes', 'max step, of embedding, in passes'),
        row('waiting for data', [f'{100 * report["waiting_for_data"][f"{network} train"]["median"]:.1f} %' for network in networks]),
        row("peak memory, of the conventional loop's", [' of '.join(f'{report["memory_mib"][f"{network} {kind}"]["peak"] * 2**20 / 1e9:.1f}'
                                                                    for kind in ('train', 'conventional')) + ' GB' for network in networks])])


def picture(report, path):
    figure = Figure(figsize=(12, 3.6), layout='constrained')
    left, centre, right = figure.subplots(1, 3)
    networks = list(report['batch_sizes'])
    for shift, kind, label in ((-.2, 'train', 'this repository'), (.2, 'conventional', 'the conventional loop')):
        rates = [report['images_per_s'][f'{network} {kind}'] for network in networks]
        errors = [[value['median'] - value['min'] for value in rates], [value['max'] - value['median'] for value in rates]]
        left.bar([index + shift for index in range(len(networks))], [value['median'] for value in rates], .4, yerr=errors, label=label)
    left.set(title='training', ylabel='images/s', yscale='log', xticks=range(len(networks)), xticklabels=networks)
    left.set_ylim(top=4 * left.get_ylim()[1])
    left.legend(fontsize='small', loc='upper left')
    kinds = list(report['ceiling_gflops'])
    trained = [f'{network} {what}' for network in networks for what in ('train', 'convolutions')]
    centre.barh(kinds + trained, [report['ceiling_gflops'][kind]['median'] for kind in kinds]
                + [3e-9 * report['operations_per_pass'][name.split()[0]] * report['images_per_s'][name]['median'] for name in trained],
                color=['C7'] * len(kinds) + ['C0', 'C9'] * len(networks))
    centre.set(title='training and the machine\'s ceilings', xlabel='GFLOP/s')
    paths = report['data_path_per_core']
    right.barh(list(paths), [value['images_per_s']['median'] for value in paths.values()])
    right.set(title='data path, one core', xlabel='images/s', xscale='log')
    for axis in (centre, right):
        axis.invert_yaxis()
    figure.suptitle(f'{report["machine"]}, torch {report["torch"]}', fontsize='small')
    utils.write_whole(path, lambda temporary: figure.savefig(temporary, format='png', dpi=110))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ctx', type=int, default=-1, help='device: below 0 the CPU, else the ctx-th GPU (%(default)s)')
    parser.add_argument('--quick', action='store_true', help='two rounds, to see that it runs')
    parser.add_argument('--rounds', type=int, default=5, help='how often everything is measured (%(default)s)')
    parser.add_argument('--batch-size', type=int, help='of the 64-layer network (as its recipe; 256 on a GPU)')
    parser.add_argument('--small-batch-size', type=int, help='of the small one (64; 1024 on a GPU)')
    parser.add_argument('--out', help='the JSON file, and beside it the picture (benchmarks/results/speed-<machine>.json)')
    return parser.parse_args()


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
