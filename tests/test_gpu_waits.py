"""Between two reports the host never waits for a GPU. Here it is one that isn't there: tensors that
have a device, a type and a shape, and no values.

PyTorch's fake tensors need no GPU for operations on `cuda`. The backward pass does, so that here a
gradient comes from nowhere.
"""

import contextlib
from dataclasses import replace

import pytest
import torch
from conftest import iterate
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import main
import meta
from training.recipe import finetune, paper, ramped

# they end in a value on the host, or in a shape that depends on values: the host waits for either
WAITING = {'_local_scalar_dense', 'nonzero', 'masked_select', 'equal', 'is_nonzero', 'bincount'}
WAITING |= {'_unique2', 'unique_dim', 'unique_consecutive', 'repeat_interleave'}


class Waited(AssertionError):
    """An operation for which the host waits for the device."""


class NoWaits(TorchDispatchMode):
    """Raises Waited where the host would wait, as torch.cuda.set_sync_debug_mode('error') does."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, operation.overloadpacket.__name__
        if name in WAITING and args[0].is_cuda:
            raise Waited(name)
        indices = args[1] if name in ('index', 'index_put', 'index_put_') else ()
        masks = torch.bool, torch.uint8
        if any(torch.is_tensor(index) and index.dtype in masks for index in indices or ()):
            raise Waited(f'{name} by a mask')
        result = operation(*args, **kwargs)
        if name == '_to_copy' and result.device != args[0].device:
            if not kwargs.get('non_blocking'):
                raise Waited(f'a blocking copy, {args[0].device} to {result.device}')
        if name == 'copy_' and args[0].device != args[1].device:
            if not (args[2] if len(args) > 2 else kwargs.get('non_blocking')):
                raise Waited(f'a blocking copy, {args[1].device} to {args[0].device}')
        return result


def _to(module, device=None, memory_format=None):
    """nn.Module.to, which can't swap fake parameters; their layout is nothing to wait for."""
    if device is None:
        return module
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = parameter.data.to(device)
                part._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to(device)
    return module


@contextlib.contextmanager
def fake_gpu(capability=(9, 0)):
    """Within it 'cuda' is a device of fake tensors; yields what a Training takes as its device."""

    def backward(loss, *args, **kwargs):
        for parameter in backward.parameters:
            parameter.grad = torch.empty_like(parameter)

    def to_device(device, *tensors):  # without streams, which it has not
        return [tensor.to(device, non_blocking=True) for tensor in tensors]

    backward.parameters = []
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(nn.Module, 'to', _to)
        patch.setattr(torch.Tensor, 'backward', backward)
        patch.setattr(torch.autograd, 'backward', backward)
        patch.setattr(torch, '_fused_sgd_', lambda *_, **__: None)  # there is no fake one
        patch.setattr(torch.cuda, 'get_device_capability', lambda *_: capability)
        patch.setattr(torch.cuda, 'is_bf16_supported', lambda *_: True)
        patch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False)
        scaler = 'torch.amp.grad_scaler.amp_definitely_not_available'
        patch.setattr(scaler, lambda: False, raising=False)
        patch.setattr('utils.to_device', to_device)
        yield torch.device('cuda', 0)


def trained(recipe, device, people=100):
    """A Training of the recipe on the fake device, in the middle of a run, and a batch for it."""
    training = main.Training(recipe, list(map(str, range(people))), meta.age_cutoffs, device)
    training.total_steps = 1000
    images = torch.empty(recipe.batch_size, 3, 112, 96, dtype=torch.uint8)
    labels, ages = torch.zeros(len(images), dtype=torch.long), torch.zeros(len(images))
    weights = [*training.model.parameters(), *training.mapping.parameters()]
    torch.Tensor.backward.parameters.extend(weights)
    return training, (images, labels, ages)


SMALL = dict(layers=(0, 0, 0, 1), widths=(4, 8, 8, 16), dim=16, batch_size=8)
RECIPES = {
    'paper': paper,
    'ramped': ramped,
    'solved': replace(ramped, factorization='solved', lambda_dal=0.0),
    'fine-tuning': replace(finetune, freeze=0.05, batchnorm='frozen', margin_warmup=0.1),
    'sharded': replace(ramped, shard_head=True, sample_rate=0.3),
    'accumulate': replace(paper, accumulate=3),
    'ordinal': replace(ramped, age_head='ordinal'),
    'arcface': replace(paper, head='arcface'),
    'fp16': replace(paper, precision='fp16'),
    'float32': replace(ramped, precision='float32'),
}


@pytest.mark.parametrize('recipe', RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize('phase', ['min', 'max'])
def test_no_wait_in_a_step(recipe, phase):
    if phase == 'max' and not recipe.max_steps:
        pytest.skip('it has no max phase')
    with fake_gpu() as device:
        run, batch = trained(replace(recipe, **SMALL), device)
        run.step = 700 if phase == 'min' else 750  # of cycles of 70; every ramp is open
        assert run.is_max_step() == (phase == 'max') or not run.lambda_dal
        iterate(run, *batch)
        with NoWaits():
            iterate(run, *batch)
        assert run.step == (702 if phase == 'min' else 752)
        assert run.executor.scaler.is_enabled() == (recipe.precision == 'fp16')


WAITS = [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.cpu()]
WAITS += [lambda x: torch.tensor([1.0, 2.0], device=x.device)]


@pytest.mark.parametrize('wait', WAITS)
def test_a_wait_is_seen(wait):
    with fake_gpu() as device, pytest.raises(Waited), NoWaits():
        wait(torch.zeros(3, device=device))
