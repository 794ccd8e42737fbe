from __future__ import annotations

import doctest

import numpy as np
import pytest

from synthdet.core import measures
from synthdet.core.measures import count_error, false_alarms_where_empty, find_failures, size_ranges
from synthdet.core.records import Box, DetectedBox


def test_doctests() -> None:
    assert doctest.testmod(measures).failed == 0


@pytest.mark.parametrize("number", [3, 4, 7, 100])
def test_sizes_are_thirds_and_every_animal_is_in_one(number: int) -> None:
    areas = np.random.default_rng(number).uniform(20, 900, number)
    ranges = size_ranges(areas.tolist())
    assert [one.name for one in ranges] == ["small", "medium", "large"]
    assert sum(one.num_boxes for one in ranges) == number
    assert all(abs(one.num_boxes - number / 3) <= 1 for one in ranges)
    for area in areas:
        assert sum(one.areas[0] <= area <= one.areas[1] for one in ranges) == 1


@pytest.mark.parametrize("areas", [[5] * 8 + [7, 9], [5, 7] + [9] * 8, [5, 7, 9] + [7] * 9])
def test_many_equal_sizes_leave_no_third_empty(areas: list[float]) -> None:
    ranges = size_ranges(areas)
    assert all(one.num_boxes for one in ranges)
    assert sum(one.num_boxes for one in ranges) == len(areas)


@pytest.mark.parametrize("areas", [[], [4, 4, 4, 9]])
def test_without_three_sizes_there_are_no_ranges(areas: list[float]) -> None:
    assert size_ranges(areas) == []


def animals(*classes: int) -> list[Box]:
    return [Box(xyxy=(0, 0, 9, 6), class_id=class_id) for class_id in classes]


def drawn(*boxes: tuple[int, float]) -> list[DetectedBox]:
    return [
        DetectedBox(xyxy=(0, 0, 9, 6), class_id=class_id, confidence=confidence)
        for class_id, confidence in boxes
    ]


def test_counts_are_of_photos_from_the_threshold_on() -> None:
    photos = ["a", "a", "b", "c"]
    truths = [animals(0, 1), animals(0), animals(), animals(0)]
    found = [drawn((0, 0.9)), drawn((0, 0.5)), drawn((1, 0.5), (1, 0.6)), drawn((0, 0.49))]
    # a: 2 of 3; b: 2 of 0; c: none of 1.
    error = count_error(photos, truths, found, 0.5)
    assert (error.bias, error.error) == (0, pytest.approx(4 / 3))
    of_class = count_error(photos, truths, found, 0.5, class_id=1)
    assert (of_class.bias, of_class.error) == (pytest.approx(1 / 3), 1)


def test_false_alarms_are_those_of_photos_without_any_animal() -> None:
    photos = ["a", "a", "b", "c"]
    truths = [animals(0), animals(), animals(), animals()]
    found = [drawn(), drawn((0, 0.9)), drawn((0, 0.9), (1, 0.7), (0, 0.2)), drawn()]
    assert false_alarms_where_empty(photos, truths, found, 0.5) == 1.0
    assert false_alarms_where_empty(["0", "1", "2", "3"], truths, found, 0.5) == 1.0
    assert false_alarms_where_empty(["a"], [animals(0)], [drawn((0, 0.9))], 0.5) is None


def test_failures_are_what_is_missed_and_what_is_not_there() -> None:
    near, far = (10.0, 10.0, 30.0, 20.0), (50.0, 10.0, 70.0, 20.0)
    truth = [Box(xyxy=near, class_id=0), Box(xyxy=far, class_id=0)]
    drawn = [
        DetectedBox(xyxy=(11, 10, 31, 20), class_id=0, confidence=0.6),
        DetectedBox(xyxy=(10, 10, 30, 20), class_id=0, confidence=0.9),  # the surer one has it
        DetectedBox(xyxy=far, class_id=1, confidence=0.8),  # of another class
        DetectedBox(xyxy=far, class_id=0, confidence=0.4),  # too unsure
    ]
    failures = find_failures(truth, drawn, 0.5)
    assert [box.xyxy for box in failures.missed] == [far]
    assert [box.confidence for box in failures.alarms] == [0.8, 0.6]
    assert find_failures(truth, drawn, 0.3).missed == ()
    assert find_failures([], [], 0.3).alarms == ()
