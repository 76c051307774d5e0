"""MobileFaceNet (Chen et al., 2018) as foamliu/MobileFaceNet saves it (a plain state dict).

Input RGB 112×112, normalised by ImageNet's mean and deviation; x is 128 numbers.
"""

import functools

from torch import Tensor, nn

from .base import ConvNorm, PretrainedBackbone, flatten

# expansion, width, blocks, stride of the first
ROWS = (2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)


unit = functools.partial(ConvNorm, activation=lambda width: nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """Widened, filtered channel by channel, narrowed; the input is added if shapes agree."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        wide = inputs * expansion
        self.identity = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            unit(inputs, wide, kernel=1),
            unit(wide, wide, stride=stride, groups=wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.identity else self.conv(x)


class MobileFaceNet(PretrainedBackbone):
    dim = 128
    mean = tuple(255 * value for value in (0.485, 0.456, 0.406))
    deviation = tuple(255 * value for value in (0.229, 0.224, 0.225))

    def __init__(self, name='mobilefacenet'):
        super().__init__(name)
        self.conv1 = unit(3, 64, stride=2)
        self.dw_conv = nn.Sequential()
        self.dw_conv.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
        self.dw_conv.bn1, self.dw_conv.relu1 = nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        self.dw_conv.pointwise = nn.Conv2d(64, 64, 1, bias=False)
        self.dw_conv.bn2, self.dw_conv.relu2 = nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        blocks, inputs = [], 64
        for expansion, width, count, stride in ROWS:
            for index in range(count):
                step = 1 if index else stride
                blocks.append(InvertedResidual(inputs, width, step, expansion))
                inputs = width
        self.features = nn.Sequential(*blocks)
        self.conv2 = unit(inputs, 512, kernel=1)
        self.gdconv = nn.Sequential()  # over the whole 7×7 map: a learnt average
        self.gdconv.depthwise = nn.Conv2d(512, 512, 7, groups=512, bias=False)
        self.gdconv.bn = nn.BatchNorm2d(512)
        self.conv3 = nn.Conv2d(512, self.dim, 1)
        self.bn = nn.BatchNorm2d(self.dim)

    def sections(self) -> tuple[list, list[list], list]:
        tail = [self.conv2, self.gdconv, self.conv3, self.bn, flatten]
        return [self.conv1, self.dw_conv], [[block] for block in self.features], tail
