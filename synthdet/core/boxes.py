"""Boxes: clipping to the picture, turning with the camera, moving into a crop.

All boxes are ``xyxy`` in pixels; a picture of width ``w`` and height ``h`` is ``(0, 0, w, h)``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from synthdet.core.records import XYXY, Box

MIN_SIDE = 1.0
"""A box with a side below this many pixels, after clipping, is degenerate."""
_SAME = 1.0
"""Two boxes of a class whose edges all lie within this many pixels were drawn twice."""
_SPAN, _SHARE = 0.95, 0.5


def area(xyxy: XYXY) -> float:
    """Area in square pixels; 0 for an empty box.

    Examples:
        >>> area((10, 20, 30, 25))
        100
    """
    return max(0, xyxy[2] - xyxy[0]) * max(0, xyxy[3] - xyxy[1])


def intersection(first: XYXY, second: XYXY) -> float:
    """Area in square pixels that two boxes share.

    Examples:
        >>> intersection((0, 0, 10, 10), (6, 8, 20, 20))
        8
    """
    return area(
        (
            max(first[0], second[0]),
            max(first[1], second[1]),
            min(first[2], second[2]),
            min(first[3], second[3]),
        )
    )


def iou(first: XYXY, second: XYXY) -> float:
    """Area that two boxes share over the area that they cover together, 0..1.

    Examples:
        >>> iou((0, 0, 10, 10), (5, 0, 15, 10)) == 50 / 150
        True
    """
    common = intersection(first, second)
    return common / (area(first) + area(second) - common) if common else 0.0


def clip(xyxy: XYXY, width: float, height: float) -> XYXY:
    """A box cut off at the picture's edges; empty where it lies outside.

    Examples:
        >>> clip((-5, 10, 20, 90), 64, 48)
        (0, 10, 20, 48)
    """
    return (
        min(max(xyxy[0], 0), width),
        min(max(xyxy[1], 0), height),
        min(max(xyxy[2], 0), width),
        min(max(xyxy[3], 0), height),
    )


def check_boxes(
    boxes: Sequence[Box], width: int, height: int
) -> tuple[list[Box], list[tuple[Box, str]]]:
    """Clip boxes to a picture and take out those that mark nothing.

    Args:
        boxes: In pixels of the picture, in any corner order.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.

    Returns:
        The usable boxes, in order, and the dropped ones (as they came), each with the reason.

    Examples:
        >>> inside = Box(xyxy=(60, 10, 70, 20), class_id=0)
        >>> beyond = Box(xyxy=(90, 10, 95, 20), class_id=0)
        >>> kept, dropped = check_boxes([inside, beyond, inside], 64, 48)
        >>> [box.xyxy for box in kept], [reason for _box, reason in dropped]
        ([(60.0, 10.0, 64.0, 20.0)], ['lies outside the photo', 'is there twice'])
    """
    kept: list[Box] = []
    dropped: list[tuple[Box, str]] = []
    seen: dict[tuple[int, int, int], list[XYXY]] = defaultdict(list)
    for box in boxes:
        if not all(math.isfinite(value) for value in box.xyxy):
            dropped.append((box, "is not made of finite numbers"))
            continue
        x1, x2 = sorted((box.xyxy[0], box.xyxy[2]))
        y1, y2 = sorted((box.xyxy[1], box.xyxy[3]))
        clipped = clip((x1, y1, x2, y2), width, height)
        if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            dropped.append((box, "lies outside the photo"))
        elif clipped[2] - clipped[0] < MIN_SIDE or clipped[3] - clipped[1] < MIN_SIDE:
            dropped.append((box, "is thinner than a pixel"))
        elif _is_twin(clipped, box.class_id, seen):
            dropped.append((box, "is there twice"))
        else:
            seen[box.class_id, int(clipped[0]), int(clipped[1])].append(clipped)
            kept.append(Box(xyxy=clipped, class_id=box.class_id))
    return kept, dropped


def _is_twin(
    xyxy: XYXY, class_id: int, seen: Mapping[tuple[int, int, int], Sequence[XYXY]]
) -> bool:
    """Whether nearly the same box was seen; ``seen`` is by class and whole pixel of the corner."""
    column, row = int(xyxy[0]), int(xyxy[1])
    return any(
        all(abs(own - other) <= _SAME for own, other in zip(xyxy, twin, strict=True))
        for x in (column - 1, column, column + 1)
        for y in (row - 1, row, row + 1)
        for twin in seen.get((class_id, x, y), ())
    )


def fills_photo(xyxy: XYXY, width: float, height: float) -> bool:
    """Whether a box marks nearly the whole photo rather than an animal in it.

    It spans 95 % of the width or of the height, and covers half of the photo.

    Examples:
        >>> fills_photo((0, 10, 640, 480), 640, 480), fills_photo((0, 10, 640, 90), 640, 480)
        (True, False)
    """
    spans = xyxy[2] - xyxy[0] >= _SPAN * width or xyxy[3] - xyxy[1] >= _SPAN * height
    return spans and area(xyxy) >= _SHARE * width * height


def turn_box(xyxy: XYXY, symmetry: int, side: float) -> XYXY:
    """A box of a square picture in one of the picture's eight symmetries.

    Args:
        xyxy: In the picture as it is.
        symmetry: 0 (as it is) to 3: quarter turns against the clock; 4 to 7: the same of the mirror image.
        side: Of the picture, in the box's unit.

    Examples:
        >>> turn_box((1, 2, 8, 5), 1, 12), turn_box((1, 2, 8, 5), 4, 12)
        ((2, 4, 5, 11), (4, 2, 11, 5))
    """
    x1, y1, x2, y2 = xyxy
    if symmetry >= 4:
        x1, x2 = side - x2, side - x1
    for _ in range(symmetry % 4):
        # A quarter turn against the clock sends column x to row side - x.
        x1, y1, x2, y2 = y1, side - x2, y2, side - x1
    return x1, y1, x2, y2


def to_upright(xyxy: XYXY, orientation: int, width: float, height: float) -> XYXY:
    """A box of the picture as stored, in the picture as EXIF says to show it.

    Args:
        xyxy: In pixels of the stored picture.
        orientation: EXIF orientation, 1 to 8; anything else counts as 1.
        width: Of the stored picture.
        height: Of the stored picture.

    Source:
        Exif 2.32 (CIPA DC-008), tag 274.

    Examples:
        A picture of 640 x 480 that has to be turned a quarter clockwise:

        >>> to_upright((0, 0, 10, 20), 6, 640, 480)
        (460, 0, 480, 10)
    """
    x1, y1, x2, y2 = xyxy
    if orientation in (5, 6, 7, 8):  # mirrored along the main diagonal first
        x1, y1, x2, y2 = y1, x1, y2, x2
        width, height = height, width
    if orientation in (2, 3, 6, 7):
        x1, x2 = width - x2, width - x1
    if orientation in (3, 4, 7, 8):
        y1, y2 = height - y2, height - y1
    return (x1, y1, x2, y2)


def to_crop(box: Box, crop: XYXY, scale: float) -> Box:
    """A box of a photo in pixels of a crop of it, rounded to a thousandth of a pixel.

    Args:
        box: In pixels of the photo.
        crop: The crop, in pixels of the photo.
        scale: Crop pixels a photo pixel.

    Examples:
        >>> to_crop(Box(xyxy=(110, 60, 130, 80), class_id=0), (100, 50, 164, 114), 2.0).xyxy
        (20.0, 20.0, 60.0, 60.0)
    """
    x1, y1, x2, y2 = box.xyxy
    side = crop[2] - crop[0]
    moved = (x1 - crop[0], y1 - crop[1], x2 - crop[0], y2 - crop[1])
    inside = clip(moved, side, crop[3] - crop[1])
    return Box(
        xyxy=(
            round(inside[0] * scale, 3),
            round(inside[1] * scale, 3),
            round(inside[2] * scale, 3),
            round(inside[3] * scale, 3),
        ),
        class_id=box.class_id,
    )
