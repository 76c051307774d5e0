"""The tables in README and docs/ are those of the benchmarks' JSON files."""

import json
import re

import pytest
from conftest import ROOT

RESULTS = sorted((ROOT / 'benchmarks').rglob('*.json'))


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')


def test_the_tables_are_the_scripts():
    """`python3 benchmarks/tables.py` would change nothing."""
    import tables

    for page in tables.pages():
        text = page.read_text()
        assert tables.filled(text) == text, f'{page.name}: run python3 benchmarks/tables.py'
        assert len(re.findall('<!-- benchmarks/', text)) == len(tables.MARKED.findall(text)), page


@pytest.mark.parametrize('path', RESULTS, ids=lambda path: path.stem)
def test_results_are_written_a_row_a_line(path):
    import tables

    assert path.read_text() == tables.as_text(json.loads(path.read_text()))


def test_every_result_stands_on_a_page():
    import tables

    text = ' '.join(page.read_text() for page in tables.pages())
    for path in RESULTS:
        assert path.name in text, path.name


@pytest.mark.parametrize('name', [path.stem for path in RESULTS if 'ablation-' in path.stem])
def test_the_ablations_summary_is_of_its_runs(name):
    import ablation
    import tables

    report = tables.read(f'{name}.json')
    assert json.loads(json.dumps(ablation.summary(report['runs']))) == report['summary']
