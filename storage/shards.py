"""WebDataset shards: tar files of samples, each a few files of one key in a row, here an image and
what is known of it.

    key.jpg  key.json           {"identity": "Ada", "age": 35}; what `write_shards` makes
    key.jpg  key.cls  key.txt   the identity, a number; the age
    Ada/000_35.jpg              neither: a folder of identity folders as tar packs it, `pat` and
                                `pos` as in meta.py

The webdataset library expands the pattern, says which files are one sample, and writes. It reads a
shard from its first byte to its last and keeps no place to resume at; training resumes at any step
and in the same order whatever the number of processes. So the shards are read through once for an
index of where every image lies, and from then on images are read by position.
"""

import functools
import glob
import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np

import utils
from storage.files import read_at, seen_from, sweep, will_need
from storage.images import some
from storage.tar import library, row, samples
from system.progress import progress
from utils import DataError

OPEN = 128  # shards that a process keeps open


def are_shards(root: str) -> bool:
    """Whether `root` names tar files, rather than a folder."""
    return re.search(r'\.(tar|tgz)(\.\w+)?$', root) is not None and not os.path.isdir(root)


class Shards:
    """The shards of a pattern, '/data/x/train-{00000..00099}.tar'; several are joined by '::'.

    The same attributes and methods as Folder; `paths` of the shards, and `stats` (s, 2) int64,
    their sizes and times. A place is a record of shard, offset, size and name. Raises DataError
    where shards are missing or can't be read by position.
    """

    def __init__(self, root: str):
        self.root, self.notices = root, []
        if not root.endswith('.tar') or '://' in root or root.startswith('pipe:'):
            raise DataError(
                f'{root}: shards are read by position: they must be .tar files, not compressed, '
                'on a disk or a mounted file system'
            )
        try:
            self.paths = library().shardlists.expand_urls(root)
        except (ValueError, AssertionError) as error:
            raise DataError(
                f'{root}: not a pattern of shards, as in train-{{00000..00099}}.tar: {error}'
            ) from None
        self.folder = os.path.dirname(self.paths[0])
        self.beside = Path(os.path.abspath(self.folder), os.path.basename(root))
        missing = [path for path in self.paths if not os.path.isfile(path)]
        if missing:
            raise DataError(
                f'{root}: {len(missing)} of {len(self.paths)} shard(s) missing: {some(missing)}'
                f'{seen_from(missing[0])}: restore them, or mend the pattern in meta.py'
            )
        stats = map(os.stat, self.paths)
        self.stats = np.array([(stat.st_size, stat.st_mtime_ns) for stat in stats])

    def fingerprint(self, places: np.ndarray | None) -> str:
        """sha256 of the shards' names, sizes and modification times, in hexadecimal."""
        digest = hashlib.sha256()
        for path, (size, time) in zip(self.paths, self.stats, strict=True):
            name = os.fsencode(os.path.relpath(path, self.folder))
            digest.update(b'%s\0%d\0%d\n' % (name, size, time))
        return digest.hexdigest()

    def list(self, pat: str, pos: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """classes, the identities, sorted; places (n,), labels (n,) int64, ages (n,) float32 in
        years, sorted by identity and name.

        Kept in one file beside the shards, `.<pattern>.<hash>.index.npz`. Raises DataError for
        shards that are damaged or empty, and for samples without one image, an identity and a
        readable age.
        """
        digest = hashlib.sha256(f'{self.fingerprint(None)} {pat} {pos}'.encode()).hexdigest()[:16]
        kept = self.beside.with_name(f'.{self.beside.name}.{digest}.index.npz')
        try:
            with np.load(kept) as index:
                classes = json.loads(index['classes'].tobytes())
                return classes, index['places'], index['labels'], index['ages']
        except Exception:  # not there, cut short, damaged: whatever the reason, it is made anew
            index = self._read_through(pat, pos)
        try:
            sweep(self.beside.parent, f'.{glob.escape(kept.name)}.*.tmp')
            utils.write_whole(kept, functools.partial(_save, index))
            for stale in kept.parent.glob(f'.{glob.escape(self.beside.name)}.*.index.npz'):
                if stale != kept:
                    stale.unlink(missing_ok=True)
        except OSError as error:
            self.notices.append(
                f'{self.beside.parent}: {error.strerror}: the index of the shards is not kept: '
                'every start reads them through'
            )
        return index

    def _read_through(self, pat, pos):
        """What `list` returns, from the shards themselves."""
        people, parts, bad = {}, [], []
        paths = progress(self.paths, f'listing {self.root}', len(self.paths), unit=' shards')
        for shard, path in enumerate(paths):
            names, rows, ages = [], [], []
            for sample in samples(path):
                try:
                    name, identity, age, where = row(sample, pat, pos)
                except ValueError as error:
                    at = f'{path}:{sample["__key__"]}'.removeprefix(os.path.join(self.folder, ''))
                    bad.append((at, str(error)))
                    continue
                names.append(os.fsencode(name))
                rows.append((shard, *where, people.setdefault(identity, len(people))))
                ages.append(age)
            if names:
                parts.append((np.array(names), np.array(rows), np.array(ages, np.float32)))
        if bad:
            why = bad[0][1]
            pattern = f", or mend 'pat' {pat!r} and 'pos' {pos} in meta.py"
            raise DataError(
                f'{self.root}: {len(bad)} sample(s) without one image, an identity and a readable '
                f'age: {some([name for name, _ in bad])}; for the first, {why}: write the shards '
                f'anew{pattern if "splits" in why else ""}'
            )
        if not parts:
            raise DataError(
                f'{self.root}: no samples; expected key.jpg and key.json, '
                '{"identity": "Ada", "age": 35}'
            )
        names, rows, ages = map(np.concatenate, zip(*parts, strict=True))
        classes = sorted(people)
        rank = {identity: label for label, identity in enumerate(classes)}
        labels = np.array([rank[identity] for identity in people])[rows[:, 3]]
        order = np.lexsort((names, labels))
        places = np.empty(
            len(names), [('shard', 'i4'), ('offset', 'i8'), ('size', 'i8'), ('name', names.dtype)]
        )
        places['name'] = names
        places['shard'], places['offset'], places['size'] = rows[:, :3].T
        return classes, places[order], labels[order], ages[order]

    def shard_of(self, places: np.ndarray) -> np.ndarray:
        """The number of the shard that each place is in (n,)."""
        return places['shard']

    def name(self, place: np.void) -> str:
        """The name of the image in its shard."""
        return os.fsdecode(place['name'])

    def path(self, place: np.void) -> str:
        """Where it is, for messages: shard:name."""
        return f'{self.paths[place["shard"]]}:{self.name(place)}'

    def sizes(self, places: np.ndarray) -> np.ndarray:
        """Bytes of each image (n,) int64."""
        return places['size']

    def encoded(self, place: np.void) -> bytes:
        """The image's bytes. Raises OSError, also where the shard changed after it was listed."""
        stat = self.stats[place['shard']].tolist()
        file = _opened(self.paths[place['shard']], *stat)  # held until it is read
        data = read_at(file.number, place['size'], place['offset'])
        if len(data) < place['size']:
            raise OSError(None, 'the shard was cut short after it was listed')
        return data


class _Number:
    """A file descriptor that is closed when the last who reads from it lets go."""

    def __init__(self, number):
        self.number = number

    def __del__(self, close=os.close):
        close(self.number)


@functools.lru_cache(OPEN)
def _opened(path, size, time):
    file = _Number(os.open(path, os.O_RDONLY | getattr(os, 'O_BINARY', 0)))
    stat = os.fstat(file.number)
    if (stat.st_size, stat.st_mtime_ns) != (size, time):
        raise OSError(None, 'the shard was changed after it was listed')
    # its images are wanted soon, in any order: a network is faster with one long read. In pieces,
    # since the system cuts a long request short
    for start in range(0, size, 1 << 20):
        will_need(file.number, start, 1 << 20)
    return file


def _save(index, path):
    classes, places, labels, ages = index
    names = np.frombuffer(json.dumps(classes).encode(), np.uint8)
    with open(path, 'wb') as file:
        np.savez(file, classes=names, places=places, labels=labels, ages=ages)
