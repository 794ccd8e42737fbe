"""Windows: what is chosen stays whole, every place comes up, nothing reaches over the edge."""

from __future__ import annotations

import doctest
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthdet.core import windows
from synthdet.core.windows import place_window

SIZE = 24
SHARES = st.floats(0, 1, exclude_max=True)


def test_doctests() -> None:
    assert doctest.testmod(windows).failed == 0


@given(
    corner=st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1)),
    far=st.tuples(st.integers(1, SIZE), st.integers(1, SIZE)),
    draw=st.tuples(SHARES, SHARES, SHARES),
    side=st.integers(1, SIZE),
)
def test_a_box_that_fits_is_whole_and_one_that_does_not_fills_the_window(
    corner: tuple[int, int], far: tuple[int, int], draw: tuple[float, float, float], side: int
) -> None:
    first = tuple(min(a, b - 1) if b > a else b - 1 for a, b in zip(corner, far, strict=True))
    window = place_window([(*first, *far)], draw, side=side, size=SIZE)
    for low, high, begins in zip(first, far, window, strict=True):
        assert 0 <= begins <= SIZE - side
        if high - low <= side:
            assert begins <= low
            assert high <= begins + side
        else:
            assert low - 1 <= begins
            assert begins + side <= high + 1


def test_every_place_and_every_box_comes_up_alike() -> None:
    rng = np.random.default_rng(0)
    boxes = [(2, 0, 6, 4), (18, 18, 22, 24)]
    drawn = [place_window(boxes, tuple(rng.random(3)), side=12, size=SIZE) for _ in range(4000)]
    lefts = Counter(left for left, _ in drawn)
    assert set(lefts) == {0, 1, 2, *range(10, 13)}
    assert sum(lefts[left] for left in (0, 1, 2)) == pytest.approx(2000, abs=150)
    assert lefts[1] == pytest.approx(1000, abs=120), "the two ends of a range share one part"
    empty = Counter(place_window([], tuple(rng.random(3)), side=12, size=SIZE) for _ in range(4000))
    assert len(empty) == 13 * 13
