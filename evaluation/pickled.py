"""InsightFace's `.bin`, read without trusting it: a pickle of (encoded images, same person or not).

A pickle is a program. This one may build lists, tuples, bytes and numbers and nothing else: the few
names that arrays and bytes are pickled under lead to the stand-ins below, which keep a type code
and raw bytes; any other name ends the reading before it is called.
"""

import io
import pickle

import numpy as np

from storage.images import some
from utils import DataError

CODES = {'u1', 'i1', 'b1', '?', 'i4', 'i8', 'u4', 'u8'}
LARGEST_FILE, LARGEST_IMAGE, MOST_PAIRS = 4 * 2**30, 16 * 2**20, 1_000_000


class _Type:
    """Stands for numpy.dtype: a code such as 'u1', and nothing that refers to objects."""

    def __init__(self, code, *_):
        code = code.decode('latin1') if isinstance(code, bytes) else code
        if not isinstance(code, str) or code.lstrip('|<=') not in CODES:
            raise pickle.UnpicklingError(f'arrays of type {code!r} have no place in it')
        self.code = code.lstrip('|<=')

    def __setstate__(self, state):
        if state[1] not in ('|', '<', '=', b'|', b'<', b'='):
            raise pickle.UnpicklingError('big-endian arrays have no place in it')


class _Array:
    """Stands for numpy.ndarray: empty until its state comes, then `values`."""

    def __init__(self, *_):
        self.values = np.empty(0)

    def __setstate__(self, state):
        _, shape, kind, _, raw = state
        self.values = _values(raw, kind).reshape(shape)


def _values(raw, kind):
    if not isinstance(kind, _Type):
        raise pickle.UnpicklingError('an array without a type')
    data = raw.encode('latin1') if isinstance(raw, str) else raw
    return np.frombuffer(data, '<' + kind.code if kind.code != '?' else '?')


def _array_of(raw, kind, shape, *_):
    array = _Array()
    array.values = _values(raw, kind).reshape(shape)
    return array


def _scalar(kind, raw):
    return _values(raw, kind)[0].item()


def _encode(text, encoding):
    """How Python 3 writes bytes for protocol 2: latin1 and no other codec."""
    if encoding not in ('latin1', 'latin-1'):
        raise pickle.UnpicklingError(f'the codec {encoding!r} has no place in it')
    return text.encode('latin1')


ADMITTED = {
    ('numpy', 'dtype'): _Type,
    ('numpy', 'ndarray'): 'ndarray',
    ('_codecs', 'encode'): _encode,
}
for _core in ('numpy.core', 'numpy._core'):
    ADMITTED |= {
        (f'{_core}.multiarray', '_reconstruct'): _Array,
        (f'{_core}.multiarray', 'scalar'): _scalar,
        (f'{_core}.numeric', '_frombuffer'): _array_of,
    }
for _module in ('builtins', '__builtin__'):
    ADMITTED |= {(_module, 'bytes'): bytes, (_module, 'bytearray'): bytearray}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(
                f'it asks for {module}.{name}, which no list of faces needs; nothing of it was run'
            )
        return ADMITTED[module, name]


def read_bin(path) -> tuple[list[bytes], np.ndarray]:
    """The encoded images, a list of 2·n bytes, and whether each of the n pairs is the same person,
    bool (n,).

    Pair i is images 2i and 2i + 1. Written by Python 2 or 3, images as bytes or 1-D uint8 arrays.
    Raises DataError, one line, for anything else; nothing in the file is run.
    """
    try:
        with open(path, 'rb') as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}: expected an InsightFace .bin file') from None
    if len(data) > LARGEST_FILE:
        raise DataError(f'{path}: larger than {LARGEST_FILE >> 30} GiB: no list of faces')
    try:
        content = _Unpickler(io.BytesIO(data), encoding='latin1').load()
    except pickle.UnpicklingError as error:
        raise DataError(f'{path}: refused: {some([str(error)])}') from None
    except Exception as error:  # a damaged or hostile file can raise anything
        raise DataError(
            f'{path}: not a pickle of (images, issame) that can be read '
            f'({type(error).__name__}: {some([str(error)])})'
        ) from None
    if not isinstance(content, (tuple, list)) or len(content) != 2:
        raise DataError(f'{path}: expected a pair (images, issame), found {type(content).__name__}')
    images, same = content
    same = same.values.tolist() if isinstance(same, _Array) else same
    if not isinstance(images, (tuple, list)) or not isinstance(same, (tuple, list)):
        raise DataError(
            f'{path}: expected lists of images and of issame, found '
            f'{type(images).__name__} and {type(same).__name__}'
        )
    if len(images) != 2 * len(same) or not same or len(same) > MOST_PAIRS:
        raise DataError(
            f'{path}: {len(images)} images and {len(same)} pairs: expected two images a pair'
        )
    if not all(isinstance(flag, int) and flag in (0, 1) for flag in same):
        raise DataError(f'{path}: issame must hold booleans')
    encoded = [_encoded(image, f'{path}: image {i}') for i, image in enumerate(images)]
    return encoded, np.array(same, bool)


def _encoded(image, what):
    """One image's bytes, of whatever kind the pickle holds."""
    if isinstance(image, _Array):
        if image.values.ndim != 1 or image.values.dtype != np.uint8:
            raise DataError(
                f'{what}: an array {image.values.shape} of {image.values.dtype}; '
                'expected the encoded file as 1-D uint8'
            )
        image = image.values.tobytes()
    elif isinstance(image, str):  # Python 2's bytes, read as latin1
        try:
            image = image.encode('latin1')
        except UnicodeEncodeError:
            raise DataError(f'{what}: text where an encoded image is expected') from None
    if not isinstance(image, (bytes, bytearray)) or len(image) > LARGEST_IMAGE:
        raise DataError(f'{what}: expected an encoded image, found {type(image).__name__}')
    return bytes(image)
