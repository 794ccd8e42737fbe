from __future__ import annotations

import doctest

import numpy as np
import pytest

from synthdet.core import fusion
from synthdet.core.fusion import NUM_VIEWS, fuse_boxes, split_by_source, turn_picture, undo_view
from synthdet.core.records import DetectedBox


def test_doctests() -> None:
    assert doctest.testmod(fusion).failed == 0


def box(x1: float, x2: float, confidence: float, class_id: int = 0) -> DetectedBox:
    """Ten high, so that overlaps are those of lengths."""
    return DetectedBox(xyxy=(x1, 0, x2, 10), class_id=class_id, confidence=confidence)


@pytest.mark.parametrize("view", range(NUM_VIEWS))
def test_a_box_in_a_view_is_found_where_it_was(view: int) -> None:
    """A white patch in a picture that is not square, looked for in every view."""
    picture = np.zeros((5, 7, 3), dtype=np.uint8)
    picture[1:3, 4:7] = 255
    turned = turn_picture(picture, view)
    rows, columns = np.nonzero(turned[..., 0])
    drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert undo_view(np.array([drawn]), view, (7, 5)).tolist() == [[4, 1, 7, 3]]
    assert undo_view(np.empty((0, 4)), view, (7, 5)).shape == (0, 4)


def test_the_eight_views_are_eight() -> None:
    picture = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    assert len({turn_picture(picture, view).tobytes() for view in range(NUM_VIEWS)}) == 8
    stacked = turn_picture(np.stack([picture, picture + 4]), 5)
    assert stacked[1].tolist() == (turn_picture(picture, 5) + 4).tolist()


def test_three_voters_by_hand() -> None:
    """Weights 0.8, 0.4 and 0.2 on 0..10, 0..13 and 0..10: the right edge is 15.2 / 1.4."""
    fused = fuse_boxes([[box(0, 10, 0.8)], [box(0, 13, 0.4)], [box(0, 10, 0.2)], []])
    assert len(fused) == 1
    edge = (8 + 5.2 + 2) / 1.4
    assert fused[0].xyxy == (0, 0, pytest.approx(edge, abs=1e-3), 10)
    assert fused[0].confidence == pytest.approx((0.8 + 0.4 + 0.2) / 4)
    overlap = (10 / edge + edge / 13 + 10 / edge) / 4
    assert fused[0].agreement == pytest.approx(overlap, abs=1e-6)
    assert fused[0].source == "fused"


def test_a_voter_has_one_voice() -> None:
    once = fuse_boxes([[box(0, 10, 0.6)], [box(0, 10, 0.6)]])
    twice = fuse_boxes([[box(0, 10, 0.6), box(0, 9, 0.5)], [box(0, 10, 0.6)]])
    assert once == twice
    assert once[0].confidence == 0.6


def test_neighbours_and_kinds_stay_apart() -> None:
    views = [[box(0, 10, 0.9), box(8, 18, 0.8)]] * 2
    assert [one.xyxy[0] for one in fuse_boxes(views)] == [0, 8]
    kinds = fuse_boxes([[box(0, 10, 0.9)], [box(0, 10, 0.8, class_id=1)]])
    assert [(one.class_id, one.confidence) for one in kinds] == [(0, 0.45), (1, 0.4)]


def test_a_shifted_box_agrees_less() -> None:
    """Overlap of 0..10 and 3..13 is 7 / 13 > 0.5: one animal, but nobody knows quite where."""
    fused = fuse_boxes([[box(0, 10, 0.5)], [box(3, 13, 0.5)]])
    assert [one.xyxy for one in fused] == [(1.5, 0, 11.5, 10)]
    assert fused[0].agreement == pytest.approx(8.5 / 11.5, abs=1e-6)


def test_the_order_of_voters_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    lefts = rng.uniform(0, 40, (8, 6))
    voters = [
        [box(left, left + 10, float(confidence)) for left, confidence in zip(row, rng.uniform(0.1, 1, 6), strict=True)]
        for row in lefts
    ]  # fmt: skip
    assert fuse_boxes(voters) == fuse_boxes(voters[::-1])


def test_nothing_is_nothing() -> None:
    assert fuse_boxes([]) == fuse_boxes([[], []]) == ()


def test_split_by_source() -> None:
    boxes = [box(0, 1, 0.5).model_copy(update={"source": name}) for name in ("b", "a", "b", "c")]
    assert [len(some) for some in split_by_source(boxes, ["a", "b", "d"])] == [1, 2, 0]
