"""Real train tiles as what pictures start from, with real animals set into them where that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from synthdet.core.fusion import turn_picture
from synthdet.core.prompts import PlannedPicture
from synthdet.core.records import XYXY, PlacedBox, Tile
from synthdet.errors import SynthdetError
from synthdet.models.protocols import Picture, PictureRequest

_MARGIN = 0.12
"""Of a box's longer side: so much around an animal is painted too, for its wash and against seams."""
_FEATHER = 0.12
"""Of a box's shorter side: over so much an animal fades into the water."""


class Sources:
    """Makes of a planned picture what the generator is asked for.

    Args:
        root: The run folder.
        tiles: All tiles that a plan may name.
    """

    def __init__(self, root: Path, tiles: Sequence[Tile]) -> None:
        self._root = root
        self._tiles = {tile.tile_id: tile for tile in tiles}

    def request(self, plan: PlannedPicture) -> PictureRequest:
        """What the generator is asked for.

        Raises:
            SynthdetError: A tile is not there any more, or cannot be read.
        """
        source: Picture | None = None
        areas: tuple[XYXY, ...] = ()
        if plan.source_tile is not None:
            tile = self._tiles[plan.source_tile]
            source = np.ascontiguousarray(turn_picture(self._read(tile), plan.source_view or 0))
            for box in plan.placed:
                source = self._set_in(source, box)
            areas = tuple(_grow(box.xyxy, tile) for box in plan.placed)
        return PictureRequest(plan.prompt, plan.negative_prompt, plan.seed, source, areas)

    def _set_in(self, picture: Picture, box: PlacedBox) -> Picture:
        """The picture with the real animal that a box was sized by, where there is one to start from."""
        if box.animal_tile is None or box.animal_xyxy is None:
            return picture
        animal = cut(self._read(self._tiles[box.animal_tile]), box.animal_xyxy, box.animal_view)
        return set_in(picture, animal, box.xyxy)

    def _read(self, tile: Tile) -> Picture:
        path = self._root / tile.path
        try:
            with Image.open(path) as image:
                picture: NDArray[np.uint8] = np.array(image.convert("RGB"))
        except OSError as error:
            raise SynthdetError(
                f"{path} cannot be read: make the tiles again with `synthdet prepare {self._root} --redo`"
            ) from error
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


def _grow(xyxy: XYXY, tile: Tile) -> XYXY:
    x1, y1, x2, y2 = xyxy
    margin = _MARGIN * max(x2 - x1, y2 - y1)
    return (
        max(0.0, x1 - margin),
        max(0.0, y1 - margin),
        min(float(tile.width), x2 + margin),
        min(float(tile.height), y2 + margin),
    )
