"""Error rates in ISO/IEC 19795's words, against counts by hand and closed forms."""

import json
import re
from html import unescape

import numpy as np
import pytest
from conftest import unit
from sklearn.metrics import det_curve

import meta
from evaluation import error_rates, leakage, rates
from evaluation.age_calibration import Scored
from evaluation.evidence import Evidence
from evaluation.pairs import Pairs
from evaluation.protocols import Benchmark
from evaluation.report import write_html


def scored(*rows):
    """Scored pairs of (similarity, younger, gap, same, person, person)."""
    similarity, younger, gap, same, *people = map(np.array, zip(*rows, strict=True))
    return Scored(similarity, younger, gap, same.astype(bool), np.stack(people, 1))


def two_gaussians(n=4000, shift=2.0, seed=0):
    """Scores whose log-likelihood ratio is known: N(±shift²/2, shift²)."""
    rng, same = np.random.default_rng(seed), np.arange(n) % 2 == 0
    mean = np.where(same, 1, -1) * shift**2 / 2
    return rng.normal(mean, shift), same, np.arange(n) * 10 // n


def test_rates_count_by_the_rule_of_30_with_and_without_failures_to_acquire():
    expected = {'rate': 0.29, 'errors': 29, 'trials': 100, 'few': True}
    assert error_rates.rate(np.arange(100) < 29) == expected
    found = error_rates.rate(np.arange(100) < 30, np.arange(100) // 2)
    assert not found['few'] and found['interval'][0] < 0.3 < found['interval'][1]
    assert error_rates.rate(np.zeros(0, bool))['rate'] is None
    for impostors, fmr in ((30000, 1e-3), (29000, 0.01), (300, 0.1), (9, None)):
        scores = np.r_[np.arange(impostors) / impostors, 2.0]
        found = error_rates.global_threshold(scores, scores > 1)
        assert (found and found['fmr']) == fmr
        if fmr:
            assert (scores[:-1] > found['threshold']).sum() == round(fmr * impostors)
        assert error_rates.global_threshold(scores, scores > 3) is None
    scores, same, folds = two_gaussians(400, shift=5)
    pairs = Pairs(np.arange(400), np.arange(400), same, folds)
    missed = np.arange(400) < 40
    found = error_rates.failures(missed, pairs, scores)
    assert found['fta']['rate'] == 0.1 and found['pairs_lost'] == 40
    without = rates.roc_figures(scores[40:], same[40:])
    assert found['without']['auc'] == without['auc'][0]
    # the tenth of the genuine pairs that is lost can't be accepted at any threshold that rejects
    assert found['with']['tar@1e-1'] <= 0.9 < without['tar@1e-1'][0]


def test_false_matches_non_matches_and_their_slope_by_age():
    pairs = scored(
        (0.9, 10, 0, 0, 0, 1),
        (0.1, 11, 1, 0, 0, 2),
        (0.9, 10, 10, 0, 1, 2),  # 10 and 20
        (0.9, 70, 1, 0, 1, 3),
        (0.9, 70, 1, 1, 1, 1),  # one person: no false match
    )
    table = error_rates.by_ages(pairs, 0.5, meta.age_cutoffs)
    assert table['groups'][0] == '0-12' and table['groups'][-1] == '66+'
    assert table['fmr'][0][0] == 0.5 and table['trials'][0][0] == 2
    assert table['fmr'][0][2] == 1 and table['fmr'][2][0] is None and table['fmr'][7][7] == 1
    assert np.sum(table['trials']) == 4 and table['few'][0][0]
    rows = [(0.9, 10, 2, 1, 0, 0), (0.2, 10, 5, 1, 1, 1), (0.5, 10, 40, 1, 0, 0)]
    found = error_rates.by_years(scored(*rows, (0.1, 10, 2, 0, 0, 1)), 0.5)
    found = [(row['years'], row['rate'], row['trials']) for row in found]
    assert found == [('0-5', 0.5, 2), ('31+', 1.0, 1)]  # at the threshold is no match
    rng, rows = np.random.default_rng(0), []
    for person in range(40):
        for years in rng.uniform(0, person + 1, 10):
            rows.append((0.9 - 0.02 * person - 0.01 * years, 20, years, 1, person, person))
    found = error_rates.slope(scored(*rows, (0.0, 20, 5, 0, 0, 1)))
    assert found['per_decade'] == pytest.approx(-0.1) and found['people'] == 40
    assert found['interval'] == pytest.approx([-0.1, -0.1])
    assert error_rates.slope(scored((0.5, 20, 3, 1, 0, 0))) is None


def test_the_det_curve_is_scikit_learns_and_cllr_of_known_ratios():
    for people in [None, np.stack([np.arange(4000) // 20] * 2, 1)]:
        scores, same, _ = two_gaussians()
        curve = error_rates.det(scores, same, people)
        fmr, fnmr, _ = det_curve(same, scores)
        for k, asked in enumerate(curve['fmr']):
            if asked < 1 / 2000:
                assert curve['fnmr'][k] is None
            else:
                assert curve['fnmr'][k] == pytest.approx(fnmr[fmr <= asked + 1e-9].min(), abs=1e-9)
                assert curve['low'][k] <= curve['fnmr'][k] <= curve['high'][k]
        assert error_rates.det(scores, same | True, None) is None
    scores, same, folds = two_gaussians()
    exact = error_rates.cost(scores, same)
    found = error_rates.cllr(3 * scores + 1, same, folds)  # the regression finds the ratios again
    assert found['cllr'] == pytest.approx(exact, abs=0.01)
    assert exact - 0.03 < found['min_cllr'] < found['cllr']
    assert error_rates.cost(np.zeros(4), np.array([1, 1, 0, 0], bool)) == 1
    three = error_rates.cost(np.array([np.log(3), -np.log(3)]), np.array([True, False]))
    assert three == pytest.approx(np.log2(4 / 3))
    apart = error_rates.cllr(np.where(same, 0.8, 0.2), same, folds)
    assert apart['min_cllr'] == 0 and apart['cllr'] < 0.05
    alike = error_rates.cllr(np.full(4000, 0.5), same, folds)
    assert alike['cllr'] == pytest.approx(1) and alike['min_cllr'] == pytest.approx(1)
    assert error_rates.cllr(scores, same, np.zeros(4000)) is None


def test_open_set_identification_by_a_slow_loop():
    rng = np.random.default_rng(1)
    labels, ages = np.repeat(np.arange(120), 3), rng.permutation(360).astype(float)
    embeddings = unit(rng.normal(size=(120, 16))[labels] + 0.6 * rng.normal(size=(360, 16)))
    found = error_rates.open_set(embeddings, labels, ages, seed=3)
    enrolled = np.flatnonzero(np.random.default_rng(3).permutation(120) % 2 == 0)
    gallery = [min(np.flatnonzero(labels == p), key=lambda i: ages[i]) for p in enrolled]
    others = np.flatnonzero(~np.isin(labels, enrolled))
    highest = np.array([max(embeddings[i] @ embeddings[g] for g in gallery) for i in others])
    row = found['fnir']['0.1']
    assert (highest > row['threshold'] + 1e-6).sum() == 18  # a tenth of 180
    missed = []
    for i in np.flatnonzero(np.isin(labels, enrolled)):
        if i not in gallery:
            scores = embeddings[gallery] @ embeddings[i]
            first = labels[gallery[scores.argmax()]] == labels[i]
            missed.append(not (first and scores.max() > row['threshold']))
    assert (row['rate'], row['trials']) == (pytest.approx(np.mean(missed)), 120)
    assert found['enrolled'] == found['unenrolled'] == 60 and '0.01' not in found['fnir']
    assert error_rates.open_set(embeddings[::3], labels[::3], ages[::3]) is None


def test_the_age_of_a_person_is_told_and_neighbours_see_what_no_line_does():
    rng = np.random.default_rng(0)
    labels, ages = np.repeat(np.arange(80), 5), rng.uniform(0, 80, 400)
    line = np.c_[ages + rng.normal(size=400), 20 * rng.normal(size=400)]
    found = leakage.age_leakage(line, labels, ages, meta.age_cutoffs)
    assert found['order'] > 0.95 and found['order_pairs'] == 800
    noise = leakage.age_leakage(rng.normal(size=(400, 8)), labels, ages, meta.age_cutoffs)
    low, high = noise['order_interval']
    assert low < 0.5 < high
    angle = ages / 80 * 2 * np.pi
    ring = leakage.age_leakage(
        np.stack([np.cos(angle), np.sin(angle)], 1), labels, ages, meta.age_cutoffs
    )
    assert ring['neighbours_r2'] > 0.9 > ring['r2'] + 0.2 and ring['neighbours_mae'] < 5
    long = unit(rng.normal(size=(400, 8))) * ages[:, None]
    assert leakage.age_leakage(long, labels, ages, meta.age_cutoffs)['r2_unit'] < 0.1


@pytest.mark.parametrize('ages', [True, False])
def test_the_whole_report_is_one_file(tmp_path, ages):
    rng = np.random.default_rng(0)
    labels, years = np.repeat(np.arange(60), 4), rng.uniform(0, 80, 240)
    embeddings = unit(rng.normal(size=(60, 24))[labels] + 0.8 * rng.normal(size=(240, 24)))
    people = {'labels': labels, 'ages': years}
    if not ages:
        left, right = np.arange(240), np.arange(240)[::-1]
        same = labels[left] == labels[right]
        people = {'pairs': Pairs(left, right, same, np.arange(240) % 2)}
    one = Evidence(Benchmark(['x'] * 240, ['x'] * 240, **people), embeddings, 0)
    report = {'error_rates': error_rates.error_report(one, meta.age_cutoffs, np.arange(240) == 5)}
    json.dumps(report, allow_nan=False)
    assert ('global' in report['error_rates']) == ages
    (tmp_path / 'roc.png').write_bytes(b'a picture')
    result = {'benchmark': 'mine', 'command': 'python3 evaluate.py <&>'}
    write_html(tmp_path, result, {'caf\udce9 <b>': report}, 'AUC > 9')
    page = (tmp_path / 'report.html').read_text(encoding='utf-8')
    (source,) = re.findall(r'src="?([^"> ]+)', page)
    assert source.startswith('data:image/png;base64,')
    text = unescape(re.sub('<[^>]*>', ' ', page))
    assert 'caf\\udce9 <b>' in text and 'AUC > 9' in text
    assert 'Failures to acquire, 0.417* %' in text
    assert ('False match rate by the two ages' in text) == ages
