"""The warp to the template, and the detector."""

import numpy as np
import pytest
from photographs import needs_detector, photograph
from PIL import Image

from recognition.alignment import TEMPLATE, align, open_photograph, similarity
from synthesis import drawing


def turned(angle, scale, shift):
    a = scale * np.exp(1j * np.radians(angle))
    return np.array([[a.real, -a.imag, shift[0]], [a.imag, a.real, shift[1]]])


def test_similarity_is_the_least_squares_one():
    points = TEMPLATE * 2 + np.random.default_rng(0).normal(0, 3, (5, 2))

    def error(a, b, x, y):
        return ((points @ np.array([[a, b], [-b, a]]) + [x, y] - TEMPLATE) ** 2).sum()

    matrix = similarity(points)
    best = np.array([matrix[0, 0], matrix[1, 0], *matrix[:, 2]])
    for step in (*1e-3 * np.eye(4), *-1e-3 * np.eye(4)):
        assert error(*best + step) > error(*best)


@pytest.mark.parametrize('points', [np.ones((5, 2)), np.full((5, 2), np.nan), TEMPLATE[:3]])
def test_similarity_refuses_what_is_no_face(points):
    with pytest.raises(ValueError):
        similarity(points)


@pytest.mark.parametrize('angle, scale', [(0, 1.0), (-170, 2.7), (-35, 6.0), (90, 14.0)])
def test_points_land_on_the_template(angle, scale):
    """A spot at each point of a photograph has its centre of mass where the template has it."""
    side = int(160 * scale)
    matrix = turned(angle, scale, (0, 0))
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


def test_a_large_face_is_averaged_not_sampled():
    """Lines a pixel wide, in a face forty times the crop, are grey there and not a pattern."""
    stripes = np.zeros((4480, 3840, 3), np.uint8)
    stripes[:, ::2] = 255
    aligned = np.asarray(align(Image.fromarray(stripes), (TEMPLATE + 0.5) * 40 - 0.5), float)
    assert np.abs(aligned[8:-8, 8:-8] - 127.5).max() < 4


def test_sixty_megapixels(tmp_path, recwarn):
    """A photograph of 60 megapixels is read, and its face aligned as that of a small one."""
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
    from recognition.detection import Detector

    detector = Detector()
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
