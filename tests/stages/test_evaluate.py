from __future__ import annotations

import base64
import csv
import io
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from synthdet.config import Config, set_values
from synthdet.core.records import Box, DetectedBox, ManifestEntry
from synthdet.errors import SynthdetError
from synthdet.stages import evaluate
from synthdet.stages.evaluate_measures import MEASURES
from synthdet.stages.evaluate_pictures import worst_failures
from synthdet.stages.evaluate_verdict import DIFFERENCES
from synthdet.workspace import Workspace, read_json, write_records
from tests.fakes import FakeDetector, FakeDetectorTrainer, PlannedError
from tests.handmade import (
    detected,
    file_bytes,
    finish,
    make_images,
    make_run,
    make_tiles,
    quiet,
)

Prepared = tuple[Workspace, Config, list[ManifestEntry]]
OpenDetector = Callable[[Path], FakeDetector]


def make_export(
    workspace: Workspace, *, synthetic: int = 4, augmented: int = 0, **tiles: Any
) -> list[ManifestEntry]:
    """Finish export: every tile, so many synthetic pictures, and copies for the augmented arm."""
    sources = [
        (one.tile_id, "real", one.split, one.path, one.boxes)
        for one in make_tiles(workspace, **tiles)
    ]
    images, truth = make_images(workspace, [(0,)] * synthetic)
    sources += [
        (image.image_id, "synthetic", "train", image.path, boxes)
        for image, boxes in zip(images, truth, strict=True)
    ]
    folder = workspace.stage("export")
    entries = []
    for image_id, source, split, path, boxes in sources:
        yolo_path = f"6-export/yolo/images/{split}/{image_id}.png"
        (workspace.root / yolo_path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(workspace.root / path, workspace.root / yolo_path)
        entries.append(
            ManifestEntry(
                image_id=image_id, source=source, split=split, yolo_path=yolo_path,
                coco_path="", sha256="", width=72, height=48, boxes=boxes, provenance={},
            )
        )  # fmt: skip
    write_records(folder.path / "manifest.jsonl", entries)
    finish(folder, ["manifest.jsonl"])
    copies = []
    for entry in entries[:augmented]:
        name = f"{entry.image_id}-aug1"
        yolo_path = f"6-export/augmented/images/{name}.png"
        (workspace.root / yolo_path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(workspace.root / entry.yolo_path, workspace.root / yolo_path)
        changed = {"image_id": name, "source": "augmented", "yolo_path": yolo_path}
        copies.append(entry.model_copy(update=changed))
    if copies:
        write_records(folder.path / "augmented" / "manifest.jsonl", copies)
    return entries


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    workspace, config = make_run(tmp_path / "run", evaluate={"max_train_steps": 5, "seeds": [0, 1]})
    return workspace, config, make_export(workspace, test=(1, 2, 1, 1, 0, 1), groups=3)


def detectors(entries: list[ManifestEntry], **found: Callable[[int], float]) -> OpenDetector:
    """Detectors that find this share of the animals, by arm; the number of the seed is given."""

    def open_detector(weights: Path) -> FakeDetector:
        arm, seed = weights.parent.name, int(weights.name.removeprefix("seed-"))
        rng = np.random.default_rng([seed, 7])
        boxes: dict[str, tuple[DetectedBox, ...]] = {}
        for entry in entries:
            seen = [box for box in entry.boxes if rng.uniform() < found[arm](seed)]
            ghost = Box(xyxy=(1, 1, 9, 6), class_id=0)
            boxes[entry.image_id] = detected(seen, 0.9) + detected([ghost], 0.05)
        return FakeDetector(boxes)

    return open_detector


def run(
    prepared: Prepared,
    *settings: str,
    trainer: Any = None,
    detector: Any = None,
    redo: bool = False,
    at_once: int = 1,
) -> str:
    workspace, config, entries = prepared
    reporter, said = quiet()
    evaluate.run(
        workspace,
        set_values(config, list(settings)),
        reporter,
        open_trainer=lambda: trainer or FakeDetectorTrainer(),
        open_detector=detector
        or detectors(entries, real=lambda _: 0.5, real_plus_synthetic=lambda _: 1.0),
        count_trainings=lambda: at_once,
        redo=redo,
    )
    return said.getvalue()


def no_model(*_arguments: Any) -> Any:
    raise AssertionError("a model was opened")


def verdict_of(prepared: Prepared) -> dict[str, Any]:
    return read_json(prepared[0].stage("evaluate").path / "verdict.json")


def test_whole(prepared: Prepared) -> None:
    workspace = prepared[0]
    trainer = FakeDetectorTrainer()
    said = run(prepared, trainer=trainer)
    folder = workspace.stage("evaluate").path
    assert [(one["weights"], one["data"].parent.name) for one in trainer.trained] == [
        ("seed-0", "real"), ("seed-0", "real_plus_synthetic"),
        ("seed-1", "real"), ("seed-1", "real_plus_synthetic"),
    ]  # fmt: skip
    assert {one["seed"] for one in trainer.trained} == {0, 1}

    rows = list(csv.DictReader(io.StringIO((folder / "results.csv").read_text())))
    per_unit = {row["measure"] for row in rows}
    assert set(MEASURES) < per_unit
    assert len(rows) == 2 * 2 * len(per_unit), "every measure once for each arm and seed"
    value = {(row["arm"], row["seed"], row["measure"]): float(row["value"]) for row in rows}
    assert value["real_plus_synthetic", "1", "map50"] == 1
    assert value["real", "1", "map50"] < 1
    assert value["real_plus_synthetic", "0", "recall"] == 1
    assert value["real_plus_synthetic", "0", "precision"] == 1  # the ghost is below val's threshold
    assert value["real_plus_synthetic", "0", "confidence"] == 0.9

    verdict = verdict_of(prepared)
    gained = 1 - (value["real", "0", "map50"] + value["real", "1", "map50"]) / 2
    assert verdict["differences"]["map50"]["mean"] == pytest.approx(gained, abs=1e-5)
    assert verdict["train_pictures"] == {"real": 12, "real_plus_synthetic": 16}
    assert (verdict["test_pictures"], verdict["test_boxes"], verdict["test_groups"]) == (6, 6, 3)
    assert verdict["verdict"] in said.lower()
    assert "4 synthetic pictures" in verdict["sentence"]


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "stage.json"  # seconds
    }


class MeetingTrainer(FakeDetectorTrainer):
    """Goes on only when another training is under way too."""

    def __init__(self) -> None:
        super().__init__()
        self.meeting = threading.Barrier(2, timeout=20)

    def train(self, *arguments: Any, **settings: Any) -> None:
        self.meeting.wait()
        super().train(*arguments, **settings)


def test_detectors_are_trained_side_by_side_with_the_same_result(prepared: Prepared) -> None:
    run(prepared)
    folder = prepared[0].stage("evaluate").path
    alone = bytes_in(folder)
    run(prepared, trainer=MeetingTrainer(), redo=True, at_once=2)
    assert bytes_in(folder) == alone


def test_an_error_of_one_ends_those_beside_it_and_what_was_whole_stays(prepared: Prepared) -> None:
    with pytest.raises(PlannedError):
        run(prepared, trainer=FakeDetectorTrainer(fail_at=3), at_once=3)
    for thread in threading.enumerate():
        if thread.name.startswith("evaluate"):
            thread.join()
    weights = prepared[0].stage("evaluate").path / "weights"
    whole = len(list(weights.rglob("names.json")))
    again = FakeDetectorTrainer()
    run(prepared, trainer=again, at_once=3)
    assert again.calls == 4 - whole


def test_arms_hold_what_they_are_called(prepared: Prepared) -> None:
    run(prepared)
    workspace, _, entries = prepared
    arms = workspace.stage("evaluate").path / "arms"

    def pictures(arm: str, split: str) -> list[Path]:
        fields = yaml.safe_load((arms / arm / "data.yaml").read_text())
        assert "path" not in fields
        lines = (arms / arm / fields[split]).read_text().splitlines()
        assert all(line.startswith("./") for line in lines)  # what ultralytics takes as relative
        return [(arms / arm / line).resolve() for line in lines]

    def exported(*sources: str, split: str) -> list[Path]:
        return [
            (workspace.root / one.yolo_path).resolve()
            for one in entries
            if one.split == split and one.source in sources
        ]

    assert pictures("real", "train") == exported("real", split="train")
    assert pictures("real_plus_synthetic", "train") == exported("real", "synthetic", split="train")
    for arm in ("real", "real_plus_synthetic"):
        assert pictures(arm, "val") == exported("real", split="val")


ALL_ARMS = ("real", "real_plus_augmented", "real_plus_synthetic")


def test_the_augmented_arm(tmp_path: Path) -> None:
    workspace, config = make_run(
        tmp_path / "run", evaluate={"max_train_steps": 5, "seeds": [0, 1], "arms": ALL_ARMS}
    )
    entries = make_export(workspace, augmented=4, test=(1, 2, 1, 1, 0, 1), groups=3)
    prepared = workspace, config, entries
    shares = {"real": 0.3, "real_plus_augmented": 0.6, "real_plus_synthetic": 1.0}
    found = detectors(
        entries, **{arm: lambda _, share=share: share for arm, share in shares.items()}
    )
    trainer = FakeDetectorTrainer()
    said = run(prepared, trainer=trainer, detector=found)
    assert [one["data"].parent.name for one in trainer.trained] == [*ALL_ARMS, *ALL_ARMS]
    assert len({one["max_train_steps"] for one in trainer.trained}) == 1
    folder = workspace.stage("evaluate").path
    train = (folder / "arms/real_plus_augmented/train.txt").read_text().splitlines()
    pictures = [(folder / "arms/real_plus_augmented" / line).resolve() for line in train]
    assert all(picture.exists() for picture in pictures)
    assert sum("6-export/augmented/images/" in line for line in train) == 4
    assert not any("syn-" in line for line in train)

    verdict = verdict_of(prepared)
    means = {arm: verdict["measures"][arm]["map50"] for arm in ALL_ARMS}
    for key, (arm, base) in list(DIFFERENCES.items())[:3]:
        assert verdict[key]["map50"]["mean"] == pytest.approx(means[arm] - means[base], abs=2e-6)
        assert verdict[key]["map50"]["low"] <= verdict[key]["map50"]["high"]
    assert verdict["train_pictures"] == {
        "real": 12, "real_plus_augmented": 16, "real_plus_synthetic": 16,
    }  # fmt: skip
    assert "With 4 augmented copies of the real pictures instead it changed by +0." in said
    page = (folder / "report.html").read_text()
    assert "Augmented, in train" in page
    assert "<th>synthetic − augmented</th>" in page
    assert page[page.index("Real, in train") :].count("<figure>") == 6 + 4 + 4 + 5


def test_the_arm_of_synthetic_pictures_alone(prepared: Prepared) -> None:
    workspace, _, entries = prepared
    arms = ("real", "real_plus_synthetic", "synthetic")
    found = detectors(
        entries,
        real=lambda _: 0.5,
        real_plus_synthetic=lambda _: 1.0,
        synthetic=lambda _: 0.2,
    )
    trainer = FakeDetectorTrainer()
    run(prepared, f"evaluate.arms=[{','.join(arms)}]", trainer=trainer, detector=found)
    assert [one["data"].parent.name for one in trainer.trained] == [*arms, *arms]
    folder = workspace.stage("evaluate").path
    lines = (folder / "arms/synthetic/train.txt").read_text().splitlines()
    assert len(lines) == 4
    assert all(Path(line).name.startswith("syn-") for line in lines)
    assert (folder / "arms/synthetic/val.txt").read_text() == (
        folder / "arms/real/val.txt"
    ).read_text(), "weights are chosen on real pictures"
    verdict = verdict_of(prepared)
    assert verdict["train_pictures"]["synthetic"] == 4
    means = {arm: verdict["measures"][arm]["map50"] for arm in arms}
    alone = verdict["synthetic_alone_differences"]["map50"]["mean"]
    assert alone == pytest.approx(means["synthetic"] - means["real"], abs=2e-6)
    assert "<th>synthetic alone − real</th>" in (folder / "report.html").read_text()


def test_without_synthetic_pictures_that_arm_is_left_out(tmp_path: Path) -> None:
    arms = ("real", "synthetic")
    workspace, config = make_run(tmp_path / "run", evaluate={"seeds": [0], "arms": arms})
    trainer = FakeDetectorTrainer()
    run((workspace, config, make_export(workspace, synthetic=0)), trainer=trainer)
    assert [one["data"].parent.name for one in trainer.trained] == ["real"]


def test_augmented_copies_that_were_not_made(prepared: Prepared) -> None:
    with pytest.raises(SynthdetError, match=r"real_plus_augmented.*synthdet export"):
        run(prepared, "evaluate.arms=[real,real_plus_augmented]")


def test_without_the_synthetic_arm_there_is_no_verdict(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run", evaluate={"arms": ALL_ARMS[:2]})
    prepared = workspace, config, make_export(workspace, augmented=4)
    found = detectors(prepared[2], real=lambda _: 0.5, real_plus_augmented=lambda _: 1.0)
    run(prepared, detector=found)
    verdict = verdict_of(prepared)
    assert verdict["verdict"] == "cannot be measured"
    assert re.fullmatch(
        r"No verdict on synthetic pictures: evaluate\.arms names only real, with mAP50 0\.\d\d and "
        r"real_plus_augmented, with mAP50 1\.00 on \d+ real test pictures\. With 4 augmented copies of the "
        r"real pictures mAP50 changed by \+0\.\d\d \(95 % interval .*\)\.",
        verdict["sentence"],
    )
    assert verdict["augmented_differences"]["map50"]["mean"] > 0


def measures_of(prepared: Prepared, arm: str, seed: int) -> dict[str, float]:
    path = prepared[0].stage("evaluate").path / "results.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    return {
        row["measure"]: float(row["value"])
        for row in rows
        if (row["arm"], row["seed"]) == (arm, str(seed))
    }


def test_measures_by_size_and_class_counts_and_false_alarms(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run", evaluate={"seeds": [0, 1]})
    prepared = workspace, config, make_export(workspace, test=(1, 1, 1, 1, 1, 1, 0))
    entries = [one for one in prepared[2] if one.split == "test"]
    areas = sorted(
        (box.xyxy[2] - box.xyxy[0]) * (box.xyxy[3] - box.xyxy[1])
        for entry in entries
        for box in entry.boxes
    )
    smallest_two = areas[:2]

    def blind_to_the_small(weights: Path) -> FakeDetector:
        drawn: dict[str, tuple[DetectedBox, ...]] = {}
        for entry in prepared[2]:
            seen = [
                box
                for box in entry.boxes
                if (box.xyxy[2] - box.xyxy[0]) * (box.xyxy[3] - box.xyxy[1]) not in smallest_two
            ]
            ghosts = [Box(xyxy=(1, 1, 9, 6), class_id=0)] if not entry.boxes else []
            drawn[entry.image_id] = detected(seen, 0.9) + detected(ghosts, 0.9)
        return FakeDetector(drawn)

    run(prepared, detector=blind_to_the_small)
    values = measures_of(prepared, "real", 0)
    assert (values["recall_small"], values["recall_medium"], values["recall_large"]) == (0, 1, 1)
    assert (values["map50_small"], values["map50_large"]) == (0, pytest.approx(1))
    # Seven photos: two animals not seen, one ghost in the photo that is empty.
    assert values["count_bias"] == pytest.approx(-1 / 7, abs=1e-6)
    assert values["count_error"] == pytest.approx(3 / 7, abs=1e-6)
    assert values["false_alarms_per_empty_photo"] == values["false_alarms_per_empty_tile"] == 1

    classes = sorted({box.class_id for entry in entries for box in entry.boxes})
    assert classes == [0, 1], "else this test shows nothing"
    alone = [values[f"map50:{name}"] for name in ("seal", "whale")]
    assert values["map50"] == pytest.approx(sum(alone) / 2, abs=1e-6)
    biases = [values[f"count_bias:{name}"] for name in ("seal", "whale")]
    assert values["count_bias"] == pytest.approx(sum(biases), abs=1e-5)

    verdict = verdict_of(prepared)
    assert verdict["measures"]["real"].keys() == values.keys()
    assert [one["boxes"] for one in verdict["sizes"]] == [2, 2, 2]
    assert verdict["sizes"][0]["to"] == pytest.approx(areas[1] ** 0.5, abs=0.01)
    assert verdict["test_photos"] == 7


def test_without_empty_photos_there_are_no_false_alarms_to_count(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run")
    prepared = workspace, config, make_export(workspace, test=(1, 1, 2))
    run(prepared)
    assert not [name for name in measures_of(prepared, "real", 0) if name.startswith("false")]


def test_not_shown_says_what_would_settle_it(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run", evaluate={"seeds": [0, 1, 2, 3]})
    entries = make_export(workspace, test=(1,) * 24, groups=12)
    prepared = workspace, config, entries

    def chance(weights: Path) -> FakeDetector:
        arm, seed = weights.parent.name, int(weights.name.removeprefix("seed-"))
        rng, share = np.random.default_rng([seed, len(arm)]), 0.5 if arm == "real" else 0.6
        boxes = {
            one.image_id: detected([box for box in one.boxes if rng.uniform() < share])
            for one in entries
        }
        return FakeDetector(boxes)

    said = run(prepared, detector=chance)
    verdict = verdict_of(prepared)
    assert verdict["verdict"] == "not shown"
    needed = verdict["would_settle"]
    assert needed["test_groups"] > 12
    assert needed["test_photos"] == pytest.approx(2 * needed["test_groups"], rel=0.1)
    assert f"about {needed['test_photos']} test photos in {needed['test_groups']} groups" in said
    assert "now there are 24 in 12" in said


def test_seeds_that_disagree_are_named_as_what_is_wanted(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run", evaluate={"seeds": [0, 1, 2, 3]})
    entries = make_export(workspace, test=(1,) * 24, groups=12)
    prepared = workspace, config, entries
    shares = (0.1, 1.0, 1.0, 0.1)
    found = detectors(entries, real=lambda _: 0.4, real_plus_synthetic=lambda seed: shares[seed])
    said = run(prepared, detector=found)
    needed = verdict_of(prepared)["would_settle"]
    assert (needed["test_photos"], needed["test_groups"]) == (None, None)
    assert needed["seeds"] > 4
    assert f"about {needed['seeds']} seeds would; now there are 4" in said


@pytest.mark.parametrize(
    ("real", "with_synthetic", "verdict"),
    [(0.0, 1.0, "gain"), (1.0, 0.0, "loss"), (0.7, 0.7, "not shown")],
)
def test_verdicts(prepared: Prepared, real: float, with_synthetic: float, verdict: str) -> None:
    found = detectors(
        prepared[2], real=lambda _: real, real_plus_synthetic=lambda _: with_synthetic
    )
    run(prepared, detector=found)
    assert verdict_of(prepared)["verdict"] == verdict


def test_loose_boxes_cost_map50_95_alone(prepared: Prepared) -> None:
    def loose_without_synthetic(weights: Path) -> FakeDetector:
        drawn = {}
        for one in prepared[2]:
            boxes = one.boxes
            if weights.parent.name == "real":  # IoU of about 0.8
                boxes = tuple(
                    Box(xyxy=(x1, y1, x2 - 0.2 * (x2 - x1), y2), class_id=box.class_id)
                    for box in boxes
                    for x1, y1, x2, y2 in [box.xyxy]
                )
            drawn[one.image_id] = detected(boxes)
        return FakeDetector(drawn)

    run(prepared, detector=loose_without_synthetic)
    verdict = verdict_of(prepared)
    means = {arm: one["map50_95"] for arm, one in verdict["measures"].items()}
    assert verdict["differences"]["map50"]["mean"] == pytest.approx(0, abs=1e-6)
    gained = verdict["differences"]["map50_95"]["mean"]
    assert gained == pytest.approx(means["real_plus_synthetic"] - means["real"], abs=2e-6)
    assert gained > 0.2


def test_twice_opens_no_model(prepared: Prepared) -> None:
    said = run(prepared)
    before = file_bytes(prepared[0].root, but=())
    assert run(prepared, trainer=no_model, detector=no_model).splitlines()[-1] in said
    assert file_bytes(prepared[0].root, but=()) == before


@pytest.mark.parametrize("fail_at", [1, 3])
def test_crash_and_resume_gives_the_same_bytes(prepared: Prepared, fail_at: int) -> None:
    run(prepared)
    folder = prepared[0].stage("evaluate").path
    whole = file_bytes(folder)
    shutil.rmtree(folder)
    with pytest.raises(PlannedError):
        run(prepared, trainer=FakeDetectorTrainer(fail_at=fail_at))
    again = FakeDetectorTrainer()
    run(prepared, trainer=again)
    assert again.calls == 4 - (fail_at - 1)
    assert file_bytes(folder) == whole


@pytest.mark.parametrize(
    "name",
    ["report.html", "results.csv", "predictions/real-1.jsonl", "predictions/real-1-val.jsonl"],
)
def test_a_lost_file_is_made_again_without_training(prepared: Prepared, name: str) -> None:
    run(prepared)
    folder = prepared[0].stage("evaluate").path
    whole = file_bytes(folder)
    (folder / name).unlink()
    trainer = FakeDetectorTrainer()
    run(prepared, trainer=trainer)
    assert trainer.calls == 0
    assert file_bytes(folder) == whole


def test_a_changed_setting_is_refused_by_name(prepared: Prepared) -> None:
    run(prepared)
    with pytest.raises(SynthdetError, match=r"evaluate\.seeds was \[0, 1\] and is now \[0\]"):
        run(prepared, "evaluate.seeds=[0]")


def test_a_lost_picture_is_named(prepared: Prepared) -> None:
    (prepared[0].root / prepared[2][3].yolo_path).unlink()
    with pytest.raises(SynthdetError, match=r"train-003\.png is missing"):
        run(prepared)


def test_nothing_was_added(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run")
    prepared = workspace, config, make_export(workspace, synthetic=0)
    trainer = FakeDetectorTrainer()
    said = run(prepared, trainer=trainer)
    assert trainer.calls == 3  # one arm: the other would be the same
    assert "Nothing was added: no synthetic picture is in the training set" in said
    verdict = verdict_of(prepared)
    assert verdict["verdict"] == "nothing was added"
    assert verdict["differences"] == {}
    assert list(verdict["measures"]) == ["real"]


@pytest.mark.parametrize(
    ("test", "why"),
    [((), "there is no real test picture"), ((0, 0), "no animal in the 2 real test pictures")],
)
def test_nothing_can_be_measured(tmp_path: Path, test: tuple[int, ...], why: str) -> None:
    workspace, config = make_run(tmp_path / "run")
    prepared = workspace, config, make_export(workspace, test=test)
    said = run(prepared, trainer=no_model, detector=no_model)
    assert f"Cannot be measured: {why}" in " ".join(said.split()).replace(
        "there is no animal", "no animal"
    )
    assert (workspace.stage("evaluate").path / "report.html").exists()
    assert workspace.stage("evaluate").output()


def test_one_seed_and_one_group_give_no_interval(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run", evaluate={"seeds": [4]})
    prepared = workspace, config, make_export(workspace, groups=1)
    said = run(prepared)
    assert "1 seed and 1 group of test photos give no interval" in said
    assert verdict_of(prepared)["verdict"] == "not shown"


def test_one_arm_alone(prepared: Prepared) -> None:
    trainer = FakeDetectorTrainer()
    run(prepared, "evaluate.arms=[real_plus_synthetic]", trainer=trainer)
    assert trainer.calls == 2
    assert "names only real_plus_synthetic" in verdict_of(prepared)["sentence"]


def test_an_empty_val_set(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run")
    prepared = workspace, config, make_export(workspace, val=())
    run(prepared)
    assert verdict_of(prepared)["measures"]["real"]["confidence"] == 0.25


def test_report_is_one_safe_file(prepared: Prepared) -> None:
    run(prepared, "evaluate.detector='<b>&'")
    page = (prepared[0].stage("evaluate").path / "report.html").read_text()
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&" not in page
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "http" not in page
    assert verdict_of(prepared)["sentence"] in page
    plot = re.search(r'src="data:image/png;base64,([^"]+)"', page)
    assert plot is not None
    with Image.open(io.BytesIO(base64.b64decode(plot[1]))) as image:
        assert image.width > image.height > 300
    examples = page[page.index("Real, in train") :]
    assert examples.count("<figure>") == 6 + 4 + 5  # real, synthetic, test tiles with an animal
    assert not re.findall(r"<script|<link|url\(|@import", page)
    plots = re.findall(r'<img class="plot" alt="Plot: ([^"]+)"', page)
    assert [plot.split()[0] for plot in plots] == ["Not", "precision"]
    assert page.count("evaluate.seeds") == 1
    assert "<th>numpy</th>" in page


def test_the_report_shows_what_goes_wrong(prepared: Prepared) -> None:
    test = [one for one in prepared[2] if one.split == "test"]
    ghost = Box(xyxy=(1, 1, 13, 6), class_id=0)

    def finds_nothing_but_a_ghost(weights: Path) -> FakeDetector:
        is_real = weights.parent.name == "real"
        boxes = {one.image_id: detected(() if is_real else one.boxes, 0.8) for one in prepared[2]}
        if is_real:
            boxes[test[-1].image_id] = detected([ghost], 0.7)
        return FakeDetector(boxes)

    run(prepared, detector=finds_nothing_but_a_ghost)
    page = (prepared[0].stage("evaluate").path / "report.html").read_text()
    wrong = page[page.index("What goes wrong") : page.index("What was compared")]
    assert "real photos alone: missed" in wrong
    assert "real photos alone: false alarms" in wrong
    assert "real + synthetic" not in wrong, "there nothing is wrong"
    assert wrong.count("<figure>") == 6 + 1
    assert wrong.count("2 of 2 seeds") == 7
    assert "0.70, 2 of 2 seeds<br>" in wrong
    assert "small: 0 to" in page
    assert "<th>whale</th>" in page


def test_the_worst_are_missed_by_most_seeds_large_or_sure() -> None:
    small, large = Box(xyxy=(0, 0, 10, 10), class_id=0), Box(xyxy=(20, 0, 50, 30), class_id=0)
    alone = Box(xyxy=(60, 0, 70, 10), class_id=0)
    near = [Box(xyxy=(60 + d, 40, 80 + d, 60), class_id=0) for d in (0, 2)]
    loose = Box(xyxy=(0, 0, 40, 40), class_id=0)
    found = [
        [detected([large, near[0]], 0.6), detected([loose], 0.5)],
        [detected([near[1]], 0.9), ()],
    ]
    misses, alarms = worst_failures([[small, large], [alone, small]], found)
    assert [(one.picture, one.xyxy, one.num_seeds) for one in misses] == [
        (0, small.xyxy, 2), (1, alone.xyxy, 2), (1, small.xyxy, 2), (0, large.xyxy, 1),
    ]  # fmt: skip
    assert [(one.picture, one.xyxy, one.num_seeds) for one in alarms] == [
        (0, near[1].xyxy, 2), (1, loose.xyxy, 1),
    ]  # fmt: skip
    assert [(one.confidence, one.why) for one in alarms] == [(0.9, ""), (0.5, "loose")]


def test_a_false_alarm_on_an_animal_says_why_it_is_one() -> None:
    whale = Box(xyxy=(20, 0, 50, 30), class_id=1)
    as_seal, twice = Box(xyxy=whale.xyxy, class_id=0), Box(xyxy=(21, 0, 51, 30), class_id=1)
    found = [[detected([whale], 0.9) + detected([twice], 0.8)], [detected([as_seal], 0.7)]]
    for seed, why in zip(found, ("second box", "another class"), strict=True):
        _misses, alarms = worst_failures([[whale]], [seed])
        assert [one.why for one in alarms] == [why]
