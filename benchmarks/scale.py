"""What grows with the data: listing, parsing and checking 1,000 to 1,000,000 faces, and a head for as many identities.

    python3 benchmarks/scale.py              # up to 100,000; --full: up to 1,000,000, which takes ten times the memory
    python3 benchmarks/scale.py --processes 2 --sample-rate .1   # of the head in slices, by processes that talk by gloo

The faces are hard links to one drawn face, in a temporary folder; each size runs in a process of its own, whose memory is counted from
before it began its work. `check` is what main.py does before the first step: with --decode every face is also decoded into the cache.
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
import synthetic
import utils
from benchmarks.speed import machine, peak_resident
from dataset import Faces, training_loader
from model import CosFace
from training import ranks
from training.head import ShardedCosFace, judge

PER_PERSON = 20    # faces of a person
LINKS = 30_000     # of one file: a file system has an end
MIB = 2 ** 20


def resident():
    """Bytes that this process holds now (Linux), else the most that it has held."""
    try:
        return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        return peak_resident()


def link(root, n, folder):
    """n faces below root, hard links to copies of one drawn face."""
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
    """Seconds and memory of what comes before the first step, and of fetching batches; in MiB, above the process before it began."""
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
    return {'faces': len(faces), 'people': len(faces.classes), 'seconds': seconds, 'memory_mib': {
        'listed': listed / MIB, 'arrays that a worker shares': arrays / MIB, 'most': (peak_resident() - before) / MIB}}


def head(identities, batch_size, dim, device, rounds):
    """Seconds of a training step of the head alone, and the most memory in MiB above the process before it."""
    device, most = utils.pick_device(device), peak_resident
    if device.type == 'cuda':
        most = lambda: torch.cuda.max_memory_allocated(device)  # noqa: E731
    before = most()
    module = CosFace(dim, identities).to(device)
    optimizer = torch.optim.SGD(module.parameters(), .02, .9, weight_decay=5e-4, fused=True)
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
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return {'identities': identities, 'seconds': {'median': statistics.median(seconds[1:]), 'min': min(seconds[1:]), 'max': max(seconds[1:])},
            'memory_mib': {'weights': module.weight.nbytes / MIB, 'most': (most() - before) / MIB}}


def slices(identities, batch_size, dim, rounds, sample_rate, rank, processes, port):
    """The same of the head in slices, on the CPU, of the rank-th process with its share of the batch."""
    os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(processes), 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port),
                   'TORCHELASTIC_RUN_ID': 'benchmark'}
    torch.set_num_threads(max(1, os.cpu_count() // processes))
    with ranks.joined(-1):
        ranks.total(torch.zeros(1))
        before, seconds = peak_resident(), []
        module = ShardedCosFace(dim, identities)
        module.sample_rate = sample_rate
        optimizer = torch.optim.SGD(module.parameters(), .02, .9, weight_decay=5e-4, fused=True)
        torch.manual_seed(rank)
        labels = torch.randint(0, identities, (batch_size,)).tensor_split(processes)[rank]
        features = torch.randn(len(labels), dim, requires_grad=True)
        module.sizes = [len(part) for part in torch.arange(batch_size).tensor_split(processes)]
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            optimizer.zero_grad()
            loss, _ = judge(module, module(features, labels), labels)
            (loss / batch_size).backward()
            optimizer.step()
            seconds.append(time.perf_counter() - begin)
    return {'identities': identities, 'processes': processes, 'sample_rate': sample_rate,
            'seconds': {'median': statistics.median(seconds[1:]), 'min': min(seconds[1:]), 'max': max(seconds[1:])},
            'memory_mib': {'weights': module.weight.nbytes / MIB, 'most': (peak_resident() - before) / MIB}}


def together(processes, *arguments):
    """slices() in as many fresh processes; what the slowest and largest of them says."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    with ProcessPoolExecutor(processes, mp_context=get_context('spawn')) as pool:
        rows = [job.result() for job in [pool.submit(slices, *arguments, rank, processes, port) for rank in range(processes)]]
    return max(rows, key=lambda row: row['memory_mib']['most']) | {'seconds': max((row['seconds'] for row in rows), key=lambda each: each['median'])}


def alone(work, *arguments):
    """work(*arguments) in a fresh process: its memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(work, *arguments).result()


def run(args):
    sizes = [1000] if args.quick else [1000, 10_000, 100_000] + [1_000_000] * args.full
    report = {**machine(utils.pick_device(args.ctx)), 'command': ' '.join(['python3', 'benchmarks/scale.py', *sys.argv[1:]]),
              'rounds': args.rounds, 'batch_size': 64, 'dim': 512, 'faces': [], 'heads': [], 'slices': []}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        synthetic.make(Path(folder, 'drawn'), people=1, val_people=1, images=1, val_images=1, progress=False)
        for n in sizes:
            root = Path(folder, f'{n}', 'train')
            link(root, n, folder)
            report['faces'].append(alone(list_faces, str(root), args.decode))
            row = report['faces'][-1]
            print(f'{n:>9,} faces: ' + ', '.join(f'{name} {value:.3g} s' for name, value in row['seconds'].items())
                  + '; ' + ', '.join(f'{name} {value:.0f} MiB' for name, value in row['memory_mib'].items()), flush=True)
    for n in sizes:
        report['heads'].append(alone(head, n, report['batch_size'], report['dim'], args.ctx, args.rounds))
        row = report['heads'][-1]
        say(f'{n:>9,} identities', row)
        if args.processes > 1:
            report['slices'].append(together(args.processes, n, report['batch_size'], report['dim'], args.rounds, args.sample_rate))
            say(f'{n:>9,} in {args.processes} slices', report['slices'][-1])
    out = Path(args.out or Path(__file__).parent / 'results' / f'scale-{report["kind"]}.json')
    out.parent.mkdir(parents=True, exist_ok=True)
    utils.write_json(report, out)
    picture(report, out.with_suffix('.png'))
    print(out, 'and', out.with_suffix('.png').name)


def say(what, row):
    print(f'{what}: {row["seconds"]["median"]:.3g} s a step [{row["seconds"]["min"]:.3g}, {row["seconds"]["max"]:.3g}]; '
          + ', '.join(f'{name} {value:.0f} MiB' for name, value in row['memory_mib'].items()), flush=True)


def picture(report, path):
    figure = Figure(figsize=(12, 3.4), layout='constrained')
    axes = figure.subplots(1, 4)
    faces, heads, parts = report['faces'], report['heads'], report['slices']
    for name in faces[0]['seconds']:
        axes[0].plot([row['faces'] for row in faces], [row['seconds'][name] for row in faces], marker='o', label=name)
    for name in faces[0]['memory_mib']:
        axes[1].plot([row['faces'] for row in faces], [row['memory_mib'][name] for row in faces], marker='o', label=name)
    axes[2].plot([row['identities'] for row in heads], [row['seconds']['median'] for row in heads], marker='o', label='step of the head')
    for name in heads[0]['memory_mib']:
        axes[3].plot([row['identities'] for row in heads], [row['memory_mib'][name] for row in heads], marker='o', label=name)
    if parts:
        title = f'{parts[0]["processes"]} slices, rate {parts[0]["sample_rate"]:g}'
        axes[2].plot([row['identities'] for row in parts], [row['seconds']['median'] for row in parts], marker='s', label=title)
        axes[3].plot([row['identities'] for row in parts], [row['memory_mib']['most'] for row in parts], marker='s', label=f'most, each of {title}')
    for axis, label, unit in zip(axes, ('faces', 'faces', 'identities', 'identities'), ('s', 'MiB', 's', 'MiB')):
        axis.set(xscale='log', yscale='log', xlabel=label, ylabel=unit)
        axis.legend(fontsize='x-small')
        axis.grid(alpha=.3)
    figure.suptitle(f'{report["machine"]}, torch {report["torch"]}', fontsize='small')
    utils.write_whole(path, lambda temporary: figure.savefig(temporary, format='png', dpi=110))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ctx', type=int, default=-1, help="device of the head: below 0 the CPU, else the ctx-th GPU (%(default)s)")
    parser.add_argument('--quick', action='store_true', help='1,000 only')
    parser.add_argument('--full', action='store_true', help='up to 1,000,000')
    parser.add_argument('--decode', action='store_true', help='decode into the cache too')
    parser.add_argument('--processes', type=int, default=1, help='the head also in slices, each in a process on the CPU (%(default)s: not)')
    parser.add_argument('--sample-rate', type=float, default=1., help="of a slice's people in a step (%(default)s)")
    parser.add_argument('--rounds', type=int, default=5, help='training steps of the head (%(default)s)')
    parser.add_argument('--folder', help='where the temporary folder goes')
    parser.add_argument('--out', help='the JSON file, and beside it the picture (benchmarks/results/scale-<machine>.json)')
    return parser.parse_args()


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
