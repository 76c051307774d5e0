"""Making an archive index: photographs read in parallel, faces embedded in batches, and a journal.

The journal, archive.index.journal, takes every photograph as soon as it is embedded: a run that was
stopped goes on from it. When all is done the index is written whole, and the journal goes.
"""

import contextlib
import fcntl
import functools
import itertools
import json
import os
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from storage.files import below
from system.locks import Interrupt, Interrupted
from system.names import shown
from system.processes import each
from system.progress import progress
from utils import DataError, UserError
from verification import index, portraits
from verification.index import FACE, Index, Photograph
from verification.matcher import BATCH, Matcher

ENOUGH = 64  # images from which on processes are worth their start
NO_FACE = 'no face found'  # ends the reason of an image that was read
KINDS = {  # of files that hold pictures and aren't read
    '': 'its name has no ending',
    **dict.fromkeys('.cr2 .cr3 .nef .arw .dng .raf .orf .rw2 .pef .srw .raw'.split(), 'camera raw'),
    **dict.fromkeys('.mp4 .mov .avi .mkv .mts .m4v .3gp .webm .wmv'.split(), 'a film'),
    **dict.fromkeys('.psd .eps .ai .svg .zip .rar .7z .tar .doc .docx'.split(), 'another format'),
    '.pdf': 'PDF',
}


def read_folder(matcher: Matcher, folder: str) -> Index:
    """The faces of every image below a folder, in memory. Raises DataError if there are none."""
    photographs = list(embed_files(matcher, folder, sorted(below(folder).images)))
    _check_faces(folder, photographs)
    return Index.of(folder, photographs, False)


def update_index(
    matcher: Matcher, folder: str, path: Path, people: bool = False
) -> tuple[Index, dict, list[str]]:
    """Makes the index at `path`, or takes in what is new, changed or gone below the folder.

    With `people`, folders directly below are people, of whose photographs the largest face counts.
    What was left out is tried again, unless it was read and shows no face. Returns the Index, the
    counts of `new`, `changed` and `gone` photographs, and a line for each file that is passed over.
    Raises UserError if the index is damaged, of other weights or another folder, or is being
    written.
    """
    found, weights, root = below(folder), matcher.info.sha256, os.path.abspath(folder)
    names = sorted(found.images)
    if not names:
        raise DataError(f'{folder}: no images in this folder or below')
    old = _old(path, weights, root, people) if path.exists() else None
    before = {one.name: one for one in old.photographs()} if old else {}
    facts = {'weights': weights, 'root': root, 'people': people}
    with Journal.of(path, facts, 2 * matcher.model.dim) as journal:
        known = before | {one.name: one for one in journal.photographs()}
        todo = [name for name in names if not _is_current(root, name, known.get(name))]
        try:
            with Interrupt(at_once=True):
                for photograph in embed_files(matcher, root, todo, people):
                    journal.add(photograph)
        except (Interrupted, KeyboardInterrupt):  # of a second signal
            kept = f'{journal.path} has what was embedded'
            raise UserError(f'stopped: {kept}; the same command goes on from it') from None
        known |= {one.name: one for one in journal.photographs()}
        photographs = [known[name] for name in names]
        _check_faces(folder, photographs)
        now = {one.name: one[:4] for one in photographs}
        changed = sum(now.get(name, one[:4]) != one[:4] for name, one in before.items())
        new, gone = len(now.keys() - before.keys()), len(before.keys() - now.keys())
        counts = {'new': new, 'changed': changed, 'gone': gone}
        if old is None or old.root != root or any(counts.values()):
            index.write_index(path, root, weights, photographs, people)
        journal.path.unlink()
    return Index.open(path, weights), counts, _passed_over(folder, found)


class Journal:
    """Photographs that are embedded but in no index yet, in a file beside it, one record each. A
    record is two lengths, of its JSON and of its arrays, the crc32 of both, and then both; a last
    record that isn't whole is what a stopped run was writing, and is cut off."""

    def __init__(self, path: Path, file: BinaryIO, dim: int):
        self.path, self.file, self.dim = path, file, dim

    @classmethod
    @contextlib.contextmanager
    def of(cls, index: Path, facts: dict, dim: int) -> Iterator['Journal']:
        """Raises UserError if another process holds it, or it is of another job (`facts`)."""
        path = index.with_name(f'{index.name}.journal')
        with open(path, 'a+b') as file:
            try:
                # not lockf, whose lock goes when this process closes any handle of the file
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f'{path}: another process is at this index') from None
            journal = cls(path, file, dim)
            records = [*journal._records()]
            if records and records[0][0] != facts:
                raise UserError(f'{path}: of other weights, another folder, or --people: remove it')
            file.truncate(records[-1][2] if records else 0)
            if not records:
                journal._append(facts, b'')
            yield journal

    def add(self, one: Photograph) -> None:
        arrays = one.faces.tobytes() + one.embeddings.tobytes()
        self._append([*one[:4], len(one.faces)], arrays)

    def photographs(self) -> Iterator[Photograph]:
        """Those of it so far; the last of a name is the one that counts. Arrays are mapped."""
        for (*row, count), arrays, _ in itertools.islice(self._records(), 1, None):
            middle = count * FACE.itemsize
            embeddings = arrays[middle:].view('<f4').reshape(count, self.dim)
            yield Photograph._make([*row, arrays[:middle].view(FACE), embeddings])

    def _append(self, facts, arrays):
        text = json.dumps(facts).encode()
        lengths = [len(text), len(arrays), zlib.crc32(arrays, zlib.crc32(text))]
        self.file.write(np.array(lengths, '<u8').tobytes() + text + arrays)
        self.file.flush()

    def _records(self):
        """(JSON, bytes of its arrays, where they end) of every whole record."""
        is_empty, end = self.path.stat().st_size == 0, 0
        data = np.frombuffer(b'' if is_empty else np.memmap(self.path, mode='r'), np.uint8)
        while len(head := data[end : end + 24]) == 24:
            text_bytes, array_bytes, crc = head.view('<u8').tolist()
            begin, middle = end + 24, end + 24 + text_bytes
            end = middle + array_bytes
            if end > len(data) or zlib.crc32(data[begin:end]) != crc:
                return
            yield json.loads(data[begin:middle].tobytes()), data[middle:end], end


def _old(path, weights, root, people):
    """The index that is there, to be updated. Raises UserError if it doesn't fit."""
    old = Index.open(path, weights)
    # a folder that is gone has been moved: its photographs are known by their names below it
    if os.path.isdir(old.root) and os.path.realpath(old.root) != os.path.realpath(root):
        raise UserError(f'{path}: an index of {old.root}: name another file')
    if bool(old.people) != people and len(old):
        which = 'with' if old.people else 'without'
        raise UserError(f'{path}: made {which} --people: name another file, or remove it')
    return old


def _check_faces(folder, photographs):
    if not photographs:
        raise DataError(f'{folder}: no images in this folder or below')
    if not any(len(one.faces) for one in photographs):
        first = f': {photographs[0].reason}' if photographs else ''
        raise DataError(f'{folder}: no face in any of its {len(photographs)} images{first}')


def _is_current(root, name, photograph):
    if photograph is None or photograph.reason and not photograph.reason.endswith(NO_FACE):
        return False
    return photograph[1:3] == _stamp(os.path.join(root, name))


def _stamp(path):
    """Size and time of a file; zeros if it has gone since it was listed."""
    with contextlib.suppress(OSError):
        stat = os.stat(path)
        return stat.st_size, stat.st_mtime_ns
    return 0, 0


def _passed_over(folder, found):
    """A line for each file that may hold a picture and isn't read, and for pages after the first;
    what is neither is counted by its ending."""
    endings = [os.path.splitext(name)[1].lower() for name in found.others]
    others = Counter(ending for ending in endings if ending not in KINDS)
    kinds = zip(found.others, endings, strict=True)
    lines = [f'{shown(name)}: {KINDS[ending]}' for name, ending in kinds if ending in KINDS]
    lines += [f'{shown(name)}: a pipe, a socket or a device' for name in found.special]
    lines += [f'{shown(name)}: a link to a folder above it' for name in found.loops]
    for name in found.images:
        path = os.path.join(folder, name)
        if os.path.islink(path) and not os.path.exists(path):
            lines.append(f'{shown(name)}: a broken link')
        elif name.lower().endswith(('.tif', '.tiff')) and (pages := _pages(path)) > 1:
            lines.append(f'{shown(name)}: its pages 2 to {pages}; the first is read')
    return lines + [f'{count} × {ending}' for ending, count in sorted(others.items())]


def _pages(path):
    try:
        with Image.open(path) as image:
            return getattr(image, 'n_frames', 1)
    except Exception:  # Pillow's readers raise whatever they like; embed_files says what is wrong
        return 1


def embed_files(
    matcher: Matcher, root: str, names: list[str], largest: bool = False
) -> Iterator[Photograph]:
    """A Photograph of each of the images root/name, in order. All faces, or the `largest` alone.
    BATCH images are embedded at a time. Raises UserError if there are photographs and the detector
    isn't installed."""
    paths, tool = [os.path.join(root, name) for name in names], (matcher.width, largest)
    workers = os.cpu_count() or 1 if len(names) >= ENOUGH else 1
    read = each(_read, paths, tool, functools.partial(tuple, tool), workers)
    bar = iter(progress(zip(names, read, strict=True), 'faces', len(names), unit=' images'))
    while batch := [*itertools.islice(bar, BATCH)]:
        every = [portrait for _, (_, found) in batch for portrait in found]
        features = iter(matcher.features(every) if every else ())
        for name, (facts, found) in batch:
            rows = np.zeros(len(found), FACE)
            embeddings = np.empty((len(found), 2 * matcher.model.dim), '<f4')
            for k, (portrait, embedding, age) in enumerate(itertools.islice(features, len(found))):
                place, embeddings[k] = (0, 0, portrait.box, portrait.points), embedding
                group = matcher.groups.index(age.group) if age.group else -1
                rows[k] = *place, age.years or 0, group, age.probability or np.nan
            yield Photograph._make([name, *facts, rows, embeddings])


def _read(tool, path):
    """Size, time and, if it has no Portraits, the reason why; its Portraits."""
    (width, largest), stamp = tool, _stamp(path)
    try:
        found = portraits.faces_in(portraits.open_file(path, path), path, width)
        return (*stamp, ''), found[:1] if largest else found
    except DataError as error:
        return (*stamp, str(error)), []
