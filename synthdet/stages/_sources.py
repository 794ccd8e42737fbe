"""What pictures start from: real tiles or drawn water, with real animals set in where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthdet.core.fusion import turn_picture
from synthdet.core.pictures import correlation
from synthdet.core.placement import Animal, whole_animals
from synthdet.core.prompts import PlannedPicture
from synthdet.core.records import XYXY, PlacedBox, Tile
from synthdet.errors import SynthdetError
from synthdet.models.protocols import Picture, PictureRequest
from synthdet.progress import Reporter
from synthdet.stages._cutouts import Cutout, cut_out, lay_over

_MAX_CUTOUTS = 256
"""Animals that are kept cut out: at most a few hundred kilobytes each."""
_MARGIN = 0.12
"""Of a box's longer side: so much around an animal is painted too, for its wash and against seams."""
_FEATHER = 0.12
"""Of a box's shorter side: over so much an animal fades into the water."""


class Sources:
    """Makes of a planned picture what the generator is asked for.

    Args:
        root: The run folder.
        tiles: All tiles that a plan may name.
        drawn: Picture id -> file of a background picture of the run.
    """

    def __init__(self, root: Path, tiles: Sequence[Tile], drawn: Callable[[str], Path]) -> None:
        self._root = root
        self._tiles = {tile.tile_id: tile for tile in tiles}
        self._drawn = drawn
        self._stand_out: dict[tuple[str, XYXY], bool] = {}
        self._cut_out = lru_cache(maxsize=_MAX_CUTOUTS)(self._make_cutout)

    def stands_out(self, animal: Animal) -> bool:
        """Whether an animal can be cut out of its water, alone.

        Raises:
            SynthdetError: Its tile is not there any more, or cannot be read.
        """
        key = (animal.tile.tile_id, animal.xyxy)
        if key not in self._stand_out:
            self._stand_out[key] = animal.is_apart and self._cut_out(*key) is not None
        return self._stand_out[key]

    def request(self, plan: PlannedPicture) -> PictureRequest:
        """What the generator is asked for.

        Raises:
            SynthdetError: A picture is not there any more, or cannot be read.
        """
        source = self._read_source(plan)
        if source is None:
            return PictureRequest(plan.prompt, plan.negative_prompt, plan.seed)
        source = np.ascontiguousarray(turn_picture(source, plan.source_view or 0))
        for box in plan.placed:
            source = self._set_in(source, box)
        areas = tuple(_grow(box.xyxy, source) for box in plan.placed)
        # From noise nothing of what lies in a box is to stay.
        kept = bool(plan.placed) and all(box.animal_tile is not None for box in plan.placed)
        return PictureRequest(plan.prompt, plan.negative_prompt, plan.seed, source, areas, kept)

    def _read_source(self, plan: PlannedPicture) -> Picture | None:
        if plan.source_image is not None:
            path = self._drawn(plan.source_image)
            return read_picture(path, "delete it and start again: it is drawn anew")
        return None if plan.source_tile is None else self._read_tile(self._tiles[plan.source_tile])

    def _set_in(self, picture: Picture, box: PlacedBox) -> Picture:
        """The picture with the real animal that a box was sized by, where there is one to start from."""
        if box.animal_tile is None or box.animal_xyxy is None:
            return picture
        key = (box.animal_tile, box.animal_xyxy)
        cutout = self._cut_out(*key) if self._stand_out.get(key, True) else None
        if cutout is None:
            part = cut(
                self._read_tile(self._tiles[box.animal_tile]), box.animal_xyxy, box.animal_view
            )
            return set_in(picture, part, box.xyxy)
        return lay_over(picture, cutout.seen_in(box.animal_view), box.xyxy)

    def _make_cutout(self, tile_id: str, xyxy: XYXY) -> Cutout | None:
        return cut_out(self._read_tile(self._tiles[tile_id]), xyxy)

    def _read_tile(self, tile: Tile) -> Picture:
        again = f"make the tiles again with `synthdet prepare {self._root} --redo`"
        return read_picture(self._root / tile.path, again)


def look_at_animals(
    sources: Sources, tiles: Sequence[Tile], reporter: Reporter, stage: str
) -> list[Animal]:
    """All whole train animals; `Sources.stands_out` knows each of them then: seconds for a hundred."""
    animals = whole_animals(tiles)
    with reporter.bar(stage, len(animals), unit="animal", doing="cutting out") as advance:
        for animal in animals:
            sources.stands_out(animal)
            advance(1)
    return animals


def compare(plan: PlannedPicture, source: Picture | None, picture: Picture) -> PlannedPicture:
    """The plan, with how much of each animal that was set in is still to be seen."""
    if source is None or not plan.placed:
        return plan
    placed = []
    for box in plan.placed:
        if box.animal_tile is not None:
            x1, y1, x2, y2 = (int(value) for value in box.xyxy)
            alike = correlation(source[y1:y2, x1:x2], picture[y1:y2, x1:x2])
            box = box.model_copy(update={"correlation": alike})
        placed.append(box)
    return replace(plan, placed=tuple(placed))


def read_picture(path: Path, what_to_do: str) -> Picture:
    """``uint8`` ``(height, width, 3)``, RGB.

    Raises:
        SynthdetError: It is not there, or cannot be read; ends with ``what_to_do``.
    """
    try:
        with Image.open(path) as image:
            picture: NDArray[np.uint8] = np.array(image.convert("RGB"))
    except OSError as error:
        raise SynthdetError(f"{path} cannot be read: {what_to_do}") from error
    return picture


def cut(picture: Picture, xyxy: XYXY, view: int) -> Picture:
    """A part of a picture in one of its eight views.

    Args:
        picture: ``uint8`` ``(height, width, 3)``.
        xyxy: Whole pixels.
        view: As in `core.fusion.turn_picture`.
    """
    x1, y1, x2, y2 = (int(value) for value in xyxy)
    return turn_picture(picture[y1:y2, x1:x2], view)


def set_in(picture: Picture, part: Picture, xyxy: XYXY) -> Picture:
    """A part set into a picture: in the light of the water around it, its edges faded out.

    Args:
        picture: ``uint8`` ``(height, width, 3)``; left as it is.
        part: As large as the box.
        xyxy: Whole pixels.
    """
    x1, y1, x2, y2 = (int(value) for value in xyxy)
    under = picture[y1:y2, x1:x2].astype(np.float32)
    height, width, _ = part.shape
    edge = np.ones((height, width), dtype=bool)
    edge[1:-1, 1:-1] = False
    # What a part shows at its edges is mostly water: it is given the colour of the water it comes to.
    lit = part.astype(np.float32) + np.median(under, axis=(0, 1)) - np.median(part[edge], axis=0)
    fade = max(1.0, _FEATHER * min(height, width))
    rows, columns = (
        np.minimum(1, (0.5 + np.minimum(np.arange(n), np.arange(n)[::-1])) / fade)
        for n in (height, width)
    )
    alpha = (rows[:, None] * columns[None, :])[..., None].astype(np.float32)
    made = picture.copy()
    made[y1:y2, x1:x2] = (alpha * lit + (1 - alpha) * under).round().clip(0, 255).astype(np.uint8)
    return made


def _grow(xyxy: XYXY, picture: Picture) -> XYXY:
    x1, y1, x2, y2 = xyxy
    height, width, _ = picture.shape
    margin = _MARGIN * max(x2 - x1, y2 - y1)
    return (
        max(0.0, x1 - margin),
        max(0.0, y1 - margin),
        min(float(width), x2 + margin),
        min(float(height), y2 + margin),
    )
