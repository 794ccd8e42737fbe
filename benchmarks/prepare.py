"""What does prepare cost beside the decoding of the photos, and does its memory stay flat?

    python benchmarks/prepare.py [--quick] [--work FOLDER]

A survey of 10,000 annotated photos: one rendered photo a flight, repeated by hard link, with three boxes
each, in every format. Reading the annotations is timed against decoding the photos, A B A B, medians, with as
many threads as there are cores; the whole stage runs in processes of its own, whose peak memory is
theirs. Frames of 200 megapixels are read in processes of their own too.

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
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
from PIL import Image
from report import make_report, say
from rich.console import Console

from synthdet.config import make_config
from synthdet.core.formats.coco import to_coco
from synthdet.core.formats.cvat import to_cvat
from synthdet.core.formats.labelme import to_labelme
from synthdet.core.formats.table import to_csv
from synthdet.core.formats.voc import to_voc
from synthdet.core.formats.yolo import to_yolo_lines
from synthdet.core.groups import near_duplicates
from synthdet.core.records import Box
from synthdet.progress import Reporter
from synthdet.stages import _photos, prepare
from synthdet.stages._annotations import read_annotations
from synthdet.stages._recognise import recognise
from synthdet.workspace import Workspace

TARGETS: dict[str, tuple[str, float]] = {
    "yolo_over_decoding": ("<=", 1.0),
    "coco_over_decoding": ("<=", 1.0),
    "voc_over_decoding": ("<=", 1.0),
    "labelme_over_decoding": ("<=", 1.0),
    "cvat_over_decoding": ("<=", 1.0),
    "csv_over_decoding": ("<=", 1.0),
    "rss_mb_per_1000_photos": ("<=", 20.0),
    "second_start_over_first": ("<=", 0.1),
    "near_duplicates_growth": ("<=", 3.0),
    "frame_rss_mb_jpeg": ("<=", 1300.0),
    "frame_rss_mb_png": ("<=", 1300.0),
    "frame_rss_mb_tiff": ("<=", 1400.0),
}
"""Growth is the time for twice the photos over the time for once: 2 is linear, 4 is the square. The TIFF
of a frame is itself 440 MB, which its decoder maps into memory."""
NAMES = ("seal", "pup")
SIZE_WH = (1024, 768)
FLIGHT = 40
"""Photos of a flight; they share one picture, so that near-duplicates are where they belong."""
Annotated = tuple[str, int, int, tuple[Box, ...]]


# --- the survey ----------------------------------------------------------------------------------


def draw(folder: Path, number: int) -> list[Path]:
    """So many photos of a noisy sea, as JPEG of the usual quality."""
    rng = np.random.default_rng(0)
    width, height = SIZE_WH
    paths = []
    for drawn in range(number):
        coarse = rng.integers(40, 120, (height // 24, width // 24, 3), dtype=np.uint8)
        sea = cv2.resize(coarse, SIZE_WH, interpolation=cv2.INTER_CUBIC).astype(np.float32)
        sea += rng.normal(0, 9, sea.shape).astype(np.float32)
        path = folder / f"drawn-{drawn}.jpg"
        Image.fromarray(sea.clip(0, 255).astype(np.uint8)).save(path, quality=88)
        paths.append(path)
    return paths


def make_survey(folder: Path, number: int) -> list[Annotated]:
    """So many photos in ``folder/photos``, and annotations in a folder a format."""
    rng = np.random.default_rng(1)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    drawn = draw(folder, -(-number // FLIGHT))
    annotated: list[Annotated] = []
    for index in range(number):
        name = f"flight{index // FLIGHT:03d}_{index:05d}.jpg"
        os.link(drawn[index // FLIGHT], photos / name)
        boxes = []
        for _animal in range(3):
            x, y = float(rng.uniform(0, 900)), float(rng.uniform(0, 700))
            edges = (x, y, x + float(rng.uniform(20, 60)), y + float(rng.uniform(20, 60)))
            boxes.append(Box(xyxy=edges, class_id=int(rng.integers(2))))
        annotated.append((name, *SIZE_WH, tuple(boxes)))
    return annotated


def write_annotations(folder: Path, annotated: Sequence[Annotated]) -> dict[str, Path]:
    """The same annotations in every format; format -> its folder or file."""
    places = {name: folder / name for name in ("yolo", "voc", "labelme")}
    for place in places.values():
        place.mkdir()
    (places["yolo"] / "classes.txt").write_text("\n".join(NAMES) + "\n")
    for name, width, height, boxes in annotated:
        stem = name.removesuffix(".jpg")
        (places["yolo"] / f"{stem}.txt").write_text(to_yolo_lines(boxes, width, height))
        (places["voc"] / f"{stem}.xml").write_text(to_voc(name, width, height, boxes, NAMES))
        labelme = json.dumps(to_labelme(name, width, height, boxes, NAMES))
        (places["labelme"] / f"{stem}.json").write_text(labelme)
    whole = {
        "coco": (folder / "coco.json", json.dumps(to_coco(annotated, NAMES))),
        "cvat": (folder / "cvat.xml", to_cvat(annotated, NAMES)),
        "csv": (folder / "boxes.csv", to_csv(annotated, NAMES)),
    }
    for name, (path, text) in whole.items():
        path.write_text(text)
        places[name] = path
    return places


# --- what is measured ----------------------------------------------------------------------------


def timed(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that a call takes."""
    began = clock()
    work()
    return clock() - began


def measure_reading(folder: Path, annotated: Sequence[Annotated], rounds: int) -> dict[str, float]:
    """Recognising and reading the annotations, over decoding the photos with all cores."""
    places = write_annotations(folder, annotated)
    paths = sorted((folder / "photos").iterdir())
    expected = sum(len(boxes) for *_photo, boxes in annotated)

    def decode() -> None:
        for found in _photos.in_order(_photos.inspect, paths, 0):
            assert found.reason is None

    def read(format_: str) -> None:
        recognised = recognise(folder / "photos", places[format_], format_, None)
        found = read_annotations(recognised, unnamed=False)
        assert sum(len(photo.boxes) for photo in found.photos) == expected, format_

    decoding: list[float] = []
    reading: dict[str, list[float]] = {name: [] for name in places}
    for number in range(rounds):
        decoding.append(timed(decode))
        for name in places:
            reading[name].append(timed(partial(read, name)))
        say(f"round {number + 1} of {rounds}: decoding {decoding[-1]:.1f} s")
    base = statistics.median(decoding)
    figures = {
        f"{name}_over_decoding": round(statistics.median(own) / base, 3)
        for name, own in reading.items()
    }
    return {**figures, "photos_decoded_per_second": round(len(paths) / base, 1)}


def run_child(*arguments: str) -> dict[str, float]:
    """A part of this script in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {name: float(value) for name, value in json.loads(output).items()}


def child_stage(folder: Path) -> dict[str, float]:
    """Prepare a survey twice; its peak memory, and how long each start took."""
    sections = {
        "prepare": {
            "photos": str(folder / "photos"),
            "labels": str(folder / "yolo"),
            "resolution": 256,
            "views": 1,
            "background_fraction": 0.0,
            "group_pattern": r"(flight\d+)_",
        }
    }
    config = make_config(sections, where="benchmark")
    workspace = Workspace.make(folder / "run", config)
    reporter = Reporter(Console(file=sys.stderr))
    before = peak_mb()
    first = timed(lambda: prepare.run(workspace, config, reporter))
    peak = peak_mb()
    second = timed(lambda: prepare.run(workspace, config, reporter))
    return {"first": first, "second": second, "before_mb": before, "peak_mb": peak}


def measure_stage(work: Path, small: int, large: int) -> dict[str, float]:
    """The whole stage, on few and on many photos."""
    found = []
    for number in (small, large):
        folder = work / f"stage-{number}"
        annotated = make_survey(folder, number)
        place = folder / "yolo"
        place.mkdir()
        (place / "classes.txt").write_text("\n".join(NAMES) + "\n")
        for name, width, height, boxes in annotated:
            label = place / f"{name.removesuffix('.jpg')}.txt"
            label.write_text(to_yolo_lines(boxes, width, height))
        time.sleep(2.1)  # so that the files' times tell whether they were changed
        found.append(run_child("--child", "stage", str(folder)))
        say(f"the stage on {number:,} photos: {found[-1]['first']:.0f} s")
        shutil.rmtree(folder)
    grown = found[1]["peak_mb"] - found[0]["peak_mb"]
    return {
        "stage_photos_per_second": round(large / found[1]["first"], 1),
        "second_start_over_first": round(found[1]["second"] / found[1]["first"], 4),
        "peak_rss_mb": round(found[1]["peak_mb"]),
        "rss_mb_per_1000_photos": round(1000 * grown / (large - small), 2),
    }


def measure_near_duplicates(number: int) -> dict[str, float]:
    """The search for near-duplicates, on so many different photos and on twice as many."""
    rng = np.random.default_rng(2)
    seconds = []
    for photos in (number, 2 * number):
        coarse = rng.integers(0, 255, (photos, 9, 9), dtype=np.uint8)
        thumbs = np.stack(
            [cv2.resize(one, (32, 32), interpolation=cv2.INTER_CUBIC) for one in coarse]
        )
        keys = [str(index) for index in range(photos)]
        search = partial(near_duplicates, thumbs, keys)
        seconds.append(statistics.median(timed(search, time.process_time) for _round in range(3)))
    return {
        "near_duplicates_seconds": round(seconds[0], 2),
        "near_duplicates_growth": round(seconds[1] / seconds[0], 2),
    }


def child_frame(path: Path) -> dict[str, float]:
    """Look at a frame and cut two tiles from it."""
    before = peak_mb()
    with _photos.large_frames():
        assert _photos.inspect(path).reason is None
        seconds = timed(
            lambda: list(_photos.read_crops(path, [(0, 0, 900, 900), (9000, 500, 9900, 1400)], 512))
        )
    return {"before_mb": before, "peak_mb": peak_mb(), "seconds": seconds}


def measure_frames(work: Path, size_wh: tuple[int, int]) -> dict[str, float]:
    """Peak memory of a process that reads one frame, by format."""
    rng = np.random.default_rng(3)
    part = rng.integers(80, 130, (1000, 1000, 3), dtype=np.uint8)
    frame = Image.fromarray(np.tile(part, (size_wh[1] // 1000, size_wh[0] // 1000, 1)))
    figures = {}
    for name, suffix, options in (
        ("jpeg", "jpg", {"quality": 85}),
        ("png", "png", {"compress_level": 1}),
        ("tiff", "tif", {"compression": "tiff_lzw"}),
    ):
        path = work / f"frame.{suffix}"
        frame.save(path, **options)
        found = run_child("--child", "frame", str(path))
        path.unlink()
        figures[f"frame_rss_mb_{name}"] = round(found["peak_mb"])
        say(f"{name}: {found['peak_mb']:.0f} MB, tiles cut in {found['seconds']:.1f} s")
    return {**figures, "frame_megapixels": round(size_wh[0] * size_wh[1] / 1e6)}


def peak_mb() -> float:
    """Peak memory of this process so far; `ru_maxrss` would start with that of its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


# --- putting it together -------------------------------------------------------------------------


def main() -> None:
    """Measure all, or the one part that a child process is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of everything")
    parser.add_argument("--work", type=Path, help="where to write; needs about 3 GB")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        kind, path = arguments.child
        print(json.dumps({"stage": child_stage, "frame": child_frame}[kind](Path(path))))
        return
    number, rounds = (1_000, 2) if arguments.quick else (10_000, 3)
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        work = Path(folder)
        say(f"reading the annotations of {number:,} photos")
        annotated = make_survey(work / "reading", number)
        figures: dict[str, float] = {"photos": number}
        figures |= measure_reading(work / "reading", annotated, rounds)
        shutil.rmtree(work / "reading")
        figures |= measure_near_duplicates(number)
        figures |= measure_stage(work, number // 5, number)
        figures |= measure_frames(work, (10_000, 5_000) if arguments.quick else (20_000, 10_000))
    print(json.dumps(report(figures)))


def report(figures: dict[str, float]) -> dict[str, Any]:
    """Figures held against their targets."""
    result = make_report("prepare", figures, TARGETS)
    for name in result["missed"]:
        say(f"missed: {name} is {figures.get(name)}, wanted {' '.join(map(str, TARGETS[name]))}")
    return result


if __name__ == "__main__":
    main()
