"""Small annotated surveys, never square, and a run prepared from one by the real stage."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from synthdet.config import Config, make_config
from synthdet.core.formats.coco import to_coco
from synthdet.core.formats.yolo import to_yolo_lines
from synthdet.core.records import Box
from synthdet.models.protocols import TrainTile
from synthdet.progress import Reporter
from synthdet.workspace import Workspace

PHOTO_WH = (112, 84)
SPLIT_FOLDERS = {"train": "train", "val": "valid", "test": "test"}


@dataclass(frozen=True, slots=True)
class SurveyPhoto:
    """A photo of a survey: what it is called, what it shows, what is marked."""

    stem: str
    split: str
    group: str
    picture: NDArray[np.uint8]
    boxes: tuple[Box, ...]


def make_photos(
    *,
    num_photos: int = 12,
    num_groups: int = 6,
    size_wh: tuple[int, int] = PHOTO_WH,
    num_classes: int = 1,
    animals: int = 1,
    seed: int = 0,
) -> list[SurveyPhoto]:
    """Photos of a noisy sea with bright ellipses; every fourth one is empty.

    Photos of one group follow each other; the first half of the groups is train, then val, then test.
    """
    rng = np.random.default_rng(seed)
    width, height = size_wh
    photos = []
    for number in range(num_photos):
        group = number * num_groups // num_photos
        place = group / num_groups
        split = "train" if place < 0.5 else "val" if place < 0.75 else "test"
        small = rng.integers(30, 110, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
        picture = cv2.resize(small, size_wh, interpolation=cv2.INTER_CUBIC)
        boxes = []
        for animal in range(animals if number % 4 != 3 else 0):
            long, short = int(rng.integers(9, 14)), int(rng.integers(4, 7))
            x = int(rng.integers(long, width - long))
            y = int(rng.integers(short, height - short))
            colour = (235, 215 - 90 * (animal % num_classes), 200)
            cv2.ellipse(picture, (x, y), (long, short), 0, 0, 360, colour, -1)
            edges = (x - long, y - short, x + long + 1, y + short + 1)
            boxes.append(Box(xyxy=edges, class_id=animal % num_classes))
        photos.append(
            SurveyPhoto(
                f"flight{group}_{100 * group + number:04d}",
                split,
                f"g{group}",
                picture,
                tuple(boxes),
            )
        )
    return photos


def make_yolo_survey(
    folder: Path,
    *,
    names: Sequence[str] = ("humpback whale",),
    by_split: bool = True,
    groups: bool = True,
    photos: Sequence[SurveyPhoto] | None = None,
    **photo_options: Any,
) -> Path:
    """A survey as Roboflow exports YOLO: split folders, ``data.yaml`` with paths that are wrong.

    Args:
        folder: Where it goes.
        names: Class names.
        by_split: Split folders; else flat ``images`` and ``labels``.
        groups: Whether a ``metadata.jsonl`` names the groups.
        photos: The photos; by default `make_photos` with ``photo_options``.
    """
    photos = photos or make_photos(num_classes=len(names), **photo_options)
    for photo in photos:
        place = folder / SPLIT_FOLDERS[photo.split] if by_split else folder
        write_photo(place / "images" / f"{photo.stem}.jpg", photo.picture)
        height, width = photo.picture.shape[:2]
        label = place / "labels" / f"{photo.stem}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(to_yolo_lines(photo.boxes, width, height))
        if groups:
            line = json.dumps({"file_name": f"{photo.stem}.jpg", "group": photo.group})
            with (place / "images" / "metadata.jsonl").open("a") as handle:
                handle.write(line + "\n")
    paths = {"train": "../train/images", "val": "../valid/images", "test": "../test/images"}
    (folder / "data.yaml").write_text(yaml.safe_dump({**paths, "names": list(names)}))
    return folder


def make_coco_survey(
    folder: Path,
    *,
    names: Sequence[str] = ("humpback whale",),
    by_split: bool = True,
    photos: Sequence[SurveyPhoto] | None = None,
    **photo_options: Any,
) -> Path:
    """A survey as Roboflow exports COCO: ``_annotations.coco.json`` in every split folder.

    Args:
        folder: Where it goes.
        names: Class names.
        by_split: Split folders; else ``images`` and one ``annotations.json``.
        photos: The photos; by default `make_photos` with ``photo_options``.
    """
    photos = photos or make_photos(num_classes=len(names), **photo_options)
    files: dict[Path, list[tuple[str, int, int, tuple[Box, ...]]]] = {}
    for photo in photos:
        place = folder / SPLIT_FOLDERS[photo.split] if by_split else folder / "images"
        write_photo(place / f"{photo.stem}.jpg", photo.picture)
        height, width = photo.picture.shape[:2]
        file = place / "_annotations.coco.json" if by_split else folder / "annotations.json"
        files.setdefault(file, []).append((f"{photo.stem}.jpg", width, height, photo.boxes))
    for file, pictures in files.items():
        file.write_text(json.dumps(to_coco(pictures, names)))
    return folder


def write_photo(path: Path, picture: NDArray[np.uint8], *, quality: int = 92) -> Path:
    """Write an RGB picture as JPEG (or by its suffix)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    assert cv2.imwrite(str(path), bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return path


def small_config(photos: Path, sections: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Settings for a survey of `make_photos`: tiles of 48 pixels, and what ``sections`` says."""
    fields: dict[str, dict[str, Any]] = {
        name: dict(section) for name, section in (sections or {}).items()
    }
    prepare = {"photos": str(photos), "resolution": 48, "animal_fraction": 0.5, "workers": 1}
    fields["prepare"] = {**prepare, **fields.get("prepare", {})}
    return make_config(fields, where="test")


def quiet_reporter() -> Reporter:
    """A reporter whose words can be read with `said`."""
    return Reporter(Console(file=io.StringIO(), width=400))


def said(reporter: Reporter) -> str:
    """What a `quiet_reporter` was told."""
    file = reporter.console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def make_prepared_run(
    folder: Path,
    *,
    sections: Mapping[str, Mapping[str, Any]] | None = None,
    **survey_options: Any,
) -> Workspace:
    """A run folder ``folder/run`` whose prepare stage is done, on a YOLO survey ``folder/photos``.

    Args:
        folder: An empty folder.
        sections: Settings of any stage, like ``{"prepare": {"resolution": 64}}``.
        survey_options: For `make_yolo_survey`.
    """
    from synthdet.stages import prepare

    photos = make_yolo_survey(folder / "photos", **survey_options)
    config = small_config(photos, sections)
    workspace = Workspace.make(folder / "run", config)
    prepare.run(workspace, config, quiet_reporter())
    return workspace


def make_tiles(folder: Path, size_wh: tuple[int, int] = (32, 32)) -> list[TrainTile]:
    """Three tiles of noise, two with seals in their captions and one without."""
    made = []
    for number, caption in enumerate(("one seal", "two seals", "open water")):
        width, height = size_wh
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        path = folder / f"{number}.png"
        Image.fromarray(pixels).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        made.append(TrainTile(f"tile-{number}", path, caption, digest))
    return made
