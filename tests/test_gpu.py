"""What a GPU, or another processor, changes in a training; shown where there is none."""

import json
import shutil
import sys

import pytest
import torch
from conftest import batch, iterate, moved, new_training, refused, tiny

import utils
from recognition.weights import save_checkpoint
from training.resume import start, state_of

# small enough to begin with that no step overflows
SCALE = dict(scale=1024.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=3)
SCALE['_growth_tracker'] = 0


def training(**values):
    result = new_training(tiny(warmup=0.0, scale=8.0, **values), people=4)
    result.total_steps = 8
    result.executor.restore_scale(SCALE)
    return result


def test_the_fastest_precision_and_float32_is_no_tf32(monkeypatch):
    for precision, capabilities in (
        ('bf16', [(10, 0), (9, 0), (8, 0)]),
        ('fp16', [(7, 5), (7, 0)]),
        ('float32', [(6, 1)]),
    ):
        for found in capabilities:
            monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device, c=found: c)
            assert utils.fastest_precision(torch.device('cuda', 0)) == precision
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    utils.pick_device(-1)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    for onednn in [True, False]:
        for able in ['avx512_bf16', 'amx_bf16', 'bf16', None]:
            monkeypatch.setattr(
                torch.cpu, 'get_capabilities', lambda able=able: {able: True}, raising=False
            )
            monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda onednn=onednn: onednn)
            expected = 'bf16' if able and onednn else 'float32'
            assert utils.fastest_precision(torch.device('cpu')) == expected
            assert utils.fastest_precision(torch.device('mps')) == 'float32'


def losses(run, steps):
    found = []
    for step in range(run.step, run.step + steps):
        iterate(run, *batch(step))
        found.append(run.means.flush())
    return found


@pytest.mark.parametrize('precision', ['fp16', 'bf16'])
def test_half_precision_trains_as_float32_does(precision):
    plain, half = training(precision='float32'), training(precision=precision)
    for a, b in zip(losses(plain, 6), losses(half, 6), strict=True):
        assert a.keys() == b.keys() and a != b
        for name in ('loss', 'loss_id', 'loss_age', 'gradient'):
            assert a[name] == pytest.approx(b[name], rel=0.05), name
    for name, weight in plain.model.state_dict().items():
        apart = (half.model.state_dict()[name].float() - weight.float()).norm()
        assert apart <= 0.05 * weight.float().norm() + 0.02, name


def test_a_gradient_that_overflows_is_left_out():
    """The weights stay, the scale halves, the log has no NaN and training goes on."""
    for accumulate in (1, 2):
        run = training(precision='fp16', accumulate=accumulate)
        iterate(run, *batch())
        before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        run.executor.scaler.update(2.0**40)
        iterate(run, *batch(1))
        assert not moved(before, dict(run.model.named_parameters()))
        assert run.executor.scaler.get_scale() == 2.0**39
        assert run.not_finite.first() is None and run.means.flush()['gradient'] > 0
        run.executor.scaler.update(2.0**10)
        iterate(run, *batch(2))
        assert moved(before, dict(run.model.named_parameters()))
    # the first one too: PyTorch's fused SGD would go on from momentum that nothing has initialised
    run, other = training(precision='fp16'), training(precision='fp16')
    run.executor.restore_scale(SCALE | {'scale': 2.0**40})
    iterate(run, *batch())
    run.executor.restore_scale(SCALE)
    other.step = 1
    for each in (run, other):
        iterate(each, *batch(1))
    assert not moved(dict(run.model.named_parameters()), other.model)


def test_a_run_in_fp16_resumes_exactly_and_in_another_precision(tmp_path):
    """With the scale, and how many steps it has held."""
    whole, first, second = (training(precision='fp16') for _ in range(3))
    losses(first, 4)
    save_checkpoint(state_of(first, 8, tmp_path), tmp_path / 'last.pth')
    assert start(second, tmp_path / 'last.pth', True, 8) and second.step == 4
    assert second.executor.scaler.state_dict() == first.executor.scaler.state_dict()
    assert second.executor.scaler.get_scale() == 2048.0
    losses(whole, 4)
    assert losses(whole, 4) == losses(second, 4)
    assert not moved(whole.model.state_dict(), second.model)
    runs = [training(precision=precision) for precision in ('fp16', 'float32')]
    for run, other in (runs, runs[::-1]):
        losses(run, 1)
        save_checkpoint(state_of(run, 8, tmp_path), tmp_path / 'last.pth')
        assert start(other, tmp_path / 'last.pth', True, 8)
        losses(other, 1)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU, as far as pick_device asks; returns a function that says which."""
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda ctx: 'Some GPU')
    monkeypatch.setattr(torch.cuda, 'set_device', lambda ctx: None)

    def become(capability, built):
        monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda ctx: capability)
        monkeypatch.setattr(torch.cuda, 'get_arch_list', lambda: built)

    return become


def test_a_gpu_that_pytorch_is_built_for_or_not(gpu, monkeypatch):
    for capability, built in (
        ((7, 5), ['sm_75', 'sm_80']),
        ((8, 9), ['sm_75', 'sm_80', 'sm_90']),
        ((12, 1), ['sm_75', 'sm_120']),
        ((13, 0), ['sm_120', 'compute_120']),
        ((9, 0), ['sm_80', 'sm_90a']),
        ((9, 4), ['gfx942']),
    ):
        gpu(capability, built)
        assert utils.pick_device(0) == torch.device('cuda', 0)
    for capability, built in (
        ((6, 1), ['sm_75', 'sm_80', 'compute_120']),
        ((8, 0), ['sm_75', 'sm_86']),
        ((12, 0), ['sm_80', 'sm_90']),
    ):
        gpu(capability, built)
        has = 'Some GPU has compute capability {}.{}'.format(*capability)
        match = f'ctx 0: {has}, and PyTorch .* is built for {built[0]}, .*: install'
        refused(match, utils.pick_device, 0)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    gpu((9, 0), ['sm_90'])
    assert utils.pick_device(0).type == 'cuda'
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    assert utils.pick_device(0).type == 'mps'
    refused('ctx 1: this machine has 0', utils.pick_device, 1)


def test_a_compiled_backbone_trains_as_it_does():
    if not shutil.which('g++'):
        pytest.skip('torch.compile takes a compiler')
    plain, compiled = (training(precision='float32', compile=value) for value in (False, True))
    for a, b in zip(losses(plain, 2), losses(compiled, 2), strict=True):
        for name in ('loss', 'loss_id', 'loss_age', 'gradient'):
            assert a[name] == pytest.approx(b[name], rel=1e-3), name
    assert compiled.model.backbone._compiled_call_impl
    assert plain.model.state_dict().keys() == compiled.model.state_dict().keys()


@pytest.mark.gpu
def test_faces_are_copied_while_the_gpu_computes_and_cudnn_chooses_kernels():
    """A copy that is used too early, or whose memory is given away, would be of other numbers."""
    device = torch.device('cuda', 0)
    matrix, sums = torch.randn(4096, 4096, device=device), []
    faces = [torch.full((64, 3, 112, 96), k, dtype=torch.uint8).pin_memory() for k in range(50)]
    for face in faces:
        matrix = (matrix @ matrix).tanh()
        (copy,) = utils.to_device(device, face)
        sums.append(copy.float().mean())
        del copy
    assert torch.stack(sums).tolist() == list(range(50))
    for deterministic in (True, False):
        torch.use_deterministic_algorithms(deterministic)
        training(precision='float32')
        assert torch.backends.cudnn.benchmark != deterministic


def test_the_one_command_on_a_cpu(tmp_path, monkeypatch):
    """Of each kind of check one that a CPU can make, and one that fails."""
    import gpu

    checks = gpu.checks
    wanted = 'no wait: paper, max steps', 'beside the CPU in bf16', 'resume, bit for bit: fp16'

    def few(*args):
        everything = {row[0]: row for row in checks(*args)}
        yield from (everything[name] for name in wanted)
        yield 'fails', getattr, None, 'nothing'

    monkeypatch.setattr(gpu, 'checks', few)
    out = tmp_path / 'gpu.json'
    monkeypatch.setattr(sys, 'argv', ['gpu.py', '--ctx', '-1', '--tiny', '--out', str(out)])
    with pytest.raises(SystemExit, match='1'):
        gpu.run(gpu.arguments())
    report = json.loads(out.read_text())
    assert [row['result'] for row in report['checks']] == 3 * ['PASS'] + ['FAIL']
    assert {'torch', 'cuda', 'machine'} <= report.keys()
