"""What several test files share: the tiny recipe, the drawn data set, a run of a program."""

import contextlib
import csv
import functools
import io
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / 'benchmarks'))

from measuring import iterate  # noqa: E402, F401

from utils import DataError, UserError  # noqa: E402


def pytest_runtest_setup(item):
    if item.get_closest_marker('gpu') and not torch.cuda.is_available():
        pytest.skip('no GPU here: benchmarks/gpu.py runs it where there is one')


TINY = ['layers=(0,0,0,1)', 'widths=(4,8,8,16)', 'dim=16', 'batch_size=8']
# the paper's alternation from the first step on: of five steps the last two are the adversary's
PHASES = ('max_steps=2', 'min_steps=3', 'memory=0.', 'variate=learned')
PHASES += ('split=(0.,0.)', 'game=(0.,0.)', 'read_age=0.')


def tiny(**values):
    """The recipe of `--recipe small --set TINY`, with other values."""
    from training.recipe import small

    return replace(small.override(pair.split('=') for pair in TINY), **values)


def python(folder, *line, text=True, **options):
    """`python3 line…` in `folder`, awaited: its exit status and what it wrote."""
    line = [sys.executable, *map(str, line)]
    return subprocess.run(line, cwd=folder, capture_output=True, text=text, **options)


def execute(tool, *line):
    """What the command line does, in this process."""
    return tool.run(tool.arguments([str(word) for word in line]))


def noise(seed=0, width=112, height=112, kind='JPEG'):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def unit(vectors):
    """Each row of (n, dim) by its length."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_faces(count, width=96, seed=0):
    """(count, 3, 112, width), uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 112, width), dtype=torch.uint8, generator=generator)


def batch(seed=0):
    """Images, labels and ages of eight faces of four people."""
    return random_faces(8, seed=seed), torch.arange(8) % 4, torch.arange(8) * 9.0


def snapshot(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(before, after):
    """The names of what differs between a state dict and another, or what a module has now."""
    after = after if isinstance(after, dict) else after.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


class Hostile:
    def __reduce__(self):
        return os.system, ('echo this ran',)


def tiny_model(seed=0, people=3):
    from model import Backbone, DALModel

    torch.manual_seed(seed)
    return DALModel(Backbone((0, 0, 0, 1), (4, 8, 8, 16), 16), people)


def new_training(recipe, people=8):
    import main
    import meta

    names = [f'p{number:05d}' for number in range(people)]
    return main.Training(recipe, names, meta.age_cutoffs, torch.device('cpu'))


def save_weights(model, path, **others):
    """A weights file of the model as a training leaves one, but for `others`; its path."""
    state = {'model': model.state_dict(), 'backbone': model.backbone.config, 'epoch': 1}
    people = [f'p{number}' for number in range(len(model.identity.weight))]
    state |= {'classes': people, 'age_cutoffs': model.age.cutoffs.tolist()}
    torch.save(state | others, path)
    return path


def refused(match, call, *line, error=(UserError, DataError), **options):
    """That call(*line, **options) ends in a message of one line to the user, which it returns."""
    with pytest.raises(error, match=match) as caught:
        call(*line, **options)
    assert '\n' not in str(caught.value)
    return str(caught.value)


invalid = functools.partial(refused, error=ValueError)


@contextlib.contextmanager
def serving(app, host='127.0.0.1'):
    """The port on which a server of the page listens, as verify.py has it."""
    from verification import service

    running = service.create_server(app, host, 0)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    try:
        yield running.effective_port
    finally:
        running.close()
        thread.join(10)


def command_line(save, *line, settings=()):
    """sys.argv of `main.py line…` on the dict meta.here, with a tiny network."""
    first = ['main.py', '--recipe', 'small', *map(str, line)]
    return [*first, '--dataset', 'here', '--save', str(save), '--set', *TINY, *settings]


def state_dict_of(file):
    return torch.load(file, weights_only=True)['model']


def same(a, b):
    """Whether two states are equal to the last bit, at every depth."""
    if torch.is_tensor(a):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def listed(root, width=96):
    """The Faces below a folder, of a list or in shards, of which names tell the age."""
    from dataset import Faces

    return Faces(root, r'_|\.', 1, width)


def pixels_of(faces):
    """(n, 112, 96 or 112, 3) uint8: every face."""
    return faces.__getitems__(list(range(len(faces))))[0].permute(0, 2, 3, 1).numpy()


def csv_rows(path):
    with open(path, newline='', encoding='utf-8', errors='surrogateescape') as file:
        return list(csv.DictReader(file))


def log_rows(save):
    """The rows of the log of a run, without its speed."""
    from training.log import read_log

    rows = read_log(save / 'log.jsonl')
    return [{key: row[key] for key in row if key != 'images_per_s'} for row in rows]


@pytest.fixture(scope='session')
def drawn(tmp_path_factory):
    """A data set of drawn faces: 8 people of 5 images to train on, 6 others of 6 to validate."""
    from synthesis import drawing

    root = tmp_path_factory.mktemp('faces') / 'drawn'
    drawing.draw_set(root, people=8, val_people=6, images=5, val_images=6)
    return root


@pytest.fixture(scope='session')
def weights(drawn, tmp_path_factory):
    """A weights file of a tiny network after no step at all, with its validation on `drawn`."""
    import main
    import meta
    from dataset import Faces, evaluation_loader
    from evaluation.evidence import people_report
    from evaluation.metrics import decision
    from recognition.embedding import extract
    from recognition.weights import save_checkpoint
    from training.resume import weights_of

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
def undecided(weights, tmp_path_factory):
    state = torch.load(weights)
    del state['decision']
    path = tmp_path_factory.mktemp('undecided') / 'old.pth'
    torch.save(state, path)
    return path


@pytest.fixture
def ask(capsys):
    """Runs verify.py in this process: its exit status, and what it prints."""
    import verify

    def run(*line):
        return execute(verify, *line), capsys.readouterr().out

    return run


@pytest.fixture
def images_read(monkeypatch):
    """The paths of the images in which verify.py looks for faces, as it does."""
    from verification import portraits

    names, of = [], portraits.open_file
    monkeypatch.setattr(
        portraits, 'open_file', lambda path, name: names.append(name) or of(path, name)
    )
    return names


@pytest.fixture(scope='session')
def matcher(weights):
    import verify

    return verify.matcher(verify.arguments([str(weights), '--serve']))


@pytest.fixture(scope='session')
def faces(drawn):
    """The validation images of `drawn`, sorted."""
    return sorted((drawn / 'val').rglob('*.jpg'))


@pytest.fixture(scope='session')
def archive(matcher, drawn):
    """The Index of the validation images of `drawn`, in memory."""
    from verification.enrolment import read_folder

    return read_folder(matcher, str(drawn / 'val'))


@pytest.fixture(scope='session')
def browser():
    """Chromium, if it and its driver are installed."""
    selenium = pytest.importorskip('selenium.webdriver')
    chromium = shutil.which('chromium') or shutil.which('google-chrome')
    driver = shutil.which('chromedriver')
    if not chromium or not driver:
        pytest.skip('no Chromium with its chromedriver here')
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-dev-shm-usage'):
        options.add_argument(f'--{flag}')
    options.add_argument('--window-size=900,1200')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    browser = selenium.Chrome(options, selenium.ChromeService(driver))
    browser.set_page_load_timeout(120)
    yield browser
    browser.quit()


@pytest.fixture(scope='session')
def entry(drawn):
    roots = {'train_root': str(drawn / 'train'), 'val_root': str(drawn / 'val')}
    return roots | {'pat': r'_|\.', 'pos': 1, 'n_cls': 8}


@pytest.fixture(scope='session')
def others(entry):
    """The meta.py dict of other people to train on: the six that validate in `drawn`."""
    return entry | {'train_root': entry['val_root'], 'val_root': None, 'n_cls': 6}


@pytest.fixture
def train(entry, tmp_path, monkeypatch):
    """Runs main.py on `entry`, with a tiny network: train(-1, 2, '--resume') is where it saved."""
    import main
    import meta

    def run(*line, save=tmp_path / 'run', settings=(), data=None):
        monkeypatch.setattr(meta, 'here', entry if data is None else data, raising=False)
        monkeypatch.setattr(sys, 'argv', command_line(save, *line, settings=settings))
        main.run(main.arguments())
        return Path(save)

    return run


@pytest.fixture
def first(train, others, tmp_path):
    """A backbone of ours, trained on other drawn people."""
    return train(-1, 1, save=tmp_path / 'first', data=others) / 'epoch_001.pth'


@pytest.fixture(scope='session')
def one_rank(tmp_path_factory):
    """What one process computes on whole batches, by whether it computes in float64."""
    from processes import KINDS, run_steps

    folder = tmp_path_factory.mktemp('one')
    return {double: run_steps(folder / str(double), 0, KINDS, double) for double in (False, True)}


@pytest.fixture(scope='session')
def undisturbed(entry, tmp_path_factory):
    """The folder of two ranks that train for three epochs, and that nothing disturbs."""
    from processes import job

    folder = tmp_path_factory.mktemp('undisturbed') / 'run'
    statuses, said = job(2, entry, folder, 3)
    assert statuses == [0, 0], said
    assert 'on 2 × cpu' in said[0] and said[0].count('\nepoch ') == 3 and not said[1]
    return folder
