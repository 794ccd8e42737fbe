"""Read an export back from the disk and compare it with its manifest, before anyone relies on it.

YOLO is read as strictly as the strictest reader does, and by ultralytics itself; COCO by pycocotools.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from PIL import Image
from pycocotools.coco import COCO

from synthdet.core.formats.safe_xml import parse_xml
from synthdet.core.formats.voc import from_voc
from synthdet.core.formats.yolo import from_yolo_lines
from synthdet.core.records import SPLITS, Box, ManifestEntry, Split
from synthdet.errors import SynthdetError
from synthdet.models.protocols import DatasetReader
from synthdet.workspace import hash_file

TOLERANCE = 0.5
"""Pixels that a box may differ by, an edge."""


def check_export(
    folder: Path, class_names: Sequence[str], reader: DatasetReader | None = None
) -> None:
    """Check all datasets under a folder against their manifests: the export, and the whole photos.

    Args:
        folder: Where they lie now; no path in them may depend on that.
        class_names: By ``class_id``.
        reader: Reads the YOLO datasets besides: ultralytics.

    Raises:
        SynthdetError: The first thing that does not read back as the manifest says.
    """
    for root in (folder, folder / "frames"):
        if (root / "manifest.jsonl").exists():
            _check_dataset(root, class_names, reader)
    if (folder / "augmented" / "manifest.jsonl").exists():
        copies, seen = folder / "augmented", _Seen()
        entries = _entries(copies, "train")
        _check_pairs(copies / "images", copies / "labels", entries, len(class_names), seen)


def _check_dataset(root: Path, class_names: Sequence[str], reader: DatasetReader | None) -> None:
    """One split after the other and one picture after the other: memory stays flat but for COCO's."""
    _check_names(root / "yolo" / "data.yaml", class_names)
    stems: dict[str, str] = {}
    number = 0
    for split in SPLITS:
        members = [one.image_id for one in _entries(root, split)]
        for name in members:
            if stems.setdefault(name, split) != split:
                raise _mismatch(root, f"{name} is in {stems[name]} and {split}")
        number += len(members)
        seen = _Seen()
        images, labels = root / "yolo" / "images" / split, root / "yolo" / "labels" / split
        _check_pairs(images, labels, _entries(root, split), len(class_names), seen)
        _check_coco(root / "coco", split, _entries(root, split), class_names, seen)
        if (root / "voc").exists():
            _check_voc(root / "voc", split, _entries(root, split), class_names, seen)
        if reader is not None and members:
            _check_reader(root / "yolo" / "data.yaml", split, _entries(root, split), reader)
    if (root / "voc").exists():
        _check_listing(root / "voc" / "Annotations", (f"{name}.xml" for name in stems))
    with (root / "manifest.jsonl").open("rb") as lines:
        if number != sum(1 for _ in lines):
            raise _mismatch(root / "manifest.jsonl", "a line of it is of no split, or not readable")


def _entries(root: Path, split: Split) -> Iterator[ManifestEntry]:
    """The manifest's entries of a split, one at a time."""
    path = root / "manifest.jsonl"
    wanted = f'"split": "{split}"'
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if wanted in line:  # spares parsing most of the others
                where = f"{path}, line {number}"
                entry = ManifestEntry.from_dict(json.loads(line), where=where)
                if entry.split == split:
                    yield entry


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


def _check_pairs(
    images: Path, labels: Path, entries: Iterable[ManifestEntry], num_classes: int, seen: _Seen
) -> None:
    """Pictures with their YOLO labels: all of them, and nothing else."""
    names, stems = [], []
    for entry in entries:
        names.append(_name(entry))
        stems.append(f"{entry.image_id}.txt")
        seen.check_picture(images / names[-1], entry)
        label = labels / stems[-1]
        boxes = _read_strictly(label, entry, num_classes)
        _compare(label, boxes, entry.boxes)
    _check_listing(images, names)
    _check_listing(labels, stems)


def _check_reader(
    data_yaml: Path, split: Split, entries: Iterable[ManifestEntry], reader: DatasetReader
) -> None:
    """Whether somebody else's reader sees the same pictures and boxes, and has nothing to say."""
    read = {one.name: one for one in reader.read(data_yaml, split)}
    number = 0
    for number, entry in enumerate(entries, start=1):  # noqa: B007
        one = read.get(_name(entry))
        if one is None:
            raise _mismatch(data_yaml, f"ultralytics does not find {_name(entry)} in {split}")
        if one.complaint:
            raise _mismatch(data_yaml, f"ultralytics says of {one.name}: {one.complaint}")
        if (one.width, one.height) != (entry.width, entry.height):
            raise _mismatch(
                data_yaml, f"ultralytics reads {one.name} as {one.width} x {one.height}"
            )
        boxes = [
            Box(
                xyxy=(
                    (x - w / 2) * one.width,
                    (y - h / 2) * one.height,
                    (x + w / 2) * one.width,
                    (y + h / 2) * one.height,
                ),
                class_id=int(class_id),
            )
            for class_id, x, y, w, h in one.boxes
        ]
        _compare(data_yaml.parent / _name(entry), boxes, entry.boxes)
    if len(read) != number:
        raise _mismatch(
            data_yaml, f"ultralytics finds {len(read)} pictures in {split}, not {number}"
        )


def _check_voc(
    folder: Path,
    split: Split,
    entries: Iterable[ManifestEntry],
    class_names: Sequence[str],
    seen: _Seen,
) -> None:
    listed = (folder / "ImageSets" / "Main" / f"{split}.txt").read_text().splitlines()
    stems = []
    for entry in entries:
        stems.append(entry.image_id)
        seen.check_picture(folder / "JPEGImages" / _name(entry), entry)
        path = folder / "Annotations" / f"{entry.image_id}.xml"
        try:
            file = from_voc(parse_xml(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise _mismatch(path, str(error)) from error
        (photo,) = file.photos
        if (
            photo.problems
            or photo.file_name != _name(entry)
            or photo.size_wh != (entry.width, entry.height)
        ):
            raise _mismatch(path, "it does not describe its picture as the manifest has it")
        names = [file.class_names[box.class_id] for box in photo.boxes]
        if names != [class_names[box.class_id] for box in entry.boxes]:
            raise _mismatch(path, f"{names} are not the classes that the manifest has")
        wanted = [
            Box(xyxy=other.xyxy, class_id=box.class_id)
            for box, other in zip(photo.boxes, entry.boxes, strict=True)
        ]
        _compare(path, photo.boxes, wanted)
    if listed != stems:
        raise _mismatch(folder / "ImageSets", f"{len(listed)} names and {len(stems)} in {split}")


def _read_strictly(path: Path, entry: ManifestEntry, num_classes: int) -> list[Box]:
    """Five columns a line, everything within the picture, every class named."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise _mismatch(path, "it is not there") from error
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
    folder: Path,
    split: Split,
    entries: Iterable[ManifestEntry],
    class_names: Sequence[str],
    seen: _Seen,
) -> None:
    path = folder / "annotations" / f"instances_{split}.json"
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it took
        coco = COCO(str(path))
    categories = {category["id"]: category["name"] for category in coco.dataset["categories"]}
    if categories != dict(enumerate(class_names, start=1)):
        raise _mismatch(path, "its categories are not those of the run")
    names = []
    for image_id, entry in enumerate(entries, start=1):
        image, name = coco.imgs.get(image_id), _name(entry)
        if (
            image is None
            or image["file_name"] != name
            or (image["width"], image["height"]) != (entry.width, entry.height)
        ):
            raise _mismatch(path, f"image {image_id} is not {name} as the manifest has it")
        names.append(name)
        seen.check_picture(folder / "images" / split / name, entry)
        boxes = [
            Box(xyxy=(x, y, x + width, y + height), class_id=annotation["category_id"] - 1)
            for annotation in coco.imgToAnns[image_id]
            for x, y, width, height in [annotation["bbox"]]
        ]
        _compare(path, boxes, entry.boxes)
    if len(coco.imgs) != len(names):
        raise _mismatch(path, f"{len(coco.imgs)} images and {len(names)} in the manifest")
    _check_listing(folder / "images" / split, names)


def _name(entry: ManifestEntry) -> str:
    return entry.yolo_path.rpartition("/")[2]


def _check_listing(folder: Path, promised: Iterable[str]) -> None:
    found, wanted = sorted(path.name for path in folder.iterdir()), sorted(promised)
    if found != wanted:
        odd = sorted({*found} ^ {*wanted}) or ["a name twice"]
        raise _mismatch(
            folder, f"{len(found)} files and {len(wanted)} in the manifest, as {odd[0]}"
        )


class _Seen:
    """Checks pictures; a file that it has read under another name (a hard link) it knows by its number."""

    def __init__(self) -> None:
        self._files: dict[tuple[int, int], tuple[str, tuple[int, int]]] = {}

    def check_picture(self, path: Path, entry: ManifestEntry) -> None:
        try:
            file = path.stat()
        except OSError as error:
            raise _mismatch(path, "it is not there") from error
        known = self._files.get((file.st_dev, file.st_ino))
        if known is None:
            with Image.open(path) as image:
                known = hash_file(path), image.size
            self._files[file.st_dev, file.st_ino] = known
        if known[0] != entry.sha256:
            raise _mismatch(
                path, "not the picture that its record describes, which was changed since"
            )
        if known[1] != (entry.width, entry.height):
            raise _mismatch(path, f"{known[1]} pixels, not {(entry.width, entry.height)}")


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
