"""Crops around animals: what the pocket UNet sees most of the time.

Oriented bodies with limbs are what is hard to learn, and most of a scene is water. A crop of half the
side costs a quarter of the operations and holds one animal nearly whole, so an hour on a CPU shows the
UNet several times as many bodies. Size ids tell it that it sees a crop, as SDXL's own training did.
Source: Podell et al., "SDXL", 2023, sections 2.2 and 2.3 (crop conditioning, sizes in stages).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthdet.pocket import sea
from synthdet.pocket.build_scenes import Annotation

Window = tuple[int, int]
"""Left and top of a crop, in cells of the latents."""

CELL = 4
"""Side of a latent's cell in pixels."""
STEP = 4
"""Crops begin and end on whole cells of the UNet's coarsest level, which are four cells of the latents."""
_COUNTED_FROM = 0.5
"""A thing is in a crop from this share of its box on."""


def choose_windows(
    annotations: Sequence[Annotation], side: int, size: int, generator: torch.Generator
) -> list[Window]:
    """A window for each scene: around one of its things, at random where it has none.

    Args:
        annotations: Of the scenes.
        side: Of the windows, in cells.
        size: Of the scenes, in cells.
        generator: Decides.
    """
    draws = torch.rand((len(annotations), 3), generator=generator).tolist()
    return [
        (_choose(boxes, 0, side, size, which, x), _choose(boxes, 1, side, size, which, y))
        for boxes, (which, x, y) in zip((a.boxes for a in annotations), draws, strict=True)
    ]


def _choose(
    boxes: Sequence[tuple[float, float, float, float]],
    axis: int,
    side: int,
    size: int,
    which: float,
    where: float,
) -> int:
    """First cell along an axis: all that keep the chosen box whole are as likely, or those that centre it."""
    low, high = 0.0, float(size - side)
    if boxes:
        box = boxes[int(which * len(boxes))]
        first, last = box[axis] / CELL, box[axis + 2] / CELL
        if last - first >= side:
            first = last = (first + last) / 2
            low, high = first - side / 2, last - side / 2
        else:
            low, high = last - side, first
    low, high = min(max(low, 0.0), size - side), min(max(high, 0.0), size - side)
    return round((low + where * (high - low)) / STEP) * STEP


def take(grids: NDArray[Any], windows: Sequence[Window], side: int) -> NDArray[Any]:
    """A window of each grid: `(n, ..., size, size)` to `(n, ..., side, side)`."""
    return np.stack(
        [one[..., y : y + side, x : x + side] for one, (x, y) in zip(grids, windows, strict=True)]
    )


def count_in(annotation: Annotation, window: Window, side: int) -> int:
    """How many things of a scene are in a window, by `_COUNTED_FROM`."""
    left, top = (CELL * edge for edge in window)
    right, bottom = left + CELL * side, top + CELL * side
    count = 0
    for x1, y1, x2, y2 in annotation.boxes:
        width = max(0.0, min(x2, right) - max(x1, left))
        height = max(0.0, min(y2, bottom) - max(y1, top))
        count += width * height >= _COUNTED_FROM * (x2 - x1) * (y2 - y1)
    return count


def captions_by_count(annotation: Annotation) -> tuple[str, str, str]:
    """A scene's caption for one, two and three of its things; its own, where nothing is counted.

    Examples:
        >>> captions_by_count(Annotation(
        ...     "aerial photo of two orcas in a grey sea", ((0, 0, 9, 9),) * 2, ("orca",) * 2))[0]
        'aerial photo of one orca in a grey sea'
    """
    if not annotation.class_names:
        return (annotation.caption,) * 3
    palette = annotation.caption.split(" in a ")[1].split(" sea")[0]
    whitecaps = annotation.caption.endswith("whitecaps")
    one, two, three = (
        sea.plan_caption(annotation.class_names[0], count, palette, whitecaps)
        for count in (1, 2, 3)
    )
    return one, two, three
