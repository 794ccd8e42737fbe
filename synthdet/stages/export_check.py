"""Read an export back from the disk and compare it with its manifest, before anyone relies on it.

YOLO is read as strictly as the strictest reader does, and by ultralytics itself; COCO by pycocotools.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from PIL import Image
from pycocotools.coco import COCO
from pydantic import ValidationError

from synthdet.core.formats.safe_xml import parse_xml
from synthdet.core.formats.voc import from_voc
from synthdet.core.formats.yolo import from_yolo_lines
from synthdet.core.records import SPLITS, Box, ManifestEntry, Split
from synthdet.errors import SynthdetError
from synthdet.models.protocols import DatasetReader
from synthdet.stages._photos import in_order, large_frames
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
            with large_frames():
                _check_dataset(root, class_names, reader)
    if (folder / "augmented" / "manifest.jsonl").exists():
        copies = folder / "augmented"
        pairs = _Pairs(copies / "images", copies / "labels", len(class_names), _Seen())
        for entry in _entries(copies, "train"):
            pairs.check(entry)
        pairs.close()


def _check_dataset(root: Path, class_names: Sequence[str], reader: DatasetReader | None) -> None:
    """One split after the other and one picture after the other: memory stays flat but for COCO's."""
    _check_names(root / "yolo" / "data.yaml", class_names)
    stems: dict[str, str] = {}
    number = 0
    for split in SPLITS:
        members = _check_split(root, split, class_names, stems)
        number += members
        if reader is not None and members:
            _check_reader(root / "yolo" / "data.yaml", split, _entries(root, split), reader)
    if (root / "voc").exists():
        _check_listing(root / "voc" / "Annotations", (f"{name}.xml" for name in stems))
    with (root / "manifest.jsonl").open("rb") as lines:
        if number != sum(1 for _ in lines):
            raise _mismatch(root / "manifest.jsonl", "a line of it is of no split, or not readable")


def _check_split(
    root: Path, split: Split, class_names: Sequence[str], stems: dict[str, str]
) -> int:
    """Every picture of a split in all formats; how many there are. ``stems`` gets their names."""
    seen, images = _Seen(), root / "yolo" / "images" / split
    seen.read(images)
    formats: list[_Pairs | _Coco | _Voc] = [
        _Pairs(images, root / "yolo" / "labels" / split, len(class_names), seen),
        _Coco(root / "coco", split, class_names, seen),
    ]
    if (root / "voc").exists():
        formats.append(_Voc(root / "voc", split, class_names, seen))
    number = 0
    for number, entry in enumerate(_entries(root, split), start=1):  # noqa: B007
        if stems.setdefault(entry.image_id, split) != split:
            raise _mismatch(root, f"{entry.image_id} is in {stems[entry.image_id]} and {split}")
        for one in formats:
            one.check(entry)
    for one in formats:
        one.close()
    return number


def _entries(root: Path, split: Split) -> Iterator[ManifestEntry]:
    """The manifest's entries of a split, one at a time."""
    path = root / "manifest.jsonl"
    wanted = f'"{split}"'
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if wanted in line:  # spares parsing most of the others
                try:
                    entry = ManifestEntry.model_validate_json(line)
                except ValidationError:  # in words
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


class _Pairs:
    """Pictures with their YOLO labels: all of them, and nothing else."""

    def __init__(self, images: Path, labels: Path, num_classes: int, seen: _Seen) -> None:
        self._images, self._labels = images, labels
        self._num_classes, self._seen = num_classes, seen
        self._names: list[str] = []
        self._stems: list[str] = []

    def check(self, entry: ManifestEntry) -> None:
        name, stem = _name(entry), f"{entry.image_id}.txt"
        self._names.append(name)
        self._stems.append(stem)
        self._seen.check_picture(f"{self._images}/{name}", entry)
        label = f"{self._labels}/{stem}"
        _compare(label, _read_strictly(label, entry, self._num_classes), entry.boxes)

    def close(self) -> None:
        _check_listing(self._images, self._names)
        _check_listing(self._labels, self._stems)


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


class _Voc:
    """Pascal VOC of a split."""

    def __init__(self, folder: Path, split: Split, class_names: Sequence[str], seen: _Seen) -> None:
        self._folder, self._split = folder, split
        self._class_names, self._seen = class_names, seen
        self._stems: list[str] = []

    def check(self, entry: ManifestEntry) -> None:
        name, path = _name(entry), f"{self._folder}/Annotations/{entry.image_id}.xml"
        self._stems.append(entry.image_id)
        self._seen.check_picture(f"{self._folder}/JPEGImages/{name}", entry)
        try:
            file = from_voc(parse_xml(Path(path).read_bytes()))
        except (OSError, ValueError) as error:
            raise _mismatch(path, str(error)) from error
        (photo,) = file.photos
        size_wh = entry.width, entry.height
        if photo.problems or photo.file_name != name or photo.size_wh != size_wh:
            raise _mismatch(path, "it does not describe its picture as the manifest has it")
        names = [file.class_names[box.class_id] for box in photo.boxes]
        if names != [self._class_names[box.class_id] for box in entry.boxes]:
            raise _mismatch(path, f"{names} are not the classes that the manifest has")
        wanted = [
            Box(xyxy=other.xyxy, class_id=box.class_id)
            for box, other in zip(photo.boxes, entry.boxes, strict=True)
        ]
        _compare(path, photo.boxes, wanted)

    def close(self) -> None:
        lists = self._folder / "ImageSets" / "Main"
        listed = (lists / f"{self._split}.txt").read_text().splitlines()
        if listed != self._stems:
            found = f"{len(listed)} names and {len(self._stems)} in {self._split}"
            raise _mismatch(lists.parent, found)


def _read_strictly(path: str, entry: ManifestEntry, num_classes: int) -> list[Box]:
    """Five columns a line, everything within the picture, every class named."""
    try:
        with open(path, encoding="utf-8") as handle:  # noqa: PTH123 - a string, thousands of times
            text = handle.read()
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


class _Coco:
    """A split as pycocotools reads it."""

    def __init__(self, folder: Path, split: Split, class_names: Sequence[str], seen: _Seen) -> None:
        self._path = folder / "annotations" / f"instances_{split}.json"
        self._images, self._seen = folder / "images" / split, seen
        self._names: list[str] = []
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it took
            self._coco = COCO(str(self._path))
        categories = {one["id"]: one["name"] for one in self._coco.dataset["categories"]}
        if categories != dict(enumerate(class_names, start=1)):
            raise _mismatch(self._path, "its categories are not those of the run")

    def check(self, entry: ManifestEntry) -> None:
        name, image_id = _name(entry), len(self._names) + 1
        image = self._coco.imgs.get(image_id)
        if (
            image is None
            or image["file_name"] != name
            or (image["width"], image["height"]) != (entry.width, entry.height)
        ):
            raise _mismatch(self._path, f"image {image_id} is not {name} as the manifest has it")
        self._names.append(name)
        self._seen.check_picture(f"{self._images}/{name}", entry)
        boxes = [
            Box(xyxy=(x, y, x + width, y + height), class_id=annotation["category_id"] - 1)
            for annotation in self._coco.imgToAnns[image_id]
            for x, y, width, height in [annotation["bbox"]]
        ]
        _compare(self._path, boxes, entry.boxes)

    def close(self) -> None:
        images, names = len(self._coco.imgs), self._names
        if images != len(names):
            raise _mismatch(self._path, f"{images} images and {len(names)} in the manifest")
        _check_listing(self._images, names)


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
        self._files: dict[tuple[int, int], _Look | None] = {}

    def read(self, folder: Path) -> None:
        """Look at all pictures of a folder beforehand, in threads, one a core."""
        files: dict[tuple[int, int], str] = {}
        with os.scandir(folder) as found:
            for file in found:
                status = file.stat()  # some file systems give a directory's entries other numbers
                files.setdefault((status.st_dev, status.st_ino), file.path)
        for key, look in zip(files, in_order(_try_to_look, files.values(), 0), strict=True):
            self._files[key] = look

    def check_picture(self, path: str, entry: ManifestEntry) -> None:
        try:
            file = os.stat(path)  # noqa: PTH116 - a string, thousands of times
        except OSError as error:
            raise _mismatch(path, "it is not there") from error
        key = file.st_dev, file.st_ino
        known = self._files.get(key)
        if known is None:
            known = self._files[key] = _try_to_look(path)
        if known is None:
            raise _mismatch(path, "it cannot be read as a picture")
        if known[0] != entry.sha256:
            raise _mismatch(
                path, "not the picture that its record describes, which was changed since"
            )
        if known[1] != (entry.width, entry.height):
            raise _mismatch(path, f"{known[1]} pixels, not {(entry.width, entry.height)}")


_Look = tuple[str, tuple[int, int]]
"""Of a picture's file: its hash, and width and height."""


def _try_to_look(path: str) -> _Look | None:
    try:
        with Image.open(path) as image:
            return hash_file(Path(path)), image.size
    except (
        OSError,
        Image.DecompressionBombError,
    ):  # it may not even belong there: whoever asks for it will hear of it
        return None


def _compare(path: Path | str, found: Sequence[Box], wanted: Sequence[Box]) -> None:
    if len(found) != len(wanted):
        raise _mismatch(path, f"{len(found)} boxes and {len(wanted)} in the manifest")
    for one, other in zip(found, wanted, strict=True):
        (x1, y1, x2, y2), (left, top, right, bottom) = one.xyxy, other.xyxy
        apart = max(abs(x1 - left), abs(y1 - top), abs(x2 - right), abs(y2 - bottom))
        if apart > TOLERANCE or one.class_id != other.class_id:
            raise _mismatch(path, f"box {one.xyxy} where the manifest has {other.xyxy}")


def _mismatch(path: Path | str, what: str) -> SynthdetError:
    return SynthdetError(
        f"{path}: {what}. The export was not put in place: check the disk, and run export again"
    )
