"""The benchmarks run to their end on a tiny network; what they measure is not checked."""

import pytest
import torch
from conftest import ROOT, TINY, tiny

import backbones
import meta
from dataset import Faces

CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'benchmarks')
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)  # an arm sets it to one


@pytest.mark.parametrize('arm', ['identity only', 'game', 'closed form'])
def test_an_arm_of_the_ablation(entry, tmp_path, monkeypatch, arm):
    import ablation

    monkeypatch.setattr(meta, 'ablation', None, raising=False)
    monkeypatch.setattr('sys.argv', [])
    settings = f'{" ".join(TINY)} {ablation.ARMS[arm]}'
    rows = [
        ablation.run('here', entry, arm, settings, seed, 1, tmp_path / f'run{seed}')
        for seed in (0, 1)
    ]
    table = ablation.markdown({'summary': ablation.summary(rows)})
    assert table.splitlines()[2].startswith(f'| {arm} | 2 | 0.')


def test_the_last_blocks_alone(entry, tmp_path, monkeypatch):
    """They make of the kept activations what the whole network makes of the faces, and their
    mirrors; they are trained and measured like it."""
    import ablation
    import last_blocks

    init = tmp_path / 'mobilefacenet.pth'
    torch.manual_seed(0)
    torch.save(backbones.build('mobilefacenet').state_dict(), init)
    kept = last_blocks.Activations(entry['val_root'], entry, init, tmp_path / 'kept')
    end = last_blocks.LastBlocks(init).eval()
    network = backbones.load('mobilefacenet', init).eval()
    images = Faces(entry['val_root'], entry['pat'], entry['pos'], 112).__getitems__(range(4))[0]
    with torch.no_grad():
        for flip in (lambda x: x, lambda x: x.flip(-1)):
            torch.testing.assert_close(
                end(flip(kept.values[:4]).float()), network(flip(images)), rtol=0.02, atol=0.02
            )
    monkeypatch.setattr(meta, 'ablation', None, raising=False)
    monkeypatch.setattr('sys.argv', [])
    arms = [('untouched', 0), ('identity only', 0), ('closed form', 0)]

    def place(arm, seed, *_):
        return tmp_path / f'{arm}-{seed}'

    rows = [
        ablation.run(
            'here',
            entry,
            arm,
            f'{ablation.ARMS[arm]} batch_size=8',
            seed,
            1,
            place(arm, seed),
            str(init),
            True,
        )
        for arm, seed in arms
    ]
    val = Faces(entry['val_root'], entry['pat'], entry['pos'])
    people = ablation.over_people(rows, place, val)
    assert set(people) == {'untouched', 'closed form'} and people['closed form']['n'] == 1
    assert people['closed form']['auc'][0] == pytest.approx(rows[2]['auc'] - rows[1]['auc'])


def test_trainers_and_their_convolutions(drawn):
    import speed

    faces = Faces(drawn / 'train', meta.demo['pat'], meta.demo['pos'])
    fine = tiny(factorization='solved', within_person=True, lambda_dal=0.0)
    ours = speed.Ours(faces, fine, CPU)
    for trainer in (speed.Conventional(faces, tiny(), -1), ours):
        trainer.step('min')
    speed.convolutions(ours.training, 8, CPU)()
