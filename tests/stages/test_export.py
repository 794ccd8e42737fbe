"""The export on a run written by hand, read back by pycocotools and by ultralytics."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from synthdet.config import Config, set_values
from synthdet.core.records import Box, Decision, Label, ManifestEntry, Score, SyntheticImage, Tile
from synthdet.errors import SynthdetError
from synthdet.models.protocols import ReadPicture
from synthdet.stages import _photos, export, export_check
from synthdet.stages.export_write import DatasetWriter
from synthdet.workspace import Workspace, hash_file, read_records, write_records, write_text
from tests.fakes import PlannedError
from tests.handmade import (
    CLASSES,
    HEIGHT,
    WIDTH,
    detected,
    file_bytes,
    finish,
    make_images,
    make_labels,
    make_run,
    make_tiles,
    quiet,
)

Run = tuple[Workspace, Config]

# asked for, kept by the filter, status
PICTURES: tuple[tuple[tuple[int, ...] | None, str | None, str | None], ...] = (
    ((0,), None, "accept"),
    ((0, 1), None, "accept"),
    ((1,), None, "review"),
    ((1,), "far from real", None),
    ((0,), "blank", None),
    ((), None, "negative"),
    ((1,), None, "accept"),
    ((), None, "negative"),
)


@pytest.fixture
def labelled(tmp_path: Path) -> Run:
    return make_labelled(tmp_path / "run")


def make_labelled(root: Path, pictures: Any = PICTURES) -> Run:
    workspace, config = make_run(root)
    make_tiles(workspace)
    finish(workspace.stage("finetune"), [], settings={"base_model": "pocket"})
    images, truth = make_images(workspace, [asked for asked, _, _ in pictures])
    folder = workspace.stage("filter")
    scores = [
        Score(
            image_id=image.image_id,
            similarity=0.9 - number / 50,
            background_similarity=0.5 + number / 50,
        )
        for number, image in enumerate(images)
    ]
    decisions = [
        Decision(image_id=image.image_id, kept=dropped is None, threshold=0.7, reason=dropped)
        for image, (_, dropped, _) in zip(images, pictures, strict=True)
    ]
    write_records(folder.path / "scores.jsonl", scores)
    write_records(folder.path / "decisions.jsonl", decisions)
    finish(folder, ["scores.jsonl", "decisions.jsonl"])
    labels = [
        Label.model_validate(
            {"image_id": image.image_id, "status": status, "boxes": detected(boxes)}
        )
        for image, boxes, (_, _, status) in zip(images, truth, pictures, strict=True)
        if status is not None
    ]
    make_labels(workspace, labels)
    return workspace, config


def run(labelled: Run, *settings: str) -> str:
    workspace, config = labelled
    reporter, said = quiet()
    export.run(workspace, set_values(config, list(settings)), reporter)
    return said.getvalue()


def manifest(labelled: Run) -> dict[str, ManifestEntry]:
    path = labelled[0].stage("export").path / "manifest.jsonl"
    return {entry.image_id: entry for entry in read_records(path, ManifestEntry)}


def synthetic(labelled: Run) -> list[str]:
    return [name for name, entry in manifest(labelled).items() if entry.source == "synthetic"]


def curate(labelled: Run, *verdicts: dict[str, Any]) -> None:
    lines = [json.dumps({"by": "me", "at": "now", **verdict}) + "\n" for verdict in verdicts]
    write_text(labelled[0].root / "curation.jsonl", "".join(lines))


def test_whole(labelled: Run) -> None:
    workspace, _ = labelled
    said = run(labelled)
    entries = manifest(labelled)
    tiles = read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
    assert list(entries)[: len(tiles)] == [tile.tile_id for tile in tiles]
    # 3 accepted, 2 confirmed backgrounds; not the one in review and the two dropped.
    numbers = ("000000", "000001", "000005", "000006", "000007")
    assert synthetic(labelled) == [f"syn-{number}" for number in numbers]
    assert all(entries[name].split == "train" for name in synthetic(labelled))
    assert "17 real and 5 synthetic pictures (2 of them confirmed backgrounds)" in said
    lock = workspace.stage("export").lock()
    assert lock is not None
    assert lock["counts"]["left_out"] == {"dropped by the filter": 2, "waiting for review": 1}
    card = (workspace.root / "6-export/DATA_CARD.md").read_text()
    assert "| train | synthetic | 5 | 2 |" in card
    assert "| base model | pocket | not known | Apache-2.0 |" in card
    assert str(workspace.root) not in card


def test_the_card_names_every_detector_that_drew_boxes(labelled: Run) -> None:
    workspace, _ = labelled
    lock = workspace.stage("label").lock_path
    fields = json.loads(lock.read_text())
    weights = ["own", "/home/me/seals.pt", "google/owlv2-base-patch16-ensemble"]
    fields["settings"] = {"weights": weights, "detector": "yolo11n"}
    write_text(lock, json.dumps(fields))
    run(labelled)
    card = (workspace.root / "6-export/DATA_CARD.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith("| boxes |")]
    assert rows == [
        "| boxes | yolo11n, trained on the real train tiles | not known | AGPL-3.0 (Ultralytics) |",
        "| boxes | seals.pt | not known | see its model card |",
        "| boxes | google/owlv2-base-patch16-ensemble | not known | Apache-2.0 |",
    ]


def test_yolo_is_as_ultralytics_wants_it(labelled: Run) -> None:
    workspace, _ = labelled
    run(labelled)
    yolo = workspace.root / "6-export/yolo"
    data = yaml.safe_load((yolo / "data.yaml").read_text())
    assert data == {
        "train": "images/train",
        "val": "images/val",
        "test": "images/test",
        "nc": 2,
        "names": dict(enumerate(CLASSES)),
    }
    for entry in manifest(labelled).values():
        image = yolo / "images" / entry.split / f"{entry.image_id}.png"
        assert workspace.root / entry.yolo_path == image
        assert hash_file(image) == entry.sha256
        assert Image.open(image).size == (WIDTH, HEIGHT)
        lines = (yolo / "labels" / entry.split / f"{entry.image_id}.txt").read_text().splitlines()
        assert len(lines) == len(entry.boxes)
        for line, box in zip(lines, entry.boxes, strict=True):
            class_id, x, y, w, h = (float(column) for column in line.split())
            edges = (
                (x - w / 2) * WIDTH,
                (y - h / 2) * HEIGHT,
                (x + w / 2) * WIDTH,
                (y + h / 2) * HEIGHT,
            )
            assert edges == pytest.approx(box.xyxy, abs=1e-3)
            assert class_id == box.class_id


def test_coco_loads_in_pycocotools_and_holds_the_same(labelled: Run) -> None:
    workspace, _ = labelled
    run(labelled)
    folder = workspace.root / "6-export/coco"
    entries = manifest(labelled)
    seen = set()
    for split in ("train", "val", "test"):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO(str(folder / f"annotations/instances_{split}.json"))
        assert min(coco.imgs) == min(coco.anns) == min(coco.cats) == 1
        for image_id, image in coco.imgs.items():
            entry = entries[Path(image["file_name"]).stem]
            seen.add(entry.image_id)
            assert entry.split == split
            path = folder / "images" / split / image["file_name"]
            assert path.samefile(workspace.root / entry.yolo_path)
            found = coco.loadAnns(coco.getAnnIds(image_id))
            assert len(found) == len(entry.boxes)
            for annotation, box in zip(found, entry.boxes, strict=True):
                x, y, w, h = annotation["bbox"]
                assert (x, y, x + w, y + h) == pytest.approx(box.xyxy, abs=1e-3)
                assert annotation["area"] == pytest.approx(w * h, abs=1e-3)
                assert coco.cats[annotation["category_id"]]["name"] == CLASSES[box.class_id]
    assert seen == set(entries)


def test_the_runs_own_tiles_are_copied_not_linked(labelled: Run) -> None:
    workspace, _ = labelled
    run(labelled)
    entry = manifest(labelled)["train-000"]
    assert not (workspace.root / entry.yolo_path).samefile(
        workspace.root / "1-prepare/tiles/train/train-000.png"
    )


ULTRALYTICS = """
import json, sys
from pathlib import Path
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset
data = check_det_dataset(sys.argv[1], autodownload=False)
found = {}
for split in ("train", "val", "test"):
    dataset = YOLODataset(img_path=data[split], data=data, task="detect", imgsz=64)
    cache = dataset.cache_labels(Path(dataset.label_files[0]).parent.with_suffix(".check"))
    nf, nm, ne, nc, total = cache["results"]
    boxes = sum(len(one["cls"]) for one in cache["labels"])
    found[split] = [total, nm, ne, nc, len(cache["msgs"]), boxes]
print("FOUND " + json.dumps(found))
"""


def test_ultralytics_reads_it_whole_after_a_move(labelled: Run, tmp_path: Path) -> None:
    workspace, _ = labelled
    run(labelled)
    moved = tmp_path / "elsewhere" / "with a space"
    shutil.move(workspace.root / "6-export/yolo", moved)
    (tmp_path / "settings").mkdir()
    environment = os.environ | {
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "YOLO_CONFIG_DIR": str(tmp_path / "settings"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", ULTRALYTICS, str(moved / "data.yaml")]
    child = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.split("FOUND ")[1])
    entries = manifest(labelled).values()
    for split in ("train", "val", "test"):
        members = [entry for entry in entries if entry.split == split]
        empty = sum(not entry.boxes for entry in members)
        boxes = sum(len(entry.boxes) for entry in members)
        # pictures, without a label file, with an empty one, corrupt, messages, boxes
        assert found[split] == [len(members), 0, empty, 0, 0, boxes]


def test_twice_changes_nothing(labelled: Run) -> None:
    workspace, _ = labelled
    said = run(labelled)
    times = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*") if path.is_file()}
    assert run(labelled).splitlines()[-1] == said.splitlines()[-1]
    assert times == {
        path: path.stat().st_mtime_ns for path in workspace.root.rglob("*") if path.is_file()
    }


def test_two_runs_export_the_same_bytes(tmp_path: Path) -> None:
    first, second = make_labelled(tmp_path / "a"), make_labelled(tmp_path / "b")
    run(first)
    run(second)
    exports = [file_bytes(workspace.root / "6-export") for workspace, _ in (first, second)]
    assert exports[0] == exports[1]
    assert not any("/tmp" in name for name in exports[0])


WRITES = (
    "DatasetWriter.add",
    "DatasetWriter.close",
    "write_text",
    "make_data_card",
    "check_export",
    "_put_in_place",
    "os.rename",
)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", WRITES)
def test_killed_and_resumed(
    labelled: Run, monkeypatch: pytest.MonkeyPatch, name: str, again: bool
) -> None:
    """In the middle of the first export, and of one that replaces another."""
    workspace, _ = labelled
    folder = workspace.root / "6-export"
    run(labelled, "export.num_synthetic=2")
    whole = file_bytes(folder)
    if again:
        run(labelled)
    else:
        shutil.rmtree(folder)
    owner: Any = {"os": os, "DatasetWriter": DatasetWriter}.get(name.partition(".")[0], export)
    attribute = name.rpartition(".")[2]
    real, calls = getattr(owner, attribute), []
    first_call = {"DatasetWriter.add": 4, "os.rename": 3}.get(name, 1)

    def stop(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) >= first_call:
            raise PlannedError(name)
        return real(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, stop)
        with pytest.raises(PlannedError):
            run(labelled, "export.num_synthetic=2")
    lock = workspace.stage("export").lock()
    assert lock is not None
    assert not lock["finished"]
    run(labelled, "export.num_synthetic=2")
    assert file_bytes(folder) == whole


@pytest.mark.parametrize(
    "promised",
    [
        "manifest.jsonl",
        "DATA_CARD.md",
        "yolo/data.yaml",
        "yolo/labels/val/val-000.txt",
        "yolo/images/test/test-001.png",
        "coco/images/train/syn-000001.png",
        "coco/annotations/instances_val.json",
        "voc/JPEGImages/val-000.png",
        "voc/Annotations/syn-000001.xml",
    ],
)
def test_a_promised_file_that_is_gone_is_made_again(labelled: Run, promised: str) -> None:
    folder = labelled[0].root / "6-export"
    run(labelled)
    whole = file_bytes(folder)
    (folder / promised).unlink()
    run(labelled)
    assert file_bytes(folder) == whole


def test_a_changed_decision_is_followed_in_place_and_back(labelled: Run) -> None:
    folder = labelled[0].root / "6-export"
    run(labelled)
    whole, output = file_bytes(folder), labelled[0].stage("export").output()
    run(labelled, "export.num_synthetic=1", "export.select=similarity")
    assert synthetic(labelled) == ["syn-000000"]
    assert not list(folder.rglob("syn-000001*"))
    assert labelled[0].stage("export").output() != output
    run(labelled)
    assert file_bytes(folder) == whole
    assert [path.name for path in labelled[0].root.glob("6-export*")] == ["6-export"]


def test_review_only_if_asked_for(labelled: Run) -> None:
    run(labelled, "export.include_review=true")
    assert "syn-000002" in synthetic(labelled)
    assert manifest(labelled)["syn-000002"].boxes


def test_the_mix(labelled: Run) -> None:
    run(labelled, "export.max_background_fraction=0")
    assert synthetic(labelled) == ["syn-000000", "syn-000001", "syn-000006"]
    run(labelled, "export.synthetic_fraction=0.2")
    assert len(synthetic(labelled)) == 3


def test_backgrounds_are_ranked_by_their_own_similarity(labelled: Run) -> None:
    """The later one is closer to the real backgrounds, and further from the animals."""
    run(labelled, "export.num_synthetic=3", "export.select=similarity")
    assert synthetic(labelled) == ["syn-000000", "syn-000001", "syn-000007"]


def test_diversity_reads_what_the_filter_kept(labelled: Run) -> None:
    """Of three accepted animals two are alike; the third is taken before the second of those."""
    folder = labelled[0].stage("filter").path / "embeddings"
    folder.mkdir()
    path = labelled[0].stage("generate").path / "images.jsonl"
    rows = {"syn-000000": [1, 0], "syn-000001": [0, 1], "syn-000006": [0.995, 0.0998]}
    hashes = {one.image_id: one.sha256 for one in read_records(path, SyntheticImage)}
    np.savez(
        folder / "shard.npz",
        model=np.array("None"),
        sha256=np.array([hashes[name] for name in rows]),
        fault=np.array([""] * 3),
        embeddings=np.array([*rows.values()], dtype=np.float32),
    )
    mix = ("export.num_synthetic=2", "export.max_background_fraction=0", "export.select=diversity")
    for seed in range(4):
        run(labelled, *mix, f"export.seed={seed}")
        assert "syn-000001" in synthetic(labelled)
        assert len(synthetic(labelled)) == 2
    (folder / "shard.npz").write_bytes(b"torn")
    with pytest.raises(SynthdetError, match=r"shard\.npz cannot be read"):
        run(labelled, *mix, "export.seed=9")


def test_verdicts_are_followed(labelled: Run) -> None:
    corrected = {"xyxy": [-5.0, 10.0, 30.0, 90.0], "class_id": 1}
    curate(
        labelled,
        {"image_id": "syn-000000", "verdict": "accept"},
        {"image_id": "syn-000000", "verdict": "reject"},
        {"image_id": "syn-000002", "verdict": "accept"},
        {"image_id": "syn-000003", "verdict": "accept", "boxes": [corrected]},
        {"image_id": "syn-000004", "verdict": "accept", "boxes": [corrected]},
        {"image_id": "syn-000006", "verdict": "reject", "sha256": "of another picture"},
        {"image_id": "train-000", "verdict": "reject"},
        {"image_id": "train-001", "verdict": "accept", "boxes": [corrected]},
        {"image_id": "test-000", "verdict": "reject"},
        {"image_id": "val-000", "verdict": "accept", "boxes": []},
        {"image_id": "gone", "verdict": "accept"},
    )
    said = run(labelled)
    entries = manifest(labelled)
    numbers = ("000001", "000002", "000003", "000005", "000006", "000007")
    assert synthetic(labelled) == [f"syn-{number}" for number in numbers]
    cut = (Box(xyxy=(0, 10, 30, HEIGHT), class_id=1),)
    assert entries["syn-000003"].boxes == entries["train-001"].boxes == cut
    assert entries["syn-000003"].provenance["boxes"] == "curation"
    assert "train-000" not in entries
    assert "test-000" in entries
    assert entries["val-000"].boxes
    assert "2 verdicts on val and test tiles are not followed" in said
    assert "2 verdicts are on pictures that are gone" in said
    (labelled[0].root / "curation.jsonl").unlink()
    run(labelled)
    assert "train-000" in manifest(labelled)


def test_nothing_survives(tmp_path: Path) -> None:
    labelled = make_labelled(tmp_path / "run", [((0,), "far from real", None)] * 3)
    said = run(labelled)
    assert "17 real pictures and no synthetic one: 3 dropped by the filter" in said
    assert synthetic(labelled) == []
    assert "None: all pictures are real." in (labelled[0].root / "6-export/DATA_CARD.md").read_text(
        encoding="utf-8"
    )


def test_nothing_was_generated(tmp_path: Path) -> None:
    assert "no synthetic one · train 12, val 2, test 3" in run(make_labelled(tmp_path / "run", ()))


def test_a_missing_picture_is_named_and_the_old_export_stays(labelled: Run) -> None:
    run(labelled, "export.num_synthetic=0")
    before = file_bytes(labelled[0].root / "6-export")
    (labelled[0].root / "3-generate/images/syn-000001.png").unlink()
    with pytest.raises(SynthdetError, match=r"syn-000001\.png is missing.*synthdet generate"):
        run(labelled)
    assert file_bytes(labelled[0].root / "6-export") == before


def test_two_pictures_of_one_name_are_refused(labelled: Run) -> None:
    workspace, _ = labelled
    path = workspace.stage("generate").path / "images.jsonl"
    images = read_records(path, SyntheticImage)
    write_records(path, [images[0].model_copy(update={"image_id": "TRAIN-000"}), *images[1:]])
    finish(workspace.stage("generate"), ["images.jsonl"])
    label = labelled[0].stage("label").path / "labels.jsonl"
    label.write_text(label.read_text().replace("syn-000000", "TRAIN-000"))
    with pytest.raises(SynthdetError, match="two pictures are called train-000 and TRAIN-000"):
        run(labelled)


def test_a_class_without_a_name_is_refused(labelled: Run) -> None:
    box = {"xyxy": [1, 1, 30, 30], "class_id": 2}
    curate(labelled, {"image_id": "syn-000000", "verdict": "accept", "boxes": [box]})
    with pytest.raises(SynthdetError, match=r"syn-000000 has a box of class 2.*curation\.jsonl"):
        run(labelled)


def test_a_stage_before_is_not_done(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run")
    with pytest.raises(SynthdetError, match="prepare is not done"):
        run((workspace, config))


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        ("yolo/labels/train/train-000.txt", " 0.", " 0.1", "box"),
        ("yolo/labels/train/train-000.txt", "\n", " 0.9\n", "not a class and four numbers"),
        ("yolo/labels/train/train-000.txt", "\n", "\n0 0.5 0.5 0.1 0.1\n", "2 boxes and 1"),
        ("yolo/data.yaml", "nc: 2", "path: .\nnc: 2", "holds a path"),
        ("yolo/data.yaml", "seal", "sea lion", "names"),
        ("coco/annotations/instances_val.json", '"category_id": ', '"category_id": 1', "box"),
        ("coco/annotations/instances_val.json", '"bbox": [', '"bbox": [1', "box"),
        ("coco/annotations/instances_val.json", "val-000.png", "x/val-000.png", "image 1"),
        ("coco/annotations/instances_test.json", '"name": "seal"', '"name": "cat"', "categories"),
    ],
)
def test_the_check_finds_what_does_not_read_back(
    labelled: Run, path: str, old: str, new: str, message: str
) -> None:
    run(labelled)
    folder = labelled[0].root / "6-export"
    export_check.check_export(folder, CLASSES)
    text = (folder / path).read_text()
    assert old in text
    (folder / path).write_text(text.replace(old, new, 1))
    with pytest.raises(SynthdetError, match=message):
        export_check.check_export(folder, CLASSES)


@pytest.mark.parametrize("kind", ["yolo/images", "yolo/labels", "coco/images"])
def test_the_check_finds_files_too_many_and_too_few(labelled: Run, kind: str) -> None:
    run(labelled)
    folder = labelled[0].root / "6-export"
    some = sorted((folder / kind / "val").iterdir())[0]
    shutil.copy(some, some.with_name("more"))
    with pytest.raises(SynthdetError, match="3 files and 2 in the manifest, as more"):
        export_check.check_export(folder, CLASSES)
    some.with_name("more").unlink()
    some.unlink()
    with pytest.raises(SynthdetError, match="it is not there"):
        export_check.check_export(folder, CLASSES)


def test_the_check_finds_another_picture(labelled: Run) -> None:
    run(labelled)
    folder = labelled[0].root / "6-export"
    shutil.copy(folder / "yolo/images/val/val-000.png", folder / "coco/images/val/val-001.png")
    with pytest.raises(SynthdetError, match="not the picture that its record describes"):
        export_check.check_export(folder, CLASSES)


def test_the_check_finds_what_is_no_picture(labelled: Run) -> None:
    run(labelled)
    folder = labelled[0].root / "6-export"
    (folder / "yolo/images/val/val-000.png").write_bytes(b"no picture")
    with pytest.raises(SynthdetError, match=r"val-000\.png: it cannot be read as a picture"):
        export_check.check_export(folder, CLASSES)


def test_a_frame_that_prepare_takes_is_not_too_large_for_the_check(
    labelled: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT // 3)  # PIL refuses twice that
    run(labelled)
    folder = labelled[0].stage("export").path
    monkeypatch.setattr(_photos, "MAX_PIXELS", WIDTH * HEIGHT // 3)
    with pytest.raises(SynthdetError, match="it cannot be read as a picture"):
        export_check.check_export(folder, CLASSES)


class OddReader:
    """Reads what is there, but for one picture."""

    def __init__(self, folder: Path, **odd: Any) -> None:
        self.folder, self.odd = folder, odd

    def read(self, data_yaml: Path, split: str) -> Iterator[ReadPicture]:
        assert data_yaml.is_file()
        assert data_yaml.parent.parent.name == ".tmp-moved"
        for path in sorted((data_yaml.parent / "images" / split).iterdir()):
            label = data_yaml.parent / "labels" / split / f"{path.stem}.txt"
            rows = [[float(one) for one in line.split()] for line in label.read_text().splitlines()]
            one = ReadPicture(path.name, WIDTH, HEIGHT, rows, "")
            if path.stem == "val-000":
                if self.odd.get("gone"):
                    continue
                one = dataclasses.replace(one, **self.odd)
            yield one


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ({"gone": True}, r"does not find val-000\.png"),
        ({"complaint": "corrupt JPEG restored"}, "corrupt JPEG restored"),
        ({"width": HEIGHT, "height": WIDTH}, f"as {HEIGHT} x {WIDTH}"),
        ({"boxes": ()}, "0 boxes and 1"),
        ({"boxes": [[1, 0.5, 0.5, 0.9, 0.9]]}, "where the manifest has"),
        ({"name": "other.png"}, "does not find"),
    ],
)
def test_what_another_reader_sees_differently_is_not_put_in_place(
    labelled: Run, odd: dict[str, Any], message: str
) -> None:
    workspace, config = labelled
    run(labelled, "export.num_synthetic=0")
    before = file_bytes(workspace.root / "6-export")
    folder = workspace.root / "6-export"
    with pytest.raises(SynthdetError, match=message):
        export.run(workspace, config, quiet()[0], open_reader=lambda: OddReader(folder, **odd))
    after = file_bytes(folder)
    assert {name: after[name] for name in before} == before
    export.run(workspace, config, quiet()[0], open_reader=lambda: OddReader(folder))
    assert not list(folder.glob(".tmp-*"))


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("voc/Annotations/train-000.xml", "<width>72", "<width>73"),
        ("voc/Annotations/train-000.xml", "<name>", "<name>a "),
        ("voc/Annotations/train-000.xml", "</annotation>", ""),
        ("voc/Annotations/train-000.xml", "<xmin>", "<xmin>1"),
        ("voc/ImageSets/Main/train.txt", "train-000\n", ""),
    ],
)
def test_the_check_reads_pascal_voc(labelled: Run, path: str, old: str, new: str) -> None:
    run(labelled)
    folder = labelled[0].root / "6-export"
    text = (folder / path).read_text()
    assert old in text
    (folder / path).write_text(text.replace(old, new, 1))
    with pytest.raises(SynthdetError, match="The export was not put in place"):
        export_check.check_export(folder, CLASSES)
