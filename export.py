"""What training learnt, in the forms that other software reads.

    python3 export.py onnx       weights [OUT.onnx]         # for onnxruntime
    python3 export.py backbone   weights [OUT.safetensors]  # the tensors, with a description
    python3 export.py embeddings weights FOLDER [OUT.npz]   # each face below FOLDER as a vector

All three are the identity branch: a face's vector is x_id of the face and of its mirror,
concatenated, of unit length. The inner product of two vectors is their similarity. Without OUT the
file goes beside the weights. Faces are aligned, 112 high and as wide as the network sees them, 96
or 112 (the file says); prepare.py aligns photographs.

onnx        input `faces`, uint8 (N, 3, 112, width), RGB, any N; the normalisation is inside;
            output `embedding`, float32 (N, 2·D)
backbone    the tensors of the backbone as backbone.*, of model.ResidualFactorization as
            factorization.*
embeddings  arrays `embeddings` (N, 2·D) float32 and `paths` (N,), relative to FOLDER; in a
            .safetensors the paths are metadata, as JSON
"""

import argparse
import importlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

import utils
from backbones import PretrainedBackbone
from evaluation import lists
from model import HEIGHT, DALModel
from recognition.alignment import TEMPLATE
from recognition.embedding import extract_files
from recognition.weights import WeightsInfo, load_weights
from verification.decision import Decision

AGREE = 1e-4  # largest difference of a component of the unit vector between PyTorch and onnxruntime


class Embedder(nn.Module):
    """DALModel.embed as a module, without what only training needs."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return self.model.embed(faces)


def description(model: DALModel, info: WeightsInfo) -> dict[str, str]:
    """What one must know to use the weights rightly, and what is known of their training."""
    decision = Decision.of(info.decision, info.path)
    training = {
        'epoch': info.epoch,
        'best': info.best,
        'recipe': info.recipe,
        'people': len(info.classes),
        'accuracy': decision.accuracy,
    }
    backbone = model.backbone
    normalisation = '(value - 127.5) / 128, of 0 to 255'
    if isinstance(backbone, PretrainedBackbone):  # its input is its own
        normalisation = (
            f'(value - mean) / deviation, of 0 to 255; {"BGR" if backbone.bgr else "RGB"}; '
            f'mean {_numbers(-backbone.shift / backbone.scale)}, '
            f'deviation {_numbers(1 / backbone.scale)}; '
            f'resized to {" × ".join(map(str, backbone.size))}'
        )
    facts = {
        'height': HEIGHT,
        'width': model.width,
        'colour': 'RGB',
        'layout': 'N, 3, height, width',
        'normalisation': normalisation,
        'template': TEMPLATE.tolist(),
        'feature': 'x_id of face and mirror, concatenated, unit length; '
        'similarity is the inner product',
        'threshold': decision.threshold,
        'age_cutoffs': info.age_cutoffs,
        'backbone': info.backbone,
        'training': training,
        'weights_sha256': info.sha256,
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, default=str)
        for key, value in facts.items()
    }


def _numbers(tensor):
    return [round(value, 3) for value in tensor.flatten().tolist()]


def needed(name: str):
    """A package of requirements-export.txt. Raises UserError where it isn't installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise utils.UserError(
            f'this needs {name.partition(".")[0]}: pip install -r requirements-export.txt'
        ) from None


def onnx(args: argparse.Namespace) -> None:
    """Writes the network as ONNX, once onnxruntime and PyTorch agree on one face and on five."""
    needed('onnxscript')
    runtime = needed('onnxruntime')
    network, info = load_weights(args.weights, backbone=args.backbone)
    embedder = Embedder(network).eval()
    shape, drawn = (5, 3, HEIGHT, network.width), torch.Generator().manual_seed(0)
    faces = torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn)
    program = torch.onnx.export(
        embedder,
        (faces,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim('N', min=1)},),
        input_names=['faces'],
        output_names=['embedding'],
        verbose=False,
    )
    program.model.metadata_props.update(description(network, info))
    data = program.model_proto.SerializeToString()
    session = runtime.InferenceSession(data, providers=['CPUExecutionProvider'])
    apart = max(
        np.abs(session.run(None, {'faces': part.numpy()})[0] - embedder(part).numpy()).max()
        for part in (faces[:1], faces)
    )
    if not apart <= AGREE:
        raise utils.UserError(
            f'{args.out}: not written: onnxruntime and PyTorch differ by {apart:.1e}, '
            f'more than {AGREE:.0e}'
        )
    utils.write_whole(args.out, lambda temporary: temporary.write_bytes(data))
    print(
        f'{args.out}: opset {program.model.opset_imports[""]}, {len(data) / 1e6:.1f} MB; '
        f'at N = 1 and 5 onnxruntime {runtime.__version__} differs from PyTorch by at most '
        f'{apart:.1e} in any component of the unit vector'
    )


def backbone(args: argparse.Namespace) -> None:
    """Writes the tensors that make the embedding, with `description` as metadata."""
    files = needed('safetensors.torch')
    model, info = load_weights(args.weights, backbone=args.backbone)
    parts = {
        name: tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith(('backbone.', 'factorization.'))
    }
    utils.write_whole(
        args.out, lambda temporary: files.save_file(parts, temporary, description(model, info))
    )
    print(
        f'{args.out}: {len(parts)} tensors, '
        f'{sum(tensor.numel() for tensor in parts.values()) / 1e6:.1f} M values'
    )


def embeddings(args: argparse.Namespace) -> None:
    """Writes the embedding of every image below a folder."""
    files = needed('safetensors.numpy') if args.out.suffix == '.safetensors' else None
    device, sources = utils.pick_device(args.ctx), lists.images_below(args.folder)
    model, info = load_weights(args.weights, device, args.backbone)
    features, _ = extract_files(model, sources, device, keep=('embedding',), progress='embedding')
    arrays, facts = {'embeddings': features['embedding']}, description(model, info)
    paths = [os.path.relpath(source, args.folder) for source in sources]
    if files:
        facts['paths'] = json.dumps(paths)
        utils.write_whole(args.out, lambda temporary: files.save_file(arrays, temporary, facts))
    else:
        arrays |= {
            'paths': np.array(paths),
            **{name: np.array(value) for name, value in facts.items()},
        }
        utils.write_whole(args.out, lambda temporary: _savez(temporary, arrays))
    print(f'{args.out}: {len(paths)} faces, {features["embedding"].shape[1]} values each')


def _savez(path, arrays):
    with open(path, 'wb') as file:  # given a name, savez would add .npz to it
        np.savez(file, **arrays)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(required=True, metavar='onnx | backbone | embeddings')
    for kind, endings in (
        (onnx, ('.onnx',)),
        (backbone, ('.safetensors',)),
        (embeddings, ('.npz', '.safetensors')),
    ):
        one = kinds.add_parser(kind.__name__, description=kind.__doc__)
        one.set_defaults(kind=kind, endings=endings)
        one.add_argument('weights', help='best.pth, epoch_*.pth or last.pth of a training')
        named = 'the weights are that network as others publish it'
        one.add_argument('--backbone', metavar='NAME', help=named)
        if kind is embeddings:
            one.add_argument('folder', help='aligned faces, however deep')
            one.add_argument(
                '--ctx', type=int, default=-1, help='the GPU to use; below 0, the default, the CPU'
            )
        one.add_argument(
            'out',
            nargs='?',
            type=Path,
            help=f'where to, {" or ".join(endings)}; by default beside the weights',
        )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    weights = Path(args.weights)
    if args.out is None:
        stem = (
            f'{weights.stem}-{Path(args.folder).resolve().name}'
            if args.kind is embeddings
            else weights.stem
        )
        args.out = weights.with_name(stem + args.endings[0])
    if args.out.suffix not in args.endings:
        raise utils.UserError(f'{args.out}: its name must end in {" or ".join(args.endings)}')
    if args.out.exists():
        raise utils.UserError(f'{args.out} is there already: remove it, or name another file')
    if not args.out.absolute().parent.is_dir():
        raise utils.UserError(f'{args.out}: there is no folder {args.out.parent}')
    args.kind(args)


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
