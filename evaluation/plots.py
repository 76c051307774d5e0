"""The pictures of a report, each a PNG; several models share one picture."""

import functools
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from evaluation.rates import roc
from storage.images import decode
from utils import write_whole

GENUINE, IMPOSTOR = '#1b7837', '#b2182b'


def save(figure: Figure, path: Path) -> None:
    """Writes the figure, whole or not at all: in the format of the name's ending, else as PNG."""
    ending = Path(path).suffix[1:].lower()
    kind = ending if ending in FigureCanvasAgg.filetypes else 'png'
    write_whole(path, lambda temporary: figure.savefig(temporary, format=kind, dpi=120))


@functools.cache
def _drawable():
    """The characters of the font that pictures are written in."""
    return frozenset(map(chr, get_font(findfont(FontProperties())).get_charmap()))


def readable(name: str) -> str:
    """A name for a picture: what the font lacks, or is no character at all, as its code; and no
    dollar signs, between which matplotlib reads formulas."""
    kept = (c if c in _drawable() and c.isprintable() else f'\\u{ord(c):04x}' for c in name)
    return ''.join(kept).replace('$', r'\$')


def _end(name, length=22):
    """The end of a name, readable, that a face is wide enough for."""
    name = name[-length:]
    while len(readable(name)) > length + 4:
        name = name[1:]
    return readable(name)


def draw_all(out: Path, reports: dict, evidence: dict) -> None:
    """Every picture that there is something for, of {label: report} and {label: Evidence}."""
    draw_roc({k: (one.scores, one.pairs.same) for k, one in evidence.items()}, out / 'roc.png')
    if all(report.get('by_gap') for report in reports.values()):
        draw_gaps({label: report['by_gap'] for label, report in reports.items()}, out / 'gaps.png')
    cmc = {label: one['megaface']['cmc'] for label, one in reports.items() if 'megaface' in one}
    if cmc:
        lines = {label: (range(1, len(shares) + 1), shares) for label, shares in cmc.items()}
        words = 'CMC: the mate at this rank or better', 'rank', 'share of probes'
        draw_curves(lines, out / 'cmc.png', *words, xscale='log', ylim=(0, 1.01))
    by_age = {k: one['by_age']['reliability'] for k, one in reports.items() if one.get('by_age')}
    if by_age:
        draw_reliability(by_age, out / 'reliability.png')
    det = {k: one['error_rates']['det'] for k, one in reports.items() if one['error_rates']['det']}
    if det:
        draw_det(det, out / 'det.png')
    for k, (label, one) in enumerate(evidence.items(), 1):
        suffix, report = f'_{k}' if len(evidence) > 1 else '', reports[label]
        if len(one.scores):
            draw_histogram(one, report['verification']['threshold'], out / f'scores{suffix}.png')
            if one.benchmark.sources:
                draw_errors(one, out / f'errors{suffix}.png')
        if report['error_rates'].get('global'):
            draw_ages(report['error_rates']['global'], out / f'ages{suffix}.png')
        if 'leakage' in report:
            draw_leakage(report['leakage'], out / f'leakage{suffix}.png')


def draw_curves(
    lines: dict,
    path: Path,
    title: str,
    across: str,
    up: str,
    dotted: tuple | None = None,
    style: str = 'steps-post',
    **axes: Any,
) -> None:
    """{label: (x, y)}, or with a band (x, y, low, high); `dotted` (label, x, y) is a reference."""
    figure = Figure(figsize=(6, 4.5), layout='constrained')
    axis = figure.subplots()
    for label, (x, y, *band) in lines.items():
        (line,) = axis.plot(x, y, drawstyle=style, label=readable(label))
        if band:
            axis.fill_between(x, *band, color=line.get_color(), alpha=0.2, linewidth=0)
    if dotted:
        axis.plot(*dotted[1:], color='grey', linestyle=':', label=dotted[0])
    axis.set(title=title, xlabel=across, ylabel=up, **axes)
    axis.grid(alpha=0.3, which='both')
    axis.legend(fontsize='small')
    save(figure, path)


def draw_roc(models: dict, path: Path) -> None:
    """TAR over FAR of {name: (scores, same)}, logarithmic, down to what one impostor pair is."""
    lines, lowest = {}, 0.1
    for name, (scores, same) in models.items():
        if same.any() and not same.all():
            (far,), (tar,) = roc(scores, same)
            lowest = min(lowest, 1 / (~same).sum())
            lines[name] = np.maximum(far, lowest / 2), tar
    chance = np.geomspace(lowest, 1)
    words = 'Verification', 'false accept rate', 'true accept rate', ('chance', chance, chance)
    draw_curves(lines, path, *words, xscale='log', xlim=(lowest, 1), ylim=(0, 1.01))


def draw_det(curves: dict, path: Path) -> None:
    """FNMR over FMR of {name: error_rates.det}, both on the scale of a normal deviate, with the
    95 % band; rates of 0 and 1, which that scale hasn't, are cut off."""
    deviate = np.vectorize(statistics.NormalDist().inv_cdf)
    lines = {}
    for name, curve in curves.items():
        rows = np.array([curve[key] for key in ('fmr', 'fnmr', 'low', 'high')], float)
        least = np.array([[1e-6], [1e-4], [1e-4], [1e-4]])
        lines[name] = deviate(rows[:, np.isfinite(rows[1])].clip(least, 1 - least))
    ticks = [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95]
    axes = {'xlim': deviate([1e-4, 0.9]), 'ylim': deviate([1e-4, 0.95])}
    for side in 'xy':
        axes |= {f'{side}ticks': deviate(ticks), f'{side}ticklabels': [f'{x:g}' for x in ticks]}
    words = 'DET, with 95 % over people', 'false match rate', 'false non-match rate'
    draw_curves(lines, path, *words, style='default', **axes)


def draw_reliability(models: dict[str, dict], path: Path) -> None:
    """The share of one person over the predicted one, of {name: age_calibration.reliability}."""
    lines = {}
    for name, found in models.items():
        points = [[row[key] for row in found['bins']] for key in ('predicted', 'observed')]
        lines[f'{name}, ECE {found["ece"]:.3f}'] = points
    words = 'predicted probability of one person', 'share of one person, both kinds weighed alike'
    dotted = 'as predicted', (0, 1), (0, 1)
    limits: dict = {'xlim': (0, 1), 'ylim': (0, 1)}
    draw_curves(lines, path, 'Reliability', *words, dotted, 'default', **limits)


def draw_ages(found: dict, path: Path) -> None:
    """The FMR of each two age groups and the FNMR by years elapsed, at one threshold for all;
    figures with few errors beneath have an asterisk."""
    table, rows = found['fmr_by_ages'], found['fnmr_by_years']
    groups, size = table['groups'], len(table['groups'])
    figure = Figure(figsize=(11, 4.8), layout='constrained')
    heat, years = figure.subplots(1, 2, width_ratios=(1.3, 1))
    shares = np.array(table['fmr'], float)
    shares = np.where(np.tri(size, dtype=bool).T, shares, shares.T)
    # colours tell how often over, or under, what the threshold keeps for all pairs together
    ratio = np.log10(np.maximum(shares, found['fmr'] / 10) / found['fmr'])
    heat.imshow(ratio, cmap='RdBu_r', vmin=-2, vmax=2)
    for i, j in np.argwhere(np.isfinite(shares)):
        few = table['few'][min(i, j)][max(i, j)]
        text = f'{100 * shares[i, j]:.2g}{"*" * few}'
        heat.text(j, i, text, ha='center', va='center', fontsize=7.5)
    heat.set(xticks=range(size), yticks=range(size), xticklabels=groups, yticklabels=groups)
    title = f'false match rate, %, at one threshold ({100 * found["fmr"]:g} % over all)'
    heat.set(title=title, xlabel='ages of the two people', ylabel='years')
    shares = 100 * np.array([row['rate'] for row in rows])
    limits = 100 * np.array([row['interval'] for row in rows])
    names = [f'{row["years"]}{"*" * row["few"]}\n({row["trials"]})' for row in rows]
    _with_limits(years, range(len(rows)), shares, limits)
    years.set_xticks(range(len(rows)), names)
    title = 'false non-match rate, %, at the same threshold'
    years.set(title=title, xlabel='years elapsed (pairs)', ylim=(0, None))
    save(figure, path)


def draw_gaps(models: dict, path: Path) -> None:
    """Accuracy, AUC and TAR over the age gap of {name: by_gap rows}, with 95 % intervals."""
    figure = Figure(figsize=(11, 3.8), layout='constrained')
    years = {row['years']: row['genuine'] for rows in models.values() for row in rows}
    places = {key: place for place, key in enumerate(years)}
    titles = {'accuracy': 'accuracy', 'auc': 'AUC', 'tar@1e-1': 'TAR at FAR 0.1'}
    for axis, (name, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        for k, (label, rows) in enumerate(models.items()):
            rows = [row for row in rows if row[name] is not None]
            at = [places[row['years']] + (k - (len(models) - 1) / 2) * 0.12 for row in rows]
            limits = [row['intervals'][name] or [row[name]] * 2 for row in rows]
            _with_limits(axis, at, [row[name] for row in rows], limits, label=readable(label))
        chance = 0.1 if name.startswith('tar') else 0.5
        axis.axhline(chance, color='grey', linestyle=':', label='chance')
        ends = -0.5, len(years) - 0.5
        axis.set(title=title, xlabel='age gap in years (genuine pairs)', xlim=ends)
        axis.set_xticks(range(len(years)), [f'{key}\n({count})' for key, count in years.items()])
    axis.legend(fontsize='small')
    save(figure, path)


def _with_limits(axis, at, values, limits, **options):
    """Values (n,) as points on a line, each between its limits (n, 2)."""
    low, high = np.reshape(limits, (-1, 2)).T
    error = np.clip([values - low, high - values], 0, None)
    axis.errorbar(at, values, error, fmt='o-', capsize=3, **options)
    axis.grid(alpha=0.3)


def draw_histogram(one: Any, threshold: float | None, path: Path) -> None:
    """How an Evidence's scores of genuine and impostor pairs are spread, and the threshold."""
    figure = Figure(figsize=(6, 4), layout='constrained')
    axis = figure.subplots()
    bins = np.linspace(one.scores.min() - 1e-3, one.scores.max() + 1e-3, 60).tolist()
    kinds = (one.pairs.same, 'genuine', GENUINE), (~one.pairs.same, 'impostor', IMPOSTOR)
    for kind, name, colour in kinds:
        label = f'{name} ({kind.sum()})'
        axis.hist(one.scores[kind], bins, density=True, alpha=0.55, color=colour, label=label)
    if threshold is not None:
        axis.axvline(threshold, color='black', linestyle='--', label=f'threshold {threshold:.3f}')
    axis.set(xlabel='score: cosine of the embeddings', ylabel='density', title='Scores')
    axis.legend()
    save(figure, path)


def draw_errors(one: Any, path: Path, each: int = 8) -> None:
    """The lowest-scoring genuine pairs of an Evidence over the highest-scoring impostor pairs."""
    pairs, known, order = one.pairs, one.benchmark, np.argsort(one.scores)
    low, high = order[pairs.same[order]], order[~pairs.same[order]][::-1]
    kinds = (
        ('same person, scored low', GENUINE, low),
        ('different people, scored high', IMPOSTOR, high),
    )
    figure = Figure(figsize=(1.75 * each, 4.6), layout='constrained')
    halves: Any = figure.subfigures(2, 1)
    for half, (title, colour, chosen) in zip(halves, kinds, strict=True):
        half.suptitle(title, color=colour, fontweight='bold')
        axes = half.subplots(1, each, squeeze=False)[0]
        for axis in axes:
            axis.axis('off')
        for axis, k in zip(axes, chosen, strict=False):
            two = pairs.left[k], pairs.right[k]
            sources = [known.sources[i] for i in two]
            data = [x if isinstance(x, bytes) else Path(x).read_bytes() for x in sources]
            axis.imshow(np.concatenate(list(map(decode, data)), axis=1))
            title, folders = f'score {one.scores[k]:.3f}', 1
            if known.ages is not None:
                years = ' · '.join(f'{known.ages[i]:g}' for i in two)
                title, folders = f'{years} years\n{title}', 2
            names = '\n'.join(_end('/'.join(Path(known.names[i]).parts[-folders:])) for i in two)
            axis.set_title(title, fontsize=9, color=colour)
            place = {'ha': 'center', 'va': 'top', 'transform': axis.transAxes}
            axis.text(0.5, -0.04, names, fontsize=6.5, **place)
    save(figure, path)


def draw_leakage(report: dict, path: Path) -> None:
    """The age that can be read from x, x_age and x_id, the people they tell apart; and the first
    canonical correlation of x_id and x_age. A value far below 0 is cut off, its number is not."""
    figure = Figure(figsize=(10.5, 3.8), layout='constrained')
    age, rho, groups = report['age'], report['correlation'], report['age']['x']['groups']
    pairings = {'x_id, x_age': rho, 'shuffled': {'rho': rho['shuffled']}}
    series = {'R² (ridge)': 'r2', 'groups': 'balanced_accuracy'}
    chance = groups and 1 / groups, f'chance: 1/{groups}'
    panels: list = [('age that can be read', age, series, *chance)]
    series = {'AUC': 'auc', 'rank-1': 'rank1'}
    panels.append(('people told apart', report['identity'], series, 1 / 2, 'chance: 1/2'))
    limit = rho['shuffled_95'], '95 % of shuffles'
    panels.append(('correlation, held out', pairings, {'ρ': 'rho'}, *limit))
    axes = figure.subplots(1, 3, width_ratios=(1.2, 1, 0.8))
    for axis, (title, found, series, level, name) in zip(axes, panels, strict=True):
        width = 0.8 / len(series)
        for k, (label, key) in enumerate(series.items()):
            values = [one[key] for one in found.values()]
            at = np.arange(len(values)) + (k + 0.5) * width - 0.4
            bars = axis.bar(at, [max(v or 0, -0.1) for v in values], width, label=label)
            figures = ['–' if v is None else f'{v:.2f}' for v in values]
            axis.bar_label(bars, figures, fontsize=8)
        if level is not None:
            axis.axhline(level, color='grey', linestyle=':', label=name)
        axis.set_xticks(range(len(found)), found)
        axis.set(title=title, ylim=(-0.16, 1.05))
        axis.grid(alpha=0.3, axis='y')
        below = {'loc': 'upper center', 'bbox_to_anchor': (0.5, -0.14), 'ncols': 3}
        axis.legend(fontsize='small', frameon=False, **below)
    save(figure, path)
