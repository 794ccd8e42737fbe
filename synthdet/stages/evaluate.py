"""Train the same detector with and without the synthetic pictures, and say what that changed.

Reads:
    ``6-export/manifest.jsonl`` with ``yolo/`` (and ``augmented/``, for that arm), and of ``1-prepare/`` the class names and the groups of
    the test tiles.

Writes:
    ``7-evaluate/arms/<arm>/``, a ``data.yaml`` with lists of pictures; ``weights/<arm>/seed-<n>/``;
    ``predictions/<arm>-<n>.jsonl`` on the real test tiles and ``<arm>-<n>-val.jsonl`` on the real val
    tiles; ``results.csv``, a row an arm, seed and measure; ``verdict.json``; ``report.html``.

Resume:
    An arm with a seed is one unit: trained, and tried on val and test. A unit that was interrupted
    starts again and gives the same weights; finished ones are not touched.

All arms have the same start weights, steps, picture size and seeds, in pairs. Whatever trains is
real, an augmented copy of it, or synthetic; whatever is measured is real.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from synthdet.config import Arm, Config
from synthdet.core.comparison import (
    Difference,
    Matches,
    Verdict,
    average_precision,
    best_operating_point,
    judge,
    match_detections,
    operating_point,
    paired_difference,
)
from synthdet.core.labelling import FALLBACK_CONFIDENCE
from synthdet.core.records import Detections, ManifestEntry, Source, Split, Tile
from synthdet.errors import SynthdetError
from synthdet.models.detector import has_weights
from synthdet.models.protocols import Detector, DetectorTrainer
from synthdet.progress import Reporter
from synthdet.stages.evaluate_report import Report, write_report
from synthdet.workspace import (
    StageFolder,
    Workspace,
    read_json,
    read_records,
    write_json,
    write_records,
    write_text,
)

MIN_CONFIDENCE = 0.001
"""Boxes count down to this confidence, as the measure's curve needs them."""

MEASURES = ("map50", "map50_95", "precision", "recall", "f1", "confidence")
COMPARED = ("map50", "map50_95")
DIFFERENCES: dict[str, tuple[Arm, Arm]] = {
    "differences": ("real_plus_synthetic", "real"),
    "augmented_differences": ("real_plus_augmented", "real"),
    "synthetic_over_augmented": ("real_plus_synthetic", "real_plus_augmented"),
}
"""Name in ``verdict.json`` -> the arm, and the one that is taken off it. The first is the verdict."""
PROMISED = ("results.csv", "verdict.json", "report.html")


@dataclass(frozen=True, slots=True)
class Study:
    """What is compared, on what."""

    class_names: tuple[str, ...]
    train: dict[Arm, list[ManifestEntry]]
    val: list[ManifestEntry]
    test: list[ManifestEntry]
    test_groups: list[str]

    def units(self, config: Config) -> list[tuple[Arm, int]]:
        """Every arm with every seed, pairs side by side; arms that would be equal once."""
        return [(arm, seed) for seed in config.evaluate.seeds for arm in self.trained(config)]

    def trained(self, config: Config) -> list[Arm]:
        """The arms that are trained: none where nothing can be measured."""
        if not any(entry.boxes for entry in self.test):
            return []
        num_real = len(self.train["real"])
        arms = list(dict.fromkeys(config.evaluate.arms))
        return [arm for arm in arms if arm == "real" or len(self.train[arm]) > num_real]

    def tried(self) -> tuple[tuple[Split, list[ManifestEntry]], ...]:
        """The real pictures that every detector is tried on, by split."""
        return ("val", self.val), ("test", self.test)

    @property
    def differs(self) -> bool:
        """Whether there is anything synthetic to train on."""
        return len(self.train["real_plus_synthetic"]) > len(self.train["real"])


def run(
    workspace: Workspace,
    config: Config,
    reporter: Reporter,
    *,
    open_trainer: Callable[[], DetectorTrainer],
    open_detector: Callable[[Path], Detector],
    redo: bool = False,
) -> None:
    """Compare the arms and write the verdict.

    Raises:
        SynthdetError: The export is not done or lost a file, no real picture to train on, or a used
            setting was changed.
    """
    folder = workspace.stage("evaluate")
    done = folder.claim(
        settings=config.evaluate.settings("making"),
        inputs={"export": workspace.stage("export").output()},
        redo=redo,
        note=lambda text: reporter.note("evaluate", text),
    )
    study = _read_study(workspace, config)
    units = study.units(config)
    todo = [unit for unit in units if not _is_whole(folder, study, *unit)]
    if done and not todo and all((folder.path / name).exists() for name in PROMISED):
        reporter.close("evaluate", _closing_line(read_json(folder.path / "verdict.json")))
        return
    for leftover in list(folder.path.rglob(".tmp-*")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)

    if todo:
        if not study.train["real"]:
            raise SynthdetError("there is no real picture in train, so nothing to compare with")
        _make_units(folder, study, config, todo, reporter, open_trainer, open_detector)
    results = {unit: _measure(folder, study, *unit) for unit in units}
    verdict = _conclude(study, config, results)
    _write_results(folder.path / "results.csv", results)
    write_json(folder.path / "verdict.json", verdict)
    write_report(folder.path / "report.html", _make_report(folder, study, config, results, verdict))
    folder.close(
        outputs=[folder.path / "results.csv", folder.path / "verdict.json"],
        counts={"units": len(units), "verdict": verdict["verdict"]},
        runtime=config.evaluate.settings("runtime"),
    )
    reporter.close("evaluate", _closing_line(verdict))


def _read_study(workspace: Workspace, config: Config) -> Study:
    export, prepare = workspace.stage("export").path, workspace.stage("prepare").path
    entries = read_records(export / "manifest.jsonl", ManifestEntry)
    groups = {
        tile.tile_id: tile.group for tile in read_records(prepare / "tiles.jsonl", Tile)
    }  # fmt: skip

    def some(source: Source, split: Split) -> list[ManifestEntry]:
        return [one for one in entries if one.split == split and one.source == source]

    test, real, synthetic = some("real", "test"), some("real", "train"), some("synthetic", "train")
    augmented = some("augmented", "train")
    augmented += read_records(export / "augmented" / "manifest.jsonl", ManifestEntry)
    if "real_plus_augmented" in config.evaluate.arms and synthetic and not augmented:
        raise SynthdetError(
            "evaluate.arms names real_plus_augmented, and the export was made without augmented copies: "
            f"run `synthdet export {workspace.root}` again, which makes them"
        )
    return Study(
        class_names=tuple(read_json(prepare / "dataset.json")["classes"]),
        train={
            "real": real,
            "real_plus_augmented": real + augmented,
            "real_plus_synthetic": real + synthetic,
        },
        val=some("real", "val"),
        test=test,
        test_groups=[groups.get(one.image_id, one.image_id) for one in test],
    )


# --- units: an arm with a seed -----------------------------------------------------------------


def _weights_dir(folder: StageFolder, arm: Arm, seed: int) -> Path:
    return folder.path / "weights" / arm / f"seed-{seed}"


def _predictions_path(folder: StageFolder, arm: Arm, seed: int, split: Split) -> Path:
    ending = "" if split == "test" else f"-{split}"
    return folder.path / "predictions" / f"{arm}-{seed}{ending}.jsonl"


def _is_whole(folder: StageFolder, study: Study, arm: Arm, seed: int) -> bool:
    """Whether every promised file of a unit is there."""
    if not has_weights(_weights_dir(folder, arm, seed)):
        return False
    return all(
        (path := _predictions_path(folder, arm, seed, split)).exists()
        and [one.image_id for one in read_records(path, Detections)]
        == [entry.image_id for entry in entries]
        for split, entries in study.tried()
    )


def _make_units(
    folder: StageFolder,
    study: Study,
    config: Config,
    todo: Sequence[tuple[Arm, int]],
    reporter: Reporter,
    open_trainer: Callable[[], DetectorTrainer],
    open_detector: Callable[[Path], Detector],
) -> None:
    """Train and try what is not whole yet."""
    _check_files(folder.workspace, study, config)
    steps, made = config.evaluate.max_train_steps, len(study.units(config)) - len(todo)
    total = steps * (made + len(todo))
    trainer = open_trainer()
    doing = f"training {made + len(todo)} detectors"
    with reporter.bar("evaluate", total, unit="step", done=steps * made, doing=doing) as advance:
        for arm, seed in todo:
            done = 0

            def on_step(step: int) -> None:
                nonlocal done
                advance(step - done)
                done = step

            weights_dir = _weights_dir(folder, arm, seed)
            if not has_weights(weights_dir):
                trainer.train(
                    _write_arm(folder, study, arm),
                    weights_dir,
                    seed=seed,
                    max_train_steps=steps,
                    train_batch_size=config.evaluate.train_batch_size,
                    learning_rate=config.evaluate.learning_rate,
                    image_size=config.evaluate.image_size or config.prepare.resolution,
                    on_step=on_step,
                )
            on_step(steps)
            detector = open_detector(weights_dir)
            for split, entries in study.tried():
                path = _predictions_path(folder, arm, seed, split)
                write_records(path, _predict(folder.workspace, detector, entries))


def _check_files(workspace: Workspace, study: Study, config: Config) -> None:
    train = {one.yolo_path: one for arm in study.trained(config) for one in study.train[arm]}
    for entry in (*train.values(), *study.val, *study.test):
        path = workspace.root / entry.yolo_path
        if not path.exists():
            raise SynthdetError(
                f"{path} is missing: make it again with `synthdet export {workspace.root} --redo`"
            )


def _write_arm(folder: StageFolder, study: Study, arm: Arm) -> Path:
    """The arm's dataset: lists of exported pictures, relative, so that the run can be moved."""
    place = folder.path / "arms" / arm
    for name, entries in (("train", study.train[arm]), ("val", study.val)):
        lines = [
            "./" + os.path.relpath(folder.workspace.root / entry.yolo_path, place)
            for entry in entries
        ]
        write_text(place / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    fields = {
        "train": "train.txt",
        "val": "val.txt",
        "names": dict(enumerate(study.class_names)),
    }
    write_text(place / "data.yaml", yaml.safe_dump(fields, sort_keys=False, allow_unicode=True))
    return place / "data.yaml"


def _predict(
    workspace: Workspace, detector: Detector, entries: Sequence[ManifestEntry]
) -> list[Detections]:
    if not entries:
        return []
    paths = [workspace.root / entry.yolo_path for entry in entries]
    found = detector.detect(paths, min_confidence=MIN_CONFIDENCE)
    return [
        Detections(image_id=entry.image_id, boxes=boxes)
        for entry, boxes in zip(entries, found, strict=True)
    ]


# --- measures ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """How one unit did on the real test tiles: `MEASURES`, and what they were worked out from."""

    measures: dict[str, float]
    matches: Matches


def _measure(folder: StageFolder, study: Study, arm: Arm, seed: int) -> Result:
    matched = {}
    for split, entries in study.tried():
        found = read_records(_predictions_path(folder, arm, seed, split), Detections)
        matched[split] = match_detections(
            [entry.boxes for entry in entries],
            [one.boxes for one in found],
            num_classes=len(study.class_names),
        )
    best = best_operating_point(matched["val"])
    point = operating_point(matched["test"], best.confidence if best else FALLBACK_CONFIDENCE)
    precision = average_precision(matched["test"])
    values = (precision[0], precision.mean(), point.precision, point.recall, point.f1, point.confidence)  # fmt: skip
    return Result(
        {name: round(float(value), 6) for name, value in zip(MEASURES, values, strict=True)},
        matched["test"],
    )


def _write_results(path: Path, results: Mapping[tuple[Arm, int], Result]) -> None:
    lines = ["arm,seed,measure,value"]
    for (arm, seed), result in results.items():
        lines += [f"{arm},{seed},{name},{value:.6f}" for name, value in result.measures.items()]
    write_text(path, "\n".join(lines) + "\n")


def _compare(
    study: Study,
    config: Config,
    results: Mapping[tuple[Arm, int], Result],
    measure: str,
    arm: Arm,
    base: Arm,
) -> Difference:
    """One arm minus another, seed by seed, on all test tiles and with each group left out."""
    groups = sorted(set(study.test_groups))
    group_of = np.array([groups.index(group) for group in study.test_groups])
    subsets = [np.ones(len(group_of), dtype=np.int64)]
    subsets += [(group_of != index).astype(np.int64) for index in range(len(groups))]

    def values(arm: Arm, seed: int) -> list[float]:
        precision = [average_precision(results[arm, seed].matches, subset) for subset in subsets]
        return [float(one[0] if measure == "map50" else one.mean()) for one in precision]

    difference = np.array([
        np.subtract(values(arm, seed), values(base, seed))
        for seed in config.evaluate.seeds
    ])  # fmt: skip
    return paired_difference(difference[:, 0], difference[:, 1:])


# --- the verdict -------------------------------------------------------------------------------


def _conclude(
    study: Study, config: Config, results: Mapping[tuple[Arm, int], Result]
) -> dict[str, Any]:
    arms = study.trained(config)
    means = {
        arm: {
            name: round(
                float(np.mean([results[arm, seed].measures[name] for seed in config.evaluate.seeds])), 6
            )
            for name in MEASURES
        }
        for arm in arms
    }  # fmt: skip
    compared = {
        key: {name: _compare(study, config, results, name, *pair) for name in COMPARED}
        if {*pair} <= {*arms}
        else {}
        for key, pair in DIFFERENCES.items()
    }
    kind, sentence = _sentence(study, means, compared)
    return {
        "verdict": kind,
        "sentence": sentence,
        "measures": means,
        **{
            key: {name: _to_fields(one) for name, one in differences.items()}
            for key, differences in compared.items()
        },
        "seeds": list(config.evaluate.seeds),
        "max_train_steps": config.evaluate.max_train_steps,
        "train_pictures": {
            arm: len(entries)
            for arm, entries in study.train.items()
            if arm in config.evaluate.arms or arm != "real_plus_augmented"
        },
        "val_pictures": len(study.val),
        "test_pictures": len(study.test),
        "test_boxes": sum(len(entry.boxes) for entry in study.test),
        "test_groups": len(set(study.test_groups)),
    }


def _to_fields(one: Difference) -> dict[str, float | None]:
    fields = {"mean": one.mean, "low": one.low, "high": one.high}
    return {name: None if value is None else round(value, 6) for name, value in fields.items()}


def _sentence(
    study: Study,
    means: Mapping[Arm, Mapping[str, float]],
    compared: Mapping[str, Mapping[str, Difference]],
) -> tuple[Verdict, str]:
    """The verdict in one word and in one sentence."""
    if not study.test:
        return "cannot be measured", "Cannot be measured: there is no real test picture."
    if not any(entry.boxes for entry in study.test):
        return "cannot be measured", (
            f"Cannot be measured: there is no animal in the {_count(len(study.test), 'real test picture')}."
        )
    where = f"on {_count(len(study.test), 'real test picture')}"
    if not study.differs:
        told = f": the detector has mAP50 {means['real']['map50']:.2f} {where}" if means else ""
        return "nothing was added", (
            f"Nothing was added: no synthetic picture is in the training set{told}."
        )
    if not compared["differences"]:
        told = " and ".join(
            f"{arm}, with mAP50 {one['map50']:.2f} {where}" for arm, one in means.items()
        )
        return "cannot be measured", f"Cannot be compared: evaluate.arms names only {told}."
    difference = compared["differences"]["map50"]
    kind = judge(difference)
    before, after = means["real"]["map50"], means["real_plus_synthetic"]["map50"]
    number = len(study.train["real_plus_synthetic"]) - len(study.train["real"])
    heading = {"gain": "Gain", "loss": "Loss"}.get(kind, "Not shown with this test set")
    change = (
        f"with {_count(number, 'synthetic picture')} mAP50 {where} went from {before:.2f} to {after:.2f} "
        f"({_signed(difference.mean)}"
    )
    seeds = _count(difference.num_seeds, "seed")
    groups = _count(difference.num_groups, "group")
    beside = _augmented_sentence(study, compared["augmented_differences"].get("map50"))
    if difference.low is None or difference.high is None:
        return kind, (
            f"{heading}: {change}), but {seeds} and {groups} of test photos give no interval, so neither gain nor "
            f"loss can be claimed.{beside}"
        )
    ending = "" if kind != "not shown" else ", so neither gain nor loss can be claimed"
    return kind, (
        f"{heading}: {change}, {_interval(difference)}; {seeds}, {groups} of test photos){ending}.{beside}"
    )


def _augmented_sentence(study: Study, difference: Difference | None) -> str:
    """What ordinary augmentation did instead, where that arm was trained."""
    if difference is None:
        return ""
    number = len(study.train["real_plus_augmented"]) - len(study.train["real"])
    interval = _interval(difference)
    return (
        f" With {number} augmented copies of the real pictures instead it changed by {_signed(difference.mean)}"
        f"{f' ({interval})' if interval else ''}."
    )


def _interval(difference: Difference) -> str:
    if difference.low is None or difference.high is None:
        return ""
    return f"95 % interval {_signed(difference.low)} to {_signed(difference.high)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _closing_line(verdict: Mapping[str, Any]) -> str:
    return str(verdict["sentence"])


def _make_report(
    folder: StageFolder,
    study: Study,
    config: Config,
    results: Mapping[tuple[Arm, int], Result],
    verdict: Mapping[str, Any],
) -> Report:
    root = folder.workspace.root
    seed = config.evaluate.seeds[0]
    found = {
        arm: read_records(_predictions_path(folder, arm, seed, "test"), Detections)
        for arm in study.trained(config)
    }
    real = study.train["real"]
    return Report(
        verdict=verdict,
        values={unit: result.measures for unit, result in results.items()},
        real=[(root / one.yolo_path, one.boxes) for one in real],
        synthetic=[
            (root / one.yolo_path, one.boxes)
            for one in study.train["real_plus_synthetic"][len(real) :]
        ],
        augmented=[
            (root / one.yolo_path, one.boxes)
            for one in study.train["real_plus_augmented"][len(real) :]
            if "real_plus_augmented" in found
        ],
        test=[(root / one.yolo_path, one.boxes) for one in study.test],
        found={
            arm: [
                [
                    box
                    for box in one.boxes
                    if box.confidence >= results[arm, seed].measures["confidence"]
                ]
                for one in predictions
            ]
            for arm, predictions in found.items()
        },
        settings=config.evaluate.settings("making"),
    )
