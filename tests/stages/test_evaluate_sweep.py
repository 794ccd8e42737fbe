from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthdet.core.records import DetectedBox, ManifestEntry
from synthdet.errors import SynthdetError
from synthdet.workspace import read_json, write_json
from tests.fakes import FakeDetector, FakeDetectorTrainer, PlannedError
from tests.handmade import detected, file_bytes, make_run
from tests.stages.test_evaluate import Prepared, make_export, no_model, run, verdict_of

SWEEP = "evaluate.sweep=[0, 0.25, 0.5, 4]"


def sharper(entries: list[ManifestEntry], share: Callable[[int], float]) -> Any:
    """Detectors that find more the more pictures they learned from."""

    def open_detector(weights: Path) -> FakeDetector:
        name, seed = weights.parent.name, weights.name
        arms = weights.parents[2] / "arms"
        lists = [arms / name / seed / "train.txt", arms / name / "train.txt"]
        learned = next(path for path in lists if path.exists()).read_text().splitlines()
        rng = np.random.default_rng([*seed.encode()])
        boxes: dict[str, tuple[DetectedBox, ...]] = {
            one.image_id: detected(
                [box for box in one.boxes if rng.uniform() < share(len(learned))]
            )
            for one in entries
        }
        return FakeDetector(boxes)

    return open_detector


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    workspace, config = make_run(tmp_path / "run", evaluate={"max_train_steps": 5, "seeds": [0, 1]})
    entries = make_export(workspace, synthetic=8, test=(1,) * 12 + (0,), groups=6)
    return workspace, config, entries


def growing(prepared: Prepared) -> Any:
    """12 real tiles: from 0.3 of the animals found with these to all with 20 pictures."""
    return sharper(prepared[2], lambda number: 0.3 + 0.7 * (number - 12) / 8)


def folder_of(prepared: Prepared) -> Path:
    return prepared[0].stage("evaluate").path


def train_list(prepared: Prepared, name: str, seed: int) -> list[str]:
    path = folder_of(prepared) / "arms" / name / f"seed-{seed}" / "train.txt"
    assert all((path.parent / line).resolve().exists() for line in path.read_text().splitlines())
    return [Path(line).stem for line in path.read_text().splitlines()]


def test_points_are_nested_drawn_by_seed_and_capped(prepared: Prepared) -> None:
    trainer = FakeDetectorTrainer()
    said = run(prepared, SWEEP, trainer=trainer, detector=growing(prepared))
    # The arms stand for nothing and for all; between them 3 and 6 of the 8 synthetic pictures.
    assert trainer.calls == 2 * 2 + 2 * 2
    quarter, half = "real_plus_synthetic-x0.25", "real_plus_synthetic-x0.5"
    for seed in (0, 1):
        few, more = train_list(prepared, quarter, seed), train_list(prepared, half, seed)
        assert (len(few), len(more)) == (12 + 3, 12 + 6)
        assert {*few} < {*more}
        assert sum(name.startswith("train-") for name in more) == 12
    assert {*train_list(prepared, half, 0)} != {*train_list(prepared, half, 1)}

    sweep = verdict_of(prepared)["sweeps"]["synthetic"]
    assert [point["number"] for point in sweep["points"]] == [0, 3, 6, 8]
    assert [point["name"] for point in sweep["points"]] == [
        "real", quarter, half, "real_plus_synthetic"
    ]  # fmt: skip
    assert (sweep["available"], sweep["capped"], sweep["left_out"]) == (8, [4.0], [])
    assert "4 times the real pictures would be more than the 8 there are" in said
    means = [point["map50"]["mean"] for point in sweep["points"]]
    assert means == sorted(means)
    assert means[0] < means[-1]
    step = sweep["points"][2]["over_previous"]["map50"]
    assert step["mean"] == pytest.approx(means[2] - means[1], abs=2e-6)
    assert step["low"] <= step["mean"] <= step["high"]
    assert "over_previous" not in sweep["points"][0]

    rows = list(csv.DictReader(io.StringIO((folder_of(prepared) / "sweep.csv").read_text())))
    values = [
        float(row["value"])
        for row in rows
        if (row["measure"], row["number"]) == ("map50", "6") and row["sweep"] == "synthetic"
    ]
    assert len(values) == 2
    assert np.mean(values) == pytest.approx(means[2], abs=1e-5)
    page = (folder_of(prepared) / "report.html").read_text()
    assert "There are 8 synthetic pictures: 4 times the real pictures would be more." in page
    assert 'alt="Plot: mAP by the number of pictures"' in page
    arms = list(csv.DictReader(io.StringIO((folder_of(prepared) / "results.csv").read_text())))
    assert {row["arm"] for row in arms} == {"real", "real_plus_synthetic"}


def test_it_stops_where_the_curve_is_flat(prepared: Prepared) -> None:
    flat_after_few = sharper(prepared[2], lambda number: 0.3 if number == 12 else 0.8)
    trainer = FakeDetectorTrainer()
    said = run(
        prepared, "evaluate.sweep=[0, 0.1, 0.25, 0.5]", trainer=trainer, detector=flat_after_few
    )
    sweep = verdict_of(prepared)["sweeps"]["synthetic"]
    assert [point["asked"] for point in sweep["points"]] == [0, 0.1, 0.25]
    assert sweep["left_out"] == [0.5]
    assert trainer.calls == 2 * 2 + 2 * 2
    assert (
        "0.5 times the real pictures not trained, as the last step changes less than 0.01" in said
    )
    before = file_bytes(prepared[0].root, but=())
    run(prepared, "evaluate.sweep=[0, 0.1, 0.25, 0.5]", trainer=no_model, detector=no_model)
    assert file_bytes(prepared[0].root, but=()) == before


def test_real_photos_come_by_groups_nested_and_alone(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run", evaluate={"max_train_steps": 5, "seeds": [0, 1]})
    entries = make_export(workspace, synthetic=4, test=(1,) * 12, groups=4)
    prepared = workspace, config, entries
    run(
        prepared,
        "evaluate.real_sweep=[3, 5, 12, 99]",
        detector=sharper(entries, lambda number: number / 16),
    )
    sweep = verdict_of(prepared)["sweeps"]["real"]
    assert [(point["asked"], point["name"]) for point in sweep["points"]] == [
        (3, "real-n3"), (5, "real-n5"), (12, "real"),
    ]  # fmt: skip
    assert (sweep["available"], sweep["capped"]) == (12, [99])
    for seed in (0, 1):
        few, more = (train_list(prepared, name, seed) for name in ("real-n3", "real-n5"))
        assert {*few} < {*more}
        assert not any(name.startswith("syn") for name in more)
        sites = {int(name.removeprefix("train-")) % 4 for name in few}
        assert len(sites) == 1, "three photos are one whole group"


def test_points_are_added_later_without_training_the_others_again(prepared: Prepared) -> None:
    run(prepared, detector=growing(prepared))
    first = file_bytes(folder_of(prepared) / "weights")
    trainer = FakeDetectorTrainer()
    run(prepared, "evaluate.sweep=[0.25]", trainer=trainer, detector=growing(prepared))
    assert trainer.calls == 2
    assert first.items() <= file_bytes(folder_of(prepared) / "weights").items()
    run(prepared, "evaluate.sweep=[]", trainer=no_model, detector=no_model)
    assert not (folder_of(prepared) / "sweep.csv").exists()
    assert verdict_of(prepared)["sweeps"] == {}


@pytest.mark.parametrize("fail_at", [2, 6])
def test_crash_and_resume_gives_the_same_bytes(prepared: Prepared, fail_at: int) -> None:
    settings = (SWEEP, "evaluate.real_sweep=[4]")
    run(prepared, *settings, detector=growing(prepared))
    whole = file_bytes(folder_of(prepared))
    prepared[0].stage("evaluate").path.rename(prepared[0].root / "aside")
    with pytest.raises(PlannedError):
        broken = FakeDetectorTrainer(fail_at=fail_at)
        run(prepared, *settings, trainer=broken, detector=growing(prepared))
    again = FakeDetectorTrainer()
    run(prepared, *settings, trainer=again, detector=growing(prepared))
    assert again.calls == 4 + 4 + 2 - (fail_at - 1)
    assert file_bytes(folder_of(prepared)) == whole


def test_a_lost_point_is_trained_again(prepared: Prepared) -> None:
    run(prepared, SWEEP, detector=growing(prepared))
    whole = file_bytes(folder_of(prepared))
    shutil.rmtree(folder_of(prepared) / "weights" / "real_plus_synthetic-x0.25" / "seed-1")
    trainer = FakeDetectorTrainer()
    run(prepared, SWEEP, trainer=trainer, detector=growing(prepared))
    assert trainer.calls == 1
    assert file_bytes(folder_of(prepared)) == whole


def test_a_lost_table_is_written_again_without_training(prepared: Prepared) -> None:
    run(prepared, SWEEP, detector=growing(prepared))
    whole = file_bytes(folder_of(prepared))
    (folder_of(prepared) / "sweep.csv").unlink()
    run(prepared, SWEEP, trainer=no_model, detector=no_model)
    assert file_bytes(folder_of(prepared)) == whole


def test_without_synthetic_pictures_there_is_no_curve_of_them(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run", evaluate={"seeds": [0]})
    prepared = workspace, config, make_export(workspace, synthetic=0)
    trainer = FakeDetectorTrainer()
    run(prepared, SWEEP, trainer=trainer)
    assert trainer.calls == 1
    assert verdict_of(prepared)["sweeps"] == {}


def test_a_run_of_an_earlier_version_is_measured_again_and_said_so(prepared: Prepared) -> None:
    run(prepared, detector=growing(prepared))
    lock = read_json(folder_of(prepared) / "stage.json")
    write_json(folder_of(prepared) / "stage.json", {**lock, "decisions": {}})
    old = {"verdict": "gain", "sentence": "Old.", "measures": {}, "differences": {}}
    (folder_of(prepared) / "verdict.json").write_text(json.dumps(old))
    said = run(prepared, trainer=no_model, detector=no_model)
    assert "made by an earlier version: measured again, no detector is trained again" in said
    assert "sweeps" in verdict_of(prepared)


def test_after_a_new_export_nobody_says_that_nothing_is_trained(prepared: Prepared) -> None:
    run(prepared, detector=growing(prepared))
    for stage, changed in (("evaluate", {"decisions": {}}), ("export", {"output": "another"})):
        lock = prepared[0].stage(stage).lock_path
        write_json(lock, {**read_json(lock), **changed})
    trainer = FakeDetectorTrainer()
    said = run(prepared, trainer=trainer, detector=growing(prepared))
    assert trainer.calls == 4
    assert "export changed: the old folder is kept" in said
    assert "measured again" not in said


@pytest.mark.parametrize("setting", ["evaluate.sweep=[-1]", "evaluate.real_sweep=[0]"])
def test_what_is_no_number_of_pictures_is_refused_by_name(prepared: Prepared, setting: str) -> None:
    with pytest.raises(SynthdetError, match=r"evaluate\.(real_)?sweep"):
        run(prepared, setting)
