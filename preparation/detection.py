"""Where the faces are in a photograph, and their five points: MTCNN of facenet-pytorch, whose weights come inside the package."""
from typing import NamedTuple

import numpy as np
import torch

from preparation.alignment import TEMPLATE, similarity, warp
from utils import UserError

LONGEST, SMALLEST = 1024, 20  # pixels of the longer side that the detector looks at, and of the smallest face it finds there
SURE = .95  # the least score of a face: below it are wheels and sleeves


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
        self.network = MTCNN(min_face_size=SMALLEST, keep_all=True, device='cpu')

    @torch.inference_mode()
    def find(self, image):
        """The faces in an RGB image, the largest first: a list of Face."""
        scale = max(1, max(image.size) / LONGEST)
        seen = image.resize([max(1, round(side / scale)) for side in image.size], reducing_gap=3.) if scale > 1 else image
        if min(seen.size) < SMALLEST:
            return []
        boxes, scores, points = self.network.detect(seen, landmarks=True)
        if boxes is None:
            return []
        factors = np.divide(image.size, seen.size)
        found = [Face(tuple((np.asarray(box, float).reshape(2, 2) * factors).ravel().tolist()),
                      (self._look_again(seen, np.asarray(five, float)) + .5) * factors - .5, float(score))
                 for box, five, score in zip(boxes, points, scores) if score >= SURE]
        return sorted(found, key=lambda face: -face.area)

    def _look_again(self, image, points):
        """The points (5, 2) as the last of MTCNN's networks sees them in the face upright, and in its mirror: at half the error."""
        left, top, side = 0, 14, 96  # the square of the aligned face, about the box that the network was trained on
        to_crop = similarity(points, (TEMPLATE - [left, top] + .5) / side * 48 - .5)
        crop = np.asarray(warp(image, to_crop, (48, 48)), np.float32)
        _, fractions, _ = self.network.onet(torch.from_numpy(np.stack([crop, crop[:, ::-1]])).permute(0, 3, 1, 2).sub(127.5).div(128))
        seen, mirrored = fractions.numpy().astype(float).reshape(2, 2, 5).transpose(0, 2, 1)
        mirrored = np.stack([1 - mirrored[:, 0], mirrored[:, 1]], 1)[[1, 0, 2, 4, 3]]  # left is right there
        again = ((seen + mirrored) / 2 * 48 - .5 - to_crop[:, 2]) @ np.linalg.inv(to_crop[:, :2]).T
        # half a face that the photograph cuts off can send it astray
        return again if np.hypot(*(again - points).T).max() < .5 * np.hypot(*(points[1] - points[0])) else points


def choose(faces, size, rule):
    """One of `faces`, of which there is at least one, in an image of size (width, height).

    `rule` is 'largest', or 'central': the one whose box's middle is nearest to the image's.
    """
    if rule == 'largest':
        return max(faces, key=lambda face: face.area)
    left, top, right, bottom = np.array([face.box for face in faces]).T
    return faces[int(np.argmin(np.hypot((left + right - size[0]) / 2, (top + bottom - size[1]) / 2)))]
