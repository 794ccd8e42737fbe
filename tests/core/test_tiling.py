from __future__ import annotations

import doctest

import numpy as np
import pytest

from synthdet.core import tiling
from synthdet.core.records import XYXY, DetectedBox
from synthdet.core.tiling import (
    Look,
    fullest_window,
    merge_looks,
    plan_overlap,
    plan_tiles,
    to_photo,
)

SIZE = (100, 60)
LEFT, RIGHT = (0, 0, 60, 60), (40, 0, 100, 60)


def drawn(xyxy: XYXY, confidence: float = 0.9, class_id: int = 0) -> DetectedBox:
    return DetectedBox(xyxy=xyxy, class_id=class_id, confidence=confidence)


def merge(*looks: tuple[tuple[int, int, int, int], list[DetectedBox]]) -> list[DetectedBox]:
    return list(merge_looks([Look(tile, tuple(boxes)) for tile, boxes in looks], SIZE, 1.0))


def test_doctests() -> None:
    assert doctest.testmod(tiling).failed == 0


@pytest.mark.parametrize(
    ("width", "height", "side", "overlap"),
    [(5472, 3648, 1024, 61), (100, 60, 60, 20), (61, 60, 60, 30), (7, 999, 100, 50), (40, 30, 64, 8)],
)  # fmt: skip
def test_tiles_cover_the_photo_and_overlap(
    width: int, height: int, side: int, overlap: int
) -> None:
    tiles = plan_tiles(width, height, side, overlap)
    seen = np.zeros((height, width), dtype=bool)
    for x1, y1, x2, y2 in tiles:
        assert (x2 - x1, y2 - y1) == (side, side)
        assert x1 >= 0
        assert y1 >= 0
        assert x2 <= max(width, side)
        assert y2 <= max(height, side)
        seen[y1:y2, x1:x2] = True
    assert seen.all()
    for axis in (0, 1):
        starts = sorted({tile[axis] for tile in tiles})
        gaps = np.diff(starts)
        assert (gaps <= side - overlap).all()
        fewer = len(starts) - 1
        length = (width, height)[axis]
        assert fewer == 0 or fewer * side - (fewer - 1) * overlap < length  # one less would not do


def test_every_animal_up_to_the_overlap_is_whole_in_a_tile() -> None:
    rng = np.random.default_rng(0)
    overlap = plan_overlap(97, 31)
    tiles = np.array(plan_tiles(613, 401, 97, overlap))
    for _ in range(500):
        w, h = rng.uniform(1, 31, 2)
        x, y = rng.uniform(0, 613 - w), rng.uniform(0, 401 - h)
        inside = (tiles[:, 0] <= x) & (tiles[:, 1] <= y) & (tiles[:, 2] >= x + w)
        assert (inside & (tiles[:, 3] >= y + h)).any()


def test_boxes_in_what_a_small_photo_was_filled_up_with_are_dropped() -> None:
    boxes = [drawn((10, 10, 30, 30)), drawn((90, 10, 130, 30)), drawn((110, 10, 120, 30))]
    found = to_photo(boxes, (0, 0, 64, 64), 2.0, (50, 40))
    assert [box.xyxy for box in found] == [(5, 5, 15, 15)]
    assert to_photo([drawn((90, 10, 104, 30))], (0, 0, 64, 64), 2.0, (50, 40))[0].xyxy == (
        45, 5, 50, 15,
    )  # fmt: skip


def test_an_animal_in_the_overlap_counts_once() -> None:
    found = merge(
        (LEFT, [drawn((44, 10, 56, 20), 0.6)]),
        (RIGHT, [drawn((44.5, 10, 57, 20), 0.8)]),
    )
    assert [(box.xyxy, box.confidence) for box in found] == [((44.5, 10, 57, 20), 0.8)]


@pytest.mark.parametrize("piece", [(50, 10, 60, 20), (57, 11, 60, 19), (58, 10, 60, 26)])
def test_a_piece_is_no_animal_of_its_own_and_the_whole_box_stands(piece: XYXY) -> None:
    whole = drawn((50, 10, 75, 20), 0.7)
    for confidence in (0.4, 0.9):
        found = merge((LEFT, [drawn(piece, confidence)]), (RIGHT, [whole]))
        assert [box.xyxy for box in found] == [whole.xyxy]
        assert found[0].confidence == max(confidence, 0.7)


def test_a_doubtful_whole_box_does_not_swallow_a_sure_piece() -> None:
    """Something that covers two animals, drawn with next to no confidence."""
    found = merge((LEFT, [drawn((50, 10, 60, 20), 0.9)]), (RIGHT, [drawn((42, 5, 95, 55), 0.02)]))
    assert found[0].xyxy == (50, 10, 60, 20)


def test_a_long_animal_cut_in_both_tiles_is_joined() -> None:
    found = merge((LEFT, [drawn((20, 10, 60, 20), 0.8)]), (RIGHT, [drawn((40, 10, 80, 20.5), 0.7)]))
    assert [box.xyxy for box in found] == [(20, 10, 80, 20.5)]


def test_neighbours_stay_two() -> None:
    found = merge(
        (LEFT, [drawn((40, 10, 50, 20), 0.8), drawn((51, 10, 60, 20), 0.7)]),
        (RIGHT, [drawn((51, 10, 62, 20), 0.9), drawn((40, 10, 50, 20), 0.6)]),
    )
    assert sorted(box.xyxy for box in found) == [(40, 10, 50, 20), (51, 10, 62, 20)]


def test_other_classes_and_twice_drawn() -> None:
    boxes = [drawn((10, 10, 30, 20), 0.9), drawn((11, 10, 30, 20), 0.5)]
    assert len(merge((LEFT, boxes))) == 1
    assert len(merge((LEFT, [boxes[0], drawn((11, 10, 30, 20), 0.5, class_id=1)]))) == 2
    assert merge() == []


def test_order_of_tiles_does_not_matter_and_a_threshold_takes_the_same_animals() -> None:
    rng = np.random.default_rng(3)
    tiles = plan_tiles(300, 200, 60, 20)
    looks = []
    for tile in tiles:
        corners = rng.uniform(0, 50, (6, 2)) + tile[:2]
        boxes = [
            drawn((x, y, min(x + 14, tile[2]), min(y + 9, tile[3])), float(rng.uniform(0, 1)))
            for x, y in corners.tolist()
        ]
        looks.append(Look(tile, tuple(boxes)))
    merged = merge_looks(looks, (300, 200), 1.0)
    assert merge_looks(looks[::-1], (300, 200), 1.0) == merged
    assert [box.confidence for box in merged] == sorted(
        (box.confidence for box in merged), reverse=True
    )


def test_simulated_photos_have_as_many_boxes_as_animals() -> None:
    """A detector that draws whatever part of an animal a tile shows, a pixel wrong."""
    rng = np.random.default_rng(1)
    size, side = (700, 500), 128
    tiles = plan_tiles(*size, side, plan_overlap(side, 30))
    for _ in range(5):
        places = [(x, y) for x in range(5, 660, 45) for y in range(5, 460, 45)]
        chosen = rng.permutation(len(places))[:60]
        animals = [
            (places[i][0], places[i][1], places[i][0] + w, places[i][1] + h)
            for i, (w, h) in zip(chosen.tolist(), rng.uniform(8, 30, (60, 2)).tolist(), strict=True)
        ]
        looks = []
        for tile in tiles:
            boxes = []
            for animal in animals:
                x1, y1 = max(animal[0], tile[0]), max(animal[1], tile[1])
                x2, y2 = min(animal[2], tile[2]), min(animal[3], tile[3])
                if x2 - x1 > 2 and y2 - y1 > 2:
                    edges = np.array([x1, y1, x2, y2]) + rng.uniform(-0.5, 0.5, 4)
                    edges = np.clip(edges, [*tile[:2], *tile[:2]], [*tile[2:], *tile[2:]])
                    a, b, c, d = edges.tolist()
                    boxes.append(drawn((a, b, c, d), float(rng.uniform(0.55, 1))))
            looks.append(Look(tile, tuple(boxes)))
        found = merge_looks(looks, size, 1.5)
        assert len(found) == 60
        for x1, y1, x2, y2 in animals:
            off = min(np.abs(np.subtract(box.xyxy, (x1, y1, x2, y2))).max() for box in found)
            assert off < 1.5


def test_the_fullest_window() -> None:
    assert fullest_window([], (400, 100), 80) == (160, 10, 240, 90)
    assert fullest_window([(5, 5, 9, 9)], (50, 40), 64) == (0, 0, 64, 64)
