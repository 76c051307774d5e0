"""Files of pairs: text lists in the layouts that people have, and InsightFace's .bin."""

import hashlib
import io
import os
import pickle
import re
from pathlib import Path

import numpy as np

from evaluation.pairs import Pairs
from storage.files import cells, find_file, is_image, lines_of_text, read_bytes
from storage.images import some
from utils import DataError, write_whole

LABELS = dict.fromkeys(('1', '+1', '1.0', 'true'), True)
LABELS |= dict.fromkeys(('0', '-1', '0.0', 'false'), False)
# in the first line of a list whose threshold candidates are all of its scores, and no grid
EVERY_SCORE = 'thresholds: every score'
EXPECTED = 'expected `label pathA pathB`, the label 1 or 0'
TABS = f'{EXPECTED}; names with spaces need tabs between the columns'


def read_lines(file: Path) -> tuple[list[tuple[int, str]], str]:
    """The lines that aren't blank, (number, text), and the sha256 of the file. Raises DataError if
    it is missing, empty or no text."""
    data = read_bytes(file, 'the list is looked for there')
    lines = lines_of_text(data, file)
    if not lines:
        raise DataError(f'{file}: the list is empty')
    return lines, hashlib.sha256(data).hexdigest()


def is_pair_list(path: Path | str) -> bool:
    """Whether `path` is a .bin, or a text file with a pair in its first or second line."""
    file = Path(path).expanduser()
    if file.suffix == '.bin' or not file.is_file():
        return file.suffix == '.bin'
    with open(file, 'rb') as begin:
        lines = lines_of_text(begin.read(4096), None)
    return any('\0' not in line and pair_of(line) for _, line in lines[:2])


def columns(line: str) -> list[list[str]]:
    """The ways to cut a line: at its tabs, its spaces (outside quotes), its commas, semicolons. A
    comma or semicolon at the end of the line starts no column."""
    line = re.sub(r'\s*[,;]?\s*$', '', line)
    ways = [(line, '\t'), (line.replace('\t', ' '), ' '), (line, ','), (line, ';')]
    return [cells(x, at) for x, at in ways if at in x] or [[line]]


def pair_of(line: str) -> tuple[str, str, bool, int | None] | None:
    """(image, image, same, fold) of `label a b`, `a b label` or `label a b fold`, else None. The
    fold is None if there is no column of it."""
    for fields in columns(line):
        first, last = (LABELS.get(fields[at].lower()) for at in (0, -1))
        if len(fields) == 4 and first is not None and fields[3].isdecimal():
            return fields[1], fields[2], first, int(fields[3])
        if len(fields) == 3 and first is not None:
            return fields[1], fields[2], first, None
        if len(fields) == 3 and last is not None:
            return fields[0], fields[1], last, None
    return None


def why_no_pair(line: str) -> str:
    """What is wrong with a line that is no pair, and what was expected."""
    if line.count('|') > 1:
        return f"columns are cut at tabs, spaces, commas or semicolons, not at '|': {EXPECTED}"
    ways = columns(line)
    fields = next((fields for fields in ways if len(fields) in (3, 4)), ways[0])
    first, last = f'{fields[0]!r:.40}', f'{fields[-1]!r:.40}'
    if len(fields) == 3:
        places = f'in the first column, {first}, and in the last, {last}'
        return f'the label is looked for {places}: {EXPECTED}'
    if len(fields) == 4 and LABELS.keys() & {fields[1].lower(), fields[3].lower()}:
        remedy = 'seems to be an index: write the list without it'
        return f'4 columns, the first, {first}, {remedy}: {EXPECTED}'
    if len(fields) == 4 and fields[0].lower() in LABELS:
        return f'the fourth column, {last}, is no number of a fold: {TABS}'
    return f'{len(fields)} column(s): {TABS}'


def is_header(line: str) -> bool:
    """Whether a first line that is no pair names the columns: no image, no path, no number."""
    fields = re.split(r'[\s,;]+', line.strip())
    return not any(is_image(x) or re.search(r'[/\\]|^[-+.\d]+$', x) for x in fields)


def locate(root: Path, name: str) -> str:
    """The path of an image that a list names, below `root` or from `~`: where it is or would be."""
    return str(root / (find_file(root, name) or find_file(root, os.path.expanduser(name)) or name))


def root_of(path: Path, names: list[str], *below: str) -> Path:
    """The first of the folders path/<below> that holds an image of the list, else DataError."""
    for root in (path / folder for folder in below):
        if any(os.path.exists(locate(root, name)) for name in names):
            return root
    places = some([str(path / folder / names[0]) for folder in below])
    wrong = f'{some(names[:1])}, the first image of the list, is not there, nor any other'
    raise DataError(f'{wrong}: looked for {places}')


def write_pairs(path: Path, pairs: Pairs, names: list[str], note: str) -> None:
    """Writes lines `label pathA pathB fold`, with tabs between, which protocols.pair_list reads.
    The first line holds `note`, and EVERY_SCORE, as for the drawn pairs. Raises DataError for a
    name that such a line can't hold."""
    paths = [os.path.abspath(name) for name in names]
    for name in paths:
        if set(name) & set('\t\r\n"'):
            raise DataError(f'{some([name])}: a list can hold no tab, quote or line end in a name')
    lines = [f'# {note}; {EVERY_SCORE}']
    for left, right, same, fold in zip(*pairs[:4], strict=True):
        lines.append(f'{same:d}\t{paths[left]}\t{paths[right]}\t{fold}')
    text = os.fsencode('\n'.join([*lines, '']))
    write_whole(path, lambda temporary: temporary.write_bytes(text))


class _Stub:
    """Stands for what numpy puts into a pickle: keeps what it is given, and runs nothing."""

    def __init__(self, *args):
        self.args, self.state = args, None

    def __setstate__(self, state):
        self.state = state

    def array(self) -> np.ndarray:
        """The array of bytes, booleans or integers that it stands for, whoever wrote it."""
        if self.state:  # _reconstruct
            _, shape, kind, _, raw = self.state
        elif len(self.args) == 2:  # scalar
            (kind, raw), shape = self.args, ()
        else:  # _frombuffer
            raw, kind, shape = self.args[:3]
        code = kind.args[0].lstrip('|<=')
        if code not in ('u1', 'b1', '?', 'i1', 'i4', 'i8', 'u4', 'u8'):
            raise pickle.UnpicklingError(f'arrays of type {code!r} have no place in it')
        raw = raw.encode('latin1') if isinstance(raw, str) else raw
        return np.frombuffer(raw, code).reshape(shape)


class _Unpickler(pickle.Unpickler):
    """Admits the few names that arrays and bytes are pickled under; no other is ever called."""

    numpys = {'dtype', 'ndarray', '_reconstruct', 'scalar', '_frombuffer'}
    # protocol 2 writes bytes as latin1 text; the codec that the file asks for is not looked up
    others = {'encode': lambda text, codec: text.encode('latin1')}
    others |= {'bytes': bytes, 'bytearray': bytearray}

    def find_class(self, module, name):
        if re.fullmatch(r'numpy(\._?core\.(multiarray|numeric))?', module) and name in self.numpys:
            return _Stub
        if module in ('builtins', '__builtin__', '_codecs') and name in self.others:
            return self.others[name]
        asked = f'it asks for {module}.{name}, which no list of faces needs'
        raise pickle.UnpicklingError(f'{asked}; nothing of it was run')


def read_bin(path: Path | str) -> tuple[list[bytes], np.ndarray]:
    """The 2·n encoded images of an InsightFace .bin, and whether each pair, images 2i and 2i + 1,
    is one person, (n,). The file is a pickle of Python 2 or 3, its images bytes or 1-D uint8
    arrays. Raises DataError, one line, for anything else; nothing in the file is run."""
    data = read_bytes(path, 'expected an InsightFace .bin file')
    try:
        content = _Unpickler(io.BytesIO(data), encoding='latin1').load()
        images, same = map(_plain, content) if len(content) == 2 else (content, None)
    except pickle.UnpicklingError as error:
        raise DataError(f'{path}: refused: {some([str(error)])}') from None
    except Exception as error:  # a damaged or hostile file can raise anything
        reason = f'{type(error).__name__}: {some([str(error)])}'
        wrong = f'not a pickle of (images, issame) that can be read ({reason})'
        raise DataError(f'{path}: {wrong}: fetch it again') from None
    if not isinstance(images, list) or not isinstance(same, list):
        kinds = f'{type(images).__name__} and {type(same).__name__}'
        raise DataError(f'{path}: expected lists of images and of issame, found {kinds}')
    if len(images) != 2 * len(same) or not same:
        counts = f'{len(images)} images and {len(same)} pairs'
        raise DataError(f'{path}: {counts}: expected two images a pair')
    if not all(np.size(flag) == 1 and flag in (0, 1) for flag in same):
        raise DataError(f'{path}: issame must hold booleans')
    encoded = [_encoded(image, f'{path}: image {i}') for i, image in enumerate(images)]
    return encoded, np.array(same, bool)


def _plain(value):
    """A list of plain values, from the list, tuple or array that a pickle holds."""
    value = value.array().tolist() if isinstance(value, _Stub) else value
    if not isinstance(value, (list, tuple)):
        return value
    return [item.array() if isinstance(item, _Stub) else item for item in value]


def _encoded(image, which):
    """The bytes of one image, as the pickle holds them."""
    kind = type(image).__name__
    if isinstance(image, np.ndarray):
        kind = f'an array {image.shape} of {image.dtype}'
        if image.ndim == 1 and image.dtype == np.uint8:
            return image.tobytes()
    if isinstance(image, str) and max(image, default='') < '\u0100':
        return image.encode('latin1')  # Python 2's bytes
    if isinstance(image, (bytes, bytearray)):
        return bytes(image)
    raise DataError(f'{which}: expected an encoded image, found {kind}')
