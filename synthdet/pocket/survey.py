"""The demo's survey: photos of rendered flights, in the layout that Ultralytics and Roboflow write.

The sea is the pocket models' own (``sea.py``), which is why it stands there: scenes are kept by the
hash of that code. What a survey flies over can change without a model being built anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import yaml

from synthdet.core.formats.yolo import to_yolo_lines
from synthdet.core.records import Box, Split
from synthdet.pocket.sea import (
    BASE_CLASSES,
    HUMPBACK,
    OPEN_WATER,
    SEAS,
    UNCOUNTED,
    Conditions,
    Placed,
    Scene,
    draw_conditions,
    draw_count,
    paint,
    plan_caption,
    put_things,
    to_box,
)
from synthdet.progress import Reporter

PHOTO_SIZE_WH: Final = (256, 192)
FLIGHTS: Final[dict[Split, int]] = {"train": 4, "val": 2, "test": 100}
"""Few photos to learn from, as users have; many flights to be tested on, so that the verdict is sharp."""
PHOTOS_A_FLIGHT: Final = 4
SURVEY_SEED: Final = 20250101
_DONE: Final = "data.yaml"
SETTINGS: Final = (
    "prepare.scale=1.0",
    "prepare.caption='aerial photo of {animals} in a {sea} sea{waves}'",
    "generate.prompts=['aerial photo of {animals} in a {sea} sea{waves}']",
    f"generate.attributes={{sea: [{', '.join(SEAS)}], waves: ['', ', whitecaps']}}",
    "prepare.background_fraction=0.3",
    "generate.mode={text: 1, placed: 9}",
    "generate.placed_water=drawn",
    "generate.background_prompts=['aerial photo of open water in a {sea} sea{waves}']",
    "generate.negative_prompt='aerial photo of open water in a {sea} sea{waves}'",
    "generate.background_fraction=0.2",
)
"""What a run on this survey sets beyond configs/pocket.yaml: its photos are at the pocket models' own
scale, their captions know the sea, and animals are painted into seas that its four train flights have
not seen."""


@dataclass(frozen=True, slots=True)
class SurveyPhoto:
    """A photo of a rendered drone survey: ``name`` is its file stem, ``group`` its flight."""

    name: str
    group: str
    scene: Scene


# What else a survey flies over; small enough in number to stay a sideline of the photos.
_BYSTANDERS: Final = (
    "dolphin", "boat", "log", "orca", "whale shark", "shark", "seal", "manta ray", "seabird",
    "kayak", "kelp", "rocks",
)  # fmt: skip


def _render_survey_scene(
    seed: tuple[int, ...],
    conditions: Conditions,
    size_wh: tuple[int, int],
    subject: str,
    *,
    empty: bool,
) -> Scene:
    """One photo of a flight: subjects or none, and now and then something else beside them."""
    rng = np.random.default_rng(seed)
    shape_hw = (size_wh[1], size_wh[0])
    conditions = replace(
        conditions,
        wind=conditions.wind + rng.normal(0.0, 0.08),
        exposure=conditions.exposure * rng.uniform(0.97, 1.03),
        altitude=conditions.altitude * rng.uniform(0.97, 1.03),
    )
    taken = np.zeros(shape_hw, np.bool_)
    count = 0 if empty else draw_count(rng)
    subjects = put_things(rng, subject, count, taken, conditions)
    others: list[Placed] = []
    if rng.random() < (0.75 if empty else 0.3):
        names = [name for name in _BYSTANDERS if name != subject]
        name = names[rng.integers(len(names))]
        number = 1 if name in UNCOUNTED or not empty else draw_count(rng)
        others = put_things(rng, name, number, taken, conditions, patience=8)
    # Rocks and kelp lie below the animals.
    things = sorted([*subjects, *others], key=lambda thing: thing.name not in UNCOUNTED)
    image = paint(np.random.default_rng((*seed, 1)), shape_hw, conditions, things)
    named = subject if subjects else (others[0].name if others else OPEN_WATER)
    shown = len(subjects) or len(others)
    caption = plan_caption(named, shown, conditions.sea, conditions.whitecaps)
    boxes = tuple(to_box(thing, shape_hw) for thing in subjects)
    return Scene(image, caption, boxes, conditions.sea)


def render_survey(
    seed: int,
    *,
    num_photos: int,
    num_groups: int,
    photo_size_wh: tuple[int, int],
    share_empty: float = 0.15,
    subject: str = HUMPBACK,
) -> Iterator[SurveyPhoto]:
    """Render a drone survey, flight by flight.

    A flight shares sea, light, altitude and sea state. Other things (boats, dolphins and other near
    misses) lie in some photos without a box, as they would in a real survey annotated for one animal.

    Args:
        seed: 0 or more; each photo depends on it and on its own flight and number alone.
        num_photos: Photos in all, spread evenly over the flights.
        num_groups: Flights, at most ``num_photos``.
        photo_size_wh: Width and height in pixels, each at least 96.
        share_empty: 0..1, share of photos without the subject (rounded to a whole number).
        subject: The annotated class, a base class or :data:`HUMPBACK`.

    Yields:
        Photos named like ``flight03_0007``, group ``flight03``. A caption names the subject, or
        in photos without it what else is there.

    Raises:
        ValueError: A number or the subject is out of range.
    """
    if not 1 <= num_groups <= num_photos:
        raise ValueError(f"num_groups: {num_groups} is not between 1 and num_photos ({num_photos})")
    if not 0.0 <= share_empty <= 1.0:
        raise ValueError(f"share_empty: {share_empty} is not between 0 and 1")
    if subject not in (HUMPBACK, *BASE_CLASSES):
        raise ValueError(f"subject: {subject!r} is none of {', '.join((HUMPBACK, *BASE_CLASSES))}")
    if min(photo_size_wh) < 96:
        raise ValueError(f"photo_size_wh: {photo_size_wh} is too small, 96 x 96 is the least")
    order = np.random.default_rng((seed, 0)).permutation(num_photos)
    empty = set(order[: round(share_empty * num_photos)].tolist())
    index = 0
    for flight in range(num_groups):
        group = f"flight{flight + 1:02d}"
        conditions = draw_conditions(np.random.default_rng((seed, 1, flight)))
        last = (flight + 1) * num_photos // num_groups
        for number in range(last - flight * num_photos // num_groups):
            photo_seed = (seed, 2, flight, number)
            scene = _render_survey_scene(
                photo_seed, conditions, photo_size_wh, subject, empty=index in empty
            )
            yield SurveyPhoto(f"{group}_{number:04d}", group, scene)
            index += 1


def write_survey(
    folder: Path, reporter: Reporter, *, flights: Mapping[Split, int] = FLIGHTS
) -> None:
    """Render the survey into ``folder`` unless it is there: four photos a flight, 424 in all.

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
