"""Files as messages name them, whatever bytes a disk holds, and what the system refused of them."""

import contextlib
import os
from collections.abc import Iterator

from utils import DataError


def shown(name: str | bytes | os.PathLike) -> str:
    """A path or name on one line, in characters that every font, log and CSV file can hold. Bytes
    that are no UTF-8 (a Latin-1 name, a NAS's) and control characters are written as \\xe9, \\n …
    Any other name is returned as it is."""
    text = os.fsencode(name).decode('utf-8', 'backslashreplace')
    escaped = (x if x.isprintable() else x.encode('unicode_escape').decode() for x in text)
    return text if text.isprintable() else ''.join(escaped)


def seen_from(path: str | os.PathLike) -> str:
    """What a message adds if a relative path is not found: the folder it is relative to."""
    return '' if os.path.isabs(path) else f', seen from {os.getcwd()}'


@contextlib.contextmanager
def naming(
    path: str | os.PathLike, remedy: str = '', kind: type[ValueError] = DataError
) -> Iterator[None]:
    """Within it an OSError becomes a DataError, or UserError: a line with `path` and `remedy`."""
    try:
        yield
    except OSError as error:
        reason = f'{error.strerror or error}{seen_from(path)}'
        raise kind(f'{shown(path)}: {reason}' + (f': {remedy}' if remedy else '')) from None
