"""verify.py for scripts: JSON, tables of pairs, exit statuses, images turned."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, csv_rows, python, refused
from PIL import Image
from test_calibration import stored

import backbones
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


def table(path, text):
    path.write_text(text, encoding='utf-8')
    return path


ANSWERS = [(-1, 0, 'the same person'), (1, 3, 'different people')]


@pytest.mark.parametrize('threshold, status, said', ANSWERS)
def test_the_exit_status_is_the_answer(weights, faces, ask, threshold, status, said):
    found, printed = ask(weights, faces[0], faces[7], '--threshold', threshold)
    assert f': {said} (the threshold is {threshold:.3f})' in printed and found == status
    line = (weights, '--find', faces[0], faces[1].parent, '--threshold', threshold, '--json')
    assert ask(*line)[0] == status


def test_the_script_ends_with_the_status(weights, faces, tmp_path):
    def end(*line):
        return python(tmp_path, ROOT / 'verify.py', weights, *line)

    assert end(faces[0], faces[1], '--threshold', '1').returncode == 3
    done = end(faces[0], 'gone.jpg')
    assert done.returncode == 1 and done.stderr.startswith('error: gone.jpg: ')
    assert done.stderr.count('\n') == 1
    assert end('--far', '2', faces[0], faces[1]).returncode == 2


def test_ages_and_a_rate_decide(aged, faces, ask):
    status, out = ask(aged, faces[0], faces[1], '--ages', 4, 30, '--far', '1e-3')
    assert 'the threshold for the ages 4 and 30 at a false accept rate of 0.001 is 0.600' in out
    answer = json.loads(ask(aged, faces[0], faces[1], '--far', '1e-3', '--json')[1])
    assert answer['by'] == 'ages' and answer['ages']['estimated'] and answer['far'] == 0.001
    years = [face['age']['years'] for face in answer['faces']]
    assert [answer['ages']['first'], answer['ages']['second']] == years
    assert answer['pairs_of_different_people'] == 10**6 and answer['pairs_of_one_person'] == 1000
    assert 'for the estimated ages' in answer['verdict']
    assert ask(aged, '--find', faces[0], faces[1].parent, '--ages', 7, '--json')[1]


def test_find_as_json_draws_nothing(weights, faces, tmp_path, monkeypatch, ask):
    monkeypatch.chdir(tmp_path)
    folder = faces[0].parent.parent
    status, out = ask(weights, '--find', faces[0], folder, '--json', '--top', 3)
    answer = json.loads(out)
    assert [one['rank'] for one in answer['found']] == [1, 2, 3] and answer['searched'] == 36
    assert all(one['photograph'] != str(faces[0].relative_to(folder)) for one in answer['found'])
    assert not list(tmp_path.iterdir())
    ask(weights, '--find', faces[0], folder, '--json', '--out', 'a.png')
    assert Image.open('a.png').size[0] > 600


TABLES = {
    'names': 'first,second,first_age,second_age\n{0},{1},4,30\n{2},{3},,\n',
    'other order': '\ufeffsecond_age;note;second;first;first_age\n30;x;{1};{0};4\n;y;{3};{2};\n',
    'no names': '{0}\t{1}\t4\t30\n\n{2}\t{3}\n',
}


@pytest.mark.parametrize('kind', TABLES)
def test_tables_as_people_have_them(kind, aged, faces, tmp_path, ask):
    four = *faces[:2], *faces[8:10]
    names = [shutil.copy(face, tmp_path / f'{k}.jpg').name for k, face in enumerate(four)]
    path = table(tmp_path / 'pairs.csv', TABLES[kind].format(*names))
    status, out = ask(aged, '--pairs', path)
    rows = list(csv.DictReader(io.StringIO(out)))
    assert status == 0 and [row['first'] for row in rows] == names[::2]
    lines = (*faces[:2], '--ages', 4, 30), faces[8:10]
    for row, line in zip(rows, lines, strict=True):
        alone = json.loads(ask(aged, *line, '--json')[1])
        assert float(row['similarity']) == pytest.approx(alone['similarity'], abs=1e-5)
        assert row['same'] == str(alone['same']) and row['by'] == 'ages' and not row['error']
    assert (rows[0]['first_age'], rows[0]['second_age']) == ('4.0', '30.0') and rows[1]['first_age']


def test_pairs_that_cant_be_compared_say_why(weights, faces, tmp_path, ask):
    (tmp_path / 'junk.jpg').write_bytes(b'junk')
    text = f'{faces[0]},{faces[1]}\n{faces[0]},junk.jpg\ngone.jpg,{faces[1]}\n'
    path, out = table(tmp_path / 'pairs.csv', text), tmp_path / 'out.jsonl'
    line = weights, '--pairs', path, '--json', '--out', out
    refused('2 of 3 pairs not compared.*junk.jpg', ask, *line)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0]['error'] is None and rows[0]['same'] in (True, False)
    assert 'not an image' in rows[1]['error'] and 'no such file' in rows[2]['error']
    assert rows[1].keys() == rows[0].keys() and rows[1]['similarity'] is None


UNKNOWN = {
    '': 'no pairs',
    'first,second\n': 'no pairs',
    'a.jpg,b.jpg,1\na.jpg,b.jpg,0\n': 'line 1: 3 columns without titles',
    'a.jpg\tb.jpg\na.jpg\tb.jpg\t1\n': 'line 2: 3 columns without titles',
    'a.jpg,b.jpg,1,2,3\n': '5 columns without titles',
}


@pytest.mark.parametrize('text, said', UNKNOWN.items())
def test_tables_whose_columns_cant_be_known(text, said, tmp_path):
    refused(said, pairs.read, table(tmp_path / 'pairs.csv', text))


def test_every_row_of_a_table_has_an_answer_or_an_error(weights, faces, tmp_path, capsys, ask):
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
    line = weights, '--pairs', path, '--out', tmp_path / 'out.csv'
    refused('7 of 12 pairs not compared: .*gone.jpg', ask, *line)
    assert 'columns not used: age1' in capsys.readouterr().err
    found = csv_rows(tmp_path / 'out.csv')
    for row, error in zip(found, rows.values(), strict=True):
        assert (error in row['error']) if error else not row['error'], row
        assert bool(row['similarity']) == (not error)
    assert found[2]['second_age'] == '4.0' and found[3]['first'] == 'b.jpg'


def test_each_image_of_a_table_is_read_once(weights, faces, tmp_path, images_read, ask):
    path = table(tmp_path / 'p.csv', '\n'.join(f'{faces[0]},{face}' for face in faces[1:6]))
    ask(weights, '--pairs', path)
    assert len(images_read) == 6


TURNS = [None, 'FLIP_LEFT_RIGHT', 'ROTATE_180', 'FLIP_TOP_BOTTOM', 'TRANSPOSE', 'ROTATE_90']
TURNS += ['TRANSVERSE', 'ROTATE_270']


@pytest.mark.parametrize('turn', TURNS)
def test_faces_are_compared_upright(faces, tmp_path, turn):
    """An aligned face that a camera or a program has turned, and its tag that says how."""
    for width in (96, 112):
        face = Image.open(faces[0]).resize((width, 112))
        exif = Image.Exif()
        exif[0x0112] = TURNS.index(turn) + 1
        turned = face.transpose(Image.Transpose[turn]) if turn else face
        turned.save(tmp_path / 'a.png', exif=exif)
        portrait = portraits.read_file(tmp_path / 'a.png')
        want = np.asarray(face)[:, (width - 96) // 2 :][:, :96]
        assert portrait.about == 'aligned'
        np.testing.assert_array_equal(portrait.face, want)


@pytest.fixture(scope='module')
def untouched(tmp_path_factory):
    """A file of MobileFaceNet as others publish it, of random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('untouched') / 'published.pth'
    torch.save(backbones.build('mobilefacenet').state_dict(), path)
    return path


def test_an_untouched_backbone_knows_no_ages(untouched, faces, tmp_path, ask):
    line = (untouched, '--backbone', 'mobilefacenet')
    status, out = ask(*line, faces[0], faces[1], '--json')
    answer = json.loads(out)
    assert status == 4 and [face['age'] for face in answer['faces']] == [None, None]
    assert answer['ages'] is None
    index = tmp_path / 'a.index'
    assert ask(*line, '--index', faces[0].parent, index)[0] == 0
    find = '--find', faces[9], index, '--top', 2, '--out', tmp_path / 'a.png'
    status, out = ask(*line, *find)
    assert status == 4 and out.count('age unknown') == 3
    known = verify.matcher(verify.arguments([str(word) for word in (*line, '--serve')]))
    row = [0.0] * 101
    facts = {'threshold': 0.1, 'accuracy': None, 'genuine': row, 'impostor': row, 'ages': stored()}
    write_calibration(facts, 'mine', known.info, calibration_file(untouched))
    answer = json.loads(ask(*line, faces[0], faces[1], '--json')[1])
    assert answer['by'] == 'validation' and '--ages gives them' in answer['caution']
    answer = json.loads(ask(*line, faces[0], faces[1], '--ages', 4, 30, '--json')[1])
    assert answer['by'] == 'ages' and answer['threshold'] == pytest.approx(0.3)
    path = table(tmp_path / 'p.csv', f'{faces[0]},{faces[1]},4,\n{faces[0]},{faces[1]},4,30')
    rows = list(csv.DictReader(io.StringIO(ask(*line, '--pairs', path)[1])))
    assert [row['by'] for row in rows] == ['validation', 'ages'] and rows[0]['second_age'] == ''


LINES = ['', 'a.jpg', 'a b c', 'a b --serve', '--find a', 'a b --threshold 2', '--serve --port 0']
LINES += ['a b --ages 4', 'a b --ages 4 200', 'a b --far 0', 'a b --far .1 --threshold .2']
LINES += ['--pairs p.csv --ages 3', '--find a b --ages 3 4', '--index a b c', 'a b --people']
LINES += ['--index a --find b c', '--group a b c', '--group a --sure 1', '--find a b --suggest']
LINES += ['--group a --people', '--index a --people b.index']


@pytest.mark.parametrize('line', LINES)
def test_command_lines_that_mean_nothing(line, capsys):
    with pytest.raises(SystemExit) as stopped:
        verify.arguments(['w.pth', *line.split()])
    assert stopped.value.code == 2 and 'error' in capsys.readouterr().err
