"""Does the embedded default prove the point? Every claim about it, measured on pictures it never saw.

    python benchmarks/pocket.py [--quick] [--work FOLDER]

The demo's own study is run through the package, with twelve paired seeds and the augmented arm. Its
pictures and labels are held against a *judge*: a YOLO11n trained apart, from scratch, on rendered
scenes with and without humpbacks. The judge is no part of the package; it is trained once and kept by
the hash of the scene code. Every part is kept in the work folder, so a benchmark that was stopped goes
on; with another package version or other settings it starts a new one.

Progress goes to stderr, one JSON object to stdout. `ok` is whether every target is met.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image
from report import make_report, say

from synthdet.core.comparison import pairwise_iou
from synthdet.core.formats.yolo import to_yolo_lines
from synthdet.core.records import Box, Decision, DetectedBox, Label, Score, SyntheticImage, Tile
from synthdet.pipeline import init_run, run_stages
from synthdet.pocket import weights_dir
from synthdet.pocket.sea import BASE_CLASSES, HUMPBACK, Scene, render_scene
from synthdet.pocket.survey import SETTINGS, write_survey
from synthdet.progress import Reporter
from synthdet.workspace import Workspace, read_json, read_records, write_json

TARGETS: dict[str, tuple[str, float]] = {
    "vae_psnr_db": (">=", 32.0),
    "vae_psnr_humpback_db": (">=", 32.0),
    "clip_auc": (">=", 0.995),
    "lora_hit_rate": (">=", 0.85),
    "base_hit_rate": ("<=", 0.05),
    "nearest_kept_similarity_over_real": ("<=", 1.0),
    "nearest_kept_distance_over_real": (">=", 1.0),
    "box_precision": (">=", 0.95),
    "box_recall_with_review": (">=", 0.90),
    "map_gain_low": (">", 0.0),
}
JUDGE_CLASSES = (HUMPBACK, *BASE_CLASSES)
JUDGE_CONFIDENCE = 0.5
MATCH_IOU = 0.5
JUDGE_SEED = 50_000_000
TEST_SEED = 60_000_000
SIZE = 128


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    judge_scenes: int = 6_000
    judge_steps: int = 2_000
    test_scenes: int = 1_000
    base_pictures: int = 100
    assignments: tuple[str, ...] = (
        f"evaluate.seeds={list(range(12))}",
        "evaluate.arms=[real, real_plus_augmented, real_plus_synthetic]",
    )


QUICK = Plan(
    judge_scenes=64,
    judge_steps=4,
    test_scenes=32,
    base_pictures=8,
    assignments=(
        "evaluate.seeds=[0, 1]",
        "evaluate.arms=[real, real_plus_augmented, real_plus_synthetic]",
        "evaluate.max_train_steps=2",
        "finetune.max_train_steps=2",
        "finetune.num_samples=0",
        "finetune.composites=4",
        "label.max_train_steps=2",
        "generate.num_images=16",
        "generate.num_inference_steps=4",
        "generate.placed_strength=0.5",
    ),
)


class Bench:
    """The parts that are done, their figures and their seconds, in a folder."""

    def __init__(self, folder: Path, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.seconds: dict[str, float] = {}
        self.figures: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def part(self, name: str, make: Callable[[], dict[str, Any]]) -> None:
        """Figures of a part, measured now or read from an earlier call."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            started = time.monotonic()
            figures = make()
            write_json(path, {"figures": figures, "seconds": round(time.monotonic() - started)})
        kept = read_json(path)
        self.figures |= kept["figures"]
        self.seconds[name] = kept["seconds"]
        say(f"{name:8} {kept['seconds']} s  {json.dumps(kept['figures'])}")


# --- the judge -----------------------------------------------------------------------------------


class Judge:
    """Humpbacks in pictures, as a detector sees them that has seen thousands."""

    def __init__(self, weights: Path) -> None:
        from synthdet.models.detector import ChildDetector

        self._detector = ChildDetector(
            weights, image_size=SIZE, batch_size=32, device="cpu", threads=1, trust=False
        )
        self._humpback = self._detector.names.index(HUMPBACK)

    def find(
        self, paths: Sequence[Path], confidence: float = JUDGE_CONFIDENCE
    ) -> list[list[DetectedBox]]:
        """Humpbacks from a confidence on, of each picture."""
        found = self._detector.detect(paths, min_confidence=confidence)
        return [[box for box in boxes if box.class_id == self._humpback] for boxes in found]


def train_judge(folder: Path, plan: Plan) -> None:
    """A YOLO11n from scratch on as many humpback as base scenes, 1 in 10 for val."""
    from synthdet.models.detector import ChildTrainer

    data = folder / "scenes"
    if not (data / "data.yaml").exists():
        for index in range(plan.judge_scenes):
            scene = render_scene(JUDGE_SEED + index, subject=HUMPBACK if index % 2 else None)
            write_scene(scene, data / ("val" if index % 10 == 9 else "train"), f"scene-{index:05d}")
        fields = {
            "train": "train/images",
            "val": "val/images",
            "names": dict(enumerate(JUDGE_CLASSES)),
        }
        (data / "data.yaml").write_text(yaml.safe_dump(fields))
    trainer = ChildTrainer("yolo11n", device="cpu", threads=1)
    trainer.train(
        data / "data.yaml",
        folder / "weights",
        seed=0,
        max_train_steps=plan.judge_steps,
        train_batch_size=32,
        learning_rate=2e-3,
        image_size=SIZE,
        on_step=lambda step: say_step("judge", step, plan.judge_steps),
    )
    trainer.close()


def say_step(part: str, step: int, steps: int) -> None:
    """A line every fifty steps."""
    if step % 50 == 0:
        say(f"{part:8} step {step} of {steps}")


def write_scene(scene: Scene, folder: Path, name: str) -> Path:
    """Picture and label file in YOLO's layout."""
    picture, label = folder / "images" / f"{name}.png", folder / "labels" / f"{name}.txt"
    for path in (picture, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(picture, compress_level=1)
    boxes = tuple(
        Box(xyxy=box.xyxy, class_id=JUDGE_CLASSES.index(box.class_name)) for box in scene.boxes
    )
    label.write_text(to_yolo_lines(boxes, scene.image.shape[1], scene.image.shape[0]))
    return picture


def judge_the_judge(judge: Judge, scenes: TestScenes) -> dict[str, Any]:
    """How far the judge itself can be trusted, on scenes that nothing was trained on."""
    seen = judge.find(scenes.humpbacks)
    hits = total = wrong = 0
    for path, found in zip(scenes.humpbacks, seen, strict=True):
        truth = read_boxes(path)
        matched = num_matched([box.xyxy for box in found], truth)
        hits, total, wrong = hits + matched, total + len(truth), wrong + len(found) - matched
    false = sum(bool(found) for found in judge.find(scenes.base))
    return {
        "judge_recall": round(hits / total, 4),
        "judge_precision": round(hits / max(1, hits + wrong), 4),
        "judge_sees_humpback_in": round(float(np.mean([bool(found) for found in seen])), 4),
        "judge_false_alarms": round(false / len(scenes.base), 4),
    }


def read_boxes(picture: Path) -> list[tuple[float, float, float, float]]:
    """True humpbacks of a written scene, xyxy in pixels."""
    label = picture.parents[1] / "labels" / f"{picture.stem}.txt"
    boxes = []
    for line in label.read_text().splitlines():
        class_id, cx, cy, w, h = (float(value) for value in line.split())
        if class_id == 0:
            boxes.append(tuple(SIZE * v for v in (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)))
    return boxes  # type: ignore[return-value]


def num_matched(found: Sequence[Any], wanted: Sequence[Any]) -> int:
    """Pairs of boxes at `MATCH_IOU`, each box in one pair, the closest first."""
    iou = pairwise_iou(found, wanted)
    matched = 0
    while iou.size and iou.max() >= MATCH_IOU:
        row, column = np.unravel_index(iou.argmax(), iou.shape)
        iou[row, :] = iou[:, column] = -1
        matched += 1
    return matched


# --- the shipped models --------------------------------------------------------------------------


@dataclass(frozen=True)
class TestScenes:
    """Written scenes whose seeds nothing was trained on."""

    humpbacks: list[Path]
    base: list[Path]


def write_test_scenes(folder: Path, plan: Plan) -> TestScenes:
    """As many scenes with humpbacks as of the base world."""
    kinds: dict[str, list[Path]] = {"humpback": [], "base": []}
    for offset, (kind, paths) in enumerate(kinds.items()):
        for index in range(plan.test_scenes):
            path = folder / "images" / f"{kind}-{index:04d}.png"
            if not path.exists():
                seed = TEST_SEED + offset * 1_000_000 + index
                write_scene(
                    render_scene(seed, subject=HUMPBACK if kind == "humpback" else None),
                    folder,
                    path.stem,
                )
            paths.append(path)
    return TestScenes(kinds["humpback"], kinds["base"])


def read_pictures(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """`(n, height, width, 3)`, RGB."""
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])


def measure_vae(scenes: TestScenes) -> dict[str, Any]:
    """Peak signal-to-noise ratio of pictures through the shipped VAE and back."""
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(weights_dir() / "sdxl" / "vae").eval()
    figures = {}
    for name, paths in (
        ("vae_psnr_db", scenes.base),
        ("vae_psnr_humpback_db", scenes.humpbacks),
    ):
        values: list[float] = []
        for start in range(0, len(paths), 32):
            pictures = read_pictures(paths[start : start + 32]).astype(np.float32)
            with torch.no_grad():
                pixels = torch.from_numpy(pictures / 127.5 - 1).permute(0, 3, 1, 2)
                made = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
            back = ((made.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
            errors = ((back - pictures) ** 2).mean((1, 2, 3))
            values += (10 * np.log10(255**2 / errors)).tolist()
        figures[name] = round(float(np.mean(values)), 2)
    return figures


def measure_clip(scenes: TestScenes) -> dict[str, Any]:
    """ROC AUC of the similarity to the centroid of 16 humpback pictures."""
    from synthdet.core.similarity import make_centroid, measure_separation, similarity_to
    from synthdet.models.clip import ClipEmbedder

    embedder = ClipEmbedder(weights_dir() / "clip", batch_size=32, device="cpu")
    humpbacks = embedder.embed(list(read_pictures(scenes.humpbacks)))
    others = embedder.embed(list(read_pictures(scenes.base)))
    centroid = make_centroid(humpbacks[:16])
    auc = measure_separation(
        similarity_to(humpbacks[16:], centroid), similarity_to(others, centroid)
    )
    return {"clip_auc": auc}


# --- the study -----------------------------------------------------------------------------------


def run_study(folder: Path, plan: Plan) -> Workspace:
    """The demo's survey and settings, through the package."""
    reporter = Reporter()
    survey, run = folder / "survey", folder / "run"
    write_survey(survey, reporter)
    if not run.exists():
        init_run(
            run,
            config="pocket",
            photos=survey,
            labels=None,
            annotation_format="auto",
            assignments=[*SETTINGS, *plan.assignments],
            reporter=reporter,
        )
    workspace = Workspace(run)
    run_stages(workspace, reporter)
    return workspace


def measure_pictures(
    workspace: Workspace, judge: Judge, folder: Path, plan: Plan
) -> dict[str, Any]:
    """What the judge finds in pictures drawn from words alone, with the LoRA and without it.

    The run's own pictures are mostly `placed`, real animals set into drawn water: they say nothing of
    what the LoRA can draw, and have a figure of their own.
    """
    images = read_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage)
    asked = [image for image in images if image.asked_for]
    lora = workspace.stage("finetune").path / "pytorch_lora_weights.safetensors"

    def share(paths: Sequence[Path]) -> float:
        return round(float(np.mean([bool(boxes) for boxes in judge.find(paths)])), 4)

    some = asked[: plan.base_pictures]
    placed = [workspace.root / image.path for image in asked if image.mode == "placed"]
    return {
        "lora_hit_rate": share(draw_from_words(workspace, some, folder / "lora", lora)),
        "base_hit_rate": share(draw_from_words(workspace, some, folder / "base", None)),
        "pictures_from_words": len(some),
        "placed_hit_rate": share(placed),
        "placed_pictures": len(placed),
    }


def draw_from_words(
    workspace: Workspace, images: Sequence[SyntheticImage], folder: Path, lora: Path | None
) -> list[Path]:
    """The prompts and seeds of a run's pictures, from noise, with a LoRA or none."""
    from synthdet.models.protocols import PictureRequest
    from synthdet.models.sdxl import SdxlGenerator

    settings = workspace.read_config().generate
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{image.image_id}.png" for image in images]
    generator = None
    for start in range(0, len(images), settings.batch_size):
        batch = slice(start, start + settings.batch_size)
        if all(path.exists() for path in paths[batch]):
            continue
        generator = generator or SdxlGenerator(
            weights_dir() / "sdxl",
            vae=None,
            lora=lora,
            lora_scale=settings.lora_scale,
            scheduler=settings.scheduler,
            mixed_precision="no",
            device="cpu",
        )
        pictures = generator.generate(
            [PictureRequest(one.prompt, one.negative_prompt, one.seed) for one in images[batch]],
            width=images[0].width,
            height=images[0].height,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
        )
        for path, picture in zip(paths[batch], pictures, strict=True):
            Image.fromarray(picture).save(path)
    return paths


def measure_memory(workspace: Workspace) -> dict[str, Any]:
    """Is a kept picture closer to a training photo than photos of different scenes are to each other?

    Twice: by the similarity of CLIP, and by the distance of 16 x 16 pixel thumbnails under the eight
    symmetries, which knows nothing of CLIP. The photos of different scenes are the test's, as many as
    kept pictures are looked at: the nearest of more is nearer. Beside them, and without a target, the
    highest similarity over the filter's own threshold for copies, which few training photos set.
    """
    from synthdet.models.clip import ClipEmbedder

    tiles, unseen = (
        [
            tile
            for tile in read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
            if tile.split == split and tile.boxes
        ]
        for split in ("train", "test")
    )
    chosen = workspace.stage("filter").path
    kept = {one.image_id for one in read_records(chosen / "decisions.jsonl", Decision) if one.kept}
    images = [
        image
        for image in read_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage)
        if image.image_id in kept and image.asked_for
    ]
    if not images or not unseen:
        return {}
    number = min(len(images), len(unseen))
    real = [workspace.root / tile.path for tile in tiles]
    made, others = (
        [workspace.root / one.path for one in _evenly(some, number)] for some in (images, unseen)
    )
    embedder = ClipEmbedder(weights_dir() / "clip", batch_size=32, device="cpu")
    known, seen, different = (
        embedder.embed(list(read_pictures(paths))) for paths in (real, made, others)
    )
    nearest = nearest_distance(thumbnails(made), thumbnails(real)).min()
    usual = nearest_distance(thumbnails(others), thumbnails(real)).min()
    limit = workspace.stage("filter").lock()["counts"]["copy_threshold"]  # type: ignore[index]
    scores = {one.image_id: one for one in read_records(chosen / "scores.jsonl", Score)}
    highest = max(scores[image.image_id].nearest_real_similarity or -1.0 for image in images)
    return {
        "nearest_kept_similarity_over_real": round(
            float((seen @ known.T).max() / (different @ known.T).max()), 4
        ),
        "nearest_kept_distance_over_real": round(float(nearest / usual), 4),
        "nearest_kept_similarity_over_copy_threshold": round(highest / limit, 4),
        "pictures_compared": number,
    }


def thumbnails(paths: Sequence[Path]) -> NDArray[np.float32]:
    """`(n, 16, 16, 3)`, 0..1."""
    small = [
        Image.open(path).convert("RGB").resize((16, 16), Image.Resampling.BOX) for path in paths
    ]
    return np.stack([np.asarray(one, dtype=np.float32) / 255 for one in small])


def _evenly(some: Sequence[Any], number: int) -> list[Any]:
    """So many of them, from first to last."""
    return [some[i * len(some) // number] for i in range(number)]


def nearest_distance(
    first: NDArray[np.float32], second: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Root mean square distance of each of `first` to the nearest of `second`, turned and mirrored."""
    best = np.full(len(first), np.inf, dtype=np.float32)
    flat = second.reshape(len(second), -1)
    for mirrored in (first, first[:, :, ::-1]):
        for turns in range(4):
            view = np.rot90(mirrored, turns, axes=(1, 2)).reshape(len(first), -1)
            square = ((view[:, None] - flat[None]) ** 2).mean(axis=2)
            best = np.minimum(best, np.sqrt(square.min(axis=1)))
    return best


def measure_labels(workspace: Workspace, judge: Judge) -> dict[str, Any]:
    """The accepted boxes against the judge's, on the pictures that the filter kept."""
    images = {
        image.image_id: image
        for image in read_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage)
    }
    labels = read_records(workspace.stage("label").path / "labels.jsonl", Label)
    seen = judge.find([workspace.root / images[label.image_id].path for label in labels])
    accepted = matched = wanted = reached = 0
    for label, found in zip(labels, seen, strict=True):
        boxes = [box.xyxy for box in label.boxes] if label.status == "accept" else []
        hits = num_matched(boxes, [box.xyxy for box in found])
        accepted, matched = accepted + len(boxes), matched + hits
        wanted += len(found)
        reached += len(found) if label.status == "review" else hits
    return {
        "box_precision": round(matched / accepted, 4) if accepted else None,
        "box_recall_with_review": round(reached / wanted, 4) if wanted else None,
        "accepted_boxes": accepted,
        "judge_boxes": wanted,
        "review_share": round(
            sum(label.status == "review" for label in labels) / max(1, len(labels)), 4
        ),
    }


def read_verdict(workspace: Workspace) -> dict[str, Any]:
    """The study's own verdict, as it came out."""
    verdict = read_json(workspace.stage("evaluate").path / "verdict.json")
    gain = verdict["differences"].get("map50_95", {})
    augmented = verdict["augmented_differences"].get("map50_95", {})
    beyond = verdict["synthetic_over_augmented"].get("map50_95", {})
    return {
        "map_gain": gain.get("mean"),
        "map_gain_low": gain.get("low"),
        "map_gain_high": gain.get("high"),
        "map50_gain": verdict["differences"].get("map50", {}).get("mean"),
        "augmented_gain": augmented.get("mean"),
        "synthetic_over_augmented": beyond.get("mean"),
        "map50_95": {arm: measures["map50_95"] for arm, measures in verdict["measures"].items()},
        "train_pictures": verdict["train_pictures"],
        "test_pictures": verdict["test_pictures"],
        "verdict": verdict["verdict"],
    }


# --- all of it -----------------------------------------------------------------------------------


def scene_hash() -> str:
    """Of the code that draws the scenes: the judge is kept by it."""
    from synthdet.pocket.build_scenes import scene_code_hash

    return scene_code_hash()


def package_hash() -> str:
    """Of the package's code, configs and weights: a study is kept by it."""
    import synthdet
    from synthdet.pipeline import find_config

    root = Path(synthdet.__file__).parent
    digest = hashlib.sha256(find_config("pocket").read_bytes())
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.safetensors")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def run(plan: Plan, work: Path) -> dict[str, Any]:
    """All parts; the report."""
    suffix = "-quick" if plan is QUICK else ""
    judge_folder = work / f"judge-{scene_hash()}-{plan.judge_scenes}-{plan.judge_steps}"
    bench = Bench(work / f"study-{package_hash()}{suffix}", plan)
    scenes = write_test_scenes(judge_folder / "test", plan)
    started = time.monotonic()
    if not (judge_folder / "weights").exists():
        train_judge(judge_folder, plan)
        write_json(judge_folder / "seconds.json", {"seconds": round(time.monotonic() - started)})
    judge = Judge(judge_folder / "weights")
    bench.part("vae", lambda: measure_vae(scenes))
    bench.part("clip", lambda: measure_clip(scenes))
    bench.part("judge", lambda: judge_the_judge(judge, scenes))
    bench.part("study", lambda: {"study": run_study(bench.folder, plan).root.name})
    workspace = Workspace(bench.folder / "run")
    bench.part("pictures", lambda: measure_pictures(workspace, judge, bench.folder, plan))
    bench.part("memory", lambda: measure_memory(workspace))
    bench.part("labels", lambda: measure_labels(workspace, judge))
    bench.part("verdict", lambda: read_verdict(workspace))
    seconds = {
        **bench.seconds,
        "judge_training": read_json(judge_folder / "seconds.json")["seconds"],
    }
    return make_report("pocket", bench.figures, TARGETS, seconds=seconds)


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--quick", action="store_true", help="a try of the script itself, in seconds"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("~/.cache/synthdet/benchmarks/pocket"),
        help="where judge, pictures and parts are kept",
    )
    options = parser.parse_args()
    report = run(QUICK if options.quick else Plan(), options.work.expanduser())
    print(json.dumps(report))
    sys.exit(0 if report["ok"] else 1)


if __name__ == "__main__":
    main()
