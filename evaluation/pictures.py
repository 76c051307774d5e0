"""The pictures of a report, each a PNG; several models share one picture.

No global state of matplotlib is touched.
"""

import functools
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from evaluation.lists import Listed
from evaluation.pairs import Pairs
from evaluation.rates import roc
from storage.images import decode
from utils import write_whole

GENUINE, IMPOSTOR = '#1b7837', '#b2182b'


def save(figure: Figure, path) -> None:
    """Writes the figure as PNG, whole or not at all."""
    write_whole(path, lambda temporary: figure.savefig(temporary, format='png', dpi=120))


@functools.cache
def _drawable():
    """The characters of the font that pictures are written in."""
    return frozenset(map(chr, get_font(findfont(FontProperties())).get_charmap()))


def readable(name: str) -> str:
    """A name for a picture: what the font lacks, or is no character at all, as its code; and no
    dollar signs, between which matplotlib reads formulas."""
    return ''.join(
        char if char in _drawable() and char.isprintable() else f'\\u{ord(char):04x}'
        for char in name
    ).replace('$', r'\$')


def _end(name, length=22):
    """The end of a name, readable, that a face is wide enough for."""
    name = name[-length:]
    while len(readable(name)) > length + 4:
        name = name[1:]
    return readable(name)


def draw_all(out: Path, reports: dict, evidence: dict) -> None:
    """Every picture that the benchmark has something for, of the models' reports and Evidence,
    {label: …}; score histograms, errors and leakage of each model."""
    draw_roc(
        {label: (one.scores, one.pairs.same) for label, one in evidence.items()}, out / 'roc.png'
    )
    if all(report.get('by_gap') for report in reports.values()):
        draw_gaps({label: report['by_gap'] for label, report in reports.items()}, out / 'gaps.png')
    if all('megaface' in report for report in reports.values()):
        draw_cmc({label: report['megaface'] for label, report in reports.items()}, out / 'cmc.png')
    for k, (label, one) in enumerate(evidence.items()):
        suffix = f'_{k + 1}' if len(evidence) > 1 else ''
        if len(one.scores):
            threshold = reports[label]['verification']['threshold']
            draw_histogram(one.scores, one.pairs.same, threshold, out / f'scores{suffix}.png')
            draw_errors(one.listed, one.pairs, one.scores, out / f'errors{suffix}.png')
        if 'leakage' in reports[label]:
            draw_leakage(reports[label]['leakage'], out / f'leakage{suffix}.png')


def draw_roc(models: dict, path) -> None:
    """TAR over FAR of {name: (scores, same)}, logarithmic, down to what one impostor pair is."""
    figure = Figure(figsize=(6, 4.5), layout='constrained')
    axis, lowest = figure.subplots(), 0.1
    for name, (scores, same) in models.items():
        if same.any() and not same.all():
            (far,), (tar,) = roc(scores, same)
            lowest = min(lowest, 1 / (~same).sum())
            axis.step(np.maximum(far, lowest / 2), tar, where='post', label=readable(name))
    chance = np.geomspace(lowest, 1)
    axis.plot(chance, chance, color='grey', linestyle=':', label='chance')
    axis.set(
        xscale='log',
        xlim=(lowest, 1),
        ylim=(0, 1.01),
        xlabel='false accept rate',
        ylabel='true accept rate',
        title='Verification',
    )
    axis.grid(alpha=0.3, which='both')
    axis.legend(loc='lower right' if lowest > 1e-2 else 'upper left')
    save(figure, path)


def draw_gaps(models: dict, path) -> None:
    """Accuracy, AUC and TAR over the age gap of {name: by_gap rows}, with 95 % intervals; below the
    number of genuine pairs."""
    figure = Figure(figsize=(11, 3.8), layout='constrained')
    years = {row['years']: row['genuine'] for rows in models.values() for row in rows}
    titles = {'accuracy': 'accuracy', 'auc': 'AUC', 'tar@1e-1': 'TAR at FAR 0.1'}
    for axis, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for k, (label, rows) in enumerate(models.items()):
            shift = (k - (len(models) - 1) / 2) * 0.12
            rows = [row for row in rows if row[name] is not None]
            middle = np.array([row[name] for row in rows])
            limits = [row['intervals'][name] or [row[name]] * 2 for row in rows]
            low, high = np.array(limits).reshape(-1, 2).T
            axis.errorbar(
                [list(years).index(row['years']) + shift for row in rows],
                middle,
                np.clip([middle - low, high - middle], 0, None),
                fmt='o-',
                capsize=3,
                label=readable(label),
            )
        axis.axhline(
            0.1 if name.startswith('tar') else 0.5, color='grey', linestyle=':', label='chance'
        )
        axis.set(
            title=title, xlabel='age gap in years (genuine pairs)', xlim=(-0.5, len(years) - 0.5)
        )
        axis.set_xticks(range(len(years)), [f'{key}\n({count})' for key, count in years.items()])
        axis.grid(alpha=0.3)
    axis.legend(fontsize='small')
    save(figure, path)


def draw_histogram(scores: np.ndarray, same: np.ndarray, threshold: float, path) -> None:
    """How the scores (n,) of genuine and impostor pairs are spread, and the threshold."""
    figure = Figure(figsize=(6, 4), layout='constrained')
    axis, bins = figure.subplots(), np.linspace(scores.min() - 1e-3, scores.max() + 1e-3, 60)
    for kind, name, colour in ((same, 'genuine', GENUINE), (~same, 'impostor', IMPOSTOR)):
        axis.hist(
            scores[kind],
            bins,
            density=True,
            alpha=0.55,
            color=colour,
            label=f'{name} ({kind.sum()})',
        )
    axis.axvline(
        threshold, color='black', linestyle='--', linewidth=1, label=f'threshold {threshold:.3f}'
    )
    axis.set(xlabel='score: cosine of the embeddings', ylabel='density', title='Scores')
    axis.legend()
    save(figure, path)


def draw_errors(listed: Listed, pairs: Pairs, scores: np.ndarray, path, each: int = 8) -> None:
    """The lowest-scoring genuine pairs over the highest-scoring impostor pairs, with ages where
    known, scores and file names."""
    order = np.argsort(scores)
    kinds = (
        ('same person, scored low', GENUINE, order[pairs.same[order]][:each]),
        ('two people, scored high', IMPOSTOR, order[~pairs.same[order]][::-1][:each]),
    )
    figure = Figure(figsize=(1.75 * each, 4.6), layout='constrained')
    for part, (title, colour, chosen) in zip(figure.subfigures(2, 1), kinds, strict=True):
        part.suptitle(title, color=colour, fontweight='bold')
        axes = part.subplots(1, each, squeeze=False)[0]
        for axis in axes:
            axis.axis('off')
        for axis, k in zip(axes, chosen, strict=False):
            two = (pairs.left[k], pairs.right[k])
            axis.imshow(np.concatenate([_face(listed.sources[i]) for i in two], axis=1))
            ages, parts = '', 1
            if listed.ages is not None:
                ages, parts = ' · '.join(f'{listed.ages[i]:g}' for i in two) + ' years\n', 2
            names = '\n'.join(_end('/'.join(Path(listed.names[i]).parts[-parts:])) for i in two)
            axis.set_title(f'{ages}score {scores[k]:.3f}', fontsize=9, color=colour)
            axis.text(
                0.5, -0.04, names, fontsize=6.5, ha='center', va='top', transform=axis.transAxes
            )
    save(figure, path)


def _face(source):
    return decode(source if isinstance(source, bytes) else Path(source).read_bytes())


def draw_cmc(models: dict, path) -> None:
    """The share of probes whose mate is at each rank or better, of {name: distractor_report}."""
    figure = Figure(figsize=(6, 4), layout='constrained')
    axis = figure.subplots()
    for name, report in models.items():
        axis.step(
            range(1, len(report['cmc']) + 1),
            report['cmc'],
            where='post',
            label=f'{readable(name)} ({report["distractors"]:,} distractors)',
        )
    axis.set(
        xscale='log',
        ylim=(0, 1.01),
        xlabel='rank',
        ylabel='share of probes',
        title='CMC: the mate at this rank or better',
    )
    axis.grid(alpha=0.3, which='both')
    axis.legend(loc='lower right')
    save(figure, path)


def draw_leakage(report: dict, path) -> None:
    """Of x, x_age and x_id: the age that can be read from them, the people they tell apart; and the
    first canonical correlation of x_id and x_age.

    An R² far below 0 is cut off at the axis, its number is not.
    """
    figure = Figure(figsize=(10.5, 3.8), layout='constrained')
    age, identity, correlation = figure.subplots(1, 3, width_ratios=(1.2, 1, 0.8))
    parts = ('x', 'x_age', 'x_id')
    _bars(
        age,
        parts,
        {
            'R² (ridge)': ([report['age'][part]['r2'] for part in parts], '#4c72b0'),
            'balanced accuracy of groups': (
                [report['age'][part]['balanced_accuracy'] for part in parts],
                '#dd8452',
            ),
        },
    )
    groups = report['age']['x']['groups']
    if groups:
        age.axhline(1 / groups, color='#dd8452', linestyle=':', label=f'chance of {groups} groups')
    age.set(title='age that can be read', ylim=(-0.16, 1.05))
    _bars(
        identity,
        parts,
        {
            'AUC': ([report['identity'][part]['auc'] for part in parts], '#55a868'),
            'rank-1': ([report['identity'][part]['rank1'] for part in parts], '#8172b3'),
        },
    )
    identity.axhline(0.5, color='#55a868', linestyle=':', label='chance of AUC')
    identity.set(title='people told apart', ylim=(0, 1.05))
    rho = report['correlation']
    _bars(
        correlation,
        ('x_id and\nx_age', 'shuffled\npairs'),
        {'': ([rho['rho'], rho['shuffled']], '#937860')},
    )
    if rho['shuffled_95'] is not None:
        correlation.axhline(
            rho['shuffled_95'], color='grey', linestyle=':', label='95 % of shuffles'
        )
    correlation.set(title='correlation, held out', ylim=(0, 1.05))
    for axis in (age, identity, correlation):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(
                fontsize='small',
                loc='upper center',
                bbox_to_anchor=(0.5, -0.14),
                ncols=2,
                frameon=False,
            )
    save(figure, path)


def _bars(axis, names, series):
    """Groups of bars with their value above; None is left empty."""
    width = 0.8 / len(series)
    for k, (label, (values, colour)) in enumerate(series.items()):
        drawn = axis.bar(
            np.arange(len(names)) + (k + 0.5) * width - 0.4,
            [max(value or 0, -0.1) for value in values],
            width,
            color=colour,
            label=label or None,
        )
        axis.bar_label(
            drawn, ['–' if value is None else f'{value:.2f}' for value in values], fontsize=8
        )
    axis.set_xticks(range(len(names)), names)
    axis.grid(alpha=0.3, axis='y')
