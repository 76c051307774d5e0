"""What a run of prepare.py tells and shows at its end: what came out, and what to do next."""

import contextlib
import keyword
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dataset import Faces
from evaluation.set_checks import check_ages
from preparation.target import Report
from storage.images import HEIGHT, WIDTH, decode, some
from utils import DataError, write_whole

MARGIN, LINE, ROWS, COLUMNS = 8, 16, 12, 8  # of the sheet: pixels, people, faces of each


def of(report: Report, written: str, counts: Mapping[str, int]) -> list[str]:
    """The lines on a run: what was `written`, how many files `counts` says what of, or skipped."""
    rows = report.rows.values()
    reasons = Counter(row.reason for row in rows if row.reason)
    shown = dict(reasons.most_common(8))  # a reason that names a file is one of a kind
    counts = {**counts, **{f'skipped: {reason}': number for reason, number in shown.items()}}
    counts['skipped for other reasons'] = reasons.total() - sum(shown.values())
    each = f'what became of each of the {len(rows)}: {report.path}'
    lines = [f'{number:7} {what}' for what, number in counts.items() if number]
    return [f'{written} in {report.target}; {each}', *lines]


def of_photographs(
    report: Report, faces: Mapping[str, Sequence], changes: Mapping[str, int], keep_names: bool
) -> str:
    """The lines on a set of `faces` (those of each person) that was made of photographs.

    `changes` are those of faces of runs before.
    """
    made = [row for row in report.rows.values() if row.target]
    cut = sum(row.faces == '0' for row in made)
    several = sum(row.faces not in ('', '0', '1') for row in made)
    share = f'photograph(s) without a face that was found, {100 * cut / max(1, len(made)):.1f} %'
    counts = {
        **changes,
        'photograph(s) of several faces: look at report.csv, column faces': several,
        f'{share}: cut from the middle (column faces: 0)': cut,
    }
    people = f'{len(faces)} {"folder(s)" if keep_names else "people"}'
    lines = of(report, f'{len(made)} faces of {people}', counts)
    if faces and not keep_names:
        command = f'python3 prepare.py --check {identifier(report.target)}'
        lines += [*_warnings(report, faces), entry(report.target, report.target, len(faces))]
        lines += ['', f'and examine it: {command}']
    return '\n'.join(lines)


def entry(target: str | os.PathLike, root: str | os.PathLike, people: int) -> str:
    """The lines with the entry for meta.py."""
    values = {'train_root': os.path.abspath(root), 'val_root': None, 'pat': r'_|\.', 'pos': 1}
    text = entry_text(identifier(target), values | {'n_cls': people})
    return f'Look at {Path(target, "sheet.jpg")}, then paste into meta.py:\n\n{text}'


def _warnings(report, faces):
    """What training will say of the set: files that aren't this run's, ages without meaning."""
    try:
        there = Faces(report.target, r'_|\.', 1)
    except DataError as error:  # of a stranger without an age
        return [f'Beware: {error}']
    lines, ours = check_ages(there), {row.target for row in report.rows.values()}
    if len(faces) > 2 and all(len(files) == 1 for files in faces.values()):
        one = f'each of the {len(faces)} people has one image, as {some(list(faces)[:1])}'
        lines.append(f'{one}: is that their names? See --people')
    strangers = [name for name in map(there.source.name, there.places) if name not in ours]
    if strangers:
        line = f'{len(strangers)} image(s) in {report.target} that this did not make, and that'
        line += f' training counts: {some(strangers)}: remove what does not belong there'
        if len(there.classes) > len(faces):
            line += f'; training finds {len(there.classes)} identities with them'
            line += f", and 'n_cls': {len(faces)} below is without"
        lines.append(line)
    return [f'Beware: {line}' for line in lines]


def identifier(folder: str | os.PathLike) -> str:
    """A Python name like that of the folder."""
    word = re.sub(r'\W', '_', os.path.basename(os.path.abspath(folder)), flags=re.ASCII) or '_'
    return f'_{word}' if word[0].isdigit() or keyword.iskeyword(word) else word


def entry_text(name: str, values: dict) -> str:
    """The text of an entry of meta.py, what the terminal can't show written as \\xe9."""
    values = {key: os.fspath(x) if isinstance(x, os.PathLike) else x for key, x in values.items()}
    lines = [f'    {key!r}: {value!r},' for key, value in values.items()]
    text, encoding = '\n'.join([f'{name} = {{', *lines, '}']), sys.stdout.encoding or 'utf-8'
    return text.encode(encoding, 'backslashreplace').decode(encoding)


def contact_sheet(people: Mapping[str, Sequence[tuple]], path: Path) -> None:
    """Writes a JPEG of faces of {person: [(file, age), …]}: a row a person, the age on each face.

    Of more than ROWS people or COLUMNS faces, some are picked evenly. A file is a path or the bytes
    of one; an age may be None. What can't be read leaves its place empty.
    """
    names = _evenly(sorted(people), ROWS)
    step = WIDTH + 4, HEIGHT + 2 * LINE
    size = 2 * MARGIN + COLUMNS * step[0], 2 * MARGIN + len(names) * step[1]
    sheet, font = Image.new('RGB', size, 'white'), ImageFont.load_default(13)
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        faces = sorted(people[name], key=lambda face: -1 if face[1] is None else face[1])
        top = MARGIN + row * step[1]
        title = f'{some([name])[:80]}  ({len(faces)})'.encode('ascii', 'replace').decode()
        draw.text((MARGIN, top), title, 'black', font)
        for column, (file, age) in enumerate(_evenly(faces, COLUMNS)):
            left = MARGIN + column * step[0]
            with contextlib.suppress(OSError, DataError):
                data = file if isinstance(file, bytes) else Path(file).read_bytes()
                sheet.paste(Image.fromarray(decode(data)), (left, top + LINE))
            text, place = '' if age is None else f'{age:g}', (left + 4, top + LINE + 3)
            draw.text(place, text, 'white', font, stroke_width=1, stroke_fill='black')
    write_whole(path, lambda temporary: sheet.save(temporary, 'JPEG', quality=90))


def _evenly(items, most):
    if len(items) <= most:
        return items
    return [items[k] for k in np.linspace(0, len(items) - 1, most).round().astype(int)]
