"""Fine-tuning of a backbone's last blocks alone, on activations of the others that are computed
once and kept beside the faces: of a face and of its mirror, turned round, side by side, so that a
flip exchanges the two."""

import contextlib
import glob
import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from dataset import Faces
from model import DALModel, normalize
from storage.rows import Rows
from system.progress import progress
from utils import DataError, UserError

BATCH = 64  # faces whose activations are computed together


def sides(backbone: Any, count: int) -> tuple[list, list]:
    """What a backbone runs one after another: before its last `count` blocks, and from them on.
    Raises UserError if it has no such blocks."""
    if not hasattr(backbone, 'sections'):
        raise UserError(f'last_blocks is {count}; a backbone of your own needs a method sections')
    try:
        stem, blocks, tail = backbone.sections()
    except NotImplementedError:
        name = backbone.config['name']
        raise UserError(f'last_blocks is {count}; {name} can only be trained whole') from None
    if count > len(blocks):
        raise UserError(f'last_blocks is {count}; the backbone has {len(blocks)} blocks')
    at = len(blocks) - count
    return [*itertools.chain(stem, *blocks[:at])], [*itertools.chain(*blocks[at:], tail)]


def split(model: DALModel, count: int) -> None:
    """Freezes the backbone except for its last `count` blocks and what follows, which then take
    activations (N, C, H, 2·W) too; 0: nothing. Raises UserError."""
    if not count:
        return
    for step in sides(model.backbone, count)[0]:
        if isinstance(step, nn.Module):
            step.requires_grad_(False)

    def last(activations):
        x = activations[..., : activations.shape[-1] // 2].float()
        for step in sides(model.backbone, count)[1]:
            x = step(x)
        return x

    model.last_blocks = last


@torch.no_grad()
def keep_activations(training: Any, faces: Faces) -> None:
    """Lets `faces` give activations of the blocks that don't learn in place of images. Raises
    UserError without room for them, or if the backbone was not pretrained; DataError."""
    if not training.pretrained:
        raise UserError('last_blocks: the others must know faces: start from --init or weights')
    training.model.eval()
    first = sides(training.model.backbone, training.recipe.last_blocks)[0]
    face = _activations(training, first, faces.__getitems__([0])[0])
    about = len(faces), face.shape[1:], 'float16', 'activations'
    beside, key = faces.source.beside, key_of(training, first, faces)
    known = beside.parent.glob(f'.{glob.escape(beside.name)}.first-blocks.{key}-*.npy')
    for path in known:
        kept = Rows(path, *about)
        if kept.is_whole():
            if path.stem.endswith(f'-{zlib.crc32(np.memmap(path, mode="r").data):08x}'):
                faces.pixels = kept
                return
    new = Rows(beside.with_name(f'.{beside.name}.first-blocks.{key}.npy'), *about)
    print(f'activations of the first blocks: {new.gib:.2f} GiB, kept beside {beside}')
    with contextlib.closing(new.begin()):
        checksum = zlib.crc32(new.header)
        with progress(None, 'activations', len(faces), unit=' faces') as bar:
            for start in range(0, len(faces), BATCH):
                indices = range(start, min(start + BATCH, len(faces)))
                images, _, _, unreadable = faces.__getitems__([*indices])
                if unreadable:
                    raise DataError(unreadable[0])
                rows = _activations(training, first, images)
                for index, row in zip(indices, rows, strict=True):
                    new[index] = row
                checksum = zlib.crc32(rows.data, checksum)
                bar.update(len(rows))
        new.path = f'{new.path.removesuffix(".npy")}-{checksum:08x}.npy'
        if not new.finish():
            why = f'{new.error.strerror} for {new.gib:.2f} GiB of activations'
            raise UserError(f'{beside.parent}: {why}: make room, or --set last_blocks=0')
        faces.pixels = new


def _activations(training, first, images) -> np.ndarray:
    """Images (N, 3, 112, W) uint8 -> (N, H, 2·W, C) float16, as faces are kept."""
    backbone, found = training.model.backbone, []
    images = images.to(training.device)
    for side in (images, images.flip(-1)):
        with training.executor.autocast():
            x = backbone.prepare(side) if hasattr(backbone, 'prepare') else normalize(side)
            x = x.contiguous(memory_format=torch.channels_last)
            for step in first:
                x = step(x)
        found.append(x)
    both = torch.cat([found[0], found[1].flip(-1)], -1).half()
    if not both.isfinite().all():
        raise UserError('last_blocks: activations beyond the range of float16: --set last_blocks=0')
    return both.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def key_of(training: Any, steps: Iterable[Callable], faces: Faces) -> str:
    """16 hexadecimal digits of the faces and of all that makes what the steps give for them."""
    about = faces.fingerprint, len(faces), faces.width, training.executor.precision
    digest = hashlib.sha256(repr(about).encode())
    for module in (step for step in steps if isinstance(step, nn.Module)):
        for name, tensor in module.state_dict().items():
            digest.update(f'{name} {tuple(tensor.shape)}'.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
