"""Annotations in a table (CSV): a row a box, or a row a photo without any.

Which column is what, its name tells in the usual spellings, or a mapping (``prepare.csv``). Without a
header, rows are ``file, x1, y1, x2, y2, class``, as keras-retinanet has them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from synthdet.core.formats.annotated import (
    SHARES,
    AnnotatedPhoto,
    AnnotationFile,
    ClassNames,
    shown,
    to_name,
    to_number,
    to_size,
)
from synthdet.core.records import XYXY, Box
from synthdet.errors import SynthdetError

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "file": (
        "filename", "imagename", "imagefilename", "imagefile", "imagepath", "imgpath", "imgname",
        "filepath", "image", "img", "imageid", "path", "file", "photo", "photoname", "tile", "frame",
        "externalid", "name",
    ),
    "class": (
        "class", "label", "classname", "labelname", "category", "categoryname", "species", "object",
        "cls", "type", "annotation", "tag", "classid", "categoryid", "name",
    ),
    "x1": (
        "x1", "xmin", "minx", "left", "xtl", "xleft", "x0", "bboxx1", "boxx1", "bboxxmin", "boxxmin",
        "bboxleft", "topleftx",
    ),
    "y1": (
        "y1", "ymin", "miny", "top", "ytl", "ytop", "y0", "bboxy1", "boxy1", "bboxymin", "boxymin",
        "bboxtop", "toplefty",
    ),
    "x2": (
        "x2", "xmax", "maxx", "right", "xbr", "xright", "bboxx2", "boxx2", "bboxxmax", "boxxmax",
        "bboxright", "bottomrightx",
    ),
    "y2": (
        "y2", "ymax", "maxy", "bottom", "ybr", "ybottom", "bboxy2", "boxy2", "bboxymax", "boxymax",
        "bboxbottom", "bottomrighty",
    ),
    "x": ("x", "bboxx", "boxx", "left", "xmin", "x1", "bboxleft"),
    "y": ("y", "bboxy", "boxy", "top", "ymin", "y1", "bboxtop"),
    "cx": ("cx", "xcenter", "xcentre", "centerx", "centrex", "xc", "bboxcx"),
    "cy": ("cy", "ycenter", "ycentre", "centery", "centrey", "yc", "bboxcy"),
    "w": ("w", "width", "bboxwidth", "boxwidth", "bboxw", "boxw"),
    "h": ("h", "height", "bboxheight", "boxheight", "bboxh", "boxh"),
    "image_width": ("imagewidth", "imgwidth", "imagew", "imgw", "photowidth", "width"),
    "image_height": ("imageheight", "imgheight", "imageh", "imgh", "photoheight", "height"),
}  # fmt: skip
"""What a table tells -> how its columns are usually called, without blanks, signs and capitals. A
mapping may name ``xywh`` besides: one column that holds four numbers, like ``[10, 20, 5, 8]``."""
KEYS: Final = (*COLUMNS, "xywh")
_CORNERS: Final = ("x1", "y1", "x2", "y2")
_SIDES: Final = ("x", "y", "w", "h")
_CENTRE: Final = ("cx", "cy", "w", "h")
_LIST: Final = ("xywh",)
_SHAPES: Final = (_LIST, _CORNERS, _SIDES, _CENTRE)
_PLAIN: Final = ("file", *_CORNERS, "class")
_ONE_CLASS: Final = "object"
_ALMOST_ONE: Final = 1.0001
_NUMBERS = re.compile(r"[^\s,;()\[\]]+")


def from_csv(
    text: str,
    *,
    where: str,
    is_photo: Callable[[str], bool],
    mapping: Mapping[str, str] | None = None,
    asked: bool = False,
) -> AnnotationFile | None:
    r"""Read a table.

    Rows without coordinates are photos without animals. Boxes are shares of the photo if no coordinate
    of the whole table is above 1, else pixels. A table without a column for the class has one class.

    Args:
        text: The file's text; separated by commas, semicolons or tabs.
        where: Name of the file, for messages.
        is_photo: Whether a value names one of the photos: this tells the column of the files.
        mapping: ``prepare.csv``: what a column is (of `KEYS`) -> its name.
        asked: Whether the user named this table: what is missing is told, not passed over.

    Returns:
        What it says, or None if it does not speak of boxes in photos.

    Raises:
        SynthdetError: It was asked for and its columns are not understood; names them.

    Examples:
        >>> text = "tile;X1;Y1;X2;Y2;class\na.jpg;10;20;15;28;seal\nb.jpg;;;;;\n"
        >>> file = from_csv(text, where="a.csv", is_photo=lambda name: name.endswith(".jpg"))
        >>> [(photo.file_name, [box.xyxy for box in photo.boxes]) for photo in file.photos]
        [('a.jpg', [(10.0, 20.0, 15.0, 28.0)]), ('b.jpg', [])]
    """
    problems: list[str] = []
    separator = _separator(text)
    rows = list(_rows(text, separator, problems))
    header = [name.strip() for name in rows[0][1]] if rows else []
    columns = _find_columns(header, rows[1:], is_photo, mapping or {})
    if columns is not None:
        rows = rows[1:]
    elif rows and _is_plain(header, is_photo):
        columns = {key: place for place, key in enumerate(_PLAIN)}
    else:
        if asked:
            raise SynthdetError(_not_understood(where, header, mapping or {}, problems))
        return None
    shape = next(keys for keys in _SHAPES if all(key in columns for key in keys))
    names = ClassNames()
    photos: dict[str, AnnotatedPhoto] = {}
    for line, row in rows:
        values = {key: row[place].strip() for key, place in columns.items() if place < len(row)}
        name = values.get("file", "")
        if not name:
            problems.append(f"line {line}: names no photo")
            continue
        size = to_size(values.get("image_width"), values.get("image_height"))
        photo = photos.setdefault(name, AnnotatedPhoto(name, size))
        try:
            xyxy = _from_row(values, shape, decimal_comma=separator == ";")
            label = to_name(values.get("class", "")) if "class" in columns else _ONE_CLASS
            if xyxy is not None and not label:
                raise ValueError("has no class")
        except ValueError as error:
            photo.problems.append(f"line {line}: {error}")
            continue
        if xyxy is not None:
            photo.boxes.append(Box(xyxy=xyxy, class_id=names.number(label)))
    boxes = [box for photo in photos.values() for box in photo.boxes]
    if boxes and all(abs(value) <= _ALMOST_ONE for box in boxes for value in box.xyxy):
        for photo in photos.values():
            photo.size_wh = SHARES
    return AnnotationFile(names.all, tuple(photos.values()), tuple(problems))


def to_csv(
    photos: Sequence[tuple[str, int, int, Sequence[Box]]], class_names: Sequence[str]
) -> str:
    """Photos with boxes as a table; a photo without boxes has a row of its own.

    Args:
        photos: ``(file_name, width, height, boxes)`` each; boxes in pixels.
        class_names: By ``class_id``.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"])
    for file_name, width, height, boxes in photos:
        for box in boxes:
            edges = [round(value, 4) for value in box.xyxy]
            writer.writerow([file_name, width, height, class_names[box.class_id], *edges])
        if not boxes:
            writer.writerow([file_name, width, height, "", "", "", "", ""])
    return file.getvalue()


def _separator(text: str) -> str:
    first = next((line for line in text.splitlines() if line.strip()), "")
    return max((",", ";", "\t"), key=first.count)


def _rows(text: str, separator: str, problems: list[str]) -> Iterator[tuple[int, list[str]]]:
    """Rows with the number of their line; blank ones are passed over."""
    reader = csv.reader(io.StringIO(text.lstrip("\ufeff"), newline=""), delimiter=separator)
    try:
        for row in reader:
            if any(value.strip() for value in row):
                yield reader.line_num, row
    except csv.Error as error:
        problems.append(f"line {reader.line_num}: is not readable as CSV: {error}")


def _plain_name(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _find_columns(
    header: Sequence[str],
    rows: Sequence[tuple[int, list[str]]],
    is_photo: Callable[[str], bool],
    mapping: Mapping[str, str],
) -> dict[str, int] | None:
    """What a column is -> its place; None where a photo's name or a whole box is lacking."""
    if not set(header).issuperset(mapping.values()):
        return None
    found = {key: header.index(name) for key, name in mapping.items()}
    places: dict[str, int] = {}
    for place, name in enumerate(header):
        places.setdefault(_plain_name(name), place)
    for key, spellings in COLUMNS.items():
        candidates = [places[name] for name in spellings if name in places]
        if key == "file":  # the one whose values are photos; a site may be called `image`
            candidates.sort(key=lambda place: -_num_photos(rows, place, is_photo))
        if key == "class":
            candidates = [place for place in candidates if place != found.get("file")]
        if key not in found and candidates:
            found[key] = candidates[0]
    shape = next((keys for keys in _SHAPES if all(key in found for key in keys)), None)
    if "file" not in found or shape is None:
        return None
    size: tuple[str, ...] = ("image_width", "image_height")
    if shape in (_SIDES, _CENTRE):  # width and height are the box's
        size = tuple(key for key in size if found.get(key) not in (found["w"], found["h"]))
    return {key: found[key] for key in ("file", "class", *shape, *size) if key in found}


def _num_photos(
    rows: Sequence[tuple[int, list[str]]], place: int, is_photo: Callable[[str], bool]
) -> int:
    return sum(is_photo(row[place].strip()) for _line, row in rows if place < len(row))


def _is_plain(row: Sequence[str], is_photo: Callable[[str], bool]) -> bool:
    """Whether a first row is no header but a box as keras-retinanet writes it."""
    if len(row) < len(_PLAIN) or not is_photo(row[0]):
        return False
    try:
        return not any(row[1:5]) or bool([to_number(edge, "edge") for edge in row[1:5]])
    except ValueError:
        return False


def _from_row(
    values: Mapping[str, str], shape: tuple[str, ...], *, decimal_comma: bool
) -> XYXY | None:
    """The box of a row, or None for a row without coordinates."""
    given = [values.get(key, "") for key in shape]
    if shape is _LIST:
        given = _NUMBERS.findall(given[0])
    if not any(given) or all(value.lower() in ("", "na", "nan", "none", "null") for value in given):
        return None
    if len(given) != 4:
        raise ValueError(f"has {len(given)} numbers where a box has four")
    names = _SIDES if shape is _LIST else shape
    if decimal_comma:
        given = [value.replace(",", ".") for value in given]
    a, b, c, d = (to_number(value, name) for value, name in zip(given, names, strict=True))
    if shape is _CORNERS:
        return (a, b, c, d)
    if shape is _CENTRE:
        return (a - c / 2, b - d / 2, a + c / 2, b + d / 2)
    return (a, b, a + c, b + d)


def _not_understood(
    where: str, header: Sequence[str], mapping: Mapping[str, str], problems: Sequence[str]
) -> str:
    if problems:
        return f"{where}, {problems[0]}"
    names = ", ".join(name[:20] for name in header[:12]) or "none"
    for key, name in mapping.items():
        if name not in header:
            return f"{where} has no column {shown(name)}, which prepare.csv names as {key}; it has {names}"
    return (
        f"{where} has the columns {names}: no file name and box are recognised among them; say which is which with "
        "prepare.csv, like {file: photo, class: species, x1: left, y1: top, x2: right, y2: bottom} (or x, y, w, h; cx, cy, w, h; xywh)"
    )
