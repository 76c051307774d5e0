"""A start from a backbone that knows faces: what it begins with, what stays, what is said of it."""

import json
import shutil
from operator import itemgetter

import numpy as np
import pytest
import torch
from conftest import batch, iterate, log_rows, moved, new_training, refused, snapshot, tiny
from processes import join, launch

import backbones
import main
import meta
import utils
from dataset import Faces
from recognition.weights import load_weights
from training import closed_form, distributed, posthoc
from training.recipe import finetune, paper
from training.state import parameter_groups


def training(**values):
    result = new_training(tiny(warmup=0.0, **values), people=4)
    result.total_steps = 4
    return result


def test_what_is_frozen_stays_and_the_backbone_learns_at_its_own_rate():
    run = training(freeze=0.5)
    states = [snapshot(run.model.backbone)]
    for _ in range(4):
        iterate(run, *batch())
        states.append(snapshot(run.model.backbone))
    assert not moved(states[0], states[2]) and moved(states[2], states[3]) == set(states[0])
    assert all(p.requires_grad for p in run.model.backbone.parameters())
    run = training(batchnorm='frozen')
    before = snapshot(run.model.backbone)
    iterate(run, *batch())
    kept = {name for name in before if 'running' in name or 'num_batches' in name}
    assert kept and moved(before, snapshot(run.model.backbone)) == set(before) - kept
    values = dict(lr=0.01, momentum=0.0, weight_decay=0.0, clip=1e9)
    slow, plain = (training(lr_backbone=factor, **values) for factor in (0.25, 1.0))
    before, steps = snapshot(slow.model.backbone), []
    for run in (slow, plain):
        iterate(run, *batch())
        after = snapshot(run.model.backbone)
        steps.append({name: after[name] - before[name] for name in before if 'weight' in name})
    for name in steps[0]:
        torch.testing.assert_close(steps[0][name], steps[1][name] / 4, rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(slow.model.identity.weight, plain.model.identity.weight)
    groups = parameter_groups(slow.model, finetune)
    rates = [(group['factor'], group['weight_decay']) for group in groups]
    assert rates == [(0.2, 5e-4), (0.2, 0.0), (1.0, 5e-4), (1.0, 0.0)]
    assert sum(len(group['params']) for group in groups) == len([*slow.model.parameters()])
    assert len(parameter_groups(slow.model, paper)) == 2


def centres(folder, root, sharded):
    """set_centres on every rank; what each then has goes to folder/<rank>."""
    with distributed.process_group(-1) as device:
        faces = Faces(root, r'_|\.', 1)
        recipe = tiny(shard_head=sharded, precision='float32')
        run = main.Training(recipe, faces.classes, meta.age_cutoffs, device)
        posthoc.set_centres(run, faces)
        found = run.model.identity.weight.detach(), run.model.state_dict()
        torch.save(found, f'{folder}/{distributed.rank()}')


@pytest.mark.parametrize('count, sharded', [(0, False), (2, False), (2, True), (3, True)])
def test_centres_are_the_mean_directions_of_the_people(drawn, tmp_path, count, sharded):
    ranks = launch(count, centres, tmp_path, drawn / 'train', sharded, out=tmp_path / 'out')
    assert join(ranks) == [0] * max(count, 1), (tmp_path / 'out.0').read_text()
    found = [torch.load(tmp_path / str(k), weights_only=True) for k in range(max(count, 1))]
    faces, run = Faces(drawn / 'train', r'_|\.', 1), training(precision='float32')
    state = {name: value for name, value in found[0][1].items() if 'identity' not in name}
    run.model.load_state_dict(state, strict=False)
    images = faces.__getitems__(list(range(len(faces))))[0]
    with torch.no_grad():
        x_id = run.model.eval().features(images)[2]
    unit = torch.nn.functional.normalize(x_id)
    means = torch.stack([unit[torch.from_numpy(faces.labels == k)].mean(0) for k in range(8)])
    expected = torch.nn.functional.normalize(means)
    weights = torch.cat([weight for weight, _ in found]) if sharded else found[-1][0]
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)


FINETUNE = ('--recipe', 'finetune')


def test_a_fine_tuning_by_the_command_line(train, first, tmp_path, capsys):
    """Epoch 0 is the backbone as it came; the end says what training made of it."""
    folder = train(-1, 2, '--init', first, *FINETUNE, save=tmp_path / 'fine')
    said = capsys.readouterr().out
    assert 'epoch 0/2' in said and 'epoch 2/2' in said and ': before → after' in said
    rows = [row for row in log_rows(folder) if row['kind'] == 'epoch']
    assert [row['epoch'] for row in rows] == [0, 0, 1, 2] and rows[1]['step'] == 0
    assert rows[1]['best'] and not rows[0]['candidate'] and rows[3]['candidate']
    before, info = load_weights(folder / 'best.pth')
    assert 'AUC' in said and info.epoch == json.loads((folder / 'best.json').read_text())['epoch']
    untouched = load_weights(first)[0].backbone.state_dict()
    start = torch.load(folder / 'epoch_001.pth', weights_only=True)['model']
    assert start['identity.weight'].norm(dim=1).sub(1).abs().max() < 0.2  # began as unit centres
    assert moved(untouched, {k: start[f'backbone.{k}'] for k in untouched})


def test_within_person_takes_people_of_several_ages(capsys, train, first, drawn, entry, tmp_path):
    for years in [1.0, 30.0]:
        recipe = tiny(factorization='solved', within_person=True)
        people = np.arange(8) % 4
        closed_form.check_ages_for_r(
            recipe, people, 20.0 + 10 * people + years * (np.arange(8) // 4)
        )
        said = capsys.readouterr().out
        assert ('0% of the variance of age lies within people' in said) == (years < 2)
        assert (
            'rests on 4 people, 4 of them seen at two ages' in said and '4 people are few' in said
        )
    lines = [f'{image} {image.parent.name} 30' for image in sorted(drawn.glob('train/*/*.jpg'))]
    (tmp_path / 'train.txt').write_text('\n'.join(lines))
    data, within = entry | {'train_root': str(tmp_path / 'train.txt')}, ('within_person=True',)
    with pytest.raises(utils.UserError, match='nobody in the training set is seen'):
        train(-1, 2, '--init', first, *FINETUNE, save=tmp_path / 'fine', data=data, settings=within)
    train(-1, 1, '--init', first, *FINETUNE, save=tmp_path / 'fine', data=data)


def test_the_backbone_as_it_came_stays_the_best(train, first, tmp_path, capsys, monkeypatch):
    # of so few people the interval is so wide that any epoch is within it
    monkeypatch.setattr(posthoc, 'choose', lambda rows, _: max(rows, key=itemgetter('score')))
    bad = ('lr=10.', 'lr_backbone=1.', 'clip=100.', 'scale=4.')
    folder = train(-1, 1, '--init', first, *FINETUNE, save=tmp_path / 'fine', settings=bad)
    best = load_weights(folder / 'best.pth')
    assert best[1].epoch == 0 and 'best.pth is epoch 0' in capsys.readouterr().out
    untouched = load_weights(first)[0].backbone.state_dict()
    assert not moved(untouched, best[0].backbone.state_dict())


def test_a_run_resumed_within_the_freeze_is_the_run(train, first, tmp_path):
    options = dict(settings=('freeze=.7', 'batchnorm=frozen'))
    line = ('--init', first, *FINETUNE, '--horizon', 3)
    whole = train(-1, 3, *line, save=tmp_path / 'whole', **options)
    for epochs in (1, 2, 3):
        parts = train(-1, epochs, *line, '--resume', save=tmp_path / 'parts', **options)
    a, b = (torch.load(run / 'last.pth', weights_only=True) for run in (whole, parts))
    assert not moved(a['model'], b['model']) and not moved(a['mapping'], b['mapping'])
    assert log_rows(whole) == log_rows(parts)


def published(tmp_path, name='mobilefacenet'):
    torch.manual_seed(0)
    torch.save(backbones.build(name).state_dict(), tmp_path / f'{name}.pth')
    return tmp_path / f'{name}.pth'


def test_a_published_file_says_which_backbone_it_is(train, tmp_path, capsys):
    """And the run goes on, and its weights are used, without that file."""
    file = published(tmp_path)
    folder = train(-1, 1, '--init', file, *FINETUNE)
    model, info = load_weights(folder / 'epoch_001.pth')
    assert info.backbone == {'name': 'mobilefacenet'} and model.width == 112 and model.dim == 128
    assert json.loads((folder / 'run.json').read_text())['recipe']['backbone'] == 'mobilefacenet'
    file.unlink()
    train(-1, 2, '--init', file, *FINETUNE, '--resume')
    again = train(-1, 1, folder / 'epoch_002.pth', *FINETUNE, save=tmp_path / 'again')
    assert load_weights(again / 'epoch_001.pth')[1].backbone == {'name': 'mobilefacenet'}


def test_an_untouched_backbone_is_measured_and_what_can_not_be_a_start_is_one_line(tmp_path, train):
    file = published(tmp_path)
    model, info = load_weights(file, backbone='mobilefacenet')
    faces = batch()[0]
    _, _, x_id = model.features(faces)
    torch.testing.assert_close(x_id, backbones.load('mobilefacenet', file)(faces))
    assert info.backbone == {'name': 'mobilefacenet'} and info.classes == []
    line = train, -1, 1, '--init', file
    refused('give either weights or --init', train, -1, 1, file, '--init', file)
    refused('not the layout of iresnet18.*mobilefacenet', *line, '--backbone', 'iresnet18')
    refused("no backbone 'iresnet19'", *line, '--backbone', 'iresnet19')
    torch.save({'a': torch.zeros(3)}, file)
    refused('the layout of no backbone', *line)
    file.write_text('<html>gone</html>')
    refused('web page', *line)
    file.unlink()
    refused('no such file', *line)


def test_validation_on_lists_of_pairs(train, entry, drawn, tmp_path, capsys):
    faces = Faces(drawn / 'val', r'_|\.', 1)
    names, same = [faces.source.name(place) for place in faces.places], faces.labels
    pairs = [(a, b) for a in range(30) for b in range(a)]
    rows = [f'{int(same[a] == same[b])} {names[a]} {names[b]}\n' for a, b in pairs]
    shutil.copytree(drawn / 'val', tmp_path / 'pairs')
    pairs = tmp_path / 'pairs/drawn.txt'
    pairs.write_text(''.join(rows))
    beside = train(-1, 1, '--validate', pairs, save=tmp_path / 'a')
    alone = train(-1, 1, save=tmp_path / 'b', data=entry | {'val_root': str(pairs)})
    for folder in (beside, alone):
        row = log_rows(folder)[-1]
        assert 0 <= row['val_drawn_accuracy'] <= 1 and (folder / 'best.pth').exists()
        assert ('val_rank1' in row) == (folder == beside)
    assert row['val_auc'] == row['val_drawn_auc'] and ' drawn 0.' in capsys.readouterr().out
