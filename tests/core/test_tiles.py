"""Tiles: animals whole, none counted twice, everything the same at every start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthdet.core.records import Box
from synthdet.core.tiles import (
    SLIVER,
    Crop,
    Zoom,
    make_room,
    num_background,
    plan_background_crops,
    plan_ground,
    plan_object_crops,
    rng_for,
    size_bounds,
    take_in_turn,
    tile_boxes,
    visible_share,
)

SIDE = 60


def box(x1: float, y1: float, x2: float, y2: float) -> Box:
    return Box(xyxy=(x1, y1, x2, y2), class_id=0)


@st.composite
def photos(draw: st.DrawFn) -> tuple[list[Box], int, int]:
    width, height = draw(st.integers(40, 260)), draw(st.integers(30, 200))
    boxes = []
    for _number in range(draw(st.integers(0, 9))):
        w, h = draw(st.floats(3, min(width, 70))), draw(st.floats(3, min(height, 70)))
        x, y = draw(st.floats(0, width - w)), draw(st.floats(0, height - h))
        boxes.append(box(x, y, min(x + w, width), min(y + h, height)))
    return boxes, width, height


@settings(max_examples=60, deadline=None)
@given(photos(), st.integers(1, 3))
def test_animals_are_whole_and_each_is_in_one_tile_or_told(photo, views):
    boxes, width, height = photo
    planned = plan_object_crops(boxes, width, height, SIDE, views=views, rng=rng_for(0, "a"))
    for crop in planned.crops:
        x1, y1, x2, y2 = crop.xyxy
        assert x2 - x1 == y2 - y1 == SIDE
        assert x1 >= 0
        assert y1 >= 0
        assert x2 <= max(width, SIDE)
        assert y2 <= max(height, SIDE)
        for number, own in enumerate(boxes):
            share = visible_share(own.xyxy, crop.xyxy)
            if number in crop.animals:
                assert share == pytest.approx(1)
            else:
                assert share <= SLIVER + 1e-9
    shown = [animal for crop in planned.crops for animal in crop.animals]
    told = planned.too_large + planned.crowded
    assert set(shown) | set(told) == set(range(len(boxes)))
    if views == 1:
        assert len(shown) == len(set(shown))
        assert not set(shown) & set(told)


def test_views_differ_and_show_the_same_animal():
    planned = plan_object_crops(
        [box(100, 80, 120, 90)], 240, 180, SIDE, views=3, rng=rng_for(0, "a")
    )
    assert [crop.animals for crop in planned.crops] == [(0,)] * 3
    corners = np.array([crop.xyxy[:2] for crop in planned.crops])
    for first in range(3):
        for second in range(first):
            assert abs(corners[first] - corners[second]).max() >= SIDE // 16


@settings(max_examples=120, deadline=None)
@given(photos(), st.floats(1, 3), st.integers(20, SIDE), st.integers(0, 5))
def test_zoomed_looks_stay_within_the_sizes_seen(photo, factor, min_side, seed):
    boxes, width, height = photo
    longer = [max(own.xyxy[2] - own.xyxy[0], own.xyxy[3] - own.xyxy[1]) for own in boxes]
    zoom = Zoom(factor, size_bounds(longer), min_side)
    plain = plan_object_crops(
        boxes, width, height, SIDE, views=1, rng=rng_for(seed, "a"), zoom=zoom
    )
    assert all(crop.xyxy[2] - crop.xyxy[0] == SIDE for crop in plain.crops)
    planned = plan_object_crops(
        boxes, width, height, SIDE, views=4, rng=rng_for(seed, "a"), zoom=zoom
    )
    shown = {animal for crop in planned.crops for animal in crop.animals}
    assert shown | set(planned.too_large) | set(planned.crowded) == set(range(len(boxes)))
    for crop in planned.crops:
        x1, y1, x2, y2 = crop.xyxy
        assert x2 - x1 == y2 - y1 >= min_side
        assert SIDE / factor - 1 <= x2 - x1 <= SIDE * factor + 1
        assert min(x1, y1) >= 0
        assert x2 <= max(width, SIDE)
        assert y2 <= max(height, SIDE)
        for number, own in enumerate(boxes):
            share = visible_share(own.xyxy, crop.xyxy)
            assert share <= SLIVER + 1e-9 or number in crop.animals
            if number in crop.animals and x2 - x1 != SIDE:
                assert share == pytest.approx(1)
                size = longer[number] * SIDE / (x2 - x1)
                assert size >= min(zoom.sizes[0], longer[number]) - 1e-6
                assert size <= max(zoom.sizes[1], longer[number]) + 1e-6


def test_further_looks_differ_in_size():
    boxes = [
        box(100 + 60 * n, 80, 100 + 60 * n + length, 90) for n, length in enumerate((10, 20, 30))
    ]
    zoom = Zoom(1.5, (10, 30), 30)
    planned = plan_object_crops(boxes, 400, 300, SIDE, views=6, rng=rng_for(0, "a"), zoom=zoom)
    sides = [crop.xyxy[2] - crop.xyxy[0] for crop in planned.crops if 1 in crop.animals]
    assert sides[0] == SIDE
    assert len(set(sides)) >= 4
    assert min(sides) < SIDE < max(sides)


def test_no_zoom_is_as_if_there_was_none():
    boxes = [box(20, 20, 40, 30), box(150, 100, 190, 120), box(60, 140, 70, 146)]
    plans = [
        plan_object_crops(boxes, 240, 180, SIDE, views=3, rng=rng_for(7, "a"), zoom=zoom).crops
        for zoom in (None, Zoom(1, (10, 40), 20))
    ]
    assert plans[0] == plans[1]


def test_neighbours_share_a_tile():
    pair = [box(100, 80, 110, 90), box(120, 85, 132, 95)]
    planned = plan_object_crops(pair, 240, 180, SIDE, views=1, rng=rng_for(0, "a"))
    assert [crop.animals for crop in planned.crops] == [(0, 1)]


@pytest.mark.parametrize("seed", range(4))
def test_an_animal_between_two_tiles_is_in_one_of_them(seed):
    row = [box(90 + x, 80, 102 + x, 90) for x in (0, 40, 80)]
    planned = plan_object_crops(row, 300, 180, SIDE, views=1, rng=rng_for(seed, "a"))
    assert sorted(crop.animals for crop in planned.crops) == [(0, 1), (2,)]


def test_tiles_do_not_depend_on_other_photos():
    boxes = [box(20, 20, 40, 30), box(150, 100, 170, 120)]
    plans = [
        plan_object_crops(boxes, 240, 180, SIDE, views=2, rng=rng_for(7, "a")).crops
        for _again in range(2)
    ]
    assert plans[0] == plans[1]
    assert plan_object_crops(boxes, 240, 180, SIDE, views=2, rng=rng_for(8, "a")).crops != plans[0]


def test_tiles_keep_out_of_black_edges():
    blank = [(150.0, 0.0, 240.0, 180.0)]
    planned = plan_object_crops(
        [box(130, 80, 148, 90)], 240, 180, SIDE, views=3, rng=rng_for(0, "a"), blank=blank
    )
    assert all(crop.xyxy[2] <= 150 + SIDE * 0.05 + 1 for crop in planned.crops)
    crops = plan_background_crops([], 240, 180, SIDE, rng=rng_for(0, "a"), blank=blank)
    assert crops
    assert all(crop.xyxy[2] <= 150 + SIDE * 0.05 for crop in crops)


def test_an_animal_in_the_black_is_told():
    planned = plan_object_crops(
        [box(190, 80, 200, 90)],
        240,
        180,
        SIDE,
        views=1,
        rng=rng_for(0, "a"),
        blank=[(100.0, 0.0, 240.0, 180.0)],
        max_blank=0.25,
    )
    assert (planned.crops, planned.beside_blank) == ([], [0])


def test_background_touches_no_animal_and_does_not_overlap():
    animals = [box(70, 70, 130, 120)]
    crops = plan_background_crops(animals, 250, 190, SIDE, rng=rng_for(0, "a"))
    assert len(crops) >= 4
    for number, crop in enumerate(crops):
        assert visible_share(animals[0].xyxy, crop.xyxy) == 0
        assert all(visible_share(crop.xyxy, other.xyxy) == 0 for other in crops[:number])


@pytest.mark.parametrize(
    ("longer", "sizes", "scale", "side", "word"),
    [
        ([40.0], [(640, 480)], None, 160, "0.25 of a tile"),
        ([8.0], [(640, 480)], None, 64, "not more"),
        ([300.0], [(640, 480)], None, 480, "as large as the photos"),
        ([300.0], [(640, 480)] * 19 + [(90, 90)], None, 480, "as large as the photos"),
        ([300.0], [(50, 40)], None, 64, "not more"),
        ([40.0], [(640, 480)], 0.5, 256, "prepare.scale"),
    ],
)
def test_the_ground_scale(longer, sizes, scale, side, word):
    ground = plan_ground(longer, sizes, resolution=128, animal_fraction=0.25, scale=scale)
    assert ground.crop_side == side
    assert ground.scale == 128 / side
    assert word in ground.reason


def test_crowds_get_larger_tiles():
    corners = np.random.default_rng(0).uniform((0, 0), (112, 114), (20, 2)).tolist()
    crowd = [box(x, y, x + 24, y + 18) for x, y in corners]
    photos = [(crowd, 136, 132)]
    wanted = plan_ground([24.0], [(136, 132)], resolution=64, animal_fraction=0.3, scale=None)
    grown = make_room(wanted, photos, resolution=64, seed=0)
    assert wanted.crop_side < grown.crop_side == 136
    assert "crowd" in grown.reason
    sparse = [([box(10, 10, 34, 28)], 136, 132)]
    assert make_room(wanted, sparse, resolution=64, seed=0) == wanted


def test_backgrounds_are_taken_from_all_photos_in_turn():
    crops = [Crop((x, 0, x + 9, 9), ()) for x in range(0, 60, 10)]
    taken = take_in_turn([crops[:3], crops[3:4], []], 3)
    assert taken == [crops[:2], crops[3:4], []]
    assert num_background(8, 5, 0.2) == 2


def test_boxes_of_a_tile_are_in_its_own_pixels():
    boxes = [box(0, 0, 5, 5), box(30, 20, 50, 30)]
    assert tile_boxes(boxes, Crop((10, 10, 70, 70), (1,)), 2.0)[0].xyxy == (40, 20, 80, 40)
