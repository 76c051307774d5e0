"""Work over several processes: in order, one tool each, and stopped by a signal at any time."""

import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, refused
from photographs import command, contents, photograph, points_csv

from system.processes import each


def add(tool, item):
    return tool[0] + item, os.getpid()


def end(tool, item):
    os._exit(1)


def make():
    return [100]


@pytest.mark.parametrize('workers', [1, 2])
@pytest.mark.parametrize('count', [0, 1, 200])
def test_in_order(count, workers):
    done = list(each(add, range(count), make(), make, workers))
    assert [value for value, _ in done] == [100 + item for item in range(count)]
    here = {process for _, process in done} == {os.getpid()}
    assert count == 0 or here == (workers == 1 or count == 1)


def test_a_process_that_ends():
    refused('a process ended by itself', lambda: list(each(end, range(4), None, list, 2)))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_gone_on_with(tmp_path, number):
    """A signal to the group of `prepare.py`, as a terminal sends it; then the same command again:
    the others, that have it too, say nothing, and one process makes the same faces."""
    paths = [tmp_path / f'source/P{k % 3}/{k}.png' for k in range(24)]
    rows = {path.name: photograph(path, seed=k) for k, path in enumerate(paths)}
    points_csv(tmp_path / 'points.csv', rows)
    (tmp_path / 'ages.csv').write_text(''.join(f'{k}.png,{20 + k}\n' for k in range(24)))
    files = ['--landmarks', tmp_path / 'points.csv', '--ages', tmp_path / 'ages.csv']
    folders = [tmp_path / 'source', tmp_path / 'target']
    line = [sys.executable, ROOT / 'prepare.py', *folders, *files, '--workers', '2']
    running = subprocess.Popen(line, start_new_session=True, stderr=subprocess.PIPE, text=True)
    report = tmp_path / 'target/report.csv'
    while running.poll() is None and (not report.exists() or report.read_text().count('\n') < 2):
        pass
    if running.poll() is None:
        os.killpg(running.pid, number)
    told = running.communicate()[1]
    expected = f'error: {number.name}: stopped; the same command goes on from here\n'
    assert running.returncode == 0 or told == expected
    command(*folders, *files)
    command(folders[0], tmp_path / 'other', *files)
    ours, theirs = (contents(tmp_path / name) for name in ('target', 'other'))
    faces = [name for name in ours if name.suffix == '.jpg']
    assert len(faces) == 25 and all(ours[name] == theirs[name] for name in faces)
