"""`verify.py --index` of photographs of 250 × 250, whole on all cores, and its parts on one.

    pip install -r requirements-prepare.txt
    python3 benchmarks/archive.py WEIGHTS ALIGNED [--photographs 10000] [--out FILE.json]

ALIGNED is a folder of folders of aligned faces, 112 high × 96 wide: each photograph is one of them,
pasted on grey. They are written to a temporary folder and removed.
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import tables
import torch
from finding import composed, parts
from PIL import Image

import verify
from recognition.detection import Detector
from recognition.embedding import extract
from recognition.weights import load_weights
from training.log import run_summary
from verification import index, portraits

FACES = 200  # that the parts are measured on


def write_photographs(aligned, folder, count):
    for k, (image, _) in enumerate(composed(aligned, 'upright', count)):
        path = Path(folder, f'{k // 1000:03}', f'{k:06}.jpg')
        path.parent.mkdir(exist_ok=True)
        image.crop((75, 75, 325, 325)).save(path, quality=95)
    for more in range(k + 1, count):  # fewer faces than photographs: some again
        source = Path(folder, f'{more % (k + 1) // 1000:03}', f'{more % (k + 1):06}.jpg')
        path = Path(folder, f'{more // 1000:03}', f'{more:06}.jpg')
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(source.read_bytes())


def clock(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def measure(args):
    torch.set_num_threads(1)
    found = parts(args.aligned, Detector(), FACES)
    model, info = load_weights(args.weights, 'cpu')
    files = sorted(Path(args.aligned).glob('*/*.jpg'))[:FACES]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    faces = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    embedding = clock(lambda: extract(model, faces.split(32), 'cpu', keep=['embedding']))
    found['embed, face and mirror'] = round(1000 * embedding / len(faces), 2)
    if model_of_ages := portraits.age_model():
        images = [Image.fromarray(face) for face in pixels]
        seconds = clock(lambda: model_of_ages.estimate_all(images))
        found['age'] = round(1000 * seconds / len(images), 2)
    torch.set_num_threads(os.cpu_count())
    with tempfile.TemporaryDirectory() as folder:
        photographs, archive = Path(folder, 'photographs'), Path(folder, 'archive.index')
        photographs.mkdir()
        write_photographs(args.aligned, photographs, args.photographs)
        line = [args.weights, '--index', str(photographs), str(archive), '--ctx', '-1']
        whole = clock(lambda: verify.run(verify.arguments(line)))
        known = list(index.Index.open(archive, info.sha256).photographs())
        again = str(Path(folder, 'again.index'))
        writing = clock(
            lambda: index.write(again, folder, info.sha256, known, False, 2 * model.dim)
        )
    found['write'] = round(1000 * writing / args.photographs, 2)
    report = {'command': tables.command(), **run_summary(torch.device('cpu'))}
    report |= {'photographs': args.photographs, 'cores': os.cpu_count()}
    report |= {'faces': sum(len(one.faces) for one in known), 'seconds': round(whole, 1)}
    return report | {'ms of parts, one core': found}


def markdown(report):
    rows = [[name, f'{ms:.2f}'] for name, ms in report['ms of parts, one core'].items()]
    count, cores = report['photographs'], report['cores']
    whole = 1000 * report['seconds'] / count
    rows.append([f'all of it, {count:,} photographs, {cores} cores', f'{whole:.2f}'])
    return tables.markdown(['part', 'ms a photograph'], rows)


def arguments():
    parser = tables.parser(__doc__)
    parser.add_argument('weights', metavar='WEIGHTS')
    parser.add_argument('aligned', metavar='ALIGNED')
    parser.add_argument('--photographs', type=int, default=10_000)
    parser.add_argument('--out', type=Path, metavar='FILE.json')
    return parser.parse_args()


def run():
    args = arguments()
    report = measure(args)
    print(markdown(report))
    if args.out:
        tables.write(report, args.out)


if __name__ == '__main__':
    run()
