"""COCO detection annotations as parsed JSON, both directions.

Source:
    Lin et al., "Microsoft COCO: Common Objects in Context", 2014, and its data format page:
    ``bbox`` is ``[x, y, width, height]`` in pixels, ids are integers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pycocotools import mask as masks

from synthdet.core.records import XYXY, Box
from synthdet.errors import SynthdetError


@dataclass(slots=True)
class CocoImage:
    """A picture of a COCO file.

    Attributes:
        file_name: As written there.
        size_wh: Width and height in pixels as written there; None where they are missing.
        boxes: In pixels; ``class_id`` is the position in `CocoFile.class_names`.
        problems: What is wrong with single annotations.
    """

    file_name: str
    size_wh: tuple[int, int] | None
    boxes: list[Box] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CocoFile:
    """What a COCO file says.

    Attributes:
        class_names: In the order of the categories; two categories of one name stay two.
        category_ids: Id of each category, in the same order.
        images: Its pictures, in order, those without annotations too.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[CocoImage, ...]


def is_coco(fields: Any) -> bool:
    """Whether parsed JSON is a COCO detection file: images, annotations and categories."""
    return isinstance(fields, dict) and all(
        isinstance(fields.get(key), list) for key in ("images", "annotations", "categories")
    )


def from_coco(fields: Mapping[str, Any], *, where: str) -> CocoFile:
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
        >>> file.class_names, file.images[0].boxes[0].xyxy
        (('seal',), (10.0, 20.0, 15.0, 28.0))
    """
    if not is_coco(fields):
        raise SynthdetError(
            f"{where} is not a COCO file: it needs the lists images, annotations and categories"
        )
    try:
        category_ids = tuple(int(category["id"]) for category in fields["categories"])
        class_names = tuple(str(category["name"]).strip() for category in fields["categories"])
        images = {image["id"]: _from_image(image) for image in fields["images"]}
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise SynthdetError(f"{where}: an image or a category is malformed ({error!r})") from error
    if len(images) < len(fields["images"]):
        raise SynthdetError(f"{where}: two images have the same id")
    positions = {category_id: position for position, category_id in enumerate(category_ids)}
    for number, annotation in enumerate(fields["annotations"]):
        if not isinstance(annotation, dict) or not _hashable(annotation.get("image_id")):
            continue
        image = images.get(annotation.get("image_id"))
        if image is None:
            continue  # of a picture that is not in the file
        category_id = annotation.get("category_id")
        if not _hashable(category_id) or category_id not in positions:
            raise SynthdetError(
                f"{where}: an annotation of {image.file_name} has category_id {category_id!r}, "
                "which is not among the categories: add it there, or correct the annotation"
            )
        try:
            xyxy = _from_annotation(annotation, image.size_wh)
        except (ValueError, TypeError, OverflowError) as error:
            name = annotation.get("id", number)
            image.problems.append(f"annotation {name}: {str(error) or 'is malformed'}")
            continue
        image.boxes.append(Box(xyxy=xyxy, class_id=positions[category_id]))
    return CocoFile(class_names, category_ids, tuple(images.values()))


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


def _hashable(value: Any) -> bool:
    return isinstance(value, int | str)


def _from_image(image: Mapping[str, Any]) -> CocoImage:
    size_wh = None
    if image.get("width") and image.get("height"):
        size_wh = (int(image["width"]), int(image["height"]))
    return CocoImage(str(image["file_name"]), size_wh)


def _from_annotation(annotation: Mapping[str, Any], size_wh: tuple[int, int] | None) -> XYXY:
    bbox = annotation.get("bbox")
    if not bbox:
        return _from_segmentation(annotation.get("segmentation"), size_wh)
    x, y, width, height = (float(value) for value in bbox)
    if not all(math.isfinite(value) for value in (x, y, width, height)):
        raise ValueError("bbox holds a number that is not finite")
    return (x, y, x + width, y + height)


def _from_segmentation(segmentation: Any, size_wh: tuple[int, int] | None) -> XYXY:
    if not segmentation:
        raise ValueError("has neither a bbox nor a segmentation")
    if isinstance(segmentation, dict):
        try:
            runs = segmentation
            if isinstance(runs["counts"], list):
                runs = masks.frPyObjects(runs, *(size_wh or runs["size"][::-1])[::-1])
            x, y, width, height = (float(value) for value in masks.toBbox(runs))
        except Exception as error:  # the decoder raises whatever its C code meets
            raise ValueError("its run lengths cannot be read") from error
        return (x, y, x + width, y + height)
    points = [float(value) for polygon in segmentation for value in polygon]
    if len(points) < 6 or not all(math.isfinite(value) for value in points):
        raise ValueError("its segmentation has no three finite corners")
    xs, ys = points[::2], points[1::2]
    return (min(xs), min(ys), max(xs), max(ys))
