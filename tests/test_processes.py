"""Several processes, or several parts, train as one process does with the whole batch; killed or told to end, they resume, in any number."""
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY
from processes import join, launch
from torch import nn

import main
import meta
import utils
from dataset import Batches
from model import CosFace, DALModel
from training import distributed, sharded
from training.recipe import small
from utils import DataError

PHASES = dict(max_steps=1, min_steps=1, memory=0., variate='learned')  # step 0 is the network's, step 1 the adversary's
MEMORY = dict(max_steps=0, memory=.5, variate='label')
FACES = 8


class Tiny(nn.Sequential):
    """A backbone, without batch norm or with one."""

    def __init__(self, norm=nn.Identity):
        super().__init__(nn.Conv2d(3, 4, 5, 4), nn.Tanh(), nn.Conv2d(4, 8, 3, 3), norm(8), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 9 * 7, 16))


def batches(steps):
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        squares = torch.randint(0, 256, (FACES, 3, 7, 6), dtype=torch.uint8, generator=generator)
        yield (squares.repeat_interleave(16, 2).repeat_interleave(16, 3),  # alike as noise, |ρ| would be of differences in the last digits
               torch.randint(0, 5, (FACES,), generator=generator), torch.randint(1, 80, (FACES,), generator=generator).float())


def steps(folder, kinds, double=False, batch_norm=False):
    """Two steps of each of `kinds`, recipes by name; what every process then has of them goes to folder/<name>.<rank>."""
    if double:  # where rounding does not hide what is not exact
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double
    main.make_backbone = lambda recipe: Tiny(nn.BatchNorm2d if batch_norm else nn.Identity)
    with distributed.process_group(-1) as device:
        for name, kind in kinds.items():
            plain = dict(bf16=False, read_age=0., warmup=0., lr=.01, scale=1., lambda_dal=.1, split=(0., 0.),
                         game=(0., 0.), clip=1e9, adversary_lr=.01)
            recipe = replace(small, **plain | kind)
            training = main.Training(recipe, list('abcde'), meta.age_cutoffs, device)
            training.total_steps, found = 2, []
            for batch in batches(2):
                shares = [part.tensor_split(distributed.world_size()) for part in batch]
                training.iterate(*(share[distributed.rank()] for share in shares), [len(share) for share in shares[0]])
                found.append({'gradients': {key: p.grad.clone() for key, p in training.model.named_parameters()}, 'means': training.means.flush(),
                              'climbs': training.climbs.flush(), 'model': {key: value.clone() for key, value in training.model.state_dict().items()},
                              'mapping': {key: value.clone() for key, value in training.mapping.state_dict().items()}})
            torch.save(found, f'{folder}/{name}.{distributed.rank()}')


def run(folder, count, kinds, **options):
    """What `steps` found, by kind and process."""
    folder.mkdir()
    assert join(launch(count, steps, folder, kinds, out=folder / 'out', **options)) == [0] * max(count, 1), (folder / 'out.0').read_text()
    return {name: [torch.load(folder / f'{name}.{rank}', weights_only=False) for rank in range(max(count, 1))] for name in kinds}


def assert_near(ours, theirs, tolerance):
    """Every tensor and number, to `tolerance` of the largest entry of the tensor, or of 1 where that is less."""
    for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        for kind in a:
            assert a[kind].keys() == b[kind].keys() and (a[kind] or kind in ('means', 'climbs'))
            for name in a[kind]:
                x, y = (torch.as_tensor(value[kind][name], dtype=torch.float64) for value in (a, b))
                assert (x - y).abs().max() <= tolerance * max(1, y.abs().max()), f'step {step}: {kind} {name}: {(x - y).abs().max():.1e}'


@pytest.fixture(scope='module')
def kinds():
    return {'phases': PHASES, 'memory': MEMORY}


@pytest.fixture(scope='module')
def one(kinds, tmp_path_factory):
    """One process on whole batches, in float32 and float64."""
    folder = tmp_path_factory.mktemp('one')
    return {double: run(folder / str(double), 0, kinds, double=double) for double in (False, True)}


def in_parts(kinds):
    return kinds | {f'{name} in parts': kind | {'accumulate': 2} for name, kind in kinds.items()}


def test_parts_are_the_whole(kinds, one, tmp_path):
    found = run(tmp_path / 'run', 0, {name: kind | {'accumulate': parts} for name, kind in kinds.items() for parts in (3,)}, double=True)
    for name in kinds:
        assert_near(found[name][0], one[True][name][0], 1e-11)


@pytest.mark.parametrize('count', [2, 3])
def test_several_processes_are_one(kinds, one, tmp_path, count):
    """Losses, every gradient, |ρ|, the steps of both players; 8 faces on 3 processes are 3, 3, 2, and in two parts 2 + 1, 2 + 1, 1 + 1."""
    for double, tolerance in ((False, 1e-6), (True, 1e-11)):
        found = run(tmp_path / str(double), count, in_parts(kinds), double=double)
        for name, processes in found.items():
            reference = one[double][name.removesuffix(' in parts')][0]
            if double or name.startswith('phases'):  # Adam's first step in float32 is the sign of rounding where a gradient is near 0
                assert_near(processes[0], reference, tolerance)
            for other in processes[1:]:
                assert_near(other, processes[0], 0)
    assert reference[1]['climbs'] and reference[1]['means']['rho'] > .01


@pytest.mark.parametrize('count', [2, 3])
def test_synchronized_batch_norm_sees_the_whole_batch(tmp_path, count):
    kinds = {'synchronized': PHASES | {'sync_batchnorm': True}, 'of shares': PHASES, 'of parts': PHASES | {'sync_batchnorm': True, 'accumulate': 2}}
    for double, tolerance in ((False, 1e-4), (True, 1e-11)):
        reference = run(tmp_path / f'one {double}', 0, {'phases': PHASES}, double=double, batch_norm=True)['phases'][0]
        found = run(tmp_path / str(double), count, kinds, double=double, batch_norm=True)
        assert_near(found['synchronized'][0], reference, tolerance)
        for other in ('of shares', 'of parts'):
            with pytest.raises(AssertionError):
                assert_near(found[other][0], reference, tolerance)
        for processes in found.values():
            for other in processes[1:]:
                assert_near(other, processes[0], 0)


def test_every_face_once_whatever_the_number_of_processes():
    whole = list(Batches(103, 10, 0))
    for count in (2, 3, 4):
        shares = [list(Batches(103, 10, 0, process, count)) for process in range(count)]
        assert [sum(parts, []) for parts in zip(*shares)] == whole
        assert all(max(map(len, parts)) - min(map(len, parts)) <= 1 for parts in zip(*shares))
    assert len(set(sum(whole, []))) == 100


# the command line

SETTINGS = ('bf16=False', 'max_steps=2', 'min_steps=3', 'memory=0.', 'variate=learned', 'split=(0.,0.)', 'game=(0.,0.)',
            'read_age=0.', 'scale=8.')


def train(entry, save, *line, settings=(), prepare=lambda: None):
    """What `torchrun main.py -1 …` does on each process."""
    meta.here, main.make_backbone = entry, lambda recipe: Tiny()
    sys.argv = ['main.py', '-1', *map(str, line), '--dataset', 'here', '--save', str(save), '--recipe', 'small', '--set', *TINY, *SETTINGS, *settings]
    prepare()
    with utils.one_line_errors():
        main.run(main.arguments())


def job(count, entry, save, *line, **options):
    """The job of `count` processes, awaited: exit statuses and all that they said."""
    statuses = join(launch(count, train, entry, save, *line, out=f'{save}.out', **options))
    return statuses, [Path(f'{save}.out.{rank}').read_text() for rank in range(max(count, 1))]


def state(save):
    return torch.load(save / 'last.pth', weights_only=True)


def flat(value, name=''):
    """All tensors and numbers in a state, by name."""
    if isinstance(value, dict):
        return {key: tensor for part in value for key, tensor in flat(value[part], f'{name}.{part}').items()}
    return {name: torch.as_tensor(value, dtype=torch.float64)} if torch.is_tensor(value) or isinstance(value, (int, float)) else {}


def distance(a, b):
    """Of two states: the largest difference of an entry."""
    a, b = flat(a), flat(b)
    assert a.keys() == b.keys() and len(a) > 15
    return max((a[key] - b[key]).abs().max().item() for key in a)


@pytest.fixture(scope='module')
def whole(drawn, tmp_path_factory):
    """Two processes that nothing disturbs, for three epochs."""
    entry = {'train_root': str(drawn / 'train'), 'val_root': str(drawn / 'val'), 'pat': r'_|\.', 'pos': 1, 'n_cls': 8}
    folder = tmp_path_factory.mktemp('whole') / 'run'
    statuses, said = job(2, entry, folder, 3)
    assert statuses == [0, 0], said
    assert 'on 2 × cpu' in said[0] and said[0].count('epoch ') == 3 and not said[1]
    return folder


def test_resume_with_other_numbers_of_processes(entry, whole, tmp_path):
    for epochs, count in enumerate((2, 0, 2), 1):
        statuses, said = job(count, entry, tmp_path / 'run', epochs, '--resume', '--horizon', 3)
        assert not any(statuses), said
        if epochs == 2:
            assert 'warning: processes was 2 at the call before and is 1 now' in said[0]
    ours, theirs = state(tmp_path / 'run'), state(whole)
    assert ours['step'] == theirs['step'] == 15 and distance(ours['model'], theirs['model']) < 1e-4
    assert {path.name for path in whole.iterdir() if 'events' not in path.name} == {path.name for path in (tmp_path / 'run').iterdir() if 'events' not in path.name}


def same_run(save, whole):
    ours, theirs = state(save), state(whole)
    assert distance({**ours, 'recipe': 0}, {**theirs, 'recipe': 0}) == 0


@pytest.mark.parametrize('seed', [0, 1])
def test_a_killed_process_ends_the_job_and_it_resumes(entry, whole, tmp_path, seed):
    """kill −9 of either of two, in the middle of a random step."""
    draw = random.Random(seed)
    victim, nth = seed, draw.randint(2, 14)

    def prepare():
        step, calls = torch.optim.SGD.step, [0]

        def struck(self, *args):
            calls[0] += 1
            if calls[0] == nth and distributed.rank() == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, *args)
        torch.optim.SGD.step = struck
    statuses, said = job(2, entry, tmp_path / 'run', 3, '--save-every', 2, prepare=prepare)
    assert statuses[victim] == -signal.SIGKILL and statuses[1 - victim] == 1
    assert f'error: process {1 - victim} of 2 lost the others' in said[1 - victim] and 'Traceback' not in said[1 - victim]
    statuses, said = job(2, entry, tmp_path / 'run', 3, '--save-every', 2, '--resume')
    assert statuses == [0, 0], said
    same_run(tmp_path / 'run', whole)


@pytest.mark.parametrize('moment', ['step', 'validation'])
@pytest.mark.parametrize('told', [(0,), (1,), (0, 1, 1)])
def test_a_signal_to_any_process_saves_once_and_ends_all(entry, whole, tmp_path, told, moment):
    """(0, 1, 1): to all, and repeated, as where a scheduler tells the whole job and the launcher passes it on."""
    if moment == 'validation' and told == (1,):
        pytest.skip('the others wait for the one that validates')

    def prepare():
        owner, name = (main.Training, 'iterate') if moment == 'step' else (main.DALModel, 'features')
        original, calls = getattr(owner, name), [0]

        def struck(self, *args, **options):
            calls[0] += moment == 'step' or not self.training and torch.is_inference_mode_enabled()
            for _ in range(told.count(distributed.rank()) * (calls[0] == (7 if moment == 'step' else 1))):
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *args, **options)
        setattr(owner, name, struck)
        import training.validation as validation
        validation.evaluation_loader = lambda faces: original_loader(faces, 4)
        from dataset import evaluation_loader as original_loader
    statuses, said = job(2, entry, tmp_path / 'run', 3, prepare=prepare)
    assert statuses == [1, 1], said
    after = 7 if moment == 'step' else 5
    assert f'error: SIGTERM after step {after}: saved; --resume continues' in said[0] and 'error' not in said[1]
    assert state(tmp_path / 'run')['step'] == after and state(tmp_path / 'run')['epoch'] == after // 7
    statuses, said = job(2, entry, tmp_path / 'run', 3, '--resume')
    assert statuses == [0, 0], said
    same_run(tmp_path / 'run', whole)


def test_what_one_process_finds_all_say_once(entry, tmp_path, drawn):
    """A face that rots in the share of the second; a folder that is taken; a batch too small for all."""
    def prepare():
        from dataset import Faces
        original = Faces.__getitems__

        def rotten(self, indices):
            if distributed.rank() == 1 and distributed.world_size() == 2:
                raise DataError('face.jpg: rotten')
            return original(self, indices)
        Faces.__getitems__ = rotten
    for options, line, message in ((dict(prepare=prepare), (1,), 'face.jpg: rotten'), ({}, (1,), 'holds a run already'),
                                   ({}, (1, '--resume', '--batch-size', 3), 'less than two faces for each of 2 process(es)')):
        statuses, said = job(2, entry, tmp_path / 'run', *line, **options)
        assert statuses == [1, 1] and sum(text.count('error: ') for text in said) == 1 and message in said[0] + said[1], said
        assert 'Traceback' not in said[0] + said[1]


def test_torchrun_restarts_what_was_killed(entry, tmp_path):
    """PyTorch's own launcher, the command as a user types it; kill −9 of a process; it starts both anew and they go on."""
    (tmp_path / 'meta_here.py').write_text(f'import meta\nmeta.here = {entry!r}\nimport runpy, sys\nsys.argv[0] = "main.py"\n'
                                           f'sys.path.insert(0, {str(ROOT)!r})\nrunpy.run_path({str(ROOT / "main.py")!r}, run_name="__main__")\n')
    save = tmp_path / 'run'
    line = [sys.executable, '-m', 'torch.distributed.run', '--nproc-per-node', '2', '--max-restarts', '1', '--monitor-interval', '.1', '--standalone',
            tmp_path / 'meta_here.py', '-1', '3', '--resume', '--save-every', '1', '--dataset', 'here', '--save', save, '--recipe', 'small', '--set', *TINY, *SETTINGS]
    process = subprocess.Popen(list(map(str, line)), cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (save / 'epoch_001.pth').exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(.02)
    holder = int((save / '.lock').read_text().split()[1])
    os.kill(holder, signal.SIGKILL)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and 'epoch 3/3' in said, said
    assert state(save)['step'] == 15 and int((save / '.lock').read_text().split()[1]) != holder


# an identity head in slices

def joined(processes):
    """Of what each process found: the slices of the head as a whole, everything else as the first has it."""
    found = [{kind: dict(step[kind]) for kind in step} for step in processes[0]]
    for number, step in enumerate(found):
        for kind in ('gradients', 'model'):
            step[kind]['identity.weight'] = torch.cat([process[number][kind]['identity.weight'] for process in processes])
    return found


@pytest.mark.parametrize('count', [0, 2, 3])
def test_a_sharded_head_is_the_plain_one(one, tmp_path, count):
    """5 people on 3 processes are 2, 2, 1; clipped, as the norm is of all slices."""
    kinds = {name: PHASES | {'shard_head': True} | more for name, more in (('whole', {}), ('parts', {'accumulate': 2}), ('clipped', {'clip': .5}))}
    reference = one[True] | {'clipped': run(tmp_path / 'one', 0, {'clipped': PHASES | {'clip': .5}}, double=True)['clipped']}
    for name, processes in run(tmp_path / 'run', count, kinds, double=True).items():
        assert_near(joined(processes), reference.get(name, one[True]['phases'])[0], 1e-11)
        assert all(len(process[0]['model']['identity.weight']) <= -(-5 // max(count, 1)) for process in processes)


def test_sampled_negatives():
    """The batch's people and as many others as asked; at half the people the loss is of those
    alone, and the others have no gradient."""
    torch.manual_seed(0)
    batch = distributed.Batch()
    batch.begin([6], 0)
    half = sharded.sharded(CosFace)(8, 40, 4., .2, batch=batch, sample_rate=.5)
    plain = CosFace(8, 40, 4., .2)
    plain.load_state_dict(half.state_dict())
    features, labels = torch.randn(6, 8), torch.tensor([3, 3, 39, 0, 7, 20])
    torch.manual_seed(1)
    loss, right = half.loss(features, labels)
    loss.sum().backward()
    used = half.weight.grad.abs().sum(1) > 0
    torch.manual_seed(1)
    logits = half.logits(features, labels)[0]
    assert logits.shape == (6, 20) and used.sum() == 20 and used[labels].all()
    kept = plain(features, labels)[:, used]
    torch.testing.assert_close(logits, kept)
    places = used.cumsum(0)[labels] - 1
    torch.testing.assert_close(loss, nn.functional.cross_entropy(kept, places, reduction='none'))
    assert right.tolist() == (plain(features)[:, used].argmax(1) == places).tolist()
    half.sample_rate = .05  # fewer people than the batch has faces
    assert half.logits(features, labels)[0].shape == (6, 6)


def test_a_sharded_head_is_read_by_any_number_of_processes(entry, whole, tmp_path):
    """2 → 1 → 3 processes, each with a slice; then a plain head goes on from it; the weights files are as ever."""
    for epochs, count, slices in ((1, 2, True), (2, 0, True), (3, 3, True)):
        statuses, said = job(count, entry, tmp_path / 'run', epochs, '--resume', '--horizon', 3, settings=[f'shard_head={slices}'])
        assert not any(statuses), said
        folder, = tmp_path.glob('run/head-*')
        assert len(list(folder.glob('*.distcp'))) == max(count, 1)
    ours, theirs = (torch.load(folder / 'epoch_003.pth', weights_only=True) for folder in (tmp_path / 'run', whole))
    assert distance(ours['model'], theirs['model']) < 1e-4
    DALModel.load(tmp_path / 'run/epoch_003.pth', Tiny())
    for count, slices in ((0, False), (2, True)):
        statuses, said = job(count, entry, tmp_path / 'run', 4 + slices, '--resume',
                             settings=[f'shard_head={slices}'])
        assert not any(statuses) and 'starting anew' not in said[0], said
    folder, = tmp_path.glob('run/head-*')
    (folder / '.metadata').write_bytes(pickle.dumps(Hostile()))
    statuses, said = job(0, entry, tmp_path / 'run', 6, '--resume', settings=['shard_head=True'])
    assert statuses == [1] and f'error: {folder}: not the identity head of this state' in said[0] and 'this ran' not in said[0]


class Hostile:
    def __reduce__(self):
        return os.system, ('echo this ran',)
