"""Whether everything here works on this GPU, and how fast: PASS or FAIL a line, and a JSON file.

    python3 benchmarks/gpu.py                        # the first GPU; where there are more, NCCL too
    torchrun --nproc-per-node 8 benchmarks/gpu.py    # N processes against one, on these GPUs
    python3 benchmarks/gpu.py --ctx -1 --tiny        # of all this what a CPU can show

The exit status is 1 where anything fails. The checks are in benchmarks/gpu_checks.py and
gpu_jobs.py; the tests that are marked `gpu` are run too. The figures: images/s at batches of 64 to
1024, eager and compiled, the share of the time that waits for data, peak memory, launches a step,
and the share of the best matrix product.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
# before the first product: without it cuBLAS has no deterministic mode
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')

import gpu_checks  # noqa: E402
import gpu_jobs  # noqa: E402
import torch  # noqa: E402
from launches import launches  # noqa: E402
from speed import Ours, clock, machine, operations_of, product  # noqa: E402

import meta  # noqa: E402
import utils  # noqa: E402
from dataset import Faces  # noqa: E402
from synthesis import drawing  # noqa: E402
from training.distributed import launched  # noqa: E402
from training.recipe import recipes  # noqa: E402

BATCH_SIZES = 64, 128, 256, 512, 1024
TINY = dict(layers=(0, 0, 0, 1), widths=(4, 8, 8, 16), dim=16)


def verdict(name, check, *args):
    """A line of check(*args), and what the JSON has of it."""
    begin = time.perf_counter()
    try:
        row = {'result': 'PASS', 'found': check(*args)}
    except gpu_checks.Skip as why:
        row = {'result': 'SKIP', 'found': str(why)}
    except Exception as error:
        row = {
            'result': 'FAIL',
            'found': f'{type(error).__name__}: {error}'[:500],
            'traceback': traceback.format_exc(),
        }
    row = {'name': name, **row, 'seconds': round(time.perf_counter() - begin, 1)}
    said = str(row['found'] or '').splitlines() or ['']
    print(f'{row["result"]}  {name}  {said[0][:150]}', flush=True)
    return row


def marked_tests(ctx):
    """The tests that need a GPU."""
    if ctx < 0:
        raise gpu_checks.Skip('a CPU')
    words = [sys.executable, '-m', 'pytest', '-q', '-m', 'gpu', 'tests']
    done = subprocess.run(words, cwd=gpu_jobs.ROOT, text=True, capture_output=True, check=False)
    said = (done.stdout.strip().splitlines() or [''])[-1]
    if done.returncode:
        raise AssertionError(f'{said}\n{done.stdout}')
    return said


def speeds(faces, device, tiny):
    """A row of figures for every batch size, eager and compiled; and the ceiling."""
    values = TINY if tiny else {}
    size = 256 if tiny else 8192 if device.type == 'cuda' else 3072
    ceilings = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        work, operations = product(size, dtype, device)
        clock(work, device)
        ceilings[str(dtype).removeprefix('torch.')] = operations / clock(work, device)
    rows = []
    for compiled in (False, True):
        for batch_size in BATCH_SIZES[: 2 if tiny else None]:
            recipe = replace(
                recipes['paper'], batch_size=8 if tiny else batch_size, **values, compile=compiled
            )
            row = {'batch_size': recipe.batch_size, 'compiled': compiled}
            try:
                row |= speed(faces, recipe, device, 2 if tiny else 20, ceilings)
                print(
                    '{batch_size:>5} {images_per_s:>9.0f} images/s, compiled: {compiled}, waits '
                    '{waiting:.1%}, {launches} launches'.format(**row),
                    flush=True,
                )
            except (torch.OutOfMemoryError, RuntimeError) as error:  # or no compiler
                row['error'] = str(error).splitlines()[0][:200]
                print(f'{recipe.batch_size:>5} compiled: {compiled}: {row["error"]}', flush=True)
            rows.append(row)
            torch._dynamo.reset()
            if device.type == 'cuda':
                torch.cuda.empty_cache()
    return {'ceilings': ceilings, 'steps': rows}


def speed(faces, recipe, device, steps, ceilings):
    ours, gpu = Ours(faces, recipe, device), device.type == 'cuda'
    for _ in range(3):  # kernels are chosen, or compiled
        ours.step('min')
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
    ours.waited = 0.0
    seconds = clock(lambda: [ours.step('min') for _ in range(steps)], device)
    precision = {'bf16': 'bfloat16', 'fp16': 'float16'}.get(
        ours.training.executor.precision, 'float32'
    )
    operations = None if recipe.compile else 3 * operations_of(ours.training, device)
    rate = steps * recipe.batch_size / seconds
    return {
        'images_per_s': rate,
        'waiting': ours.waited / seconds,
        'peak_memory': torch.cuda.max_memory_allocated(device) if gpu else None,
        'launches': launched_kernels(ours) if gpu else launches(recipe, people=8).total,
        'of_ceiling': operations and rate * operations / ceilings[precision],
    }


def launched_kernels(ours):
    """How many kernels and copies a step puts on the GPU's queue."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        ours.step('min')
        torch.cuda.synchronize()
    return sum(
        event.count
        for event in profile.key_averages()
        if event.key.startswith(
            (
                'cudaLaunchKernel',
                'cuLaunchKernel',
                'cudaMemcpyAsync',
                'hipLaunchKernel',
                'hipExtModuleLaunchKernel',
            )
        )
    )


def about(device):
    """The machine, its driver, and the flags that figures depend on."""
    driver = None
    if shutil.which('nvidia-smi'):
        query = [
            'nvidia-smi',
            '--query-gpu=name,driver_version,memory.total,power.limit',
            '--format=csv,noheader',
        ]
        driver = subprocess.run(query, text=True, capture_output=True, check=False).stdout.strip()
    return {
        **machine(device),
        'driver': driver,
        'cuda': torch.version.cuda,
        'hip': torch.version.hip,
        'cudnn': torch.backends.cudnn.version(),
        'built_for': torch.cuda.get_arch_list(),
        'flags': {
            'cudnn.allow_tf32': torch.backends.cudnn.allow_tf32,
            'matmul.allow_tf32': torch.backends.cuda.matmul.allow_tf32,
            'cudnn.benchmark': torch.backends.cudnn.benchmark,
            'CUBLAS_WORKSPACE_CONFIG': os.environ['CUBLAS_WORKSPACE_CONFIG'],
        },
    }


def run(args):
    ours = {
        name: replace(recipe, **TINY) if args.tiny else recipe for name, recipe in recipes.items()
    }
    if launched():
        rows = [verdict(name, *check) for name, *check in gpu_jobs.rank_checks(args.ctx)]
        chosen = int(os.environ['RANK']) == 0
        device = utils.pick_device(args.ctx)
    else:
        device, chosen, rows = utils.pick_device(args.ctx), True, []
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder, 'drawn', 'train')
            people = 16 if args.tiny else 2 * max(BATCH_SIZES) // 8
            drawing.make(root.parent, people=people, val_people=4, images=8, progress=False)
            for name, *check in (
                *gpu_checks.checks(ours, device, Path(folder)),
                *gpu_jobs.checks(args.ctx, Path(folder)),
            ):
                rows.append(verdict(name, *check))
            rows.append(verdict('tests marked gpu', marked_tests, args.ctx))
            faces = Faces(root, meta.demo['pat'], meta.demo['pos'])
            faces.check()
            figures = speeds(faces, device, args.tiny)
    report = {
        **about(device),
        'command': ' '.join(['benchmarks/gpu.py', *sys.argv[1:]]),
        'checks': rows,
        **({} if launched() else figures),
    }
    failed = sum(row['result'] == 'FAIL' for row in rows)
    if chosen:
        several = f'-{os.environ["WORLD_SIZE"]}-ranks' if launched() else ''
        out = Path(
            args.out or Path(__file__).parent / 'results' / f'gpu-{report["kind"]}{several}.json'
        )
        out.parent.mkdir(parents=True, exist_ok=True)
        utils.write_json(report, out)
        print(f'{len(rows) - failed} of {len(rows)} did not fail; {out}')
    sys.exit(int(failed > 0))


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--ctx', type=int, default=0, help='the GPU; below 0 the CPU (%(default)s)')
    parser.add_argument('--tiny', action='store_true', help='tiny networks: whether it runs at all')
    parser.add_argument('--out', help='the JSON file (benchmarks/results/gpu-<GPU>.json)')
    return parser.parse_args()


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
