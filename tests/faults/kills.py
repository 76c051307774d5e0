"""Trainings in forked processes, which start in milliseconds, and a signal at any moment."""

import contextlib
import itertools
import os
from pathlib import Path

import torch
from conftest import log_rows, same
from processes import join, launch, run_main

from training import posthoc, run
from training.log import Log, Reports

MOMENTS = {  # where a signal strikes: owner, function, whether after it
    'in a step': (torch.nn.utils, 'clip_grads_with_norm_', True),
    'between steps': (Reports, 'step', False),
    'half of a file': (torch, 'save', False),
    'before fsync': (os, 'fsync', False),
    'before the new name': (os, 'replace', False),
    'after the new name': (os, 'replace', True),
    'after a report': (Log, 'report', True),
    'before validation': (run, 'validate', False),
    'before best.pth': (posthoc, 'fit_all', False),
}


def start(entry, save, *line, moment=None, out=None, **options):
    """Starts `main.py -1 line…`; the signal of `moment` strikes at the nth call of its place."""

    def work():
        if moment:
            strike(*moment)
        run_main(entry, save, *line, **options)

    (process,) = launch(0, work, out=out or save)
    return process


def finish(*args, **options):
    """start(), awaited: its exit status and the lines of its output."""
    (status,) = join([start(*args, **options)])
    out = Path(f'{options.get("out") or args[1]}.0')
    return status, out.read_text(errors='replace').splitlines()


def strike(name, nth, number):
    """From now on the signal `number` strikes this process at the nth call of MOMENTS[name]."""
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


def assert_same_run(ours, theirs):
    """All states and the log's rows are those of the other folder; nothing half-written is left."""
    for file in sorted(theirs.glob('*.pth')):
        a, b = (torch.load(folder / file.name, weights_only=True) for folder in (ours, theirs))
        assert a.keys() == b.keys()
        for recipe in (a['recipe'], b['recipe']):
            del recipe['cache'], recipe['workers']  # how faces are read changes nothing
        for key in a:
            assert same(a[key], b[key]), f'{file.name}: {key}'
    assert log_rows(ours) == log_rows(theirs)
    assert not list(ours.glob('.*.tmp'))


def ends_as(reference, entry, save, *line, **options):
    """The command line comes to its end, and its run is that of the folder `reference`."""
    status, output = finish(entry, save, *line, **options)
    assert status == 0, output
    assert_same_run(save, reference)


@contextlib.contextmanager
def ended(process):
    """At its end the process is killed if it still runs, as where the test failed."""
    try:
        yield process
    finally:
        process.kill()
        process.join()
