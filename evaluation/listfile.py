"""Lists of pairs as people have them: separators, labels and headers; and the images they name."""

import csv
import hashlib
import os
import re
from pathlib import Path

from evaluation.pairs import Pairs
from storage.files import find, is_image, numbered_lines_of, seen_from
from storage.images import some
from utils import DataError, write_whole

LABELS = {
    '1': True,
    '+1': True,
    '1.0': True,
    'true': True,
    '0': False,
    '-1': False,
    '0.0': False,
    'false': False,
}
# in the first line of a list whose threshold candidates are all of its scores, and no grid
EVERY_SCORE = 'thresholds: every score'
QUOTED = re.compile(r'"([^"]*)"|([^ \t]+)')


def read_lines(file: Path) -> tuple[list[tuple[int, str]], str]:
    """The lines that aren't blank, (number, text), and the sha256 of the file.

    Raises DataError where the file is missing, empty or no text.
    """
    try:
        data = Path(file).expanduser().read_bytes()
    except OSError as error:
        raise DataError(
            f'{file}: {error.strerror}{seen_from(str(file))}: the list is looked for there'
        ) from None
    lines = numbered_lines_of(data)
    if any('\0' in line for _, line in lines):
        raise DataError(f'{file}: no text file: save the list as text, in UTF-8')
    if not lines:
        raise DataError(f'{file}: the list is empty')
    return lines, hashlib.sha256(data).hexdigest()


def is_pair_list(path) -> bool:
    """Whether `path` is a list of pairs: an InsightFace .bin, or a text file with a pair in its
    first or second line."""
    file = Path(path).expanduser()
    if file.suffix == '.bin' or not file.is_file():
        return file.suffix == '.bin'
    with open(file, 'rb') as begin:
        lines = numbered_lines_of(begin.read(4096))
    return any(pair_of(line) is not None for _, line in lines[:2])


def columns(line: str) -> list[list[str]]:
    """The ways to cut a line: at its tabs, its spaces (outside quotes), its commas, semicolons; a
    comma or semicolon at its end is none of its columns."""
    line = re.sub(r'\s*[,;]\s*$', '', line)
    ways = [[field.strip().strip('"') for field in line.split('\t')]] if '\t' in line else []
    ways.append([quoted or plain for quoted, plain in QUOTED.findall(line)])
    for mark in ',;':
        if mark in line:
            fields = next(csv.reader([line], delimiter=mark, skipinitialspace=True))
            ways.append([field.strip() for field in fields])
    return ways


def pair_of(line: str) -> tuple[bool, str, str, int | None] | None:
    """(same, image, image, fold) of `label a b`, `a b label` or `label a b fold`; None where the
    line is none of these. The fold is None where there is no column of it."""
    for fields in columns(line):
        label = LABELS.get(fields[0].lower())
        if len(fields) == 4 and label is not None and fields[3].isdecimal():
            return label, fields[1], fields[2], int(fields[3])
        if len(fields) == 3 and label is not None:
            return label, fields[1], fields[2], None
        if len(fields) == 3 and (label := LABELS.get(fields[2].lower())) is not None:
            return label, fields[0], fields[1], None
    return None


def why_no_pair(line: str) -> str:
    """What a line that is no pair holds, for its error message, and what was expected."""
    expected = 'expected `label pathA pathB`, the label 1 or 0'
    ways = columns(line)
    if line.count('|') > 1:
        return f"columns are cut at tabs, spaces, commas or semicolons, not at '|': {expected}"
    fields = next((fields for fields in ways if len(fields) in (3, 4)), ways[0])
    if len(fields) == 3:
        return (
            f'the label is looked for in the first column, {fields[0]!r:.40}, and in the last, '
            f'{fields[2]!r:.40}: {expected}'
        )
    if (
        len(fields) == 4
        and fields[0].isdecimal()
        and LABELS.keys() & {fields[1].lower(), fields[3].lower()}
    ):
        return (
            f'4 columns, the first, {fields[0]!r:.40}, seems to be an index: write the list '
            f'without it: {expected}'
        )
    if len(fields) == 4 and fields[0].lower() in LABELS:
        return (
            f'the fourth column, {fields[3]!r:.40}, is no number of a fold: {expected}; names '
            'with spaces need tabs between the columns'
        )
    return f'{len(fields)} column(s): {expected}; names with spaces need tabs between the columns'


def is_header(line: str) -> bool:
    """Whether a first line that is no pair names the columns: no image, no path, no number."""
    fields = re.split(r'[\s,;]+', line.strip())
    return not any(
        is_image(field) or re.search(r'[/\\]', field) or re.fullmatch(r'[-+.\d]+', field)
        for field in fields
    )


def locate(root: Path, name: str) -> str:
    """The path of an image that a list names, below `root` or from `~`; where it would be if it
    isn't there."""
    return str(root / (find(root, name) or find(root, os.path.expanduser(name)) or name))


def root_of(path: Path, names: list[str], *below: str) -> Path:
    """The first of the folders path/<below> that holds an image of the list.

    Raises DataError where none does.
    """
    for part in below:
        root = Path(path, part)
        if any(os.path.exists(locate(root, name)) for name in names):
            return root
    places = some([str(Path(path, part, names[0])) for part in below])
    raise DataError(
        f'{some(names[:1])}, the first image of the list, is not there, nor any other: '
        f'looked for {places}'
    )


def write_pairs(path: Path, pairs: Pairs, names: list[str], note: str) -> None:
    """Writes the pairs as lines `label pathA pathB fold`, with tabs between, that lists.pair_list
    reads; the first line is `note`, and that the thresholds are every score, as they were where the
    pairs were drawn. Raises DataError for a name that such a line can't hold."""
    paths = [os.path.abspath(name) for name in names]
    for name in paths:
        if set(name) & set('\t\r\n"'):
            raise DataError(f'{some([name])}: a list can hold no tab, quote or line end in a name')
    lines = [
        f'{same:d}\t{paths[left]}\t{paths[right]}\t{fold}'
        for left, right, same, fold in zip(*pairs[:4], strict=True)
    ]
    text = os.fsencode('\n'.join([f'# {note}; {EVERY_SCORE}', *lines, '']))
    write_whole(path, lambda temporary: temporary.write_bytes(text))
