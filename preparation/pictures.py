"""Pictures of a set of faces: the contact sheet, the ages."""

import contextlib
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from preparation.survey import Root
from storage.images import HEIGHT, WIDTH, decode, some
from utils import DataError, write_whole

MARGIN, LINE, ROWS, COLUMNS = 8, 16, 12, 8  # of the sheet: pixels, people, faces of each


def contact_sheet(people: Mapping[str, Sequence[tuple]], path: PathLike) -> None:
    """Writes a JPEG of faces of {person: [(file, age), …]}: a row a person, the age on each face.

    Of more than ROWS people or COLUMNS faces, some are picked evenly. A file is a path or the bytes
    of one; an age may be None. What can't be read leaves its place empty.
    """
    names = _evenly(sorted(people), ROWS)
    step = WIDTH + 4, HEIGHT + 2 * LINE
    size = 2 * MARGIN + COLUMNS * step[0], 2 * MARGIN + len(names) * step[1]
    sheet, font = Image.new('RGB', size, 'white'), ImageFont.load_default(13)
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        faces = sorted(people[name], key=lambda face: -1 if face[1] is None else face[1])
        top = MARGIN + row * step[1]
        title = f'{some([name])[:80]}  ({len(faces)})'.encode('ascii', 'replace').decode()
        draw.text((MARGIN, top), title, 'black', font)
        for column, (file, age) in enumerate(_evenly(faces, COLUMNS)):
            left = MARGIN + column * step[0]
            with contextlib.suppress(OSError, DataError):
                data = file if isinstance(file, bytes) else Path(file).read_bytes()
                sheet.paste(Image.fromarray(decode(data)), (left, top + LINE))
            text, place = '' if age is None else f'{age:g}', (left + 4, top + LINE + 3)
            draw.text(place, text, 'white', font, stroke_width=1, stroke_fill='black')
    write_whole(path, lambda temporary: sheet.save(temporary, 'JPEG', quality=90))


def _evenly(items, most):
    if len(items) <= most:
        return items
    return [items[k] for k in np.linspace(0, len(items) - 1, most).round().astype(int)]


def draw_histograms(roots: Sequence[Root], cutoffs: Sequence[float], path: Path) -> None:
    """Writes a PNG: for each root the images at each age, with the bounds of the age groups, and
    how many a person has."""
    from matplotlib.figure import Figure  # slow to import
    from matplotlib.ticker import MaxNLocator

    from evaluation.plots import readable, save

    figure = Figure(figsize=(11, 3.2 * len(roots)), layout='constrained')
    axes = figure.subplots(len(roots), 2, squeeze=False, width_ratios=(2, 1))
    for root, (left, right) in zip(roots, axes, strict=True):
        ages = [face.age for face in root.faces if face.age is not None]
        left.hist(ages, np.arange(-0.5, max(100, *ages, 0) + 1), color='#4c72b0')
        for cutoff in cutoffs:
            left.axvline(cutoff + 0.5, color='grey', linestyle=':', linewidth=1)
        left.set_title(f'{readable(root.root)}: {len(ages):,} images')
        left.set(xlabel='age in years; dotted: age_cutoffs', ylabel='images', xlim=(-1, 101))
        counts = list(map(len, root.people.values()))
        right.hist(counts, np.linspace(0.5, max(counts) + 0.5, min(max(counts), 30) + 1))
        right.set(xlabel='images of a person', ylabel='people', title=f'{len(counts):,} people')
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in (left, right):
            axis.grid(alpha=0.3)
    save(figure, path)
