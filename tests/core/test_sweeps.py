from __future__ import annotations

import doctest

import pytest

from synthdet.core import sweeps
from synthdet.core.differences import Difference
from synthdet.core.sweeps import GroupedPhoto, is_flat, nested_order, nested_photos

NAMES = [f"syn-{number:03d}" for number in range(40)]


def test_doctests() -> None:
    assert doctest.testmod(sweeps).failed == 0


def test_the_order_is_drawn_by_seed_and_by_nothing_else() -> None:
    assert nested_order(NAMES, 1) == nested_order(NAMES[::-1], 1)
    assert nested_order(NAMES, 1) != nested_order(NAMES, 2)
    assert {*nested_order(NAMES, 1)} == {*NAMES}
    without = nested_order(NAMES[:-1], 1)
    assert without == [name for name in nested_order(NAMES, 1) if name != NAMES[-1]]


@pytest.mark.parametrize("seed", range(6))
def test_photos_come_by_whole_groups_and_the_first_has_an_animal(seed: int) -> None:
    photos = [
        GroupedPhoto(f"{group}-{number}", group, has_animal=group == "d" and number == 2)
        for number in range(3)
        for group in "abcdef"
    ]
    order = nested_photos(photos, seed)
    assert sorted(order) == sorted(photo.name for photo in photos)
    groups = [name[0] for name in order]
    assert groups == [group for group in dict.fromkeys(groups) for _ in range(3)]
    assert groups[0] == "d"
    assert order[:3] == ["d-2", "d-0", "d-1"], "the one with an animal first"


def test_without_any_animal_the_order_is_still_drawn() -> None:
    photos = [GroupedPhoto(name, name, has_animal=False) for name in "abcdef"]
    assert nested_photos(photos, 0) == nested_order([*"abcdef"], 0)
    assert nested_photos([], 0) == []


@pytest.mark.parametrize(
    ("low", "high", "flat"),
    [(-0.009, 0.009, True), (-0.011, 0.0, False), (0.001, 0.02, False), (None, None, False)],
)
def test_flat(low: float | None, high: float | None, flat: bool) -> None:
    assert is_flat(Difference(0.0, low, high, 3, 9)) is flat
