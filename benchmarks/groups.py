"""One person, one group? B³ of groups of faces, by ways of grouping, at thresholds of other people.

    python3 benchmarks/groups.py --fit FIT.npz --sets NAME=SET.npz … [--network NAME] [--out JSON]
    python3 benchmarks/groups.py --scale 20000 200000 [--out JSON]    # of made-up vectors
    python3 benchmarks/groups.py --picture SHEETS groups.jpg    # some groups' sheets as one

A file of vectors has `x` (faces, 2, D), the features of a face and of its mirror, `identities`,
and `ages` in years. On the people of FIT the decision by ages is fitted,
R is solved in closed form as zero epochs do; on 200 of them each way finds its best threshold.
`P = ½` is what verify.py --group does, with no threshold of its own. Pieces are groups a person;
mixed is the share of faces in groups of more than one person.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import rivals
import tables
from measuring import clock, peak_resident
from PIL import Image
from sklearn.cluster import DBSCAN, HDBSCAN, AgglomerativeClustering

from evaluation import age_calibration
from evaluation.age_thresholds import AgeDecision
from verification import grouping
from verification.grouping import LogOdds

COSINES, ODDS = np.arange(0.1, 0.8, 0.05), np.arange(-1, 8, 0.5)
THRESHOLDS = 200  # people of FIT that thresholds are taken from
OLD = 18  # years up to which a face is a child's
NONE = np.empty((0, 2), int)
SPREAD = 1.2  # of a made-up person's faces, beside the distance between people
ALL_PAIRS = 25_000  # faces of which all pairs are compared at most
FIGURES = ('precision', 'recall', 'f', 'pieces', 'mixed_children', 'mixed_adults')


def read(path):
    """x (N, 2, D), labels (N,), ages (N,) of a file."""
    x, identities, ages = rivals.load(path)
    return x, np.unique(identities, return_inverse=True)[1], ages


def b_cubed(labels, groups, ages):
    """B³ precision, recall and F, pieces a person, and shares of faces in mixed groups."""
    people, labels = np.unique(labels, return_inverse=True)
    cells, counts = np.unique(labels * (groups.max() + 1) + groups, return_counts=True)
    person, group = np.divmod(cells, groups.max() + 1)
    precision = (counts**2 / np.bincount(groups)[group]).sum() / len(labels)
    recall = (counts**2 / np.bincount(labels)[person]).sum() / len(labels)
    mixed = (np.bincount(group) > 1)[groups]
    figures = [precision, recall, 2 * precision * recall / (precision + recall)]
    figures += [len(cells) / len(people), *(mixed[part] for part in (ages <= OLD, ages > OLD))]
    figures = [float(np.mean(value)) if np.size(value) else None for value in figures]
    return {name: value and round(value, 4) for name, value in zip(FIGURES, figures, strict=True)}


def _alone(groups):
    """Faces that a method calls noise, −1, are a group each."""
    noise = np.flatnonzero(groups < 0)
    groups[noise] = groups.max() + 1 + np.arange(len(noise))
    return np.unique(groups, return_inverse=True)[1]


def dbscan(distances, cut):
    return _alone(DBSCAN(eps=cut, min_samples=2, metric='precomputed').fit_predict(distances))


def hdbscan(distances, _):
    way = HDBSCAN(min_cluster_size=2, metric='precomputed', copy=True)  # it finds its own cuts
    return _alone(way.fit_predict(distances))


def whispers(distances, cut):
    """Chinese whispers (Biemann 2006): each face takes the label that weighs most around it."""
    weights, rng = np.where(distances < cut, 2 - distances, 0), np.random.default_rng(0)
    np.fill_diagonal(weights, 0)
    labels = np.arange(len(weights))
    for _ in range(10):
        for k in rng.permutation(len(weights)):
            near = np.flatnonzero(weights[k])
            if len(near):
                labels[k] = np.bincount(labels[near], weights[k, near]).argmax()
    return np.unique(labels, return_inverse=True)[1]


def linkage(kind):
    def way(distances, cut):
        how = dict(n_clusters=None, metric='precomputed', linkage=kind, distance_threshold=cut)
        return AgglomerativeClustering(**how).fit_predict(distances)

    return way


WAYS = {
    'DBSCAN': (dbscan, False),
    'HDBSCAN': (hdbscan, False),
    'Chinese whispers': (whispers, False),
    'complete linkage, cosine': (linkage('complete'), False),
    'average linkage, cosine': (linkage('average'), False),
    'average linkage, log-odds': (linkage('average'), True),
}
GROUP = '--group, P = ½'


def distances_of(embeddings, ages, decision, odds):
    """(N, N) float64, 0 on the diagonal: 1 − cosine, or a constant less the log-odds."""
    pairs = LogOdds(embeddings, ages, decision if odds else None)
    values = pairs.rows(0, len(pairs)).astype(float)
    distances = (20 - values if odds else 1 - values).clip(0)
    np.fill_diagonal(distances, 0)
    return (distances + distances.T) / 2


def best(way, known, decision):
    """A way as a function of embeddings and ages, at the threshold that is best on some of the
    people who are known."""
    if way == GROUP:
        return lambda e, ages: grouping.cluster(LogOdds(e, ages, decision), np.arange(len(e)), NONE)
    function, odds = WAYS[way]
    cuts = [0.0] if function is hdbscan else 20 - ODDS if odds else 1 - COSINES
    some = known[1] < THRESHOLDS
    embeddings, labels, ages = (values[some] for values in known)
    there = distances_of(embeddings, ages, decision, odds)
    cut = max(cuts, key=lambda cut: b_cubed(labels, function(there, cut), ages)['f'])
    return lambda e, ages: function(distances_of(e, ages, decision, odds), cut)


def run(args):
    fit, sets, rows = read(args.fit), dict(pair.split('=', 1) for pair in args.sets), []
    sets = {name: read(path) for name, path in sets.items()}
    for features, kind in (('untouched', rivals.as_it_is), ('after R', rivals.recipe)):
        change = rivals.solve(kind, *fit)
        known, *here = (
            (rivals.apply(*change, x).astype(np.float32), labels, ages)
            for x, labels, ages in (fit, *sets.values())
        )
        decision = AgeDecision(age_calibration.fit_by_age(age_calibration.score_pairs(*known)))
        for way in [*WAYS, GROUP]:
            grouped = best(way, known, decision)
            for name, (e, labels, ages) in zip(sets, here, strict=True):
                figures = b_cubed(labels, grouped(e, ages), ages)
                rows.append({'set': name, 'features': features, 'way': way, **figures})
                print(rows[-1], flush=True)
    people = {name: [len(labels), len(np.unique(labels))] for name, (_, labels, _) in sets.items()}
    report = {'network': args.network, 'fit': Path(args.fit).stem, 'sets': people, 'rows': rows}
    print(markdown(report))
    tables.write(report, args.out)


def markdown(report, features='after R'):
    """A row a way: all figures of the first set, B³ F of the others."""
    first, *others = report['sets']
    found = {(row['set'], row['way']): row for row in report['rows'] if row['features'] == features}
    rows = []
    for name, way in found:
        if name == first:
            figures = [found[first, way][key] for key in FIGURES]
            figures += [found[other, way]['f'] for other in others]
            rows.append([way, *('–' if value is None else f'{value:.3f}' for value in figures)])
    titles = ['way', 'B³ precision', 'recall', 'F']
    titles += ['pieces a person', 'children in mixed groups', 'adults']
    return tables.markdown([*titles, *(f'F, {other}' for other in others)], rows)


def picture(sheets, path, most=5):
    """The sheets of the first groups that fill a row or less, one below the other."""
    images = [Image.open(sheet) for sheet in sorted(Path(sheets).glob('*.jpg'))]
    images = [image for image in images if image.height < 1.5 * images[-1].height][:most]
    size = max(image.width for image in images), sum(image.height for image in images)
    whole = Image.new('RGB', size, 'white')
    for k, image in enumerate(images):
        whole.paste(image, (0, sum(above.height for above in images[:k])))
    whole.save(path, quality=85)


def grouped(count, way):
    """{'seconds', 'GiB', 'f'} of `count` made-up faces, ten a person; in a process of its own."""
    rng, labels, ages = np.random.default_rng(0), np.arange(count) // 10, np.full(count, 30.0)
    x = rng.normal(size=(count // 10, 256))[labels] + SPREAD * rng.normal(size=(count, 256))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    grouping.DENSE = count + 1 if way == 'all pairs' else min(grouping.DENSE, count // 2)
    groups = []

    def work():
        pairs = LogOdds(x, ages, threshold=0.3, slope=40.0)
        groups.append(grouping.cluster(pairs, np.arange(count), NONE))

    seconds, peak = clock(work), peak_resident() / 2**30
    f = b_cubed(labels, groups[0], ages)['f']
    return {'seconds': round(seconds, 1), 'GiB': round(peak, 2), 'f': f}


def scale(args):
    """How long grouping takes and what comparing the nearest neighbours first costs."""
    rows = []
    for count in args.scale:
        for way in ['all pairs'] * (count <= ALL_PAIRS) + ['neighbours first']:
            with ProcessPoolExecutor(1, get_context('spawn')) as pool:
                found = pool.submit(grouped, count, way).result()
            rows.append({'faces': count, 'way': way, **found})
            print(rows[-1], flush=True)
    tables.write({'command': tables.command(), 'rows': rows}, args.out)


def arguments():
    parser = tables.parser(__doc__)
    parser.add_argument('--fit', metavar='NPZ', help='the people that thresholds are fitted on')
    parser.add_argument('--sets', nargs='+', default=[], metavar='NAME=NPZ', help='other people')
    parser.add_argument('--network', default='', metavar='NAME', help='for the report')
    parser.add_argument('--out', type=Path, metavar='JSON')
    parser.add_argument('--picture', nargs=2, metavar=('SHEETS', 'JPG'))
    parser.add_argument('--scale', nargs='+', type=int, default=[], metavar='FACES')
    return parser.parse_args()


if __name__ == '__main__':
    arguments_here = arguments()
    if arguments_here.picture:
        picture(*arguments_here.picture)
    elif arguments_here.scale:
        scale(arguments_here)
    else:
        run(arguments_here)
