"""`verify.py --group`: the people of an archive, in files that a person may correct, as
docs/verify.md says.
"""

import contextlib
import functools
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

import utils
from preparation.labels import taken_on, years_between
from system.names import shown
from system.progress import progress
from utils import DataError, UserError
from verification import grouping
from verification.grouping import LogOdds, probability
from verification.index import Index
from verification.matcher import Matcher
from verification.people_files import COLUMNS, PAIRS, by_group, read_people, write_table

XMP_DATE = re.compile(
    rb'(?:exif:DateTimeOriginal|photoshop:DateCreated|xmp:CreateDate)(?:="|>)([-0-9:]{4,10})'
)
SLOPE = 15  # of the log-odds over similarity, if only a threshold is known: typical of cosines
UNLIKELY, SUGGESTED = 0.02, 200  # the least P that is suggested, and how many pairs


def _corrections(path, archive):
    """What people.csv and the suggestions beside it say: {face: its row}, to which `label` is
    added, its group after all joining, and `key`: ('name', a name), ('group', a label), or None if
    it is open whose face it is; the suggestions that were answered with no; lines to print."""
    if path is None:
        return {}, [], []
    table, (joined, answers) = read_people(path), _answers(path.with_name('suggestions.csv'))
    names: dict[str, set[str]] = defaultdict(set)
    for row in table:
        row['group'] = _label(row['group'])
        row['label'] = joined.get(row['group'], row['group'])
        if row['label'] and row['name']:
            names[row['label']].add(row['name'])
    for label in {*joined.values()}:
        if len(names[label]) > 1:
            raise DataError(f'{path}: group {label} is of {" and ".join(sorted(names[label]))}')
    faces, rows, lost = faces_by_place(archive), {}, 0
    for row in table:
        whose = {row['name']} if row['name'] else names[row['label']]
        row['key'] = ('group', row['label']) if row['label'] else None
        if whose:  # of a group of two names, the rows without one are open
            row['key'] = ('name', *whose) if len(whose) == 1 else None
        face = faces.get((row['photograph'], row['box']))
        lost += face is None
        if face is not None:
            rows[face] = row
    notes = [f'{path}: {lost} rows are of no face of this archive: not used'] if lost else []
    return rows, answers, notes


def _label(text):
    """A spreadsheet may write 12 as 12.0."""
    return re.sub(r'\.0+$', '', text)


def _answers(path):
    """{label: the label that it becomes} of the suggestions with a yes; those with a no."""
    joined: dict[str, str] = {}
    answers = []
    for row in read_people(path, PAIRS[:3]) if path.exists() else []:
        labels = (_label(row[name]) for name in ('first', 'second'))
        two = {joined.get(label, label) for label in labels}
        if row['accept'].lower() in ('yes', 'y', '1', 'x'):
            same = [label for label, now in joined.items() if now in two]
            joined |= dict.fromkeys([*same, *two], min(two, key=lambda x: (len(x), x)))
        elif row['accept']:
            answers.append(row)
    return joined, answers


def _births(rows, path):
    """{key: date} of those whose date of birth is known."""
    born: dict[tuple[str, str], str] = {}
    for row in rows.values():
        key, date = row['key'], row['born']
        if key and date and born.setdefault(key, date) != date:
            raise DataError(f'{path}: {key[1]} is born {born[key]} and {date}: correct one')
    return born


def _numbers(found, rows):
    """{group: its number} of groups (N,) that were found, and what to say of numbers that are gone.
    Who has most faces of a number keeps it; new numbers follow, the largest group first."""
    votes: Counter[tuple[int, int]] = Counter()
    before: dict[int, int] = {}  # the group that faces of a number are in now
    for face, row in rows.items():
        if row['group'].isdecimal():
            before[int(row['group'])] = int(found[face])
        if row['key'] and row['label'].isdecimal():
            votes[int(found[face]), int(row['label'])] += 1
    numbers: dict[int, int] = {}
    kept = set[int]()
    for (k, number), _ in votes.most_common():
        if k not in numbers and number not in kept:
            numbers[k] = number
            kept.add(number)
    new = (k for k, _ in Counter(found.tolist()).most_common() if k not in numbers)
    numbers |= {k: number for number, k in enumerate(new, max([0, *before, *kept]) + 1)}
    gone = sorted(before.keys() - kept)
    return numbers, [f'group {x} is now of group {numbers[before[x]]}' for x in gone]


def place_of(archive: Index, face: int) -> tuple[str, str]:
    """The columns `photograph` and `box`, by which a face is known however the index grows."""
    box = ' '.join(f'{side:.0f}' for side in archive.faces['box'][face])
    return shown(archive.name(face)), box


@functools.lru_cache(maxsize=1)
def faces_by_place(archive: Index) -> dict[tuple[str, str], int]:
    """{photograph and box: the face's row} of an index."""
    return {place_of(archive, face): face for face in range(len(archive))}


def log_odds(matcher: Matcher, embeddings: np.ndarray, ages: np.ndarray) -> LogOdds:
    """By the decision of the weights, on ages if it has them. Raises UserError if it has none."""
    decision = matcher.decision
    if decision.threshold is None:
        what = 'holds no threshold, so nothing says which faces are one person'
        remedy = '--calibrate NAME makes one from people of your own, --threshold T gives one'
        raise UserError(f'{matcher.info.path}: {what}: {remedy}')
    genuine, impostor = decision.genuine, decision.impostor
    if decision.given or genuine is None or impostor is None:
        return LogOdds(embeddings, ages, None, decision.threshold, SLOPE)
    slope = float(2 * (genuine.mean() - impostor.mean()) / (genuine.var() + impostor.var()))
    return LogOdds(embeddings, ages, decision.ages, decision.threshold, max(slope, 1.0))


def group_archive(
    matcher: Matcher,
    archive: Index,
    out: Path,
    kept: Path | None = None,
    named: Index | None = None,
    sure: float = 0.5,
    same_photograph: bool = False,
    suggest: bool = False,
) -> tuple[list[dict], list[str]]:
    """Groups the faces of an archive; writes people.csv, people.json, suggestions.csv into `out`.

    Corrections are read from `kept`, else from `out`. `named` is an index of people enrolled by
    name. Returns the rows of people.csv and lines to print. Raises UserError or DataError before
    anything is written.
    """
    kept = kept or (out / 'people.csv' if (out / 'people.csv').exists() else None)
    (known, answers, said), count = _corrections(kept, archive), len(archive)
    keys, born = [known.get(face, {}).get('key') for face in range(count)], _births(known, kept)
    taken = {face: row['taken'] for face, row in known.items() if row['taken']}
    dates = {**_dates(archive), **taken} if born else taken
    embeddings, faces = archive.embeddings, archive.faces
    if named is not None:
        whose = map(named.person, range(len(named)))
        keys += [('name', person) if person else None for person in whose]
        embeddings = np.concatenate([embeddings, named.embeddings])
        faces = np.concatenate([faces, named.faces])
    ages = np.where(faces['group'] < 0, np.nan, faces['age']).astype(float)
    never, absurd = _use_dates(ages, keys, born, dates)
    never += [] if same_photograph else archive.in_one_photograph().tolist()
    apart = np.array(never, int).reshape(-1, 2)
    first: dict[tuple, int] = {}
    start = [k if key is None else first.setdefault(key, k) for k, key in enumerate(keys)]
    fixed = np.array([key is not None for key in keys])
    pairs = log_odds(matcher, embeddings, ages)
    found = grouping.cluster(pairs, np.array(start), apart, fixed, sure)
    rest, other, value = grouping.belonging(pairs, found)
    (numbers, moved), groups = _numbers(found[:count], known), int(found.max()) + 1
    keyed = {int(found[k]): key for k, key in enumerate(keys) if key}
    now = [keyed.get(int(k)) for k in found[:count]]
    _use_dates(ages, now, born, dates)  # of faces that have joined a person, too
    rows = []
    for k, key in enumerate(now):
        near = numbers.get(int(other[k]), '')
        name = key[1] if key and key[0] == 'name' else ''
        values = [k, *place_of(archive, k), numbers[int(found[k])], name]
        values += [_rounded(ages[k], 1), _rounded(probability(rest[k], groups))]
        values += [near, _rounded(probability(value[k], groups)) if near else '']
        values += [born.get(key, '') if key else '', dates.get(k, '')]
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    if suggest:
        answers += _suggestions(pairs, found, other, numbers, keyed, apart, rows, answers)
    rows.sort(key=lambda row: (row['group'], row['age'] == '', row['age'] or 0, row['face']))
    out.mkdir(parents=True, exist_ok=True)
    facts = {'archive': archive.root, 'weights_sha256': matcher.info.sha256, 'sure': sure}
    utils.write_json(facts | {'groups': by_group(rows)}, out / 'people.json')
    write_table(out / 'people.csv', COLUMNS, rows)
    table = out / 'suggestions.csv'
    if suggest or answers or table.exists():
        write_table(table, PAIRS, answers)
    said += [*moved, *absurd, *_said(rows, out)]
    if suggest:
        said.append(f'{table}: {len(answers)} pairs of groups that may be one person')
    return rows, said


def _dates(archive):
    """{face: when its photograph was taken}, by EXIF or XMP, in the file or beside it."""
    dates, photographs = {}, archive.faces['photograph'].tolist()
    for number in progress(sorted({*photographs}), 'dates', unit=' photographs'):
        path = Path(archive.root, archive.rows[number][0])
        date = taken_on(str(path))
        for file in (path, Path(f'{path}.xmp'), path.with_suffix('.xmp')):
            if date is None and file.is_file():
                with open(file, 'rb') as opened:
                    match = XMP_DATE.search(opened.read(2**19))
                date = match[1].decode() if match else None
        if date:
            dates[number] = date[:10].replace(':', '-')
    return {face: dates[number] for face, number in enumerate(photographs) if number in dates}


def _use_dates(ages, keys, born, dates):
    """Sets the ages that birth and photograph make exact. Returns pairs of faces that can't be one
    person, because one of them was born later, and a line on each person with dates that can't be.
    """
    never, notes = [], {}
    for key, date in born.items():
        one = keys.index(key)
        for k, taken in dates.items():
            try:
                age = years_between(date, taken)
                if keys[k] == key:
                    ages[k] = age
            except ValueError as error:
                if keys[k] == key:
                    what = f'{key[1]}, born {date}, on a photograph taken {taken}: {error}'
                    notes[key] = f'{what}: its age is an estimate; correct `born` or `taken`'
                    continue
                with contextlib.suppress(ValueError):
                    years_between(taken, date)  # so that it was taken before
                    never.append((one, k))
    return never, notes.values()


def _suggestions(pairs, found, other, numbers, keyed, apart, rows, answers):
    """Rows of PAIRS of the groups that are most likely one person, unless faces or answers forbid
    it."""
    near = {(min(two), max(two)) for two in zip(found.tolist(), other.tolist(), strict=True)}
    near -= {tuple(pair) for pair in np.sort(found[apart], 1).tolist()}
    named = {k for k, key in keyed.items() if key[0] == 'name'}
    asked = [{row['first'], row['second']} for row in answers]
    near = [two for two in sorted(near) if numbers.keys() >= {*two} and not named >= {*two}]
    near = [two for two in near if {str(numbers[k]) for k in two} not in asked]
    first, second = np.array(near, int).reshape(-1, 2).T
    sizes = np.bincount(found)
    value = grouping.evidence(pairs.means(found, first, second), sizes[first], sizes[second])
    likely = probability(value, len(sizes))
    result = []
    for k in np.argsort(-likely, kind='stable')[:SUGGESTED]:
        if likely[k] < UNLIKELY:
            break
        two = sorted(near[k], key=numbers.__getitem__)
        faces = [np.flatnonzero(found[: len(rows)] == group) for group in two]
        scores = pairs.embeddings[faces[0]] @ pairs.embeddings[faces[1]].T
        i, j = np.unravel_index(scores.argmax(), scores.shape)
        nearest = rows[faces[0][i]], rows[faces[1][j]]
        ages = [[rows[face]['age'] for face in here if rows[face]['age'] != ''] for here in faces]
        gap = _rounded(abs(np.mean(ages[0]) - np.mean(ages[1])), 0) if all(ages) else ''
        values = ['', *(numbers[group] for group in two), _rounded(likely[k]), gap]
        values += [row[column] for row in nearest for column in ('face', 'photograph')]
        result.append(dict(zip(PAIRS, values, strict=True)))
    return result


def _said(rows, out):
    sizes = Counter(row['group'] for row in rows)
    alone = sum(size == 1 for size in sizes.values())
    groups = f'{len(sizes) - alone} groups of two or more, {alone} alone'
    yield f'{out}/people.csv: {len(rows)} faces in {groups}'
    if sure := [row['probability'] for row in rows if row['probability'] != '']:
        below = f'below 0.9 for {sum(p < 0.9 for p in sure)} of {len(sure)} faces'
        yield f'P of belonging: {np.median(sure):.3f} in the middle, {below}'


def _rounded(value, digits=3):
    return round(float(value), digits) if np.isfinite(value) else ''
