"""A run whose detectors are transformers', from the command line; all other networks are fakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from synthdet import pipeline
from synthdet.cli import app
from synthdet.core.records import Detections, Label
from synthdet.workspace import STAGES, Workspace, read_json, read_records
from tests.builders import make_photos, make_yolo_survey, write_photo
from tests.fakes import FakeEmbedder, FakeGenerator, FakeLoraTrainer
from tests.tiny import tiny_detr

SMALL = (
    "prepare.resolution=64",
    "prepare.scale=1.0",
    "finetune.num_samples=0",
    "generate.num_images=6",
    "generate.batch_size=4",
    "filter.threshold=-1.0",
    "filter.copy_threshold=1.1",
    "label.max_train_steps=3",
    "label.confidence=0.9",  # nothing that three steps taught can be measured
    "label.train_batch_size=4",
    "evaluate.max_train_steps=3",
    "evaluate.train_batch_size=4",
    "evaluate.seeds=[0]",
)


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def weights_of(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes() for path in run.rglob("model.safetensors")
    }


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, fake in (
        ("_open_lora_trainer", FakeLoraTrainer),
        ("_open_generator", FakeGenerator),
        ("_open_embedder", FakeEmbedder),
    ):
        monkeypatch.setattr(pipeline, name, lambda *_arguments, fake=fake: fake())
    start = tiny_detr(tmp_path / "rtdetr")
    survey = make_yolo_survey(tmp_path / "photos", names=("whale",))
    settings = (*SMALL, f"label.detector={start}", f"evaluate.detector={start}")
    sets = [word for setting in settings for word in ("--set", setting)]
    call("init", str(tmp_path / "run"), "--config", "pocket", "--photos", str(survey), *sets)
    return tmp_path / "run"


def test_the_journey_with_rtdetr(run: Path, tmp_path: Path) -> None:
    told = call("run", str(run))
    assert told.count("is trained with transformers (Apache-2.0)") == 2
    assert "ultralytics (AGPL-3.0)" not in told
    workspace = Workspace(run)
    assert [status.state for status in pipeline.stage_statuses(workspace)] == ["done"] * len(STAGES)
    assert pipeline.verify(workspace) == []
    label, evaluate = (workspace.stage(name).path for name in ("label", "evaluate"))
    assert len(read_records(label / "labels.jsonl", Label)) == 6
    found = read_records(label / "detections.jsonl", Detections)
    assert {box.source for one in found for box in one.boxes} >= {"detector", "detector:view-7"}
    units = {path.parent.relative_to(evaluate) for path in evaluate.rglob("model.safetensors")}
    arms = [path.name for path in (evaluate / "weights").iterdir()]
    assert len(units) == len(arms) == 2
    assert {path.name for path in (evaluate / "weights" / "real" / "seed-0").iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json",
    }  # fmt: skip
    assert read_json(evaluate / "verdict.json")["sentence"] in told

    # A unit that is lost is made again, alone, to the same bytes.
    before = weights_of(run)
    (evaluate / "weights" / "real" / "seed-0" / "config.json").unlink()
    assert call("evaluate", str(run)).count("is trained with transformers") == 1
    assert weights_of(run) == before
    assert "is trained with" not in call("run", str(run))

    # And the winner counts a new survey.
    for photo in make_photos(num_photos=2, seed=5):
        write_photo(tmp_path / "survey" / f"{photo.stem}.jpg", photo.picture)
    assert "2 photos" in call("predict", str(run), str(tmp_path / "survey"))


def test_a_folder_that_is_no_detector_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from synthdet.cli import main

    call("run", str(run), "--until", "filter")
    (tmp_path / "rtdetr" / "model.safetensors").rename(tmp_path / "rtdetr" / "pytorch_model.bin")
    monkeypatch.setattr(sys, "argv", ["synthdet", "label", str(run)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("synthdet: ")]
    assert len(told) == 1
    assert "rtdetr holds no detector: there are no weights as safetensors" in told[0]
