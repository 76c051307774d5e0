"""Weights, lists and caches from anywhere: one clear line, and nothing of them is run."""

import io
import os
import pickle
import random
import time
import zipfile

import numpy as np
import pytest
import torch
from conftest import Hostile, batch, iterate, new_training, refused, tiny, tiny_model
from PIL import Image

import evaluate
import main
import utils
from dataset import Faces
from evaluation import protocols
from evaluation.pair_files import read_bin
from model import DALModel
from recognition.embedding import extract_files
from recognition.weights import load_weights
from storage.images import decode
from training import resume
from utils import DataError

SECONDS = float(os.environ.get('FAULT_SECONDS', 4))  # of all fuzzing together


@pytest.fixture(scope='module')
def state(entry):
    """A state that resumes, and what it was saved by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main.meta, 'here', entry | {'val_root': None}, raising=False)
        training = new_training(tiny())
        training.total_steps = 5
        for seed in range(5):
            iterate(training, *batch(seed))
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
    training = new_training(tiny())
    resume.start(training, file, True, 5)
    training.total_steps = 100
    iterate(training, *batch())


READERS = {'main': start, 'load': DALModel.load, 'evaluate': load_weights}


def packed(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture(params=READERS)
def read(request, tmp_path):
    """What a reader says of a file of such bytes, or of torch.save's of another content."""

    def read(content):
        data = content if isinstance(content, bytes) else packed(content)
        (tmp_path / 'w.pth').write_bytes(data)
        line = said(READERS[request.param], tmp_path / 'w.pth')
        assert line is None or 'w.pth' in line
        return line

    return read


ALONE = pytest.mark.parametrize('read', ['main', 'evaluate'], indirect=True)
MAIN = pytest.mark.parametrize('read', ['main'], indirect=True)


def test_truncated_weights(state, read):
    assert read(state) is None
    whole = packed(state)
    lengths = *range(0, len(whole), len(whole) // 7), len(whole) - 22, len(whole) - 1
    assert all(read(whole[:length]) for length in (1, 2, 4, 100, *lengths))


def rewritten(whole, compression=zipfile.ZIP_STORED, prefix=b''):
    """The archive in `whole`, its entries stored anew, and a last one of zeros."""
    raw = io.BytesIO(prefix)
    raw.seek(len(prefix))
    with zipfile.ZipFile(raw, 'w', compression) as target:
        with zipfile.ZipFile(io.BytesIO(whole)) as source:
            for entry in source.infolist():
                target.writestr(entry.filename, source.read(entry))
        target.writestr(entry.filename + '.more', bytes(2**24 if compression else 8))
    return raw.getvalue()


def test_weights_that_inflate_are_refused(state, read):
    whole = packed(state)
    archive, stored = b'PK\3\4 another archive', zipfile.ZIP_STORED
    for change in ((zipfile.ZIP_DEFLATED,), (stored, archive), (stored, pickle.dumps(1))):
        line = read(rewritten(whole, *change))
        assert 'claims' in line or 'no file of torch.save' in line, change
    # the last entry of the directory, whose sizes stand from its byte 20 on
    end = whole.rindex(b'PK\1\2')
    assert 'claims' in read(whole[: end + 20] + b'\xf0\xff\xff\xef' * 2 + whole[end + 28 :])
    assert read(rewritten(whole)) is None  # so it is not the rewriting that is refused


def test_weights_that_are_none_or_of_other_shapes_and_pickles_run_nothing(state, read, capfd):
    for model in (5, {}, {'a': 'b'}, {3: torch.zeros(2)}):
        assert read(state | {'model': model}), model
    assert read(state | {'backbone': 5})
    weights = state['model']
    # which torch forgives
    for name in [name for name in weights if not name.endswith('num_batches_tracked')][::7]:
        assert read(state | {'model': {key: weights[key] for key in weights if key != name}}), name
        assert read(state | {'model': weights | {name: weights[name][None, ..., None]}}), name
    assert read(state | {'model': weights | {'more': torch.zeros(1)}})
    huge = torch.zeros(1).expand(10**9, 16)  # four bytes in the file, 64 GB where it is copied
    assert read(state | {'model': weights | {'identity.weight': huge}})
    assert read(pickle.dumps(Hostile())) and read(pickle.dumps({'model': Hostile()}, 2))
    assert read(state | {'best': Hostile()})
    assert 'this ran' not in capfd.readouterr().out


# training reads another backbone's arguments for its message alone
@pytest.mark.parametrize('read', ['load', 'evaluate'], indirect=True)
def test_backbones_that_are_none(state, read):
    assert read(state | {'backbone': {'layers': [1]}})
    assert read(state | {'backbone': {'layers': [10**9], 'widths': [16], 'dim': 16}})
    huge = {'layers': [0, 0, 0, 1], 'widths': [10**7] * 4, 'dim': 16}
    assert read(state | {'backbone': huge})


OTHER_TYPES = [dict(classes=5), dict(classes=None), dict(age_cutoffs='x'), dict(epoch='x')]
OTHER_TYPES += [dict(epoch=-1), dict(step='x'), dict(step=-7), dict(step=10**9), dict(best='x')]
OTHER_TYPES += [dict(steps_per_epoch=0), dict(mapping={}), dict(means={}), dict(means=3)]
OTHER_TYPES += [dict(optimizer=None), dict(optimizer={'state': {}}, step=None)]
OTHER_TYPES += [dict(adversary={'state': {0: {'exp_avg': torch.zeros(3)}}})]
OTHER_TYPES += [dict(optimizer={'state': {0: {'momentum_buffer': torch.zeros(2, 2)}}})]
OTHER_TYPES += [dict(optimizer={'state': {10**6: {}, 'a': 3}}), dict(opening=torch.zeros(5))]


@MAIN
@pytest.mark.parametrize('change', OTHER_TYPES, ids=str)
def test_states_of_other_types(state, read, change):
    assert read(state | change)


@MAIN
def test_a_recipe_in_a_state_is_not_believed(state, read, tmp_path):
    assert read(state | {'recipe': None}) is None
    groups = [group | {'lr': 1e9, 'momentum': 7.0} for group in state['optimizer']['param_groups']]
    changed = state | {'optimizer': state['optimizer'] | {'param_groups': groups}}
    (tmp_path / 'w.pth').write_bytes(packed(changed))
    training = new_training(tiny())
    resume.start(training, tmp_path / 'w.pth', True, 5)
    assert {group['momentum'] for group in training.optimizer.param_groups} == {tiny().momentum}


@ALONE
def test_what_is_no_archive_is_said(state, read):
    pointer = b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'
    assert 'git lfs pull' in read(pointer) and 'a web page' in read(b'<HTML>')
    assert 'a web page' in read(b'\n<!DOCTYPE html><html><title>Sign in</title></html>')
    assert 'w.pth: cut: its 10000 bytes' in read(packed(state)[:10000])


@pytest.mark.parametrize('prefix', ['module.', '_orig_mod.', 'net.module.'])
def test_names_below_a_prefix(state, tmp_path, prefix):
    weights = {prefix + name: tensor for name, tensor in state['model'].items()}
    torch.save(state | {'model': weights}, tmp_path / 'w.pth')
    model, _ = load_weights(tmp_path / 'w.pth')
    assert torch.equal(model.identity.weight, state['model']['identity.weight'])
    torch.save(weights, tmp_path / 'w.pth')
    why = 'w.pth: no weights file of this repository .it lacks model'
    refused(why, load_weights, tmp_path / 'w.pth')


@ALONE
@pytest.mark.parametrize('name', ['backbone.project.weight', 'factorization.age.0.bias'])
def test_weights_of_ours_that_are_damaged(state, tmp_path, read, name):
    """Values that no training made, and bytes that a download lost."""
    file, damaged = tmp_path / 'w.pth', f'w.pth: its weights are damaged: {name}: '
    weights = state['model'] | {name: torch.full_like(state['model'][name], float('nan'))}
    line = read(state | {'model': weights})
    assert damaged in line and 'NaN' in line and f'{damaged}NaN' in said(DALModel.load, file)
    whole, lost = packed(state), state['model'][name].contiguous().numpy().tobytes()
    line = read(whole.replace(lost, bytes(len(lost))))
    assert f'w.pth: damaged in {name} (its checksum differs)' in line
    refused(f'w.pth: damaged in {name}', resume.read_backbone, str(file), tiny())


@pytest.fixture(scope='module')
def model():
    return tiny_model().eval()


def test_damaged_features_are_computed_again(model, faces, tmp_path, capfd):
    sources = faces[:6]
    first, _ = extract_files(model, sources, 'cpu', cache=tmp_path)
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    cut, spoilt = data[: len(data) // 2], data[:300] + bytes(60) + data[360:]
    for damaged in (b'', cut, data[:-1], b'junk' * 99, spoilt, pickle.dumps(Hostile())):
        file.write_bytes(damaged)
        again, _ = extract_files(model, sources, 'cpu', cache=tmp_path)
        assert all((first[name] == again[name]).all() for name in first)
    for arrays in ([np.zeros((5, 32), np.float32)], [np.array([Hostile()] * 6, object)], []):
        np.savez(file, **dict(zip(['embedding'], arrays, strict=False)))
        again, _ = extract_files(model, sources, 'cpu', cache=tmp_path)
        assert (first['embedding'] == again['embedding']).all()
    assert 'this ran' not in capfd.readouterr().out


def test_results_that_are_not_ours(tmp_path):
    models = '[1]', '{}', '[{"weights_sha256": 1}]'
    for content in ('[]', '{', *(f'{{"models": {value}}}' for value in models)):
        (tmp_path / 'results.json').write_text(content)
        said(evaluate._claim, tmp_path, ['a'], 'path', None)


ODD = [b'new\nline_20.jpg', b'caf\xe9_21.jpg', 'Zoë\u2028_22.jpg'.encode(), b'$x^_23.jpg']
ODD.append(b'-h_24.jpg')


def test_odd_names_in_lists_and_folders(drawn, tmp_path, model):
    face = next((drawn / 'train').rglob('*.jpg')).read_bytes()
    # a list can't hold the others
    names = [name for name in ODD if len(os.fsdecode(name).split()) == 1]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(face)
    pairs = [b'%d %s %s' % (k % 2, names[k % len(names)], names[k % 2]) for k in range(8)]
    (tmp_path / 'pairs').write_bytes(b'\r\n'.join(pairs))
    listed = protocols.pair_list(tmp_path / 'pairs')
    assert sorted(map(os.path.basename, map(os.fsencode, listed.sources))) == sorted(names)
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
    classes = io.BytesIO(packed(faces.classes))
    assert torch.load(classes, weights_only=True) == faces.classes
    os.symlink('loop_25.jpg', person / 'loop_25.jpg')
    faces = Faces(tmp_path / 'set', r'_|\.', 1)
    assert 'loop_25.jpg: Too many levels of symbolic links' in said(faces.check)
    paths = protocols.images_below(tmp_path / 'set')
    assert said(extract_files, model, paths, 'cpu').isprintable()


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
    for kind in ('JPEG', 'progressive', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM'):
        options = {'progressive': True} if kind == 'progressive' else {'format': kind}
        buffer = io.BytesIO()
        face.save(buffer, **{'format': 'JPEG'} | options)
        sample.append(buffer.getvalue())

    def check(data):
        try:
            pixels = decode(data)
        except DataError as error:
            assert '\n' not in str(error)
        else:
            assert pixels.shape == (112, 96, 3) and pixels.dtype == np.uint8

    fuzz(0.3, sample, check)


def test_fuzzed_bins_and_weights(tmp_path, state):
    file = tmp_path / 'a.bin'
    images, same = ([b'face'] * 8, [np.frombuffer(b'face', np.uint8)] * 8), [True, False] * 2
    sample = [pickle.dumps((images[0], same), 2), pickle.dumps((images[1], same), 4)]

    def check(data):
        file.write_bytes(data)
        said(read_bin, file)

    fuzz(0.15, sample, check)
    whole = packed(state)
    start_of_pickle = whole[: whole.index(b'data.pkl') + 20000]

    def check(data):
        (tmp_path / 'w.pth').write_bytes(data + whole[len(start_of_pickle) :])
        for reader in READERS.values():
            said(reader, tmp_path / 'w.pth')

    fuzz(0.25, [start_of_pickle], check)
