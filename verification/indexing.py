"""Making an archive index: photographs read in parallel, faces embedded in batches, and a journal.

The journal, archive.index.journal, takes every photograph as soon as it is embedded: a run that was
stopped goes on from it. When all is done the index is written whole, and the journal goes.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from storage.files import images_below
from system.locks import Interrupt, Interrupted
from system.processes import each
from system.progress import progress
from utils import DataError, UserError
from verification import index, portraits
from verification.index import FACE, Index, Photograph
from verification.journal import Journal
from verification.matcher import BATCH, Matcher

ENOUGH = 64  # images from which on processes are worth their start


def read_folder(matcher: Matcher, folder: str, people: bool = False) -> Index:
    """The faces of every image below a folder, in memory. Raises DataError where there are none."""
    names = _names(folder)
    photographs = list(embed_files(matcher, folder, names, people))
    archive = Index.of(folder, photographs, people, 2 * matcher.model.dim)
    if not len(archive):
        raise DataError(_nothing(folder, archive.left_out))
    return archive


def update(matcher: Matcher, folder: str, path: Path, people: bool = False) -> tuple[Index, dict]:
    """Makes the index at `path`, or takes in what is new, changed or gone below the folder.

    With `people`, folders directly below are people, of whose photographs the largest face counts.
    Returns the Index, and the counts of `new`, `changed` and `gone` photographs. Raises UserError
    where the index is damaged, of other weights or another folder, or is being written.
    """
    names, weights, root = _names(folder), matcher.info.sha256, os.path.abspath(folder)
    known: dict[str, Photograph] = {}
    old = Index.open(path, weights) if path.exists() else None
    if old is not None:
        if os.path.realpath(old.root) != os.path.realpath(root):
            raise UserError(f'{path}: an index of {old.root}: name another file')
        if bool(old.people) != people and len(old):
            which = 'with' if old.people else 'without'
            raise UserError(f'{path}: made {which} --people: name another file, or remove it')
        known = {photograph.name: photograph for photograph in old.photographs()}
    dim = 2 * matcher.model.dim
    with Journal(path, {'weights': weights, 'root': root, 'people': people}, dim) as journal:
        before = dict(known)
        known |= {one.name: one for one in journal.photographs()}
        todo = [name for name in names if not _is_current(root, name, known.get(name))]
        try:
            with Interrupt() as interrupt:
                for photograph in embed_files(matcher, root, todo, people):
                    journal.add(photograph)
                    interrupt.check()
        except (Interrupted, KeyboardInterrupt):  # of a second signal
            raise UserError(
                f'stopped: {path}.journal has what was embedded; the same command goes on from it'
            ) from None
        known |= {one.name: one for one in journal.photographs()}
        wanted = set(names)
        photographs = [known[name] for name in names if name in known]
        if not any(len(one.faces) for one in photographs):
            raise DataError(_nothing(folder, [one.reason for one in photographs]))
        changed = [name for name in before if name in wanted and known[name] is not before[name]]
        counts = {'new': len(known.keys() & (wanted - before.keys())), 'changed': len(changed)}
        counts['gone'] = len(before.keys() - wanted)
        if old is None or any(counts.values()):
            index.write(path, root, weights, photographs, people, dim)
        journal.remove()
    return Index.open(path, weights), counts


def _names(folder):
    found = images_below(folder)
    if not found:
        raise DataError(f'{folder}: no images in this folder or below')
    return [os.path.relpath(path, folder) for path in found]


def _nothing(folder, reasons):
    first = f': {reasons[0]}' if reasons else ''
    return f'{folder}: no face in any of its {len(reasons)} images{first}'


def _is_current(root, name, photograph):
    if photograph is None:
        return False
    try:
        stat = os.stat(os.path.join(root, name))
    except OSError:
        return False
    return (photograph.size, photograph.mtime) == (stat.st_size, stat.st_mtime_ns)


def embed_files(
    matcher: Matcher, root: str, names: list[str], largest: bool = False
) -> Iterator[Photograph]:
    """A Photograph of each of the images root/name, in order; those that have gone are left out.

    All faces, or the `largest` alone. They are embedded in batches of BATCH or so. Raises UserError
    where there are photographs and the detector isn't installed.
    """
    waiting, faces = [], 0
    images = _read_all(root, names, matcher.width)
    for name, stat, found in progress(images, 'faces', len(names), unit=' images'):
        if largest and not isinstance(found, str):
            found = found[:1]
        waiting.append((name, stat, found))
        faces += 0 if isinstance(found, str) else len(found)
        if faces >= BATCH:
            yield from _batch(matcher, waiting)
            waiting, faces = [], 0
    yield from _batch(matcher, waiting)


def _batch(matcher, waiting):
    crops = [one.face for *_, found in waiting if not isinstance(found, str) for one in found]
    features = iter(matcher.features(crops) if crops else ())
    for name, stat, found in waiting:
        found, reason = ([], found) if isinstance(found, str) else (found, '')
        here = [next(features) for _ in found]
        rows = np.zeros(len(found), FACE)
        for row, one, feature in zip(rows, found, here, strict=True):
            row['box'], row['points'], row['group'] = one.box, one.points, -1
            if matcher.knows_ages:
                row['group'] = matcher.groups.index(feature.group)
                row['age'], row['probability'] = feature.age, feature.probability
        embeddings = np.empty((len(found), 2 * matcher.model.dim), '<f4')
        for k, feature in enumerate(here):
            embeddings[k] = feature.embedding
        yield Photograph(name, stat.st_size, stat.st_mtime_ns, reason, rows, embeddings)


def _read_all(root, names, width):
    """(name, its os.stat, its Portraits or why there are none) in order, over processes where there
    are many; nothing of a file that has gone since it was listed."""
    workers = os.cpu_count() or 1 if len(names) >= ENOUGH else 1
    paths = [os.path.join(root, name) for name in names]
    found = each(_read, paths, width, functools.partial(int, width), workers)
    for name, read in zip(names, found, strict=True):
        if read is not None:
            yield name, *read


def _read(width, path):
    try:
        stat = os.stat(path)
    except OSError:
        return None
    try:
        return stat, portraits.read_all(portraits.read_bytes(path), path, width)
    except DataError as error:
        return stat, str(error)
