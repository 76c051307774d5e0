"""IResNet as insightface's arcface_torch trains and saves it (`backbone.pth`, a plain state dict).

Han et al., "Deep pyramidal residual networks" and Deng et al., "ArcFace" (CVPR 2019): batch
normalisation first, PReLU, no activation after the sum. Input RGB 112×112, (v/255 − .5)/.5.
"""

import itertools

from torch import nn

from .base import PretrainedBackbone, flatten

LAYERS = {'18': (2, 2, 2, 2), '34': (3, 4, 6, 3), '50': (3, 4, 14, 3)}
LAYERS |= {'100': (3, 13, 30, 3), '200': (6, 26, 60, 6)}
WIDTHS = 64, 128, 256, 512


class Block(nn.Module):
    """Two 3×3 convolutions, the second with the stride, and the input, projected if need be."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x):
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + self.downsample(x)


class IResNet(PretrainedBackbone):
    """iresnet18, 34, 50, 100 or 200; each stage halves the image, the stem does not."""

    def __init__(self, name):
        super().__init__(name)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.prelu = nn.PReLU(WIDTHS[0])
        inputs = WIDTHS[0]
        layers = LAYERS[name.removeprefix('iresnet')]
        for stage, (count, width) in enumerate(zip(layers, WIDTHS, strict=True), 1):
            blocks = [Block(width if at else inputs, width, 1 if at else 2) for at in range(count)]
            self.add_module(f'layer{stage}', nn.Sequential(*blocks))
            inputs = width
        self.bn2 = nn.BatchNorm2d(inputs)
        self.fc = nn.Linear(inputs * 7 * 7, self.dim)
        self.features = nn.BatchNorm1d(self.dim)
        self.features.weight.requires_grad = False  # at 1: published so, for a margin on cosines

    def sections(self):
        blocks = itertools.chain(self.layer1, self.layer2, self.layer3, self.layer4)
        tail = [self.bn2, flatten, self.fc, self.features]
        return [self.conv1, self.bn1, self.prelu], [[block] for block in blocks], tail
