"""Pascal VOC annotations: an XML file a photo, both directions.

Source:
    Everingham et al., "The PASCAL Visual Object Classes (VOC) Challenge", 2010. In its own files the
    first pixel is 1 and ``xmax`` is the last pixel inside; LabelImg, CVAT, FiftyOne and labelformat
    write plain edges, where the first pixel begins at 0. Which it is, the file's ``database`` tells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from xml.sax.saxutils import escape  # escapes text; parses nothing

from synthdet.core.formats.annotated import (
    AnnotatedPhoto,
    AnnotationFile,
    ClassNames,
    around,
    around_turned,
    shown,
    to_name,
    to_number,
    to_size,
)
from synthdet.core.formats.safe_xml import Element
from synthdet.core.records import XYXY, Box

_COUNT_FROM_ONE: Final = ("the voc", "roboflow")
"""How ``database`` begins in the files of tools whose first pixel is 1."""
_DEGREES: Final = 57.29577951308232


def is_voc(root: Element) -> bool:
    """Whether XML is a Pascal VOC annotation."""
    return root.tag == "annotation" and any(
        child.tag in ("filename", "size", "object") for child in root.children
    )


def from_voc(root: Element) -> AnnotationFile:
    """Read a Pascal VOC annotation.

    Boxes; polygons, as Roboflow and LabelMe's old web tool write them, and the turned boxes of roLabelImg,
    as the upright box around them.

    Examples:
        >>> from synthdet.core.formats.safe_xml import parse_xml
        >>> text = to_voc("a.jpg", 64, 48, [Box(xyxy=(10, 20, 15, 28), class_id=0)], ["seal"])
        >>> file = from_voc(parse_xml(text.encode()))
        >>> file.class_names, file.photos[0].boxes[0].xyxy
        (('seal',), (10.0, 20.0, 15.0, 28.0))
    """
    names = ClassNames()
    size = root.first("size") or Element("size", {}, root.line)
    photo = AnnotatedPhoto(
        root.words("filename"), to_size(size.words("width"), size.words("height"))
    )
    database = root.words("source", "database").lower()
    first = 1 if database.startswith(_COUNT_FROM_ONE) else 0
    for marked in root.every("object"):
        if marked.words("deleted") == "1":
            continue
        try:
            name = to_name(marked.words("name"))
            if not name:
                raise ValueError("has no name")
            x1, y1, x2, y2 = _from_object(marked)
        except ValueError as error:
            photo.problems.append(f"line {marked.line}: object {error}")
            continue
        edges = (x1 - first, y1 - first, x2, y2)
        photo.boxes.append(Box(xyxy=edges, class_id=names.number(name)))
    return AnnotationFile(names.all, (photo,))


def to_voc(
    file_name: str, width: int, height: int, boxes: Sequence[Box], class_names: Sequence[str]
) -> str:
    """A photo with boxes as Pascal VOC: plain edges, as LabelImg writes them.

    Args:
        file_name: Of the photo.
        width: Of the photo, in pixels.
        height: Of the photo, in pixels.
        boxes: In pixels of the photo.
        class_names: By ``class_id``.

    Returns:
        The XML, lines ended by LF.

    Raises:
        ValueError: A name holds a character that XML cannot.
    """
    objects = "".join(
        f"  <object>\n    <name>{_text(class_names[box.class_id])}</name>\n    <bndbox>\n"
        + "".join(
            f"      <{tag}>{round(value, 4):.10g}</{tag}>\n"
            for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box.xyxy, strict=True)
        )
        + "    </bndbox>\n  </object>\n"
        for box in boxes
    )
    size = f"<width>{width}</width><height>{height}</height><depth>3</depth>"
    return (
        f"<annotation>\n  <filename>{_text(file_name)}</filename>\n  <size>{size}</size>\n"
        f"{objects}</annotation>\n"
    )


def _text(words: str) -> str:
    if any(character < " " and character not in "\t" for character in words):
        raise ValueError(f"{shown(words)} holds a character that XML cannot")
    return escape(words)


def _from_object(marked: Element) -> XYXY:
    box = marked.first("bndbox")
    if box is not None:
        x1, y1, x2, y2 = (
            to_number(box.words(tag), tag) for tag in ("xmin", "ymin", "xmax", "ymax")
        )
        return (x1, y1, x2, y2)
    turned = marked.first("robndbox")
    if turned is not None:
        x, y, w, h, angle = (
            to_number(turned.words(tag), tag) for tag in ("cx", "cy", "w", "h", "angle")
        )
        return around_turned((x - w / 2, y - h / 2, x + w / 2, y + h / 2), angle * _DEGREES)
    polygon = marked.first("polygon")
    if polygon is None:
        raise ValueError("has neither bndbox nor polygon")
    points = [
        (to_number(point.words("x"), "x"), to_number(point.words("y"), "y"))
        for point in polygon.every("pt")
    ]
    for corner in polygon.children:
        if re.fullmatch(r"x\d+", corner.tag):
            below = f"y{corner.tag[1:]}"
            y = to_number(polygon.words(below), below)
            points.append((to_number(corner.text, corner.tag), y))
    if len(points) < 3:
        raise ValueError("has a polygon without three corners")
    return around(points)
