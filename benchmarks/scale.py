"""What grows with the data: listing, parsing and checking 1,000 to 1,000,000 faces, and an identity
head for as many people.

    python3 benchmarks/scale.py              # up to 100,000
    python3 benchmarks/scale.py --full       # up to 1,000,000, which takes ten times the memory
    python3 benchmarks/scale.py --processes 2 --sample-rate .1   # also the sharded head, by gloo

The faces are hard links to one drawn face, in a temporary folder. Each size runs in a process of
its own, whose memory is counted from before it began its work. The check is what main.py does
before the first step; with --decode every face is also decoded into the cache.
"""

import argparse
import itertools
import os
import socket
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
from torch.nn import functional as F

import meta
import utils
from benchmarks.speed import machine, peak_resident
from dataset import Faces, training_loader
from model import CosFace
from synthesis import drawing
from training.distributed import BatchLayout, all_reduce, process_group
from training.sharded import sharded

PER_PERSON = 20  # faces of a person
LINKS = 30_000  # to one file: file systems have a limit
MIB = 2**20


def resident():
    """Bytes that this process holds now (on Linux), otherwise the most that it has held."""
    try:
        return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        return peak_resident()


def link(root, n, folder):
    """n faces below root: hard links to copies of one drawn face."""
    face = next(Path(folder).glob('drawn/train/*/*.jpg')).read_bytes()
    for number in range(n):
        if number % LINKS == 0:
            source = Path(folder, f'{n}-{number}.jpg')
            source.write_bytes(face)
        person = Path(root, f'p{number // PER_PERSON:07d}')
        if number % PER_PERSON == 0:
            person.mkdir(parents=True)
        os.link(source, person / f'{number % PER_PERSON:03d}_{20 + number % 50}.jpg')


def list_faces(root, decode):
    """Seconds of what comes before the first step and of fetching batches, and the memory in MiB
    that they add to the process."""
    before, seconds = resident(), {}

    def clock(name, work):
        begin = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - begin
        return result

    faces = clock('list and parse', lambda: Faces(root, meta.demo['pat'], meta.demo['pos']))
    listed = resident() - before
    clock('sizes and times, for the cache', lambda: faces.fingerprint)
    if decode:
        clock('decode into the cache', faces.check)
    batches = itertools.islice(training_loader(faces, 64, 0, 0, False), 10)
    clock('first ten batches of 64', lambda: list(batches))
    arrays = sum(array.nbytes for array in (faces.places, faces.labels, faces.ages))
    memory = {
        'listed': listed / MIB,
        'arrays that a worker shares': arrays / MIB,
        'most': (peak_resident() - before) / MIB,
    }
    return {
        'faces': len(faces),
        'people': len(faces.classes),
        'seconds': seconds,
        'memory_mib': memory,
    }


def sgd(module):
    return torch.optim.SGD(module.parameters(), 0.02, 0.9, weight_decay=5e-4, fused=True)


def spread(seconds):
    return {'median': statistics.median(seconds), 'min': min(seconds), 'max': max(seconds)}


def head(identities, batch_size, dim, device, rounds):
    """Seconds of a training step of the head alone, and the peak memory in MiB that it adds."""
    device, most = utils.pick_device(device), peak_resident
    if device.type == 'cuda':
        most = lambda: torch.cuda.max_memory_allocated(device)  # noqa: E731
    before = most()
    module = CosFace(dim, identities).to(device)
    optimizer = sgd(module)
    features = torch.randn(batch_size, dim, device=device, requires_grad=True)
    labels = torch.randint(0, identities, (batch_size,), device=device)
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(module(features, labels), labels)
        loss.backward()
        optimizer.step()
        if device.type == 'cuda':
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    return {
        'identities': identities,
        'seconds': spread(seconds[1:]),
        'memory_mib': {'weights': module.weight.nbytes / MIB, 'most': (most() - before) / MIB},
    }


def slices(identities, batch_size, dim, rounds, sample_rate, rank, processes, port):
    """As `head`, of the sharded head on the CPU: one process, with its share of the batch."""
    os.environ |= {
        'RANK': str(rank),
        'LOCAL_RANK': str(rank),
        'WORLD_SIZE': str(processes),
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port),
        'TORCHELASTIC_RUN_ID': 'benchmark',
    }
    torch.set_num_threads(max(1, os.cpu_count() // processes))
    with process_group(-1):
        all_reduce(torch.zeros(1))
        before, seconds, batch = peak_resident(), [], BatchLayout()
        module = sharded(CosFace)(dim, identities, batch=batch, sample_rate=sample_rate)
        optimizer = sgd(module)
        torch.manual_seed(rank)
        labels = torch.randint(0, identities, (batch_size,)).tensor_split(processes)[rank]
        features = torch.randn(len(labels), dim, requires_grad=True)
        batch.sizes = [len(part) for part in torch.arange(batch_size).tensor_split(processes)]
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            optimizer.zero_grad()
            batch.mean(module.loss(features, labels)[0]).backward()
            optimizer.step()
            seconds.append(time.perf_counter() - begin)
    return {
        'identities': identities,
        'processes': processes,
        'sample_rate': sample_rate,
        'seconds': spread(seconds[1:]),
        'memory_mib': {
            'weights': module.weight.nbytes / MIB,
            'most': (peak_resident() - before) / MIB,
        },
    }


def together(processes, *arguments):
    """`slices` in as many fresh processes: seconds of the slowest, memory of the largest."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    with ProcessPoolExecutor(processes, mp_context=get_context('spawn')) as pool:
        jobs = [pool.submit(slices, *arguments, rank, processes, port) for rank in range(processes)]
        rows = [job.result() for job in jobs]
    largest = max(rows, key=lambda row: row['memory_mib']['most'])
    return largest | {
        'seconds': max((row['seconds'] for row in rows), key=lambda each: each['median'])
    }


def alone(work, *arguments):
    """work(*arguments) in a fresh process: its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(work, *arguments).result()


def run(args):
    sizes = [1000] if args.quick else [1000, 10_000, 100_000] + [1_000_000] * args.full
    device = utils.pick_device(args.ctx)
    # a GPU's step on 64 faces would be the time of its launches
    batch_size = 1024 if device.type == 'cuda' else 64
    report = {
        **machine(device),
        'command': ' '.join(['python3', 'benchmarks/scale.py', *sys.argv[1:]]),
        'rounds': args.rounds,
        'batch_size': batch_size,
        'dim': 512,
        'faces': [],
        'heads': [],
        'slices': [],
    }
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        drawing.make(
            Path(folder, 'drawn'), people=1, val_people=1, images=1, val_images=1, progress=False
        )
        for n in sizes:
            root = Path(folder, f'{n}', 'train')
            link(root, n, folder)
            report['faces'].append(alone(list_faces, str(root), args.decode))
            row = report['faces'][-1]
            seconds = [f'{name} {value:.3g} s' for name, value in row['seconds'].items()]
            print(f'{n:>9,} faces: {", ".join(seconds)}; {memory(row)}', flush=True)
    for n in sizes:
        problem = n, report['batch_size'], report['dim']
        report['heads'].append(alone(head, *problem, args.ctx, args.rounds))
        say(f'{n:>9,} identities', report['heads'][-1])
        if args.processes > 1:
            report['slices'].append(
                together(args.processes, *problem, args.rounds, args.sample_rate)
            )
            say(f'{n:>9,} in {args.processes} slices', report['slices'][-1])
    out = Path(args.out or Path(__file__).parent / 'results' / f'scale-{report["kind"]}.json')
    out.parent.mkdir(parents=True, exist_ok=True)
    utils.write_json(report, out)
    picture(report, out.with_suffix('.png'))
    print(out, 'and', out.with_suffix('.png').name)


def memory(row):
    return ', '.join(f'{name} {value:.0f} MiB' for name, value in row['memory_mib'].items())


def say(what, row):
    seconds = '{median:.3g} s a step [{min:.3g}, {max:.3g}]'.format(**row['seconds'])
    print(f'{what}: {seconds}; {memory(row)}', flush=True)


def picture(report, path):
    figure = Figure(figsize=(12, 3.4), layout='constrained')
    axes = figure.subplots(1, 4)
    faces, heads, parts = report['faces'], report['heads'], report['slices']
    counts, people = [row['faces'] for row in faces], [row['identities'] for row in heads]

    def line(axis, x, y, label, marker='o'):
        axis.plot(x, y, marker=marker, label=label)

    for name in faces[0]['seconds']:
        line(axes[0], counts, [row['seconds'][name] for row in faces], name)
    for name in faces[0]['memory_mib']:
        line(axes[1], counts, [row['memory_mib'][name] for row in faces], name)
    line(axes[2], people, [row['seconds']['median'] for row in heads], 'step of the head')
    for name in heads[0]['memory_mib']:
        line(axes[3], people, [row['memory_mib'][name] for row in heads], name)
    if parts:
        title = f'{parts[0]["processes"]} slices, rate {parts[0]["sample_rate"]:g}'
        people = [row['identities'] for row in parts]
        line(axes[2], people, [row['seconds']['median'] for row in parts], title, 's')
        line(
            axes[3],
            people,
            [row['memory_mib']['most'] for row in parts],
            f'most, each of {title}',
            's',
        )
    labels = ('faces', 's'), ('faces', 'MiB'), ('identities', 's'), ('identities', 'MiB')
    for axis, (label, unit) in zip(axes, labels, strict=True):
        axis.set(xscale='log', yscale='log', xlabel=label, ylabel=unit)
        axis.legend(fontsize='x-small')
        axis.grid(alpha=0.3)
    figure.suptitle(f'{report["machine"]}, torch {report["torch"]}', fontsize='small')
    utils.write_whole(path, lambda temporary: figure.savefig(temporary, format='png', dpi=110))


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        '--ctx',
        type=int,
        default=-1,
        help='device of the head: below 0 the CPU, else the ctx-th GPU (%(default)s)',
    )
    add('--quick', action='store_true', help='1,000 only')
    add('--full', action='store_true', help='up to 1,000,000')
    add('--decode', action='store_true', help='decode into the cache too')
    add(
        '--processes',
        type=int,
        default=1,
        help='the sharded head too, by this many processes on the CPU (%(default)s: without)',
    )
    add(
        '--sample-rate',
        type=float,
        default=1.0,
        help='the part of the other people that a step compares with (%(default)s)',
    )
    add('--rounds', type=int, default=5, help='training steps of the head (%(default)s)')
    add('--folder', help='where the temporary folder goes')
    add(
        '--out',
        help='the JSON file, and beside it the picture (benchmarks/results/scale-<machine>.json)',
    )
    return parser.parse_args()


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
