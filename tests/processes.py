"""Jobs of several ranks as torchrun starts them, but forked, in milliseconds; they use gloo."""

import multiprocessing
import os
import socket
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch
from conftest import PHASES, command_line, iterate, snapshot
from torch import nn
from tqdm import tqdm

import main
import meta
import utils
from backbones import own
from training import distributed
from training.recipe import small

SETTINGS = ('precision=float32', *PHASES, 'scale=8.')
FACES = 8
# step 0 is the network's, step 1 the adversary's
ALTERNATING = dict(max_steps=1, min_steps=1, memory=0.0, variate='learned')
KINDS = {
    'phases': ALTERNATING,
    'memory': dict(max_steps=0, memory=0.5, variate='label'),
    'solved': dict(max_steps=0, memory=0.5, variate='label', factorization='solved'),
}


def launch(count, work, *args, out, **options):
    """Starts work(*args, **options) on `count` ranks; 0: in one process without a launcher."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]

    def run(rank):
        torch.set_num_threads(1)
        # all that fork share tqdm's lock: a kill −9 of one that holds it would stop every later run
        tqdm.set_lock(threading.RLock())
        with open(f'{out}.{rank}', 'w') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), 'w', buffering=1) for number in (1, 2))
        if count:
            os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(count)}
            os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
            os.environ['TORCHELASTIC_RUN_ID'] = 'test'
        work(*args, **options)

    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=run, args=(rank,)) for rank in range(max(count, 1))]
    for process in processes:
        process.start()
    return processes


def join(processes, seconds=200):
    """Their exit statuses. Processes that hang are killed, and the test fails."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    hanging = [process.kill() for process in processes if process.exitcode is None]
    assert not hanging, f'{len(hanging)} of {len(processes)} processes hang'
    return [process.exitcode for process in processes]


class Tiny(nn.Sequential):
    """A backbone, without batch norm or with one."""

    def __init__(self, norm=nn.Identity):
        first = nn.Conv2d(3, 4, 5, 4), nn.Tanh(), nn.Conv2d(4, 8, 3, 3), norm(8), nn.Tanh()
        super().__init__(*first, nn.Flatten(), nn.Linear(8 * 9 * 7, 16))


def batches(count):
    """Images (FACES, 3, 112, 96), labels and ages (FACES,) of each batch."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        # squares of 16 pixels: single pixels of noise would make faces so alike that |ρ| hung on
        # the last digits of their features
        squares = torch.randint(0, 256, (FACES, 3, 7, 6), dtype=torch.uint8, generator=generator)
        yield (
            squares.repeat_interleave(16, 2).repeat_interleave(16, 3),
            torch.randint(0, 5, (FACES,), generator=generator),
            torch.randint(1, 80, (FACES,), generator=generator).float(),
        )


def steps(folder, kinds, double=False, batch_norm=False):
    """Two steps of each of `kinds`, recipes by name; what a rank then has goes to <name>.<rank>."""
    if double:  # rounding hides nothing then
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double
    own.make_backbone = lambda recipe: Tiny(nn.BatchNorm2d if batch_norm else nn.Identity)
    plain = dict(precision='float32', warmup=0.0, lr=0.01, scale=1.0, clip=1e9, read_age=0.0)
    plain |= dict(split=(0.0, 0.0), game=(0.0, 0.0), lambda_dal=0.1, adversary_lr=0.01)
    with distributed.process_group(-1) as device:
        rank, world_size = distributed.rank(), distributed.world_size()
        for name, kind in kinds.items():
            recipe = replace(small, **plain | kind)
            training = main.Training(recipe, list('abcde'), meta.age_cutoffs, device)
            training.total_steps, found = 2, []
            for batch in batches(2):
                shares = [part.tensor_split(world_size) for part in batch]
                sizes = [len(share) for share in shares[0]]
                iterate(training, *(share[rank] for share in shares), sizes)
                gradients = {name: p.grad.clone() for name, p in training.model.named_parameters()}
                parts = dict(model=snapshot(training.model), mapping=snapshot(training.mapping))
                means = dict(means=training.means.flush(), climbs=training.adversary_means.flush())
                found.append(dict(gradients=gradients) | parts | means)
            torch.save(found, f'{folder}/{name}.{rank}')


def run_steps(folder, count, kinds, double=False, batch_norm=False):
    """What `steps` found on `count` ranks, by kind and rank."""
    folder.mkdir()
    arguments = folder, kinds, double, batch_norm
    statuses = join(launch(count, steps, *arguments, out=folder / 'out'))
    assert statuses == [0] * max(count, 1), (folder / 'out.0').read_text()
    ranks = range(max(count, 1))
    return {name: [torch.load(folder / f'{name}.{rank}') for rank in ranks] for name in kinds}


def assert_near(ours, theirs, tolerance):
    """Equal to `tolerance` times the largest entry of its tensor, or times 1 where that is less."""
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for kind in a:
            assert a[kind].keys() == b[kind].keys() and (a[kind] or kind in ('means', 'climbs'))
            for name in a[kind]:
                x, y = (torch.as_tensor(value[kind][name], dtype=torch.float64) for value in (a, b))
                bound = tolerance * max(1, y.abs().max())
                assert (x - y).abs().max() <= bound, f'step {step}: {kind} {name}'


def run_main(entry, save, *line, settings=(), prepare=lambda: None):
    """What `main.py -1 line…` does on the data of `entry`, after prepare()."""
    meta.here, sys.argv = entry, command_line(save, -1, *line, settings=settings)
    prepare()
    with utils.one_line_errors():
        main.run(main.arguments())


def train(*args, settings=(), **options):
    """run_main, with a backbone that depends on no batch norm."""
    own.make_backbone = lambda recipe: Tiny()
    run_main(*args, settings=[*SETTINGS, *settings], **options)


def job(count, entry, save, *line, **options):
    """A job of `count` ranks that `train`, awaited: exit statuses and the output of each."""
    statuses = join(launch(count, train, entry, save, *line, out=save, **options))
    return statuses, [Path(f'{save}.{rank}').read_text() for rank in range(max(count, 1))]


def state(save):
    return torch.load(save / 'last.pth', weights_only=True)


def distance(a, b):
    """The largest difference between the entries of two state dicts."""
    assert a.keys() == b.keys() and len(a) > 15
    return max((a[key] - b[key]).abs().max().item() for key in a)
