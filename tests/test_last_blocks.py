"""Training of a backbone's last blocks on kept activations: the same features, run and files."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import log_rows, tiny

import backbones
import main
import meta
import utils
from dataset import Faces
from model import Backbone, normalize
from training import last_blocks

FINETUNE = ('--recipe', 'finetune')


def faces(count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 112, 112), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    'name, blocks',
    [('iresnet18', 8), ('adaface_ir18', 8), ('mobilefacenet', 15), ('sface', 13), ('dal', 4)]
    + [('inception_resnet_v1', 23)],
)
@torch.no_grad()
def test_the_two_sides_of_a_split_are_the_network(name, blocks):
    if name == 'dal':
        backbone = Backbone((0, 0, 0, 0), (4, 8, 8, 16), 16).eval()
        x = normalize(faces()[..., 8:104])
    else:
        backbone = backbones.build(name).eval()
        x = backbone.prepare(faces())
    wanted = backbone(faces()) if name != 'dal' else backbone(x)
    for count in (1, 2, blocks):
        result = x
        for side in last_blocks.sides(backbone, count):
            for step in side:
                result = step(result)
        torch.testing.assert_close(result, wanted)
    with pytest.raises(utils.UserError, match=f'the backbone has {blocks} blocks'):
        last_blocks.sides(backbone, blocks + 1)


def test_a_backbone_without_blocks_is_said():
    with pytest.raises(utils.UserError, match='resnet18 can only be trained whole'):
        last_blocks.sides(backbones.build('resnet18'), 2)
    with pytest.raises(utils.UserError, match='of your own needs a method sections'):
        last_blocks.sides(torch.nn.Identity(), 2)


@pytest.fixture
def set_of_mine(drawn, entry, tmp_path):
    """The drawn faces where files may be put beside them."""
    shutil.copytree(drawn / 'train', tmp_path / 'set' / 'train')
    return entry | {'train_root': str(tmp_path / 'set' / 'train')}


@pytest.fixture
def first(train, others, tmp_path):
    """A backbone of ours, trained on other drawn people."""
    return train(-1, 1, save=tmp_path / 'first', data=others) / 'epoch_001.pth'


def activations(entry):
    return list(Path(entry['train_root']).parent.glob('.train.first-blocks.*.npy'))


def model_of(folder, name='last.pth'):
    return torch.load(folder / name, weights_only=True)['model']


def moved(before, after):
    return {name for name in {*before} & {*after} if not torch.equal(before[name], after[name])}


def test_a_run_of_the_last_block(train, first, set_of_mine, tmp_path, capsys):
    """It moves that block alone; resumed in the middle it is the run, whether the file of
    activations is there, cut, or changed; and that file is kept for the next."""
    line = ('--init', first, *FINETUNE, '--horizon', 2)
    settings = dict(settings=('last_blocks=1',), data=set_of_mine)
    whole = train(-1, 2, *line, save=tmp_path / 'whole', **settings)
    (kept,) = activations(set_of_mine)
    assert 'activations of the first blocks: 0.00 GiB, kept beside' in capsys.readouterr().out
    before, after = model_of(first.parent, first.name), model_of(whole)
    changed = {name for name in moved(before, after) if name.startswith('backbone.')}
    assert changed and all(
        name.startswith(('backbone.stages.3.1', 'backbone.project')) for name in changed
    )
    good = kept.read_bytes()
    parts = train(-1, 1, *line, save=tmp_path / 'parts', **settings)
    assert 'activations of' not in capsys.readouterr().out, 'those of the first run'
    middle = len(good) // 2
    for damaged in (good[:-50], good[:middle] + bytes(64) + good[middle + 64 :]):
        kept.write_bytes(damaged)
        shutil.rmtree(tmp_path / 'again', ignore_errors=True)
        shutil.copytree(parts, tmp_path / 'again')
        again = train(-1, 2, '--resume', *line, save=tmp_path / 'again', **settings)
        assert 'activations of' in capsys.readouterr().out
        assert not moved(after, model_of(again)) and log_rows(whole) == log_rows(again)
        assert activations(set_of_mine) == [kept] and kept.read_bytes() == good


def test_a_step_on_activations_is_the_step_on_images(drawn):
    """But for activations of 16 bits: the features of faces and of their mirrors."""
    training = main.Training(
        tiny(last_blocks=1, precision='float32'),
        list('abcdefgh'),
        meta.age_cutoffs,
        torch.device('cpu'),
    )
    training.model.eval()
    faces = Faces(drawn / 'train', r'_|\.', 1)
    images = faces.__getitems__([0, 1, 2])[0]
    first = last_blocks.sides(training.model.backbone, 1)[0]
    with torch.no_grad():
        rows = last_blocks._activations(training, first, images)
    kept = torch.from_numpy(rows).permute(0, 3, 1, 2)
    with torch.no_grad():
        for one, other in ((images, kept), (images.flip(-1), kept.flip(-1))):
            wanted, found = (training.model.embed_mixed(x) for x in (one, other))
            torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2)
    frozen = [p for p in training.model.backbone.parameters() if not p.requires_grad]
    assert frozen and not {id(p) for p in frozen} & {
        id(p) for group in training.optimizer.param_groups for p in group['params']
    }


def test_no_start_and_no_room_are_said(train, first, set_of_mine, monkeypatch):
    settings = dict(settings=('last_blocks=1',), data=set_of_mine)
    with pytest.raises(utils.UserError, match='the others must know faces'):
        train(-1, 1, *FINETUNE, **settings)
    full = shutil._ntuple_diskusage(1, 1, 0)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: full)
    with pytest.raises(utils.UserError, match='too little free space for .* of activations'):
        train(-1, 1, '--init', first, *FINETUNE, '--resume', **settings)
    assert not [
        name for name in os.listdir(Path(set_of_mine['train_root']).parent) if 'tmp' in name
    ]
