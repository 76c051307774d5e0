"""Embedding in float32: the product beside the network as it is and beside onnxruntime, in turns.

    pip install -r requirements-export.txt
    python3 benchmarks/embedding.py [--rounds 5] [--threads 1 2] [--out FILE.json]

The weights are random: they don't change the rate. onnxruntime gets the same network, exported, on
as many threads. To see what a processor without AVX-512 would do with PyTorch's part alone:
ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2.
"""

import functools
import os
from pathlib import Path

import tables
import torch
from measuring import in_turns, machine, ratio, spread
from tables import cell

import backbones
import utils
from backbones import own
from model import DALModel
from recognition import inference
from training.recipe import paper

NETWORKS = {'mobilefacenet': 64, 'sface': 64, 'iresnet50': 8, '64-layer': 8}  # images a core


@torch.inference_mode()
def rates(name, rounds):
    """{way: images/s of each round}, the ways in turns, after a first call of each."""
    ours = name == '64-layer'
    backbone = own.make_backbone(paper) if ours else backbones.build(name)
    model = DALModel(backbone, 2).eval()
    count = NETWORKS[name] * torch.get_num_threads()
    faces = torch.randint(0, 256, (count, 3, 112, model.width), dtype=torch.uint8)
    ways = {
        'product': inference.ready(model, 'cpu'),
        'as it is': lambda images: model.features(images.to(memory_format=torch.channels_last)),
        'onnxruntime': inference.Session(model).features,
    }
    inference.MANY = 0  # the product chooses at once
    for _ in range(2):
        ways['product'](faces)
    works = {way: (functools.partial(work, faces), count) for way, work in ways.items()}
    return in_turns(works, faces.device, rounds)[1]


def run(args):
    utils.keep_freed_memory()
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for name in NETWORKS:
            found = rates(name, args.rounds)
            row = {'network': name, 'threads': threads, 'product': spread(found['product'])}
            for way in ('as it is', 'onnxruntime'):
                row[f'of {way}'] = ratio(found['product'], found[way])
            rows.append(row)
            print(row, flush=True)
    about = machine() | {'instructions': torch.backends.cpu.get_cpu_capability()}
    report = about | {'rows': rows}
    print(markdown(report))
    tables.write(report, args.out)


def markdown(report):
    titles = ['network', 'threads', 'images/s', 'of the network as it is', 'of onnxruntime']
    rows = []
    for row in report['rows']:
        of = (cell(row[f'of {way}']) for way in ('as it is', 'onnxruntime'))
        rows.append([row['network'], row['threads'], cell(row['product'], 0), *of])
    return tables.markdown(titles, rows)


def arguments():
    parser = tables.parser(__doc__)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, nargs='+', default=[1, os.cpu_count()])
    parser.add_argument('--out', type=Path, metavar='JSON')
    return parser.parse_args()


if __name__ == '__main__':
    run(arguments())
