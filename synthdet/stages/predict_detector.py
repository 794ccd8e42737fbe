"""Which detector a new survey gets, from which confidence its boxes count, and how such counts err."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from synthdet.config import Arm, Config
from synthdet.core.comparison import average_precision, best_operating_point, match_detections
from synthdet.core.counts import CountedPicture, compare_count
from synthdet.core.labelling import FALLBACK_CONFIDENCE, MIN_CONFIDENCE, to_classes
from synthdet.core.records import (
    Box,
    DetectedBox,
    Detections,
    ManifestEntry,
    Photo,
    Prediction,
    Split,
    Tile,
)
from synthdet.core.tiling import Look, merge_looks
from synthdet.errors import SynthdetError
from synthdet.models.detector import has_weights
from synthdet.stages._detector import Opened, find_weights, hash_weights
from synthdet.stages.evaluate_units import predictions_path, weights_dir
from synthdet.workspace import StageFolder, Workspace, hash_json, read_records, write_records

_BORDER: Final = 0.0
"""Nothing is cut at the edges of a val or test tile: `prepare` sees to that."""
_TRIED: Final[tuple[Split, ...]] = ("val", "test")
"""What every detector of the study was tried on."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The detector for a survey.

    Attributes:
        name: For people, and for the lock.
        weights: File or folder.
        found: Split -> what it drew on the run's real val and test tiles, by tile; None where nobody
            has tried it there.
        looks_for: Of what a person said for such a detector, what makes other boxes of the same files:
            `class_map` and `queries`, where they are set.
    """

    name: str
    weights: Path
    found: Mapping[Split, list[Detections]] | None
    looks_for: Mapping[str, Any] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Of its files, and of what it looks for."""
        files = hash_weights(self.weights)
        return hash_json([files, self.looks_for]) if self.looks_for else files


def choose(
    workspace: Workspace,
    config: Config,
    tiles: Sequence[Tile],
    num_classes: int,
    *,
    arm: str | None,
    weights: Path | None,
) -> Chosen:
    """The detector of the study that did best on the real val tiles, or the one that was named.

    Best by map50_95; of equal ones the first in the order of `evaluate.arms`, then of seeds. Test tiles
    have no say: the expected error is measured on them. Points of a sweep, many more draws of the same
    luck, are only taken by name.

    Args:
        workspace: The run.
        config: Its settings.
        tiles: Its real tiles.
        num_classes: Of the run.
        arm: Of the study, or point of its sweeps, to choose among its seeds only.
        weights: File or folder of any other detector.

    Raises:
        SynthdetError: The study has no such arm or no detector, or there are no such weights.
    """
    if weights is not None:
        if arm is not None:
            raise SynthdetError("--arm and --weights both name a detector: leave one of them out")
        weights = find_weights(weights, "--weights")
        name = str(weights.absolute()) if weights.exists() else str(weights)
        said = {
            "class_map": config.label.class_map_of(str(weights)),
            "queries": config.label.queries,
        }
        return Chosen(name, weights, None, {key: value for key, value in said.items() if value})
    folder = workspace.stage("evaluate")
    units = _find_units(folder)
    arms = list(dict.fromkeys(name for name, _seed in units))
    if not units:
        raise SynthdetError(
            f"{folder.path / 'weights'} holds no detector: name one with --weights, or run "
            f"`synthdet evaluate {workspace.root} --redo` on photos with animals in test"
        )
    if arm is not None and arm not in arms:
        raise SynthdetError(f"--arm {arm}: this run has trained {', '.join(arms)}")
    order: list[str] = list(dict.fromkeys([*config.evaluate.arms, *arms]))
    candidates = {arm} if arm is not None else {*get_args(Arm)} & {*arms} or {*arms}
    ranked = []
    for name, seed in units:
        if name in candidates:
            val = read_records(predictions_path(folder, name, seed, "val"), Detections)
            ranked.append((-_fitness(tiles, val, num_classes), order.index(name), seed))
    _best, place, seed = min(ranked)
    name = order[place]
    found = {
        split: read_records(predictions_path(folder, name, seed, split), Detections)
        for split in _TRIED
    }
    return Chosen(f"{name}, seed {seed}", weights_dir(folder, name, seed), found)


def _find_units(folder: StageFolder) -> list[tuple[str, int]]:
    """Every arm, and point of a sweep, with every seed that is whole."""
    units = []
    for path in sorted((folder.path / "weights").glob("*/seed-*")):
        arm, seed = path.parent.name, path.name.removeprefix("seed-")
        if seed.isascii() and seed.isdecimal() and has_weights(path):
            tried = [predictions_path(folder, arm, int(seed), split) for split in _TRIED]
            units += [(arm, int(seed))] if all(one.is_file() for one in tried) else []
    return sorted(units)


def _fitness(tiles: Sequence[Tile], found: Sequence[Detections], num_classes: int) -> float:
    """map50_95; -1 where there is no true box."""
    truth = {tile.tile_id: tile.boxes for tile in tiles}
    known = [one for one in found if one.image_id in truth]
    matches = match_detections(
        [truth[one.image_id] for one in known],
        [one.boxes for one in known],
        num_classes=num_classes,
    )
    mean = float(average_precision(matches).mean())
    return -1.0 if np.isnan(mean) else round(mean, 9)


def try_on_tiles(
    workspace: Workspace, path: Path, tiles: Sequence[Tile], opened: Opened
) -> list[Detections]:
    """What a detector that is not of the study draws on real tiles of the run; written once.

    Args:
        workspace: The run.
        path: Where it goes.
        tiles: Real tiles of the run.
        opened: The detector.

    Raises:
        SynthdetError: A tile is missing.
    """
    found = read_records(path, Detections)
    if not path.exists() or [one.image_id for one in found] != [one.tile_id for one in tiles]:
        found = _draw_on_tiles(workspace, tiles, opened) if tiles else []
        write_records(path, found)
    return found


def _draw_on_tiles(
    workspace: Workspace,
    tiles: Sequence[Tile],
    opened: Opened,
) -> list[Detections]:
    paths = [workspace.root / tile.path for tile in tiles]
    for path in paths:
        if not path.is_file():
            raise SynthdetError(
                f"{path} is missing: make it again with `synthdet prepare {workspace.root}`"
            )
    detector, to_run = opened()
    found = detector.detect(paths, min_confidence=MIN_CONFIDENCE)
    return [
        Detections(image_id=tile.tile_id, boxes=to_classes(boxes, to_run))
        for tile, boxes in zip(tiles, found, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A real picture whose animals are known, and what the detector drew in it, in the same pixels."""

    animals: tuple[Box, ...]
    boxes: tuple[DetectedBox, ...]
    group: str
    area: float
    """In tiles."""


def on_photos(
    photos: Sequence[Photo | ManifestEntry], found: Sequence[Prediction], side: int
) -> list[Drawn]:
    """Whole photos, looked at as a survey; without those that cannot be read.

    Args:
        photos: With their animals.
        found: What was drawn in them, in the same order.
        side: Of a tile, in photo pixels.
    """
    return [
        Drawn(
            photo.boxes,
            one.boxes,
            photo.group if isinstance(photo, Photo) else str(photo.provenance["group"]),
            photo.width * photo.height / side**2,
        )
        for photo, one in zip(photos, found, strict=True)
        if one.fault is None
    ]


def on_tiles(tiles: Sequence[Tile], found: Sequence[Detections]) -> list[Drawn]:
    """Tiles, each looked at alone; as on a survey, an animal that was drawn twice counts once."""
    by_id = {tile.tile_id: tile for tile in tiles}
    drawn = []
    for one in found:
        tile = by_id.get(one.image_id)
        if tile is not None:
            size_wh = (tile.width, tile.height)
            look = Look((0, 0, *size_wh), one.boxes)
            boxes = merge_looks([look], size_wh, _BORDER)
            drawn.append(Drawn(tile.boxes, boxes, tile.group, 1.0))
    return drawn


def choose_confidence(pictures: Sequence[Drawn], num_classes: int) -> float:
    """The confidence with the best F1; `FALLBACK_CONFIDENCE` where none tells."""
    matches = match_detections(
        [one.animals for one in pictures],
        [one.boxes for one in pictures],
        num_classes=num_classes,
        max_detections=None,  # COCO's 100 are for a tile: a whole photo may show a colony
    )
    best = best_operating_point(matches)
    return FALLBACK_CONFIDENCE if best is None else max(best.confidence, MIN_CONFIDENCE)


def count_animals(pictures: Sequence[Drawn], confidence: float) -> list[CountedPicture]:
    """Counts at that confidence, held against the truth."""
    return [
        compare_count(
            [box.xyxy for box in one.animals],
            [box.xyxy for box in one.boxes if box.confidence >= confidence],
            group=one.group,
            area=one.area,
        )
        for one in pictures
    ]
