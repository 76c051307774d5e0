"""What makes training fast does not change what it learns: losses of 30 steps, with and without."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import iterate

import main
import meta
from dataset import Faces, training_loader
from training.recipe import small

STEPS = 30
# age head and adversary take part from the first step; the scale is small, as rounding grows with
# the steepness of the loss
RECIPE = replace(
    small,
    layers=(0, 1, 0, 1),
    widths=(8, 16, 16, 32),
    dim=32,
    batch_size=40,
    lr=0.01,
    scale=8.0,
    margin=0.1,
    lambda_dal=0.1,
    read_age=0.0,
    split=(0.0, 0.0),
    game=(0.0, 0.0),
)


@pytest.fixture(scope='module')
def faces(drawn):
    return checked(drawn, cache=True)


def checked(drawn, cache):
    faces = Faces(drawn / 'train', meta.demo['pat'], meta.demo['pos'])
    faces.check(cache)
    return faces


def curve(faces, bf16=False, memory_format=torch.contiguous_format, seed=2):
    """The loss of every step, (STEPS,), on the CPU."""
    recipe = replace(RECIPE, seed=seed)
    training = main.Training(recipe, faces.classes, meta.age_cutoffs, torch.device('cpu'))
    training.executor.precision = 'bf16' if bf16 else 'float32'
    training.total_steps = STEPS
    training.model.to(memory_format=memory_format)
    loader, losses = training_loader(faces, recipe.batch_size, seed, 0, False), []
    for epoch in range(STEPS // len(loader)):
        loader.batch_sampler.epoch = epoch
        for images, labels, ages, _ in loader:
            iterate(training, images.contiguous(memory_format=memory_format), labels, ages)
            losses.append(training.means.flush()['loss'])
    return np.array(losses)


@pytest.fixture(scope='module')
def plain(faces):
    losses = curve(faces)
    assert len(losses) == STEPS and losses[-1] < losses[0] / 3
    # another seed differs by three times the widest tolerance below: a change would show
    assert np.abs(curve(faces, seed=1) / losses - 1).max() > 0.15
    return losses


def test_channels_last_has_the_same_curve(faces, plain):
    np.testing.assert_allclose(curve(faces, memory_format=torch.channels_last), plain, rtol=0.03)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_bf16_has_the_same_curve(faces, plain, memory_format):
    losses = curve(faces, True, memory_format)
    assert (losses != plain).any()
    np.testing.assert_allclose(losses, plain, rtol=0.05)


def test_decoded_and_cached_faces_have_the_same_curve(drawn, faces, plain):
    decoded = checked(drawn, cache=False)
    assert faces.pixels and not decoded.pixels
    np.testing.assert_array_equal(curve(decoded), plain)
