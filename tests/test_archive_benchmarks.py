"""The benchmarks of search and of thresholds by age, on little."""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')


def arguments(monkeypatch, module, *line):
    monkeypatch.setattr(sys, 'argv', ['x', *map(str, line)])
    return module.arguments()


def test_search_counts_what_is_found(tmp_path, monkeypatch, capsys):
    import search

    monkeypatch.setattr(search, 'QUERIES', 10)

    def worst(vectors):
        return lambda query: np.argsort(vectors @ query)[:10]

    monkeypatch.setitem(search.WAYS, 'faiss Flat', worst)
    line = '--faces', 500, '--dim', 16, '--out', tmp_path / 'a.json', '--ways'
    search.run(arguments(monkeypatch, search, *line, 'index, exact', 'faiss Flat'))
    rows = json.loads((tmp_path / 'a.json').read_text())['ways']
    assert {row['way']: row['recall'] for row in rows} == {'index, exact': 1, 'faiss Flat': 0}
    assert '| index, exact |' in capsys.readouterr().out


def test_faces_of_a_person_are_as_alike_as_asked():
    import search

    vectors, queries = search.faces_of(20, 50, 256, 0.5, np.random.default_rng(0))
    scores = vectors @ vectors.T
    own = np.kron(np.eye(20), np.ones((50, 50))) - np.eye(1000)
    assert scores[own == 1].mean() == pytest.approx(0.5, abs=0.05)
    assert abs(scores[own == 0].mean()) < 0.05 and len(queries) == search.QUERIES


def test_a_summary_is_over_what_was_asked():
    import calibration as benchmark

    common = dict(asked=0.1, single_far=0.3, tar=0.5, single_tar=None, genuine=4)
    rows = [
        {**common, 'cell': cell, 'far': far} for cell, far in (('a', 0.1), ('a', 0.3), ('b', 0.05))
    ]
    (entry,) = benchmark.summary(rows)
    assert entry['far']['worst_cell'] == pytest.approx(2) and entry['far']['cells_beyond'] == 1
    assert entry['far']['splits_beyond'] == pytest.approx(1 / 3) and entry['tar'] == 0.5
    assert entry['single_far']['cells_beyond'] == 2 and entry['single_tar'] is None
