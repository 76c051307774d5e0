"""Files that are not what their names say, known by their first bytes; and the remedy."""

KNOWN = {  # the first bytes: what it is, and the remedy
    b'version https://git-lfs': 'a git-LFS pointer, not the file itself: run `git lfs pull`',
    b'<!doctype html': 'a web page saved under this name: download the file again',
    b'<html': 'a web page saved under this name: download the file again',
    b'PK\x03\x04': 'a zip archive: unpack it',
    b'\x1f\x8b': 'compressed by gzip: unpack it',
    b'Rar!': 'a rar archive: unpack it',
    b'7z\xbc\xaf': 'a 7z archive: unpack it',
    b'%PDF': 'a PDF document',
}
READ = 64  # bytes that `what` wants to see


def what(head: bytes) -> str | None:
    """What a file is that begins so, and the remedy; None where nothing is known."""
    start = head.lstrip().lower()
    return next(
        (
            text
            for first, text in KNOWN.items()
            if head.startswith(first) or start.startswith(first.lower())
        ),
        None,
    )
