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
    """The ages to decide by: those `given` in years, else what the network estimates.

    None if one of them is unknown.
    """
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
    return {
        'years': round(features.age, 1),
        'group': features.group,
        'probability': _rounded(features.probability),
        'by': features.by,
    }


def about_face(portrait: Portrait, features: Features) -> dict:
    """A face that was given: its file, its place in it, its age."""
    return {
        'file': portrait.name,
        'faces': portrait.faces,
        'box': corners(portrait.box),
        'age': about_age(features),
    }


def corners(box: Sequence[float]) -> list[float]:
    return [round(float(side), 1) for side in box]


def about_pair(answer: Answer) -> dict:
    """The decision on one pair."""
    impostor, genuine = answer.pairs or (None, None)
    ages = answer.ages and {
        'first': round(answer.ages.first, 1),
        'second': round(answer.ages.second, 1),
        'estimated': answer.ages.estimated,
    }
    return {
        'similarity': _rounded(answer.similarity),
        'same': answer.same,
        'threshold': _rounded(answer.threshold),
        'by': answer.by,
        'far': answer.far,
        'fitted_on': answer.fitted_on,
        'probability': _rounded(answer.probability),
        'ages': ages,
        'pairs_of_different_people': impostor,
        'pairs_of_one_person': genuine,
        'caution': answer.caution,
        'verdict': answer.verdict,
    }


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
    `but` is a file whose faces are left out.
    """
    found = []
    for rank, (k, similarity) in enumerate(index.nearest(features.embedding, most, but), 1):
        row = index.faces[k]
        one = features_in(matcher, row)
        ages = pair_ages([features.age, one.age], (given, None))
        person = index.person(k)
        found.append(
            {
                'rank': rank,
                'face': k,
                'photograph': shown(index.name(k)),
                'box': corners(row['box']),
                'person': person and shown(person),
                'age': about_age(one),
                **about_pair(matcher.decision.answer(similarity, ages, far)),
            }
        )
    return found


def search(
    portrait: Portrait, features: Features, where: str, index: Index, found: list[dict]
) -> dict:
    """A whole search: the face that was looked for, the index, and what `most_alike` found."""
    return {
        'looked_for': about_face(portrait, features),
        'archive': shown(where),
        'searched': len(index),
        'left_out': len(index.left_out),
        'found': found,
    }


def in_words(one: dict, aligned: bool) -> str:
    """A found face in a line: person, photograph, box, age."""
    who = f'{one["person"]}: ' if one['person'] else ''
    where = '' if aligned else f' [{" ".join(f"{side:.0f}" for side in one["box"])}]'
    age = one['age'] or {}
    features = Features(NO_EMBEDDING, age.get('group'), age.get('probability'), age.get('years'))
    return f'{who}{one["photograph"]}{where}; {features.about}'


def _rounded(value):
    return None if value is None else round(float(value), 6)
