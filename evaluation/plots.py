"""The pictures of a report, each a PNG; several models share one picture.

No global state of matplotlib is touched.
"""

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
    det = {k: one['error_rates']['det'] for k, one in reports.items()}
    if curves := {label: curve for label, curve in det.items() if curve}:
        draw_det(curves, out / 'det.png')
    for k, (label, one) in enumerate(evidence.items()):
        suffix = f'_{k + 1}' if len(evidence) > 1 else ''
        if len(one.scores):
            threshold = reports[label]['verification']['threshold']
            draw_histogram(one.scores, one.pairs.same, threshold, out / f'scores{suffix}.png')
            if one.benchmark.sources:
                draw_errors(one, out / f'errors{suffix}.png')
        if reports[label]['error_rates'].get('global'):
            draw_ages(reports[label]['error_rates']['global'], out / f'ages{suffix}.png')
        if 'leakage' in reports[label]:
            draw_leakage(reports[label]['leakage'], out / f'leakage{suffix}.png')


def draw_curves(lines: dict, path, title, across, up, dotted=None, style='steps-post', **axes):
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
    lines = {}
    for name, curve in curves.items():
        known = [k for k, value in enumerate(curve['fnmr']) if value is not None]
        rows = [[curve[key][k] for k in known] for key in ('fmr', 'fnmr', 'low', 'high')]
        lines[name] = [rows[0], *np.clip(rows[1:], 1e-4, 1 - 1e-4)]
    ticks = [1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95]
    scale = statistics.NormalDist()
    deviate = np.vectorize(lambda p: scale.inv_cdf(min(max(p, 1e-6), 1 - 1e-6)))
    lines = {name: [deviate(row) for row in rows] for name, rows in lines.items()}
    axes = {'xlim': deviate([1e-4, 0.9]), 'ylim': deviate([1e-4, 0.95])}
    for side in 'xy':
        axes |= {f'{side}ticks': deviate(ticks), f'{side}ticklabels': [f'{x:g}' for x in ticks]}
    words = 'DET, with 95 % over people', 'false match rate', 'false non-match rate'
    draw_curves(lines, path, *words, style='default', **axes)


def draw_ages(found: dict, path: Path) -> None:
    """The FMR of each two age groups and the FNMR by years elapsed, at one threshold for all;
    figures with few errors beneath have an asterisk."""
    table, rows = found['fmr_by_ages'], found['fnmr_by_years']
    groups, size = table['groups'], len(table['groups'])
    figure = Figure(figsize=(11, 4.8), layout='constrained')
    heat, years = figure.subplots(1, 2, width_ratios=(1.3, 1))
    shares = np.array(table['fmr'], float)
    upper = np.triu(np.ones((size, size), bool))
    shares = np.where(upper, shares, shares.T)
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
    middle = 100 * np.array([row['rate'] for row in rows])
    low, high = 100 * np.array([row['interval'] for row in rows]).T
    error = np.clip([middle - low, high - middle], 0, None)
    years.errorbar(range(len(rows)), middle, error, fmt='o-', capsize=3)
    names = [f'{row["years"]}{"*" * row["few"]}\n({row["trials"]})' for row in rows]
    years.set_xticks(range(len(rows)), names)
    title = 'false non-match rate, %, at the same threshold'
    years.set(title=title, xlabel='years elapsed (pairs)', ylim=(0, None))
    years.grid(alpha=0.3)
    save(figure, path)


def draw_reliability(models: dict[str, dict], path: Path) -> None:
    """The share of one person over the predicted one, of {name: age_calibration.reliability}."""
    lines = {}
    for name, found in models.items():
        points = [[row[key] for row in found['bins']] for key in ('predicted', 'observed')]
        lines[f'{name}, ECE {found["ece"]:.3f}'] = points
    words = 'predicted probability of one person', 'share of one person, both kinds weighed alike'
    dotted = 'as predicted', (0, 1), (0, 1)
    limits = {'xlim': (0, 1), 'ylim': (0, 1)}
    draw_curves(lines, path, 'Reliability', *words, dotted, 'default', **limits)


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
            middle = np.array([row[name] for row in rows])
            limits = [row['intervals'][name] or [row[name]] * 2 for row in rows]
            low, high = np.array(limits).reshape(-1, 2).T
            error = np.clip([middle - low, high - middle], 0, None)
            axis.errorbar(at, middle, error, fmt='o-', capsize=3, label=readable(label))
        chance = 0.1 if name.startswith('tar') else 0.5
        axis.axhline(chance, color='grey', linestyle=':', label='chance')
        ends = -0.5, len(years) - 0.5
        axis.set(title=title, xlabel='age gap in years (genuine pairs)', xlim=ends)
        axis.set_xticks(range(len(years)), [f'{key}\n({count})' for key, count in years.items()])
        axis.grid(alpha=0.3)
    axis.legend(fontsize='small')
    save(figure, path)


def draw_histogram(scores: np.ndarray, same: np.ndarray, threshold: float, path: Path) -> None:
    """How the scores (n,) of genuine and impostor pairs are spread, and the threshold."""
    figure = Figure(figsize=(6, 4), layout='constrained')
    axis = figure.subplots()
    bins = np.linspace(scores.min() - 1e-3, scores.max() + 1e-3, 60).tolist()
    for kind, name, colour in ((same, 'genuine', GENUINE), (~same, 'impostor', IMPOSTOR)):
        label = f'{name} ({kind.sum()})'
        axis.hist(scores[kind], bins, density=True, alpha=0.55, color=colour, label=label)
    if threshold is not None:
        axis.axvline(threshold, color='black', linestyle='--', label=f'threshold {threshold:.3f}')
    axis.set(xlabel='score: cosine of the embeddings', ylabel='density', title='Scores')
    axis.legend()
    save(figure, path)


def draw_errors(one, path: Path, each: int = 8) -> None:
    """The lowest-scoring genuine pairs of an Evidence over the highest-scoring impostor pairs."""
    pairs, known, order = one.pairs, one.benchmark, np.argsort(one.scores)
    low, high = order[pairs.same[order]], order[~pairs.same[order]][::-1]
    titles = 'same person, scored low', 'different people, scored high'
    kinds = zip(titles, (GENUINE, IMPOSTOR), (low, high), strict=True)
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
    canonical correlation of x_id and x_age.

    An R² far below 0 is cut off at the axis, its number is not.
    """
    figure = Figure(figsize=(10.5, 3.8), layout='constrained')
    names, rho = list(report['age']), report['correlation']
    panels = (
        ('age that can be read', 'age', {'R² (ridge)': 'r2', 'groups': 'balanced_accuracy'}),
        ('people told apart', 'identity', {'AUC': 'auc', 'rank-1': 'rank1'}),
    )
    *axes, correlation = figure.subplots(1, 3, width_ratios=(1.2, 1, 0.8))
    for axis, (title, key, series) in zip(axes, panels, strict=True):
        found = report[key]
        _bars(axis, names, {k: [found[n][v] for n in names] for k, v in series.items()})
        groups = found['x'].get('groups', 2)  # an AUC of chance is 1/2
        if groups:
            axis.axhline(1 / groups, color='grey', linestyle=':', label=f'chance: 1/{groups}')
        axis.set(title=title, ylim=(-0.16, 1.05))
    _bars(correlation, ('x_id, x_age', 'shuffled'), {'ρ': [rho['rho'], rho['shuffled']]})
    if rho['shuffled_95'] is not None:
        limit = {'color': 'grey', 'linestyle': ':', 'label': '95 % of shuffles'}
        correlation.axhline(rho['shuffled_95'], **limit)
    correlation.set(title='correlation, held out', ylim=(0, 1.05))
    for axis in (*axes, correlation):
        below = {'loc': 'upper center', 'bbox_to_anchor': (0.5, -0.14), 'ncols': 3}
        axis.legend(fontsize='small', frameon=False, **below)
    save(figure, path)


def _bars(axis, names, series):
    """Groups of bars with their value above; None is left empty."""
    width = 0.8 / len(series)
    for k, (label, values) in enumerate(series.items()):
        heights = [max(value or 0, -0.1) for value in values]
        at = np.arange(len(names)) + (k + 0.5) * width - 0.4
        drawn = axis.bar(at, heights, width, label=label)
        figures = ['–' if value is None else f'{value:.2f}' for value in values]
        axis.bar_label(drawn, figures, fontsize=8)
    axis.set_xticks(range(len(names)), names)
    axis.grid(alpha=0.3, axis='y')
