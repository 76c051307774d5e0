"""Answers as dicts for JSON, of the command line and of the HTTP API alike: docs/verify.md."""

from verification.decision import Ages, Answer
from verification.index import Index
from verification.matcher import Features, Matcher
from verification.portraits import Portrait


def pair_ages(estimated: list[float | None], given=(None, None)) -> Ages | None:
    """The ages to decide by: those `given` in years, else what the network estimates; None where
    one of them is unknown."""
    known = [one if age is None else age for one, age in zip(estimated, given, strict=True)]
    return None if None in known else Ages(*map(float, known), None in given)


def features_of(matcher: Matcher, row) -> Features:
    """What an index, a row of index.FACE, says of a face's age."""
    if row['group'] < 0:
        return Features(None)
    group = matcher.groups[row['group']]
    return Features(None, group, float(row['probability']), float(row['age']))


def age(features: Features) -> dict | None:
    if features.age is None:
        return None
    return {
        'years': round(features.age, 1),
        'group': features.group,
        'probability': _rounded(features.probability),
    }


def face(portrait: Portrait, features: Features) -> dict:
    """A face that was given: which file, where in it, how old it looks."""
    return {
        'file': portrait.name,
        'faces': portrait.faces,
        'box': box(portrait.box),
        'age': age(features),
    }


def box(sides) -> list[float]:
    return [round(float(side), 1) for side in sides]


def decision(answer: Answer) -> dict:
    """The decision on one pair."""
    ages = answer.ages and answer.ages._asdict()
    impostor, genuine = answer.pairs or (None, None)
    return {
        'similarity': _rounded(answer.similarity),
        'same': answer.same,
        'threshold': _rounded(answer.threshold),
        'by': answer.by,
        'far': answer.far,
        'probability': _rounded(answer.probability),
        'ages': ages
        and {key: value if key == 'estimated' else round(value, 1) for key, value in ages.items()},
        'pairs_of_two_people': impostor,
        'pairs_of_one_person': genuine,
        'caution': answer.caution,
        'verdict': answer.verdict,
    }


def find(
    matcher: Matcher,
    index: Index,
    features: Features,
    most: int,
    given: float | None = None,
    far: float | None = None,
    but: str | None = None,
) -> list[dict]:
    """The faces of an index that are most like one: decision, photograph, box, person and age.

    `face` is the row in the index.
    """
    found = []
    for rank, (k, similarity) in enumerate(index.nearest(features.embedding, most, but), 1):
        row = index.faces[k]
        one = features_of(matcher, row)
        ages = pair_ages([features.age, one.age], (given, None))
        found.append(
            {
                'rank': rank,
                'face': k,
                'photograph': index.name(k),
                'box': box(row['box']),
                'person': index.person(k),
                'age': age(one),
                **decision(matcher.decision.answer(similarity, ages, far)),
            }
        )
    return found


def about_found(one: dict, aligned: bool) -> str:
    """A found face in a line: person, photograph, box, age."""
    who = f'{one["person"]}: ' if one['person'] else ''
    where = '' if aligned else f' [{" ".join(f"{side:.0f}" for side in one["box"])}]'
    about = one['age'] or {}
    looks = Features(None, about.get('group'), about.get('probability'), about.get('years'))
    return f'{who}{one["photograph"]}{where}; {looks.about}'


def _rounded(value):
    return None if value is None else round(float(value), 6)
