"""How fast is a run in FiftyOne? Our import of its records, beside FiftyOne's of the YOLO export.

    python benchmarks/curate.py [--quick] [--work FOLDER]

100,000 synthetic pictures (one small picture, repeated by hard link) with 3 boxes each: from the run folder
with `synthdet.stages.curate.load`, records read, views and colours included, and with
`Dataset.from_dir` from the YOLO dataset of the same pictures. Three rounds each, in turn, in one process with
one database server of its own; the ratio is that of the medians.

First the two datasets are held against each other field by field, picture by picture: all that `from_dir`
gives, which is the file (its name and bytes), the media type, and class and box of every detection, in
order. Ours holds size, prompt, seed, similarity, status, raw boxes and views besides, in that same time.

Progress goes to stderr, one JSON object to stdout. `ok` is whether every target is met.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from pictures import CLASSES, SIZE_WH, boxes_of, write_pictures
from report import make_report, say, workplace
from rich.console import Console

from synthdet.config import Config
from synthdet.core.formats.yolo import to_yolo_lines
from synthdet.core.records import (
    Decision,
    DetectedBox,
    Detections,
    Label,
    Score,
    SyntheticImage,
)
from synthdet.progress import Reporter
from synthdet.stages import curate
from synthdet.workspace import Workspace, hash_file, write_json, write_records

TARGETS: dict[str, tuple[str, float]] = {
    "speedup_vs_from_dir": (">=", 20.0),
    "fields_equal": (">=", 1.0),
}
ROUNDS = 3


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="2,000 pictures")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one without it")
    arguments = parser.parse_args()
    if arguments.work is None:
        # A process of its own holds the database server: the folder goes when both have ended.
        with workplace("curate", None) as work:
            command = [sys.executable, *sys.argv, "--work", str(work)]
            sys.exit(subprocess.run(command, check=False).returncode)
    os.environ["FIFTYONE_DATABASE_DIR"] = str(arguments.work / "database")
    result = _measure(arguments.work, 2_000 if arguments.quick else 100_000)
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


def _measure(work: Path, number: int) -> dict[str, Any]:
    say(f"making a run of {number:,} pictures and its YOLO dataset")
    workspace = _make_run(work / "run", number)
    yolo = workspace.stage("export").path / "yolo"
    ours: list[float] = []
    theirs: list[float] = []
    fields: dict[str, bool] = {}
    with curate._fiftyone() as fo:
        for turn in range(1, ROUNDS + 1):
            start = time.perf_counter()
            plain = fo.Dataset.from_dir(
                dataset_dir=str(yolo),
                yaml_path=str(yolo / "data.yaml"),
                dataset_type=fo.types.YOLOv5Dataset,
                split="train",
                label_field="accepted",
                progress=False,
            )
            theirs.append(time.perf_counter() - start)
            start = time.perf_counter()
            name = curate.load(workspace, Config(), Reporter(Console(file=sys.stderr)))
            ours.append(time.perf_counter() - start)
            say(f"round {turn}: from_dir {theirs[-1]:.1f} s, ours {ours[-1]:.1f} s")
            loaded = fo.load_dataset(name)
            if turn == 1:
                fields = _compare(plain, loaded, number)
                say(f"equal: {fields}")
            plain.delete()
            loaded.delete()
    seconds, from_dir = statistics.median(ours), statistics.median(theirs)
    figures = {
        "speedup_vs_from_dir": round(from_dir / seconds, 2),
        "fields_equal": float(bool(fields) and all(fields.values())),
        "pictures": number,
        "pictures_per_second": round(number / seconds, 1),
        "from_dir_pictures_per_second": round(number / from_dir, 1),
    }
    return make_report("curate", figures, TARGETS, fields=fields)


# --- a run -------------------------------------------------------------------------------------


def _make_run(root: Path, number: int) -> Workspace:
    """A run up to its labels, and ``6-export/yolo`` with every picture and its boxes in train."""
    workspace = Workspace.make(root, Config())
    prepare = workspace.stage("prepare")
    prepare.claim(settings={}, inputs={})
    write_records(prepare.path / "tiles.jsonl", [])
    write_json(prepare.path / "dataset.json", {"classes": list(CLASSES)})
    prepare.close(outputs=[prepare.path / "tiles.jsonl"], counts={}, runtime={})
    _make_files(workspace, number)
    sha256 = hash_file(root / _path(0))
    ids = [Path(_path(index)).stem for index in range(number)]
    chosen, labelled = workspace.stage("filter").path, workspace.stage("label").path
    detected = [
        tuple(DetectedBox(xyxy=box.xyxy, class_id=box.class_id, confidence=0.9) for box in boxes_of(i))
        for i in range(number)
    ]  # fmt: skip
    write_records(
        workspace.stage("generate").path / "images.jsonl",
        (
            SyntheticImage(
                image_id=name, path=_path(index), sha256=sha256, prompt="aerial photo of a whale",
                negative_prompt="", seed=index, scheduler="DPMSolverMultistepScheduler",
                num_inference_steps=20, guidance_scale=5.0, lora_scale=1.0, width=SIZE_WH[0],
                height=SIZE_WH[1], batch=0, batch_shape=1, asked_for=(0, 1, 0),
            )
            for index, name in enumerate(ids)
        ),
    )  # fmt: skip
    write_records(
        chosen / "scores.jsonl",
        (Score(image_id=n, similarity=0.7 + i % 300 / 1000) for i, n in enumerate(ids)),
    )
    write_records(
        chosen / "decisions.jsonl", (Decision(image_id=n, kept=True, threshold=0.7) for n in ids)
    )
    pairs = list(zip(ids, detected, strict=True))
    write_records(
        labelled / "detections.jsonl", (Detections(image_id=n, boxes=boxes) for n, boxes in pairs)
    )
    write_records(
        labelled / "labels.jsonl",
        (Label(image_id=n, status="accept", boxes=boxes) for n, boxes in pairs),
    )
    return workspace


def _path(index: int) -> str:
    return f"3-generate/images/syn-{index:06d}.png"


def _make_files(workspace: Workspace, number: int) -> None:
    root, yolo = workspace.root, workspace.stage("export").path / "yolo"
    for folder in (root / "3-generate" / "images", yolo / "images/train", yolo / "labels/train"):
        folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (SIZE_WH[1], SIZE_WH[0], 3), dtype=np.uint8)
    paths = [root / _path(index) for index in range(number)]
    write_pictures(picture, paths)
    for index, path in enumerate(paths):
        os.link(path, yolo / "images/train" / path.name)
        label = yolo / "labels/train" / f"{path.stem}.txt"
        label.write_text(to_yolo_lines(boxes_of(index), *SIZE_WH))
    names = "".join(f"  {number}: {name}\n" for number, name in enumerate(CLASSES))
    (yolo / "data.yaml").write_text(f"train: images/train\nval: images/train\nnames:\n{names}")


# --- equality ----------------------------------------------------------------------------------


def _compare(plain: Any, ours: Any, number: int) -> dict[str, bool]:
    """Field by field over all pictures: those of `from_dir` against ours."""
    paths = ["filepath", "accepted.detections.label", "accepted.detections.bounding_box"]
    sides = []
    for dataset in (plain, ours):
        columns = dataset.values(paths)
        sides.append(sorted(zip(*columns, strict=True), key=lambda row: Path(row[0]).name))
    if [len(side) for side in sides] != [number, number]:
        raise SystemExit(f"the datasets hold {[len(side) for side in sides]} pictures")
    theirs, own = sides
    stride = max(1, number // 1000)
    boxes = [
        np.array([box for row in side for box in row[2]], dtype=np.float64) for side in (theirs, own)
    ]  # fmt: skip
    return {
        "file name": all(Path(a[0]).name == Path(b[0]).name for a, b in zip(theirs, own, strict=True)),
        "file bytes": all(
            hash_file(Path(a[0])) == hash_file(Path(b[0]))
            for a, b in zip(theirs[::stride], own[::stride], strict=True)
        ),
        "media type": plain.media_type == ours.media_type,
        "class": all(a[1] == b[1] for a, b in zip(theirs, own, strict=True)),
        # Seven decimals stand in the YOLO files: a hundred-thousandth of a pixel here.
        "box": boxes[0].shape == boxes[1].shape and bool(np.allclose(*boxes, rtol=0, atol=2e-6)),
    }  # fmt: skip


if __name__ == "__main__":
    main()
