"""A GPU that isn't there: tensors that have a device, a type and a shape, and no values.

PyTorch's fake tensors need no GPU for operations on `cuda`. The backward pass does, so that here a
gradient comes from nowhere.
"""

import contextlib

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import main
import meta

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
