"""From a folder of faces to batches: every age is parsed and every image decoded once, before training starts."""
import contextlib
import difflib
import functools
import hashlib
import io
import os
import re
import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

try:
    import simplejpeg  # four times Pillow's rate; what it can't read, and where it can't be installed, Pillow reads
except ImportError:
    simplejpeg = None

HEIGHT, WIDTH = 112, 96
KEYS = ('train_root', 'val_root', 'pat', 'pos', 'n_cls')
AGE = re.compile(r'[0-9]+(\.[0-9]+)?')


class DataError(ValueError):
    """The user's data or its description is not what it must be; the message is one line for them."""


def some(names):
    """The first few names and how many more, on one line whatever the names hold."""
    names = [name if name.isprintable() else ascii(name) for name in map(os.fsdecode, names)]
    return ', '.join(names[:3]) + (f', … ({len(names)} in all)' if len(names) > 3 else '')


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
    for key, kinds, what in (('train_root', (str, Path), 'a folder'), ('val_root', (str, Path, type(None)), 'a folder or None'),
                             ('pat', str, 'a regular expression'), ('pos', int, 'a whole number'), ('n_cls', int, 'a whole number')):
        if not isinstance(entry[key], kinds) or isinstance(entry[key], bool):
            raise DataError(f'{where}: {key!r} is {entry[key]!r}; it must be {what}')
    try:
        re.compile(entry['pat'])
    except re.error as error:
        raise DataError(f"{where}: 'pat' {entry['pat']!r} is no regular expression: {error}") from None
    if not cutoffs or any(not isinstance(c, (int, float)) for c in cutoffs) or list(cutoffs) != sorted(set(cutoffs)):
        raise DataError(f'meta.py: age_cutoffs {cutoffs!r} must be ages in years, each above the one before')


def parse_age(name, pat, pos):
    """Age in years (float) in a file name: re.split(pat, name)[pos]. ValueError says what stands there instead."""
    fields = re.split(pat, name)
    try:
        field = fields[pos]
    except IndexError:
        raise ValueError(f'it splits into {fields}, which has no position {pos}') from None
    if field is None or not AGE.fullmatch(field):
        raise ValueError(f'it splits into {fields}, and {field!r} at position {pos} is no age')
    if float(field) > 120:
        raise ValueError(f'{field} is no age between 0 and 120')
    return float(field)


def decode(data, crop=False):
    """An encoded image (bytes) -> RGB uint8 (112, 96, 3). With `crop`, 112×112 loses 8 columns on either side first.

    Raises DataError, which doesn't know the file's name, where the image is of another size or can't be read. The size is
    checked before anything is decoded.
    """
    jpeg = simplejpeg and simplejpeg.is_jpeg(data)
    try:
        if jpeg:
            height, width = simplejpeg.decode_jpeg_header(data)[:2]
        else:
            image = Image.open(io.BytesIO(data))
            width, height = image.size
    except Exception as error:  # decoders raise whatever they like at damaged bytes
        raise DataError(f'not readable as an image ({type(error).__name__})') from None
    if (height, width) != (HEIGHT, WIDTH) and not (crop and height == width == HEIGHT):
        raise DataError(f'{height} high × {width} wide')
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace='RGB') if jpeg else np.asarray(image.convert('RGB'))
    except Exception as error:
        if jpeg:  # CMYK and other rarities
            try:
                pixels = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
            except Exception:
                raise DataError(f'not readable as an image ({type(error).__name__})') from None
        else:
            raise DataError(f'not readable as an image ({type(error).__name__})') from None
    return pixels[:, (width - WIDTH) // 2:][:, :WIDTH]


class Faces(Dataset):
    """The faces below `root`, one folder a person as in torchvision's ImageFolder, with the age in each file's name.

    classes  list of the folders' names, sorted; labels (n,) int64, ages (n,) float32 in years
    Listed and parsed at once, without a Python object per face kept; `check` then decodes. Batches are fetched by lists of
    indices: images (N, 3, 112, 96) uint8 in channels-last memory, labels (N,), ages (N,), and what could not be read.
    Raises DataError for a missing or empty folder and for names without a readable age.
    """

    def __init__(self, root, pat, pos):
        self.root, self.pixels_file = str(root), None
        self.classes, names, labels, ages, empty, bad = [], [], [], [], [], []
        try:
            # os.path.isdir and not entry.is_dir(): a link to itself is no folder, rather than an error
            folders = sorted(entry.name for entry in os.scandir(self.root) if os.path.isdir(entry) and not entry.name.startswith('.'))
        except OSError as error:
            raise DataError(f'{self.root}: {error.strerror}: expected a folder with one folder per person') from None
        for folder in folders:
            try:
                files = sorted(entry.name for entry in os.scandir(os.path.join(self.root, folder))
                               if entry.name.lower().endswith(IMG_EXTENSIONS) and not entry.name.startswith('.'))
            except OSError as error:
                raise DataError(f'{some([os.path.join(self.root, folder)])}: {error.strerror}') from None
            if not files:
                empty.append(folder)
            for name in files:
                try:
                    ages.append(parse_age(name, pat, pos))
                except ValueError as error:
                    bad.append((f'{folder}/{name}', error))
                names.append(os.fsencode(f'{folder}/{name}'))
            labels.extend([len(self.classes)] * len(files))
            self.classes.append(folder)
        if not names:
            raise DataError(f'{self.root}: no images; expected {self.root}/<identity>/000_[age].jpg')
        if empty:
            raise DataError(f'{self.root}: {len(empty)} identity folder(s) without an image: {some(empty)}: fill or remove them')
        if bad:
            raise DataError(f"{self.root}: {len(bad)} file name(s) without a readable age: {some([name for name, _ in bad])}; for the first, "
                            f"{bad[0][1]}: rename the files, or mend 'pat' {pat!r} and 'pos' {pos} in meta.py")
        self.names = np.array(names)
        self.labels, self.ages = np.array(labels), np.array(ages, dtype=np.float32)

    def __len__(self):
        return len(self.names)

    def path(self, index):
        return os.path.join(self.root, os.fsdecode(self.names[index]))

    def read(self, index):
        """The decoded face, uint8 (112, 96, 3); DataError names the file."""
        try:
            with open(self.path(index), 'rb') as file:
                return decode(file.read())
        except (OSError, DataError) as error:
            raise DataError(f'{some([self.path(index)])}: {getattr(error, "strerror", None) or error}') from None

    def check(self, cache=True, skip_corrupt=0, workers=None):
        """Decodes every image once, over `workers` threads; with `cache`, keeps the pixels in one file beside `root`.

        The file, `.<root>.<fingerprint>.npy`, is memory-mapped by every process, so that no epoch decodes again; its name holds
        a hash of the names, sizes and times of the images, and a folder that changed gets a new one. Raises DataError where more
        than `skip_corrupt` images can't be read or aren't 112 × 96; as many are left out. Returns lines of notice, if any: what was
        left out, and that there is no room for the file.
        """
        root, notices, bad = Path(os.path.abspath(self.root)), [], {}
        target = root.parent / f'.{root.name}.{self.fingerprint[:16]}.npy'
        for stale in root.parent.glob(f'.{root.name}.{"[0-9a-f]" * 32}.tmp'):
            if time.time() - stale.stat().st_mtime > 86400:  # of a process that was killed in here; a younger one may be at work
                stale.unlink(missing_ok=True)
        if cache and _is_whole(target, len(self)):
            self.pixels_file = str(target)
            return notices
        pixels, temporary = None, root.parent / f'.{root.name}.{uuid.uuid4().hex}.tmp'
        needed = len(self) * HEIGHT * WIDTH * 3
        if cache:
            try:
                if shutil.disk_usage(root.parent).free < 1.1 * needed:
                    raise OSError(None, 'too little free space')
                pixels = np.lib.format.open_memmap(temporary, 'w+', np.uint8, (len(self), HEIGHT, WIDTH, 3))
            except OSError as error:
                notices.append(f'{root.parent}: {error.strerror} for {needed / 2**30:.1f} GiB of decoded faces; every epoch decodes anew: --workers N helps')
        try:
            bad = self._decode_all(pixels, workers)
            if len(bad) > skip_corrupt:
                raise DataError(f'{self.root}: {len(bad)} image(s) are not 112 high × 96 wide or not readable: {some(bad.values())}: '
                                'align them to 112 × 96 (of 112 × 112, cut 8 columns off either side), or remove them')
            if bad:
                notices.append(f'{self.root}: {len(bad)} image(s) left out: {some(bad.values())}; until they are mended or removed, every epoch decodes anew')
                keep = np.setdiff1d(np.arange(len(self)), list(bad))
                self.names, self.labels, self.ages, pixels = self.names[keep], self.labels[keep], self.ages[keep], None
            if pixels is not None:
                pixels.flush()
                os.replace(temporary, target)
                for stale in root.parent.glob(f'.{root.name}.{"[0-9a-f]" * 16}.npy'):
                    if stale != target:
                        stale.unlink(missing_ok=True)
                self.pixels_file = str(target)
        finally:
            temporary.unlink(missing_ok=True)
        return notices

    def _decode_all(self, pixels, workers):
        """{index: reason} of the images that can't be used; the others' pixels are written to `pixels` unless it is None."""
        workers = workers or os.cpu_count()
        size = max(1, min(256, len(self) // workers))

        def work(start):
            bad = {}
            for index in range(start, min(start + size, len(self))):
                try:
                    face = self.read(index)
                    if pixels is not None:
                        pixels[index] = face
                except DataError as error:
                    bad[index] = str(error).removeprefix(self.root + os.sep)
            return bad

        bad, starts = {}, range(0, len(self), size)
        with ThreadPoolExecutor(workers) as pool:
            for part in tqdm(pool.map(work, starts), f'reading {self.root}', len(starts), leave=False, unit_scale=size, unit=' faces', disable=None):
                bad |= part
        return bad

    @functools.cached_property
    def fingerprint(self):
        """sha256 of names, sizes and modification times, in hexadecimal. Whether a file is there at all is for `check` to say."""
        digest = hashlib.sha256()
        for name in self.names:
            with contextlib.suppress(OSError):
                stat = os.stat(os.path.join(os.fsencode(self.root), name))
                digest.update(b'%s\0%d\0%d\n' % (name, stat.st_size, stat.st_mtime_ns))
        return digest.hexdigest()

    def __getitems__(self, indices):
        """images, labels, ages of the faces that could be read, and a list of reasons for those that couldn't."""
        unreadable = []
        if self.pixels_file:
            # opened here, once in each process: a memory map does not survive pickling to a worker
            if getattr(self, '_pixels', None) is None:
                self._pixels = np.load(self.pixels_file, mmap_mode='r')
            pixels = self._pixels[indices]
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

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != '_pixels'}


def _is_whole(file, n):
    """Whether the .npy at `file` holds n faces: a truncated one would end the process (SIGBUS) where its pages are missing."""
    try:
        pixels = np.lib.format.open_memmap(file, mode='r')
    except (OSError, ValueError):  # not there, short, or not one of ours
        return False
    return pixels.shape == (n, HEIGHT, WIDTH, 3) and pixels.dtype == np.uint8


class Batches(Sampler):
    """Lists of indices for one epoch after another: shuffled by (seed, epoch) alone, the last incomplete batch dropped.

    Set `epoch`, and `first` to begin at a later batch of it, as a resumed run does; order never depends on what ran before. Of several
    processes, each takes its share of every batch: the same batches, whatever their number, and shares that differ by one at most.
    """

    def __init__(self, n, batch_size, seed, process=0, processes=1):
        self.n, self.batch_size, self.seed, self.process, self.processes = n, batch_size, seed, process, processes
        self.epoch = self.first = 0

    def __len__(self):
        return self.n // self.batch_size

    def order(self):
        """The epoch's order (n,), whole."""
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.n)

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
    batches = Batches(len(faces), batch_size, seed, process, processes)
    if not len(batches):
        raise DataError(f'{faces.root}: {len(faces)} images are less than one batch of {batch_size}: lower it with --batch-size')
    return DataLoader(faces, batch_sampler=batches, collate_fn=_whole, num_workers=workers, pin_memory=pin, persistent_workers=workers > 0,
                      worker_init_fn=_apart)


def evaluation_loader(faces, batch_size=256):
    """All faces in order, the last batch as it comes. Its iterator raises DataError at a face that can't be read."""
    return DataLoader(faces, batch_size, collate_fn=_complete)
