from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from synthdet.config import set_values
from synthdet.core.records import (
    Box,
    DetectedBox,
    Detections,
    ManifestEntry,
    Photo,
    Prediction,
    Rejected,
    Tile,
)
from synthdet.errors import SynthdetError
from synthdet.stages import predict
from synthdet.stages.predict import Asked
from synthdet.stages.predict_detector import Drawn, choose_confidence
from synthdet.workspace import StageFolder, Workspace, read_json, read_records, write_records
from tests.builders import make_prepared_run, quiet_reporter, said, write_photo
from tests.fakes import PlannedError
from tests.handmade import file_bytes, finish

Picture = NDArray[np.uint8]
WATER = (40, 90, 110)


@dataclass
class BlobDetector:
    """Finds what is bright in a picture file, as a network would: also pieces at its edges."""

    names: tuple[str, ...] = ("humpback whale",)
    queries: None = None
    fail_at: int = 0
    calls: int = 0
    num_files: int = 0
    shapes: set[tuple[int, ...]] = field(default_factory=set)

    def detect(
        self, paths: Sequence[Path], *, min_confidence: float, views: bool = False
    ) -> list[tuple[DetectedBox, ...]]:
        self.calls += 1
        if self.calls == self.fail_at:
            raise PlannedError(f"call {self.calls}")
        self.num_files += len(paths)
        return [self._find(cv2.imread(str(path))) for path in paths]

    def _find(self, picture: Picture) -> tuple[DetectedBox, ...]:
        self.shapes.add(picture.shape)
        bright = (picture[..., 2] > 150).astype(np.uint8)
        _number, _labels, stats, _centres = cv2.connectedComponentsWithStats(bright)
        boxes = [
            DetectedBox(
                xyxy=(x, y, x + w, y + h), class_id=0, confidence=min(0.99, 0.5 + area / 2e3)
            )
            for x, y, w, h, area in stats[1:].tolist()
            if area > 8
        ]
        return tuple(sorted(boxes, key=lambda box: -box.confidence))


def water(width: int, height: int, *animals: tuple[int, int, int, int]) -> Picture:
    """A sea with bright rectangles."""
    picture = np.empty((height, width, 3), dtype=np.uint8)
    picture[:] = WATER
    for x1, y1, x2, y2 in animals:
        picture[y1:y2, x1:x2] = (235, 220, 200)
    return picture


def add_study(
    workspace: Workspace,
    found: dict[tuple[str, int], float],
    *,
    frames: bool = True,
) -> None:
    """Finish export and evaluate by hand: detectors that find such a share of the val and test animals."""
    prepare, export, study = (workspace.stage(name) for name in ("prepare", "export", "evaluate"))
    tiles = read_records(prepare.path / "tiles.jsonl", Tile)
    for (arm, seed), share in found.items():
        rng = np.random.default_rng(seed)
        for split, ending in (("val", "-val"), ("test", "")):
            drawn = [
                Detections(
                    image_id=tile.tile_id,
                    boxes=tuple(
                        DetectedBox(xyxy=box.xyxy, class_id=box.class_id, confidence=0.6)
                        for box in tile.boxes
                        if rng.uniform() < share
                    ),
                )
                for tile in tiles
                if tile.split == split
            ]
            write_records(study.path / "predictions" / f"{arm}-{seed}{ending}.jsonl", drawn)
        weights = study.path / "weights" / arm / f"seed-{seed}"
        weights.mkdir(parents=True)
        (weights / "model.safetensors").write_bytes(f"{arm} {seed}".encode())
        (weights / "model.json").write_text("{}")
        (weights / "names.json").write_text('["humpback whale"]')
    (study.path / "results.csv").write_text("")
    finish(study, ["results.csv"])
    entries = []
    root = Path(read_json(prepare.path / "dataset.json")["photos"])
    for photo in read_records(prepare.path / "photos.jsonl", Photo) if frames else []:
        if photo.split == "test":
            path = f"6-export/frames/yolo/images/test/{photo.image_id}.jpg"
            (workspace.root / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / photo.path, workspace.root / path)
            entries.append(
                ManifestEntry(
                    image_id=photo.image_id, source="real", split="test", yolo_path=path, sha256="",
                    width=photo.width, height=photo.height, boxes=photo.boxes,
                    provenance={"group": photo.group},
                )
            )  # fmt: skip
    write_records(export.path / "frames" / "manifest.jsonl", entries)
    write_records(export.path / "manifest.jsonl", [])
    finish(export, ["manifest.jsonl"])


STUDY = {("real", 0): 0.0, ("real", 1): 0.6, ("real_plus_synthetic", 0): 1.0}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = make_prepared_run(tmp_path, num_photos=16, num_groups=8)
    add_study(workspace, STUDY)
    return workspace


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    """Ten photos: a large one with an animal across a border of its tiles, a small one, empty ones."""
    folder = tmp_path / "survey"
    write_photo(folder / "day1/large.png", water(400, 300, (90, 40, 114, 52), (200, 200, 222, 210)))
    write_photo(folder / "day1/small.png", water(40, 30, (10, 10, 30, 20)))
    write_photo(folder / "large.jpg", water(200, 150, (50, 50, 72, 60)))
    for number in range(7):
        write_photo(folder / f"empty{number}.jpg", water(120 + number, 90))
    return folder


def run(
    workspace: Workspace,
    photos: Path,
    *,
    detector: BlobDetector | None = None,
    opened: Callable[[Path], Any] | None = None,
    redo: bool = False,
    **asked: Any,
) -> str:
    reporter = quiet_reporter()
    predict.run(
        workspace,
        workspace.read_config(),
        reporter,
        Asked(photos, **asked),
        open_detector=opened or (lambda _weights: detector or BlobDetector()),
        redo=redo,
    )
    return said(reporter)


def no_model(_weights: Path) -> Any:
    raise AssertionError("a model was opened")


def output(workspace: Workspace) -> Path:
    return workspace.root / "8-predict" / "survey"


def boxes_of(workspace: Workspace) -> dict[str, list[tuple[float, ...]]]:
    lines = read_records(output(workspace) / "predictions.jsonl", Prediction)
    return {one.path: [box.xyxy for box in one.boxes] for one in lines}


def test_whole(workspace: Workspace, survey: Path) -> None:
    before = file_bytes(survey)
    detector = BlobDetector()
    weights = []

    def open_detector(path: Path) -> BlobDetector:
        weights.append(path)
        return detector

    told = run(workspace, survey, opened=open_detector)
    assert [path.parent.name for path in weights] == [
        "real_plus_synthetic"
    ]  # the best on val, once
    assert "10 photos · 4 animals found, " in told
    assert " expected  (95 %, by " in told
    assert "real_plus_synthetic, seed 0" in told
    assert file_bytes(survey) == before
    assert detector.shapes == {(48, 48, 3)}

    folder = output(workspace)
    lines = read_records(folder / "predictions.jsonl", Prediction)
    assert [one.path for one in lines] == sorted(one.path for one in lines)
    assert {one.path: len(one.boxes) for one in lines if one.boxes} == {
        "day1/large.png": 2, "day1/small.png": 1, "large.jpg": 1,
    }  # fmt: skip
    large = next(one for one in lines if one.path == "day1/large.png")
    assert large.num_tiles > 20
    assert (large.width, large.height) == (400, 300)

    rows = list(csv.DictReader(io.StringIO((folder / "counts.csv").read_text())))
    assert [row["photo"] for row in rows] == [one.path for one in lines]
    assert [int(row["animals"]) for row in rows] == [len(one.boxes) for one in lines]
    for row in rows:
        assert int(row["low"]) <= float(row["expected"]) <= int(row["high"])

    coco = COCO(folder / "coco.json")
    assert sorted(coco.imgs) == list(range(1, 11))
    assert sorted(coco.anns) == [1, 2, 3, 4]
    assert all((survey / one["file_name"]).is_file() for one in coco.imgs.values())
    assert all(0 < one["score"] < 1 for one in coco.anns.values())
    assert coco.cats[1]["name"] == "humpback whale"
    loaded = coco.loadRes([
        {key: one[key] for key in ("image_id", "category_id", "bbox", "score")}
        for one in coco.anns.values()
    ])  # fmt: skip
    assert len(loaded.anns) == 4

    labels = folder / "yolo" / "labels"
    assert (labels / "day1/large.txt").read_text().count("\n") == 2
    assert all(len(line.split()) == 5 for line in (labels / "large.txt").read_text().splitlines())
    assert (labels / "empty0.txt").read_text() == ""
    assert (folder / "yolo/classes.txt").read_text() == "humpback whale\n"
    with Image.open(folder / "contact_sheet.jpg") as sheet:
        assert sheet.width > 1000
        assert sheet.height > 500
    assert not list(folder.glob(".tmp-*"))


@pytest.mark.parametrize("x", range(20, 60, 3))
def test_an_animal_across_a_border_of_tiles_counts_once(
    workspace: Workspace, tmp_path: Path, x: int
) -> None:
    animal = (x, 33, x + 22, 45)
    write_photo(tmp_path / "survey/a.png", water(300, 200, animal))
    run(workspace, tmp_path / "survey")
    (found,) = boxes_of(workspace)["a.png"]
    assert np.abs(np.subtract(found, animal)).max() < 2


def test_twice_opens_no_model_and_changes_nothing(workspace: Workspace, survey: Path) -> None:
    told = run(workspace, survey)
    before = file_bytes(workspace.root, but=())
    assert run(workspace, survey, opened=no_model).splitlines()[0] in told
    assert file_bytes(workspace.root, but=()) == before


@pytest.mark.parametrize("fail_at", [1, 2, 3])
def test_crash_and_resume_gives_the_same_bytes(
    workspace: Workspace, survey: Path, fail_at: int
) -> None:
    whole_detector = BlobDetector()
    run(workspace, survey, detector=whole_detector)
    whole = file_bytes(workspace.root / "8-predict")
    shutil.rmtree(workspace.root / "8-predict")
    with pytest.raises(PlannedError):
        run(workspace, survey, detector=BlobDetector(fail_at=fail_at))
    again = BlobDetector()
    run(workspace, survey, detector=again)
    assert again.calls == whole_detector.calls - (fail_at - 1)
    assert file_bytes(workspace.root / "8-predict") == whole


def test_a_torn_line_and_a_lost_file_are_made_again(workspace: Workspace, survey: Path) -> None:
    run(workspace, survey)
    folder = output(workspace)
    whole = file_bytes(folder)
    lines = (folder / "predictions.jsonl").read_bytes()
    (folder / "predictions.jsonl").write_bytes(lines[:-9])
    shutil.rmtree(folder / "yolo")
    (folder / ".tmp-tiles-killed").mkdir()
    (folder / ".tmp-tiles-killed" / "0-0.bmp").write_bytes(b"x")
    (folder / "counts.csv").unlink()
    run(workspace, survey)
    assert file_bytes(folder) == whole


def test_photos_that_are_added_or_replaced_are_looked_at_and_no_others(
    workspace: Workspace, survey: Path
) -> None:
    run(workspace, survey)
    write_photo(survey / "new.png", water(60, 50, (20, 20, 40, 30)))
    write_photo(survey / "empty0.jpg", water(100, 80, (20, 20, 40, 30)))
    told = run(workspace, survey)
    assert "11 photos · 6 animals" in told
    lines = read_records(output(workspace) / "predictions.jsonl", Prediction)
    assert sorted(one.path for one in lines[10:]) == ["empty0.jpg", "new.png"]
    (survey / "new.png").unlink()
    assert "10 photos · 5 animals" in run(workspace, survey, opened=no_model)


def test_photos_that_cannot_be_used_are_named(workspace: Workspace, survey: Path) -> None:
    (survey / "broken.jpg").write_bytes((survey / "large.jpg").read_bytes()[:900])
    (survey / "nothing.png").write_bytes(b"")
    (survey / "camera.dng").write_bytes(b"raw")
    told = run(workspace, survey)
    assert "10 photos · 4 animals" in told
    assert " · 3 rejected" in told
    rejected = read_records(output(workspace) / "rejected.jsonl", Rejected)
    assert [one.path for one in rejected] == ["broken.jpg", "camera.dng", "nothing.png"]
    assert "0 bytes" in rejected[2].reason
    assert not (output(workspace) / "yolo/labels/broken.txt").exists()
    assert run(workspace, survey, opened=no_model).splitlines()[0] in told
    shutil.copyfile(survey / "large.jpg", survey / "nothing.png")  # mended
    assert "11 photos · 5 animals" in run(workspace, survey)


def test_no_photo_can_be_read(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "survey").mkdir()
    (tmp_path / "survey/a.jpg").write_bytes(b"x")
    with pytest.raises(SynthdetError, match=r"none of the 1 photos .* a\.jpg is not a picture"):
        run(workspace, tmp_path / "survey", opened=no_model)


def test_boxes_are_those_of_the_upright_photo(workspace: Workspace, tmp_path: Path) -> None:
    stored = Image.fromarray(water(200, 120, (150, 20, 172, 30)))
    exif = Image.Exif()
    exif[274] = 6  # shown turned a quarter clockwise: (x, y) -> (120 - y, x)
    (tmp_path / "survey").mkdir()
    stored.save(tmp_path / "survey/turned.png", exif=exif)
    run(workspace, tmp_path / "survey")
    (line,) = read_records(output(workspace) / "predictions.jsonl", Prediction)
    assert (line.width, line.height) == (120, 200)
    (box,) = line.boxes
    assert np.abs(np.subtract(box.xyxy, (90, 150, 100, 172))).max() < 2


def test_another_scale_sees_another_size(workspace: Workspace, tmp_path: Path) -> None:
    """A survey flown at half the height shows animals twice as large."""
    write_photo(tmp_path / "survey/a.png", water(400, 300, (100, 100, 144, 120)))
    run(workspace, tmp_path / "survey")
    own = read_records(output(workspace) / "predictions.jsonl", Prediction)[0].num_tiles
    scale = float(read_json(workspace.root / "1-prepare/dataset.json")["scale"]) / 2
    with pytest.raises(SynthdetError, match=r"predict\.overlap|predict\.scale"):
        run(workspace, tmp_path / "survey", scale=scale)
    run(workspace, tmp_path / "survey", scale=scale, redo=True)
    line = read_records(output(workspace) / "predictions.jsonl", Prediction)[0]
    assert line.num_tiles < own / 2
    (box,) = line.boxes
    assert np.abs(np.subtract(box.xyxy, (100, 100, 144, 120))).max() < 3
    assert (workspace.root / "8-predict" / "survey.old-1").is_dir()


def test_the_confidence_moves_without_a_model(workspace: Workspace, survey: Path) -> None:
    told = run(workspace, survey)
    raw = (output(workspace) / "predictions.jsonl").read_bytes()
    assert "10 photos · 0 animals found" in run(
        workspace, survey, opened=no_model, confidence=0.999
    )
    assert (output(workspace) / "predictions.jsonl").read_bytes() == raw
    assert json.loads((output(workspace) / "coco.json").read_text())["annotations"] == []
    assert run(workspace, survey, opened=no_model) == told


def test_the_confidence_is_the_best_of_the_whole_val_photos(
    workspace: Workspace, survey: Path, tmp_path: Path
) -> None:
    """All that is bright is an animal there: the best threshold lets all of it count."""
    run(workspace, survey)
    (path,) = (workspace.root / "8-predict/.tried").glob("*/val-photos.jsonl")
    lowest = min(box.confidence for one in read_records(path, Prediction) for box in one.boxes)
    told = read_json(output(workspace) / "stage.json")["counts"]["confidence"]
    assert told == lowest
    (tmp_path / "photos").rename(tmp_path / "elsewhere")  # then the study's own val tiles say it
    assert "from confidence 0.60" in run(workspace, survey)


def test_in_a_photo_of_a_colony_every_animal_counts_for_the_confidence() -> None:
    animals = [Box(xyxy=(20 * n, 10, 20 * n + 12, 16), class_id=0) for n in range(150)]
    drawn = [
        DetectedBox(xyxy=one.xyxy, class_id=0, confidence=0.9 - n / 1000)
        for n, one in enumerate(animals)
    ]
    ghosts = [DetectedBox(xyxy=(n, 90, n + 9, 95), class_id=0, confidence=0.1) for n in range(60)]
    colony = Drawn(tuple(animals), (*drawn, *ghosts), "a", 9.0)
    assert choose_confidence([colony], 1) == drawn[-1].confidence


def test_an_arm_is_chosen_by_name_and_its_best_seed_by_val(
    workspace: Workspace, survey: Path
) -> None:
    assert "real, seed 1" in run(workspace, survey, arm="real")
    with pytest.raises(SynthdetError, match=r"predict\.detector was 'real, seed 1' .*--redo"):
        run(workspace, survey)
    with pytest.raises(SynthdetError, match="has trained real, real_plus_synthetic"):
        run(workspace, survey, arm="augmented")


def test_points_of_a_sweep_are_taken_by_name_alone(tmp_path: Path, survey: Path) -> None:
    workspace = make_prepared_run(tmp_path, num_photos=16, num_groups=8)
    point = "real_plus_synthetic-x0.5"
    add_study(workspace, {("real", 0): 0.5, (point, 0): 1.0, ("real-n3", 0): 1.0})
    assert "real, seed 0" in run(workspace, survey)
    assert f"{point}, seed 0" in run(workspace, survey, arm=point, redo=True)


def test_settings_that_failed_before_anything_was_made_may_be_set_right(
    workspace: Workspace, survey: Path, tmp_path: Path
) -> None:
    (tmp_path / "wrong").write_bytes(b"x")

    def refuse(_weights: Path) -> Any:
        raise SynthdetError("this is no detector")

    with pytest.raises(SynthdetError, match="no detector"):
        run(workspace, survey, weights=tmp_path / "wrong", opened=refuse)
    assert "4 animals" in run(workspace, survey)


def test_killed_before_the_first_photo_was_recorded(
    workspace: Workspace, survey: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the lock is first written, and while that of other settings is written over it."""
    folder = output(workspace)
    folder.mkdir(parents=True)
    (folder / ".tmp-12345-stage.json").write_text('{"vers')

    def killed(*_arguments: Any, **_named: Any) -> bool:
        raise KeyboardInterrupt

    for owner, name in ((StageFolder, "claim"), (predict, "look_at_photos")):
        for arm in ("real", None):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(owner, name, killed)
                run(workspace, survey, arm=arm)
    (folder / "predictions.jsonl").touch()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StageFolder, "claim", killed)
        run(workspace, survey, arm="real")
    assert "4 animals" in run(workspace, survey)
    assert not list(folder.glob(".tmp-*"))


def test_other_weights_are_tried_on_the_runs_own_photos_first(
    workspace: Workspace, survey: Path, tmp_path: Path
) -> None:
    shutil.rmtree(workspace.root / "7-evaluate")
    shutil.rmtree(workspace.root / "6-export")
    weights = tmp_path / "mine.pt"
    with pytest.raises(SynthdetError, match=r"there is no .*mine\.pt"):
        run(workspace, survey, weights=weights)
    weights.write_bytes(b"x")
    told = run(workspace, survey, detector=BlobDetector(), weights=weights)
    assert "4 animals found" in told
    assert "test animals in" in told
    assert "mine.pt" in told
    (tried,) = (workspace.root / "8-predict" / ".tried").iterdir()
    assert sorted(path.name for path in tried.iterdir()) == ["test.jsonl", "val-photos.jsonl"]
    with pytest.raises(SynthdetError, match="--arm and --weights"):
        run(workspace, survey, weights=weights, arm="real")
    weights.write_bytes(b"other")  # another detector of the same name
    with pytest.raises(SynthdetError, match=r"predict\.weights was .*--redo"):
        run(workspace, survey, weights=weights)


@pytest.mark.parametrize(
    "setting",
    ["label.class_map={whale: humpback whale}", "label.queries={humpback whale: [a whale]}"],
)
def test_weights_that_look_for_something_else_are_another_detector(
    workspace: Workspace, survey: Path, tmp_path: Path, setting: str
) -> None:
    weights = tmp_path / "mine.pt"
    weights.write_bytes(b"x")
    run(workspace, survey, weights=weights)
    workspace.write_config(set_values(workspace.read_config(), [setting]))
    with pytest.raises(SynthdetError, match=r"predict\.weights was .*--redo"):
        run(workspace, survey, weights=weights, opened=no_model)
    run(
        workspace,
        survey,
        weights=weights,
        detector=BlobDetector(names=("whale", "humpback whale")),
        redo=True,
    )
    assert len([*(workspace.root / "8-predict" / ".tried").iterdir()]) == 2


def test_a_second_survey_does_not_try_the_test_photos_again(
    workspace: Workspace, survey: Path, tmp_path: Path
) -> None:
    first, second = BlobDetector(), BlobDetector()
    run(workspace, survey, detector=first)
    other = shutil.copytree(survey, tmp_path / "other")
    run(workspace, other, detector=second)
    assert second.num_files < first.num_files
    lines = (workspace.root / "8-predict/other/counts.csv").read_text()
    assert lines == (output(workspace) / "counts.csv").read_text()


def test_without_a_test_animal_no_error_is_made_up(tmp_path: Path, survey: Path) -> None:
    workspace = make_prepared_run(tmp_path, num_photos=16, num_groups=8)
    add_study(workspace, STUDY, frames=False)
    for path in (workspace.root / "7-evaluate/predictions").glob("*[0-9].jsonl"):
        if not path.stem.endswith("-val"):
            path.write_text("")
    told = run(workspace, survey)
    assert "4 animals found  (no test photo of the run holds an animal" in told
    row = next(csv.DictReader(io.StringIO((output(workspace) / "counts.csv").read_text())))
    assert (row["expected"], row["low"], row["high"]) == ("", "", "")


def test_what_is_refused(workspace: Workspace, survey: Path, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.dng").write_bytes(b"x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/precious.txt").write_text("x")
    for match, photos, asked in (
        ("there is no folder", tmp_path / "nowhere", {}),
        ("there is no photo", tmp_path / "nothing", {}),
        (r"there is no photo .*a\.dng is in a format", tmp_path / "raw", {}),
        ("lie in each other", survey, {"output": survey / "found"}),
        ("lie in each other", survey, {"output": tmp_path}),
        ("holds something else", survey, {"output": tmp_path / "mine"}),
        ("holds something else", survey, {"output": workspace.root / "1-prepare"}),
        ("--scale 0", survey, {"scale": 0.0}),
    ):
        with pytest.raises(SynthdetError, match=match):
            run(workspace, photos, opened=no_model, **asked)
    with pytest.raises(SynthdetError, match="lie in each other"):
        run(workspace, survey, output=tmp_path, redo=True)
    assert survey.is_dir()
    shutil.rmtree(workspace.root / "7-evaluate")
    with pytest.raises(SynthdetError, match="evaluate is not done: run `synthdet evaluate"):
        run(workspace, survey, opened=no_model)


def test_a_survey_does_not_take_the_place_of_what_was_tried(
    workspace: Workspace, survey: Path, tmp_path: Path
) -> None:
    hidden = shutil.copytree(survey, tmp_path / "elsewhere" / ".tried")
    own = workspace.root / "8-predict"

    def refuse() -> None:
        for photos, asked in (
            (hidden, {}),
            (survey, {"output": own / ".tried" / "survey"}),
            (survey, {"output": own}),
        ):
            with pytest.raises(
                SynthdetError, match="keeps its own things: name another .*--output"
            ):
                run(workspace, photos, opened=no_model, redo=True, **asked)

    refuse()
    assert not own.exists()
    run(workspace, survey)
    before = file_bytes(own)
    refuse()
    assert file_bytes(own) == before
    run(workspace, hidden, output=own / "hidden")
    assert (own / "hidden" / "counts.csv").exists()


def test_two_photos_of_one_stem_keep_their_labels_apart(
    workspace: Workspace, tmp_path: Path
) -> None:
    write_photo(tmp_path / "survey/a.png", water(60, 50, (20, 20, 40, 30)))
    write_photo(tmp_path / "survey/a.jpg", water(60, 50))
    write_photo(tmp_path / "survey/a.png.jpg", water(60, 50))
    run(workspace, tmp_path / "survey")
    labels = output(workspace) / "yolo/labels"
    assert sorted(one.name for one in labels.iterdir()) == [
        "a.jpg.txt", "a.png.jpg.txt", "a.png.txt",
    ]  # fmt: skip
    assert (labels / "a.png.txt").read_text()
    assert (labels / "a.jpg.txt").read_text() == ""
