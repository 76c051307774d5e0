"""A report to read: the tables on the screen, in percent with 95 % intervals, and report.html."""

import base64
from collections.abc import Iterator
from pathlib import Path

from evaluation.age_calibration import RATES
from evaluation.age_thresholds import GAP, YOUNGER, span
from evaluation.rates import FALSE_ACCEPTS, FARS
from utils import write_whole

COLUMNS = ('AUC', 'EER', *FARS)


def table(name: str, reports: dict) -> str:
    """The reports of a benchmark, {label: report}, one block for each model."""
    blocks = (_lines(f'{name}, {label}', report) for label, report in reports.items())
    return '\n'.join(line for block in blocks for line in block)


def _lines(title, report) -> Iterator[str]:
    found = report['verification']
    people = '' if report['people'] is None else f'{report["people"]} people, '
    yield f'\n{title}: {report["images"]} images, {people}{found["pairs"]} pairs'
    heads = '  '.join(f'{head:>18}' for head in COLUMNS)
    yield f'{"":14}{"pairs":>7}  {"accuracy ± std":>15}  {heads}  threshold'
    rows = {'all': found} | {f'{row["years"]} years': row for row in report.get('by_gap', [])}
    for of, row in rows.items():
        yield _row(of, row)
    yield from (f'–  {of}: {row["reason"]}' for of, row in rows.items() if 'reason' in row)
    known = [row for row in rows.values() if row['auc'] is not None]
    if short := [name for name in FARS if any(row[name] is None for row in known)]:
        few = f'fewer impostor pairs than give {FALSE_ACCEPTS} false accepts at this rate'
        yield f'–  {", ".join(short)}: {few}'
    if any(row['few_errors'] for row in rows.values()):
        yield '*  fewer than 30 errors are beneath the figure'
    if found['far']:
        cells = (f'FAR {rate}: {_at_rate(**one)}' for rate, one in found['far'].items())
        yield 'thresholds [95 %]  ' + '   '.join(cells)
    if lost := report.get('alignment'):
        count = f'{lost["not_found"]:,} of {lost["photographs"]:,} photographs'
        yield f'no face found in {count} ({100 * lost["share"]:.2f} %): their middle was taken'
    if 'rank1' in report:
        figure = _percent(report['rank1'], report['rank1_interval'])
        yield f'rank-1 {figure} of {report["rank1_probes"]} probes'
    if far := report.get('megaface'):
        figure = _percent(far['rank1'], far['rank1_interval'])
        yield f'rank-1 among {far["distractors"]} distractors {figure}'
    if figures := [*_error_rates(report['error_rates'])]:
        yield '   '.join(figures)
    if 'leakage' in report:
        yield from _leakage(report['leakage'])


def _row(title, row):
    """One line of verification figures."""
    limits, few = row.get('intervals', {}), row['few_errors']
    accuracy = _percent(row['accuracy'], None, 'accuracy' in few)
    if row['accuracy'] is not None:
        accuracy += f' ± {100 * row["accuracy_std"]:.2f}'
    figures = [_percent(row[k], limits.get(k), k in few) for k in map(str.lower, COLUMNS)]
    figures = '  '.join(f'{figure:>18}' for figure in figures)
    return f'{title:14}{row["pairs"]:7}  {accuracy:>15}  {figures}  {_fixed(row["threshold"]):>9}'


def _at_rate(threshold, interval):
    return f'{threshold:.3f}' + (' [{:.3f} {:.3f}]'.format(*interval) if interval else '')


def _error_rates(found) -> Iterator[str]:
    """A few of the error rates; report.html has all of them."""
    if one := found.get('global'):
        yield f'FNMR {_rate(**one["fnmr"])} at an FMR of {one["fmr"]:g}'
    for fpir, row in ((found.get('open_set') or {}).get('fnir') or {}).items():
        yield f'FNIR {_rate(**row)} at an FPIR of {fpir}'
    if found['cllr']:
        yield 'Cllr {cllr:.3f} (at best {min_cllr:.3f})'.format(**found['cllr'])
    if lost := found.get('failure_to_acquire'):
        without, all_ = (_percent(lost[key]['eer']) for key in ('without', 'with'))
        yield f'EER {without} without failures to acquire, {all_} with them'


def _leakage(found) -> Iterator[str]:
    """What evidence.leakage_report found."""
    head = 'on people the probe was not fitted on:'
    yield f'{head}  age R²   MAE years   groups told (chance)   identity AUC   rank-1'
    for name, age in found['age'].items():
        chance = _fixed(1 / age['groups'] if age['groups'] else None)
        groups = f'{_fixed(age["balanced_accuracy"])} ({chance})'
        figures = f'{_fixed(age["r2"]):>6}   {_fixed(age["mae"]):>9}   {groups:>20}'
        auc, rank1 = (_fixed(found['identity'][name][key]) for key in ('auc', 'rank1'))
        yield f'{name:>{len(head)}}  {figures}   {auc:>12}   {rank1:>6}'
    if found['age']['x']['r2'] is None:
        yield '–  the age is not read: that needs five people, and ages that differ'
    rho = found['correlation']
    if rho['rho'] is None:
        yield '–  x_id and x_age are not correlated: that needs four people and 80 images'
        return
    line = 'first canonical correlation of x_id and x_age, held out: {rho:.3f}; shuffled pairs '
    yield (line + '{shuffled:.3f}, 95 % below {shuffled_95:.3f}').format(**rho)


def ages_table(found: dict) -> str:
    """An age_calibration.report_by_age."""
    rates = '   '.join(f'{f"FAR at {far:g}":>12}{"TAR":>7}' for far in RATES)
    source = 'from validation'
    if found['halves']:
        source = 'fitted on a half of these people, whom validation knew, and measured on the other'
    error = f'calibration error of the probability is {found["reliability"]["ece"]:.3f}'
    lines = [f'thresholds by age, {source}; the expected {error}']
    lines.append(f'{"younger":>10}{"gap":>12}{"different":>11}{"one":>8}   {rates}')
    cells: dict[str, list] = {}
    for row in found['cells']:
        cells.setdefault(row['cell'], []).append(row)
    for row, *others in cells.values():
        ages = f'{span(YOUNGER, row["younger"]):>10}{span(GAP, row["gap"]):>12}'
        line = f'{ages}{row["impostor"]:11}{row["genuine"]:8}'
        for one in (row, *others):
            far = f'{_fixed(one["far"])}{" " if one["promised"] else "*"}'
            line += f'   {far:>12}{_fixed(one["tar"]):>7}'
        lines.append(line)
    return '\n'.join([*lines, '* validation had too few pairs of such ages for this rate'])


def differences_table(row: dict) -> str:
    """Each gain over the first model, in points, with its interval; a star if that leaves out 0."""
    unit = 'points of percent [95 % of a paired bootstrap]; * leaves out 0'
    lines = [f'\n{row["of"]} − {row["against"]}, {unit}']
    blocks = {'all': row['verification']}
    for gap in row.get('by_gap', []):
        blocks[f'{gap["years"]} years'] = {k: v for k, v in gap.items() if k != 'years'}
    if 'rank1' in row:
        blocks['rank-1'] = {'rank1': row['rank1']}
    for title, figures in blocks.items():
        cells = []
        for name, value in figures.items():
            if value['interval']:
                low, high = (100 * limit for limit in value['interval'])
                limits = f'[{low:+.2f} {high:+.2f}]{"*" * (low * high > 0)}'
                cells.append(f'{name} {100 * value["difference"]:+.2f} {limits}')
        lines.append(f'{title:14}' + ('   '.join(cells) or '–  too few pairs'))
    return '\n'.join(lines)


def _rate(rate, interval, few, **_):
    """An error_rates.rate."""
    return _percent(rate, interval, few)


def _percent(value, limits=None, few=False):
    if value is None:
        return '–'
    between = ' [{:.1f} {:.1f}]'.format(*(100 * limit for limit in limits)) if limits else ''
    return f'{100 * value:.2f}{"*" * few}{between}'


def _fixed(value):
    return '–' if value is None else f'{value:.3f}'


def write_html(out: Path, result: dict, reports: dict, text: str) -> None:
    """Writes out/report.html, one file that opens in any browser: the screen's `text`, tables of
    {label: report}, the pictures in `out`."""
    import jinja2  # comes with torch

    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(loader=folder, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pages.filters['share'] = lambda x, few=False: '' if x is None else f'{100 * x:.3g}{"*" * few}'
    pages.filters['fixed'] = lambda value: '' if value is None else f'{value:.3f}'
    pictures = sorted(out.glob('*.png'))
    images = {path.stem: base64.b64encode(path.read_bytes()).decode() for path in pictures}
    facts = {'result': result, 'reports': reports, 'text': text.strip(), 'images': images}
    page = pages.get_template('report.html').render(facts)
    # a name that is no text stands as its code
    write_whole(
        out / 'report.html', lambda file: file.write_text(page, 'utf-8', 'backslashreplace')
    )
