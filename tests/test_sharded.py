"""A head in slices on several ranks is the plain head; any number of ranks reads its files."""

import itertools
import shutil

import pytest
import torch
from conftest import Hostile, state_dict_of
from processes import ALTERNATING, Tiny, assert_near, distance, job, join, launch, run_steps
from torch import nn

from model import CosFace, DALModel
from training import distributed, sharded


@pytest.mark.parametrize('count', [0, 2, 3])
def test_a_sharded_head_is_the_plain_one(one_rank, tmp_path, count):
    """5 people on 3 ranks are 2, 2, 1. Where gradients are clipped, the norm is of all slices."""
    sliced, clipped = ALTERNATING | {'shard_head': True}, {'clip': 0.5}
    kinds = {'whole': sliced, 'parts': sliced | {'accumulate': 2}, 'clipped': sliced | clipped}
    plain = run_steps(tmp_path / 'one', 0, {'clipped': ALTERNATING | clipped}, double=True)
    for name, ranks in run_steps(tmp_path / 'run', count, kinds, double=True).items():
        reference = plain.get(name, one_rank[True]['phases'])[0]
        # the whole of the head's slices, all else as rank 0 has it
        joined = [{kind: dict(step[kind]) for kind in step} for step in ranks[0]]
        for number, kind in itertools.product(range(len(joined)), ('gradients', 'model')):
            slices = [rank[number][kind]['identity.weight'] for rank in ranks]
            joined[number][kind]['identity.weight'] = torch.cat(slices)
        assert_near(joined, reference, 1e-11)
        rows = [len(rank[0]['model']['identity.weight']) for rank in ranks]
        assert max(rows) <= -(-5 // max(count, 1))


def made(head, **options):
    """The head of 40 people, and six faces with their labels."""
    torch.manual_seed(0)
    features, labels = torch.randn(6, 8), torch.tensor([3, 3, 39, 0, 7, 20])
    return head(8, 40, 4.0, 0.2, **options), features, labels


def test_sampled_negatives():
    """The batch's people and as many others as asked; the loss is of those alone."""
    layout = distributed.BatchLayout()
    layout.begin([6], 0)
    half, features, labels = made(sharded.sharded(CosFace), layout=layout, sample_rate=0.5)
    plain, _, _ = made(CosFace)
    torch.manual_seed(1)
    loss, right = half.loss(features, labels)
    loss.sum().backward()
    used = half.weight.grad.abs().sum(1) > 0
    torch.manual_seed(1)
    logits = half.logits(features, labels)[0]
    assert logits.shape == (6, 20) and used.sum() == 20 and used[labels].all()
    kept = plain.hardened(plain(features), labels)[0][:, used]
    torch.testing.assert_close(logits, kept)
    places = used.cumsum(0)[labels] - 1
    torch.testing.assert_close(loss, nn.functional.cross_entropy(kept, places, reduction='none'))
    assert right.tolist() == (plain(features)[:, used].argmax(1) == places).tolist()
    half.sample_rate = 0.05  # fewer people than the batch has faces
    assert half.logits(features, labels)[0].shape == (6, 6)


class AdaFace(CosFace):
    """A margin that needs the norms of the features (Kim et al., 2022), and a loss of its own."""

    def loss(self, features, labels):
        self.norms = features.detach().norm(dim=1)
        loss, right = super().loss(features, labels)
        return 100 * loss, right

    def margin(self, cosine, label):
        return cosine - self.m * self.norms / self.norms.mean()


def slice_of_adaface(folder):
    """The loss and the gradient of a rank's slice and share of a batch."""
    with distributed.process_group(-1):
        rank, layout = distributed.rank(), distributed.BatchLayout()
        layout.begin([4, 2], 0)
        head, features, labels = made(sharded.sharded(AdaFace), layout=layout)
        share = features.split(layout.sizes)[rank].requires_grad_()
        loss, right = head.loss(share, labels.split(layout.sizes)[rank])
        layout.mean(loss)[0].backward()
        torch.save((loss.detach(), right, head.weight.grad, share.grad), f'{folder}/{rank}')


def test_a_head_owns_its_loss_and_its_margin_in_slices_too(tmp_path):
    whole, features, labels = made(AdaFace)
    loss, right = whole.loss(features, labels)
    loss.mean().backward()
    assert join(launch(2, slice_of_adaface, tmp_path, out=tmp_path / 'out')) == [0, 0]
    ranks = [torch.load(tmp_path / str(rank)) for rank in range(2)]
    torch.testing.assert_close(torch.cat([found[0] for found in ranks]), loss.detach())
    assert torch.cat([found[1] for found in ranks]).tolist() == right.tolist()
    gradient = torch.cat([found[2] for found in ranks])
    torch.testing.assert_close(gradient, whole.weight.grad, rtol=1e-5, atol=1e-4)


def test_a_sharded_head_is_read_by_any_number_of_ranks(entry, undisturbed, tmp_path):
    """2 → 1 → 3 ranks, each with a slice; a plain head goes on from it, a sharded one from that."""
    save, slices = tmp_path / 'run', dict(settings=['shard_head=True'])
    for epochs, count in ((1, 2), (2, 0), (3, 3)):
        statuses, said = job(count, entry, save, epochs, '--resume', '--horizon', 3, **slices)
        assert not any(statuses), said
        (folder,) = save.glob('head-*')
        assert len(list(folder.glob('*.pth'))) == max(count, 1)
    ours, theirs = (state_dict_of(folder / 'epoch_003.pth') for folder in (save, undisturbed))
    assert distance(ours, theirs) < 1e-4
    DALModel.load(save / 'epoch_003.pth', Tiny())
    for epochs, count, options in ((4, 0, {}), (5, 2, slices)):
        statuses, said = job(count, entry, save, epochs, '--resume', **options)
        assert not any(statuses) and 'starting anew' not in said[0], said
    (folder,) = save.glob('head-*')
    for file in folder.glob('*.pth'):
        torch.save(Hostile(), file)
    statuses, said = job(0, entry, save, 6, '--resume', **slices)
    assert statuses == [1] and 'this ran' not in said[0]
    assert f'error: {folder}: not the identity head of this state' in said[0]
    shutil.rmtree(folder)
    statuses, said = job(0, entry, save, 6, '--resume', **slices)
    assert statuses == [1] and 'not the identity head of this state' in said[0]
