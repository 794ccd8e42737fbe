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

from synthdet.core.windows import Window, find_inside, place_window
from synthdet.pocket import sea
from synthdet.pocket.build_scenes import Annotation

CELL = 4
"""Side of a latent's cell in pixels."""
STEP = 4
"""Crops begin and end on whole cells of the UNet's coarsest level, which are four cells of the latents."""


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
    windows = []
    for annotation, (which, x, y) in zip(annotations, draws, strict=True):
        boxes = [
            (x1 / CELL, y1 / CELL, x2 / CELL, y2 / CELL) for x1, y1, x2, y2 in annotation.boxes
        ]
        windows.append(place_window(boxes, (which, x, y), side=side, size=size, step=STEP))
    return windows


def take(grids: NDArray[Any], windows: Sequence[Window], side: int) -> NDArray[Any]:
    """A window of each grid: `(n, ..., size, size)` to `(n, ..., side, side)`."""
    return np.stack(
        [one[..., y : y + side, x : x + side] for one, (x, y) in zip(grids, windows, strict=True)]
    )


def count_in(annotation: Annotation, window: Window, side: int) -> int:
    """How many things of a scene are in a window."""
    left, top = (CELL * edge for edge in window)
    return len(find_inside(annotation.boxes, (left, top, left + CELL * side, top + CELL * side)))


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
