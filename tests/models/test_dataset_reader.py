"""ultralytics' own eyes on an export, in its own process."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from synthdet.errors import SynthdetError
from synthdet.models.dataset_reader import UltralyticsReader
from synthdet.models.detector import DetectorProcess
from synthdet.stages import export
from synthdet.stages.export_check import check_export
from tests.handmade import CLASSES, HEIGHT, WIDTH, quiet
from tests.stages.test_export import make_labelled, manifest


def test_it_reads_what_was_exported_and_says_what_is_wrong(tmp_path: Path) -> None:
    labelled = make_labelled(tmp_path / "a run")
    workspace, config = labelled
    with DetectorProcess(1) as process:
        reader = UltralyticsReader(process)
        export.run(workspace, config, quiet()[0], open_reader=lambda: reader)
        yolo = workspace.root / "6-export/yolo"
        entries = manifest(labelled)
        for split in ("train", "val", "test"):
            read = {one.name: one for one in reader.read(yolo / "data.yaml", split)}
            members = {f"{name}.png": one for name, one in entries.items() if one.split == split}
            assert read.keys() == members.keys()
            for name, one in read.items():
                assert (one.width, one.height, one.complaint) == (WIDTH, HEIGHT, "")
                found = [(int(row[0]), (row[1] - row[3] / 2) * WIDTH) for row in one.boxes]
                wanted = [(box.class_id, box.xyxy[0]) for box in members[name].boxes]
                assert found == [(number, pytest.approx(x, abs=0.01)) for number, x in wanted]
        assert not list(yolo.rglob("*.cache"))

        (yolo / "labels/val/val-000.txt").write_text("0 .5 .5 .2 .2 .9\n")
        (yolo / "labels/val/val-001.txt").unlink()
        complaints = {one.name: one.complaint for one in reader.read(yolo / "data.yaml", "val")}
        assert "6 columns" in complaints["val-000.png"]
        assert "no label file" in complaints["val-001.png"]
        (yolo / "labels/val/val-000.txt").write_text("")
        picture = yolo / "images/train/train-000.png"
        picture.write_bytes(picture.read_bytes()[:-40])
        (told,) = {one.complaint for one in reader.read(yolo / "data.yaml", "train")} - {""}
        assert "train-000.png" in told
        size_wh = (20_000, 10_000)  # prepare takes such frames; PIL alone refuses them
        Image.new("1", size_wh).save(yolo / "images/val/val-000.png")
        (frame,) = (one for one in reader.read(yolo / "data.yaml", "val") if "000" in one.name)
        assert (frame.width, frame.height) == size_wh
        with pytest.raises(SynthdetError):
            check_export(workspace.root / "6-export", CLASSES, reader)
