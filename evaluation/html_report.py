"""report.html: a whole report in one file, pictures included, that opens in any browser."""

import base64
import html
from pathlib import Path

from utils import write_whole

STYLE = """body{font:15px/1.5 sans-serif;margin:2em auto;max-width:75em;padding:0 1em}
table{border-collapse:collapse;margin:.5em 0 1.5em}td,th{border:1px solid #bbb;padding:.15em .6em;
text-align:right}th{background:#eee}pre{overflow:auto;background:#f6f6f6;padding:1em}
img{max-width:100%}"""
NOTE = '* fewer than 30 errors beneath it: the true rate may be further than 30 % away'


def write_html(out: Path, result: dict, reports: dict, text: str) -> None:
    """Writes out/report.html: the screen's `text`, tables of {label: report}, the pictures."""
    title = f'{result["benchmark"]}: {", ".join(reports)}'
    body = [f'<h1>{_escape(title)}</h1><pre>{_escape(text.strip())}</pre>']
    for label, report in reports.items():
        body += [f'<h2>{_escape(label)}</h2>', *tables(report), f'<p>{NOTE}</p>']
    for picture in sorted(out.glob('*.png')):
        data = base64.b64encode(picture.read_bytes()).decode()
        name = _escape(picture.stem)
        body.append(f'<h3>{name}</h3><img alt="{name}" src="data:image/png;base64,{data}">')
    body.append(f'<p><code>{_escape(result["command"])}</code></p>')
    head = f'<meta charset="utf-8"><title>{_escape(title)}</title><style>{STYLE}</style>'
    page = f'<head>{head}</head><body>{"".join(body)}</body>'
    page = f'<!doctype html><html lang="en">{page}</html>\n'
    write_whole(out / 'report.html', lambda file: file.write_text(page, encoding='utf-8'))


def tables(report: dict) -> list[str]:
    """The error rates and the age that is left in the features of one model, as HTML tables."""
    found, blocks = report['error_rates'], []
    heads: tuple
    at = found.get('global')
    if at:
        place = f'at one threshold, {at["threshold"]:.3f}, for an FMR of {at["fmr"]:g}'
        ages = at['fmr_by_ages']
        rows = []
        for name, cells, few in zip(ages['groups'], ages['fmr'], ages['few'], strict=True):
            rows.append([name, *(_share(*cell) for cell in zip(cells, few, strict=True))])
        heads = 'younger \\ older', *ages['groups']
        blocks.append(_table(f'False match rate by the two ages, {place}, %', heads, rows))
        rows = [[row['years'], *_rate(row)] for row in at['fnmr_by_years']]
        rows.append(['all', *_rate(at['fnmr'])])
        heads = 'years elapsed', 'FNMR', '95 %', 'errors', 'pairs'
        blocks.append(_table(f'False non-match rate {place}, %', heads, rows))
    if found.get('open_set'):
        one = found['open_set']
        rows = [[fpir, f'{row["threshold"]:.3f}', *_rate(row)] for fpir, row in one['fnir'].items()]
        words = f'{one["enrolled"]} people enrolled, {one["unenrolled"]} not'
        heads = 'FPIR', 'threshold', 'FNIR', '95 %', 'misses', 'searches'
        blocks.append(_table(f'Open-set identification, {words}, %', heads, rows))
    lost = found.get('failure_to_acquire')
    if lost:
        rows = [[key, *map(_share, lost[key].values())] for key in ('without', 'with')]
        words = f'{_share(lost["fta"]["rate"], lost["fta"]["few"])} % of the photographs'
        heads = 'failures', *lost['with']
        title = f'Failures to acquire, {words}: rates without and with, %'
        blocks.append(_table(title, heads, rows))
    rows = []
    if found['cllr']:
        rows += [[name.replace('_', ' '), f'{value:.3f}'] for name, value in found['cllr'].items()]
    if found.get('slope'):
        low, high = found['slope']['interval']
        limits = f'[{low:+.4f} {high:+.4f}]'
        rows.append(['similarity per decade', f'{found["slope"]["per_decade"]:+.4f} {limits}'])
    blocks += [_table('Information in the scores', ('figure', 'value'), rows)] if rows else []
    age = report.get('leakage', {}).get('age', {})
    if age and age['x']['r2'] is not None:
        keys = 'r2', 'r2_unit', 'mae', 'neighbours_r2', 'neighbours_mae', 'order'
        rows = [[name, *(_plain(one[key]) for key in keys)] for name, one in age.items()]
        heads = 'feature', 'R²', 'R², unit length', 'MAE', 'R², 10 nearest', 'MAE, 10 nearest'
        heads = *heads, 'older face of a person known (chance .5)'
        blocks.append(_table('Age left in the features, in years', heads, rows))
    return blocks


def _rate(row):
    low, high = row['interval'] or (None, None)
    limits = '' if low is None else f'{100 * low:.2f} to {100 * high:.2f}'
    return _share(row['rate'], row['few']), limits, row['errors'], row['trials']


def _share(value, few=False):
    return '' if value is None else f'{100 * value:.3g}{"*" * few}'


def _plain(value):
    return '' if value is None else f'{value:.3f}'


def _table(title, heads, rows):
    head = ''.join(f'<th>{_escape(name)}</th>' for name in heads)
    lines = (''.join(f'<td>{_escape(cell)}</td>' for cell in row) for row in rows)
    body = ''.join(f'<tr>{line}</tr>' for line in lines)
    return f'<h3>{_escape(title)}</h3><table><tr>{head}</tr>{body}</table>'


def _escape(value):
    """Text for HTML; what is no text, as its code."""
    return html.escape(str(value).encode('utf-8', 'backslashreplace').decode())
