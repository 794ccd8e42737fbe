"""Whether one arm of a study is better than another, and what it would take to show it.

Every seed's detectors of both arms are tried on the same groups of test photos; a claim has to hold
for other seeds *and* for other photos.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]
MAX_GROWTH = 100
"""No more than so many times the seeds or groups of a study are ever advised."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Variances of a seed's difference on one group of test photos, by where they come from.

    Attributes:
        seed: Between seeds, whatever the photos.
        group: Between groups of photos, whatever the seed.
        rest: What is left: this seed on this group.
    """

    seed: float
    group: float
    rest: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference; ``low`` and ``high`` bound its 95 % interval, where there is one."""

    mean: float
    low: float | None
    high: float | None
    num_seeds: int
    num_groups: int
    spread: Spread | None = None


def paired_difference(full: Floats, without: Floats, *, level: float = 0.95) -> Difference:
    """Mean difference between two arms, with an interval for other seeds *and* other test photos.

    Seeds and groups of photos are crossed random effects: every seed's detectors are tested on
    every group. mAP is no mean over photos, so each seed's difference is first turned into a
    pseudo-value a group by the jackknife; the variance of their mean is that of a two-way layout
    without replication, with Satterthwaite's degrees of freedom for the t quantile.

    Source: Efron & Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 11, for the
    jackknife; Satterthwaite (1946) for the degrees of freedom.

    Args:
        full: ``(seeds,)`` difference of a measure on all test photos, for each paired seed.
        without: ``(seeds, groups)`` the same with one group of photos left out.
        level: Coverage of the interval, 0..1.

    Returns:
        Without an interval where there is one seed or one group, or a group without which the
        measure does not exist (NaN).
    """
    num_seeds, num_groups = without.shape
    mean = float(full.mean())
    if num_seeds < 2 or num_groups < 2 or not np.isfinite(without).all():
        return Difference(mean, None, None, num_seeds, num_groups)
    values = num_groups * full[:, None] - (num_groups - 1) * without
    by_seed, by_group = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_group[None, :] + values.mean()
    squares = np.array([num_groups * by_seed.var(ddof=1), num_seeds * by_group.var(ddof=1),
                        (rest**2).sum() / ((num_seeds - 1) * (num_groups - 1))])  # fmt: skip
    half = _half_width(squares, num_seeds, num_groups, level)
    spread = Spread(
        seed=max(0.0, float(squares[0] - squares[2]) / num_groups),
        group=max(0.0, float(squares[1] - squares[2]) / num_seeds),
        rest=float(squares[2]),
    )
    return Difference(mean, mean - half, mean + half, num_seeds, num_groups, spread)


def _half_width(squares: Floats, num_seeds: int, num_groups: int, level: float) -> float:
    """Half of the interval, from the mean squares of seeds, groups and rest."""
    freedom = np.array([num_seeds - 1, num_groups - 1, (num_seeds - 1) * (num_groups - 1)])
    # Both first parts hold the third, so it is taken off once; never below the larger of the two.
    total = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    if total <= 0:
        return 0.0
    # At least those of the part with fewest, which taking one off can undercut.
    degrees = max(total**2 / (squares**2 / freedom).sum(), float(freedom.min()))
    return float(stdtrit(degrees, (1 + level) / 2) * np.sqrt(total / (num_seeds * num_groups)))


Verdict = Literal["gain", "loss", "not shown", "nothing was added", "cannot be measured"]


def judge(difference: Difference) -> Verdict:
    """Gain or loss where the interval leaves 0 out; else neither is shown.

    Examples:
        >>> judge(Difference(0.1, 0.02, 0.18, 3, 8)), judge(Difference(0.1, -0.02, 0.22, 3, 8))
        ('gain', 'not shown')
    """
    if difference.low is None or difference.high is None:
        return "not shown"
    if difference.low > 0:
        return "gain"
    return "loss" if difference.high < 0 else "not shown"


# --- what would settle it ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Needed:
    """How large a study would have to be for its interval to leave 0 out, if its difference stays.

    Attributes:
        num_groups: Groups of test photos, with the seeds as they are; None: no number would do, as
            the seeds are too few for a difference of this size.
        num_seeds: Seeds, with the photos as they are; None: no number would do.
    """

    num_groups: int | None
    num_seeds: int | None


def needed_to_settle(difference: Difference, *, level: float = 0.95) -> Needed | None:
    """Estimate with how many groups, or else seeds, an interval around 0 would come to leave it out.

    The variances found between seeds, between groups, and of the rest say how wide the interval
    would be expected to be for other numbers of them. An estimate of a small study's variances is
    itself rough: it tells tens from hundreds, not 40 from 50. At the number it names, a difference
    that is truly as large as the present one is shown in about half of all studies.

    Args:
        difference: From `paired_difference`.
        level: Coverage of the interval, 0..1.

    Returns:
        None where there is no interval, or where it leaves out 0 as it is.

    Examples:
        >>> found = Difference(0.05, -0.01, 0.11, 3, 8, Spread(seed=0.0, group=0.01, rest=0.001))
        >>> needed_to_settle(found)
        Needed(num_groups=19, num_seeds=None)
    """
    if difference.spread is None or judge(difference) != "not shown":
        return None
    spread, seeds, groups = difference.spread, difference.num_seeds, difference.num_groups

    def is_settled(num_seeds: int, num_groups: int) -> bool:
        squares = np.array([
            num_groups * spread.seed + spread.rest, num_seeds * spread.group + spread.rest, spread.rest
        ])  # fmt: skip
        return _half_width(squares, num_seeds, num_groups, level) < abs(difference.mean)

    return Needed(
        num_groups=next((more for more in _more(groups) if is_settled(seeds, more)), None),
        num_seeds=next((more for more in _more(seeds) if is_settled(more, groups)), None),
    )


def _more(now: int) -> list[int]:
    """Larger numbers to try, a few per cent apart, up to `MAX_GROWTH` times."""
    steps = np.geomspace(now + 1, now * MAX_GROWTH, 400)
    return sorted({int(step) for step in np.ceil(steps)})


def is_clearly_better(first: Floats, second: Floats) -> bool:
    """Whether a measure is higher by more than the standard error of the difference.

    The standard error is the jackknife's. Source: the one-standard-error rule of Breiman et al.,
    *Classification and Regression Trees* (1984), section 3.4.3; Efron & Tibshirani (1993), chapter 11.

    Args:
        first: ``(1 + groups,)`` a measure on all pictures, then with each group of them left out. NaN
            where it is not defined.
        second: Likewise, on the same pictures.

    Examples:
        >>> same = np.full(9, 0.5)
        >>> is_clearly_better(same + 0.1, same), is_clearly_better(same, same)
        (True, False)
        >>> is_clearly_better(np.array([0.6, 0.5, 0.5, 0.8]), np.full(4, 0.5))
        False
    """
    gain = first[0] - second[0]
    left_out = (first - second)[1:]
    left_out = left_out[~np.isnan(left_out)]
    number = len(left_out)
    if number < 2:
        return False
    error = np.sqrt((number - 1) / number * ((left_out - left_out.mean()) ** 2).sum())
    return bool(gain > max(error, 1e-9))


@dataclass(slots=True)
class LatestNotWorse:
    """Chooses among the weights of a training, as they come: the latest that no others clearly beat."""

    _peak: Floats | None = None

    def keeps(self, looks: Floats) -> bool:
        """Whether these are to be kept instead of the ones before.

        Args:
            looks: As in `is_clearly_better`.
        """
        kept = self._peak is None or not is_clearly_better(self._peak, looks)
        if self._peak is None or looks[0] > self._peak[0]:
            self._peak = looks
        return kept
