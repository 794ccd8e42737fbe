"""Every command: its help, its work, its one-line error. The networks are fakes; all else is real."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from synthdet import pipeline
from synthdet.cli import app, main
from synthdet.core.records import DetectedBox, ManifestEntry, SyntheticImage, Tile
from synthdet.workspace import STAGES, Workspace, read_json, read_records, write_json, write_text
from tests.builders import make_photos, make_yolo_survey, write_photo
from tests.fakes import (
    FakeDetector,
    FakeDetectorTrainer,
    FakeEmbedder,
    FakeGenerator,
    FakeLoraTrainer,
)

COMMANDS = ("demo", "init", "run", *STAGES, "predict", "status", "curate", "app", "doctor")
SMALL = (
    "prepare.resolution=64",
    "prepare.scale=1.0",
    "finetune.num_samples=0",
    "generate.num_images=10",
    "generate.batch_size=4",
    "filter.threshold=-1.0",
    "filter.copy_threshold=1.1",
    "label.max_train_steps=2",
    "evaluate.max_train_steps=2",
)


@dataclass
class Opened:
    """The fakes that were opened, by kind."""

    run: Path
    kinds: list[str] = field(default_factory=list)
    finds: bool = True
    """Whether the detector finds the animals in the synthetic pictures."""

    def detector(self) -> FakeDetector:
        """One that knows the truth of real tiles, and finds what the prompt asked for."""
        self.kinds.append("detector")
        workspace = Workspace(self.run)
        boxes: dict[str, list[DetectedBox]] = {}
        for tile in read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile):
            truth = [
                DetectedBox(xyxy=box.xyxy, class_id=box.class_id, confidence=0.9)
                for box in tile.boxes
            ]
            boxes[tile.tile_id] = truth
        made = read_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage)
        for image in made if self.finds else []:
            boxes[image.image_id] = [
                DetectedBox(
                    xyxy=(4 + 20 * n, 6, 18 + 20 * n, 30), class_id=class_id, confidence=0.8
                )
                for n, class_id in enumerate(image.asked_for or ())
            ]
        return FakeDetector(boxes=boxes, names=("whale",))


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """A run on a small survey, with fakes in the place of all networks."""
    opened = Opened(tmp_path / "run")

    def fake(kind: str, make: object) -> object:
        def build(*_arguments: object, **_options: object) -> object:
            opened.kinds.append(kind)
            return make()  # type: ignore[operator]

        return build

    monkeypatch.setattr(pipeline, "_open_lora_trainer", fake("trainer", FakeLoraTrainer))
    monkeypatch.setattr(pipeline, "_open_generator", fake("generator", FakeGenerator))
    monkeypatch.setattr(pipeline, "_open_embedder", fake("embedder", FakeEmbedder))
    monkeypatch.setattr(
        pipeline, "_open_detector_trainer", fake("detector trainer", FakeDetectorTrainer)
    )
    monkeypatch.setattr(pipeline, "_open_detector", lambda *_a, **_o: opened.detector())
    survey = make_yolo_survey(tmp_path / "photos", names=("whale",))
    result = call(
        "init", str(opened.run), "--config", "pocket", "--photos", str(survey), *sets(SMALL)
    )
    assert result.exit_code == 0, result.output
    return opened


def sets(assignments: tuple[str, ...]) -> list[str]:
    return [word for assignment in assignments for word in ("--set", assignment)]


def call(*arguments: str) -> Result:
    """A command in this process; a user error raises `SynthdetError` as it would reach `main`."""
    return CliRunner().invoke(app, list(arguments))


def refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    """The one line with which a command ends."""
    monkeypatch.setattr(sys, "argv", ["synthdet", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    told = [line for line in lines if line.startswith("synthdet: ")]
    assert len(told) == 1
    return told[0]


# --- help --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_help(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_starts_without_the_networks() -> None:
    code = (
        "import sys, time; begun = time.perf_counter(); from synthdet.cli import app\n"
        "from typer.testing import CliRunner; assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'ultralytics', 'fiftyone', 'cv2', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy; print(time.perf_counter() - begun)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1.0


# --- the journey -------------------------------------------------------------------------------


def test_a_run_goes_through_all_stages_and_says_where_to_look(opened: Opened) -> None:
    result = call("run", str(opened.run))
    assert result.exit_code == 0, result.output
    for stage in STAGES:
        assert f"{stage:<9}" in result.output
    workspace = Workspace(opened.run)
    entries = read_records(workspace.stage("export").path / "manifest.jsonl", ManifestEntry)
    sources = {(entry.source, entry.split) for entry in entries}
    assert sources == {("real", "train"), ("real", "val"), ("real", "test"), ("synthetic", "train")}
    assert read_json(workspace.stage("evaluate").path / "verdict.json")["sentence"] in result.output
    assert [status.state for status in pipeline.stage_statuses(workspace)] == ["done"] * len(STAGES)
    assert pipeline.verify(workspace) == []


def test_a_second_run_opens_no_model(opened: Opened) -> None:
    call("run", str(opened.run))
    opened.kinds.clear()
    result = call("run", str(opened.run))
    assert result.exit_code == 0, result.output
    assert opened.kinds == []


def test_added_photos_cost_no_lora_and_no_pictures(opened: Opened) -> None:
    assert call("run", str(opened.run)).exit_code == 0
    photos = Path(Workspace(opened.run).read_config().prepare.photos or "")
    for number, photo in enumerate(make_photos(seed=7, num_photos=4)):
        place = photos / "train"
        write_photo(place / "images" / f"later{number}x_{number:04d}.jpg", photo.picture)
        (place / "labels" / f"later{number}x_{number:04d}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    before = read_records(opened.run / "3-generate" / "images.jsonl", SyntheticImage)
    opened.kinds.clear()
    result = call("run", str(opened.run))
    assert result.exit_code == 0, result.output
    assert "the LoRA is kept" in " ".join(result.output.split())
    assert not {"trainer", "generator"} & set(opened.kinds)
    assert read_records(opened.run / "3-generate" / "images.jsonl", SyntheticImage) == before
    states = {one.name: one.state for one in pipeline.stage_statuses(Workspace(opened.run))}
    assert set(states.values()) == {"done"}
    assert "train photos not seen 4" in " ".join(call("status", str(opened.run)).output.split())


def test_a_moved_threshold_opens_no_model_and_makes_later_stages_again(opened: Opened) -> None:
    call("run", str(opened.run), "--until", "export")
    opened.kinds.clear()
    result = call("filter", str(opened.run), "--set", "filter.threshold=0.999999")
    assert result.exit_code == 0, result.output
    states = {
        status.name: status.state for status in pipeline.stage_statuses(Workspace(opened.run))
    }
    assert states["label"] == "stale"
    result = call("run", str(opened.run), "--until", "export")
    assert result.exit_code == 0, result.output
    assert opened.kinds == []
    states = {
        status.name: status.state for status in pipeline.stage_statuses(Workspace(opened.run))
    }
    assert states["export"] == "done"


def test_a_changed_making_setting_is_refused_and_redo_keeps_the_old(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call("run", str(opened.run), "--until", "generate")
    told = refuse(
        monkeypatch, capsys, "generate", str(opened.run), "--set", "generate.num_images=6"
    )
    assert "generate.num_images was 10 and is now 6" in told
    result = call("generate", str(opened.run), "--redo")
    assert result.exit_code == 0, result.output
    kept = opened.run / "3-generate.old-1" / "images.jsonl"
    assert len(read_records(kept, SyntheticImage)) == 10
    made = opened.run / "3-generate" / "images.jsonl"
    assert len(read_records(made, SyntheticImage)) == 6


def test_nothing_survives_and_all_stages_finish_and_status_says_who_dropped_them(
    opened: Opened,
) -> None:
    result = call(
        "run",
        str(opened.run),
        "--set",
        "filter.threshold=1.5",
        "--set",
        "generate.background_fraction=0",
    )
    assert result.exit_code == 0, result.output
    assert "no synthetic picture is left after filter" in result.output
    told = call("status", str(opened.run)).output
    assert "no synthetic picture is left after filter" in told
    assert "far from real" in told


def test_nothing_is_found_and_status_names_the_label_stage(opened: Opened) -> None:
    opened.finds = False
    result = call("run", str(opened.run), "--set", "generate.background_fraction=0")
    assert result.exit_code == 0, result.output
    assert "no synthetic picture is left after label" in call("status", str(opened.run)).output


def test_with_your_own_pictures_no_lora_is_trained(opened: Opened, tmp_path: Path) -> None:
    call("run", str(opened.run), "--until", "generate")
    mine = tmp_path / "mine"
    (opened.run / "3-generate" / "images").rename(mine)
    run = tmp_path / "other"
    photos = str(tmp_path / "photos")
    opened.run = run
    opened.kinds.clear()
    settings = sets((*SMALL, f"generate.pictures={mine}"))
    call("init", str(run), "--config", "pocket", "--photos", photos, *settings)
    result = call("run", str(run))
    assert result.exit_code == 0, result.output
    assert "trainer" not in opened.kinds
    assert "generator" not in opened.kinds
    states = {status.name: status.state for status in pipeline.stage_statuses(Workspace(run))}
    assert states.pop("finetune") == "not needed"
    assert set(states.values()) == {"done"}


def test_curate_loads_or_pulls(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in (["--pull"], ["--verdicts", "mine.json"]):
        told = refuse(monkeypatch, capsys, "curate", str(opened.run), "--redo", *other)
        assert told == "synthdet: --redo loads the run again: leave out --pull and --verdicts"


def test_predict_counts_the_animals_of_a_new_survey(
    opened: Opened,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    survey = tmp_path / "survey"
    for photo in make_photos(num_photos=3, seed=5):
        write_photo(survey / f"{photo.stem}.jpg", photo.picture)
    run = str(opened.run)
    assert "evaluate is not done" in refuse(monkeypatch, capsys, "predict", run, str(survey))
    call("run", run)
    result = call("predict", run, str(survey))
    assert result.exit_code == 0, result.output
    assert "predict   3 photos · 0 animals found" in result.output
    found = opened.run / "8-predict" / "survey"
    assert (found / "counts.csv").read_text().count("\n") == 4
    opened.kinds.clear()
    assert call("predict", run, str(survey), "--confidence", "0.5").exit_code == 0
    assert opened.kinds == []
    told = refuse(monkeypatch, capsys, "predict", run, str(survey), "--scale", "0.5")
    assert "--redo" in told
    assert "there is no folder" in refuse(monkeypatch, capsys, "predict", run, str(tmp_path / "x"))


# --- looking -----------------------------------------------------------------------------------


def test_status_lists_the_surveys_that_were_counted(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")  # a row is a line
    run = str(opened.run)
    call("run", run)
    assert "survey" not in call("status", run).output
    for name, number in (("bay [north]", 3), ("reef", 1)):
        for photo in make_photos(num_photos=number, seed=5):
            write_photo(tmp_path / name / f"{photo.stem}.jpg", photo.picture)
        assert call("predict", run, str(tmp_path / name)).exit_code == 0
    told = call("predict", run, str(tmp_path / "reef"), "--redo").output
    (closing,) = (" ".join(line.split()) for line in told.splitlines() if "expected" in line)
    told = " ".join(call("status", run).output.split())
    assert "survey state found time bay [north] done 3 photos · 0 animals found, 0 to " in told
    assert f"reef done {closing.removeprefix('predict ')}" in told
    assert "expected (95 %, by " in told
    assert "old-1" not in told, "what was set aside is no survey"

    lock = read_json(opened.run / "8-predict" / "reef" / "stage.json")
    del lock["counts"]
    write_json(opened.run / "8-predict" / "reef" / "stage.json", lock | {"finished": False})
    assert "reef begun" in " ".join(call("status", run).output.split())


def test_status_verify_names_what_was_changed_or_lost(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call("run", str(opened.run), "--until", "generate")
    assert "every file is as recorded" in call("status", str(opened.run), "--verify").output
    pictures = sorted((opened.run / "3-generate" / "images").glob("*.png"))
    pictures[0].unlink()
    pictures[1].write_bytes(b"other")
    monkeypatch.setattr(sys, "argv", ["synthdet", "status", str(opened.run), "--verify"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr()
    assert f"3-generate/images/{pictures[0].name} is missing" in printed.out
    assert f"3-generate/images/{pictures[1].name} is not the file that was written" in printed.out
    assert "2 files" in printed.err


# --- one-line errors ---------------------------------------------------------------------------


def test_errors_are_one_line_that_says_what_to_do(
    opened: Opened,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = str(opened.run)
    (tmp_path / "empty").mkdir()
    new, empty = str(tmp_path / "new"), str(tmp_path / "empty")
    assert "synthdet init" in refuse(monkeypatch, capsys, "run", empty)
    assert "no photo" in refuse(monkeypatch, capsys, "init", new, "--photos", empty).lower()
    assert "no config nope" in refuse(
        monkeypatch, capsys, "init", new, "--photos", empty, "--config", "nope"
    )
    assert "is not done" in refuse(monkeypatch, capsys, "filter", run)
    assert "there is no stage" in refuse(monkeypatch, capsys, "run", run, "--until", "nowhere")
    assert "there is no setting generate.nope" in refuse(
        monkeypatch, capsys, "run", run, "--set", "generate.nope=1"
    )
    photos = str(tmp_path / "photos")
    assert "prepare.format" in refuse(
        monkeypatch, capsys, "init", new, "--photos", photos, "--format", "tfrecord"
    )
    assert not Path(new).exists()


def test_a_run_of_another_version_is_refused(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(opened.run / "synthdet.yaml", "version: 12\n")
    assert "version 12" in refuse(monkeypatch, capsys, "status", str(opened.run))


def test_a_bug_shows_its_traceback(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "run_stages", lambda *_a, **_o: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["synthdet", "run", str(opened.run)])
    with pytest.raises(ZeroDivisionError):
        main()


def test_ctrl_c_says_that_nothing_is_lost(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_stages", interrupted)
    monkeypatch.setattr(sys, "argv", ["synthdet", "run", str(opened.run)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
