"""Large photos as overlapping tiles, and the boxes of the tiles as boxes of the photo.

A detector that has learned from tiles at one ground scale looks at a photo tile by tile. Tiles overlap
by a large animal, so that every animal lies whole in one of them; it is then seen more than once, and
must not count more than once.

Source: Akyon, Altinuc & Temizel, "Slicing aided hyper inference and fine-tuning for small object
detection", ICIP 2022. What two tiles drew is held against each other only where both could see it,
so that a box and the piece of it that a neighbour shows are known as one animal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from synthdet.core.boxes import MIN_SIDE, area, clip, intersection
from synthdet.core.records import XYXY, DetectedBox

SAME_IOU: Final = 0.5
"""Two boxes of a class that overlap by this much (IoU), in the area that both tiles show, mark one animal."""
COVERED: Final = 0.6
"""A box cut by its tile is a piece of a whole one of another tile that covers this share of it."""
SURE_SHARE: Final = 0.5
"""Of one animal's boxes those with this share of the highest confidence may say where it ends."""
LEAST_OVERLAP: Final = 1 / 16
"""Of a tile's side: also where animals are tiny."""
IN_PHOTO: Final = 0.5
"""A box with less of its area in the photo lies in what a small photo was filled up with."""

Tile = tuple[int, int, int, int]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def plan_overlap(side: int, largest: float) -> int:
    """Overlap of neighbouring tiles, so that the largest animal is whole in one of them.

    Never more than half a tile: an animal that is larger than that may be seen in pieces only.

    Args:
        side: Of a tile, in photo pixels.
        largest: Longer side of a large animal, in photo pixels.

    Examples:
        >>> plan_overlap(160, 37.2), plan_overlap(160, 2), plan_overlap(160, 900)
        (38, 10, 80)
    """
    return min(max(math.ceil(largest), math.ceil(LEAST_OVERLAP * side), 1), side // 2)


def plan_tiles(width: int, height: int, side: int, overlap: int) -> list[Tile]:
    """Square tiles over a whole photo, as few as cover it, row by row.

    Along an axis they are spread evenly and overlap by at least ``overlap``. Where a photo is smaller
    than a tile, the tile reaches over its right or lower edge.

    Args:
        width: Of the photo, in pixels.
        height: Of the photo, in pixels.
        side: Of a tile, in photo pixels.
        overlap: At most half of ``side``.

    Returns:
        ``xyxy`` in whole pixels of the photo.

    Examples:
        >>> plan_tiles(200, 90, 100, 20)
        [(0, 0, 100, 100), (50, 0, 150, 100), (100, 0, 200, 100)]
    """
    columns, rows = (_starts(length, side, overlap) for length in (width, height))
    return [(x, y, x + side, y + side) for y in rows for x in columns]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    if length <= side:
        return [0]
    number = math.ceil((length - overlap) / (side - overlap))
    return [index * (length - side) // (number - 1) for index in range(number)]


@dataclass(frozen=True, slots=True)
class Look:
    """A tile, ``xyxy`` in pixels of the photo, and the boxes drawn in it, in pixels of the photo too."""

    tile: Tile
    boxes: tuple[DetectedBox, ...]


def to_photo(
    boxes: Sequence[DetectedBox], tile: Tile, scale: float, size_wh: tuple[int, int]
) -> tuple[DetectedBox, ...]:
    """Boxes of a tile in pixels of its photo, rounded to a thousandth; without those beside the photo.

    Args:
        boxes: In pixels of the tile.
        tile: ``xyxy`` in pixels of the photo.
        scale: Tile pixels a photo pixel.
        size_wh: Of the photo.

    Examples:
        >>> drawn = DetectedBox(xyxy=(20, 20, 60, 60), class_id=0, confidence=0.9)
        >>> to_photo([drawn], (100, 50, 164, 114), 2.0, (400, 300))[0].xyxy
        (110.0, 60.0, 130.0, 80.0)
    """
    moved = []
    for box in boxes:
        x1, y1, x2, y2 = (value / scale + tile[axis % 2] for axis, value in enumerate(box.xyxy))
        inside = clip((x1, y1, x2, y2), *size_wh)
        left, top, right, bottom = (round(value, 3) for value in inside)
        if min(right - left, bottom - top) >= MIN_SIDE and area(inside) >= IN_PHOTO * area(
            (x1, y1, x2, y2)
        ):
            moved.append(box.model_copy(update={"xyxy": (left, top, right, bottom)}))
    return tuple(moved)


def merge_looks(
    looks: Sequence[Look], size_wh: tuple[int, int], border: float
) -> tuple[DetectedBox, ...]:
    """One box an animal, most confident first: what the tiles of a photo drew, without repetitions.

    Two boxes of a class mark one animal if they overlap in the area that both tiles show (`SAME_IOU`),
    or if one is a piece, cut by its tile, of a whole one in another tile (`COVERED`). The animal has the
    highest confidence of its boxes. It ends where the most confident whole box says; where all are cut,
    they are joined. In one tile this drops what was drawn twice.

    Args:
        looks: The tiles of one photo.
        size_wh: Of the photo: its own edges cut nothing.
        border: A box that comes this near to the edge of its tile, in photo pixels, is cut by it.

    Examples:
        >>> def look(tile, *xyxy):
        ...     return Look(tile, (DetectedBox(xyxy=xyxy, class_id=0, confidence=0.9),))
        >>> looks = [look((0, 0, 60, 60), 50, 20, 60, 30), look((40, 0, 100, 60), 50, 20, 75, 30)]
        >>> [box.xyxy for box in merge_looks(looks, (100, 60), 1.0)]
        [(50.0, 20.0, 75.0, 30.0)]
    """
    drawn = [(box, look.tile) for look in looks for box in look.boxes]
    drawn.sort(key=lambda one: (-one[0].confidence, one[0].class_id, one[0].xyxy, one[1]))
    if not drawn:
        return ()
    seen = _Seen(drawn, size_wh, border)
    free = np.ones(len(drawn), dtype=np.bool_)
    merged = []
    for seed, (box, _tile) in enumerate(drawn):
        if free[seed]:
            free[seed] = False
            edges = seen.edges(seen.take(seed, free))
            merged.append(box.model_copy(update={"xyxy": edges}))
    return tuple(merged)


class _Seen:
    """All boxes of a photo as arrays, most confident first."""

    def __init__(
        self, drawn: Sequence[tuple[DetectedBox, Tile]], size_wh: tuple[int, int], border: float
    ) -> None:
        self._boxes = np.array([box.xyxy for box, _tile in drawn], dtype=np.float64)
        self._tiles = np.array([tile for _box, tile in drawn], dtype=np.float64)
        self._classes = np.array([box.class_id for box, _tile in drawn])
        self._confidences = np.array([box.confidence for box, _tile in drawn])
        width, height = size_wh
        inner = np.stack([self._tiles[:, 0] > 0, self._tiles[:, 1] > 0,
                          self._tiles[:, 2] < width, self._tiles[:, 3] < height], axis=1)  # fmt: skip
        near = np.abs(self._boxes - self._tiles) <= border
        self._is_cut: Flags = np.asarray((near & inner).any(axis=1))
        self._by_left = self._boxes[:, 0].argsort(kind="stable")
        self._lefts = self._boxes[self._by_left, 0]
        self._widest = float((self._boxes[:, 2] - self._boxes[:, 0]).max())

    def take(self, seed: int, free: Flags) -> list[int]:
        """All boxes of the seed's animal are taken; returns those that may say where it ends."""
        telling = [seed]
        least = SURE_SHARE * self._confidences[seed]
        for one in telling:  # grows while it runs: a long animal goes on from tile to tile
            beside = self._beside(one)
            same = beside[free[beside] & self._same(one, beside)]
            free[same] = False
            if self._is_cut[one]:
                telling += [int(other) for other in same if self._confidences[other] >= least]
        return telling

    def edges(self, telling: Sequence[int]) -> XYXY:
        """Of the first whole box; of all together, where none is whole."""
        whole = [one for one in telling if not self._is_cut[one]]
        boxes = self._boxes[[min(whole)] if whole else list(telling)]
        low, high = boxes[:, :2].min(axis=0).tolist(), boxes[:, 2:].max(axis=0).tolist()
        return (low[0], low[1], high[0], high[1])

    def _beside(self, one: int) -> NDArray[np.int64]:
        """``(k,)``: the boxes that can touch this one, going by their left edges alone, in order."""
        left, _top, right, _bottom = self._boxes[one]
        begin, end = np.searchsorted(self._lefts, (left - self._widest, right))
        return np.sort(self._by_left[begin:end])

    def _same(self, one: int, among: NDArray[np.int64]) -> Flags:
        """``(k,)``: which of some boxes mark the same animal as this one."""
        box, tile = self._boxes[one], self._tiles[one]
        boxes, tiles, is_cut = self._boxes[among], self._tiles[among], self._is_cut[among]
        common = _cut(tiles, tile)
        own, others = _cut(common, box), _cut(common, boxes)
        both = _areas(_cut(own, others))
        either = _areas(own) + _areas(others) - both
        same = (both > 0) & (both >= SAME_IOU * either)
        shared = _areas(_cut(boxes, box))
        if self._is_cut[one]:
            covered = (shared >= COVERED * _areas(box[None])) & ~is_cut
        else:
            covered = (shared >= COVERED * _areas(boxes)) & is_cut
        elsewhere = (tiles != tile).any(axis=1)
        alike = self._classes[among] == self._classes[one]
        return np.asarray((same | (covered & elsewhere)) & alike)


def _cut(first: Floats, second: Floats) -> Floats:
    """What rectangles share, ``(n, 4)``; with edges in the wrong order where they share nothing."""
    low = np.maximum(first[..., :2], second[..., :2])
    return np.concatenate([low, np.minimum(first[..., 2:], second[..., 2:])], axis=-1)


def _areas(boxes: Floats) -> Floats:
    sides: Floats = np.clip(boxes[..., 2:] - boxes[..., :2], 0, None)
    return np.asarray(sides[..., 0] * sides[..., 1])


def fullest_window(
    boxes: Sequence[XYXY], size_wh: tuple[int, int], side: int
) -> tuple[int, int, int, int]:
    """The square part of a photo, for people to look at, that shows most of its animals.

    Around one of them, moved into the photo as far as that goes; the middle of the photo where there is
    none.

    Args:
        boxes: In pixels of the photo.
        size_wh: Of the photo.
        side: Of the part, in pixels of the photo.

    Examples:
        >>> fullest_window([(0, 0, 9, 9), (300, 90, 320, 98), (340, 90, 350, 98)], (400, 100), 80)
        (270, 20, 350, 100)
    """
    width, height = size_wh
    whole = (0, 0, width, height)
    best, most = (0, 0, 0, 0), -1.0
    for x1, y1, x2, y2 in [*boxes] or [whole]:
        left = round(min(max((x1 + x2 - side) / 2, 0), max(0, width - side)))
        top = round(min(max((y1 + y2 - side) / 2, 0), max(0, height - side)))
        window = (left, top, left + side, top + side)
        shown = sum(intersection(box, window) / max(area(box), 1e-9) for box in boxes)
        if shown > most + 1e-9:
            best, most = window, shown
    return best
