"""LabelMe annotations (and those of AnyLabeling and its kin): parsed JSON, a file a photo."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from synthdet.core.formats.annotated import (
    AnnotatedPhoto,
    AnnotationFile,
    ClassNames,
    around,
    shown,
    to_name,
    to_number,
    to_size,
)
from synthdet.core.records import XYXY, Box

_KEYS = ("imagePath", "imageHeight", "imageData")


def is_labelme(fields: Any) -> bool:
    """Whether parsed JSON is a LabelMe annotation."""
    return (
        isinstance(fields, dict)
        and isinstance(fields.get("shapes"), list)
        and any(key in fields for key in _KEYS)
    )


def from_labelme(fields: Mapping[str, Any]) -> AnnotationFile:
    """Read a LabelMe annotation.

    Rectangles, polygons, circles, masks and whatever else has three corners become the upright box
    around them; points and lines mark no area and are told.

    Examples:
        >>> seal = {"label": "seal", "points": [[15, 28], [10, 20]], "shape_type": "rectangle"}
        >>> file = from_labelme({"shapes": [seal], "imagePath": "a.jpg", "imageWidth": 64, "imageHeight": 48})
        >>> file.photos[0].size_wh, file.photos[0].boxes[0].xyxy
        ((64, 48), (10.0, 20.0, 15.0, 28.0))
    """
    names = ClassNames()
    path = fields.get("imagePath")
    photo = AnnotatedPhoto(
        path if isinstance(path, str) else "",
        to_size(fields.get("imageWidth"), fields.get("imageHeight")),
    )
    for number, shape in enumerate(fields["shapes"], start=1):
        try:
            if not isinstance(shape, dict):
                raise ValueError("is not an object")
            name = shape.get("label")
            if not isinstance(name, str) or not to_name(name):
                raise ValueError("has no label")
            xyxy = _from_shape(shape)
        except ValueError as error:
            photo.problems.append(f"shape {number} {error}")
            continue
        photo.boxes.append(Box(xyxy=xyxy, class_id=names.number(to_name(name))))
    return AnnotationFile(names.all, (photo,))


def to_labelme(
    file_name: str, width: int, height: int, boxes: Sequence[Box], class_names: Sequence[str]
) -> dict[str, Any]:
    """A photo with boxes as a LabelMe annotation: rectangles.

    Args:
        file_name: Of the photo.
        width: Of the photo, in pixels.
        height: Of the photo, in pixels.
        boxes: In pixels of the photo.
        class_names: By ``class_id``.
    """
    shapes: list[dict[str, Any]] = [
        {
            "label": class_names[box.class_id],
            "points": [list(box.xyxy[:2]), list(box.xyxy[2:])],
            "group_id": None,
            "shape_type": "rectangle",
            "flags": {},
        }
        for box in boxes
    ]
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": file_name,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
    }


def _from_shape(shape: Mapping[str, Any]) -> XYXY:
    kind, pairs = shape.get("shape_type") or "polygon", shape.get("points")
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in pairs
    ):
        raise ValueError("has no list of points")
    points = [(to_number(x, "has an x that"), to_number(y, "has a y that")) for x, y in pairs]
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        return (x - radius, y - radius, x + radius, y + radius)
    if kind in ("rectangle", "mask") and len(points) >= 2:
        return around(points)
    if kind in ("point", "points", "line", "linestrip") or len(points) < 3:
        raise ValueError(f"({shown(kind)} of {len(points)} points) marks no area")
    return around(points)
