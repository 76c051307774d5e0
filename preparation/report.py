"""TARGET: held by one process at a time, with a report of what became of each file."""

import contextlib
import csv
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import utils
from system import locks as jobs
from system.locks import Interrupt
from utils import UserError, write_whole

# of a TARGET that was begun before these options were there
BEFORE = {'size': 96, 'keep_names': False}


class Outcome(NamedTuple):
    """A row of report.csv: what became of a file, all of it text.

    `target` is empty where it was skipped, and `reason` says why. `eyes` is the distance between
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


def digest(data: bytes) -> str:
    """Sixteen hexadecimal digits that tell one file's content from another's."""
    return hashlib.sha256(data).hexdigest()[:16]


@contextlib.contextmanager
def claim(target: str | os.PathLike, settings: dict) -> Iterator[None]:
    """Holds TARGET for this process and writes `settings` down there.

    Raises UserError where it is in use, or holds what was not made with these settings. Sources of
    ages may be added to those before.
    """
    target = Path(target)
    file = target / 'prepare.json'
    if file.exists():
        try:
            before = BEFORE | json.loads(file.read_text())
            if set(before['ages']) <= set(settings['ages']):
                before['ages'] = settings['ages']
            changed = [name for name in settings if before[name] != settings[name]]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f'{file} is damaged: remove it to go on with the options of this command'
            ) from None
        if changed and any(
            path.suffix.lower() in ('.jpg', '.png', '.tar') for path in target.rglob('*')
        ):
            raise UserError(
                f'{target} was begun with another {", ".join(changed)}, {before[changed[0]]!r}, '
                f'now it is {settings[changed[0]]!r}: repeat the options, or choose another TARGET'
            )
    elif (
        target.is_dir()
        and not (target / 'report.csv').exists()
        and set(os.listdir(target)) - {'.lock'}
    ):
        raise UserError(
            f'{target} is there already and is not of prepare.py: '
            'TARGET is a new folder, or one to go on with'
        )
    with jobs.claim(target, 'TARGET', 'writing'):
        for stale in target.rglob('.*.????????.tmp'):  # write_whole's, of a process that was killed
            stale.unlink()
        utils.write_json(settings, file)
        yield


class Report:
    """TARGET/report.csv: a row an Outcome, written as they come: a run that was stopped goes on."""

    def __init__(self, target: str | os.PathLike):
        self.target, self.path, self.rows = Path(target), Path(target, 'report.csv'), {}
        if self.path.exists():
            with open(self.path, newline='', encoding='utf-8', errors='surrogateescape') as file:
                head, *rows = list(csv.reader(file)) or [[]]
            # releases before had fewer columns
            if len(head) < 7 or tuple(head) != Outcome._fields[: len(head)]:
                raise UserError(
                    f'{self.path}: not a report of prepare.py: TARGET is a folder of its own'
                )
            # what was skipped is tried again, and what was deleted, and a line that was cut short
            rows = [Outcome(*row) for row in rows if len(row) == len(head)]
            there = [row for row in rows if row.target and (self.target / row.target).is_file()]
            # releases before wrote faces of several photographs under one name: it is one's alone
            owners = {
                row.target: row.source
                for row in sorted(there, key=lambda row: row.source == row.target)
            }
            self.rows = {row.source: row for row in there if owners[row.target] == row.source}
        self.rewrite()

    def rewrite(self) -> None:
        """Writes the rows anew, sorted."""
        write_csv(self.path, [Outcome._fields, *sorted(self.rows.values())])

    def done(self) -> dict[str, tuple[str, int]]:
        """{source: (person, number)} of the faces that are there, TARGET/<person>/<number>_…"""
        return {
            row.source: (os.path.dirname(row.target), number_of(row)) for row in self.rows.values()
        }

    def faces(self) -> dict[str, list[tuple[Path, int | None]]]:
        """{person: [(file, age), …]} of the faces that are there."""
        people = defaultdict(list)
        for row in sorted(self.rows.values()):
            if row.target:
                age = int(row.age) if row.age else None
                people[os.path.dirname(row.target)].append((self.target / row.target, age))
        return people

    def add_all(self, outcomes: Iterable[Outcome]) -> None:
        """Raises UserError after the row at which SIGINT or SIGTERM came."""
        with (
            Interrupt() as interrupt,
            open(
                self.path, 'a', newline='', encoding='utf-8', errors='surrogateescape', buffering=1
            ) as file,
        ):
            writer = csv.writer(file)
            for outcome in outcomes:
                self.rows[outcome.source] = outcome
                writer.writerow(outcome)
                if interrupt.received:
                    raise UserError(
                        f'{interrupt.received}: stopped; the same command goes on from here'
                    )

    def withdraw(self, source: str) -> bool:
        """Takes a face out of TARGET; False where somebody changed the file, which then stays."""
        row = self.rows.pop(source)
        path = self.target / row.target
        if row.written and digest(path.read_bytes()) != row.written:
            return False
        path.unlink()
        with contextlib.suppress(OSError):  # not empty
            if path.parent != self.target:
                path.parent.rmdir()
        return True

    def rename(self, row: Outcome, age: int, age_from: str) -> bool:
        """Gives a face another age; False where a file of that name is there already."""
        new = os.path.join(os.path.dirname(row.target), f'{number_of(row):03d}_{age}.jpg')
        if new != row.target:
            if (self.target / new).exists():
                return False
            (self.target / row.target).rename(self.target / new)
        self.rows[row.source] = row._replace(target=new, age=str(age), age_from=age_from)
        return True


def number_of(row: Outcome) -> int:
    """Which of its person's faces it is, by its name."""
    return int(os.path.basename(row.target).split('_')[0])


def write_csv(path: str | os.PathLike, rows: Iterable[Iterable]) -> None:
    """Writes the rows to a file that is whole at any time; names that aren't UTF-8 stay bytes."""

    def write(temporary):
        with open(temporary, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
            csv.writer(file).writerows(rows)

    write_whole(path, write)
