"""The best detector of the study on a new survey: boxes, counts a photo, and how far to believe them.

Reads:
    A folder of photos (never written to). Of the run: ``1-prepare/``, the val photos where they lie, the
    whole test photos of ``6-export/frames/``, and ``7-evaluate/weights/`` and ``predictions/``, where no
    other detector is named.

Writes:
    Into ``8-predict/<name of the folder>/``: ``predictions.jsonl``, raw boxes of every photo, once;
    ``rejected.jsonl``; from them, again whenever the confidence moves, ``yolo/``, ``coco.json``,
    ``counts.csv`` and ``contact_sheet.jpg``. Into ``8-predict/.tried/<detector>/`` what the detector
    draws on the run's own val and test photos, which says from where on a box counts and how counts err,
    once for all surveys.

Resume:
    Photos are looked at in batches of neighbours of the sorted list; a batch is looked at again if any
    of its photos has no line. Photos that were added are looked at, the others are not again.

A photo is cut into tiles as those that the detector has learned from: at the run's ground scale, of its
resolution, overlapping by a large animal.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from synthdet.config import Config
from synthdet.core.counts import CountModel, Expected, expect_animals, fit_count_model
from synthdet.core.records import ManifestEntry, Photo, Prediction, Rejected, Split, Tile
from synthdet.core.tiling import plan_overlap
from synthdet.errors import SynthdetError
from synthdet.models.protocols import Detector
from synthdet.progress import Reporter, many
from synthdet.stages import _photos
from synthdet.stages._detector import BY_TEXT_WARNING, Opened, open_once
from synthdet.stages.predict_detector import (
    Chosen,
    Drawn,
    choose,
    choose_confidence,
    count_animals,
    on_photos,
    on_tiles,
    try_on_tiles,
)
from synthdet.stages.predict_files import PROMISED, Counted, write_files
from synthdet.stages.predict_look import Ground, file_size, look_at_photos
from synthdet.workspace import (
    PREDICT_NAME,
    StageFolder,
    Workspace,
    hash_json,
    read_json,
    read_records,
    write_json,
    write_records,
)

_SEED: Final = 0
"""Of the draws behind an interval: the same counts give the same one."""
_TRIED_NAME: Final = ".tried"
"""Beside the surveys: what detectors drew on the run's own photos."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a person asked for.

    Attributes:
        photos: The folder of the survey.
        output: Where the results go; None for ``RUN/8-predict/<name of the folder>``.
        arm: Of the study, instead of the best one.
        weights: File or folder of another detector.
        scale: Tile pixels a photo pixel; None for that of the run.
        confidence: From where on a box counts; None for the best F1 on the real val photos.
    """

    photos: Path
    output: Path | None = None
    arm: str | None = None
    weights: Path | None = None
    scale: float | None = None
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class _Known:
    """What the run knows: classes, tiles, whole val and test photos, how tiles were cut."""

    class_names: tuple[str, ...]
    tiles: list[Tile]
    photos_dir: Path
    val: list[Photo]
    frames: list[ManifestEntry]
    scale: float
    large_animal: float
    resolution: int
    image_size: int

    def ground(self, scale: float | None = None) -> Ground:
        """The run's ground scale, or another one, where animals have other sizes in the photos."""
        side = max(1, round(self.resolution / (scale or self.scale)))
        largest = self.large_animal * self.scale * side / self.resolution
        return Ground(side, plan_overlap(side, largest), self.resolution)


def run(
    workspace: Workspace,
    config: Config,
    reporter: Reporter,
    asked: Asked,
    *,
    open_detector: Callable[[Path], Detector],
    redo: bool = False,
) -> None:
    """Look at every photo of a survey.

    Raises:
        SynthdetError: The study is not done, there is no photo or no such detector, the results of
            other settings stand in the output folder, or that folder is somebody else's.
    """
    if asked.scale is not None and asked.scale <= 0:
        raise SynthdetError(f"--scale {asked.scale:g}: name tile pixels a photo pixel, more than 0")
    listing = _list_photos(asked.photos.expanduser().absolute())
    known = _read_known(workspace, config, asked)
    chosen = choose(
        workspace, config, known.tiles, len(known.class_names), arm=asked.arm, weights=asked.weights
    )
    ground = known.ground(asked.scale)
    folder = _open_folder(workspace, listing.root, asked.output)
    settings = {
        "photos": str(listing.root), "detector": chosen.name, "weights": chosen.fingerprint()[:16],
        "classes": list(known.class_names), "image_size": known.image_size,
        "scale": round(ground.scale, 6), "resolution": ground.resolution, "overlap": ground.overlap,
    }  # fmt: skip
    lock = folder.lock()
    if lock is not None and not redo and file_size(folder.path / "predictions.jsonl") <= 0:
        # Nothing was made yet: other settings are welcome. The lock stays, by which the folder is known.
        write_json(folder.lock_path, {**lock, "settings": settings, "finished": False})
    done = folder.claim(
        settings=settings,
        inputs={},
        decisions={"confidence": asked.confidence},
        decision_inputs={"run": _fingerprint(known), "photos": _fingerprint(listing)},
        redo=redo,
        note=lambda text: reporter.note("predict", text),
    )
    if done and all((folder.path / name).exists() for name in PROMISED):
        reporter.close("predict", closing_line((folder.lock() or {})["counts"]))
        return
    for leftover in folder.path.glob(".tmp-*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)

    class_map = chosen.looks_for.get("class_map")

    def open_told(weights: Path) -> Detector:
        detector = open_detector(weights)
        if detector.queries is not None:
            reporter.note("predict", f"{chosen.name} {BY_TEXT_WARNING}")
        return detector

    opened = open_once(chosen.weights, known.class_names, class_map, open_told)
    found = look_at_photos(
        folder.path / "predictions.jsonl", listing.root, listing.photos, ground, opened, reporter,
        doing="looking at photos",
    )  # fmt: skip
    usable = _reject(folder, listing, found)
    confidence, model = _measure(workspace, known, chosen, asked.confidence, opened, reporter)
    counted, total = _count(usable, confidence, ground, model)
    write_files(folder.path, listing.root, counted, known.class_names, view_side=3 * ground.side)
    num_rejected = len(found) - len(usable) + len(listing.rejected)
    counts = _counts(counted, total, num_rejected, confidence, model, chosen)
    folder.close(
        outputs=[folder.path / "predictions.jsonl", folder.path / "counts.csv"],
        counts=counts,
        runtime={},
    )
    reporter.close("predict", closing_line(counts))
    reporter.close("", str(folder.path / "counts.csv"))


# --- opening -----------------------------------------------------------------------------------


def _list_photos(photos_dir: Path) -> _photos.Listing:
    if not photos_dir.is_dir():
        raise SynthdetError(f"there is no folder {photos_dir}: name the one with the photos")
    listing = _photos.list_files(photos_dir)
    if not listing.photos:
        first = (
            f" ({listing.rejected[0].path} {listing.rejected[0].reason})"
            if listing.rejected
            else ""
        )
        raise SynthdetError(
            f"there is no photo in {photos_dir}{first}: {', '.join(_photos.PHOTO_SUFFIXES)} are read"
        )
    return listing


def _read_known(workspace: Workspace, config: Config, asked: Asked) -> _Known:
    detector = config.evaluate if asked.weights is None else config.label
    prepare, export = workspace.stage("prepare"), workspace.stage("export")
    for needed in ("prepare",) if asked.weights is not None else ("evaluate", "prepare"):
        workspace.stage(needed).output()  # refuses one that is not done
    dataset = read_json(prepare.path / "dataset.json")
    photos_dir = Path(dataset["photos"])
    photos = read_records(prepare.path / "photos.jsonl", Photo)
    val = [one for one in photos if one.split == "val"]
    frames = read_records(export.path / "frames" / "manifest.jsonl", ManifestEntry)
    return _Known(
        class_names=tuple(dataset["classes"]),
        tiles=read_records(prepare.path / "tiles.jsonl", Tile),
        photos_dir=photos_dir,
        val=val if all((photos_dir / one.path).is_file() for one in val) else [],
        frames=[one for one in frames if (workspace.root / one.yolo_path).is_file()],
        scale=float(dataset["scale"]),
        large_animal=float(dataset["animal_sizes"][1]),
        resolution=config.prepare.resolution,
        image_size=config.side_for(detector),
    )


def _fingerprint(part: _Known | _photos.Listing) -> str:
    """Of the real pictures that the error is measured on; of names and sizes of a survey's files."""
    if isinstance(part, _Known):
        return hash_json([one.to_line() for one in (*part.tiles, *part.val, *part.frames)])
    sizes = [(path, file_size(part.root / path)) for path in part.photos]
    return hash_json([sizes, [one.to_line() for one in part.rejected]])


def _open_folder(workspace: Workspace, photos_dir: Path, output: Path | None) -> StageFolder:
    """The folder of results, once it is sure that nothing of somebody else's is in it."""
    name = photos_dir.resolve().name or "survey"
    path = workspace.root / PREDICT_NAME / name if output is None else output.expanduser()
    real, photos = path.resolve(), photos_dir.resolve()
    if real.is_relative_to(photos) or photos.is_relative_to(real):
        raise SynthdetError(
            f"{path} and the photos in {photos_dir} lie in each other: name another folder with --output"
        )
    surveys = (workspace.root / PREDICT_NAME).resolve()
    if real == surveys or real.is_relative_to(surveys / _TRIED_NAME):
        raise SynthdetError(
            f"{path} is where predict keeps its own things: name another folder with --output"
        )
    command = f"synthdet predict {workspace.root} {photos_dir}"
    folder = StageFolder(workspace, "predict", path=path, command=command)
    lock = folder.lock() if path.is_dir() else None
    if lock is not None:
        holds_others = lock["stage"] != "predict"
    elif path.is_dir():
        begun = f".tmp-*-{folder.lock_path.name}"  # killed while the lock was written
        holds_others = any(not one.match(begun) for one in path.iterdir())
    else:
        holds_others = path.exists()
    if holds_others:
        raise SynthdetError(f"{path} holds something else: name a new folder with --output")
    return folder


def _reject(
    folder: StageFolder, listing: _photos.Listing, found: Sequence[Prediction]
) -> list[Prediction]:
    """Write down what cannot be used; the rest."""
    usable = [one for one in found if one.fault is None]
    rejected = [Rejected(path=one.path, reason=one.fault) for one in found if one.fault is not None]
    rejected = sorted([*rejected, *listing.rejected], key=lambda one: one.path)
    write_records(folder.path / "rejected.jsonl", rejected)
    if not usable:
        raise SynthdetError(
            f"none of the {len(found)} photos in {listing.root} can be read: {found[0].path} {found[0].fault}"
        )
    return usable


# --- measuring ---------------------------------------------------------------------------------


def _measure(
    workspace: Workspace,
    known: _Known,
    chosen: Chosen,
    given: float | None,
    opened: Opened,
    reporter: Reporter,
) -> tuple[float, CountModel | None]:
    """From where on boxes count (by val), and how such counts err (by test).

    Both on whole photos, looked at as the survey: tiles are cut around animals and show little of the
    water in which false alarms are, and a survey looks at some animals in several tiles. Where whole
    photos are not to be had, the tiles have to do.
    """
    ground = known.ground()
    parts = [chosen.fingerprint(), chosen.name, known.image_size, ground.side, ground.overlap]
    folder = (
        workspace.root / PREDICT_NAME / _TRIED_NAME / hash_json([*parts, _fingerprint(known)])[:16]
    )

    def look(split: Split, root: Path, photos: Mapping[str, Photo | ManifestEntry]) -> list[Drawn]:
        if not any(one.boxes for one in photos.values()):
            tiles = [tile for tile in known.tiles if tile.split == split]
            path = folder / f"{split}.jsonl"
            tried = chosen.found[split] if chosen.found else try_on_tiles(workspace, path, tiles, opened)  # fmt: skip
            return on_tiles(tiles, tried)
        folder.mkdir(parents=True, exist_ok=True)
        found = look_at_photos(
            folder / f"{split}-photos.jsonl", root, [*photos], ground, opened, reporter,
            doing=f"trying it on the {split} photos",
        )  # fmt: skip
        return on_photos([*photos.values()], found, ground.side)

    confidence = given
    if confidence is None:
        val = look("val", known.photos_dir, {one.path: one for one in known.val})
        confidence = choose_confidence(val, len(known.class_names))
    test = look("test", workspace.root, {one.yolo_path: one for one in known.frames})
    counts = count_animals(test, confidence)
    return confidence, fit_count_model(counts, np.random.default_rng(_SEED))


# --- counting ----------------------------------------------------------------------------------


def _count(
    found: Sequence[Prediction], confidence: float, ground: Ground, model: CountModel | None
) -> tuple[list[Counted], Expected | None]:
    """The boxes that count in each photo, with the animals to expect there and in all."""
    boxes = [tuple(box for box in one.boxes if box.confidence >= confidence) for one in found]
    if model is None:
        return [Counted(one, own, None) for one, own in zip(found, boxes, strict=True)], None
    areas = [one.width * one.height / ground.side**2 for one in found]
    each, total = expect_animals(
        [len(own) for own in boxes], areas, model, np.random.default_rng(_SEED)
    )
    return [Counted(*one) for one in zip(found, boxes, each, strict=True)], total


def _counts(
    counted: Sequence[Counted],
    total: Expected | None,
    num_rejected: int,
    confidence: float,
    model: CountModel | None,
    chosen: Chosen,
) -> dict[str, Any]:
    """Figures for the lock; the closing line is made from them alone."""
    counts: dict[str, Any] = {
        "photos": len(counted),
        "rejected": num_rejected,
        "tiles": sum(one.prediction.num_tiles for one in counted),
        "animals": sum(len(one.boxes) for one in counted),
        "photos_with_animals": sum(bool(one.boxes) for one in counted),
        "confidence": confidence,
        "detector": chosen.name,
    }
    if total is None or model is None:
        return counts
    return counts | {
        "expected": round(total.expected, 2),
        "low": total.low,
        "high": total.high,
        "test_animals": model.num_animals,
        "test_groups": model.num_groups,
        "test_bias": round(model.bias, 6),
        "test_error": round(model.mean_error, 6),
        "found_share": round(float(model.found[0]), 6),
        "single_share": round(float(model.single[0]), 6),
        "false_a_tile": round(float(model.false[0]), 6),
    }


def closing_line(counts: Mapping[str, Any]) -> str:
    """What was found in a survey, in words.

    Args:
        counts: Of its ``stage.json``.
    """
    line = f"{many(counts['photos'], 'photo')} · {many(counts['animals'], 'animal')} found"
    rejected = f" · {counts['rejected']:,} rejected" if counts["rejected"] else ""
    by = f"from confidence {counts['confidence']:.2f}, {counts['detector']}"
    if "expected" not in counts:
        return (
            f"{line}{rejected}  (no test photo of the run holds an animal, so nobody knows how far the "
            f"count is off; {by})"
        )
    return (
        f"{line}, {counts['low']:,} to {counts['high']:,} expected{rejected}  (95 %, by "
        f"{many(counts['test_animals'], 'test animal')} in {many(counts['test_groups'], 'group')}; {by})"
    )
