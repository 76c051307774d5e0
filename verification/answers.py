"""Answers as dicts for JSON, of the command line and of the HTTP API alike: docs/verify.md."""

from collections.abc import Sequence

import numpy as np

from system.names import shown
from verification.decision import Ages, Answer
from verification.index import Index
from verification.matcher import Features, Matcher
from verification.portraits import Portrait

NO_EMBEDDING = np.empty(0, np.float32)


def pair_ages(
    estimated: Sequence[float | None], given: Sequence[float | None] = (None, None)
) -> Ages | None:
    """The ages in years to decide by: those `given`, else the estimates; None if one is unknown."""
    first, second = (one if age is None else age for one, age in zip(estimated, given, strict=True))
    if first is None or second is None:
        return None
    return Ages(float(first), float(second), None in given)


def features_in(matcher: Matcher, row) -> Features:
    """What a row of an index, index.FACE, says of a face's age."""
    if row['group'] < 0:
        return Features(NO_EMBEDDING)
    group = matcher.groups[row['group']]
    probability = None if np.isnan(row['probability']) else float(row['probability'])
    return Features(NO_EMBEDDING, group, probability, float(row['age']))


def about_age(features: Features) -> dict | None:
    if features.age is None:
        return None
    facts = {'years': round(features.age, 1), 'group': features.group}
    return facts | {'probability': _rounded(features.probability), 'by': features.by}


def about_face(portrait: Portrait, features: Features) -> dict:
    """A face that was given: its file, its place in it, its age."""
    facts = {'file': portrait.name, 'faces': portrait.faces, 'box': corners(portrait.box)}
    return facts | {'age': about_age(features)}


def corners(box: Sequence[float]) -> list[float]:
    return [round(float(side), 1) for side in box]


def about_pair(answer: Answer) -> dict:
    """The decision on one pair."""
    facts = answer._asdict() | {'verdict': answer.verdict}
    pairs = facts.pop('pairs') or (None, None)
    facts['pairs_of_different_people'], facts['pairs_of_one_person'] = pairs
    facts |= {key: _rounded(facts[key]) for key in ('similarity', 'threshold', 'probability')}
    if ages := answer.ages:
        first, second = round(ages.first, 1), round(ages.second, 1)
        facts['ages'] = {'first': first, 'second': second, 'estimated': ages.estimated}
    return facts


def most_alike(
    matcher: Matcher,
    index: Index,
    features: Features,
    most: int,
    given: float | None = None,
    far: float | None = None,
    but: str | None = None,
) -> list[dict]:
    """The faces of an index that are most like one: decision, photograph, box, person and age.
    `face` is the row in the index. `given` is the age of the face that is looked for, in years;
    `but` is a file whose faces are left out."""
    found = []
    for rank, (k, similarity) in enumerate(index.nearest(features.embedding, most, but), 1):
        row = index.faces[k]
        one = features_in(matcher, row)
        ages = pair_ages([features.age, one.age], (given, None))
        person, photograph, box = index.person(k), shown(index.name(k)), corners(row['box'])
        facts = {'rank': rank, 'face': k, 'photograph': photograph, 'box': box}
        facts |= {'person': person and shown(person), 'age': about_age(one)}
        found.append(facts | about_pair(matcher.decision.answer(similarity, ages, far)))
    return found


def search(
    portrait: Portrait, features: Features, where: str, index: Index, found: list[dict]
) -> dict:
    """A whole search: the face that was looked for, the index, and what `most_alike` found."""
    facts = {'looked_for': about_face(portrait, features), 'archive': shown(where)}
    return facts | {'searched': len(index), 'left_out': len(index.left_out), 'found': found}


def in_words(one: dict, aligned: bool) -> str:
    """A found face in a line: person, photograph, box, age."""
    who = f'{one["person"]}: ' if one['person'] else ''
    where = '' if aligned else f' [{" ".join(f"{side:.0f}" for side in one["box"])}]'
    age = one['age'] or {}
    features = Features(NO_EMBEDDING, age.get('group'), age.get('probability'), age.get('years'))
    return f'{who}{one["photograph"]}{where}; {features.about}'


def _rounded(value):
    return None if value is None else round(float(value), 6)
