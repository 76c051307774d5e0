"""Training of a backbone's last blocks on kept activations: the same features, run and files."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import log_rows, moved, new_training, random_faces, refused, state_dict_of, tiny

import backbones
import utils
from dataset import Faces
from model import Backbone, normalize
from training import last_blocks

FINETUNE = ('--recipe', 'finetune')


BLOCKS = {'iresnet18': 8, 'adaface_ir18': 8, 'mobilefacenet': 15, 'sface': 13, 'dal': 4}
BLOCKS['inception_resnet_v1'] = 23


@pytest.mark.parametrize('name, blocks', BLOCKS.items())
@torch.no_grad()
def test_the_two_sides_of_a_split_are_the_network(name, blocks):
    if name == 'dal':
        backbone = Backbone((0, 0, 0, 0), (4, 8, 8, 16), 16).eval()
        x = normalize(random_faces(2, 112)[..., 8:104])
    else:
        backbone = backbones.build(name).eval()
        x = backbone.prepare(random_faces(2, 112))
    wanted = backbone(random_faces(2, 112)) if name != 'dal' else backbone(x)
    for count in (1, 2, blocks):
        result = x
        for side in last_blocks.sides(backbone, count):
            for step in side:
                result = step(result)
        torch.testing.assert_close(result, wanted)
    refused(f'the backbone has {blocks} blocks', last_blocks.sides, backbone, blocks + 1)


@pytest.fixture
def set_of_mine(drawn, entry, tmp_path):
    """The drawn faces where files may be put beside them."""
    shutil.copytree(drawn / 'train', tmp_path / 'set' / 'train')
    return entry | {'train_root': str(tmp_path / 'set' / 'train')}


def activations(entry):
    return list(Path(entry['train_root']).parent.glob('.train.first-blocks.*.npy'))


def test_a_run_of_the_last_block(train, first, set_of_mine, tmp_path, capsys):
    """It moves that block alone; resumed, it is the run, whatever became of the activations."""
    line = ('--init', first, *FINETUNE, '--horizon', 2)
    settings = dict(settings=('last_blocks=1',), data=set_of_mine)
    whole = train(-1, 2, *line, save=tmp_path / 'whole', **settings)
    (kept,) = activations(set_of_mine)
    assert 'activations of the first blocks: 0.00 GiB, kept beside' in capsys.readouterr().out
    before, after = state_dict_of(first), state_dict_of(whole / 'last.pth')
    backbone = {name: before[name] for name in before if name.startswith('backbone.')}
    changed = moved(backbone, after)
    last = 'backbone.stages.3.1', 'backbone.project'
    assert changed and all(name.startswith(last) for name in changed)
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
        assert not moved(after, state_dict_of(again / 'last.pth'))
        assert log_rows(whole) == log_rows(again)
        assert activations(set_of_mine) == [kept] and kept.read_bytes() == good


def test_a_step_on_activations_is_the_step_on_images(drawn):
    """But for activations of 16 bits: the features of faces and of their mirrors."""
    training = new_training(tiny(last_blocks=1, precision='float32'))
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
    trained = [p for group in training.optimizer.param_groups for p in group['params']]
    assert frozen and not {id(p) for p in frozen} & {id(p) for p in trained}


def test_no_blocks_no_start_and_no_room_are_said(train, first, set_of_mine, monkeypatch):
    settings = dict(settings=('last_blocks=1',), data=set_of_mine)
    refused('the others must know faces', train, -1, 1, *FINETUNE, **settings)
    full = shutil._ntuple_diskusage(1, 1, 0)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: full)
    with pytest.raises(utils.UserError, match='too little free space for .* of activations'):
        train(-1, 1, '--init', first, *FINETUNE, '--resume', **settings)
    folder = Path(set_of_mine['train_root']).parent
    assert not [name for name in os.listdir(folder) if 'tmp' in name]
    refused('resnet18 can only be trained whole', last_blocks.sides, backbones.build('resnet18'), 2)
    refused('of your own needs a method sections', last_blocks.sides, torch.nn.Identity(), 2)
