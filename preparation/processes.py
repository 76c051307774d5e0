"""One kind of work on many items, over several processes."""
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process

import torch

from utils import UserError


def each(work: Callable, items: Sequence, tool: object, make: Callable[[], object],
         workers: int) -> Iterator:
    """Yields work(tool, item) of each item, in order.

    Of several processes, each uses a tool of its own, make(); `work` and `make` must be picklable.
    SIGINT and SIGTERM are for this process to act on: the others ignore them, and end with it.
    Raises UserError where one of them ends by itself.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        yield from (work(tool, item) for item in items)
        return
    pool = ProcessPoolExecutor(workers, get_context('spawn'), _start, (make,))
    try:
        chunk = max(1, min(16, len(items) // (4 * workers)))
        yield from pool.map(_Work(work), items, chunksize=chunk)
    except BrokenProcessPool:
        raise UserError('a process ended by itself, perhaps out of memory: fewer --workers; '
                        'the same command goes on from here') from None
    finally:
        pool.shutdown(cancel_futures=True)


class _Work:
    def __init__(self, work):
        self.work = work

    def __call__(self, item):
        return self.work(tool_here, item)


def _start(make):
    global tool_here
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they reach the whole group
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # the processes share the cores
    tool_here = make()


def _end_with_parent():
    parent_process().join()
    os._exit(1)
