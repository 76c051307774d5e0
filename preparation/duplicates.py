"""What is in a set twice: the same pixels, the same photograph, the same person."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from preparation.survey import Part
from recognition.embedding import extract_files
from recognition.weights import load_weights
from system.progress import progress
from utils import UserError

SAME_IMAGE = 0.99  # cosine of embeddings above which two files show one photograph


def by_content(parts: Mapping[str, Part]) -> list[tuple[str, str]]:
    """Pairs of paths with the same pixels; of many alike, each with the first."""
    first, pairs = {}, []
    for part in parts.values():
        for face in part.faces:
            path = part.path(face)
            if face.pixels and first.setdefault(face.pixels, path) != path:
                pairs.append((first[face.pixels], path))
    return pairs


def by_embedding(parts: Mapping[str, Part], weights: str | os.PathLike) -> tuple[list, list]:
    """What a trained network finds alike: two lists.

    (path, path, cosine) of one photograph twice: a cosine over SAME_IMAGE. (folder, folder, cosine)
    of one person twice: the means of two folders are closer than half of all faces are to the mean
    of the rest of their own folder.
    """
    if not all(part.folder for part in parts.values()):
        raise UserError(
            '--weights compares image files: of shards and lists only pixels are compared'
        )
    model, _ = load_weights(weights)
    paths, folders = zip(
        *(
            (part.path(face), os.path.join(part.root, face.person))
            for part in parts.values()
            for face in part.good
        ),
        strict=True,
    )
    embeddings = extract_files(
        model, paths, torch.device('cpu'), keep=('embedding',), progress=Path(weights).name
    )[0]['embedding']
    embeddings = torch.from_numpy(embeddings)
    close = [(paths[a], paths[b], cosine) for a, b, cosine in _above(embeddings, SAME_IMAGE)]
    names, labels = np.unique(folders, return_inverse=True)
    labels, counts = torch.from_numpy(labels), torch.from_numpy(np.bincount(labels))
    sums = torch.zeros(len(names), embeddings.shape[1]).index_add_(0, labels, embeddings)
    several = counts[labels] > 1
    if not several.any():
        return close, []
    rest = normalize(sums[labels[several]] - embeddings[several])
    own = float((rest * embeddings[several]).sum(1).median())
    akin = [(names[a], names[b], cosine) for a, b, cosine in _above(normalize(sums), own)]
    return close, akin


def _above(vectors, threshold, block=1024):
    """(i, j, cosine), i < j, of unit vectors (n, d) closer than the threshold, closest first."""
    found = []
    starts = range(0, len(vectors), block)
    for start in progress(starts, 'comparing', len(starts), unit=f' times {block} faces'):
        cosines = (vectors[start : start + block] @ vectors[start:].T).triu(1)
        found += [
            (start + int(i), start + int(j), float(cosines[i, j]))
            for i, j in (cosines > threshold).nonzero()
        ]
    return sorted(found, key=lambda pair: -pair[2])
