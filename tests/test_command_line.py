"""The command line as a user types it, in a copy of the program that the user edits."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, TINY, python, same, state_dict_of


@pytest.fixture
def copy(tmp_path):
    """A copy of the program."""
    for file in ROOT.glob('*.py'):
        shutil.copy(file, tmp_path)
    for file in ROOT.glob('*/__init__.py'):
        shutil.copytree(
            file.parent, tmp_path / file.parent.name, ignore=shutil.ignore_patterns('__pycache__')
        )
    return tmp_path


def edit(file, *changes):
    """Each of `changes` is what stands in the file once, and what takes its place."""
    text = file.read_text()
    for before, after in changes:
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    file.write_text(text)


def append(file, text):
    with open(file, 'a') as stream:
        stream.write(text)


@pytest.fixture
def copy_on_drawn(copy, drawn):
    """A copy whose default data set is `drawn`."""
    append(
        copy / 'meta.py',
        f"demo |= {{'train_root': '{drawn}/train', 'val_root': '{drawn}/val', 'n_cls': 8}}\n",
    )
    return copy


def test_the_predecessors_example_word_for_word(copy, drawn):
    """A dict added to meta.py as its README has it, `dataset` and `save` edited, the three-word
    command; then the same with weights."""
    shutil.copytree(drawn, copy / 'your_dataset_name')
    append(
        copy / 'meta.py',
        f"""
your_dataset_name = {{
    'train_root': '{copy}/your_dataset_name/train',      # root dir for training set
    'val_root': '{copy}/your_dataset_name/val',          # root dir for validation set (optional, \
set to None if not available).
    'pat': '_|\\.',                                      # pattern for re.split(), which split \
000_12.jpg to [000, 12, jpg]
    'pos': 1,                                           # index for `[age]` after split
    'n_cls': 8                                         # number of classes
}}
""",
    )
    edit(
        copy / 'main.py',
        ("save = 'runs/demo'", "save = 'weights'"),
        ('dataset = meta.demo', 'from meta import your_dataset_name\ndataset = your_dataset_name'),
    )
    edit(
        copy / 'training/recipe.py',
        ('batch_size: int = 64', 'batch_size: int = 8'),  # 40 faces
        ('(3, 4, 10, 3)', '(0, 0, 0, 1)'),  # a small network: this is about the command line
        ('(64, 128, 256, 512)', '(4, 8, 8, 16)'),
    )
    first = python(copy, 'main.py', '-1', '1')
    assert first.returncode == 0, first.stderr
    assert 'your_dataset_name: 40 faces of 8 people' in first.stdout
    second = python(copy, 'main.py', '-1', '1', 'weights/last.pth')
    assert second.returncode == 0, second.stderr
    assert (copy / 'weights' / 'epoch_002.pth').exists()


def test_help_and_errors_of_the_command_line(copy):
    out = python(copy, 'main.py', '-h').stdout
    assert all(
        flag in out
        for flag in (
            'ctx',
            'epochs',
            'weights',
            '--dataset',
            '--save',
            '--resume',
            '--batch-size',
            '--lr',
            '--workers',
            '--seed',
        )
    )
    wrong = python(copy, 'main.py', '-1', '1', '--dataset', 'cacd')
    assert wrong.returncode == 1 and wrong.stderr.count('\n') == 1
    assert wrong.stderr.startswith('error: --dataset cacd: meta.py has demo, fgnet')
    gone = python(copy, 'main.py', '-1', '1', '--dataset', 'agedb')
    message = (
        r'error: data/agedb/train: No such file or directory, seen from .*: '
        r'expected .*\n'
    )
    assert gone.returncode == 1 and re.fullmatch(message, gone.stderr)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(copy_on_drawn, number):
    copy, line = copy_on_drawn, ['main.py', '-1', '8', '--resume', '--set', *TINY]
    process = subprocess.Popen(
        [sys.executable, *line], cwd=copy, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (copy / 'runs/demo/epoch_002.pth').exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1 and f'error: {number.name} after step' in error
    step = torch.load(copy / 'runs/demo/last.pth', weights_only=True)['step']
    assert 10 <= step < 40
    assert python(copy, *line).returncode == 0
    whole = python(copy, *line[:3], '--save', 'whole', *line[4:])
    assert whole.returncode == 0, whole.stderr
    assert same(state_dict_of(copy / 'whole/last.pth'), state_dict_of(copy / 'runs/demo/last.pth'))


def test_any_module_stands_in_by_one_line(copy_on_drawn):
    """A torchvision ResNet, by changing the one line of main.py."""
    edit(
        copy_on_drawn / 'backbones/own.py',
        (
            'return Backbone(recipe.layers, recipe.widths, recipe.dim)',
            'import torchvision; return torchvision.models.resnet18(num_classes=40)',
        ),
    )
    result = python(copy_on_drawn, 'main.py', '-1', '1', '--batch-size', '8')
    assert result.returncode == 0, result.stderr
    weights = state_dict_of(copy_on_drawn / 'runs/demo/last.pth')
    assert weights['identity.weight'].shape == (8, 40)


def test_the_demo_makes_its_own_faces(copy):
    append(copy / 'meta.py', "demo |= {'n_cls': 4}\n")
    edit(copy / 'training/command.py', ('val_people=100', 'val_people=3'))
    result = python(copy, 'main.py', '-1', '1', '--set', *TINY)
    assert result.returncode == 0, result.stderr
    assert len(os.listdir(copy / 'data/demo/train')) == 4 and (copy / 'runs/demo/best.pth').exists()
