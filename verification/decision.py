"""What a similarity means: thresholds, probability and the scores of validation."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import utils
from evaluation.age_thresholds import AgeDecision
from recognition.weights import WeightsInfo
from utils import UserError

FEW = 30  # pairs of either kind in a cell: with fewer, the probability is said to rest on few
VALIDATION = 'validation'  # whose people a decision was fitted on, if no calibration says another


class PairAges(NamedTuple):
    """Ages in years of the two faces of a pair, and whether the network estimated any of them."""

    first: float
    second: float
    estimated: bool = True


class Answer(NamedTuple):
    """The decision on one pair; what isn't known is None."""

    similarity: float
    same: bool | None = None
    threshold: float | None = None
    by: str | None = None  # 'ages', 'far' (a threshold for all ages), 'validation' or 'threshold'
    far: float | None = None
    probability: float | None = None
    ages: PairAges | None = None
    pairs_of_different_people: int | None = None  # of such ages, in validation
    pairs_of_one_person: int | None = None
    caution: str | None = None
    fitted_on: str | None = None  # whose people: VALIDATION, or the name of a calibration

    @property
    def verdict(self) -> str:
        """The decision in a few words."""
        if self.same is None:
            return 'no decision: these weights hold no threshold, --threshold gives one'
        which, rate = '', '' if self.far is None else f' at a false accept rate of {self.far:g}'
        if self.ages and self.by == 'ages':
            kind = 'estimated ages' if self.ages.estimated else 'ages'
            which = f' for the {kind} {self.ages.first:.0f} and {self.ages.second:.0f}'
        who = 'the same person' if self.same else 'different people'
        return f'{who} (the threshold{which}{rate} is {self.threshold:.3f})'

    def facts(self) -> dict:
        """All of it for JSON, as docs/verify.md has it."""
        facts = self._asdict() | {'verdict': self.verdict}
        facts |= {key: rounded(facts[key]) for key in ('similarity', 'threshold', 'probability')}
        if self.ages:
            years = {key: round(getattr(self.ages, key), 1) for key in ('first', 'second')}
            facts['ages'] = self.ages._asdict() | years
        return facts

    def details(self, decision: 'Decision') -> list[str]:
        """What else is known of the pair, in lines."""
        lines = []
        if self.probability is not None:
            lines.append(
                f'probability of one person {100 * self.probability:.1f} %, if one person is as '
                'likely as different people beforehand; validation had '
                f'{self.pairs_of_one_person or 0} pairs of one person and '
                f'{self.pairs_of_different_people or 0} of different people of such ages'
            )
        if meaning := decision.meaning(self.similarity):
            lines.append(f'which means: {meaning}')
        if self.far is not None:
            lines.append(rate_holds(self.fitted_on))
        return lines + ([f'note: {self.caution}'] if self.caution else [])


class Decision(NamedTuple):
    """What validation or a calibration left to decide by; what isn't known is None."""

    threshold: float | None = None  # the best on all pairs of validation, or the user's (`given`)
    accuracy: float | None = None  # of thresholds on people that they weren't fitted on
    genuine: np.ndarray | None = None  # percentiles (101,) of similarities of one person
    impostor: np.ndarray | None = None  # and of different people
    far: dict[float, float] | None = None  # {rate: threshold for all ages}
    ages: AgeDecision | None = None  # thresholds and probabilities by the ages of a pair
    estimated: AgeDecision | None = None  # by the ages that these weights estimate; None: as `ages`
    given: bool = False
    fitted_on: str = VALIDATION  # whose people; or the name of a calibration

    @classmethod
    def of(cls, stored: dict | None, path: Any) -> 'Decision':
        """The `decision` that a weights file or a calibration holds. Weights trained without a
        val_root hold None. Raises UserError if it is damaged."""
        if stored is None:
            return cls()
        try:
            numbers = (stored[key] for key in ('threshold', 'accuracy'))
            threshold, accuracy = (None if one is None else float(one) for one in numbers)
            genuine, impostor = (_percentiles(stored[kind]) for kind in ('genuine', 'impostor'))
            entries = (stored.get('far') or {}).items()
            far = {float(rate): float(entry['threshold']) for rate, entry in entries}
            if not all(map(math.isfinite, (threshold or 0, *far, *far.values()))):
                raise ValueError
            fitted = (stored.get(name) for name in ('ages', 'estimated'))
            ages, estimated = (AgeDecision(one) if one else None for one in fitted)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            what = 'what it says of its threshold is damaged'
            raise UserError(f'{path}: {what}: validate again, or train on') from None
        accuracy = None if accuracy is None or math.isnan(accuracy) else accuracy
        return cls(threshold, accuracy, genuine, impostor, far, ages, estimated)

    def answer(
        self, similarity: float, ages: PairAges | None = None, far: float | None = None
    ) -> Answer:
        """The decision on a pair of this similarity, by its `ages` if validation knew ages.

        `far` is the share of pairs of different people that may be accepted. Without it the
        threshold is where one person is as likely as different people. Raises UserError if no
        threshold is known at `far`.
        """
        threshold, fitted_on = self.threshold, None if self.given else self.fitted_on
        by, known, probability, caution = 'validation', None, None, None
        if self.given:
            by, far = 'threshold', None
        elif self.ages and ages:
            by_age = self.estimated if ages.estimated and self.estimated else self.ages
            younger, gap = min(ages[:2]), abs(ages.first - ages.second)
            known = by_age.threshold(younger, gap, far or 0.1)
            by, probability = 'ages', by_age.probability(similarity, younger, gap)
            if far is None:
                even = by_age.even(younger, gap)
                threshold = threshold if even is None else even
                few = known is None or min(known.impostor, known.genuine) < FEW
                caution = 'validation had few pairs of such ages' if few else None
            else:
                threshold, caution = (known.value, known.caution) if known else (None, None)
        else:
            if self.ages:
                caution = 'not all ages are known: --ages gives them; one threshold for all decides'
            elif ages and not ages.estimated:
                caution = 'validation left no thresholds by age, so the ages decide nothing'
            if far is not None:
                rates = self.far or {}
                if far not in rates:
                    there = ', '.join(f'{rate:g}' for rate in rates) or 'none'
                    what = f'these weights hold no threshold at this rate (there are: {there})'
                    remedy = '--calibrate NAME makes them from people of your own'
                    raise UserError(f'--far {far:g}: {what}: {remedy}')
                threshold, by = rates[far], 'far'
        if threshold is None:
            return Answer(similarity, ages=ages, caution=caution)
        same, pairs = similarity > threshold, known[1:3] if known else (None, None)
        facts = far, probability, ages, *pairs, caution, fitted_on
        return Answer(similarity, same, threshold, by, *facts)

    def meaning(self, similarity: float) -> str:
        """How usual such a similarity is, a clause; '' if validation left no scores."""
        if self.genuine is None or self.impostor is None:
            return ''
        kinds, shares = (self.genuine, self.impostor), np.linspace(0, 1, 101)
        lower, higher = (float(np.interp(similarity, kind, shares)) for kind in kinds)
        return (
            f'in validation {_share(lower)} of the pairs of one person were less similar than '
            f'this, and {_share(1 - higher)} of the pairs of different people more.'
        )


def pair_ages(estimated: Sequence[float | None], given: Sequence[float | None]) -> PairAges | None:
    """The ages in years to decide by: those `given`, else the estimates; None if one is unknown."""
    first, second = (one if age is None else age for one, age in zip(estimated, given, strict=True))
    if first is None or second is None:
        return None
    return PairAges(float(first), float(second), None in given)


def rate_holds(fitted_on: str | None) -> str:
    """For whom a rate is true, a line."""
    if fitted_on == VALIDATION:
        return (
            "the rate is that of validation's people and photographs: on others it may be many "
            'times as high; --calibrate on people of your own makes it true for them'
        )
    return f'the rate is that of the people and photographs of {fitted_on}, and of people like them'


def calibration_file(weights: str | Path) -> Path:
    """Where `--calibrate` leaves what it found: best.pth -> best.calibration.json."""
    return Path(weights).with_suffix('.calibration.json')


def write_calibration(decision: dict, source: str, info: WeightsInfo, path: Path) -> None:
    facts = {'weights_sha256': info.sha256, 'source': source, 'decision': decision}
    utils.write_whole(path, lambda temporary: temporary.write_text(json.dumps(facts) + '\n'))


def read_decision(info: WeightsInfo) -> Decision:
    """The Decision of the calibration file beside the weights, else of the weights themselves.
    Raises UserError if that file is damaged or of other weights."""
    path = calibration_file(info.path)
    if not path.exists():
        return Decision.of(info.decision, info.path)
    try:
        facts = json.loads(path.read_text())
        sha256, stored, source = (facts[key] for key in ('weights_sha256', 'decision', 'source'))
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'{path}: damaged: remove it, or calibrate again') from None
    if sha256 != info.sha256:
        raise UserError(f'{path}: of other weights than {info.path}: remove it, or calibrate again')
    return Decision.of(stored, path)._replace(fitted_on=str(source))


def _percentiles(values):
    """(101,) rising numbers, or None. Raises ValueError or TypeError for anything else."""
    if values is None:
        return None
    row = np.array(values, np.float64)
    if row.shape != (101,) or not (np.diff(row) >= 0).all():
        raise ValueError
    return row


def rounded(value: float | None) -> float | None:
    """As JSON has it."""
    return None if value is None else round(float(value), 6)


def _share(part):
    return 'under 1 %' if part < 0.01 else 'over 99 %' if part > 0.99 else f'{100 * part:.0f} %'
