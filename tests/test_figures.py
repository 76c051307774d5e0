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


def test_rows_columns_and_differences():
    import ablation

    summary = {}
    for arm, mean in (('a', 0.9), ('b, c', 0.8)):
        summary[arm] = {'n': 2, 'auc': [mean, 0.01], 'climb': [None, None], 'rank1': [0.5, None]}
    over = {'b, c': {'n': 2, 'auc': [-0.1, -0.2, 0.0], 'rank1': [0.01, 0, 0.02]}}
    report = {'summary': summary, 'over people': over}
    table = ablation.markdown(report, rows='b, c;a', columns='auc,climb,rank1').splitlines()[2:]
    assert table[0] == '| b, c | 2 | 0.800±0.010 | – | 50.0 (1 of 2) |'
    assert table[1] == '| a | 2 | 0.900±0.010 | – | 50.0 (1 of 2) |' and len(table) == 2
    table = ablation.markdown(report, what='over people', columns='auc,rank1').splitlines()
    assert table[2] == '| b, c | 2 | -0.1000 [-0.2000, +0.0000] | +1.0 [+0.0, +2.0] |'
