"""AdaFace's IR networks (Kim et al., CVPR 2022), as its Lightning `.ckpt` files hold them.

`adaface_ir101` is the depth that the paper calls R100. Input **BGR** 112×112, (v/255 − .5)/.5.
A plain state dict of the same names is taken for AdaFace's too, that is for BGR. face.evoLVe and
InsightFace_Pytorch have one batch normalisation less in each block: another layout.
"""

from torch import nn

from .base import PretrainedBackbone
from .iresnet import LAYERS, WIDTHS


class Unit(nn.Module):
    """Two 3×3 convolutions, the second with the stride, and the input, thinned or projected."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.shortcut_layer = nn.Identity()
        if inputs != outputs:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        elif stride != 1:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x):
        return self.res_layer(x) + self.shortcut_layer(x)


class AdaFace(PretrainedBackbone):
    """IR-18, 34, 50 or 101; x is what AdaFace divides by its length, before the division.

    The residual factorization takes x's own length; AdaFace reads the image's quality in it.
    """

    bgr = True

    def __init__(self, name):
        super().__init__(name)
        conv = nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False)
        self.input_layer = nn.Sequential(conv, nn.BatchNorm2d(WIDTHS[0]), nn.PReLU(WIDTHS[0]))
        units, inputs = [], WIDTHS[0]
        layers = LAYERS[name.removeprefix('adaface_ir').replace('101', '100')]
        for count, width in zip(layers, WIDTHS, strict=True):
            for index in range(count):
                units.append(Unit(inputs, width, stride=1 if index else 2))
                inputs = width
        self.body = nn.Sequential(*units)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(inputs * 7 * 7, self.dim),
            nn.BatchNorm1d(self.dim, affine=False),
        )

    def sections(self):
        return [self.input_layer], [[unit] for unit in self.body], [self.output_layer]
