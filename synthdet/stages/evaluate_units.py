"""The trainings of `evaluate`: which there are, where their files lie, and making what is missing.

A unit is an arm, or a point of a sweep, with a seed: trained, and tried on the real val and test tiles.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from synthdet.config import Arm, Config
from synthdet.core.formats.yolo import to_data_yaml
from synthdet.core.records import Detections, ManifestEntry, Source, Split, Tile
from synthdet.errors import SynthdetError
from synthdet.models.detector import has_weights
from synthdet.models.protocols import Detector, DetectorTrainer
from synthdet.progress import Reporter
from synthdet.workspace import (
    StageFolder,
    Workspace,
    read_json,
    read_records,
    write_records,
    write_text,
)

MIN_CONFIDENCE = 0.001
"""Boxes count down to this confidence, as the measure's curve needs them."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One training.

    Attributes:
        name: The arm, or the point of a sweep: what its folder and files are called.
        seed: Of the training; arms are paired by it.
        train: The pictures it learns from.
        own_list: Whether every seed of this name learns from pictures of its own.
    """

    name: str
    seed: int
    train: tuple[ManifestEntry, ...] = field(repr=False)
    own_list: bool = False

    @property
    def key(self) -> tuple[str, int]:
        """What its results are found by."""
        return self.name, self.seed


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tile comes from."""

    photo: str
    group: str


@dataclass(frozen=True, slots=True)
class Study:
    """What is compared, on what.

    Attributes:
        class_names: By class id.
        train: The pictures of every arm.
        val: Real val pictures, on which weights and threshold are chosen.
        test: Real test pictures.
        places: Where each real picture comes from.
    """

    class_names: tuple[str, ...]
    train: dict[Arm, list[ManifestEntry]]
    val: list[ManifestEntry]
    test: list[ManifestEntry]
    places: Mapping[str, Place]

    @property
    def test_groups(self) -> list[str]:
        """The group of each test picture."""
        return [self.places[one.image_id].group for one in self.test]

    @property
    def test_photos(self) -> list[str]:
        """The photo that each test picture was cut from."""
        return [self.places[one.image_id].photo for one in self.test]

    def units(self, config: Config) -> list[Unit]:
        """Every arm with every seed, pairs side by side; arms that would be equal once."""
        return [
            Unit(arm, seed, tuple(self.train[arm]))
            for seed in config.evaluate.seeds
            for arm in self.trained(config)
        ]

    def trained(self, config: Config) -> list[Arm]:
        """The arms that are trained: none where nothing can be measured."""
        if not self.can_be_measured:
            return []
        arms = list(dict.fromkeys(config.evaluate.arms))
        return [arm for arm in arms if arm == "real" or self._has_more(arm)]

    def _has_more(self, arm: Arm) -> bool:
        return len(self.train[arm]) > (0 if arm == "synthetic" else len(self.train["real"]))

    def tried(self) -> tuple[tuple[Split, list[ManifestEntry]], ...]:
        """The real pictures that every detector is tried on, by split."""
        return ("val", self.val), ("test", self.test)

    @property
    def can_be_measured(self) -> bool:
        """Whether there is an animal to find."""
        return any(entry.boxes for entry in self.test)

    @property
    def differs(self) -> bool:
        """Whether there is anything synthetic to train on."""
        return len(self.train["synthetic"]) > 0


def read_study(workspace: Workspace, config: Config) -> Study:
    """Read what export and prepare left.

    Raises:
        SynthdetError: Augmented copies are asked for and were not made.
    """
    export, prepare = workspace.stage("export").path, workspace.stage("prepare").path
    entries = read_records(export / "manifest.jsonl", ManifestEntry)
    tiles = read_records(prepare / "tiles.jsonl", Tile)

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
            "synthetic": synthetic,
        },
        val=some("real", "val"),
        test=test,
        places={
            one.image_id: Place(one.image_id, one.image_id)
            for one in entries
            if one.source == "real"
        }
        | {tile.tile_id: Place(tile.image_id, tile.group) for tile in tiles},
    )


# --- where a unit's files lie ------------------------------------------------------------------


def weights_dir(folder: StageFolder, name: str, seed: int) -> Path:
    """Its detector."""
    return folder.path / "weights" / name / f"seed-{seed}"


def predictions_path(folder: StageFolder, name: str, seed: int, split: Split) -> Path:
    """What its detector draws in the real pictures of a split."""
    ending = "" if split == "test" else f"-{split}"
    return folder.path / "predictions" / f"{name}-{seed}{ending}.jsonl"


def is_whole(folder: StageFolder, study: Study, unit: Unit) -> bool:
    """Whether every promised file of a unit is there."""
    if not has_weights(weights_dir(folder, *unit.key)):
        return False
    return all(
        (path := predictions_path(folder, *unit.key, split)).exists()
        and [one.image_id for one in read_records(path, Detections)]
        == [entry.image_id for entry in entries]
        for split, entries in study.tried()
    )


# --- making ------------------------------------------------------------------------------------


def make_units(
    folder: StageFolder,
    study: Study,
    config: Config,
    units: Sequence[Unit],
    reporter: Reporter,
    open_trainer: Callable[[], DetectorTrainer],
    open_detector: Callable[[Path], Detector],
    count_trainings: Callable[[], int],
) -> None:
    """Train and try those units that are not whole yet; none opens a model if all are.

    Raises:
        SynthdetError: No real picture to train on, or the export lost a file.
    """
    todo = [unit for unit in units if not is_whole(folder, study, unit)]
    if not todo:
        return
    if not study.train["real"]:
        raise SynthdetError("there is no real picture in train, so nothing to compare with")
    _check_files(folder.workspace, study, todo)
    steps, made = config.evaluate.max_train_steps, len(units) - len(todo)
    lists = {unit.key: _write_lists(folder, study, unit) for unit in todo}
    trainer = open_trainer()
    at_once = min(count_trainings(), len(todo))
    doing = f"training {len(units)} detectors" + (f", {at_once} at a time" if at_once > 1 else "")
    with reporter.bar(
        "evaluate", steps * len(units), unit="step", done=steps * made, doing=doing
    ) as advance:

        def make(unit: Unit) -> None:
            done = 0

            def on_step(step: int) -> None:
                nonlocal done
                advance(step - done)
                done = step

            weights = weights_dir(folder, *unit.key)
            if not has_weights(weights):
                _train(trainer, lists[unit.key], weights, unit.seed, config, on_step)
            on_step(steps)
            detector = open_detector(weights)
            for split, entries in study.tried():
                path = predictions_path(folder, *unit.key, split)
                write_records(path, _predict(folder.workspace, detector, entries))

        if at_once == 1:
            for unit in todo:
                make(unit)
        else:
            _make_side_by_side(make, todo, at_once)


def _make_side_by_side(make: Callable[[Unit], None], todo: Sequence[Unit], at_once: int) -> None:
    """Each unit in one of so many threads.

    After the first error none is begun; those under way are left to the caller to end.
    """
    failed = threading.Event()

    def make_unless_failed(unit: Unit) -> None:
        if failed.is_set():
            return
        try:
            make(unit)
        except BaseException:
            failed.set()
            raise

    pool = ThreadPoolExecutor(at_once, thread_name_prefix="evaluate")
    try:
        for done in as_completed([pool.submit(make_unless_failed, unit) for unit in todo]):
            done.result()
    except BaseException:
        failed.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _train(
    trainer: DetectorTrainer,
    data_yaml: Path,
    weights: Path,
    seed: int,
    config: Config,
    on_step: Callable[[int], None],
) -> None:
    settings = config.evaluate
    trainer.train(
        data_yaml,
        weights,
        seed=seed,
        max_train_steps=settings.max_train_steps,
        train_batch_size=settings.train_batch_size,
        learning_rate=settings.learning_rate,
        image_size=config.side_for(settings),
        on_step=on_step,
    )


def _check_files(workspace: Workspace, study: Study, units: Sequence[Unit]) -> None:
    train = {one.yolo_path: one for unit in units for one in unit.train}
    for entry in (*train.values(), *study.val, *study.test):
        path = workspace.root / entry.yolo_path
        if not path.exists():
            raise SynthdetError(
                f"{path} is missing: make it again with `synthdet export {workspace.root} --redo`"
            )


def _write_lists(folder: StageFolder, study: Study, unit: Unit) -> Path:
    """The unit's dataset: lists of exported pictures, relative, so that the run can be moved."""
    place = folder.path / "arms" / unit.name
    if unit.own_list:
        place = place / f"seed-{unit.seed}"
    for name, entries in (("train", unit.train), ("val", study.val)):
        lines = [
            "./" + os.path.relpath(folder.workspace.root / entry.yolo_path, place)
            for entry in entries
        ]
        write_text(place / f"{name}.txt", "".join(f"{line}\n" for line in lines))
    lists = {"train": "train.txt", "val": "val.txt"}
    write_text(place / "data.yaml", to_data_yaml(lists, study.class_names))
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
