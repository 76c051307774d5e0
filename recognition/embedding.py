"""From faces to features: image and mirror in one pass, files decoded by threads meanwhile.

The result is kept beside the report, so that a second report on the same faces is immediate.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from recognition.inference import ready
from storage.files import write_npz
from storage.images import HEIGHT, WIDTH, WIDTHS, decode, some
from system import progress as bars
from utils import DataError

FEATURES = ('embedding', 'x', 'x_age', 'x_id')


def check_finite(features: np.ndarray, names: list | None = None) -> None:
    """Raises ValueError naming the first row of features (N, D) that holds a NaN or an infinity,
    by its index where there are no names."""
    faulty = np.flatnonzero(~np.isfinite(features).all(1))
    if len(faulty):
        first = f'image {faulty[0]} (counted from 0)' if names is None else names[faulty[0]]
        many = f'as are those of {len(faulty)} of {len(features)} images'
        raise ValueError(f'{first}: its features are not finite (NaN or infinite), {many}')


@torch.inference_mode()
def extract(
    model: Any,
    batches: Iterable,
    device: Any,
    bf16: bool = False,
    keep: tuple = FEATURES,
    progress: str | None = None,
) -> dict[str, np.ndarray]:
    """Features of every face in `batches`, a dict of float32 arrays: 'embedding' (N, 2·D), x_id of
    face and mirror, of unit length; 'x', 'x_age' and 'x_id' (N, D); 'x_mirror', x of the mirror.

    A batch is images (N, 3, 112, 96 or 112), uint8 RGB, or a tuple that begins with them. `model`
    is a DALModel, which is in eval mode meanwhile, or what inference.ready made of one. `progress`
    (a title) shows a bar. Raises ValueError if there are no faces. Whether the features are finite
    is for who uses them: check_finite, which every metric calls.
    """
    training = getattr(model, 'training', False)
    if training:
        model.eval()
    found: dict[str, list] = {name: [] for name in keep}
    try:
        features = model if isinstance(model, FunctionType) else ready(model, device, bf16)
        for images in bars.progress(batches, progress or '', disable=not progress, unit=' batches'):
            images = images if torch.is_tensor(images) else images[0]
            images = images.to(device, non_blocking=True)
            x, x_age, x_id = features(torch.cat([images, images.flip(-1)]))
            arrays = {'x': x, 'x_mirror': x[len(images) :], 'x_age': x_age, 'x_id': x_id}
            arrays['embedding'] = F.normalize(torch.cat(x_id.chunk(2), dim=1))
            for name in keep:
                found[name].append(arrays[name][: len(images)].cpu().numpy())
    finally:
        if training:
            model.train()
    if not found[keep[0]]:
        raise ValueError('there are no faces to embed')
    return {name: np.concatenate(rows) for name, rows in found.items()}


def extract_files(
    model: Any,
    sources: list,
    device: Any,
    names: list | None = None,
    batch_size: int = 64,
    bf16: bool = False,
    keep: tuple = FEATURES,
    progress: str | None = None,
    cache: Path | None = None,
    weights: str = '',
) -> tuple[dict, str]:
    """extract() of `sources`, each a path or an encoded image (bytes) that messages call by
    `names`, by default the paths: features, and digest_of the sources.

    With `cache`, a folder, the features are kept there under the digest and `weights`, the sha256
    of the weights file. Raises DataError, one line, where images are missing, can't be read or are
    of another size, or where features aren't finite.
    """
    names = [os.fspath(source) for source in sources] if names is None else names
    digest = digest_of(sources, names)
    key = hashlib.sha256(repr((digest, weights, bf16, keep)).encode()).hexdigest()[:32]
    file = Path(cache or '', f'{key}.npz')
    kept = _kept(file, keep, len(sources)) if cache else None
    if kept:
        return kept, digest
    batches = _Decoded(sources, names, getattr(model, 'width', WIDTH), batch_size)
    features = extract(model, batches, device, bf16, keep, progress)
    try:
        for array in features.values():
            check_finite(array, names)
    except ValueError as error:
        raise DataError(str(error)) from None
    if cache:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_npz(file, features)
    return features, digest


def _kept(file, keep, n):
    """The features in `file`; None if it isn't there, or isn't what was written."""
    try:
        with np.load(file) as arrays:
            found = {name: arrays[name] for name in keep}
    except Exception:  # zip, header, key and checksum errors: whatever damage leads to
        return None
    kinds = {(array.ndim, *array.shape[:1], array.dtype.name) for array in found.values()}
    return found if kinds == {(2, n, 'float32')} else None


def digest_of(sources: list, names: list) -> str:
    """sha256 over paths, sizes and modification times, or over the bytes. Raises DataError where
    files are missing."""
    digest, missing = hashlib.sha256(), []
    for source, name in zip(sources, names, strict=True):
        if isinstance(source, bytes):
            digest.update(b'%d\0%s' % (len(source), source))
            continue
        try:
            stat = os.stat(source)
        except (OSError, ValueError):  # ValueError: a zero byte in the name
            missing.append(name)
        else:
            digest.update(b'%s\0%d\0%d\n' % (os.fsencode(source), stat.st_size, stat.st_mtime_ns))
    if missing:
        what = f'{len(missing)} of {len(sources)} images are missing: looked for {some(missing)}'
        raise DataError(f'{what}: add them, or name the folder that holds them')
    return digest.hexdigest()


class _Decoded:
    """Batches (N, 3, 112, width) uint8 of the sources, two batches decoded ahead. At the first
    image that can't be used no more batches come, but all are decoded, so that the DataError counts
    them all."""

    def __init__(self, sources, names, width, batch_size):
        self.faces, self.width = list(zip(sources, names, strict=True)), width
        self.starts = range(0, len(sources), batch_size)

    def __len__(self):
        return len(self.starts)

    def __iter__(self):
        bad, ahead, step = [], deque(), self.starts.step
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in (*self.starts, None, None):
                part = [] if start is None else self.faces[start : start + step]
                ahead.append([pool.submit(self._read, *face) for face in part])
                if len(ahead) > 2:
                    faces = [future.result() for future in ahead.popleft()]
                    bad += [face for face in faces if isinstance(face, str)]
                    if not bad:
                        yield torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)
        if bad:
            which = f"{len(bad)} of {len(self.faces)} images can't be used: {some(bad)}"
            size = f'{HEIGHT} high × {" or ".join(map(str, WIDTHS))} wide is expected'
            raise DataError(f'{which}: {size}; align them, or remove them')

    def _read(self, source, name):
        """The face (112, width, 3), or what is wrong with it."""
        try:
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
            return decode(data, self.width)
        except (DataError, OSError, ValueError) as error:
            return f'{name}: {getattr(error, "strerror", None) or error}'
