"""Names of files as people read them, whatever bytes a disk holds."""

import os


def shown(name: str | bytes | os.PathLike) -> str:
    """A path or name on one line, in characters that every font, log and CSV file can hold. Bytes
    that are no UTF-8 (a Latin-1 name, a NAS's) and control characters are written as \\xe9, \\n …
    Any other name is returned as it is."""
    text = os.fsencode(name).decode('utf-8', 'backslashreplace')
    escaped = (x if x.isprintable() else x.encode('unicode_escape').decode() for x in text)
    return text if text.isprintable() else ''.join(escaped)
