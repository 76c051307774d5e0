"""Several ranks or micro-batches train as one process does; a run resumes on any number."""

import collections

import pytest
import torch
import torch.distributed as dist
from conftest import iterate, new_training, refused, tiny
from processes import ALTERNATING, KINDS, assert_near, distance, job, run_steps, state
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from dataset import Batches, Faces
from training import distributed
from training.distributed import rank, world_size
from utils import DataError


@pytest.mark.parametrize('count', [0, 2, 3])
def test_several_ranks_and_micro_batches_are_one(one_rank, tmp_path, count):
    """8 faces on 3 ranks, or in 3 micro-batches, are 3, 3, 2; in two each 2 + 1, 2 + 1, 1 + 1."""
    part = {'accumulate': 2 if count else 3}
    kinds = KINDS | {f'{name} in parts': kind | part for name, kind in KINDS.items()}
    for double, tolerance in ((False, 1e-6), (True, 1e-11)):
        found = run_steps(tmp_path / str(double), count, kinds, double=double)
        for name, ranks in found.items():
            reference = one_rank[double][name.removesuffix(' in parts')][0]
            # Adam's first step in float32 is the sign of rounding where a gradient is near 0
            if double or name.startswith('phases'):
                assert_near(ranks[0], reference, tolerance)
            for other in ranks[1:]:
                assert_near(other, ranks[0], 0)
    assert reference[1]['climbs'] and reference[1]['means']['rho'] > 0.01


def test_batch_norm_sees_its_rank_alone_and_running_statistics_are_the_mean(tmp_path):
    found = run_steps(tmp_path / '2', 2, {'phases': ALTERNATING}, double=True, batch_norm=True)
    one = run_steps(tmp_path / '1', 0, {'phases': ALTERNATING}, double=True, batch_norm=True)
    with pytest.raises(AssertionError):
        assert_near(found['phases'][0], one['phases'][0], 1e-11)
    assert_near(found['phases'][1], found['phases'][0], 0)
    why = 'sync_batchnorm needs GPUs, not cpu'
    refused(why, new_training, tiny(sync_batchnorm=True))


def test_every_face_once_whatever_the_world_size():
    whole = list(Batches(103, 10, 0))
    for count in (2, 3, 4):
        shares = [list(Batches(103, 10, 0, rank, count)) for rank in range(count)]
        together = list(zip(*shares, strict=True))
        assert [sum(parts, []) for parts in together] == whole
        assert all(max(map(len, parts)) - min(map(len, parts)) <= 1 for parts in together)
    assert len(set(sum(whole, []))) == 100


def files(save):
    """Names of what is in the save folder; those of TensorBoard hold a time."""
    return {path.name for path in save.iterdir() if 'events' not in path.name}


def test_resume_with_other_numbers_of_ranks(entry, undisturbed, tmp_path):
    for epochs, count in enumerate((2, 0, 2), 1):
        statuses, said = job(count, entry, tmp_path / 'run', epochs, '--resume', '--horizon', 3)
        assert not any(statuses), said
        if epochs == 2:
            assert 'warning: processes was 2 at the call before and is 1 now' in said[0]
    ours, theirs = state(tmp_path / 'run'), state(undisturbed)
    assert ours['step'] == theirs['step'] == 15 and distance(ours['model'], theirs['model']) < 1e-4
    assert files(undisturbed) == files(tmp_path / 'run')


def rot():
    """Rank 1 of two can't read its faces."""
    original = Faces.__getitems__

    def rotten(self, indices):
        if distributed.rank() == 1 and distributed.world_size() == 2:
            raise DataError('face.jpg: rotten')
        return original(self, indices)

    Faces.__getitems__ = rotten


def test_what_one_rank_finds_all_say_once(entry, tmp_path):
    """A face of rank 1 that is rotten; a folder that holds a run; a batch too small for all."""
    small = (1, '--resume', '--batch-size', 3)
    for options, line, message in (
        (dict(prepare=rot), (1,), 'face.jpg: rotten'),
        ({}, (1,), 'holds a run already'),
        ({}, small, 'less than two faces for each of 2 process(es)'),
    ):
        statuses, said = job(2, entry, tmp_path / 'run', *line, **options)
        said = ''.join(said)
        assert statuses == [1, 1] and said.count('error: ') == 1 and message in said, said
        assert 'Traceback' not in said


RANKS, SHARE = 8, 2
HEADS = {'plain': {}, 'arcface': dict(head='arcface'), 'sharded': dict(shard_head=True)}
HEADS['sampled'] = dict(shard_head=True, sample_rate=0.5)
HEADS['sharded arcface'] = dict(shard_head=True, head='arcface')


@pytest.fixture
def exchanged(monkeypatch):
    """A fake group of eight that nobody answers; the names and sizes it is asked for, in order."""
    asked, reduce = [], dist.all_reduce

    def all_reduce(tensor, *args, **options):
        asked.append(('all_reduce', tensor.numel()))
        return reduce(tensor, *args, **options)

    def hook(_, bucket):  # DistributedDataParallel's own expects more of a future than is there
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
    """Each costs a latency: no other may slip in. Gradients go in one bucket here."""
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
