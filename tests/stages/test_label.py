from __future__ import annotations

import errno
import hashlib
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from synthdet import pipeline
from synthdet.config import Config, set_values
from synthdet.core.fusion import view_source
from synthdet.core.labelling import BLIND, UNPROVEN
from synthdet.core.records import (
    Box,
    Decision,
    DetectedBox,
    Detections,
    Label,
    Score,
    SyntheticImage,
)
from synthdet.errors import SynthdetError
from synthdet.stages import label as label_stage
from synthdet.stages import label_tiles
from synthdet.stages.label_detectors import DETECTION_BATCH, FAILED
from synthdet.stages.label_detectors import VAL_DETECTIONS_NAME as VAL
from synthdet.workspace import (
    Workspace,
    append_records,
    read_json,
    read_records,
    write_json,
    write_records,
)
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

ASKED: tuple[tuple[int, ...] | None, ...] = (
    (0,), (0,), (0, 0), (), (), (0,), (0,), (0,), *((0,),) * 40,
)  # fmt: skip
MISSED, SHORT, EMPTY, GHOST, UNSURE, DROPPED, BLACK = 1, 2, 3, 4, 5, 6, 7


@pytest.fixture
def prepared(tmp_path: Path) -> tuple[Workspace, Config, FakeDetector]:
    """48 pictures, one dropped by the filter, one unusable; and a detector with an opinion on each."""
    workspace, config = make_run(tmp_path / "run", label={"max_train_steps": 5})
    tiles = make_tiles(workspace)
    images, truth = make_images(workspace, ASKED)
    folder = workspace.stage("filter")
    write_records(
        folder.path / "scores.jsonl",
        [
            Score(image_id=image.image_id, similarity=0.9, fault="black" if n == BLACK else None)
            for n, image in enumerate(images)
        ],
    )
    decide(workspace, dropped=(DROPPED, BLACK))
    one = Box(xyxy=(10, 10, 30, 24), class_id=0)
    drawn = {image.image_id: detected([one]) for image in images}
    for number in (MISSED, EMPTY):
        drawn[f"syn-{number:06d}"] = ()
    drawn[f"syn-{GHOST:06d}"] = detected([one], 0.2)
    drawn[f"syn-{UNSURE:06d}"] += detected([Box(xyxy=(40, 10, 60, 24), class_id=0)], 0.3)
    for tile in tiles:
        drawn[tile.tile_id] = detected(tile.boxes, 0.6)
    assert truth
    return workspace, config, FakeDetector(drawn)


def decide(workspace: Workspace, dropped: tuple[int, ...]) -> None:
    folder = workspace.stage("filter")
    write_records(
        folder.path / "decisions.jsonl",
        [
            Decision(image_id=f"syn-{n:06d}", kept=n not in dropped, threshold=0.5)
            for n in range(len(ASKED))
        ],
    )
    finish(folder, ["scores.jsonl", "decisions.jsonl"])


def run(
    prepared: tuple[Workspace, Config, FakeDetector],
    *settings: str,
    trainer: Any = None,
    detector: Any = None,
    identity: str | None = "SHA-256 1",
    redo: bool = False,
) -> str:
    workspace, config, drawing = prepared
    reporter, said = quiet()
    label_stage.run(
        workspace,
        set_values(config, list(settings)),
        reporter,
        open_trainer=lambda: trainer or FakeDetectorTrainer(),
        open_detector=detector or (lambda _weights: drawing),
        identify=lambda _name: identity,
        redo=redo,
    )
    return said.getvalue()


def no_model(*_arguments: Any) -> Any:
    raise AssertionError("a model was opened")


def labels_of(workspace: Workspace) -> dict[str, Label]:
    found = read_records(workspace.stage("label").path / "labels.jsonl", Label)
    return {label.image_id: label for label in found}


def test_whole(prepared: tuple[Workspace, Config, FakeDetector]) -> None:
    workspace, _, detector = prepared
    trainer = FakeDetectorTrainer()
    said = run(prepared, trainer=trainer)
    folder = workspace.stage("label")
    labels = labels_of(workspace)
    assert list(labels) == [f"syn-{n:06d}" for n in range(48) if n not in (DROPPED, BLACK)]
    told = {n: labels[f"syn-{n:06d}"] for n in range(DROPPED)}
    assert (told[0].status, told[0].boxes[0].confidence) == ("accept", 0.9)
    assert (told[MISSED].status, told[MISSED].reason) == ("review", "nothing found")
    assert told[SHORT].reason == "asked for two, found one"
    assert (told[EMPTY].status, told[EMPTY].boxes) == ("negative", ())
    assert (told[GHOST].status, told[UNSURE].status) == ("review", "review")

    found = read_records(folder.path / "detections.jsonl", Detections)
    assert [one.image_id for one in found] == [f"syn-{n:06d}" for n in range(48) if n != BLACK]
    assert trainer.calls == 1
    assert len(detector.paths) == 2 + 47
    statuses = Counter(label.status for label in labels.values())
    lock = folder.lock()
    assert lock is not None
    assert lock["counts"]["accepted"] == statuses["accept"] == 41
    assert lock["counts"]["usable"] == 42
    assert lock["counts"]["confidence"] == 0.6
    assert "41 accepted · 4 to review · 1 confirmed background" in said
    assert (
        "(accepted from confidence 0.60: precision 1.00, recall 1.00, mean IoU 1.00 on 2 real"
        in said
    )
    assert "val tiles; best F1 1.00 at 0.60)" in said


def test_the_detector_learns_from_train_and_val_alone(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    workspace, _, _ = prepared
    shutil.rmtree(workspace.stage("prepare").path / "tiles" / "test")
    trainer = FakeDetectorTrainer()
    run(prepared, trainer=trainer)
    real = workspace.stage("label").path / "real"
    fields = yaml.safe_load((real / "data.yaml").read_text())
    assert fields == {
        "train": "images/train", "val": "images/val", "names": {0: "seal", 1: "whale"},
    }  # fmt: skip
    pictures = [path.relative_to(real).as_posix() for path in real.rglob("*.png")]
    labels = [path.relative_to(real).as_posix() for path in real.rglob("*.txt")]
    assert len(pictures) == 14
    assert sorted(
        path.replace("images/", "labels/").replace(".png", ".txt") for path in pictures
    ) == sorted(labels)
    assert (real / "labels/train/train-011.txt").read_text() == ""
    assert len((real / "labels/train/train-003.txt").read_text().splitlines()) == 2
    assert trainer.trained[0]["image_size"] == 1024


def test_tiles_of_any_size_fit_the_detector(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    trainer = FakeDetectorTrainer()
    run(prepared, "prepare.resolution=72", trainer=trainer)
    assert trainer.trained[0]["image_size"] == 96


def test_twice_opens_no_model(prepared: tuple[Workspace, Config, FakeDetector]) -> None:
    said = run(prepared)
    before = file_bytes(prepared[0].root, but=())
    assert run(prepared, trainer=no_model, detector=no_model).splitlines()[-1] in said
    assert file_bytes(prepared[0].root, but=()) == before


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_crash_and_resume_gives_the_same_bytes(
    prepared: tuple[Workspace, Config, FakeDetector], tmp_path: Path, fail_at: int
) -> None:
    workspace, config, detector = prepared
    run(prepared)
    whole = file_bytes(workspace.stage("label").path)
    shutil.rmtree(workspace.stage("label").path)
    failing = FakeDetector(detector.boxes, fail_at=fail_at)
    with pytest.raises(PlannedError):
        run((workspace, config, failing))
    again = FakeDetectorTrainer()
    run(prepared, trainer=again)
    assert again.calls == 0
    assert file_bytes(workspace.stage("label").path) == whole


def test_a_batch_that_was_half_written_is_made_again_whole(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    workspace, _, detector = prepared
    run(prepared)
    folder = workspace.stage("label").path
    whole = file_bytes(folder)
    path = folder / "detections.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:35]) + lines[35][:20])
    (folder / ".tmp-1-labels.jsonl").write_text("torn")
    detector.paths.clear()
    run(prepared)
    assert file_bytes(folder) == whole
    assert [path.stem for path in detector.paths] == [f"syn-{n:06d}" for n in range(33, 48)]


def test_an_interrupted_training_starts_again(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    with pytest.raises(PlannedError):
        run(prepared, trainer=FakeDetectorTrainer(fail_at=1))
    again = FakeDetectorTrainer()
    run(prepared, trainer=again)
    assert again.calls == 1


def test_thresholds_move_without_a_model(prepared: tuple[Workspace, Config, FakeDetector]) -> None:
    workspace, _, _ = prepared
    run(prepared)
    raw = (workspace.stage("label").path / "detections.jsonl").read_bytes()
    said = run(prepared, "label.confidence=0.25", trainer=no_model, detector=no_model)
    assert labels_of(workspace)[f"syn-{UNSURE:06d}"].reason == "asked for one, found two"
    assert "(accepted from confidence 0.25, given: precision 1.00, recall 1.00, mean IoU" in said
    decide(workspace, dropped=(0, 1, 2))  # and so does the filter's
    run(prepared, trainer=no_model, detector=no_model)
    assert f"syn-{DROPPED:06d}" in labels_of(workspace)
    assert "syn-000000" not in labels_of(workspace)
    assert (workspace.stage("label").path / "detections.jsonl").read_bytes() == raw


def test_what_the_detector_does_not_count_on_val_is_not_found(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    """Best F1 on the val tiles is at 0.6; a threshold that was given says nothing of silence."""
    workspace, _, detector = prepared
    faint = "syn-000008"
    detector.boxes = {
        **detector.boxes,
        faint: detected([Box(xyxy=(9, 9, 30, 24), class_id=0)], 0.5),
    }
    run(prepared)
    label = labels_of(workspace)[faint]
    assert (label.status, label.reason) == ("review", "nothing sure found")
    assert len(label.boxes) == 1
    run(prepared, "label.confidence=0.6")
    assert labels_of(workspace)[faint].reason == "one unsure box"


def test_eight_views_are_kept_raw_and_joined(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    """A detector that is blind in three of eight views: five eighths of its confidence."""
    workspace, config, detector = prepared
    blind = FakeDetector(detector.boxes, blind_views=(0, 3, 6))
    run((workspace, config, blind))
    raw = read_records(workspace.stage("label").path / "detections.jsonl", Detections)[0]
    assert [box.source for box in raw.boxes] == [f"detector:view-{n}" for n in (1, 2, 4, 5, 7)]
    (box,) = labels_of(workspace)["syn-000000"].boxes
    assert (box.source, box.confidence) == ("fused", 0.5625)
    assert box.agreement == 0.625
    said = run(
        (workspace, config, blind), "label.agreement=0.7", trainer=no_model, detector=no_model
    )
    assert labels_of(workspace)["syn-000000"].reason == "the views disagree about a box"
    assert "0 accepted" in said
    seen = len(blind.paths)
    with pytest.raises(SynthdetError, match=r"label\.views was True"):
        run(prepared, "label.views=false")
    run(prepared, "label.views=false", redo=True)
    assert len(detector.paths) == seen == 2 + 47
    assert labels_of(workspace)["syn-000000"].boxes[0].source == "detector"


def test_a_picture_on_which_the_detector_fails(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    """It fails on two pictures, as where its process is killed: these wait, their batches are drawn."""
    workspace, config, drawing = prepared

    class Picky(FakeDetector):
        def detect(self, paths: Any, **settings: Any) -> Any:
            if any(path.stem in (f"syn-{EMPTY:06d}", "syn-000040") for path in paths):
                raise SynthdetError("the detector's process was killed")
            return super().detect(paths, **settings)

    run((workspace, config, Picky(drawing.boxes)))
    labels = labels_of(workspace)
    for number in (EMPTY, 40):
        label = labels[f"syn-{number:06d}"]
        assert (label.status, label.reason) == ("review", "the detector failed on it")
    assert labels["syn-000000"].status == labels["syn-000041"].status == "accept"
    found = read_records(workspace.stage("label").path / "detections.jsonl", Detections)
    assert [one.image_id for one in found if one.fault] == [f"syn-{EMPTY:06d}", "syn-000040"]


def test_a_last_picture_that_fails_alone_is_no_broken_detector(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run", label={"max_train_steps": 5})
    make_tiles(workspace)
    images, _ = make_images(workspace, [(0,)] * (DETECTION_BATCH + 1))
    folder, last = workspace.stage("filter"), images[-1].image_id
    kept = [Decision(image_id=one.image_id, kept=True, threshold=0.5) for one in images]
    scores = [Score(image_id=one.image_id, similarity=0.9) for one in images]
    write_records(folder.path / "scores.jsonl", scores)
    write_records(folder.path / "decisions.jsonl", kept)
    finish(folder, ["scores.jsonl", "decisions.jsonl"])

    class Choosy(FakeDetector):
        def detect(self, paths: Any, **settings: Any) -> Any:
            if any(path.stem == last for path in paths):
                raise SynthdetError("cannot be read as a picture")
            return super().detect(paths, **settings)

    run((workspace, config, Choosy()))
    assert labels_of(workspace)[last].reason == FAILED


def test_a_detector_that_never_works_is_an_error(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    class Broken(FakeDetector):
        def detect(self, paths: Any, **settings: Any) -> Any:
            raise SynthdetError("the detector's process died: no kernel")

    workspace, config, _ = prepared
    with pytest.raises(SynthdetError, match="no kernel"):
        run((workspace, config, Broken()))


def test_the_calibration_is_stored_with_its_curve(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    """A ghost on val above the real animal: no confidence has the precision asked for."""
    workspace, config, detector = prepared
    ghost = DetectedBox(xyxy=(1, 1, 9, 9), class_id=0, confidence=0.8)
    boxes = dict(detector.boxes) | {"val-001": (ghost,)}
    said = run((workspace, config, FakeDetector(boxes)))
    told = read_json(workspace.stage("label").path / "calibration.json")
    assert told["curve"] == [[0.8, 0.0, 0.0, 0.0], [0.6, 0.5, 1.0, 0.666667]]
    assert (told["confidence"], told["accept_confidence"]) == (0.6, 0.6)
    assert (told["accept_precision"], told["reached"]) == (0.5, False)
    assert told["accepted"]["precision"] == 0.5
    assert told["sizes"] is None  # seven real boxes say nothing
    assert "no confidence has a precision of 0.95 on the real val tiles" in said


def test_a_changed_setting_is_refused_by_name(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    run(prepared)
    with pytest.raises(SynthdetError, match=r"label\.max_train_steps was 5 and is now 6"):
        run(prepared, "label.max_train_steps=6")
    run(prepared, "label.max_train_steps=6", redo=True)
    assert (prepared[0].root / "5-label.old-1" / "labels.jsonl").exists()


@pytest.mark.parametrize(
    "name", ["labels.jsonl", "detections.jsonl", "calibration.json", "weights/model.safetensors"]
)
def test_a_lost_file_is_made_again(
    prepared: tuple[Workspace, Config, FakeDetector], name: str
) -> None:
    run(prepared)
    folder = prepared[0].stage("label").path
    whole = file_bytes(folder)
    if name.startswith("weights"):
        shutil.rmtree(folder / "weights")
    else:
        (folder / name).unlink()
    run(prepared)
    assert file_bytes(folder) == whole


def test_a_lost_picture_is_named(prepared: tuple[Workspace, Config, FakeDetector]) -> None:
    workspace, _, _ = prepared
    (workspace.stage("generate").path / "images" / "syn-000040.png").unlink()
    with pytest.raises(SynthdetError, match=r"syn-000040\.png is missing.*synthdet generate"):
        run(prepared)


def test_no_real_box_and_no_weights(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run")
    make_tiles(workspace, train=(0, 0), val=(1,))
    make_images(workspace, [(0,), ()])
    folder = workspace.stage("filter")
    names = ("syn-000000", "syn-000001")
    append_records(
        folder.path / "scores.jsonl", [Score(image_id=name, similarity=0.5) for name in names]
    )
    write_records(
        folder.path / "decisions.jsonl",
        [Decision(image_id=name, kept=True, threshold=0.1) for name in names],
    )
    finish(folder, ["decisions.jsonl"])
    prepared = workspace, config, FakeDetector()
    with pytest.raises(SynthdetError, match=r"no real train tile has a box.*label\.weights"):
        run(prepared)
    weights = tmp_path / "mine.pt"
    weights.write_bytes(b"mine")
    said = run(prepared, f"label.weights={weights}", trainer=no_model)
    assert "the detector finds none of the 1 animals in the real val tiles" in said
    assert "not calibrated" in said
    labels = read_records(workspace.stage("label").path / "labels.jsonl", Label)
    assert [label.reason for label in labels] == ["nothing found", BLIND]


def test_own_weights_speak_their_own_names(
    prepared: tuple[Workspace, Config, FakeDetector], tmp_path: Path
) -> None:
    workspace, _, detector = prepared
    weights = tmp_path / "mine.pt"
    weights.write_bytes(b"mine")
    box = DetectedBox(xyxy=(1, 2, 9, 8), class_id=0, confidence=0.9)
    mine = FakeDetector(dict.fromkeys(detector.boxes, (box,)), names=("pinniped", "boat"))
    opened: list[Path] = []

    def open_mine(path: Path) -> FakeDetector:
        opened.append(path)
        return mine

    given = f"label.weights={weights}"
    with pytest.raises(SynthdetError, match=r"label\.class_map"):
        run(prepared, given, trainer=no_model, detector=open_mine)
    run(prepared, given, "label.class_map={pinniped: whale}", detector=open_mine, redo=True)
    assert opened == [weights, weights]
    found = read_records(workspace.stage("label").path / "detections.jsonl", Detections)
    assert {box.class_id for one in found for box in one.boxes} == {1}
    assert not (workspace.stage("label").path / "weights").exists()
    with pytest.raises(SynthdetError, match=r"label\.weights: there is no"):
        run(prepared, "label.weights=nowhere.pt")


@pytest.mark.parametrize("survivors", ["none kept", "none made"])
def test_no_survivors(tmp_path: Path, survivors: str) -> None:
    workspace, config = make_run(tmp_path / "run")
    make_tiles(workspace)
    make_images(workspace, [(0,)] if survivors == "none kept" else [])
    folder = workspace.stage("filter")
    dropped = [Decision(image_id="syn-000000", kept=False, threshold=0.9, reason="far from real")]
    write_records(folder.path / "decisions.jsonl", dropped if survivors == "none kept" else [])
    finish(folder, ["decisions.jsonl"])
    trainer = FakeDetectorTrainer()
    said = run((workspace, config, FakeDetector()), trainer=trainer)
    assert "0 accepted · 0 to review · 0 confirmed background" in said
    assert trainer.calls == (1 if survivors == "none kept" else 0)
    assert workspace.stage("label").output()
    assert labels_of(workspace) == {}


# --- several detectors -------------------------------------------------------------------------


@pytest.fixture
def two(
    prepared: tuple[Workspace, Config, FakeDetector], tmp_path: Path
) -> tuple[list[str], dict[str, FakeDetector]]:
    """The run's own, which knows all; and a second that calls a whale a dog and draws 2 pixels aside."""
    _, _, detector = prepared
    weights = tmp_path / "second.pt"
    weights.write_bytes(b"second")
    aside = {
        stem: tuple(
            box.model_copy(
                update={
                    "xyxy": (*(corner + 2 for corner in box.xyxy),),
                    "class_id": 2 + box.class_id,
                }
            )
            for box in boxes
        )
        for stem, boxes in detector.boxes.items()
        if stem != "syn-000008"
    }
    second = FakeDetector(aside, names=("boat", "buoy", "pinniped", "whale"))
    settings = [
        f"label.weights=[own, {weights}]",
        "label.class_map=[null, {pinniped: seal, whale: whale}]",
    ]
    return settings, {"weights": detector, "second.pt": second}


def test_several_detectors_are_kept_raw_and_joined(
    prepared: tuple[Workspace, Config, FakeDetector],
    two: tuple[list[str], dict[str, FakeDetector]],
) -> None:
    workspace, _, _ = prepared
    settings, detectors = two
    trainer = FakeDetectorTrainer()
    run(prepared, *settings, trainer=trainer, detector=lambda path: detectors[path.name])
    assert trainer.calls == 1
    folder = workspace.stage("label").path
    raw = read_records(folder / "detections.jsonl", Detections)[0]
    assert [box.source for box in raw.boxes] == [
        *(view_source("detector", view) for view in range(8)),
        *(view_source("detector-2", view) for view in range(8)),
    ]
    assert {box.class_id for box in raw.boxes} == {0}
    (box,) = labels_of(workspace)["syn-000000"].boxes
    assert box.xyxy == (11, 11, 31, 25)
    assert (box.source, box.confidence) == ("fused", 0.9)
    # Only one of the two draws it: half the confidence, half the agreement.
    (box,) = labels_of(workspace)["syn-000008"].boxes
    assert (box.confidence, box.agreement) == (0.45, 0.5)
    assert labels_of(workspace)["syn-000008"].status == "review"
    told = read_json(folder / "detectors.json")["detectors"]
    assert [one["source"] for one in told] == ["detector", "detector-2"]
    assert told[0]["weights"] == "own"
    assert [one["queries"] for one in told] == [None, None]
    assert told[1]["names"] == ["boat", "buoy", "pinniped", "whale"]
    second = hashlib.sha256(b"second").hexdigest()
    assert told[1]["identity"] == f"SHA-256 {second}"
    before = file_bytes(folder)
    run(prepared, *settings, trainer=no_model, detector=no_model)
    assert file_bytes(folder) == before


def test_of_a_hub_name_the_revision_is_kept(
    prepared: tuple[Workspace, Config, FakeDetector],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    workspace, _, detector = prepared

    def download(weights: Path) -> FakeDetector:
        assert str(weights) == "someone/whales"
        references = tmp_path / "hub" / "models--someone--whales" / "refs"
        references.mkdir(parents=True)
        (references / "main").write_text("0c5f310")
        return detector

    run(prepared, "label.weights=someone/whales", detector=download)
    (told,) = read_json(workspace.stage("label").path / "detectors.json")["detectors"]
    assert told["identity"] == "revision 0c5f310"


def test_several_detectors_crash_and_resume(
    prepared: tuple[Workspace, Config, FakeDetector],
    two: tuple[list[str], dict[str, FakeDetector]],
) -> None:
    """The second fails in its second batch, when the first has drawn there: all of it is made again."""
    workspace, _, _ = prepared
    settings, detectors = two
    run(prepared, *settings, detector=lambda path: detectors[path.name])
    whole = file_bytes(workspace.stage("label").path)
    shutil.rmtree(workspace.stage("label").path)
    second = detectors["second.pt"]
    failing = FakeDetector(second.boxes, names=second.names, fail_at=3)
    with pytest.raises(PlannedError):
        run(
            prepared,
            *settings,
            detector=lambda path: failing if path.name == "second.pt" else detectors[path.name],
        )
    again = FakeDetectorTrainer()
    run(prepared, *settings, trainer=again, detector=lambda path: detectors[path.name])
    assert again.calls == 0
    assert file_bytes(workspace.stage("label").path) == whole


def test_another_detector_is_refused_by_name(
    prepared: tuple[Workspace, Config, FakeDetector],
    two: tuple[list[str], dict[str, FakeDetector]],
) -> None:
    settings, detectors = two
    run(prepared)
    with pytest.raises(SynthdetError, match=r"label\.weights was None and is now \['own', "):
        run(prepared, *settings, trainer=no_model, detector=no_model)
    run(prepared, *settings, detector=lambda path: detectors[path.name], redo=True)
    with pytest.raises(SynthdetError, match=r"label\.class_map was \[None, "):
        run(prepared, settings[0], trainer=no_model, detector=no_model)
    lost = prepared[0].stage("label").path / "detectors.json"
    before = lost.read_bytes()
    lost.unlink()
    run(prepared, *settings, trainer=no_model, detector=lambda path: detectors[path.name])
    assert lost.read_bytes() == before


def test_the_own_detector_is_not_trained_again_for_what_it_does_not_learn_from(
    prepared: tuple[Workspace, Config, FakeDetector],
    two: tuple[list[str], dict[str, FakeDetector]],
) -> None:
    workspace, _, detector = prepared
    settings, detectors = two
    folder = workspace.stage("label").path
    run(prepared)
    weights, tiles = file_bytes(folder / "weights"), file_bytes(folder / "real")
    assert weights

    def dying(*_arguments: Any) -> Any:
        raise PlannedError

    # Killed at the second detector, when the first has been taken over.
    with pytest.raises(PlannedError):
        run(prepared, *settings, trainer=no_model, detector=dying, redo=True)
    shutil.rmtree(folder / "weights")  # killed before that
    said = run(prepared, *settings, trainer=no_model, detector=lambda path: detectors[path.name])
    assert "own detector is that of 5-label.old-1" in said
    assert file_bytes(folder / "weights") == weights
    assert file_bytes(folder / "real") == tiles
    # Other pictures are labelled by the same detector; other steps, and the same once more, are trained.
    generate = workspace.stage("generate")
    images = read_records(generate.path / "images.jsonl", SyntheticImage)
    write_records(
        generate.path / "images.jsonl", [one.model_copy(update={"seed": 9}) for one in images]
    )
    finish(generate, ["images.jsonl"])
    finish(workspace.stage("filter"), ["scores.jsonl", "decisions.jsonl"])
    run(prepared, *settings, trainer=no_model, detector=lambda path: detectors[path.name])
    trainer = FakeDetectorTrainer()
    run(prepared, "label.max_train_steps=6", trainer=trainer, redo=True)
    assert trainer.calls == 1
    run(prepared, "label.max_train_steps=6", trainer=trainer, redo=True)
    assert trainer.calls == 2
    assert detector.calls > 0


def test_the_own_detector_is_trained_again_where_it_would_start_from_others(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    """The same name may stand for others by now: a file was replaced, a name on the hub moved."""
    workspace, _, _ = prepared
    own = workspace.stage("label").path / "own.json"
    trainer, count = FakeDetectorTrainer(), 0
    views = [f"label.views={value}" for value in ("true", "false")]

    def redo(identity: str | None, *settings: str) -> int:
        """Trainings that labelling once more, with something else that it does not learn from, takes."""
        nonlocal count
        before, count = trainer.calls, count + 1
        run(prepared, views[count % 2], *settings, trainer=trainer, identity=identity, redo=True)
        return trainer.calls - before

    assert redo("SHA-256 1") == 1
    assert read_json(own) == {"detector": "yolo11n", "identity": "SHA-256 1"}
    assert redo("SHA-256 1") == 0
    assert read_json(own) == {"detector": "yolo11n", "identity": "SHA-256 1"}, "taken over with it"
    assert redo("SHA-256 2") == 1
    own.unlink()  # one trained before this was written down
    assert redo("SHA-256 2") == 1
    assert redo(None) == 1
    assert redo(None) == 0, "a bare name, of random weights"
    assert redo(None, "label.detector=owner/name") == 1
    assert redo(None, "label.detector=owner/name") == 1, "nobody knows of which revision"


def test_a_disk_that_is_full_of_tiles_is_no_fault_of_the_detector(
    prepared: tuple[Workspace, Config, FakeDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every picture from there on would be recorded as one on which the detector failed."""
    workspace, _, _ = prepared
    whole = Path.write_bytes
    written = 0

    def write_bytes(path: Path, content: Any) -> int:
        nonlocal written
        written += path.suffix == ".bmp"
        if 10 <= written <= 12 and path.suffix == ".bmp":  # then somebody makes room
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(path, content)

    asked = ("label.tile_side=48",)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(SynthdetError, match="the disk is full: .* make room"):
        run(prepared, *asked)
    monkeypatch.undo()
    run(prepared, *asked, trainer=no_model)
    for name in ("detections.jsonl", VAL):
        found = read_records(workspace.stage("label").path / name, Detections)
        assert all(one.fault is None for one in found)
    monkeypatch.setattr(label_tiles.tempfile, "TemporaryDirectory", full)
    with pytest.raises(SynthdetError, match="the disk is full"):
        run(prepared, *asked, redo=True)


def full(**_arguments: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_large_pictures_are_looked_at_in_tiles_where_asked(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    """Pictures are 72 x 48: with a larger side all is as without, with a smaller one tiles are looked at."""
    workspace, _, detector = prepared
    raw = workspace.stage("label").path / "detections.jsonl"
    run(prepared)
    before = raw.read_bytes()
    said = run(prepared, "label.tile_side=72", trainer=no_model, redo=True)
    assert raw.read_bytes() == before
    learned = prepared[1].prepare.resolution
    assert (
        f"tile_side 72: the run's own detector has learned from tiles of {learned} pixels" in said
    )
    detector.paths.clear()
    run(prepared, "label.tile_side=48", trainer=no_model, redo=True)
    assert {path.suffix for path in detector.paths} == {".bmp"}
    assert len(detector.paths) == 2 * (47 + len(read_records(raw.with_name(VAL), Detections)))
    assert not list(workspace.root.rglob(".tmp-*"))
    with pytest.raises(SynthdetError, match=r"label\.tile_side was 48 and is now 56"):
        run(prepared, "label.tile_side=56", trainer=no_model)


def test_of_tiles_that_the_own_detector_knows_nothing_is_said(
    prepared: tuple[Workspace, Config, FakeDetector], tmp_path: Path
) -> None:
    said = run(prepared, f"label.tile_side={prepared[1].prepare.resolution}")
    assert "has learned from tiles" not in said
    weights = tmp_path / "mine.pt"
    weights.write_bytes(b"mine")
    said = run(prepared, "label.tile_side=72", f"label.weights={weights}", redo=True)
    assert "has learned from tiles" not in said


@pytest.mark.parametrize(
    ("settings", "named_side"),
    [
        (["label.tile_side=72"], 96),
        (["label.tile_side=72", "label.image_size=160"], 160),
        ([], 128),
    ],
)
def test_named_detectors_see_tiles_as_they_are(
    prepared: tuple[Workspace, Config, FakeDetector],
    monkeypatch: pytest.MonkeyPatch,
    settings: list[str],
    named_side: int,
) -> None:
    """The run's own sees what it learned at, whatever the tiles."""
    workspace, config, _ = prepared
    write_json(workspace.stage("prepare").path / "dataset.json", {"classes": ["seal", "whale"]})
    sides: dict[str, int] = {}

    def open_them(*_arguments: Any, open_detector: Any, **_more: Any) -> None:
        open_detector(workspace.stage("label").path / "weights")
        open_detector(Path("mine.pt"))

    def note(weights: Path, *, image_size: int, **_more: Any) -> None:
        sides[weights.name] = image_size

    monkeypatch.setattr(label_stage, "run", open_them)
    monkeypatch.setattr("synthdet.models.detector.ChildDetector", note)
    workspace.write_config(set_values(config, ["prepare.resolution=128", *settings]))
    pipeline.run_stage("label", workspace, quiet()[0])
    own_side = 160 if named_side == 160 else 128
    assert sides == {"weights": own_side, "mine.pt": named_side}


def test_a_setting_that_came_later_is_refused_as_any_other(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    """Also in a folder of before it was one: there it counts as null, and the folder goes on."""
    run(prepared)
    lock_path = prepared[0].stage("label").lock_path
    lock = read_json(lock_path)
    assert lock["settings"]["tile_side"] is None
    for name in ("tile_side", "queries"):
        with pytest.raises(SynthdetError, match=r"label\.tile_side was None and is now 64"):
            run(prepared, "label.tile_side=64", detector=no_model)
        del lock["settings"][name]
        write_json(lock_path, lock)
        run(prepared, detector=no_model)
    with pytest.raises(SynthdetError, match=r"label\.queries was None and is now"):
        run(prepared, "label.queries={seal: [a seal]}", detector=no_model)


def test_a_path_that_is_none_elsewhere_does_not_set_the_labels_aside(
    prepared: tuple[Workspace, Config, FakeDetector],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a suffix it might be a hub name, and so another detector."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "model.safetensors").write_bytes(b"mine")
    monkeypatch.chdir(tmp_path)
    run(prepared, "label.weights=models/mine")
    before = file_bytes(prepared[0].stage("label").path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(SynthdetError, match="there is no models/mine here"):
        run(prepared, "label.weights=models/mine", detector=no_model)
    assert file_bytes(prepared[0].stage("label").path) == before


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("label.weights=[]", "name one detector or several, each once"),
        ("label.weights=[own, '']", "name one detector or several, each once"),
        ("label.weights=[a.pt, a.pt]", "name one detector or several, each once"),
        ("label.class_map=[null, null]", "class_map: 2 for 1 weights"),
        ("label.queries={seal: []}", "queries: name a class, and at least one phrase"),
        ("label.queries={seal: [a seal, ' ']}", "queries: name a class, and at least one phrase"),
    ],
)
def test_detectors_that_make_no_sense(
    prepared: tuple[Workspace, Config, FakeDetector], setting: str, told: str
) -> None:
    with pytest.raises(SynthdetError, match=told):
        run(prepared, setting)


def test_a_detector_has_no_vote_about_a_class_that_it_does_not_know(
    prepared: tuple[Workspace, Config, FakeDetector], tmp_path: Path
) -> None:
    """Else what it cannot draw would lose half its confidence and wait for review, always."""
    weights = tmp_path / "whales.pt"
    weights.write_bytes(b"x")
    detectors = {"weights": prepared[2], "whales.pt": FakeDetector(names=("boat", "whale"))}
    settings = (f"label.weights=[own, {weights}]",)
    run(prepared, *settings, detector=lambda path: detectors[path.name])
    label = labels_of(prepared[0])["syn-000000"]
    assert label.status == "accept"
    assert (label.boxes[0].confidence, label.boxes[0].agreement) == (0.9, 1.0)


def test_a_name_that_does_not_fit_is_set_right_without_another_training(
    prepared: tuple[Workspace, Config, FakeDetector],
    two: tuple[list[str], dict[str, FakeDetector]],
) -> None:
    """It is only found out when the second detector opens, after the training of the first."""
    (weights, class_map), detectors = two
    trainer = FakeDetectorTrainer()
    with pytest.raises(SynthdetError, match=r"class_map: .* has no class 'seel'"):
        run(
            prepared,
            weights,
            "label.class_map=[null, {pinniped: seel}]",
            trainer=trainer,
            detector=lambda path: detectors[path.name],
        )
    # Boxes of the val tiles alone bind to nothing, and are those of other names.
    folder = prepared[0].stage("label").path
    other = FakeDetector(prepared[2].boxes, names=("seal", "whale"), fail_at=2)
    with pytest.raises(PlannedError):
        run(
            prepared, weights, "label.class_map=[null, {seal: whale}]", detector=lambda _path: other
        )
    assert (folder / "val_detections.jsonl").exists()
    run(prepared, weights, class_map, trainer=trainer, detector=lambda path: detectors[path.name])
    assert trainer.calls == 1
    again, before = FakeDetectorTrainer(), file_bytes(folder)
    run(prepared, weights, class_map, trainer=again, redo=True,
        detector=lambda path: detectors[path.name])  # fmt: skip
    assert file_bytes(folder) == before


def test_what_is_said_to_nobody_is_told(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    said = run(prepared, "label.queries={seal: [a seal]}", "label.class_map={pinniped: seal}")
    assert "label.queries changes nothing" in said
    assert "label.class_map changes nothing" in said
    finding = FakeDetector(prepared[2].boxes, queries=BY_TEXT)
    settings = ("label.weights=google/owlv2", "label.queries={seal: [a seal]}")
    assert "changes nothing" not in run((*prepared[:2], finding), *settings, redo=True)


# --- by text -----------------------------------------------------------------------------------

BY_TEXT = {"seal": ["a seal"], "whale": ["a whale"]}


def test_what_is_found_by_text_is_warned_of_and_held_to_the_val_tiles(
    prepared: tuple[Workspace, Config, FakeDetector],
) -> None:
    workspace, config, drawing = prepared
    named = "label.weights=google/owlv2-base-patch16-ensemble"
    finding = FakeDetector(drawing.boxes, queries=BY_TEXT)
    said = run((workspace, config, finding), named, trainer=no_model)
    assert "google/owlv2-base-patch16-ensemble finds by text" in said
    assert "27.6 %, 69 % of its boxes false" in said
    assert "no box is accepted" not in said  # all that it finds on val is right
    assert labels_of(workspace)["syn-000000"].status == "accept"
    told = read_json(workspace.stage("label").path / "detectors.json")["detectors"]
    assert told[0]["queries"] == BY_TEXT

    ghost = DetectedBox(xyxy=(1, 1, 9, 9), class_id=0, confidence=0.8)
    poor = FakeDetector({**drawing.boxes, "val-001": (ghost,)}, queries=BY_TEXT)
    said = run((workspace, config, poor), named, trainer=no_model, redo=True)
    assert "no box is accepted without a look: on the real val tiles boxes found by text do" in said
    assert {label.status for label in labels_of(workspace).values()} == {"review"}


def test_found_by_text_where_no_photo_has_a_box(tmp_path: Path) -> None:
    """Nobody can say how good it is: everything waits, also what looks empty."""
    workspace, config = make_run(tmp_path / "run")
    make_tiles(workspace, train=(0, 0), val=(0,))
    make_images(workspace, [(0,), ()])
    folder = workspace.stage("filter")
    scores = [Score(image_id=f"syn-00000{n}", similarity=0.5) for n in range(2)]
    write_records(folder.path / "scores.jsonl", scores)
    kept = [Decision(image_id=f"syn-00000{n}", kept=True, threshold=0.1) for n in range(2)]
    write_records(folder.path / "decisions.jsonl", kept)
    finish(folder, ["decisions.jsonl"])
    one = Box(xyxy=(10, 10, 30, 24), class_id=0)
    finding = FakeDetector({"syn-000000": detected([one])}, queries=BY_TEXT)
    settings = ("label.weights=google/owlv2", "label.queries={seal: [a seal]}")
    said = run((workspace, config, finding), *settings, trainer=no_model)
    assert "no box is accepted without a look: the real val tiles hold no animal" in said
    first, second = labels_of(workspace).values()
    assert (first.status, first.reason, len(first.boxes)) == ("review", UNPROVEN, 1)
    assert (second.status, second.reason) == ("review", UNPROVEN)
    # The warning does not hang on a model that is open.
    assert "finds by text" in run(
        (workspace, config, finding), *settings, "label.confidence=0.2", detector=no_model
    )
    assert {label.status for label in labels_of(workspace).values()} == {"review"}
    with pytest.raises(SynthdetError, match=r"label\.queries was \{'seal': \['a seal'\]\} and"):
        run((workspace, config, finding), settings[0], detector=no_model)
