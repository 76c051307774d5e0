"""`verify.py --index` of photographs of 250 × 250, whole on all cores, and its parts on one.

    pip install -r requirements-prepare.txt
    python3 benchmarks/archive.py WEIGHTS ALIGNED [--photographs 10000] [--out FILE.json]

ALIGNED is a folder of folders of aligned faces, 112 high × 96 wide: each photograph is one of them,
pasted on grey. They are written to a temporary folder and removed.
"""

import itertools
import tempfile
from pathlib import Path

import numpy as np
import tables
import torch
from finding import composed
from measuring import clock, machine

import verify
from recognition.alignment import align, open_photograph
from recognition.detection import Detector
from recognition.embedding import extract
from recognition.weights import load_weights
from verification import portraits

FACES = 200  # that the parts are measured on


def write_photographs(aligned, folder, count):
    again = (composed(aligned, 'upright', count) for _ in itertools.count())  # if faces are fewer
    for k, (image, _) in zip(range(count), itertools.chain.from_iterable(again), strict=False):
        path = Path(folder, f'{k // 1000:03}', f'{k:06}.jpg')
        path.parent.mkdir(exist_ok=True, parents=True)
        image.crop((75, 75, 325, 325)).save(path, quality=95)


def parts(weights, folder):
    """Milliseconds a photograph, by part, on one core."""
    torch.set_num_threads(1)
    detector, files = Detector(), sorted(folder.rglob('*.jpg'))[:FACES]
    images = [open_photograph(file) for file in files]
    shown = [(image, face.points) for image in images for face in detector.find(image)]
    faces = [align(*one) for one in shown]
    pixels = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)
    model, _ = load_weights(weights, 'cpu')
    works = {
        'decode': lambda: [open_photograph(file) for file in files],
        'find': lambda: [detector.find(image) for image in images],
        'align': lambda: [align(*one) for one in shown],
        'embed, face and mirror': lambda: extract(model, pixels.split(32), 'cpu', keep=['x_id']),
    }
    if ages := portraits.age_model():
        works['age'] = lambda: [ages.estimate(face) for face in faces]
    return {name: round(1000 * clock(work) / len(files), 2) for name, work in works.items()}


def run(args):
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder, 'photographs')
        write_photographs(args.aligned, photographs, args.photographs)
        line = [args.weights, '--index', str(photographs), f'{folder}/archive.index', '--ctx', '-1']
        whole = clock(lambda: verify.run(verify.arguments(line)))
        report = {**machine(), 'photographs': args.photographs, 'seconds': round(whole, 1)}
        report['ms of parts, one core'] = parts(args.weights, photographs)
    tables.write(report, args.out)


def arguments():
    parser = tables.parser(__doc__)
    parser.add_argument('weights', metavar='WEIGHTS')
    parser.add_argument('aligned', metavar='ALIGNED')
    parser.add_argument('--photographs', type=int, default=10_000)
    parser.add_argument('--out', type=Path, metavar='FILE.json')
    return parser.parse_args()


if __name__ == '__main__':
    run(arguments())
