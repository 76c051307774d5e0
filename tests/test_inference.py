"""inference.ready: the features of the network as it is, whatever the backbone."""

import pytest
import torch
from conftest import moved, snapshot
from conftest import random_faces as faces
from torch import nn
from torch.nn import functional as F

import backbones
from model import Backbone, DALModel
from recognition import inference
from recognition.embedding import extract

NAMES = ['mobilefacenet', 'sface', 'iresnet18', 'adaface_ir18', 'inception_resnet_v1', 'resnet18']


def network(backbone):
    """A DALModel in eval mode whose batch norms are no identity."""
    torch.manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
    return DALModel(backbone, 3).eval()


def agree(model, images, **options):
    """Whether the function that is ready gives the network's own x, x_age and x_id."""
    with torch.inference_mode():
        wanted = model.features(images)
    for one, other in zip(inference.ready(model, 'cpu', **options)(images), wanted, strict=True):
        assert one.dtype == torch.float32
        assert F.cosine_similarity(one, other).min() > 1 - 1e-5
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize('name', NAMES)
def test_published_backbones(name):
    model = network(backbones.build(name))
    agree(model, faces(2, 112))
    assert inference._folded(model) is not model
    kinds = [type(module).__name__ for module in inference._folded(model).modules()]
    before_convolutions = {'sface': 1, 'iresnet18': 9, 'adaface_ir18': 9}
    assert kinds.count('BatchNorm2d') <= before_convolutions.get(name, 0)


def test_weights_are_those_of_now_of_any_number_of_faces(monkeypatch):
    for count in [1, 19]:
        monkeypatch.setattr(inference, 'CHUNK', 4)
        model = network(Backbone((1, 1), (8, 16), 12))
        state = snapshot(model)
        agree(model, faces(count, 96))
        agree(model, faces(count, 112))
        assert not model.training and not moved(state, model)
    model = network(Backbone((1, 1), (8, 16), 12)).train()
    before = extract(model, [faces(3, 96)], 'cpu', keep=('x',))['x']
    assert model.training
    with torch.no_grad():
        model.backbone.project.weight.mul_(2)
        model.backbone.project.bias.mul_(2)
    after = extract(model, [faces(3, 96)], 'cpu', keep=('x',))['x']
    assert after == pytest.approx(2 * before, rel=1e-4, abs=1e-5)


class Own(nn.Module):
    """A small network of the user's own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, 4), nn.BatchNorm2d(8)
        self.relu, self.linear = nn.ReLU(), nn.Linear(8, 5)

    def forward(self, images):
        return self.linear(self.relu(self.norm(self.conv(images))).mean((2, 3)))


class Branching(Own):
    """Can't be traced: it goes by the values."""

    def forward(self, images):
        return super().forward(images if images.mean() > 0 else -images)


class Otherwise(Own):
    """Its trace computes something else."""

    def forward(self, images):
        return super().forward(images if torch.is_tensor(images) else 2 * images)


def test_backbone_of_the_users_own_and_bfloat16():
    for kind, folds in [(Own, True), (Branching, False), (Otherwise, False)]:
        model = network(kind())
        agree(model, faces(3, 96))
        assert (inference._folded(model) is not model) == folds
    model = network(Own())
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        wanted = model.features(faces(3, 96).contiguous(memory_format=torch.channels_last))[0]
    assert (inference.ready(model, 'cpu', bf16=True)(faces(3, 96))[0] == wanted.float()).all()


@pytest.mark.parametrize('name', ['sface', 'iresnet18', None])
@pytest.mark.parametrize('factor, wins', [(0, True), (1e9, False)])
def test_after_many_faces_onnxruntime_takes_over_if_it_is_faster(name, factor, wins, monkeypatch):
    pytest.importorskip('onnxruntime')
    sessions, Session = [], inference.Session
    monkeypatch.setattr(
        inference, 'Session', lambda *of: sessions.append(Session(*of)) or sessions[0]
    )
    monkeypatch.setattr(inference, '_may_be_faster', lambda: True)
    monkeypatch.setattr(inference, 'MANY', 5)
    monkeypatch.setattr(inference, 'CLEARLY', factor)
    model = network(backbones.build(name) if name else Backbone((1, 1), (8, 16), 12))
    ready = inference.ready(model, 'cpu')
    for count in (3, 4, 2):
        with torch.inference_mode():
            wanted = model.features(faces(count, model.width))
        for one, other in zip(ready(faces(count, model.width)), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    assert len(sessions) == 1 and not model.training
    monkeypatch.setattr(sessions[0], 'features', lambda _: (torch.zeros(1),) * 3)
    assert (ready(faces(2, model.width))[0].numel() == 1) == wins


def test_activations_of_the_first_blocks_stay_with_pytorch(monkeypatch):
    monkeypatch.setattr(inference, '_may_be_faster', lambda: True)
    monkeypatch.setattr(inference, 'MANY', 0)
    model = network(Backbone((1, 1), (8, 16), 12))
    model.last_blocks = lambda activations: activations.mean((2, 3))
    activations = torch.rand(4, 12, 3, 5)
    x, _, _ = inference.ready(model, 'cpu')(activations)
    torch.testing.assert_close(x, activations.mean((2, 3)))
