"""Is the filter quick, lean and right? Beside the script that everybody writes first.

    python benchmarks/filter.py [--quick] [--work FOLDER] [--parts speed,memory,growth,rescore,faults]

- *speed*: ViT-B/32 with random weights, JPEGs of 1024 px, two threads a side, in turn. The script reads
  the whole folder into one batch and asks scikit-learn for one cosine a picture. `overhead_ratio` is our
  time outside the forward pass over the script's, `total_over_forward` our total over the pure forward
  pass. Embeddings are checked equal first.
- *memory*: the script's megabytes a picture (the slope between two sizes), times 10,000, over what our
  peak is above our memory with the model loaded: `rss_ratio`.
- *growth*: our peak with 100 times as many small pictures, pocket CLIP: `rss_growth_mb`.
- *rescore*: a new centroid over 1,000,000 cached embeddings of 512 numbers.
- *faults*: the pocket world with planted faults, through filter and label. `fault_recall` is the share
  that is dropped for the right reason, `good_loss` what that costs of the good, by the same reasons; the
  detector's silence is one of them, on both sides. `entered_*` is what is accepted without a look.

Progress goes to stderr, one JSON object to stdout. `ok` is whether every target is met.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from report import make_report, measure_parts, say, workplace
from rich.console import Console

from synthdet.config import Config, make_config
from synthdet.core.labelling import SILENT
from synthdet.core.layout import NUM_BYTES
from synthdet.core.records import Box, Decision, Label, SyntheticImage, Tile
from synthdet.pipeline import init_run, run_stage
from synthdet.pocket import weights_dir
from synthdet.pocket.sea import BASE_CLASSES, HUMPBACK, render_scene
from synthdet.pocket.survey import SETTINGS, write_survey
from synthdet.progress import Reporter
from synthdet.stages import filter as filter_stage
from synthdet.stages.filter_cache import BLOCK, EmbeddingCache
from synthdet.workspace import Workspace, hash_file, read_records, write_json, write_records

TARGETS: dict[str, tuple[str, float]] = {
    "overhead_ratio": ("<=", 0.25),
    "total_over_forward": ("<=", 1.15),
    "rss_ratio": (">=", 50.0),
    "rss_growth_mb": ("<=", 64.0),
    "rescore_1m_seconds": ("<=", 1.5),
    "rescore_1m_rss_mb": ("<=", 200.0),
    "fault_recall": (">=", 0.98),
    "good_loss": ("<=", 0.03),
}
PARTS = ("speed", "memory", "growth", "rescore", "faults")
SILENCE = ("nothing found", SILENT)
"""What the label stage says of a picture asked for an animal where its detector counts none."""
QUIET = Reporter(Console(quiet=True))
SIDE = 1024
NUM_TILES = 12
GOOD_SEED, BASE_SEED = 70_000_000, 80_000_000


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    pictures: int = 1_000
    rounds: int = 2
    script_sizes: tuple[int, int] = (500, 1_000)
    growth: tuple[int, int] = (1_000, 100_000)
    embeddings: int = 1_000_000
    good: int = 1_000
    base: int = 200
    copies: int = 50
    twins: int = 50
    black: int = 20
    flights: tuple[int, int] = (24, 8)
    label_steps: int = 1_500  # the default of `label.max_train_steps`


QUICK = Plan(
    pictures=24,
    script_sizes=(16, 32),
    growth=(100, 1_000),
    embeddings=40_000,
    good=40,
    base=8,
    copies=4,
    twins=4,
    black=2,
    flights=(6, 2),
    label_steps=20,
)


def main() -> None:
    """Measure, and print one JSON object."""
    arguments = _parse()
    if arguments.side:
        given = json.loads(arguments.given)
        print(json.dumps(_CHILDREN[arguments.side](arguments.work, given)))
        return
    plan = QUICK if arguments.quick else Plan()
    with workplace("filter", arguments.work) as work:
        figures = measure_parts(
            {part: partial(_PARTS[part], work, plan) for part in arguments.parts.split(",")}
        )
    result = make_report("filter", figures, TARGETS)
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few of everything: does it run?")
    parser.add_argument("--work", type=Path, help="folder to work in; a temporary one without it")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, separated by commas")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--given", default="{}", help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(side: str, work: Path, **given: Any) -> dict[str, Any]:
    """Run a side in a process of its own, so that its memory is its own."""
    command = [sys.executable, __file__, "--side", side, "--work", str(work)]
    told = subprocess.run(
        [*command, "--given", json.dumps(given)], check=True, stdout=subprocess.PIPE, text=True
    )
    answer: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return answer


def _peak_mb() -> float:
    """Our own peak; `getrusage` would count that of the process we were started from."""
    return _status_mb("VmHWM:")


def _rss_mb() -> float:
    return _status_mb("VmRSS:")


def _status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


# --- pictures and models -------------------------------------------------------------------------


def _save_clip(folder: Path) -> Path:
    """ViT-B/32 with random weights, in the files of a real one."""
    if (folder / "model.safetensors").exists():
        return folder
    import torch
    import transformers

    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(projection_dim=512)  # its defaults are ViT-B/32
    transformers.CLIPImageProcessor().save_pretrained(folder)
    transformers.CLIPVisionModelWithProjection(vision).save_pretrained(folder)
    return folder


def _save_jpegs(folder: Path, number: int, side: int) -> list[Path]:
    """Rendered seas, enlarged, each with noise of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = [render_scene(seed).image for seed in range(8)]
    paths = [folder / f"{index:06d}.jpg" for index in range(number)]
    for index, path in enumerate(paths):
        if not path.exists():
            rng = np.random.default_rng(index)
            large = Image.fromarray(scenes[index % 8]).resize(
                (side, side), Image.Resampling.BICUBIC
            )
            pixels = np.asarray(large, dtype=np.int16) + rng.integers(-12, 13, (side, side, 1))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths


def _make_run(root: Path, pictures: Sequence[Path], hashes: Sequence[str], model: str) -> Workspace:
    """A run by hand: a few real tiles, and so many synthetic pictures."""
    if root.exists():
        shutil.rmtree(root)
    config = make_config({"filter": {"model": model}}, where="the benchmark")
    workspace = Workspace.make(root, config)
    prepare = workspace.stage("prepare")
    tiles = []
    for index in range(NUM_TILES):
        path = prepare.path / "tiles" / "train" / f"tile-{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene = render_scene(GOOD_SEED - 1 - index, subject=HUMPBACK)
        Image.fromarray(scene.image).save(path)
        height, width = scene.image.shape[:2]
        tiles.append(
            Tile(
                tile_id=path.stem, image_id=f"photo-{index}", group=f"flight-{index % 4}",
                split="train", path=workspace.relative(path), sha256=hash_file(path),
                xyxy=(0, 0, width, height), scale=1, width=width, height=height,
                boxes=tuple(Box(xyxy=box.xyxy, class_id=0) for box in scene.boxes), caption="",
            )
        )  # fmt: skip
    write_records(prepare.path / "tiles.jsonl", tiles)
    write_json(prepare.path / "dataset.json", {"classes": [HUMPBACK]})
    prepare.claim(settings={}, inputs={})
    prepare.close(outputs=[prepare.path / "tiles.jsonl"], counts={}, runtime={})
    images = (
        _image(workspace, path, sha256, (0,)) for path, sha256 in zip(pictures, hashes, strict=True)
    )
    _finish_generate(workspace, images)
    return workspace


def _image(
    workspace: Workspace, path: Path, sha256: str, asked_for: tuple[int, ...]
) -> SyntheticImage:
    relative = os.path.relpath(path, workspace.root)
    with Image.open(path) as picture:
        width, height = picture.size
    return SyntheticImage(
        image_id=path.stem, path=relative, sha256=sha256, prompt="", negative_prompt="", seed=0,
        scheduler="none", num_inference_steps=1, guidance_scale=1, lora_scale=1, width=width,
        height=height, batch=0, batch_shape=1, asked_for=asked_for,
    )  # fmt: skip


def _finish_generate(workspace: Workspace, images: Any) -> None:
    folder = workspace.stage("generate")
    folder.path.mkdir(parents=True, exist_ok=True)
    with (folder.path / "images.jsonl").open("w", encoding="utf-8") as handle:
        for image in images:
            handle.write(image.to_line() + "\n")
    folder.claim(settings={}, inputs={})
    folder.close(outputs=[folder.path / "images.jsonl"], counts={}, runtime={})


def _open(config: Config, folder: Path) -> Any:
    from synthdet.models.clip import ClipEmbedder

    return ClipEmbedder(folder, batch_size=config.filter.batch_size, device="auto")


# --- speed and memory ----------------------------------------------------------------------------


def _run_script(work: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The straightforward script: the whole folder in one batch, one cosine a picture."""
    import torch
    import transformers
    from sklearn.metrics.pairwise import cosine_similarity

    processor = transformers.AutoImageProcessor.from_pretrained(work / "clip")
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(work / "clip").eval()
    torch.set_num_threads(2)
    paths = sorted((work / "jpegs").glob("*.jpg"))[: given["number"]]
    with torch.no_grad():  # what is set up on the first call counts for neither side
        model(**processor(images=[Image.open(paths[0])], return_tensors="pt"))
    started = time.perf_counter()
    images = [Image.open(path).convert("RGB") for path in paths]
    inputs = processor(images=images, return_tensors="pt")
    begun = time.perf_counter()
    with torch.no_grad():
        embeddings = model(**inputs).image_embeds
    forward = time.perf_counter() - begun
    embeddings = (embeddings / embeddings.norm(dim=-1, keepdim=True)).numpy()
    centroid = embeddings.mean(axis=0)
    scores = [cosine_similarity([row], [centroid])[0][0] for row in embeddings]
    seconds = time.perf_counter() - started
    np.save(work / "script.npy", embeddings)
    return {"seconds": seconds, "forward": forward, "peak_mb": _peak_mb(), "scores": len(scores)}


def _run_ours(_work: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The filter stage: embeddings, scores, decisions, report."""
    import torch

    workspace = Workspace(Path(given["run"]))
    config = workspace.read_config()
    clip = Path(given["clip"])
    embedder = _open(config, clip)
    torch.set_num_threads(2)
    warm = embedder.embed([np.zeros((64, 64, 3), np.uint8)])
    loaded = _rss_mb()
    started = time.perf_counter()
    filter_stage.run(workspace, config, QUIET, open_embedder=lambda: embedder)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "peak_mb": _peak_mb(),
        "loaded_mb": loaded,
        "dimensions": int(warm.shape[1]),
    }


def _run_forward(work: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Nothing but the forward pass, on pictures that are read, shrunk and stacked already."""
    import torch

    config = make_config({}, where="the benchmark")
    embedder = _open(config, work / "clip")
    torch.set_num_threads(2)
    paths = sorted((work / "jpegs").glob("*.jpg"))[:64]
    shrunk = [embedder.shrink(np.asarray(Image.open(path).convert("RGB"))) for path in paths]
    size, number = config.filter.batch_size, given["number"]
    embedder.embed_shrunk(shrunk[:size])
    started = time.perf_counter()
    for start in range(0, number, size):
        batch = [shrunk[index % len(shrunk)] for index in range(start, min(start + size, number))]
        embedder.embed_shrunk(batch)
    return {"seconds": time.perf_counter() - started}


def _measure_speed(work: Path, plan: Plan) -> dict[str, Any]:
    _save_clip(work / "clip")
    paths = _save_jpegs(work / "jpegs", plan.pictures, SIDE)
    hashes = [hash_file(path) for path in paths]
    ours, script, forward = [], [], []
    for turn in range(plan.rounds):
        forward.append(_child("forward", work, number=plan.pictures)["seconds"])
        script.append(_child("script", work, number=plan.pictures))
        workspace = _make_run(work / "run", paths, hashes, str(work / "clip"))
        ours.append(_child("ours", work, run=str(workspace.root), clip=str(work / "clip")))
        if turn == 0:
            _check_equal(work, workspace, hashes)
        say(
            f"round {turn + 1}: forward {forward[-1]:.1f} s, script {script[-1]['seconds']:.1f} s "
            f"(forward {script[-1]['forward']:.1f}), ours {ours[-1]['seconds']:.1f} s"
        )
    pure = statistics.median(forward)
    total = statistics.median(one["seconds"] for one in ours)
    other = statistics.median(one["seconds"] - one["forward"] for one in script)
    outside = max(total - pure, 0.0)
    return {
        "overhead_ratio": round(outside / other, 3),
        "total_over_forward": round(total / pure, 3),
        "pictures_per_second": round(plan.pictures / total, 2),
        "script_seconds_outside_forward": round(other, 2),
        "seconds_outside_forward": round(outside, 2),
        "speedup_vs_script": round(statistics.median(s["seconds"] for s in script) / total, 2),
    }


def _check_equal(work: Path, workspace: Workspace, hashes: Sequence[str]) -> None:
    """Both sides say the same of every picture, or there is nothing to compare."""
    cache = EmbeddingCache(workspace.stage("filter").path / "embeddings", str(work / "clip"))
    cosines = (cache.rows(hashes) * np.load(work / "script.npy")).sum(axis=1)
    if cosines.min() < 0.99:
        raise SystemExit(f"embeddings differ: cosine {cosines.min():.4f}")
    say(f"embeddings are equal: cosines from {cosines.min():.5f} to {cosines.max():.5f}")


def _measure_memory(work: Path, plan: Plan) -> dict[str, Any]:
    _save_clip(work / "clip")
    small, large = plan.script_sizes
    paths = _save_jpegs(work / "jpegs", max(large, plan.pictures), SIDE)[: plan.pictures]
    peaks = [_child("script", work, number=number)["peak_mb"] for number in (small, large)]
    slope = (peaks[1] - peaks[0]) / (large - small)
    workspace = _make_run(
        work / "run", paths, [hash_file(path) for path in paths], str(work / "clip")
    )
    ours = _child("ours", work, run=str(workspace.root), clip=str(work / "clip"))
    above = ours["peak_mb"] - ours["loaded_mb"]
    return {
        "rss_ratio": round(slope * 10_000 / max(above, 1.0), 1),
        "script_mb_a_picture": round(slope, 3),
        "peak_above_loaded_mb": round(above, 1),
    }


def _measure_growth(work: Path, plan: Plan) -> dict[str, Any]:
    """Many names of a few small files; the records say that each is another picture."""
    sources = _save_jpegs(work / "small", 8, 96)
    peaks = []
    for number in plan.growth:
        folder = work / f"many-{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        paths = [folder / f"syn-{index:06d}.jpg" for index in range(number)]
        for index, path in enumerate(paths):
            os.link(sources[index % 8], path)
        hashes = [hashlib.sha256(path.stem.encode()).hexdigest() for path in paths]
        workspace = _make_run(work / f"run-{number}", paths, hashes, "pocket")
        told = _child("ours", work, run=str(workspace.root), clip=str(weights_dir() / "clip"))
        peaks.append(told["peak_mb"])
        say(f"{number:,} pictures: peak {told['peak_mb']:.0f} MB, {told['seconds']:.0f} s")
    return {
        "rss_growth_mb": round(peaks[1] - peaks[0], 1),
        "growth_pictures": plan.growth[1],
        "small_pictures_per_second": round(plan.growth[1] / told["seconds"], 1),
    }


# --- a new centroid ------------------------------------------------------------------------------


def _measure_rescore(work: Path, plan: Plan) -> dict[str, Any]:
    folder = work / "million"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for start in range(0, plan.embeddings, BLOCK):
        path = folder / f"{start:09d}.npz"
        number = min(BLOCK, plan.embeddings - start)
        rows = rng.standard_normal((number, 512), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        names = [hashlib.sha256(str(start + n).encode()).hexdigest() for n in range(number)]
        np.savez(
            path, model=np.array("clip"), sha256=np.array(names), fault=np.array([""] * number),
            layout=np.zeros((number, NUM_BYTES), np.uint8), embeddings=rows,
        )  # fmt: skip
    told = [_child("rescore", work, folder=str(folder)) for _ in range(3)][1:]
    scale = 1_000_000 / plan.embeddings
    shutil.rmtree(folder)
    return {
        "rescore_1m_seconds": round(scale * min(one["seconds"] for one in told), 3),
        "rescore_1m_rss_mb": round(max(one["mb"] for one in told), 1),
        "rescored": plan.embeddings,
    }


def _run_rescore(_work: Path, given: dict[str, Any]) -> dict[str, Any]:
    before = _rss_mb()
    started = time.perf_counter()
    centroid = np.zeros(512, dtype=np.float32)
    centroid[:2] = 0.6, 0.8
    cache = EmbeddingCache(Path(given["folder"]), "clip")
    kept = sum(int((cosines >= 0.05).sum()) for _, cosines in cache.similarities(centroid))
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "mb": _peak_mb() - before, "kept": kept}


# --- planted faults ------------------------------------------------------------------------------


def _measure_faults(work: Path, plan: Plan) -> dict[str, Any]:
    """A survey of the rendered sea, good pictures and bad ones, through filter and label."""
    workspace, kinds, pairs = _plant_faults(work / "faults", plan)
    for stage in ("filter", "label"):
        run_stage(stage, workspace, QUIET)
    reasons = {
        one.image_id: one.reason
        for one in read_records(workspace.stage("filter").path / "decisions.jsonl", Decision)
    }
    records = read_records(workspace.stage("label").path / "labels.jsonl", Label)
    labels = {one.image_id: one.reason for one in records}
    found: Counter[str] = Counter()
    for image_id, kind in kinds.items():
        found[kind] += _is_found(image_id, kind, reasons, labels, pairs)
    numbers = Counter(kinds.values())
    faults = [kind for kind in numbers if kind != "good"]
    originals = set(pairs.values())
    lost = [
        image_id
        for image_id, kind in kinds.items()
        if kind == "good"
        and reasons[image_id] is not None
        and not (image_id in originals and reasons[image_id] == "near-duplicate")
    ]
    accepted = {one.image_id for one in records if one.status == "accept"}
    entered = Counter(kinds[image_id] for image_id in accepted)
    silent = [i for i, kind in kinds.items() if kind == "good" and labels.get(i) in SILENCE]
    return {
        "fault_recall": round(sum(found[k] for k in faults) / sum(numbers[k] for k in faults), 4),
        "good_loss": round((len(lost) + len(silent)) / numbers["good"], 4),
        "good_loss_filter": round(len(lost) / numbers["good"], 4),
        "good_lost_reasons": dict(Counter(reasons[image_id] for image_id in lost)),
        **{f"found_{kind}": round(found[kind] / numbers[kind], 4) for kind in faults},
        **{  # not of near-duplicates, of which one of the two is to enter
            f"entered_{kind}": round(entered[kind] / numbers[kind], 4)
            for kind in ("good", "base", "copy", "black")
        },
        "clip_alone_base": round(
            sum(reasons[i] is not None for i, k in kinds.items() if k == "base") / numbers["base"],
            4,
        ),
    }


def _is_found(
    image_id: str,
    kind: str,
    reasons: dict[str, str | None],
    labels: dict[str, str | None],
    pairs: dict[str, str],
) -> bool:
    """Whether a fault is dropped for the right reason; of near-duplicates either of the two."""
    if kind == "twin":
        return "near-duplicate" in (reasons[image_id], reasons[pairs[image_id]])
    right = {
        "base": ("far from real", "looks like background"),
        "copy": ("copy of a real photo",),
        "black": ("blank",),
        "good": (),
    }[kind]
    return reasons[image_id] in right or (kind == "base" and labels.get(image_id) in SILENCE)


def _plant_faults(folder: Path, plan: Plan) -> tuple[Workspace, dict[str, str], dict[str, str]]:
    """The run, the kind of each picture, and the original of each near-duplicate."""
    shutil.rmtree(folder, ignore_errors=True)
    survey = folder / "survey"
    train, val = plan.flights
    write_survey(survey, QUIET, flights={"train": train, "val": val, "test": 2})
    init_run(
        folder / "run", config="pocket", photos=survey, labels=None, annotation_format="auto",
        assignments=[*SETTINGS, f"label.max_train_steps={plan.label_steps}"], reporter=QUIET,
    )  # fmt: skip
    workspace = Workspace(folder / "run")
    run_stage("prepare", workspace, QUIET)
    tiles = read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
    animals = [tile for tile in tiles if tile.split == "train" and tile.boxes]
    images = workspace.stage("generate").path / "images"
    images.mkdir(parents=True)
    kinds: dict[str, str] = {}
    pairs: dict[str, str] = {}
    rng = np.random.default_rng(0)

    def add(kind: str, picture: NDArray[np.uint8] | Image.Image) -> str:
        image_id = f"syn-{len(kinds):06d}"
        image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
        image.save(images / f"{image_id}.png")
        kinds[image_id] = kind
        return image_id

    asked: dict[str, int] = {}
    goods = []
    for index in range(plan.good):
        scene = render_scene(GOOD_SEED + index, subject=HUMPBACK)
        goods.append(add("good", scene.image))
        asked[goods[-1]] = len(scene.boxes)
    for index in range(plan.base):
        subject = BASE_CLASSES[index % len(BASE_CLASSES)] if index % 4 else None
        add("base", render_scene(BASE_SEED + index, subject=subject).image)
    for index in rng.permutation(len(animals))[: plan.copies].tolist():
        with Image.open(workspace.root / animals[index].path) as tile:
            add("copy", _disturb(tile.convert("RGB"), rng, work=folder))
    for index in rng.permutation(len(goods))[: plan.twins].tolist():
        with Image.open(images / f"{goods[index]}.png") as original:
            twin = add("twin", _disturb(original.convert("RGB"), rng, work=folder))
        pairs[twin] = goods[index]
    for _ in range(plan.black):
        add("black", np.zeros((128, 128, 3), np.uint8))
    paths = {image_id: images / f"{image_id}.png" for image_id in kinds}
    records = [
        _image(workspace, path, hash_file(path), (0,) * asked.get(pairs.get(image_id, image_id), 1))
        for image_id, path in paths.items()
    ]
    _finish_generate(workspace, records)
    return workspace, kinds, pairs


def _disturb(image: Image.Image, rng: np.random.Generator, *, work: Path) -> Image.Image:
    """The same picture, a little brighter or darker, as a JPEG has it."""
    changed = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.97, 1.03)))
    path = work / "disturbed.jpg"
    changed.save(path, quality=int(rng.integers(85, 96)))
    with Image.open(path) as read:
        return read.convert("RGB")


_CHILDREN: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
    "script": _run_script,
    "ours": _run_ours,
    "forward": _run_forward,
    "rescore": _run_rescore,
}
_PARTS: dict[str, Callable[[Path, Plan], dict[str, Any]]] = {
    "speed": _measure_speed,
    "memory": _measure_memory,
    "growth": _measure_growth,
    "rescore": _measure_rescore,
    "faults": _measure_faults,
}

if __name__ == "__main__":
    main()
