"""Fine-tuning of MobileFaceNet's last blocks alone, on activations of the others that are computed
once: a run of the ablation on photographs takes a minute in place of ten.

A face is here what the first blocks make of it and of its mirror, side by side, so that a flip
exchanges the two; everything after it is main.Training as it is.
"""

import hashlib
import time
from pathlib import Path

import torch
from steps import iterate
from torch import nn
from torch.utils.data import Dataset

import backbones
import main
import meta
import utils
from backbones import own
from dataset import Batches, Faces, evaluation_loader
from system.progress import progress
from training import posthoc, pretrained
from training.log import run_summary

FIRST = 13  # of MobileFaceNet's 15 blocks: all that see more than 7×7


class Activations(Dataset):
    """The faces at `root` after the first blocks of the backbone in the file `init`.

    As dataset.Faces, with (128, 7, 14) float16 for a face: it, and its mirror turned round. Kept in
    the folder `cache`.
    """

    def __init__(self, root, entry, init, cache: Path):
        faces = Faces(root, entry['pat'], entry['pos'], backbones.build('mobilefacenet').width)
        self.classes, self.labels, self.ages = faces.classes, faces.labels, faces.ages
        key = faces.fingerprint + hashlib.sha256(Path(init).read_bytes()).hexdigest()
        path = cache / f'{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt'
        if path.exists():
            self.values = torch.load(path)
            return
        faces.check()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.values = first_blocks(backbones.load('mobilefacenet', init).eval(), faces)
        utils.write_whole(path, lambda temporary: torch.save(self.values, temporary))

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, indices):
        labels, ages = (torch.from_numpy(value[indices]) for value in (self.labels, self.ages))
        return self.values[indices], labels, ages, []


@torch.inference_mode()
def first_blocks(network, faces):
    parts = []
    with progress(None, 'first blocks', len(faces), unit=' faces') as bar:
        for images, *_ in evaluation_loader(faces, 64):
            face, mirror = (
                network.features[:FIRST](network.dw_conv(network.conv1(network.prepare(side))))
                for side in (images, images.flip(-1))
            )
            parts.append(torch.cat([face, mirror.flip(-1)], -1).half())
            bar.update(len(images))
    return torch.cat(parts)


class LastBlocks(nn.Module):
    """MobileFaceNet from an activation on: (N, 128, 7, 14) -> x (N, 128)."""

    takes_pixels, width = True, 14

    def __init__(self, init):
        super().__init__()
        self.network = backbones.load('mobilefacenet', init)
        del self.network.conv1, self.network.dw_conv, self.network.features[:FIRST]

    def forward(self, activations):
        network = self.network
        if activations.shape[1] == 3:  # a blank face, by which DALModel asks for the length of x
            return activations.new_zeros(len(activations), network.dim)
        x = network.features(activations[..., : activations.shape[-1] // 2])
        return network.bn(network.conv3(network.gdconv(network.conv2(x)))).flatten(1)


def untrained(recipe, faces, init):
    """A main.Training of the last blocks that starts from `init`, centres set."""
    make, own.make_backbone = own.make_backbone, lambda recipe: LastBlocks(init)
    try:
        training = main.Training(recipe, faces.classes, meta.age_cutoffs, torch.device('cpu'))
    finally:
        own.make_backbone = make
    training.pretrained = True
    training.model.factorization.alpha.zero_()
    solve(training, faces)
    pretrained.set_centres(training, faces)
    return training


def solve(training, faces):
    if training.recipe.factorization == 'solved':
        posthoc.set_eraser(training.model, posthoc.solve_eraser(training, faces))


def train(recipe, faces, init, epochs):
    """What main.py does of it, without saves: the main.Training, a record of the machine and the
    recipe, a row of figures an epoch."""
    training, log = untrained(recipe, faces, init), []
    batches = Batches(len(faces), recipe.batch_size, recipe.seed)
    training.total_steps = epochs * len(batches)
    for batches.epoch in range(epochs):
        start = time.perf_counter()
        for indices in batches:
            iterate(training, *faces.__getitems__(indices)[:3])
        log.append(
            training.epoch_means.flush()
            | {'images_per_s': len(batches) * recipe.batch_size / (time.perf_counter() - start)}
        )
    training.model.eval()
    solve(training, faces)
    return training, run_summary(training.device) | {'recipe': recipe.as_dict()}, log
