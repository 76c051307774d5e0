"""The job: SOURCE listed, TARGET brought up to date, the rest converted by several processes."""

import contextlib
import functools
from collections import Counter

from preparation.conversion import Converter, with_rivals
from preparation.report import Report
from preparation.source import find, numbered
from preparation.update import update
from system.processes import each
from system.progress import progress


def run(converter: Converter, settings: dict, people: str, workers: int, report: Report) -> Counter:
    """Converts what the report doesn't have yet; its rows are then all files of the source.

    `converter` is the Converter of `settings`, for one process; several make their own. Returns how
    many faces of runs before were changed, by the kind of the change. Raises UserError or DataError
    where the job can't be done, or was stopped.
    """
    found = [
        photograph
        for photograph in find(settings['source'], people)
        if not (settings['landmarks'] and photograph.relative.lower().endswith('.pts'))
    ]
    if converter.keep_names:
        found = with_rivals(found)
    converter.check(found)
    changes = update(report, found, converter)
    done = {} if converter.keep_names else report.done()
    todo = [
        photograph for photograph in numbered(found, done) if photograph.relative not in report.rows
    ]
    make = functools.partial(Converter, **settings)
    with contextlib.closing(each(Converter.convert, todo, converter, make, workers)) as outcomes:
        report.add_all(progress(outcomes, settings['source'], len(todo), unit=' photographs'))
    report.rewrite()
    return changes
