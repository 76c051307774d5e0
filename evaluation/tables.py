"""A report for the screen: percent, with 95 % intervals."""

from evaluation.rates import FALSE_ACCEPTS, FARS

COLUMNS = ('AUC', 'EER', *FARS)


def table(name: str, reports: dict) -> str:
    """The reports of a benchmark, {label: report}, one block a model."""
    lines = []
    for label, report in reports.items():
        people = '' if report['people'] is None else f'{report["people"]} people, '
        rows = [
            ('all', report['verification']),
            *((f'{row["years"]} years', row) for row in report.get('by_gap', [])),
        ]
        lines += [
            f'\n{name}, {label}: {report["images"]} images, {people}'
            f'{report["verification"]["pairs"]} pairs',
            f'{"":14}{"pairs":>7}  {"accuracy ± std":>15}  '
            + '  '.join(f'{head:>18}' for head in COLUMNS)
            + '  threshold',
            *(_row(title, row) for title, row in rows),
            *_notes(rows),
            *_thresholds(report['verification']['far']),
        ]
        if 'alignment' in report:
            lines.append(alignment_line(report['alignment']))
        if 'rank1' in report:
            lines.append(
                f'rank-1 {_percent(report["rank1"], report["rank1_interval"])} of '
                f'{report["rank1_probes"]} probes'
            )
        if 'megaface' in report:
            far = report['megaface']
            lines.append(
                f'rank-1 among {far["distractors"]} distractors '
                f'{_percent(far["rank1"], far["rank1_interval"])}'
            )
        if 'leakage' in report:
            lines.append(leakage_table(report['leakage']))
    return '\n'.join(lines)


def _row(title, row):
    """One line of verification figures."""
    accuracy = threshold = '–'
    if row['accuracy'] is not None:
        accuracy = f'{100 * row["accuracy"]:.2f} ± {100 * row["accuracy_std"]:.2f}'
    if row['threshold'] is not None:
        threshold = f'{row["threshold"]:.3f}'
    figures = [
        _percent(row[key.lower()], row.get('intervals', {}).get(key.lower())) for key in COLUMNS
    ]
    return (
        f'{title:14}{row["pairs"]:7}  {accuracy:>15}  '
        + '  '.join(f'{figure:>18}' for figure in figures)
        + f'  {threshold:>9}'
    )


def alignment_line(counts: dict) -> str:
    """In how many photographs no face was found."""
    return (
        f'no face found in {counts["not_found"]:,} of {counts["photographs"]:,} photographs '
        f'({100 * counts["share"]:.2f} %): their middle was taken'
    )


def _notes(rows):
    """Why there is a dash instead of a figure."""
    reasons = [f'{title}: {row["reason"]}' for title, row in rows if 'reason' in row]
    short = [
        name
        for name in FARS
        if any(row[name] is None and row['auc'] is not None for _, row in rows)
    ]
    if short:
        reasons.append(
            f'{", ".join(short)}: fewer impostor pairs than give {FALSE_ACCEPTS} false '
            'accepts at this rate'
        )
    return [f'–  {reason}' for reason in reasons]


def _thresholds(far):
    """The threshold at each false accept rate that the impostor pairs support."""
    cells = []
    for rate, found in far.items():
        limits = found['interval']
        cells.append(
            f'FAR {rate}: {found["threshold"]:.3f}'
            + (f' [{limits[0]:.3f} {limits[1]:.3f}]' if limits else '')
        )
    return ['thresholds [95 %]  ' + '   '.join(cells)] if cells else []


def leakage_table(report: dict) -> str:
    """What protocols.leakage_report found."""
    head = 'on people the probe was not fitted on:'
    lines = [f'{head}  age R²   MAE years   groups told (chance)   identity AUC   rank-1']
    for part in ('x', 'x_age', 'x_id'):
        age, identity = report['age'][part], report['identity'][part]
        chance = _fixed(1 / age['groups'] if age['groups'] else None)
        groups = f'{_fixed(age["balanced_accuracy"])} ({chance})'
        lines.append(
            f'{part:>{len(head)}}  {_fixed(age["r2"]):>6}   {_fixed(age["mae"]):>9}   '
            f'{groups:>20}   {_fixed(identity["auc"]):>12}   '
            f'{_fixed(identity["rank1"]):>6}'
        )
    if report['age']['x']['r2'] is None:
        lines.append('–  the age is not read: that needs five people, and ages that differ')
    rho = report['correlation']
    if rho['rho'] is None:
        lines.append('–  x_id and x_age are not correlated: that needs four people and 80 images')
        return '\n'.join(lines)
    lines.append(
        'first canonical correlation of x_id and x_age, held out: '
        f'{_fixed(rho["rho"])}; shuffled pairs {_fixed(rho["shuffled"])}, '
        f'95 % below {_fixed(rho["shuffled_95"])}'
    )
    return '\n'.join(lines)


def differences_table(row: dict) -> str:
    """Each figure's gain over the first model, in points, with its interval; a star where that
    leaves out 0."""
    lines = [
        f'\n{row["of"]} − {row["against"]}, points of percent [95 % of a paired bootstrap]; '
        '* leaves out 0'
    ]
    blocks = [
        ('all', row['verification']),
        *((f'{gap["years"]} years', gap) for gap in row.get('by_gap', [])),
    ]
    if 'rank1' in row:
        blocks.append(('rank-1', {'rank1': row['rank1']}))
    for title, figures in blocks:
        cells = [
            _gain(name, value['difference'], *value['interval'])
            for name, value in figures.items()
            if isinstance(value, dict) and value['interval']
        ]
        lines.append(f'{title:14}' + ('   '.join(cells) or '–  too few pairs'))
    return '\n'.join(lines)


def _gain(name, difference, low, high):
    return f'{name} {100 * difference:+.2f} [{100 * low:+.2f} {100 * high:+.2f}]' + (
        '*' if low * high > 0 else ''
    )


def _percent(value, limits):
    if value is None:
        return '–'
    return f'{100 * value:.2f}' + (
        f' [{100 * limits[0]:.1f} {100 * limits[1]:.1f}]' if limits else ''
    )


def _fixed(value):
    return '–' if value is None else f'{value:.3f}'
