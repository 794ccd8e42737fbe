"""The notebooks are kept without outputs, train nothing, and run on a small run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from synthdet.config import Config
from synthdet.core.records import (
    Box,
    DetectedBox,
    Detections,
    ManifestEntry,
    Source,
    Split,
    SyntheticImage,
    Tile,
)
from synthdet.stages import export
from synthdet.stages.filter_cache import Embedded, EmbeddingCache
from synthdet.workspace import (
    Workspace,
    hash_file,
    read_json,
    read_records,
    write_json,
    write_records,
    write_text,
)
from tests.handmade import quiet
from tests.labelled import make_labelled
from tests.quick import QUICK_SETTINGS, quick_survey, skip_without_weights

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
WIDTH, HEIGHT = 96, 64
MEASURES = (
    "map50", "map50_95", "precision", "recall", "f1", "confidence", "count_bias", "recall_small"
)  # fmt: skip
WHALE = (20.0, 10.0, 60.0, 40.0)


def evaluated_run(folder: Path, *, arms: tuple[str, ...]) -> Workspace:
    """A run with an export and an evaluation, written by hand."""
    workspace = Workspace.make(folder, Config())
    entries = []
    pictures: list[tuple[Source, Split]] = [("real", "train"), ("real", "val"), ("real", "test")]
    if len(arms) > 1:
        pictures.append(("synthetic", "train"))
    for number, (source, split) in enumerate(pictures):
        name = f"{source}-{number}"
        path = workspace.stage("export").path / "yolo" / "images" / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 * number, np.uint8)).save(path)
        entry = ManifestEntry(
            image_id=name,
            source=source,
            split=split,
            yolo_path=workspace.relative(path),
            coco_path=workspace.relative(path),
            sha256=hash_file(path),
            width=WIDTH,
            height=HEIGHT,
            boxes=(Box(xyxy=WHALE, class_id=0),),
            provenance={},
        )
        entries.append(entry)
    write_records(workspace.stage("export").path / "manifest.jsonl", entries)
    lines = ["arm,seed,measure,value"]
    for arm in arms:
        for seed in (0, 1):
            lines += [f"{arm},{seed},{measure},{0.3 + 0.1 * seed:.6f}" for measure in MEASURES]
            found = Detections(
                image_id="real-2",
                boxes=(DetectedBox(xyxy=(18, 8, 55, 44), class_id=0, confidence=0.8),),
            )
            path = workspace.stage("evaluate").path / "predictions" / f"{arm}-{seed}.jsonl"
            write_records(path, [found])
    write_text(workspace.stage("evaluate").path / "results.csv", "\n".join(lines) + "\n")
    compared: dict[str, Any] = {
        "map50": {"mean": 0.02, "low": -0.1, "high": 0.14},
        "map50_95": {"mean": 0.01, "low": None, "high": None},
    }
    level = {"map50": compared["map50"], "map50_95": compared["map50_95"]}
    points = [{"asked": one, "number": 4 * one, "name": "real", **level} for one in (0, 1)]
    verdict = {
        "sentence": "Not shown.",
        "differences": compared if len(arms) > 1 else {},
        "sweeps": {"synthetic": {"points": points}} if len(arms) > 1 else {},
    }
    write_json(workspace.stage("evaluate").path / "verdict.json", verdict)
    return workspace


def test_there_are_notebooks() -> None:
    assert {"compare_detectors", "look_at_a_run", "colab_t4"} <= {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_clean(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            assert "torch" not in cell.source
            assert "ultralytics" not in cell.source


@pytest.mark.parametrize(
    "arms", [("real", "real_plus_synthetic"), ("real",)], ids=["compared", "nothing-added"]
)
def test_the_comparison_runs(
    arms: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = evaluated_run(tmp_path / "run", arms=arms)
    monkeypatch.setenv("SYNTHDET_RUN", str(workspace.root))
    notebook = nbformat.read(
        next(path for path in NOTEBOOKS if path.stem == "compare_detectors"), as_version=4
    )
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs[0]["text"] == "Not shown.\n"
    sweeps = read_json(workspace.stage("evaluate").path / "verdict.json")["sweeps"]
    drawn = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(drawn) == 5 + len(sweeps), "pairs, intervals, train, test, mistakes, and curves"


@pytest.mark.parametrize("embedded", [True, False], ids=["with-vectors", "without"])
def test_three_pictures_are_followed_through_a_run(
    embedded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, config = make_labelled(tmp_path / "run")
    boxes = [{"xyxy": [18, 12, 54, 36], "class_id": 1}]
    judged = {
        "image_id": "syn-000005",
        "verdict": "accept",
        "boxes": boxes,
        "by": "ann",
        "at": "now",
    }
    write_text(workspace.root / "curation.jsonl", json.dumps(judged) + "\n")
    export.run(workspace, config, quiet()[0])
    if embedded:
        tiles = read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
        images = read_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage)
        rng = np.random.default_rng(0)
        rows = {p.sha256: rng.normal(size=8).astype(np.float32) for p in (*tiles, *images)}
        contents = {sha256: Embedded(row, None) for sha256, row in rows.items()}
        contents[images[6].sha256] = Embedded(None, "blank")
        cache = EmbeddingCache(workspace.stage("filter").path / "embeddings", "tiny")
        cache.add_part(contents)
    before = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")}
    monkeypatch.setenv("SYNTHDET_RUN", str(workspace.root))
    notebook = nbformat.read(
        next(path for path in NOTEBOOKS if path.stem == "look_at_a_run"), as_version=4
    )
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    drawn = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(drawn) == 3 + embedded, "nearest, similarity, plane, boxes"
    said = "".join(output.get("text", "") for output in outputs)
    assert "17 real tiles, 7 synthetic pictures" in said
    assert ("the filter has kept no vectors" in said) is not embedded
    assert "to review: syn-000005\n  a person: accept, by ann\n  6-export/yolo" in said
    assert "boxes from curation\n  whale: 0.5" in said
    assert "dropped: syn-000004\n  a person: has not looked\n  not exported" in said
    tables = "".join(o["data"]["text/plain"] for o in outputs if "text/html" in o.get("data", {}))
    assert "far from real" in tables
    after = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")}
    assert after == before, "it only reads"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_journey_runs_in_a_notebook_and_goes_on_in_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skip_without_weights()
    run = tmp_path / "drive" / "runs" / "whales"
    monkeypatch.setenv("SYNTHDET_PHOTOS", str(quick_survey(tmp_path / "survey")))
    monkeypatch.setenv("SYNTHDET_RUN", str(run))
    monkeypatch.setenv("SYNTHDET_CONFIG", "pocket")
    monkeypatch.setenv("SYNTHDET_SETTINGS", json.dumps(QUICK_SETTINGS))
    notebook = nbformat.read(
        next(path for path in NOTEBOOKS if path.stem == "colab_t4"), as_version=4
    )

    def execute(cells: int | None) -> str:
        part = notebook.copy()
        part.cells = notebook.cells[:cells]
        resources = {"metadata": {"path": str(tmp_path)}}
        NotebookClient(part, timeout=900, resources=resources).execute()
        return "".join(
            output.get("text", "") for cell in part.cells for output in cell.get("outputs", [])
        )

    until_pictures = next(
        index for index, cell in enumerate(notebook.cells) if "sheet" in cell.source
    )
    assert "8 pictures" in execute(until_pictures + 1)
    before = {path.name: path.stat().st_mtime_ns for path in run.glob("3-generate/images/*")}
    assert len(before) == 8
    sentence = execute(None).strip().splitlines()[-1]
    after = {path.name: path.stat().st_mtime_ns for path in run.glob("3-generate/images/*")}
    assert after == before, "the second session made no picture again"
    assert sentence == read_json(run / "7-evaluate" / "verdict.json")["sentence"]
