"""The networks: shapes of the paper, CosFace against another implementation, loading in other people's scripts."""
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

from model import AgeClassifier, Backbone, CosFace, DALModel, ResidualFactorization, normalize

TINY = {'layers': [0, 0, 0, 1], 'widths': [4, 8, 8, 16], 'dim': 16}


def faces(n=4, seed=0):
    return torch.randint(0, 256, (n, 3, 112, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_default_backbone_is_the_papers_64_layers():
    backbone = Backbone()
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 64 and all(conv.kernel_size == (3, 3) for conv in convolutions)
    assert [conv.out_channels for conv in convolutions if conv.stride == (2, 2)] == [64, 128, 256, 512]
    assert backbone.eval()(normalize(faces(1))).shape == (1, 512)


def test_factorization_adds_up():
    split, x = ResidualFactorization(16), torch.randn(5, 16)
    x_age, x_id = split(x)
    torch.testing.assert_close(x_age + x_id, x)
    assert (x_age >= 0).all()
    split.alpha.fill_(.25)
    torch.testing.assert_close(split(x)[1], x - .25 * x_age)


def test_detached_factorization_keeps_age_from_the_backbone():
    split, x = ResidualFactorization(16), torch.randn(5, 16, requires_grad=True)
    split(x, detach=True)[0].sum().backward()
    assert x.grad is None and split.age[0].weight.grad.any()


def test_cosface_is_pytorch_metric_learnings():
    losses = pytest.importorskip('pytorch_metric_learning.losses')
    torch.manual_seed(0)
    theirs, ours = losses.CosFaceLoss(11, 16, margin=.35, scale=64), CosFace(16, 11)
    ours.weight.data = theirs.W.data.T.clone()
    features, labels = torch.randn(32, 16, requires_grad=True), torch.randint(0, 11, (32,))
    loss = nn.functional.cross_entropy(ours(features, labels), labels)
    expected = theirs(features, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    ours_gradient, = torch.autograd.grad(loss, features)
    theirs_gradient, = torch.autograd.grad(expected, features)
    torch.testing.assert_close(ours_gradient, theirs_gradient, rtol=1e-4, atol=1e-5)


def test_margin_only_with_labels():
    head, features, labels = CosFace(16, 5), torch.randn(3, 16), torch.tensor([4, 0, 2])
    difference = head(features) - head(features, labels)
    torch.testing.assert_close(difference, 64 * .35 * nn.functional.one_hot(labels, 5), rtol=1e-4, atol=1e-4)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = DALModel(Backbone(**TINY), 5)
    x_age, x_id, logits, age_logits = model(faces(8), torch.arange(8) % 5)
    (logits.square().mean() + age_logits.square().mean() + x_age.mean()).backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]


def test_embedding_is_x_id_of_face_and_mirror():
    model = DALModel(Backbone(**TINY), 5).eval()
    images = faces()
    embedding = model.embed(images)
    expected = torch.cat([model.features(images)[2], model.features(images.flip(-1))[2]], 1)
    torch.testing.assert_close(embedding, nn.functional.normalize(expected))
    mirrored = model.embed(images.flip(-1))
    torch.testing.assert_close(mirrored.roll(model.dim, 1), embedding)


class Flat(nn.Module):
    """A backbone of somebody else's: 24 features, and a layer that can't do a batch of one in train mode."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3 * 7 * 6, 24), nn.BatchNorm1d(24))

    def forward(self, images):
        return self.layers(images)


def test_any_backbone_can_stand_in(tmp_path):
    model = DALModel(Flat(), 5)
    assert model.dim == 24 and model.training and model.backbone.training
    torch.save({'model': model.state_dict(), 'backbone': None}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='pass it as backbone='):
        DALModel.load(tmp_path / 'w.pth')
    torch.testing.assert_close(DALModel.load(tmp_path / 'w.pth', Flat()).embed(faces()), model.eval().embed(faces()))


def test_load_refuses_other_files(tmp_path):
    torch.save({'layers': torch.zeros(3)}, tmp_path / 'w.pth')
    with pytest.raises(ValueError, match='no weights file'):
        DALModel.load(tmp_path / 'w.pth')


def test_backbone_from_another_script_needs_torch_alone(tmp_path):
    model = DALModel(Backbone(**TINY), 5)
    torch.save({'model': model.state_dict(), 'backbone': model.backbone.config}, tmp_path / 'w.pth')
    (tmp_path / 'model.py').write_text((ROOT / 'model.py').read_text())
    script = ('import sys, torch\nfrom model import Backbone, normalize\nbackbone = Backbone.load("w.pth")\n'
              'print(tuple(backbone(normalize(torch.zeros(2, 3, 112, 96))).shape), backbone.training)\n'
              'print([name for name in ("torchvision", "PIL", "matplotlib", "main", "dal") if name in sys.modules])')
    output = subprocess.run([sys.executable, '-c', script], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == ['(2, 16) False', '[]']


def test_age_classifier_is_three_layers():
    assert sum(isinstance(layer, nn.Linear) for layer in AgeClassifier(16, 8)) == 3
