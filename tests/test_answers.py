"""verify.py for scripts: JSON, tables of pairs, exit statuses, images turned or in 16 bits."""

import csv
import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_calibration import stored

import backbones
import utils
import verify
from verification import pairs, portraits
from verification.decision import calibration_file, write_calibration


@pytest.fixture(scope='module')
def aged(weights, tmp_path_factory):
    """The weights with thresholds by age, as training would leave them."""
    state = torch.load(weights)
    state['decision'] |= {'ages': stored(), 'far': {'0.01': {'threshold': 0.7, 'interval': None}}}
    path = tmp_path_factory.mktemp('aged') / 'best.pth'
    torch.save(state, path)
    return path


def run(capsys, *line):
    status = verify.run(verify.arguments([str(word) for word in line]))
    return status, capsys.readouterr().out


def table(path, text):
    path.write_text(text, encoding='utf-8')
    return path


@pytest.mark.parametrize('threshold, status', [(-1, 0), (1, 3)])
def test_the_exit_status_is_the_answer(weights, faces, tmp_path, capsys, threshold, status):
    line = (weights, faces[0], faces[7], '--threshold', threshold)
    assert run(capsys, *line)[0] == status
    line = (weights, '--find', faces[0], faces[1].parent, '--threshold', threshold, '--json')
    assert run(capsys, *line)[0] == status
    state = torch.load(weights)
    del state['decision']
    torch.save(state, tmp_path / 'old.pth')
    assert run(capsys, tmp_path / 'old.pth', faces[0], faces[1])[0] == 4


def test_the_script_ends_with_the_status(weights, faces, tmp_path):
    def status(*line):
        done = subprocess.run(
            [sys.executable, ROOT / 'verify.py', weights, *line],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr

    assert status(faces[0], faces[1], '--threshold', '1')[0] == 3
    code, error = status(faces[0], 'gone.jpg')
    assert code == 1 and error.startswith('error: gone.jpg: ') and error.count('\n') == 1
    assert status('--far', '2', faces[0], faces[1])[0] == 2


def test_ages_and_a_rate_decide(aged, faces, capsys):
    status, out = run(capsys, aged, faces[0], faces[1], '--ages', 4, 30, '--far', '1e-3')
    assert 'the threshold for the ages 4 and 30 at a false accept rate of 0.001 is 0.600' in out
    answer = json.loads(run(capsys, aged, faces[0], faces[1], '--far', '1e-3', '--json')[1])
    assert answer['by'] == 'ages' and answer['ages']['estimated'] and answer['far'] == 0.001
    years = [face['age']['years'] for face in answer['faces']]
    assert [answer['ages']['first'], answer['ages']['second']] == years
    assert answer['pairs_of_different_people'] == 10**6 and answer['pairs_of_one_person'] == 1000
    assert 'for the estimated ages' in answer['verdict']
    assert run(capsys, aged, '--find', faces[0], faces[1].parent, '--ages', 7, '--json')[1]


def test_a_rate_that_no_threshold_is_known_for(weights, faces, capsys):
    with pytest.raises(utils.UserError, match='--calibrate NAME makes them'):
        run(capsys, weights, faces[0], faces[1], '--far', '1e-7')


def test_find_as_json_draws_nothing(weights, faces, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = faces[0].parent.parent
    status, out = run(capsys, weights, '--find', faces[0], folder, '--json', '--top', 3)
    answer = json.loads(out)
    assert [one['rank'] for one in answer['found']] == [1, 2, 3] and answer['searched'] == 36
    assert all(one['photograph'] != str(faces[0].relative_to(folder)) for one in answer['found'])
    assert not list(tmp_path.iterdir())
    run(capsys, weights, '--find', faces[0], folder, '--json', '--out', 'a.png')
    assert Image.open('a.png').size[0] > 600


@pytest.mark.parametrize(
    'text',
    [
        'first,second,first_age,second_age\n{0},{1},4,30\n{2},{3},,\n',
        '\ufeffsecond_age;note;second;first;first_age\n30;x;{1};{0};4\n;y;{3};{2};\n',
        '{0}\t{1}\t4\t30\n\n{2}\t{3}\n',
    ],
    ids=['names', 'bom, other order', 'no names'],
)
def test_tables_as_people_have_them(text, aged, faces, tmp_path, capsys):
    names = [
        shutil.copy(face, tmp_path / f'{k}.jpg').name
        for k, face in enumerate((*faces[:2], *faces[8:10]))
    ]
    path = table(tmp_path / 'pairs.csv', text.format(*names))
    status, out = run(capsys, aged, '--pairs', path)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert status == 0 and [row['first'] for row in rows] == names[::2]
    for row, two in zip(rows, (faces[:2], faces[8:10]), strict=True):
        alone = json.loads(
            run(
                capsys,
                aged,
                *two,
                '--json',
                *(('--ages', 4, 30) if row['first'] == names[0] else ()),
            )[1]
        )
        assert float(row['similarity']) == pytest.approx(alone['similarity'], abs=1e-5)
        assert row['same'] == str(alone['same']) and row['by'] == 'ages' and not row['error']
    assert (rows[0]['first_age'], rows[0]['second_age']) == ('4.0', '30.0') and rows[1]['first_age']


def test_pairs_that_cant_be_compared_say_why(weights, faces, tmp_path, capsys):
    (tmp_path / 'junk.jpg').write_bytes(b'junk')
    path = table(
        tmp_path / 'pairs.csv', f'{faces[0]},{faces[1]}\n{faces[0]},junk.jpg\ngone.jpg,{faces[1]}\n'
    )
    out = tmp_path / 'out.jsonl'
    with pytest.raises(utils.DataError, match='2 of 3 pairs not compared.*junk.jpg'):
        run(capsys, weights, '--pairs', path, '--json', '--out', out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]['error'] is None and rows[0]['same'] in (True, False)
    assert 'not an image' in rows[1]['error'] and 'no such file' in rows[2]['error']
    assert rows[1].keys() == rows[0].keys() and rows[1]['similarity'] is None


@pytest.mark.parametrize(
    'text, said',
    [
        ('', 'no pairs'),
        ('first,second\n', 'no pairs'),
        ('a.jpg,b.jpg,1\na.jpg,b.jpg,0\n', 'line 1: 3 columns without titles'),
        ('a.jpg\tb.jpg\na.jpg\tb.jpg\t1\n', 'line 2: 3 columns without titles'),
        ('a.jpg,b.jpg,1,2,3\n', '5 columns without titles'),
    ],
)
def test_tables_whose_columns_cant_be_known(text, said, tmp_path):
    with pytest.raises(utils.DataError, match=said):
        pairs.read(table(tmp_path / 'pairs.csv', text))


def test_every_row_of_a_table_has_an_answer_or_an_error(weights, faces, tmp_path, capsys):
    for name, face in (('café.jpg', faces[0]), ('b.jpg', faces[1])):  # the accent in one character
        shutil.copy(face, tmp_path / name)
    rows = {  # as it is written, and what its error says
        'café.jpg,b.jpg,,': None,
        'cafe\u0301.jpg,b.jpg,,': None,
        '.\\b.jpg,./café.jpg,4,30': None,
        '"b.jpg",b.jpg,,': None,
        'b.jpg,gone.jpg,,': 'gone.jpg: no such file',
        ',b.jpg,,': 'line 7: expected two images',
        'b.jpg': 'line 8: expected two images',
        '"b.jpg,b.jpg': 'line 9: expected two images',
        'b.jpg,b.jpg,130,4': 'line 10: 130 is no age between',
        'b.jpg,b.jpg,NA,4': "line 11: 'NA' is no age",
        'b.jpg,b.jpg,4,5,6,7': 'line 12: expected two images',
        'b.jpg,b.jpg,4,5': None,
    }
    path = table(tmp_path / 'p.csv', '\n'.join(['First,SECOND,second_age,age1', *rows]))
    with pytest.raises(utils.DataError, match='7 of 12 pairs not compared: .*gone.jpg'):
        run(capsys, weights, '--pairs', path, '--out', tmp_path / 'out.csv')
    assert 'columns not used: age1' in capsys.readouterr().err
    with open(tmp_path / 'out.csv', encoding='utf-8', newline='') as file:
        found = list(csv.DictReader(file))
    for row, error in zip(found, rows.values(), strict=True):
        assert (error in row['error']) if error else not row['error'], row
        assert bool(row['similarity']) == (not error)
    assert found[2]['second_age'] == '4.0' and found[3]['first'] == 'b.jpg'


def test_each_image_of_a_table_is_read_once(weights, faces, tmp_path, monkeypatch, capsys):
    read = []
    monkeypatch.setattr(
        portraits,
        'read_all',
        lambda data, name, *rest, of=portraits.read_all: read.append(name) or of(data, name, *rest),
    )
    path = table(tmp_path / 'p.csv', '\n'.join(f'{faces[0]},{face}' for face in faces[1:6]))
    run(capsys, weights, '--pairs', path)
    assert len(read) == 6


@pytest.mark.parametrize('size', [(96, 112), (112, 112)])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_faces_are_compared_upright(faces, tmp_path, orientation, size):
    """An aligned face that a camera or a program has turned, and its tag that says how."""
    face = Image.open(faces[0]).resize(size)
    turns = {
        2: 'FLIP_LEFT_RIGHT',
        3: 'ROTATE_180',
        4: 'FLIP_TOP_BOTTOM',
        5: 'TRANSPOSE',
        6: 'ROTATE_90',
        7: 'TRANSVERSE',
        8: 'ROTATE_270',
    }
    turn = turns.get(orientation)
    turned = face.transpose(Image.Transpose[turn]) if turn else face
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / 'a.png', exif=exif)
    portrait = portraits.read_file(tmp_path / 'a.png')
    want = np.asarray(face)[:, (size[0] - 96) // 2 :][:, :96]
    assert portrait.about == 'aligned'
    np.testing.assert_array_equal(portrait.face, want)


def test_sixteen_bits_of_grey_are_the_grey_that_they_are(faces, tmp_path):
    grey = Image.open(faces[0]).convert('L')
    grey.save(tmp_path / '8.png')
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save(tmp_path / '16.png')
    eight, sixteen = (portraits.read_file(tmp_path / f'{bits}.png').face for bits in (8, 16))
    np.testing.assert_array_equal(eight, sixteen)
    assert eight.std() > 10


@pytest.fixture(scope='module')
def untouched(tmp_path_factory):
    """A file of MobileFaceNet as others publish it, of random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('untouched') / 'published.pth'
    torch.save(backbones.build('mobilefacenet').state_dict(), path)
    return path


def test_an_untouched_backbone_knows_no_ages(untouched, faces, tmp_path, capsys):
    line = (untouched, '--backbone', 'mobilefacenet')
    status, out = run(capsys, *line, faces[0], faces[1], '--json')
    answer = json.loads(out)
    assert status == 4 and [face['age'] for face in answer['faces']] == [None, None]
    assert answer['ages'] is None
    index = tmp_path / 'a.index'
    assert run(capsys, *line, '--index', faces[0].parent, index)[0] == 0
    status, out = run(
        capsys, *line, '--find', faces[9], index, '--top', 2, '--out', tmp_path / 'a.png'
    )
    assert status == 4 and out.count('age unknown') == 3
    known = verify.matcher(verify.arguments([str(word) for word in (*line, '--serve')]))
    row = [0.0] * 101
    facts = {'threshold': 0.1, 'accuracy': None, 'genuine': row, 'impostor': row, 'ages': stored()}
    write_calibration(facts, 'mine', known.info, calibration_file(untouched))
    answer = json.loads(run(capsys, *line, faces[0], faces[1], '--json')[1])
    assert answer['by'] == 'validation' and '--ages gives them' in answer['caution']
    answer = json.loads(run(capsys, *line, faces[0], faces[1], '--ages', 4, 30, '--json')[1])
    assert answer['by'] == 'ages' and answer['threshold'] == pytest.approx(0.3)
    path = table(tmp_path / 'p.csv', f'{faces[0]},{faces[1]},4,\n{faces[0]},{faces[1]},4,30')
    rows = list(csv.DictReader(io.StringIO(run(capsys, *line, '--pairs', path)[1])))
    assert [row['by'] for row in rows] == ['validation', 'ages'] and rows[0]['second_age'] == ''


LINES = (
    ['a', 'b', '--ages', '4'],
    ['a', 'b', '--ages', '4', '200'],
    ['a', 'b', '--far', '0'],
    ['a', 'b', '--far', '.1', '--threshold', '.2'],
    ['--pairs', 'p.csv', '--ages', '3'],
    ['--find', 'a', 'b', '--ages', '3', '4'],
    ['--index', 'a', 'b', 'c'],
    ['a', 'b', '--people'],
    ['--index', 'a', '--find', 'b', 'c'],
)


@pytest.mark.parametrize('line', LINES, ids=str)
def test_command_lines_that_mean_nothing(line, capsys):
    with pytest.raises(SystemExit) as stopped:
        verify.arguments(['w.pth', *line])
    assert stopped.value.code == 2 and 'error' in capsys.readouterr().err
