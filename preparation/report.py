"""TARGET: held by one process at a time, with a report of what became of each file."""
import contextlib
import csv
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import utils
from utils import Interrupt, UserError, write_whole


class Outcome(NamedTuple):
    """A row of report.csv: what became of a file, all of it text.

    `target` is empty where it was skipped, and `reason` says why. `eyes` is the distance between
    the eyes in the photograph in pixels (35 once aligned); `faces` how many faces were found.
    """
    source: str
    target: str = ''
    age: str = ''
    age_from: str = ''
    eyes: str = ''
    faces: str = ''
    reason: str = ''


@contextlib.contextmanager
def claim(target: str | os.PathLike, settings: dict) -> Iterator[None]:
    """Holds TARGET for this process and writes `settings` down there.

    Raises UserError where it is in use, or holds what was not made with these settings.
    """
    file = Path(target, 'prepare.json')
    if file.exists():
        try:
            before = json.loads(file.read_text())
            changed = [name for name in settings if before[name] != settings[name]]
        except (ValueError, KeyError, TypeError):
            raise UserError(f'{file} is damaged: remove it to go on with the options of this '
                            'command') from None
        if changed and any(Path(target).glob('*/*.jpg')):
            raise UserError(
                f'{target} was begun with another {", ".join(changed)}, {before[changed[0]]!r}, '
                f'now it is {settings[changed[0]]!r}: repeat the options, or choose another TARGET')
    elif os.path.isdir(target) and not Path(target, 'report.csv').exists() \
            and set(os.listdir(target)) - {'.lock'}:
        raise UserError(f'{target} is there already and is not of prepare.py: '
                        'TARGET is a new folder, or one to go on with')
    with utils.claim(target, 'TARGET', 'writing'):
        # left by write_whole in a process that was killed
        for stale in Path(target).glob('*/.*.????????.tmp'):
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
            if tuple(head) != Outcome._fields:
                raise UserError(f'{self.path}: not a report of prepare.py: '
                                'TARGET is a folder of its own')
            # what was skipped is tried again, and what was deleted, and a line that was cut short
            rows = [Outcome(*row) for row in rows if len(row) == len(Outcome._fields)]
            self.rows = {row.source: row for row in rows
                         if row.target and (self.target / row.target).is_file()}
        self.rewrite()

    def rewrite(self) -> None:
        """Writes the rows anew, sorted."""
        write_csv(self.path, [Outcome._fields, *sorted(self.rows.values())])

    def done(self) -> dict[str, tuple[str, int]]:
        """{source: (person, number)} of the faces that are there."""
        return {row.source: (os.path.dirname(row.target),
                             int(os.path.basename(row.target).split('_')[0]))
                for row in self.rows.values()}

    def faces(self) -> dict[str, list[tuple[Path, int]]]:
        """{person: [(file, age), …]} of the faces that are there."""
        people = defaultdict(list)
        for row in self.rows.values():
            if row.target:
                people[os.path.dirname(row.target)].append((self.target / row.target, int(row.age)))
        return people

    def add_all(self, outcomes: Iterable[Outcome]) -> None:
        """Raises UserError after the row at which SIGINT or SIGTERM came."""
        with Interrupt() as interrupt, open(self.path, 'a', newline='', encoding='utf-8',
                                            errors='surrogateescape', buffering=1) as file:
            writer = csv.writer(file)
            for outcome in outcomes:
                self.rows[outcome.source] = outcome
                writer.writerow(outcome)
                if interrupt.received:
                    raise UserError(f'{interrupt.received}: stopped; '
                                    'the same command goes on from here')


def write_csv(path: str | os.PathLike, rows: Iterable[Iterable]) -> None:
    """Writes the rows to a file that is whole at any time; names that aren't UTF-8 stay bytes."""
    def write(temporary):
        with open(temporary, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
            csv.writer(file).writerows(rows)
    write_whole(path, write)
