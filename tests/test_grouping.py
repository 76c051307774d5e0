"""Groups of faces: the linkage, what a person corrects and knows, and the files."""

import json
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, csv_rows, python, refused, unit
from PIL import Image, ImageOps
from test_calibration import stored

from evaluation.age_thresholds import AgeDecision
from storage.images import ORIENTATION
from verification import grouping, people, people_files, sidecars
from verification.decision import Decision
from verification.grouping import LogOdds
from verification.index import FACE, Index, Photograph

NONE = np.empty((0, 2), int)
INFO = SimpleNamespace(path='w.pth', sha256='f' * 64)
MATCHER = SimpleNamespace(decision=Decision(0.5, given=True), info=INFO)


def faces_of(people, each, dim=64, spread=0.5, seed=0):
    """Unit vectors (people · each, dim) around a centre for each, their people, and ages."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people), each)
    noise = spread * rng.normal(size=(len(labels), dim)) / np.sqrt(dim)
    vectors = unit(unit(rng.normal(size=(people, dim)))[labels] + noise)
    return vectors.astype(np.float32), labels, rng.uniform(0, 80, len(labels))


def one_by_one(pairs, apart, sure=0.5):
    """The partition that merges mutual nearest groups, a plain loop over means of pairs."""
    odds, groups = pairs.rows(0, len(pairs)).astype(float), [[k] for k in range(len(pairs))]
    never = {frozenset(pair) for pair in apart.tolist()}
    while True:
        table = np.full((len(groups), len(groups)), -np.inf)
        for a, b in zip(*np.triu_indices(len(groups), 1), strict=True):
            first, second = groups[a], groups[b]
            if not any(frozenset((i, j)) in never for i in first for j in second):
                mean = odds[np.ix_(first, second)].mean()
                weight = (len(first) * len(second)) ** grouping.SIZES if mean > 0 else 1
                table[a, b] = table[b, a] = mean * weight
        best, limit = table.argmax(1), grouping.prior(len(groups)) + np.log(sure / (1 - sure))
        mutual = [(a, b) for a, b in enumerate(best) if a < b and best[b] == a]
        joined = {b: a for a, b in mutual if table[a, b] >= limit}
        if not joined:
            return {frozenset(group) for group in groups}
        for b, a in joined.items():
            groups[a] = groups[a] + groups[b]
        groups = [group for k, group in enumerate(groups) if k not in joined]


def partition(groups):
    return {frozenset(np.flatnonzero(groups == k).tolist()) for k in np.unique(groups)}


@pytest.mark.parametrize('by_ages', [False, True])
@pytest.mark.parametrize('dense', [True, False], ids=['matrix', 'neighbours'])
def test_linkage_is_that_of_plain_means(dense, by_ages, monkeypatch):
    vectors, labels, ages = faces_of(12, 5, spread=0.9)
    decision = AgeDecision(stored()) if by_ages else None
    pairs = LogOdds(vectors, ages, decision, 0.3, 15)
    apart = np.array([(0, 1), (0, 7), (20, 21)])
    monkeypatch.setattr(grouping, 'ROWS', 7)
    if not dense:
        monkeypatch.setattr(grouping, 'DENSE', 2)
        monkeypatch.setattr(grouping, 'NEIGHBOURS', 59)
    found = grouping.cluster(pairs, np.arange(60), apart)
    assert partition(found) == one_by_one(pairs, apart)
    assert found[0] != found[1] and len(np.unique(found)) < 40


def test_odds_are_those_of_the_probability_and_constraints_hold(monkeypatch):
    vectors, labels, ages = faces_of(6, 7)
    odds = LogOdds(vectors, ages, AgeDecision(stored())).rows(0, 42)
    younger, gap = min(ages[[3, 30]].round()), abs(ages[3].round() - ages[30].round())
    p = AgeDecision(stored()).probability(float(vectors[3] @ vectors[30]), younger, gap)
    assert 1 / (1 + np.exp(-odds[3, 30])) == pytest.approx(p, abs=1e-4)
    vectors, labels, ages = faces_of(3, 4)
    labels[11] = 3  # alone
    pairs = LogOdds(vectors, ages, None, 0.5, 15)
    odds, (rest, other, value) = pairs.rows(0, 12), grouping.belonging(pairs, labels)
    assert np.isnan(rest[11]) and other[11] == 2
    assert rest[0] == pytest.approx(odds[0, 1:4].mean() * 3**grouping.SIZES, rel=1e-4)
    assert value[11] == pytest.approx(odds[11, 8:11].mean() * 3**grouping.SIZES, rel=1e-4)
    vectors, labels, ages = faces_of(4, 10, spread=0.3)
    pairs, start = LogOdds(vectors, ages, None, 0.5, 15), np.arange(40)
    assert partition(grouping.cluster(pairs, start, NONE)) == partition(labels)
    start[[0, 10]] = 99  # one person, whatever they look like
    fixed = np.zeros(40, bool)
    fixed[[20, 21]] = True  # two names
    for dense in (grouping.DENSE, 2):
        monkeypatch.setattr(grouping, 'DENSE', dense)
        monkeypatch.setattr(grouping, 'NEIGHBOURS', 39)
        found = grouping.cluster(pairs, start, np.array([(30, 31)]), fixed)
        assert found[0] == found[10] and found[20] != found[21] and found[30] != found[31]


POINTS = np.array([(20, 30), (40, 30), (30, 40), (22, 55), (38, 55)])


def archive_of(vectors, labels, ages, folder, per_photograph=1, people=False):
    """An index of made-up faces; photographs are grey, and named after who is in them."""
    photographs = []
    for start in range(0, len(vectors), per_photograph):
        here = range(start, min(start + per_photograph, len(vectors)))
        rows = np.zeros(len(here), FACE)
        for row, k in zip(rows, here, strict=True):
            left = 100 * (k - start)
            row['box'], row['age'], row['group'] = (left, 10, left + 60, 80), ages[k], 1
            row['points'] = POINTS + (left, 0)
        name = f'{labels[start]}/{start:03}.jpg'
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (100 * per_photograph, 100), 'grey').save(folder / name)
        photographs.append(Photograph(name, 1, 2, '', rows, vectors[here.start : here.stop]))
    return Index.of(str(folder), photographs, people)


def grouped(archive, out, **options):
    """The number of each face's group, the rows of people.csv, and what is said."""
    rows, said = people.group_archive(MATCHER, archive, out, **options)
    return {int(row['face']): int(row['group']) for row in rows}, rows, said


@pytest.fixture
def family(tmp_path):
    vectors, labels, ages = faces_of(4, 6, spread=0.3)
    return vectors, labels, ages, archive_of(vectors, labels, ages, tmp_path / 'photographs')


def correct(path, change):
    rows = csv_rows(path)
    for row in rows:
        change(row)
    people_files.write_table(path, list(rows[0]), rows)


def test_corrections_stay_and_new_photographs_join(family, tmp_path):
    vectors, labels, ages, archive = family
    root, out = tmp_path / 'photographs', tmp_path / 'out'
    before, *_ = grouped(archive, out)

    def change(row):
        if row['face'] in ('0', '1'):  # split
            row['group'] = 'another'
        if int(row['group'].replace('another', '99')) == before[6]:  # joined with the third
            row['group'] = str(float(before[12]))
        if row['face'] == '12':
            row['name'] = 'Ada'

    correct(out / 'people.csv', change)
    rng = np.random.default_rng(5)
    near = vectors[[2, 20]] + 0.02 * rng.normal(size=(2, 64))
    new = np.concatenate([near, rng.normal(size=(1, 64))])
    new = (new / np.linalg.norm(new, axis=1, keepdims=True)).astype(np.float32)
    # their photographs come first in the index, so that every row moves
    added = archive_of(new, [7, 8, 9], [30, 30, 30], root).photographs()
    after, rows, _ = grouped(Index.of(str(root), [*added, *archive.photographs()], False), out)
    assert after[3] == after[4] == 5 and after[5] == before[2] == after[0]  # split, joined by one
    assert {after[3 + k] for k in range(6, 18)} == {before[12]} and after[1] == before[18]
    assert after[2] == 6 and all(after[3 + k] == before[k] for k in range(18, 24))
    assert {row['name'] for row in rows if row['group'] == before[12]} == {'Ada'}


def test_faces_of_one_photograph_are_apart_and_an_accepted_suggestion_joins(tmp_path):
    archive = archive_of(*faces_of(1, 6, spread=0.1), tmp_path / 'a', 2)
    after, *_ = grouped(archive, tmp_path / 'out')
    assert all(after[k] != after[k + 1] for k in (0, 2, 4)) and len(set(after.values())) == 2
    after, *_ = grouped(archive, tmp_path / 'lifted', same_photograph=True)
    assert set(after.values()) == {1}
    vectors, labels, ages = faces_of(4, 6, spread=0.3)
    vectors[:6] = vectors[:6] + 0.6 * vectors[6]  # so that two groups are near
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    archive, out = archive_of(vectors, labels, ages, tmp_path / 'b'), tmp_path / 'joined'
    before, *_ = grouped(archive, out, sure=0.9, suggest=True)
    assert before[0] != before[6]
    pair = csv_rows(out / 'suggestions.csv')[0]
    assert float(pair['probability']) > 0.5
    assert {int(pair['first']), int(pair['second'])} == {before[0], before[6]}
    assert int(pair['first_face']) // 6 + int(pair['second_face']) // 6 == 1
    correct(out / 'suggestions.csv', lambda row: row.update(accept='yes' if row == pair else 'no'))
    after, _, said = grouped(archive, out)
    assert after[0] == after[6] == min(before[0], before[6]) and 'is now of group' in said[0]
    assert all(row['accept'] == 'no' for row in csv_rows(out / 'suggestions.csv'))


def test_names_of_enrolled_people(family, tmp_path):
    vectors, labels, ages, archive = family
    who = np.array(['Ada', 'Ada', 'Bo'])
    named = archive_of(vectors[[6, 7, 1]], who, ages, tmp_path / 'enrolled', people=True)
    rows, _ = people.group_archive(MATCHER, archive, tmp_path / 'out', named=named)
    names = {row['face']: row['name'] for row in rows}
    assert [names[k] for k in range(0, 24, 6)] == ['Bo', 'Ada', '', '']
    assert len({row['group'] for row in rows}) == 4
    named = archive_of(vectors[[6, 7, 8]], who, ages, tmp_path / 'enrolled', people=True)
    rows, _ = people.group_archive(MATCHER, archive, tmp_path / 'again', named=named)
    assert {row['name'] for row in rows} > {'Ada'}  # two names are two groups, however alike


def test_birth_and_dates_make_ages_exact(family, tmp_path):
    archive, out = family[3], tmp_path / 'out'
    before, *_ = grouped(archive, out)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[36867] = '1995:06:01 10:00:00'
    Image.new('RGB', (100, 100)).save(archive.path(1), exif=exif)
    sidecar = tmp_path / 'photographs' / '0' / '002.jpg.xmp'
    sidecar.write_text('<a photoshop:DateCreated="1998-01-01"/>')
    changes = {'0': {'name': 'Ada', 'born': '1990-03-01', 'taken': '2020'}}
    changes |= {'3': {'group': '', 'taken': '1985'}, '4': {'taken': '1970'}}
    correct(out / 'people.csv', lambda row: row.update(changes.get(row['face'], {})))
    after, rows, said = grouped(archive, out)
    years = {row['face']: row['age'] for row in rows}
    assert [years[k] for k in (0, 1, 2)] == [30, 5, 7]
    assert after[3] != before[0] and after[4] == before[0]
    assert any('Ada, born 1990-03-01, on a photograph taken 1970' in line for line in said)
    correct(out / 'people.csv', lambda row: row.update(born='1990-13-40' if row['born'] else ''))
    assert any('is no date' in line for line in grouped(archive, out)[2])
    names = {'0': 'Ada', '1': 'Bo'}  # and whose the others of their group are, is open
    correct(out / 'people.csv', lambda row: row.update(name=names.get(row['face']), taken='1999'))
    assert {row['taken'] for row in grouped(archive, out)[1]} == {'1999'}


def test_files_and_numbers_and_files_that_are_no_corrections(family, tmp_path):
    archive, path, out = family[3], tmp_path / 'people.csv', tmp_path / 'out'
    refused('people.csv: No such file', people.group_archive, MATCHER, archive, out, kept=path)
    for content, message in ((b'a,b\n', 'no column photograph'), (b'\xff\xfe\xff', 'not UTF-8')):
        path.write_bytes(content)
        refused(f'people.csv: {message}', people.group_archive, MATCHER, archive, out, kept=path)
    without = SimpleNamespace(decision=Decision(), info=INFO)
    refused('--calibrate NAME makes one', people.group_archive, without, archive, out)
    assert not out.exists()
    labels = family[1]
    after, rows, said = grouped(archive, out)
    assert partition(np.array([after[k] for k in range(24)])) == partition(labels)
    assert '24 faces in 4 groups of two or more, 0 alone' in said[0] and 'P of belonging' in said[1]
    kept = csv_rows(out / 'people.csv')
    assert list(kept[0]) == people_files.COLUMNS and kept[0]['box'] == '0 10 60 80'
    of_first = [row for row in kept if row['group'] == '1']
    years = [float(row['age']) for row in of_first]
    assert years == sorted(years) and float(of_first[0]['probability']) > 0.9
    groups = json.loads((out / 'people.json').read_text())['groups']
    assert [len(one['faces']) for one in groups] == [6] * 4
    assert people_files.draw_sheets(archive, rows, out / 'sheets') == 4
    assert people_files.draw_sheets(archive, rows, out / 'sheets') == 0
    assert Image.open(out / 'sheets' / '0001.jpg').size == (6 * 96, 24 + 132)


XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:mine="http://example.org/" xmlns:mwg-rs="http://www.metadataworkinggroup.com/schemas/regions/"
 xmlns:stArea="http://ns.adobe.com/xmp/sType/Area#" mine:stars="5"><mwg-rs:Regions
 rdf:parseType="Resource"><mwg-rs:RegionList><rdf:Bag><rdf:li rdf:parseType="Resource"><mwg-rs:Name>
 Theirs</mwg-rs:Name><mwg-rs:Area stArea:x="0.15" stArea:y="0.45" stArea:w="0.3" stArea:h="0.7"/>
 </rdf:li></rdf:Bag></mwg-rs:RegionList></mwg-rs:Regions></rdf:Description></rdf:RDF></x:xmpmeta>"""


def test_sidecars_are_merged_with_regions_of_the_stored_image(tmp_path):
    archive = archive_of(*faces_of(1, 2), tmp_path, 2)
    rows = [{'face': k, 'name': name} for k, name in enumerate(('Ada', 'Bo & Co'))]
    path = tmp_path / '0' / '000.jpg.xmp'
    assert sidecars.write_sidecars(archive, rows) == []
    text = path.read_text()
    assert 'mwg-rs:Name="Ada"' in text and 'Bo &amp; Co' in text and 'stArea:x="0.650000"' in text
    path.write_text(XMP)
    sidecars.write_sidecars(archive, rows)
    text = path.read_text()
    assert 'Theirs' in text and 'mine:stars="5"' in text and '"Ada"' not in text and 'Bo &' in text
    before = path.stat().st_mtime_ns
    sidecars.write_sidecars(archive, rows)
    assert path.stat().st_mtime_ns == before
    path.write_text('no XML')
    assert '000.jpg: no regions written' in sidecars.write_sidecars(archive, rows)[0]
    assert path.read_text() == 'no XML'
    for turned in range(1, 9):
        stored_image = np.zeros((40, 100), np.uint8)
        stored_image[5:15, 60:90] = 255
        image = Image.fromarray(stored_image)
        exif = Image.Exif()
        exif[ORIENTATION] = turned
        image.info['exif'] = exif.tobytes()
        image.getexif()[ORIENTATION] = turned
        upright = np.asarray(ImageOps.exif_transpose(image))
        rows, columns = np.nonzero(upright)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        text = sidecars.merged(sidecars.EMPTY.encode(), (100, 40), turned, [(box, 'Ada')]).decode()
        for part in ('x="0.750000"', 'y="0.250000"', 'w="0.300000"', 'h="0.250000"'):
            assert f'stArea:{part}' in text


def test_a_kill_and_the_same_command_again(weights, drawn, tmp_path):
    line, out = [ROOT / 'verify.py', weights], tmp_path / 'out'
    assert python(tmp_path, *line, '--index', drawn / 'val', 'a.index').returncode == 0
    line += ['--group', 'a.index', 'out', '--suggest']
    process = subprocess.Popen([sys.executable, *line], cwd=tmp_path, stdout=subprocess.DEVNULL)
    while process.poll() is None and not (out / 'people.json').exists():
        time.sleep(0.002)
    process.kill()
    process.wait()
    done = python(tmp_path, *line)
    assert done.returncode == 0 and '36 faces in' in done.stdout, done.stderr
    sheets = {path.stem for path in (out / 'sheets').iterdir()}
    assert sheets == {f'{int(row["group"]):04}' for row in csv_rows(out / 'people.csv')}
