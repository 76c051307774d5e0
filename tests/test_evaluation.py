"""Metrics, leakage and extraction: against scikit-learn, slow loops and closed forms."""

import functools
import json
import re

import numpy as np
import pytest
import torch
from conftest import invalid, noise, refused, tiny_model, unit
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold

import meta
from evaluation import leakage, metrics, rates
from evaluation.evidence import people_report
from evaluation.pairs import GAP_NAMES, Pairs, gap_bin, gap_pairs
from evaluation.report import table
from model import DALModel
from recognition.embedding import extract, extract_files


def listed(same, folds=None, people=None):
    """Pairs of these kinds, in ten folds by default."""
    folds = np.arange(len(same)) * 10 // len(same) if folds is None else folds
    return Pairs(None, None, np.asarray(same, bool), folds, people)


def scored(n=2000, gap=0.3, seed=0):
    """Scores and n pairs, either kind in each of ten folds."""
    rng = np.random.default_rng(seed)
    same = np.arange(n) % 2 == 0
    return np.clip(rng.normal(0.2, 0.2, n) + gap * same, -1, 1), listed(same)


def people(n=60, each=6, spread=0.5, dim=24, seed=0):
    """Embeddings that tell people apart, labels, and ages over a life."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n), each)
    ages = rng.integers(0, 80, n * each).astype(np.float32)
    centres, around = rng.normal(size=(n, dim)), rng.normal(size=(n * each, dim))
    return unit(centres[labels] + spread * around), labels, ages


def test_accuracy_is_insightfaces_and_a_folds_own_scores_move_no_decision():
    rng = np.random.default_rng(1)
    noise, people = rng.normal(size=(1200, 16)), rng.normal(size=(600, 16))
    embeddings = unit(noise + np.repeat(people, 2, axis=0))
    same = np.arange(600) // 30 % 2 == 0
    left, right = 2 * np.arange(600), 2 * np.arange(600) + 1
    right[~same] = np.roll(right[~same], 1)
    distance, grid = np.square(embeddings[left] - embeddings[right]).sum(1), np.arange(0, 4, 0.01)
    slow = []
    for fit, test in KFold(10, shuffle=False).split(distance):
        best = np.argmax([((distance[fit] < t) == same[fit]).mean() for t in grid])
        slow.append(((distance[test] < grid[best]) == same[test]).mean())
    report = metrics.verification(rates.cosines(embeddings, left, right), listed(same))
    assert report['fold_accuracy'] == pytest.approx(slow, abs=1e-9)
    assert report['accuracy'] == pytest.approx(np.mean(slow), abs=1e-9)
    assert report['accuracy_std'] == pytest.approx(np.std(slow), abs=1e-9)
    scores, pairs = scored(400)
    same, (right, _) = pairs.same, rates.decide(scores, pairs, None)
    for k in range(10):
        fit = pairs.fold != k
        candidates = np.append(np.unique(scores[fit])[::-1], -2)
        correct = [((scores[fit] >= t) == same[fit]).sum() for t in candidates]
        threshold = candidates[int(np.argmax(correct))]
        assert (right[~fit] == ((scores[~fit] >= threshold) == same[~fit])).all()


@pytest.mark.parametrize('digits', [1, 2, 12])  # few digits: many equal scores
def test_roc_figures_are_scikit_learns(digits):
    scores, pairs = scored(30000)
    scores, same = scores.round(digits), pairs.same
    report = metrics.verification(scores, pairs)
    far, tar, _ = roc_curve(same, scores, drop_intermediate=False)
    assert report['auc'] == pytest.approx(roc_auc_score(same, scores), abs=1e-9)
    for name, rate in rates.FARS.items():
        assert report[name] == pytest.approx(tar[far <= rate].max(), abs=1e-9)
    grid = np.linspace(0, 1, 200001)
    eer = grid[np.argmin(np.abs(grid + np.interp(grid, far, tar) - 1))]
    assert report['eer'] == pytest.approx(eer, abs=1e-4)
    impostors = scores[~same]
    assert list(report['far']) == ['0.1', '0.01', '0.001']  # 15,000 impostors carry no 1 in 10,000
    for rate, found in report['far'].items():  # the lowest threshold that keeps the rate
        assert (impostors > found['threshold']).mean() <= float(rate)
        below = np.unique(impostors)[np.searchsorted(np.unique(impostors), found['threshold']) - 1]
        assert (impostors > below).mean() > float(rate) and found['interval'] is None


def test_constant_scores_are_chance_and_without_pairs_of_a_kind_there_is_no_figure():
    for thresholds in (rates.GRID, None):
        found = metrics.verification(np.full(4000, 0.7), scored(4000)[1], thresholds)
        assert found['accuracy'] == found['auc'] == found['eer'] == 0.5 and found['tar@1e-1'] == 0
    for same in ([], [True], [True, True], [False, False]):
        pairs = listed(same, np.arange(len(same)))
        report = metrics.verification(np.full(len(same), 0.5), pairs, intervals=True)
        assert report['auc'] is None and report['eer'] is None and report['accuracy'] is None
        assert report['threshold'] is None and report['reason'] and report['far'] == {}
        json.dumps(report, allow_nan=False)


PAIRS = np.arange(600)
NO_FOLDS = {
    '30 of 30 folds, 0 first, have .* alone': 2 * (PAIRS // 40) + (PAIRS % 2 == 0),
    '12 folds of 6 to 534 .* something': np.minimum(PAIRS // 6, 11),
    '4 pairs of one person and 4 of different .* need 10 of each': np.arange(8) // 2,
    '1 pairs of one person and 1 of different people': np.arange(2),
    'all pairs are in one fold: .* on the others': 0 * PAIRS,
}


def test_folds_that_give_no_accuracy_and_every_dash_has_its_reason():
    for why, folds in NO_FOLDS.items():
        pairs = len(folds)
        scores, drawn = scored(pairs, gap=0.8)
        report = metrics.verification(scores, drawn._replace(fold=folds), intervals=True)
        assert report['accuracy'] is None and report['accuracy_std'] is None
        assert (
            report['fold_accuracy'] == []
            and report['auc'] > 0.9
            and report['threshold'] is not None
        )
        assert re.search(why, report['reason'])
        assert (report['intervals']['auc'] is None) == (pairs < 20)  # [100 100] says nothing
        assert report['intervals']['accuracy'] is None
    scores, pairs = scored(200)
    report = metrics.verification(scores, pairs._replace(fold=np.zeros(200)), intervals=True)
    known = {'images': 9, 'people': None, 'verification': report, 'error_rates': {'cllr': None}}
    text = table('list', {'w': known})
    assert report['few_errors'] == ['eer', 'tar@1e-1'] and '* [' in text
    assert '–  all: all pairs are in one fold' in text
    assert '–  tar@1e-2, tar@1e-3: fewer impostor pairs' in text


def test_weights_are_repetition():
    scores, (_, _, same, *_) = scored(2000)
    scores, weights = scores.round(2), np.random.default_rng(0).integers(0, 4, (3, 2000))
    for figures in (rates.roc_figures, rates.far_thresholds):
        found = figures(scores, same, weights.astype(float))
        for row, weight in enumerate(weights):
            again = figures(np.repeat(scores, weight), np.repeat(same, weight))
            for name, values in found.items():
                assert values[row] == pytest.approx(again[name][0], abs=1e-9, nan_ok=True)
    figures = rates.roc_figures(scores, same, np.stack([same, ~same]).astype(float))
    assert all(np.isnan(values).all() for values in figures.values())


def test_intervals_are_the_binomial_over_pairs_wider_over_people_and_paired():
    pairs, good = scored(2000)[1], np.random.default_rng(0).random(2000) < 0.9
    scores = np.where(good == pairs.same, 0.8, 0.2)
    low, high = metrics.verification(scores, pairs, intervals=True)['intervals']['accuracy']
    assert (high - low) / 2 == pytest.approx(1.96 * np.sqrt(0.09 / 2000), rel=0.2)
    rng = np.random.default_rng(0)
    same, good = np.tile([True, False], 500), np.repeat(rng.random(20) < 0.7, 50)
    scores, owner = np.where(good == same, 0.8, 0.2), np.repeat(np.arange(20), 50)
    widths = []
    for who in (None, np.stack([owner, owner], 1)):
        found = metrics.verification(scores, listed(same, people=who), intervals=True)
        widths.append(np.diff(found['intervals']['accuracy']))
    assert widths[1] > 3 * widths[0]
    embeddings, labels, ages = people()
    pairs = gap_pairs(labels, ages)
    scores = rates.cosines(embeddings, pairs.left, pairs.right)
    same = metrics.difference(scores, scores, pairs, None)
    assert all(value == {'difference': 0, 'interval': [0, 0]} for value in same.values())
    mixed = np.random.default_rng(0).permutation(scores)
    worse = metrics.difference(scores, mixed, pairs, None)['auc']
    low, high = worse['interval']
    assert low < worse['difference'] < high < 0
    embeddings, labels, ages = people(4, 2)
    few = gap_pairs(labels, ages)
    scores = rates.cosines(embeddings, few.left, few.right)
    assert metrics.difference(scores, scores, few, None) == {}


def test_gap_pairs_are_all_genuine_ones_with_impostors_of_the_same_gaps():
    found = [GAP_NAMES[k] for k in gap_bin(np.array([0, 5, 5.5, 6, 10, 20, 20.1, 30, 31]))]
    assert found == '0-5 0-5 6-10 6-10 6-10 11-20 21-30 21-30 31+'.split()
    _, labels, ages = people()
    pairs = gap_pairs(labels, ages, seed=3)
    sides = pairs.left[pairs.same].tolist(), pairs.right[pairs.same].tolist()
    genuine = set(map(frozenset, zip(*sides, strict=True)))
    expected = {frozenset((i, j)) for i in range(360) for j in range(i) if labels[i] == labels[j]}
    assert genuine <= expected and len(genuine) == pairs.same.sum() >= 0.99 * len(expected)
    impostor = ~pairs.same
    assert (labels[pairs.left] == labels[pairs.right]).tolist() == pairs.same.tolist()
    assert (pairs.gap == np.abs(ages[pairs.left] - ages[pairs.right])).all()
    bins = gap_bin(pairs.gap)
    assert (np.bincount(bins[impostor]) == np.bincount(bins[pairs.same])).all()
    assert np.abs(pairs.gap[impostor] - pairs.gap[pairs.same]).mean() < 1
    again, other = gap_pairs(labels, ages, seed=3), gap_pairs(labels, ages, seed=4)
    assert (again.right == pairs.right).all()
    assert (other.right[impostor] != pairs.right[impostor]).any()


def test_gap_pairs_share_few_people_between_folds_and_age_alone_tells_none():
    _, labels, ages = people(200, 8)
    pairs = gap_pairs(labels, ages)
    fold = np.empty(200, int)
    fold[pairs.people[pairs.same][:, 0]] = pairs.fold[pairs.same]
    assert (fold[pairs.people] == pairs.fold[:, None]).mean() > 0.98
    bounded = gap_pairs(labels, ages, per_bin=50)
    assert np.bincount(gap_bin(bounded.gap)).tolist() == [100] * 5
    labels = np.concatenate([np.zeros(200, int), np.repeat(np.arange(1, 51), 4)])
    pairs = gap_pairs(labels, np.random.default_rng(0).integers(20, 40, 400), per_person=6)
    genuine = np.bincount(pairs.people[pairs.same][:, 0])
    assert genuine[0] == 6 * 5 / 2 and (genuine[1:] == 6).all()
    assert len(np.unique(pairs.left[pairs.people[:, 0] == 0])) <= 6
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 5)
    ages = rng.uniform(0, 60, 100)[labels] + rng.uniform(0, 15, 500)
    only_age = unit(np.stack([np.cos(ages / 60), np.sin(ages / 60)], 1))
    report = people_report(only_age, labels, ages, intervals=False)
    assert report['verification']['auc'] == pytest.approx(0.5, abs=0.03)


def test_percentiles_and_decision_and_leave_one_out_is_a_slow_loop(monkeypatch):
    embeddings, labels, _ = people(spread=2.0)
    probes, nearest = metrics.leave_one_out(embeddings, labels)
    assert (probes != nearest).all()
    for probe, found in zip(probes, nearest, strict=True):
        scores = embeddings @ embeddings[probe]
        scores[probe] = -2
        assert scores[found] == pytest.approx(scores.max(), abs=1e-6)
    assert metrics.leave_one_out_rank1(embeddings, labels) == (labels[nearest] == labels).mean()
    embeddings = unit(np.array([[1, 0], [1, 0.2], [1, 0.1]]))
    # the single image of 1 is nearest to both: in the gallery, and no probe
    assert metrics.leave_one_out_rank1(embeddings, np.array([0, 0, 1])) == 0
    assert metrics.leave_one_out_rank1(embeddings, np.array([0, 1, 2])) is None
    scores = np.r_[np.linspace(0, 1, 1001), np.linspace(-1, 0, 501)]
    found = metrics.percentiles(scores, np.arange(1502) < 1001)
    np.testing.assert_allclose(found['genuine'], np.linspace(0, 1, 101))
    np.testing.assert_allclose(found['impostor'], np.linspace(-1, 0, 101))
    embeddings, labels, ages = people(20, 4)
    report = people_report(embeddings, labels, ages, intervals=False)
    kept = metrics.decision(report)
    assert kept['far'] == report['verification']['far'] and kept['far']['0.1']['interval'] is None
    assert kept['threshold'] == report['verification']['threshold']
    assert len(kept['genuine']) == len(kept['impostor']) == 101
    alone = (values[::4] for values in (embeddings, labels, ages))
    assert metrics.decision(people_report(*alone, intervals=False)) is None


@pytest.mark.filterwarnings('error')
def test_people_report_is_ready_for_json_whatever_there_is():
    for n, each in ((1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (12, 6), (30, 4)):
        report = people_report(*people(n, each))
        json.dumps(report, allow_nan=False)
        assert (report['images'], report['people']) == (n * each, n)
    assert report['rank1_interval'][0] <= report['rank1'] <= report['rank1_interval'][1]
    assert sum(row['pairs'] for row in report['by_gap']) == report['verification']['pairs']


def test_what_is_not_finite_is_named_and_where_nothing_can_be_fitted():
    scores, pairs = scored(100)
    scores[7] = np.nan
    invalid('pair 7', metrics.verification, scores, pairs)
    embeddings, labels, ages = people()
    embeddings[5, 2] = np.nan
    for figure in (people_report, leakage.age_r2):
        invalid('image 5 ', figure, embeddings, labels, ages)
    invalid('image 5 ', metrics.leave_one_out_rank1, embeddings, labels)
    features = np.random.default_rng(0).normal(size=(6, 4))
    for ages in ([30, 31, 32, 33, 34, 30], [5, 15, 20, 30, 40, 50]):
        report = leakage.age_leakage(features, np.arange(6), np.array(ages), meta.age_cutoffs)
        assert report['balanced_accuracy'] in (0.0, None) and np.isfinite(report['r2'])
    embeddings, labels, ages = people(2, 2)
    assert leakage.age_r2(embeddings, labels, ages) is None
    assert leakage.held_out_correlation(embeddings, embeddings, labels)['rho'] is None


def test_leakage_tells_a_feature_that_carries_age_or_identity():
    rng = np.random.default_rng(0)
    labels, ages = np.repeat(np.arange(100), 5), rng.integers(0, 80, 500).astype(np.float32)
    noise = rng.normal(size=(500, 64)).astype(np.float32)
    carries = noise + 3 * (ages[:, None] - 40) / 23 * rng.normal(size=64).astype(np.float32)
    for feature, low, high in ((noise, -0.2, 0.05), (carries, 0.95, 1)):
        report = leakage.age_leakage(feature, labels, ages, meta.age_cutoffs)
        assert low <= report['r2'] <= high and low <= leakage.age_r2(feature, labels, ages) <= high
    assert report['mae'] < 3 and report['balanced_accuracy'] > 0.7
    report = leakage.age_leakage(noise, labels, ages, meta.age_cutoffs)
    assert report['balanced_accuracy'] == pytest.approx(1 / 8, abs=0.06)
    assert leakage.age_leakage(noise * 0, labels, ages, meta.age_cutoffs)['r2'] == pytest.approx(
        0, abs=0.05
    )
    embeddings, labels, ages = people()
    assert leakage.identity_in(embeddings, labels, ages)['auc'] > 0.95
    noise = leakage.identity_in(np.random.default_rng(0).normal(size=(360, 8)), labels, ages)
    assert noise['auc'] == pytest.approx(0.5, abs=0.06) and noise['rank1'] < 0.06
    assert noise['rank1_chance'] == pytest.approx(5 / 359)
    aged = np.stack([ages, ages**2], 1)
    assert leakage.identity_in(aged, labels, ages)['auc'] == pytest.approx(0.5, abs=0.06)


def test_ages_are_read_by_the_ridge_of_the_other_people():
    """Against the normal equations; one of scikit-learn's penalties fits each fold."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(200, 6)), np.repeat(np.arange(50), 4)
    ages = 40 + x @ rng.normal(size=6) + rng.normal(size=200)
    read = leakage.read_ages(x, labels, ages, 5)
    for fitted, held in leakage._folds(labels, 5, 0):
        assert not set(labels[fitted]) & set(labels[held])
        z, new = ((x[i] - x[fitted].mean(0)) / x[fitted].std(0) for i in (fitted, held))
        mean, guesses = ages[fitted].mean(), []
        for penalty in leakage.STRENGTHS * 200:
            gram = z.T @ z + penalty * np.eye(6)
            guesses.append(new @ np.linalg.solve(gram, z.T @ (ages[fitted] - mean)) + mean)
        assert min(np.abs(guess - read[held]).max() for guess in guesses) < 1e-9
    ages = rng.uniform(20, 60, 400)
    features = np.c_[ages + rng.normal(size=400), np.zeros(400)]
    features[::7, 1] = 1e-4 * rng.normal(size=len(features[::7]))
    features[5, 1] = 1e6  # a unit that was dead where the line was fitted can't run away
    read = leakage.read_ages(features, np.arange(400) // 4, ages, 5)
    assert ages.min() <= read.min() and read.max() <= ages.max()


def test_held_out_correlation_sees_what_is_shared_and_no_more():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(200), 4)
    a, b = rng.normal(size=(800, 10)), rng.normal(size=(800, 12))
    report = leakage.held_out_correlation(a, b, labels)
    assert report['rho'] < report['shuffled_95'] + 0.05 < 0.25
    b[:, 3] = a @ rng.normal(size=10) / 3 + 0.3 * rng.normal(size=800)
    assert leakage.held_out_correlation(a, b, labels)['rho'] > 0.8
    assert leakage.held_out_correlation(a, b * 0, labels)['rho'] == 0


encoded = functools.partial(noise, width=96, kind='PNG')


@pytest.fixture
def model():
    return tiny_model()


def test_extract_is_embed_and_a_backbone_of_112_columns_sees_them_all(model):
    images = torch.randint(0, 256, (5, 3, 112, 96), dtype=torch.uint8)
    features = extract(model, [(images[:3], None), images[3:]], torch.device('cpu'))
    assert model.training
    model.eval()
    assert features['embedding'] == pytest.approx(model.embed(images).numpy(), abs=1e-5)
    for name, part in zip(('x', 'x_age', 'x_id'), model.features(images), strict=True):
        assert features[name] == pytest.approx(part.detach().numpy(), abs=1e-4)
    seen = []

    class Wide(torch.nn.Module):
        width = 112

        def forward(self, images):
            if isinstance(images, torch.fx.Proxy):
                raise TypeError('not to be traced')
            seen.append(images)
            return images.mean(3).flatten(1)

    extract_files(DALModel(Wide(), 3), [encoded(0, width=112), encoded(1)], 'cpu', ['a', 'b'])
    assert seen[-1].shape == (4, 3, 112, 112)
    narrow = seen[-1][1]  # its edges repeated
    assert (narrow[..., :8] == narrow[..., 8:9]).all() and (narrow[..., 7] != narrow[..., 9]).any()


def test_files_are_cached_by_list_and_weights_and_named_where_they_cannot_be_used(model, tmp_path):
    paths = [tmp_path / f'{k}.png' for k in range(5)]
    for k, path in enumerate(paths):
        path.write_bytes(encoded(k))

    def features(weights='a', of=model):
        options = dict(batch_size=2, cache=tmp_path / 'cache', weights=weights)
        return extract_files(of, paths, 'cpu', **options)[0]['embedding']

    first = features()
    assert (features(of=None) == first).all()  # no model is needed
    with pytest.raises(AttributeError):
        features(weights='b', of=None)
    paths[0].write_bytes(encoded(9))
    assert (features()[0] != first[0]).any()
    assert features()[1:] == pytest.approx(first[1:], abs=1e-6)
    gone = [tmp_path / 'no' / '0.png', tmp_path / 'no' / '1.png', encoded(0)]
    where = '2 of 3 images are missing: looked for .*0.png'
    refused(where, extract_files, model, gone, 'cpu', ['0.png', '1.png', 'here'])
    bad = [encoded(0), b'no image', encoded(1, height=96), encoded(2)]
    why = '2 of 4 .*b: not .*c: 96 high × 96 wide'
    refused(why, extract_files, model, bad, 'cpu', list('abcd'), batch_size=1)
    with torch.no_grad():
        model.backbone.project.bias[0] = float('nan')
    refused('first.png', extract_files, model, [encoded(0)], 'cpu', ['first.png'])
