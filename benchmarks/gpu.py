"""Whether training works on this GPU, and how fast it is: PASS or FAIL a line, and a JSON file.

    python3 benchmarks/gpu.py                        # the first GPU; where there are more, NCCL too
    torchrun --nproc-per-node 8 benchmarks/gpu.py    # N processes against one, on these GPUs
    python3 benchmarks/gpu.py --ctx -1 --tiny        # all that a CPU can show of this

The exit status is 1 if anything fails. The tests that are marked `gpu` run too. The figures:
images/s at batches of 64 to 1024, eager and compiled, the share of the time that waits for data,
peak memory, kernels a step, and the share of the best matrix product.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# before the first product: without it cuBLAS has no deterministic mode
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')

import tables
import torch
from speed import RESULTS, Ours, clock, machine, operations_of
from steps import iterate

import main
import meta
import utils
from dataset import Faces
from synthesis import drawing
from training import distributed
from training.recipe import Recipe, recipes
from training.resume import save_state, start

BATCH_SIZES = 64, 128, 256, 512, 1024
FACES, PEOPLE = 32, 16
TINY = dict(layers=(0, 0, 0, 1), widths=(4, 8, 8, 16), dim=16)
OPEN = dict(split=(0.0, 0.0), game=(0.0, 0.0), read_age=0.0, warmup=0.0)  # from the first step
SMALL = replace(
    Recipe(**OPEN, layers=(0, 0, 0, 1), widths=(16, 32, 32, 64), dim=64, batch_size=FACES),
    scale=8.0,
    lr=0.01,
    precision='float32',
)
SOLVED = dict(variate='label', memory=0.9, max_steps=0)


class Skip(Exception):
    """What can't be checked here, and why."""


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


def train(training, steps, sizes=None, share=lambda part: part):
    """`steps` more steps; the means and the gradients of the last of them."""
    for step in range(training.step, training.step + steps):
        training.means.flush()
        iterate(training, *map(share, batch(step)), sizes)
    weights = training.model.named_parameters()  # which have no gradient after a max step
    gradients = {name: p.grad.clone() for name, p in weights if p.grad is not None}
    return training.means.flush(), gradients


def near(ours, theirs, tolerance):
    """Asserts that two (means, gradients) agree: each mean, and the gradients as one long vector,
    to `tolerance` of its length. Returns the largest relative difference."""
    differences = {
        name: abs(ours[0][name] - value) / max(abs(value), 1e-3)
        for name, value in theirs[0].items()
        if name not in ('accuracy', 'age_accuracy')
    }
    a, b = (
        torch.cat([gradients[name].double().cpu().flatten() for name in ours[1]])
        for _, gradients in (ours, theirs)
    )
    differences['the gradients'] = ((a - b).norm() / b.norm()).item()
    for name, found in differences.items():
        assert found <= tolerance, f'{name}: {found:.1e} apart'
    return f'{max(differences.values()):.1e}'


def same_weights(one, other):
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name]), f'{name} differs'


@contextlib.contextmanager
def float64():
    """Within it everything is in float64: rounding hides nothing, and grows to nothing."""
    to_float, default = torch.Tensor.float, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        torch.Tensor.float = to_float


# checks: each returns a figure, or raises AssertionError or Skip


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
    """Losses and gradients of a step are the CPU's, of the learned variate and of a solved
    adversary; small differences of float32 grow in ReLUs."""
    worst = []
    for values in ({}, SOLVED):
        wide = precision == 'float64'
        recipe = replace(SMALL, **values, precision='float32' if wide else precision)
        with float64() if wide else contextlib.nullcontext():
            found = [train(trainer(recipe, place), 1) for place in (device, torch.device('cpu'))]
        worst.append(near(*found, tolerance))
    return ' and '.join(worst)


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
        same_weights(whole, second)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True


def out_of_memory(device):
    """One line that names the remedy."""
    if device.type != 'cuda':
        raise Skip('a CPU')
    try:
        with utils.one_line_errors():
            torch.empty(2**45, dtype=torch.uint8, device=device)
        raise AssertionError('there was room')
    except SystemExit as error:
        assert 'Lower --batch-size' in str(error), str(error)


def marked_tests(ctx):
    """The tests that need a GPU."""
    if ctx < 0:
        raise Skip('a CPU')
    words = [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', 'tests']
    done = subprocess.run(words, cwd=tables.ROOT, text=True, capture_output=True, check=False)
    assert not done.returncode, done.stdout
    return done.stdout.strip().splitlines()[-1]


def by_torchrun(ctx, folder):
    """N processes against one."""
    count = 2 if ctx < 0 else torch.cuda.device_count()
    if count < 2:
        raise Skip('one GPU')
    words = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node']
    words += [count, __file__, '--ctx', ctx, '--out', folder / 'ranks.json']
    line = list(map(str, words))
    done = subprocess.run(line, text=True, capture_output=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-500:]
    return f'{done.stdout.count("PASS")} checks'


def checks(kinds, device, ctx, folder):
    """(name, check, arguments …) of each, in one process."""
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
    for precision, tolerance in dict(float64=1e-8, float32=0.02, bf16=0.2, fp16=0.1).items():
        yield f'beside the CPU in {precision}', beside_the_cpu, precision, tolerance, device
    for name in ('paper', 'ramped', 'sharded', 'fp16'):
        yield f'resume, bit for bit: {name}', resume, kinds[name], device, folder / f'state-{name}'
    yield 'out of memory', out_of_memory, device
    yield 'several processes', by_torchrun, ctx, folder
    yield 'tests marked gpu', marked_tests, ctx


def as_one(recipe, reference, device):
    """Losses and gradients that are not of a slice are those of one process."""
    sizes = [len(part) for part in torch.arange(FACES).tensor_split(distributed.world_size())]
    with float64():
        training = trainer(recipe, device)
        share = lambda part: part.split(sizes)[distributed.rank()]  # noqa: E731
        means, gradients = train(training, 1, sizes, share)
    if recipe.shard_head:
        del gradients['identity.weight']
    return near((means, gradients), reference, 1e-8)


def rank_checks(ctx):
    """(name, check, arguments …) of this process of a job."""
    alike = replace(SMALL, sync_batchnorm=True)
    kinds = {
        'replicated': alike,
        'solved adversary': replace(alike, **SOLVED),
        'sharded head': replace(alike, shard_head=True),
    }
    device = utils.pick_device(int(os.environ['LOCAL_RANK']) if ctx >= 0 else ctx)
    with float64():  # alone, before it belongs to the job
        references = {name: train(trainer(recipe, device), 1) for name, recipe in kinds.items()}
    with distributed.process_group(ctx) as device:
        for name, recipe in kinds.items():
            title = f'{distributed.world_size()} processes as one: {name}'
            yield title, as_one, recipe, references[name], device


def verdict(name, check, *args):
    try:
        row = {'name': name, 'result': 'PASS', 'found': check(*args)}
    except Exception as error:
        result = 'SKIP' if isinstance(error, Skip) else 'FAIL'
        row = {'name': name, 'result': result, 'found': f'{type(error).__name__}: {error}'[:800]}
    print(f'{row["result"]}  {name}  {str(row["found"] or "")[:150]}', flush=True)
    return row


# figures


def speeds(faces, device, tiny):
    """Operations a second of the best product, and a row of figures for every batch size, eager and
    compiled."""
    gpu = device.type == 'cuda'
    size, rows = 256 if tiny else 8192 if gpu else 3072, []
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    ceiling = max(2 * size**3 / clock(lambda: a @ b, device) for _ in range(5))
    for compiled in (False,) if tiny else (False, True):
        for batch_size in [8, 16] if tiny else BATCH_SIZES:
            recipe = replace(recipes['paper'], batch_size=batch_size, compile=compiled)
            row = {'batch_size': batch_size, 'compiled': compiled}
            try:
                recipe = replace(recipe, **TINY) if tiny else recipe
                row |= speed(faces, recipe, device, 2 if tiny else 20, ceiling)
            except (torch.OutOfMemoryError, RuntimeError) as error:  # or no compiler
                row['error'] = str(error).splitlines()[0][:200]
            print(row, flush=True)
            rows.append(row)
            torch._dynamo.reset()
            if gpu:
                torch.cuda.empty_cache()
    return {'product, operations/s': ceiling, 'steps': rows}


def speed(faces, recipe, device, steps, ceiling):
    ours, gpu = Ours(faces, recipe, device), device.type == 'cuda'
    for _ in range(3):  # kernels are chosen, or compiled
        ours.step('min')
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    ours.waited = 0.0
    seconds = clock(lambda: [ours.step('min') for _ in range(steps)], device)
    rate = steps * recipe.batch_size / seconds
    row = {'images_per_s': rate, 'waiting': ours.waited / seconds}
    if gpu:
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profile:
            ours.step('min')
            torch.cuda.synchronize()
        row |= {
            'peak_memory': torch.cuda.max_memory_allocated(device),
            'kernels': sum(event.count for event in profile.key_averages()),
        }
    if not recipe.compile:
        row['of the product'] = rate * 3 * operations_of(ours.training, device) / ceiling
    return row


def driver():
    if not shutil.which('nvidia-smi'):
        return None
    query = '--query-gpu=name,driver_version,memory.total,power.limit'
    line = ['nvidia-smi', query, '--format=csv,noheader']
    return subprocess.run(line, text=True, capture_output=True, check=False).stdout.strip()


def run(args):
    figures, several = {}, ''
    if distributed.launched():
        several = f'-{os.environ["WORLD_SIZE"]}-ranks'
        rows = [verdict(name, *check) for name, *check in rank_checks(args.ctx)]
        device = utils.pick_device(args.ctx)
    else:
        device = utils.pick_device(args.ctx)
        tiny = TINY if args.tiny else {}
        kinds = {name: replace(recipe, **tiny) for name, recipe in recipes.items()}
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, 'drawn', 'train')
            people = 16 if args.tiny else 2 * max(BATCH_SIZES) // 8
            drawing.make(root.parent, people=people, val_people=4, images=8, progress=False)
            todo = checks(kinds, device, args.ctx, Path(folder))
            rows = [verdict(name, *check) for name, *check in todo]
            faces = Faces(root, meta.demo['pat'], meta.demo['pos'])
            faces.check()
            figures = speeds(faces, device, args.tiny)
    failed = sum(row['result'] == 'FAIL' for row in rows)
    if not several or os.environ['RANK'] == '0':
        about = {**machine(device), 'driver': driver(), 'cuda': torch.version.cuda}
        about |= {'cudnn': torch.backends.cudnn.version(), 'command': tables.command()}
        out = args.out or RESULTS / f'gpu-{about["kind"]}{several}.json'
        tables.write(about | {'checks': rows} | figures, out)
        print(f'{len(rows) - failed} of {len(rows)} did not fail; {out}')
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
