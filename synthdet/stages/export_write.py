"""Write one picture after the other into YOLO, COCO and Pascal VOC, with one line each in the manifest.

Pictures are copied as bytes, not decoded: their metadata is cut out of the file, and what a model drew
is marked as such. A content that was written before is hard linked to our own copy of it, never to a
file outside the export.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from synthdet.core.formats.voc import to_voc
from synthdet.core.formats.yolo import to_data_yaml, to_yolo_lines
from synthdet.core.metadata import mark_synthetic, strip_metadata
from synthdet.core.records import SPLITS, Box, ManifestEntry, Split
from synthdet.errors import SynthdetError
from synthdet.stages._photos import in_order
from synthdet.stages.export_files import FileMaker

CARD = "see DATA_CARD.md"
_ANNOTATION = (
    '{"id": %d, "image_id": %d, "category_id": %d, "bbox": [%.4f, %.4f, %.4f, %.4f], '
    '"area": %.4f, "iscrowd": 0, "segmentation": %s}'
)
_TEXT = json.JSONEncoder(ensure_ascii=False)

_Content = tuple[str, bool]
"""Hash of the source, and whether a model drew it: equal ones become equal files."""
_MOST_USES = 20_000
"""Pictures that share a file, of three names each: ext4 allows 65,000 names."""


@dataclass(slots=True)
class _Written:
    """A content that stands in the export already: where, its hash there, in how many more places."""

    path: str
    sha256: str
    uses: int = 0


class DatasetWriter:
    """Writes a dataset into a folder that is being built; nothing in it counts before `close`.

    Args:
        build: The folder, empty, which becomes ``6-export``.
        files: Makes the small files and the links.
        class_names: By ``class_id``.
        inside: Folder of this dataset in it, with a slash: ``""`` or ``"frames/"``.
        voc: Write Pascal VOC as well.
        keep_metadata: Leave the metadata of the pictures as it is.

    Raises:
        SynthdetError: Something cannot be written.
    """

    def __init__(
        self,
        build: Path,
        files: FileMaker,
        class_names: Sequence[str],
        *,
        inside: str = "",
        voc: bool = False,
        keep_metadata: bool = False,
    ) -> None:
        self._build = str(build)
        self._files = files
        self._folder = build / inside
        self._root = str(self._folder)
        self._class_names = tuple(class_names)
        self._keep_metadata = keep_metadata
        self._written: dict[_Content, _Written] = {}
        self._copies: Iterator[_Written] | None = None
        folders = [f"{kind}/{split}" for kind in ("yolo/images", "yolo/labels", "coco/images") for split in SPLITS]  # fmt: skip
        folders += ["coco/annotations", *(["voc/Annotations", "voc/JPEGImages"] if voc else [])]
        for folder in folders:
            (self._folder / folder).mkdir(parents=True, exist_ok=True)
        self._coco = {split: _CocoFile(self._class_names) for split in SPLITS}
        self._voc: dict[Split, list[str]] | None = {split: [] for split in SPLITS} if voc else None
        self._manifest: IO[str] = (self._folder / "manifest.jsonl").open("w", encoding="utf-8")

    @contextmanager
    def copying(self, pictures: Iterable[tuple[ManifestEntry, str]]) -> Iterator[None]:
        """Let threads, one a core, copy these pictures ahead of `add`, to which they come in this order.

        Reading, hashing and writing let go of the interpreter's lock.
        """
        copies = in_order(lambda one: self._make_copy(*one), _first_of_each(pictures), 0)
        self._copies = copies
        try:
            yield
        finally:
            self._copies = None
            copies.close()

    def add(self, entry: ManifestEntry, source: Path | str) -> ManifestEntry:
        """Copy a picture in and write its labels.

        Args:
            entry: Its record; ``sha256`` is that of the source.
            source: The file it is copied from.

        Returns:
            The record as it stands in the manifest: with the hash of what was written.

        Raises:
            SynthdetError: The source is gone or is not the picture that its record describes, or
                the disk is full.
        """
        try:
            written = self._copy(entry, source)
        except OSError as error:
            raise _cannot_write(self._at(entry.yolo_path), error) from error
        entry = _with_hash(entry, written.sha256)
        self._add(entry, written.path)
        return entry

    def add_bytes(self, entry: ManifestEntry, content: bytes) -> ManifestEntry:
        """As `add`, for a picture that was encoded anew and has no metadata."""
        target = self._at(entry.yolo_path)
        try:
            Path(target).write_bytes(content)
        except OSError as error:
            raise _cannot_write(target, error) from error
        entry = _with_hash(entry, hashlib.sha256(content).hexdigest())
        self.add_made(entry)
        return entry

    def add_made(self, entry: ManifestEntry) -> None:
        """Write the labels of a picture that is in its place in the build already."""
        self._add(entry, self._at(entry.yolo_path))

    def _add(self, entry: ManifestEntry, picture: str) -> None:
        """Write all but the picture, which stands at ``picture`` in this very moment."""
        split, name = entry.split, entry.yolo_path.rpartition("/")[2]
        try:
            label = f"{self._root}/yolo/labels/{split}/{entry.image_id}.txt"
            lines = to_yolo_lines(entry.boxes, entry.width, entry.height)
            self._files.write(label, lines.encode())
            self._files.link(picture, f"{self._root}/coco/images/{split}/{name}")
            self._coco[split].add(name, entry.width, entry.height, entry.boxes)
            if self._voc is not None:
                self._files.link(picture, f"{self._root}/voc/JPEGImages/{name}")
                self._write_voc(entry, name)
                self._voc[split].append(entry.image_id)
            self._manifest.write(entry.model_dump_json(exclude_none=True) + "\n")
        except OSError as error:
            raise _cannot_write(picture, error) from error

    def close(self) -> None:
        """Write what speaks of all pictures: manifest, ``data.yaml``, COCO's JSON, VOC's lists."""
        try:
            self._manifest.close()
            fields: dict[str, str | int] = {split: f"images/{split}" for split in SPLITS}
            text = to_data_yaml(fields | {"nc": len(self._class_names)}, self._class_names)
            (self._folder / "yolo" / "data.yaml").write_text(text, encoding="utf-8")
            for split, coco in self._coco.items():
                coco.write(self._folder / f"coco/annotations/instances_{split}.json", split)
            if self._voc is not None:
                lists = self._folder / "voc" / "ImageSets" / "Main"
                lists.mkdir(parents=True)
                for split, names in self._voc.items():
                    (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
            self._files.flush()  # last: until here the other processes were at work
        except OSError as error:
            raise _cannot_write(self._folder / "manifest.jsonl", error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_error: object) -> None:
        if kind is None:
            self.close()
        else:
            self._manifest.close()

    def _at(self, path: str) -> str:
        """Where a path of a record lies while the export is being built."""
        return f"{self._build}/{path.removeprefix('6-export/')}"

    def _copy(self, entry: ManifestEntry, source: Path | str) -> _Written:
        """Write the picture; the same content a second time is a link to the first."""
        content = _content(entry)
        written = self._written.get(content)
        if written is not None and written.uses < _MOST_USES:
            written.uses += 1
            self._files.link(written.path, self._at(entry.yolo_path))
            return written
        written = next(self._copies) if self._copies else self._make_copy(entry, source)
        self._written[content] = written
        return written

    def _make_copy(self, entry: ManifestEntry, source: Path | str) -> _Written:
        target = self._at(entry.yolo_path)
        try:
            content = Path(source).read_bytes()
        except OSError as error:
            raise SynthdetError(f"{source} cannot be read ({error.strerror})") from error
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            raise SynthdetError(
                f"{source} is not the picture that its record describes: it was changed since; "
                "put the old one back, or make its stage again with --redo"
            )
        made = self._finish(content, source, is_drawn=entry.source == "synthetic")
        with open(target, "xb") as handle:  # noqa: PTH123 - a string, thousands of times
            handle.write(made)
        return _Written(
            target, entry.sha256 if made is content else hashlib.sha256(made).hexdigest()
        )

    def _finish(self, content: bytes, source: Path | str, *, is_drawn: bool) -> bytes:
        made = content if self._keep_metadata else strip_metadata(content)
        if made is None:
            raise SynthdetError(f"{source} is damaged: make its stage again with --redo")
        return mark_synthetic(made) if is_drawn else made

    def _write_voc(self, entry: ManifestEntry, name: str) -> None:
        try:
            text = to_voc(name, entry.width, entry.height, entry.boxes, self._class_names)
        except ValueError as error:
            raise SynthdetError(
                f"{error}, so Pascal VOC cannot be written: rename the class with prepare.classes, or set export.voc=false"
            ) from error
        self._files.write(f"{self._root}/voc/Annotations/{entry.image_id}.xml", text.encode())


class _CocoFile:
    """A COCO file in the making: lines of JSON, so that 100,000 pictures are no 100,000 objects."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self._class_names = class_names
        self._images: list[str] = []
        self._annotations: list[str] = []

    def add(self, file_name: str, width: int, height: int, boxes: Sequence[Box]) -> None:
        image_id = len(self._images) + 1
        self._images.append(
            f'{{"id": {image_id}, "file_name": {_TEXT.encode(file_name)}, '
            f'"width": {width}, "height": {height}}}'
        )
        for box in boxes:
            x1, y1, x2, y2 = box.xyxy
            wide, high = round(x2 - x1, 4), round(y2 - y1, 4)
            polygons = [list(one) for one in box.segmentation] if box.segmentation else "[]"
            number = len(self._annotations) + 1
            self._annotations.append(
                _ANNOTATION
                % (number, image_id, box.class_id + 1, x1, y1, wide, high, wide * high, polygons)
            )

    def write(self, path: Path, split: Split) -> None:
        categories = [
            {"id": number, "name": name, "supercategory": "none"}
            for number, name in enumerate(self._class_names, start=1)
        ]
        info = {"description": f"{split} pictures, exported by synthdet: {CARD}"}
        with path.open("w", encoding="utf-8") as handle:
            handle.write(f'{{"info": {json.dumps(info)}, "licenses": [],\n"images": [')
            handle.write(",\n".join(self._images))
            handle.write('],\n"annotations": [')
            handle.write(",\n".join(self._annotations))
            named = json.dumps(categories, ensure_ascii=False)
            handle.write(f'],\n"categories": {named}}}\n')


def _content(entry: ManifestEntry) -> _Content:
    return entry.sha256, entry.source == "synthetic"


def _first_of_each(
    pictures: Iterable[tuple[ManifestEntry, str]],
) -> Iterator[tuple[ManifestEntry, str]]:
    """Those that are copied: all others are links to one of them."""
    uses: dict[_Content, int] = {}
    for entry, source in pictures:
        content = _content(entry)
        before = uses.get(content, _MOST_USES)
        if before < _MOST_USES:
            uses[content] = before + 1
        else:
            uses[content] = 0
            yield entry, source


def _with_hash(entry: ManifestEntry, sha256: str) -> ManifestEntry:
    """The record with the hash of what was written, and of what it was written from where that differs."""
    if sha256 == entry.sha256:
        return entry
    provenance = {**entry.provenance, "copy_of": entry.sha256}
    return entry.model_copy(update={"sha256": sha256, "provenance": provenance})


def _cannot_write(path: Path | str, error: OSError) -> SynthdetError:
    return SynthdetError(
        f"{Path(path).parent} cannot be written ({error.strerror or error}): make room and run the same command again"
    )
