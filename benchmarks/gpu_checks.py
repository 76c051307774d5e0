"""What benchmarks/gpu.py checks in one process: functions that return a figure, or raise
AssertionError or Skip."""

import contextlib
from dataclasses import replace

import torch
from steps import iterate

import main
import meta
import utils
from training.recipe import Recipe
from training.resume import save_state, start

FACES, PEOPLE = 32, 16
OPEN = dict(
    split=(0.0, 0.0), game=(0.0, 0.0), read_age=0.0, warmup=0.0
)  # everything from the first step
SMALL = replace(
    Recipe(),
    layers=(0, 0, 0, 1),
    widths=(16, 32, 32, 64),
    dim=64,
    batch_size=FACES,
    scale=8.0,
    lr=0.01,
    precision='float32',
    **OPEN,
)


SOLVED = dict(variate='label', memory=0.9, max_steps=0)
SCALE = {
    'scale': 1024.0,
    'growth_factor': 2.0,
    'backoff_factor': 0.5,
    'growth_interval': 2000,
    '_growth_tracker': 0,
}  # of fp16's loss; from PyTorch's, the first steps are left out


class Skip(Exception):
    """What can't be checked here, and why."""


def batch(step):
    """Images of large squares, far from each other; the same whichever of them are flipped, as
    devices draw differently."""
    generator = torch.Generator().manual_seed(step)
    squares = torch.randint(0, 256, (FACES, 3, 7, 3), dtype=torch.uint8, generator=generator)
    half = squares.repeat_interleave(16, 2).repeat_interleave(16, 3)
    images = torch.cat([half, half.flip(-1)], -1)
    return images, torch.arange(FACES) % PEOPLE, torch.arange(FACES) * 80.0 / FACES


def trainer(recipe, device):
    recipe = replace(recipe, batch_size=FACES)
    training = main.Training(recipe, list(map(str, range(PEOPLE))), meta.age_cutoffs, device)
    training.total_steps = 10_000
    training.learn_ages(*batch(0)[1:])
    return training


def train(training, steps, sizes=None, share=lambda part: part):
    """`steps` more steps; the means of the last of them."""
    for step in range(training.step, training.step + steps):
        training.means.flush()
        iterate(training, *map(share, batch(step)), sizes)
    return training.means.flush()


def near(ours, theirs, tolerance):
    """Asserts that two (means, gradients) agree: each mean, and the gradients as one long vector,
    to `tolerance` of its length. Returns the largest relative difference."""
    differences = {
        name: abs(ours[0][name] - value) / max(abs(value), 1e-3)
        for name, value in theirs[0].items()
        if name not in ('accuracy', 'age_accuracy')
    }
    vectors = [
        torch.cat([gradients[name].double().cpu().flatten() for name in ours[1]])
        for _, gradients in (ours, theirs)
    ]
    difference = (vectors[0] - vectors[1]).norm() / vectors[1].norm()
    differences['the gradients'] = difference.item()
    for name, found in differences.items():
        assert found <= tolerance, f'{name}: {found:.1e} apart'
    return f'{max(differences.values()):.1e}'


def gradients(training):
    return {name: p.grad.clone() for name, p in training.model.named_parameters()}


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


# in one process


def no_wait(recipe, phase, device):
    """Three steps; on a GPU every wait of the host for it is an error."""
    training = trainer(recipe, device)
    cycle = recipe.min_steps + recipe.max_steps
    training.step = 7000 // cycle * cycle + (recipe.min_steps if phase == 'max' else 0)
    training.schedule(training.step / training.total_steps)
    assert training.is_max_step() == (phase == 'max')
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
    return training.means.flush().get('loss')


def beside_the_cpu(precision, tolerance, device):
    """Losses and gradients of a step are the CPU's, of the learned variate and of a solved
    adversary; small differences of float32 grow in ReLUs."""
    said = []
    for values in ({}, SOLVED):
        recipe, found = replace(SMALL, **values), []
        if precision != 'float64':
            recipe = replace(recipe, precision=precision)
        with float64() if precision == 'float64' else contextlib.nullcontext():
            for place in (device, torch.device('cpu')):
                training = trainer(recipe, place)
                training.executor.restore_scale(SCALE)
                found.append((train(training, 1), gradients(training)))
        said.append(near(*found, tolerance))
    return ' and '.join(said)


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


def after_a_cpus_state(device, folder):
    """The fused optimizer goes on from what a CPU saved."""
    folder.mkdir(parents=True)
    cpu, ours = trainer(SMALL, torch.device('cpu')), trainer(SMALL, device)
    train(cpu, 3)
    save_state(cpu, 10_000, folder)
    assert start(ours, folder / 'last.pth', True, 10_000)
    return near((train(ours, 1), gradients(ours)), (train(cpu, 1), gradients(cpu)), 0.1)


def out_of_memory(device):
    """One line that names the remedy."""
    if device.type != 'cuda':
        raise Skip('a CPU')
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.02, device)
    try:
        with utils.one_line_errors():
            torch.empty(2**40, dtype=torch.uint8, device=device)
        raise AssertionError('there was room')
    except SystemExit as error:
        assert 'Lower --batch-size' in str(error), str(error)
        return str(error)[:80]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def checks(recipes, device, folder):
    """(name, check, arguments …) of each."""
    open_ = {name: replace(recipe, **OPEN) for name, recipe in recipes.items()}
    paper, ramped = open_['paper'], open_['ramped']
    kinds = open_ | {
        'arcface': replace(paper, head='arcface'),
        'ordinal': replace(ramped, age_head='ordinal'),
        'accumulate': replace(paper, accumulate=4),
        'frozen': replace(ramped, batchnorm='frozen'),
        'sharded': replace(ramped, shard_head=True),
        'sampled': replace(ramped, shard_head=True, sample_rate=0.5),
        'fp16': replace(paper, precision='fp16'),
        'float32': replace(paper, precision='float32'),
    }
    for name, recipe in kinds.items():
        for phase in ('min', 'max') if recipe.max_steps else ('min',):
            yield f'no wait: {name}, {phase} steps', no_wait, recipe, phase, device
    for precision, tolerance in (
        ('float64', 1e-8),
        ('float32', 0.02),
        ('bf16', 0.2),
        ('fp16', 0.1),
    ):
        yield f'beside the CPU in {precision}', beside_the_cpu, precision, tolerance, device
    for name in ('paper', 'ramped', 'sharded', 'fp16'):
        yield f'resume, bit for bit: {name}', resume, kinds[name], device, folder / f'state-{name}'
    yield "after a CPU's state", after_a_cpus_state, device, folder / 'state-cpu'
    yield 'out of memory', out_of_memory, device
