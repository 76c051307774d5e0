"""What meta.py says of a data set, checked before anything is read."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from utils import DataError

KEYS = {  # what each may be, and how that is said
    'train_root': ((str, Path), 'a folder, shards, or a list'),
    'val_root': ((str, Path, type(None)), 'a folder, shards, a list, or None'),
    'pat': (str, 'a regular expression'),
    'pos': (int, 'a whole number'),
    'n_cls': (int, 'a whole number'),
}


def check_entry(name: str, entry: dict, cutoffs: Sequence[float]) -> None:
    """Raises DataError where the dict of meta.py called `name`, or age_cutoffs, is not valid."""
    where = f'meta.py, {name}'
    if not isinstance(entry, dict):
        raise DataError(
            f'{where}: a data set is a dict with the keys {", ".join(KEYS)}, '
            f'not {type(entry).__name__}'
        )
    for key in sorted(map(str, entry.keys() - set(KEYS))):
        close = difflib.get_close_matches(key, KEYS, 1)
        hint = f'did you mean {close[0]!r}?' if close else f'the keys are {", ".join(KEYS)}'
        raise DataError(f'{where}: no such key {key!r}; {hint}')
    for key in KEYS:
        if key not in entry:
            hint = ' (None if there is no validation set)' if key == 'val_root' else ''
            raise DataError(f'{where}: the key {key!r} is missing{hint}')
    for key, (kinds, what) in KEYS.items():
        if not isinstance(entry[key], kinds) or isinstance(entry[key], bool):
            raise DataError(f'{where}: {key!r} is {entry[key]!r}; it must be {what}')
    try:
        re.compile(entry['pat'])
    except re.error as error:
        raise DataError(
            f"{where}: 'pat' {entry['pat']!r} is no regular expression: {error}"
        ) from None
    numbers = all(isinstance(c, (int, float)) for c in cutoffs)
    if not cutoffs or not numbers or list(cutoffs) != sorted(set(cutoffs)):
        raise DataError(
            f'meta.py: age_cutoffs {cutoffs!r} must be ages in years, each above the one before'
        )
