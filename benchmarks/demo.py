"""The README's demo table and its pictures: the demo as it stands, and the same budget for identity alone, over seeds.

    python3 benchmarks/demo.py [--seeds 3] [--epochs 12] [--runs runs/benchmark] [--table benchmarks/demo.json]

Writes docs/faces.jpg, docs/curves.png (seed 0) and the table, as JSON and on the screen; a run that is complete is not run again.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import synthetic  # noqa: E402
import utils  # noqa: E402

ARMS = {
    'identity only': ['lambda_age=0.', 'lambda_dal=0.', 'split=(2.,3.)'],  # α never opens: x_id is x
    'the demo': [],
}
ROWS = (  # name in the log, title, scale, digits
    ('val_accuracy', 'verification accuracy, % (chance 50)', 100, 1), ('val_auc', 'AUC, all gaps', 1, 3), ('val_auc_gap_0-5', 'AUC at 0–5 years', 1, 3),
    ('val_auc_gap_11-20', 'AUC at 11–20 years', 1, 3), ('val_auc_gap_31+', 'AUC at 31 years and more', 1, 3),
    ('val_rank1', 'leave-one-out rank-1, % (chance below 1)', 100, 1), ('val_age_r2_id', 'age read from x_id, R²', 1, 2),
)


def train(folder, seed, epochs, settings, threads):
    """The last epoch's row of the log and the run's summary."""
    line = [sys.executable, 'main.py', '-1', str(epochs), '--resume', '--save', str(folder), '--seed', str(seed)]
    subprocess.run(line + (['--set', *settings] if settings else []), cwd=ROOT, check=True,
                   env=os.environ | {'OMP_NUM_THREADS': str(threads)})
    return [row for row in utils.read_log(folder / 'log.jsonl') if row['kind'] == 'epoch'][-1], json.loads((folder / 'run.json').read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--epochs', type=int, default=12)
    parser.add_argument('--jobs', type=int, default=2, help='runs side by side, the cores shared among them')
    parser.add_argument('--runs', type=Path, default=ROOT / 'runs' / 'benchmark')
    parser.add_argument('--table', type=Path, default=ROOT / 'benchmarks' / 'demo.json')
    args = parser.parse_args()
    if not (ROOT / 'data' / 'demo').exists():
        synthetic.make(ROOT / 'data' / 'demo')
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = {arm: [pool.submit(train, args.runs / f'{arm.replace(" ", "-")}-{seed}', seed, args.epochs, settings, max(1, os.cpu_count() // args.jobs))
                      for seed in range(args.seeds)] for arm, settings in ARMS.items()}
        rows = {arm: [{name: run.result()[0][name] for name, *_ in ROWS} for run in seeds] for arm, seeds in runs.items()}
        summary = runs['the demo'][0].result()[1]
    (ROOT / 'docs').mkdir(exist_ok=True)
    synthetic.contact_sheet(range(8), (2, 8, 16, 30, 45, 60, 75, 88)).save(ROOT / 'docs' / 'faces.jpg', quality=90)
    shutil.copy(args.runs / 'the-demo-0' / 'curves.png', ROOT / 'docs' / 'curves.png')
    table = {arm: {name: {'mean': float(np.mean(values)), 'std': float(np.std(values, ddof=1)) if len(values) > 1 else None, 'values': values}
                   for name, *_ in ROWS for values in [[row[name] for row in seeds]]} for arm, seeds in rows.items()}
    machine = {key: summary[key] for key in ('python', 'torch', 'numpy', 'device', 'threads', 'git')}
    utils.write_json({'command': 'python3 benchmarks/demo.py', 'seeds': args.seeds, 'epochs': args.epochs, 'machine': machine, 'table': table}, args.table)
    print(markdown(table))


def markdown(table):
    """The README's table: a row a figure, a column an arm, mean ± standard deviation over the seeds."""
    lines = [f'| people never seen | {" | ".join(table)} |', '|---|' + '---|' * len(table)]
    for name, title, scale, digits in ROWS:
        cells = [f'{scale * arm[name]["mean"]:.{digits}f}' + ('' if arm[name]['std'] is None else f' ± {scale * arm[name]["std"]:.{digits}f}')
                 for arm in table.values()]
        lines.append(f'| {title} | {" | ".join(cells)} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
