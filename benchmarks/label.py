"""Are labels drawn quickly, and can those that nobody looked at be believed?

    python benchmarks/label.py [--quick] [--work FOLDER] [--parts speed,quality]

- *speed*: yolo11n (the embedded detector), two threads a side, in turn: our adapter on many pictures
  against ultralytics' own `predict`, picture by picture, at 128 and at 640 pixels: `speedup_vs_loop_128`,
  `ratio_vs_loop_640` (1 or more: not slower). Boxes are checked equal first. On a GPU the same at 640
  pixels as `speedup_vs_loop_gpu`.
- *quality*: a survey of the rendered sea trains the detector; pictures of other flights, whose truth is
  known and of which three in ten show something else, go through the label stage. `accepted_precision`
  and `accepted_recall` are of the boxes accepted without review, at IoU 0.5; pictures that wait for
  review lower the recall. The same without the eight views, to see what they are worth.

Progress goes to stderr, one JSON object to stdout. `ok` is whether every target is met.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from PIL import Image
from report import make_report, measure_parts, say, workplace
from rich.console import Console

from synthdet.core.comparison import pairwise_iou
from synthdet.core.labelling import measure_accepted
from synthdet.core.records import (
    Box,
    Decision,
    Label,
    Score,
    SyntheticImage,
    Tile,
)
from synthdet.pipeline import init_run, run_stage
from synthdet.pocket import weights_dir
from synthdet.pocket.sea import BASE_CLASSES, HUMPBACK, Scene, render_scene
from synthdet.pocket.survey import SETTINGS, write_survey
from synthdet.progress import Reporter
from synthdet.workspace import Workspace, hash_file, read_json, read_records, write_records

TARGETS: dict[str, tuple[str, float]] = {
    "speedup_vs_loop_128": (">=", 3.0),
    "ratio_vs_loop_640": (">=", 1.0),
    "accepted_precision": (">=", 0.97),
    "accepted_recall": (">=", 0.85),
}
PARTS = ("speed", "quality")
QUIET = Reporter(Console(quiet=True))
CONFIDENCE = 0.25
PICTURE_SEED = 90_000_000


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    pictures: int = 512
    large_pictures: int = 96
    rounds: int = 3
    flights: tuple[int, int] = (24, 8)
    scenes: int = 1_000
    steps: int = 1_500  # the default of `label.max_train_steps`


QUICK = Plan(pictures=64, large_pictures=8, rounds=1, flights=(4, 2), scenes=30, steps=20)


def main() -> None:
    """Measure, and print one JSON object."""
    arguments = _parse()
    if arguments.side:
        _serve(arguments.side, arguments.work, arguments.device)
        return
    plan = QUICK if arguments.quick else Plan()
    with workplace("label", arguments.work) as work:
        figures = measure_parts(
            {part: partial(_PARTS[part], work, plan) for part in arguments.parts.split(",")}
        )
    result = make_report("label", figures, TARGETS)
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few of everything: does it run?")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one without it")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument("--side", choices=["ours", "loop"], help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- speed ---------------------------------------------------------------------------------------


def _measure_speed(work: Path, plan: Plan) -> dict[str, Any]:
    sizes = {128: plan.pictures, 640: plan.large_pictures}
    for size, number in sizes.items():
        _save_pictures(work / f"pictures-{size}", number, size)
    figures: dict[str, Any] = {}
    with _Side("ours", work, "cpu") as ours, _Side("loop", work, "cpu") as loop:
        for size, number in sizes.items():
            told = _race(ours, loop, size, plan.rounds)
            name = "speedup_vs_loop_128" if size == 128 else "ratio_vs_loop_640"
            figures[name] = round(told[1] / told[0], 2)
            figures[f"ms_a_picture_{size}"] = round(1000 * told[0] / number, 2)
            figures[f"loop_ms_a_picture_{size}"] = round(1000 * told[1] / number, 2)
    if _has_gpu():
        with _Side("ours", work, "cuda") as ours, _Side("loop", work, "cuda") as loop:
            told = _race(ours, loop, 640, plan.rounds)
            figures["speedup_vs_loop_gpu"] = round(told[1] / told[0], 2)
    return figures


def _race(ours: _Side, loop: _Side, size: int, rounds: int) -> tuple[float, float]:
    """Median seconds of both, in turn, after a round that counts for neither and is compared."""
    _check_equal(ours.ask(size)["boxes"], loop.ask(size)["boxes"])
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for side, times in zip((ours, loop), seconds, strict=True):
            times.append(side.ask(size)["seconds"])
        say(
            f"{size} px, round {turn + 1}: ours {seconds[0][-1]:.2f} s, loop {seconds[1][-1]:.2f} s"
        )
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _check_equal(ours: Sequence[Any], theirs: Sequence[Any]) -> None:
    """Both sides draw the same boxes, but for those near the confidence threshold."""
    missed = total = 0
    for some, others in ((ours, theirs), (theirs, ours)):
        for one, other in zip(some, others, strict=True):
            sure = [box[:4] for box in one if box[4] >= CONFIDENCE + 0.05]
            total += len(sure)
            if sure:
                overlaps = pairwise_iou(sure, [box[:4] for box in other])
                missed += int((overlaps.max(axis=1, initial=0) < 0.9).sum())
    if total == 0 or missed > 0.01 * total:
        raise SystemExit(f"boxes differ: {missed} of {total} are drawn by one side alone")
    say(f"boxes are equal: {total - missed} of {total}")


def _save_pictures(folder: Path, number: int, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        path = folder / f"{index:05d}.jpg"
        if not path.exists():
            image = Image.fromarray(render_scene(PICTURE_SEED - 1 - index).image)
            image.resize((size, size), Image.Resampling.BICUBIC).save(path, quality=92)


class _Side:
    """A side of the race in a process of its own, which answers a size with its seconds."""

    def __init__(self, side: str, work: Path, device: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--side", side, "--work", str(work), "--device", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> _Side:
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)

    def ask(self, size: int) -> dict[str, Any]:
        """Have all pictures of a size looked at."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(size, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit("a side of the race died")


def _serve(side: str, work: Path, device: str) -> None:
    look = _open_ours(device) if side == "ours" else _open_loop(work, device)
    for line in sys.stdin:
        size = int(line)
        paths = sorted((work / f"pictures-{size}").glob("*.jpg"))
        started = time.perf_counter()
        boxes = look(paths, size)
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "boxes": boxes}), flush=True)


Look = Callable[[Sequence[Path], int], list[list[list[float]]]]


def _open_ours(device: str) -> Look:
    from synthdet.models.detector import ChildDetector, DetectorProcess
    from synthdet.pipeline import DETECT_BATCH

    process = DetectorProcess(threads=2)
    opened: dict[int, ChildDetector] = {}

    def look(paths: Sequence[Path], size: int) -> list[list[list[float]]]:
        if size not in opened:
            opened[size] = ChildDetector(
                weights_dir() / "yolo", image_size=size, batch_size=DETECT_BATCH, device=device,
                threads=2, trust=False, process=process,
            )  # fmt: skip
        found = []
        for begin in range(0, len(paths), DETECT_BATCH):
            found += opened[size].detect(
                paths[begin : begin + DETECT_BATCH], min_confidence=CONFIDENCE
            )
        return [[[*box.xyxy, box.confidence] for box in boxes] for boxes in found]

    return look


def _open_loop(work: Path, device: str) -> Look:
    """What everybody writes first: `model.predict` for each picture."""
    os.environ.update(
        YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false",
        YOLO_CONFIG_DIR=str(work / "settings"),
    )  # fmt: skip
    (work / "settings").mkdir(exist_ok=True)
    import torch
    from ultralytics import YOLO

    from synthdet.models.detector import Start
    from synthdet.models.yolo import load_network

    torch.set_num_threads(2)
    model = YOLO("yolo11n.yaml")
    model.model = load_network(Start("folder", str(weights_dir() / "yolo")))

    def look(paths: Sequence[Path], size: int) -> list[list[list[float]]]:
        found = []
        for path in paths:
            (result,) = model.predict(
                str(path), imgsz=size, conf=CONFIDENCE, device=device, verbose=False
            )
            rows = torch.cat([result.boxes.xyxy, result.boxes.conf[:, None]], dim=1)
            found.append(rows.cpu().tolist())
        return found

    return look


def _has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


# --- quality -------------------------------------------------------------------------------------


def _measure_quality(work: Path, plan: Plan) -> dict[str, Any]:
    workspace, scenes = _make_run(work / "quality", plan)
    run_stage("label", workspace, QUIET)
    figures = _accepted_figures(workspace, scenes)
    told = read_json(workspace.stage("label").path / "calibration.json")
    figures |= {
        "val_f1": told["f1"],
        "val_accepted_precision": told["accepted"]["precision"],
        "val_accepted_recall": told["accepted"]["recall"],
        "accept_confidence": told["accept_confidence"],
    }
    aside = _without_views(workspace)
    run_stage("label", workspace, QUIET)
    single = _accepted_figures(workspace, scenes)
    figures |= {f"{name}_one_view": value for name, value in single.items()}
    say(f"weights of the first labels are in {aside}")
    return figures


def _without_views(workspace: Workspace) -> Path:
    """The same detector, asked to look once: its weights are taken over, so nothing is trained."""
    folder = workspace.stage("label").path
    aside = folder.with_name("labels-with-views")
    os.rename(folder, aside)
    folder.mkdir()
    shutil.copytree(aside / "weights", folder / "weights")
    config = workspace.read_config()
    label = config.label.model_copy(update={"views": False})
    workspace.write_config(config.model_copy(update={"label": label}))
    return aside


def _accepted_figures(workspace: Workspace, scenes: Sequence[Scene]) -> dict[str, Any]:
    labels = read_records(workspace.stage("label").path / "labels.jsonl", Label)
    truths = [
        [Box(xyxy=box.xyxy, class_id=0) for box in scene.boxes if box.class_name == HUMPBACK]
        for scene in scenes
    ]
    quality = measure_accepted(truths, labels)
    empty = [not boxes for boxes in truths]
    right = sum(
        label.status == "negative"
        for label, is_empty in zip(labels, empty, strict=True)
        if is_empty
    )
    wrong = sum(
        label.status == "negative"
        for label, is_empty in zip(labels, empty, strict=True)
        if not is_empty
    )
    return {
        "accepted_precision": _rounded(quality.precision),
        "accepted_recall": _rounded(quality.recall),
        "accepted_iou": _rounded(quality.mean_iou),
        "accepted_boxes": quality.num_boxes,
        "review": quality.num_review,
        "negatives_right": right,
        "negatives_wrong": wrong,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _make_run(folder: Path, plan: Plan) -> tuple[Workspace, list[Scene]]:
    """A prepared survey, and pictures with their truth that the filter has kept."""
    shutil.rmtree(folder, ignore_errors=True)
    train, val = plan.flights
    write_survey(folder / "survey", QUIET, flights={"train": train, "val": val, "test": 2})
    init_run(
        folder / "run", config="pocket", photos=folder / "survey", labels=None,
        annotation_format="auto", assignments=[*SETTINGS, f"label.max_train_steps={plan.steps}"],
        reporter=QUIET,
    )  # fmt: skip
    workspace = Workspace(folder / "run")
    run_stage("prepare", workspace, QUIET)
    tiles = read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
    say(f"{sum(tile.split == 'train' for tile in tiles)} train tiles")
    generate, chosen = workspace.stage("generate"), workspace.stage("filter")
    images, scenes = [], []
    for index in range(plan.scenes):
        other = None if index % 20 else "open water"
        subject = HUMPBACK if index % 10 < 7 else other or BASE_CLASSES[index % len(BASE_CLASSES)]
        scene = render_scene(PICTURE_SEED + index, subject=subject)
        path = generate.path / "images" / f"syn-{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(path)
        number = sum(box.class_name == HUMPBACK for box in scene.boxes)
        height, width = scene.image.shape[:2]
        scenes.append(scene)
        images.append(
            SyntheticImage(
                image_id=path.stem, path=workspace.relative(path), sha256=hash_file(path),
                prompt=scene.caption, negative_prompt="", seed=index, scheduler="none",
                num_inference_steps=1, guidance_scale=1, lora_scale=1, width=width, height=height,
                batch=0, batch_shape=1, asked_for=(0,) * number,
            )
        )  # fmt: skip
    for stage, records in (
        (generate, {"images.jsonl": images}),
        (
            chosen,
            {
                "scores.jsonl": [Score(image_id=one.image_id, similarity=0.9) for one in images],
                "decisions.jsonl": [
                    Decision(image_id=one.image_id, kept=True, threshold=0) for one in images
                ],
            },
        ),
    ):
        for name, some in records.items():
            write_records(stage.path / name, some)
        stage.claim(settings={}, inputs={})
        stage.close(outputs=[stage.path / name for name in records], counts={}, runtime={})
    return workspace, scenes


_PARTS: dict[str, Callable[[Path, Plan], dict[str, Any]]] = {
    "speed": _measure_speed,
    "quality": _measure_quality,
}

if __name__ == "__main__":
    main()
