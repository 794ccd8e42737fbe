"""The tiles, for `prepare`: planned from the survey's records alone, then cut."""

from __future__ import annotations

import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from synthdet.config import PrepareConfig
from synthdet.core import captions, tiles
from synthdet.core.records import SPLITS, Box, Photo, Tile
from synthdet.errors import SynthdetError
from synthdet.progress import Reporter
from synthdet.stages import _photos
from synthdet.workspace import StageFolder, append_records, read_records, write_bytes

MAX_TRAIN_BLANK: Final = 0.25
"""Share of a train tile that may be black edge: the LoRA would learn to draw it."""
_ANIMALS: Final = "animals"
_BATCH: Final = 16
"""Photos whose tiles are recorded together."""


def plan_ground(photos: Sequence[Photo], settings: PrepareConfig) -> tiles.Ground:
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


def animal_sizes(photos: Sequence[Photo]) -> tuple[float, float]:
    """Longer side of small and large train animals, in photo pixels."""
    train = [photo for photo in photos if photo.split == "train"]
    return tiles.size_bounds([_longer_side(box) for photo in train for box in photo.boxes])


@dataclass(frozen=True, slots=True)
class PlannedTiles:
    """Planned tiles, without their hashes, in order; and why animals got none, by split."""

    tiles: list[Tile]
    without_tile: dict[str, dict[str, int]]


def plan_tiles(
    photos: Sequence[Photo], dataset: Mapping[str, Any], settings: PrepareConfig
) -> PlannedTiles:
    """All tiles of the run, from records alone: the same plan at every start.

    Args:
        photos: Of the run.
        dataset: What ``dataset.json`` says of ``classes``, ``crop_side`` and ``animal_sizes``.
        settings: Of the run.
    """
    side: int = dataset["crop_side"]
    low, high = dataset["animal_sizes"]
    zoom = tiles.Zoom(settings.zoom, (low, high), settings.resolution)
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
            zoom=zoom,
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
    return PlannedTiles(
        [
            _tile(photo, number, crop, dataset["classes"], settings)
            for photo in photos
            for number, crop in enumerate(crops[photo.image_id])
        ],
        without,
    )


def _tile(
    photo: Photo,
    number: int,
    crop: tiles.Crop,
    class_names: Sequence[str],
    settings: PrepareConfig,
) -> Tile:
    scale = settings.resolution / (crop.xyxy[2] - crop.xyxy[0])
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
        caption=_own_caption(photo, boxes, settings)
        or _caption(boxes, class_names, photo.metadata, settings),
    )


def _own_caption(photo: Photo, boxes: Sequence[Box], settings: PrepareConfig) -> str:
    """What the photo's own caption says; empty where there is none, or where it is not about this tile."""
    if photo.boxes and not boxes:
        return ""  # open water beside the animals that the caption tells of
    if "{caption" in settings.caption or "{text" in settings.caption:
        return ""  # the template takes it in
    told = (photo.metadata.get(key) for key in ("caption", "text"))
    return next((" ".join(text.split()) for text in told if isinstance(text, str) and text), "")


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


def require_caption_fields(photos: Sequence[Photo], settings: PrepareConfig) -> None:
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


def cut_tiles(
    folder: StageFolder,
    planned: Sequence[Tile],
    photos_dir: Path,
    settings: PrepareConfig,
    reporter: Reporter,
) -> None:
    """Cut and record every tile that is missing; pictures first, then their lines, in plan order."""
    record_path = folder.path / "tiles.jsonl"
    root = folder.workspace.root
    recorded = {tile.tile_id: tile for tile in read_records(record_path, Tile)}
    missing = [
        tile for tile in planned if tile.tile_id not in recorded or not (root / tile.path).is_file()
    ]
    if not missing:
        if not record_path.exists():
            append_records(record_path, [])
        return
    by_photo: dict[str, list[Tile]] = defaultdict(list)
    for tile in missing:
        by_photo[tile.image_id].append(tile)
    paths = {photo.image_id: photo for photo in read_records(folder.path / "photos.jsonl", Photo)}

    room = _photos.Room()

    def cut(own: list[Tile]) -> list[Tile]:
        path = photos_dir / paths[own[0].image_id].path
        return _cut_photo(own, path, root, settings.resolution, room)

    batch: list[Tile] = []
    number = 0
    with (
        reporter.bar(
            "prepare",
            len(planned),
            unit="tile",
            done=len(planned) - len(missing),
            doing="cutting tiles",
        ) as advance,
        _photos.large_frames(),
    ):
        for finished in _photos.in_order(cut, by_photo.values(), settings.workers):
            advance(len(finished))
            number += 1
            batch.extend(finished)
            if number % _BATCH == 0:
                _record(record_path, batch, recorded)
                batch = []
        _record(record_path, batch, recorded)


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
    own: Sequence[Tile], path: Path, root: Path, resolution: int, room: _photos.Room
) -> list[Tile]:
    finished = []
    pictures = _photos.read_crops(path, [tile.xyxy for tile in own], resolution, room)
    try:
        for tile, picture in zip(own, pictures, strict=True):
            content = _photos.to_png(picture)
            write_bytes(root / tile.path, content)
            finished.append(tile.model_copy(update={"sha256": _photos.hash_bytes(content)}))
    except OSError as error:
        raise SynthdetError(f"{path} was readable and is not any more: {error}") from error
    return finished


def describe_tiles(planned: PlannedTiles, small: int, ground: tiles.Ground) -> list[str]:
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


def _longer_side(box: Box) -> float:
    x1, y1, x2, y2 = box.xyxy
    return max(x2 - x1, y2 - y1)
