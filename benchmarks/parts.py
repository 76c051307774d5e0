"""What each part of the fast path gives: main.py's training loop with one part taken away, or one
added, side by side.

    python3 benchmarks/parts.py              # on the CPU, a quarter of an hour on two cores
    python3 benchmarks/parts.py --ctx 0      # on a GPU

Each variant trains in a process of its own; all take turns, round by round. A ratio is the
images/s of the variant over those of the loop as it is, in the same round. The 64-layer network
has batches of 16 on a CPU, so that all variants fit into memory together. On a GPU they are large
enough that arithmetic limits it, not the launches.
"""

import argparse
import functools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from speed import NETWORKS, Apart, Ours, machine, measure  # noqa: E402
from speed_report import middle, ratio  # noqa: E402

import utils  # noqa: E402
from synthesis import drawing  # noqa: E402

BATCH_SIZES = {'cpu': {'64-layer': 16, 'small': 64}, 'cuda': {'64-layer': 256, 'small': 2048}}
VARIANTS = {
    'again': 'nothing: the same loop once more',
    'float32': 'without bf16',
    'contiguous': 'without channels_last',
    'decoding': 'without the file of decoded faces',
    'returning': 'freed memory returned to the system',
    'unfused': 'without the fused optimizer',
    'waiting': 'with a wait for the loss at every step',
    'compiled': 'with module.compile()',
}


def variant(faces, name, recipe, ctx):
    """The trainer Ours with the change that `name` says; '' changes nothing."""
    device = torch.device('cuda', ctx) if ctx >= 0 else torch.device('cpu')
    if name != 'returning' or ctx >= 0:
        utils.pick_device(ctx)
    if name != 'decoding':
        faces.check()
    ours = Ours(
        faces,
        replace(
            recipe,
            compile=name == 'compiled',
            **{'precision': 'float32'} if name == 'float32' else {},
        ),
        device,
    )
    training, batches = ours.training, ours.batches
    if name == 'contiguous':
        training.model.to(memory_format=torch.contiguous_format)
        # moved first: a contiguous copy in main memory would not be pinned
        ours.batches = (
            (images.to(device, non_blocking=True).contiguous(), *rest) for images, *rest in batches
        )
    elif name == 'unfused':
        for group in training.optimizer.param_groups:
            group['fused'] = False
            group['foreach'] = ctx >= 0  # what PyTorch does by default
    elif name == 'waiting':
        step = training.min_step

        def min_step(*args):
            losses, climb = step(*args)
            losses['loss'].item()
            return losses, climb

        training.min_step = min_step
    return ours


def run(args):
    device, report = utils.pick_device(args.ctx), {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, 'drawn', 'train')
        sizes = dict(BATCH_SIZES[device.type])
        sizes |= {'64-layer': args.batch_size or sizes['64-layer']}
        people = max(64, 2 * max(sizes.values()) // 8)
        drawing.make(root.parent, people=people, val_people=1, images=8, progress=False)
        # freed memory is the C library's: a GPU's is PyTorch's own
        variants = [name for name in VARIANTS if name != 'returning' or device.type == 'cpu']
        for network, batch_size in sizes.items():
            recipe = replace(NETWORKS[network], batch_size=batch_size)
            steps = 4 if network == '64-layer' else 16
            trainers = {
                name: Apart(variant, str(root), name, recipe, args.ctx) for name in ('', *variants)
            }
            works = {
                name: (functools.partial(trainer.step, 'min', steps), steps * batch_size)
                for name, trainer in trainers.items()
            }
            seconds = measure(works, torch.device('cpu'), args.rounds)
            for trainer in trainers.values():
                trainer.pool.shutdown()
            rates = {name: [works[name][1] / s for s in taken] for name, taken in seconds.items()}
            report[network] = {
                'batch_size': batch_size,
                'images_per_s': middle(rates['']),
                'ratios': {VARIANTS[name]: ratio(rates[name], rates['']) for name in variants},
            }
    command = ' '.join(['python3', 'benchmarks/parts.py', *sys.argv[1:]])
    about = {**machine(device), 'command': command, 'rounds': args.rounds, 'networks': report}
    out = Path(args.out or Path(__file__).parent / 'results' / f'parts-{about["kind"]}.json')
    utils.write_json(about, out)
    print(markdown(about), f'\n{out}')


def markdown(report):
    """The table of docs/performance.md: a row per variant, a column per network."""
    networks = report['networks']
    heads = [f'{name}, batch {part["batch_size"]}' for name, part in networks.items()]
    lines = [f'| | {" | ".join(heads)} |', '|---|' + '---|' * len(networks)]
    for what in next(iter(networks.values()))['ratios']:
        cells = [
            '{median:.2f} [{min:.2f}, {max:.2f}]'.format(**part['ratios'][what])
            for part in networks.values()
        ]
        lines.append(f'| {what} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        '--ctx',
        type=int,
        default=-1,
        help='device: below 0 the CPU, else the ctx-th GPU (%(default)s)',
    )
    parser.add_argument(
        '--rounds', type=int, default=5, help='how often everything is measured (%(default)s)'
    )
    parser.add_argument('--batch-size', type=int, help='of the 64-layer network (16; 256 on a GPU)')
    parser.add_argument('--out', help='the JSON file (benchmarks/results/parts-<machine>.json)')
    return parser.parse_args()


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
