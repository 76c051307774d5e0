"""Where the faces are in a photograph, and their five points: MTCNN of facenet-pytorch, whose weights come inside the package."""
from typing import NamedTuple

import numpy as np
import torch

from utils import UserError

LONGEST = 1024  # pixels of the longer side that the detector looks at; the smallest face it finds has 20 of them


class Face(NamedTuple):
    """box (left, top, right, bottom) and points (5, 2) in pixels of the photograph, (x, y), in the template's order; score 0 to 1."""
    box: tuple
    points: np.ndarray
    score: float

    @property
    def area(self):
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class Detector:
    """MTCNN (Zhang et al., 2016) on the CPU. Raises UserError where facenet-pytorch isn't installed."""

    def __init__(self):
        try:
            from facenet_pytorch import MTCNN
        except ImportError:
            raise UserError('finding faces needs facenet-pytorch: pip install -r requirements-prepare.txt; '
                            'or bring the points yourself with --landmarks') from None
        self.network = MTCNN(keep_all=True, device='cpu')

    @torch.inference_mode()
    def find(self, image):
        """The faces in an RGB image, the largest first: a list of Face."""
        scale = max(1, max(image.size) / LONGEST)
        seen = image.resize([max(1, round(side / scale)) for side in image.size], reducing_gap=3.) if scale > 1 else image
        boxes, scores, points = self.network.detect(seen, landmarks=True)
        if boxes is None:
            return []
        factors = np.divide(image.size, seen.size)
        found = [Face(tuple((np.asarray(box, float).reshape(2, 2) * factors).ravel().tolist()), (np.asarray(five, float) + .5) * factors - .5, float(score))
                 for box, five, score in zip(boxes, points, scores)]
        return sorted(found, key=lambda face: -face.area)


def choose(faces, size, rule):
    """One of at least one faces in an image of size (width, height): the 'largest', or the most 'central', whose box's middle is nearest."""
    if rule == 'largest':
        return max(faces, key=lambda face: face.area)
    left, top, right, bottom = np.array([face.box for face in faces]).T
    return faces[int(np.argmin(np.hypot((left + right - size[0]) / 2, (top + bottom - size[1]) / 2)))]
