"""How far a long work is: a bar on a terminal, else (nohup, a job's log) a line a minute."""

import sys
from collections.abc import Iterable

from tqdm import tqdm

SECONDS = 60  # between two lines if there is no terminal
LINE = '{desc}: {n_fmt} of {total_fmt}{unit}, {rate_fmt}, {remaining} left'


class _Lines:
    """A file for tqdm that writes each state as a line of its own."""

    def __init__(self, file):
        self.file = file

    def write(self, text):
        if text := text.strip('\r\n '):
            self.file.write(f'{text}\n')

    def flush(self):
        self.file.flush()


def progress(
    iterable: Iterable | None = None, desc: str = '', total: int | None = None, **options
) -> tqdm:
    """A tqdm over `iterable`, or to be updated by hand, that vanishes when it is done; where stderr
    is no terminal, a line a minute, none in the first. `options` are tqdm's: unit (with a space
    before it), initial …"""
    options = {'leave': False} | options
    if not sys.stderr.isatty():
        options |= dict.fromkeys(('delay', 'mininterval', 'maxinterval'), SECONDS)
        options |= {'leave': False, 'file': _Lines(sys.stderr), 'bar_format': LINE, 'miniters': 1}
    return tqdm(iterable, desc, total, **options)
