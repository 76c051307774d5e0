"""From faces to batches: every age is read and every image decoded once, before training starts."""

import contextlib
import difflib
import functools
import glob
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from storage import images
from storage.files import sweep
from storage.folder import alike, is_list
from storage.images import HEIGHT, WIDTH, decode, some
from storage.rows import Rows
from storage.shards import shards_of, source_of
from storage.vectors import is_vectors
from system.names import naming
from system.progress import progress
from utils import DataError

KEYS: dict[str, tuple] = {  # what each may be, and how that is said
    'train_root': ((str, Path), 'a folder, shards, or a list'),
    'val_root': ((str, Path, type(None)), 'a folder, shards, a list, or None'),
    'pat': (str, 'a regular expression'),
    'pos': (int, 'a whole number'),
    'n_cls': (int, 'a whole number'),
}
OF_FOLDERS = {'pat': r'_|\.', 'pos': 1, 'n_cls': None}  # what an entry of lists does without
# a face of shards moves by fewer places: about 2 GB, which stay in the system's cache
WINDOW = 1 << 18
WITHOUT_SIMPLEJPEG = (
    'simplejpeg is not installed here: without it damaged JPEG files may be read, half of them '
    'grey, and reading takes four times as long: pip install simplejpeg'
)


def check_entry(name: str, entry: dict, cutoffs: Sequence[float]) -> dict:
    """The dict of meta.py called `name`, checked. Optional keys that are missing come from
    OF_FOLDERS: `pat` and `pos` if all roots are lists, which hold the ages; `n_cls` if train_root
    is one. Raises DataError if it, or age_cutoffs, is not valid."""
    where = f'meta.py, {name}'
    for key in sorted(map(str, entry.keys() - set(KEYS))):
        close = difflib.get_close_matches(key, KEYS, 1)
        hint = f'did you mean {close[0]!r}?' if close else f'the keys are {", ".join(KEYS)}'
        raise DataError(f'{where}: no such key {key!r}; {hint}')
    roots = [entry.get(key) for key in ('train_root', 'val_root')]
    named = [os.path.expanduser(root) for root in roots if isinstance(root, (str, Path))]
    lists = [is_list(root) or is_vectors(root) for root in named]
    spared = [*OF_FOLDERS] if lists and all(lists) else ['n_cls'] if lists[:1] == [True] else []
    entry = {key: OF_FOLDERS[key] for key in spared} | entry
    for key, (kinds, what) in KEYS.items():
        if key not in entry:
            hint = ' (None if there is no validation set)' if key == 'val_root' else ''
            raise DataError(f'{where}: the key {key!r} is missing{hint}')
        valid = isinstance(entry[key], kinds) and not isinstance(entry[key], bool)
        if not valid and not (key in spared and entry[key] is None):
            raise DataError(f'{where}: {key!r} is {entry[key]!r}; it must be {what}')
    try:
        re.compile(entry['pat'])
    except re.error as error:
        pat = f"'pat' {entry['pat']!r}"
        raise DataError(f'{where}: {pat} is no regular expression: {error}') from None
    numbers = all(isinstance(c, (int, float)) for c in cutoffs)
    if not cutoffs or not numbers or list(cutoffs) != sorted(set(cutoffs)):
        must = 'must be ages in years, each above the one before'
        raise DataError(f'meta.py: age_cutoffs {cutoffs!r} {must}')
    return entry


class Faces(Dataset):
    """The faces at `root`, of known identity and age, as (112, width): a folder, shards or a list.

    The images are 112×96 or 112×112, or both; `width` is the width that the model sees, 96 or 112,
    and images.to_width says how one becomes the other. `pat` and `pos` are as in meta.py.

    classes  list of the identities, sorted; labels (n,) int64, ages (n,) float32 in years
    Listed and parsed at once; `check` then decodes. Raises DataError if they are missing or empty,
    and for faces without a readable age."""

    def __init__(self, root: str | os.PathLike, pat: str, pos: int, width: int = WIDTH):
        self.root, self.width = os.path.expanduser(root), width
        self.pixels: Rows | None = None  # where faces, or their activations, are kept
        self.source = source_of(self.root)
        self.classes, self.places, self.labels, self.ages = self.source.list(pat, pos)

    def __len__(self) -> int:
        return len(self.places)

    def path(self, index: int) -> str:
        """The face's place, for messages; in a folder, its file."""
        return self.source.path(self.places[index])

    def encoded(self, index: int) -> bytes:
        """The image as it is stored. Raises DataError, which names it."""
        with naming(self.path(index)):
            return self.source.encoded(self.places[index])

    def read(self, index: int) -> np.ndarray:
        """The decoded face, uint8 (112, width, 3). Raises DataError, which names it."""
        data = self.encoded(index)
        try:
            return decode(data, self.width)
        except DataError as error:
            raise DataError(f'{some([self.path(index)])}: {error}') from None

    def check(self, cache: bool = True, skip_corrupt: int = 0) -> list[str]:
        """Decodes every image once; with `cache`, keeps the pixels in one file beside `root`, from
        which every process reads, so that no epoch decodes again.

        It is called .train.0123456789abcdef.npy, of faces 112 wide .train.0123456789abcdef-112.npy:
        a hash of the names, sizes and times of the images, and a set that changed gets a new one.
        Raises DataError if more than `skip_corrupt` images can't be read or are of another size; as
        many are left out. Returns lines of notice: what was left out, that there is no room …"""
        notices = [*self.source.notices, *alike(self.root, self.classes)]
        if images.simplejpeg is None:
            notices.append(WITHOUT_SIMPLEJPEG)
        beside, wide = self.source.beside, '' if self.width == WIDTH else f'-{self.width}'
        sweep(beside.parent, f'.{glob.escape(beside.name)}.{"[0-9a-f]" * 32}.tmp')
        if not cache:
            return notices + self._decode(None, skip_corrupt)
        path = beside.with_name(f'.{beside.name}.{self.fingerprint[:16]}{wide}.npy')
        rows = Rows(path, len(self), (HEIGHT, self.width, 3), 'uint8')
        self.pixels = rows if rows.is_whole() else None
        if self.pixels:
            return notices
        with contextlib.closing(rows.begin()):
            left_out = self._decode(rows, skip_corrupt)
            if not left_out and rows.finish():
                self.pixels = rows
            if rows.error:
                no_room = f'{rows.error.strerror} for {rows.gib:.1f} GiB of decoded faces'
                anew = 'every epoch decodes anew: --workers N helps'
                notices.append(f'{beside.parent}: {no_room}; {anew}')
        return notices + left_out

    def _decode(self, rows, skip_corrupt):
        """Decodes every image once, into `rows` unless it is None; notices of those left out."""
        workers = os.cpu_count() or 1
        size, shards = max(1, min(256, len(self) // workers)), shards_of(self.places)
        order = np.arange(len(self)) if shards is None else np.argsort(shards, kind='stable')
        parts, bad = [order[k : k + size].tolist() for k in range(0, len(self), size)], {}

        def work(part):
            faces, wrong = self._readable(part)
            for index in faces if rows is not None else ():
                rows[index] = faces[index]
            return wrong

        bar = progress(None, f'reading {self.root}', len(self), unit=' faces')
        with bar, ThreadPoolExecutor(workers) as pool:
            for part, wrong in zip(parts, pool.map(work, parts), strict=True):
                bad |= wrong
                bar.update(len(part))
        if not bad:
            return []
        within = os.path.join(self.source.folder, '')
        which = some(reason.removeprefix(within) for reason in bad.values())
        if len(bad) > skip_corrupt:
            what = f'{len(bad)} image(s) are not 112 high × 96 or 112 wide, or not readable'
            raise DataError(
                f'{self.root}: {what}: {which}: align them (prepare.py), or remove them'
            )
        kept = np.setdiff1d(np.arange(len(self)), list(bad))
        for name in ('places', 'labels', 'ages'):
            setattr(self, name, getattr(self, name)[kept])
        until = 'until they are mended or removed, every epoch decodes anew'
        return [f'{self.root}: {len(bad)} image(s) left out: {which}; {until}']

    def _readable(self, indices):
        """{index: face} of the faces that can be read, {index: what is wrong} of the others."""
        faces, wrong = {}, {}
        for index in indices:
            try:
                faces[index] = self.read(index)
            except DataError as error:
                wrong[index] = str(error)
        return faces, wrong

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of names, sizes and modification times, in hexadecimal."""
        return self.source.fingerprint(self.places)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """A batch: images (N, 3, 112, width) uint8 in channels-last memory, labels (N,), ages (N,)
        of the faces that could be read; reasons for those that couldn't."""
        unreadable = []
        if self.pixels:
            pixels = self.pixels[indices]
        else:
            faces, wrong = self._readable(indices)
            unreadable = list(wrong.values())
            if not faces:
                raise DataError(unreadable[0])
            indices, pixels = list(faces), np.stack(list(faces.values()))
        labels, ages = (torch.from_numpy(values[indices]) for values in (self.labels, self.ages))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), labels, ages, unreadable


class Batches(Sampler):
    """Lists of indices, epoch after epoch: shuffled by (seed, epoch), the incomplete last one left
    out.

    Set `epoch`, and `first` to begin at a later batch of it, as a resumed run does; the order never
    depends on what ran before. Of several ranks, each takes its share of every batch: the same
    batches, whatever their number, and shares that differ by one at most. `shards` (n,), the shard
    that each face is in, keeps the order of more than WINDOW faces to a few shards at a time."""

    def __init__(
        self, n: int, batch_size: int, seed: int, rank: int = 0, ranks: int = 1, shards: Any = None
    ):
        self.n, self.batch_size, self.seed, self.shards = n, batch_size, seed, shards
        self.rank, self.ranks, self.epoch, self.first = rank, ranks, 0, 0

    def __len__(self) -> int:
        return self.n // self.batch_size

    def order(self) -> np.ndarray:
        """The epoch's order (n,), whole."""
        draw = np.random.default_rng((self.seed, self.epoch))
        if self.shards is None or self.n <= WINDOW:
            return draw.permutation(self.n)
        # shard after shard, each shuffled; then every face moves by less than WINDOW places, so
        # that neighbouring shards mix
        turn = draw.permutation(self.shards.max() + 1)
        faces = np.lexsort((draw.random(self.n), turn[self.shards]))
        moved = np.arange(self.n) + WINDOW * draw.random(self.n)
        return faces[np.argsort(moved, kind='stable')]

    def __iter__(self) -> Iterator[list[int]]:
        order = self.order()
        for number in range(self.first, len(self)):
            batch = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield np.array_split(batch, self.ranks)[self.rank].tolist()


def _complete(batch):
    if batch[3]:  # a face less would shift every label after it
        raise DataError(batch[3][0])
    return batch


def _apart(_):
    """Takes a worker out of the process group: signals that a terminal or a scheduler sends to all
    of it are for the process that saves."""
    if hasattr(os, 'setsid'):
        os.setsid()


def training_loader(
    faces: Faces, batch_size: int, seed: int, workers: int, pin: bool, rank: int = 0, ranks: int = 1
) -> DataLoader:
    """A DataLoader over `Batches`, its `.batch_sampler`. Raises DataError without a whole batch."""
    batches = Batches(len(faces), batch_size, seed, rank, ranks, shards_of(faces.places))
    if not len(batches):
        less = f'{len(faces)} images are less than one batch of {batch_size}'
        raise DataError(f'{faces.root}: {less}: lower it with --batch-size')
    how: dict[str, Any] = {'num_workers': workers, 'pin_memory': pin}
    how |= {'persistent_workers': workers > 0, 'worker_init_fn': _apart}
    return DataLoader(faces, batch_sampler=batches, collate_fn=list, **how)


def evaluation_loader(faces: Dataset, batch_size: int = 256) -> DataLoader:
    """All faces in order, the last batch as it comes. Iterating raises DataError at a face that
    can't be read."""
    return DataLoader(faces, batch_size, collate_fn=_complete)
