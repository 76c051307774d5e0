"""What every backbone here shares: it takes pixels, and fits, orders and normalises them itself."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from . import files

HEIGHT, NARROW, WIDE = 112, 96, 112  # the field's two crops, of one scale and centre


def fit(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Faces (N, 3, 112, 96) or (N, 3, 112, 112) as a network of another input size sees them.

    `size` is (height, width). (112, 96) is the middle 96 columns; (112, 112) the whole, where a
    narrow face has its edge columns repeated, 8 on either side; any other size is that square
    face, resized bilinearly. Raises ValueError for faces of another shape.
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


flatten = functools.partial(torch.flatten, start_dim=1)


class PretrainedBackbone(nn.Module):
    """x = F(p) by a network that others designed and trained.

    RGB faces (N, 3, 112, 96 or 112), pixel values 0…255, uint8 or float -> x (N, dim), as the
    network's last layer gives it: of no unit length. A subclass names its layers as the published
    file does, states `size`, `mean`, `deviation` and `bgr` of its input, and its `sections`.
    `build(**backbone.config)` makes the same network again, without its weights.
    """

    takes_pixels = True  # DALModel hands it 0…255 and leaves the normalisation to it
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
        faces = fit(images.to(self.scale.dtype), self.size)
        if self.bgr:
            faces = faces.flip(1)
        return torch.addcmul(self.shift, faces, self.scale)

    def sections(self) -> tuple[list, list[list], list]:
        """Stem, blocks and tail: modules and functions that `encode` runs one after another."""
        raise NotImplementedError

    def encode(self, faces: torch.Tensor) -> torch.Tensor:
        """What `prepare` made -> x (N, dim)."""
        stem, blocks, tail = self.sections()
        for step in itertools.chain(stem, *blocks, tail):
            faces = step(faces)
        return faces

    def read(self, path: Any, say: Callable[[str], None] = files.warn) -> object:
        """The content of a published file, see files.read."""
        return files.read(path, say)

    def name_here(self, published: str) -> str | None:
        """The name here of a published file's entry; None for what is left out of it."""
        return published
