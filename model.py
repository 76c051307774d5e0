"""The networks of Decorrelated Adversarial Learning (Wang et al., CVPR 2019): no loss, no device, no work at import.

    from model import Backbone, DALModel

    backbone = Backbone.load('runs/demo/best.pth')            # x, the mixed face feature
    model = DALModel.load('runs/demo/best.pth')               # with the split: model.embed(faces) knows the person, not the age

This file needs torch and nothing else of this repository; copy it where you like.
"""
import os
import zipfile

import torch
from torch import nn
from torch.nn import functional as F

HEIGHT, WIDTH = 112, 96


def normalize(images):
    """RGB pixel values 0…255, uint8 or float, to the (v − 127.5) / 128 that every network here is trained on."""
    return (images.float() - 127.5) / 128


def read_state(path, map_location='cpu'):
    """What torch.save wrote, by torch.load's safe default: a stranger's file runs nothing, and takes no more memory than it has bytes.

    Raises ValueError, one line that names the file, where it can't be read so; FileNotFoundError where there is none.
    """
    unsafe = f'{path}: not a weights file that can be read safely'
    with open(path, 'rb') as file:
        try:
            plain = file.read(4) == b'PK\3\4'  # anything else torch.load takes for a format older than any file of this repository
            entries = zipfile.ZipFile(file).infolist()
        except Exception as error:  # zip, struct, unicode and value errors: whatever damage leads to
            raise ValueError(f'{unsafe} ({type(error).__name__})') from None
        # torch.save compresses nothing, from the first byte on; torch.load would inflate what is compressed, and believe any size
        if not plain or not entries or min(entry.header_offset for entry in entries) or any(entry.compress_type for entry in entries) \
                or sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
            raise ValueError(f'{unsafe} (it is compressed, claims to be more than the file holds, or is no archive of torch.save)')
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # zip, pickle, key and value errors: whatever damage leads to
        raise ValueError(f'{unsafe} ({type(error).__name__})') from None


class ConvUnit(nn.Sequential):
    """3×3 convolution, batch normalisation, ReLU."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    """Three convolution units and the identity around them."""

    def __init__(self, width):
        super().__init__()
        self.units = nn.Sequential(*(ConvUnit(width, width) for _ in range(3)))

    def forward(self, x):
        return x + self.units(x)


class Backbone(nn.Module):
    """x = F(p), DAL §4.1: four stages, each a stride-2 convolution that enters it and residual blocks; then a linear layer.

    Normalised RGB faces (N, 3, 112, 96) -> (N, dim), neither normalised nor rectified. The defaults are the paper's 64 layers;
    other depths and widths are other tuples of any common length.
    """

    def __init__(self, layers=(3, 4, 10, 3), widths=(64, 128, 256, 512), dim=512):
        super().__init__()
        self.config = {'layers': list(layers), 'widths': list(widths), 'dim': dim}
        stages, inputs, (height, width) = [], 3, (HEIGHT, WIDTH)
        for blocks, outputs in zip(layers, widths, strict=True):
            stages.append(nn.Sequential(ConvUnit(inputs, outputs, stride=2), *(ResidualBlock(outputs) for _ in range(blocks))))
            inputs, height, width = outputs, (height + 1) // 2, (width + 1) // 2
        self.stages = nn.Sequential(*stages)
        self.project = nn.Linear(inputs * height * width, dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def forward(self, images):
        return self.project(self.stages(images).flatten(1))

    @classmethod
    def load(cls, path, map_location='cpu'):
        """The trained backbone of a weights file (`epoch_*.pth`, `best.pth` or `last.pth`), in eval mode.

        Feed it `normalize(images)`. Raises ValueError where the file holds another backbone than this class.
        """
        return DALModel.load(path, map_location=map_location).backbone


class ResidualFactorization(nn.Module):
    """x_age = R(x), x_id = x − α·x_age (DAL eq. 1, where α = 1); R is two linear layers, each with a ReLU.

    (N, D) -> x_age (N, D), x_id (N, D). α is a buffer: a network saved while its ramp was opening stays the network it was.
    """

    def __init__(self, dim):
        super().__init__()
        self.age = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.register_buffer('alpha', torch.ones(()))

    def forward(self, x, detach=False):
        """`detach` cuts R's gradient to x: R learns to read the age, and x does not yet hear of it."""
        x_age = self.age(x.detach() if detach else x)
        return x_age, x - self.alpha * x_age


class CosFace(nn.Module):
    """Large-margin cosine logits (Wang et al., CVPR 2018): s·(cos θ − m·[class is the label]).

    (N, D) and, in training, labels (N,) -> (N, classes), float32. Without labels there is no margin: that is what accuracy is
    counted on.
    """

    def __init__(self, dim, classes, scale=64., margin=0.35):
        super().__init__()
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.randn(classes, dim) * 0.01)

    def forward(self, features, labels=None):
        with torch.autocast(features.device.type, enabled=False):  # at s = 64 a cosine in bfloat16 is ±0.25 of logit
            # lengths divide the products: at a million classes, normalised weights and their gradient would be gigabytes and half the time
            lengths = self.weight.float().norm(dim=1).clamp(min=1e-12)
            logits = F.linear(self.scale * F.normalize(features.float()), self.weight.float()) / lengths
            if labels is not None:
                logits = logits.scatter_add(1, labels[:, None], logits.new_full((len(labels), 1), -self.scale * self.margin))
            return logits


class AgeClassifier(nn.Sequential):
    """Three linear layers from x_age (N, D) to the logits of the age groups (N, groups)."""

    def __init__(self, dim, groups):
        super().__init__(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, groups))


class DALModel(nn.Module):
    """Backbone, factorization and the two heads. `backbone` is any module (N, 3, 112, 96) -> (N, D); D is found by asking it.

    `head` makes the identity head, of the arguments of CosFace.
    Takes faces as RGB pixel values 0…255, (N, 3, 112, 96), uint8 or float, and normalises them itself.
    """

    def __init__(self, backbone, classes, groups=8, scale=64., margin=0.35, head=CosFace):
        super().__init__()
        self.backbone = backbone
        was_training = backbone.training
        with torch.no_grad():
            self.dim = backbone.eval()(torch.zeros(1, 3, HEIGHT, WIDTH)).shape[1]
        backbone.train(was_training)
        self.factorization = ResidualFactorization(self.dim)
        self.identity = head(self.dim, classes, scale, margin)
        self.age = AgeClassifier(self.dim, groups)

    def features(self, images, detach=False):
        """Faces (N, 3, 112, 96), 0…255 -> x, x_age, x_id, each (N, D), float32; `detach` as in ResidualFactorization."""
        x = self.backbone(normalize(images)).float()
        return x, *(part.float() for part in self.factorization(x, detach))

    def forward(self, images, labels=None, detach=False):
        """Faces and labels (N,) -> x_age, x_id (N, D), identity logits (N, classes), age logits (N, groups), float32."""
        _, x_age, x_id = self.features(images, detach)
        return x_age, x_id, self.identity(x_id, labels), self.age(x_age).float()

    @torch.no_grad()
    def embed(self, images):
        """The test feature, DAL §4.1: x_id of each face and of its mirror, concatenated; unit length, (N, 2·D), float32.

        Two faces' cosine is then `(a * b).sum(-1)`. Call `model.eval()` first.
        """
        _, _, x_id = self.features(torch.cat([images, images.flip(-1)]))
        n = images.shape[0]  # with len() or chunk() an exported graph would take batches of one size only
        return F.normalize(torch.cat([x_id[:n], x_id[n:]], dim=1))

    @classmethod
    def load(cls, path, backbone=None, map_location='cpu'):
        """The trained network of a weights file (`epoch_*.pth`, `best.pth` or `last.pth`), in eval mode.

        `backbone` is needed only where another module than `Backbone` was trained: build it as in training. Raises ValueError
        where the file is no weights file of this repository or does not fit.
        """
        return cls.of(read_state(path, map_location), path, backbone).to(map_location).eval()

    @classmethod
    def of(cls, state, path, backbone=None):
        """The network in what `read_state` gave of `path`; as `load`."""
        if not isinstance(state, dict) or 'model' not in state or 'backbone' not in state:
            raise ValueError(f'{path}: no weights file of this repository')
        weights, config = state['model'], state['backbone']
        if backbone is None and config is None:
            raise ValueError(f'{path}: trained with a backbone of your own: build it and pass it as backbone=')
        try:
            if sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) > os.path.getsize(path):
                raise ValueError('they claim to be more than the file holds')
            if backbone is None:
                # before anything is built of a size that a stranger's file merely states
                if not {*config['widths'], config['dim']} <= {tensor.shape[:1].numel() for tensor in weights.values()} \
                        or sum(config['layers']) > len(weights):
                    raise ValueError(f'they are not of {config}')
                backbone = Backbone(**config)
            model = cls(backbone, len(weights['identity.weight']), len(weights['age.4.bias']))
            model.load_state_dict(weights)
        except Exception as error:  # missing keys, other shapes, other types: likewise
            raise ValueError(f'{path}: the weights do not fit this backbone ({type(error).__name__}: {" ".join(str(error).split()):.200})') from None
        return model
