"""Files that are not what their names say, recognized by their first bytes; and the remedy."""

READ = 64  # bytes that `what_it_is` needs
KNOWN = {  # the first bytes, in lower case: what the file is, and the remedy
    b'version https://git-lfs': 'a git-LFS pointer, not the file itself: run `git lfs pull`',
    b'<!doctype html': 'a web page saved under this name: download the file again',
    b'<html': 'a web page saved under this name: download the file again',
    b'<?xml': 'an XML document saved under this name: download the file again',
    b'pk\x03\x04': 'a zip archive: unpack it',
    b'\x1f\x8b': 'a gzip archive: unpack it',
    b'rar!': 'a rar archive: unpack it',
    b'7z\xbc\xaf': 'a 7z archive: unpack it',
    b'\xd0\xcf\x11\xe0': 'a document of an old office program: save it as CSV (UTF-8)',
    b'%pdf': 'a PDF document',
}


def what_it_is(head: bytes) -> str | None:
    """What a file is that begins with `head`, and the remedy; None if nothing is known."""
    start = head.removeprefix(b'\xef\xbb\xbf').lstrip().lower()
    return next((text for first, text in KNOWN.items() if start.startswith(first)), None)
