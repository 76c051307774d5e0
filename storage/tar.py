"""One tar shard: samples as the webdataset library groups them, images as places in the file."""

import json
import os
import re
import tarfile
from collections.abc import Iterator
from types import ModuleType

from storage.files import is_image, is_system, read_at
from storage.images import parse_age, some, to_age
from utils import DataError

SMALL = 1 << 20  # bytes read at most of a .json, .cls or .txt
KNOWN = ('.json', '.cls', '.txt')


def library() -> ModuleType:
    """The webdataset library, needed for shards alone. Raises DataError where it is missing."""
    try:
        import webdataset
    except ImportError:
        raise DataError(
            'tar shards need a library that is not installed here: pip install webdataset'
        ) from None
    return webdataset


def samples(path: str) -> Iterator[dict]:
    """The library's samples of one shard: {'__key__': …, suffix: bytes, or (offset, size) of an
    image}. Raises DataError where the shard is damaged.
    """
    try:
        yield from library().tariterators.group_by_keys(_files(path), lcase=False)
    except ValueError as error:  # the library's error for a name that is there twice
        if isinstance(error, DataError):
            raise
        raise DataError(f'{path}: {some([str(error.args[0])])}') from None


def _files(path):
    """The regular files in a shard, with (offset, size) in place of an image's data."""
    try:
        with open(path, 'rb') as file, tarfile.open(fileobj=file, mode='r:') as tar:
            end = 0
            while member := tar.next():
                if tar.offset <= end:
                    raise DataError(f'{path}: damaged at byte {end}: restore it')
                end, tar.members = tar.offset, []
                if member.isreg() and not _is_passed_over(member.name):
                    data = b''
                    if is_image(member.name):
                        data = member.offset_data, member.size
                    elif member.name.lower().endswith(KNOWN):
                        size = min(member.size, SMALL)
                        data = read_at(file.fileno(), size, member.offset_data)
                    yield {'fname': member.name, 'data': data, '__url__': path}
            file.seek(tar.offset)
            # tarfile takes damage, and any end, for the end
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise DataError(
                    f'{path}: damaged or cut short at byte {tar.offset} of '
                    f'{os.fstat(file.fileno()).st_size}: restore it'
                )
    except DataError:
        raise
    except Exception as error:  # damaged headers lead to whatever they like
        raise DataError(
            f'{path}: damaged, cut short, or not a plain tar file ({some([str(error)])}): '
            'restore it'
        ) from None


def _is_passed_over(name):
    """Whether a file in a tar is the library's own, or the system's (._000_12.jpg of macOS)."""
    parts = [part for part in name.split('/') if part not in ('', '.', '..')]
    return bool(re.match(r'__[^/]*__($|/)', name)) or any(map(is_system, parts))


def row(sample: dict, pat: str, pos: int) -> tuple[str, str, float, tuple[int, int]]:
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
        identity, age = (
            known.get(suffix, b'').decode(errors='replace').strip() for suffix in ('cls', 'txt')
        )
    else:
        identity = os.path.basename(os.path.dirname(name))
        age = parse_age(os.path.basename(name), pat, pos)
    if isinstance(identity, bool) or not isinstance(identity, (str, int)) or identity == '':
        raise ValueError(f'its identity is {identity!r:.60}')
    return name, str(identity), to_age(age), sample[images[0]]
