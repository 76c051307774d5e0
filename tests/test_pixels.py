"""The file of decoded faces: kept while it is used, on disks and systems that differ, read ahead;
and how far reading is.
"""

import errno
import io
import os
import pickle
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import listed, pixels_of
from test_images import encoded

from dataset import Faces
from storage import rows
from storage.images import decode
from system import progress


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        path = tmp_path / 'set' / f'p{number % 2}' / f'{number}_{20 + number}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded())
    return tmp_path / 'set'


def checked(folder):
    faces = listed(folder)
    assert faces.check() == [] and faces.pixels
    return faces


def test_a_file_that_a_run_uses_is_kept(folder):
    """A second run on the changed set begins while the first is at work."""
    first = checked(folder)
    before, kept = pixels_of(first), Path(first.pixels.path)
    (folder / 'p0' / 'more_50.jpg').write_bytes(encoded())
    second = checked(folder)
    assert second.pixels.path != str(kept) and kept.exists()
    worker = pickle.loads(pickle.dumps(first))  # which opens it for itself
    assert (pixels_of(first) == before).all() and (pixels_of(worker) == before).all()
    del first, worker
    (folder / 'p0' / 'more_50.jpg').unlink()
    (folder / 'p0' / 'other_50.jpg').write_bytes(encoded())
    checked(folder)
    assert not kept.exists(), 'nobody uses it any more'


def test_a_read_only_disk_is_said_and_faces_are_decoded(folder, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(rows, 'open', refuse, raising=False)
    monkeypatch.setattr(Path, 'unlink', refuse)  # of a file that never was, too
    old = folder.parent / f'.set.{"0" * 32}.tmp'
    old.write_bytes(b'')
    os.utime(old, (0, 0))  # there is something to sweep
    faces = listed(folder)
    (notice,) = faces.check()
    assert 'Read-only file system for ' in notice and 'every epoch decodes anew' in notice
    assert len(pixels_of(faces)) == 6


def test_threads_write_faces_that_numpy_reads(folder):
    faces = listed(folder)
    faces.check(workers=4)
    kept = np.load(faces.pixels.path)
    assert kept.shape == (6, 112, 96, 3)
    for index, image in enumerate(pixels_of(faces)):
        assert (image == decode(faces.encoded(index))).all() and (image == kept[index]).all()


# how far it is


def output_of(monkeypatch, terminal, seconds, work):
    """What work() writes to stderr where a line is due every `seconds`."""
    stderr = io.StringIO()
    monkeypatch.setattr(stderr, 'isatty', lambda: terminal, raising=False)
    monkeypatch.setattr(sys, 'stderr', stderr)
    monkeypatch.setattr(progress, 'SECONDS', seconds)
    work()
    return stderr.getvalue()


def test_without_a_terminal_there_are_lines_with_rate_and_time_left(folder, monkeypatch):
    def work():
        with progress.progress(None, 'reading x', 300, unit=' faces') as bar:
            for _ in range(3):
                time.sleep(0.02)
                bar.update(100)

    lines = output_of(monkeypatch, False, 0.01, work).split('\n')
    assert len(lines) == 4 and lines[-1] == '' and '\r' not in ''.join(lines)
    for number, line in enumerate(lines[:-1], 1):
        assert line.startswith(f'reading x: {100 * number} of 300 faces, ')
        assert line.endswith(' left') and ' faces/s, ' in line
    assert output_of(monkeypatch, False, 60, work) == '', 'none in the first minute'


def test_on_a_terminal_there_is_a_bar_that_vanishes(folder, monkeypatch):
    text = output_of(monkeypatch, True, 60, lambda: list(progress.progress(range(3), 'reading x')))
    assert text.startswith('\rreading x:   0%') and text.endswith('\r')


def test_reading_a_set_says_how_far_it_is(folder, monkeypatch):
    monkeypatch.setattr(Faces, 'read', lambda self, index: time.sleep(0.01))
    faces = listed(folder)
    text = output_of(monkeypatch, False, 0, lambda: faces.check(cache=False, workers=1))
    assert f'reading {folder}: 6 of 6 faces, ' in text
