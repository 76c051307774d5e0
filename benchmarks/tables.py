"""The tables of README and docs/, written from the benchmarks' JSON files.

    python3 benchmarks/tables.py

A table stands between `<!-- benchmarks/SCRIPT.py FILE.json [KEY=VALUE …] -->` and `<!-- end -->`.
FILE.json lies in benchmarks/, and SCRIPT has the function `markdown(report, **options)` that turns
it into the table. Every benchmark writes its JSON file with `write`, a row of figures a line.
"""

import argparse
import importlib
import json
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402

MARKED = re.compile(
    r'(?P<head><!-- benchmarks/(?P<script>\w+)\.py (?P<file>\S+\.json)(?P<options>[^>]*) -->\n)'
    r'.*?(?P<end><!-- end -->)',
    re.DOTALL,
)


def pages() -> list[Path]:
    return [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def read(file: str) -> dict:
    return json.loads((ROOT / 'benchmarks' / file).read_text())


def filled(page: str) -> str:
    """The page with every marked table made anew."""

    def table(found):
        markdown = importlib.import_module(found['script']).markdown
        options = dict(word.split('=', 1) for word in shlex.split(found['options']))
        return found['head'] + markdown(read(found['file']), **options) + '\n' + found['end']

    return MARKED.sub(table, page)


def markdown(titles: list[str], rows: list[list]) -> str:
    """A Markdown table; the first column is the rows' names."""
    head, *lines = (f'| {" | ".join(map(str, row))} |' for row in [titles, *rows])
    text = '\n'.join([head, '|' + '---|' * len(titles), *lines])
    return re.sub(r'\|  (?=\|)', '| ', text)


def write(report: dict, path: Path | str | None) -> None:
    """Writes a JSON file, or shows it if there is no path; each entry of a list or dict of `report`
    takes one line."""
    if path is None:
        print(as_text(report))
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = as_text(report)
    utils.write_whole(path, lambda temporary: Path(temporary).write_text(text))


def as_text(report: dict) -> str:
    def line(value):
        return json.dumps(value, ensure_ascii=False)

    def value_of(value):
        if isinstance(value, list) and any(isinstance(row, dict) for row in value):
            return '[\n  ' + ',\n  '.join(map(line, value)) + '\n ]'
        if isinstance(value, dict) and any(isinstance(v, (dict, list)) for v in value.values()):
            rows = [f'{line(key)}: {line(row)}' for key, row in value.items()]
            return '{\n  ' + ',\n  '.join(rows) + '\n }'
        return line(value)

    rows = [f' {line(key)}: {value_of(value)}' for key, value in report.items()]
    return '{\n' + ',\n'.join(rows) + '\n}\n'


def cell(value: dict[str, float] | None, digits: int = 2) -> str:
    """`median [min, max]`; nothing for None."""
    if value is None:
        return ''
    return '{median:.{d}f} [{min:.{d}f}, {max:.{d}f}]'.format(**value, d=digits)


def parser(text: str) -> argparse.ArgumentParser:
    kind = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(description=text, formatter_class=kind)


def command() -> str:
    return ' '.join(['python3', f'benchmarks/{Path(sys.argv[0]).name}', *sys.argv[1:]])


def main() -> None:
    for page in pages():
        text = page.read_text()
        if text != filled(text):
            page.write_text(filled(text))
            print(f'{page.relative_to(ROOT)}: written')


if __name__ == '__main__':
    main()
