"""Crops around animals: what a window holds is what its caption and its size ids say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from synthdet.pocket.build_crops import (
    CELL,
    STEP,
    captions_by_count,
    choose_windows,
    count_in,
    take,
)
from synthdet.pocket.build_scenes import Annotation

SIZE = 32
ORCAS = "aerial photo of two orcas in a deep blue sea, whitecaps"


def one(*boxes: tuple[float, float, float, float]) -> Annotation:
    return Annotation(ORCAS, boxes, ("orca",) * len(boxes))


@pytest.mark.parametrize("side", [16, 20, 24])
def test_a_window_holds_the_chosen_thing_and_lies_in_the_scene(side: int) -> None:
    rng = np.random.default_rng(side)
    generator = torch.Generator().manual_seed(side)
    seen = set()
    for _ in range(200):
        x, y = rng.uniform(0, 128 - 40, 2)
        # Windows lie on a grid of 16 pixels, so up to 8 pixels of a thing may be cut.
        box = (x, y, x + 40, y + 30)
        ((left, top),) = choose_windows([one(box)], side, SIZE, generator)
        seen.add((left, top))
        assert left % STEP == top % STEP == 0
        assert 0 <= left <= SIZE - side
        assert 0 <= top <= SIZE - side
        for low, high, first in ((x, x + 40, left), (y, y + 30, top)):
            assert CELL * first - low <= 8
            assert high - CELL * (first + side) <= 8
    assert len(seen) >= ((SIZE - side) // STEP + 1) ** 2 / 2, "all over the scene"


def test_a_thing_larger_than_the_window_is_centred() -> None:
    generator = torch.Generator().manual_seed(0)
    window = choose_windows([one((10, 0, 118, 20))], 16, SIZE, generator)[0]
    assert window == (8, 0)


def test_open_water_is_seen_everywhere_and_a_whole_scene_once() -> None:
    generator = torch.Generator().manual_seed(0)
    empty = [one()] * 60
    assert len(set(choose_windows(empty, 16, SIZE, generator))) > 15
    assert set(choose_windows(empty, SIZE, SIZE, generator)) == {(0, 0)}


def test_things_count_from_half_of_them_on() -> None:
    scene = one((0, 0, 20, 20), (60, 0, 68, 10), (58, 60, 66, 70))
    assert count_in(scene, (0, 0), 16) == 2  # 64 pixels: the second is half in, the third 3/10
    assert count_in(scene, (0, 0), SIZE) == 3
    assert count_in(scene, (16, 16), 16) == 0


def test_captions_keep_kind_sea_and_whitecaps() -> None:
    first, second, third = captions_by_count(one((0, 0, 9, 9), (20, 0, 29, 9)))
    assert second == ORCAS
    assert first == "aerial photo of one orca in a deep blue sea, whitecaps"
    assert third == "aerial photo of three orcas in a deep blue sea, whitecaps"
    kelp = Annotation("aerial photo of kelp in a green sea", (), ())
    assert captions_by_count(kelp) == (kelp.caption,) * 3


def test_windows_are_taken_where_they_are() -> None:
    grid = np.arange(2 * 8 * 8).reshape(2, 1, 8, 8)
    taken = take(grid, [(4, 0), (0, 4)], 4)
    assert taken.shape == (2, 1, 4, 4)
    assert (taken[0, 0] == grid[0, 0, :4, 4:]).all()
    assert (taken[1, 0] == grid[1, 0, 4:, :4]).all()
