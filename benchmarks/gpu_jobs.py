"""What benchmarks/gpu.py checks of whole runs and of several processes; as gpu_checks.py."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from gpu_checks import FACES, SMALL, SOLVED, Skip, float64, gradients, near, train, trainer

import utils
from training import distributed
from training.resume import save_state, start

ROOT = Path(__file__).resolve().parents[1]


# by the command line


def command(folder, ctx, save, *line, ranks=0):
    """main.py on the drawn faces of `folder`, started; with `ranks` under torchrun."""
    script = Path(folder, 'train.py')
    entry = {
        'train_root': f'{folder}/drawn/train',
        'val_root': f'{folder}/drawn/val',
        'pat': r'_|\.',
        'pos': 1,
        'n_cls': len(os.listdir(f'{folder}/drawn/train')),
    }
    script.write_text(
        f'import runpy, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport meta\n'
        f'meta.here = {entry!r}\nsys.argv[0] = "main.py"\n'
        f'runpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")\n'
    )
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', ranks] * (
        ranks > 0
    )
    recipe = ['--recipe', 'demo', '--set', 'batch_size=16', 'precision=float32']
    words = [
        sys.executable,
        *launcher,
        script,
        ctx,
        *line,
        '--dataset',
        'here',
        '--save',
        save,
        '--save-every',
        1,
        '--resume',
        *recipe,
    ]
    return subprocess.Popen(
        list(map(str, words)),
        text=True,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def struck(folder, ctx, save, number, ranks=0, **options):
    """A run whose first process gets a signal after an epoch, and the same command anew."""
    process = command(folder, ctx, save, 40, ranks=ranks, **options)
    deadline = time.monotonic() + 300
    while not Path(save, 'epoch_001.pth').exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f'it did not train: {process.communicate()[0][-800:]}')
        time.sleep(0.05)
    os.kill(int(Path(save, '.lock').read_text().split()[1]), number)
    said = process.communicate(timeout=300)[0]
    assert process.returncode, f'it went on: {said[-800:]}'
    epochs = 1 + int(sorted(Path(save).glob('epoch_*.pth'))[-1].stem[-3:])
    again = command(folder, ctx, save, epochs, ranks=ranks, **options)
    more = again.communicate(timeout=300)[0]
    assert again.returncode == 0 and f'epoch {epochs}/{epochs}' in more, more[-800:]
    return said


def sigterm(folder, ctx):
    said = struck(folder, ctx, Path(folder, 'told'), signal.SIGTERM)
    assert 'SIGTERM after step' in said and 'saved' in said, said[-800:]


def ranks_of(ctx):
    count = 2 if ctx < 0 else torch.cuda.device_count()
    if count < 2:
        raise Skip('one GPU')
    return count


def killed_rank(folder, ctx):
    said = struck(folder, ctx, Path(folder, 'killed'), signal.SIGKILL, ranks_of(ctx))
    assert 'lost the others' in said or 'Signal 9' in said or 'SIGKILL' in said, said[-800:]


def by_torchrun(ctx, folder):
    """N processes against one, by the launcher."""
    words = [
        sys.executable,
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        ranks_of(ctx),
        Path(__file__).with_name('gpu.py'),
        '--ctx',
        ctx,
        '--out',
        folder / 'ranks.json',
    ]
    done = subprocess.run(
        list(map(str, words)), text=True, capture_output=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-500:]
    return f'{done.stdout.count("PASS")} checks'


# of several processes, under torchrun


def as_one(recipe, reference, device):
    """Losses, the gradients' norm and every gradient that is not a slice are those of one
    process."""
    with float64():
        training = trainer(recipe, device)
        means, ours = train(training, 1, *_shares()), gradients(training)
        if recipe.shard_head:
            del ours['identity.weight']
        return near((means, ours), reference, 1e-8)


def slices_are_read(device, folder):
    """A sharded head is saved by all and read by all."""
    recipe = replace(SMALL, shard_head=True)
    first, second = trainer(recipe, device), trainer(recipe, device)
    train(first, 2, *_shares())
    save_state(first, 10_000, folder)
    assert start(second, folder / 'last.pth', True, 10_000)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), f'{name} differs'


def _shares():
    sizes = [len(part) for part in torch.arange(FACES).tensor_split(distributed.world_size())]
    return sizes, lambda part: part.split(sizes)[distributed.rank()]


KINDS = {
    'replicated': dict(sync_batchnorm=True),
    'solved adversary': dict(sync_batchnorm=True, **SOLVED),
    'sharded head': dict(sync_batchnorm=True, shard_head=True),
}


def rank_checks(ctx):
    """(name, check, arguments …) of this process of a job."""
    recipes = {name: replace(SMALL, **values) for name, values in KINDS.items()}
    device = utils.pick_device(int(os.environ['LOCAL_RANK']) if ctx >= 0 else ctx)
    references = {}
    for name, recipe in recipes.items():  # alone, before it belongs to the job
        with float64():
            training = trainer(recipe, device)
            references[name] = train(training, 1), gradients(training)
    with distributed.process_group(ctx) as device:
        for name, recipe in recipes.items():
            yield (
                f'{distributed.world_size()} processes as one: {name}',
                as_one,
                recipe,
                references[name],
                device,
            )
        folder = Path(distributed.on_rank_zero(tempfile.mkdtemp))
        yield 'slices are saved and read', slices_are_read, device, folder


def checks(ctx, folder):
    """(name, check, arguments …) of each, on the drawn faces of `folder`."""
    yield 'SIGTERM, and on', sigterm, folder, ctx
    yield 'a killed process, and on', killed_rank, folder, ctx
    yield 'several processes', by_torchrun, ctx, folder
