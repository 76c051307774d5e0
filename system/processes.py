"""One kind of work on many items, over several processes."""

import contextlib
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process

import torch

from utils import UserError, keep_freed_memory


def each(
    work: Callable, items: Sequence, tool: object, make: Callable[[], object], workers: int
) -> Generator:
    """Yields work(tool, item) of each item, in order; each of several processes uses a tool of its
    own, make(). SIGINT and SIGTERM are for this process to act on: the others ignore them, and end
    with it. Close it to stop before the end. Raises UserError if a process ends by itself."""
    workers = min(workers, len(items))
    if workers <= 1:
        yield from (work(tool, item) for item in items)
        return
    size = max(1, min(16, len(items) // (4 * workers)))
    pool = ProcessPoolExecutor(workers, get_context('spawn'), _start, (make,))
    waiting: deque = deque()
    try:
        for start in range(0, len(items), size):
            with _signals_held():
                waiting.append(pool.submit(_work, work, items[start : start + size]))
            if len(waiting) == 4 * workers:  # enough to do for all, little to wait for at a stop
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        remedy = 'fewer --workers; the same command goes on from here'
        raise UserError(f'a process ended by itself, perhaps out of memory: {remedy}') from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _signals_held():
    """Within it SIGINT and SIGTERM wait; a process that is started here never gets them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(work, items):
    return [work(tool_here, item) for item in items]


def _start(make):
    global tool_here
    for number in (signal.SIGINT, signal.SIGTERM):  # which reach the whole group
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)  # the processes share the cores
    keep_freed_memory()
    tool_here = make()


def _end_with_parent():
    parent_process().join()
    os._exit(1)
