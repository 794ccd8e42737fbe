"""How fast do pictures come to disk, beside the loop that everybody writes first, and in what memory?

    python benchmarks/generate.py [--quick] [--work FOLDER] [--parts speed,saving,memory,placed,gpu]
                                  [--run RUN --judge WEIGHTS]
    python benchmarks/generate.py --full-size-on-cpu [--work FOLDER]
    python benchmarks/generate.py --dry-run [--work FOLDER]

- *speed*: the embedded SDXL with a LoRA of random weights, on two sides in processes of their own, in
  turns, A B A B, the median of the rounds' ratios. Ours is the generate stage. The loop is diffusers as
  its documentation shows it: `pipe.load_lora_weights`, one `pipe(prompt)` a picture, `image.save`
  (`speedup_vs_loop`); and the same with as many prompts a call as ours draws at once
  (`speedup_vs_batched_loop`, no target: what is left is the fused LoRA, texts encoded once and the
  saving). Pictures are checked equal first: seeds, scheduler, steps and guidance are the same.
  `processor_speedup_vs_loop` is the ratio of processor times, for machines that do other things too.
  `save_stall_share` is the share of ours in which drawing waited for saving.
- *saving*: the stage with pictures of 1024 pixels that come as fast as one hopes for from a GPU (3.5 a second;
  the generator sleeps instead of drawing): `save_stall_share_1024`, and beside it what saving the same
  pictures with PIL after each batch would take, `pil_stall_share_1024`.
- *memory*: the stage's host memory after 64 and after 1,024 pictures of one run: `rss_growth_mb`.
- *placed*, only with ``--run`` (a run on the embedded default with its LoRA; it is copied) and ``--judge``
  (a detector's folder, such as the judge's that `benchmarks/pocket.py` keeps): pictures of one animal in
  mode `placed`; `placed_hit_rate` is the share in which the judge finds it at IoU 0.5 with the box.
- *gpu*, only where there is one: SDXL at full size, random weights, 1024 pixels, guidance, to disk: 10 steps
  compiled, not compiled, and by the loop at the same batch size, in turns; then 20 steps.
  `pictures_per_second_1024_10` and `_20` are those of the faster of compiled and not. `share_of_limit` is of
  what a matrix product in the same run says this GPU could do. Every figure is told when it is measured, so
  that a run that is cut off has told some; with ``--quick`` the part takes minutes. Without a GPU these
  figures are null.

``--full-size-on-cpu`` does nothing but draw one picture of 512 pixels in two steps with SDXL at full size on
the CPU, in bfloat16, and says how much memory that took.

``--dry-run`` does what the part *gpu* and ``--full-size-on-cpu`` do, with tiny networks on the CPU and nothing
compiled: it shows that they run, its figures mean nothing, and no target is held against them.

Progress goes to stderr, one JSON object to stdout. `ok` is whether every target is met.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from report import make_report, measure_parts, say, workplace
from rich.console import Console

from synthdet.config import Config, make_config, set_values
from synthdet.core.captions import phrase
from synthdet.core.comparison import pairwise_iou
from synthdet.core.prompts import PlannedPicture, plan_pictures
from synthdet.core.records import SyntheticImage, Tile
from synthdet.models.protocols import ImageGenerator, Picture, PictureRequest
from synthdet.pipeline import run_stage
from synthdet.pocket import weights_dir
from synthdet.progress import Reporter
from synthdet.stages import generate
from synthdet.workspace import (
    CONFIG_NAME,
    Workspace,
    read_json,
    read_records,
    write_json,
    write_records,
)

TARGETS: dict[str, tuple[str, float]] = {
    "speedup_vs_loop": (">=", 1.5),
    "save_stall_share": ("<=", 0.05),
    "rss_growth_mb": ("<=", 16.0),
}
GPU_TARGETS: dict[str, tuple[str, float]] = {
    "speedup_vs_loop_1024_10": (">=", 3.0),
    "pictures_per_second_1024_10": (">=", 3.5),
    "pictures_per_second_1024_20": (">=", 2.18),
}
TFLOP_1024 = {10: 145.7, 20: 280.9}
"""UNet with guidance and VAE, of one picture of 1024 pixels, by denoising steps."""
PLACED_TARGETS: dict[str, tuple[str, float]] = {"placed_hit_rate": (">=", 0.7)}
CPU_TARGETS: dict[str, tuple[str, float]] = {"peak_rss_gb": ("<=", 24.0)}
SAVING_TARGETS: dict[str, tuple[str, float]] = {"save_stall_share_1024": ("<=", 0.05)}
PARTS = ("speed", "saving", "memory", "placed", "gpu")
AIMED_RATE = 3.5
"""Pictures of 1024 pixels a second that one hopes for from a GPU."""
JUDGE_CONFIDENCE = 0.25
QUIET = Reporter(Console(quiet=True))
LORA_LAYERS = (
    "to_k", "to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2",
)  # fmt: skip
CLASSES = ["humpback whale"]
SETTINGS: dict[str, Any] = {
    "attributes": {"water": ["calm blue water", "green water", "grey water with whitecaps"]},
    "prompts": ["aerial photo of {animals}, {water}"],
    "negative_prompt": "blurred",
    "guidance_scale": 3.0,
}


@dataclass(frozen=True)
class Case:
    """One set of pictures."""

    pipeline: str
    lora: str
    pixels: int
    pictures: int
    steps: int
    batch: int
    precision: str = "no"
    device: str = "cpu"

    def config(self) -> Config:
        """The run's settings."""
        own = {
            "num_images": self.pictures, "num_inference_steps": self.steps,
            "batch_size": self.batch, "mixed_precision": self.precision, "device": self.device,
        }  # fmt: skip
        return make_config({"generate": {**SETTINGS, **own}}, where="the benchmark")


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few of everything: does it run?")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one without it")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument("--full-size-on-cpu", action="store_true", help="two steps of real size")
    parser.add_argument("--dry-run", action="store_true", help="do the parts for a GPU run at all?")
    parser.add_argument("--run", type=Path, help="a run with its LoRA, for the part placed")
    parser.add_argument("--judge", type=Path, help="a detector's folder, for the part placed")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        _serve(arguments.side, arguments.work, Case(**json.loads(arguments.case)))
        return
    with workplace("generate", arguments.work) as work:
        if arguments.dry_run:
            figures, targets = _run_dry(work), {}
        elif arguments.full_size_on_cpu:
            figures, targets = _measure_full_size_on_cpu(work), dict(CPU_TARGETS)
        else:
            known = _PARTS | {
                "placed": partial(_measure_placed, run=arguments.run, judge=arguments.judge)
            }
            chosen = arguments.parts.split(",")
            figures = measure_parts(
                {part: partial(known[part], work, arguments.quick) for part in chosen}
            )
            targets = dict(TARGETS)
    for optional in (GPU_TARGETS, SAVING_TARGETS):
        if not arguments.dry_run and all(figures.get(name) is not None for name in optional):
            targets |= optional
    if figures.get("placed_hit_rate") is not None:
        targets |= PLACED_TARGETS
    result = make_report("generate", figures, targets, machine=_torch(), dry_run=arguments.dry_run)
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


# --- parts ---------------------------------------------------------------------------------------


def _measure_speed(work: Path, quick: bool) -> dict[str, Any]:
    pipeline = weights_dir() / "sdxl"
    lora = write_lora(work / "lora-pocket", pipeline)
    case = Case(
        pipeline=str(pipeline), lora=str(lora), pixels=128, pictures=16 if quick else 48,
        steps=4 if quick else 10, batch=8,
    )  # fmt: skip
    told = _race(work, case, ("ours", "loop", "batched"), rounds=2 if quick else 5)
    return {
        "speedup_vs_loop": _ratio(told, "loop", "seconds"),
        "speedup_vs_batched_loop": _ratio(told, "batched", "seconds"),
        "processor_speedup_vs_loop": _ratio(told, "loop", "processor_seconds"),
        "pictures_per_second": round(
            case.pictures / statistics.median(one["seconds"] for one in told["ours"]), 2
        ),
        "save_stall_share": round(
            statistics.median(one["save_stall_share"] for one in told["ours"]), 4
        ),
    }


def _measure_memory(work: Path, quick: bool) -> dict[str, Any]:
    pipeline = weights_dir() / "sdxl"
    case = Case(
        pipeline=str(pipeline), lora=str(write_lora(work / "lora-pocket", pipeline)), pixels=128,
        pictures=128 if quick else 1_024, steps=1, batch=8,
    )  # fmt: skip
    with _Side("memory", work, case) as side:
        told = side.ask("memory")
    return {"rss_growth_mb": told["rss_growth_mb"], "rss_mb": told["rss_mb"]}


def _measure_saving(work: Path, quick: bool) -> dict[str, Any]:
    case = Case(pipeline="", lora="", pixels=1024, pictures=32 if quick else 128, steps=1, batch=8)
    generator = _Paced(case.batch / AIMED_RATE)
    told = _run_stage(work / "saving", work / "saved", case, generator)
    shutil.rmtree(work / "saved")
    begun = time.perf_counter()
    for picture in generator.pictures:
        Image.fromarray(picture).save(work / "pil.png")
    by_pil = time.perf_counter() - begun
    return {
        "save_stall_share_1024": told["save_stall_share"],
        "pil_stall_share_1024": round(by_pil / (by_pil + generator.seconds), 4),
    }


class _Paced:
    """A generator that takes its time and has a handful of pictures ready, of water with fine waves."""

    scheduler = "none"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 255, (8, 16, 16, 3), dtype=np.uint8)
        fine = rng.integers(0, 6, (8, 1024, 1024, 3), dtype=np.uint8)
        self.pictures = [
            np.array(Image.fromarray(one).resize((1024, 1024), Image.Resampling.BICUBIC)) // 2
            + waves
            for one, waves in zip(coarse, fine, strict=True)
        ]

    def generate(self, requests: Sequence[PictureRequest], **_options: Any) -> list[Picture]:
        time.sleep(self.seconds)
        return [self.pictures[number] for number in range(len(requests))]

    def find_batch_size(self, *, width: int, height: int) -> int:  # noqa: ARG002
        return len(self.pictures)


def _measure_placed(
    work: Path, quick: bool, run: Path | None, judge: Path | None
) -> dict[str, Any]:
    if run is None or judge is None:
        return dict.fromkeys(PLACED_TARGETS)
    from synthdet.models.detector import ChildDetector, DetectorProcess

    root = work / "placed"
    shutil.rmtree(root, ignore_errors=True)
    for name in ("1-prepare", "2-finetune"):
        shutil.copytree(run / name, root / name)
    shutil.copy(run / CONFIG_NAME, root)
    workspace = Workspace(root)
    (noun,) = read_json(workspace.stage("prepare").path / "dataset.json")["classes"]
    own = {
        "mode": "placed", "animals": {phrase({noun: 1}): 1}, "background_fraction": 0,
        "placed_water": "real", "num_images": 8 if quick else 64,
    }  # fmt: skip
    assignments = [f"generate.{name}={json.dumps(value)}" for name, value in own.items()]
    workspace.write_config(set_values(workspace.read_config(), assignments))
    run_stage("generate", workspace, QUIET)
    images = read_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage)
    with DetectorProcess(threads=1) as process:
        detector = ChildDetector(
            judge, image_size=images[0].width, batch_size=32, device="cpu", threads=1, trust=False,
            process=process,
        )  # fmt: skip
        found = detector.detect(
            [root / image.path for image in images], min_confidence=JUDGE_CONFIDENCE
        )
    hits = 0
    for image, boxes in zip(images, found, strict=True):
        (asked,) = image.placed or ()
        overlaps = pairwise_iou([asked.xyxy], [box.xyxy for box in boxes])
        hits += bool(overlaps.max(initial=0) >= 0.5)
    return {"placed_hit_rate": round(hits / len(images), 4)}


def _measure_gpu(work: Path, quick: bool) -> dict[str, Any]:
    import torch
    from finetune import write_full_pipeline

    names = (
        *GPU_TARGETS, "share_of_limit", "share_of_limit_20", "pictures_per_second_1024_10_eager",
        "peak_gb_1024", "made_again_1024", "loop_difference_1024",
    )  # fmt: skip
    if not torch.cuda.is_available():
        return dict.fromkeys(names)
    memory_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    pipeline = write_full_pipeline(work / "full")
    case = Case(
        pipeline=str(pipeline), lora="", pixels=1024, pictures=16 if quick else 64, steps=10,
        batch=8 if memory_gb > 60 else 4 if memory_gb > 30 else 1,
        precision="bf16" if has_bf16 else "fp16", device="cuda",
    )  # fmt: skip
    return _measure_full_size(work, case, rounds=1 if quick else 3)


def _measure_full_size(work: Path, case: Case, *, rounds: int) -> dict[str, Any]:
    """The figures of the part *gpu*, each told as soon as it is there."""
    lora = write_lora(work / "lora-full", Path(case.pipeline), layers=LORA_LAYERS[:4])
    ceiling = _run_matmul(case)
    figures: dict[str, Any] = {"matmul_tflops": round(ceiling, 4)}
    say(json.dumps(figures))
    for steps, sides in ((10, ("compiled", "eager", "batched")), (20, ("compiled",))):
        one = replace(case, lora=str(lora), steps=steps)
        told = _race_if_it_compiles(work, one, sides, rounds=rounds)
        figures |= _rates(told, one, ceiling)
        if steps == 10:
            difference = _mean_difference(work, one, next(iter(told)), "batched")
            figures["loop_difference_1024"] = round(difference, 2)
        say(json.dumps(figures))
    return figures


def _race_if_it_compiles(
    work: Path, case: Case, sides: Sequence[str], *, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    try:
        return _race(work, case, sides, rounds=rounds, check=False)
    except SystemExit as error:
        # A machine without a C compiler or Python's headers, say: no reason to measure nothing.
        say(f"{error}; once more without compiled networks")
    others = [side for side in sides if side != "compiled"] or ["eager"]
    return _race(work, case, others, rounds=rounds, check=False)


def _rates(
    told: dict[str, list[dict[str, Any]]], case: Case, ceiling: float
) -> dict[str, float | None]:
    rates = {
        side: case.pictures / statistics.median(one["seconds"] for one in some)
        for side, some in told.items()
        if side != "batched"
    }
    best = max(rates, key=lambda side: rates[side])
    steps = case.steps
    figures: dict[str, float | None] = {
        f"pictures_per_second_1024_{steps}": round(rates[best], 3),
        "share_of_limit" if steps == 10 else "share_of_limit_20": round(
            rates[best] * TFLOP_1024[steps] / ceiling, 3
        ),
    }
    if steps == 10:
        if "compiled" in rates:
            figures["pictures_per_second_1024_10_compiled"] = round(rates["compiled"], 3)
        figures["pictures_per_second_1024_10_eager"] = round(rates["eager"], 3)
        figures["speedup_vs_loop_1024_10"] = _ratio(told, "batched", "seconds", ours=best)
        figures["peak_gb_1024"] = told[best][-1]["peak_gb"]
        # More than none, and the speeds are those of batches that were drawn twice.
        figures["made_again_1024"] = max(one["made_again"] for one in told[best])
    return figures


def _run_matmul(case: Case) -> float:
    """TFLOP/s of a matrix product in the precision of the pictures, the best of five."""
    import torch

    on_gpu = case.device == "cuda"
    side = 8192 if on_gpu else 256
    a, b = (torch.randn(side, side, device=case.device, dtype=_dtype(case)) for _ in range(2))
    best = 0.0
    for _ in range(6):
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(10):
            a @ b
        if on_gpu:
            torch.cuda.synchronize()
        best = max(best, 10 * 2 * side**3 / (time.perf_counter() - start) / 1e12)
    del a, b
    if on_gpu:
        torch.cuda.empty_cache()
    return best


def _dtype(case: Case) -> Any:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(case.precision, torch.float32)


def _measure_full_size_on_cpu(work: Path) -> dict[str, Any]:
    from finetune import _in_child, write_full_pipeline

    pipeline = _in_child(write_full_pipeline, work / "full")
    return _draw_once(work, Case(
        pipeline=str(pipeline), lora="", pixels=512, pictures=1, steps=2, batch=1, precision="bf16"
    ))  # fmt: skip


def _draw_once(work: Path, case: Case) -> dict[str, Any]:
    with _Side("eager", work, case) as side:
        told = side.ask("once")
    return {name: told[name] for name in ("seconds", "peak_rss_gb", "made_again")}


def _run_dry(work: Path) -> dict[str, Any]:
    """What needs a GPU, or a whole machine, with tiny networks on the CPU."""
    from finetune import _in_child, write_small_pipeline

    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # of the sides: `compile` does nothing
    pipeline = _in_child(write_small_pipeline, work / "small")
    case = Case(pipeline=str(pipeline), lora="", pixels=64, pictures=4, steps=10, batch=2)
    once = replace(case, pictures=1, steps=2, batch=1, precision="bf16")
    return _measure_full_size(work, case, rounds=1) | _draw_once(work, once)


def _race(
    work: Path, case: Case, sides: Sequence[str], *, rounds: int, check: bool = True
) -> dict[str, list[dict[str, Any]]]:
    """What all sides tell of each round; they take turns, after one that warms up and is compared."""
    told: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    opened = [_Side(side, work, case) for side in sides]
    try:
        for side in opened:
            side.ask("warm-up")
        if check:
            for side in opened[1:]:
                _check_equal(opened[0].folder, side.folder, case.pictures)
        for number in range(rounds):
            for side in opened:
                told[side.name].append(side.ask(f"round-{number}"))
            say(f"round {number + 1}: " + ", ".join(
                f"{name} {some[-1]['seconds']:.2f} s" for name, some in told.items()
            ))  # fmt: skip
    finally:
        for side in opened:
            side.close()
    return told


def _ratio(
    told: dict[str, list[dict[str, Any]]], other: str, what: str, *, ours: str = "ours"
) -> float:
    pairs = zip(told[other], told[ours], strict=True)
    return round(float(statistics.median(t[what] / o[what] for t, o in pairs)), 2)


def _check_equal(ours: Path, theirs: Path, pictures: int) -> None:
    """The same pictures, but for rounding: other batch shapes and a LoRA beside the weights."""
    worst = max(int(one.max()) for one in _differences(ours, theirs, pictures))
    if worst > 2:
        raise SystemExit(f"pictures differ by {worst} of 255: {ours} and {theirs}")
    say(f"{pictures} pictures are equal within {worst} of 255")


def _mean_difference(work: Path, case: Case, *sides: str) -> float:
    """Of 255, between what two sides drew last: in half precision a LoRA beside the weights rounds otherwise."""
    ours, theirs = (_folder(work, side, case) for side in sides)
    return float(np.mean([one.mean() for one in _differences(ours, theirs, case.pictures)]))


def _differences(ours: Path, theirs: Path, pictures: int) -> Iterator[NDArray[np.int64]]:
    for index in range(pictures):
        one, other = (
            np.array(Image.open(folder / f"syn-{index:06d}.png").convert("RGB"), dtype=int)
            for folder in (ours, theirs)
        )
        yield np.abs(one - other)


def _folder(work: Path, side: str, case: Case) -> Path:
    return work / f"{side}-{case.pixels}-{case.steps}" / "pictures"


# --- a side in a process of its own ----------------------------------------------------------------


class _Side:
    """A side of the race, which answers a name with how long its pictures took."""

    def __init__(self, name: str, work: Path, case: Case) -> None:
        self.name = name
        self.folder = _folder(work, name, case)
        shutil.rmtree(self.folder.parent, ignore_errors=True)
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--side", name, "--work", str(self.folder.parent),
             "--case", json.dumps(asdict(case))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def __enter__(self) -> _Side:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died
            self._process.stdin.close()
        self._process.wait(timeout=120)

    def ask(self, name: str) -> dict[str, Any]:
        """Have all pictures made; the last ones made lie in ``folder``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            print(name, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"the side {self.name} died")


Make = Callable[[Path], dict[str, Any]]
"""Makes all pictures of a case into a folder."""


def _serve(side: str, work: Path, case: Case) -> None:
    make = _SIDES[side](work, case)
    for _line in sys.stdin:
        folder = work / "pictures"
        shutil.rmtree(folder, ignore_errors=True)
        before = resource.getrusage(resource.RUSAGE_SELF)
        begun = time.perf_counter()
        told = make(folder)
        told["seconds"] = time.perf_counter() - begun
        after = resource.getrusage(resource.RUSAGE_SELF)
        told["peak_rss_gb"] = round(after.ru_maxrss / 2**20, 2)
        told["processor_seconds"] = sum(
            getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime")
        )
        if case.device == "cuda":
            import torch

            torch.cuda.empty_cache()  # the other sides want room too
        print(json.dumps(told), flush=True)


def _open_ours(work: Path, case: Case, *, compiled: bool = False) -> Make:
    from synthdet.models.sdxl import SdxlGenerator

    settings = case.config().generate
    generator = SdxlGenerator(
        case.pipeline, vae=None, lora=Path(case.lora) if case.lora else None,
        lora_scale=settings.lora_scale, scheduler=settings.scheduler,
        mixed_precision=case.precision, device=case.device, compile_networks=compiled,
    )  # fmt: skip

    def make(folder: Path) -> dict[str, Any]:
        return _run_stage(work / "run", folder, case, generator)

    return make


def _run_stage(root: Path, folder: Path, case: Case, generator: ImageGenerator) -> dict[str, Any]:
    """The generate stage on a new run; its pictures are moved into a folder."""
    shutil.rmtree(root, ignore_errors=True)
    config = case.config()
    workspace = _make_run(root, config, case.pixels)
    generate.run(workspace, config, QUIET, open_generator=lambda _lora_scale: generator)
    stage = workspace.stage("generate")
    os.rename(stage.path / "images", folder)
    lock = read_json(stage.lock_path)
    made_again = lock["counts"]["made_again"]
    return {**lock["runtime"], "peak_gb": _peak_gb(case), "made_again": made_again}


def _make_run(root: Path, config: Config, pixels: int) -> Workspace:
    """A run up to its LoRA, by hand."""
    workspace = Workspace.make(root, config)
    prepare, finetune = workspace.stage("prepare"), workspace.stage("finetune")
    tile = Tile(
        tile_id="tile", image_id="photo", group="group", split="train", path="", sha256="",
        xyxy=(0, 0, pixels, pixels), scale=1, width=pixels, height=pixels, boxes=(), caption="",
    )  # fmt: skip
    for stage in (prepare, finetune):
        stage.claim(settings={}, inputs={})
    write_json(prepare.path / "dataset.json", {"classes": CLASSES})
    write_records(prepare.path / "tiles.jsonl", [tile])
    for stage in (prepare, finetune):
        stage.close(outputs=[], counts={}, runtime={})
    return workspace


def _open_loop(_work: Path, case: Case, *, batch: int = 1) -> Make:
    """The loop that the documentation of diffusers shows."""
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline

    settings = case.config().generate
    pipe = StableDiffusionXLPipeline.from_pretrained(case.pipeline, dtype=_dtype(case))
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, use_karras_sigmas=True
    )
    pipe.load_lora_weights(case.lora, adapter_name="species")
    pipe.set_adapters(["species"], [settings.lora_scale])
    pipe.to(case.device)
    pipe.set_progress_bar_config(disable=True)

    def make(folder: Path) -> dict[str, Any]:
        folder.mkdir(parents=True)
        planned = _plan(case)
        for begin in range(0, len(planned), batch):
            some = planned[begin : begin + batch]
            images = pipe(
                prompt=[plan.prompt for plan in some],
                negative_prompt=[plan.negative_prompt for plan in some],
                generator=[torch.Generator("cpu").manual_seed(plan.seed) for plan in some],
                num_inference_steps=case.steps,
                guidance_scale=settings.guidance_scale,
                width=case.pixels,
                height=case.pixels,
            ).images
            for plan, image in zip(some, images, strict=True):
                image.save(folder / f"{plan.image_id}.png")
        return {"peak_gb": _peak_gb(case)}

    return make


def _open_batched_loop(work: Path, case: Case) -> Make:
    return _open_loop(work, case, batch=case.batch)


def _plan(case: Case) -> tuple[PlannedPicture, ...]:
    settings = case.config().generate
    return plan_pictures(
        num_images=settings.num_images, class_names=CLASSES, prompts=settings.prompts,
        animals=settings.animals, attributes=settings.attributes,
        background_prompts=settings.background_prompts,
        background_fraction=settings.background_fraction,
        negative_prompt=settings.negative_prompt, seed=settings.seed,
    )  # fmt: skip


def _open_memory(work: Path, case: Case) -> Make:
    from synthdet.models.sdxl import SdxlGenerator

    settings = case.config().generate
    generator = _Weighed(
        SdxlGenerator(
            case.pipeline, vae=None, lora=Path(case.lora), lora_scale=settings.lora_scale,
            scheduler=settings.scheduler, mixed_precision=case.precision, device=case.device,
        )
    )  # fmt: skip

    def make(folder: Path) -> dict[str, Any]:
        told = _run_stage(work / "run", folder, case, generator)
        first = max(1, 64 // case.batch)
        early, late = (statistics.median(some) for some in (
            generator.resident_mb[first : first + 4], generator.resident_mb[-4:]
        ))  # fmt: skip
        return {**told, "rss_mb": round(late, 1), "rss_growth_mb": round(late - early, 1)}

    return make


class _Weighed:
    """A generator that notes how much memory the process holds before each batch."""

    def __init__(self, generator: ImageGenerator) -> None:
        self._generator = generator
        self.scheduler = generator.scheduler
        self.resident_mb: list[float] = []

    def generate(self, requests: Sequence[PictureRequest], **options: Any) -> list[Picture]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        self.resident_mb.append(pages * resource.getpagesize() / 2**20)
        return self._generator.generate(requests, **options)

    def find_batch_size(self, *, width: int, height: int) -> int:
        return self._generator.find_batch_size(width=width, height=height)


def write_lora(folder: Path, pipeline: Path, *, layers: Sequence[str] = LORA_LAYERS) -> Path:
    """A LoRA of rank 16 with random weights, small enough that pictures stay pictures."""
    path = folder / "lora.safetensors"
    if path.exists():
        return path
    import torch
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from peft import LoraConfig, get_peft_model_state_dict

    unet = UNet2DConditionModel.from_pretrained(pipeline / "unet")
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=list(layers)))
    seed = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in unet.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.01 * torch.randn(weight.shape, generator=seed))
    weights = {key: value.contiguous() for key, value in get_peft_model_state_dict(unet).items()}
    StableDiffusionXLPipeline.save_lora_weights(
        folder, unet_lora_layers=weights, weight_name=path.name
    )
    return path


def _peak_gb(case: Case) -> float | None:
    if case.device != "cuda":
        return None
    import torch

    return round(torch.cuda.max_memory_allocated() / 1e9, 2)


def _torch() -> dict[str, Any]:
    import torch

    return {
        "threads": int(os.environ["OMP_NUM_THREADS"]),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


_PARTS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "speed": _measure_speed,
    "saving": _measure_saving,
    "memory": _measure_memory,
    "gpu": _measure_gpu,
}
_SIDES: dict[str, Callable[[Path, Case], Make]] = {
    "ours": _open_ours,
    "eager": _open_ours,
    "compiled": partial(_open_ours, compiled=True),
    "loop": _open_loop,
    "batched": _open_batched_loop,
    "memory": _open_memory,
}

if __name__ == "__main__":
    main()
