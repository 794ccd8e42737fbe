"""Real animals set into real water: where they should be, in its light, without seams."""

from __future__ import annotations

import numpy as np
import pytest

from synthdet.core.fusion import NUM_VIEWS
from synthdet.stages._sources import cut, set_in

WATER = np.full((60, 80, 3), (30, 120, 140), np.uint8)


def with_animal() -> np.ndarray:
    """A dark animal with a pale head on the left, on other water than `WATER`."""
    tile = np.full((50, 70, 3), (60, 90, 100), np.uint8)
    tile[16:24, 12:38] = 10
    tile[16:24, 12:18] = 220
    return tile


@pytest.mark.parametrize("view", range(NUM_VIEWS))
def test_a_part_is_seen_in_its_view(view: int) -> None:
    part = cut(with_animal(), (8, 12, 42, 28), view)
    assert part.shape == ((34, 16, 3) if view % 2 else (16, 34, 3))
    head = [float(value) for value in np.argwhere(part[..., 0] == 220).mean(axis=0)]
    middle = [(side - 1) / 2 for side in part.shape[:2]]
    where = {0: (0, -1), 1: (1, 0), 2: (0, 1), 3: (-1, 0)}[view % 4]
    if view >= 4:
        where = (-where[0], -where[1])
    assert np.sign(np.round(np.subtract(head, middle), 1)).tolist() == list(where)


def test_it_is_set_in_in_the_light_of_its_place() -> None:
    part = cut(with_animal(), (8, 12, 42, 28), 0)
    made = set_in(WATER, part, (40, 30, 74, 46))
    assert (WATER == (30, 120, 140)).all(), "left as it was"
    changed = (made != WATER).any(axis=2)
    rows, columns = np.argwhere(changed).T
    assert (rows.min(), rows.max()) == (34, 41)
    assert (columns.min(), columns.max()) == (44, 69)
    assert made[38, 60].tolist() == [0, 40, 50], "as much darker than its water as it was"


def test_edges_fade_out() -> None:
    part = np.full((20, 30, 3), 90, np.uint8)
    part[5:15, 0:20] = 250  # an animal that the box cuts
    made = set_in(WATER, part, (10, 10, 40, 30)).astype(int)
    steps = np.abs(np.diff(made[20, :40, 0]))
    assert steps[:14].max() < 120, "no step as high as the animal is bright"
    assert made[20, 15, 0] == 190
