"""Images in a folder of folders, one a person, as in torchvision's ImageFolder, with the age in each file's name."""
import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from storage.images import parse_age, some
from utils import DataError


class Folder:
    """`root`/<identity>/<image with the age in its name>. A place is a name below `root`, in bytes as the system has it.

    folder   what messages need not repeat
    beside   the path beside which the pixels are kept
    notices  lines for the user, of which a folder has none
    """

    def __init__(self, root):
        self.root, self.folder, self.beside, self.notices = root, root, Path(os.path.abspath(root)), []

    def list(self, pat, pos):
        """classes, the folders' names, sorted; places (n,), labels (n,) int64, ages (n,) float32 in years.

        Raises DataError for a missing or empty folder and for names without a readable age.
        """
        classes, names, labels, ages, empty, bad = [], [], [], [], [], []
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
            labels.extend([len(classes)] * len(files))
            classes.append(folder)
        if not names:
            raise DataError(f'{self.root}: no images; expected {self.root}/<identity>/000_[age].jpg')
        if empty:
            raise DataError(f'{self.root}: {len(empty)} identity folder(s) without an image: {some(empty)}: fill or remove them')
        if bad:
            raise DataError(f"{self.root}: {len(bad)} file name(s) without a readable age: {some([name for name, _ in bad])}; for the first, "
                            f"{bad[0][1]}: rename the files, or mend 'pat' {pat!r} and 'pos' {pos} in meta.py")
        return classes, np.array(names), np.array(labels), np.array(ages, dtype=np.float32)

    def shard_of(self, places):
        """Of places that are read fastest together, the number of the shard (n,); None where that makes no difference."""
        return None

    def name(self, place):
        """Where it is below the root."""
        return os.fsdecode(place)

    def path(self, place):
        """Where it is, for messages."""
        return os.path.join(self.root, self.name(place))

    def encoded(self, place):
        """The image file's bytes. Raises OSError."""
        with open(self.path(place), 'rb') as file:
            return file.read()

    def fingerprint(self, places):
        """sha256 of names, sizes and modification times, in hexadecimal. Whether a file is there at all is for reading it to say."""
        digest = hashlib.sha256()
        for name in places:
            with contextlib.suppress(OSError):
                stat = os.stat(os.path.join(os.fsencode(self.root), name))
                digest.update(b'%s\0%d\0%d\n' % (name, stat.st_size, stat.st_mtime_ns))
        return digest.hexdigest()
