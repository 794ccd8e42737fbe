from __future__ import annotations

import doctest
from collections.abc import Sequence

import numpy as np
import pytest

from synthdet.core import differences
from synthdet.core.differences import (
    Difference,
    LatestNotWorse,
    Spread,
    is_clearly_better,
    judge,
    needed_to_settle,
    paired_difference,
)


def test_doctests() -> None:
    assert doctest.testmod(differences).failed == 0


def simulate(
    rng: np.random.Generator,
    seeds: int,
    groups: int,
    spread: tuple[float, float, float],
    mean: float,
) -> Difference:
    """A study whose difference is made of seed, group and rest; the measure is a mean over groups."""
    values = mean + rng.normal(0, spread[0], (seeds, 1)) + rng.normal(0, spread[1], (1, groups))
    values = values + rng.normal(0, spread[2], (seeds, groups))
    without = (values.sum(axis=1, keepdims=True) - values) / (groups - 1)
    return paired_difference(values.mean(axis=1), without)


@pytest.mark.parametrize("spread", [(1, 0.3, 0.3), (0.3, 1, 0.3), (0.5, 1, 1)])
@pytest.mark.parametrize("groups", [6, 12])
def test_interval_covers_the_truth(spread: tuple[float, float, float], groups: int) -> None:
    rng = np.random.default_rng(groups)
    found = [simulate(rng, 3, groups, spread, mean=1.0) for _ in range(1000)]
    covered = np.mean([one.low <= 1.0 <= one.high for one in found])  # type: ignore[operator]
    assert 0.92 <= covered <= 0.99


def test_without_a_difference_gain_is_rarely_said() -> None:
    rng = np.random.default_rng(5)
    said = [judge(simulate(rng, 3, 8, (1, 1, 1), mean=0.0)) for _ in range(1000)]
    assert said.count("gain") <= 50
    assert said.count("loss") <= 50


@pytest.mark.parametrize(
    ("full", "without"),
    [
        ([0.2], [[0.1, 0.3]]),  # one seed
        ([0.2, 0.1], [[0.1], [0.3]]),  # one group
        ([0.2, 0.1], [[0.1, np.nan], [0.3, np.nan]]),  # all the animals are in the second group
    ],
)
def test_no_interval_from_too_little(full: list[float], without: list[list[float]]) -> None:
    difference = paired_difference(np.array(full), np.array(without))
    assert difference.low is None
    assert difference.mean == pytest.approx(np.mean(full))
    assert judge(difference) == "not shown"


def test_judge_loss() -> None:
    assert judge(Difference(-0.1, -0.2, -0.01, 3, 5)) == "loss"


# --- what would settle it ------------------------------------------------------------------------


def study_of(spread: Spread, *, mean: float, seeds: int, groups: int) -> Difference:
    """What a study that guessed all variances right would say, its interval around 0."""
    return Difference(mean, mean - 1, mean + 1, seeds, groups, spread)


@pytest.mark.parametrize(
    "spread",
    [Spread(seed=0, group=0.04, rest=0.02), Spread(seed=1e-4, group=0.02, rest=0.05)],
    ids=["groups", "some-of-each"],
)
def test_at_the_number_named_half_of_the_studies_show_it(spread: Spread) -> None:
    needed = needed_to_settle(study_of(spread, mean=0.05, seeds=3, groups=6))
    assert needed is not None
    assert needed.num_groups is not None

    def shown(groups: int) -> float:
        rng = np.random.default_rng(11)
        sizes = (spread.seed**0.5, spread.group**0.5, spread.rest**0.5)
        found = [judge(simulate(rng, 3, groups, sizes, mean=0.05)) for _ in range(400)]
        return found.count("gain") / len(found)

    assert 0.35 <= shown(needed.num_groups) <= 0.65
    assert shown(needed.num_groups // 3) < 0.35
    assert shown(needed.num_groups * 3) > 0.65


def test_the_estimate_from_simulated_studies_is_of_the_right_size() -> None:
    spread = Spread(seed=0, group=0.04, rest=0.02)
    truth = needed_to_settle(study_of(spread, mean=0.05, seeds=3, groups=40))
    assert truth is not None
    assert truth.num_groups is not None
    rng = np.random.default_rng(2)
    found = [
        needed_to_settle(Difference(0.05, -1, 1, 3, 40, one.spread))
        for one in (simulate(rng, 3, 40, (0, 0.2, 0.02**0.5), mean=0.05) for _ in range(200))
    ]
    numbers = [one.num_groups for one in found if one is not None and one.num_groups is not None]
    assert len(numbers) > 150
    assert truth.num_groups / 1.5 <= np.median(numbers) <= truth.num_groups * 1.5


def test_where_seeds_disagree_more_seeds_are_wanted_and_not_more_photos() -> None:
    spread = Spread(seed=0.01, group=1e-4, rest=1e-4)
    needed = needed_to_settle(study_of(spread, mean=0.08, seeds=3, groups=40))
    assert needed is not None
    assert needed.num_groups is None
    assert needed.num_seeds is not None
    rng = np.random.default_rng(3)
    sizes = (0.1, 0.01, 0.01)
    found = [judge(simulate(rng, needed.num_seeds, 40, sizes, mean=0.08)) for _ in range(300)]
    assert 0.35 <= found.count("gain") / len(found) <= 0.65


def test_where_there_is_no_difference_nothing_settles_it() -> None:
    needed = needed_to_settle(study_of(Spread(0.01, 0.01, 0.01), mean=1e-6, seeds=3, groups=10))
    assert needed is not None
    assert (needed.num_groups, needed.num_seeds) == (None, None)


def test_what_is_settled_needs_nothing_and_without_an_interval_nothing_is_known() -> None:
    assert needed_to_settle(Difference(0.1, 0.02, 0.18, 3, 8, Spread(0, 0.1, 0))) is None
    assert needed_to_settle(Difference(0.1, None, None, 1, 8)) is None


def test_the_variances_are_found_again() -> None:
    rng = np.random.default_rng(4)
    found = [simulate(rng, 5, 30, (0.3, 1.0, 0.6), mean=0).spread for _ in range(300)]
    for name, truth in (("seed", 0.09), ("group", 1.0), ("rest", 0.36)):
        mean = np.mean([getattr(one, name) for one in found])
        assert mean == pytest.approx(truth, rel=0.15), name


def looks(values: Sequence[float]) -> np.ndarray:
    """A mean over pictures, on all of them and without each in turn."""
    every = np.array(values, dtype=float)
    return np.array([every.mean(), *((every.sum() - every) / (len(every) - 1))])


def test_better_is_clear_only_beyond_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    worse = rng.uniform(0.3, 0.9, 40)
    gains = rng.normal(0.0, 0.1, 40)
    gains -= gains.mean()
    error = gains.std(ddof=1) / np.sqrt(40)  # what the jackknife of a mean comes to
    for share, clear in ((0.9, False), (1.1, True)):
        better = worse + gains + share * error
        assert is_clearly_better(looks(better), looks(worse)) == clear
        assert not is_clearly_better(looks(worse), looks(better))


def test_without_two_pictures_nothing_is_clear() -> None:
    assert not is_clearly_better(np.array([0.9, np.nan]), np.array([0.1, 0.2]))
    assert not is_clearly_better(np.array([0.9]), np.array([0.1]))


def test_the_latest_weights_are_kept_unless_others_clearly_beat_them() -> None:
    choice = LatestNotWorse()
    good, slightly_worse, spoiled = [0.8] * 8, [0.8] * 7 + [0.7], [0.5] * 8
    kept = [choice.keeps(looks(one)) for one in ([0.2] * 8, good, slightly_worse, spoiled, good)]
    assert kept == [True, True, True, False, True]
    # Many small steps down are no way around it: all are held against the best.
    choice = LatestNotWorse()
    falling = [[0.8 - 0.001 * step] * 8 for step in range(5)]
    assert [choice.keeps(looks(one)) for one in falling] == [True, False, False, False, False]
