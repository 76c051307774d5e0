"""The photographs of a source folder, whose they are, and the number that each gets."""

import os
from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from preparation.labels import NAMES, person_in
from storage.files import below
from utils import DataError


class Photograph(NamedTuple):
    """A file of the source: its path below it, its person, its number among that person's.

    The person is None where nothing tells; `wrong` says why the file can't be read; `rival` is the
    photograph whose face has the name that this one's would have, where names are kept.
    """

    relative: str
    person: str | None
    number: int = 0
    wrong: str = ''
    rival: str = ''


def find(source: str | os.PathLike, people: str) -> list[Photograph]:
    """Every file below `source` that isn't the system's, sorted, not numbered yet.

    Folders that are links are followed. `people` is 'folder', where the first folder of the path is
    the person, or a kind of NAMES. Raises DataError where there are no files.
    """
    try:
        there = below(source)
    except OSError as error:
        raise DataError(f'{error.filename}: {error.strerror}') from None
    wrong = dict.fromkeys(there.loops, 'a link to a folder that it lies in')
    found = []
    for relative in [*there.images, *there.others, *there.loops]:
        if people in NAMES:
            person = person_in(os.path.basename(relative), people)
        else:
            person = os.path.dirname(relative).split(os.sep)[0] or None
        found.append(Photograph(relative, person, 0, wrong.get(relative, '')))
    if not found:
        raise DataError(f'{source}: no files in this folder or below')
    return sorted(
        found, key=lambda item: [os.fsencode(part) for part in item.relative.split(os.sep)]
    )


def numbered(found: list[Photograph], done: Mapping[str, tuple[str, int]]) -> list[Photograph]:
    """`found` with the numbers that name the faces.

    What is in `done`, {relative: (person, number)}, keeps its number, and nothing else gets it.
    """
    listed, place, used = [], defaultdict(int), set(done.values())
    for photograph in found:
        person = photograph.person
        # counted over all files: a run that was stopped gives the numbers of one that wasn't
        number = place[person]
        place[person] += 1
        if photograph.relative in done:
            number = done[photograph.relative][1]
        else:
            while (person, number) in used:
                number += 1
            used.add((person, number))
        listed.append(photograph._replace(number=number))
    return listed
