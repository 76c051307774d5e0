"""WebDataset shards: tar files of samples, each a few files of one key in a row, here an image and what is known of it.

    key.jpg  key.json           {"identity": "Ada", "age": 35}; what `write_shards` makes
    key.jpg  key.cls  key.txt   the identity, a number; the age
    Ada/000_35.jpg              neither: a folder of identity folders as tar packs it, `pat` and `pos` as in meta.py

The webdataset library expands the pattern, says which files are one sample, and writes. It reads a shard from its first byte to its
last and keeps no place to resume at; training resumes at any step and in the same order whatever the number of processes. So
the shards are read through once for an index of where every image lies, and from then on images are read by position.
"""
import functools
import glob
import hashlib
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

import utils
from storage.images import parse_age, some, to_age
from storage.pixels import sweep
from utils import DataError

OPEN = 128          # shards that a process keeps open
SMALL = 1 << 20     # bytes read at most of a .json, .cls or .txt
PER_SHARD = 10_000  # faces, 50 to 100 MB of them: what a network file system reads well in one piece
KNOWN = ('.json', '.cls', '.txt')


def are_shards(root):
    """Whether `root` names tar files, rather than a folder."""
    return re.search(r'\.(tar|tgz)(\.\w+)?$', root) is not None and not os.path.isdir(root)


def library():
    """The webdataset library, needed for shards alone. Raises DataError where it isn't installed."""
    try:
        import webdataset
    except ImportError:
        raise DataError('tar shards need a library that is not installed here: pip install webdataset') from None
    return webdataset


class Shards:
    """The shards of a pattern, '/data/x/train-{00000..00099}.tar'; several patterns are joined by '::'.

    The same attributes and methods as Folder; `paths` of the shards, and `stats` (s, 2) int64, their sizes and times. A place is a
    record of shard, offset, size and name. Raises DataError where shards are missing or can't be read by position.
    """

    def __init__(self, root):
        self.root, self.notices = root, []
        if not root.endswith('.tar') or '://' in root or root.startswith('pipe:'):
            raise DataError(f'{root}: shards are read by position: they must be .tar files, not compressed, on a disk or a mounted file system')
        try:
            self.paths = library().shardlists.expand_urls(root)
        except (ValueError, AssertionError) as error:
            raise DataError(f'{root}: not a pattern of shards, as in train-{{00000..00099}}.tar: {error}') from None
        self.folder = os.path.dirname(self.paths[0])
        self.beside = Path(os.path.abspath(self.folder), os.path.basename(root))
        missing = [path for path in self.paths if not os.path.isfile(path)]
        if missing:
            raise DataError(f'{root}: {len(missing)} of {len(self.paths)} shard(s) missing: {some(missing)}: '
                            'restore them, or mend the pattern in meta.py')
        self.stats = np.array([(stat.st_size, stat.st_mtime_ns) for stat in map(os.stat, self.paths)])

    def fingerprint(self, places):
        """sha256 of the shards' names, sizes and modification times, in hexadecimal."""
        digest = hashlib.sha256()
        for path, (size, time) in zip(self.paths, self.stats):
            digest.update(b'%s\0%d\0%d\n' % (os.fsencode(os.path.relpath(path, self.folder)), size, time))
        return digest.hexdigest()

    def list(self, pat, pos):
        """classes, the identities, sorted; places (n,), labels (n,) int64, ages (n,) float32 in years, sorted by identity and name.

        Kept in one file beside the shards, `.<pattern>.<hash>.index.npz`. Raises DataError for shards that are damaged or empty,
        and for samples without one image, an identity and a readable age.
        """
        digest = hashlib.sha256(f'{self.fingerprint(None)} {pat} {pos}'.encode()).hexdigest()[:16]
        kept = self.beside.with_name(f'.{self.beside.name}.{digest}.index.npz')
        try:
            with np.load(kept) as index:
                return json.loads(index['classes'].tobytes()), index['places'], index['labels'], index['ages']
        except Exception:  # not there, cut short, damaged: whatever the reason, it is made anew
            index = self._read_through(pat, pos)
        try:
            sweep(self.beside.parent, f'.{glob.escape(kept.name)}.*.tmp')
            utils.write_whole(kept, functools.partial(_save, index))
            for stale in kept.parent.glob(f'.{glob.escape(self.beside.name)}.*.index.npz'):
                if stale != kept:
                    stale.unlink(missing_ok=True)
        except OSError as error:
            self.notices.append(f'{self.beside.parent}: {error.strerror}: the index of the shards is not kept: every start reads them through')
        return index

    def _read_through(self, pat, pos):
        people, parts, bad = {}, [], []
        for shard, path in enumerate(tqdm(self.paths, f'listing {self.root}', leave=False, unit=' shards', disable=None)):
            names, rows, ages = [], [], []
            for sample in _samples(path):
                try:
                    name, identity, age, where = _row(sample, pat, pos)
                except ValueError as error:
                    bad.append((f'{path}:{sample["__key__"]}'.removeprefix(os.path.join(self.folder, '')), str(error)))
                    continue
                names.append(os.fsencode(name))
                rows.append((shard, *where, people.setdefault(identity, len(people))))
                ages.append(age)
            if names:
                parts.append((np.array(names), np.array(rows), np.array(ages, np.float32)))
        if bad:
            where, why = some([name for name, _ in bad]), bad[0][1]
            raise DataError(f'{self.root}: {len(bad)} sample(s) without one image, an identity and a readable age: {where}; for the first, {why}: '
                            'write the shards anew' + (f", or mend 'pat' {pat!r} and 'pos' {pos} in meta.py" if 'splits' in why else ''))
        if not parts:
            raise DataError(f'{self.root}: no samples; expected key.jpg and key.json, {{"identity": "Ada", "age": 35}}')
        names, rows, ages = map(np.concatenate, zip(*parts))
        classes = sorted(people)
        rank = {identity: label for label, identity in enumerate(classes)}
        labels = np.array([rank[identity] for identity in people])[rows[:, 3]]
        order = np.lexsort((names, labels))
        places = np.empty(len(names), [('shard', 'i4'), ('offset', 'i8'), ('size', 'i8'), ('name', names.dtype)])
        places['name'], places['shard'], places['offset'], places['size'] = names, *rows[:, :3].T
        return classes, places[order], labels[order], ages[order]

    def shard_of(self, places):
        return places['shard']

    def name(self, place):
        return os.fsdecode(place['name'])

    def path(self, place):
        return f'{self.paths[place["shard"]]}:{self.name(place)}'

    def encoded(self, place):
        """The image's bytes. Raises OSError, also where the shard is no longer the one that was listed."""
        file = _opened(self.paths[place['shard']], *self.stats[place['shard']].tolist())  # held until it is read
        data = os.pread(file.number, place['size'], place['offset'])
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
    file = _Number(os.open(path, os.O_RDONLY))
    stat = os.fstat(file.number)
    if (stat.st_size, stat.st_mtime_ns) != (size, time):
        raise OSError(None, 'the shard was changed after it was listed')
    if hasattr(os, 'posix_fadvise'):  # in pieces: the system cuts a long request short
        for start in range(0, size, 1 << 20):  # its images are wanted soon, in any order: a network is faster with one long read
            os.posix_fadvise(file.number, start, 1 << 20, os.POSIX_FADV_WILLNEED)
    return file


def _samples(path):
    """The library's samples of one shard: {'__key__': …, suffix: bytes, or (offset, size) of an image}."""
    try:
        yield from library().tariterators.group_by_keys(_files(path), lcase=False)
    except ValueError as error:  # its word for a name that is there twice
        raise error if isinstance(error, DataError) else DataError(f'{path}: {some([str(error.args[0])])}') from None


def _files(path):
    """What the library makes samples of: the regular files in a shard, with (offset, size) instead of an image's data."""
    try:
        with open(path, 'rb') as file, tarfile.open(fileobj=file, mode='r:') as tar:
            end = 0
            while member := tar.next():
                if tar.offset <= end:
                    raise DataError(f'{path}: damaged at byte {end}: restore it')
                end, tar.members = tar.offset, []
                if member.isreg() and not re.match(r'__[^/]*__($|/)', member.name):
                    data, name = b'', member.name.lower()
                    if name.endswith(IMG_EXTENSIONS):
                        data = member.offset_data, member.size
                    elif name.endswith(KNOWN):
                        data = os.pread(file.fileno(), min(member.size, SMALL), member.offset_data)
                    yield {'fname': member.name, 'data': data, '__url__': path}
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes any end, and damage, for the end
                raise DataError(f'{path}: damaged or cut short at byte {tar.offset} of {os.fstat(file.fileno()).st_size}: restore it')
    except DataError:
        raise
    except Exception as error:  # damaged headers lead to whatever they like
        raise DataError(f'{path}: damaged, cut short, or not a plain tar file ({some([str(error)])}): restore it') from None


def _row(sample, pat, pos):
    """name, identity, age and (offset, size) of one of the library's samples. ValueError says what is missing."""
    images = [suffix for suffix, data in sample.items() if isinstance(data, tuple)]
    if len(images) != 1:
        raise ValueError(f'it has {len(images)} images')
    name, known = f'{sample["__key__"]}.{images[0]}', {suffix.lower(): data for suffix, data in sample.items()}
    if 'json' in known:
        try:
            described = json.loads(known['json'])
            identity, age = described.get('identity'), described.get('age')
        except (ValueError, AttributeError, RecursionError):
            raise ValueError('its .json is not {"identity": …, "age": …}') from None
    elif 'cls' in known or 'txt' in known:
        identity, age = (known.get(suffix, b'').decode(errors='replace').strip() for suffix in ('cls', 'txt'))
    else:
        identity, age = os.path.basename(os.path.dirname(name)), parse_age(os.path.basename(name), pat, pos)
    if isinstance(identity, bool) or not isinstance(identity, (str, int)) or identity == '':
        raise ValueError(f'its identity is {identity!r:.60}')
    return name, str(identity), to_age(age), sample[images[0]]


def _save(index, path):
    classes, places, labels, ages = index
    with open(path, 'wb') as file:
        np.savez(file, classes=np.frombuffer(json.dumps(classes).encode(), np.uint8), places=places, labels=labels, ages=ages)


def write_shards(faces, target, per_shard=PER_SHARD, seed=0):
    """Writes `faces` (a dataset.Faces) as target-00000.tar, target-00001.tar …, and returns their pattern for meta.py.

    Every image is decoded once, then copied byte for byte, `per_shard` in a shard, in an order shuffled by `seed`: a shard is a sample of
    the whole. What they are is in target.json; a call that was interrupted goes on with the shard it was at. Raises DataError where an
    image can't be read, or where there are other shards of that name; OSError where there is no room.
    """
    library()  # before any work, the line that it is missing
    target = Path(target)
    shards = -(-len(faces) // per_shard)
    width = max(5, len(str(shards - 1)))
    pattern = f'{target}-{{{0:0{width}}..{shards - 1:0{width}}}}.tar'
    plan = {'pattern': Path(pattern).name, 'faces': len(faces), 'people': len(faces.classes), 'per_shard': per_shard, 'seed': seed,
            'fingerprint': faces.fingerprint}
    about = target.with_name(f'{target.name}.json')
    there = sorted(target.parent.glob(f'{glob.escape(target.name)}-{"[0-9]" * 5}*.tar'))
    try:
        same = json.loads(about.read_text()) == plan
    except (OSError, ValueError):
        same = False
    if not same and (there or about.exists()):
        raise DataError(f'{(there or [about])[0]}: there are shards of this name already, of other faces or another number in each: '
                        'choose another name')
    faces.check(cache=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, f'.{glob.escape(target.name)}-*.tar.*.tmp')
    utils.write_json(plan, about)
    order = np.random.default_rng(seed).permutation(len(faces))
    with tqdm(total=len(faces), desc=f'writing {pattern}', unit=' faces', disable=None) as bar:
        for shard in range(shards):
            path, indices = Path(f'{target}-{shard:0{width}}.tar'), order[shard * per_shard:(shard + 1) * per_shard]
            if path not in there:
                utils.write_whole(path, lambda temporary: _write(faces, indices, temporary, bar))
            else:
                bar.update(len(indices))
    return pattern


def _write(faces, indices, path, bar):
    with open(path, 'wb') as file, library().TarWriter(file, encoder=False, mtime=0) as tar:
        for index in indices:
            place = faces.places[index]
            name = faces.source.name(place)
            about = {'identity': faces.classes[faces.labels[index]], 'age': float(str(faces.ages[index])), 'file': name}
            suffix = os.path.splitext(name)[1][1:].lower()
            tar.write({'__key__': f'{index:09d}', suffix: faces.encoded(index), 'json': json.dumps(about).encode()})
            bar.update()
