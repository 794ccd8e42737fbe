"""The plan of all tiles: every animal is in one, or it is told why not."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from synthdet.config import PrepareConfig
from synthdet.core.records import SPLITS, Box, Photo
from synthdet.stages._tiles import animal_sizes, plan_ground, plan_tiles


@st.composite
def surveys(draw: st.DrawFn) -> list[Photo]:
    photos = []
    for number in range(draw(st.integers(1, 8))):
        width, height = draw(st.integers(60, 400)), draw(st.integers(50, 300))
        boxes = []
        for _animal in range(draw(st.integers(0, 6))):
            w, h = draw(st.integers(3, min(width, 120))), draw(st.integers(3, min(height, 90)))
            x, y = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
            boxes.append(Box(xyxy=(x, y, x + w, y + h), class_id=draw(st.integers(0, 1))))
        photos.append(
            Photo(
                image_id=f"p{number}",
                path=f"p{number}.jpg",
                sha256="",
                width=width,
                height=height,
                group=f"g{number}",
                split=draw(st.sampled_from(SPLITS)),
                boxes=tuple(boxes),
            )
        )
    return photos


@settings(max_examples=60, deadline=None)
@given(surveys(), st.integers(1, 3), st.floats(1, 2), st.sampled_from([0.1, 0.3, 0.6]))
def test_no_animal_is_lost(photos, views, zoom, animal_fraction):
    own = PrepareConfig(resolution=64, views=views, zoom=zoom, animal_fraction=animal_fraction)
    ground = plan_ground(photos, own)
    dataset = {
        "classes": ["seal", "pup"],
        "crop_side": ground.crop_side,
        "animal_sizes": animal_sizes(photos),
    }
    planned = plan_tiles(photos, dataset, own)
    assert len({tile.tile_id for tile in planned.tiles}) == len(planned.tiles)
    shown: Counter[tuple[str, tuple[int, ...]]] = Counter()
    for tile in planned.tiles:
        assert tile.scale == 64 / (tile.xyxy[2] - tile.xyxy[0])
        for box in tile.boxes:
            assert min(box.xyxy) >= -1e-6
            assert max(box.xyxy) <= 64 + 1e-6
            edges = [value / tile.scale for value in box.xyxy]
            offset = (*tile.xyxy[:2], *tile.xyxy[:2])
            place = tuple(round(edge + own) for edge, own in zip(edges, offset, strict=True))
            shown[tile.image_id, place] += 1
    for split in SPLITS:
        animals = Counter(
            (photo.image_id, tuple(map(round, box.xyxy)))
            for photo in photos
            if photo.split == split
            for box in photo.boxes
        )
        without = sum(planned.without_tile[split].values())
        seen = {animal: shown[animal] for animal in animals if shown[animal]}
        if split == "train":
            lacking = sum(number for animal, number in animals.items() if animal not in seen)
            assert lacking <= without
        else:
            assert sum(seen.values()) + without == animals.total()
    again = plan_tiles(photos, dataset, own)
    assert again.tiles == planned.tiles
