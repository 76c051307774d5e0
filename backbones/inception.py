"""facenet-pytorch's InceptionResnetV1 (FaceNet), as its `…-vggface2.pt` and `…-casia-webface.pt`.

Our own code, so that a fine-tuned file opens with torch alone. Input RGB 160×160, (v − 127.5)/128.
Its faces were cropped more loosely than ours, which are enlarged to 160 here: it sees less than it
was trained on, and fine-tuning has that to make good.
"""

import torch
from torch import Tensor, nn

from .base import PretrainedBackbone, flatten


class Conv(nn.Sequential):
    """Convolution, batch normalisation (eps of TensorFlow's slim), ReLU."""

    def __init__(self, inputs, outputs, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)
        self.relu = nn.ReLU(inplace=True)


class Branches(nn.Module):
    """Convolutions side by side, as `branch0`, `branch1`, …; their channels are concatenated."""

    def __init__(self, *branches):
        super().__init__()
        self.names = [f'branch{index}' for index in range(len(branches))]
        for name, branch in zip(self.names, branches, strict=True):
            self.add_module(name, branch)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.get_submodule(name)(x) for name in self.names], dim=1)


def _chain(inputs, *layers):
    """Convolutions of (outputs, kernel, stride), one after another; of stride 1 they keep the size,
    of stride 2 they have no padding."""
    convs = []
    for outputs, kernel, stride in layers:
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(side // 2 for side in sides) if stride == 1 else 0
        convs.append(Conv(inputs, outputs, kernel, stride, padding))
        inputs = outputs
    return convs[0] if len(convs) == 1 else nn.Sequential(*convs)


class Residual(Branches):
    """x plus a fraction of what two or three chains, mixed by a 1×1 convolution, make of it."""

    def __init__(self, width, fraction, *chains, rectify=True):
        super().__init__(*(_chain(width, *chain) for chain in chains))
        self.conv2d = nn.Conv2d(sum(chain[-1][0] for chain in chains), width, 1)
        self.fraction = fraction
        self.relu = nn.ReLU(inplace=True) if rectify else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.fraction * self.conv2d(super().forward(x)))


ONE, THREE = (32, 1, 1), (32, 3, 1)
BLOCK35 = 256, 0.17, [ONE], [ONE, THREE], [ONE, THREE, THREE]
BLOCK17 = 896, 0.10, [(128, 1, 1)], [(128, 1, 1), (128, (1, 7), 1), (128, (7, 1), 1)]
BLOCK8 = [(192, 1, 1)], [(192, 1, 1), (192, (1, 3), 1), (192, (3, 1), 1)]


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
        self.repeat_1 = nn.Sequential(*(Residual(*BLOCK35) for _ in range(5)))
        self.mixed_6a = Branches(
            _chain(256, (384, 3, 2)),
            _chain(256, (192, 1, 1), (192, 3, 1), (256, 3, 2)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_2 = nn.Sequential(*(Residual(*BLOCK17) for _ in range(10)))
        self.mixed_7a = Branches(
            _chain(896, (256, 1, 1), (384, 3, 2)),
            _chain(896, (256, 1, 1), (256, 3, 2)),
            _chain(896, (256, 1, 1), (256, 3, 1), (256, 3, 2)),
            nn.MaxPool2d(3, stride=2),
        )
        self.repeat_3 = nn.Sequential(*(Residual(1792, 0.20, *BLOCK8) for _ in range(5)))
        self.block8 = Residual(1792, 1.0, *BLOCK8, rectify=False)
        self.avgpool_1a = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.6)
        self.last_linear = nn.Linear(1792, self.dim, bias=False)
        self.last_bn = nn.BatchNorm1d(self.dim, eps=0.001)

    def sections(self) -> tuple[list, list[list], list]:
        stem = [self.conv2d_1a, self.conv2d_2a, self.conv2d_2b, self.maxpool_3a, self.conv2d_3b]
        blocks = [*self.repeat_1, self.mixed_6a, *self.repeat_2, self.mixed_7a, *self.repeat_3]
        tail = [self.avgpool_1a, flatten, self.dropout, self.last_linear, self.last_bn]
        blocks = [[block] for block in (*blocks, self.block8)]
        return [*stem, self.conv2d_4a, self.conv2d_4b], blocks, tail
