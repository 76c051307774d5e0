"""Whether training works on this GPU: PASS or FAIL a line, and a JSON file.

    python3 benchmarks/gpu.py                    # the first GPU
    python3 benchmarks/gpu.py --ctx -1 --tiny    # all that a CPU can show of this

The exit status is 1 if anything fails. The tests that are marked `gpu` run too. How fast it is:
`benchmarks/speed.py --ctx 0`.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

# before the first product: without it cuBLAS has no deterministic mode
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')

import tables
import torch
from measuring import CPU, RESULTS, iterate, machine

import main
import meta
import utils
from training.recipe import Recipe, recipes
from training.resume import save_state, start

FACES, PEOPLE = 32, 16
TINY = dict(layers=(0, 0, 0, 1), widths=(4, 8, 8, 16), dim=16)
OPEN = dict(split=(0.0, 0.0), game=(0.0, 0.0), read_age=0.0, warmup=0.0)  # from the first step
SMALL = Recipe(**OPEN, layers=(0, 0, 0, 1), widths=(16, 32, 32, 64), dim=64, scale=8.0, lr=0.01)


def batch(step):
    """Images of large squares, far from each other; each is its own mirror, since devices draw
    flips differently."""
    generator = torch.Generator().manual_seed(step)
    squares = torch.randint(0, 256, (FACES, 3, 7, 3), dtype=torch.uint8, generator=generator)
    half = squares.repeat_interleave(16, 2).repeat_interleave(16, 3)
    ages = torch.arange(FACES) * 80.0 / FACES
    return torch.cat([half, half.flip(-1)], -1), torch.arange(FACES) % PEOPLE, ages


def trainer(recipe, device):
    recipe = replace(recipe, batch_size=FACES)
    training = main.Training(recipe, list(map(str, range(PEOPLE))), meta.age_cutoffs, device)
    training.total_steps = 10_000
    return training


def train(training, steps):
    """`steps` more steps; the means of the last of them."""
    for step in range(training.step, training.step + steps):
        training.means.flush()
        iterate(training, *batch(step))
    return training.means.flush()


# checks: each raises AssertionError


def no_wait(recipe, phase, device):
    """Three steps; on a GPU every wait of the host for it is an error."""
    training = trainer(recipe, device)
    cycle = recipe.min_steps + recipe.max_steps
    training.step = 7000 // cycle * cycle + (recipe.min_steps if phase == 'max' else 0)
    train(training, 1)  # the first chooses kernels
    if device.type == 'cuda':
        torch.cuda.set_sync_debug_mode('error')
    try:
        for step in range(3):
            faces = [part.pin_memory() if device.type == 'cuda' else part for part in batch(step)]
            iterate(training, *faces)
    finally:
        if device.type == 'cuda':
            torch.cuda.set_sync_debug_mode('default')
    assert training.not_finite.first() is None, f'not finite: {training.not_finite.first()}'


def beside_the_cpu(precision, tolerance, device):
    """Losses and gradients of a step are the CPU's in float32."""
    recipes = replace(SMALL, precision=precision), replace(SMALL, precision='float32')
    ours, theirs = map(trainer, recipes, (device, CPU))
    found, wanted = train(ours, 1), train(theirs, 1)
    for name in ('loss', 'loss_id', 'loss_age', 'gradient'):
        apart = abs(found[name] - wanted[name]) / max(abs(wanted[name]), 1e-3)
        assert apart <= tolerance, f'{name}: {apart:.1e} apart'


def resume(recipe, device, folder):
    """Three steps, a save, three more, by another object: bit for bit the six of one."""
    folder.mkdir(parents=True)
    torch.use_deterministic_algorithms(True)
    try:
        whole, first, second = (trainer(recipe, device) for _ in range(3))
        train(first, 3)
        save_state(first, 10_000, folder)
        assert start(second, folder / 'last.pth', True, 10_000) and second.step == 3
        train(second, 3)
        train(whole, 6)
        for name, tensor in whole.model.state_dict().items():
            assert torch.equal(tensor, second.model.state_dict()[name]), f'{name} differs'
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True


def marked_tests():
    words = [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', 'tests']
    done = subprocess.run(words, cwd=tables.ROOT, text=True, capture_output=True, check=False)
    assert not done.returncode, done.stdout


def checks(kinds, device, folder):
    """(name, check, arguments …) of each."""
    kinds = {name: replace(recipe, **OPEN) for name, recipe in kinds.items()}
    paper, ramped = kinds['paper'], kinds['ramped']
    kinds |= {
        'arcface': replace(paper, head='arcface'),
        'ordinal': replace(ramped, age_head='ordinal'),
        'accumulate': replace(paper, accumulate=4),
        'sharded': replace(ramped, shard_head=True),
        'fp16': replace(paper, precision='fp16'),
        'float32': replace(paper, precision='float32'),
    }
    for name, recipe in kinds.items():
        for phase in ('min', 'max') if recipe.max_steps else ('min',):
            yield f'no wait: {name}, {phase} steps', no_wait, recipe, phase, device
    for precision, tolerance in dict(float32=0.02, bf16=0.2, fp16=0.1).items():
        yield f'beside the CPU in {precision}', beside_the_cpu, precision, tolerance, device
    for name in ('paper', 'ramped', 'sharded', 'fp16'):
        yield f'resume, bit for bit: {name}', resume, kinds[name], device, folder / f'state-{name}'
    if device.type == 'cuda':
        yield 'tests marked gpu', marked_tests


def verdict(name, check, *args):
    try:
        check(*args)
        row = {'name': name, 'result': 'PASS'}
    except Exception as error:
        found = f'{type(error).__name__}: {error}'[:800]
        row = {'name': name, 'result': 'FAIL', 'found': found}
    print(row, flush=True)
    return row


def run(args):
    device, tiny = utils.pick_device(args.ctx), TINY if args.tiny else {}
    kinds = {name: replace(recipe, **tiny) for name, recipe in recipes.items()}
    with tempfile.TemporaryDirectory() as folder:
        rows = [verdict(name, *check) for name, *check in checks(kinds, device, Path(folder))]
    about = {**machine(device), 'cuda': torch.version.cuda}
    out = args.out or RESULTS / f'gpu-{about["kind"]}.json'
    tables.write(about | {'checks': rows}, out)
    failed = sum(row['result'] == 'FAIL' for row in rows)
    print(f'{len(rows) - failed} of {len(rows)} passed; {out}')
    sys.exit(int(failed > 0))


def arguments():
    parser = tables.parser(__doc__)
    add = parser.add_argument
    add('--ctx', type=int, default=0, help='the GPU; below 0 the CPU (%(default)s)')
    add('--tiny', action='store_true', help='tiny networks: whether it runs at all')
    add('--out', help='the JSON file (benchmarks/results/gpu-<GPU>.json)')
    return parser.parse_args()


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
