"""WebDataset shards, read by position: tar files listed once, every image a place in one."""

import functools
import glob
import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from storage.files import is_image, is_system, sweep, write_npz
from storage.folder import Folder, List, is_list
from storage.images import parse_age, some, to_age
from system.names import seen_from
from system.progress import progress
from utils import DataError

OPEN = 128  # shards that a process keeps open
SMALL = 1 << 20  # bytes read at most of a .json, .cls or .txt
KNOWN = ('.json', '.cls', '.txt')
KEPT = 'classes', 'places', 'labels', 'ages'


def library() -> ModuleType:
    """The webdataset library, needed for shards alone. Raises DataError if it is missing."""
    try:
        import webdataset
    except ImportError:
        remedy = 'pip install webdataset'
        raise DataError(f'tar shards need a library that is not installed here: {remedy}') from None
    return webdataset


class Shards(Folder):
    """The shards of a pattern, '/data/x/train-{00000..00099}.tar'; several are joined by '::'.

    `paths` and `stats` are those of the shards, (size, time) each; a place is a record of shard,
    offset, size and name. Raises DataError if shards are missing or can't be read by position."""

    def __init__(self, root: str):
        super().__init__(root)
        if not root.endswith('.tar') or '://' in root or root.startswith('pipe:'):
            form = '.tar files, not compressed, on a disk or a mounted file system'
            raise DataError(f'{root}: shards are read by position: they must be {form}')
        try:
            self.paths = library().shardlists.expand_urls(root)
        except (ValueError, AssertionError) as error:
            form = 'a pattern of shards, as in train-{00000..00099}.tar'
            raise DataError(f'{root}: not {form}: {error}') from None
        self.folder = os.path.dirname(self.paths[0])
        self.beside = Path(os.path.abspath(self.folder), os.path.basename(root))
        missing = [path for path in self.paths if not os.path.isfile(path)]
        if missing:
            which = f'{len(missing)} of {len(self.paths)} shard(s) missing: {some(missing)}'
            remedy = 'restore them, or mend the pattern in meta.py'
            raise DataError(f'{root}: {which}{seen_from(missing[0])}: {remedy}')
        self.stats = [(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, self.paths)]

    def list(self, pat: str, pos: int) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
        """classes, the identities, sorted; places (n,), labels (n,) int64, ages (n,) float32 in
        years, sorted by identity and name: kept beside the shards, `.<pattern>.<hash>.index.npz`.
        Raises DataError for shards that are damaged or empty, and for samples without one image, an
        identity and a readable age."""
        key = f'{self.fingerprint(None)} {pat} {pos}'.encode()
        name = f'.{self.beside.name}.{hashlib.sha256(key).hexdigest()[:16]}.index.npz'
        kept = self.beside.with_name(name)
        try:
            with np.load(kept) as arrays:
                classes, *index = (arrays[name] for name in KEPT)
                return json.loads(classes.tobytes()), *index
        except Exception:  # not there, cut short, damaged: whatever the reason, it is made anew
            index = self._read_through(pat, pos)
        try:
            sweep(self.beside.parent, f'.{glob.escape(kept.name)}.*.tmp')
            names = np.frombuffer(json.dumps(index[0]).encode(), np.uint8)
            write_npz(kept, dict(zip(KEPT, (names, *index[1:]), strict=True)))
            for stale in kept.parent.glob(f'.{glob.escape(self.beside.name)}.*.index.npz'):
                if stale != kept:
                    stale.unlink(missing_ok=True)
        except OSError as error:
            why = f'{self.beside.parent}: {error.strerror}'
            kept_not = 'the index of the shards is not kept: every start reads them through'
            self.notices.append(f'{why}: {kept_not}')
        return index

    def _read_through(self, pat, pos):
        """What `list` returns, from the shards themselves."""
        rows, bad = [], {}
        paths = progress(self.paths, f'listing {self.root}', len(self.paths), unit=' shards')
        for shard, path in enumerate(paths):
            for sample in _samples(path):
                try:
                    name, identity, age, (offset, size) = _row(sample, pat, pos)
                    rows.append((identity, os.fsencode(name), shard, offset, size, age))
                except ValueError as error:
                    at = f'{path}:{sample["__key__"]}'.removeprefix(os.path.join(self.folder, ''))
                    bad[at] = str(error)
        if bad:
            which = f'{len(bad)} sample(s) without one image, an identity and a readable age'
            first = f'{some(bad)}; for the first, {next(iter(bad.values()))}'
            remedy = f"write the shards anew, or mend 'pat' {pat!r} and 'pos' {pos} in meta.py"
            raise DataError(f'{self.root}: {which}: {first}: {remedy}')
        if not rows:
            form = 'key.jpg and key.json, {"identity": "Ada", "age": 35}'
            raise DataError(f'{self.root}: no samples; expected {form}')
        rows.sort(key=lambda row: row[:2])
        people, names, shards, offsets, sizes, ages = zip(*rows, strict=True)
        names, classes = np.array(names), sorted(set(people))
        rank = {identity: label for label, identity in enumerate(classes)}
        kinds = [('shard', 'i4'), ('offset', 'i8'), ('size', 'i8'), ('name', names.dtype)]
        places = np.array([*zip(shards, offsets, sizes, names, strict=True)], kinds)
        labels = np.array([rank[identity] for identity in people])
        return classes, places, labels, np.array(ages, np.float32)

    def name(self, place: np.void) -> str:
        """The name of the image in its shard."""
        return os.fsdecode(place['name'])

    def _stats(self, places):
        """(name, size, modification time in ns) of each shard: the fingerprint is theirs."""
        for path, (size, time) in zip(self.paths, self.stats, strict=True):
            yield os.fsencode(os.path.relpath(path, self.folder)), size, time

    def path(self, place: np.void) -> str:
        """Where it is, for messages: shard:name."""
        return f'{self.paths[place["shard"]]}:{self.name(place)}'

    def sizes(self, places: np.ndarray) -> np.ndarray:
        return places['size']

    def encoded(self, place: np.void) -> bytes:
        """The image's bytes. Raises OSError, also if the shard changed after it was listed."""
        shard = place['shard']
        file = _opened(self.paths[shard], *self.stats[shard])  # held until it is read
        data = os.pread(file.fileno(), place['size'], place['offset'])
        if len(data) < place['size']:
            raise OSError(None, 'the shard was cut short after it was listed')
        return data


def are_shards(root: str) -> bool:
    """Whether `root` names tar files, rather than a folder."""
    return re.search(r'\.(tar|tgz)(\.\w+)?$', root) is not None and not os.path.isdir(root)


def source_of(root: str) -> Any:
    """The folder, shards or list that `root` names. Raises DataError if it can't be used."""
    if are_shards(root):
        return Shards(root)
    return List(root) if is_list(root) else Folder(root)


def shards_of(places: np.ndarray) -> np.ndarray | None:
    """The number of the shard that each place is in (n,); None if there are no shards."""
    return places['shard'] if places.dtype.names else None


@functools.lru_cache(OPEN)
def _opened(path, size, time):
    """The shard's file; it closes when the last reader that holds it lets go."""
    file = open(path, 'rb', buffering=0)
    stat = os.fstat(file.fileno())
    if (stat.st_size, stat.st_mtime_ns) != (size, time):
        file.close()
        raise OSError(None, 'the shard was changed after it was listed')
    return file


def _samples(path) -> Iterator[dict]:
    """The library's samples of one shard: {'__key__': …, suffix: bytes, or (offset, size) of an
    image}. Raises DataError if the shard is damaged."""
    try:
        with open(path, 'rb') as file, tarfile.open(fileobj=file, mode='r:') as tar:
            yield from library().tariterators.group_by_keys(_files(path, file, tar), lcase=False)
            file.seek(tar.offset)
            # tarfile takes damage, and any end, for the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise ValueError(f'at byte {tar.offset} of {os.fstat(file.fileno()).st_size}')
    except Exception as error:  # damaged headers lead to whatever they like
        why = f'damaged, cut short, or not a plain tar file ({some([str(error)])})'
        raise DataError(f'{path}: {why}: restore it') from None


def _files(path, file, tar):
    """The regular files in a shard, with (offset, size) in place of an image's data."""
    end = 0
    while member := tar.next():
        if tar.offset <= end:
            raise ValueError(f'at byte {end}')
        end, tar.members = tar.offset, []
        if member.isreg() and not _is_passed_over(member.name):
            data = b''
            if is_image(member.name):
                data = member.offset_data, member.size
            elif member.name.lower().endswith(KNOWN):
                data = os.pread(file.fileno(), min(member.size, SMALL), member.offset_data)
            yield {'fname': member.name, 'data': data, '__url__': path}


def _is_passed_over(name):
    """Whether a file in a tar is the library's own, or the system's (._000_12.jpg of macOS)."""
    parts = {*name.split('/')} - {'', '.', '..'}
    return bool(re.match(r'__[^/]*__($|/)', name)) or any(map(is_system, parts))


def _row(sample, pat, pos) -> tuple[str, str, float, tuple[int, int]]:
    """name, identity, age in years and (offset, size) of a sample. ValueError: what is missing."""
    images = [suffix for suffix, data in sample.items() if isinstance(data, tuple)]
    if len(images) != 1:
        raise ValueError(f'it has {len(images)} images')
    name = f'{sample["__key__"]}.{images[0]}'
    known = {suffix.lower(): data for suffix, data in sample.items()}
    if 'json' in known:
        try:
            described = json.loads(known['json'])
            identity, age = described.get('identity'), described.get('age')
        except (ValueError, AttributeError, RecursionError):
            raise ValueError('its .json is not {"identity": …, "age": …}') from None
    elif 'cls' in known or 'txt' in known:
        texts = (known.get(suffix, b'') for suffix in ('cls', 'txt'))
        identity, age = (text.decode(errors='replace').strip() for text in texts)
    else:
        identity = os.path.basename(os.path.dirname(name))
        age = parse_age(os.path.basename(name), pat, pos)
    if isinstance(identity, bool) or not isinstance(identity, (str, int)) or identity == '':
        raise ValueError(f'its identity is {identity!r:.60}')
    return name, str(identity), to_age(age), sample[images[0]]
