"""Which picture is drawn how: from text alone, from a real tile, or an animal placed into one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from synthdet.core.comparison import pairwise_iou
from synthdet.core.prompts import PlannedPicture
from synthdet.core.records import XYXY, Box, GenerateMode, Tile
from synthdet.errors import SynthdetError

_TRIES: Final = 100
"""Places tried for a box before it may overlap with another."""


def plan_modes(
    planned: Sequence[PlannedPicture],
    tiles: Sequence[Tile],
    *,
    shares: Mapping[GenerateMode, float],
    seed: int,
) -> tuple[PlannedPicture, ...]:
    """Give every picture its mode, and with it a train tile and boxes; a pure function.

    Modes are spread evenly, among pictures with animals and backgrounds alike. `image` takes a train
    tile that shows what the prompt asks for, or if there is none, one with any animals. `placed` takes
    a background tile, and for each animal asked for a box that has the size of a real one of its class.
    A background is never placed: it is drawn from text. It is drawn from text too where the mode
    wants a background tile and there is none. Tiles and sizes come up evenly, in random order.

    Args:
        planned: What `core.prompts.plan_pictures` says.
        tiles: All tiles; only those of train are used.
        shares: Mode -> its share, in any unit.
        seed: Of tiles, sizes and places.

    Raises:
        SynthdetError: There is no tile or no box that a mode needs, or a prompt does not tell which
            animal is to be placed.
    """
    train = [tile for tile in tiles if tile.split == "train"]
    rng = np.random.default_rng([seed % 2**64, 2])
    chooser = _Chooser(train, rng)
    spreads = {True: _spread(shares), False: _spread(shares)}
    made = []
    for picture in planned:
        mode = next(spreads[picture.background])
        if picture.background and (mode == "placed" or not chooser.has_background):
            mode = "text"
        if mode == "image":
            tile = chooser.tile_like(picture.asked_for)
            picture = replace(picture, mode=mode, source_tile=tile.tile_id)
        elif mode == "placed":
            tile = chooser.background()
            boxes = chooser.place(picture, tile)
            picture = replace(picture, mode=mode, source_tile=tile.tile_id, placed=boxes)
        made.append(picture)
    return tuple(made)


def _spread(shares: Mapping[GenerateMode, float]) -> Iterator[GenerateMode]:
    """Modes without end, each as often as its share says, as evenly as can be."""
    total = sum(shares.values())
    counts = dict.fromkeys(shares, 0)
    number = 0
    while True:
        number += 1
        mode = max(shares, key=lambda one: number * shares[one] / total - counts[one])
        counts[mode] += 1
        yield mode


class _Chooser:
    """Train tiles and sizes of real animals, each in an endless random order."""

    def __init__(self, tiles: Sequence[Tile], rng: np.random.Generator) -> None:
        self._rng = rng
        self._animals = [tile for tile in tiles if tile.boxes]
        self._empty = [tile for tile in tiles if not tile.boxes]
        self._orders: dict[tuple[object, ...], Iterator[int]] = {}
        self._sizes: dict[int, list[tuple[int, int]]] = {}
        for tile in self._animals:
            for box in tile.boxes:
                if _is_inside(box.xyxy, tile):
                    x1, y1, x2, y2 = box.xyxy
                    self._sizes.setdefault(box.class_id, []).append(
                        (round(x2 - x1), round(y2 - y1))
                    )

    @property
    def has_background(self) -> bool:
        return bool(self._empty)

    def tile_like(self, asked_for: Sequence[int] | None) -> Tile:
        """A tile that shows those classes, each as often; else one with animals."""
        if asked_for is not None and len(asked_for) == 0:
            return self.background()
        if not self._animals:
            raise SynthdetError(
                "generate.mode: image needs real train tiles with animals, and there is none: "
                "set it to text"
            )
        wanted = None if asked_for is None else sorted(asked_for)
        alike = [
            index
            for index, tile in enumerate(self._animals)
            if sorted(box.class_id for box in tile.boxes) == wanted
        ]
        if not alike:
            return self._animals[self._next(("animals",), len(self._animals))]
        return self._animals[alike[self._next(("alike", *(wanted or ())), len(alike))]]

    def background(self) -> Tile:
        """A tile without animals."""
        if not self._empty:
            raise SynthdetError(
                "generate.mode: placed needs real train tiles without animals, and there is none: "
                "raise prepare.background_fraction, or set generate.mode to text"
            )
        return self._empty[self._next(("empty",), len(self._empty))]

    def place(self, picture: PlannedPicture, tile: Tile) -> tuple[Box, ...]:
        """A box for each animal asked for, whole inside the tile, apart from the others if it can be."""
        if not picture.asked_for:
            raise SynthdetError(
                f"generate.mode: placed has to know which animal to place, and {picture.prompt!r} does "
                "not tell: ask for it with {animals}, in words that name a class"
            )
        boxes: list[Box] = []
        for class_id in picture.asked_for:
            width, height = self._size(class_id, tile)
            for _ in range(_TRIES):
                xyxy = self._somewhere(width, height, tile)
                overlaps = (
                    pairwise_iou([xyxy], [box.xyxy for box in boxes]) if boxes else np.zeros(1)
                )
                if overlaps.max() == 0:
                    break
            boxes.append(Box(xyxy=xyxy, class_id=class_id))
        return tuple(boxes)

    def _somewhere(self, width: int, height: int, tile: Tile) -> XYXY:
        x = int(self._rng.integers(tile.width - width + 1))
        y = int(self._rng.integers(tile.height - height + 1))
        return (x, y, x + width, y + height)

    def _size(self, class_id: int, tile: Tile) -> tuple[int, int]:
        """Width and height, whole pixels, of a real animal of a class that is whole in its tile."""
        if class_id not in self._sizes:
            raise SynthdetError(
                "generate.mode: placed draws sizes from real animals, and none of class "
                f"{class_id} is whole in a train tile: set it to text or image"
            )
        sizes = self._sizes[class_id]
        width, height = sizes[self._next(("size", class_id), len(sizes))]
        return min(max(1, width), tile.width), min(max(1, height), tile.height)

    def _next(self, kind: tuple[object, ...], number: int) -> int:
        if kind not in self._orders:
            self._orders[kind] = self._walk(number)
        return next(self._orders[kind])

    def _walk(self, number: int) -> Iterator[int]:
        while True:
            yield from (int(index) for index in self._rng.permutation(number))


def _is_inside(xyxy: XYXY, tile: Tile) -> bool:
    """Whether a box ends before the tile does: one at the border may be a part of an animal."""
    x1, y1, x2, y2 = xyxy
    return x1 > 0 and y1 > 0 and x2 < tile.width and y2 < tile.height
