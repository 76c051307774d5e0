"""From faces to batches: every age is read and every image decoded once, before training starts."""

import functools
import glob
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from storage import images
from storage.batches import Batches
from storage.entry import check_entry
from storage.files import sweep
from storage.folder import Folder
from storage.images import HEIGHT, WIDTH, decode, some
from storage.lists import List, is_list
from storage.pixels import NewPixels, Pixels, is_whole, name_of
from storage.shards import Shards, are_shards
from system.progress import progress
from utils import DataError

__all__ = ['Batches', 'Faces', 'check_entry', 'evaluation_loader', 'training_loader']


WITHOUT_SIMPLEJPEG = (
    'simplejpeg is not installed here: without it damaged JPEG files may be read, half of them '
    'grey, and reading takes four times as long: pip install simplejpeg'
)


class Faces(Dataset):
    """The faces at `root`, of known identity and age, as (112, width): a folder, shards or a list.

    The images are 112×96 or 112×112, or both; `width` is what the model sees, 96 or 112, and
    images.to_width says how one becomes the other. `pat` and `pos` are as in meta.py.

    classes  list of the identities, sorted; labels (n,) int64, ages (n,) float32 in years
    Listed and parsed at once, without a Python object per face kept; `check` then decodes. Batches
    are fetched by lists of indices: images (N, 3, 112, width) uint8 in channels-last memory, labels
    (N,), ages (N,), and what could not be read. Raises DataError for what is missing or empty and
    for faces without a readable age.
    """

    def __init__(self, root: str | os.PathLike, pat: str, pos: int, width: int = WIDTH):
        self.root, self.width, self.pixels = os.path.expanduser(root), width, None
        kind = Shards if are_shards(self.root) else List if is_list(self.root) else Folder
        self.source = kind(self.root)
        self.classes, self.places, self.labels, self.ages = self.source.list(pat, pos)

    def __len__(self) -> int:
        return len(self.places)

    def path(self, index: int) -> str:
        """Where the face is, for people; of a folder, the file."""
        return self.source.path(self.places[index])

    def encoded(self, index: int) -> bytes:
        """The image as it is stored. Raises DataError, which names it."""
        try:
            return self.source.encoded(self.places[index])
        except OSError as error:
            raise DataError(f'{some([self.path(index)])}: {error.strerror}') from None

    def read(self, index: int) -> np.ndarray:
        """The decoded face, uint8 (112, width, 3). Raises DataError, which names it."""
        data = self.encoded(index)
        try:
            return decode(data, self.width)
        except DataError as error:
            raise DataError(f'{some([self.path(index)])}: {error}') from None

    def check(
        self, cache: bool = True, skip_corrupt: int = 0, workers: int | None = None
    ) -> list[str]:
        """Decodes every image once, over `workers` threads; with `cache`, keeps the pixels in one
        file beside `root`.

        From that file (pixels.name_of) every process reads, so that no epoch decodes again; its
        name holds a hash of the names, sizes and times of the images, and a set that changed gets
        a new one. Raises DataError where more than `skip_corrupt` images can't be read or are of
        another size; as many are left out. Returns lines of notice, if any: what was left out, and
        that there is no room for the file.
        """
        beside, notices, new = self.source.beside, list(self.source.notices), None
        if images.simplejpeg is None:
            notices.append(WITHOUT_SIMPLEJPEG)
        target = beside.with_name(name_of(beside.name, self.fingerprint, self.width))
        sweep(beside.parent, f'.{glob.escape(beside.name)}.{"[0-9a-f]" * 32}.tmp')
        if cache and is_whole(target, len(self), self.width):
            self.pixels = Pixels(target, len(self), self.width)
            return notices
        try:
            new = NewPixels(target, len(self), self.width) if cache else None
            bad = self._decode_all(new, workers)
            if len(bad) > skip_corrupt:
                raise DataError(
                    f'{self.root}: {len(bad)} image(s) are not 112 high × 96 or 112 wide, or not '
                    f'readable: {some(bad.values())}: align them (prepare.py), or remove them'
                )
            if bad:
                notices.append(
                    f'{self.root}: {len(bad)} image(s) left out: {some(bad.values())}; '
                    'until they are mended or removed, every epoch decodes anew'
                )
                self._leave_out(bad)
            elif new:
                self.pixels = new.finish()
            if new and new.error:
                size = len(self) * HEIGHT * self.width * 3 / 2**30
                notices.append(
                    f'{beside.parent}: {new.error.strerror} for {size:.1f} GiB of decoded faces; '
                    'every epoch decodes anew: --workers N helps'
                )
        finally:
            if new:
                new.close()
        return notices

    def _leave_out(self, indices):
        keep = np.setdiff1d(np.arange(len(self)), list(indices))
        self.places, self.labels = self.places[keep], self.labels[keep]
        self.ages = self.ages[keep]

    def _decode_all(self, pixels, workers):
        """{index: reason} of the images that can't be used; the others' pixels are written to
        `pixels` unless it is None.
        """
        workers = workers or os.cpu_count()
        size, shards = max(1, min(256, len(self) // workers)), self.source.shard_of(self.places)
        order = np.arange(len(self)) if shards is None else np.argsort(shards, kind='stable')

        def work(start):
            bad = {}
            for index in order[start : start + size].tolist():
                try:
                    face = self.read(index)
                    if pixels is not None:
                        pixels[index] = face
                except DataError as error:
                    bad[index] = str(error).removeprefix(os.path.join(self.source.folder, ''))
            return bad

        bad, starts = {}, range(0, len(self), size)
        bar = progress(None, f'reading {self.root}', len(self), unit=' faces')
        with bar, ThreadPoolExecutor(workers) as pool:
            for start, part in zip(starts, pool.map(work, starts), strict=True):
                bad |= part
                bar.update(min(size, len(self) - start))
        return bad

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of names, sizes and modification times, in hexadecimal."""
        return self.source.fingerprint(self.places)

    def will_need(self, indices: Sequence[int]) -> None:
        """Says which faces are asked for next."""
        if self.pixels:
            self.pixels.will_need(indices)

    def __getitems__(
        self, indices: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
        """images, labels, ages of the faces that could be read; reasons for those that couldn't."""
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
        labels, ages = (torch.from_numpy(values[indices]) for values in (self.labels, self.ages))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2), labels, ages, unreadable


def _whole(batch):
    return batch


def _complete(batch):
    if batch[3]:  # a face less would shift every label after it
        raise DataError(batch[3][0])
    return batch


def _apart(_):
    """Takes a worker out of the process group: signals that a terminal or a scheduler sends to all
    of it are for the process that saves.
    """
    if hasattr(os, 'setsid'):
        os.setsid()


def training_loader(
    faces: Faces,
    batch_size: int,
    seed: int,
    workers: int,
    pin: bool,
    process: int = 0,
    processes: int = 1,
) -> DataLoader:
    """A DataLoader over `Batches`, its `.batch_sampler`. DataError: there is no whole batch."""
    shards = faces.source.shard_of(faces.places)
    batches = Batches(len(faces), batch_size, seed, process, processes, shards, faces.will_need)
    if not len(batches):
        raise DataError(
            f'{faces.root}: {len(faces)} images are less than one batch of {batch_size}: '
            'lower it with --batch-size'
        )
    return DataLoader(
        faces,
        batch_sampler=batches,
        collate_fn=_whole,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        worker_init_fn=_apart,
    )


def evaluation_loader(faces: Faces, batch_size: int = 256) -> DataLoader:
    """All faces in order, the last batch as it comes. Iterating raises DataError at a face that
    can't be read.
    """
    return DataLoader(faces, batch_size, collate_fn=_complete)
