"""Linear ways to take the age out of stored vectors, on people whom the map was not fitted on.

    python3 benchmarks/rivals.py NAME --train FILE [FILE …] --test FILE … [--people 25 50 100 …]

A FILE is a .npz of `embeddings` (N, D), `identities` and `ages`; with an array `x` (N, S, D) of
S sides of each face (itself and its mirror), maps act on each side, and the sides are then joined;
`--halves` cuts `embeddings` into two sides (`export.py embeddings`). One row of JSON a map and test
set goes to benchmarks/results/rivals-NAME.json. LEACE needs the package concept-erasure.
"""

import functools
import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.covariance import shrunk_covariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import tables  # noqa: E402

import dal  # noqa: E402
from evaluation.pairs import GAP_NAMES, gap_bin, gap_pairs  # noqa: E402
from evaluation.rates import (  # noqa: E402
    bootstrap,
    interval,
    roc_figures,  # noqa: E402
    share_interval,
)
from training.recipe import finetune  # noqa: E402

PROBED = 3000  # faces that ages are read from at most
REPLICATES = 200  # of a bootstrap over people
OLDER = 10  # years between two photographs, from which the older one is asked for
NEAREST = 100  # faces of the cohort that normalise a score


def means(x, labels):
    return dal.person_means(torch.from_numpy(x), torch.from_numpy(labels), labels.max() + 1).numpy()


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


def hidden_factors(x, labels, ages, identities=64, years=6, rounds=15):
    """Hidden factor analysis (Gong et al., ICCV 2013): x = identity + age group + noise by EM, one
    kind of factor after the other; the map is to the identity's."""
    rng, group = np.random.default_rng(0), np.searchsorted((12, 18, 25, 35, 45, 55, 65), ages)
    people, groups = labels, np.unique(group, return_inverse=True)[1]
    x, noise = x - x.mean(0), x.var()
    U, V = (rng.normal(size=(x.shape[1], k)) * x.std() / 8 for k in (identities, years))
    of_group = np.zeros_like(x)
    for _ in range(rounds):
        U, of_person = _factor(x - of_group, people, U, noise)
        V, of_group = _factor(x - of_person, groups, V, noise)
        noise = np.square(x - of_person - of_group).mean()
    total = noise * np.eye(len(U)) + U @ U.T + V @ V.T
    return np.linalg.solve(total, U)


def _factor(rest, kinds, W, noise):
    """One step of EM: loadings and each row's part of `rest` by a factor shared within its kind."""
    counts, mean = np.bincount(kinds), means(rest, kinds)
    inner, moments, cross = W.T @ W / noise, 0.0, 0.0
    posterior = np.empty((len(counts), W.shape[1]))
    for count in np.unique(counts):
        here = np.flatnonzero(counts == count)
        covariance = np.linalg.inv(np.eye(len(inner)) + count * inner)
        posterior[here] = count / noise * mean[here] @ W @ covariance
        moments = moments + count * (len(here) * covariance + posterior[here].T @ posterior[here])
        cross = cross + count * mean[here].T @ posterior[here]
    W = np.linalg.solve(moments.T, cross.T).T
    return W, (posterior @ W.T)[kinds]


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
    'the recipe': recipe,
    'as it is, AS-norm': as_it_is,
    'the recipe, AS-norm': recipe,
}
BY_PEOPLE = 'R, all ages, powers 4', 'the recipe'


def apply(matrix, mean, x):
    """Sides (N, S, D) mapped, joined, and of unit length; also before that."""
    kept = mean if len(matrix) == len(matrix.T) else 0  # of another basis there is no mean
    mapped = ((x.reshape(-1, x.shape[2]) - mean) @ matrix + kept).reshape(len(x), -1)
    return mapped / np.linalg.norm(mapped, axis=1, keepdims=True), mapped


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
    """AUC, AUC by gap and rank-1 of a matrix of scores (N, N), with intervals over people; and the
    replicates of the AUC."""
    pairs = gap_pairs(labels, ages)
    values, bins = scores[pairs.left, pairs.right], gap_bin(pairs.gap)
    drawn, _ = bootstrap(values, pairs.same, pairs.fold, None, pairs.people, replicates=REPLICATES)
    row = {'auc': roc_figures(values, pairs.same)['auc'][0], 'auc_interval': interval(drawn['auc'])}
    for k, years in enumerate(GAP_NAMES):
        here = bins == k
        row[f'auc_{years}'] = roc_figures(values[here], pairs.same[here])['auc'][0]
    counts = np.bincount(labels)[labels]
    probes = np.flatnonzero(counts > 1)
    others = scores[probes]
    others[np.arange(len(probes)), probes] = -np.inf
    hits = labels[others.argmax(1)] == labels[probes]
    return row | {
        'rank1': hits.mean(),
        'rank1_interval': share_interval(hits, labels[probes]),
    }, drawn


def leakage(unit, raw, labels, ages):
    """How well other people's vectors (N, D) tell the age: R², and the share of one person's pairs
    whose older photograph is told."""
    rng = np.random.default_rng(0)
    people = rng.permutation(labels.max() + 1)[labels]
    chosen = np.argsort(people, kind='stable')[:PROBED]
    unit, raw, labels, ages = unit[chosen], raw[chosen], labels[chosen], ages[chosen]
    ridge = make_pipeline(StandardScaler(), RidgeCV(len(unit) * np.logspace(-3, 2, 6)))
    kernel = KernelRidge(alpha=0.3, kernel='rbf', gamma=0.3 / unit.shape[1])
    probes = {
        'r2_raw': (ridge, raw),
        'r2': (ridge, unit),
        'r2_kernel': (make_pipeline(StandardScaler(), kernel), unit),
        'r2_nearest': (KNeighborsRegressor(20, metric='cosine'), unit),
    }
    row, centred = {}, ages - ages.mean()
    for name, (probe, values) in probes.items():
        read = cross_val_predict(probe, values, centred, groups=labels, cv=GroupKFold(3))
        row[name] = r2_score(centred, read)
    kept = np.unique(labels, return_inverse=True)[1]
    years, values = within(ages[:, None], kept)[:, 0], within(unit, kept)
    read = cross_val_predict(ridge, values, years, groups=kept, cv=GroupKFold(3))
    first, second = np.triu_indices(len(kept), 1)
    pair = (kept[first] == kept[second]) & (np.abs(ages[first] - ages[second]) >= OLDER)
    first, second = first[pair], second[pair]
    right = (read[first] > read[second]) == (ages[first] > ages[second])
    return row | {'older': right.mean(), 'older_interval': share_interval(right, kept[first])}


def load(path, halves):
    """Sides (N, S, D) float64, identities (N,) and ages (N,) float64 of a file."""
    with np.load(path) as file:
        rows = file['x'] if 'x' in file else file['embeddings']
        if rows.ndim == 2:
            rows = rows.reshape(len(rows), 2, -1) if halves else rows[:, None]
        return rows.astype(np.float64), file['identities'].astype(str), file['ages'].astype(float)


def measure(name, fit, train, test):
    """A row of figures, and the replicates of its AUC."""
    (x, labels, ages), (rows, people, years) = train, test
    flat, sides = x.reshape(-1, x.shape[2]), x.shape[1]
    matrix = fit(flat, labels.repeat(sides), ages.repeat(sides))
    unit, raw = apply(matrix, flat.mean(0), rows)
    cohort = apply(matrix, flat.mean(0), x)[0]
    scores = plda(cohort, labels)(unit) if name == 'PLDA' else unit @ unit.T
    if name.endswith('AS-norm'):
        scores = normalised(scores, unit, cohort)
    found, drawn = recognition(scores, people, years)
    return found | leakage(unit, raw, people, years), drawn


def markdown(report, test, fitted_on=None):
    """The table of one test set; by the number of people if `fitted_on` is 'people'."""
    rows = [row for row in report['rows'] if row['test'] == test]
    most = max(row['fitted_on'] for row in rows)
    rows = [row for row in rows if fitted_on or row['fitted_on'] == most]
    titles = ['people', 'AUC', 'more than as it is', 'gaps to 5 years', '21 to 30', 'over 30']
    titles += ['rank-1, %', 'R²', 'before unit length', 'kernel', 'neighbours', 'older, %']
    keys = 'auc_0-5', 'auc_21-30', 'auc_31+'
    lines = []
    for row in rows:
        if fitted_on and row['map'] not in ('as it is', *BY_PEOPLE):
            continue
        gain = row['auc_gain_interval']
        line = [row['map'], row['fitted_on'], f'{row["auc"]:.3f}']
        line += [f'[{gain[0]:+.3f}, {gain[1]:+.3f}]' if gain else '']
        line += [f'{row[key]:.3f}' for key in keys] + [f'{100 * row["rank1"]:.1f}']
        line += [f'{row[key]:.2f}' for key in ('r2', 'r2_raw', 'r2_kernel', 'r2_nearest')]
        lines.append([*line, f'{100 * row["older"]:.0f}'])
    return tables.markdown(['', *titles], lines)


def main():
    parser = tables.parser(__doc__)
    parser.add_argument('name')
    parser.add_argument('--train', nargs='+', required=True)
    parser.add_argument('--test', nargs='+', required=True)
    parser.add_argument('--people', nargs='*', type=int, default=[], help='also fit on so many')
    parser.add_argument('--halves', action='store_true')
    parser.add_argument('--maps', nargs='*', default=list(MAPS))
    parser.add_argument('--folder', type=Path, default=ROOT / 'benchmarks/results')
    args = parser.parse_args()
    loaded = [load(path, args.halves) for path in args.train]
    x, identities, ages = (np.concatenate(parts) for parts in zip(*loaded, strict=True))
    names, labels = np.unique(identities, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(names))
    rows = []
    for path in args.test:
        tested, people, years = load(path, args.halves)
        shared = np.intersect1d(people, names)
        if len(shared):
            parser.error(f'{path}: {len(shared)} people are in training too, {shared[0]} first')
        test = tested, np.unique(people, return_inverse=True)[1], years
        base = None
        for count in (*[n for n in args.people if n < len(names)], len(names)):
            here = np.isin(labels, order[:count])
            train = x[here], np.unique(labels[here], return_inverse=True)[1], ages[here]
            whole = count == len(names)
            for name in args.maps if whole else BY_PEOPLE:
                row, drawn = measure(name, MAPS[name], train, test)
                base = drawn if name == 'as it is' else base
                gain = None if base is None else interval(drawn - base)
                about = {'map': name, 'fitted_on': int(count), 'test': Path(path).stem}
                rows.append(about | row | {'auc_gain_interval': gain, 'faces': len(years)})
                print(tables.as_text({name: rows[-1]}), flush=True)
    report = {'command': tables.command(), 'train': [Path(path).stem for path in args.train]}
    tables.write(report | {'rows': rows}, args.folder / f'rivals-{args.name}.json')


if __name__ == '__main__':
    main()
