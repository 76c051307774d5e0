"""What the ranks exchange in a step: a fake job of eight, of which this process is one."""

import collections

import pytest
import torch
import torch.distributed as dist
from conftest import iterate, new_training, tiny
from processes import ALTERNATING
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from training.distributed import rank, world_size

RANKS, SHARE = 8, 2
HEADS = {'plain': {}, 'arcface': dict(head='arcface'), 'sharded': dict(shard_head=True)}
HEADS['sampled'] = dict(shard_head=True, sample_rate=0.5)
HEADS['sharded arcface'] = dict(shard_head=True, head='arcface')


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
    ramps = dict(split=(0.0, 0.0), game=(0.0, 0.0), read_age=0.0, batch_size=RANKS * SHARE)
    training = new_training(tiny(**ramps | ALTERNATING | values), classes)
    training.total_steps, training.step = 100, 51 if phase == 'max' else 50
    images = torch.randint(0, 256, (SHARE, 3, 112, 96), dtype=torch.uint8)
    batch = images, torch.tensor([5, 39]), torch.tensor([20.0, 70.0])
    exchanged.clear()
    iterate(training, *batch, [SHARE] * RANKS)
    return training, list(exchanged)


SOLVED = dict(memory=0.9, variate='label', max_steps=0)
COUNTS = {'min': ({}, 15), 'max': ({}, 3), 'solved': (SOLVED, 17)}
COUNTS['sharded'] = HEADS['sharded'], 22


@pytest.mark.parametrize('phase', COUNTS)
def test_the_collectives_of_a_step(exchanged, phase):
    """Each costs a latency: no other may slip in. Gradients go in one bucket here, those of a
    sharded head not at all."""
    values, count = COUNTS[phase]
    training, asked = step(exchanged, phase, **values)
    parts = training.model.backbone, training.model.factorization
    gradients = ('gradients', sum(p.numel() for part in parts for p in part.parameters()))
    assert len(asked) == count and asked.count(gradients) == (phase != 'max')
    head = 'all_reduce', training.model.identity.weight.numel()
    assert (head in asked) == (phase in ('min', 'solved'))


@pytest.mark.parametrize('head', HEADS.values(), ids=HEADS)
@pytest.mark.parametrize('accumulate', [1, 2])
def test_every_head_on_eight_ranks(exchanged, head, accumulate):
    """Its gradients reach every weight, and each rank has its own people alone."""
    training, _ = step(exchanged, accumulate=accumulate, **head)
    assert all(p.grad is not None for p in training.model.parameters())
    assert training.model.identity.weight.shape[0] == (5 if 'shard_head' in head else 40)
    assert collections.Counter(training.means.counts.values()) == {1: len(training.means.counts)}
