"""A TARGET that is there already, brought up to date with SOURCE and with ages that were corrected.

Only files of report.csv are renamed or removed: those that prepare.py made.
"""

import os
from collections import Counter
from collections.abc import Sequence

from preparation.conversion import Converter
from preparation.report import Report
from preparation.source import Photograph

# what is told of each kind of change, in this order
RENAMED = 'renamed: another age is known now'
WITHDRAWN = 'removed: no longer in SOURCE'
AGELESS = 'removed: no age is known any longer'
AGAIN = 'to be made anew: the photograph, its points or its person changed'
LEFT = 'no longer of this set, but changed since they were written: left where they are'


def update(report: Report, found: Sequence[Photograph], converter: Converter) -> Counter:
    """Renames and removes faces as SOURCE, names and tables now say; how many of each kind.

    `found` are the photographs of SOURCE. What is to be made anew has no row afterwards.
    """
    listed, changes = {photograph.relative: photograph for photograph in found}, Counter()
    for source, row in sorted(report.rows.items()):
        change = _change(report, row, listed.get(source), converter)
        if change and change != RENAMED:
            change = change if report.withdraw(source) else LEFT
        if change:
            changes[change] += 1
    if changes:
        report.rewrite()
    return changes


def _change(report, row, photograph, converter):
    """What is to become of a face; None where nothing, or nothing to tell."""
    if photograph is None:
        return WITHDRAWN
    stamp = converter.stamp(photograph)
    if row.stamp and row.stamp != stamp or photograph.rival:
        return AGAIN
    row = report.rows[row.source] = row._replace(stamp=stamp)
    if converter.keep_names:
        return None
    if os.path.dirname(row.target) != photograph.person:
        return AGAIN
    try:
        age, origin = converter.known_age(photograph)
    except ValueError:
        return AGELESS
    if age is None:  # to be estimated, and perhaps is
        return None if row.age_from in ('estimate', 'dex') else AGAIN
    same = row.age == str(age)
    if not report.rename(row, age, origin):
        return AGAIN
    return None if same else RENAMED
