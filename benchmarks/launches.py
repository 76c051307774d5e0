"""How many operations a training step asks of its device: on a GPU each is a launch, about 5 µs of
the host's time whatever the batch.

    python3 benchmarks/launches.py              # counted on the CPU, as a GPU would be asked

Below a batch of 128 faces it is they that limit a fast GPU, not its arithmetic.
"""

import argparse
import collections
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from steps import iterate
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode

import main
import meta
from training.recipe import recipes

NO_LAUNCH = {
    'empty',
    'empty_like',
    'new_empty',
    'empty_strided',
    'new_empty_strided',
    'lift_fresh',
    'device',
    'resize_',
    'set_',
    '_local_scalar_dense',
}


class Launches(TorchDispatchMode):
    """Counts operations by name, but for views and memory, for which nothing is launched."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if not operation.is_view and name not in NO_LAUNCH:
            self.counts[name] += 1
        return operation(*args, **kwargs or {})

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def launches(recipe, phase='min', device=None, people=100) -> Launches:
    """Those of one step of the recipe's, in the middle of a run, after one that is not counted. On
    a CPU, which has no lists of tensors in one launch, they are counted as if it had."""
    device = device or torch.device('cpu')
    training = main.Training(recipe, list(map(str, range(people))), meta.age_cutoffs, device)
    training.total_steps = 10 * (recipe.min_steps + recipe.max_steps)
    training.step = 7 * (recipe.min_steps + recipe.max_steps)
    training.step += recipe.min_steps if phase == 'max' else 0
    images = torch.randint(0, 256, (recipe.batch_size, 3, 112, 96), dtype=torch.uint8)
    ages = torch.arange(recipe.batch_size).float()
    labels = ages.long() // 2 % people  # each of them is seen at two ages
    training.learn_ages(labels, ages)
    counted = Launches()
    supported = _foreach_utils._get_foreach_kernels_supported_devices
    _foreach_utils._get_foreach_kernels_supported_devices = lambda: [*supported(), 'cpu']
    try:
        iterate(training, images, labels, ages)
        with counted:
            iterate(training, images, labels, ages)
    finally:
        _foreach_utils._get_foreach_kernels_supported_devices = supported
    return counted


def run(args):
    for name in args.recipes:
        # neither widths nor the batch change their number
        recipe = replace(
            recipes[name],
            batch_size=4,
            precision='bf16',
            dim=16,
            widths=tuple(width // 16 for width in recipes[name].widths),
        )
        for phase in ('min', 'max') if recipe.max_steps else ('min',):
            counted = launches(recipe, phase)
            most = ', '.join(f'{count} {what}' for what, count in counted.counts.most_common(8))
            print(f'{name}, {phase} step: {counted.total} ({most})', flush=True)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('recipes', nargs='*', default=['paper', 'ramped', 'demo'])
    return parser.parse_args()


if __name__ == '__main__':
    run(arguments())
