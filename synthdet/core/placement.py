"""Which picture is drawn how: from text alone, from a real tile, or an animal placed into one."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np

from synthdet.core.boxes import area, intersection
from synthdet.core.comparison import pairwise_iou
from synthdet.core.prompts import PlannedPicture
from synthdet.core.records import XYXY, GenerateMode, PlacedBox, Tile
from synthdet.errors import SynthdetError

_TRIES: Final = 200
"""Places tried for a box before it may overlap with another."""
_TRIES_AN_ANIMAL: Final = 20
"""Places tried before another animal, perhaps a smaller one, is taken."""
_ENOUGH: Final = 8
"""Animals, and a quarter of all, from which some alone are taken: fewer would come up again and again."""
_MAX_COVERED: Final = 0.1
"""Of an animal's box: where another's covers more, a part of the other may be cut out with it."""


@dataclass(frozen=True, slots=True)
class Animal:
    """A real animal that is whole in its tile.

    Attributes:
        tile: The train tile.
        xyxy: Its box there, grown to whole pixels.
        class_id: Of the run.
        is_apart: Whether no other animal's box covers much of its own.
    """

    tile: Tile
    xyxy: XYXY
    class_id: int
    is_apart: bool


def whole_animals(tiles: Sequence[Tile]) -> list[Animal]:
    """All animals of the train tiles that touch no border, where they may be parts of animals."""
    found = []
    for tile in tiles:
        for box in tile.boxes if tile.split == "train" else ():
            if (xyxy := _whole_pixels(box.xyxy, tile)) is not None:
                others = [other.xyxy for other in tile.boxes if other is not box]
                covered = max((intersection(xyxy, other) for other in others), default=0.0)
                apart = covered <= _MAX_COVERED * area(xyxy)
                found.append(Animal(tile, xyxy, box.class_id, apart))
    return found


def plan_modes(
    planned: Sequence[PlannedPicture],
    tiles: Sequence[Tile],
    *,
    shares: Mapping[GenerateMode, float],
    start: Literal["animal", "noise"],
    water: Literal["real", "drawn"],
    stands_out: Callable[[Animal], bool],
    seed: int,
    other_seas: bool = True,
) -> tuple[PlannedPicture, ...]:
    """Give every picture its mode, and with it what it starts from and boxes; a pure function.

    Modes are spread evenly, among pictures with animals and backgrounds alike. `image` takes a train
    tile that shows what the prompt asks for, or if there is none, one with any animals. `placed` takes
    water, and for each animal asked for a box that has the size of a real one of its class, in any of
    its eight turns and mirrors: from above there is no up. Water is turned likewise. It is a background
    tile, or a background picture of the plan; of those, one in whose caption or prompt most of the
    attributes come up that the picture's own prompt names: no grey sea where a blue one is asked for.
    Into a background picture animals come from other seas, if enough do: from tiles whose captions do not
    name all of those attributes.
    A background is never placed: it is drawn from text. It is drawn from text too where the mode
    wants a background tile and there is none. Tiles and sizes come up evenly, in random order.

    Args:
        planned: What `core.prompts.plan_pictures` says.
        tiles: All tiles; only those of train are used.
        shares: Mode -> its share, in any unit.
        start: Whether a placed animal starts from the real one that its box is as large as.
        water: Where animals are placed: into real background tiles, or into background pictures.
        stands_out: Whether an animal can be cut out of its water. Of a class with such animals only they
            are placed. Asked where a placed animal starts from a real one.
        seed: Of tiles, sizes and places.
        other_seas: Whether animals come into drawn water from other seas, if enough do.

    Raises:
        SynthdetError: There is no tile or no box that a mode needs, or a prompt does not tell which
            animal is to be placed.
    """
    train = [tile for tile in tiles if tile.split == "train"]
    rng = np.random.default_rng([seed % 2**64, 2])
    chooser = _Chooser(
        train,
        rng,
        stands_out=stands_out if start == "animal" else None,
        drawn=[one for one in planned if one.background] if water == "drawn" else None,
        other_seas=other_seas and start == "animal" and water == "drawn",
    )
    spreads = {True: _spread(shares), False: _spread(shares)}
    made = []
    for picture in planned:
        mode = next(spreads[picture.background])
        if picture.background and (mode == "placed" or not chooser.has_background):
            mode = "text"
        if mode == "image":
            tile = chooser.tile_like(picture.asked_for)
            view = chooser.view_of(tile)
            picture = replace(picture, mode=mode, source_tile=tile.tile_id, source_view=view)
        elif mode == "placed":
            picture = replace(picture, mode=mode, **chooser.water(picture))
        made.append(picture)
    return tuple(made)


def change_water(picture: PlannedPicture, waters: Sequence[PlannedPicture]) -> PlannedPicture:
    """The plan of a placed picture, on other drawn water where its own is none of those.

    Args:
        picture: Of a plan.
        waters: Background pictures of the plan that animals can be placed into.

    Returns:
        As it was, where it starts from one of them or from none. Else it starts from one that shows
        most of the attributes that its prompt names; of equal ones, the one that its seed falls on.

    Raises:
        SynthdetError: There is no water.
    """
    if picture.source_image in {None, *(one.image_id for one in waters)}:
        return picture
    if not waters:
        raise SynthdetError(
            "generate.placed_water: every background picture came out in one colour, and animals cannot "
            "be placed into it: look at them, and generate again with --redo and mixed_precision set to "
            "no, or placed_water to real"
        )
    fits = _how_alike(picture, waters)
    alike = [one for one, fit in zip(waters, fits, strict=True) if fit == max(fits)]
    return replace(picture, source_image=alike[picture.seed % len(alike)].image_id)


def _how_alike(picture: PlannedPicture, waters: Sequence[PlannedPicture]) -> list[int]:
    """For each water, how well what its prompt names fits what the picture's does."""
    wanted = set(picture.attributes)
    shown = [set(one.attributes) for one in waters]
    return [2 * len(wanted & one) - len(one) for one in shown]


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

    def __init__(
        self,
        tiles: Sequence[Tile],
        rng: np.random.Generator,
        *,
        stands_out: Callable[[Animal], bool] | None,
        drawn: Sequence[PlannedPicture] | None,
        other_seas: bool,
    ) -> None:
        self._stands_out = stands_out
        self._drawn = drawn
        self._other_seas = other_seas
        self._rng = rng
        self._tiles = tiles
        self._placeable: dict[int, list[Animal]] = {}
        self._animals = [tile for tile in tiles if tile.boxes]
        self._empty = [tile for tile in tiles if not tile.boxes]
        self._orders: dict[tuple[object, ...], Iterator[int]] = {}
        self._whole: dict[int, list[Animal]] = {}
        for animal in whole_animals(tiles):
            self._whole.setdefault(animal.class_id, []).append(animal)

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

    def background(self, attributes: tuple[str, ...] = ()) -> Tile:
        """A tile without animals, in whose caption most of the attributes come up."""
        if not self._empty:
            raise SynthdetError(
                "generate.mode: placed needs real train tiles without animals, and there is none: raise "
                "prepare.background_fraction, or set generate.placed_water to drawn, or generate.mode to text"
            )
        fits = [sum(_names(tile.caption, word) for word in attributes) for tile in self._empty]
        return self._empty[self._one_of_the_best(fits)]

    def water(self, picture: PlannedPicture) -> dict[str, Any]:
        """What the animals of a picture are placed into, its view, and their boxes."""
        if self._drawn is None:
            tile = self.background(picture.attributes)
            source = {"source_tile": tile.tile_id}
        elif not self._drawn:
            raise SynthdetError(
                "generate.placed_water: drawn places animals into the run's own background pictures, and "
                "it has none: raise generate.background_fraction, or set generate.placed_water to real"
            )
        elif not self._tiles:
            raise SynthdetError(
                "generate.mode: placed takes sizes from real animals, and there is no train tile: "
                "set it to text"
            )
        else:
            chosen = self._drawn[self._one_of_the_best(_how_alike(picture, self._drawn))]
            # All pictures of a run have the size of its tiles.
            tile, source = self._tiles[0], {"source_image": chosen.image_id}
        boxes = self.place(picture, tile)
        return {**source, "source_view": self.view_of(tile), "placed": boxes}

    def _one_of_the_best(self, fits: Sequence[int]) -> int:
        """Index of a highest number; all such come up evenly."""
        best = max(fits)
        alike = [index for index, number in enumerate(fits) if number == best]
        return alike[self._next(("water", *alike), len(alike))]

    def view_of(self, tile: Tile) -> int:
        """One of the tile's eight views, or of the four in which it keeps its width."""
        if tile.width == tile.height:
            return int(self._rng.integers(8))
        return 2 * int(self._rng.integers(4))

    def place(self, picture: PlannedPicture, tile: Tile) -> tuple[PlacedBox, ...]:
        """A box for each animal asked for, whole inside the tile, apart from the others if it can be."""
        if not picture.asked_for:
            raise SynthdetError(
                f"generate.mode: placed has to know which animal to place, and {picture.prompt!r} does "
                "not tell: ask for it with {animals}, in words that name a class"
            )
        boxes: list[PlacedBox] = []
        for class_id in picture.asked_for:
            for number in range(_TRIES):
                if number % _TRIES_AN_ANIMAL == 0:
                    animal_tile, animal, view = self._animal(class_id, picture.attributes)
                    sides = (animal[2] - animal[0], animal[3] - animal[1])
                    sides = sides[::-1] if view % 2 else sides
                xyxy = self._somewhere(*sides, tile)
                overlaps = pairwise_iou([xyxy], [box.xyxy for box in boxes])
                if overlaps.max(initial=0) == 0:
                    break
            placed = PlacedBox(xyxy=xyxy, class_id=class_id)
            if self._stands_out is not None:
                start = {"animal_tile": animal_tile, "animal_xyxy": animal, "animal_view": view}
                placed = placed.model_copy(update=start)
            boxes.append(placed)
        return tuple(boxes)

    def _somewhere(self, width: float, height: float, tile: Tile) -> XYXY:
        x = int(self._rng.integers(tile.width - int(width) + 1))
        y = int(self._rng.integers(tile.height - int(height) + 1))
        return (x, y, x + width, y + height)

    def _animal(self, class_id: int, attributes: tuple[str, ...]) -> tuple[str, XYXY, int]:
        """A real animal that is whole in its tile, and a view of it that fits every tile.

        Set into drawn water, it is one whose own caption lacks something that the picture's prompt names,
        if enough are like that: what is wanted is the animal where no photo shows it, and not that photo.
        """
        if class_id not in self._whole:
            raise SynthdetError(
                "generate.mode: placed takes sizes from real animals, and none of class "
                f"{class_id} is whole in a train tile: set it to text or image"
            )
        if class_id not in self._placeable:
            animals = self._whole[class_id]
            if self._stands_out is not None:
                animals = [one for one in animals if self._stands_out(one)] or animals
            self._placeable[class_id] = animals
        animals = self._placeable[class_id]
        kind: tuple[object, ...] = ("animal", class_id)
        if self._other_seas:
            strange = [
                one
                for one in animals
                if not all(_names(one.tile.caption, word) for word in attributes)
            ]
            if max(_ENOUGH, len(animals) / 4) <= len(strange) < len(animals):
                animals, kind = strange, (*kind, attributes)
        animal = animals[self._next(kind, len(animals))]
        tile, xyxy = animal.tile, animal.xyxy
        fits = max(xyxy[2] - xyxy[0], xyxy[3] - xyxy[1]) <= min(tile.width, tile.height)
        view = int(self._rng.integers(8)) if fits else 4 * int(self._rng.integers(2))
        return tile.tile_id, xyxy, view

    def _next(self, kind: tuple[object, ...], number: int) -> int:
        if kind not in self._orders:
            self._orders[kind] = self._walk(number)
        return next(self._orders[kind])

    def _walk(self, number: int) -> Iterator[int]:
        while True:
            yield from (int(index) for index in self._rng.permutation(number))


def _names(text: str, word: str) -> bool:
    """Whether words come up in a text as whole words; they may begin with a comma."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    return re.search(rf"{before}{re.escape(word)}(?!\w)", text) is not None


def _whole_pixels(xyxy: XYXY, tile: Tile) -> XYXY | None:
    """A box on whole pixels; None where it touches the border, and may be a part of an animal."""
    x1, y1, x2, y2 = xyxy
    if not (x1 > 0 and y1 > 0 and x2 < tile.width and y2 < tile.height):
        return None
    return (math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2))
