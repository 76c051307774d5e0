"""TARGET: held by one process at a time, with a report of what became of each file."""

import contextlib
import csv
import functools
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import utils
from system import locks
from system.processes import each
from system.progress import progress
from utils import UserError

# any name survives
TEXT: dict[str, Any] = {'newline': '', 'encoding': 'utf-8', 'errors': 'surrogateescape'}


@contextlib.contextmanager
def claim_target(target: str | os.PathLike, settings: dict) -> Iterator[None]:
    """Holds TARGET for this process and writes `settings` down there.

    Raises UserError if it is in use, or was made with others; sources of ages may be added.
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
            first, another = changed[0], f'{target} was begun with another {", ".join(changed)}'
            now = f'{before[first]!r}, now it is {settings[first]!r}'
            raise UserError(f'{another}, {now}: repeat the options, or choose another TARGET')
    elif target.is_dir() and not Path(target, 'report.csv').exists():
        if set(os.listdir(target)) - {'.lock'}:
            remedy = 'TARGET is a new folder, or one to go on with'
            raise UserError(f'{target} is there already and is not of prepare.py: {remedy}')
    with locks.claim(target, 'TARGET', 'writing'):
        for stale in target.rglob('.*.????????.tmp'):  # write_whole's, of a process that was killed
            stale.unlink()
        utils.write_json(settings, file)
        yield


def write_csv(path: str | os.PathLike, rows: Iterable[Iterable]) -> None:
    """Writes the rows to a file that is whole at any time; names that aren't UTF-8 stay bytes."""

    def write(temporary):
        with open(temporary, 'w', **TEXT) as file:
            csv.writer(file).writerows(rows)

    utils.write_whole(path, write)


class Report:
    """TARGET/report.csv: rows of the NamedTuple `kind`, written as they come.

    A run that was stopped goes on: `rows`, {first field: row}, begin with those of runs before that
    have no reason; what was skipped is tried again. Raises UserError for another file.
    """

    def __init__(self, target: str | os.PathLike, kind: Any):
        self.target, self.path, self.kind = Path(target), Path(target, 'report.csv'), kind
        self.rows = dict[str, Any]()
        if not self.path.exists():
            return
        with open(self.path, **TEXT) as file:
            head, *lines = list(csv.reader(file)) or [[]]
        if tuple(head) != kind._fields:
            remedy = 'TARGET is a folder of its own'
            raise UserError(f'{self.path}: not a report of this command: {remedy}')
        rows = [kind(*line) for line in lines if len(line) == len(head)]  # the last may be cut
        self.rows = {row[0]: row for row in rows if not row.reason}

    def rewrite(self, order: Iterable[str] | None = None) -> None:
        """Writes the rows anew, in the order of their first fields that is given."""
        self.rows = {name: self.rows[name] for name in order or self.rows}
        write_csv(self.path, [self.kind._fields, *self.rows.values()])

    def fill(self, tool: Any, items: Any, workers: int, unit: str) -> None:
        """Adds the row tool.convert(item) of each item as it comes; processes have a `tool` each.

        Raises UserError after the row at which SIGINT or SIGTERM came.
        """
        self.rewrite()
        kind: Any = type(tool)
        make = functools.partial(kind, tool.settings)
        with (
            contextlib.closing(each(kind.convert, items, tool, make, workers)) as rows,
            locks.Interrupt() as interrupt,
            open(self.path, 'a', buffering=1, **TEXT) as file,
        ):
            for row in progress(rows, str(self.target), len(items), unit=unit):
                self.rows[row[0]] = row
                csv.writer(file).writerow(row)
                if interrupt.received:
                    stopped = f'{interrupt.received}: stopped'
                    raise UserError(f'{stopped}; the same command goes on from here')
