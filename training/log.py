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
    """One JSON line a report in `log.jsonl`, the same numbers in TensorBoard."""

    def __init__(self, folder, step, epoch=math.inf):
        self.path = Path(folder, 'log.jsonl')
        # a run resumed at `step`, with `epoch` epochs reported, writes what comes after them again
        if self.path.exists():
            rows = [row for row in read_log(self.path) if row['step'] <= step]
            rows = [row for row in rows if row.get('epoch', 0) <= epoch]
            kept = ''.join(json.dumps(row) + '\n' for row in rows)
            utils.write_whole(self.path, lambda temporary: temporary.write_text(kept))
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self.board = SummaryWriter(folder, purge_step=step + 1)

    def report(self, kind, step, **values):
        """`kind` is 'max', 'min' or 'epoch'. Returns the values as written: None if not finite."""
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
    """Draws `panels`, {title: 'kind name label; …'}, from the rows of a log over the step."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for line in lines.split('; '):
            kind, name, label = line.split(' ', 2)
            drawn = [row for row in rows if row['kind'] == kind and row.get(name) is not None]
            if drawn:
                steps, values = [row['step'] for row in drawn], [row[name] for row in drawn]
                marker = '.' if len(drawn) < 40 else None
                axis.plot(steps, values, label=label, linewidth=1.2, marker=marker)
        axis.set_title(title)
        axis.set_xlabel('global step')
        if axis.lines:
            axis.legend(fontsize='small')
        axis.grid(alpha=0.3)
    utils.write_whole(path, lambda temporary: figure.savefig(temporary, format='png', dpi=110))


def run_summary(device):
    """Versions, hardware, and the git revision if there is one: a figure depends on them."""
    git, root = None, Path(__file__).parents[1]
    if shutil.which('git'):
        describe = ['git', 'describe', '--always', '--dirty']
        git = subprocess.run(describe, text=True, cwd=root, capture_output=True).stdout.strip()
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
        before['recipe'] = Recipe.of(before['recipe']).as_dict()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [f'{path} is damaged: whether this run is as it began is not known']
    lines = []
    for prefix, old, new in (('', before, now), ('recipe ', before['recipe'], now['recipe'])):
        for name in (name for name in new if name != 'recipe' and old.get(name) != new[name]):
            values = f'was {old.get(name)!r} at the call before and is {new[name]!r} now'
            lines.append(f'{prefix}{name} {values}')
    return lines
