"""What the network says of faces: how alike they are, how old; and a folder of them, ranked."""

import io
import os
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import dal
import utils
from evaluation import lists
from evaluation.extraction import extract
from utils import DataError
from verification import portraits
from verification.decision import Decision

BATCH = 32


class Look(NamedTuple):
    """embedding (2·D,) of unit length; the likeliest age group, its probability, the mean age."""

    embedding: np.ndarray
    group: str
    probability: float
    age: float

    @property
    def about(self):
        likeliest = f'likeliest age {self.group} ({100 * self.probability:.0f} %)'
        return f'{likeliest}, on average {self.age:.0f}'


class Matcher:
    """A network with its decision: a DALModel, and the WeightsInfo of its file."""

    def __init__(self, model, info, device, threshold=None):
        """Raises UserError where the file's age groups or decision aren't what training writes."""
        self.model, self.device, self.decision = (
            model,
            device,
            Decision.of(info.decision, info.path, threshold),
        )
        self.cutoffs = info.age_cutoffs
        if len(self.cutoffs) + 1 != model.age[-1].out_features or not all(
            isinstance(bound, (int, float)) for bound in self.cutoffs
        ):
            raise utils.UserError(f'{info.path}: its age groups are not those of its age head')

    def look(self, faces):
        """A Look for each face (112, 96, 3), uint8."""
        images = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)
        try:
            features = extract(
                self.model, images.split(BATCH), self.device, keep=('embedding', 'x_age')
            )
            with torch.inference_mode():
                logits = (
                    self.model.age(torch.from_numpy(features['x_age']).to(self.device))
                    .float()
                    .cpu()
                )
        except torch.OutOfMemoryError:
            raise utils.UserError('not enough memory on the GPU: --ctx -1 uses the CPU') from None
        if not np.isfinite(features['embedding']).all() or not logits.isfinite().all():
            raise utils.UserError(
                'what the network says of a face is not finite: '
                'take weights of before the training went wrong'
            )
        ages = dal.expected_age(logits, self.cutoffs)[:, 0].tolist()
        probabilities, groups = (part.tolist() for part in logits.softmax(1).max(1))
        return [
            Look(embedding, self.group(k), *rest)
            for embedding, k, *rest in zip(
                features['embedding'], groups, probabilities, ages, strict=True
            )
        ]

    def group(self, k):
        """The k-th age group in whole years; its upper bound belongs to it."""
        if k == 0:
            return f'0–{self.cutoffs[0]:g}'
        return (
            f'over {self.cutoffs[-1]:g}'
            if k == len(self.cutoffs)
            else f'{self.cutoffs[k - 1] + 1:g}–{self.cutoffs[k]:g}'
        )


class Found(NamedTuple):
    """A face of a gallery beside the one that was looked for: `face` is a small JPEG."""

    name: str
    face: bytes
    look: Look
    similarity: float


class Gallery:
    """Every face below a folder, looked at once; `left_out` has a line for each image without one.

    Raises DataError where no face is left. `but`, the file that is looked for, isn't taken in.
    """

    def __init__(self, matcher, folder, but=None):
        self.names, self.faces, self.looks, self.left_out = [], [], [], []
        waiting = []
        for path in tqdm(
            lists.images_below(folder), 'gallery', leave=False, unit=' images', disable=None
        ):
            if but and os.path.realpath(path) == os.path.realpath(but):
                continue
            try:
                waiting.append(portraits.read_file(path).face)
            except DataError as error:
                self.left_out.append(str(error))
                continue
            self.names.append(os.path.relpath(path, folder))
            if len(waiting) == BATCH:
                self._take(matcher, waiting)
        if waiting:
            self._take(matcher, waiting)
        if not self.names:
            first = f': {self.left_out[0]}' if self.left_out else ''
            raise DataError(f'{folder}: no face in any of its {len(self.left_out)} images{first}')
        self.embeddings = np.stack([look.embedding for look in self.looks])

    def _take(self, matcher, waiting):
        self.looks += matcher.look(waiting)
        self.faces += map(jpeg, waiting)  # a tenth of the pixels' memory
        waiting.clear()

    def nearest(self, embedding, most):
        """The `most` faces that are most like an embedding (2·D,), the most similar first."""
        similarities = self.embeddings @ embedding
        order = np.argsort(-similarities, kind='stable')[:most]
        return [
            Found(self.names[k], self.faces[k], self.looks[k], float(similarities[k]))
            for k in order
        ]


def jpeg(face):
    buffer = io.BytesIO()
    Image.fromarray(face).save(buffer, 'JPEG', quality=92)
    return buffer.getvalue()
