"""What a run of prepare.py says at its end: what came out, what was skipped, what to do next."""

import contextlib
import keyword
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dataset import Faces
from evaluation.set_checks import check_ages
from preparation.target import Report
from storage.files import below
from storage.images import some
from utils import DataError


def of_photographs(report: Report, changes: Counter, keep_names: bool) -> str:
    """The lines on a set made of photographs; `changes` are those of faces of runs before."""
    faces, rows = report.faces(), report.rows.values()
    made = [row for row in rows if row.target]
    reasons = Counter(row.reason for row in rows if row.reason)
    shown = dict(reasons.most_common(8))  # a reason that names a file is one of a kind
    cut = sum(row.faces == '0' for row in made)
    counts = dict(changes) | {f'skipped: {reason}': number for reason, number in shown.items()}
    counts['skipped for other reasons'] = reasons.total() - sum(shown.values())
    several = sum(row.faces not in ('', '0', '1') for row in made)
    counts['photograph(s) of several faces: look at report.csv, column faces'] = several
    share = f'photograph(s) without a face that was found, {100 * cut / max(1, len(made)):.1f} %'
    counts[f'{share}: cut from the middle (column faces: 0)'] = cut
    written = f'{len(made)} faces of {len(faces)} {"folder(s)" if keep_names else "people"}'
    files = f'{report.target}, of {len(rows)} files; what became of each: {report.path}'
    lines = [f'{written} in {files}']
    lines += [f'{number:7} {what}' for what, number in counts.items() if number]
    if faces and not keep_names:
        entry = _entry(report.target, report.target, len(faces))
        command = f'python3 prepare.py --check {identifier(report.target)}'
        lines += [*_warnings(report, faces), entry, '', f'and examine it: {command}']
    return '\n'.join(lines)


def of_records(target: str, pattern: str, people: int, lines: Sequence[str]) -> str:
    """The lines on shards made of a .rec file, with the entry for meta.py."""
    return '\n'.join([*lines, _entry(target, pattern, people)])


def _entry(target, root, people):
    values = {'train_root': os.path.abspath(root), 'val_root': None, 'pat': r'_|\.', 'pos': 1}
    text = entry_text(identifier(target), values | {'n_cls': people})
    return f'Look at {Path(target, "sheet.jpg")}, then paste into meta.py:\n\n{text}'


def _warnings(report, faces):
    """What training will say of the set: files that aren't this run's, ages without meaning."""
    lines, ours = [], {row.target for row in report.rows.values()}
    strangers = [path for path in below(report.target).images if os.path.dirname(path)]
    strangers = [path for path in strangers if path not in ours]
    if strangers:
        line = f'{len(strangers):7} image(s) in {report.target} that this did not make, and that'
        line += f' training counts: {some(strangers)}: remove what does not belong there'
        people = {*faces, *(path.split(os.sep)[0] for path in strangers)}
        if len(people) > len(faces):
            line += f'; training finds {len(people)} identities with them'
            line += f", and 'n_cls': {len(faces)} below is without"
        lines.append(line)
    with contextlib.suppress(DataError):  # of a stranger without an age
        lines += [f'Beware: {line}' for line in check_ages(Faces(report.target, r'_|\.', 1))]
    if len(faces) > 2 and all(len(files) == 1 for files in faces.values()):
        one = f'each of the {len(faces)} people has one image, as {some(list(faces)[:1])}'
        lines.append(f'Beware: {one}: is that their names? See --people')
    return lines


def identifier(folder: str | os.PathLike) -> str:
    """A Python name like that of the folder."""
    word = re.sub(r'\W', '_', os.path.basename(os.path.abspath(folder)), flags=re.ASCII) or '_'
    return f'_{word}' if word[0].isdigit() or keyword.iskeyword(word) else word


def entry_text(name: str, values: dict) -> str:
    """The text of an entry of meta.py."""
    lines = [f'    {key!r}: {_literal(value)},' for key, value in values.items()]
    return '\n'.join([f'{name} = {{', *lines, '}'])


def _literal(value):
    """As Python writes it, in characters that the terminal has."""
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        repr(value).encode(sys.stdout.encoding or 'utf-8')
    except UnicodeEncodeError:
        return ascii(value)
    return repr(value)
