"""Pictures of a set of faces: the contact sheet, the ages."""
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from storage.images import HEIGHT, WIDTH, some
from utils import write_whole


def contact_sheet(people, path, rows=12, columns=8):
    """Faces as a JPEG: a row a person, the age on each, of {person: [(file, age), …]}; people and faces are picked evenly."""
    names = [sorted(people)[k] for k in _evenly(len(people), rows)]
    margin, line = 8, 16
    font = ImageFont.load_default(13)
    sheet = Image.new('RGB', (2 * margin + columns * (WIDTH + 4), 2 * margin + len(names) * (HEIGHT + 2 * line)), 'white')
    draw = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        faces = sorted(people[name], key=lambda face: (face[1], face[0]))
        top = margin + row * (HEIGHT + 2 * line)
        draw.text((margin, top), f'{some([name])[:80]}  ({len(faces)})'.encode('ascii', 'replace').decode(), 'black', font)
        for column, k in enumerate(_evenly(len(faces), columns)):
            file, age = faces[k]
            left = margin + column * (WIDTH + 4)
            with Image.open(file) as face:
                sheet.paste(face, (left, top + line))
            draw.text((left + 4, top + line + 3), f'{age:g}', 'white', font, stroke_width=1, stroke_fill='black')
    write_whole(path, lambda temporary: sheet.save(temporary, 'JPEG', quality=90))


def _evenly(count, most):
    return range(count) if count <= most else np.linspace(0, count - 1, most).round().astype(int).tolist()


def draw_histograms(sets, cutoffs, path):
    """Of {name: (ages (n,), images a person (p,))}: how many images at each age, with the bounds of the age groups, and a person."""
    figure = Figure(figsize=(11, 3.2 * len(sets)), layout='constrained')
    for (name, (ages, counts)), (left, right) in zip(sets.items(), figure.subplots(len(sets), 2, squeeze=False, width_ratios=(2, 1))):
        ages = np.asarray(ages)
        left.hist(ages, np.arange(-.5, max(100, ages.max(initial=0)) + 1), color='#4c72b0')
        for cutoff in cutoffs:
            left.axvline(cutoff + .5, color='grey', linestyle=':', linewidth=1)
        left.set(xlabel='age in years; dotted: the bounds of age_cutoffs', ylabel='images', title=f'{name}: {len(ages):,} images', xlim=(-1, 101))
        most = max(counts, default=1)
        right.hist(counts, np.geomspace(1, most + 1, 25) if most > 30 else np.arange(.5, most + 1), color='#55a868')
        right.set(xlabel='images of a person', ylabel='people', title=f'{len(counts):,} people')
        if most > 30:
            right.set_xscale('log')
        else:
            right.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axis in (left, right):
            axis.grid(alpha=.3)
    write_whole(path, lambda temporary: figure.savefig(temporary, format='png', dpi=110))
