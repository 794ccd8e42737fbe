"""CVAT annotations ("CVAT for images 1.1"): XML, one file for many photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape, quoteattr  # they escape text; they parse nothing

from synthdet.core.formats.annotated import (
    AnnotatedPhoto,
    AnnotationFile,
    ClassNames,
    around,
    around_turned,
    to_name,
    to_number,
    to_size,
)
from synthdet.core.formats.safe_xml import Element
from synthdet.core.records import XYXY, Box, Split
from synthdet.errors import SynthdetError

_WITHOUT_AREA: Final = ("polyline", "points", "skeleton", "cuboid")
_SPLITS: Final[Mapping[str, Split]] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


def is_cvat(root: Element) -> bool:
    """Whether XML is a CVAT export, for images or for video."""
    return root.tag == "annotations" and any(
        child.tag in ("image", "track", "meta") for child in root.children
    )


def from_cvat(root: Element, *, where: str) -> AnnotationFile:
    """Read a CVAT export.

    Boxes (turned ones too), polygons, ellipses and masks become the upright box around them; points and
    lines mark no area and are told. Tags of whole photos are not read.

    Args:
        root: The parsed XML.
        where: Name of the file, for messages.

    Raises:
        SynthdetError: CVAT for video; names the file.

    Examples:
        >>> from synthdet.core.formats.safe_xml import parse_xml
        >>> text = to_cvat([("a.jpg", 64, 48, [Box(xyxy=(10, 20, 15, 28), class_id=0)])], ["seal"])
        >>> from_cvat(parse_xml(text.encode()), where="a.xml").photos[0].boxes[0].xyxy
        (10.0, 20.0, 15.0, 28.0)
    """
    if root.first("track") is not None:
        raise SynthdetError(
            f"{where} is CVAT for video (it has tracks): export the task as CVAT for images 1.1"
        )
    names = ClassNames(_labels(root))
    photos = []
    for image in root.every("image"):
        own = image.attributes
        photo = AnnotatedPhoto(
            own.get("name", "").strip(),
            to_size(own.get("width"), own.get("height")),
            split=_SPLITS.get(own.get("subset", "").strip().lower()),
        )
        photos.append(photo)
        for shape in image.children:
            if shape.tag == "tag":
                continue
            try:
                xyxy = _from_shape(shape)
                name = to_name(shape.attributes.get("label", ""))
                if not name:
                    raise ValueError("has no label")
            except ValueError as error:
                photo.problems.append(f"line {shape.line}: {shape.tag[:20]} {error}")
                continue
            photo.boxes.append(Box(xyxy=xyxy, class_id=names.number(name)))
    return AnnotationFile(names.all, tuple(photos))


def to_cvat(
    photos: Sequence[tuple[str, int, int, Sequence[Box]]], class_names: Sequence[str]
) -> str:
    """Photos with boxes as CVAT for images 1.1.

    Args:
        photos: ``(file_name, width, height, boxes)`` each; boxes in pixels.
        class_names: By ``class_id``.
    """
    labels = "".join(f"<label><name>{escape(name)}</name></label>" for name in class_names)
    lines = [
        "<annotations>",
        "  <version>1.1</version>",
        f"  <meta><task><labels>{labels}</labels></task></meta>",
    ]
    for number, (file_name, width, height, boxes) in enumerate(photos):
        lines.append(
            f'  <image id="{number}" name={quoteattr(file_name)} width="{width}" height="{height}">'
        )
        for box in boxes:
            sides = zip(("xtl", "ytl", "xbr", "ybr"), box.xyxy, strict=True)
            edges = " ".join(f'{side}="{round(value, 4):.10g}"' for side, value in sides)
            label = quoteattr(class_names[box.class_id])
            lines.append(f'    <box label={label} occluded="0" {edges} z_order="0"/>')
        lines.append("  </image>")
    return "\n".join([*lines, "</annotations>", ""])


def _labels(root: Element) -> list[str]:
    """Labels of the task, job or project; the labels of a skeleton's parts are not among them."""
    meta = root.first("meta")
    for kind in meta.children if meta else ():
        labels = kind.first("labels")
        if labels is not None:
            found = [
                label.words("name") for label in labels.every("label") if not label.words("parent")
            ]
            return [to_name(name) for name in found if name]
    return []


def _from_shape(shape: Element) -> XYXY:
    own = shape.attributes
    turn = to_number(own.get("rotation", "0"), "rotation")

    def number(*keys: str) -> list[float]:
        return [to_number(own.get(key), key) for key in keys]

    if shape.tag == "box":
        x1, y1, x2, y2 = number("xtl", "ytl", "xbr", "ybr")
        return around_turned((x1, y1, x2, y2), turn) if turn else (x1, y1, x2, y2)
    if shape.tag == "polygon":
        corners = [pair.split(",") for pair in own.get("points", "").split(";")]
        if len(corners) < 3 or any(len(corner) != 2 for corner in corners):
            raise ValueError("has no three corners")
        return around([(to_number(x, "x"), to_number(y, "y")) for x, y in corners])
    if shape.tag == "ellipse":
        x, y, across, down = number("cx", "cy", "rx", "ry")
        return around_turned((x - across, y - down, x + across, y + down), turn)
    if shape.tag == "mask":
        x, y, width, height = number("left", "top", "width", "height")
        return (x, y, x + width, y + height)
    if shape.tag in _WITHOUT_AREA:
        raise ValueError("marks no area that is read: draw a box")
    raise ValueError("is a shape that is not known")
