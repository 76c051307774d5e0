"""The log of a run and its curves, and what a figure depends on beside the recipe."""

import json
import math
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import torch

import utils
from training.recipe import Recipe


class Log:
    """One JSON line a report in `log.jsonl`, the same numbers in TensorBoard. Numbers that aren't
    finite are written as null."""

    def __init__(self, folder, step, epoch=math.inf):
        self.path = Path(folder, 'log.jsonl')
        self._forget_after(step, epoch)
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.board = SummaryWriter(folder, purge_step=step + 1)

    def _forget_after(self, step, epoch):
        """A run resumed at `step`, with `epoch` epochs reported, writes what comes after them
        again; a line that was cut short goes too."""
        if self.path.exists():
            kept = ''.join(
                json.dumps(row) + '\n'
                for row in read_log(self.path)
                if row['step'] <= step and row.get('epoch', 0) <= epoch
            )
            utils.write_whole(self.path, lambda temporary: Path(temporary).write_text(kept))

    def report(self, kind, step, **values):
        """`kind` is 'max', 'min' or 'epoch'; `step` the global step. Returns the values as
        written."""
        values = {name: utils.finite(value) for name, value in values.items()}
        try:
            with open(self.path, 'a') as file:
                file.write(json.dumps({'kind': kind, 'step': step, **values}) + '\n')
        except OSError as error:
            error.filename = str(self.path)  # which a full disk does not name
            raise
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self.board.add_scalar(f'{kind}/{name}', value, step)
        return values

    def close(self):
        self.board.close()


def read_log(path):
    """The rows of a `log.jsonl`; lines that were cut short by a crash or aren't ours are left
    out."""
    rows = []
    for line in Path(path).read_bytes().splitlines():
        try:
            row = json.loads(line)
            if row['kind'] and row['step'] >= 0:
                rows.append(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return rows


def plot_curves(rows, panels, path):
    """Draws `panels`, a list of (title, [(kind, name, label), …]), from the rows of a log over
    the global step."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, lines) in zip(axes, panels, strict=True):
        for kind, name, label in lines:
            points = [
                (row['step'], row[name])
                for row in rows
                if row['kind'] == kind and row.get(name) is not None
            ]
            if points:
                axis.plot(
                    *zip(*points, strict=True),
                    label=label,
                    linewidth=1.2,
                    marker='.' if len(points) < 40 else None,
                )
        axis.set_title(title)
        axis.set_xlabel('global step')
        if axis.lines:
            axis.legend(fontsize='small')
        axis.grid(alpha=0.3)
    utils.write_whole(path, lambda temporary: figure.savefig(temporary, format='png', dpi=110))


def run_summary(device):
    """Versions, hardware, and the git revision if there is one: a figure depends on them."""
    git = None
    if shutil.which('git'):
        git = subprocess.run(
            ['git', 'describe', '--always', '--dirty'],
            text=True,
            check=False,
            cwd=Path(__file__).parents[1],
            capture_output=True,
        ).stdout.strip()
    name = platform.processor() or platform.machine()
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    return {
        'python': platform.python_version(),
        'torch': torch.__version__,
        'numpy': np.__version__,
        'system': platform.platform(),
        'device': name,
        'threads': torch.get_num_threads(),
        'git': git or None,
    }


def differences(path, summary):
    """One line for each value of `summary`, one level into dicts, that is another in the JSON
    file at `path`, if there is one."""
    if not path.exists():
        return []
    now = json.loads(json.dumps(utils.finite(summary)))
    try:
        before = json.loads(path.read_text())
        # values that are newer than the run were the paper's
        before['recipe'] = Recipe.of(before['recipe']).as_dict()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f'{path} is damaged: whether this run is as it began is not known']
    before, now = _flat(before), _flat(now)
    return [
        f'{" ".join(key)} was {before.get(key)!r} at the call before and is {value!r} now'
        for key, value in now.items()
        if before.get(key) != value
    ]


def _flat(summary):
    """{(name,) or ('recipe', name): value} of a run's summary."""
    top = {(name,): value for name, value in summary.items() if name != 'recipe'}
    return top | {('recipe', name): value for name, value in summary['recipe'].items()}
