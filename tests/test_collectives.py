"""What the ranks exchange in a step: a fake job of eight, of which this process is one."""

import collections
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from conftest import iterate, tiny
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

import main
import meta
from training.distributed import rank, world_size

RANKS, SHARE = 8, 2
HEADS = {
    'plain': {},
    'arcface': dict(head='arcface'),
    'sharded': dict(shard_head=True),
    'sampled': dict(shard_head=True, sample_rate=0.5),
    'sharded arcface': dict(shard_head=True, head='arcface'),
}


@pytest.fixture
def exchanged(monkeypatch):
    """A fake process group of eight; returns what it was asked for, in order: names and sizes.

    Nobody answers, so that sums stay this rank's. Its futures hold nothing, which
    DistributedDataParallel's own hook does not expect.
    """
    asked, reduce = [], dist.all_reduce

    def all_reduce(tensor, *args, **options):
        asked.append(('all_reduce', tensor.numel()))
        return reduce(tensor, *args, **options)

    def hook(_, bucket):
        asked.append(('gradients', bucket.buffer().numel()))
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    wrap = DistributedDataParallel.__init__

    def init(self, *args, **options):
        wrap(self, *args, **options)
        self.register_comm_hook(None, hook)

    monkeypatch.setattr(dist, 'all_reduce', all_reduce)
    monkeypatch.setattr(DistributedDataParallel, '__init__', init)
    dist.init_process_group('fake', store=FakeStore(), rank=3, world_size=RANKS)
    try:
        yield asked
    finally:
        dist.destroy_process_group()


def step(exchanged, phase='min', classes=40, **values):
    """The training after a step, and what it exchanged."""
    assert (rank(), world_size()) == (3, RANKS)
    values = (
        dict(
            split=(0.0, 0.0),
            game=(0.0, 0.0),
            read_age=0.0,
            max_steps=1,
            min_steps=1,
            memory=0.0,
            variate='learned',
        )
        | values
    )
    recipe = replace(tiny(), batch_size=RANKS * SHARE, **values)
    training = main.Training(
        recipe, list(map(str, range(classes))), meta.age_cutoffs, torch.device('cpu')
    )
    training.total_steps, training.step = 100, 50 if phase == 'min' else 51
    images = torch.randint(0, 256, (SHARE, 3, 112, 96), dtype=torch.uint8)
    batch = images, torch.tensor([5, 39]), torch.tensor([20.0, 70.0])
    exchanged.clear()
    iterate(training, *batch, [SHARE] * RANKS)
    return training, list(exchanged)


BATCH, FIGURES, DIM, GROUPS, PEOPLE = RANKS * SHARE, 4, 16, 8, 40
STATISTICS = 2 * (4 + 8 + 8 + 4 * 16)  # means and variances of the seven batch norms
LOSSES = [('all_reduce', FIGURES), *2 * [('all_reduce', BATCH)]]  # and v_id, v_age, to correlate
AGE_HEAD = [('all_reduce', size) for size in (GROUPS, DIM * GROUPS, *2 * (DIM, DIM * DIM))]


def of_network(training):
    """The gradients of backbone and factorization, in one bucket here, and running statistics."""
    numbers = sum(
        p.numel()
        for part in (training.model.backbone, training.model.factorization)
        for p in part.parameters()
    )
    return [('gradients', numbers), ('all_reduce', STATISTICS)]


def test_the_collectives_of_a_step(exchanged):
    """Each costs a latency: no other may slip in."""
    training, asked = step(exchanged)
    there_and_back = LOSSES + LOSSES[::-1]
    head = [('all_reduce', PEOPLE * DIM)]
    assert asked[: len(there_and_back)] == there_and_back
    assert sorted(asked) == sorted(there_and_back + AGE_HEAD + head + of_network(training))


def test_the_collectives_of_a_max_step(exchanged):
    """Features and variate of the whole batch: w climbs on every rank alike."""
    _, asked = step(exchanged, 'max')
    assert asked == 3 * [('all_reduce', BATCH * DIM)]


def test_the_collectives_of_a_solved_adversary(exchanged):
    training, asked = step(exchanged, memory=0.9, variate='label', max_steps=0)
    climb = [('all_reduce', size) for size in (BATCH * DIM, BATCH, BATCH * DIM)]
    backward = [LOSSES[1], LOSSES[0]]  # an age has no gradient
    head = [('all_reduce', PEOPLE * DIM)]
    forward = climb + LOSSES + backward
    assert asked[: len(forward)] == forward
    assert sorted(asked) == sorted(forward + AGE_HEAD + head + of_network(training))


def test_the_collectives_of_a_sharded_head(exchanged):
    """One number a face and rank, and the features; its gradient stays where it is."""
    training, asked = step(exchanged, shard_head=True)
    features = [('all_reduce', size) for size in (BATCH * DIM, BATCH)]
    logits = [('all_reduce', size) for size in (2 * BATCH, 2 * RANKS * BATCH)]
    forward = features + logits + LOSSES
    backward = [*LOSSES[::-1], *logits[::-1], features[0]]
    norm = [('all_reduce', 1)]
    expected = forward + backward + AGE_HEAD + of_network(training) + norm
    assert sorted(asked) == sorted(expected) and asked[: len(forward)] == forward


@pytest.mark.parametrize('head', HEADS.values(), ids=HEADS)
@pytest.mark.parametrize('accumulate', [1, 2])
def test_every_head_on_eight_ranks(exchanged, head, accumulate):
    """Its gradients reach every weight, and each rank has its own people alone."""
    training, _ = step(exchanged, accumulate=accumulate, **head)
    assert all(p.grad is not None for p in training.model.parameters())
    assert training.model.identity.weight.shape[0] == (5 if 'shard_head' in head else 40)
    assert collections.Counter(training.means.counts.values()) == {1: len(training.means.counts)}
