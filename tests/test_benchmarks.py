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


@pytest.mark.parametrize('arm', ['identity only', 'game'])
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


def test_arms_that_train_the_last_blocks_alone(entry, tmp_path, monkeypatch):
    import ablation

    init = tmp_path / 'mobilefacenet.pth'
    torch.manual_seed(0)
    torch.save(backbones.build('mobilefacenet').state_dict(), init)
    monkeypatch.setattr(meta, 'ablation', None, raising=False)
    monkeypatch.setattr('sys.argv', [])

    def place(arm, seed, *_):
        return tmp_path / f'{arm}-{seed}'

    rows = []
    for arm in ('untouched', 'identity only', 'closed form'):
        settings = f'{ablation.ARMS[arm]} batch_size=8'
        row = ablation.run('here', entry, arm, settings, 0, 1, place(arm, 0), str(init), True)
        rows.append(row)
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
        trainer.step()
    speed.convolutions(ours.training, 8, CPU)()
