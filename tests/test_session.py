"""Runs of main.py: what they leave, how they go on, what they refuse."""

import json
import re
from operator import itemgetter
from pathlib import Path

import pytest
import torch
from conftest import PHASES, log_rows, refused, same, state_dict_of
from PIL import Image
from processes import Tiny

import main
from backbones import own
from model import DALModel
from recognition.weights import load_weights, save_checkpoint
from training import log, posthoc
from training.log import Log, differences, read_log
from training.recipe import small


def test_a_seed_is_a_run_and_other_architectures_are_refused(train, tmp_path):
    a, b = (train(-1, 1, save=tmp_path / name) for name in 'ab')
    c = train(-1, 1, '--seed', 1, save=tmp_path / 'c')
    assert same(state_dict_of(a / 'last.pth'), state_dict_of(b / 'last.pth'))
    assert not same(state_dict_of(a / 'last.pth'), state_dict_of(c / 'last.pth'))
    line = train, -1, 1, a / 'last.pth'
    why = "its network is not the one .* 'dim': 16"
    refused(why, *line, save=tmp_path / 'd', settings=('dim=8',))
    solved = 'factorization=solved', 'memory=.9', 'variate=label'
    why = '"factorization.* and factorization=learned: choose'
    refused(why, *line, save=tmp_path / 'e', settings=solved)


@pytest.mark.parametrize('settings', [(), PHASES])
def test_four_epochs_are_two_and_two(train, tmp_path, settings):
    whole = train(-1, 4, save=tmp_path / 'whole', settings=settings)
    options = dict(save=tmp_path / 'parts', settings=settings)
    train(-1, 2, '--horizon', 4, **options)
    parts = train(-1, 2, tmp_path / 'parts' / 'last.pth', '--horizon', 4, **options)
    a, b = (torch.load(run / 'last.pth', weights_only=True) for run in (whole, parts))
    assert same(a['model'], b['model']) and same(a['mapping'], b['mapping'])
    epochs = [epoch.name for epoch in sorted(parts.glob('epoch_*'))]
    assert epochs == [f'epoch_00{k}.pth' for k in (1, 2, 3, 4)]
    numbers = [[row for row in log_rows(run) if row['kind'] == 'epoch'] for run in (whole, parts)]
    assert numbers[0] == numbers[1]
    if settings:
        rows = [row for row in log_rows(whole) if row['kind'] == 'max']
        assert [row['step'] for row in rows] == [5, 10, 15, 20]
        keys = {'rho_before', 'rho_after', 'var_id', 'var_age', 'dead'}
        assert all(keys <= row.keys() for row in rows)


def test_what_a_run_leaves(train, capsys, monkeypatch):
    monkeypatch.setattr(log, 'LARGE', 0)
    folder = train(-1, 2)
    forecast = r'about \d+ images/s on this CPU: \d+\.\d hours for these epochs; --recipe small'
    assert re.search(forecast, capsys.readouterr().out)
    weights = 'epoch_001.pth', 'epoch_002.pth', 'last.pth', 'best.pth'
    others = 'best.json', 'log.jsonl', 'curves.png', 'run.json', '.lock'
    names = {path.name if 'events' not in path.name else 'events' for path in folder.iterdir()}
    assert names == {*weights, *others, 'events'}
    assert Image.open(folder / 'curves.png').convert('L').getextrema()[0] < 100
    kinds = [json.loads(line)['kind'] for line in open(folder / 'log.jsonl')]
    assert {'max', 'min', 'epoch'} == set(kinds)
    assert json.loads((folder / 'run.json').read_text())['recipe']['dim'] == 16
    last = read_log(folder / 'log.jsonl')[-1]
    assert 0 <= last['val_auc'] <= 1 and 0 <= last['val_rank1'] <= 1 and last['val_age_r2_id'] < 1
    assert [key for key in last if key.startswith('val_auc_gap_')]
    for file in ('epoch_001.pth', 'best.pth', 'last.pth'):
        embeddings = DALModel.load(folder / file).embed(torch.zeros(2, 3, 112, 96))
        assert embeddings.shape == (2, 32)
    assert 'optimizer' not in torch.load(folder / 'best.pth', weights_only=True)


def test_validation_on_people_of_the_training_set_counts_the_closed_set(train, entry, tmp_path):
    """Other files of the same people: the faces, encoded again."""
    root = Path(entry['train_root'])
    for path in root.rglob('*.jpg'):
        copy = tmp_path / 'val' / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(copy, quality=80)
    folder = train(-1, 1, data=entry | {'val_root': str(tmp_path / 'val')})
    assert 0 <= read_log(folder / 'log.jsonl')[-1]['val_closed_set_accuracy'] <= 1


def test_without_validation_or_a_terminal(train, entry, capsys, monkeypatch):
    monkeypatch.setattr('system.progress.SECONDS', 0.001)
    folder = train(-1, 2, data=entry | {'val_root': None})
    said = capsys.readouterr()
    assert not (folder / 'best.pth').exists() and 'no validation set, so no best.pth' in said.out
    lines = [line for line in said.err.splitlines() if line.startswith('training: ')]
    wanted = re.compile(r' of 80\.0 images, .* images/s, .* left$')
    assert lines and all(map(wanted.search, lines))


def test_a_dead_split_warns_once(train, capsys, monkeypatch):
    def features(self, images, detach=False):
        x = self.backbone(images.float() / 128 - 1).float()
        return x, x * 0, x

    monkeypatch.setattr(main.DALModel, 'features', features)
    train(-1, 8, settings=PHASES)
    out = capsys.readouterr().out
    assert out.count('|ρ| is stuck at 0.0e+00') == 1
    assert '100% of x_age dead' in out and 'lambda_age' in out


def test_resume_counts_in_total_and_takes_the_recipe_of_the_run(
    train, monkeypatch, tmp_path, capsys
):
    folder = train(-1, 1, '--resume', settings=('lr=.03',))
    line = ['main.py', '-1', '2', '--dataset', 'here', '--save', str(folder), '--resume']
    monkeypatch.setattr('sys.argv', [*line, '--set', 'clip=2.'])
    main.run(main.arguments())
    recipe = json.loads((folder / 'run.json').read_text())['recipe']
    assert recipe['dim'] == 16 and recipe['lr'] == 0.03 and recipe['clip'] == 2
    assert 'recipe clip was 5.0 at the call before and is 2.0 now' in capsys.readouterr().out
    assert len(list(folder.glob('epoch_*'))) == 2
    main.run(main.arguments())
    assert '2 epochs are trained already' in capsys.readouterr().out
    line[-2:] = [str(tmp_path / 'elsewhere'), '--resume', str(folder / 'last.pth')]
    monkeypatch.setattr('sys.argv', line)
    main.run(main.arguments())
    assert 'elsewhere: 2 epochs are trained already' in capsys.readouterr().out


def test_a_backbone_of_ones_own_is_named(train, monkeypatch):
    monkeypatch.setattr(own, 'make_backbone', lambda recipe: Tiny())
    recipe = json.loads((train(-1, 1) / 'run.json').read_text())['recipe']
    assert recipe['backbone'] == 'processes.Tiny'


def test_weights_alone_and_other_people(train, entry, others, tmp_path, capsys):
    first = train(-1, 1, save=tmp_path / 'a')
    again = train(-1, 1, first / 'epoch_001.pth', save=tmp_path / 'a')
    assert (again / 'epoch_002.pth').exists() and 'weights alone' in capsys.readouterr().out
    other = others | {'val_root': entry['train_root']}
    for file in ('epoch_001.pth', 'last.pth'):
        train(-1, 1, first / file, save=tmp_path / file, data=other, settings=('lr=1e-9',))
        said = 'keeping the backbone, starting anew: the identity head (8 people there, 6 here)'
        assert said in capsys.readouterr().out
        ours = state_dict_of(tmp_path / file / 'epoch_001.pth')
        theirs = state_dict_of(first / file)
        name = 'backbone.stages.3.1.units.0.0.weight'
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)
        assert len(ours['identity.weight']) == 6


def test_nothing_is_overwritten(train, others, tmp_path):
    first = train(-1, 2, save=tmp_path / 'a')
    refused('holds a run already .* --resume continues it', train, -1, 2, save=first)
    refused('holds epoch_002.pth already', train, -1, 1, first / 'epoch_001.pth', save=first)
    second = train(-1, 1, save=tmp_path / 'b')
    refused('holds a run already', train, -1, 1, first / 'last.pth', save=second)
    refused('holds epoch_001.pth already', train, -1, 2, '--resume', save=second, data=others)


def test_best_is_not_forgotten_by_weights_alone(train, monkeypatch):
    monkeypatch.setattr(posthoc, 'choose', lambda rows, _: max(rows, key=itemgetter('score')))
    folder = train(-1, 2)
    state = torch.load(folder / 'epoch_002.pth', weights_only=True)
    assert state['best'] == torch.load(folder / 'last.pth', weights_only=True)['best'] <= 1
    save_checkpoint(state | {'best': 2.0}, folder / 'epoch_002.pth')
    kept = load_weights(folder / 'best.pth')[1]
    train(-1, 1, folder / 'epoch_002.pth')
    assert (folder / 'epoch_003.pth').exists()
    assert load_weights(folder / 'best.pth')[1].epoch == kept.epoch


def test_bad_data_and_bad_command_lines(train, entry, tmp_path):
    for why, change in (
        ("'n_cls' is 82, but .* has 8 identities: set 'n_cls': 8", {'n_cls': 82}),
        ('has no position 7', {'pos': 7}),
        ('no regular expression', {'pat': '('}),
        ('nowhere: No such file', {'train_root': 'nowhere'}),
        ('val_root is train_root', {'val_root': entry['train_root']}),
    ):
        refused(why, train, -1, 1, data=entry | change)
    assert not list(tmp_path.glob('run/*.pth'))
    refused('ctx 99: this machine has', train, 99, 1)
    refused('epochs is -1', train, -1, -1)
    why = 'zero epochs take the age out of a backbone that knows faces: --init FILE'
    refused(why, train, -1, 0)
    refused('gone.pth: no such file', train, -1, 1, 'gone.pth')
    refused('batch_size is 1', train, -1, 1, '--batch-size', 1)
    refused('either weights or --resume', train, -1, 1, 'a', '--resume', 'b')


def test_a_log_forgets_what_is_written_again_and_what_differs_from_the_call_before(tmp_path):
    log = Log(tmp_path, 0)
    for step, loss, written in ((10, 1.5, 1.5), (20, float('nan'), None), (30, 1.5, 1.5)):
        assert log.report('min', step, loss=loss) == {'loss': written}
    log.board.close()
    with open(log.path, 'a') as file:
        file.write('{"kind": "min", "st')
    assert [row['step'] for row in read_log(log.path)] == [10, 20, 30]
    Log(tmp_path, 20).board.close()
    assert [json.loads(line)['loss'] for line in log.path.read_text().splitlines()] == [1.5, None]
    path, now = tmp_path / 'run.json', {'recipe': small.as_dict(), 'faces': 40}
    newer = 'freeze', 'precision', 'compile'
    older = {key: value for key, value in small.as_dict().items() if key not in newer}
    path.write_text(json.dumps({'recipe': older, 'faces': 40}))
    assert differences(path, now) == []
    path.write_text(json.dumps({'recipe': older | {'lr': 1.0}, 'faces': 39}))
    assert differences(path, now) == [
        'faces was 39 at the call before and is 40 now',
        'recipe lr was 1.0 at the call before and is 0.05 now',
    ]
    path.write_text('{"recipe": {"lr": "fast"}}')
    assert 'is damaged' in differences(path, now)[0]
