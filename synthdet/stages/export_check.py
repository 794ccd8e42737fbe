"""Read an export back from the disk and compare it with its manifest, before anyone relies on it.

YOLO is read as strictly as the strictest reader does; COCO by pycocotools.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from PIL import Image
from pycocotools.coco import COCO

from synthdet.core.formats.yolo import from_yolo_lines
from synthdet.core.records import SPLITS, Box, ManifestEntry, Split
from synthdet.errors import SynthdetError
from synthdet.workspace import hash_file, read_records

TOLERANCE = 0.5
"""Pixels that a box may differ by, an edge."""


def check_export(folder: Path, class_names: Sequence[str]) -> None:
    """Check ``yolo/`` and ``coco/`` under a folder against its ``manifest.jsonl``.

    Raises:
        SynthdetError: The first thing that does not read back as the manifest says.
    """
    entries = read_records(folder / "manifest.jsonl", ManifestEntry)
    _check_names(folder / "yolo" / "data.yaml", class_names)
    stems: dict[str, str] = {}
    for split in SPLITS:
        members = [entry for entry in entries if entry.split == split]
        for entry in members:
            if stems.setdefault(entry.image_id, split) != split:
                raise _mismatch(
                    folder, f"{entry.image_id} is in {stems[entry.image_id]} and {split}"
                )
        _check_yolo(folder / "yolo", split, members, len(class_names))
        _check_coco(folder / "coco", split, members, class_names)


def _check_names(path: Path, class_names: Sequence[str]) -> None:
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    if (
        "path" in data
        or data["names"] != dict(enumerate(class_names))
        or data["nc"] != len(class_names)
    ):
        raise _mismatch(path, "its names are not those of the run, or it holds a path")
    for split in SPLITS:
        if not (path.parent / data[split]).is_dir():
            raise _mismatch(path, f"there is no {data[split]}")


def _check_yolo(
    folder: Path, split: Split, entries: Sequence[ManifestEntry], num_classes: int
) -> None:
    images, labels = folder / "images" / split, folder / "labels" / split
    _check_listing(images, (Path(entry.yolo_path).name for entry in entries))
    _check_listing(labels, (f"{entry.image_id}.txt" for entry in entries))
    for entry in entries:
        image = images / Path(entry.yolo_path).name
        _check_picture(image, entry)
        label = labels / f"{entry.image_id}.txt"
        boxes = _read_strictly(label, entry, num_classes)
        _compare(label, boxes, entry.boxes)


def _read_strictly(path: Path, entry: ManifestEntry, num_classes: int) -> list[Box]:
    """Five columns a line, everything within the picture, every class named."""
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        columns = line.split()
        if len(columns) != 5 or not all(0 <= float(column) <= 1 for column in columns[1:]):
            raise _mismatch(path, f"{line!r} is not a class and four numbers in 0..1")
    boxes, problems = from_yolo_lines(text, entry.width, entry.height)
    if problems:
        raise _mismatch(path, problems[0])
    if any(box.class_id >= num_classes for box in boxes):
        raise _mismatch(path, f"a class beyond the {num_classes} names")
    return boxes


def _check_coco(
    folder: Path, split: Split, entries: Sequence[ManifestEntry], class_names: Sequence[str]
) -> None:
    path = folder / "annotations" / f"instances_{split}.json"
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it took
        coco = COCO(str(path))
    categories = {category["id"]: category["name"] for category in coco.dataset["categories"]}
    if categories != dict(enumerate(class_names, start=1)):
        raise _mismatch(path, "its categories are not those of the run")
    if sorted(coco.imgs) != list(range(1, len(entries) + 1)):
        raise _mismatch(path, f"{len(coco.imgs)} images and {len(entries)} in the manifest")
    _check_listing(folder / "images" / split, (Path(entry.yolo_path).name for entry in entries))
    for image_id, entry in enumerate(entries, start=1):
        image = coco.imgs[image_id]
        name = Path(entry.yolo_path).name
        if image["file_name"] != name or (image["width"], image["height"]) != (
            entry.width,
            entry.height,
        ):
            raise _mismatch(path, f"image {image_id} is not {name} as the manifest has it")
        _check_picture(folder / "images" / split / name, entry)
        boxes = [
            Box(xyxy=(x, y, x + width, y + height), class_id=annotation["category_id"] - 1)
            for annotation in coco.imgToAnns[image_id]
            for x, y, width, height in [annotation["bbox"]]
        ]
        _compare(path, boxes, entry.boxes)


def _check_listing(folder: Path, promised: Iterable[str]) -> None:
    found, wanted = sorted(path.name for path in folder.iterdir()), sorted(promised)
    if found != wanted:
        odd = sorted({*found} ^ {*wanted}) or ["a name twice"]
        raise _mismatch(
            folder, f"{len(found)} files and {len(wanted)} in the manifest, as {odd[0]}"
        )


def _check_picture(path: Path, entry: ManifestEntry) -> None:
    if hash_file(path) != entry.sha256:
        raise _mismatch(path, "not the picture that its record describes, which was changed since")
    with Image.open(path) as image:
        if image.size != (entry.width, entry.height):
            raise _mismatch(path, f"{image.size} pixels, not {(entry.width, entry.height)}")


def _compare(path: Path, found: Sequence[Box], wanted: Sequence[Box]) -> None:
    if len(found) != len(wanted):
        raise _mismatch(path, f"{len(found)} boxes and {len(wanted)} in the manifest")
    for one, other in zip(found, wanted, strict=True):
        apart = max(abs(a - b) for a, b in zip(one.xyxy, other.xyxy, strict=True))
        if apart > TOLERANCE or one.class_id != other.class_id:
            raise _mismatch(path, f"box {one.xyxy} where the manifest has {other.xyxy}")


def _mismatch(path: Path, what: str) -> SynthdetError:
    return SynthdetError(
        f"{path}: {what}. The export was not put in place: check the disk, and run export again"
    )
