"""Trainings in forked processes, which start in milliseconds, and a signal to them at any moment wanted."""
import contextlib
import itertools
import multiprocessing
import os
import sys
import threading
from pathlib import Path

import torch
from conftest import TINY
from tqdm import tqdm

import main
import meta
import utils
from training import session
from training.log import Log, read_log

PHASES = ('max_steps=2', 'min_steps=3', 'memory=0.', 'variate=learned', 'split=(0.,0.)', 'game=(0.,0.)', 'read_age=0.')
MOMENTS = {  # where a signal strikes: owner, function, after it or before
    'in a step': (torch.nn.utils, 'clip_grad_norm_', True), 'between steps': (main.Training, 'iterate', True),
    'half of a file': (torch, 'save', False), 'before fsync': (os, 'fsync', False), 'before the new name': (os, 'replace', False),
    'after the new name': (os, 'replace', True), 'after a report': (Log, 'report', True), 'before validation': (session, 'validate', False),
}


def start(entry, save, *line, settings=(), moment=None, prepare=lambda: None, out=None):
    """`main.py -1 …` in a process of its own. `moment` is (name, nth, signal): that signal at the nth call. Its output goes to `out`, by default `save`.out."""
    def work():
        torch.set_num_threads(1)
        with open(out or f'{save}.out', 'w') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), 'w', buffering=1) for number in (1, 2))
        tqdm.set_lock(threading.RLock())  # its own lock is shared by all that fork: a kill −9 within it would stop every later run
        meta.here = entry
        sys.argv = ['main.py', '-1', *map(str, line), '--dataset', 'here', '--save', str(save), '--recipe', 'small', '--set', *TINY, *settings]
        if moment:
            strike(*moment)
        prepare()
        with utils.one_line_errors():
            main.run(main.arguments())

    process = multiprocessing.get_context('fork').Process(target=work)
    process.start()
    return process


def finish(*args, **options):
    """start(), awaited: exit status and the lines of its output."""
    process = start(*args, **options)
    process.join(120)
    assert process.exitcode is not None, 'it hangs'
    return process.exitcode, Path(options.get('out') or f'{args[1]}.out').read_text(errors='replace').splitlines()


def strike(name, nth, number):
    owner, attribute, after = MOMENTS[name]
    original, calls = getattr(owner, attribute), itertools.count(1)

    def struck(*args, **options):
        now = next(calls) == nth
        if now and not after:
            if attribute == 'save':
                Path(args[1]).write_bytes(b'half' * 1000)
            os.kill(os.getpid(), number)
        result = original(*args, **options)
        if now and after:
            os.kill(os.getpid(), number)
        return result
    setattr(owner, attribute, struck)


def same(a, b):
    """Whether two states are equal bit for bit, whatever is nested in them."""
    if torch.is_tensor(a):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(ours, theirs):
    """Weights, adversary, both optimizers, means and the log's rows are those of the other folder; nothing half-written is left."""
    for file in sorted(theirs.glob('*.pth')):
        a, b = (torch.load(folder / file.name, weights_only=True) for folder in (ours, theirs))
        assert a.keys() == b.keys()
        for key in a:
            assert same(a[key], b[key]), f'{file.name}: {key}'
    rows = [[{key: value for key, value in row.items() if key != 'images_per_s'} for row in read_log(folder / 'log.jsonl')]
            for folder in (ours, theirs)]
    assert rows[0] == rows[1]
    assert not list(ours.glob('.*.tmp'))


@contextlib.contextmanager
def ended(process):
    """Kills what is left of the process at the end of a test that failed."""
    try:
        yield process
    finally:
        process.kill()
        process.join()
