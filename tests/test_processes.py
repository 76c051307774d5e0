"""Several ranks or micro-batches train as one process does; a run resumes on any number."""

import pytest
import torch
from conftest import tiny
from processes import ALTERNATING, KINDS, assert_near, distance, job, run_steps, state

import main
import meta
from dataset import Batches, Faces
from training import distributed
from utils import DataError, UserError


@pytest.mark.parametrize('count', [0, 2, 3])
def test_several_ranks_and_micro_batches_are_one(one_rank, tmp_path, count):
    """Losses, every gradient, |ρ|, the steps of both players. 8 faces in 3 micro-batches, or on 3
    ranks, are 3, 3, 2; there in two micro-batches each 2 + 1, 2 + 1, 1 + 1."""
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


def test_synchronized_batch_norm_is_refused_on_a_cpu():
    recipe = tiny(sync_batchnorm=True)
    with pytest.raises(UserError, match='sync_batchnorm needs GPUs, not cpu'):
        main.Training(recipe, list('ab'), meta.age_cutoffs, torch.device('cpu'))


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
