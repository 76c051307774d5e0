"""Two families of the same layers by other names: IResNet as insightface's arcface_torch saves it
(`backbone.pth`, a plain state dict), and AdaFace's IR networks (Lightning `.ckpt`).

Han et al., "Deep pyramidal residual networks": batch normalisation first, PReLU, no activation
after the sum; Deng et al., "ArcFace" (CVPR 2019), Kim et al., "AdaFace" (CVPR 2022). Input 112×112,
(v/255 − .5)/.5; RGB, of AdaFace **BGR**. face.evoLVe and InsightFace_Pytorch have one batch
normalisation less in each block: another layout.
"""

import itertools
import re
from typing import Any

from torch import Tensor, nn

from .base import PretrainedBackbone, flatten

LAYERS = {'18': (2, 2, 2, 2), '34': (3, 4, 6, 3), '50': (3, 4, 14, 3)}
LAYERS |= {'100': (3, 13, 30, 3), '200': (6, 26, 60, 6)}
LAYERS['101'] = LAYERS['100']  # AdaFace's name of what the papers call R100
WIDTHS = 64, 128, 256, 512


def _residual(inputs, outputs, stride):
    """The layers of a block: two 3×3 convolutions, the second with the stride."""
    yield nn.BatchNorm2d(inputs)
    yield nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    yield nn.BatchNorm2d(outputs)
    yield nn.PReLU(outputs)
    yield nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
    yield nn.BatchNorm2d(outputs)


def _projection(inputs, outputs, stride):
    conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def _stages(name, block):
    """The blocks of each stage; a stage halves the image, the stem does not."""
    inputs, counts = WIDTHS[0], LAYERS[re.sub(r'\D', '', name)]
    for count, width in zip(counts, WIDTHS, strict=True):
        yield [block(width if at else inputs, width, 1 if at else 2) for at in range(count)]
        inputs = width


class Block(nn.Module):
    """IResNet's: the input is projected if need be."""

    NAMES = 'bn1', 'conv1', 'bn2', 'prelu', 'conv2', 'bn3'

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        for name, layer in zip(self.NAMES, _residual(inputs, outputs, stride), strict=True):
            self.add_module(name, layer)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for name in self.NAMES:
            y = self.get_submodule(name)(y)
        return y + self.downsample(x)


class Unit(nn.Module):
    """AdaFace's block: the input is thinned, or projected where the width changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.shortcut_layer = nn.MaxPool2d(1, stride) if stride != 1 else nn.Identity()
        if inputs != outputs:
            self.shortcut_layer = _projection(inputs, outputs, stride)
        self.res_layer = nn.Sequential(*_residual(inputs, outputs, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class IResNet(PretrainedBackbone):
    """iresnet18, 34, 50, 100 or 200."""

    def __init__(self, name):
        super().__init__(name)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        for stage, blocks in enumerate(_stages(name, Block), 1):
            self.add_module(f'layer{stage}', nn.Sequential(*blocks))
        self.bn2 = nn.BatchNorm2d(WIDTHS[-1])
        self.fc = nn.Linear(WIDTHS[-1] * 7 * 7, self.dim)
        self.features = nn.BatchNorm1d(self.dim)
        self.features.weight.requires_grad = False  # at 1: published so, for a margin on cosines

    def sections(self) -> tuple[list, list[list], list]:
        stages: Any = self.layer1, self.layer2, self.layer3, self.layer4
        blocks = itertools.chain(*stages)
        tail = [self.bn2, flatten, self.fc, self.features]
        return [self.conv1, self.bn1, self.prelu], [[block] for block in blocks], tail


class AdaFace(PretrainedBackbone):
    """IR-18, 34, 50 or 101; x is what AdaFace divides by its length, before the division.

    The residual factorization takes x's own length; AdaFace reads the image's quality in it.
    """

    bgr = True

    def __init__(self, name):
        super().__init__(name)
        conv = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.input_layer = nn.Sequential(conv, nn.BatchNorm2d(WIDTHS[0]), nn.PReLU(WIDTHS[0]))
        self.body = nn.Sequential(*itertools.chain(*_stages(name, Unit)))
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(WIDTHS[-1]),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(WIDTHS[-1] * 7 * 7, self.dim),
            nn.BatchNorm1d(self.dim, affine=False),
        )

    def sections(self) -> tuple[list, list[list], list]:
        return [self.input_layer], [[unit] for unit in self.body], [self.output_layer]
