"""Files as people's disks hold them: which names are images, folders below folders, lists of names;
and reading and writing at a position.
"""

import codecs
import contextlib
import os
import re
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

EXTENSIONS = (
    '.jpg',
    '.jpeg',
    '.jpe',
    '.jfif',
    '.mpo',
    '.png',
    '.webp',
    '.gif',
    '.bmp',
    '.tif',
    '.tiff',
    '.ppm',
    '.pgm',
    '.pbm',
    '.jp2',
    '.avif',
    '.heic',
    '.heif',
)

# what systems and network disks put beside the files of people, in lower case; and see is_system
SYSTEM = {
    '@eadir',
    '@tmp',
    '@recycle',
    '@recently-snapshot',
    '@appstore',
    '@sharebin',
    '@__thumb',
    '#recycle',
    '#snapshot',
    '~snapshot',
    '__macosx',
    'lost+found',
    'network trash folder',
    'temporary items',
    '$recycle.bin',
    'recycler',
    'recycled',
    'system volume information',
    '_vti_cnf',
    'thumbs.db',
    'desktop.ini',
}
RECOVERED = re.compile(r'found\.[0-9]{3}')  # folders of Windows' chkdsk

_seeking = threading.Lock()


def is_image(name: str) -> bool:
    """Whether the name is that of an image."""
    return name.lower().endswith(EXTENSIONS)


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is the system's, and so no image and nobody's folder.

    Hidden ones (`.DS_Store`, `.AppleDouble`, `._000_12.jpg`), those of SYSTEM and RECOVERED.
    """
    name = name.lower()
    return name.startswith('.') or name in SYSTEM or RECOVERED.fullmatch(name) is not None


class Below(NamedTuple):
    """What a folder holds, as paths below it: images, files that are none, links not followed."""

    images: list[str]
    others: list[str]
    loops: list[str]


def below(folder: str | os.PathLike, above: tuple[str, ...] = ()) -> Below:
    """Everything below `folder`, but for what is the system's, in the order of ImageFolder.

    Links to folders are followed, unless they lead to `folder`, to a folder between or to one of
    `above`, which would have no end. Raises OSError for a folder that can't be read.
    """
    images, others, loops = [], [], []
    for path, files, links in sorted(_walk(os.fspath(folder), '', above)):
        for name in files:
            (images if is_image(name) else others).append(os.path.join(path, name))
        loops += [os.path.join(path, name) for name in links]
    return Below(images, others, loops)


def _walk(folder, path, above) -> Iterator[tuple[str, list[str], list[str]]]:
    """(path below the first folder, its files, its links not followed) of each folder, sorted."""
    files, folders, loops = [], [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_system(entry.name):
                (folders if _is_folder(entry) else files).append(entry.name)
    for name in list(folders):
        inner = os.path.join(folder, name)
        if os.path.islink(inner) and any(os.path.samefile(inner, x) for x in (folder, *above)):
            folders.remove(name)
            loops.append(name)
    yield path, sorted(files), sorted(loops)
    for name in folders:
        yield from _walk(os.path.join(folder, name), os.path.join(path, name), (folder, *above))


def _is_folder(entry):
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def images_below(folder: str | os.PathLike) -> list[str]:
    """The paths of all images below a folder, sorted. Raises OSError where it can't be read."""
    return sorted(os.path.join(folder, name) for name in below(folder).images)


def seen_from(path: str) -> str:
    """What a message adds where a relative path is not found: the folder it is relative to."""
    return '' if os.path.isabs(path) else f', seen from {os.getcwd()}'


def lines_of(data: bytes) -> list[str]:
    """The lines of a text file that aren't blank, whatever their ends; see `numbered_lines_of`."""
    return [line for _, line in numbered_lines_of(data)]


def numbered_lines_of(data: bytes) -> list[tuple[int, str]]:
    """The lines of a text file that aren't blank, whatever their ends, with their numbers.

    UTF-8, with or without a byte order mark, or UTF-16 with one. Other bytes are kept as file
    names keep them (surrogateescape).
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data = data.decode('utf-16', 'replace').encode()
    # bytes end their lines at \r and \n alone, text at characters that names may hold
    lines = enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), 1)
    return [
        (number, line.decode('utf-8', 'surrogateescape')) for number, line in lines if line.strip()
    ]


def find(folder: str | os.PathLike, name: str) -> str | None:
    """The name by which a file that a list calls `name` is found below `folder`; None: it is not.

    Tried as it is written, with \\ for /, and with its accents in one character (NFC) or two (NFD):
    macOS writes the latter.
    """
    for written in (name, name.replace('\\', '/')):
        for form in (None, 'NFC', 'NFD'):
            tried = unicodedata.normalize(form, written) if form else written
            # False, where Path.exists raises, for a name too long
            if '\0' not in tried and os.path.exists(os.path.join(folder, tried)):
                return tried
    return None


def read_at(number: int, size: int, at: int) -> bytes:
    """`size` bytes of the file descriptor from position `at` on, fewer where the file ends."""
    if hasattr(os, 'pread'):
        return os.pread(number, size, at)
    with _seeking:  # Windows
        os.lseek(number, at, os.SEEK_SET)
        return os.read(number, size)


def read_into(number: int, buffer: memoryview, at: int) -> int:
    """Fills the buffer from position `at` of the file descriptor on; how many bytes there were."""
    if hasattr(os, 'preadv'):
        return os.preadv(number, [buffer], at)
    data = read_at(number, buffer.nbytes, at)
    buffer.cast('B')[: len(data)] = data
    return len(data)


def write_at(number: int, data: memoryview | bytes, at: int) -> int:
    """Writes at position `at` of the file descriptor; how many bytes there was room for."""
    if hasattr(os, 'pwrite'):
        return os.pwrite(number, data, at)
    with _seeking:
        os.lseek(number, at, os.SEEK_SET)
        return os.write(number, data)


def will_need(number: int, at: int, size: int) -> None:
    """Tells the system, where it listens, to begin to read what will be asked for soon."""
    if hasattr(os, 'posix_fadvise'):
        with contextlib.suppress(OSError):
            os.posix_fadvise(number, at, size, os.POSIX_FADV_WILLNEED)


def sweep(folder: Path, pattern: str) -> None:
    """Removes what killed processes have left: files older than a day, as others may be at work."""
    for stale in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process sweeps too; a disk is read-only
            if time.time() - stale.stat().st_mtime > 86400:
                stale.unlink()
