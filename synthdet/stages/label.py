"""Draw boxes on the synthetic pictures, and decide which of them a training may believe.

Reads:
    ``1-prepare/tiles.jsonl`` (train and val tiles) and ``dataset.json``, ``3-generate/images.jsonl``
    with its pictures, ``4-filter/scores.jsonl`` (which pictures are unusable) and ``decisions.jsonl``.

Writes:
    ``5-label/real/``, the real train and val tiles as a YOLO dataset, and ``weights/``, the detector
    trained on them (neither, where the user named others alone), with ``own.json``, which weights it
    started from; ``detections.jsonl``, raw, once, for every
    usable picture and view; ``val_detections.jsonl``, the same for the real val tiles;
    ``calibration.json``, the thresholds, the curve they were chosen on and how good accepted boxes are
    on the val tiles; ``detectors.json``, who drew, where detectors were named; ``labels.jsonl``, what
    the thresholds make of the boxes of the pictures that the filter kept.

Resume:
    A training that was interrupted starts again and gives the same weights. Where the folder was set
    aside for something that the run's own detector does not learn from (other pictures, another detector
    beside it, views), its weights are taken over, if it would start from the same ones now. Detections are made in
    batches planned from the whole list; a batch is made again if any member is missing. Moving a
    threshold, here or in the filter, opens no model.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from synthdet.config import OWN_WEIGHTS, Config
from synthdet.core.formats.yolo import to_data_yaml, to_yolo_lines
from synthdet.core.labelling import (
    AcceptedQuality,
    Calibration,
    LabelRules,
    calibrate_confidence,
    decide_label,
    measure_accepted,
    size_prior,
)
from synthdet.core.records import (
    Decision,
    DetectedBox,
    Detections,
    Label,
    Score,
    SyntheticImage,
    Tile,
)
from synthdet.core.tiling import plan_overlap
from synthdet.errors import SynthdetError
from synthdet.models.protocols import Detector, DetectorTrainer
from synthdet.progress import Reporter
from synthdet.stages._detector import BY_TEXT_WARNING
from synthdet.stages.label_detectors import (
    DETECTORS_NAME,
    FAILED,
    NEWER,
    OWN_NAME,
    VAL_DETECTIONS_NAME,
    describe,
    draw_all,
    find_own,
    hash_named,
    known_classes,
    missing,
    not_looked_for,
    open_all,
    own_is_missing,
    refuse_other_detectors,
    take_over,
    write_own,
)
from synthdet.stages.label_tiles import look_in_tiles
from synthdet.workspace import (
    StageFolder,
    Workspace,
    read_json,
    read_records,
    write_json,
    write_records,
    write_text,
)


@dataclass(frozen=True, slots=True)
class _Labelled:
    """What the stages before left: the real tiles, and the pictures that can be used."""

    class_names: tuple[str, ...]
    tiles: list[Tile]
    val: list[Tile]
    images: list[SyntheticImage]
    kept: set[str]


def run(
    workspace: Workspace,
    config: Config,
    reporter: Reporter,
    *,
    open_trainer: Callable[[], DetectorTrainer],
    open_detector: Callable[[Path], Detector],
    identify: Callable[[str], str | None],
    redo: bool = False,
) -> None:
    """Label every synthetic picture that the filter kept.

    Args:
        workspace: The run.
        config: Its settings.
        reporter: Hears how far it is.
        open_trainer: Loads what the run's own detector starts from.
        open_detector: Loads a detector, by file, folder or hub name.
        identify: Finds out which weights `label.detector` stands for: a hash, or the hub's revision.
        redo: Set the old folder aside and start afresh.

    Raises:
        SynthdetError: A stage before is not done, a promised picture is missing, there is no real
            box to learn from, the user's weights do not fit, or a used setting was changed.
    """
    folder = workspace.stage("label")
    inputs = _inputs(workspace, config)
    if not redo:
        refuse_other_detectors(folder, config.label)
    done = folder.claim(
        settings=config.label.settings("making"),
        inputs=inputs,
        decisions=config.label.settings("decision"),
        decision_inputs={"filter": workspace.stage("filter").output()},
        newer=NEWER,
        redo=redo,
        note=lambda text: reporter.note("label", text),
    )
    given = _read_inputs(workspace)
    if done and _is_whole(folder, config, given):
        reporter.close("label", _closing_line((folder.lock() or {})["counts"]))
        return
    for leftover in list(folder.path.rglob(".tmp-*")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)

    if given.images and own_is_missing(folder, config.label):
        own = find_own(folder, config.label, inputs, identify)
        if own is None:
            (folder.path / OWN_NAME).unlink(missing_ok=True)
            _train(folder, given, config, reporter, open_trainer)
            # Only now: of a name on the hub the revision is known when it is there.
            write_own(folder, config.label, identify(config.label.detector))
        else:
            _write_real_dataset(folder, given)
            take_over(own, folder)
            reporter.note(
                "label",
                f"the run's own detector is that of {own.name}: nothing it learns from has changed",
            )
    if config.label.tile_side is not None:
        side, learned = config.label.tile_side, config.prepare.resolution
        if OWN_WEIGHTS in config.label.weights_names() and side != learned:
            reporter.note(
                "label",
                f"label.tile_side {side}: the run's own detector has learned from tiles of {learned} pixels and "
                f"sees others larger or smaller than that: set label.tile_side to {learned}",
            )
        overlap = plan_overlap(side, _large_animal(given) or side / 4)
        open_detector = look_in_tiles(open_detector, side, overlap, folder.path)
    looking = open_all(folder, config.label, given.class_names, open_detector)
    who = describe(folder.path / DETECTORS_NAME, config.label, looking) if given.images else []
    by_text = [one for one in who if one["queries"] is not None]
    for one in by_text:
        reporter.note("label", f"{one['weights']} {BY_TEXT_WARNING}")
    if given.images:
        for unused in not_looked_for(config.label, who):
            reporter.note("label", unused)
    val = [(tile.tile_id, workspace.root / tile.path) for tile in given.val]
    pictures = [(image.image_id, workspace.root / image.path) for image in given.images]
    val_path, path = folder.path / VAL_DETECTIONS_NAME, folder.path / "detections.jsonl"
    val_found = draw_all(val_path, val if pictures else [], "prepare", looking, reporter)
    found = draw_all(path, pictures, "generate", looking, reporter)

    failed = [one.image_id for one in val_found.values() if one.fault is not None]
    if failed:
        reporter.note("label", f"the detector failed on {len(failed)} real val tiles: {failed[0]}")
    known = known_classes(config.label, given.class_names, who)
    val_boxes = looking.joined(val_found, known)
    calibration = _calibrate(given, val_boxes, config, reporter)
    rules = _make_rules(given, calibration, config, by_text=bool(by_text))
    if not rules.proven:
        reporter.note("label", "no box is accepted without a look: " + _why_unproven(calibration))
    accepted = _measure(given, val_boxes, rules)
    labels = [
        _failed(label) if found[label.image_id].fault is not None else label
        for label in _decide(given, looking.joined(found, known), rules)
    ]
    _write_calibration(folder.path / "calibration.json", calibration, accepted, rules)
    write_records(folder.path / "labels.jsonl", labels)
    counts = _counts(labels, calibration, accepted, config)
    folder.close(
        outputs=[folder.path / "detections.jsonl", folder.path / "labels.jsonl"],
        counts=counts,
        runtime=config.label.settings("runtime"),
    )
    reporter.close("label", _closing_line(counts))


def _inputs(workspace: Workspace, config: Config) -> dict[str, str]:
    made = {name: workspace.stage(name).output() for name in ("prepare", "generate")}
    return made | hash_named(config.label)


def _read_inputs(workspace: Workspace) -> _Labelled:
    prepare, chosen = workspace.stage("prepare").path, workspace.stage("filter").path
    tiles = read_records(prepare / "tiles.jsonl", Tile)
    images = read_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage)
    faulty = {one.image_id for one in read_records(chosen / "scores.jsonl", Score) if one.fault}
    decisions = read_records(chosen / "decisions.jsonl", Decision)
    return _Labelled(
        class_names=tuple(read_json(prepare / "dataset.json")["classes"]),
        tiles=tiles,
        val=[tile for tile in tiles if tile.split == "val"],
        images=[image for image in images if image.image_id not in faulty],
        kept={one.image_id for one in decisions if one.kept},
    )


def _is_whole(folder: StageFolder, config: Config, given: _Labelled) -> bool:
    """Whether every promised file is there."""
    found = read_records(folder.path / "detections.jsonl", Detections)
    return (
        (folder.path / "labels.jsonl").exists()
        and (folder.path / "calibration.json").exists()
        and [one.image_id for one in found] == [image.image_id for image in given.images]
        and (not given.images or _has_detectors(folder, config))
    )


def _has_detectors(folder: StageFolder, config: Config) -> bool:
    told = config.label.weights is None or (folder.path / DETECTORS_NAME).exists()
    return told and not own_is_missing(folder, config.label)


def _large_animal(given: _Labelled) -> float:
    """Longer side of a large animal in the real train tiles, in pixels; 0 where there is none."""
    real = [box for tile in given.tiles if tile.split == "train" for box in tile.boxes]
    prior = size_prior(real)
    if prior is not None:
        return prior.longest
    sides = [max(x2 - x1, y2 - y1) for x1, y1, x2, y2 in (box.xyxy for box in real)]
    return max(sides, default=0.0)


# --- the detector ------------------------------------------------------------------------------


def _train(
    folder: StageFolder,
    given: _Labelled,
    config: Config,
    reporter: Reporter,
    open_trainer: Callable[[], DetectorTrainer],
) -> None:
    """Train the run's own detector on the real train tiles."""
    if not any(tile.boxes for tile in given.tiles if tile.split == "train"):
        raise SynthdetError(
            "no real train tile has a box, so there is no detector to train: annotate some photos, "
            "or name your own with label.weights"
        )
    data_yaml = _write_real_dataset(folder, given)
    steps = config.label.max_train_steps
    with reporter.bar("label", steps, unit="step", doing="training the detector") as advance:
        done = 0

        def on_step(step: int) -> None:
            nonlocal done
            advance(step - done)
            done = step

        open_trainer().train(
            data_yaml,
            folder.path / "weights",
            seed=config.label.seed,
            max_train_steps=steps,
            train_batch_size=config.label.train_batch_size,
            learning_rate=config.label.learning_rate,
            image_size=config.side_for(config.label),
            on_step=on_step,
        )


def _write_real_dataset(folder: StageFolder, given: _Labelled) -> Path:
    """The train and val tiles as a YOLO dataset of hard links to our own files."""
    root = folder.path / "real"
    shutil.rmtree(root, ignore_errors=True)
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (root / part / split).mkdir(parents=True)
    for tile in given.tiles:
        if tile.split == "test":
            continue
        source = folder.workspace.root / tile.path
        picture = root / "images" / tile.split / source.name
        try:
            os.link(source, picture)
        except FileNotFoundError as error:
            raise missing(source, "prepare") from error
        except OSError:  # a disk without hard links
            shutil.copyfile(source, picture)
        write_text(
            root / "labels" / tile.split / f"{source.stem}.txt",
            to_yolo_lines(tile.boxes, tile.width, tile.height),
        )
    places = {"train": "images/train", "val": "images/val"}
    write_text(root / "data.yaml", to_data_yaml(places, given.class_names))
    return root / "data.yaml"


# --- decisions ---------------------------------------------------------------------------------


def _calibrate(
    given: _Labelled,
    found: Mapping[str, Sequence[DetectedBox]],
    config: Config,
    reporter: Reporter,
) -> Calibration:
    chosen = config.label.confidence
    tiles = [tile for tile in given.val if tile.tile_id in found]
    calibration = calibrate_confidence(
        [tile.boxes for tile in tiles],
        [found[tile.tile_id] for tile in tiles],
        num_classes=len(given.class_names),
        given=None if chosen == "calibrated" else chosen,
        accept_precision=config.label.accept_precision,
    )
    if not given.images or chosen != "calibrated":
        return calibration
    if calibration.f1 is None:
        why = (
            f"the detector finds none of the {calibration.num_boxes} animals in the real val tiles"
            if calibration.num_boxes
            else "the real val tiles hold no animal"
        )
        reporter.note(
            "label",
            f"{why}: the confidence cannot be calibrated, {calibration.confidence} is used",
        )
    elif not calibration.reached:
        reporter.note(
            "label",
            f"no confidence has a precision of {config.label.accept_precision:.2f} on the real val tiles "
            f"(label.accept_precision): {calibration.accept_precision:.2f} at best, from "
            f"{calibration.accept_confidence:.2f} on, so look through the labels",
        )
    return calibration


def _make_rules(
    given: _Labelled, calibration: Calibration, config: Config, *, by_text: bool
) -> LabelRules:
    real = [box for tile in given.tiles if tile.split == "train" for box in tile.boxes]
    return LabelRules(
        confidence=calibration.accept_confidence,
        review_confidence=config.label.review_confidence,
        negatives=config.label.negatives,
        placed_confidence=config.label.review_confidence,
        placed_correlation=config.label.placed_correlation,
        agreement=config.label.agreement,
        sizes=size_prior(real) if config.label.sizes else None,
        blind=calibration.f1 is None and calibration.num_boxes > 0,
        found_confidence=calibration.confidence if _is_measured(calibration, config) else 0.0,
        proven=not by_text or (calibration.f1 is not None and calibration.reached),
    )


def _why_unproven(calibration: Calibration) -> str:
    if not calibration.num_boxes:
        return "the real val tiles hold no animal, so nobody knows how good boxes found by text are"
    if calibration.f1 is None:
        return f"none of the {calibration.num_boxes} animals in the real val tiles is found by text"
    return "on the real val tiles boxes found by text do not have the precision that is asked for"


def _is_measured(calibration: Calibration, config: Config) -> bool:
    """Whether the real val tiles, and nobody else, say from which confidence on an animal counts."""
    return config.label.confidence == "calibrated" and calibration.f1 is not None


def _measure(
    given: _Labelled, found: Mapping[str, Sequence[DetectedBox]], rules: LabelRules
) -> AcceptedQuality:
    """How good the accepted boxes of the real val tiles are, whose truth is known."""
    tiles = [tile for tile in given.val if tile.tile_id in found]
    labels = [
        decide_label(
            tile.tile_id,
            found[tile.tile_id],
            size_wh=(tile.width, tile.height),
            asked_for=None,  # nobody asked for real animals
            rules=rules,
        )
        for tile in tiles
    ]
    return measure_accepted([tile.boxes for tile in tiles], labels)


def _decide(
    given: _Labelled, found: Mapping[str, Sequence[DetectedBox]], rules: LabelRules
) -> list[Label]:
    return [
        decide_label(
            image.image_id,
            found[image.image_id],
            size_wh=(image.width, image.height),
            asked_for=image.asked_for,
            rules=rules,
            placed=image.placed,
            known_water=image.source_image is None,
        )
        for image in given.images
        if image.image_id in given.kept
    ]


def _failed(label: Label) -> Label:
    return label.model_copy(update={"status": "review", "reason": FAILED})


def _write_calibration(
    path: Path, calibration: Calibration, accepted: AcceptedQuality, rules: LabelRules
) -> None:
    fields = asdict(calibration)
    curve = [
        [round(value, 6) for value in (one.confidence, one.precision, one.recall, one.f1)]
        for one in calibration.curve
    ]
    fields |= {
        "accepted": asdict(accepted),
        "sizes": None if rules.sizes is None else asdict(rules.sizes),
        "curve_columns": ["confidence", "precision", "recall", "f1"],
        "curve": curve,
    }
    write_json(path, fields)


def _counts(
    labels: Sequence[Label], calibration: Calibration, accepted: AcceptedQuality, config: Config
) -> dict[str, Any]:
    statuses = Counter(label.status for label in labels)
    reasons = Counter(label.reason for label in labels if label.reason is not None)
    return {
        "accepted": statuses["accept"],
        "review": statuses["review"],
        "negative": statuses["negative"],
        "usable": statuses["accept"] + statuses["negative"],
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
        "confidence": calibration.confidence,
        "confidence_from": "calibrated" if config.label.confidence == "calibrated" else "given",
        "accept_confidence": calibration.accept_confidence,
        "f1": calibration.f1,
        "precision": calibration.precision,
        "recall": calibration.recall,
        "accepted_precision": accepted.precision,
        "accepted_recall": accepted.recall,
        "accepted_iou": accepted.mean_iou,
        "val_tiles": calibration.num_pictures,
        "val_boxes": calibration.num_boxes,
    }


def _closing_line(counts: Mapping[str, Any]) -> str:
    line = (
        f"{counts['accepted']} accepted · {counts['review']} to review · "
        f"{counts['negative']} confirmed background"
    )
    tiles = f"on {counts['val_tiles']} real val tile{'s' if counts['val_tiles'] != 1 else ''}"
    source, measured = counts["confidence_from"], counts["f1"] is not None
    told = f"accepted from confidence {counts['accept_confidence']:.2f}"
    if source == "given" or not measured:
        told += ", given" if source == "given" else ", not calibrated"
    if not measured:
        return f"{line}  ({told})"
    if counts["accepted_precision"] is not None and counts["accepted_iou"] is not None:
        told += (
            f": precision {counts['accepted_precision']:.2f}, "
            f"recall {counts['accepted_recall']:.2f}, mean IoU {counts['accepted_iou']:.2f} {tiles}"
        )
    if source == "calibrated":
        told += f"; best F1 {counts['f1']:.2f} at {counts['confidence']:.2f}"
    return f"{line}  ({told})"
