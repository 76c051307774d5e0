"""What a run of prepare.py says at its end: what came out, what was skipped, what to do next."""

import contextlib
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dataset import Faces
from evaluation.set_checks import check_ages
from preparation import doctor
from preparation.report import Report
from storage.files import below
from storage.images import some
from utils import DataError


def of_photographs(report: Report, changes: Counter, keep_names: bool) -> str:
    """The lines on a set made of photographs; `changes` are those of faces of runs before."""
    faces = report.faces()
    count = sum(map(len, faces.values()))
    folders = 'folder(s)' if keep_names else 'people'
    lines = [
        f'{count} faces of {len(faces)} {folders} in {report.target}, of {len(report.rows)} '
        f'files; what became of each: {report.path}'
    ]
    lines += [f'{number:7} {change}' for change, number in changes.items()]
    reasons = Counter(row.reason for row in report.rows.values() if row.reason)
    # a reason that names a file is one of a kind
    shown = reasons.most_common(8)
    lines += [f'{number:7} skipped: {reason}' for reason, number in shown]
    rest = sum(reasons.values()) - sum(number for _, number in shown)
    lines += [f'{rest:7} skipped for other reasons'] if rest else []
    made = [row for row in report.rows.values() if row.target]
    several = sum(row.faces not in ('', '0', '1') for row in made)
    if several:
        lines.append(
            f'{several:7} photograph(s) of several faces: look at report.csv, column faces'
        )
    cut = sum(row.faces == '0' for row in made)
    if cut:
        lines.append(
            f'{cut:7} photograph(s) without a face that was found, '
            f'{100 * cut / len(made):.1f} %: cut from the middle (column faces: 0)'
        )
    if faces and not keep_names:
        lines += _of_set(report, faces)
        lines += [
            f'Look at {report.target / "sheet.jpg"}, then paste into meta.py:',
            '',
            doctor.entry(report.target, None, r'_|\.', 1, len(faces)),
            '',
            'and examine it: python3 prepare.py --check '
            f'{doctor.identifier(Path(os.path.abspath(report.target)).name)}',
        ]
    return '\n'.join(lines)


def of_records(target: str, pattern: str, people: int, lines: Sequence[str]) -> str:
    """The lines on shards made of a .rec file, with the entry for meta.py."""
    name = doctor.identifier(os.path.basename(os.path.abspath(target)))
    values = {'train_root': os.path.abspath(pattern), 'val_root': None, 'pat': r'_|\.', 'pos': 1}
    return '\n'.join(
        [
            *lines,
            f'Look at {Path(target, "sheet.jpg")}, then paste into meta.py:',
            '',
            doctor.entry_called(name, values, people),
        ]
    )


def _of_set(report, faces):
    """What training will say of the set: files that aren't this run's, ages that mean nothing."""
    lines, own = [], {row.target for row in report.rows.values()}
    strangers = [
        path for path in below(report.target).images if os.path.dirname(path) and path not in own
    ]
    if strangers:
        line = (
            f'{len(strangers):7} image(s) in {report.target} that this did not make, and '
            f'that training counts: {some(strangers)}: remove what does not belong there'
        )
        people = {*faces, *(path.split(os.sep)[0] for path in strangers)}
        if len(people) > len(faces):
            line += (
                f"; training finds {len(people)} identities with them, and 'n_cls': "
                f'{len(faces)} below is without'
            )
        lines.append(line)
    with contextlib.suppress(DataError):  # of a stranger without an age
        lines += [f'Beware: {line}' for line in check_ages(Faces(report.target, r'_|\.', 1))]
    if len(faces) > 2 and all(len(own) == 1 for own in faces.values()):
        lines.append(
            f'Beware: each of the {len(faces)} people has one image, as '
            f'{some(list(faces)[:1])}: is that their names? See --people'
        )
    return lines
