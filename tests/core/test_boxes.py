"""Boxes: every dropped one has a reason, and boxes turn exactly as pixels do."""

from __future__ import annotations

import numpy as np
import pytest

from synthdet.core.boxes import check_boxes, to_crop, to_upright
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
