"""Real photos in: checked, split once by group, cut into tiles.

Reads:
    ``prepare.photos`` (never written to), and the annotations recognised in it or named by
    ``prepare.labels``.
Writes:
    ``photos.jsonl``, ``rejected.jsonl``, ``dataset.json``; ``tiles/<split>/<tile_id>.png`` and
    ``tiles.jsonl``.
Resume:
    The three survey files are written whole, ``dataset.json`` last, and made again if one is missing.
    Tiles are planned from them alone; a tile whose line or file is missing is cut again, and gives
    the same bytes.
"""

from __future__ import annotations

import os
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from synthdet.config import Config, PrepareConfig
from synthdet.core import captions, groups, splits, tiles
from synthdet.core.boxes import check_boxes, to_upright
from synthdet.core.classes import plan_classes
from synthdet.core.records import SPLITS, XYXY, Box, Photo, Rejected, Split, Tile
from synthdet.errors import SynthdetError
from synthdet.progress import Reporter
from synthdet.stages import _annotations, _photos
from synthdet.stages._annotations import Annotation, Annotations, Recognised, recognise
from synthdet.workspace import (
    StageFolder,
    Workspace,
    append_records,
    hash_file,
    hash_json,
    read_json,
    read_records,
    write_bytes,
    write_json,
    write_records,
)

__all__ = ["Recognised", "recognise", "run"]

MIN_PHOTOS: Final = 3
MAX_TRAIN_BLANK: Final = 0.25
"""Share of a train tile that may be black edge: the LoRA would learn to draw it."""
_SURVEY: Final = ("photos.jsonl", "rejected.jsonl", "dataset.json")
_ANIMALS: Final = "animals"
_BATCH: Final = 16
"""Photos whose tiles are recorded together."""


def run(workspace: Workspace, config: Config, reporter: Reporter, *, redo: bool = False) -> None:
    """Prepare the photos of a run.

    Raises:
        SynthdetError: Anything about the photos, annotations or settings that a person has to decide.
    """
    settings = config.prepare
    if settings.photos is None:
        raise SynthdetError("prepare.photos is not set: name the folder with your photos")
    photos_dir = Path(os.path.abspath(settings.photos.expanduser()))  # noqa: PTH100 (keeps links)
    folder = workspace.stage("prepare")
    lock = folder.lock()
    if not photos_dir.exists() and not redo and lock is not None and lock["finished"]:
        reporter.note("prepare", f"{photos_dir} is not there: going on with what was prepared")
        reporter.close("prepare", _closing_line(lock["counts"]))
        return
    if lock is not None and not redo and not (folder.path / _SURVEY[-1]).is_file():
        folder.lock_path.unlink()  # nothing was made yet: other settings are welcome
    recognised = recognise(photos_dir, settings.labels, settings.format)
    hashes = _hash_inputs(recognised, settings.workers)
    done = folder.claim(
        settings=settings.settings("making"),
        inputs={"photos": hash_json(hashes)},
        redo=redo,
        note=lambda text: reporter.note("prepare", text),
    )
    for leftover in folder.path.rglob(".tmp-*"):
        leftover.unlink()
    if not done:
        reporter.note("prepare", recognised.describe())
    survey = [folder.path / name for name in _SURVEY]
    if not all(path.is_file() for path in survey):
        _make_survey(folder, settings, recognised, hashes, reporter)
    photos = read_records(survey[0], Photo)
    dataset = read_json(survey[2])
    for text in dataset["notes"] if not done else ():
        reporter.note("prepare", text)
    planned = _plan_tiles(photos, dataset["classes"], dataset["crop_side"], settings)
    missing = _cut_tiles(folder, planned.tiles, photos_dir, settings, reporter)
    if done and not missing:
        reporter.close("prepare", _closing_line((folder.lock() or {})["counts"]))
        return
    counts = _counts(photos, dataset, planned.tiles)
    folder.close(
        outputs=[*survey, folder.path / "tiles.jsonl"],
        counts=counts,
        runtime={"workers": settings.workers},
    )
    reporter.close("prepare", _closing_line(counts))


# --- the survey: photos, checked, grouped and split ----------------------------------------------


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


def _make_survey(
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
    _require_caption_fields(photos, settings)
    ground = _plan_ground(photos, settings)
    planned = _plan_tiles(photos, class_names, ground.crop_side, settings)
    small = sum(min(photo.width, photo.height) < ground.crop_side for photo in photos)
    notes = [*plan.notes, *_tile_notes(planned, small, ground)]
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
    upright = (inspected.width, inspected.height)
    if photo.size_wh == (1, 1):
        width, height = upright
        return [
            Box(xyxy=_scaled(box.xyxy, width, height), class_id=box.class_id) for box in photo.boxes
        ]
    if photo.size_wh in (None, upright):
        return list(photo.boxes)
    if photo.size_wh == inspected.stored_wh:
        return [
            Box(
                xyxy=to_upright(box.xyxy, inspected.orientation, *inspected.stored_wh),
                class_id=box.class_id,
            )
            for box in photo.boxes
        ]
    return Rejected(
        path=photo.path,
        reason=f"is {upright[0]} x {upright[1]} pixels, but was annotated at {photo.size_wh[0]} x {photo.size_wh[1]}"
        if photo.size_wh
        else "has no size",
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


# --- tiles ---------------------------------------------------------------------------------------


def _plan_ground(photos: Sequence[Photo], settings: PrepareConfig) -> tiles.Ground:
    train = [photo for photo in photos if photo.split == "train"]
    ground = tiles.plan_ground(
        [_longer_side(box) for photo in train for box in photo.boxes],
        [(photo.width, photo.height) for photo in photos],
        resolution=settings.resolution,
        animal_fraction=settings.animal_fraction,
        scale=None if settings.scale == "auto" else settings.scale,
    )
    if settings.scale != "auto":
        return ground
    return tiles.make_room(
        ground,
        [(photo.boxes, photo.width, photo.height) for photo in train],
        resolution=settings.resolution,
        seed=settings.seed,
    )


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Planned tiles, without their hashes, in order; and why animals got none, by split."""

    tiles: list[Tile]
    without_tile: dict[str, dict[str, int]]


def _plan_tiles(
    photos: Sequence[Photo], class_names: Sequence[str], side: int, settings: PrepareConfig
) -> _Tiles:
    """All tiles of the run, from records alone: the same plan at every start."""
    scale = settings.resolution / side
    crops: dict[str, list[tiles.Crop]] = {}
    without: dict[str, dict[str, int]] = {
        split: dict.fromkeys(("larger_than_a_tile", "too_crowded", "beside_blank"), 0)
        for split in SPLITS
    }
    for photo in photos:
        planned = tiles.plan_object_crops(
            photo.boxes,
            photo.width,
            photo.height,
            side,
            views=settings.views if photo.split == "train" else 1,
            rng=tiles.rng_for(settings.seed, photo.image_id),
            blank=photo.blank,
            max_blank=MAX_TRAIN_BLANK if photo.split == "train" else 1.0,
        )
        crops[photo.image_id] = planned.crops
        without[photo.split]["larger_than_a_tile"] += len(planned.too_large)
        without[photo.split]["too_crowded"] += len(planned.crowded)
        without[photo.split]["beside_blank"] += len(planned.beside_blank)
    for split in SPLITS:
        own = [photo for photo in photos if photo.split == split]
        order = tiles.rng_for(settings.seed, split).permutation(len(own)).tolist()
        turn = [own[number] for number in order]
        offers = [
            tiles.plan_background_crops(
                photo.boxes,
                photo.width,
                photo.height,
                side,
                rng=tiles.rng_for(settings.seed, f"background {photo.image_id}"),
                blank=photo.blank,
            )
            for photo in turn
        ]
        num_object = sum(len(crops[photo.image_id]) for photo in own)
        wanted = tiles.num_background(num_object, len(own), settings.background_fraction)
        for photo, taken in zip(turn, tiles.take_in_turn(offers, wanted), strict=True):
            crops[photo.image_id].extend(taken)
    return _Tiles(
        [
            _tile(photo, number, crop, scale, class_names, settings)
            for photo in photos
            for number, crop in enumerate(crops[photo.image_id])
        ],
        without,
    )


def _tile(
    photo: Photo,
    number: int,
    crop: tiles.Crop,
    scale: float,
    class_names: Sequence[str],
    settings: PrepareConfig,
) -> Tile:
    boxes = tiles.tile_boxes(photo.boxes, crop, scale)
    tile_id = f"{photo.image_id}-{number:02d}"
    return Tile(
        tile_id=tile_id,
        image_id=photo.image_id,
        group=photo.group,
        split=photo.split,
        path=f"1-prepare/tiles/{photo.split}/{tile_id}.png",
        sha256="",
        xyxy=crop.xyxy,
        scale=scale,
        width=settings.resolution,
        height=settings.resolution,
        boxes=boxes,
        caption=_caption(boxes, class_names, photo.metadata, settings),
    )


def _caption(
    boxes: Sequence[Box],
    class_names: Sequence[str],
    metadata: Mapping[str, Any],
    settings: PrepareConfig,
) -> str:
    counts = Counter(box.class_id for box in boxes)
    animals = captions.phrase({name: counts[number] for number, name in enumerate(class_names)})
    fields = {**metadata, _ANIMALS: animals or settings.background_caption}
    parts = []
    for literal, name, _format, _conversion in string.Formatter().parse(settings.caption):
        parts.append(literal)
        if name is not None:
            parts.append(str(fields[name]))
    return " ".join("".join(parts).split())


def _require_caption_fields(photos: Sequence[Photo], settings: PrepareConfig) -> None:
    """Refuse a template that some photo cannot fill."""
    try:
        names = [name for _text, name, *_rest in string.Formatter().parse(settings.caption)]
    except ValueError as error:
        raise SynthdetError(f"prepare.caption {settings.caption!r}: {error}") from error
    for name in names:
        if name in (None, _ANIMALS):
            continue
        for photo in photos:
            if name not in photo.metadata:
                known = ", ".join(f"{{{field}}}" for field in (_ANIMALS, *photo.metadata))
                raise SynthdetError(
                    f"prepare.caption asks for {{{name}}}, which {photo.path} does not have (it has {known}): "
                    "add it to metadata.jsonl, or change the caption"
                )


def _cut_tiles(
    folder: StageFolder,
    planned: Sequence[Tile],
    photos_dir: Path,
    settings: PrepareConfig,
    reporter: Reporter,
) -> int:
    """Cut and record every tile that is missing; pictures first, then their lines, in plan order.

    Returns:
        How many were missing.
    """
    record_path = folder.path / "tiles.jsonl"
    root = folder.workspace.root
    recorded = {tile.tile_id: tile for tile in read_records(record_path, Tile)}
    missing = [
        tile for tile in planned if tile.tile_id not in recorded or not (root / tile.path).is_file()
    ]
    if not missing:
        if not record_path.exists():
            append_records(record_path, [])
        return 0
    by_photo: dict[str, list[Tile]] = defaultdict(list)
    for tile in missing:
        by_photo[tile.image_id].append(tile)
    paths = {photo.image_id: photo for photo in read_records(folder.path / "photos.jsonl", Photo)}

    def cut(own: list[Tile]) -> list[Tile]:
        return _cut_photo(own, paths[own[0].image_id], photos_dir, root, settings.resolution)

    batch: list[Tile] = []
    number = 0
    with reporter.bar(
        "prepare",
        len(planned),
        unit="tile",
        done=len(planned) - len(missing),
        doing="cutting tiles",
    ) as advance:
        for finished in _photos.in_order(cut, by_photo.values(), settings.workers):
            advance(len(finished))
            number += 1
            batch.extend(finished)
            if number % _BATCH == 0:
                _record(record_path, batch, recorded)
                batch = []
        _record(record_path, batch, recorded)
    return len(missing)


def _record(path: Path, batch: Sequence[Tile], recorded: Mapping[str, Tile]) -> None:
    for tile in batch:
        before = recorded.get(tile.tile_id)
        if before is not None and before.sha256 != tile.sha256:
            raise SynthdetError(
                f"{tile.path} was lost and cannot be made again with the same bytes (another version of opencv?): "
                "make the stage again with --redo"
            )
    append_records(path, [tile for tile in batch if tile.tile_id not in recorded])


def _cut_photo(
    own: Sequence[Tile], photo: Photo, photos_dir: Path, root: Path, resolution: int
) -> list[Tile]:
    try:
        picture = _photos.read_upright(photos_dir / photo.path)
    except OSError as error:
        raise SynthdetError(
            f"{photos_dir / photo.path} was readable and is not any more: {error}"
        ) from error
    finished = []
    for tile in own:
        content = _photos.to_png(_photos.cut(picture, tile.xyxy, resolution))
        write_bytes(root / tile.path, content)
        finished.append(tile.model_copy(update={"sha256": _photos.hash_bytes(content)}))
    return finished


# --- words and figures ---------------------------------------------------------------------------


def _hash_inputs(recognised: Recognised, workers: int) -> dict[str, str]:
    """SHA-256 of every photo (by its path) and every annotation file (by its whole path)."""
    root = recognised.listing.root
    photos = recognised.listing.photos
    paths = [*(root / photo for photo in photos), *recognised.files]
    names = [*photos, *(os.path.relpath(path, root) for path in recognised.files)]
    try:
        return dict(zip(names, _photos.in_order(hash_file, paths, workers), strict=True))
    except OSError as error:
        raise SynthdetError(f"{error.filename} cannot be read: {error.strerror}") from error


def _longer_side(box: Box) -> float:
    x1, y1, x2, y2 = box.xyxy
    return max(x2 - x1, y2 - y1)


def _by_split(photos: Sequence[Photo], count: Callable[[Photo], int]) -> dict[str, int]:
    return {
        split: sum(int(count(photo)) for photo in photos if photo.split == split)
        for split in SPLITS
    }


def _kind(entry: Rejected) -> str:
    if entry.box is not None:
        return "boxes"
    return "left out" if entry.reason.startswith("left out") else "photos"


def _tile_notes(planned: _Tiles, small: int, ground: tiles.Ground) -> list[str]:
    notes = [
        f"a tile shows {ground.crop_side} px of a photo, scale {ground.scale:.3g}: {ground.reason}"
    ]
    if small:
        notes.append(
            f"{small} photos are smaller than that: filled up with a blurred mirror image (lower prepare.resolution to avoid it)"
        )
    large = sum(own["larger_than_a_tile"] for own in planned.without_tile.values())
    crowded = sum(own["too_crowded"] for own in planned.without_tile.values())
    blank = sum(own["beside_blank"] for own in planned.without_tile.values())
    if blank:
        notes.append(
            f"{blank} train animals are in no tile, because more than {MAX_TRAIN_BLANK:.0%} of it would be black edge"
        )
    if large:
        notes.append(
            f"{large} animals are larger than a tile and in none: lower prepare.animal_fraction"
        )
    if crowded:
        notes.append(f"{crowded} animals are in no tile, because every tile would cut a neighbour")
    return notes


def _counts(
    photos: Sequence[Photo], dataset: Mapping[str, Any], own: Sequence[Tile]
) -> dict[str, Any]:
    return {
        "photos": len(photos),
        "groups": len({photo.group for photo in photos}),
        "tiles": {split: sum(tile.split == split for tile in own) for split in SPLITS},
        "background_tiles": sum(not tile.boxes for tile in own),
        "boxes": sum(len(photo.boxes) for photo in photos),
        "rejected": dataset["num_rejected"],
    }


def _closing_line(counts: Mapping[str, Any]) -> str:
    own = counts["tiles"]
    parts = [
        f"{counts['photos']:,} photos",
        f"{counts['groups']:,} groups",
        f"{sum(own.values()):,} tiles ({', '.join(f'{split} {own[split]:,}' for split in SPLITS)})",
    ]
    rejected = counts["rejected"]
    names = {"photos": "rejected", "boxes": "boxes dropped", "left out": "left out"}
    parts.extend(f"{rejected[kind]:,} {word}" for kind, word in names.items() if rejected.get(kind))
    return " · ".join(parts)
