"""Embedding in float32: the product beside the network as it is and beside onnxruntime, in turns.

    pip install -r requirements-export.txt
    python3 benchmarks/embedding.py [--rounds 5] [--threads 1 2] [--out FILE.json]

The weights are random: they don't change the rate. onnxruntime gets the same network, exported, on
as many threads. To see what a processor without AVX-512 would do with PyTorch's part alone:
ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2.
"""

import os
import time
from pathlib import Path

import tables
import torch
from tables import cell, ratio, spread

import backbones
import utils
from model import Backbone, DALModel
from recognition import inference
from training.log import run_summary
from training.recipe import paper

NETWORKS = ['mobilefacenet', 'sface', 'iresnet50', '64-layer']
IMAGES = {'mobilefacenet': 64, 'sface': 64}  # a core and call; of the others 8


def build(name):
    if name == '64-layer':
        return DALModel(Backbone(paper.layers, paper.widths, paper.dim), 2).eval()
    return DALModel(backbones.build(name), 2).eval()


@torch.inference_mode()
def rates(name, rounds):
    """{way: images/s of each round}, the ways in turns, after a first call of each."""
    model = build(name)
    count = IMAGES.get(name, 8) * torch.get_num_threads()
    faces = torch.randint(0, 256, (count, 3, 112, model.width), dtype=torch.uint8)
    ways = {
        'product': inference.ready(model, 'cpu'),
        'as it is': lambda images: model.features(images.to(memory_format=torch.channels_last)),
        'onnxruntime': inference.Session(model).features,
    }
    inference.MANY = 0  # the product chooses at once
    for _ in range(2):
        ways['product'](faces)
    found = {way: [] for way in ways}
    for round_ in range(rounds + 1):
        for way, work in ways.items():
            began = time.perf_counter()
            work(faces)
            if round_:
                found[way].append(count / (time.perf_counter() - began))
    return found


def run(args):
    utils.keep_freed_memory()
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for name in args.networks:
            found = rates(name, args.rounds)
            row = {'network': name, 'threads': threads, 'product': spread(found['product'])}
            for way in ('as it is', 'onnxruntime'):
                row[f'of {way}'] = ratio(found['product'], found[way])
            rows.append(row)
            print(row, flush=True)
    about = {'command': tables.command(), **run_summary(torch.device('cpu'))}
    about['instructions'] = torch.backends.cpu.get_cpu_capability()
    report = about | {'rows': rows}
    print(markdown(report))
    if args.out:
        tables.write(report, args.out)


def markdown(report):
    titles = ['network', 'threads', 'images/s', 'of the network as it is', 'of onnxruntime']
    rows = [
        [row['network'], row['threads'], cell(row['product'], 0), *(cell(row[key]) for key in KEYS)]
        for row in report['rows']
    ]
    return tables.markdown(titles, rows)


KEYS = 'of as it is', 'of onnxruntime'


def arguments():
    parser = tables.parser(__doc__)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, nargs='+', default=[1, os.cpu_count()])
    parser.add_argument('--networks', nargs='+', default=NETWORKS, choices=NETWORKS)
    parser.add_argument('--out', type=Path, metavar='JSON')
    return parser.parse_args()


if __name__ == '__main__':
    run(arguments())
