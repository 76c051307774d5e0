"""A set of faces examined before somebody trains on it: what is in it, what is wrong with it, what to do."""
import csv
import hashlib
import keyword
import os
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm

from evaluation.extraction import extract_files
from preparation.pictures import draw_histograms
from storage.images import HEIGHT, WIDTH, decode, parse_age, some
from training.checkpoint import load_weights
from utils import DataError, UserError, write_whole

GREY, BLUISH = 2, -4  # mean difference of the channels below which a face is grey; red − blue of its middle below which it is hardly skin
SAME_IMAGE = .99      # cosine of embeddings above which two files show one photograph


class Face(NamedTuple):
    """A file of the set; `wrong` says why it can't be trained on. `pixels` is a hash of them, `redness` red − blue in the middle of the face."""
    person: str
    name: str
    age: float | None
    wrong: str
    pixels: str
    grey: bool
    redness: float


class Part:
    """The faces of one root: `faces`, `people` {name: faces}, `empty` folders and `others`, files that nobody will read."""

    def __init__(self, root, pat, pos, workers):
        self.root, self.empty, self.others = str(root), [], []
        if not os.path.isdir(self.root):
            raise DataError(f'{self.root}: no such folder: expected one with a folder per person')
        todo = []
        for folder in sorted(os.listdir(self.root)):
            if folder.startswith('.') or not os.path.isdir(os.path.join(self.root, folder)):
                self.others.append(folder)
                continue
            names = sorted(os.listdir(os.path.join(self.root, folder)))
            images = [name for name in names if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith('.')]
            self.others += [f'{folder}/{name}' for name in names if name not in set(images)]
            self.empty += [] if images else [folder]
            todo += [(folder, name) for name in images]
        if not todo:
            raise DataError(f'{self.root}: no images; expected {self.root}/<identity>/000_[age].jpg')
        with ThreadPoolExecutor(workers) as pool:
            self.faces = list(tqdm(pool.map(lambda item: self._look(*item, pat, pos), todo), f'reading {self.root}', len(todo), leave=False,
                                   unit=' faces', disable=None))
        self.people = defaultdict(list)
        for face in self.faces:
            self.people[face.person].append(face)
        self.good = [face for face in self.faces if not face.wrong]

    def path(self, face):
        return os.path.join(self.root, face.person, face.name)

    def _look(self, person, name, pat, pos):
        age, wrong, pixels, grey, redness = None, '', '', False, np.nan
        try:
            age = parse_age(name, pat, pos)
        except ValueError:
            wrong = 'no age in its name'
        try:
            image = decode(Path(self.root, person, name).read_bytes())
        except (OSError, DataError) as error:
            return Face(person, name, age, getattr(error, 'strerror', None) or str(error), pixels, grey, redness)
        values = image.astype(np.int16)
        middle = values[40:100, 24:72].reshape(-1, 3).mean(0)
        return Face(person, name, age, wrong, hashlib.sha256(image.tobytes()).hexdigest(), bool((values.max(2) - values.min(2)).mean() < GREY),
                    float(middle[0] - middle[2]))


def examine(name, entry, cutoffs, out, weights=None, workers=1):
    """The report on a checked entry of meta.py, as text; its picture and lists go to the folder `out`. Raises DataError or UserError."""
    parts = {root: Part(entry[root], entry['pat'], entry['pos'], workers) for root in ('train_root', 'val_root') if entry[root]}
    same = by_content(parts)
    close, akin = by_embedding(parts, weights) if weights else ([], [])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'{out}: {error.strerror}: --out names a folder that can be written') from None
    draw_histograms({part.root: ([face.age for face in part.faces if face.age is not None], list(map(len, part.people.values())))
                     for part in parts.values()}, cutoffs, out / 'ages.png')
    listed = [('file', 'what', 'other', 'cosine')]
    listed += [(part.path(face), face.wrong, '', '') for part in parts.values() for face in part.faces if face.wrong]
    listed += [(a, 'same pixels', b, '') for a, b in same]
    listed += [(a, 'same photograph', b, f'{cosine:.3f}') for a, b, cosine in close]
    listed += [(a, 'same person', b, f'{cosine:.3f}') for a, b, cosine in akin]
    _write_csv(out / 'findings.csv', listed)
    facts = [line for part in parts.values() for line in describe(part, cutoffs)]
    todo = findings(name, entry, parts, same, close, akin, cutoffs)
    return '\n'.join([*facts, f'{out / "ages.png"}: the ages and the images a person; {out / "findings.csv"}: {len(listed) - 1} findings, file by file', '',
                      'To do:' if todo else 'Nothing to do.', *(f'  {number}. {line}' for number, line in enumerate(todo, 1)), '', 'For meta.py:', '',
                      _entry(name, entry, len(parts['train_root'].people) + len(parts['train_root'].empty))])


def describe(part, cutoffs):
    """What is in one root, a few lines."""
    counts = sorted(map(len, part.people.values()))
    ages = np.array([face.age for face in part.faces if face.age is not None])
    spans = [np.ptp(known) for faces in part.people.values() if (known := [face.age for face in faces if face.age is not None])]
    lines = [f'{part.root}: {len(part.people)} people, {len(part.faces)} images, {counts[0]} to {counts[-1]} a person (median {np.median(counts):g})']
    if len(ages):
        groups = np.bincount(np.searchsorted(cutoffs, ages), minlength=len(cutoffs) + 1)
        names = [f'to {cutoff:g}' for cutoff in cutoffs] + [f'over {cutoffs[-1]:g}']
        lines += [f'  ages {ages.min():g} to {ages.max():g}; a person is seen over {np.median(spans):g} years (median), {np.max(spans):g} at most',
                  '  images by age group: ' + ', '.join(f'{group} {count}' for group, count in zip(names, groups))]
    lines += [f'  {len(part.others)} files or folders that training does not read: {some(part.others)}'] if part.others else []
    return lines


def by_content(parts):
    """Pairs of paths with the same pixels; of many alike, each with the first."""
    first, pairs = {}, []
    for part in parts.values():
        for face in part.faces:
            if face.pixels and first.setdefault(face.pixels, part.path(face)) != part.path(face):
                pairs.append((first[face.pixels], part.path(face)))
    return pairs


def by_embedding(parts, weights):
    """What a trained network finds alike: (path, path, cosine) of one photograph twice, and (folder, folder, cosine) of one person twice.

    One photograph: a cosine over SAME_IMAGE. One person: the means of two folders are closer than half of all faces are to the mean of
    the rest of their own folder.
    """
    model, _ = load_weights(weights)
    paths, folders = zip(*((part.path(face), os.path.join(part.root, face.person)) for part in parts.values() for face in part.good))
    embeddings = torch.from_numpy(extract_files(model, paths, torch.device('cpu'), keep=('embedding',), progress=Path(weights).name)[0]['embedding'])
    close = [(paths[a], paths[b], cosine) for a, b, cosine in _above(embeddings, SAME_IMAGE)]
    names, labels = np.unique(folders, return_inverse=True)
    labels, counts = torch.from_numpy(labels), torch.from_numpy(np.bincount(labels))
    sums = torch.zeros(len(names), embeddings.shape[1]).index_add_(0, labels, embeddings)
    several = counts[labels] > 1
    if not several.any():
        return close, []
    rest = torch.nn.functional.normalize(sums[labels[several]] - embeddings[several])
    own = float((rest * embeddings[several]).sum(1).median())
    return close, [(names[a], names[b], cosine) for a, b, cosine in _above(torch.nn.functional.normalize(sums), own)]


def _above(vectors, threshold, block=1024):
    """(i, j, cosine), i < j, of unit vectors (n, d) closer than the threshold, the closest first."""
    found = []
    for start in tqdm(range(0, len(vectors), block), 'comparing', leave=False, disable=None):
        cosines = (vectors[start:start + block] @ vectors[start:].T).triu(1)
        found += [(start + int(i), start + int(j), float(cosines[i, j])) for i, j in (cosines > threshold).nonzero()]
    return sorted(found, key=lambda pair: -pair[2])


def findings(name, entry, parts, same, close, akin, cutoffs):
    """The list of what to do, the gravest first; empty where all is well."""
    todo = []
    train, val = parts['train_root'], parts.get('val_root')
    folder_of = {part.path(face): (root, face.person) for root, part in parts.items() for face in part.faces}
    for part in parts.values():
        reasons = Counter(re.sub(r'\(.*\)', '', face.wrong).strip() for face in part.faces if face.wrong)
        for reason, count in reasons.most_common(5):
            names = some([f'{face.person}/{face.name}' for face in part.faces if face.wrong.startswith(reason)])
            remedy = "rename them, or mend 'pat' and 'pos'" if 'age' in reason else f'align them to {HEIGHT} high × {WIDTH} wide (prepare.py), or remove them'
            todo.append(f'{part.root}: {count} of {len(part.faces)} images: {reason}: {names}: {remedy}')
        if part.empty:
            todo.append(f'{part.root}: {len(part.empty)} folders without an image: {some(part.empty)}: fill or remove them')
    people = len(train.people) + len(train.empty)
    if entry['n_cls'] != people:
        todo.append(f"'n_cls' is {entry['n_cls']}, the folders in train_root are {people}: paste the entry below")
    across = [(a, b) for a, b in same if folder_of[a][1] != folder_of[b][1]]
    leaked = [(a, b) for a, b in same if folder_of[a][0] != folder_of[b][0]]
    within = len(same) - len({*across, *leaked})
    if leaked:
        todo.append(f'{len(leaked)} images are in train_root and in val_root: {some([b for _, b in leaked])}: remove them from one')
    if across:
        todo.append(f'{len(across)} images are in the folders of two people: {some([f"{a} = {b}" for a, b in across])}: remove the wrong one')
    if within:
        todo.append(f'{within} images are twice in the folder of their person: remove the copies (findings.csv)')
    fresh = [(a, b) for a, b, _ in close if (a, b) not in set(same)]
    if fresh:
        todo.append(f'{len(fresh)} pairs look like one photograph: {some([f"{a} ~ {b}" for a, b in fresh])}: keep one of each')
    if akin:
        todo.append(f'{len(akin)} pairs of folders may be of one person: {some([f"{a} ~ {b} ({cosine:.2f})" for a, b, cosine in akin])}: '
                    'look at them, and join what is one')
    if val:
        both = sorted(train.people.keys() & val.people.keys())
        if both and len(both) < len(val.people):
            todo.append(f'{len(both)} of the {len(val.people)} people of val_root are in train_root too: {some(both)}: '
                        'all of them (closed set) or none (verification) makes a figure that can be read')
    else:
        todo.append('val_root is None: move a tenth of the folders there, or nothing tells whether the training works')
    for part in parts.values():
        todo += _colours(part)
        alone = [person for person, faces in part.people.items() if len(faces) == 1]
        if len(alone) > .1 * len(part.people):
            todo.append(f'{part.root}: {len(alone)} of {len(part.people)} people have one image, {some(alone)}: they teach nothing of '
                        'ageing; add images, or leave them out')
        known = [face.age for face in part.faces if face.age is not None]
        missing = sorted(set(range(len(cutoffs) + 1)) - set(np.searchsorted(cutoffs, known).tolist()))
        if known and missing and part is train:
            names = [f'to {cutoffs[group]:g}' if group < len(cutoffs) else f'over {cutoffs[-1]:g}' for group in missing]
            todo.append(f'{part.root}: no image of the age group {", ".join(names)}: nothing is learnt of it; fewer age_cutoffs, or more images')
    return todo


def _colours(part):
    """What the colours of a root say: grey images, red and blue exchanged."""
    todo, read = [], [face for face in part.faces if face.pixels]
    grey, coloured = [face for face in read if face.grey], [face for face in read if not face.grey]
    blue = [face for face in coloured if face.redness < BLUISH]
    if grey:
        todo.append(f'{part.root}: {len(grey)} of {len(read)} images are grey: {some([f"{face.person}/{face.name}" for face in grey])}: '
                    'no harm if people and ages are as mixed among them as elsewhere')
    if len(blue) > .5 * len(coloured):
        todo.append(f'{part.root}: faces are bluer than skin in {len(blue)} of {len(coloured)} images: red and blue are probably exchanged '
                    '(written by a program that counts BGR): write them again')
    elif blue:
        todo.append(f'{part.root}: {len(blue)} of {len(coloured)} images are bluer than skin, {some([f"{face.person}/{face.name}" for face in blue])}: '
                    'look whether red and blue are exchanged in them')
    return todo


def identifier(name):
    """A Python name like this one."""
    word = re.sub(r'\W', '_', name, flags=re.ASCII) or '_'
    return f'_{word}' if word[0].isdigit() or keyword.iskeyword(word) else word


def entry(train_root, val_root, pat, pos, n_cls):
    """The text of an entry of meta.py, named after its folder."""
    train_root = os.path.abspath(train_root)
    return _entry(identifier(os.path.basename(train_root)), {'train_root': train_root, 'val_root': val_root, 'pat': pat, 'pos': pos}, n_cls)


def _entry(name, values, n_cls):
    pat = f"r'{values['pat']}'" if "'" not in values['pat'] and not values['pat'].endswith('\\') and values['pat'].isprintable() else repr(values['pat'])
    root, val = (value if value is None else os.fspath(value) for value in (values['train_root'], values['val_root']))
    return '\n'.join([f'{name} = {{', f"    'train_root': {root!r},", f"    'val_root': {val!r},", f"    'pat': {pat},", f"    'pos': {values['pos']},",
                      f"    'n_cls': {n_cls},", '}'])


def _write_csv(path, rows):
    def write(temporary):
        with open(temporary, 'w', newline='', encoding='utf-8', errors='surrogateescape') as file:
            csv.writer(file).writerows(rows)
    write_whole(path, write)
