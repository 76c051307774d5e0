"""Where the faces are in a photograph, and their five points: facenet-pytorch's MTCNN.

Its weights come inside the package.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from recognition.alignment import TEMPLATE, similarity, warp
from utils import UserError

LONGEST = 1024  # pixels of the longer side of what the detector sees
SMALLEST = 20  # pixels of the smallest face that it finds there
SURE = 0.95  # the least score of a face: below it are wheels and sleeves


class Face(NamedTuple):
    """A face found: box (left, top, right, bottom) and points (5, 2) in pixels of the photograph.

    The points (x, y) are in the template's order; the score is between 0 and 1.
    """

    box: tuple
    points: np.ndarray
    score: float

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class Detector:
    """MTCNN (Zhang et al., 2016) on the CPU. Raises UserError where it isn't installed."""

    def __init__(self):
        try:
            from facenet_pytorch import MTCNN
        except ImportError:
            raise UserError(
                'finding faces needs facenet-pytorch: pip install -r requirements-prepare.txt; '
                'or bring the points yourself with --landmarks'
            ) from None
        self.network = MTCNN(min_face_size=SMALLEST, keep_all=True, device='cpu')

    @torch.inference_mode()
    def find(self, image: Image.Image) -> list[Face]:
        """The faces in an RGB image, the largest first."""
        seen, scale = image, max(1, max(image.size) / LONGEST)
        if scale > 1:
            size = [max(1, round(side / scale)) for side in image.size]
            seen = image.resize(size, reducing_gap=3.0)
        if min(seen.size) < SMALLEST:
            return []
        boxes, scores, points = self.network.detect(seen, landmarks=True)
        if boxes is None:
            return []
        factors = np.divide(image.size, seen.size)
        found = []
        for box, five, score in zip(boxes, points, scores, strict=True):
            if score >= SURE:
                box = (np.asarray(box, float).reshape(2, 2) * factors).ravel().tolist()
                five = (self._refine(seen, np.asarray(five, float)) + 0.5) * factors - 0.5
                found.append(Face(tuple(box), five, float(score)))
        return sorted(found, key=lambda face: -face.area)

    def _refine(self, image, points):
        """The points (5, 2) as MTCNN's last network sees them in the upright face and its mirror.

        That halves their error.
        """
        # the square of the aligned face that the network was trained on
        left, top, side = 0, 14, 96
        to_crop = similarity(points, (TEMPLATE - [left, top] + 0.5) / side * 48 - 0.5)
        crop = np.asarray(warp(image, to_crop, (48, 48)), np.float32)
        both = torch.from_numpy(np.stack([crop, crop[:, ::-1]])).permute(0, 3, 1, 2)
        _, fractions, _ = self.network.onet(both.sub(127.5).div(128))
        seen, mirrored = fractions.numpy().astype(float).reshape(2, 2, 5).transpose(0, 2, 1)
        # left is right in the mirror
        mirrored = np.stack([1 - mirrored[:, 0], mirrored[:, 1]], 1)[[1, 0, 2, 4, 3]]
        refined = (seen + mirrored) / 2 * 48 - 0.5 - to_crop[:, 2]
        refined = refined @ np.linalg.inv(to_crop[:, :2]).T
        # half a face, cut off by the photograph's edge, can lead it astray
        moved, eyes = np.hypot(*(refined - points).T).max(), np.hypot(*(points[1] - points[0]))
        return refined if moved < 0.5 * eyes else points


def choose(faces: Sequence[Face], size: tuple[int, int], rule: str) -> Face:
    """One of `faces`, of which there is at least one, in an image of `size` (width, height).

    `rule` is 'largest', or 'central': the one whose box's middle is nearest to the image's.
    """
    if rule == 'largest':
        return max(faces, key=lambda face: face.area)
    left, top, right, bottom = np.array([face.box for face in faces]).T
    return faces[
        int(np.argmin(np.hypot((left + right - size[0]) / 2, (top + bottom - size[1]) / 2)))
    ]
