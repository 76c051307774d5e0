"""Ages from .mat files, as published sets have them: IMDB-WIKI, CACD2000, or columns of one's own.

wiki.mat, imdb.mat       a struct with full_path, dob (days since year 0), photo_taken (year)
celebrity2000_meta.mat   structs, of which one has name (the file's) and age
any other                variables, or the fields of a struct: path, and age or birth and taken
"""

import datetime
import io
import os

import numpy as np

from utils import DataError

PATHS = ('full_path', 'path', 'name')  # the first that is there; IMDB's name is the person's
FIELDS = {'age': 'age', 'dob': 'birth', 'birth': 'birth', 'photo_taken': 'taken', 'taken': 'taken'}


def read_mat(file: str | os.PathLike, data: bytes) -> list[list[str]]:
    """Rows of text, as of a CSV file, the first of which names the columns. Raises DataError."""
    from scipy.io import loadmat  # slow to import

    try:
        variables = loadmat(io.BytesIO(data), squeeze_me=True)
    except Exception as error:  # of any kind, if the file is damaged
        reason = f'not readable as a .mat file ({" ".join(str(error).split())})'
        remedy = "save it in MATLAB with '-v7', or path and age as CSV"
        raise DataError(f'{file}: {reason}: {remedy}') from None
    values = [value for value in variables.values() if isinstance(value, np.ndarray)]
    structs = [value for value in values if value.dtype.names and value.size]
    tables = [dict(zip(x.dtype.names, x.reshape(-1)[0], strict=True)) for x in structs]
    for columns in [variables, *tables]:
        path = next((name for name in PATHS if name in columns), None)
        known = [name for name in FIELDS if name in columns]
        # CACD2000 has a second struct, of people: name and birth
        if path and ('age' in known or path != 'name' and {'dob', 'birth'} & set(known)):
            texts = []
            for name in (path, *known):
                texts.append([_text(name, value) for value in np.atleast_1d(columns[name])])
            if len(set(map(len, texts))) == 1:
                titles = ['path', *(FIELDS[name] for name in known)]
                return [titles, *map(list, zip(*texts, strict=True))]
    names = ', '.join(name for name in variables if not name.startswith('__')) or 'nothing'
    form = 'full_path, path or name, the file names, with age, or dob and photo_taken'
    raise DataError(f'{file}: holds {names}; expected {form}: save path and age as CSV')


def _text(name, value):
    if isinstance(value, np.ndarray):  # a cell that holds one
        value = value.reshape(-1)[0] if value.size else ''
    if isinstance(value, str):
        return value.strip()
    if name == 'dob' and np.isfinite(value):
        days = int(value) - 366  # MATLAB counts days from the year 0, Python from the year 1
        return str(datetime.date.fromordinal(days)) if days > 0 else ''
    return f'{float(value):g}' if np.isfinite(value) else ''
