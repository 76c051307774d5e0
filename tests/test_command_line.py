"""The command line as a user types it, in a copy of the program that the user edits."""

import os
import re
import shutil

import pytest
from conftest import ROOT, TINY, python


@pytest.fixture
def copy(tmp_path):
    for file in ROOT.glob('*.py'):
        shutil.copy(file, tmp_path)
    compiled = shutil.ignore_patterns('__pycache__')
    for file in ROOT.glob('*/__init__.py'):
        shutil.copytree(file.parent, tmp_path / file.parent.name, ignore=compiled)
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


PREDECESSORS = """
your_dataset_name = {{
    'train_root': '{root}/train',      # root dir for training set
    'val_root': '{root}/val',          # root dir for validation set (optional, \
set to None if not available).
    'pat': '_|\\.',                                      # pattern for re.split(), which split \
000_12.jpg to [000, 12, jpg]
    'pos': 1,                                           # index for `[age]` after split
    'n_cls': 8                                         # number of classes
}}
"""


def test_the_predecessors_example_word_for_word(copy, drawn):
    """A dict added to meta.py as its README has it; the three-word command; that with weights."""
    shutil.copytree(drawn, copy / 'your_dataset_name')
    append(copy / 'meta.py', PREDECESSORS.format(root=copy / 'your_dataset_name'))
    dataset = 'from meta import your_dataset_name\ndataset = your_dataset_name'
    saved = "save = 'runs/demo'", "save = 'weights'"
    edit(copy / 'main.py', saved, ('dataset = meta.demo', dataset))
    # 40 faces, and a small network
    batch = 'batch_size: int = 64', 'batch_size: int = 8'
    network = ('(3, 4, 10, 3)', '(0, 0, 0, 1)'), ('(64, 128, 256, 512)', '(4, 8, 8, 16)')
    edit(copy / 'training/recipe.py', batch, *network)
    first = python(copy, 'main.py', '-1', '1')
    assert first.returncode == 0, first.stderr
    assert 'your_dataset_name: 40 faces of 8 people' in first.stdout
    second = python(copy, 'main.py', '-1', '1', 'weights/last.pth')
    assert second.returncode == 0, second.stderr
    assert (copy / 'weights' / 'epoch_002.pth').exists()


def test_help_errors_and_the_demo_that_makes_its_own_faces(copy):
    out = python(copy, 'main.py', '-h').stdout
    options = 'dataset', 'save', 'resume', 'batch-size', 'lr', 'workers', 'seed'
    words = 'ctx', 'epochs', 'weights', *(f'--{option}' for option in options)
    assert all(word in out for word in words)
    wrong = python(copy, 'main.py', '-1', '1', '--dataset', 'cacd')
    assert wrong.returncode == 1 and wrong.stderr.count('\n') == 1
    assert wrong.stderr.startswith('error: --dataset cacd: meta.py has demo, fgnet')
    gone = python(copy, 'main.py', '-1', '1', '--dataset', 'agedb')
    message = r'error: data/agedb/train: No such file or directory, seen from .*: expected .*\n'
    assert gone.returncode == 1 and re.fullmatch(message, gone.stderr)
    append(copy / 'meta.py', "demo |= {'n_cls': 4}\n")
    edit(copy / 'training/command.py', ('val_people=100', 'val_people=3'))
    result = python(copy, 'main.py', '-1', '1', '--set', *TINY)
    assert result.returncode == 0, result.stderr
    assert len(os.listdir(copy / 'data/demo/train')) == 4 and (copy / 'runs/demo/best.pth').exists()


SMALL = '--people', 1, '--val-people', 1, '--images', 1, '--val-images', 1


def test_targets_that_cannot_be_written_or_exist_are_one_line(tmp_path):
    for line in [('file/x', *SMALL), ('--sheet', 'file/x.png')]:
        (tmp_path / 'file').write_text('mine')
        run = python(tmp_path, ROOT / 'synthetic.py', *line)
        assert run.returncode == 1 and run.stdout == ''
        error = run.stderr.splitlines()[-1]
        assert error.startswith('error: ') and error.endswith('Not a directory')
        assert line[-1 if len(line) == 2 else 0] in error and 'Traceback' not in run.stderr
        assert [path.name for path in tmp_path.iterdir()] == ['file']
    run = python(tmp_path, ROOT / 'synthetic.py', tmp_path, *SMALL)
    assert run.returncode == 1 and run.stderr.startswith(f'error: {tmp_path} exists already')
    assert [path.name for path in tmp_path.iterdir()] == ['file']
    run = python(tmp_path, ROOT / 'synthetic.py', '--sheet', 'x.foo')
    assert run.returncode == 2 and 'x.foo: not the name of a picture' in run.stderr.splitlines()[-1]
