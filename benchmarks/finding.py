"""Faces found as prepare.py finds them and as MTCNN does, in the same photographs, on one core.

    pip install -r requirements-prepare.txt
    python3 benchmarks/finding.py ALIGNED [--photographs DIR] [--faces N] [--out FILE.json]

ALIGNED is a folder of folders of aligned faces, 112 high × 96 wide: they are scaled, turned, partly
hidden and pasted on grey, so that the eyes are known from the template. DIR holds photographs and
files in dlib's XML with 68 marked points a face, such as dlib's own examples/faces: there a person
marked the eyes. No face is written.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tables
import torch
from PIL import Image

from recognition.alignment import TEMPLATE, open_photograph
from recognition.detection import Detector

CONDITIONS = {  # of composed photographs: the face's height in pixels, degrees, what is hidden
    'upright': (112, 0, None),
    'large': (300, 0, None),
    'small': (48, 0, None),
    'turned by 30°': (112, 30, None),
    'turned by 60°': (112, 60, None),
    'mouth hidden': (112, 0, np.s_[72:, :]),
    'an eye hidden': (112, 0, np.s_[40:62, :48]),
}
SCALES = {'by hand': 1, 'by hand, half as large': 1 / 2, 'by hand, a third as large': 1 / 3}


def mtcnn(placing: Detector) -> Callable[[Image.Image], list[np.ndarray]]:
    """facenet-pytorch's MTCNN, its points placed once more as ours are."""
    from facenet_pytorch import MTCNN

    network = MTCNN(min_face_size=20, keep_all=True, device='cpu')

    def find(image):
        _, scores, points = network.detect(image, landmarks=True)
        points = [] if points is None else points[scores >= 0.95].astype(float)
        return list(placing.placed(image, points)[0]) if len(points) else []

    return find


def composed(folder: str, condition: str, faces: int) -> Iterator[tuple]:
    """(image, eyes (1, 2, 2)) of aligned faces, the eyes as in the template."""
    rng, (size, degrees, hidden) = np.random.default_rng(0), CONDITIONS[condition]
    files = sorted(Path(folder).glob('*/*.jpg'))
    for k in rng.permutation(len(files))[:faces]:
        pixels = np.asarray(Image.open(files[k]).convert('RGB')).copy()
        if hidden:
            pixels[hidden] = rng.integers(0, 256, 3)
        angle = np.radians(degrees * rng.choice([-1, 1]))
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        turn, middle = turn * size / 112, rng.uniform(0.4, 0.6, 2) * (400, 400)
        inverse = np.linalg.inv(turn)
        matrix = np.hstack([inverse, ([48, 56] - inverse @ middle)[:, None]]).ravel().tolist()
        grey, how = (int(rng.integers(40, 216)),) * 3, (Image.Transform.AFFINE, matrix)
        image = Image.fromarray(pixels).transform(
            (400, 400), *how, Image.Resampling.BICUBIC, fillcolor=grey
        )
        yield image, ((TEMPLATE[:2] + 0.5 - [48, 56]) @ turn.T + middle - 0.5)[None]


def marked(folder: str, scale: float) -> Iterator[tuple]:
    """(image, eyes (faces, 2, 2)) of photographs in dlib's XML; an eye is the mean of 6 points."""
    for file in sorted(Path(folder).glob('*.xml')):
        for entry in ElementTree.parse(file).iter('image'):
            boxes = [sorted(box.iter('part'), key=lambda p: int(p.get('name'))) for box in entry]
            marks = [[(float(p.get('x')), float(p.get('y'))) for p in box] for box in boxes]
            marks = np.array([points for points in marks if len(points) == 68])
            if len(marks):
                image = open_photograph(Path(folder, entry.get('file')))
                size = [round(side * scale) for side in image.size]
                eyes = np.stack([marks[:, 36:42].mean(1), marks[:, 42:48].mean(1)], 1)
                yield image.resize(size, Image.Resampling.LANCZOS), (eyes + 0.5) * scale - 0.5


def measure(photographs: Iterator[tuple], finders: dict) -> dict:
    """Of each finder {found, elsewhere, median, 95 %, ms}: errors in distances of the eyes."""
    errors, times = {name: [] for name in finders}, dict.fromkeys(finders, 0.0)
    counts, elsewhere = [0, 0], dict.fromkeys(finders, 0)
    for image, truth in photographs:
        counts = [counts[0] + 1, counts[1] + len(truth)]
        for name, find in finders.items():
            begin = time.thread_time()
            eyes = [points[:2] for points in find(image)]
            times[name] += time.thread_time() - begin
            apart = np.hypot(*(truth[:, 1] - truth[:, 0]).T)
            far = [np.hypot(*(np.array(eyes) - one).T).mean(0) if eyes else [9e9] for one in truth]
            near = [min(distances) / eye for distances, eye in zip(far, apart, strict=True)]
            near = [error for error in near if error < 0.5]
            errors[name] += near
            elsewhere[name] += max(0, len(eyes) - len(near))
    row = {'photographs': counts[0], 'faces': counts[1]}
    for name in finders:
        middle, most = np.quantile(errors[name] or [np.nan], [0.5, 0.95]).round(4).tolist()
        row[name] = {'found': len(errors[name]), 'elsewhere': elsewhere[name], 'median': middle}
        row[name] |= {'95 %': most, 'ms': round(1000 * times[name] / counts[0], 1)}
    return row


def main() -> None:
    parser = tables.parser(__doc__)
    parser.add_argument('aligned', metavar='ALIGNED')
    parser.add_argument('--photographs', metavar='DIR')
    parser.add_argument('--faces', type=int, default=100)
    parser.add_argument('--out', metavar='FILE.json')
    args = parser.parse_args()
    torch.set_num_threads(1)
    detector = Detector()
    finders = {
        'prepare.py': lambda image: [face.points for face in detector.find(image)],
        'MTCNN': mtcnn(detector),
    }
    sets = {}
    if args.photographs:
        sets = {name: marked(args.photographs, scale) for name, scale in SCALES.items()}
    sets |= {name: composed(args.aligned, name, args.faces) for name in CONDITIONS}
    report = {'command': tables.command(), 'threads': 1, 'rows': []}
    for name, photographs in sets.items():
        report['rows'].append({'condition': name, **measure(photographs, finders)})
        print(report['rows'][-1], flush=True)
        if args.out:  # at each row: the run takes minutes
            tables.write(report, args.out)


if __name__ == '__main__':
    main()
