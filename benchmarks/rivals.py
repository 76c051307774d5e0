"""Linear ways to take the age out of stored vectors, on people whom the map was not fitted on.

    python3 benchmarks/rivals.py NAME --train FILE [FILE …] --test FILE … [--people 25 50 100 …]

A FILE is a .npz of `embeddings` (N, D), `identities` and `ages`; with an array `x` (N, S, D) of
S sides of each face (itself and its mirror), maps act on each side, and the sides are then joined;
`--halves` cuts `embeddings` into two sides (`export.py embeddings`). One row of JSON a map and test
set goes to benchmarks/results/rivals-NAME.json. LEACE needs the package concept-erasure.
"""

import functools
from pathlib import Path

import numpy as np
import tables
import torch
from measuring import RESULTS
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dal
from evaluation.leakage import age_r2
from evaluation.pairs import GAP_NAMES, gap_bin, gap_pairs
from evaluation.rates import bootstrap, interval, roc_figures, share_interval
from training.recipe import finetune

PROBED = 3000  # faces that ages are read from at most
REPLICATES = 200  # of a bootstrap over people
OLDER = 10  # years between two photographs, from which the older one is asked for
NEAREST = 100  # faces of the cohort that normalise a score


def means(x, labels):
    """Each person's mean (people, D)."""
    return np.stack([x[labels == person].mean(0) for person in range(labels.max() + 1)])


def within(x, labels):
    """The deviations (N, D) from each person's mean."""
    return x - means(x, labels)[labels]


def variates(ages, powers):
    return dal.age_variates(torch.from_numpy(ages), powers).double()


def R(x, labels, ages, powers=4, inside=False, directions=0, whiten=0.0):
    fitter = dal.EraserFitter(x.shape[1], powers, inside)
    fitter.update(torch.from_numpy(x), variates(ages, powers), torch.from_numpy(labels))
    return np.eye(x.shape[1]) - fitter.solve(directions, whiten).projection.numpy()


def leace(x, labels, ages):
    from concept_erasure import LeaceFitter

    z = variates(ages, 4)
    fitter = LeaceFitter(x.shape[1], 4, dtype=torch.float64, shrinkage=False)
    eraser = fitter.update(torch.from_numpy(x), z).eraser
    return np.eye(x.shape[1]) - (eraser.proj_left @ eraser.proj_right).numpy().T


def nap(x, labels, ages, directions=4):
    """Nuisance attribute projection: without the first directions within people."""
    axes = np.linalg.svd(within(x, labels), full_matrices=False)[2][:directions]
    return np.eye(x.shape[1]) - axes.T @ axes


def wccn(x, labels, ages, shrinkage=0.5):
    covariance = np.cov(within(x, labels), rowvar=False, bias=True)
    lengths, axes = np.linalg.eigh(shrunk_covariance(covariance, shrinkage))
    return axes / np.sqrt(lengths) @ axes.T


def lda(x, labels, ages, size=64):
    found = LinearDiscriminantAnalysis(solver='eigen', shrinkage=0.2).fit(x, labels)
    return found.scalings_[:, :size]


def inlp(x, labels, ages, rounds=8):
    """Iterated nullspace projection of ridge regressions of the age."""
    erase = np.eye(x.shape[1])
    for _ in range(rounds):
        w = Ridge(len(x) * 1e-2).fit(x @ erase, ages).coef_
        erase = erase @ (np.eye(len(w)) - np.outer(w, w) / max(w @ w, 1e-12))
    return erase


def hidden_factors(x, labels, ages):
    """Hidden factor analysis (Gong et al., ICCV 2013): x = identity + age group + noise, with
    moments in place of EM; the map is to the identity's factors."""
    x = x - x.mean(0)
    group = np.unique(np.searchsorted((12, 18, 25, 35, 45, 55, 65), ages), return_inverse=True)[1]

    def loadings(kinds, size):
        covariance = np.cov(means(x, kinds), rowvar=False, aweights=np.bincount(kinds))
        lengths, axes = np.linalg.eigh(covariance)
        return axes[:, -size:] * np.sqrt(lengths[-size:].clip(0))

    U, V = loadings(labels, 64), loadings(group, 6)
    noise = within(x, labels).var() * np.eye(len(U))
    return np.linalg.solve(noise + U @ U.T + V @ V.T, U)


def then(first, second):
    """Both maps, the second fitted on what the first leaves."""

    def fit(x, labels, ages):
        matrix = first(x, labels, ages)
        return matrix @ second((x - x.mean(0)) @ matrix, labels, ages)

    return fit


def as_it_is(x, labels, ages):
    return np.eye(x.shape[1])


P = functools.partial
recipe = P(R, powers=finetune.age_powers, directions=finetune.directions, whiten=finetune.whiten)
MAPS = {
    'the recipe': recipe,
    'as it is': as_it_is,
    **{f'R, all ages, powers {k}': P(R, powers=k) for k in (1, 2, 4)},
    **{f'R within people, powers {k}': P(R, powers=k, inside=True) for k in (1, 2, 4)},
    'LEACE, powers 4': leace,
    **{f'NAP {k}': P(nap, directions=k) for k in (2, 4, 8)},
    **{f'WCCN, shrunk by {s}': P(wccn, shrinkage=s) for s in (0.2, 0.5, 0.8)},
    'LDA to 64': lda,
    'PLDA': as_it_is,
    'INLP': inlp,
    'hidden factors': hidden_factors,
    **{f'R, NAP {k}': then(R, P(nap, directions=k)) for k in (2, 4)},
    **{f'R, WCCN shrunk by {s}': then(R, P(wccn, shrinkage=s)) for s in (0.5, 0.8)},
    'R within people, WCCN shrunk by 0.5': then(P(R, inside=True), wccn),
    'as it is, AS-norm': as_it_is,
    'the recipe, AS-norm': recipe,
}
BY_PEOPLE = 'the recipe', 'R, all ages, powers 4'


def apply(matrix, mean, x):
    """Sides (N, S, D) mapped, joined, and of unit length (N, S·K)."""
    kept = mean if len(matrix) == len(matrix.T) else 0  # of another basis there is no mean
    mapped = ((x.reshape(-1, x.shape[2]) - mean) @ matrix + kept).reshape(len(x), -1)
    return mapped / np.linalg.norm(mapped, axis=1, keepdims=True)


def plda(x, labels):
    """The two-covariance model's score of every two rows of unit embeddings (M, D), fitted on
    others (N, D) (Brümmer and de Villiers, Odyssey 2010)."""
    mean = x.mean(0)
    inside = shrunk_covariance(np.cov(within(x, labels), rowvar=False, bias=True), 0.5)
    between = shrunk_covariance(np.cov(means(x, labels), rowvar=False, bias=True), 0.1)
    total = between + inside
    # log N([a, b]; 0, [[T, B], [B, T]]) − log N(a; 0, T) − log N(b; 0, T), less a constant
    conditional = np.linalg.inv(total - between @ np.linalg.solve(total, between))
    own = np.linalg.inv(total) - conditional
    both = np.linalg.solve(total, between) @ conditional

    def score(rows):
        rows = rows - mean
        square = ((rows @ own) * rows).sum(1) / 2
        return square[:, None] + square + rows @ (both + both.T) / 2 @ rows.T

    return score


def normalised(scores, rows, cohort):
    """Scores (M, M) in deviations of its faces' scores with their NEAREST of the cohort."""
    near = np.partition(rows @ cohort.T, -NEAREST, axis=1)[:, -NEAREST:]
    centre, spread = near.mean(1), near.std(1) + 1e-6
    return ((scores - centre) / spread + (scores - centre[:, None]) / spread[:, None]) / 2


def recognition(scores, labels, ages):
    """Figures of a matrix of scores (N, N), intervals over people; replicates of the AUC."""
    pairs = gap_pairs(labels, ages)
    values, bins = scores[pairs.left, pairs.right], gap_bin(pairs.gap)
    drawn = bootstrap(values, pairs, None, REPLICATES)[0]['auc']
    row = {'auc': roc_figures(values, pairs.same)['auc'][0], 'auc_interval': interval(drawn)}
    for k, years in enumerate(GAP_NAMES):
        row[f'auc_{years}'] = roc_figures(values[bins == k], pairs.same[bins == k])['auc'][0]
    probes = np.flatnonzero(np.bincount(labels)[labels] > 1)
    others = scores[probes]
    others[np.arange(len(probes)), probes] = -np.inf
    hits = labels[others.argmax(1)] == labels[probes]
    row |= {'rank1': hits.mean(), 'rank1_interval': share_interval(hits, labels[probes])}
    return row, drawn


def leakage(unit, labels, ages):
    """R² of the age by a probe of other people; how often a pair's older photograph is told."""
    people = np.random.default_rng(0).permutation(labels.max() + 1)[labels]
    chosen = np.argsort(people, kind='stable')[:PROBED]
    unit, labels, ages = unit[chosen], labels[chosen], ages[chosen]
    ridge = make_pipeline(StandardScaler(), Ridge(0.3 * len(unit)))
    kept = np.unique(labels, return_inverse=True)[1]
    years, values = within(ages[:, None], kept)[:, 0], within(unit, kept)
    read = cross_val_predict(ridge, values, years, groups=kept, cv=GroupKFold(3))
    first, second = np.triu_indices(len(kept), 1)
    pair = (kept[first] == kept[second]) & (np.abs(ages[first] - ages[second]) >= OLDER)
    first, second = first[pair], second[pair]
    right = (read[first] > read[second]) == (ages[first] > ages[second])
    row = {'r2': age_r2(unit, labels, ages)}
    return row | {'older': right.mean(), 'older_interval': share_interval(right, kept[first])}


def load(path, halves=False):
    """Sides (N, S, D) float64, identities (N,) and ages (N,) float64 of a file."""
    with np.load(path) as file:
        rows = file['x'] if 'x' in file else file['embeddings']
        if rows.ndim == 2:
            rows = rows.reshape(len(rows), 2, -1) if halves else rows[:, None]
        return rows.astype(np.float64), file['identities'].astype(str), file['ages'].astype(float)


def solve(fit, x, labels, ages):
    """The map of sides (N, S, D) that `fit` gives, and their mean (D,)."""
    flat, sides = x.reshape(-1, x.shape[2]), x.shape[1]
    return fit(flat, labels.repeat(sides), ages.repeat(sides)), flat.mean(0)


def measure(name, fit, train, test):
    """A row of figures, and the replicates of its AUC."""
    rows, people, years = test
    solved = solve(fit, *train)
    unit, cohort = apply(*solved, rows), apply(*solved, train[0])
    scores = plda(cohort, train[1])(unit) if name == 'PLDA' else unit @ unit.T
    if name.endswith('AS-norm'):
        scores = normalised(scores, unit, cohort)
    found, drawn = recognition(scores, people, years)
    return found | leakage(unit, people, years), drawn


COLUMNS = {
    'AUC': lambda row: f'{row["auc"]:.3f}',
    'beside the recipe': lambda row: '[{:+.3f}, {:+.3f}]'.format(*row['auc_gain']),
    'over 30': lambda row: f'{row["auc_31+"]:.3f}',
    'rank-1, %': lambda row: f'{100 * row["rank1"]:.1f}',
    'R²': lambda row: f'{row["r2"]:.2f}',
    'older, %': lambda row: f'{100 * row["older"]:.0f}',
}


def markdown(report, test, maps, columns):
    """The table of test sets, of maps fitted on most people; each argument is what to show,
    separated by semicolons."""
    tests, names, shown = (argument.split(';') for argument in (test, maps, columns))
    rows = [row for row in report['rows'] if row['test'] in tests and row['map'] in names]
    most = max(row['fitted_on'] for row in rows)
    cells = [
        [*[row['test']] * (len(tests) > 1), row['map'], *(COLUMNS[title](row) for title in shown)]
        for row in rows
        if row['fitted_on'] == most
    ]
    return tables.markdown([*['people'] * (len(tests) > 1), '', *shown], cells)


def main():
    parser = tables.parser(__doc__)
    parser.add_argument('name')
    parser.add_argument('--train', nargs='+', required=True)
    parser.add_argument('--test', nargs='+', required=True)
    parser.add_argument('--people', nargs='*', type=int, default=[], help='also fit on so many')
    parser.add_argument('--halves', action='store_true')
    args = parser.parse_args()
    loaded = [load(path, args.halves) for path in args.train]
    x, identities, ages = (np.concatenate(parts) for parts in zip(*loaded, strict=True))
    names, labels = np.unique(identities, return_inverse=True)
    order, rows, base = np.random.default_rng(0).permutation(len(names)), [], None
    for path in args.test:
        tested, people, years = load(path, args.halves)
        if len(shared := np.intersect1d(people, names)):
            parser.error(f'{path}: {len(shared)} people are in training too, {shared[0]} first')
        test = tested, np.unique(people, return_inverse=True)[1], years
        for count in (*[n for n in args.people if n < len(names)], len(names)):
            here = np.isin(labels, order[:count])
            train = x[here], np.unique(labels[here], return_inverse=True)[1], ages[here]
            for name in MAPS if count == len(names) else BY_PEOPLE:
                row, drawn = measure(name, MAPS[name], train, test)
                base = drawn if name == 'the recipe' else base
                about = {'map': name, 'fitted_on': int(count), 'test': Path(path).stem}
                rows.append(about | row | {'auc_gain': interval(drawn - base)})
                print(tables.as_text({name: rows[-1]}), flush=True)
    report = {'train': [Path(path).stem for path in args.train]}
    tables.write(report | {'rows': rows}, RESULTS / f'rivals-{args.name}.json')


if __name__ == '__main__':
    main()
