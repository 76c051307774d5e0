"""Benchmarks from raw photographs: which face is taken, what is kept, what is counted."""

import json
import shutil

import numpy as np
import pytest
from conftest import execute, listed, refused
from PIL import Image

import evaluate
from evaluation import aligning
from preparation.sharding import write_shards
from recognition.alignment import TEMPLATE
from recognition.detection import Detection

SIDE = 250  # of the photographs, as in LFW


class Finds:
    """A detector that knows where `photograph` puts its faces, and how often it was asked."""

    asked = 0

    def find(self, image):
        Finds.asked += 1
        colour = np.asarray(image)[0, 0]
        if colour[2] > 128:  # blue ones have no face
            return []
        corner, points = np.array([(SIDE - 112) / 2, (SIDE - 112) / 2]), TEMPLATE + [8, 0]
        return [
            Detection((0, 0, 200, 200), points * 1.5 + [-30, -40], 0.99),  # larger, off the middle
            Detection((*corner, *(corner + 112)), points + corner, 0.98),
        ]


def photograph(path, seed, face=True):
    """A photograph whose middle 112 × 112 pixels are noise, its corner tells of a face or none."""
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[..., 2] = 0 if face else 255
    low = (SIDE - 112) // 2
    middle = np.random.default_rng(seed).integers(0, 256, (112, 112, 3), np.uint8)
    pixels[low : low + 112, low : low + 112] = middle
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return middle


@pytest.fixture(autouse=True)
def finds(monkeypatch):
    monkeypatch.setattr(aligning, 'Detector', Finds)
    monkeypatch.setattr(Finds, 'asked', 0)


@pytest.fixture
def align(tmp_path):
    return lambda sources: aligning.align_files(sources, sources, tmp_path / 'kept', 1)


def test_the_face_nearest_to_the_middle_is_found_once_and_kept(tmp_path, align):
    sources = [str(tmp_path / f'{k}.png') for k in range(3)]
    for k in range(2):
        photograph(tmp_path / f'{k}.png', k)
    first, _ = align(sources[:2])
    photograph(tmp_path / '2.png', 2, face=False)
    again, missed = align(sources)
    assert again[:2] == first and Finds.asked == 3 and missed.tolist() == [False, False, True]
    assert align(sources)[0] == again
    photograph(tmp_path / '0.png', 9)  # another photograph of that name
    changed, _ = align(sources)
    assert Finds.asked == 4 and changed[0] != first[0] and changed[1:] == again[1:]
    expected = [photograph(tmp_path / f'{k}.png', k) for k in range(3)]
    paths, missed = align([str(tmp_path / f'{k}.png') for k in range(3)])
    assert missed.tolist() == [False] * 3
    for path, face in zip(paths, expected, strict=True):
        assert np.abs(np.asarray(Image.open(path), int) - face).max() <= 1  # to a rounding
    photograph(tmp_path / 'a.png', 0)
    (tmp_path / 'b.png').write_bytes(b'no image')
    sources = [str(tmp_path / name) for name in ('a.png', 'b.png', 'c.png')]
    refused("1 of 2 photographs can't be read: .*b.png", align, sources[:2])
    refused('1 of 3 images are missing.*c.png', align, sources)


def test_raw_lfw_from_the_command_line(tmp_path, weights, monkeypatch, capsys):
    lines = ['2\t2'] + 2 * ['A\t1\t2', 'B\t1\t2', 'A\t1\tB\t1', 'A\t2\tB\t2']
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'pairs.txt').write_text('\n'.join(lines))
    for number, (name, index) in enumerate([('A', 1), ('A', 2), ('B', 1), ('B', 2)]):
        photograph(tmp_path / 'raw' / 'lfw' / name / f'{name}_{index:04d}.jpg', number, number != 3)
    monkeypatch.setitem(evaluate.READERS, 'lfw', lambda path: evaluate.protocols.lfw(path, 2, 2))
    monkeypatch.setattr(evaluate.os, 'cpu_count', lambda: 1)
    weights = shutil.copy(weights, tmp_path)  # beside which the report is
    execute(evaluate, -1, weights, 'lfw', tmp_path / 'raw', '--align')
    (result,) = tmp_path.glob('eval/lfw-*/results.json')
    report = json.loads(result.read_text())['models'][0]
    assert report['alignment'] == {'photographs': 4, 'not_found': 1, 'share': 0.25}
    assert 'no face found in 1 of 4 photographs (25.00 %)' in capsys.readouterr().out
    assert len(list(tmp_path.glob('eval/aligned/*.png'))) == 4  # beside the reports of all weights


def test_faces_in_shards_and_bins_are_aligned_already(drawn, tmp_path, weights):
    pattern = write_shards(listed(drawn / 'val'), str(tmp_path / 'set'))
    line = -1, weights, 'folder', pattern, '--align', '--out', tmp_path / 'out'
    refused('not for faces in shards', execute, evaluate, *line)
    with pytest.raises(SystemExit):
        evaluate.arguments(['-1', 'w.pth', 'bin', 'a.bin', '--align'])
