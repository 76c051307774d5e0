"""What a request's form may hold, checked; what is wrong with it ends the request by abort."""

from flask import abort, request

from storage.images import to_age
from utils import DataError

LARGEST = 16 * 2**20  # bytes of a photograph
SHOWN, MOST_SHOWN = 12, 100  # found faces, by default and at most


def upload(file) -> tuple[str, bytes]:
    """An upload's name, for people, and its bytes."""
    name, data = file.filename.replace('\\', '/').rsplit('/')[-1][:60], file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise DataError(f'{name}: larger than {LARGEST >> 20} MB')
    return name, data


def age(field: str) -> float | None:
    """Years in a field, None where it is empty."""
    text = request.form.get(field, '').strip()
    try:
        return to_age(text) if text else None
    except ValueError as error:
        abort(400, f'{field}: {error}')


def rate(default: float | None) -> float | None:
    """The false accept rate that is asked for."""
    text = request.form.get('far', '').strip()
    try:
        far = float(text) if text else default
    except ValueError:
        far = -1
    if far is not None and not 0 < far < 1:
        abort(400, 'far: a share of pairs between 0 and 1')
    return far


def most() -> int:
    """How many faces are asked for."""
    text = request.form.get('top', str(SHOWN))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MOST_SHOWN:
        abort(400, f'top: a whole number from 1 to {MOST_SHOWN}')
    return int(text)
