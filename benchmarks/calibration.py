"""Do thresholds by age hold on people they weren't fitted on?

    python3 benchmarks/calibration.py NAME weights [--on OTHER] [--splits 10] [--out JSON]
    python3 benchmarks/calibration.py vectors.npz       # embeddings, identities, ages

NAME is an entry of meta.py; its val_root is read, else its train_root. In every split one half of
the people gives thresholds, by age and one for all ages, and the other half is counted at them, in
each cell of ages with 200 pairs of different people or more. With --on, thresholds of NAME's first
half are counted on the second half of OTHER. The report has a cell's false accepts over the rate
that was asked: the mean over the splits, and the share of splits beyond a factor of 1.5.
"""

from pathlib import Path

import numpy as np
import tables

import meta
import utils
from dataset import Faces, evaluation_loader
from evaluation import age_calibration as calibration
from evaluation.pairs import parts
from recognition.embedding import extract
from recognition.weights import load_weights

ENOUGH, FACTOR = 200, 1.5


def read(name, model):
    """Embeddings, labels and ages: of an entry, or of stored vectors."""
    if name.endswith('.npz'):
        with np.load(name) as file:
            vectors, labels, ages = (file[key] for key in ('embeddings', 'identities', 'ages'))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels, ages
    entry = getattr(meta, name)
    root = entry['val_root'] or entry['train_root']
    faces = Faces(root, entry['pat'], entry['pos'], model.width)
    found = extract(model, evaluation_loader(faces), 'cpu', keep=('embedding',), progress=name)
    return found['embedding'], faces.labels, faces.ages


def half_of(faces, seed, second):
    """The scored pairs of one half of the people."""
    embeddings, labels, ages = faces
    half = (parts(labels, 2, seed) == 1) ^ second
    return calibration.score_pairs(embeddings[half], labels[half], np.asarray(ages)[half], seed)


def split(fitted_on, counted_on, fars, seed, confidence):
    """One split's rows, of every cell with ENOUGH pairs of different people and a rate promised."""
    first, second = half_of(fitted_on, seed, False), half_of(counted_on, seed, True)
    stored, rows = calibration.fit_by_age(first, confidence=confidence), []
    for far in fars:
        single = float(np.quantile(first.similarity[~first.same], 1 - far))
        rows += [
            row | {'asked': far}
            for row in calibration.measure_cells(stored, second, far, single)
            if row['impostor'] >= ENOUGH and row['promised']
        ]
    return rows, calibration.reliability(stored, second)['ece']


def summary(rows):
    """A dict for each rate: cells, and how far false accepts are from what was asked."""
    report = []
    for far in sorted({row['asked'] for row in rows}, reverse=True):
        here = [row for row in rows if row['asked'] == far]
        entry = {'asked': far, 'cells': len({row['cell'] for row in here}), 'rows': len(here)}
        for way in ('far', 'single_far'):
            ratios = np.array([row[way] / far for row in here])
            cells = [
                np.mean([row[way] / far for row in here if row['cell'] == cell])
                for cell in {row['cell'] for row in here}
            ]
            entry[way] = {
                'worst_cell': float(max(cells)),
                'cells_beyond': int(sum(value > FACTOR for value in cells)),
                'splits_beyond': float((ratios > FACTOR).mean()),
            }
        for way in ('tar', 'single_tar'):
            weights = [row['genuine'] for row in here if row[way] is not None]
            values = [row[way] for row in here if row[way] is not None]
            entry[way] = float(np.average(values, weights=weights)) if sum(weights) else None
        report.append(entry)
    return report


def run(args):
    model = load_weights(args.weights)[0] if args.weights else None
    faces = read(args.name, model)
    others = read(args.on, model) if args.on else faces
    splits = [split(faces, others, args.far, seed, args.confidence) for seed in range(args.splits)]
    rows, errors = [row for part, _ in splits for row in part], [error for _, error in splits]
    labels = faces[1]
    report = {
        'data': Path(args.name).stem,
        'on': args.on and Path(args.on).stem,
        'faces': len(labels),
        'people': len(np.unique(labels)),
        'people_on': len(np.unique(others[1])),
        'splits': args.splits,
        'summary': summary(rows),
        'ece': float(np.mean(errors)),
    }
    tables.write(report, args.out)


def arguments():
    parser = tables.parser(__doc__)
    add = parser.add_argument
    add('name', help='an entry of meta.py, or stored vectors (.npz)')
    add('weights', nargs='?', help='not for stored vectors')
    add('--on', metavar='NAME', help='whose people are counted, if not the same set')
    add('--confidence', type=float, default=calibration.CONFIDENCE)
    add('--far', type=float, nargs='+', default=[0.1, 0.01])
    add('--splits', type=int, default=10)
    add('--out', type=Path, metavar='JSON')
    return parser.parse_args()


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
