"""Weights, lists and caches from anywhere: whatever they hold, one clear line, and nothing of them
is run."""

import io
import os
import pickle
import random
import time
import zipfile

import numpy as np
import pytest
import torch
from conftest import iterate, tiny
from PIL import Image

import evaluate
import main
import utils
from dataset import Faces
from evaluation import protocols
from evaluation.pair_files import read_bin
from model import Backbone, DALModel
from recognition.embedding import extract_files
from recognition.weights import load_weights
from storage.images import decode
from training import pretrained, resume
from utils import DataError

SECONDS = float(os.environ.get('FAULT_SECONDS', 4))  # of all fuzzing together


class Hostile:
    def __reduce__(self):
        return os.system, ('echo this ran',)


@pytest.fixture(scope='module')
def state(drawn, entry):
    """A state that resumes, and what it was saved by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main.meta, 'here', entry | {'val_root': None}, raising=False)
        training = main.Training(
            tiny(), sorted(os.listdir(drawn / 'train')), main.meta.age_cutoffs, torch.device('cpu')
        )
        training.total_steps = 5
        generator = torch.Generator().manual_seed(0)
        for _ in range(5):
            iterate(
                training,
                torch.randint(0, 256, (8, 3, 112, 96), dtype=torch.uint8, generator=generator),
                torch.arange(8),
                torch.arange(8) * 9.0,
            )
        training.epoch = 1
    training.best = 0.5
    return resume.state_of(training, 5, None)


def said(function, *args):
    """The one line that a refusal says; None where there is nothing to refuse."""
    try:
        function(*args)
    except (utils.UserError, DataError, ValueError) as error:
        assert type(error) in (utils.UserError, DataError, ValueError), repr(error)
        assert str(error) and '\n' not in str(error), repr(error)
        return str(error)


def start(file):
    """What main.py does with a file of weights."""
    training = main.Training(
        tiny(), [f'p{k:05d}' for k in range(8)], main.meta.age_cutoffs, torch.device('cpu')
    )
    resume.start(training, file, True, 5)
    training.total_steps = 100
    iterate(
        training,
        torch.zeros(8, 3, 112, 96, dtype=torch.uint8),
        torch.arange(8),
        torch.arange(8) * 9.0,
    )


READERS = {'main': start, 'load': DALModel.load, 'evaluate': load_weights}


def saved(content, file):
    torch.save(content, file)
    return file


def test_the_state_itself_is_good(state, tmp_path):
    for reader in READERS.values():
        assert said(reader, saved(state, tmp_path / 'w.pth')) is None


@pytest.mark.parametrize('reader', READERS)
def test_truncated_weights(state, tmp_path, reader):
    whole = saved(state, tmp_path / 'w.pth').read_bytes()
    for length in [
        0,
        1,
        2,
        4,
        100,
        *range(0, len(whole), len(whole) // 7),
        len(whole) - 22,
        len(whole) - 1,
    ]:
        (tmp_path / 'w.pth').write_bytes(whole[:length])
        assert 'w.pth' in said(READERS[reader], tmp_path / 'w.pth'), length


def rewritten(whole, file, compression=zipfile.ZIP_STORED, prefix=b''):
    """The archive in `whole`, its entries stored anew, and a last one of zeros."""
    with open(file, 'wb') as raw, zipfile.ZipFile(io.BytesIO(whole)) as source:
        raw.write(prefix)
        with zipfile.ZipFile(raw, 'w', compression) as target:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
            target.writestr(entry.filename + '.more', bytes(2**24 if compression else 8))


@pytest.mark.parametrize('reader', READERS)
def test_weights_that_inflate_are_refused(state, tmp_path, reader):
    file = tmp_path / 'w.pth'
    whole = saved(state, file).read_bytes()
    for change in (
        {'compression': zipfile.ZIP_DEFLATED},
        {'prefix': b'PK\3\4 another archive'},
        {'prefix': pickle.dumps(1)},
    ):
        rewritten(whole, file, **change)
        line = said(READERS[reader], file)
        assert 'w.pth' in line and ('claims' in line or 'no file of torch.save' in line), change
    # the last entry of the directory, whose sizes stand from its byte 20 on
    end = whole.rindex(b'PK\1\2')
    file.write_bytes(whole[: end + 20] + b'\xf0\xff\xff\xef' * 2 + whole[end + 28 :])
    assert 'claims' in said(READERS[reader], file)
    rewritten(whole, file)
    assert said(READERS[reader], file) is None  # so it is not the rewriting that is refused


@pytest.mark.parametrize('reader', READERS)
@pytest.mark.parametrize(
    'change',
    [
        {'model': 5},
        {'model': {}},
        {'model': {'a': 'b'}},
        {'model': {3: torch.zeros(2)}},
        {'backbone': 5},
        {'backbone': {'layers': [1]}},
        {'backbone': {'layers': [10**9], 'widths': [16], 'dim': 16}},
        {'backbone': {'layers': [0, 0, 0, 1], 'widths': [10**7] * 4, 'dim': 16}},
    ],
    ids=str,
)
def test_weights_that_are_none(state, tmp_path, reader, change):
    line = said(READERS[reader], saved(state | change, tmp_path / 'w.pth'))
    if line is None:  # training reads another backbone's arguments for its message alone
        assert reader == 'main' and isinstance(change['backbone'], dict)
    else:
        assert 'w.pth' in line


@pytest.mark.parametrize(
    'change',
    [
        {'classes': 5},
        {'classes': None},
        {'age_cutoffs': 'x'},
        {'epoch': 'x'},
        {'epoch': -1},
        {'step': 'x'},
        {'step': -7},
        {'step': 10**9},
        {'steps_per_epoch': 0},
        {'best': 'x'},
        {'optimizer': None},
        {'optimizer': {'state': {}}, 'step': None},
        {'adversary': {'state': {0: {'exp_avg': torch.zeros(3)}}}},
        {'mapping': {}},
        {'means': {}},
        {'means': 3},
        {'optimizer': {'state': {0: {'momentum_buffer': torch.zeros(2, 2)}}}},
        {'optimizer': {'state': {10**6: {}, 'a': 3}}},
        {'opening': torch.zeros(5)},
    ],
    ids=str,
)
def test_states_of_other_types(state, tmp_path, change):
    assert 'w.pth' in said(start, saved(state | change, tmp_path / 'w.pth'))


@pytest.mark.parametrize('reader', READERS)
def test_weights_of_other_shapes_and_without_keys(state, tmp_path, reader):
    weights = state['model']
    # which torch forgives
    for name in [name for name in weights if not name.endswith('num_batches_tracked')][::7]:
        for other in (
            {key: tensor for key, tensor in weights.items() if key != name},
            weights | {name: weights[name][None, ..., None]},
            weights | {'more': torch.zeros(1)},
        ):
            assert 'w.pth' in said(
                READERS[reader], saved(state | {'model': other}, tmp_path / 'w.pth')
            ), name
    huge = torch.zeros(1).expand(10**9, 16)  # four bytes in the file, 64 GB where it is copied
    assert 'w.pth' in said(
        READERS[reader],
        saved(state | {'model': weights | {'identity.weight': huge}}, tmp_path / 'w.pth'),
    )


def test_a_recipe_in_a_state_is_not_believed(state, tmp_path):
    assert said(start, saved(state | {'recipe': None}, tmp_path / 'w.pth')) is None
    groups = [group | {'lr': 1e9, 'momentum': 7.0} for group in state['optimizer']['param_groups']]
    changed = state | {'optimizer': state['optimizer'] | {'param_groups': groups}}
    recipe = tiny()
    training = main.Training(recipe, state['classes'], main.meta.age_cutoffs, torch.device('cpu'))
    resume.start(training, saved(changed, tmp_path / 'w.pth'), True, 5)
    assert {group['momentum'] for group in training.optimizer.param_groups} == {recipe.momentum}


@pytest.mark.parametrize('reader', READERS)
def test_pickles_run_nothing(state, tmp_path, capfd, reader):
    for content in (pickle.dumps(Hostile()), pickle.dumps({'model': Hostile()}, 2)):
        (tmp_path / 'w.pth').write_bytes(content)
        assert 'w.pth' in said(READERS[reader], tmp_path / 'w.pth')
    assert 'w.pth' in said(READERS[reader], saved(state | {'best': Hostile()}, tmp_path / 'w.pth'))
    assert 'this ran' not in capfd.readouterr().out


@pytest.mark.parametrize(
    'content, what',
    [
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n', 'git lfs pull'),
        (b'\n<!DOCTYPE html><html><title>Sign in</title></html>', 'a web page'),
        (b'<HTML>', 'a web page'),
    ],
)
@pytest.mark.parametrize('reader', ['main', 'evaluate'])
def test_what_is_no_archive_is_said(tmp_path, reader, content, what):
    (tmp_path / 'w.pth').write_bytes(content)
    line = said(READERS[reader], tmp_path / 'w.pth')
    assert what in line and 'w.pth' in line


@pytest.mark.parametrize('reader', ['main', 'evaluate'])
def test_a_cut_download_is_said_to_be(state, tmp_path, reader):
    whole = saved(state, tmp_path / 'w.pth').read_bytes()
    (tmp_path / 'w.pth').write_bytes(whole[:10000])
    assert 'w.pth: cut: its 10000 bytes' in said(READERS[reader], tmp_path / 'w.pth')


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'net.module.'])
def test_names_below_a_prefix(state, tmp_path, prefix):
    weights = {prefix + name: tensor for name, tensor in state['model'].items()}
    model, _ = load_weights(saved(state | {'model': weights}, tmp_path / 'w.pth'))
    assert torch.equal(model.identity.weight, state['model']['identity.weight'])
    line = said(load_weights, saved(weights, tmp_path / 'w.pth'))
    assert 'w.pth: no weights file of this repository (it lacks model' in line


@pytest.mark.parametrize('reader', ['main', 'evaluate'])
@pytest.mark.parametrize('name', ['backbone.project.weight', 'factorization.age.0.bias'])
def test_weights_of_ours_that_are_damaged(state, tmp_path, reader, name):
    """Values that no training made, and bytes that a download lost."""
    weights = state['model'] | {name: torch.full_like(state['model'][name], float('nan'))}
    line = said(READERS[reader], saved(state | {'model': weights}, tmp_path / 'w.pth'))
    assert f'w.pth: its weights are damaged: {name}: ' in line and 'NaN' in line
    assert f'w.pth: its weights are damaged: {name}: NaN' in said(DALModel.load, tmp_path / 'w.pth')
    whole = bytearray(saved(state, tmp_path / 'w.pth').read_bytes())
    lost = state['model'][name].detach().contiguous().numpy().tobytes()
    at = bytes(whole).index(lost)
    whole[at : at + len(lost)] = bytes(len(lost))
    (tmp_path / 'w.pth').write_bytes(whole)
    assert f'w.pth: damaged in {name} (its checksum differs)' in said(
        READERS[reader], tmp_path / 'w.pth'
    )
    with pytest.raises(utils.UserError, match=f'w.pth: damaged in {name}'):
        pretrained.read(str(tmp_path / 'w.pth'), tiny())


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return DALModel(Backbone((0, 0, 0, 1), (4, 8, 8, 16), 16), 4).eval()


@pytest.mark.parametrize(
    'damage',
    [
        lambda data: b'',
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b'junk' * 99,
        lambda data: data[:300] + bytes(60) + data[360:],
        lambda data: pickle.dumps(Hostile()),
    ],
)
def test_damaged_features_are_computed_again(model, drawn, tmp_path, capfd, damage):
    sources = [str(path) for path in sorted((drawn / 'val').rglob('*.jpg'))[:6]]
    first, _ = extract_files(model, sources, 'cpu', cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    again, _ = extract_files(model, sources, 'cpu', cache=tmp_path)
    assert (
        all((first[name] == again[name]).all() for name in first)
        and 'this ran' not in capfd.readouterr().out
    )


@pytest.mark.parametrize(
    'arrays',
    [
        {'embedding': np.zeros((5, 32), np.float32)},
        {'embedding': np.array([Hostile()] * 6, object)},
        {},
    ],
)
def test_features_of_another_form_are_computed_again(model, drawn, tmp_path, capfd, arrays):
    sources = [str(path) for path in sorted((drawn / 'val').rglob('*.jpg'))[:6]]
    extract_files(model, sources, 'cpu', cache=tmp_path, keep=('embedding',))
    (file,) = tmp_path.iterdir()
    np.savez(file, **arrays)
    features, _ = extract_files(model, sources, 'cpu', cache=tmp_path, keep=('embedding',))
    assert features['embedding'].shape == (6, 32)
    assert 'this ran' not in capfd.readouterr().out


@pytest.mark.parametrize(
    'content',
    ['[]', '{"models": [1]}', '{"models": {}}', '{', '{"models": [{"weights_sha256": 1}]}'],
)
def test_results_that_are_not_ours(tmp_path, content):
    (tmp_path / 'results.json').write_text(content)
    said(evaluate._claim, tmp_path, ['a'], 'path', None)


# names, of files and in lists

ODD = [
    b'new\nline_20.jpg',
    b'caf\xe9_21.jpg',
    'Zoë\u2028_22.jpg'.encode(),
    b'$x^_23.jpg',
    b'-h_24.jpg',
]


def test_odd_names_in_lists(drawn, tmp_path):
    face = next((drawn / 'train').rglob('*.jpg')).read_bytes()
    # a list can't hold the others
    names = [name for name in ODD if len(os.fsdecode(name).split()) == 1]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(face)
    (tmp_path / 'pairs').write_bytes(
        b'\r\n'.join(b'%d %s %s' % (k % 2, names[k % len(names)], names[k % 2]) for k in range(8))
    )
    listed = protocols.pair_list(tmp_path / 'pairs')
    assert sorted(map(os.path.basename, map(os.fsencode, listed.sources))) == sorted(names)
    for spoiled in (
        b'1 gone\xe9 other',
        b'1 a',
        b'2 a b',
        b'\xff\xfe',
        '1 \u3000\u3000'.encode(),
        b'1 a\0b c',
        b'1 %s b' % (b'a' * 5000),
    ):
        (tmp_path / 'pairs').write_bytes(spoiled)
        assert said(protocols.pair_list, tmp_path / 'pairs').isprintable()


def test_odd_files_in_a_folder(model, drawn, tmp_path):
    face = next((drawn / 'train').rglob('*.jpg')).read_bytes()
    person = tmp_path / 'set' / os.fsdecode(b'p\xe9\n0')
    person.mkdir(parents=True)
    for name in ODD:
        (person / os.fsdecode(name)).write_bytes(face)
    os.symlink(tmp_path / 'set', person / 'up')
    os.symlink('itself', tmp_path / 'set' / 'itself')
    faces = Faces(tmp_path / 'set', r'_|\.', 1)
    faces.check(cache=False)
    assert len(faces) == len(protocols.images_below(tmp_path / 'set')) == len(ODD)
    assert len(protocols.folder(tmp_path / 'set', r'_|\.', 1).sources) == len(ODD)
    assert (
        saved({'classes': faces.classes}, tmp_path / 'w')
        and torch.load(tmp_path / 'w', weights_only=True)['classes'] == faces.classes
    )
    os.symlink('loop_25.jpg', person / 'loop_25.jpg')
    faces = Faces(tmp_path / 'set', r'_|\.', 1)
    assert "loop_25.jpg': Too many levels of symbolic links" in said(faces.check)
    assert said(
        lambda: extract_files(model, protocols.images_below(tmp_path / 'set'), 'cpu')
    ).isprintable()


# fuzzing: a share of SECONDS each


def damaged(data, draw):
    """Some bytes changed, cut out, repeated, or the end lost."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 3, 20))):
        at = draw.randrange(len(data) or 1)
        kind = draw.randrange(4)
        if kind == 0 and data:
            data[at] = draw.randrange(256)
        elif kind == 1:
            del data[at : at + draw.randrange(1, 60)]
        elif kind == 2:
            data[at:at] = data[at : at + draw.randrange(1, 60)]
        elif draw.random() < 0.3:
            del data[at:]
    return bytes(data)


def fuzz(share, sample, check):
    draw, end, count = random.Random(0), time.monotonic() + share * SECONDS, 0
    while time.monotonic() < end:
        check(damaged(draw.choice(sample), draw))
        count += 1
    assert count > 3
    return count


@pytest.mark.filterwarnings('ignore')  # Pillow's, of tags
def test_fuzzed_images(drawn):
    face = Image.open(next((drawn / 'train').rglob('*.jpg')))
    sample = []
    for kind, options in (
        ('JPEG', {}),
        ('JPEG', {'progressive': True}),
        ('PNG', {}),
        ('WEBP', {}),
        ('BMP', {}),
        ('GIF', {}),
        ('TIFF', {}),
        ('PPM', {}),
    ):
        buffer = io.BytesIO()
        face.save(buffer, kind, **options)
        sample.append(buffer.getvalue())

    def check(data):
        try:
            pixels = decode(data)
        except DataError as error:
            assert '\n' not in str(error)
        else:
            assert pixels.shape == (112, 96, 3) and pixels.dtype == np.uint8

    fuzz(0.3, sample, check)


def test_fuzzed_lists(tmp_path):
    for number in range(4):
        (tmp_path / f'a{number}').mkdir()
        (tmp_path / f'a{number}' / f'a{number}_0001.jpg').write_bytes(b'')
    text = {
        'pairs.txt': ['2\t2'] + (['a0 1 1'] * 2 + ['a1 1 a2 1'] * 2) * 2,
        'pairs_CALFW.txt': [f'a0/a0_0001.jpg {k // 4 + 1}' for k in range(8)]
        + ['a1/a1_0001.jpg 0'] * 8,
        'list': ['1 a0/a0_0001.jpg a0/a0_0001.jpg', '0 a1/a1_0001.jpg a2/a2_0001.jpg'] * 5,
    }
    readers = {
        'pairs.txt': lambda: protocols.lfw(tmp_path, 2, 2),
        'pairs_CALFW.txt': lambda: protocols.calfw(tmp_path, 2, 2),
        'list': lambda: protocols.pair_list(tmp_path / 'list'),
    }
    for name, lines in text.items():
        whole = '\n'.join(lines).encode()
        (tmp_path / name).write_bytes(whole)
        readers[name]()

        def check(data, file=tmp_path / name, read=readers[name]):
            file.write_bytes(data)
            said(read)

        fuzz(0.1, [whole], check)


def test_fuzzed_bins(tmp_path):
    file = tmp_path / 'a.bin'
    sample = [
        pickle.dumps(([b'face'] * 8, [True, False] * 2), 2),
        pickle.dumps(([np.frombuffer(b'face', np.uint8)] * 8, [True, False] * 2), 4),
    ]

    def check(data):
        file.write_bytes(data)
        said(read_bin, file)

    fuzz(0.15, sample, check)


def test_fuzzed_weights(state, tmp_path):
    whole = saved(state, tmp_path / 'w.pth').read_bytes()
    start_of_pickle = whole[: whole.index(b'data.pkl') + 20000]

    def check(data):
        (tmp_path / 'w.pth').write_bytes(data + whole[len(start_of_pickle) :])
        for reader in READERS.values():
            said(reader, tmp_path / 'w.pth')

    fuzz(0.25, [start_of_pickle], check)
