"""The benchmarks run to their end on a little; what they measure is not checked."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import TINY, tiny

import backbones
import dal
import meta
from dataset import Faces

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # an arm sets it to one


@pytest.mark.parametrize('arm', ['identity only', 'game'])
def test_an_arm_of_the_ablation(entry, tmp_path, monkeypatch, arm):
    import ablation

    monkeypatch.setattr(meta, 'ablation', None, raising=False)
    monkeypatch.setattr('sys.argv', [])
    settings = f'{" ".join(TINY)} {ablation.ARMS[arm]}'
    rows = []
    for seed in (0, 1):
        place = tmp_path / f'run{seed}'
        rows.append(ablation.run('here', entry, arm, settings, seed, 1, place))
    table = ablation.markdown({'summary': ablation.summary(rows)})
    assert table.splitlines()[2].startswith(f'| {arm} | 2 | 0.')


def test_arms_that_train_the_last_blocks_alone(entry, tmp_path, monkeypatch):
    import ablation

    init = tmp_path / 'mobilefacenet.pth'
    torch.manual_seed(0)
    torch.save(backbones.build('mobilefacenet').state_dict(), init)
    monkeypatch.setattr(meta, 'ablation', None, raising=False)
    monkeypatch.setattr('sys.argv', [])

    def place(arm, seed, *_):
        return tmp_path / f'{arm}-{seed}'

    rows = []
    for arm in ('untouched', 'identity only', 'closed form'):
        settings = f'{ablation.ARMS[arm]} batch_size=8'
        row = ablation.run('here', entry, arm, settings, 0, 1, place(arm, 0), str(init), True)
        rows.append(row)
    val = Faces(entry['val_root'], entry['pat'], entry['pos'])
    people = ablation.over_people(rows, place, val)
    assert set(people) == {'untouched', 'closed form'} and people['closed form']['n'] == 1
    assert people['closed form']['auc'][0] == pytest.approx(rows[2]['auc'] - rows[1]['auc'])


def test_trainers_and_their_convolutions(drawn):
    import speed

    faces = Faces(drawn / 'train', meta.demo['pat'], meta.demo['pos'])
    fine = tiny(factorization='solved', within_person=True, lambda_dal=0.0)
    ours = speed.Ours(faces, fine, CPU)
    for trainer in (speed.Conventional(faces, tiny(), -1), ours):
        trainer.step()
    speed.convolutions(ours.training, 8, CPU)()


def test_search_counts_what_is_found_and_a_summary_is_over_what_was_asked(tmp_path, monkeypatch):
    import search

    monkeypatch.setattr(search, 'QUERIES', 10)

    def worst(vectors):
        return lambda query: np.argsort(vectors @ query)[:10]

    monkeypatch.setitem(search.WAYS, 'faiss Flat', worst)
    line = '--faces', 500, '--dim', 16, '--out', tmp_path / 'a.json', '--ways'
    monkeypatch.setattr(sys, 'argv', ['x', *map(str, line), 'index, exact', 'faiss Flat'])
    search.run(search.arguments())
    rows = json.loads((tmp_path / 'a.json').read_text())['ways']
    assert {row['way']: row['recall'] for row in rows} == {'index, exact': 1, 'faiss Flat': 0}
    monkeypatch.undo()
    vectors, queries = search.faces_of(20, 50, 256, 0.5, np.random.default_rng(0))
    scores = vectors @ vectors.T
    own = np.kron(np.eye(20), np.ones((50, 50))) - np.eye(1000)
    assert scores[own == 1].mean() == pytest.approx(0.5, abs=0.05)
    assert abs(scores[own == 0].mean()) < 0.05 and len(queries) == search.QUERIES
    import calibration as benchmark

    common = dict(asked=0.1, single_far=0.3, tar=0.5, single_tar=None, genuine=4)
    cells = ('a', 0.1), ('a', 0.3), ('b', 0.05)
    rows = [{**common, 'cell': cell, 'far': far} for cell, far in cells]
    (entry,) = benchmark.summary(rows)
    assert entry['far']['worst_cell'] == pytest.approx(2) and entry['far']['cells_beyond'] == 1
    assert entry['far']['splits_beyond'] == pytest.approx(1 / 3) and entry['tar'] == 0.5
    assert entry['single_far']['cells_beyond'] == 2 and entry['single_tar'] is None


def test_r_without_a_ridge_is_what_the_package_of_leace_computes():
    """If the package keeps weak variates too, which it drops by default."""
    concept_erasure = pytest.importorskip('concept_erasure')
    rng = np.random.default_rng(0)
    z = dal.age_variates(torch.from_numpy(rng.uniform(0, 80, 500)), 4).double()
    noise = rng.normal(size=(500, 12)) @ rng.normal(size=(12, 12))
    x = z @ torch.from_numpy(rng.normal(size=(4, 12))) + torch.from_numpy(noise)
    ours, theirs = (
        dal.EraserFitter(12, 4),
        concept_erasure.LeaceFitter(12, 4, dtype=torch.float64, shrinkage=False, svd_tol=1e-9),
    )
    ours.update(x, z, torch.arange(500) // 5)
    erased = ours.solve(ridge=0.0)(x)
    torch.testing.assert_close(erased, theirs.update(x, z).eraser(x), rtol=0, atol=1e-5)
