"""YOLO labels, as Ultralytics and Roboflow write them: text and parsed YAML, both directions.

One object a line: a class number, then either a box (centre, width, height), a polygon, or the four
corners of an oriented box, all as shares of the picture's width and height. Polygons and oriented
boxes become the upright box around them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from synthdet.core.formats.annotated import to_name
from synthdet.core.records import Box

_GRID = 1_000_000
"""Edges are rounded to this many steps across the picture: half a pixel of a million."""
_TWICE = 2 * _GRID
_LINE = "%d %.7f %.7f %.7f %.7f\n"


def to_yolo_lines(boxes: Sequence[Box], width: int, height: int) -> str:
    r"""Boxes as a YOLO label file: five columns, no edge outside the picture.

    Edges are clipped and rounded first, then written as centre and size with one digit more, so
    that a reader gets exactly those edges back and none at 1.0000005.

    Args:
        boxes: In pixels of the picture.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.

    Returns:
        One line a box, each ended by LF; an empty string (a good negative) without boxes. A box
        that has no area inside the picture has no line.

    Examples:
        >>> to_yolo_lines([Box(xyxy=(16, 12, 48, 60), class_id=2)], 64, 48)
        '2 0.5000000 0.6250000 0.5000000 0.7500000\n'
    """
    lines = []
    for box in boxes:
        left, top, right, bottom = box.xyxy
        if 0 <= left < right <= width and 0 <= top < bottom <= height:  # nearly all: no clipping
            x1, y1 = round(left / width * _GRID), round(top / height * _GRID)
            x2, y2 = round(right / width * _GRID), round(bottom / height * _GRID)
        else:
            x1, y1 = _step(left, width), _step(top, height)
            x2, y2 = _step(right, width), _step(bottom, height)
        if x2 > x1 and y2 > y1:
            x, y = (x1 + x2) / _TWICE, (y1 + y2) / _TWICE
            lines.append(_LINE % (box.class_id, x, y, (x2 - x1) / _GRID, (y2 - y1) / _GRID))
    return "".join(lines)


def from_yolo_lines(text: str, width: float, height: float) -> tuple[list[Box], list[str]]:
    r"""Read a YOLO label file.

    Four numbers after the class are a box, five a box with a confidence (which is not kept), six or
    more, in pairs, the corners of a polygon or of an oriented box. Boxes are not clipped: that is
    `synthdet.core.boxes.check_boxes`, which tells what it did.

    Args:
        text: The file's text; a byte-order mark, CRLF and blank lines are fine.
        width: Of the upright picture, in pixels (as Ultralytics, which turns pictures by EXIF first).
        height: Of the upright picture, in pixels.

    Returns:
        The boxes in pixels, and for each line that is none what is wrong with it.

    Examples:
        >>> boxes, problems = from_yolo_lines("0 .5 .5 .25 .5\n1 .25 0 .5 0 .5 .5\nseal\n", 64, 48)
        >>> [box.xyxy for box in boxes]
        [(24.0, 12.0, 40.0, 36.0), (16.0, 0.0, 32.0, 24.0)]
        >>> problems
        ['line 3: seal is not a class number']
    """
    boxes: list[Box] = []
    problems: list[str] = []
    for number, line in enumerate(text.lstrip("\ufeff").splitlines(), start=1):
        columns = line.split()
        if not columns:
            continue
        try:
            class_id, (x1, y1, x2, y2) = _from_columns(columns)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        edges = (x1 * width, y1 * height, x2 * width, y2 * height)
        boxes.append(Box(xyxy=edges, class_id=class_id))
    return boxes, problems


def to_data_yaml(fields: Mapping[str, str | int], class_names: Sequence[str]) -> str:
    r"""A dataset's ``data.yaml``.

    There is no ``path`` in it: Ultralytics reads a relative one against the current folder, and without
    it all others against the file's own, so that the dataset can be moved.

    Args:
        fields: What stands before the names: each split with its folder or list of pictures, relative.
        class_names: By class id.

    Examples:
        >>> to_data_yaml({"train": "images/train", "val": "images/val"}, ["seal", "pup"])
        'train: images/train\nval: images/val\nnames:\n  0: seal\n  1: pup\n'
    """
    content = {**fields, "names": dict(enumerate(class_names))}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def names_from_yaml(fields: Any) -> dict[int, str] | None:
    """Class names of a parsed ``data.yaml``: a list, or a mapping from class number to name.

    Paths and ``nc`` in it are not read: they are wrong more often than not.

    Returns:
        Class number -> name, or None where the YAML holds no usable ``names``.

    Examples:
        >>> names_from_yaml({"names": ["seal", "pup"]}), names_from_yaml({"names": {"3": "seal"}})
        ({0: 'seal', 1: 'pup'}, {3: 'seal'})
    """
    names = fields.get("names") if isinstance(fields, dict) else None
    if isinstance(names, str):
        names = [names]
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        return None
    if not all(isinstance(name, str | int | float) for name in names.values()):
        return None  # and a list of lists of lists, a few bytes of YAML, is never written out
    try:
        return {
            int(number): to_name(str(name)) for number, name in sorted(names.items(), key=_order)
        }
    except (ValueError, TypeError, OverflowError):
        return None


def names_from_text(text: str) -> dict[int, str]:
    r"""Class names of a ``classes.txt``: one a line.

    Examples:
        >>> names_from_text("seal\r\npup\n\n")
        {0: 'seal', 1: 'pup'}
    """
    names = [to_name(line.lstrip("\ufeff")) for line in text.splitlines()]
    return dict(enumerate(name for name in names if name))


def _order(item: tuple[Any, Any]) -> int:
    return int(item[0])


def _step(edge: float, side: int) -> int:
    share = edge / side
    return round(share * _GRID) if 0 <= share <= 1 else 0 if share < 0 else _GRID


def _from_columns(columns: list[str]) -> tuple[int, tuple[float, float, float, float]]:
    try:
        class_number = float(columns[0])
    except ValueError:
        raise ValueError(f"{columns[0][:20]} is not a class number") from None
    if not math.isfinite(class_number) or class_number < 0 or class_number % 1:
        raise ValueError(f"{columns[0][:20]} is not a class number")
    try:
        values = [float(column) for column in columns[1:]]
    except ValueError:
        raise ValueError("a coordinate is not a number") from None
    if not all(math.isfinite(value) for value in values):
        raise ValueError("a coordinate is not a finite number")
    if len(values) in (4, 5):
        x, y, w, h = values[:4]
        return int(class_number), (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        return int(class_number), (min(xs), min(ys), max(xs), max(ys))
    raise ValueError(f"{len(values)} coordinates are neither a box nor a polygon")
