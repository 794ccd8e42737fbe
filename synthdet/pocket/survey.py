"""The demo's survey: rendered photos in the layout that Ultralytics and Roboflow write."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import cv2
import yaml

from synthdet.core.formats.yolo import to_yolo_lines
from synthdet.core.records import Box, Split
from synthdet.pocket.sea import HUMPBACK, SEAS, SurveyPhoto, render_survey
from synthdet.progress import Reporter

PHOTO_SIZE_WH: Final = (256, 192)
FLIGHTS: Final[dict[Split, int]] = {"train": 4, "val": 2, "test": 20}
PHOTOS_A_FLIGHT: Final = 6
SURVEY_SEED: Final = 20250101
_DONE: Final = "data.yaml"
SETTINGS: Final = (
    "prepare.scale=1.0",
    "prepare.caption='aerial photo of {animals} in a {sea} sea{waves}'",
    "generate.prompts=['aerial photo of {animals} in a {sea} sea{waves}']",
    f"generate.attributes={{sea: [{', '.join(SEAS)}], waves: ['', ', whitecaps']}}",
    f"generate.background_prompts=[{', '.join(f'aerial photo of open water in a {sea} sea' for sea in SEAS)}]",
)
"""What a run on this survey sets beyond configs/pocket.yaml: its photos are at the pocket models' own
scale, and their captions know the sea."""


def write_survey(
    folder: Path, reporter: Reporter, *, flights: Mapping[Split, int] = FLIGHTS
) -> None:
    """Render the survey into ``folder`` unless it is there: six photos a flight, 156 in all.

    Every flight lies in one split. Written beside its place and renamed when whole. ``metadata.jsonl``
    holds, beside each photo's flight, the sea and the waves for the captions.

    Args:
        folder: Where it goes; its parent must exist or can be made.
        reporter: Shows the bar.
        flights: Split -> number of flights.
    """
    if (folder / _DONE).is_file():
        return
    building = folder.with_name(f".tmp-{folder.name}")
    shutil.rmtree(building, ignore_errors=True)
    num_flights = sum(flights.values())
    num_photos = num_flights * PHOTOS_A_FLIGHT
    splits = [split for split, number in flights.items() for _ in range(number)]
    with reporter.bar("demo", num_photos, unit="photo", doing="rendering") as advance:
        photos = render_survey(
            SURVEY_SEED,
            num_photos=num_photos,
            num_groups=num_flights,
            photo_size_wh=PHOTO_SIZE_WH,
        )
        metadata: dict[Split, list[str]] = {split: [] for split in flights}
        for index, photo in enumerate(photos):
            split = splits[index // PHOTOS_A_FLIGHT]
            metadata[split].append(_write_photo(photo, building / split))
            advance(1)
    for split, lines in metadata.items():
        (building / split / "images" / "metadata.jsonl").write_text(
            "".join(lines), encoding="utf-8"
        )
    layout: dict[str, object] = {split: f"{split}/images" for split in flights}
    (building / _DONE).write_text(
        yaml.safe_dump({**layout, "nc": 1, "names": [HUMPBACK]}, sort_keys=False), encoding="utf-8"
    )
    os.rename(building, folder)


def _write_photo(photo: SurveyPhoto, folder: Path) -> str:
    """Write picture and labels; return the photo's line of metadata."""
    height, width = photo.scene.image.shape[:2]
    name = f"{photo.name}.jpg"
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(
        str(folder / "images" / name),
        cv2.cvtColor(photo.scene.image, cv2.COLOR_RGB2BGR),
        [cv2.IMWRITE_JPEG_QUALITY, 95],
    )
    boxes = tuple(Box(xyxy=box.xyxy, class_id=0) for box in photo.scene.boxes)
    (folder / "labels" / f"{photo.name}.txt").write_text(
        to_yolo_lines(boxes, width, height), encoding="utf-8"
    )
    waves = ", whitecaps" if photo.scene.caption.endswith("whitecaps") else ""
    fields = {"file_name": name, "group": photo.group, "sea": photo.scene.sea, "waves": waves}
    return json.dumps(fields) + "\n"
