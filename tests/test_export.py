"""What is exported is what PyTorch computes, and can be used without this repository."""

import functools
import json
import re
import shutil
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, execute, invalid, python, refused, save_weights
from PIL import Image

import backbones
import export
import verify
from model import Backbone, DALModel, ResidualFactorization, SolvedFactorization, normalize
from recognition.weights import load_weights
from training import resume
from training.recipe import finetune

run = functools.partial(execute, export)


@pytest.fixture(scope='module')
def model(weights):
    return DALModel.load(weights)


def images(paths):
    faces = np.stack([np.asarray(Image.open(path)) for path in paths])
    return torch.from_numpy(faces).permute(0, 3, 1, 2)


def session(file):
    onnxruntime = pytest.importorskip('onnxruntime')
    return onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])


@pytest.fixture(scope='module')
def onnx_file(weights, tmp_path_factory):
    pytest.importorskip('onnxscript')
    out = tmp_path_factory.mktemp('onnx') / 'tiny.onnx'
    run('onnx', weights, out)
    return out


def test_onnx_is_the_identity_branch_as_pytorch_has_it(model, onnx_file, weights, faces):
    onnx = pytest.importorskip('onnx')
    loaded = onnx.load(onnx_file)
    onnx.checker.check_model(loaded, full_check=True)
    facts = {entry.key: entry.value for entry in loaded.metadata_props}
    assert facts['threshold'] == json.dumps(torch.load(weights)['decision']['threshold'])
    assert facts['colour'] == 'RGB'
    names = ' '.join(tensor.name for tensor in loaded.graph.initializer)
    assert 'backbone' in names and 'factorization' in names
    assert 'identity' not in names and 'model.age' not in names
    axes = loaded.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ['N', 3, 112, 96]
    for n in (1, 2, 5, 33):
        pixels = images(faces[:n])
        (embeddings,) = session(onnx_file).run(None, {'faces': pixels.numpy()})
        np.testing.assert_allclose(embeddings, model.embed(pixels).numpy(), atol=1e-5)


def test_an_onnx_that_differs_is_not_written(weights, tmp_path, monkeypatch):
    onnxruntime = pytest.importorskip('onnxruntime')
    other = Mock()
    other.run = lambda _, feed: [np.zeros((len(feed['faces']), 32), np.float32)]
    monkeypatch.setattr(onnxruntime, 'InferenceSession', lambda *_, **__: other)
    refused('differ by', run, 'onnx', weights, tmp_path / 'other.onnx')
    assert not list(tmp_path.iterdir())


def test_the_backbone_works_with_its_metadata_alone(model, weights, tmp_path, faces):
    safetensors = pytest.importorskip('safetensors')
    run('backbone', weights, tmp_path / 'tiny.safetensors')
    with safetensors.safe_open(tmp_path / 'tiny.safetensors', 'pt') as file:
        facts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
    assert (facts['height'], facts['width'], len(json.loads(facts['template']))) == ('112', '96', 5)
    training = json.loads(facts['training'])
    assert training['people'] == 8 and training['recipe']['dim'] == 16
    parts = Backbone(**json.loads(facts['backbone'])).eval(), ResidualFactorization(16)
    for part, name in zip(parts, ('backbone.', 'factorization.'), strict=True):
        below = [key for key in tensors if key.startswith(name)]
        part.load_state_dict({key.removeprefix(name): tensors[key] for key in below})
    pixels = images(faces[:3])
    with torch.no_grad():
        x_id = parts[1](parts[0](normalize(pixels)))[1]
        torch.testing.assert_close(x_id, model.features(pixels)[2])
    again, info = load_weights(tmp_path / 'tiny.safetensors')  # it is read, without its heads
    torch.testing.assert_close(again.embed(pixels), model.embed(pixels))
    assert info.classes == [] and info.backbone == json.loads(facts['backbone'])
    recipe, state = resume.read_backbone(str(tmp_path / 'tiny.safetensors'), finetune)
    assert recipe.dim == 16 and torch.equal(state['project.bias'], model.backbone.project.bias)


def read_arrays(path):
    """Arrays and facts of an .npz or a .safetensors."""
    if path.suffix == '.npz':
        with np.load(path) as file:
            found = dict(file)
        facts = {name: str(array) for name, array in found.items() if not array.ndim}
        return {name: array for name, array in found.items() if array.ndim}, facts
    with pytest.importorskip('safetensors').safe_open(path, 'np') as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


@pytest.mark.parametrize('ending', ['.npz', '.safetensors'])
def test_embeddings_have_paths_and_the_eraser_is_the_split(model, weights, tmp_path, drawn, ending):
    line = ROOT / 'export.py', 'embeddings', weights, drawn / 'val', f'faces{ending}'
    done = python(tmp_path, *line)
    assert done.stdout == f'faces{ending}: 36 faces, 32 values each\n' and not done.stderr
    arrays, facts = read_arrays(tmp_path / f'faces{ending}')
    paths = list(arrays['paths']) if ending == '.npz' else json.loads(facts['paths'])
    assert len(paths) == 36
    assert float(facts['threshold']) == torch.load(weights)['decision']['threshold']
    want = model.embed(images([drawn / 'val' / paths[7], drawn / 'val' / paths[30]]))
    np.testing.assert_allclose(arrays['embeddings'][[7, 30]], want, atol=1e-5)
    refused('no affine map.*main.py -1 0 --init', run, 'eraser', weights)
    torch.manual_seed(0)
    state, split = torch.load(weights), SolvedFactorization(16)
    split.mean.normal_()
    split.projection.copy_(torch.randn(16, 2) @ torch.randn(2, 16))
    split.alpha.fill_(0.5)
    others = {k: v for k, v in state['model'].items() if not k.startswith('factorization.')}
    solved = {f'factorization.{name}': tensor for name, tensor in split.state_dict().items()}
    torch.save(state | {'model': others | solved}, tmp_path / 'solved.pth')
    run('eraser', tmp_path / 'solved.pth', tmp_path / f'map{ending}')
    arrays, facts = read_arrays(tmp_path / f'map{ending}')
    x = torch.randn(9, 16)
    x_id = x.numpy() @ arrays['matrix'] + arrays['offset']
    np.testing.assert_allclose(x_id, split(x)[1].numpy(), atol=1e-5)
    assert 'x @ matrix + offset' in facts['feature']


def test_what_is_there_stays_and_what_is_missing_is_named(weights, tmp_path, monkeypatch):
    (tmp_path / 'a.safetensors').write_text('mine')
    refused('is there already', run, 'backbone', weights, tmp_path / 'a.safetensors')
    refused('must end in', run, 'backbone', weights, tmp_path / 'a.npz')
    refused('there is no folder', run, 'onnx', weights, tmp_path / 'no' / 'a.onnx')
    refused('no such file', run, 'backbone', tmp_path / 'gone.pth')
    refused('no such folder', run, 'embeddings', weights, tmp_path / 'gone', tmp_path / 'e.npz')
    assert list(tmp_path.iterdir()) == [tmp_path / 'a.safetensors']
    assert (tmp_path / 'a.safetensors').read_text() == 'mine'
    for kind, package in (('onnx', 'onnxscript'), ('backbone', 'safetensors.numpy')):
        monkeypatch.setitem(sys.modules, package, None)
        how = f'{package.split(".")[0]}: pip install -r requirements-export.txt'
        refused(how, run, kind, weights)


HUB = """
import sys, torch
import backbones, model, utils            # the user's own
network = torch.hub.load(sys.argv[1], 'dal', source='local', weights=sys.argv[2])
backbone = torch.hub.load(sys.argv[1], 'backbone', source='local', weights=sys.argv[2])
assert backbones.mine and model.mine and utils.mine and 'dataset' not in sys.modules
import dataset
assert dataset.mine
faces = torch.load('faces.pt')
torch.save((network.embed(faces), backbone(faces.float())), 'out.pt')
"""


@pytest.fixture(scope='module')
def published(tmp_path_factory):
    """Weights whose backbone is one of backbones/, with random weights, which sees 112 columns."""
    torch.manual_seed(0)
    model = DALModel(backbones.build('mobilefacenet'), 2)
    return save_weights(model, tmp_path_factory.mktemp('published') / 'best.pth'), model.eval()


@pytest.mark.parametrize('whose', ['ours', 'published'])
def test_torch_hub_among_modules_of_the_same_names(weights, model, published, tmp_path, whose):
    path, model = (weights, model) if whose == 'ours' else published
    for name in ('model', 'utils', 'dataset', 'main', 'backbones'):
        (tmp_path / f'{name}.py').write_text('mine = True')
    (tmp_path / 'script.py').write_text(HUB)
    faces = torch.randint(0, 256, (2, 3, 112, 96), dtype=torch.uint8)
    torch.save(faces, tmp_path / 'faces.pt')
    done = python(tmp_path, 'script.py', ROOT, path)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model.embed(faces), model.backbone(faces.float())
    torch.testing.assert_close(torch.load(tmp_path / 'out.pt'), expected)


def test_a_hub_file_that_lies_about_its_backbone(published, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    import hubconf

    state = torch.load(published[0])
    for config in ({'name': 'iresnet18'}, {'name': 'nothing'}, {'name': 'mobilefacenet', 'x': 1}):
        torch.save(state | {'backbone': config}, tmp_path / 'a.pth')
        invalid('a.pth: not of the backbone', hubconf.dal, tmp_path / 'a.pth')


def test_onnx_of_a_published_backbone_holds_its_preprocessing(published, tmp_path):
    pytest.importorskip('onnxscript')
    path, model = published
    run('onnx', path, tmp_path / 'a.onnx')
    network = session(tmp_path / 'a.onnx')
    assert network.get_inputs()[0].shape == ['N', 3, 112, 112]
    facts = network.get_modelmeta().custom_metadata_map
    assert facts['width'] == '112' and 'mean [123.675, 116.28, 103.53]' in facts['normalisation']
    faces = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)
    (found,) = network.run(None, {'faces': faces.numpy()})
    np.testing.assert_allclose(found, model.embed(faces).numpy(), atol=1e-5)


def test_the_documented_script_takes_no_torch(weights, onnx_file, drawn, faces, tmp_path):
    pytest.importorskip('onnxruntime')
    execute(verify, weights, '--index', drawn / 'val', tmp_path / 'archive.index')
    shutil.copy(onnx_file, tmp_path / 'best.onnx')
    face = faces[20]
    Image.open(face).save(tmp_path / 'face.png')
    page = (ROOT / 'docs' / 'verify.md').read_text()
    (script,) = re.findall(r'```python\n(import json\n.*?)```', page, re.DOTALL)
    assert len(script.splitlines()) < 25
    guard = "import sys; sys.modules['torch'] = None\n"
    done = python(tmp_path, '-c', guard + script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f'1.000 {face.relative_to(drawn / "val")}'
