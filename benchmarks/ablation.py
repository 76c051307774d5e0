"""Does it decorrelate? Variants of the method at one budget, over seeds, measured on people whom
the network has never seen: the ablation of docs/ablation.md.

    python3 benchmarks/ablation.py [demo] [--seeds 5] [--epochs 24] [--arms NAME …]
    python3 benchmarks/ablation.py photographs --init FILE --epochs 8 [--last-blocks] [--set …]

The first argument is an entry of meta.py with a val_root of other people. With `--init` every arm
starts from that backbone, and one arm is the backbone as it came; `--last-blocks` trains its last
two blocks alone. Within a seed all arms share initial weights, order, flips and budget.
benchmarks/ablation-<dataset>.json is written anew after every run; what is in it already, or in the
folder --runs, is not done again. At the end docs/ablation-<dataset>.png is drawn. Rows of variants
that lost and left the code are kept: each of their runs names the commit on which it ran.
"""

import hashlib
import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import tables
import torch
from matplotlib.figure import Figure
from scipy import stats
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tables import ROOT
from threadpoolctl import threadpool_limits

import backbones
import main
import meta
import utils
from dataset import Faces, evaluation_loader
from evaluation.leakage import age_leakage
from evaluation.metrics import leave_one_out
from evaluation.pairs import gap_pairs
from evaluation.rates import bootstrap, cosines, roc_figures, share_interval
from evaluation.rates import interval as middle
from recognition.embedding import extract
from recognition.weights import load_weights
from synthesis import drawing
from training.command import chosen_recipe

EMBEDDINGS = 'val.npy'
PAPER = (
    'factorization=learned variate=learned memory=0 max_steps=20 min_steps=50 read_age=0 '
    'split=(0,0) game=(0,0) lambda_age=.1 lambda_dal=.1'
)
RAMPS = 'memory=.95 variate=label max_steps=0 read_age=.3 split=(.3,.5) game=(.4,.6) lambda_age=.1 '
GAME = f'factorization=learned {RAMPS} lambda_dal=5'
CLOSED = (
    'factorization=solved directions=0 whiten=0 variate=label max_steps=0 age_powers=4 '
    'within_person=True read_age=0 split=(0,0) game=(0,0) lambda_age=.1 lambda_dal=0'
)
ARMS = {
    'untouched': '',  # with --init alone: no training, x_id is x
    'identity only': 'factorization=learned lambda_age=0 lambda_dal=0 split=(1,1)',  # α stays 0
    '+ age': f'{PAPER} lambda_dal=0',
    'paper': PAPER,
    'paper, λ2 1': f'{PAPER} lambda_dal=1',
    'game': GAME,
    'game, λ2 2': f'{GAME} lambda_dal=2',
    'no game': f'{GAME} lambda_dal=0',
    'game, no ramps': f'{GAME} read_age=0 split=(0,0) game=(0,0)',
    'closed form': CLOSED,
    'closed form, ramps': f'{CLOSED} read_age=.3 split=(.3,.5)',
    'closed form, all ages': f'{CLOSED} within_person=False',
    'closed form, age alone': f'{CLOSED} age_powers=1',
}
FIGURES = {  # key: title, scale, digits
    'auc': ('AUC', 1, 3),
    'auc_to_10': ('gaps to 10 years', 1, 3),
    'auc_over_20': ('over 20', 1, 3),
    'auc_over_30': ('over 30', 1, 3),
    'rank1': ('rank-1, %', 100, 1),
    'r2_id': ('age in x_id: R²', 1, 2),
    'kernel_r2_id': ('by a kernel', 1, 2),
}
COLUMNS = 'auc,auc_to_10,auc_over_20,auc_over_30,rank1,r2_id,kernel_r2_id'
# years: from after the first, or 0, to the second
GAPS = {'auc_to_10': (0, 10), 'auc_over_20': (20, 200), 'auc_over_30': (30, 200)}


def run(dataset, entry, arm, settings, seed, epochs, folder, init=None, end_alone=False):
    """Trains one arm with one seed, or resumes where that stopped, and measures it."""
    torch.set_num_threads(1)
    threadpool_limits(1)  # NumPy's threads would wait for each other: --jobs takes every core
    meta.ablation = entry | {'val_root': None}  # measured here, once
    line = f'main.py -1 {epochs} --resume --dataset ablation --seed {seed}'.split()
    sys.argv = [*line, '--save', str(folder)]
    recipe = 'demo' if dataset == 'demo' else 'small'
    sys.argv += ['--init', init] if init else ['--recipe', recipe]
    values = settings.split() + ['last_blocks=2'] * end_alone
    sys.argv += ['--set', *values] if values else []
    args = main.arguments()
    recipe, _ = chosen_recipe(args, False, init)
    width = 96 if recipe.backbone == 'dal' else backbones.build(recipe.backbone).width
    val = Faces(entry['val_root'], entry['pat'], entry['pos'], width)
    common = {'arm': arm, 'seed': seed, 'epochs': epochs, 'settings': settings}
    if arm == 'untouched':
        model = load_weights(init, backbone=recipe.backbone)[0]
        return {**common, **measure(model, val, folder)}
    main.run(args)
    model = load_weights(folder / 'last.pth')[0]
    about = {'run': json.loads((folder / 'run.json').read_text())}
    return {**common, **measure(model, val, folder), **about}


def measure(model, val, folder):
    """Recognition and leakage on people who were not trained on; their embeddings stay in
    `folder`."""
    keep = 'embedding', 'x_id'
    features = extract(model, evaluation_loader(val), torch.device('cpu'), keep=keep)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / EMBEDDINGS, features['embedding'])
    probes, nearest = leave_one_out(features['embedding'], val.labels)
    result = {'rank1': float((val.labels[probes] == val.labels[nearest]).mean())}
    for name, here in by_gap(val).items():
        scores = cosines(features['embedding'], here.left, here.right)
        result[name] = float(roc_figures(scores, here.same)['auc'][0])
    leak = age_leakage(features['x_id'], val.labels, val.ages, meta.age_cutoffs)
    kernel = kernel_r2(features['x_id'], val.labels, val.ages)
    return result | {'r2_id': leak['r2'], 'kernel_r2_id': kernel}


def kernel_r2(features, labels, ages):
    """The R² with which a kernel ridge regression reads age from features of other people: what a
    linear probe would miss. The best of 20 settings on these very people, so rather too high."""
    if len(np.unique(labels)) < 5:
        return None
    probes = [
        make_pipeline(StandardScaler(), KernelRidge(alpha, kernel='rbf', gamma=gamma))
        for gamma in np.array([0.03, 0.1, 0.3, 1.0]) / features.shape[1]
        for alpha in (0.03, 0.1, 0.3, 1.0, 3.0)
    ]
    years, how = ages - ages.mean(), {'groups': labels, 'cv': GroupKFold(5)}
    read = [cross_val_predict(probe, features, years, **how) for probe in probes]
    return max(float(r2_score(years, one)) for one in read)


def by_gap(val):
    """{figure: the pairs that its AUC is of}, without kinds of which there are no two sorts."""
    pairs = gap_pairs(val.labels, val.ages, 0)
    kinds = {'auc': pairs} | {
        name: pairs.where((pairs.gap >= low + (low > 0)) & (pairs.gap <= high))
        for name, (low, high) in GAPS.items()
    }
    return {name: some for name, some in kinds.items() if some.same.any() and not some.same.all()}


def over_people(results, place, val):
    """{arm: {figure: [difference, low, high]}}: what each arm is better by than identity only, mean
    over the seeds that both have, with the middle 95 % of a bootstrap over the people of `val`."""
    kinds = by_gap(val)
    drawn, found = {}, {}
    for row in results:
        path = place(*(row[key] for key in ('arm', 'seed', 'settings', 'epochs'))) / EMBEDDINGS
        if not path.exists():
            continue
        embeddings, of = np.load(path), {}
        for name, here in kinds.items():
            scores = cosines(embeddings, here.left, here.right)
            of[name] = bootstrap(scores, here, None)[0]['auc']
        probes, nearest = leave_one_out(embeddings, val.labels)
        of['rank1'] = val.labels[probes] == val.labels[nearest]
        drawn.setdefault(row['arm'], {})[row['seed']] = row, of
    base = drawn.pop('identity only', {})
    for arm, seeds in drawn.items():
        common = [(seeds[seed], base[seed]) for seed in seeds if seed in base]
        if arm == 'untouched':  # which has no seed
            common = [(row, other) for row in seeds.values() for other in base.values()]
        if not common:
            continue
        found[arm] = {'n': len(common)}
        for name in (*kinds, 'rank1'):
            point = np.mean([row[0][name] - other[0][name] for row, other in common])
            apart = [row[1][name].astype(float) - other[1][name] for row, other in common]
            among = [val.labels[probes]] if name == 'rank1' else []
            low_high = (share_interval if among else middle)(np.mean(apart, 0), *among)
            found[arm][name] = [float(point), *low_high]
    return found


def interval(values):
    """Mean and half of its 95 % interval (Student's t) over the seeds; None where there is none."""
    values = [value for value in values if value is not None]
    if len(values) < 2:
        return float(values[0]) if values else None, None
    return float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))


def summary(results):
    """{arm: {'n', figure: [mean, half-interval]}} of the arms that are still in the code."""
    arms = {}
    for arm in dict.fromkeys(row['arm'] for row in results if row['arm'] in ARMS):
        rows = [row for row in results if row['arm'] == arm]
        figures = {key: interval([row.get(key) for row in rows]) for key in FIGURES}
        arms[arm] = {'n': len(rows), **figures}
    return arms


def markdown(report, what='summary', rows=None, columns=COLUMNS):
    """A table of docs/ablation.md: mean ± half of the 95 % interval over the seeds.

    `what` may be 'over people': the differences from identity only, with their intervals over the
    people who are measured. `rows` are the arms, separated by semicolons; all by default.
    """
    arms, keys = report[what], columns.split(',')
    names = rows.split(';') if rows else list(arms)
    text = figure if what == 'summary' else difference
    lines = [[name, arms[name]['n'], *(text(arms[name], key) for key in keys)] for name in names]
    return tables.markdown(['', 'n', *(FIGURES[key][0] for key in keys)], lines)


def figure(row, key):
    (mean, half), (_, scale, digits) = row[key], FIGURES[key]
    if mean is None:
        return '–'
    if half is None:
        return f'{scale * mean:.{digits}f}' + f' (1 of {row["n"]})' * (row['n'] > 1)
    return f'{scale * mean:.{digits}f}±{scale * half:.{digits}f}'


def difference(row, key):
    _, scale, digits = FIGURES[key]
    return '{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]'.format(
        *(scale * value for value in row[key]), d=digits + (scale == 1)
    )


def picture(results, name):
    """Age left in x_id, against verification at large gaps: a dot per seed, a mark at each arm's
    mean, and a line to it from where the arms depart: the backbone as it came, or else identity
    only."""
    figure = Figure((9, 5), layout='constrained')
    axis, arms = figure.subplots(), [arm for arm in ARMS if arm in {row['arm'] for row in results}]
    start = None
    for turn, arm in enumerate(arms):
        rows = [row for row in results if row['arm'] == arm]
        points = np.array([(row['r2_id'], row['auc_over_20']) for row in rows])
        color, (x, y), mark = f'C{turn % 10}', points.mean(0), 'os^DvPX'[turn % 7]
        axis.plot(*points.T, '.', color=color, alpha=0.4)
        axis.plot(x, y, mark, markersize=9, color=color, label=f'{arm} ({len(rows)})')
        start = start or (x, y)
        axis.plot((start[0], x), (start[1], y), color=color, linewidth=0.6, alpha=0.5)
    axis.set_xlabel('age that a ridge regression reads from x_id of people never seen: R²')
    axis.set_ylabel('AUC at age gaps over 20 years')
    axis.grid(alpha=0.3)
    figure.legend(loc='outside right upper', fontsize='small', title='(seeds)')
    figure.savefig(ROOT / 'docs' / f'ablation-{name}.png', dpi=100)


def arguments():
    parser = tables.parser(__doc__)
    add = parser.add_argument
    add('dataset', nargs='?', default='demo', help='an entry of meta.py')
    add('--seeds', type=int, default=5)
    add('--first-seed', type=int, default=0)
    add('--epochs', type=int, default=24)
    add('--jobs', type=int, default=2, help='runs side by side, one thread each')
    add('--arms', nargs='+', default=list(ARMS), choices=ARMS, metavar='NAME')
    add('--init', metavar='FILE', help='start from this backbone, as of main.py')
    add('--last-blocks', action='store_true', help='train the end of MobileFaceNet alone')
    add('--set', nargs='+', default=[], metavar='KEY=VALUE', help='of the recipe, for every arm')
    add('--runs', type=Path, default=ROOT / 'runs' / 'ablation')
    add('--train', metavar='PATH', help="in place of the entry's train_root")
    add('--val', metavar='PATH', help="in place of the entry's val_root")
    add('--name', help='of table and picture, in place of <dataset>')
    return parser.parse_args()


def run_all(args):
    """Every arm with every seed that is missing; then the picture and the table."""
    if not hasattr(meta, args.dataset):
        raise utils.UserError(f'{args.dataset}: meta.py has no such data set')
    if args.last_blocks and not args.init:
        raise utils.UserError('--last-blocks needs --init FILE, the weights of a MobileFaceNet')
    if args.dataset == 'demo' and not (ROOT / 'data' / 'demo').exists():
        drawing.draw_set(ROOT / 'data' / 'demo')
    if args.set and not args.name:
        raise utils.UserError('--set makes another table: --name NAME')
    name = args.name or args.dataset + '-last-blocks' * args.last_blocks
    settings = {arm: ' '.join([own, *args.set]).strip() for arm, own in ARMS.items()}
    table = ROOT / 'benchmarks' / f'ablation-{name}.json'
    entry = dict(getattr(meta, args.dataset))
    entry |= {'train_root': args.train} if args.train else {}
    entry |= {'val_root': args.val} if args.val else {}
    entry['n_cls'] = len(Faces(entry['train_root'], entry['pat'], entry['pos']).classes)
    results = json.loads(table.read_text())['runs'] if table.exists() else []
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    order = {arm: place for place, arm in enumerate(ARMS)}
    wanted = [
        (arm, seed)
        for seed in seeds
        for arm in args.arms
        if arm != 'untouched' or args.init and seed == args.first_seed
    ]
    done = []
    for row in results:
        of, how = (row['arm'], row['seed']), (row['epochs'], row['settings'])
        if of not in wanted or how == (args.epochs, settings.get(row['arm'])):
            done.append(row)
    missing = [of for of in wanted if of not in {(row['arm'], row['seed']) for row in done}]

    def place(arm, seed, settings, epochs):
        """A run of other settings has another folder: it would be resumed."""
        key = hashlib.sha256(f'{settings} {epochs}'.encode()).hexdigest()[:8]
        return args.runs.resolve() / f'{name}-{arm}-{seed}-{key}'.replace(' ', '-')

    def write(people):
        report = {'command': tables.command(), 'summary': summary(done)}
        tables.write(report | {'over people': people, 'runs': done}, table)

    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context('spawn')) as pool:
        jobs = []
        for arm, seed in missing:
            what = arm, settings[arm], seed, args.epochs
            folder = place(arm, seed, settings[arm], args.epochs)
            start = args.init, args.last_blocks
            jobs.append(pool.submit(run, args.dataset, entry, *what, folder, *start))
        try:
            for job in as_completed(jobs):
                done.append(job.result())
                done.sort(key=lambda row: (order.get(row['arm'], 99), row['arm'], row['seed']))
                write({})
        except BaseException:  # at once, not after every other run
            pool.shutdown(cancel_futures=True)
            raise
    val = Faces(entry['val_root'], entry['pat'], entry['pos'])
    write(over_people(done, place, val))
    picture(done, name)
    print(markdown({'summary': summary(done)}))


if __name__ == '__main__':
    with utils.one_line_errors():
        run_all(arguments())
