"""`verify.py --group`: the people of an archive, in files that a person may correct.

OUT/people.csv has a row for each face. Its `group` and `name` may be changed and are read back:
rows of one group, or of one name, stay together, and those of two never come together; an empty
group is decided anew. `born` beside a name makes ages exact, with `taken` or the photograph's date.
OUT/suggestions.csv lists groups that may be one person: `yes` in its column `accept` joins them,
`no` ends the question.
"""

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
from verification.people_files import COLUMNS, PAIRS, read_table, write_table

XMP_DATE = re.compile(
    rb'(?:exif:DateTimeOriginal|photoshop:DateCreated|xmp:CreateDate)(?:="|>)([-0-9:]{4,10})'
)
SLOPE = 15  # of the log-odds over similarity, if only a threshold is known: typical of cosines
UNLIKELY, SUGGESTED = 0.02, 200  # the least P that is suggested, and how many pairs


class Corrections:
    """What people.csv and suggestions.csv say of an archive's faces. keys (N) are ('name', a name),
    ('group', a label) or None; numbers {key: number of its group}; born {key: date}, taken {face:
    date}; answers are the pairs that were answered with no."""

    def __init__(self, path: Path | None, archive: Index):
        self.keys: list[tuple[str, str] | None] = [None] * len(archive)
        self.numbers: dict[tuple[str, str], int] = {}
        self.free = 1  # the first number that no group ever had
        self.born: dict[tuple[str, str], str] = {}
        self.taken: dict[int, str] = {}
        self.answers: list[dict] = []
        self.notes: list[str] = []
        if path is None:
            return
        faces = faces_by_place(archive)
        rows = [(faces.get((row['photograph'], row['box'])), row) for row in read_table(path)]
        lost = sum(face is None for face, _ in rows)
        if lost:
            self.notes.append(f'{path}: {lost} rows are of no face of this archive: not used')
        joined = self._accepted(path.with_name('suggestions.csv'))
        names: dict[str, set] = defaultdict(set)
        for _, row in rows:
            row['label'] = joined.get(_label(row['group']), _label(row['group']))
            names[row['label']] |= {row['name']} - {''}
        for label, found in names.items():
            if len(found) > 1 and label in joined.values():
                raise DataError(f'{path}: group {label} is of {" and ".join(sorted(found))}')
        labels: dict[tuple, Counter] = defaultdict(Counter)
        for face, row in rows:
            known = {row['name']} - {''} or names[row['label']] if row['label'] else {row['name']}
            if len(known) > 1:  # a group of two names: the rows without one are open
                continue
            name = next(iter(known), '')
            key = ('name', name) if name else ('group', row['label']) if row['label'] else None
            if face is not None:
                self.keys[face] = key
                if row['taken']:
                    self.taken[face] = row['taken']
            if key and face is not None:
                labels[key][row['label']] += 1
                if row['born'] and self.born.setdefault(key, row['born']) != row['born']:
                    both = f'{self.born[key]} and {row["born"]}'
                    raise DataError(f'{path}: {key[1]} is born {both}: correct one')
        every = [*(row['label'] for _, row in rows), *joined]
        self.free += max([int(x) for x in every if x.isdecimal()], default=0)
        self._number(labels, joined)

    def _number(self, labels, joined):
        """Each group keeps its number: the most frequent of its rows that is still free."""
        became = {}
        for key, row in sorted(labels.items(), key=lambda item: -max(item[1].values())):
            wanted = [int(x) for x, _ in row.most_common() if x.isdecimal()]
            left = [number for number in wanted if number not in self.numbers.values()]
            self.numbers[key] = left[0] if left else self.free
            self.free += not left
            gone = {*wanted, *(int(x) for x, to in joined.items() if to in row)}
            became |= dict.fromkeys(gone, self.numbers[key])
        for number in sorted(became.keys() - {*self.numbers.values()}):
            self.notes.append(f'group {number} is now of group {became[number]}')

    def _accepted(self, path):
        """{label: the label that it becomes} of the suggestions with a yes."""
        joined: dict[str, str] = {}
        for row in read_table(path, PAIRS[:3]) if path.exists() else []:
            first, second = (joined.get(_label(row[k]), _label(row[k])) for k in PAIRS[1:3])
            answer = row['accept'].lower()
            if answer in ('yes', 'y', '1', 'x'):
                to, gone = sorted((first, second), key=lambda x: (len(x), x))
                joined |= {label: to for label, now in joined.items() if now == gone} | {gone: to}
            elif answer:
                self.answers.append(row)
        return joined


def _label(text):
    """A spreadsheet may write 12 as 12.0."""
    return re.sub(r'\.0+$', '', text)


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


def group(
    matcher: Matcher,
    archive: Index,
    out: Path,
    kept: Path | None = None,
    named: Index | None = None,
    sure: float = 0.5,
    same_photograph: bool = False,
    suggest: bool = False,
) -> tuple[list[dict], list[str]]:
    """Groups the faces of an archive; writes people.csv, people.json and suggestions.csv.

    Corrections are read from `kept`, else from the files in `out`. `named` is an index of people
    enrolled by name; groups merge if P of one person is at least `sure`. Returns the rows of
    people.csv and lines to print. Raises UserError or DataError before anything is written.
    """
    kept = kept or (out / 'people.csv' if (out / 'people.csv').exists() else None)
    known = Corrections(kept, archive)
    keys, embeddings, faces = [*known.keys], archive.embeddings, archive.faces
    if named is not None:
        whose = [named.person(k) for k in range(len(named))]
        keys += [('name', person) if person else None for person in whose]
        embeddings = np.concatenate([embeddings, named.embeddings])
        faces = np.concatenate([faces, named.faces])
    ages = np.where(faces['group'] < 0, np.nan, faces['age']).astype(float)
    dates = {**_dates(archive), **known.taken} if known.born else known.taken
    never = [] if same_photograph else archive.in_one_photograph().tolist()
    never += _use_dates(ages, keys, known.born, dates, known.notes)
    order = {key: k for k, key in enumerate(dict.fromkeys(filter(None, keys)))}
    start = [len(order) + k if key is None else order[key] for k, key in enumerate(keys)]
    fixed = np.array([key is not None for key in keys])
    apart = np.array(never, int).reshape(-1, 2)
    pairs = log_odds(matcher, embeddings, ages)
    found = grouping.group(pairs, np.array(start), apart, fixed, sure)
    rest, other, value = grouping.belonging(pairs, found)
    count = int(found.max()) + 1
    keyed = {int(found[k]): key for k, key in enumerate(keys) if key}
    # those of corrections stay, new ones follow, the largest first
    sizes = Counter(found[: len(archive)].tolist())
    numbers = {k: known.numbers[key] for k in sizes if (key := keyed.get(k)) in known.numbers}
    new = sorted(sizes.keys() - numbers.keys(), key=lambda k: (-sizes[k], k))
    numbers |= {k: number for number, k in enumerate(new, known.free)}
    now = [keyed.get(int(k)) for k in found[: len(archive)]]
    _use_dates(ages, now, known.born, dates, [])
    rows = []
    for k in range(len(archive)):
        key, near = now[k], numbers.get(int(other[k]), '') if other[k] >= 0 else ''
        name = key[1] if key and key[0] == 'name' else ''
        values = [k, *place_of(archive, k), numbers[int(found[k])], name]
        values += [_rounded(ages[k], 1), _rounded(probability(rest[k], count))]
        values += [near, _rounded(probability(value[k], count)) if near else '']
        values += [known.born.get(key, '') if key else '', dates.get(k, '')]
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    answered = {tuple(sorted((row['first'], row['second']))) for row in known.answers}
    suggestions = known.answers if known.answers or (out / 'suggestions.csv').exists() else None
    if suggest:
        new = _suggestions(pairs, found, other, numbers, keyed, apart, rows)
        both = [tuple(sorted((str(row['first']), str(row['second'])))) for row in new]
        open_ = [row for row, pair in zip(new, both, strict=True) if pair not in answered]
        suggestions = known.answers + open_
    rows.sort(key=lambda row: (row['group'], row['age'] == '', row['age'] or 0, row['face']))
    _write(out, archive, matcher, rows, suggestions, sure)
    return rows, known.notes + [*_said(rows, suggestions if suggest else None, out)]


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


def _use_dates(ages, keys, born, dates, notes):
    """Sets the ages that birth and photograph make exact; pairs of faces that can't be one person,
    because one of them was born later."""
    never = []
    persons: dict[tuple, list[int]] = defaultdict(list)
    for k, key in enumerate(keys):
        persons[key].append(k)
    for key, date in born.items():
        here, absurd = set(persons.get(key, [])), []
        for k, taken in dates.items():
            try:
                age = years_between(date, taken)
            except ValueError:
                try:
                    years_between(taken, date)  # so that it was taken before
                except ValueError as error:
                    if k in here:
                        absurd.append(f'{error}')
                    continue
                if k in here:
                    absurd.append(f'taken {taken}')
                elif here:
                    never.append((min(here), k))
            else:
                if k in here:
                    ages[k] = age
        if absurd:
            what = f"{len(absurd)} photographs have a date that can't be ({absurd[0]})"
            remedy = 'the age is an estimate there; correct `born` or `taken`'
            notes.append(f'{key[1]}, born {date}: {what}: {remedy}')
    return never


def _suggestions(pairs, found, other, numbers, whose, apart, rows):
    """Rows of PAIRS of the groups that are most likely one person, of which no face forbids it."""
    near = np.unique(np.sort(np.stack([found, other], 1)[other >= 0], 1), axis=0)
    never = {tuple(pair) for pair in np.sort(found[apart], 1).tolist()}
    named = {k for k, key in whose.items() if key[0] == 'name'}
    near = [(a, b) for a, b in near.tolist() if a in numbers and b in numbers]
    near = [pair for pair in near if pair not in never and not named.issuperset(pair)]
    near = np.array(near, int).reshape(-1, 2)
    sizes = np.bincount(found)
    value = grouping.evidence(pairs.means(found, *near.T), sizes[near[:, 0]], sizes[near[:, 1]])
    likely, members = probability(value, len(sizes)), defaultdict(list)
    for k in range(len(rows)):
        members[int(found[k])].append(k)
    result = []
    for k in np.argsort(-likely, kind='stable')[:SUGGESTED]:
        if likely[k] < UNLIKELY:
            break
        a, b = sorted(near[k].tolist(), key=numbers.__getitem__)
        scores = pairs.embeddings[members[a]] @ pairs.embeddings[members[b]].T
        i, j = np.unravel_index(scores.argmax(), scores.shape)
        first, second = rows[members[a][i]], rows[members[b][j]]
        ages = [[rows[face]['age'] for face in members[x]] for x in (a, b)]
        years = [np.mean([age for age in known if age != ''] or [np.nan]) for known in ages]
        gap = _rounded(abs(years[0] - years[1]), 0)
        values = ['', numbers[a], numbers[b], _rounded(likely[k]), gap, first['face']]
        values += [first['photograph'], second['face'], second['photograph']]
        result.append(dict(zip(PAIRS, values, strict=True)))
    return result


def _write(out, archive, matcher, rows, suggestions, sure):
    out.mkdir(parents=True, exist_ok=True)
    groups: dict[int, dict] = {}
    for row in rows:
        facts = {key: row[key] for key in ('group', 'name', 'born')} | {'faces': []}
        face = {key: None if row[key] == '' else row[key] for key in COLUMNS[5:9]}
        face |= {key: row[key] for key in ('face', 'photograph', 'taken')}
        face['box'] = [*map(int, row['box'].split())]
        groups.setdefault(row['group'], facts)['faces'].append(face)
    facts = {'archive': archive.root, 'weights_sha256': matcher.info.sha256, 'sure': sure}
    utils.write_json(facts | {'groups': [*groups.values()]}, out / 'people.json')
    if suggestions is not None:
        write_table(out / 'suggestions.csv', PAIRS, suggestions)
    write_table(out / 'people.csv', COLUMNS, rows)


def _said(rows, suggestions, out):
    sizes = Counter(row['group'] for row in rows)
    alone = sum(size == 1 for size in sizes.values())
    sure = [row['probability'] for row in rows if row['probability'] != '']
    groups = f'{len(sizes) - alone} groups of two or more, {alone} alone'
    yield f'{out}/people.csv: {len(rows)} faces in {groups}'
    if sure:
        below = f'below 0.9 for {sum(p < 0.9 for p in sure)} of {len(sure)} faces'
        yield f'P of belonging: {np.median(sure):.3f} in the middle, {below}'
    if suggestions:
        yield f'{out}/suggestions.csv: {len(suggestions)} pairs of groups that may be one person'


def _rounded(value, digits=3):
    return round(float(value), digits) if np.isfinite(value) else ''
