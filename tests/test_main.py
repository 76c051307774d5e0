"""Who moves when; resume; the command line as a user types it; what is said of bad input."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, tiny
from PIL import Image

import main
import meta
import utils
from model import DALModel
from training.checkpoint import save_checkpoint
from training.log import read_log
from training.recipe import paper
from utils import DataError


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(0, 256, (8, 3, 112, 96), dtype=torch.uint8, generator=generator), torch.arange(8) % 4,
            torch.tensor([3., 11, 12, 25, 40, 56, 70, 81]))


def training(**values):
    recipe = tiny(**dict(split=(0., 0.), game=(0., 0.), read_age=0., warmup=0.) | values)
    result = main.Training(recipe, list('abcd'), meta.age_cutoffs, torch.device('cpu'))
    result.total_steps = 100
    result.schedule(.1)
    result.batch.begin([8], 0)
    return result


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before, module):
    return {name for name, tensor in module.state_dict().items() if not torch.equal(before[name], tensor)}


@pytest.mark.parametrize('variate', ['learned', 'label'])
def test_only_w_moves_in_max(batch, variate):
    images, _, ages = batch
    run = training(variate=variate, memory=0.)
    network, w = snapshot(run.model), snapshot(run.mapping)
    run.max_step(images, ages)
    assert not moved(network, run.model), 'weights or batch-norm statistics moved'
    assert moved(w, run.mapping) == ({'w_id', 'w_age'} if variate == 'learned' else {'w_id'})
    assert all(p.grad is None for p in run.model.parameters())


@pytest.mark.parametrize('variate', ['learned', 'label'])
def test_everything_but_w_moves_in_min(batch, variate):
    run = training(variate=variate, memory=0.)
    network, w = snapshot(run.model), snapshot(run.mapping)
    run.min_step(*batch)
    still = set(network) - moved(network, run.model)
    assert still == {'factorization.alpha'}
    assert not moved(w, run.mapping) and all(p.grad is None for p in run.mapping.parameters())


def test_w_solved_within_an_iteration_touches_no_gradient_of_the_network(batch):
    gradients = []
    for memory in (0., .5):
        run = training(variate='label', memory=memory, lambda_dal=1e-12)
        w = snapshot(run.mapping)
        run.min_step(*batch)
        assert moved(w, run.mapping) == ({'w_id', 'covariance', 'cross'} if memory else set())
        gradients.append(run.model.backbone.project.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize('variate', ['learned', 'label'])
def test_the_correlation_reaches_the_backbone_and_r(batch, variate):
    images, labels, ages = batch
    run = training(variate=variate, memory=0.)
    run.model.train()
    x_age, x_id, _, _ = run.model(images, labels)
    dal_loss = main.dal.canonical_correlation(*run.mapping(x_id, run.variate(x_age, ages))).abs()
    dal_loss.backward()
    assert run.model.backbone.project.weight.grad.abs().sum() > 0
    assert run.model.factorization.age[0].weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in run.model.age.parameters()), 'the age head must not unlearn age'


def test_phases_cross_epochs():
    run = training(max_steps=20, min_steps=50, memory=0.)
    turns = []
    for run.step in range(140):  # epochs of 7 steps would never reach the other phase with a counter of their own
        turns.append(run.is_max_step())
    assert turns == ([False] * 50 + [True] * 20) * 2


def test_ramps_reach_the_networks():
    run = training(split=(.2, .4), game=(.4, .8), lambda_dal=3., margin_warmup=.5, margin=.4, lr=.1, warmup=.1, memory=0., max_steps=20)
    seen = []
    for progress in (0., .3, .6, 1.):
        run.schedule(progress)
        seen.append((run.model.factorization.alpha.item(), run.lambda_dal, run.model.identity.m, run.optimizer.param_groups[1]['lr']))
    np.testing.assert_allclose(seen, [(0, 0, 0, 0), (.5, 0, .24, .0883), (1, 1.5, .4, .0413), (1, 3, .4, 0)], atol=1e-3)
    run.step = 60
    run.schedule(.3)
    assert not run.is_max_step(), 'the adversary waits for the game to begin'


def test_the_paper_has_no_ramps():
    run = training(**{key: getattr(paper, key) for key in ('split', 'game', 'read_age', 'margin_warmup', 'lambda_dal')})
    run.schedule(0.)
    assert run.model.factorization.alpha == 1 and run.lambda_dal == .1 and run.model.identity.m == .35


def weights_of(file):
    return torch.load(file, weights_only=True)['model']


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_seed_is_a_run(train, tmp_path):
    a, b = (train(-1, 1, save=tmp_path / name) for name in 'ab')
    c = train(-1, 1, '--seed', 1, save=tmp_path / 'c')
    assert same(weights_of(a / 'last.pth'), weights_of(b / 'last.pth'))
    assert not same(weights_of(a / 'last.pth'), weights_of(c / 'last.pth'))


@pytest.mark.parametrize('settings', [(), ('max_steps=2', 'min_steps=3', 'memory=0.', 'variate=learned', 'split=(0.,0.)', 'game=(0.,0.)')])
def test_four_epochs_are_two_and_two(train, tmp_path, settings):
    whole = train(-1, 4, save=tmp_path / 'whole', settings=settings)
    train(-1, 2, '--horizon', 4, save=tmp_path / 'parts', settings=settings)
    parts = train(-1, 2, tmp_path / 'parts' / 'last.pth', '--horizon', 4, save=tmp_path / 'parts', settings=settings)
    a, b = (torch.load(run / 'last.pth', weights_only=True) for run in (whole, parts))
    assert same(a['model'], b['model']) and same(a['mapping'], b['mapping'])
    assert [epoch.name for epoch in sorted(parts.glob('epoch_*'))] == [f'epoch_00{k}.pth' for k in (1, 2, 3, 4)]
    numbers = [[{k: v for k, v in row.items() if k != 'images_per_s'} for row in read_log(run / 'log.jsonl') if row['kind'] == 'epoch']
               for run in (whole, parts)]
    assert numbers[0] == numbers[1]


def test_what_a_run_leaves(train, capsys):
    folder = train(-1, 2)
    assert {path.name for path in folder.iterdir() if 'events' not in path.name} == {
        'epoch_001.pth', 'epoch_002.pth', 'last.pth', 'best.pth', 'log.jsonl', 'curves.png', 'run.json', '.lock'}
    assert list(folder.glob('events*'))
    assert Image.open(folder / 'curves.png').convert('L').getextrema()[0] < 100
    kinds = [json.loads(line)['kind'] for line in open(folder / 'log.jsonl')]
    assert {'max', 'min', 'epoch'} == set(kinds)
    assert json.loads((folder / 'run.json').read_text())['recipe']['dim'] == 16
    last = read_log(folder / 'log.jsonl')[-1]
    assert 0 <= last['val_auc'] <= 1 and 0 <= last['val_rank1'] <= 1 and last['val_age_r2_id'] < 1
    assert [key for key in last if key.startswith('val_auc_gap_')]
    for file in ('epoch_001.pth', 'best.pth', 'last.pth'):
        assert DALModel.load(folder / file).embed(torch.zeros(2, 3, 112, 96)).shape == (2, 32)
    assert 'optimizer' not in torch.load(folder / 'best.pth', weights_only=True)


def test_validation_on_people_of_the_training_set_counts_the_closed_set(train, entry):
    folder = train(-1, 1, data=entry | {'val_root': entry['train_root']})
    assert 0 <= read_log(folder / 'log.jsonl')[-1]['val_closed_set_accuracy'] <= 1


def test_without_validation_there_is_no_best(train, entry, capsys):
    folder = train(-1, 1, data=entry | {'val_root': None})
    assert not (folder / 'best.pth').exists() and 'no validation set, so no best.pth' in capsys.readouterr().out


def test_max_phases_are_logged(train):
    folder = train(-1, 4, settings=('max_steps=2', 'min_steps=3', 'memory=0.', 'variate=learned', 'split=(0.,0.)', 'game=(0.,0.)'))
    rows = [row for row in read_log(folder / 'log.jsonl') if row['kind'] == 'max']
    assert [row['step'] for row in rows] == [5, 10, 15, 20]
    assert all({'rho_before', 'rho_after', 'var_id', 'var_age', 'dead'} <= row.keys() for row in rows)


def test_a_dead_split_warns_once(train, capsys, monkeypatch):
    monkeypatch.setattr(main.DALModel, 'features', lambda self, images, detach=False: (
        (x := self.backbone(images.float() / 128 - 1).float()), x * 0, x))
    train(-1, 8, settings=('max_steps=2', 'min_steps=3', 'memory=0.', 'variate=learned', 'split=(0.,0.)', 'game=(0.,0.)'))
    out = capsys.readouterr().out
    assert out.count('|ρ| is stuck at 0.0e+00') == 1 and '100% of x_age dead' in out and 'lambda_age' in out


def test_resume_counts_in_total_and_starts_where_there_is_nothing(train, capsys):
    train(-1, 1, '--resume')
    folder = train(-1, 2, '--resume')
    assert len(list(folder.glob('epoch_*'))) == 2
    train(-1, 2, '--resume')
    assert '2 epochs are trained already' in capsys.readouterr().out


def test_weights_alone_and_other_people(train, entry, drawn, tmp_path, capsys):
    first = train(-1, 1, save=tmp_path / 'a')
    again = train(-1, 1, first / 'epoch_001.pth', save=tmp_path / 'a')
    assert (again / 'epoch_002.pth').exists() and 'weights alone' in capsys.readouterr().out
    other = entry | {'train_root': str(drawn / 'val'), 'val_root': str(drawn / 'train'), 'n_cls': 6}
    for file in ('epoch_001.pth', 'last.pth'):
        train(-1, 1, first / file, save=tmp_path / file, data=other, settings=('lr=1e-9',))
        assert 'keeping the backbone, starting anew: the identity head (8 people there, 6 here)' in capsys.readouterr().out
        ours, theirs = weights_of(tmp_path / file / 'epoch_001.pth'), weights_of(first / file)
        name = 'backbone.stages.3.1.units.0.0.weight'
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)
        assert len(ours['identity.weight']) == 6


def test_nothing_is_overwritten(train, tmp_path):
    first = train(-1, 2, save=tmp_path / 'a')
    with pytest.raises(utils.UserError, match='holds a run already .* --resume continues it'):
        train(-1, 2, save=first)
    with pytest.raises(utils.UserError, match='holds epoch_002.pth already'):
        train(-1, 1, first / 'epoch_001.pth', save=first)
    second = train(-1, 1, save=tmp_path / 'b')
    with pytest.raises(utils.UserError, match='holds a run already'):
        train(-1, 1, first / 'last.pth', save=second)


def test_other_people_in_the_same_folder_are_refused(train, entry, drawn):
    train(-1, 1)
    with pytest.raises(utils.UserError, match='holds epoch_001.pth already'):
        train(-1, 2, '--resume', data=entry | {'train_root': str(drawn / 'val'), 'val_root': None, 'n_cls': 6})


def test_best_is_not_forgotten_by_weights_alone(train):
    folder = train(-1, 2)
    state = torch.load(folder / 'epoch_002.pth', weights_only=True)
    assert state['best'] == torch.load(folder / 'last.pth', weights_only=True)['best'] <= 1
    save_checkpoint(state | {'best': 2.}, folder / 'epoch_002.pth')
    kept = (folder / 'best.pth').read_bytes()
    train(-1, 1, folder / 'epoch_002.pth')
    assert (folder / 'epoch_003.pth').exists() and (folder / 'best.pth').read_bytes() == kept


@pytest.mark.parametrize('setting, message', [('split=(.3,)', 'split is'), ('game=(.5,.2)', 'game is'), ('clip=0.', 'clip is'),
                                              ('layers=()', 'must name the same stages'), ('save_every=-1', 'save_every is')])
def test_recipe_values_that_can_not_be(train, setting, message):
    with pytest.raises(utils.UserError, match=message):
        train(-1, 1, settings=(setting,))


def test_other_architectures_are_refused(train, tmp_path):
    first = train(-1, 1)
    with pytest.raises(utils.UserError, match="its network is not the one .* 'dim': 16"):
        train(-1, 1, first / 'last.pth', save=tmp_path / 'b', settings=('dim=8',))


def test_a_loss_that_is_not_finite_ends_the_run(train, tmp_path):
    with pytest.raises(utils.UserError, match='the loss is not finite.*lower --lr'):
        train(-1, 3, settings=('lr=4e9', 'clip=4e9', 'warmup=0.'))
    report = json.loads((tmp_path / 'run' / 'nan.json').read_text())
    assert None in report['losses'].values() and 0 < report['step'] < 5 and len(report['files']) == 8
    assert torch.load(tmp_path / 'run' / 'last.pth', weights_only=True)['step'] == 0


@pytest.mark.parametrize('change, message', [({'n_cls': 82}, "'n_cls' is 82, but .* has 8 identities: set 'n_cls': 8"),
                                             ({'pos': 7}, 'has no position 7'), ({'train_root': 'nowhere'}, 'nowhere: No such file'),
                                             ({'pat': '('}, 'no regular expression')])
def test_bad_data_is_said_before_training(train, entry, change, message):
    with pytest.raises(DataError, match=message) as error:
        train(-1, 1, data=entry | change)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('line, message', [((99, 1), 'ctx 99'), ((-1, 0), 'epochs is 0'), ((-1, 1, 'gone.pth'), 'gone.pth: no such file'),
                                           ((-1, 1, '--batch-size', 1), 'batch_size is 1'), ((-1, 1, 'a', '--resume', 'b'), 'either weights or --resume')])
def test_bad_command_lines(train, line, message):
    with pytest.raises(utils.UserError, match=message):
        train(*line)


@pytest.fixture
def copy(tmp_path, drawn):
    """A copy of the program that a user may edit, and faces at the place its README example names."""
    for file in ROOT.glob('*.py'):
        shutil.copy(file, tmp_path)
    for folder in ('evaluation', 'storage', 'synthesis', 'training'):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    return tmp_path


def python(folder, *line, **options):
    return subprocess.run([sys.executable, *map(str, line)], cwd=folder, capture_output=True, text=True, **options)


def test_the_predecessors_example_word_for_word(copy, drawn):
    """A dict added to meta.py as its README has it, `dataset` and `save` edited, the three-word command; then the same with weights."""
    shutil.copytree(drawn, copy / 'your_dataset_name')
    with open(copy / 'meta.py', 'a') as file:
        file.write("""
your_dataset_name = {
    'train_root': '%s/your_dataset_name/train',      # root dir for training set
    'val_root': '%s/your_dataset_name/val',          # root dir for validation set (optional, set to None if not available).
    'pat': '_|\\.',                                      # pattern for re.split(), which split 000_12.jpg to [000, 12, jpg]
    'pos': 1,                                           # index for `[age]` after split
    'n_cls': 8                                         # number of classes
}
""" % (copy, copy))
    text = (copy / 'main.py').read_text()
    text = text.replace('dataset = meta.demo', 'from meta import your_dataset_name\ndataset = your_dataset_name').replace("save = 'runs/demo'", "save = 'weights'")
    (copy / 'main.py').write_text(text)
    text = (copy / 'training/recipe.py').read_text()
    for before, after in (('batch_size: int = 64', 'batch_size: int = 8'),  # 40 faces
                          ('(3, 4, 10, 3)', '(0, 0, 0, 1)'),  # CI's patience
                          ('(64, 128, 256, 512)', '(4, 8, 8, 16)')):
        assert text.count(before) == 1
        text = text.replace(before, after)
    (copy / 'training/recipe.py').write_text(text)
    first = python(copy, 'main.py', '-1', '1')
    assert first.returncode == 0, first.stderr
    assert 'your_dataset_name: 40 faces of 8 people' in first.stdout
    second = python(copy, 'main.py', '-1', '1', 'weights/last.pth')
    assert second.returncode == 0, second.stderr
    assert (copy / 'weights' / 'epoch_002.pth').exists()


def test_help_and_errors_of_the_command_line(copy):
    out = python(copy, 'main.py', '-h').stdout
    assert all(flag in out for flag in ('ctx', 'epochs', 'weights', '--dataset', '--save', '--resume', '--batch-size', '--lr', '--workers', '--seed'))
    wrong = python(copy, 'main.py', '-1', '1', '--dataset', 'cacd')
    assert wrong.returncode == 1 and wrong.stderr.startswith('error: --dataset cacd: meta.py has demo, fgnet') and wrong.stderr.count('\n') == 1
    gone = python(copy, 'main.py', '-1', '1', '--dataset', 'agedb')
    assert gone.returncode == 1 and re.fullmatch(r'error: data/agedb/train: No such file or directory: expected .*\n', gone.stderr)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(copy, drawn, tmp_path, number):
    (copy / 'meta.py').write_text((copy / 'meta.py').read_text().replace('data/demo', str(drawn)).replace("'n_cls': 400", "'n_cls': 8"))
    line = ['main.py', '-1', '8', '--resume', '--set', *TINY]
    process = subprocess.Popen([sys.executable, *line], cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (copy / 'runs/demo/epoch_002.pth').exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and f'error: {number.name} after step' in error
    step = torch.load(copy / 'runs/demo/last.pth', weights_only=True)['step']
    assert 10 <= step < 40
    assert python(copy, *line).returncode == 0
    whole = python(copy, *line[:3], '--save', 'whole', *line[4:])
    assert whole.returncode == 0, whole.stderr
    assert same(weights_of(copy / 'whole/last.pth'), weights_of(copy / 'runs/demo/last.pth'))


def test_any_module_stands_in_by_one_line(copy, drawn):
    """A torchvision ResNet, by changing the one line of main.py."""
    (copy / 'meta.py').write_text((copy / 'meta.py').read_text().replace('data/demo', str(drawn)).replace("'n_cls': 400", "'n_cls': 8"))
    text = (copy / 'main.py').read_text()
    line = 'return Backbone(recipe.layers, recipe.widths, recipe.dim)'
    assert text.count(line) == 1
    (copy / 'main.py').write_text(text.replace(line, 'import torchvision; return torchvision.models.resnet18(num_classes=40)'))
    result = python(copy, 'main.py', '-1', '1', '--batch-size', '8')
    assert result.returncode == 0, result.stderr
    assert weights_of(copy / 'runs/demo/last.pth')['identity.weight'].shape == (8, 40)


def test_the_demo_makes_its_own_faces(copy):
    (copy / 'meta.py').write_text((copy / 'meta.py').read_text().replace("'n_cls': 400", "'n_cls': 4"))
    text = (copy / 'training/command.py').read_text()
    assert text.count('val_people=100') == 1
    (copy / 'training/command.py').write_text(text.replace('val_people=100', 'val_people=3'))
    result = python(copy, 'main.py', '-1', '1', '--set', *TINY)
    assert result.returncode == 0, result.stderr
    assert len(os.listdir(copy / 'data/demo/train')) == 4 and (copy / 'runs/demo/best.pth').exists()
