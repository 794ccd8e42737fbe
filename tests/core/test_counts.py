from __future__ import annotations

import doctest

import numpy as np
import pytest

from synthdet.core import counts
from synthdet.core.counts import (
    CountedPicture,
    CountModel,
    compare_count,
    expect_animals,
    fit_count_model,
)
from synthdet.core.records import XYXY


def test_doctests() -> None:
    assert doctest.testmod(counts).failed == 0


def counted(
    group: str, true: int, found: int, *, repeated: int = 0, false: int = 0
) -> CountedPicture:
    return CountedPicture(group, 1.0, true, found, repeated, false)


def fit(pictures: list[CountedPicture]) -> CountModel:
    error = fit_count_model(pictures, np.random.default_rng(0))
    assert error is not None
    return error


ANIMALS: list[XYXY] = [(0, 0, 20, 10), (40, 0, 60, 10)]


@pytest.mark.parametrize(
    ("truth", "drawn", "numbers"),
    [
        (ANIMALS, [], (2, 0, 0, 0)),
        ([], [(0, 0, 5, 5)], (0, 0, 0, 1)),
        ([], [], (0, 0, 0, 0)),
        (ANIMALS, [(0, 0, 20, 10), (40, 0, 60, 10)], (2, 2, 0, 0)),
        (ANIMALS, [(6, 0, 26, 10), (0, 0, 20, 10), (80, 0, 90, 9)], (2, 1, 1, 1)),
        (ANIMALS, [(0, 0, 60, 10)], (2, 1, 0, 0)),  # one box over both counts one
        ([(0, 0, 20, 10), (15, 0, 35, 10)], [(15, 0, 35, 10), (9, 0, 26, 10)], (2, 2, 0, 0)),
    ],
)
def test_boxes_that_count_an_animal(
    truth: list[XYXY], drawn: list[XYXY], numbers: tuple[int, int, int, int]
) -> None:
    one = compare_count(truth, drawn, group="a")
    assert (one.num_true, one.num_found, one.num_repeated, one.num_false) == numbers
    assert one.num_drawn == len(drawn)


def test_without_an_animal_nothing_can_be_said() -> None:
    assert fit_count_model([counted("a", 0, 0, false=2)], np.random.default_rng(0)) is None
    assert fit_count_model([], np.random.default_rng(0)) is None


def test_bias_and_error_of_the_test_pictures() -> None:
    error = fit([counted("a", 4, 2), counted("b", 0, 0, false=1), counted("b", 2, 2, repeated=1)])
    assert error.bias == pytest.approx((-2 + 1 + 1) / 3)
    assert error.mean_error == pytest.approx((2 + 1 + 1) / 3)
    assert (error.num_animals, error.num_groups) == (6, 2)


def test_misses_raise_the_count_and_false_alarms_lower_it_by_the_area() -> None:
    rng = np.random.default_rng(0)
    missing = fit([counted(f"g{n}", 100, 50) for n in range(8)])
    _each, total = expect_animals([100], [10], missing, rng)
    assert total.expected == pytest.approx(200, rel=0.01)
    assert total.low < 180
    assert total.high > 220
    alarmed = fit([counted(f"g{n}", 100, 100, false=10) for n in range(8)])
    _each, near = expect_animals([100], [1], alarmed, rng)
    _each, far = expect_animals([100], [5], alarmed, rng)
    assert near.expected == pytest.approx(90)
    assert far.expected == pytest.approx(50)
    repeating = fit([counted(f"g{n}", 100, 100, repeated=25) for n in range(8)])
    assert expect_animals([100], [1], repeating, rng)[1].expected == pytest.approx(80)


def test_photos_add_up_to_the_survey() -> None:
    error = fit([counted(f"g{n}", 10, 8, repeated=1, false=1) for n in range(5)])
    each, total = expect_animals([0, 3, 0, 12], [4, 4, 2, 2], error, np.random.default_rng(0))
    assert sum(one.expected for one in each) == pytest.approx(total.expected)
    assert [one.drawn for one in each] == [0, 3, 0, 12]
    assert all(one.low <= one.expected <= one.high for one in (*each, total))
    assert each[0].expected == 0
    assert each[0].high >= 1  # one may have been missed


def test_fewer_test_animals_give_a_wider_interval() -> None:
    widths = []
    for number in (3, 30, 300):
        error = fit([counted(f"g{n % 4}", 1, int(n % 3 > 0)) for n in range(number)])
        _each, total = expect_animals([40], [1], error, np.random.default_rng(0))
        widths.append(total.high - total.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 2 * widths[2]


def test_a_set_without_a_miss_still_has_an_interval() -> None:
    error = fit([counted(f"g{n}", 1, 1) for n in range(10)])
    _each, total = expect_animals([50], [10], error, np.random.default_rng(0))
    assert total.expected == 50
    assert 30 < total.low < 50 < total.high < 70


def test_one_group_alone_still_gives_an_interval() -> None:
    error = fit([counted("a", 2, n % 3) for n in range(9)])
    assert error.num_groups == 1
    assert np.ptp(error.found) > 0.1


def test_the_same_draws_give_the_same_numbers() -> None:
    pictures = [counted(f"g{n}", 3, 2, false=n % 2) for n in range(4)]
    again = [
        expect_animals([5, 1], [1, 1], fit(pictures), np.random.default_rng(1)) for _ in range(2)
    ]
    assert again[0] == again[1]


def share_inside(num_groups: int, found: float, false: float, area: float, own: float) -> float:
    """Of 120 simulated surveys, those whose interval holds the true number.

    Args:
        num_groups: Groups of test pictures.
        found: Share of the animals that are found.
        false: False alarms a tile.
        area: Tiles of a photo of the survey.
        own: How much ``found`` differs from group to group, and in the survey: a standard deviation.
    """
    inside, off = 0, []
    for study in range(120):
        rng = np.random.default_rng([study, num_groups])

        def look(
            animals: int, area: float, share: float, rng: np.random.Generator = rng
        ) -> tuple[int, int, int]:
            seen = int(rng.binomial(animals, share))
            return seen, int(rng.binomial(seen, 0.05)), int(rng.poisson(false * area))

        shares = np.clip(found + rng.normal(0, own, num_groups + 1), 0.05, 1)
        pictures = []
        for n in range(15 * num_groups):
            animals = int(rng.poisson(1.2))
            numbers = look(animals, 1.0, shares[n % num_groups])
            pictures.append(CountedPicture(f"g{n % num_groups}", 1.0, animals, *numbers))
        true = [int(rng.poisson(0.8)) for _ in range(40)]
        drawn = [sum(look(animals, area, shares[-1])) for animals in true]
        _each, total = expect_animals(
            drawn, [area] * 40, fit(pictures), np.random.default_rng(study)
        )
        inside += total.low <= sum(true) <= total.high
        off.append((total.expected - sum(true)) / sum(true))
    assert abs(np.mean(off)) < 0.06
    return inside / 120


DESIGNS = [(3, 0.8, 0.01, 1.0), (6, 0.9, 0.02, 5.0)]


@pytest.mark.parametrize("design", DESIGNS)
def test_the_interval_holds_the_truth_about_as_often_as_it_says(
    design: tuple[int, float, float, float],
) -> None:
    assert 0.92 <= share_inside(*design, own=0) <= 1


@pytest.mark.parametrize("design", DESIGNS)
def test_the_interval_holds_it_less_often_where_the_survey_differs(
    design: tuple[int, float, float, float],
) -> None:
    assert 0.75 <= share_inside(*design, own=0.08) < share_inside(*design, own=0)
