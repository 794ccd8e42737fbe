"""The whole journey with real networks, in its quickest form: what a user is left with holds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import get_args

import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from synthdet.core.records import (
    SPLITS,
    Decision,
    Label,
    LabelStatus,
    ManifestEntry,
    Photo,
    Tile,
)
from synthdet.stages import contact_sheet
from synthdet.workspace import STAGES, Workspace, read_json, read_records
from tests.quick import QUICK_SETTINGS, quick_survey, skip_without_weights

pytestmark = pytest.mark.timeout(600)


def synthdet(*arguments: str) -> str:
    """Run the program in a process of its own; what it said."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "synthdet.cli", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    skip_without_weights()
    folder = tmp_path_factory.mktemp("journey")
    survey = quick_survey(folder / "photos")
    settings = chain.from_iterable(("--set", setting) for setting in QUICK_SETTINGS)
    synthdet("init", str(folder / "run"), "--config", "pocket", "--photos", str(survey), *settings)
    told = synthdet("run", str(folder / "run"))
    assert all(f"{stage:<9}" in told for stage in STAGES)
    return Workspace(folder / "run")


def manifest(workspace: Workspace) -> list[ManifestEntry]:
    return read_records(workspace.stage("export").path / "manifest.jsonl", ManifestEntry)


def test_no_group_and_no_synthetic_picture_crosses_a_split(workspace: Workspace) -> None:
    prepare = workspace.stage("prepare").path
    for kind, name in ((Photo, "photos"), (Tile, "tiles")):
        records = read_records(prepare / f"{name}.jsonl", kind)
        splits_of: dict[str, set[str]] = {}
        for record in records:
            splits_of.setdefault(record.group, set()).add(record.split)
        assert records
        assert all(len(splits) == 1 for splits in splits_of.values())
    made = [entry for entry in manifest(workspace) if entry.source != "real"]
    assert {entry.split for entry in made} == {"train"}


def test_yolo_and_coco_hold_the_same_after_a_move(workspace: Workspace, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "set"
    shutil.copytree(workspace.stage("export").path, moved)
    settings = yaml.safe_load((moved / "yolo" / "data.yaml").read_text())
    assert "path" not in settings
    for split in SPLITS:
        entries = [entry for entry in manifest(workspace) if entry.split == split]
        coco = COCO(moved / "coco" / "annotations" / f"instances_{split}.json")
        assert len(entries) == len(coco.imgs) > 0
        by_stem = {Path(image["file_name"]).stem: image for image in coco.imgs.values()}
        for entry in entries:
            image = by_stem[entry.image_id]
            assert (moved / "coco" / "images" / split / image["file_name"]).is_file()
            found = sorted(
                (x, y, x + w, y + h)
                for x, y, w, h in (one["bbox"] for one in coco.imgToAnns[image["id"]])
            )
            lines = (moved / "yolo" / "labels" / split / f"{entry.image_id}.txt").read_text()
            wide, high = entry.width, entry.height
            drawn = sorted(
                ((cx - w / 2) * wide, (cy - h / 2) * high, (cx + w / 2) * wide, (cy + h / 2) * high)
                for _, cx, cy, w, h in (map(float, line.split()) for line in lines.splitlines())
            )
            truth = sorted(box.xyxy for box in entry.boxes)
            assert len(found) == len(drawn) == len(truth)
            for one, other, true in zip(found, drawn, truth, strict=True):
                assert one == pytest.approx(true, abs=0.5)
                assert other == pytest.approx(true, abs=0.5)


def test_the_study_is_real_on_both_sides(workspace: Workspace) -> None:
    verdict = read_json(workspace.stage("evaluate").path / "verdict.json")
    test = [entry for entry in manifest(workspace) if entry.split == "test"]
    assert verdict["test_pictures"] == len(test)
    assert {entry.source for entry in test} == {"real"}
    assert 0 < verdict["measures"]["real"]["map50"] <= 1
    assert "<html" in (workspace.stage("evaluate").path / "report.html").read_text()


def test_every_picture_is_one_of_its_own(workspace: Workspace) -> None:
    pictures = sorted((workspace.stage("generate").path / "images").glob("*.png"))
    assert len({path.read_bytes() for path in pictures}) == len(pictures) == 8


def test_the_contact_sheet_shows_every_kind_there_is(workspace: Workspace) -> None:
    labels = read_records(workspace.stage("label").path / "labels.jsonl", Label)
    decisions = read_records(workspace.stage("filter").path / "decisions.jsonl", Decision)
    strips = {strip.title: strip.cells for strip in contact_sheet.strips(workspace)}
    numbers = {
        status: sum(one.status == status for one in labels) for status in get_args(LabelStatus)
    }
    dropped = sum(not one.kept for one in decisions)
    for title, number in (
        (f"kept, and labelled without a doubt ({numbers['accept']})", numbers["accept"]),
        (f"kept, for a person to look at ({numbers['review']})", numbers["review"]),
        (f"kept, and confirmed empty ({numbers['negative']})", numbers["negative"]),
        (f"dropped by the filter ({dropped})", dropped),
    ):
        assert len(strips[title]) == min(number, 10)
    assert all(one.boxes for one in next(iter(strips.values())))
    before = (workspace.root / contact_sheet.NAME).read_bytes()
    assert contact_sheet.draw(workspace).read_bytes() == before
    with Image.open(workspace.root / contact_sheet.NAME) as sheet:
        assert sheet.width > 1000
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(2**24) or ()}
    assert (240, 228, 66) in colours, "the real boxes are drawn"


def test_again_it_makes_nothing(workspace: Workspace) -> None:
    before = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*") if path.is_file()}
    synthdet("run", str(workspace.root))
    assert synthdet("status", str(workspace.root), "--verify").endswith(
        "every file is as recorded\n"
    )
    changed = {p.name for p, when in before.items() if p.stat().st_mtime_ns != when}
    # Photos that were new when they were first read are remembered by the next start.
    assert changed <= {".lock", ".photo-hashes.json"}
