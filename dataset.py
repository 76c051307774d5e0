"""From faces to batches: every age is parsed and every image decoded once, before training starts."""
import difflib
import functools
import glob
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from storage.folder import Folder
from storage.images import (  # which the rest of the house takes from here
    HEIGHT,
    WIDTH,
    decode,
    some,
)
from storage.pixels import NewPixels, Pixels, is_whole, sweep
from storage.shards import Shards, are_shards
from utils import DataError

WINDOW = 1 << 18  # faces among which one from shards is shuffled: about 2 GB, which stay in the system's cache while they are read
KEYS = ('train_root', 'val_root', 'pat', 'pos', 'n_cls')


def check_entry(name, entry, cutoffs):
    """Raises DataError where the meta.py dict called `name`, or age_cutoffs, isn't what the loaders need."""
    where = f'meta.py, {name}'
    if not isinstance(entry, dict):
        raise DataError(f'{where}: a data set is a dict with the keys {", ".join(KEYS)}, not {type(entry).__name__}')
    for key in sorted(map(str, entry.keys() - set(KEYS))):
        close = difflib.get_close_matches(key, KEYS, 1)
        raise DataError(f'{where}: no such key {key!r}' + (f'; did you mean {close[0]!r}?' if close else f'; the keys are {", ".join(KEYS)}'))
    for key in KEYS:
        if key not in entry:
            raise DataError(f'{where}: the key {key!r} is missing' + (' (None if there is no validation set)' if key == 'val_root' else ''))
    for key, kinds, what in (('train_root', (str, Path), 'a folder, or shards'), ('val_root', (str, Path, type(None)), 'a folder, shards, or None'),
                             ('pat', str, 'a regular expression'), ('pos', int, 'a whole number'), ('n_cls', int, 'a whole number')):
        if not isinstance(entry[key], kinds) or isinstance(entry[key], bool):
            raise DataError(f'{where}: {key!r} is {entry[key]!r}; it must be {what}')
    try:
        re.compile(entry['pat'])
    except re.error as error:
        raise DataError(f"{where}: 'pat' {entry['pat']!r} is no regular expression: {error}") from None
    if not cutoffs or any(not isinstance(c, (int, float)) for c in cutoffs) or list(cutoffs) != sorted(set(cutoffs)):
        raise DataError(f'meta.py: age_cutoffs {cutoffs!r} must be ages in years, each above the one before')


class Faces(Dataset):
    """The faces at `root`, each 112 × 96 and of known identity and age: a folder or WebDataset shards, as in meta.py.

    classes  list of the identities, sorted; labels (n,) int64, ages (n,) float32 in years
    Listed and parsed at once, without a Python object per face kept; `check` then decodes. Batches are fetched by lists of
    indices: images (N, 3, 112, 96) uint8 in channels-last memory, labels (N,), ages (N,), and what could not be read.
    Raises DataError for what is missing or empty and for faces without a readable age.
    """

    def __init__(self, root, pat, pos):
        self.root, self.pixels = str(root), None
        self.source = Shards(self.root) if are_shards(self.root) else Folder(self.root)
        self.classes, self.places, self.labels, self.ages = self.source.list(pat, pos)

    def __len__(self):
        return len(self.places)

    def path(self, index):
        """Where the face is, for people; of a folder, the file."""
        return self.source.path(self.places[index])

    def encoded(self, index):
        """The image as it is stored, bytes; DataError names it."""
        try:
            return self.source.encoded(self.places[index])
        except OSError as error:
            raise DataError(f'{some([self.path(index)])}: {error.strerror}') from None

    def read(self, index):
        """The decoded face, uint8 (112, 96, 3); DataError names it."""
        data = self.encoded(index)
        try:
            return decode(data)
        except DataError as error:
            raise DataError(f'{some([self.path(index)])}: {error}') from None

    def check(self, cache=True, skip_corrupt=0, workers=None):
        """Decodes every image once, over `workers` threads; with `cache`, keeps the pixels in one file beside `root`.

        From that file, `.<root>.<fingerprint>.npy`, every process reads, so that no epoch decodes again; its name holds a hash of
        the names, sizes and times of the images, and a set that changed gets a new one. Raises DataError where more than
        `skip_corrupt` images can't be read or aren't 112 × 96; as many are left out. Returns lines of notice, if any: what was
        left out, and that there is no room for the file.
        """
        beside, notices, new = self.source.beside, list(self.source.notices), None
        target = beside.with_name(f'.{beside.name}.{self.fingerprint[:16]}.npy')
        sweep(beside.parent, f'.{glob.escape(beside.name)}.{"[0-9a-f]" * 32}.tmp')
        if cache and is_whole(target, len(self)):
            self.pixels = Pixels(target, len(self))
            return notices
        try:
            new = NewPixels(target, len(self)) if cache else None
            bad = self._decode_all(new, workers)
            if len(bad) > skip_corrupt:
                raise DataError(f'{self.root}: {len(bad)} image(s) are not 112 high × 96 wide or not readable: {some(bad.values())}: '
                                'align them to 112 × 96 (of 112 × 112, cut 8 columns off either side), or remove them')
            if bad:
                notices.append(f'{self.root}: {len(bad)} image(s) left out: {some(bad.values())}; until they are mended or removed, every epoch decodes anew')
                keep = np.setdiff1d(np.arange(len(self)), list(bad))
                self.places, self.labels, self.ages = self.places[keep], self.labels[keep], self.ages[keep]
            elif new:
                self.pixels = new.finish()
            if new and new.error:
                notices.append(f'{beside.parent}: {new.error.strerror} for {len(self) * HEIGHT * WIDTH * 3 / 2**30:.1f} GiB of decoded faces; '
                               'every epoch decodes anew: --workers N helps')
        finally:
            if new:
                new.close()
        return notices

    def _decode_all(self, pixels, workers):
        """{index: reason} of the images that can't be used; the others' pixels are written to `pixels` unless it is None."""
        workers = workers or os.cpu_count()
        size, shards = max(1, min(256, len(self) // workers)), self.source.shard_of(self.places)
        order = np.arange(len(self)) if shards is None else np.argsort(shards, kind='stable')

        def work(start):
            bad = {}
            for index in order[start:start + size].tolist():
                try:
                    face = self.read(index)
                    if pixels is not None:
                        pixels[index] = face
                except DataError as error:
                    bad[index] = str(error).removeprefix(os.path.join(self.source.folder, ''))
            return bad

        bad, starts = {}, range(0, len(self), size)
        with ThreadPoolExecutor(workers) as pool:
            for part in tqdm(pool.map(work, starts), f'reading {self.root}', len(starts), leave=False, unit_scale=size, unit=' faces', disable=None):
                bad |= part
        return bad

    @functools.cached_property
    def fingerprint(self):
        """sha256 of names, sizes and modification times, in hexadecimal."""
        return self.source.fingerprint(self.places)

    def __getitems__(self, indices):
        """images, labels, ages of the faces that could be read, and a list of reasons for those that couldn't."""
        unreadable = []
        if self.pixels:
            pixels = self.pixels[indices]
        else:
            faces = {}
            for index in indices:
                try:
                    faces[index] = self.read(index)
                except DataError as error:
                    unreadable.append(str(error))
            if not faces:
                raise DataError(unreadable[0])
            indices, pixels = list(faces), np.stack(list(faces.values()))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(self.labels[indices]), torch.from_numpy(self.ages[indices]), unreadable


class Batches(Sampler):
    """Lists of indices for one epoch after another: shuffled by (seed, epoch) alone, the last incomplete batch dropped.

    Set `epoch`, and `first` to begin at a later batch of it, as a resumed run does; order never depends on what ran before. Of several
    processes, each takes its share of every batch: the same batches, whatever their number, and shares that differ by one at most.
    `shards` (n,), the shard that each face is in, keeps the order of more than WINDOW faces to a few shards at a time.
    """

    def __init__(self, n, batch_size, seed, process=0, processes=1, shards=None):
        self.n, self.batch_size, self.seed, self.process, self.processes, self.shards = n, batch_size, seed, process, processes, shards
        self.epoch = self.first = 0

    def __len__(self):
        return self.n // self.batch_size

    def order(self):
        """The epoch's order (n,), whole."""
        draw = np.random.default_rng((self.seed, self.epoch))
        if self.shards is None or self.n <= WINDOW:
            return draw.permutation(self.n)
        # shard after shard, each shuffled; then every face moves by less than WINDOW places, so that neighbouring shards mix
        turn = draw.permutation(self.shards.max() + 1)
        faces = np.lexsort((draw.random(self.n), turn[self.shards]))
        return faces[np.argsort(np.arange(self.n) + WINDOW * draw.random(self.n), kind='stable')]

    def __iter__(self):
        order = self.order()
        for batch in range(self.first, len(self)):
            batch = order[batch * self.batch_size:(batch + 1) * self.batch_size]
            yield np.array_split(batch, self.processes)[self.process].tolist()


def _whole(batch):
    return batch


def _complete(batch):
    if batch[3]:  # a face less would shift every label after it
        raise DataError(batch[3][0])
    return batch


def _apart(_):
    """A worker leaves the process group: signals that a terminal or a scheduler sends to all of it are for the process to act on that saves."""
    if hasattr(os, 'setsid'):
        os.setsid()


def training_loader(faces, batch_size, seed, workers, pin, process=0, processes=1):
    """A DataLoader over `Batches`, which it keeps as `.batch_sampler`. Raises DataError where there is no whole batch."""
    batches = Batches(len(faces), batch_size, seed, process, processes, faces.source.shard_of(faces.places))
    if not len(batches):
        raise DataError(f'{faces.root}: {len(faces)} images are less than one batch of {batch_size}: lower it with --batch-size')
    return DataLoader(faces, batch_sampler=batches, collate_fn=_whole, num_workers=workers, pin_memory=pin, persistent_workers=workers > 0,
                      worker_init_fn=_apart)


def evaluation_loader(faces, batch_size=256):
    """All faces in order, the last batch as it comes. Its iterator raises DataError at a face that can't be read."""
    return DataLoader(faces, batch_size, collate_fn=_complete)
