"""The survey, for `prepare`: every photo decoded, its boxes checked, its group and split decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from synthdet.config import PrepareConfig
from synthdet.core import groups, splits, tiles
from synthdet.core.boxes import check_boxes, fills_photo, to_upright
from synthdet.core.classes import plan_classes, say_unused
from synthdet.core.flights import Taken
from synthdet.core.records import SPLITS, XYXY, Box, Photo, Rejected
from synthdet.errors import SynthdetError
from synthdet.progress import Reporter
from synthdet.stages import _annotations, _photos, _splits
from synthdet.stages._annotations import Annotation, Annotations
from synthdet.stages._exif import read_taken
from synthdet.stages._recognise import Recognised
from synthdet.stages._splits import Checked
from synthdet.stages._tiles import (
    animal_sizes,
    describe_tiles,
    plan_ground,
    plan_tiles,
    require_caption_fields,
)
from synthdet.workspace import StageFolder, write_json, write_records

_AS_BEFORE: Final = "as in the survey before"
SPLITS_FILE: Final = "splits.jsonl"
SURVEY_FILES: Final = ("photos.jsonl", "rejected.jsonl", "dataset.json")
MIN_PHOTOS: Final = 3


def make_survey(
    folder: StageFolder,
    settings: PrepareConfig,
    recognised: Recognised,
    hashes: Mapping[str, str],
    reporter: Reporter,
) -> None:
    """Read, check, group and split all photos; write the survey files, ``dataset.json`` last."""
    annotations = _annotations.read_annotations(recognised, unnamed=settings.classes is not None)
    annotations = _handle_unlabelled(annotations, recognised, settings)
    num_boxes = Counter(box.class_id for photo in annotations.photos for box in photo.boxes)
    counts = [num_boxes[number] for number in range(len(annotations.names))]
    class_names, class_map = plan_classes(annotations.names, counts, settings.classes)
    rejected = [*recognised.listing.rejected, *annotations.rejected]
    checked = _check_photos(
        annotations, class_map, recognised, hashes, settings, rejected, reporter
    )
    _require_usable(checked, rejected, recognised)
    metadata = _annotations.read_metadata(recognised)
    earlier = _splits.read_earlier(folder)
    plan = _splits.plan(checked, metadata, settings, earlier, recognised.listing.root)
    photos = _choose(checked, plan, earlier, metadata, settings, rejected)
    require_caption_fields(photos, settings)
    ground = _kept_ground(plan, earlier, settings) or plan_ground(photos, settings)
    shape = {
        "classes": class_names,
        "resolution": settings.resolution,
        "crop_side": ground.crop_side,
        "scale": ground.scale,
        "scale_reason": ground.reason,
        "animal_sizes": _kept_sizes(ground, earlier) or animal_sizes(photos),
    }
    planned = plan_tiles(photos, shape, settings)
    small = sum(min(photo.width, photo.height) < ground.crop_side for photo in photos)
    notes = [
        *annotations.notes,
        *say_unused(annotations.names, counts, class_map),
        *plan.notes,
        *_say_filled(photos),
        *describe_tiles(planned, small, ground),
    ]
    write_records(folder.path / "photos.jsonl", photos)
    write_records(folder.path / "rejected.jsonl", rejected)
    write_records(folder.path / SPLITS_FILE, _splits.assignments(checked, plan, earlier))
    write_json(
        folder.path / "dataset.json",
        {
            **shape,
            "photos": str(recognised.listing.root),
            "format": recognised.format,
            "recognised": recognised.describe(),
            "split": plan.origin,
            "num_photos_kept_in_their_split": sum(plan.kept) if plan.origin == "kept" else 0,
            "leaks_in_given_splits": plan.leaks,
            "touching_groups_across_splits": plan.touching,
            "near_duplicates_across_splits": plan.near_across,
            "num_photos": _by_split(photos, lambda _photo: 1),
            "num_empty_photos": _by_split(photos, lambda photo: not photo.boxes),
            "num_boxes": _by_split(photos, lambda photo: len(photo.boxes)),
            "num_groups": {
                split: len({photo.group for photo in photos if photo.split == split})
                for split in SPLITS
            },
            "num_photos_smaller_than_a_tile": small,
            "animals_without_tile": planned.without_tile,
            "num_rejected": dict(sorted(Counter(_kind(entry) for entry in rejected).items())),
            "notes": notes,
        },
    )


def _say_filled(photos: Sequence[Photo]) -> list[str]:
    filled = [
        photo.path
        for photo in photos
        for box in photo.boxes
        if fills_photo(box.xyxy, photo.width, photo.height)
    ]
    if not filled:
        return []
    return [
        f"{len(filled)} box(es) mark nearly a whole photo rather than an animal in it (first: {filled[0]}): look at them, "
        "correct the annotations or leave those photos out"
    ]


def _kept_ground(
    plan: _splits.Plan, earlier: _splits.Earlier | None, settings: PrepareConfig
) -> tiles.Ground | None:
    """The ground scale of the survey before, where photos were only added: tiles stay as they are."""
    now = settings.settings("making")
    if earlier is None or not any(plan.kept):
        return None
    if any(earlier.settings[key] != now[key] for key in ("resolution", "scale", "animal_fraction")):
        return None
    side = int(earlier.dataset["crop_side"])
    return tiles.Ground(side, settings.resolution / side, _AS_BEFORE)


def _kept_sizes(
    ground: tiles.Ground, earlier: _splits.Earlier | None
) -> tuple[float, float] | None:
    if earlier is None or ground.reason != _AS_BEFORE or "animal_sizes" not in earlier.dataset:
        return None
    low, high = earlier.dataset["animal_sizes"]
    return float(low), float(high)


def _handle_unlabelled(
    annotations: Annotations, recognised: Recognised, settings: PrepareConfig
) -> Annotations:
    known = {photo.path for photo in annotations.photos}
    known |= {entry.path for entry in annotations.rejected}  # annotated, if unreadably
    photos = recognised.listing.photos
    unlabelled = [path for path in photos if path not in known]
    if not unlabelled or settings.unlabelled == "ignore":
        rejected = [
            Rejected(path=path, reason="has no annotation (prepare.unlabelled: ignore)")
            for path in unlabelled
        ]
        return annotations.with_more(rejected=rejected)
    if settings.unlabelled == "error":
        raise SynthdetError(
            f"{len(unlabelled)} of {len(photos)} photos have no annotation file (first: {unlabelled[0]}): "
            "set prepare.unlabelled to ignore, or to negative if they hold no animals"
        )
    empty = [
        Annotation(path, "none", groups.given_split(path), None, (), ()) for path in unlabelled
    ]
    return annotations.with_more(photos=empty)


def _check_photos(
    annotations: Annotations,
    class_map: Sequence[int | None],
    recognised: Recognised,
    hashes: Mapping[str, str],
    settings: PrepareConfig,
    rejected: list[Rejected],
    reporter: Reporter,
) -> list[Checked]:
    """Decode every annotated photo; clip its boxes. What is not usable goes to ``rejected``."""
    root = recognised.listing.root
    checked: list[Checked] = []
    paths = [root / photo.path for photo in annotations.photos]
    look = partial(_look, room=_photos.Room())
    with (
        reporter.bar("prepare", len(paths), unit="photo", doing="reading photos") as advance,
        _photos.large_frames(),
    ):
        found = _photos.in_order(look, paths, settings.workers)
        for photo, (inspected, taken) in zip(annotations.photos, found, strict=True):
            advance(1)
            rejected.extend(
                Rejected(path=photo.path, reason=f"{problem} ({Path(photo.file).name})", box=())
                for problem in photo.problems
            )
            if inspected.reason is not None or inspected.thumb is None:
                rejected.append(Rejected(path=photo.path, reason=str(inspected.reason)))
                continue
            boxes = _to_pixels(photo, inspected)
            if isinstance(boxes, Rejected):
                rejected.append(boxes)
                continue
            mapped = [
                Box(xyxy=box.xyxy, class_id=class_id)
                for box in boxes
                if (class_id := class_map[box.class_id]) is not None
            ]
            kept, dropped = check_boxes(mapped, inspected.width, inspected.height)
            rejected.extend(
                Rejected(path=photo.path, reason=reason, box=box.xyxy) for box, reason in dropped
            )
            if dropped and not kept:  # not a photo without animals
                rejected.append(Rejected(path=photo.path, reason="none of its boxes can be used"))
                continue
            checked.append(
                Checked(
                    photo.path,
                    hashes[photo.path],
                    photo.split,
                    inspected.width,
                    inspected.height,
                    tuple(kept),
                    inspected.thumb,
                    inspected.blank,
                    taken,
                )
            )
    return checked


def _look(path: Path, room: _photos.Room) -> tuple[_photos.Inspected, Taken | None]:
    return _photos.inspect(path, room), read_taken(path)


def _to_pixels(photo: Annotation, inspected: _photos.Inspected) -> list[Box] | Rejected:
    """Boxes in pixels of the upright photo.

    YOLO's shares are of the upright photo, as Ultralytics reads them. A COCO file tells by its width
    and height whether it means the upright photo or the stored one.
    """
    width, height = inspected.width, inspected.height
    if photo.size_wh == (1, 1):
        return [
            Box(xyxy=_scaled(box.xyxy, width, height), class_id=box.class_id) for box in photo.boxes
        ]
    if photo.size_wh is None or photo.size_wh == (width, height):
        return list(photo.boxes)
    if photo.size_wh == inspected.stored_wh:
        turn, stored = inspected.orientation, inspected.stored_wh
        return [
            Box(xyxy=to_upright(box.xyxy, turn, *stored), class_id=box.class_id)
            for box in photo.boxes
        ]
    annotated = " x ".join(str(side) for side in photo.size_wh)
    return Rejected(
        path=photo.path,
        reason=f"is {width} x {height} pixels, but was annotated at {annotated}",
    )


def _scaled(xyxy: XYXY, width: int, height: int) -> XYXY:
    x1, y1, x2, y2 = xyxy
    return (
        round(x1 * width, 4),
        round(y1 * height, 4),
        round(x2 * width, 4),
        round(y2 * height, 4),
    )


def _require_usable(
    checked: Sequence[Checked], rejected: Sequence[Rejected], recognised: Recognised
) -> None:
    root = recognised.listing.root
    if not checked:
        first = f" (first: {rejected[0].path} {rejected[0].reason})" if rejected else ""
        raise SynthdetError(f"{root}: none of the photos can be used{first}")
    if not any(photo.boxes for photo in checked):
        dropped = [entry for entry in rejected if entry.box is not None]
        first = f" (first: {dropped[0].path}: {dropped[0].reason})" if dropped else ""
        raise SynthdetError(
            f"{root}: no usable box in {len(checked)} photos{first}: check prepare.labels and prepare.classes"
        )
    if len(checked) < MIN_PHOTOS:
        raise SynthdetError(
            f"{root}: {len(checked)} usable photo(s): train, val and test need three"
        )


def _choose(
    checked: Sequence[Checked],
    plan: _splits.Plan,
    earlier: _splits.Earlier | None,
    metadata: Mapping[str, Mapping[str, Any]],
    settings: PrepareConfig,
    rejected: list[Rejected],
) -> list[Photo]:
    """The photos of the run: one copy of each original in val and test, train up to its limit.

    Photos of an earlier survey come first, so that a copy that is added does not take their place.
    """
    used = {photo.sha256 for photo in earlier.photos} if earlier else set()
    order = sorted(range(len(checked)), key=lambda number: checked[number].sha256 not in used)
    first: dict[str, str] = {}
    chosen: dict[int, splits.Place] = {}
    for number in order:
        photo, place = checked[number], plan.places[number]
        kept = first.setdefault(plan.originals[number], photo.path) if place else photo.path
        if place is None:
            reason = "left out: it has near-copies in two splits"
            rejected.append(Rejected(path=photo.path, reason=reason))
        elif place.split != "train" and kept != photo.path:
            reason = f"left out: a copy of {kept}; {place.split} holds one copy of each original"
            rejected.append(Rejected(path=photo.path, reason=reason))
        else:
            chosen[number] = place
    left_out = _beyond_limit(checked, plan, chosen, used, settings)
    rejected.extend(
        Rejected(path=checked[number].path, reason="left out by prepare.max_train_photos")
        for number in left_out
    )
    numbers = sorted(chosen.keys() - set(left_out))
    image_ids = _image_ids([checked[number] for number in numbers], earlier)
    return [
        Photo(
            image_id=image_id,
            path=photo.path,
            sha256=photo.sha256,
            width=photo.width,
            height=photo.height,
            group=chosen[number].group,
            split=chosen[number].split,
            boxes=photo.boxes,
            blank=photo.blank,
            metadata=dict(metadata.get(photo.path, {})),
        )
        for number, image_id in zip(numbers, image_ids, strict=True)
        for photo in (checked[number],)
    ]


def _beyond_limit(
    checked: Sequence[Checked],
    plan: _splits.Plan,
    chosen: Mapping[int, splits.Place],
    used: Container[str],
    settings: PrepareConfig,
) -> list[int]:
    """Train photos above `prepare.max_train_photos`; those of an earlier survey stay."""
    train = sorted(number for number, place in chosen.items() if place.split == "train")
    if settings.max_train_photos is None or len(train) <= settings.max_train_photos:
        return []
    before = [number for number in train if checked[number].sha256 in used]
    free = [number for number in train if checked[number].sha256 not in used]
    room = settings.max_train_photos - len(before)
    if room < 0:
        free, room = train, settings.max_train_photos
    members = [
        splits.Member(
            chosen[number].group,
            chosen[number].group,
            plan.originals[number],
            tuple(box.class_id for box in checked[number].boxes),
        )
        for number in free
    ]
    taken = splits.limit_train(members, room, settings.seed) if room else set()
    return [number for place, number in enumerate(free) if place not in taken]


def _image_ids(photos: Sequence[Checked], earlier: _splits.Earlier | None) -> list[str]:
    """A name for each photo; one of an earlier survey keeps its own."""
    paths = [photo.path for photo in photos]
    names = groups.unique_names([Path(path).stem for path in paths], paths)
    before = {own.sha256: own.image_id for own in earlier.photos} if earlier else {}
    kept = {before[photo.sha256].lower() for photo in photos if photo.sha256 in before}
    ids = []
    for photo, name in zip(photos, names, strict=True):
        own = before.pop(photo.sha256, None)  # a second copy of the same bytes has its own name
        if own is None and name.lower() in kept:
            own = f"{name}-{photo.sha256[:8]}"
        ids.append(own or name)
    return ids


def _by_split(photos: Sequence[Photo], count: Callable[[Photo], int]) -> dict[str, int]:
    return {
        split: sum(int(count(photo)) for photo in photos if photo.split == split)
        for split in SPLITS
    }


def _kind(entry: Rejected) -> str:
    if entry.box is not None:
        return "boxes"
    return "left out" if entry.reason.startswith("left out") else "photos"
