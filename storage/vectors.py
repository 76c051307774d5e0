"""Stored vectors of faces: a .npz or .safetensors of `embeddings`, `identities` and `ages`, of any
system."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import DataError, UserError

ENDINGS = '.npz', '.safetensors'


class StoredVectors(NamedTuple):
    """embeddings (N, D) float32, identities (N,) and ages (N,) in years; None for one of the last
    two that the file doesn't have."""

    embeddings: np.ndarray
    identities: np.ndarray | None
    ages: np.ndarray | None


def is_vectors(path: str | os.PathLike | None) -> bool:
    """Whether the name is one of a file of stored vectors."""
    return str(path).endswith(ENDINGS)


def read_vectors(path: str | os.PathLike) -> StoredVectors:
    """The vectors in a file. In a .safetensors the identities are whole numbers, or a JSON list in
    its metadata. Raises DataError if it can't be read, or its arrays don't fit each other."""
    path = Path(path).expanduser()
    try:
        arrays = _safetensors(path) if path.suffix == '.safetensors' else _npz(path)
        rows = np.asarray(arrays['embeddings'], np.float32)
        identities, ages = (arrays.get(name) for name in ('identities', 'ages'))
        identities = None if identities is None else np.asarray(identities).astype(str)
        ages = None if ages is None else np.asarray(ages, np.float32)
    except FileNotFoundError:
        raise DataError(f'{path}: no such file') from None
    except ImportError:
        raise UserError(f'{path}: pip install safetensors, or give a .npz') from None
    except KeyError:
        raise DataError(f'{path}: it holds no array `embeddings`') from None
    except Exception as error:  # zip, header, type and checksum errors: whatever damage leads to
        raise DataError(f'{path}: not readable ({type(error).__name__})') from None
    if rows.ndim != 2 or not rows.size:
        raise DataError(f'{path}: embeddings {rows.shape}; expected (N, D)')
    for name, values in (('identities', identities), ('ages', ages)):
        if values is not None and values.shape != (len(rows),):
            raise DataError(f'{path}: {name} {values.shape} of {len(rows)} embeddings')
        if values is not None and values.dtype.kind == 'f' and not np.isfinite(values).all():
            raise DataError(f'{path}: row {np.flatnonzero(~np.isfinite(values))[0]}: no age')
    faulty = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(faulty):
        raise DataError(f'{path}: row {faulty[0]} (counted from 0): not finite')
    return StoredVectors(rows, identities, ages)


def _npz(path):
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _safetensors(path):
    from safetensors import safe_open

    with safe_open(path, 'np') as file:
        texts = file.metadata() or {}
        listed = {name: json.loads(texts[name]) for name in ('identities', 'ages') if name in texts}
        return listed | {name: file.get_tensor(name) for name in file.keys()}


class VectorFaces:
    """A data set of stored vectors, with what dataset.Faces says of its faces; `vectors` (N, D)
    stand in for images. Raises DataError if identities or ages are missing."""

    def __init__(self, root: str | os.PathLike):
        self.root = os.path.expanduser(root)
        self.vectors, identities, ages = read_vectors(root)
        if identities is None or ages is None:
            name = 'identities' if identities is None else 'ages'
            raise DataError(f'{root}: it holds no array `{name}`')
        self.ages = ages
        names, labels = np.unique(identities, return_inverse=True)
        self.classes, self.labels = names.tolist(), labels.astype(np.int64)
        self.fingerprint = hashlib.sha256(self.vectors.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.vectors)

    def path(self, index: int) -> str:
        return f'{self.root}: row {index}'

    def check(self, cache: bool = True, skip_corrupt: int = 0) -> list[str]:
        return []
