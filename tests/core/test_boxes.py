"""Boxes: every dropped one has a reason, and boxes turn exactly as pixels do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthdet.core.boxes import check_boxes, fills_photo, to_crop, to_upright
from synthdet.core.records import Box
from synthdet.stages._photos import _turn

WIDTH, HEIGHT = 60, 40


def box(*xyxy: float, class_id: int = 0) -> Box:
    return Box(xyxy=xyxy, class_id=class_id)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ((60, 5, 70, 10), "lies outside the photo"),
        ((-9, -9, -1, 5), "lies outside the photo"),
        ((10, 5, 10.5, 20), "is thinner than a pixel"),
        ((59.5, 5, 90, 20), "is thinner than a pixel"),
        ((float("nan"), 0, 5, 5), "is not made of finite numbers"),
        ((0, 0, float("inf"), 5), "is not made of finite numbers"),
    ],
)
def test_useless_boxes_are_dropped_with_a_reason(given, reason):
    kept, dropped = check_boxes([box(*given)], WIDTH, HEIGHT)
    assert kept == []
    assert [why for _box, why in dropped] == [reason]


def test_boxes_are_clipped_and_corners_put_in_order():
    kept, dropped = check_boxes([box(50, 30, 70, 50), box(20, 10, 5, 2)], WIDTH, HEIGHT)
    assert [own.xyxy for own in kept] == [(50, 30, 60, 40), (5, 2, 20, 10)]
    assert dropped == []


def test_the_same_box_of_another_class_is_not_a_twin():
    twins = [box(1, 1, 9, 9), box(1, 1, 9, 9), box(1, 1, 9, 9, class_id=1)]
    kept, dropped = check_boxes(twins, WIDTH, HEIGHT)
    assert [own.class_id for own in kept] == [0, 1]
    assert len(dropped) == 1


def test_a_box_drawn_twice_is_one_though_the_hand_shook():
    drawn = [box(10.2, 5, 20, 15), box(9.6, 5.4, 20.9, 14.2), box(10.2, 5, 20, 17)]
    kept, dropped = check_boxes(drawn, WIDTH, HEIGHT)
    assert kept == [drawn[0], drawn[2]]
    assert dropped == [(drawn[1], "is there twice")]


@pytest.mark.parametrize(
    ("xyxy", "fills"),
    [
        ((0, 0, 60, 40), True),
        ((0, 4, 60, 31), True),
        ((0, 4, 60, 12), False),  # a long log across the photo
        ((5, 0, 55, 40), True),
        ((5, 5, 55, 35), False),  # a whale from close by
    ],
)
def test_boxes_of_whole_photos_are_seen(xyxy, fills):
    assert fills_photo(xyxy, WIDTH, HEIGHT) is fills


edges = st.floats(-1e6, 1e6) | st.floats() | st.integers(-5, 70).map(float)


@given(st.lists(st.tuples(edges, edges, edges, edges, st.integers(0, 1)), max_size=12))
def test_every_box_is_kept_inside_or_dropped_with_a_reason(drawn):
    boxes = [box(*corners, class_id=class_id) for *corners, class_id in drawn]
    kept, dropped = check_boxes(boxes, WIDTH, HEIGHT)
    assert len(kept) + len(dropped) == len(boxes)
    for own in kept:
        x1, y1, x2, y2 = own.xyxy
        assert 0 <= x1 < x2 <= WIDTH
        assert 0 <= y1 < y2 <= HEIGHT
        assert min(x2 - x1, y2 - y1) >= 1
    assert all(reason for _box, reason in dropped)
    assert check_boxes(kept, WIDTH, HEIGHT) == (kept, [])


inside = st.tuples(st.floats(0, 29), st.floats(0, 19), st.floats(30, 60), st.floats(20, 40))
BACK = {6: 8, 8: 6}


@given(inside, st.integers(1, 8))
def test_boxes_turn_back(xyxy, orientation):
    upright = to_upright(xyxy, orientation, WIDTH, HEIGHT)
    size = (HEIGHT, WIDTH) if orientation > 4 else (WIDTH, HEIGHT)
    assert 0 <= upright[0] < upright[2] <= size[0]
    assert 0 <= upright[1] < upright[3] <= size[1]
    back = to_upright(upright, BACK.get(orientation, orientation), *size)
    assert back == pytest.approx(xyxy, abs=1e-9)


@given(inside, st.integers(0, 29), st.integers(0, 19), st.floats(0.1, 4))
def test_a_box_in_a_crop_comes_back(xyxy, left, top, scale):
    cropped = to_crop(box(*xyxy), (left, top, left + 64, top + 64), scale)
    back = [value / scale + (left, top)[place % 2] for place, value in enumerate(cropped.xyxy)]
    expected = [max(value, (left, top)[place % 2]) for place, value in enumerate(xyxy)]
    assert all(math.isclose(a, b, abs_tol=0.5) for a, b in zip(back, expected, strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_as_pixels_do(orientation):
    stored = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    stored[5:12, 40:55] = 255
    upright = _turn(stored, orientation)
    x1, y1, x2, y2 = to_upright((40, 5, 55, 12), orientation, WIDTH, HEIGHT)
    rows, columns = np.nonzero(upright[:, :, 0])
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x1, y1, x2, y2)


def test_a_box_in_a_crop_is_moved_scaled_and_clipped():
    assert to_crop(box(8, 10, 20, 20), (10, 0, 40, 30), 2).xyxy == (0, 20, 20, 40)
