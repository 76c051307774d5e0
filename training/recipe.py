"""The recipe: every value of a training but its data, with the reason why it is what it is.

`paper` is the paper's setting; the others differ from it as they say. `--set key=value` changes
single values. A recipe checks itself; what can't be is one line that names the value.
"""

import ast
import types
import typing
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from utils import UserError

LARGEST = 2**32  # of whole numbers: what a seed can be


@dataclass(frozen=True)
class Recipe:
    # the network
    backbone: str = 'dal'  # the paper's, of the three values below; or one of backbones/
    layers: tuple[int, ...] = (3, 4, 10, 3)  # residual blocks per stage: the paper's 64 layers
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels per stage: the paper's
    dim: int = 512  # length of x: the paper's
    head: Literal['cosface', 'arcface'] = 'cosface'  # margin of the identity logits: the paper's
    age_head: Literal['groups', 'ordinal'] = 'groups'  # softmax over age groups: the paper's
    scale: float = 64.0  # s of the identity logits: the paper's
    margin: float | None = None  # m of the head; None: its own, 0.35 of CosFace, 0.5 of ArcFace
    margin_warmup: float = 0.0  # fraction of training over which m rises from 0; helps a stuck loss

    # the batch
    batch_size: int = 64  # of all ranks together; ρ is the batch's, so larger is better
    accumulate: int = 1  # micro-batches a step: less memory; batch norm sees each alone
    shard_head: bool = False  # each rank holds a slice of the class centres: for many people
    sample_rate: float = 1.0  # share of its centres that a step uses; below 1 needs shard_head
    sync_batchnorm: bool = False  # batch norm sees the micro-batches of all ranks, not one's own

    # the network's descent
    lr: float = 0.02  # peak learning rate; scale it with the batch size
    warmup: float = 0.03  # fraction of training over which lr rises to its peak
    momentum: float = 0.9  # of SGD
    lr_backbone: float = 1.0  # factor on the backbone's learning rate
    freeze: float = 0.0  # fraction of training over which the backbone stays as it began
    last_blocks: int = 0  # of a pretrained backbone only these learn, on kept activations; 0: all
    batchnorm: Literal['trained', 'frozen'] = 'trained'  # frozen: the backbone's stay as they are
    weight_decay: float = 5e-4  # on matrices and convolutions, not on norms and biases
    clip: float = 5.0  # largest gradient norm: at s = 64 the first batch's is huge
    horizon: int | None = None  # epochs that schedule and ramps span; None: those of this call
    lambda_age: float = 0.1  # λ1, weight of the age loss: the paper's
    lambda_dal: float = 0.1  # λ2, weight of |ρ|: the paper's

    # the split x_id = x − α·R(x)
    factorization: Literal['learned', 'solved'] = 'learned'  # R: two layers (the paper's); or
    #                             in closed form: what correlates with powers of the age
    age_powers: int = 4  # of R solved: the age, its square, and so on up to this power
    within_person: bool = False  # of R solved: by the years from a person's own mean alone
    directions: int = 0  # of R solved: so many, of most variance within people, go too
    whiten: float = 0.0  # of R solved: then a whitening within people of this strength

    # the adversary
    variate: Literal['learned', 'label'] = 'learned'  # v_age: w_age·x_age (the paper's), or the age
    min_steps: int = 50  # iterations of the network in turn: the paper's
    max_steps: int = 20  # iterations of the adversary in turn: the paper's; 0: no max phase
    adversary_lr: float = 0.01  # its own (Adam); w has unit length
    memory: float = 0.0  # w solved in every step, from moments over 1 / (1 − memory) batches

    # ramps, as fractions of training: identity first, then the split, then the game
    read_age: float = 0.0  # until here the age loss trains R alone, not the backbone
    split: tuple[float, float] = 0.0, 0.0  # between these α rises from 0 to 1
    game: tuple[float, float] = 0.0, 0.0  # between these λ2 rises from 0; the adversary starts too

    # the machine
    seed: int = 0  # of weights, order and flips
    workers: int = 0  # processes that decode; needed only without a cache
    cache: bool = True  # decoded faces in one file beside the data set (32 kB a face)
    skip_corrupt: int = 0  # unreadable images that may be left out; one more ends the run
    precision: Literal['auto', 'bf16', 'fp16', 'float32'] = 'auto'  # of the network's products, the
    #                             fastest that the hardware has; heads and ρ are float32 always
    compile: bool = False  # the backbone by torch.compile; it takes a compiler, and minutes
    save_every: int = 0  # also write last.pth every so many steps; 0: after each epoch only

    def __post_init__(self):
        ramp = 'where its ramp begins and where it ends, as fractions of the training'
        counts = 'seed workers max_steps save_every skip_corrupt last_blocks directions'
        for names, holds, must in (
            ('batch_size', lambda v: v >= 2, 'at least 2'),
            (counts, lambda v: v >= 0, 'at least 0'),
            ('dim min_steps accumulate age_powers', lambda v: v >= 1, 'at least 1'),
            ('horizon', lambda v: v is None or v >= 1, 'at least 1, or None'),
            ('scale clip adversary_lr', lambda v: v > 0, 'above 0'),
            ('lr lr_backbone weight_decay lambda_age lambda_dal', lambda v: v >= 0, 'at least 0'),
            ('margin', lambda v: v is None or v >= 0, 'at least 0, or None'),
            ('momentum memory', lambda v: 0 <= v < 1, 'from 0 to below 1'),
            ('margin_warmup warmup read_age freeze whiten', lambda v: 0 <= v <= 1, 'from 0 to 1'),
            ('sample_rate', lambda v: 0 < v <= 1, 'above 0 and at most 1'),
            ('split game', lambda v: len(v) == 2 and 0 <= v[0] <= v[1] <= 1, ramp),
        ):
            for name in names.split():
                value = getattr(self, name)
                if not holds(value):
                    raise UserError(f'{name} is {value}; it must be {must}')
                if isinstance(value, int | float) and value >= LARGEST:
                    raise UserError(f'{name} is {value}; it must be below 2³²')
        for field in fields(self):
            value, options = getattr(self, field.name), typing.get_args(field.type)
            if typing.get_origin(field.type) is Literal and value not in options:
                must = ' or '.join(map(repr, options))
                raise UserError(f'{field.name} is {value!r:.80}; it must be {must}')
        as_many = len(self.layers) == len(self.widths) > 0
        if not as_many or min(self.layers) < 0 or min(self.widths) < 1:
            raise UserError(f'layers {self.layers} and widths {self.widths} must fit each other')
        if self.memory and self.variate == 'learned':
            raise UserError(f"memory is {self.memory}; it must be 0 if variate is 'learned'")
        if self.sample_rate < 1 and not self.shard_head:
            raise UserError(f'sample_rate is {self.sample_rate}; below 1 it needs shard_head=True')

    @property
    def ramps_end(self) -> float:
        """The fraction of the training at which all ramps have ended."""
        return max(self.freeze, self.read_age, self.split[1], self.game[1])

    def override(self, pairs: typing.Iterable[tuple[str, str]]) -> 'Recipe':
        """This recipe with (key, text) pairs set, each read as a literal of its field's type.
        Raises UserError for a key that isn't there, or a value that can't be."""
        known = {field.name: field.type for field in fields(self)}
        values: dict[str, typing.Any] = {}
        for key, text in pairs:
            if key not in known:
                raise UserError(f'--set {key}: the recipe has {", ".join(known)}')
            try:
                kind = known[key]
                plain = kind is str or typing.get_origin(kind) is Literal
                values[key] = text if plain else _convert(kind, ast.literal_eval(text))
            except (ValueError, TypeError, SyntaxError, OverflowError, MemoryError, RecursionError):
                like = f'expected something like {getattr(self, key)!r}'
                raise UserError(f'--set {key}={text!r:.80}: {like}') from None
        return replace(self, **values)

    def as_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def of(cls, stored: dict | None) -> 'Recipe':
        """The recipe of a weights file; the paper's value for each that the file lacks."""
        stored, known = dict(stored or {}), {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in stored.items() if key in known})


def _convert(kind, value):
    """`value` as a `kind`; a whole number may stand for a float. TypeError for another kind."""
    if typing.get_origin(kind) is tuple:
        of, *rest = typing.get_args(kind)
        if type(value) is not tuple:
            raise TypeError
        return tuple(_convert(of, entry) for entry in value)
    if isinstance(kind, types.UnionType):
        return None if value is None else _convert(typing.get_args(kind)[0], value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError
    return value


paper = Recipe()
# identity first, then the split, then the game against a supervised age: what decorrelated in our
# hands (docs/ablation.md)
supervised = replace(paper, variate='label', max_steps=0, lambda_dal=5.0, memory=0.95)
ramped = replace(supervised, read_age=0.3, split=(0.3, 0.5), game=(0.4, 0.6))
# the same for photographs on a few CPU cores
small = replace(ramped, layers=(0, 0, 1, 0), widths=(32, 64, 128, 256), dim=256, lr=0.05)
# and for the drawn faces: more layers find less there
demo = replace(small, layers=(0, 0, 0, 0), widths=(16, 32, 64, 128), dim=128)
# from a backbone that already knows faces (docs/finetuning.md): that learns at a fifth of the rate,
# and R in closed form, solved before and after, takes out what correlates with the age: what did
# best on people of other photographs than it was fitted to (docs/ablation.md)
solved = replace(paper, factorization='solved', directions=2, whiten=0.2)
finetune = replace(solved, lr_backbone=0.2, variate='label', max_steps=0, lambda_dal=0.0)
recipes = {'paper': paper, 'ramped': ramped, 'small': small, 'demo': demo, 'finetune': finetune}
