"""What every backbone here shares: it takes pixels, and fits, orders and normalises them itself."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import weights_files

HEIGHT, NARROW, WIDE = 112, 96, 112  # the field's two crops, of one scale and centre


def fit_faces(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Faces (N, 3, 112, 96 or 112) as a network of input `size` (height, width) sees them: (112,
    96) is the middle 96 columns, any other the square face, resized bilinearly, where a narrow face
    has its edge columns repeated, 8 on either side. Raises ValueError for other shapes.
    """
    if images.ndim != 4 or images.shape[1:] not in ((3, HEIGHT, NARROW), (3, HEIGHT, WIDE)):
        shapes = f'(N, 3, {HEIGHT}, {NARROW}) or (N, 3, {HEIGHT}, {WIDE})'
        raise ValueError(f'faces of shape {tuple(images.shape)}: a backbone takes {shapes}')
    wanted = NARROW if tuple(size) == (HEIGHT, NARROW) else WIDE
    extra = wanted - images.shape[3]
    if extra:
        columns = torch.arange(wanted, device=images.device) - extra // 2
        images = images.index_select(-1, columns.clamp(0, images.shape[3] - 1))
    if tuple(size) != (HEIGHT, wanted):
        images = F.interpolate(images, tuple(size), mode='bilinear', align_corners=False)
    return images


class ConvNorm(nn.Sequential):
    """A convolution that keeps the size, batch normalisation, and the activation of a width."""

    def __init__(self, inputs, outputs, activation, kernel=3, stride=1, groups=1, eps=1e-5):
        about = kernel, stride, kernel // 2
        conv = nn.Conv2d(inputs, outputs, *about, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs, eps=eps), activation(outputs))


flatten = functools.partial(torch.flatten, start_dim=1)


class PretrainedBackbone(nn.Module):
    """x = F(p) by a network that others designed and trained: RGB faces (N, 3, 112, 96 or 112),
    0…255, uint8 or float -> x (N, dim), of no unit length.

    A subclass names its layers as the published file does, states `size`, `mean`, `deviation` and
    `bgr` of its input, and its `sections`. `build(**backbone.config)` makes the same network again.
    """

    takes_pixels = True  # DALModel leaves the normalisation to it
    dim = 512
    size = (HEIGHT, WIDE)
    width = WIDE  # of the faces that lose nothing on the way to `size`
    mean: tuple[float, ...] = (127.5,) * 3  # of pixel values, in the channels' order here
    deviation: tuple[float, ...] = mean
    bgr = False

    def __init__(self, name: str, **config: Any):
        super().__init__()
        self.config = {'name': name, **config}
        self.set_normalisation(self.mean, self.deviation)

    def set_normalisation(self, mean: Sequence[float], deviation: Sequence[float]) -> None:
        """(v − mean) / deviation, kept as one multiplication and one addition."""
        # plain numbers: arithmetic of tensors without memory would import PyTorch's compiler
        scale = [1 / one for one in deviation]
        shift = [-one * factor for one, factor in zip(mean, scale, strict=True)]
        self.scale = nn.Buffer(torch.tensor(scale).reshape(3, 1, 1), persistent=False)
        self.shift = nn.Buffer(torch.tensor(shift).reshape(3, 1, 1), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.encode(self.prepare(images))

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """The network's own input of RGB faces: size, channel order, normalisation."""
        faces = fit_faces(images.to(self.scale.dtype), self.size)
        return torch.addcmul(self.shift, faces.flip(1) if self.bgr else faces, self.scale)

    def sections(self) -> tuple[list, list[list], list]:
        """Stem, blocks and tail: modules and functions that `encode` runs one after another."""
        raise NotImplementedError

    def encode(self, faces: torch.Tensor) -> torch.Tensor:
        """What `prepare` made -> x (N, dim)."""
        stem, blocks, tail = self.sections()
        for step in itertools.chain(stem, *blocks, tail):
            faces = step(faces)
        return faces

    def read(self, path: Any, say: Callable[[str], None] = weights_files.warn) -> object:
        """As weights_files.read, of a published file."""
        return weights_files.read(path, say)

    def name_here(self, published: str) -> str | None:
        """The name here of a published file's entry; None for what is left out of it."""
        return published


class Vectors(PretrainedBackbone):
    """No network: x is a stored vector (dim,) of any system, and R in closed form acts on it."""

    def __init__(self, name: str = 'vectors', dim: int = 512):
        super().__init__(name, dim=dim)
        self.vectors = dim  # DALModel asks it for no face

    def forward(self, images):
        raise ValueError('these weights are of stored vectors: they know no network for faces')
