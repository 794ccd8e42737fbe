"""Large pictures tile by tile, with a detector that finds what is red."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthdet.core.fusion import view_source
from synthdet.core.records import XYXY, DetectedBox
from synthdet.errors import SynthdetError
from synthdet.stages.label_tiles import PICTURES_AT_ONCE, TiledDetector

SIDE, OVERLAP = 64, 24


class RedFinder:
    """Draws the box around all that is red in a picture, in two views."""

    names = ("whale",)
    queries = None

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []

    def detect(
        self, paths: Sequence[Path], *, min_confidence: float, views: bool = False
    ) -> list[tuple[DetectedBox, ...]]:
        found = []
        sizes = []
        for path in paths:
            with Image.open(path) as image:
                sizes.append(image.size)
                red = np.asarray(image.convert("RGB"))[:, :, 0] > 200
            rows, columns = (np.flatnonzero(red.any(axis=axis)) for axis in (1, 0))
            boxes = []
            for view in range(2 if views else 1):
                if len(rows):
                    xyxy = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
                    boxes.append(
                        DetectedBox(
                            xyxy=xyxy, class_id=0, confidence=0.9 - view / 10,
                            source=view_source("detector", view),
                        )
                    )  # fmt: skip
            found.append(tuple(box for box in boxes if box.confidence >= min_confidence))
        self.batches.append(sizes)
        return found


def save(path: Path, size_wh: tuple[int, int], *animals: XYXY) -> Path:
    picture = np.zeros((size_wh[1], size_wh[0], 3), np.uint8)
    for x1, y1, x2, y2 in animals:
        picture[int(y1) : int(y2), int(x1) : int(x2), 0] = 255
    Image.fromarray(picture).save(path)
    return path


def test_an_animal_of_a_large_picture_is_found_once_in_every_view(tmp_path: Path) -> None:
    animals = [(5, 6, 25, 16), (100, 70, 120, 84)]  # the second across the tiles' edges
    large = save(tmp_path / "large.png", (150, 110), *animals)
    small = save(tmp_path / "small.png", (SIDE, 40), (10, 10, 20, 15))
    finder = RedFinder()
    tiled = TiledDetector(finder, SIDE, OVERLAP, tmp_path)
    found, whole = tiled.detect([large, small], min_confidence=0.1, views=True)
    for source in ("detector", "detector:view-1"):
        boxes = [box.xyxy for box in found if box.source == source]
        assert sorted(boxes) == animals
    assert [box.source for box in found] == ["detector"] * 2 + ["detector:view-1"] * 2
    assert whole == finder.detect([small], min_confidence=0.1, views=True)[0]
    assert len(finder.batches[0]) > 4, "tiles of several pictures go together"
    assert finder.batches[0][-1] == (SIDE, 40), "a small picture is not cut"
    assert set(finder.batches[0][:-1]) == {(SIDE, SIDE)}
    assert (tiled.names, tiled.queries) == (finder.names, None)


def test_few_tiles_wait_on_the_disk(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}.png", (80, 60), (n, 8, n + 9, 16)) for n in range(19)]
    finder = RedFinder()
    found = TiledDetector(finder, SIDE, OVERLAP, tmp_path).detect(paths, min_confidence=0.1)
    assert [boxes[0].xyxy[0] for boxes in found] == list(range(19))
    assert [len(batch) for batch in finder.batches] == [2 * n for n in (PICTURES_AT_ONCE, 8, 3)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)


def test_a_torn_picture_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "torn.png", (150, 110), (5, 6, 25, 16))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(SynthdetError, match=r"torn\.png"):
        TiledDetector(RedFinder(), SIDE, OVERLAP, tmp_path).detect([path], min_confidence=0.1)
    assert [one.name for one in tmp_path.iterdir()] == ["torn.png"]
