"""What each part of the fast path gives: main.py's training loop with one part taken away, or one
added, side by side.

    python3 benchmarks/parts.py              # on the CPU, a quarter of an hour on two cores
    python3 benchmarks/parts.py --ctx 0      # on a GPU

Each variant trains in a process of its own; all take turns, round by round. A ratio is the
images/s of the variant over those of the loop as it is, in the same round. The 64-layer network
has batches of 16 here, so that all variants fit into memory together.
"""
import argparse
import functools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from speed import NETWORKS, Apart, Ours, machine, measure, middle, ratio  # noqa: E402

import synthetic  # noqa: E402
import utils  # noqa: E402
from training.recipe import recipes  # noqa: E402

BATCH_SIZES = {'64-layer': 16, 'small': 64}
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
    if name != 'returning':
        utils.pick_device(ctx)
    if name != 'decoding':
        faces.check()
    ours = Ours(faces, replace(recipe, bf16=recipe.bf16 and name != 'float32'), device)
    training, batches = ours.training, ours.batches
    if name == 'contiguous':
        training.model.to(memory_format=torch.contiguous_format)
        ours.batches = ((images.contiguous(), *rest) for images, *rest in batches)
    elif name == 'unfused':
        for group in training.optimizer.param_groups:
            group['fused'] = False
    elif name == 'waiting':
        step = training.min_step

        def min_step(*args):
            losses, climb = step(*args)
            losses['loss'].item()
            return losses, climb
        training.min_step = min_step
    elif name == 'compiled':
        training.model.backbone.compile()
    return ours


def run(args):
    device, report = utils.pick_device(args.ctx), {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, 'drawn', 'train')
        synthetic.make(root.parent, people=64, val_people=1, images=8, progress=False)
        for network, batch_size in BATCH_SIZES.items():
            recipe = replace(recipes[NETWORKS[network]], batch_size=batch_size)
            steps = 4 if network == '64-layer' else 16
            trainers = {name: Apart(variant, str(root), name, recipe, args.ctx)
                        for name in ('', *VARIANTS)}
            works = {name: (functools.partial(trainer.step, 'min', steps), steps * batch_size)
                     for name, trainer in trainers.items()}
            seconds = measure(works, torch.device('cpu'), args.rounds)
            for trainer in trainers.values():
                trainer.pool.shutdown()
            rates = {name: [works[name][1] / s for s in taken] for name, taken in seconds.items()}
            report[network] = {'batch_size': batch_size, 'images_per_s': middle(rates['']),
                               'ratios': {what: ratio(rates[name], rates[''])
                                          for name, what in VARIANTS.items()}}
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
    for what in VARIANTS.values():
        cells = ['{median:.2f} [{min:.2f}, {max:.2f}]'.format(**part['ratios'][what])
                 for part in networks.values()]
        lines.append(f'| {what} | {" | ".join(cells)} |')
    return '\n'.join(lines)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ctx', type=int, default=-1,
                        help='device: below 0 the CPU, else the ctx-th GPU (%(default)s)')
    parser.add_argument('--rounds', type=int, default=5,
                        help='how often everything is measured (%(default)s)')
    parser.add_argument('--out', help='the JSON file (benchmarks/results/parts-<machine>.json)')
    return parser.parse_args()


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
