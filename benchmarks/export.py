"""How fast and how lean is the export? Beside FiftyOne's own YOLO export of the same set.

    python benchmarks/export.py [--quick] [--work FOLDER]

100,000 tiles (one small picture, repeated by hard link) with 3 boxes each, from a run folder to YOLO and
COCO by `synthdet.stages.export`, records read and manifest written; FiftyOne from a dataset in its own
database to YOLO alone. FiftyOne has fewer pictures: its rate does not rise with more (both are
reported). The two take turns, two rounds each, a process each; labels are checked equal first. Our check
afterwards is timed apart; the peak memory is that of the whole stage with its check.

The file system sets a limit: a picture is three names, two links and a label. `names_cpu_us_per_picture` is
what a bare loop needs to make them, nothing read or checked, and `speedup_limit` how far ahead of FiftyOne one
would be with all cores doing that alone. On a machine that is busy with other things look at the processor
time a picture, of all our processes and of FiftyOne's own (its database server's is not counted).

Nothing is deleted before the end: for minutes after files were deleted, ext4 makes new ones in their
neighbourhood up to ten times as slowly, for whoever comes next.

Progress goes to stderr, one JSON object to stdout. `ok` is whether every target is met.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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

from synthdet.config import make_config
from synthdet.core.formats.yolo import from_yolo_lines, to_yolo_lines
from synthdet.core.records import Tile
from synthdet.progress import Reporter
from synthdet.stages import export
from synthdet.workspace import Workspace, hash_file, write_json, write_records

TARGETS: dict[str, tuple[str, float]] = {
    "speedup_vs_fiftyone": (">=", 20.0),
    "peak_rss_mb": ("<=", 1000.0),
}


def main() -> None:
    """Measure, and print one JSON object."""
    arguments = _parse()
    if arguments.side == "ours":
        print(json.dumps(_export_ours(arguments.work)))
        return
    if arguments.side == "names":
        print(json.dumps(_make_names(arguments.work, arguments.number)))
        return
    if arguments.side == "fiftyone":
        _serve_fiftyone(arguments.work, arguments.number)
        return
    number, theirs = (3_000, 1_500) if arguments.quick else (100_000, 20_000)
    with workplace("export", arguments.work) as work:
        result = _measure(work, number, theirs)
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3,000 pictures, in seconds")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one without it")
    parser.add_argument("--side", choices=["ours", "fiftyone", "names"], help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(work: Path, number: int, theirs: int) -> dict[str, Any]:
    say(f"making two runs of {number:,} tiles")
    for turn in (1, 2):
        _make_run(work / f"run-{turn}", number)
    ours: list[dict[str, float]] = []
    rates: list[dict[str, float]] = []
    with _Fiftyone(work, theirs) as fiftyone:
        for turn in (1, 2):
            rates.append(fiftyone.export())
            say(
                f"round {turn}: FiftyOne {rates[-1]['half']:,.0f} and {rates[-1]['all']:,.0f} pictures/s"
            )
            ours.append(_child("ours", work / f"run-{turn}"))
            say(
                f"round {turn}: ours {ours[-1]['pictures_per_second']:,.0f} pictures/s, check "
                f"{ours[-1]['check_seconds']:.0f} s, peak {ours[-1]['peak_rss_mb']:,.0f} MB "
                f"({ours[-1]['peak_rss_before_check_mb']:,.0f} MB before the check)"
            )
            if turn == 1:
                _check_equal(work, theirs)
    names = [_child("names", work / f"names-{turn}", theirs)["cpu_us"] for turn in (1, 2)]
    names_us = statistics.median(names)
    per_second = statistics.median(one["pictures_per_second"] for one in ours)
    fiftyone_rate = statistics.median(one["all"] for one in rates)
    figures = {
        "pictures_per_second": round(per_second, 1),
        "speedup_vs_fiftyone": round(per_second / fiftyone_rate, 2),
        "peak_rss_mb": round(max(one["peak_rss_mb"] for one in ours), 1),
        "pictures": number,
        "check_pictures_per_second": round(
            number / statistics.median(one["check_seconds"] for one in ours), 1
        ),
        "cpu_us_per_picture": round(statistics.median(one["cpu_us"] for one in ours), 1),
        "fiftyone_cpu_us_per_picture": round(statistics.median(one["cpu_us"] for one in rates), 1),
        "names_cpu_us_per_picture": round(names_us, 1),
        "speedup_limit": round((os.cpu_count() or 1) * 1e6 / names_us / fiftyone_rate, 1),
        "fiftyone_pictures": theirs,
        "fiftyone_pictures_per_second": round(fiftyone_rate, 1),
        "fiftyone_pictures_per_second_half": round(
            statistics.median(one["half"] for one in rates), 1
        ),
    }
    return make_report("export", figures, TARGETS)


# --- ours --------------------------------------------------------------------------------------


def _make_run(root: Path, number: int) -> None:
    config = make_config({"export": {"voc": False}}, where="the benchmark")
    workspace = Workspace.make(root, config)
    folder = workspace.stage("prepare")
    place = folder.path / "tiles" / "train"
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    picture = np.full((SIZE_WH[1], SIZE_WH[0], 3), 90, dtype=np.uint8) + rng.integers(
        0, 4, 3, dtype=np.uint8
    )
    paths = [place / f"tile-{index:06d}.png" for index in range(number)]
    write_pictures(picture, paths)
    sha256 = hash_file(paths[0])
    tiles = (
        Tile(
            tile_id=path.stem, image_id=f"photo-{index // 4:05d}", group=f"g{index // 400}",
            split="train", path=workspace.relative(path), sha256=sha256,
            xyxy=(0, 0, *SIZE_WH), scale=1.0, width=SIZE_WH[0], height=SIZE_WH[1],
            boxes=boxes_of(index), caption="aerial photo of a whale",
        )
        for index, path in enumerate(paths)
    )  # fmt: skip
    write_records(folder.path / "tiles.jsonl", tiles)
    write_json(folder.path / "dataset.json", {"classes": list(CLASSES)})
    for name, outputs in (("prepare", ["tiles.jsonl"]), ("generate", []), ("filter", []), ("label", [])):  # fmt: skip
        stage = workspace.stage(name)
        stage.claim(settings={}, inputs={})
        stage.close(outputs=[stage.path / one for one in outputs], counts={}, runtime={})


def _export_ours(work: Path) -> dict[str, float]:
    """The stage, in a process of its own; the check is timed apart."""
    workspace = Workspace(work)
    config = workspace.read_config()
    check, checked = export.check_export, []

    def timed_check(*arguments: Any) -> None:
        start = time.perf_counter()
        before = [_peak_mb(), _cpu_seconds() - begun]
        check(*arguments)
        checked.extend([time.perf_counter() - start, *before])

    export.check_export = timed_check
    start, begun = time.perf_counter(), _cpu_seconds()
    export.run(workspace, config, Reporter(Console(file=sys.stderr)))
    seconds = time.perf_counter() - start - checked[0]
    number = (workspace.stage("export").lock() or {})["counts"]["real"]
    return {
        "pictures_per_second": number / seconds,
        "cpu_us": 1e6 * checked[2] / number,
        "check_seconds": checked[0],
        "peak_rss_before_check_mb": checked[1],
        "peak_rss_mb": _peak_mb(),
    }


def _peak_mb() -> float:
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))  # fmt: skip
    return max(own, children) / 1024


def _cpu_seconds() -> float:
    """Of this process and those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _child(side: str, work: Path, number: int = 0) -> dict[str, float]:
    """What a process of its own found."""
    command = [
        sys.executable,
        __file__,
        "--side",
        side,
        "--work",
        str(work),
        "--number",
        str(number),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def _make_names(folder: Path, number: int) -> dict[str, float]:
    """Three names a picture, as an export has them, and nothing else."""
    places = [folder / name for name in ("labels", "yolo", "coco")]
    for place in places:
        place.mkdir(parents=True)
    labels, yolo, coco = map(str, places)
    picture = f"{folder}/picture.png"
    Path(picture).write_bytes(b"picture")
    label = to_yolo_lines(boxes_of(0), *SIZE_WH).encode()
    begun = _cpu_seconds()
    for index in range(number):
        descriptor = os.open(f"{labels}/tile-{index:06d}.txt", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.write(descriptor, label)
        os.close(descriptor)
        os.link(picture, f"{yolo}/tile-{index:06d}.png")
        os.link(picture, f"{coco}/tile-{index:06d}.png")
    return {"cpu_us": 1e6 * (_cpu_seconds() - begun) / number}


# --- FiftyOne's --------------------------------------------------------------------------------


class _Fiftyone:
    """A child that holds the dataset in FiftyOne's database and exports it when asked to."""

    def __init__(self, work: Path, number: int) -> None:
        say(f"adding {number:,} samples to FiftyOne")
        environment = os.environ | {
            "FIFTYONE_DO_NOT_TRACK": "true",
            "FIFTYONE_DATABASE_DIR": str(work / "database"),
        }
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--side", "fiftyone", "--work", str(work), "--number", str(number)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self._answer()

    def export(self) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write("export\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, float] = json.loads(line)
                return answer
        raise SystemExit("FiftyOne's process ended: see its messages above")

    def __enter__(self) -> _Fiftyone:
        return self

    def __exit__(self, *_error: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=120)


def _serve_fiftyone(work: Path, number: int) -> None:
    import fiftyone as fo

    dataset = fo.Dataset()
    width, height = SIZE_WH
    samples = []
    for index in range(number):
        detections = [
            fo.Detection(
                label=CLASSES[box.class_id],
                bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
            )
            for box in boxes_of(index)
            for x1, y1, x2, y2 in [box.xyxy]
        ]
        path = work / "run-1" / "1-prepare" / "tiles" / "train" / f"tile-{index:06d}.png"
        samples.append(fo.Sample(filepath=str(path), truth=fo.Detections(detections=detections)))
    dataset.add_samples(samples, progress=False)
    print("{}", flush=True)
    for turn, _line in enumerate(sys.stdin, start=1):
        rates = {}
        for name, count in (("half", number // 2), ("all", number)):
            target = work / f"fiftyone-{turn}-{name}"
            start, begun = time.perf_counter(), _cpu_seconds()
            dataset[:count].export(
                export_dir=str(target),
                dataset_type=fo.types.YOLOv5Dataset,
                label_field="truth",
                classes=list(CLASSES),
                split="train",
                progress=False,
            )
            rates[name] = count / (time.perf_counter() - start)
            rates["cpu_us"] = 1e6 * (_cpu_seconds() - begun) / count
        print(json.dumps(rates), flush=True)
    dataset.delete()


def _check_equal(work: Path, number: int) -> None:
    """Both sides wrote the same boxes, or there is nothing to compare."""
    ours = work / "run-1" / "6-export" / "yolo" / "labels" / "train"
    theirs = work / "fiftyone-1-all" / "labels" / "train"
    for index in range(0, number, max(1, number // 500)):
        name = f"tile-{index:06d}.txt"
        one, other = (from_yolo_lines((folder / name).read_text(), *SIZE_WH)[0] for folder in (ours, theirs))  # fmt: skip
        if len(one) != 3:
            raise SystemExit(f"{name} holds {len(one)} boxes")
        for a, b in zip(one, other, strict=True):
            same = np.allclose(a.xyxy, b.xyxy, atol=1e-3) and a.class_id == b.class_id
            if not same:
                raise SystemExit(f"{name}: ours {a.xyxy}, FiftyOne's {b.xyxy}")
    say("labels are equal")


if __name__ == "__main__":
    main()
