"""What a person takes away from a survey: YOLO labels, COCO results, a table of counts, a contact sheet.

All of it is made from the recorded boxes and the confidence, and made again when that moves.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from synthdet.core.counts import Expected
from synthdet.core.formats.coco import to_coco
from synthdet.core.formats.yolo import to_yolo_lines
from synthdet.core.records import Box, DetectedBox, Prediction
from synthdet.core.tiling import fullest_window
from synthdet.stages._photos import large_frames, read_crops
from synthdet.workspace import cannot_write, write_bytes, write_text

PROMISED: Final = (
    "predictions.jsonl", "rejected.jsonl", "yolo", "coco.json", "counts.csv", "contact_sheet.jpg",
)  # fmt: skip
_COLUMNS, _CELL, _TEXT, _GAP = 4, 320, 22, 8
_MOST, _EMPTY = 12, 4
"""Photos with most animals, and without any, on the sheet."""
_INK, _BOX = "#222222", "#f0e442"
"""As on the run's contact sheet."""


@dataclass(frozen=True, slots=True)
class Counted:
    """A photo, the boxes in it that count, and the animals to expect; None where nobody knows."""

    prediction: Prediction
    boxes: tuple[DetectedBox, ...]
    expected: Expected | None


def write_files(
    folder: Path,
    photos_dir: Path,
    counted: Sequence[Counted],
    class_names: Sequence[str],
    *,
    view_side: int,
) -> None:
    """Write all of them.

    Args:
        folder: Where they go.
        photos_dir: Of the survey.
        counted: Its usable photos, sorted by path.
        class_names: By ``class_id``.
        view_side: Side of what the sheet shows of a photo, in photo pixels, at most.

    Raises:
        SynthdetError: The disk is full.
    """
    _write_yolo(folder, counted, class_names)
    coco = json.dumps(_to_coco(counted, class_names), ensure_ascii=False)
    write_text(folder / "coco.json", coco + "\n")
    write_text(folder / "counts.csv", _to_csv(counted, class_names))
    write_bytes(folder / "contact_sheet.jpg", _draw_sheet(photos_dir, counted, view_side))


def _write_yolo(folder: Path, counted: Sequence[Counted], class_names: Sequence[str]) -> None:
    """A label file beside each photo's place: ``a/b.jpg`` -> ``labels/a/b.txt``; whole or not at all."""
    build = folder / ".tmp-yolo"
    shutil.rmtree(build, ignore_errors=True)
    try:
        (build / "labels").mkdir(parents=True)
        names = "".join(f"{name}\n" for name in class_names)
        (build / "classes.txt").write_text(names, encoding="utf-8")
        for one, label in zip(counted, _label_paths(counted), strict=True):
            path = build / "labels" / label
            path.parent.mkdir(parents=True, exist_ok=True)
            boxes = [Box(xyxy=box.xyxy, class_id=box.class_id) for box in one.boxes]
            photo = one.prediction
            path.write_text(to_yolo_lines(boxes, photo.width, photo.height), encoding="utf-8")
        shutil.rmtree(folder / "yolo", ignore_errors=True)
        os.rename(build, folder / "yolo")
    except OSError as error:
        raise cannot_write(error, folder / "yolo") from error


def _label_paths(counted: Sequence[Counted]) -> list[str]:
    """Of two photos in a folder that differ in their suffix alone, both keep it: ``b.png.txt``.

    So does ``b.png.jpg``, where there is a ``b.png``.
    """
    paths = [one.prediction.path for one in counted]
    stems = [str(PurePosixPath(path).with_suffix("")) for path in paths]
    taken = Counter(name.lower() for name in (*stems, *paths))
    return [
        f"{stem if taken[stem.lower()] == 1 else path}.txt"
        for path, stem in zip(paths, stems, strict=True)
    ]


def _to_coco(counted: Sequence[Counted], class_names: Sequence[str]) -> dict[str, Any]:
    """A COCO file whose annotations have a ``score``: results and pictures in one."""
    photos = [one.prediction for one in counted]
    fields = to_coco(
        [
            (photo.path, photo.width, photo.height,
             [Box(xyxy=box.xyxy, class_id=box.class_id) for box in one.boxes])
            for photo, one in zip(photos, counted, strict=True)
        ],
        class_names,
        info={"description": "animals found by synthdet; file_name is relative to the survey's folder"},
    )  # fmt: skip
    scores = [box.confidence for one in counted for box in one.boxes]
    for annotation, score in zip(fields["annotations"], scores, strict=True):
        annotation["score"] = score
    return fields


def _to_csv(counted: Sequence[Counted], class_names: Sequence[str]) -> str:
    """A row a photo; with several classes also how many of each."""
    several = class_names if len(class_names) > 1 else ()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["photo", "animals", "expected", "low", "high", *several])
    for one in counted:
        told = one.expected
        expected = ["", "", ""] if told is None else [f"{told.expected:.2f}", told.low, told.high]
        classes = Counter(box.class_id for box in one.boxes)
        each = [classes[class_id] for class_id in range(len(several))]
        writer.writerow([one.prediction.path, len(one.boxes), *expected, *each])
    return text.getvalue()


# --- the contact sheet -------------------------------------------------------------------------


def _draw_sheet(photos_dir: Path, counted: Sequence[Counted], view_side: int) -> bytes:
    """The photos with most animals, then some without any: of large ones the fullest part."""
    full = sorted(
        (one for one in counted if one.boxes),
        key=lambda one: (-len(one.boxes), -one.boxes[0].confidence, one.prediction.path),
    )[:_MOST]
    empty = [one for one in counted if not one.boxes]
    places = np.linspace(0, len(empty) - 1, min(len(empty), _EMPTY)).round().astype(int).tolist()
    shown = [*full, *(empty[place] for place in places)]
    rows = -(-len(shown) // _COLUMNS)
    wide, high = _CELL + _GAP, _CELL + _TEXT + _GAP
    sheet = Image.new("RGB", (min(len(shown), _COLUMNS) * wide + _GAP, rows * high + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    with large_frames():
        for number, one in enumerate(shown):
            row, column = divmod(number, _COLUMNS)
            corner = (_GAP + column * wide, _GAP + row * high)
            sheet.paste(_draw_cell(photos_dir, one, view_side), corner)
            pen.text((corner[0], corner[1] + _CELL + 3), _caption(one), fill=_INK, font=font)
    drawn = io.BytesIO()
    sheet.save(drawn, format="JPEG", quality=88)
    return drawn.getvalue()


def _draw_cell(photos_dir: Path, one: Counted, view_side: int) -> Image.Image:
    photo = one.prediction
    size_wh = (photo.width, photo.height)
    side = min(view_side, max(size_wh))
    window = fullest_window([box.xyxy for box in one.boxes], size_wh, side)
    try:
        picture = next(read_crops(photos_dir / photo.path, [window], _CELL))
    except Exception:  # read a moment ago, and gone or changed since: the counts stand all the same
        return Image.new("RGB", (_CELL, _CELL), "#eeeeee")
    cell = Image.fromarray(picture)
    # What reaches over the photo's edge was filled up, and is no part of it.
    across, down = (round((edge - low) * _CELL / side) for edge, low in zip(size_wh, window, strict=False))  # fmt: skip
    cell.paste("white", (across, 0, max(_CELL, across), _CELL))
    cell.paste("white", (0, down, _CELL, max(_CELL, down)))
    pen = ImageDraw.Draw(cell)
    for box in one.boxes:
        x1, y1, x2, y2 = (
            (value - window[axis % 2]) * _CELL / side for axis, value in enumerate(box.xyxy)
        )
        pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_BOX, width=2)
    return cell


def _caption(one: Counted) -> str:
    """The end of the path, and the count."""
    count = f"{len(one.boxes)} found" if one.boxes else "none found"
    if one.expected is not None:
        count += f", {one.expected.low} to {one.expected.high}"
    path = one.prediction.path
    room = 44 - len(count)
    return f"{path if len(path) <= room else '…' + path[-room:]}  {count}"
