"""Windows of a square picture, square or not: around one of its animals where it has any, on whole cells.

A training step on such windows shows bodies larger in the batch and costs a fraction of the
operations. What is drawn at random comes in as numbers, so one step is the same wherever it runs.
Source: Podell et al., "SDXL", 2023, sections 2.2 and 2.3 (crop conditioning, sizes in stages).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from synthdet.core.boxes import area, intersection
from synthdet.core.records import XYXY

Window = tuple[int, int]
"""Left and top of a window, in cells."""
Shape = tuple[int, int]
"""Width and height, in cells."""

COUNTED_FROM: Final = 0.5
"""A thing is in a window from this share of its box on."""


def window_side(share: float, size: int, step: int) -> int:
    """Side of a window in cells: the share of a picture's, rounded to whole steps, at least one.

    Args:
        share: Of the picture's side, 0..1.
        size: Side of the picture, in cells.
        step: What a side must be a multiple of, in cells.

    Examples:
        >>> window_side(0.5, 32, 4), window_side(0.7, 32, 4), window_side(0.01, 32, 4)
        (16, 24, 4)
    """
    return max(1, round(share * size / step)) * step


def window_shape(share: float, ratio: tuple[int, int], size: int, step: int) -> Shape:
    """Width and height of a window in cells, both whole steps; it always fits into the picture.

    Args:
        share: Of the window's longer side in the picture's, 0..1.
        ratio: Width to height.
        size: Side of the picture, in cells.
        step: What a side must be a multiple of, in cells.

    Examples:
        >>> [window_shape(1, ratio, 128, 4) for ratio in ((1, 1), (4, 3), (3, 4), (16, 9))]
        [(128, 128), (128, 96), (96, 128), (128, 72)]
        >>> window_shape(0.5, (3, 2), 128, 4)
        (64, 44)
    """
    longer = max(ratio)
    width, height = (min(window_side(share * part / longer, size, step), size) for part in ratio)
    return width, height


def place_window(
    boxes: Sequence[XYXY],
    draw: tuple[float, float, float],
    *,
    side: int | Shape,
    size: int,
    step: int = 1,
) -> Window:
    """Where a window lies: around one of the boxes, anywhere where there is none.

    The chosen box is whole in it, evenly at any place where it is, if it fits, and else in its
    middle. That is exact where boxes and steps are whole cells, and otherwise within half a step.

    Args:
        boxes: In cells.
        draw: Which box, and where along x and y, each evenly from 0 to 1 (excluded).
        side: Of the window, in cells; or its width and height.
        size: Side of the picture, in cells.
        step: Windows begin at multiples of it.

    Examples:
        >>> place_window([(6, 0, 10, 3)], (0.0, 0.0, 0.99), side=8, size=16)
        (2, 0)
        >>> place_window([], (0.0, 0.5, 0.99), side=8, size=16)
        (4, 8)
        >>> place_window([(6, 0, 10, 3)], (0.0, 0.5, 0.99), side=(16, 12), size=16)
        (0, 0)
    """
    which, x, y = draw
    box = boxes[int(which * len(boxes))] if boxes else None
    shape = (side, side) if isinstance(side, int) else side
    left, top = (
        _place(box and (box[axis], box[axis + 2]), reach, size, step, where)
        for axis, (reach, where) in enumerate(zip(shape, (x, y), strict=True))
    )
    return left, top


def _place(kept: tuple[float, float] | None, side: int, size: int, step: int, where: float) -> int:
    """First cell along an axis, so that ``kept``, from and to, is within."""
    low, high = 0.0, float(size - side)
    if kept is not None:
        first, last = kept
        if last - first >= side:
            first = last = (first + last) / 2
            low, high = first - side / 2, last - side / 2
        else:
            low, high = last - side, first
    low, high = min(max(low, 0.0), size - side), min(max(high, 0.0), size - side)
    return round((low + where * (high - low)) / step) * step


def find_inside(boxes: Sequence[XYXY], frame: XYXY) -> list[int]:
    """Positions of the boxes that count as inside a frame, by `COUNTED_FROM`.

    Examples:
        >>> find_inside([(0, 0, 4, 4), (7, 0, 11, 4), (6, 0, 10, 4)], (0, 0, 8, 8))
        [0, 2]
    """
    return [
        position
        for position, box in enumerate(boxes)
        if intersection(box, frame) >= COUNTED_FROM * area(box)
    ]
