"""Jobs of several processes as torchrun starts them, but forked, which takes milliseconds; they talk by gloo."""
import multiprocessing
import os
import socket
import sys
import threading
import time

import torch
from tqdm import tqdm


def launch(count, work, *args, out=None, **options):
    """work(*args, **options) in `count` processes of one job (0: in one, without a launcher), started. Each one's output goes to `out`.<rank>."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]

    def run(rank):
        torch.set_num_threads(1)
        tqdm.set_lock(threading.RLock())  # as in faults/kills.py: theirs, and of no process that is killed
        if out:
            with open(f'{out}.{rank}', 'w') as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(number), 'w', buffering=1) for number in (1, 2))
        if count:
            os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(count), 'MASTER_ADDR': '127.0.0.1',
                           'MASTER_PORT': str(port), 'TORCHELASTIC_RUN_ID': 'test'}
        work(*args, **options)

    processes = [multiprocessing.get_context('fork').Process(target=run, args=(rank,)) for rank in range(max(count, 1))]
    for process in processes:
        process.start()
    return processes


def join(processes, seconds=200):
    """Their exit statuses. Ends those that hang, which fails."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    hanging = [process.kill() for process in processes if process.exitcode is None]
    assert not hanging, f'{len(hanging)} of {len(processes)} processes hang'
    return [process.exitcode for process in processes]
