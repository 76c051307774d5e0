"""A report for the screen: percent, with 95 % intervals."""

from evaluation.rates import FALSE_ACCEPTS, FARS

COLUMNS = ('AUC', 'EER', *FARS)
MARK = '*'  # fewer than 30 errors are beneath the figure


def table(name: str, reports: dict) -> str:
    """The reports of a benchmark, {label: report}, one block for each model."""
    lines = []
    for label, report in reports.items():
        found = report['verification']
        people = '' if report['people'] is None else f'{report["people"]} people, '
        rows = [('all', found)]
        rows += [(f'{row["years"]} years', row) for row in report.get('by_gap', [])]
        heads = '  '.join(f'{head:>18}' for head in COLUMNS)
        count = f'{report["images"]} images, {people}{found["pairs"]} pairs'
        lines.append(f'\n{name}, {label}: {count}')
        lines.append(f'{"":14}{"pairs":>7}  {"accuracy ± std":>15}  {heads}  threshold')
        lines += [*(_row(*row) for row in rows), *_notes(rows), *_thresholds(found['far'])]
        if 'alignment' in report:
            lost = report['alignment']
            count = f'{lost["not_found"]:,} of {lost["photographs"]:,} photographs'
            share = f'{100 * lost["share"]:.2f} %'
            lines.append(f'no face found in {count} ({share}): their middle was taken')
        if 'rank1' in report:
            figure = _percent(report['rank1'], report['rank1_interval'])
            lines.append(f'rank-1 {figure} of {report["rank1_probes"]} probes')
        if 'megaface' in report:
            far = report['megaface']
            figure = _percent(far['rank1'], far['rank1_interval'])
            lines.append(f'rank-1 among {far["distractors"]} distractors {figure}')
        lines += error_lines(report['error_rates'])
        if 'leakage' in report:
            lines.append(leakage_table(report['leakage']))
    return '\n'.join(lines)


def _row(title, row):
    """One line of verification figures."""
    accuracy = threshold = '–'
    if row['accuracy'] is not None:
        mark = MARK * ('accuracy' in row['few_errors'])
        accuracy = f'{100 * row["accuracy"]:.2f}{mark} ± {100 * row["accuracy_std"]:.2f}'
    if row['threshold'] is not None:
        threshold = f'{row["threshold"]:.3f}'
    limits = row.get('intervals', {})
    few = row['few_errors']
    figures = [_percent(row[k], limits.get(k), k in few) for k in map(str.lower, COLUMNS)]
    figures = '  '.join(f'{figure:>18}' for figure in figures)
    return f'{title:14}{row["pairs"]:7}  {accuracy:>15}  {figures}  {threshold:>9}'


def _notes(rows):
    """Why there is a dash instead of a figure."""
    reasons = [f'{title}: {row["reason"]}' for title, row in rows if 'reason' in row]
    known = [row for _, row in rows if row['auc'] is not None]
    short = [name for name in FARS if any(row[name] is None for row in known)]
    if short:
        few = f'fewer impostor pairs than give {FALSE_ACCEPTS} false accepts at this rate'
        reasons.append(f'{", ".join(short)}: {few}')
    marked = any(row['few_errors'] for _, row in rows)
    note = [f'{MARK}  fewer than 30 errors are beneath the figure'] if marked else []
    return [*(f'–  {reason}' for reason in reasons), *note]


def _thresholds(far):
    """The threshold at each false accept rate that the impostor pairs support."""
    cells = []
    for rate, found in far.items():
        low, high = found['interval'] or (None, None)
        limits = '' if low is None else f' [{low:.3f} {high:.3f}]'
        cells.append(f'FAR {rate}: {found["threshold"]:.3f}{limits}')
    return ['thresholds [95 %]  ' + '   '.join(cells)] if cells else []


def error_lines(found: dict) -> list[str]:
    """The error rates in two lines; all of them are in report.html."""
    figures, lost = [], found.get('failure_to_acquire')
    if found.get('global'):
        one = found['global']
        fnmr = _percent(*(one['fnmr'][key] for key in ('rate', 'interval', 'few')))
        figures.append(f'FNMR {fnmr} at an FMR of {one["fmr"]:g}')
    for fpir, row in ((found.get('open_set') or {}).get('fnir') or {}).items():
        fnir = _percent(*(row[key] for key in ('rate', 'interval', 'few')))
        figures.append(f'FNIR {fnir} at an FPIR of {fpir}')
    if found['cllr']:
        figures.append('Cllr {cllr:.3f} (at best {min_cllr:.3f})'.format(**found['cllr']))
    if lost:
        without, all_ = (_percent(lost[key]['eer'], None) for key in ('without', 'with'))
        figures.append(f'EER {without} without failures to acquire, {all_} with them')
    return ['   '.join(figures)] if figures else []


def leakage_table(report: dict) -> str:
    """What evidence.leakage_report found."""
    head = 'on people the probe was not fitted on:'
    lines = [f'{head}  age R²   MAE years   groups told (chance)   identity AUC   rank-1']
    for name, age in report['age'].items():
        identity = report['identity'][name]
        chance = _fixed(1 / age['groups'] if age['groups'] else None)
        groups = f'{_fixed(age["balanced_accuracy"])} ({chance})'
        figures = f'{_fixed(age["r2"]):>6}   {_fixed(age["mae"]):>9}   {groups:>20}'
        figures += f'   {_fixed(identity["auc"]):>12}   {_fixed(identity["rank1"]):>6}'
        lines.append(f'{name:>{len(head)}}  {figures}')
    if report['age']['x']['r2'] is None:
        lines.append('–  the age is not read: that needs five people, and ages that differ')
    rho, shuffled, limit, _ = map(_fixed, report['correlation'].values())
    line = f'first canonical correlation of x_id and x_age, held out: {rho}'
    line += f'; shuffled pairs {shuffled}, 95 % below {limit}'
    if rho == '–':
        line = '–  x_id and x_age are not correlated: that needs four people and 80 images'
    return '\n'.join([*lines, line])


def differences_table(row: dict) -> str:
    """Each gain over the first model, in points, with its interval; a star if that leaves out 0."""
    unit = 'points of percent [95 % of a paired bootstrap]; * leaves out 0'
    lines = [f'\n{row["of"]} − {row["against"]}, {unit}']
    blocks = [('all', row['verification'])]
    blocks += [(f'{gap["years"]} years', gap) for gap in row.get('by_gap', [])]
    if 'rank1' in row:
        blocks.append(('rank-1', {'rank1': row['rank1']}))
    for title, figures in blocks:
        cells = []
        for name, value in figures.items():
            if isinstance(value, dict) and value['interval']:
                low, high = value['interval']
                limits = f'[{100 * low:+.2f} {100 * high:+.2f}]{"*" * (low * high > 0)}'
                cells.append(f'{name} {100 * value["difference"]:+.2f} {limits}')
        lines.append(f'{title:14}' + ('   '.join(cells) or '–  too few pairs'))
    return '\n'.join(lines)


def _percent(value, limits, few=False):
    if value is None:
        return '–'
    low, high = limits or (None, None)
    limits = f' [{100 * low:.1f} {100 * high:.1f}]' if limits else ''
    return f'{100 * value:.2f}{MARK * few}{limits}'


def _fixed(value):
    return '–' if value is None else f'{value:.3f}'
