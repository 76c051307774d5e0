"""Benchmarks from raw photographs: each face is found, aligned and kept as a file of its own."""

import hashlib
import os
from pathlib import Path

import numpy as np

from recognition.alignment import align, middle, open_photograph
from recognition.detection import Detector, choose_face
from recognition.embedding import digest_of
from storage.images import some
from system.processes import each
from system.progress import progress
from utils import DataError, write_whole

SIDE = 112  # of the faces that are kept; a network of 96 columns sees their middle
NOT_FOUND = '-middle'  # ends the names of those that are the middle of their photograph


def align_files(
    sources: list[str], names: list[str], folder: Path, workers: int
) -> tuple[list[str], np.ndarray]:
    """The paths of the aligned faces (PNG, 112 × 112) of N photographs, in their order; and whether
    no face was found, bool (N,): then the middle of the photograph is taken, as the field does. Of
    several faces the one nearest to the middle counts, which is who LFW's photographs are named
    after. Faces are kept in `folder` under path, size and time of the photograph. Raises DataError
    if photographs are missing or can't be read."""
    digest_of(sources, names)
    folder.mkdir(parents=True, exist_ok=True)
    stems, kept = [_stem(source) for source in sources], set(os.listdir(folder))
    there = [bool(kept & {f'{stem}.png', f'{stem}{NOT_FOUND}.png'}) for stem in stems]
    jobs = zip(sources, stems, there, strict=True)
    todo = [(source, str(folder / stem)) for source, stem, done in jobs if not done]
    if todo:
        reasons = each(_keep_face, todo, Detector(), Detector, workers)
        bad = [x for x in progress(reasons, 'faces', len(todo), unit=' photographs') if x]
        if bad:
            raise DataError(f"{len(bad)} of {len(sources)} photographs can't be read: {some(bad)}")
        kept = set(os.listdir(folder))
    missed = np.array([f'{stem}{NOT_FOUND}.png' in kept for stem in stems])
    ends = [f'{NOT_FOUND * bool(miss)}.png' for miss in missed]
    return [str(folder / (stem + end)) for stem, end in zip(stems, ends, strict=True)], missed


def _stem(source):
    """The name that a photograph's face is kept under."""
    stat = os.stat(source)
    # a face that another detector found is another
    path = os.fsencode(os.path.abspath(source))
    key = b'YuNet\0%s\0%d\0%d' % (path, stat.st_size, stat.st_mtime_ns)
    return hashlib.sha256(key).hexdigest()[:32]


def _keep_face(detector: Detector, job: tuple[str, str]) -> str | None:
    """Writes the face of one photograph; what is wrong with the photograph, None if nothing is."""
    source, target = job
    try:
        image = open_photograph(source)
    except DataError as error:
        return str(error)
    faces = detector.find(image)
    if faces:
        face = align(image, choose_face(faces, image.size, 'central').points, SIDE)
    else:
        face, target = middle(image, SIDE), target + NOT_FOUND
    write_whole(f'{target}.png', lambda temporary: face.save(temporary, 'PNG'))
    return None
