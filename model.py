"""The networks of Decorrelated Adversarial Learning (Wang et al., CVPR 2019): no device, no work at
import.

    from model import Backbone, DALModel

    backbone = Backbone.load('runs/demo/best.pth')   # x, the mixed face feature
    model = DALModel.load('runs/demo/best.pth')      # with the split: model.embed(faces) knows the
                                                     # person, not the age

This file needs torch and nothing else of this repository; copy it where you like.
"""

import functools
import math
import os
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEIGHT, WIDTH = 112, 96
AGE_CUTOFFS = (12, 18, 25, 35, 45, 55, 65)  # the paper's age groups: inclusive upper bounds, years
OLDEST = 90.0  # where the last age group ends, for an expected age


def normalize(images: Tensor) -> Tensor:
    """RGB pixel values 0…255, uint8 or float -> (v − 127.5) / 128, as `Backbone` takes them."""
    return (images.float() - 127.5) / 128


def fit_width(images: Tensor, width: int) -> Tensor:
    """Aligned faces (N, 3, 112, 96 or 112) -> (N, 3, 112, width): the middle columns of wider ones,
    the edges of narrower ones repeated."""
    extra = width - images.shape[-1]
    if extra > 0:
        columns = torch.arange(width, device=images.device) - extra // 2
        return images.index_select(-1, columns.clamp(0, images.shape[-1] - 1))
    return images[..., -extra // 2 : images.shape[-1] + extra // 2] if extra else images


def read_state(path: Any, map_location: Any = 'cpu') -> Any:
    """What torch.save wrote: a stranger's file runs nothing, and takes no more memory than it has
    bytes. Raises ValueError, one line that names the file, or FileNotFoundError."""
    with open(path, 'rb') as file:
        try:
            # torch.load takes anything else for a format older than any file of this repository
            plain, archive = file.read(4) == b'PK\3\4', zipfile.ZipFile(file)
            entries = archive.infolist()
            # torch.save compresses nothing, from the first byte on; torch.load would inflate what
            # is compressed, and believe any size
            whole = plain and min(entry.header_offset for entry in entries) == 0
            size = sum(entry.file_size for entry in entries)
            packed = any(entry.compress_type for entry in entries)
            if not whole or packed or size > os.fstat(file.fileno()).st_size:
                claims = 'it is compressed, claims to be more than the file holds'
                raise ValueError(f'{claims}, or is no archive of torch.save')
            # torch.load does not compare checksums: damage within a tensor would be other weights
            damaged = any(entry.CRC for entry in entries) and archive.testzip()
            if damaged:
                raise ValueError(f'damaged in {damaged}')
            return torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:  # zip, pickle, key and struct errors: whatever damage leads to
            why = str(error) if type(error) is ValueError else type(error).__name__
            unsafe = f'{path}: not a weights file that can be read safely'
            raise ValueError(f'{unsafe} ({why})') from None


class ConvUnit(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.units = nn.Sequential(*(ConvUnit(width, width) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.units(x)


class Backbone(nn.Module):
    """x = F(p), DAL §4.1: normalised RGB faces (N, 3, 112, 96) -> (N, dim). A stage is a stride-2
    convolution that enters it and residual blocks; the defaults are the paper's 64 layers."""

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 10, 3),
        widths: Sequence[int] = (64, 128, 256, 512),
        dim: int = 512,
    ):
        super().__init__()
        self.config = {'layers': list(layers), 'widths': list(widths), 'dim': dim}
        stages, inputs, (height, width) = [], 3, (HEIGHT, WIDTH)
        for count, outputs in zip(layers, widths, strict=True):
            blocks = [ResidualBlock(outputs) for _ in range(count)]
            stages.append(nn.Sequential(ConvUnit(inputs, outputs, stride=2), *blocks))
            inputs, height, width = outputs, (height + 1) // 2, (width + 1) // 2
        self.stages = nn.Sequential(*stages)
        self.project = nn.Linear(inputs * height * width, dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def sections(self) -> tuple[list, list[list], list]:
        """Stem, blocks and tail: `forward` runs them one after another."""
        blocks = [[block] for stage in self.stages.children() for block in stage.children()]
        return [], blocks, [functools.partial(torch.flatten, start_dim=1), self.project]

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.stages(images).flatten(1))

    @classmethod
    def load(cls, path: Any, map_location: Any = 'cpu') -> 'Backbone':
        """The trained backbone of a weights file, in eval mode; feed it `normalize(images)`. Raises
        ValueError if the file holds another backbone than this class."""
        return DALModel.load(path, map_location=map_location).backbone  # type: ignore[return-value]


class ResidualFactorization(nn.Module):
    """x_age = R(x), x_id = x − α·x_age (DAL eq. 1, where α = 1): x (N, D) -> two of its shape. α is
    a buffer: a network that is saved while its ramp opens stays the network it was."""

    def __init__(self, dim: int):
        super().__init__()
        self.age = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.alpha = nn.Buffer(torch.ones(()))

    def forward(self, x: Tensor, detach: bool = False) -> tuple[Tensor, Tensor]:
        """`detach` cuts the gradient from R to x."""
        x_age = self.age(x.detach() if detach else x)
        return x_age, x - self.alpha * x_age


class SolvedFactorization(nn.Module):
    """The factorization with R in closed form: x_age = (x − x̄)·P, and x_id = x − α·x_age does not
    correlate with the age variates; both (N, D), float32. dal.EraserFitter solves for P and x̄."""

    def __init__(self, dim: int):
        super().__init__()
        self.alpha = nn.Buffer(torch.ones(()))
        self.mean = nn.Buffer(torch.zeros(dim))
        self.projection = nn.Buffer(torch.zeros(dim, dim))
        self.register_load_state_dict_pre_hook(_without_moments)

    def forward(self, x: Tensor, detach: bool = False) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):  # a bfloat16 would let age through
            x = x.float()
            x_age = ((x.detach() if detach else x) - self.mean) @ self.projection
            return x_age, x - self.alpha * x_age


def _without_moments(module, state, prefix, *_):
    for name in ('covariance', 'cross', 'filled'):  # running moments, in older files
        state.pop(prefix + name, None)


class AgeEstimator(nn.Module):
    """Ages in years (N,) read from x (N, D), between the youngest and the oldest face that it was
    fitted to: a ridge regression on x and on random Fourier features of it (Rahimi and Recht,
    NeurIPS 2007). training/closed_form.py fits it; it holds no face."""

    def __init__(self, dim: int, features: int):
        super().__init__()
        self.shift, self.scale = nn.Buffer(torch.zeros(dim)), nn.Buffer(torch.ones(dim))
        self.frequencies = nn.Buffer(torch.zeros(dim, features))
        self.phases = nn.Buffer(torch.zeros(features))
        self.weight = nn.Buffer(torch.zeros(dim + features))
        self.offset, self.bounds = nn.Buffer(torch.zeros(())), nn.Buffer(torch.zeros(2))

    def features(self, x: Tensor) -> Tensor:
        """(N, D) -> (N, D + M): x standardised, of one length, and its M Fourier features."""
        root = math.sqrt(x.shape[1])
        x = F.normalize((x.float() - self.shift) * self.scale) * root
        waves = torch.cos(x @ self.frequencies + self.phases)
        return torch.cat([x, waves * root * math.sqrt(2 / len(self.phases))], 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return (self.features(x) @ self.weight + self.offset).clamp(*self.bounds)


class MarginHead(nn.Module):
    """Identity logits s·cos θ with a margin on each face's own person; a centre (row of `weight`) a
    person. A subclass implements `margin`; training may raise `m` from 0."""

    default_m: float = 0.0

    def __init__(self, dim: int, classes: int, scale: float = 64.0, m: float | None = None):
        super().__init__()
        self.scale, self.m = scale, self.default_m if m is None else m
        self.weight = nn.Parameter(self.centres(dim, classes))

    def centres(self, dim: int, classes: int) -> Tensor:
        """What `weight` begins with, (C, D)."""
        return torch.randn(classes, dim) * 0.01

    def margin(self, cosine: Tensor, label: Tensor) -> Tensor:
        """The cosines (N,) of faces with their own people's centres, made harder by the margin;
        `label` (N,) are these people."""
        raise NotImplementedError

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(N, D) and labels (N,) -> each face's cross-entropy with the margin, and whether its own
        person has the largest cosine, (N,) both."""
        logits, own = self.hardened(self(features), labels)
        right = own.detach() >= logits.detach().amax(1)
        return F.cross_entropy(logits, labels, reduction='none'), right

    def forward(self, features: Tensor, weight: Tensor | None = None) -> Tensor:
        """s·cos θ (N, K) of features (N, D) and centres (K, D), by default all, in float32."""
        weight = (self.weight if weight is None else weight).float()
        with torch.autocast(features.device.type, enabled=False):  # s = 64: a bfloat16 is ±0.25
            # dividing the products spares normalised centres and their gradient: gigabytes at a
            # million people, and half the time
            lengths = weight.norm(dim=1).clamp(min=1e-12)
            return F.linear(self.scale * F.normalize(features.float()), weight) / lengths

    def hardened(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, C) with the margin, and those of the labels (N,) before it."""
        own = logits.gather(1, labels[:, None])[:, 0]
        hard = self.scale * self.margin(own / self.scale, labels)
        return logits.scatter(1, labels[:, None], hard[:, None]), own


class CosFace(MarginHead):
    """cos θ − m (Wang et al., CVPR 2018, eq. 4): what the paper trains with, m = 0.35."""

    default_m = 0.35

    def margin(self, cosine: Tensor, label: Tensor) -> Tensor:
        return cosine - self.m


class ArcFace(MarginHead):
    """cos(θ + m) (Deng et al., CVPR 2019, eq. 3); beyond θ = π − m, where that would rise again,
    cos θ − m·sin m, as in its authors' code."""

    default_m = 0.5

    def margin(self, cosine: Tensor, label: Tensor) -> Tensor:
        angle = cosine.clamp(-1 + 1e-7, 1 - 1e-7).acos()
        beyond = cosine - self.m * math.sin(self.m)
        return torch.where(angle <= math.pi - self.m, (angle + self.m).cos(), beyond)


class AgeHead(nn.Sequential):
    """Three linear layers from x_age (N, D) to logits of age, with their loss and their reading.
    `cutoffs` are the inclusive upper bounds of all age groups but the last, in years. A subclass
    says how many `outputs` the groups take."""

    outputs: Callable[[int], int]

    def __init__(self, dim: int, cutoffs: Sequence[float] = AGE_CUTOFFS):
        hidden = nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU()
        super().__init__(*hidden, nn.Linear(dim, type(self).outputs(len(cutoffs) + 1)))
        bounds = torch.tensor([0.0, *cutoffs, OLDEST])
        self.cutoffs = nn.Buffer(bounds[1:-1], persistent=False)
        self.centres = nn.Buffer((bounds[1:] + bounds[:-1]) / 2, persistent=False)

    def groups(self, ages: Tensor) -> Tensor:
        """Ages in years (N,) -> group indices (N,): with cutoffs (12, …) 12 is in 0 and 13 in 1."""
        return torch.bucketize(ages.to(self.cutoffs.dtype), self.cutoffs)

    def loss(self, logits: Tensor, ages: Tensor) -> Tensor:
        """Each face's loss (N,) of logits and ages in years (N,)."""
        raise NotImplementedError

    def probabilities(self, logits: Tensor) -> Tensor:
        """The probability of each age group (N, G)."""
        raise NotImplementedError

    def correct(self, logits: Tensor, ages: Tensor) -> Tensor:
        """Whether the likeliest group is the age's (N,)."""
        return self.probabilities(logits).argmax(1) == self.groups(ages)

    def years(self, logits: Tensor) -> Tensor:
        """The expected age in years (N,): Σ p_g · centre of group g, open ends at 0 and 90."""
        return self.probabilities(logits) @ self.centres


class AgeGroups(AgeHead):
    """Softmax over the age groups: the paper's."""

    @staticmethod
    def outputs(groups: int) -> int:
        return groups

    def loss(self, logits: Tensor, ages: Tensor) -> Tensor:
        return F.cross_entropy(logits, self.groups(ages), reduction='none')

    def probabilities(self, logits: Tensor) -> Tensor:
        return logits.float().softmax(1)


class OrdinalAge(AgeHead):
    """One score for age and a threshold a cutoff (CORAL, Cao et al., Pattern Recognition Letters
    2020): G − 1 logits of 'older than the k-th cutoff', which fall with k."""

    def __init__(self, dim, cutoffs=AGE_CUTOFFS):
        super().__init__(dim, cutoffs)
        self.thresholds = nn.Parameter(torch.linspace(1, -1, len(cutoffs)))

    @staticmethod
    def outputs(groups: int) -> int:
        return 1

    def forward(self, x_age: Tensor) -> Tensor:
        return super().forward(x_age) + self.thresholds

    def loss(self, logits: Tensor, ages: Tensor) -> Tensor:
        older = self.groups(ages)[:, None] > torch.arange(logits.shape[1], device=logits.device)
        entropy = F.binary_cross_entropy_with_logits
        return entropy(logits, older.to(logits.dtype), reduction='none').sum(1)

    def probabilities(self, logits: Tensor) -> Tensor:
        older = F.pad(logits.float().sigmoid(), (1, 0), value=1.0)
        return older - F.pad(older[:, 1:], (0, 1))


HEADS = {'cosface': CosFace, 'arcface': ArcFace}  # by the name that a weights file holds
AGE_HEADS = {'groups': AgeGroups, 'ordinal': OrdinalAge}


class DALModel(nn.Module):
    """Backbone, factorization and the two heads, on faces as RGB pixel values.

    `backbone` is any module (N, 3, 112, 96) -> (N, D) of normalised faces, or, with an attribute
    `takes_pixels`, of pixel values as they are; `width` is then the width that it sees, 96 or 112.
    D is found by asking it.
    """

    factorization: Any  # ResidualFactorization or SolvedFactorization
    identity: Any  # MarginHead
    age: Any  # AgeHead

    def __init__(
        self,
        backbone: nn.Module,
        classes: int,
        cutoffs: Sequence[float] = AGE_CUTOFFS,
        head: Callable[..., nn.Module] = CosFace,
        age_head: Callable[..., AgeHead] = AgeGroups,
        scale: float = 64.0,
        m: float | None = None,
        factorization: Callable[[int], nn.Module] = ResidualFactorization,
    ):
        super().__init__()
        self.backbone = backbone
        self.width = getattr(backbone, 'width', WIDTH)
        self.last_blocks: Callable[[Tensor], Tensor] | None = None
        self.dim = getattr(backbone, 'vectors', 0) or self._find_dim()
        self.factorization = factorization(self.dim)
        self.identity = head(self.dim, classes, scale, m)
        self.age = age_head(self.dim, cutoffs)
        self.estimator: AgeEstimator | None = None  # fitted to x at the end; None: ages are unknown

    def _find_dim(self):
        stated = getattr(self.backbone, 'config', {}).get('dim') or getattr(self.backbone, 'dim', 0)
        if type(self.backbone) is Backbone or hasattr(self.backbone, 'set_normalisation'):
            return stated  # asking would take as long as embedding several faces
        was_training = self.backbone.training
        self.backbone.eval()
        with torch.no_grad():
            x = self.embed_mixed(torch.zeros(1, 3, HEIGHT, self.width))
        self.backbone.train(was_training)
        if x.ndim != 2:
            raise ValueError(f'the backbone made {tuple(x.shape)} of one face; expected (1, D)')
        return x.shape[1]

    def embed_mixed(self, images: Tensor) -> Tensor:
        """Faces (N, 3, 112, 96 or 112), 0…255 -> x = F(p) (N, D), float32: age still in it."""
        if self.last_blocks and images.shape[1] != 3:  # activations, see training/last_blocks.py
            return self.last_blocks(images).float()
        images = fit_width(images, self.width).float()
        pixels = getattr(self.backbone, 'takes_pixels', False)
        return self.backbone(images if pixels else normalize(images)).float()

    def features(self, images: Tensor, detach: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Faces (N, 3, 112, 96 or 112), 0…255 -> x, x_age, x_id, each (N, D), float32; `detach` as
        in ResidualFactorization."""
        x = self.embed_mixed(images)
        x_age, x_id = self.factorization(x, detach)
        return x, x_age.float(), x_id.float()

    def forward(self, images: Tensor, detach: bool = False) -> tuple[Tensor, Tensor]:
        """The x_age and x_id of `features`."""
        return self.features(images, detach)[1:]

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """The test feature, DAL §4.1: x_id of each face and of its mirror, concatenated; of unit
        length, (N, 2·D), float32, so that two faces' cosine is `(a * b).sum(-1)`. Call
        `model.eval()` first. Raises ValueError for what are not faces, see check_faces."""
        if not torch.compiler.is_compiling():  # nor exporting: values are not known then
            check_faces(images)
        _, _, x_id = self.features(torch.cat([images, images.flip(-1)]))
        n = images.shape[0]  # len() or chunk() would fix the batch size of an exported graph
        return F.normalize(torch.cat([x_id[:n], x_id[n:]], dim=1))

    @torch.no_grad()
    def years(self, images: Tensor) -> Tensor | None:
        """How old the faces look in years: (N,), or None if these weights know no ages."""
        return self.estimator(self.embed_mixed(images)) if self.estimator else None

    @classmethod
    def load(cls, path, backbone: nn.Module | None = None, map_location='cpu') -> 'DALModel':
        """The trained network of a weights file (`epoch_*.pth`, `best.pth`, `last.pth`), in eval
        mode. `backbone` is needed only if another module than `Backbone` was trained: build it as
        in training. Raises ValueError if the file is none of this repository, or does not fit."""
        return cls.of(read_state(path, map_location), path, backbone).to(map_location).eval()

    @classmethod
    def of(cls, state, path, backbone: nn.Module | None = None) -> 'DALModel':
        """The network in what `read_state` gave of `path`; as `load`."""
        facts = state if isinstance(state, dict) else {}
        weights, config = facts.get('model'), facts.get('backbone', 0)
        if not isinstance(weights, dict) or not isinstance(config, dict | None):
            raise ValueError(f'{path}: no weights file of this repository')
        config = config or {}
        if backbone is None and ('name' in config or not config):
            name = f'the backbone {config["name"]}' if config else 'a backbone of your own'
            remedy = 'build it and pass it as backbone=, or use recognition.weights.load_weights'
            raise ValueError(f'{path}: trained with {name}: {remedy}')
        try:
            size = sum(tensor.numel() * tensor.element_size() for tensor in weights.values())
            if size > os.path.getsize(path):
                raise ValueError('they claim to be more than the file holds')
            if backbone is None:
                # before anything is built of a size that a stranger's file merely states
                lengths = {tensor.shape[:1].numel() for tensor in weights.values()}
                there = {*config['widths'], config['dim']} <= lengths
                if not there or sum(config['layers']) > len(weights):
                    raise ValueError(f'they are not of {config}')
                backbone = Backbone(**config)
            names = state.get('heads', {'identity': 'cosface', 'age': 'groups'})
            for name, known in ((names['identity'], HEADS), (names['age'], AGE_HEADS)):
                if name not in known:
                    raise ValueError(f'its head {name!r} is none of {", ".join(known)}')
            heads = HEADS[names['identity']], AGE_HEADS[names['age']]
            bare = not any(name.startswith(('identity.', 'age.')) for name in weights)
            people = 1 if bare else len(weights['identity.weight'])
            solved = 'factorization.projection' in weights
            R = SolvedFactorization if solved else ResidualFactorization
            cutoffs = state.get('age_cutoffs', AGE_CUTOFFS)
            model = cls(backbone, people, cutoffs, *heads, factorization=R)
            if 'estimator.phases' in weights:
                model.estimator = AgeEstimator(model.dim, len(weights['estimator.phases']))
            if bare:  # of export.py backbone
                for head in ('identity', 'age'):
                    weights = weights | model.get_submodule(head).state_dict(prefix=f'{head}.')
            model.load_state_dict(weights)
        except Exception as error:  # missing keys, other shapes, other types: all are a misfit
            why = f'{type(error).__name__}: {" ".join(str(error).split()):.200}'
            raise ValueError(f'{path}: the weights do not fit this backbone ({why})') from None
        for name, tensor in model.state_dict().items():
            if not tensor.isfinite().all():
                raise ValueError(f'{path}: its weights are damaged: {name}: NaN or infinite values')
        return model


def check_faces(images: Tensor) -> None:
    """Raises ValueError if `images` are not (N, 3, 112, 96 or 112) of values 0…255."""
    shape, wanted = tuple(images.shape), f'(N, 3, {HEIGHT}, {WIDTH} or {HEIGHT})'
    if images.ndim != 4 or shape[1:3] != (3, HEIGHT) or shape[3] not in (WIDTH, HEIGHT):
        raise ValueError(f'faces of shape {shape}; expected {wanted}, aligned, no channels last')
    if images.is_floating_point() and images.numel():
        low, high = (float(value) for value in images.aminmax())
        if low < 0 or high > 255 or high <= 1 and (images != images.round()).any():
            values = f'faces of values {low:.3g} to {high:.3g}'
            raise ValueError(f'{values}; expected 0 to 255: the network normalises them itself')
