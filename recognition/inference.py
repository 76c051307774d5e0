"""A network made ready for inference: the same features, as fast as the machine gives them."""

import copy
import importlib.util
import io
import math
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from backbones import NAMES, PretrainedBackbone
from model import HEIGHT, Backbone
from utils import UserError

CHUNK = 8  # images a core: what a layer leaves is still in the cache when the next one reads it
ACTIVATIONS = {nn.ReLU: ('relu', []), nn.ReLU6: ('hardtanh', [0.0, 6.0])}
MANY = 1024  # images after which it pays to hand a network to onnxruntime
CLEARLY = 1.2  # times as fast
AGREE = 1e-5  # largest difference of an own backbone from its graph, as a share of the largest x


@torch.inference_mode()
def ready(
    model: nn.Module, device: torch.device | str, bf16: bool = False
) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """`model.features`, of a model in eval mode with its weights of now, as a function of RGB faces
    (N, 3, 112, 96 or 112), 0…255, uint8: x, x_age and x_id (N, D), float32, on `device`.

    On a CPU in float32 it computes few images at a time, batch norm is folded into the layer before
    it, and a convolution is one operation with its activation; after MANY images onnxruntime takes
    over, if it is faster. Else the network runs as it is. Raises UserError for weights of stored
    vectors.
    """
    refuse_vectors(model)
    device = torch.device(device)
    folds = device.type == 'cpu' and not bf16 and torch.backends.mkldnn.is_available()
    network, seen = _folded(model) if folds else model, 0

    @torch.inference_mode()
    def features(images):
        nonlocal network, seen
        images = images.to(device, non_blocking=True)
        images = images.contiguous(memory_format=torch.channels_last)
        parts = images.split(CHUNK * torch.get_num_threads()) if folds else [images]
        seen += len(images)
        are_faces = images.shape[1] == 3  # and not activations, as of training/last_blocks.py
        if seen > MANY and folds and are_faces and _is_ours(model.backbone) and _may_be_faster():
            network, seen = _faster(network, Session(model), parts[0]), -math.inf
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            found = [network.features(part) for part in parts]
        return tuple(torch.cat(column).float() for column in zip(*found, strict=True))

    return features


def refuse_vectors(model: nn.Module) -> None:
    """Raises UserError if the model has no network, but an R solved over stored vectors."""
    if hasattr(getattr(model, 'backbone', None), 'vectors'):
        only = 'evaluate.py … embeddings and export.py eraser alone use them'
        raise UserError(
            f'these weights are of stored vectors and know no network for faces: {only}'
        )


def _may_be_faster():
    """Whether onnxruntime is there, and the processor one on which oneDNN is not always faster."""
    wide = torch.backends.cpu.get_cpu_capability().startswith('AVX512')
    return not wide and importlib.util.find_spec('onnxruntime') is not None


def _faster(network, other, images):
    """`other` if it takes clearly less time for the images, so that one machine decides alike."""
    seconds = []
    for one in (network, other):
        one.features(images)  # the first call prepares
        began = time.perf_counter()
        one.features(images)
        seconds.append(time.perf_counter() - began)
    return other if CLEARLY * seconds[1] < seconds[0] else network


class Session:
    """A DALModel whose backbone onnxruntime runs, on the same number of threads."""

    def __init__(self, model):
        import onnxruntime

        self.factorization, graph = model.factorization, io.BytesIO()
        faces, axes = torch.zeros(2, 3, HEIGHT, model.width), {'faces': {0: 'n'}, 'x': {0: 'n'}}
        names: dict = {'input_names': ['faces'], 'output_names': ['x'], 'dynamic_axes': axes}
        network = MethodOf(model, 'embed_mixed').eval()  # or all would be left in training mode
        with warnings.catch_warnings():
            # the exporter that torch prefers takes ten times as long
            warnings.simplefilter('ignore')
            torch.onnx.export(network, (faces,), graph, dynamo=False, **names)
        options, providers = onnxruntime.SessionOptions(), ['CPUExecutionProvider']
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(graph.getvalue(), options, providers)

    def features(self, images):
        (x,) = self.session.run(None, {'faces': images.float().contiguous().numpy()})
        return torch.from_numpy(x), *self.factorization(torch.from_numpy(x))


class MethodOf(nn.Module):
    """A method of a model as a module, to be exported."""

    def __init__(self, model: nn.Module, method: str):
        super().__init__()
        self.model, self.method = model, method

    def forward(self, faces: Tensor) -> Tensor:
        return getattr(self.model, self.method)(faces)


def _folded(model):
    """`model` with the graph of its backbone; as it is if the backbone is the user's own and can't
    be traced, or if its trace computes something else."""
    backbone = getattr(model, 'backbone', None)
    network = copy.copy(model)  # its other modules are shared
    try:
        network._modules = model._modules | {'backbone': _Encoder(backbone)}
        return network if _is_ours(backbone) or _agree(network, model) else model
    except Exception:  # whatever a user's own code does that a trace does not follow
        return model


def _is_ours(backbone):
    """Whether it is one that the tests trace: nothing need be computed to trust its graph."""
    published = isinstance(backbone, PretrainedBackbone) and backbone.config['name'] in NAMES
    return published or type(backbone) is Backbone


def _agree(network, model):
    generator = torch.Generator().manual_seed(0)
    faces = torch.rand(3, 3, HEIGHT, model.width, generator=generator) * 255
    for count in (3, 1):
        found, wanted = (one.embed_mixed(faces[:count]) for one in (network, model))
        if not (found - wanted).abs().max() <= AGREE * wanted.abs().max():
            return False
    return True


class _Encoder(nn.Module):
    """The backbone as a graph; `prepare`, which depends on the shape of the images, stays code."""

    def __init__(self, backbone):
        super().__init__()
        published = isinstance(backbone, PretrainedBackbone)
        self.takes_pixels = getattr(backbone, 'takes_pixels', False)
        self.prepare = backbone.prepare if published else nn.Identity()
        self.encode = _graph(backbone, 'encode' if published else 'forward')

    def forward(self, images):
        return self.encode(self.prepare(images))


def _graph(module, method):
    """The module's method as a GraphModule whose layers have absorbed what follows them."""
    tracer = fx.Tracer()
    tracer.traced_func_name = method
    graph, layers, changed = tracer.trace(module), dict(module.named_modules()), {}
    for node in list(graph.nodes):
        layer = layers[node.target] if node.op == 'call_module' else None
        before = node.args[0] if layer else None
        if type(layer) is nn.Conv2d and layer.padding_mode == 'zeros':
            changed[node] = Convolution(layer)
        elif type(layer) is nn.Linear:
            changed[node] = layer
        elif before in changed and len(before.users) == 1:
            if absorbed := _absorb(changed[before], layer):
                changed[before] = absorbed
                node.replace_all_uses_with(before)
                graph.erase_node(node)
    result = fx.GraphModule(module, graph)
    for node, layer in changed.items():
        node.target = f'changed_{node.name}'
        result.add_module(node.target, layer)
    result.delete_all_unused_submodules()
    result.recompile()
    return result


def _absorb(layer, following):
    """One layer that does what both do; None if there is none."""
    kind, is_linear = type(following), isinstance(layer, nn.Linear)
    if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
        fits = following.affine and following.track_running_stats
        if is_linear:
            return fuse_linear_bn_eval(layer, following) if fits else None
        plain = fits and layer.activation == NO_ACTIVATION
        return Convolution(fuse_conv_bn_eval(layer.layer, following)) if plain else None
    if kind in ACTIVATIONS and not is_linear and layer.activation == NO_ACTIVATION:
        return Convolution(layer.layer, ACTIVATIONS[kind])
    return None


NO_ACTIVATION: tuple[str, list] = ('none', [])


class Convolution(nn.Module):
    """A Conv2d and its activation as one operation of oneDNN, which torch.compile uses too; the
    weights are laid out for the shape of the first images."""

    def __init__(self, layer: nn.Conv2d, activation: tuple[str, list] = NO_ACTIVATION):
        super().__init__()
        self.layer, self.activation, self.weight = layer, activation, None

    def forward(self, x: Tensor) -> Tensor:
        layer, onednn = self.layer, torch.ops.mkldnn
        how = layer.padding, layer.stride, layer.dilation, layer.groups
        if self.weight is None:
            self.weight = onednn._reorder_convolution_weight(layer.weight, *how, x.shape)
        last = layer.bias, *how, *self.activation, None
        return onednn._convolution_pointwise(x, self.weight, *last)
