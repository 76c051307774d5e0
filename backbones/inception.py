"""facenet-pytorch's InceptionResnetV1 (FaceNet), as its `…-vggface2.pt` and `…-casia-webface.pt`.

Our own code, so that a fine-tuned file opens with torch alone: the package, which prepare.py
needs for its detector, pins old releases of others. Input RGB 160×160, (v − 127.5)/128. Its
faces were cropped more loosely than ours, which are enlarged to 160 here: it sees less than it
was trained on, and fine-tuning has that to make good.
"""

import torch
from torch import nn

from .base import PretrainedBackbone, flatten


class Conv(nn.Module):
    """Convolution, batch normalisation (eps of TensorFlow's slim), ReLU."""

    def __init__(self, inputs, outputs, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Convolutions side by side, as `branch0`, `branch1`, …; their channels are concatenated."""

    def __init__(self, *branches):
        super().__init__()
        for index, branch in enumerate(branches):
            self.add_module(f'branch{index}', branch)
        self.count = len(branches)

    def forward(self, x):
        return torch.cat(
            [self.get_submodule(f'branch{index}')(x) for index in range(self.count)], dim=1
        )


class Residual(Branches):
    """x plus a fraction of what the branches, mixed by a 1×1 convolution, make of it."""

    def __init__(self, width, mixed, fraction, *branches, rectify=True):
        super().__init__(*branches)
        self.conv2d = nn.Conv2d(mixed, width, 1)
        self.fraction = fraction
        self.relu = nn.ReLU(inplace=True) if rectify else nn.Identity()

    def forward(self, x):
        return self.relu(x + self.fraction * self.conv2d(super().forward(x)))


def _block35():
    return Residual(
        256,
        96,
        0.17,
        Conv(256, 32, 1),
        nn.Sequential(Conv(256, 32, 1), Conv(32, 32, 3, padding=1)),
        nn.Sequential(Conv(256, 32, 1), Conv(32, 32, 3, padding=1), Conv(32, 32, 3, padding=1)),
    )


def _block17():
    return Residual(
        896,
        256,
        0.10,
        Conv(896, 128, 1),
        nn.Sequential(
            Conv(896, 128, 1),
            Conv(128, 128, (1, 7), padding=(0, 3)),
            Conv(128, 128, (7, 1), padding=(3, 0)),
        ),
    )


def _block8(fraction=0.20, rectify=True):
    return Residual(
        1792,
        384,
        fraction,
        Conv(1792, 192, 1),
        nn.Sequential(
            Conv(1792, 192, 1),
            Conv(192, 192, (1, 3), padding=(0, 1)),
            Conv(192, 192, (3, 1), padding=(1, 0)),
        ),
        rectify=rectify,
    )


class InceptionResnetV1(PretrainedBackbone):
    """x is `last_bn`, which the package scales to unit length; its `logits` are left out."""

    size = 160, 160
    deviation = (128.0,) * 3

    def __init__(self, name='inception_resnet_v1'):
        super().__init__(name)
        self.conv2d_1a = Conv(3, 32, 3, stride=2)
        self.conv2d_2a = Conv(32, 32, 3)
        self.conv2d_2b = Conv(32, 64, 3, padding=1)
        self.maxpool_3a = nn.MaxPool2d(3, stride=2)
        self.conv2d_3b = Conv(64, 80, 1)
        self.conv2d_4a = Conv(80, 192, 3)
        self.conv2d_4b = Conv(192, 256, 3, stride=2)
        self.repeat_1 = nn.Sequential(*(_block35() for _ in range(5)))
        self.mixed_6a = Branches(
            Conv(256, 384, 3, stride=2),
            nn.Sequential(
                Conv(256, 192, 1), Conv(192, 192, 3, padding=1), Conv(192, 256, 3, stride=2)
            ),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_2 = nn.Sequential(*(_block17() for _ in range(10)))
        self.mixed_7a = Branches(
            nn.Sequential(Conv(896, 256, 1), Conv(256, 384, 3, stride=2)),
            nn.Sequential(Conv(896, 256, 1), Conv(256, 256, 3, stride=2)),
            nn.Sequential(
                Conv(896, 256, 1), Conv(256, 256, 3, padding=1), Conv(256, 256, 3, stride=2)
            ),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_3 = nn.Sequential(*(_block8() for _ in range(5)))
        self.block8 = _block8(fraction=1.0, rectify=False)
        self.avgpool_1a = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.6)
        self.last_linear = nn.Linear(1792, self.dim, bias=False)
        self.last_bn = nn.BatchNorm1d(self.dim, eps=0.001)

    def parts(self):
        stem = [self.conv2d_1a, self.conv2d_2a, self.conv2d_2b, self.maxpool_3a, self.conv2d_3b]
        blocks = [*self.repeat_1, self.mixed_6a, *self.repeat_2, self.mixed_7a, *self.repeat_3]
        tail = [self.avgpool_1a, flatten, self.dropout, self.last_linear, self.last_bn]
        blocks = [[block] for block in (*blocks, self.block8)]
        return [*stem, self.conv2d_4a, self.conv2d_4b], blocks, tail
