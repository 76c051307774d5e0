"""What a similarity means: thresholds, probability and the scores of validation."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

import utils
from evaluation.cells import AgeDecision
from recognition.weights import WeightsInfo
from utils import UserError

FEW = 30  # pairs of either kind in a cell, below which its probability is said to rest on few


class Ages(NamedTuple):
    """Ages in years of the two faces of a pair, and whether the network estimated any of them."""

    first: float
    second: float
    estimated: bool = True

    @property
    def about(self) -> str:
        kind = 'estimated ages' if self.estimated else 'ages'
        return f'the {kind} {self.first:.0f} and {self.second:.0f}'


class Answer(NamedTuple):
    """The decision on one pair; each is None where it isn't known.

    by    what decided: 'ages', 'far' (a threshold for all ages), 'validation' or 'threshold'
    pairs counts of pairs (of two people, of one) that validation had of such ages
    """

    similarity: float
    same: bool | None = None
    threshold: float | None = None
    by: str | None = None
    far: float | None = None
    probability: float | None = None
    ages: Ages | None = None
    pairs: tuple[int, int] | None = None
    caution: str | None = None

    @property
    def verdict(self) -> str:
        """The decision in a few words."""
        if self.same is None:
            return 'no decision: these weights hold no threshold, --threshold gives one'
        who = 'the same person' if self.same else 'two people'
        which = f' for {self.ages.about}' if self.by == 'ages' else ''
        rate = '' if self.far is None else f' at a false accept rate of {self.far:g}'
        return f'{who} (the threshold{which}{rate} is {self.threshold:.3f})'

    def details(self, decision: 'Decision') -> list[str]:
        """What else is known of the pair, in lines."""
        lines = []
        if self.probability is not None:
            impostor, genuine = self.pairs or (0, 0)
            lines.append(
                f'probability of one person {100 * self.probability:.1f} %, were both as likely '
                f'beforehand; validation had {genuine} pairs of one person and {impostor} of two '
                'of such ages'
            )
        if decision.genuine is not None:
            lines.append(f'which means: {decision.meaning(self.similarity)}')
        return lines + ([f'note: {self.caution}'] if self.caution else [])


class Decision(NamedTuple):
    """What validation left to decide by; each is None where it isn't known.

    threshold  the best on all pairs of validation, or the user's (`given`)
    accuracy   of thresholds on people that they weren't fitted on
    genuine, impostor  percentiles (101,) of the similarities of pairs of one person and of two
    far        {rate: threshold for all ages}
    ages       thresholds and probabilities by the ages of a pair
    """

    threshold: float | None = None
    accuracy: float | None = None
    genuine: np.ndarray | None = None
    impostor: np.ndarray | None = None
    far: dict[float, float] | None = None
    ages: AgeDecision | None = None
    given: bool = False

    @classmethod
    def of(cls, stored: dict | None, path, threshold: float | None = None) -> 'Decision':
        """That of the `decision` in a weights file, with another `threshold` if one is given.

        Raises UserError where it isn't what training writes. Weights trained without a val_root
        have none, nor have those of before it was kept.
        """
        if stored is None:
            return cls(threshold, given=threshold is not None)
        try:
            genuine, impostor = (
                np.array(stored[kind], np.float64) for kind in ('genuine', 'impostor')
            )
            best = float(stored['threshold'])
            accuracy = None if stored['accuracy'] is None else float(stored['accuracy'])
            for row in (genuine, impostor):
                if row.shape != (101,) or not (np.diff(row) >= 0).all():
                    raise ValueError
            far = {
                float(rate): float(entry['threshold'])
                for rate, entry in (stored.get('far') or {}).items()
            }
            if not all(map(math.isfinite, (best, *far, *far.values()))):
                raise ValueError
            ages = AgeDecision(stored['ages']) if stored.get('ages') else None
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
            raise UserError(
                f'{path}: what it says of its threshold is damaged: validate again, or train on'
            ) from None
        if accuracy is not None and math.isnan(accuracy):
            accuracy = None
        best, given = (best, False) if threshold is None else (threshold, True)
        return cls(best, accuracy, genuine, impostor, far, ages, given)

    def answer(
        self, similarity: float, ages: Ages | None = None, far: float | None = None
    ) -> Answer:
        """The decision on a pair of this similarity, by its `ages` where validation knew ages.

        `far` is the share of pairs of two people that may be accepted; without it the threshold is
        where one person is as likely as two. Raises UserError where no threshold is known at `far`.
        """
        if self.ages and ages and not self.given:
            return self._by_ages(similarity, ages, far)
        threshold, by = self.threshold, 'threshold' if self.given else 'validation'
        if far is not None and not self.given:
            if not self.far or far not in self.far:
                known = ', '.join(f'{rate:g}' for rate in self.far or ()) or 'none'
                raise UserError(
                    f'--far {far:g}: these weights hold no threshold at this rate (there are: '
                    f'{known}): --calibrate NAME makes them from people of your own'
                )
            threshold, by = self.far[far], 'far'
        caution = None
        if self.ages and not self.given:
            caution = 'not all ages are known: --ages gives them; one threshold for all decides'
        elif ages and not ages.estimated and not self.given:
            caution = 'validation left no thresholds by age, so the ages decide nothing'
        if threshold is None:
            return Answer(similarity, ages=ages, caution=caution)
        return Answer(
            similarity,
            similarity > threshold,
            threshold,
            by,
            far if by == 'far' else None,
            ages=ages,
            caution=caution,
        )

    def _by_ages(self, similarity, ages, far):
        younger, gap = min(ages[:2]), abs(ages.first - ages.second)
        if far is None:
            known = self.ages.threshold(younger, gap, 0.1)
            threshold = self.ages.even(younger, gap)
            threshold = self.threshold if threshold is None else threshold
            few = known is None or min(known.impostor, known.genuine) < FEW
            pairs = known and (known.impostor, known.genuine)
            caution = 'validation had few pairs of such ages' if few else None
        else:
            known = self.ages.threshold(younger, gap, far)
            if known is None:
                raise UserError(f'--far {far:g}: validation had too few pairs for any threshold')
            threshold, pairs, caution = known.value, known[1:3], known.caution
        probability = self.ages.probability(similarity, younger, gap)
        return Answer(
            similarity,
            similarity > threshold,
            threshold,
            'ages',
            far,
            probability,
            ages,
            pairs,
            caution,
        )

    def meaning(self, similarity: float) -> str:
        """How usual such a similarity is, a clause; '' where validation left no scores."""
        if self.genuine is None:
            return ''
        lower, higher = (
            float(np.interp(similarity, row, np.linspace(0, 1, 101)))
            for row in (self.genuine, self.impostor)
        )
        return (
            f'in validation {_share(lower)} of the pairs of one person were less similar than '
            f'this, and {_share(1 - higher)} of the pairs of two people more.'
        )


def calibration_file(weights: str | Path) -> Path:
    """Where `--calibrate` leaves what it found: best.pth -> best.calibration.json."""
    return Path(weights).with_suffix('.calibration.json')


def write_calibration(decision: dict, source: str, info: WeightsInfo, path: Path) -> None:
    facts = {'weights_sha256': info.sha256, 'source': source, 'decision': decision}
    utils.write_whole(path, lambda temporary: temporary.write_text(json.dumps(facts) + '\n'))


def read_decision(info: WeightsInfo, threshold: float | None = None) -> Decision:
    """The Decision of the calibration file beside the weights, else of the weights themselves.

    Raises UserError where that file is damaged or of other weights.
    """
    path = calibration_file(info.path)
    if not path.exists():
        return Decision.of(info.decision, info.path, threshold)
    try:
        facts = json.loads(path.read_text())
        sha256, stored = facts['weights_sha256'], facts['decision']
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'{path}: damaged: remove it, or calibrate again') from None
    if sha256 != info.sha256:
        raise UserError(f'{path}: of other weights than {info.path}: remove it, or calibrate again')
    return Decision.of(stored, path, threshold)


def _share(part):
    return 'under 1 %' if part < 0.01 else 'over 99 %' if part > 0.99 else f'{100 * part:.0f} %'
