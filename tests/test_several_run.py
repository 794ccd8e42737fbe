"""A run labelled by its own detector and by one that finds by text, from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from synthdet import pipeline
from synthdet.cli import app
from synthdet.core.records import Detections, Label
from synthdet.workspace import Workspace, read_json, read_records
from tests.builders import make_photos, make_yolo_survey, write_photo
from tests.fakes import FakeEmbedder, FakeGenerator, FakeLoraTrainer
from tests.tiny import tiny_detr, tiny_owlv2


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


def test_own_and_by_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, fake in (
        ("_open_lora_trainer", FakeLoraTrainer),
        ("_open_generator", FakeGenerator),
        ("_open_embedder", FakeEmbedder),
    ):
        monkeypatch.setattr(pipeline, name, lambda *_arguments, fake=fake: fake())
    detr, owl = tiny_detr(tmp_path / "rtdetr"), tiny_owlv2(tmp_path / "owlv2")
    survey = make_yolo_survey(tmp_path / "photos", names=("whale",))
    settings = (
        "prepare.resolution=64", "prepare.scale=1.0", "finetune.num_samples=0",
        "generate.num_images=3", "filter.threshold=-1.0", "filter.copy_threshold=1.1",
        "label.max_train_steps=2", "label.train_batch_size=4", f"label.detector={detr}",
        f"label.weights=[own, {owl}]", "label.queries={whale: [a whale, a fin]}",
    )  # fmt: skip
    run = tmp_path / "run"
    sets = [word for setting in settings for word in ("--set", setting)]
    call("init", str(run), "--config", "pocket", "--photos", str(survey), *sets)
    told = call("run", str(run), "--until", "label")
    assert "is trained with transformers" in told
    assert "owlv2 finds by text" in told.replace("\n", "")
    folder = Workspace(run).stage("label").path
    assert len(read_records(folder / "labels.jsonl", Label)) == 3
    found = read_records(folder / "detections.jsonl", Detections)
    sources = {box.source for one in found for box in one.boxes}
    assert sources >= {"detector", "detector:view-7", "detector-2", "detector-2:view-7"}
    own, by_text = read_json(folder / "detectors.json")["detectors"]
    assert (own["weights"], own["queries"]) == ("own", None)
    assert by_text["queries"] == {"whale": ["a whale", "a fin"]}
    assert "finds by text" not in call("run", str(run), "--until", "label")  # it is done

    # The detector by text alone counts a survey: a first draft of its boxes.
    for photo in make_photos(num_photos=2, seed=5):
        write_photo(tmp_path / "survey" / f"{photo.stem}.jpg", photo.picture)
    survey_told = call("predict", str(run), str(tmp_path / "survey"), "--weights", str(owl))
    assert "2 photos" in survey_told
    assert "finds by text: from the air" in survey_told.replace("\n", " ")
