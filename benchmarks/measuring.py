"""Clocks, memory and the machine, and a step of training, for the scripts that measure."""

import os
import platform
import re
import statistics
import time
from pathlib import Path

import tables
import torch
from tqdm import tqdm

import utils
from training.log import run_summary

RESULTS = tables.ROOT / 'benchmarks' / 'results'
CPU = torch.device('cpu')


def clock(work, device=CPU):
    """Seconds that work() takes, the device's queue included."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def in_turns(works, device, rounds):
    """{name: seconds of each round} and {name: rates} of works {name: (function, images or
    operations in one call)}: all in turn, after one round that does not count."""
    taken = {name: [] for name in works}
    for _ in tqdm(range(rounds + 1), 'rounds', disable=None):
        for name, (work, _) in works.items():
            taken[name].append(round(clock(work, device), 5))
    seconds = {name: values[1:] for name, values in taken.items()}
    return seconds, {name: [works[name][1] / s for s in seconds[name]] for name in works}


def spread(values):
    """Median, smallest and largest."""
    return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}


def ratio(above, below):
    """The spread of the ratios of two lists of rates, round by round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def peak_resident():
    """The most bytes that this process has held, on Linux: getrusage's may be the parent's."""
    return 1024 * int(re.search(r'VmHWM:\s*([0-9]+)', Path('/proc/self/status').read_text())[1])


def machine(device=CPU):
    """What the figures depend on, and the command."""
    name = platform.processor() or platform.machine()
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    elif os.path.exists('/proc/cpuinfo'):
        found = re.search('model name.*: (.*)', Path('/proc/cpuinfo').read_text())
        name = f'{os.cpu_count()} cores {found[1] if found else name}'
    kind = re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')
    about = {'machine': name, 'kind': kind, 'cores': os.cpu_count(), **run_summary(device)}
    about['cpu_bf16'] = utils.fastest_precision(CPU) == 'bf16'
    return about | {'command': tables.command()}


def iterate(training, images, labels, ages, sizes=None):
    """One global step, as main.run takes it."""
    images, labels, ages = training.begin_step(images, labels, ages, sizes)
    if training.is_max_step():
        training.max_step(images, ages)
    else:
        training.min_step(images, labels, ages)
    training.step += 1
