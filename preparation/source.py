"""The photographs of a source folder, whose they are, and the number that each gets."""
import os
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from preparation.labels import NAMES, person_in
from utils import DataError


class Photograph(NamedTuple):
    """A file of the source: its path below it, its person, its number among that person's.

    The person is None where nothing tells.
    """
    relative: str
    person: str | None
    number: int


def photographs(source: str | os.PathLike, people: str,
                done: Mapping[str, tuple[str, int]]) -> list[Photograph]:
    """Every file below `source` that isn't hidden, sorted.

    `people` is 'folder', where the first folder of the path is the person, or a kind of NAMES.
    What is in `done`, {relative: (person, number)}, keeps its number, and nothing else gets it.
    Raises DataError where there are no files.
    """
    found = []
    for folder, below, files in os.walk(source, onerror=_refuse):
        below[:] = sorted(name for name in below if not name.startswith('.'))
        for name in files:
            if not name.startswith('.'):
                relative = os.path.relpath(os.path.join(folder, name), source)
                if people in NAMES:
                    person = person_in(name, people)
                else:
                    person = os.path.dirname(relative).split(os.sep)[0] or None
                found.append((relative, person))
    if not found:
        raise DataError(f'{source}: no files in this folder or below')
    found.sort(key=lambda item: [os.fsencode(part) for part in item[0].split(os.sep)])
    listed, place, used = [], defaultdict(int), set(done.values())
    for relative, person in found:
        # counted over all files: a run that was stopped gives the numbers of one that wasn't
        number = place[person]
        place[person] += 1
        if relative in done:
            number = done[relative][1]
        else:
            while (person, number) in used:
                number += 1
            used.add((person, number))
        listed.append(Photograph(relative, person, number))
    return listed


def _refuse(error):
    raise DataError(f'{error.filename}: {error.strerror}')
