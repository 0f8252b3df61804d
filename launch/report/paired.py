"""Tests of whether one group of runs is better than another: paired differences, McNemar's test. No torch.

Runs of equal seeds, and folds, see the same images in the same order, so their difference says more than two means with their
deviations.
With one seed in common only the test images can be paired.
"""

import bisect
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ..errors import Refused
from . import predictions
from .compare import Comparison, Group, Training, ranked_by, text_of

# The 97.5 % points of Student's t by degrees of freedom.
T = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201, 12: 2.179,
    13: 2.160, 14: 2.145, 15: 2.131, 16: 2.120, 17: 2.110, 18: 2.101, 19: 2.093, 20: 2.086, 25: 2.060, 30: 2.042, 40: 2.021,
    60: 2.000, 120: 1.980,
}  # fmt: skip
ALPHA = 0.05


@dataclass(frozen=True)
class Pair:
    """Difference of `one` from `other`, both labels of groups, in accuracy over `seeds` in common.

    `interval` is half of the 95 % confidence interval; None for a single seed. `p` is McNemar's, for a single seed whose runs
    recorded their predictions. `difference` is None, and `why` says it, if they have no seed or not the test images in common.
    """

    one: str
    other: str
    seeds: int
    difference: float | None
    interval: float | None = None
    p: float | None = None
    why: str = ""
    folds: bool = False  # `seeds` counts folds, too

    @property
    def more_than_chance(self) -> bool | None:
        if self.difference is None:
            return None
        if self.interval is not None:
            return abs(self.difference) > self.interval
        return None if self.p is None else self.p < ALPHA

    def sentence(self) -> str:
        if self.difference is None:
            return f"{self.one} and {self.other} are not compared: {self.why}"
        points = 100 * self.difference
        spread = "" if self.interval is None else f" ± {100 * self.interval:.2f}"
        better = f"{self.one} is better than {self.other} by {points:.2f}{spread} points"
        if points < 0:
            better = f"{self.one} is worse than {self.other} by {-points:.2f}{spread} points"
        if points == 0:
            better = f"{self.one} is as good as {self.other}, by 0.00{spread} points,"
        what = "fold" if self.folds else "seed"
        over = f"over {self.seeds} {what}s" if self.seeds > 1 else f"with one {what}"
        tested = "" if self.p is None else f", McNemar's p = {self.p:.2g} on its test images"
        verdict = {True: "more than chance", False: "may be chance", None: f"one {what} says little"}[self.more_than_chance]
        if self.seeds == 1 and self.p is not None:
            verdict += f" (of these two trainings, not of other {what}s)"
        return f"{better} {over}{tested}; {verdict}"


def pairs(comparison: Comparison, against: str = "") -> list[Pair]:
    """Compare each finished group with the one whose label is `against`; without it, the best one with each of the others.

    Raises Refused (2) if no finished group has this label.
    """
    finished, answers = [group for group in comparison.groups if group.finished], cache(predictions.read)
    if not against:
        return [_pair(comparison, finished[0], other, answers) for other in finished[1:]]
    labels = [comparison.label(group) for group in finished]
    values = [", ".join(text_of(group.options.get(key)) for key in comparison.differ) for group in finished]  # as in the table
    found = [group for group, *names in zip(finished, labels, values, strict=True) if against in names]
    if not found:
        raise Refused(f"--against {against} is none of the finished rows: {'; '.join(labels)}", 2)
    baseline = found[0]
    return [_pair(comparison, group, baseline, answers) for group in finished if group is not baseline]


def _pair(comparison: Comparison, one: Group, other: Group, read: Callable[[Path], predictions.Answers | None]) -> Pair:
    measure = ranked_by(comparison.groups)
    theirs = {each.draw: each for each in other.trainings if measure in each.measures}
    both = [(mine, theirs[mine.draw]) for mine in _once(one) if measure in mine.measures and mine.draw in theirs]
    names, folds = (comparison.label(one), comparison.label(other)), int(one.options.get("folds") or 0) if _folded(one) else 0
    if not both:
        return Pair(*names, 0, None, why=f"no {'fold' if folds else 'seed'} in common")
    answers = [(read(mine.folder), read(its.folder)) for mine, its in both]
    split = "test" if measure == "last" else "validation"
    if not all(_same_images(split, *trainings, *of) for trainings, of in zip(both, answers, strict=True)):
        return Pair(*names, len(both), None, why=f"their {split} images differ")
    differences = [mine.measures[measure] - its.measures[measure] for mine, its in both]
    mean = statistics.fmean(differences)
    if len(both) == 1:
        mine, its = answers[0]
        return Pair(*names, 1, mean, p=_mcnemar_of(mine, its) if mine and its and measure == "last" else None, folds=bool(folds))
    return Pair(*names, len(both), mean, t_interval(differences, 1 / (folds - 1) if folds else 0.0), folds=bool(folds))


def _folded(group: Group) -> bool:
    return any(training.fold for training in group.trainings)


def _same_images(
    split: str, mine: Training, its: Training, one: predictions.Answers | None, other: predictions.Answers | None
) -> bool:
    """Return whether two trainings were measured on the same images of `split`: by what they recorded, else by configuration."""
    field = "images" if split == "test" else "validation"
    recorded = [getattr(each, field, "") for each in (one, other)]
    return recorded[0] == recorded[1] if all(recorded) else mine.images[split] == its.images[split]


def _once(group: Group) -> list[Training]:
    """The last of the trainings with equal seeds and folds."""
    return list({training.draw: training for training in group.trainings}.values())


def t_interval(values: list[float], overlap: float = 0.0) -> float:
    """Half-width of the 95 % confidence interval of the mean of two or more values, by Student's t.

    Folds share most of what they are trained on, so that their mean varies more than that of independent values: `overlap` is
    the number of test images for each training image. Source: Nadeau and Bengio, Inference for the Generalization Error (2003).
    """
    known = sorted(T)
    freedom = known[bisect.bisect_right(known, len(values) - 1) - 1]  # rounded down: rather too wide
    return T[freedom] * statistics.stdev(values) * math.sqrt(1 / len(values) + overlap)


def mcnemar(only_one: int, only_other: int) -> float:
    """Exact two-sided p of McNemar's test: images that only the one, and only the other, classifies correctly.

    Source: McNemar, Psychometrika 12 (1947); Dietterich (1998) for classifiers.
    """
    n = only_one + only_other
    tail = sum(math.comb(n, k) for k in range(min(only_one, only_other) + 1))
    return min(1.0, 2 * tail / 2**n)


def _mcnemar_of(one: predictions.Answers, other: predictions.Answers) -> float | None:
    """p of two nets on the same test images; None where these have several labels."""
    if one.right is None or other.right is None:  # an image with several labels is not simply right or wrong
        return None
    return mcnemar(int((one.right & ~other.right).sum()), int((other.right & ~one.right).sum()))
