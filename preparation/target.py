"""TARGET: held by one process at a time, with a report of what became of each file.

Only files of report.csv are renamed or removed: those that prepare.py made.
"""

import contextlib
import csv
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import utils
from system import locks
from utils import UserError, write_whole

# any name survives
TEXT: dict[str, Any] = {'newline': '', 'encoding': 'utf-8', 'errors': 'surrogateescape'}


class Outcome(NamedTuple):
    """A row of report.csv: what became of a file, all of it text.

    `target` is empty if it was skipped, and `reason` says why. `eyes` is the distance between
    the eyes in the photograph in pixels (35 once aligned); `faces` how many faces were found.
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


def digest(data: bytes) -> str:
    """Sixteen hexadecimal digits that tell one file's content from another's."""
    return hashlib.sha256(data).hexdigest()[:16]


@contextlib.contextmanager
def claim(target: str | os.PathLike, settings: dict) -> Iterator[None]:
    """Holds TARGET for this process and writes `settings` down there.

    Raises UserError if it is in use, or holds what was not made with these settings. Sources of
    ages may be added to those before.
    """
    target, file = Path(target), Path(target, 'prepare.json')
    if file.exists():
        try:
            before = json.loads(file.read_text())
            if set(before['ages']) <= set(settings['ages']):
                before['ages'] = settings['ages']
            changed = [name for name in settings if before[name] != settings[name]]
        except (ValueError, KeyError, TypeError):
            remedy = 'remove it to go on with the options of this command'
            raise UserError(f'{file} is damaged: {remedy}') from None
        made = (path.suffix.lower() in ('.jpg', '.png', '.tar') for path in target.rglob('*'))
        if changed and any(made):
            names, first = ', '.join(changed), changed[0]
            options = f'{before[first]!r}, now it is {settings[first]!r}: repeat the options'
            another = f'{target} was begun with another {names}'
            raise UserError(f'{another}, {options}, or choose another TARGET')
    elif target.is_dir() and not Path(target, 'report.csv').exists():
        if set(os.listdir(target)) - {'.lock'}:
            remedy = 'TARGET is a new folder, or one to go on with'
            raise UserError(f'{target} is there already and is not of prepare.py: {remedy}')
    with locks.claim(target, 'TARGET', 'writing'):
        for stale in target.rglob('.*.????????.tmp'):  # write_whole's, of a process that was killed
            stale.unlink()
        utils.write_json(settings, file)
        yield


def read_report(path: Path, fields: Sequence[str]) -> list[list[str]]:
    """The whole rows of a report with these columns. Raises UserError for another file."""
    if not path.exists():
        return []
    with open(path, **TEXT) as file:
        head, *rows = list(csv.reader(file)) or [[]]
    if head != list(fields):
        raise UserError(f'{path}: not a report of this command: TARGET is a folder of its own')
    return [row for row in rows if len(row) == len(head)]  # the last one may be cut short


def write_csv(path: str | os.PathLike, rows: Iterable[Iterable]) -> None:
    """Writes the rows to a file that is whole at any time; names that aren't UTF-8 stay bytes."""

    def write(temporary):
        with open(temporary, 'w', **TEXT) as file:
            csv.writer(file).writerows(rows)

    write_whole(path, write)


def append_csv(path: str | os.PathLike, rows: Iterable[Iterable]) -> None:
    """Adds each row as it comes. Raises UserError after the row at which SIGINT or SIGTERM came."""
    with locks.Interrupt() as interrupt, open(path, 'a', buffering=1, **TEXT) as file:
        for row in rows:
            csv.writer(file).writerow(row)
            if interrupt.received:
                stopped = f'{interrupt.received}: stopped'
                raise UserError(f'{stopped}; the same command goes on from here')


class Report:
    """TARGET/report.csv: a row an Outcome, written as they come: a run that was stopped goes on."""

    def __init__(self, target: str | os.PathLike):
        self.target, self.path = Path(target), Path(target, 'report.csv')
        rows = [Outcome(*row) for row in read_report(self.path, Outcome._fields)]
        # what was skipped is tried again, and what was deleted
        rows = [row for row in rows if row.target and (self.target / row.target).is_file()]
        self.rows = {row.source: row for row in rows}
        self.rewrite()

    def rewrite(self) -> None:
        """Writes the rows anew, sorted."""
        write_csv(self.path, [Outcome._fields, *sorted(self.rows.values())])

    def done(self) -> dict[str, tuple[str, int]]:
        """{source: (person, number)} of the faces that are there, TARGET/<person>/<number>_…"""
        return {row.source: (os.path.dirname(row.target), row.number) for row in self.rows.values()}

    def faces(self) -> dict[str, list[tuple[Path, int | None]]]:
        """{person: [(file, age), …]} of the faces that are there."""
        people = defaultdict(list)
        for row in sorted(self.rows.values()):
            if row.target:
                age = int(row.age) if row.age else None
                people[os.path.dirname(row.target)].append((self.target / row.target, age))
        return people

    def add_all(self, outcomes: Iterable[Outcome]) -> None:
        """Adds them as they come. Raises UserError after the one at which a signal came."""
        append_csv(self.path, map(self._add, outcomes))

    def _add(self, outcome):
        self.rows[outcome.source] = outcome
        return outcome

    def withdraw(self, source: str) -> bool:
        """Takes a face out of TARGET; False if somebody changed the file, which then stays."""
        row = self.rows.pop(source)
        path = self.target / row.target
        if digest(path.read_bytes()) != row.written:
            return False
        path.unlink()
        with contextlib.suppress(OSError):  # not empty
            if path.parent != self.target:
                path.parent.rmdir()
        return True

    def rename(self, row: Outcome, age: int, origin: str) -> bool:
        """Gives a face another age; False if a file of that name is there already."""
        new = os.path.join(os.path.dirname(row.target), f'{row.number:03d}_{age}.jpg')
        if new != row.target:
            if (self.target / new).exists():
                return False
            (self.target / row.target).rename(self.target / new)
        self.rows[row.source] = row._replace(target=new, age=str(age), age_from=origin)
        return True
