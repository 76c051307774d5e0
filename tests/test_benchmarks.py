"""The benchmarks run to their end on a tiny network; what they measure is not checked."""
import pytest
import torch
from conftest import ROOT, TINY, tiny

import meta
from dataset import Faces


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
    monkeypatch.setitem(ablation.ARMS, arm, f'{" ".join(TINY)} {ablation.ARMS[arm]}')
    rows = [ablation.run('here', entry, arm, seed, 1, tmp_path / f'run{seed}') for seed in (0, 1)]
    assert ablation.markdown(ablation.summary(rows)).splitlines()[2].startswith(f'| {arm} | 2 | 0.')


def test_trainers_and_their_convolutions(drawn):
    import parts
    import speed
    faces = Faces(drawn / 'train', meta.demo['pat'], meta.demo['pos'])
    recipe = tiny()
    changed = [parts.variant(faces, name, recipe, -1) for name in ('', *parts.VARIANTS)
               if name != 'compiled']  # which takes a compiler
    for trainer in (speed.Conventional(faces, recipe, -1), *changed):
        trainer.step('min')
    speed.convolutions(changed[0].training, 8, torch.device('cpu'))()
