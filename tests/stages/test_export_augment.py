"""Augmented copies of real train tiles: the arm that synthetic pictures are measured against."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from synthdet.core.records import Box, ManifestEntry
from synthdet.errors import SynthdetError
from synthdet.stages.export_augment import make_augment, plan_copies
from synthdet.stages.export_check import check_export
from synthdet.workspace import Workspace, hash_file, read_records
from tests.handmade import CLASSES, HEIGHT, WIDTH, file_bytes
from tests.stages.test_export import Run, labelled, manifest, run, synthetic

__all__ = ["labelled"]
ARMS = "evaluate.arms=[real,real_plus_augmented,real_plus_synthetic]"


def copies(workspace: Workspace) -> list[ManifestEntry]:
    return read_records(workspace.root / "6-export/augmented/manifest.jsonl", ManifestEntry)


def test_an_arm_that_is_named_gets_its_copies(labelled: Run) -> None:
    workspace, _ = labelled
    said = run(labelled, ARMS)
    made, exported = copies(workspace), manifest(labelled)
    assert len(made) == len(synthetic(labelled)) == 5
    assert "5 augmented copies" in said
    assert len({one.provenance["tile"] for one in made}) == 5
    for entry in made:
        assert (entry.source, entry.split, entry.coco_path) == ("augmented", "train", None)
        tile = exported[entry.provenance["tile"]]
        assert (tile.source, tile.split) == ("real", "train")
        assert entry.provenance["group"] == tile.provenance["group"]
        picture = workspace.root / entry.yolo_path
        assert hash_file(picture) == entry.sha256
        label = workspace.root / f"6-export/augmented/labels/{entry.image_id}.txt"
        lines = label.read_text().splitlines()
        assert [int(line.split()[0]) for line in lines] == [box.class_id for box in tile.boxes]
    # Neither dataset holds them: a detector trained on those sees what it saw before.
    assert not [one for one in exported.values() if one.source == "augmented"]
    assert not list((workspace.root / "6-export/yolo").rglob("*-aug*"))


def test_boxes_move_with_the_picture(labelled: Run) -> None:
    workspace, _ = labelled
    run(labelled, ARMS)
    shapes = set()
    for entry in copies(workspace):
        pixels = np.asarray(Image.open(workspace.root / entry.yolo_path).convert("L"), dtype=float)
        assert pixels.shape == (entry.height, entry.width)
        shapes.add(pixels.shape)
        inside = np.zeros(pixels.shape, dtype=bool)
        for box in entry.boxes:
            x1, y1, x2, y2 = (round(edge) for edge in box.xyxy)
            inside[y1:y2, x1:x2] = True
        if entry.boxes:  # animals are dark blots
            assert np.median(pixels[inside]) < np.median(pixels[~inside]) - 15
    assert shapes == {(HEIGHT, WIDTH), (WIDTH, HEIGHT)}


def test_the_same_bytes_again_and_gone_when_not_asked_for(labelled: Run) -> None:
    workspace, _ = labelled
    run(labelled)
    plain = file_bytes(workspace.root / "6-export")
    run(labelled, ARMS)
    whole, output = file_bytes(workspace.root / "6-export"), workspace.stage("export").output()
    assert {key: plain[key] for key in plain if key != "DATA_CARD.md"}.items() <= whole.items()
    run(labelled)
    assert file_bytes(workspace.root / "6-export") == plain
    run(labelled, ARMS)
    assert file_bytes(workspace.root / "6-export") == whole
    assert workspace.stage("export").output() == output


def test_a_lost_copy_is_made_again(labelled: Run) -> None:
    workspace, _ = labelled
    run(labelled, ARMS)
    whole = file_bytes(workspace.root / "6-export")
    (workspace.root / copies(workspace)[2].yolo_path).unlink()
    run(labelled, ARMS)
    (workspace.root / "6-export/augmented/manifest.jsonl").unlink()
    run(labelled, ARMS)
    assert file_bytes(workspace.root / "6-export") == whole


@pytest.mark.parametrize("what", ["images", "labels"])
def test_the_check_reads_the_copies(labelled: Run, what: str) -> None:
    run(labelled, ARMS)
    folder = labelled[0].root / "6-export"
    check_export(folder, CLASSES)
    some = sorted((folder / "augmented" / what).iterdir())
    with_box = [path for path in some if path.suffix == ".png" or path.read_text()]
    with_box[0].write_bytes(with_box[-1].read_bytes() + b"\n")
    with pytest.raises(SynthdetError, match="augmented"):
        check_export(folder, CLASSES)


def test_in_the_train_set_if_asked_for(labelled: Run) -> None:
    run(labelled, "export.augmented=train")
    made = [one for one in manifest(labelled).values() if one.source == "augmented"]
    assert len(made) == 5
    assert all(
        one.coco_path and one.yolo_path.startswith("6-export/yolo/images/train/") for one in made
    )
    assert not (labelled[0].root / "6-export/augmented").exists()


def test_copies_are_dealt_out_evenly_and_added_to() -> None:
    tiles = [f"tile-{number}" for number in range(7)]
    few, many = (plan_copies(tiles, number, seed=3) for number in (5, 17))
    assert {*few} <= {*many}
    assert (len(few), len(many)) == (5, 17)
    assert {sum(one[0] == tile for one in many) for tile in tiles} == {2, 3}
    assert len({seed for _, _, seed in many}) == 17
    assert plan_copies([], 5, seed=0) == []


@pytest.mark.parametrize("seed", range(6))
def test_a_seed_is_a_copy(seed: int) -> None:
    augment = make_augment()
    picture = np.random.default_rng(1).integers(0, 255, (48, 72, 3), dtype=np.uint8)
    before = picture.copy()
    box = Box(xyxy=(3.25, 5, 20, 11.5), class_id=1)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, moved = augment(picture, [box], seed)
    augment(picture, [], 99)
    again, moved_again = augment(picture, [box], seed)
    assert np.array_equal(first, again)
    assert moved == moved_again
    assert np.array_equal(picture, before)
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    sides = sorted((moved[0].xyxy[2] - moved[0].xyxy[0], moved[0].xyxy[3] - moved[0].xyxy[1]))
    assert sides == pytest.approx([6.5, 16.75], abs=2e-3)
    assert moved[0].class_id == 1


def test_all_eight_symmetries_come_up() -> None:
    augment = make_augment()
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    box = Box(xyxy=(2, 3, 12, 8), class_id=0)
    places = {augment(picture, [box], seed)[1][0].xyxy for seed in range(60)}
    assert len(places) == 8


def test_importing_asks_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NO_ALBUMENTATIONS_UPDATE", raising=False)
    make_augment()
    import os

    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"
