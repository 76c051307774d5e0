import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

TINY = ['layers=(0,0,0,1)', 'widths=(4,8,8,16)', 'dim=16', 'batch_size=8']


def tiny(**values):
    """The recipe of `--recipe small --set TINY`, with other values."""
    from training.recipe import small
    return replace(small.override(pair.split('=') for pair in TINY), **values)


@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
    """A small data set of drawn faces: 8 people of 5 images to train on, 6 others of 6 to validate."""
    import synthetic
    root = tmp_path_factory.mktemp('faces') / 'drawn'
    synthetic.make(root, people=8, val_people=6, images=5, val_images=6, progress=False)
    return root


@pytest.fixture(scope='session')
def weights(drawn, tmp_path_factory):
    """A weights file of a tiny network that saw `drawn` for no step at all, its validation included."""
    import torch

    import main
    import meta
    from dataset import Faces, evaluation_loader
    from evaluation.extraction import extract
    from evaluation.metrics import decision, people_report
    from training.checkpoint import save_checkpoint, weights_of
    people = Faces(drawn / 'train', r'_|\.', 1).classes
    training = main.Training(tiny(), people, meta.age_cutoffs, torch.device('cpu'))
    val = Faces(drawn / 'val', r'_|\.', 1)
    embeddings = extract(training.model, evaluation_loader(val), 'cpu', keep=('embedding',))
    report = people_report(embeddings['embedding'], val.labels, val.ages, intervals=False)
    training.decision = decision(report)
    path = tmp_path_factory.mktemp('weights') / 'tiny.pth'
    save_checkpoint(weights_of(training), path)
    return path


@pytest.fixture(scope='session')
def matcher(weights):
    """The Matcher of `weights`, as verify.py makes it."""
    import verify
    return verify.matcher(verify.arguments([str(weights), '--serve']))


@pytest.fixture
def entry(drawn):
    """The meta.py dict of `drawn`."""
    return {'train_root': str(drawn / 'train'), 'val_root': str(drawn / 'val'), 'pat': r'_|\.',
            'pos': 1, 'n_cls': 8}


@pytest.fixture
def train(entry, tmp_path, monkeypatch):
    """Runs main.py in this process on `entry`: train('-1', '2', '--save', …) with a tiny network; returns the save folder."""
    import main
    import meta

    def run(*line, save=tmp_path / 'run', settings=(), data=None):
        monkeypatch.setattr(meta, 'here', entry if data is None else data, raising=False)
        monkeypatch.setattr(sys, 'argv', ['main.py', *map(str, line), '--dataset', 'here', '--save', str(save), '--recipe', 'small',
                                          '--set', *TINY, *settings])
        main.run(main.arguments())
        return Path(save)
    return run
