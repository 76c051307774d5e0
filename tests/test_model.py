"""The networks: the paper's shapes, others' margins, loading in other people's scripts."""

import copy
import math

import pytest
import torch
from conftest import ROOT, invalid, python, random_faces, save_weights, tiny_model
from torch import nn

from model import AgeGroups, ArcFace, Backbone, CosFace, DALModel, OrdinalAge, fit_width, normalize


def test_default_backbone_is_the_papers_64_layers_and_factorization_adds_up():
    backbone = Backbone()
    convolutions = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 64 and all(conv.kernel_size == (3, 3) for conv in convolutions)
    strided = [conv.out_channels for conv in convolutions if conv.stride == (2, 2)]
    assert strided == [64, 128, 256, 512]
    assert backbone.eval()(normalize(random_faces(1))).shape == (1, 512)
    split, x = tiny_model().factorization, torch.randn(5, 16)
    x_age, x_id = split(x)
    torch.testing.assert_close(x_age + x_id, x)
    assert (x_age >= 0).all()
    split.alpha.fill_(0.25)
    torch.testing.assert_close(split(x)[1], x - 0.25 * x_age)
    x.requires_grad_()
    split(x, detach=True)[0].sum().backward()
    assert x.grad is None and split.age[0].weight.grad.any()


def test_embedding_is_x_id_of_face_and_mirror_of_pixels_of_either_width():
    model = tiny_model().eval()
    images = random_faces(4)
    embedding = model.embed(images)
    expected = torch.cat([model.features(images)[2], model.features(images.flip(-1))[2]], 1)
    torch.testing.assert_close(embedding, nn.functional.normalize(expected))
    mirrored = model.embed(images.flip(-1))
    torch.testing.assert_close(mirrored.roll(model.dim, 1), embedding)
    for pixels, message in (
        (torch.zeros(2, 112, 96, 3), 'channels last'),
        (torch.zeros(2, 3, 96, 112), 'aligned'),
        (torch.zeros(3, 112, 96), 'aligned'),
        (torch.rand(2, 3, 112, 96), '0 to 255'),
        (torch.rand(2, 3, 112, 112) * 2 - 1, '0 to 255'),
        (torch.full((2, 3, 112, 96), 256.0), '0 to 255'),
    ):
        invalid(message, model.embed, pixels)
    columns = torch.arange(112.0).expand(1, 3, 112, 112)
    assert fit_width(columns, 96)[0, 0, 0].tolist() == list(range(8, 104))
    assert fit_width(columns, 112) is columns
    padded = fit_width(columns[..., :96], 112)[0, 0, 0].tolist()
    assert padded == [0] * 8 + list(range(96)) + [95] * 8
    wide = fit_width(images, 112)
    torch.testing.assert_close(model.embed(wide), model.embed(images))


def test_any_backbone_can_stand_in(tmp_path):
    """24 features, and a layer that can't do a batch of one in train mode."""
    last = nn.Linear(3 * 7 * 6, 24), nn.BatchNorm1d(24)
    flat = nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), *last)
    model = DALModel(copy.deepcopy(flat), 5)
    assert model.dim == 24 and model.training and model.backbone.training
    torch.save({'model': model.state_dict(), 'backbone': None}, tmp_path / 'w.pth')
    invalid('pass it as backbone=', DALModel.load, tmp_path / 'w.pth')
    loaded = DALModel.load(tmp_path / 'w.pth', flat)
    torch.testing.assert_close(loaded.embed(random_faces(4)), model.eval().embed(random_faces(4)))


def test_backbone_from_another_script_needs_torch_alone(tmp_path):
    save_weights(tiny_model(), tmp_path / 'w.pth')
    (tmp_path / 'model.py').write_text((ROOT / 'model.py').read_text())
    script = (
        'import sys, torch\n'
        'from model import Backbone, normalize\n'
        'backbone = Backbone.load("w.pth")\n'
        'embeddings = backbone(normalize(torch.zeros(2, 3, 112, 96)))\n'
        'print(tuple(embeddings.shape), backbone.training)\n'
        'others = "torchvision", "PIL", "matplotlib", "main", "dal"\n'
        'print([name for name in others if name in sys.modules])\n'
    )
    output = python(tmp_path, '-c', script, check=True).stdout
    assert output.splitlines() == ['(2, 16) False', '[]']


def test_age_heads_against_their_groups_and_closed_form():
    years = [0.0, 11, 12, 12.5, 13, 18, 19, 25, 26, 35, 36, 45, 46, 55, 56, 65, 66, 120]
    ages = torch.tensor(years)
    groups = [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7]
    head = AgeGroups(16)
    assert head.groups(ages).tolist() == groups and head.groups(ages.long()).tolist()[:3] == [0] * 3
    assert sum(isinstance(layer, nn.Linear) for layer in head) == 3
    sure = 100.0 * nn.functional.one_hot(torch.tensor(groups), 8)
    assert head.correct(sure, ages).all() and (head.loss(sure, ages) < 1e-6).all()
    assert not head.correct(sure.roll(1, 0), ages).all()
    expected = head.years(100.0 * torch.eye(8))  # of a sure head the centre of the group
    assert expected.tolist() == pytest.approx([6, 15, 21.5, 30, 40, 50, 60, 77.5])
    assert head.groups(expected).tolist() == list(range(8))
    head, logits = OrdinalAge(4, (10, 20)), torch.tensor([[2.0, -1.0], [0.0, -3.0]])
    over = 1 / (1 + (-logits.double()).exp())
    expected = torch.stack([1 - over[:, 0], over[:, 0] - over[:, 1], over[:, 1]], 1)
    torch.testing.assert_close(head.probabilities(logits).double(), expected)
    years = expected @ torch.tensor([5.0, 15, 55]).double()
    torch.testing.assert_close(head.years(logits).double(), years)
    loss = -(over[:, 0].log() + (1 - over[:, 1]).log())  # of ages over 10 and not over 20
    torch.testing.assert_close(head.loss(logits, torch.tensor([15.0, 20.0])).double(), loss)
    assert head.correct(logits, torch.tensor([15.0, 11.0])).tolist() == [True, False]
    x_age = torch.randn(6, 4)
    assert (head(x_age).diff(dim=1) < 0).all() and head(x_age).shape == (6, 2)


def test_accuracy_is_counted_on_cosines_and_margins_are_pytorch_metric_learnings():
    for head in [CosFace, ArcFace]:
        torch.manual_seed(0)
        head, centres = head(8, 40, 64.0, 0.5), torch.randn(40, 8)
        head.weight.data, labels = centres, torch.arange(4000) % 40
        features = centres[labels] + torch.randn(4000, 8)
        cosine = nn.functional.normalize(features) @ nn.functional.normalize(centres).T
        true = (cosine.argmax(1) == labels).float().mean()
        _, right = head.loss(features, labels)
        assert abs(right.float().mean() - true) < 1e-3 and 0.5 < true < 0.8
    for head, margin in [(CosFace, 0.35), (ArcFace, 28.6)]:
        losses = pytest.importorskip('pytorch_metric_learning.losses')
        torch.manual_seed(0)
        theirs = getattr(losses, f'{head.__name__}Loss')(11, 16, margin=margin, scale=64)
        ours = head(16, 11, 64.0, math.radians(margin) if head is ArcFace else margin)
        features, labels = torch.randn(64, 16), torch.randint(0, 11, (64,))
        ours.weight.data = theirs.W.data.T.clone()
        features[:8] = -ours.weight.data[labels[:8]] + 0.05 * torch.randn(8, 16)  # beyond π − m
        features.requires_grad_()
        loss, expected = ours.loss(features, labels)[0].mean(), theirs(features, labels)
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        gradients = [torch.autograd.grad(each, features)[0] for each in (loss, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
