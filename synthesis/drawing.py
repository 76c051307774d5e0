"""Drawn faces of known identity and age, and sets of them.

`draw(identity, age, shot)` is a pure function. Identity decides bones, colours and hair; age
decides proportions, wrinkles and grey; shot decides what a photographer would: pose, light,
expression, glasses, background, camera. Lengths are in pixels of the 112 high x 96 wide crop."""

import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
from PIL import Image

from synthesis.face import DrawnFace
from synthesis.features import brows, eyes, glasses, hairdo, mouth, nostrils_and_moles
from synthesis.skin import beard, behind, complexion
from system.progress import progress

LAYERS = behind, complexion, beard, eyes, brows, nostrils_and_moles, mouth, hairdo, glasses


def draw(identity: int, age: float, shot: int) -> np.ndarray:
    """One face -> uint8 (112, 96, 3), RGB. identity, shot: integers >= 0; age: years, 0..90."""
    face = DrawnFace(identity, age, shot)
    for paint in LAYERS:  # from back to front
        paint(face)
    return face.photograph()


def write_person(folder: str, identity: int, ages: list[int]) -> None:
    """One folder of JPEGs, 000_[age].jpg on; the shot number is the image's place."""
    os.makedirs(folder)
    for k, age in enumerate(ages):
        path = os.path.join(folder, f'{k:03d}_{age}.jpg')
        Image.fromarray(draw(identity, age, k)).save(path, quality=95, subsampling=0)


def draw_set(
    root: str | os.PathLike,
    people: int = 400,
    val_people: int = 100,
    images: int = 10,
    val_images: int = 12,
    span: float = 4,
    seed: int = 0,
) -> None:
    """Write root/train and root/val, which share nobody.

    A training person is seen within `span` years, a validation person over a whole life. root must
    not exist; it appears when everything in it has been written. Every person is drawn from (seed,
    number) alone, by as many processes as there are processors."""
    root = os.path.abspath(root)
    if os.path.exists(root):
        raise FileExistsError(f'{root} exists already; remove it or choose another folder')
    building = f'{root}.{os.getpid()}.tmp'
    jobs = []
    for number in range(people + val_people):
        rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
        if number < people:
            ages = rng.uniform(3, 80) + span * rng.uniform(-0.5, 0.5, images)
        else:
            ages = np.linspace(3, 85, val_images) + rng.uniform(-2, 2, val_images)
        ages = np.clip(np.rint(ages), 0, 90).astype(int).tolist()
        folder = os.path.join(building, 'train' if number < people else 'val', f'p{number:05d}')
        jobs.append((folder, int(rng.integers(2**62)), ages))
    # a process takes longer to start than a few people to draw
    workers = min(os.cpu_count() or 1, 1 + len(jobs) // 16)
    columns = list(zip(*jobs, strict=True))
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context('spawn')) as pool:
            here = map(write_person, *columns)  # and no process is started
            drawn = pool.map(write_person, *columns, chunksize=4) if workers > 1 else here
            list(progress(drawn, 'drawing', len(jobs), unit=' people'))
        os.rename(building, root)
    except OSError as error:
        error.filename, error.filename2 = root, None  # what the user knows
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
