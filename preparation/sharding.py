"""From faces to tar shards: every image copied byte for byte, shuffled, resumable."""

import functools
import glob
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

import utils
from storage.files import sweep
from storage.shards import library
from system.progress import progress
from utils import DataError

PER_SHARD = 10_000  # faces, 50 to 100 MB of them: what a network file system reads well in one go


def write_shards(
    faces: Any, target: str | Path, per_shard: int = PER_SHARD, seed: int = 0, replace: bool = False
) -> str:
    """Writes `faces` as target-00000.tar, target-00001.tar …; returns their pattern for meta.py.

    `faces` are Faces, or what else has their classes, labels, ages, places, source, fingerprint and
    encoded images. Every image is checked, then copied, `per_shard` in a shard, in an order that
    `seed` shuffles: a shard is a sample of the whole. A call that was interrupted goes on with the
    shard it was at, by target.json. Raises DataError if an image can't be read, or if there are
    other shards of that name, unless they are to be replaced; OSError if there is no room.
    """
    library()  # before any work, the line that it is missing
    target, shards = Path(target), -(-len(faces) // per_shard)
    width = max(5, len(str(shards - 1)))
    pattern = f'{target}-{{{0:0{width}}..{shards - 1:0{width}}}}.tar'
    plan = {'pattern': Path(pattern).name, 'faces': len(faces), 'people': len(faces.classes)}
    plan |= {'per_shard': per_shard, 'seed': seed, 'fingerprint': faces.fingerprint}
    about = target.with_name(f'{target.name}.json')
    there = sorted(target.parent.glob(f'{glob.escape(target.name)}-{"[0-9]" * 5}*.tar'))
    try:
        same = json.loads(about.read_text()) == plan
    except (OSError, ValueError):
        same = not there and not about.exists()
    if replace and not same:
        print('The shards are written anew: ages or faces changed')
        for path in [*there, about]:
            path.unlink(missing_ok=True)
        there = []
    elif not same:
        taken = 'there are shards of this name already, of other faces or another number in each'
        raise DataError(f'{(there or [about])[0]}: {taken}: choose another name')
    faces.check(cache=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, f'.{glob.escape(target.name)}-*.tar.*.tmp')
    utils.write_json(plan, about)
    order = np.random.default_rng(seed).permutation(len(faces))
    with progress(None, f'writing {pattern}', len(faces), unit=' faces', leave=True) as bar:
        for shard in range(shards):
            path = Path(f'{target}-{shard:0{width}}.tar')
            indices = order[shard * per_shard : (shard + 1) * per_shard]
            if path not in there:
                utils.write_whole(path, functools.partial(_write, faces, indices))
            bar.update(len(indices))
    return pattern


def _write(faces, indices, path):
    with open(path, 'wb') as file, library().TarWriter(file, encoder=False, mtime=0) as tar:
        for index in indices:
            name = faces.source.name(faces.places[index])
            person = faces.classes[faces.labels[index]]
            about = {'identity': person, 'age': float(str(faces.ages[index])), 'file': name}
            sample = {'__key__': f'{index:09d}', 'json': json.dumps(about).encode()}
            suffix = os.path.splitext(name)[1][1:].lower()
            tar.write({suffix: faces.encoded(index)} | sample)
