"""Stored vectors of faces: a .npz or .safetensors of `embeddings`, `identities` and `ages`, of any
system."""

import hashlib
import json
import os

import numpy as np

from utils import DataError, UserError

ENDINGS = '.npz', '.safetensors'


def is_vectors(path: str | os.PathLike | None) -> bool:
    """Whether the name is one of a file of stored vectors."""
    return str(path).endswith(ENDINGS)


class VectorFaces:
    """A data set of stored vectors, with what dataset.Faces says of its faces; `vectors` (N, D)
    float32 stand in for images.

    In a .safetensors the identities are whole numbers, or a JSON list in its metadata. Raises
    DataError if the file can't be read, lacks an array, or its arrays don't fit each other."""

    def __init__(self, root: str | os.PathLike):
        self.root = root = os.path.expanduser(root)
        try:
            arrays = _safetensors(root) if root.endswith('.safetensors') else _npz(root)
            self.vectors = np.asarray(arrays['embeddings'], np.float32)
            identities = np.asarray(arrays['identities']).astype(str)
            self.ages = np.asarray(arrays['ages'], np.float32)
        except FileNotFoundError:
            raise DataError(f'{root}: no such file') from None
        except ImportError:
            raise UserError(f'{root}: pip install safetensors, or give a .npz') from None
        except KeyError as error:
            raise DataError(f'{root}: it holds no array `{error.args[0]}`') from None
        except Exception as error:  # zip, header, type, checksum: whatever damage leads to
            raise DataError(f'{root}: not readable ({type(error).__name__})') from None
        if self.vectors.ndim != 2 or not self.vectors.size:
            raise DataError(f'{root}: embeddings {self.vectors.shape}; expected (N, D)')
        for name, values in (('identities', identities), ('ages', self.ages)):
            if values.shape != (len(self),):
                raise DataError(f'{root}: {name} {values.shape} of {len(self)} embeddings')
        faulty = ~np.isfinite(self.ages), ~np.isfinite(self.vectors).all(1)
        for what, rows in zip(('no age', 'not finite'), faulty, strict=True):
            if rows.any():
                raise DataError(f'{root}: row {rows.argmax()} (counted from 0): {what}')
        names, labels = np.unique(identities, return_inverse=True)
        self.classes, self.labels = names.tolist(), labels.astype(np.int64)
        self.fingerprint = hashlib.sha256(self.vectors.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self.vectors)

    def path(self, index: int) -> str:
        return f'{self.root}: row {index}'

    def check(self, cache: bool = True, skip_corrupt: int = 0) -> list[str]:
        return []


def _npz(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _safetensors(path):
    from safetensors import safe_open

    with safe_open(path, 'np') as file:
        texts = file.metadata() or {}
        listed = {name: json.loads(texts[name]) for name in ('identities', 'ages') if name in texts}
        return listed | {name: file.get_tensor(name) for name in file.keys()}
