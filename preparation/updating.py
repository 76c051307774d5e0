"""The faces of runs before, brought up to date: only what prepare.py made is renamed or removed."""

import contextlib
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from preparation.target import Report

# what a run changes of the faces of runs before
RENAMED = 'renamed: another age is known now'
WITHDRAWN = 'removed: no longer in SOURCE'
AGELESS = 'removed: no age is known any longer'
AGAIN = 'to be made anew: the photograph, its points or its person changed'
LEFT = 'no longer of this set, but changed since they were written: left where they are'


class Outcome(NamedTuple):
    """A row of report.csv: the face that was made of a file, or the reason why none was.

    `eyes` is the distance between them in the photograph in pixels, `faces` how many were found.
    `stamp` tells whether the photograph or its points changed since, `written` is a hash of the
    face as it was written: a face that somebody else changed is theirs.
    """

    source: str
    target: str = ''
    age: str = ''
    age_from: str = ''
    eyes: str = ''
    faces: str = ''
    reason: str = ''
    stamp: str = ''
    written: str = ''

    @property
    def number(self) -> int:
        """Which of its person's faces it is, by its name."""
        return int(os.path.basename(self.target).split('_')[0])


def name_of(person: str, number: int, age: int | None) -> str:
    """The path of a face below TARGET."""
    return os.path.join(person, f'{number:03d}_{age}.jpg')


def digest(data: bytes) -> str:
    """Sixteen hexadecimal digits that tell one file's content from another's."""
    return hashlib.sha256(data).hexdigest()[:16]


def faces_by_person(report: Report) -> dict[str, list[tuple[Path, int | None]]]:
    """{person: [(file, age in years), …]} of the faces that are there."""
    people = defaultdict(list)
    for row in report.rows.values():
        if row.target:
            age = int(row.age) if row.age else None
            people[os.path.dirname(row.target)].append((report.target / row.target, age))
    return people


def update_target(report: Report, found: Mapping[str, Any], converter: Any) -> Counter:
    """Renames and removes faces as SOURCE, names and tables now say. Returns how many changed, by
    the kind of change. `found` is {path: SourceFile}; a face to be made anew loses its row."""
    changes = Counter[str]()
    for source, row in sorted(report.rows.items()):
        if not (report.target / row.target).is_file():  # what was deleted is made again
            del report.rows[source]
            continue
        change = _change(report, row, found.get(source), converter)
        if change and change != RENAMED and not _withdraw(report, row):
            change = LEFT
        if change:
            changes[change] += 1
    return changes


def _change(report, row, photograph, converter):
    """What is to become of a face; None if nothing, or nothing to tell."""
    if photograph is None:
        return WITHDRAWN
    if row.stamp != converter.stamp(photograph) or photograph.wrong:
        return AGAIN
    if converter.keep_names:
        return None
    if os.path.dirname(row.target) != photograph.person:
        return AGAIN
    try:
        age, origin = converter.told(photograph)
    except ValueError:
        return AGELESS
    if age is None:  # to be estimated, and perhaps is
        return None if row.age_from == converter.ages.estimated else AGAIN
    new = name_of(photograph.person, row.number, age)
    if new != row.target:
        if (report.target / new).exists():
            return AGAIN
        (report.target / row.target).rename(report.target / new)
    report.rows[row.source] = row._replace(target=new, age=str(age), age_from=origin)
    return None if row.age == str(age) else RENAMED


def _withdraw(report, row):
    """Takes a face out of TARGET; False if somebody changed the file, which then stays."""
    del report.rows[row.source]
    path = report.target / row.target
    if digest(path.read_bytes()) != row.written:
        return False
    path.unlink()
    with contextlib.suppress(OSError):  # not empty
        if path.parent != report.target:
            path.parent.rmdir()
    return True
