"""An identity head for 1,000 to 1,000,000 people: seconds a step, and memory.

    python3 benchmarks/scale.py              # up to 100,000
    python3 benchmarks/scale.py --full       # up to 1,000,000, which takes ten times the memory
    python3 benchmarks/scale.py --processes 2       # also the sharded head, by gloo

Each size runs in a process of its own, whose memory is counted from before it began its work.
"""

import os
import socket
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import tables
import torch
import torch._dynamo  # the first optimizer would load it: 150 MB
from measuring import RESULTS, clock, machine, peak_resident, spread

import utils
from model import CosFace
from training.distributed import BatchLayout, all_reduce, process_group
from training.sharded import sharded

MIB = 2**20


def head(identities, batch_size, dim, rounds):
    """Seconds of a training step of the head alone, and the peak memory in MiB that it adds."""
    utils.keep_freed_memory()
    before, module = peak_resident(), CosFace(dim, identities)
    features = torch.randn(batch_size, dim, requires_grad=True)
    labels = torch.randint(0, identities, (batch_size,))
    return measured(module, lambda: module.loss(features, labels)[0].mean(), rounds, before)


def measured(module, loss, rounds, before):
    optimizer = torch.optim.SGD(module.parameters(), 0.02, 0.9, weight_decay=5e-4, fused=True)

    def step():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    seconds = [clock(step) for _ in range(rounds + 1)][1:]
    memory = {'weights': module.weight.nbytes / MIB, 'most': (peak_resident() - before) / MIB}
    return {'seconds': spread(seconds), 'memory_mib': memory}


def slices(identities, batch_size, dim, rounds, rank, processes, port):
    """As `head`, of the sharded head on the CPU: one process, with its share of the batch."""
    os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(processes)}
    os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    os.environ['TORCHELASTIC_RUN_ID'] = 'benchmark'
    torch.set_num_threads(max(1, os.cpu_count() // processes))
    with process_group(-1):
        all_reduce(torch.zeros(1))
        before, layout = peak_resident(), BatchLayout()
        module = sharded(CosFace)(dim, identities, layout=layout)
        torch.manual_seed(rank)
        labels = torch.randint(0, identities, (batch_size,)).tensor_split(processes)[rank]
        features = torch.randn(len(labels), dim, requires_grad=True)
        layout.sizes = [len(part) for part in torch.arange(batch_size).tensor_split(processes)]

        def loss():
            return layout.mean(module.loss(features, labels)[0])[0]

        return measured(module, loss, rounds, before)


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


def run(args):
    batch_size, dim = 64, 512
    report = {**machine(), 'rounds': args.rounds}
    report |= {'batch_size': batch_size, 'dim': dim, 'heads': [], 'slices': []}
    for n in [1000, 10_000, 100_000] + [1_000_000] * args.full:
        with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
            row = pool.submit(head, n, batch_size, dim, args.rounds).result()
        report['heads'].append({'identities': n, **row})
        if args.processes > 1:
            row = together(args.processes, n, batch_size, dim, args.rounds)
            report['slices'].append({'identities': n, 'processes': args.processes, **row})
    out = args.out or RESULTS / f'scale-{report["kind"]}.json'
    tables.write(report, out)
    print(markdown(report), f'\n{out}')


def size(mib):
    return f'{mib * MIB / 1e6:.0f} MB' if mib < 500 else f'{mib * MIB / 1e9:.2g} GB'


def markdown(report):
    """The table of docs/performance.md."""
    rows = []
    for pair in zip(report['heads'], report['slices'], strict=True):
        row = [f'{pair[0]["identities"]:,}']
        for one in pair:
            row += [f'{one["seconds"]["median"]:#.2g}', size(one['memory_mib']['most'])]
        rows.append(row)
    titles = ['people', 'one process: s', 'memory', 'two slices: s', 'memory of each']
    return tables.markdown(titles, rows)


def arguments():
    parser = tables.parser(__doc__)
    add = parser.add_argument
    add('--full', action='store_true', help='up to 1,000,000')
    add('--processes', type=int, default=1, help='the sharded head too, by this many on the CPU')
    add('--rounds', type=int, default=5, help='training steps of the head (%(default)s)')
    add('--out', help='the JSON file (benchmarks/results/scale-<machine>.json)')
    return parser.parse_args()


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
