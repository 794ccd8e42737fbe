"""COCO detection annotations as parsed JSON, both directions.

Source:
    Lin et al., "Microsoft COCO: Common Objects in Context", 2014, and its data format page:
    ``bbox`` is ``[x, y, width, height]`` in pixels, ids are integers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from synthdet.core.formats.annotated import (
    AnnotatedPhoto,
    AnnotationFile,
    around,
    shown,
    to_name,
    to_number,
    to_size,
)
from synthdet.core.records import XYXY, Box
from synthdet.errors import SynthdetError

T = TypeVar("T")


def is_coco(fields: Any) -> bool:
    """Whether parsed JSON is a COCO detection file: images, annotations and categories."""
    return isinstance(fields, dict) and all(
        isinstance(fields.get(key), list) for key in ("images", "annotations", "categories")
    )


def from_coco(fields: Mapping[str, Any], *, where: str) -> AnnotationFile:
    """Read a COCO file.

    A missing or empty ``bbox`` is taken from the segmentation: polygons, or run lengths.

    Args:
        fields: The parsed JSON.
        where: Name of the file, for messages.

    Raises:
        SynthdetError: Not COCO, or an image or category is malformed; names the file.

    Examples:
        >>> seal = {"image_id": 7, "category_id": 3, "bbox": [10, 20, 5, 8]}
        >>> file = from_coco({"images": [{"id": 7, "file_name": "a.jpg", "width": 64, "height": 48}],
        ...     "annotations": [seal], "categories": [{"id": 3, "name": "seal"}]}, where="a.json")
        >>> file.class_names, file.photos[0].boxes[0].xyxy
        (('seal',), (10.0, 20.0, 15.0, 28.0))
    """
    if not is_coco(fields):
        raise SynthdetError(
            f"{where} is not a COCO file: it needs the lists images, annotations and categories"
        )
    categories = _each(fields["categories"], "category", _from_category, where)
    category_ids = [category_id for category_id, _name in categories]
    class_names = tuple(name for _category_id, name in categories)
    images = dict(_each(fields["images"], "image", _from_image, where))
    if len(images) < len(fields["images"]):
        raise SynthdetError(f"{where}: two images have the same id: give each its own")
    positions = {category_id: position for position, category_id in enumerate(category_ids)}
    if len(positions) < len(category_ids):
        raise SynthdetError(f"{where}: two categories have the same id: give each its own")
    problems: list[str] = []
    for number, annotation in enumerate(fields["annotations"], start=1):
        try:
            image = images[_key(annotation["image_id"])]
        except (KeyError, TypeError, ValueError):
            problems.append(f"annotation {number} belongs to none of the images")
            continue
        try:
            class_id = positions[_key(annotation.get("category_id"))]
        except (KeyError, ValueError):
            raise SynthdetError(
                f"{where}: an annotation of {image.file_name[:80]} has category_id {shown(annotation.get('category_id'))}, "
                "which is not among the categories: add it there, or correct the annotation"
            ) from None
        try:
            xyxy = _from_annotation(annotation, image.size_wh)
        except ValueError as error:
            image.problems.append(f"annotation {number} {error}")
            continue
        image.boxes.append(Box(xyxy=xyxy, class_id=class_id))
    return AnnotationFile(class_names, tuple(images.values()), tuple(problems))


def to_coco(
    pictures: Sequence[tuple[str, int, int, Sequence[Box]]],
    class_names: Sequence[str],
    *,
    info: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Pictures with boxes as a COCO file.

    Args:
        pictures: ``(file_name, width, height, boxes)`` each; boxes in pixels, clipped here; one
            without area inside the picture is left out.
        class_names: By ``class_id``.
        info: What stands under ``info``.

    Returns:
        The JSON object. All ids count from 1; the id of a category is its ``class_id`` + 1.

    Examples:
        >>> fields = to_coco([("a.jpg", 64, 48, [Box(xyxy=(10, 20, 15, 28), class_id=0)])], ["seal"])
        >>> fields["annotations"][0]["bbox"], fields["annotations"][0]["category_id"]
        ([10.0, 20.0, 5.0, 8.0], 1)
    """
    images = []
    annotations: list[dict[str, Any]] = []
    for image_id, (file_name, width, height, boxes) in enumerate(pictures, start=1):
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for box in boxes:
            x1, x2 = (min(max(value, 0.0), width) for value in (box.xyxy[0], box.xyxy[2]))
            y1, y2 = (min(max(value, 0.0), height) for value in (box.xyxy[1], box.xyxy[3]))
            if x2 <= x1 or y2 <= y1:
                continue
            bbox = [round(value, 4) for value in (x1, y1, x2 - x1, y2 - y1)]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": box.class_id + 1,
                    "bbox": bbox,
                    "area": round(bbox[2] * bbox[3], 4),
                    "iscrowd": 0,
                    "segmentation": [],
                }
            )
    categories = [
        {"id": position, "name": name, "supercategory": "none"}
        for position, name in enumerate(class_names, start=1)
    ]
    return {
        "info": dict(info or {}),
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _key(value: Any) -> str:
    """An id: some tools write 7 in one place and "7" or 7.0 in another."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"its id is {shown(value)}")
    return str(int(value)) if isinstance(value, float) and value % 1 == 0 else str(value).strip()


def _each(entries: Sequence[Any], what: str, read: Callable[[Any], T], where: str) -> list[T]:
    """Every entry read; one that cannot be is told by its number."""
    found = []
    for number, entry in enumerate(entries, start=1):
        try:
            found.append(read(entry))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            lacks = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise SynthdetError(
                f"{where}: {what} {number} of {len(entries)} is malformed ({lacks}): correct it or take it out"
            ) from error
    return found


def _from_category(category: Mapping[str, Any]) -> tuple[str, str]:
    return _key(category["id"]), to_name(str(category["name"]))


def _from_image(image: Mapping[str, Any]) -> tuple[str, AnnotatedPhoto]:
    file_name = image["file_name"]
    if not isinstance(file_name, str) or not file_name.strip():
        raise ValueError(f"its file_name is {shown(file_name)}")
    size_wh = to_size(image.get("width"), image.get("height"))
    return _key(image["id"]), AnnotatedPhoto(file_name, size_wh)


def _from_annotation(annotation: Mapping[str, Any], size_wh: tuple[int, int] | None) -> XYXY:
    bbox = annotation.get("bbox")
    if not bbox:
        return _from_segmentation(annotation.get("segmentation"), size_wh)
    if not isinstance(bbox, list) or len(bbox) != 4:
        raise ValueError("has a bbox that is no list of four numbers")
    x, y, width, height = (to_number(value, "has a bbox that") for value in bbox)
    return (x, y, x + width, y + height)


def _from_segmentation(segmentation: Any, size_wh: tuple[int, int] | None) -> XYXY:
    if not segmentation:
        raise ValueError("has neither a bbox nor a segmentation")
    if isinstance(segmentation, dict):
        return _from_run_lengths(segmentation, size_wh)
    if not isinstance(segmentation, list):
        raise ValueError("has a segmentation that is no list")
    if not isinstance(segmentation[0], list):
        segmentation = [segmentation]  # one polygon without the list around it
    points: list[tuple[float, float]] = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("has a segmentation without three corners")
        values = [to_number(value, "has a corner that") for value in polygon]
        points += zip(values[::2], values[1::2], strict=True)
    return around(points)


def _from_run_lengths(mask: Mapping[str, Any], size_wh: tuple[int, int] | None) -> XYXY:
    """The box around a mask given as run lengths, down the columns, not set first.

    Source:
        ``rleFrString`` and ``rleToBbox`` of cocoapi's maskApi.c, which is not called: a size of 0 in the
        file divides by zero there and ends the process.
    """
    size = mask.get("size")
    told = to_size(size[1], size[0]) if isinstance(size, list) and len(size) == 2 else None
    size_wh = told or size_wh
    counts = mask.get("counts")
    if size_wh is None:
        raise ValueError("has run lengths without a size")
    if isinstance(counts, str):
        counts = _unpack(counts)
    if not isinstance(counts, list) or not all(type(count) is int for count in counts):
        raise ValueError("has run lengths that cannot be read")
    width, height = size_wh
    columns: list[int] = []
    rows: list[int] = []
    end = 0
    for number, count in enumerate(counts):
        start, end = end, end + count
        if count < 0 or end > width * height:
            raise ValueError("has run lengths that do not fit its size")
        if number % 2 and count:
            columns += [start // height, (end - 1) // height]
            whole = columns[-1] > columns[-2]
            rows += [0, height - 1] if whole else [start % height, (end - 1) % height]
    if not columns:
        raise ValueError("has an empty mask")
    return (min(columns), min(rows), max(columns) + 1, max(rows) + 1)


def _unpack(text: str) -> list[int]:
    """Run lengths from their text: 5 bits a character, lowest first; from the third on, differences."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("has run lengths that cannot be read")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts
