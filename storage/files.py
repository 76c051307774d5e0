"""Files as people's disks hold them: which names are images, folders below folders, text."""

import codecs
import contextlib
import csv
import os
import re
import stat
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

import utils
from system import foreign
from system.names import naming
from utils import DataError

EXTENSIONS = (
    *('.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.webp', '.gif', '.bmp', '.tif', '.tiff'),
    *('.ppm', '.pgm', '.pbm', '.jp2', '.avif', '.heic', '.heif'),
)
# what systems and network disks put beside the files of people, in lower case: Synology and QNAP,
# macOS, Linux, Windows and its chkdsk
SYSTEM = re.compile(
    r'\..*|@(eadir|tmp|recycle|recently-snapshot|appstore|sharebin|__thumb)|[#$]recycle(\.bin)?'
    r'|[#~]snapshot|__macosx|network trash folder|temporary items|lost\+found|recycle[rd]'
    r'|system volume information|_vti_cnf|thumbs\.db|desktop\.ini|found\.[0-9]{3}',
    re.DOTALL,
)


def is_image(name: str) -> bool:
    """Whether the name is that of an image."""
    return name.lower().endswith(EXTENSIONS)


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is the system's or hidden, as `._000_12.jpg` is."""
    return SYSTEM.fullmatch(name.lower()) is not None


class Below(NamedTuple):
    """What a folder holds, as paths below it: images, files that are none, links to a folder above,
    and pipes, sockets and devices. The last two are not followed or opened."""

    images: list[str]
    others: list[str]
    loops: list[str]
    special: list[str]


def below(folder: str | os.PathLike, above: tuple[str, ...] = ()) -> Below:
    """Everything below `folder`, except files of the system, in the order of ImageFolder. Links to
    folders are followed, unless they lead to `folder`, to a folder between or to one of `above`,
    which would have no end. Raises DataError for a folder that can't be read."""
    found = Below([], [], [], [])
    for path, name, kind in sorted(_walk(os.fspath(folder), '', above)):
        getattr(found, kind).append(os.path.join(path, name))
    return found


def _walk(folder, path, above) -> Iterator[tuple[str, str, str]]:
    """(path below the first folder, name, field of Below) of each file."""
    above = folder, *above
    with naming(folder), os.scandir(folder) as entries:
        names = [(x.name, _kind(x, above)) for x in entries if not is_system(x.name)]
    for name, kind in names:
        if kind == 'folder':
            yield from _walk(os.path.join(folder, name), os.path.join(path, name), above)
        else:
            yield path, name, kind


def _kind(entry, above):
    try:
        mode = entry.stat().st_mode
    except OSError:  # a link that leads nowhere, or to itself: said when it is read
        mode = stat.S_IFREG
    if stat.S_ISDIR(mode):
        same = entry.is_symlink() and any(os.path.samefile(entry.path, one) for one in above)
        return 'loops' if same else 'folder'
    return 'special' if not stat.S_ISREG(mode) else 'images' if is_image(entry.name) else 'others'


def read_file(path: str | os.PathLike) -> bytes:
    """The bytes of a file. Raises OSError, also for a pipe, a socket or a device: reading one may
    never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(None, 'a folder, pipe, socket or device, which is not read', os.fspath(path))
    with open(path, 'rb') as file:
        return file.read()


def read_bytes(path: str | os.PathLike, remedy: str = '') -> bytes:
    """The bytes of a file that a user named, with ~ for their home. Raises DataError, which ends
    with `remedy`."""
    with naming(path, remedy):
        return read_file(os.path.expanduser(path))


def write_npz(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
    """An .npz of the arrays, whole or not at all."""

    def fill(temporary):
        with open(temporary, 'wb') as file:  # given a name, savez would add .npz to it
            np.savez(file, **arrays)  # type: ignore[arg-type]

    utils.write_whole(path, fill)


def lines_of_text(data: bytes, path: str | os.PathLike | None) -> list[tuple[int, str]]:
    """The lines of a file that aren't blank, whatever their ends, with their numbers. UTF-8, or
    UTF-16 with a byte order mark; other bytes stay as file names keep them (surrogateescape).
    Raises DataError, which names `path`, if it holds no text; without a `path`, nothing."""
    known = foreign.what_it_is(data[: foreign.READ])
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode('utf-16', 'replace').encode()
    # bytes end their lines at \r and \n alone, text at characters that names may hold
    lines = enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), 1)
    texts = [(k, line.decode('utf-8', 'surrogateescape')) for k, line in lines if line.strip()]
    if path and (known or any('\0' in text for _, text in texts)):
        raise DataError(f'{path}: no text file: {known or "save it as text, in UTF-8"}')
    return texts


def separator(line: str) -> str:
    """Semicolon, tab or comma, whichever a table's first line has most; of as many not the comma,
    which numbers may hold."""
    return max(';\t,', key=line.count)


def cells(line: str, mark: str) -> list[str]:
    """The fields of a line of a table; the whole line if it can't be cut."""
    try:
        fields = next(csv.reader([line], delimiter=mark, skipinitialspace=True))
        return [field.strip() for field in fields]
    except csv.Error:  # a field longer than the module takes
        return [line]


def find_file(folder: str | os.PathLike, name: str) -> str | None:
    """The name by which a file that a list calls `name` is found below `folder`; None: it is not.
    Tried as it is written, with \\ for /, and with its accents in one character (NFC) or two (NFD):
    macOS writes the latter."""
    for written in (name, name.replace('\\', '/')):
        for form in (None, 'NFC', 'NFD'):
            tried = unicodedata.normalize(form, written) if form else written
            # False for a name too long, of which Path.exists raises
            if '\0' not in tried and os.path.exists(os.path.join(folder, tried)):
                return tried
    return None


def sweep(folder: Path, pattern: str) -> None:
    """Removes what killed processes have left: files older than a day, as others may be at work."""
    for stale in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process sweeps too; a disk is read-only
            if time.time() - stale.stat().st_mtime > 86400:
                stale.unlink()
