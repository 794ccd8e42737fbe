"""The survey, for `prepare`: every photo decoded, its boxes checked, its group and split decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from synthdet.config import PrepareConfig
from synthdet.core import groups, splits
from synthdet.core.boxes import check_boxes, to_upright
from synthdet.core.classes import plan_classes
from synthdet.core.records import SPLITS, XYXY, Box, Photo, Rejected, Split
from synthdet.errors import SynthdetError
from synthdet.progress import Reporter
from synthdet.stages import _annotations, _photos
from synthdet.stages._annotations import Annotation, Annotations, Recognised
from synthdet.stages._tiles import describe_tiles, plan_ground, plan_tiles, require_caption_fields
from synthdet.workspace import StageFolder, write_json, write_records

SURVEY_FILES: Final = ("photos.jsonl", "rejected.jsonl", "dataset.json")
MIN_PHOTOS: Final = 3


@dataclass(frozen=True, slots=True)
class _Checked:
    """A photo that was decoded, with its checked boxes."""

    path: str
    given: Split | None
    width: int
    height: int
    boxes: tuple[Box, ...]
    thumb: _photos.Picture
    blank: tuple[XYXY, ...]


def make_survey(
    folder: StageFolder,
    settings: PrepareConfig,
    recognised: Recognised,
    hashes: Mapping[str, str],
    reporter: Reporter,
) -> None:
    """Read, check, group and split all photos; write the three survey files."""
    annotations = _annotations.read_annotations(recognised, unnamed=settings.classes is not None)
    annotations = _handle_unlabelled(annotations, recognised, settings)
    num_boxes = Counter(box.class_id for photo in annotations.photos for box in photo.boxes)
    class_names, class_map = plan_classes(
        annotations.names,
        [num_boxes[number] for number in range(len(annotations.names))],
        settings.classes,
    )
    rejected = [*recognised.listing.rejected, *annotations.rejected]
    checked = _check_photos(annotations, class_map, recognised, settings, rejected, reporter)
    _require_usable(checked, rejected, recognised)
    metadata = _annotations.read_metadata(recognised)
    kin, near = _find_groups(checked, metadata, settings)
    plan = _split(checked, kin, near, settings)
    photos = _choose(checked, kin, plan.splits, hashes, metadata, settings, rejected)
    require_caption_fields(photos, settings)
    ground = plan_ground(photos, settings)
    planned = plan_tiles(photos, class_names, ground.crop_side, settings)
    small = sum(min(photo.width, photo.height) < ground.crop_side for photo in photos)
    notes = [*plan.notes, *describe_tiles(planned, small, ground)]
    write_records(folder.path / "photos.jsonl", photos)
    write_records(folder.path / "rejected.jsonl", rejected)
    write_json(
        folder.path / "dataset.json",
        {
            "classes": class_names,
            "photos": str(recognised.listing.root),
            "format": recognised.format,
            "recognised": recognised.describe(),
            "split": plan.origin,
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
            "resolution": settings.resolution,
            "crop_side": ground.crop_side,
            "scale": ground.scale,
            "scale_reason": ground.reason,
            "num_photos_smaller_than_a_tile": small,
            "animals_without_tile": planned.without_tile,
            "num_rejected": dict(sorted(Counter(_kind(entry) for entry in rejected).items())),
            "notes": notes,
        },
    )


def _handle_unlabelled(
    annotations: Annotations, recognised: Recognised, settings: PrepareConfig
) -> Annotations:
    known = {photo.path for photo in annotations.photos}
    known |= {entry.path for entry in annotations.rejected}  # annotated, if unreadably
    unlabelled = [path for path in recognised.listing.photos if path not in known]
    if not unlabelled or settings.unlabelled == "ignore":
        rejected = [
            Rejected(path=path, reason="has no annotation (prepare.unlabelled: ignore)")
            for path in unlabelled
        ]
        return annotations.with_more(rejected=rejected)
    if settings.unlabelled == "error":
        raise SynthdetError(
            f"{len(unlabelled)} of {len(unlabelled) + len(known)} photos have no annotation file (first: {unlabelled[0]}): "
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
    settings: PrepareConfig,
    rejected: list[Rejected],
    reporter: Reporter,
) -> list[_Checked]:
    """Decode every annotated photo; clip its boxes. What is not usable goes to ``rejected``."""
    root = recognised.listing.root
    checked: list[_Checked] = []
    paths = [root / photo.path for photo in annotations.photos]
    with reporter.bar("prepare", len(paths), unit="photo", doing="reading photos") as advance:
        found = _photos.in_order(_photos.inspect, paths, settings.workers)
        for photo, inspected in zip(annotations.photos, found, strict=True):
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
            checked.append(
                _Checked(
                    photo.path,
                    photo.split,
                    inspected.width,
                    inspected.height,
                    tuple(kept),
                    inspected.thumb,
                    inspected.blank,
                )
            )
    return checked


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
    checked: Sequence[_Checked], rejected: Sequence[Rejected], recognised: Recognised
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


def _find_groups(
    checked: Sequence[_Checked], metadata: Mapping[str, Mapping[str, Any]], settings: PrepareConfig
) -> tuple[list[groups.Kin], list[tuple[int, int]]]:
    """Kin of every photo, joined by near-duplicates; and the near-duplicates inside chains.

    Near-duplicates in two blocks of one chain do not join them: a chain that is cut is cut on purpose.
    """
    paths = [photo.path for photo in checked]
    kin = groups.find_kin(paths, frames_per_group=settings.frames_per_group)
    told: list[str | None]
    if settings.group_pattern is not None:
        told = list(groups.match_groups(paths, settings.group_pattern))
    else:
        values = [metadata.get(path, {}).get("group") for path in paths]
        told = [None if value is None else str(value) for value in values]
    kin = [
        own if group is None else groups.Kin(own.original, own.frame, group, group)
        for own, group in zip(kin, told, strict=True)
    ]
    thumbs = np.stack([photo.thumb for photo in checked])
    pairs = groups.near_duplicates(thumbs, [own.original for own in kin])
    between = [(a, b) for a, b in pairs if kin[a].chain != kin[b].chain]
    within = [(a, b) for a, b in pairs if kin[a].chain == kin[b].chain]
    chains = groups.join([own.chain for own in kin], between)
    joined = groups.join([own.group for own in kin], between)
    return [
        groups.Kin(own.original, own.frame, group, chain)
        for own, group, chain in zip(kin, joined, chains, strict=True)
    ], within


@dataclass(frozen=True, slots=True)
class _SplitPlan:
    splits: list[Split]
    kin: list[groups.Kin]
    origin: str
    leaks: dict[str, int] | None
    touching: int
    near_across: int
    notes: list[str]


def _split(
    checked: Sequence[_Checked],
    kin: list[groups.Kin],
    near: Sequence[tuple[int, int]],
    settings: PrepareConfig,
) -> _SplitPlan:
    """Keep the given splits where they are clean, else plan new ones; say what was found."""
    notes: list[str] = []
    if len({own.group for own in kin}) < len(SPLITS):
        kin = _few_groups(kin, settings, notes)
    given = [photo.given for photo in checked]
    leaks = _given_leaks(kin, given)
    whole = None not in given and set(given) == set(SPLITS)
    clean = whole and leaks is not None and not any(leaks.values())
    if settings.split == "given":
        _require_given(given, leaks, whole)
    members = [
        splits.Member(
            own.group, own.chain, own.original, tuple(box.class_id for box in photo.boxes)
        )
        for own, photo in zip(kin, checked, strict=True)
    ]
    if settings.split != "new" and clean:
        planned = {own.group: split for own, split in zip(kin, given, strict=True) if split}
        origin = "given"
    else:
        planned = splits.plan_splits(
            members,
            val_fraction=settings.val_fraction,
            test_fraction=settings.test_fraction,
            seed=settings.seed,
        )
        origin = "new"
        if settings.split == "auto":
            notes.extend(_why_new(given, leaks, whole))
    own_splits = [planned[own.group] for own in kin]
    touching = splits.touching(members, planned)
    near_across = sum(own_splits[a] != own_splits[b] for a, b in near)
    if touching or near_across:
        notes.append(
            f"{touching} cuts run through consecutive frames, {near_across} pairs of near-duplicates lie across them: "
            "the photos are too few chains to avoid it; test figures may be a little too good"
        )
    return _SplitPlan(own_splits, kin, origin, leaks, touching, near_across, notes)


def _few_groups(
    kin: list[groups.Kin], settings: PrepareConfig, notes: list[str]
) -> list[groups.Kin]:
    number = len({own.group for own in kin})
    if settings.few_groups == "error":
        raise SynthdetError(
            f"the photos form {number} group(s) of kin ({kin[0].group} ...), and a clean split needs three: tell groups with "
            "prepare.group_pattern or a metadata.jsonl, lower prepare.frames_per_group, or set prepare.few_groups to allow"
        )
    notes.append(
        f"only {number} group(s): split by photo all the same (prepare.few_groups); test figures will be too good"
    )
    return [groups.Kin(own.original, own.frame, own.original, own.original) for own in kin]


def _given_leaks(kin: Sequence[groups.Kin], given: Sequence[Split | None]) -> dict[str, int] | None:
    told = [(own, split) for own, split in zip(kin, given, strict=True) if split is not None]
    if not told:
        return None
    levels = {
        "originals": [own.original for own, _split in told],
        "frames": [own.frame for own, _split in told],
        "groups": [own.group for own, _split in told],
    }
    return splits.find_leaks(levels, [split for _own, split in told])


def _require_given(
    given: Sequence[Split | None], leaks: Mapping[str, int] | None, whole: bool
) -> None:
    if not whole:
        lacking = [split for split in SPLITS if split not in given]
        what = f"no photos in {', '.join(lacking)}" if lacking else "photos outside the splits"
        raise SynthdetError(
            f"prepare.split is given, but there are {what}: set it to auto for new splits by group"
        )
    if leaks and any(leaks.values()):
        raise SynthdetError(
            f"prepare.split is given, but {_leak_text(leaks)}: set it to auto for clean splits by group"
        )


def _why_new(
    given: Sequence[Split | None], leaks: Mapping[str, int] | None, whole: bool
) -> list[str]:
    if leaks is None:
        return []
    if any(leaks.values()):
        return [
            f"the given splits leak: {_leak_text(leaks)}; clean splits by group are made instead"
        ]
    lacking = ", ".join(split for split in SPLITS if split not in given) or "some photos"
    return [] if whole else [f"the given splits lack {lacking}: new splits by group are made"]


def _leak_text(leaks: Mapping[str, int]) -> str:
    return (
        f"{leaks['originals']} originals, {leaks['frames']} frames and {leaks['groups']} groups of overlapping frames are in "
        f"more than one split, and {leaks['photos']} val and test photos have kin in train"
    )


def _choose(
    checked: Sequence[_Checked],
    kin: Sequence[groups.Kin],
    own_splits: Sequence[Split],
    hashes: Mapping[str, str],
    metadata: Mapping[str, Mapping[str, Any]],
    settings: PrepareConfig,
    rejected: list[Rejected],
) -> list[Photo]:
    """The photos of the run: one copy of each original in val and test, train up to its limit."""
    first: dict[str, str] = {}
    chosen: list[int] = []
    for number, (photo, own, split) in enumerate(zip(checked, kin, own_splits, strict=True)):
        kept = first.setdefault(own.original, photo.path)
        if split != "train" and kept != photo.path:
            reason = f"left out: a copy of {kept}; {split} holds one copy of each original"
            rejected.append(Rejected(path=photo.path, reason=reason))
        else:
            chosen.append(number)
    train = [number for number in chosen if own_splits[number] == "train"]
    if settings.max_train_photos is not None and len(train) > settings.max_train_photos:
        members = [
            splits.Member(
                kin[number].group,
                kin[number].chain,
                kin[number].original,
                tuple(box.class_id for box in checked[number].boxes),
            )
            for number in train
        ]
        used = splits.limit_train(members, settings.max_train_photos, settings.seed)
        left_out = {number for place, number in enumerate(train) if place not in used}
        rejected.extend(
            Rejected(path=checked[number].path, reason="left out by prepare.max_train_photos")
            for number in sorted(left_out)
        )
        chosen = [number for number in chosen if number not in left_out]
    image_ids = _image_ids([checked[number].path for number in chosen])
    return [
        Photo(
            image_id=image_id,
            path=checked[number].path,
            sha256=hashes[checked[number].path],
            width=checked[number].width,
            height=checked[number].height,
            group=kin[number].group,
            split=own_splits[number],
            boxes=checked[number].boxes,
            blank=checked[number].blank,
            metadata=dict(metadata.get(checked[number].path, {})),
        )
        for number, image_id in zip(chosen, image_ids, strict=True)
    ]


def _image_ids(paths: Sequence[str]) -> list[str]:
    return groups.unique_names([Path(path).stem for path in paths], paths)


def _by_split(photos: Sequence[Photo], count: Callable[[Photo], int]) -> dict[str, int]:
    return {
        split: sum(int(count(photo)) for photo in photos if photo.split == split)
        for split in SPLITS
    }


def _kind(entry: Rejected) -> str:
    if entry.box is not None:
        return "boxes"
    return "left out" if entry.reason.startswith("left out") else "photos"
