"""Trained networks in the forms that other software reads.

    python3 export.py onnx       weights [OUT.onnx]         # for onnxruntime
    python3 export.py backbone   weights [OUT.safetensors]  # the tensors, with a description
    python3 export.py embeddings weights FOLDER [OUT.npz]   # each face below FOLDER as a vector
    python3 export.py eraser     weights [OUT.npz]          # the map that takes the age out

The first three are the identity branch: a face's vector is x_id of the face and of its mirror,
concatenated, of unit length. The inner product of two vectors is their similarity. Without OUT the
file goes beside the weights. Faces are aligned, 112 high and as wide as the network sees them, 96
or 112 (the file says); prepare.py aligns photographs.

onnx        input `faces`, uint8 (N, 3, 112, width), RGB, any N; the normalisation is inside;
            output `embedding`, float32 (N, 2·D)
backbone    the tensors of the backbone as backbone.*, of model.ResidualFactorization as
            factorization.*
embeddings  arrays `embeddings` (N, 2·D) float32 and `paths` (N,), relative to FOLDER
eraser      arrays `matrix` (D, D) and `offset` (D,): x_id = x @ matrix + offset; of weights whose
            R was solved in closed form (main.py … --init, or factorization=solved)

An .npz holds the description as arrays of text, a .safetensors as metadata (`paths` too, as JSON).
"""

import argparse
import importlib
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

import utils
from backbones import PretrainedBackbone
from evaluation import protocols
from model import HEIGHT, DALModel, SolvedFactorization
from recognition.alignment import TEMPLATE
from recognition.embedding import extract_files
from recognition.inference import MethodOf, refuse_vectors
from recognition.weights import WeightsInfo, load_weights
from storage.files import write_npz
from system.names import shown
from verification.decision import Decision

FEATURE = 'x_id of face and mirror, concatenated, unit length; similarity is the inner product'
AGREE = 1e-4  # largest difference of a component of the unit vector between PyTorch and onnxruntime


def description(model: DALModel, info: WeightsInfo) -> dict[str, str]:
    """The facts that a user of the weights must know, and how they were trained."""
    decision = Decision.of(info.decision, info.path)
    training = {'epoch': info.epoch, 'best': info.best, 'recipe': info.recipe}
    training |= {'people': len(info.classes), 'accuracy': decision.accuracy}
    facts = {'height': HEIGHT, 'width': model.width, 'template': TEMPLATE.tolist()}
    facts |= {'threshold': decision.threshold, 'age_cutoffs': info.age_cutoffs}
    facts |= {'backbone': info.backbone, 'training': training}
    return {key: json.dumps(value, default=str) for key, value in facts.items()} | {
        'colour': 'RGB',
        'layout': 'N, 3, height, width',
        'normalisation': _normalisation(model.backbone),
        'feature': FEATURE,
        'weights_sha256': info.sha256,
    }


def _normalisation(backbone):
    if not isinstance(backbone, PretrainedBackbone):  # whose input is its publisher's
        return '(value - 127.5) / 128, of 0 to 255'
    scale, shift = backbone.scale.double().flatten(), backbone.shift.double().flatten()
    mean, deviation = ((x / scale).numpy().round(3).tolist() for x in (-shift, 1))
    return (
        f'(value - mean) / deviation, of 0 to 255; {"BGR" if backbone.bgr else "RGB"}; '
        f'mean {mean}, deviation {deviation}; resized to {" × ".join(map(str, backbone.size))}'
    )


def needed(name: str) -> ModuleType:
    """A package of requirements-export.txt. Raises UserError if it isn't installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        remedy = 'pip install -r requirements-export.txt'
        raise utils.UserError(f'this needs {name.partition(".")[0]}: {remedy}') from None


def write_arrays(path: Path, arrays: dict[str, np.ndarray], facts: dict) -> None:
    """An .npz or a .safetensors of arrays and a description, by the ending of `path`."""
    if path.suffix == '.npz':
        write_npz(path, arrays | {name: np.array(value) for name, value in facts.items()})
        return
    save = needed('safetensors.numpy').save_file
    texts = {k: one if isinstance(one, str) else json.dumps(one) for k, one in facts.items()}
    utils.write_whole(path, lambda temporary: save(arrays, temporary, texts))


def onnx(args: argparse.Namespace, model: DALModel, info: WeightsInfo) -> None:
    """Writes the network as ONNX, once onnxruntime and PyTorch agree on one face and on five."""
    needed('onnxscript')
    runtime = needed('onnxruntime')
    refuse_vectors(model)
    embedder = MethodOf(model, 'embed').eval()
    shape, drawn = (5, 3, HEIGHT, model.width), torch.Generator().manual_seed(0)
    faces = torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn)
    names: dict = {'input_names': ['faces'], 'output_names': ['embedding']}
    names['dynamic_shapes'] = ({0: torch.export.Dim('N', min=1)},)
    program = torch.onnx.export(embedder, (faces,), dynamo=True, verbose=False, **names)
    assert program is not None  # with dynamo there is one
    program.model.metadata_props.update(description(model, info))
    data = program.model_proto.SerializeToString()
    session = runtime.InferenceSession(data, providers=['CPUExecutionProvider'])
    apart = 0.0
    for part in (faces[:1], faces):
        (found,) = session.run(None, {'faces': part.numpy()})
        apart = np.maximum(apart, np.abs(found - embedder(part).numpy()).max())
    if not apart <= AGREE:
        differ = f'differ by {apart:.1e}, more than {AGREE:.0e}'
        raise utils.UserError(f'{args.out}: not written: onnxruntime and PyTorch {differ}')
    utils.write_whole(args.out, lambda temporary: temporary.write_bytes(data))
    print(
        f'{args.out}: opset {program.model.opset_imports[""]}, {len(data) / 1e6:.1f} MB; '
        f'at N = 1 and 5 onnxruntime {runtime.__version__} differs from PyTorch by at most '
        f'{apart:.1e} in any component of the unit vector'
    )


def backbone(args: argparse.Namespace, model: DALModel, info: WeightsInfo) -> None:
    """Writes the tensors that make the embedding, with `description` as metadata."""
    parts, state = ('backbone.', 'factorization.'), model.state_dict()
    kept = {name: tensor for name, tensor in state.items() if name.startswith(parts)}
    arrays = {name: tensor.contiguous().numpy() for name, tensor in kept.items()}
    write_arrays(args.out, arrays, description(model, info))
    values = sum(array.size for array in arrays.values())
    print(f'{args.out}: {len(arrays)} tensors, {values / 1e6:.1f} M values')


def embeddings(args: argparse.Namespace, model: DALModel, info: WeightsInfo) -> None:
    """Writes the embedding of every image below a folder."""
    sources, device = protocols.images_below(args.folder), utils.pick_device(args.ctx)
    found, _ = extract_files(model, sources, device, keep=('embedding',), progress='embedding')
    paths = [shown(os.path.relpath(source, args.folder)) for source in sources]
    facts = description(model, info) | {'paths': paths}
    write_arrays(args.out, {'embeddings': found['embedding']}, facts)
    print(f'{args.out}: {len(paths)} faces, {2 * model.dim} values each')


def eraser(args: argparse.Namespace, model: DALModel, info: WeightsInfo) -> None:
    """Writes the affine map x -> x_id, for vectors that are stored already."""
    split = model.factorization
    if not isinstance(split, SolvedFactorization):
        remedy = 'python3 main.py -1 0 --init FILE --dataset NAME solves for one'
        raise utils.UserError(f'{args.weights}: its R is a network and no affine map: {remedy}')
    tensors = {name: tensor.double() for name, tensor in split.state_dict().items()}
    projection = tensors['alpha'] * tensors['projection']
    matrix, offset = torch.eye(len(projection)) - projection, tensors['mean'] @ projection
    facts = description(model, info)
    facts['feature'] = 'x_id = x @ matrix + offset; x is a row of D numbers, before unit length'
    arrays = {'matrix': matrix.float().numpy(), 'offset': offset.float().numpy()}
    write_arrays(args.out, arrays, facts)
    after, effect = info.figures or {}, ''
    before = after.get('before') or {}
    if before.get('auc') is not None and before.get('age_r2_id') is not None:
        effect = f'; on the people of validation AUC {before["auc"]:.3f} → {after["auc"]:.3f}, '
        effect += f'R² of age {before["age_r2_id"]:.2f} → {after["age_r2_id"]:.2f}'
    print(f'{args.out}: x_id = x @ matrix + offset, {len(matrix)} numbers{effect}')


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(required=True, metavar='onnx | backbone | embeddings | eraser')
    for kind, endings in (
        (onnx, ('.onnx',)),
        (backbone, ('.safetensors',)),
        (embeddings, ('.npz', '.safetensors')),
        (eraser, ('.npz', '.safetensors')),
    ):
        one = kinds.add_parser(kind.__name__, description=kind.__doc__)
        one.set_defaults(kind=kind, endings=endings, backbone=None, ctx=-1)
        one.add_argument('weights', help='best.pth, epoch_*.pth or last.pth of a training')
        if kind is not eraser:
            published = 'the weights are that network as others publish it'
            one.add_argument('--backbone', metavar='NAME', help=published)
        if kind is embeddings:
            one.add_argument('folder', help='aligned faces, however deep')
            gpu = 'the GPU to use; below 0, the default, the CPU'
            one.add_argument('--ctx', type=int, help=gpu)
        where = f'the file, {" or ".join(endings)}; by default beside the weights'
        one.add_argument('out', nargs='?', type=Path, help=where)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> None:
    """Does what the command line asks. Raises UserError if the file can't be written there."""
    if args.out is None:
        stem = Path(args.weights).stem + ('-eraser' if args.kind is eraser else '')
        stem += f'-{Path(args.folder).resolve().name}' if args.kind is embeddings else ''
        args.out = Path(args.weights).with_name(stem + args.endings[0])
    if args.out.suffix not in args.endings:
        raise utils.UserError(f'{args.out}: its name must end in {" or ".join(args.endings)}')
    if args.out.exists():
        raise utils.UserError(f'{args.out} is there already: remove it, or name another file')
    if not args.out.absolute().parent.is_dir():
        raise utils.UserError(f'{args.out}: there is no folder {args.out.parent}')
    args.kind(args, *load_weights(args.weights, utils.pick_device(args.ctx), args.backbone))


if __name__ == '__main__':
    with utils.one_line_errors():
        run(arguments())
