"""Train tiles -> SDXL LoRA.

Reads:
    ``1-prepare/tiles.jsonl`` and its train tiles; the val tiles for the held-out loss alone; nothing
    of test. With ``finetune.lora``, that file instead.

Writes:
    ``2-finetune/pytorch_lora_weights.safetensors`` in diffusers' format, and on request a copy in
    kohya's; ``embeddings.safetensors``, a word that was learned beside it; ``metrics.jsonl``, a line a
    logged step; ``memory.json``, what the training fell back to where memory ran out; ``compile.json``,
    from which step on it was compiled; ``model.json``,
    what the LoRA belongs to, so that later stages see it change; ``trained_on.json``, the photos it has
    seen; ``samples/``, the base model's picture beside the LoRA's, same prompt and seed; ``prior/`` and
    ``prior.jsonl``, the base model's own pictures where it is asked to keep them; ``composites/`` and
    ``composites.jsonl``, train animals set into other water; ``checkpoints/``, the training's last state;
    ``cache/`` (latents, captions) while it trains.

Resume:
    The trainer goes on from its newest whole checkpoint and ends with the same weights. Pictures of the
    base model and composites are made where one is missing; samples all again. When photos are added, the LoRA stays,
    as one of the earlier set, as long as all that it has seen is still in train.
"""

from __future__ import annotations

import gc
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from synthdet.config import Config
from synthdet.core.prompts import plain
from synthdet.core.records import Photo, Split, Tile
from synthdet.errors import SynthdetError
from synthdet.models.protocols import (
    ImageGenerator,
    LoraTrainer,
    Picture,
    PictureRequest,
    TrainTile,
)
from synthdet.progress import Reporter
from synthdet.stages._composites import RECORDS_NAME as COMPOSITES_NAME
from synthdet.stages._composites import count_composites, make_composites
from synthdet.stages._prior import draw_prior
from synthdet.workspace import (
    StageFolder,
    Workspace,
    atomic_path,
    hash_file,
    read_json,
    read_records,
    write_bytes,
    write_json,
    write_text,
)

WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
WORDS_NAME = "embeddings.safetensors"
KOHYA_NAME = "pytorch_lora_weights_kohya.safetensors"
METRICS_NAME = "metrics.jsonl"
MEMORY_NAME = "memory.json"
COMPILE_NAME = "compile.json"
TRAINED_ON_NAME = "trained_on.json"
_LARGEST_HEADER = 100_000_000
_MOST_HELD_OUT = 64
_WHERE_PHOTOS_LIE = ("photos", "labels", "format", "csv")


def run(
    workspace: Workspace,
    config: Config,
    reporter: Reporter,
    *,
    open_trainer: Callable[[], LoraTrainer],
    open_generator: Callable[[Path | None], ImageGenerator],
    redo: bool = False,
) -> None:
    """Train the LoRA, or take in the user's own, and draw samples with and without it.

    Args:
        workspace: The run folder.
        config: All settings; samples are drawn with the steps and guidance of ``generate``, and with
            its strength of the LoRA.
        reporter: Hears the progress.
        open_trainer: Opens the trainer; not called where nothing is to be trained.
        open_generator: Opens a pipeline with a LoRA, or with None the base model's.
        redo: Set the old folder aside and start afresh.

    Raises:
        SynthdetError: Prepare is not done, there is no train tile, a tile or the user's LoRA cannot
            be used, a setting was changed, or the training diverged.
    """
    settings = config.finetune
    plain(config.generate.negative_prompt)  # refused now, and not when the samples are drawn
    folder = workspace.stage("finetune")
    inputs = {"prepare": workspace.stage("prepare").output()}
    if settings.lora is not None:
        _check_lora(settings.lora)
        inputs["lora"] = hash_file(settings.lora)
    elif not redo:
        _keep_earlier(workspace, folder, reporter)
    done = folder.claim(
        settings=settings.settings("making"),
        inputs=inputs,
        newer={"composites": 0},
        redo=redo,
        note=lambda text: reporter.note("finetune", text),
    )
    weights, model = folder.path / WEIGHTS_NAME, folder.path / "model.json"
    samples = [folder.path / "samples" / f"sample-{i:02d}.png" for i in range(settings.num_samples)]
    trained_on = [folder.path / TRAINED_ON_NAME] if settings.lora is None else []
    made = [weights]
    if settings.kohya_copy and settings.lora is None:
        made.append(folder.path / KOHYA_NAME)
    if settings.new_word is not None and settings.lora is None:
        made.append(folder.path / WORDS_NAME)
    promised = (*made, model, folder.path / METRICS_NAME, *trained_on, *samples)
    if done and all(path.exists() for path in promised):
        lock = folder.lock() or {}
        reporter.close("finetune", _closing_line({**lock["counts"], **lock["runtime"]}))
        return
    for leftover in folder.path.rglob(".tmp-*.*"):
        if leftover.is_file():
            leftover.unlink()

    tiles = read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
    train_tiles = [tile for tile in tiles if tile.split == "train"]
    counts: dict[str, Any] = {"tiles": len(train_tiles)}
    runtime: dict[str, Any] = settings.settings("runtime")
    if settings.lora is not None:
        with atomic_path(weights) as temporary:
            shutil.copyfile(settings.lora, temporary)
        write_text(folder.path / METRICS_NAME, "")
        counts["own_lora"] = settings.lora.name
    elif not all(path.exists() for path in made):
        # Where only the copy is missing, the LoRA is the one that later stages were made with.
        before = weights.read_bytes() if weights.exists() else None
        if before is None:
            trained_on[0].unlink(missing_ok=True)
        planned = plan_training(train_tiles, workspace)
        held_out = plan_training(_choose_held_out(tiles), workspace, split="val")
        if settings.composites:
            planned += make_composites(workspace, train_tiles, config, reporter, open_generator)
        prior = []
        if settings.prior_pictures:
            prior = draw_prior(folder.path, train_tiles[0].width, config, reporter, open_generator)
        rate = _train(folder, planned, held_out, prior, config, reporter, open_trainer)
        runtime["steps_per_second"] = rate
        if before is not None:
            write_bytes(weights, before)
    if settings.lora is None:
        runtime |= _read_kept(folder.path / MEMORY_NAME)
        if chosen := _read_kept(folder.path / COMPILE_NAME):
            runtime["compiled"] = chosen
        counts |= {"steps": settings.max_train_steps, **_count_training(workspace, folder)}
    write_json(model, {"base_model": settings.base_model, "vae": settings.vae})
    if not all(path.exists() for path in samples):
        _draw_samples(samples, train_tiles, weights, config, reporter, open_generator)
    words = [path for path in made if path.name == WORDS_NAME]
    folder.close(outputs=[weights, model, *words], counts=counts, runtime=runtime)
    reporter.close("finetune", _closing_line({**counts, **runtime}))


def _count_training(workspace: Workspace, folder: StageFolder) -> dict[str, Any]:
    """Figures of the training, whose photos are written down if they are not yet."""
    path, learned = folder.path / TRAINED_ON_NAME, _what_is_learned(workspace)
    if not path.exists():
        write_json(path, learned)
    seen = read_json(path)
    first, last = _read_trend(folder.path / METRICS_NAME, "loss")
    counts = {"tiles": seen["num_tiles"], "loss_first": first, "loss_last": last}
    first, last = _read_trend(folder.path / METRICS_NAME, "val_loss")
    if first is not None:
        counts |= {"val_loss_first": first, "val_loss_last": last}
    if (folder.path / COMPOSITES_NAME).exists():
        counts["composites"] = count_composites(folder.path)
    if new := len(set(learned["photos"]) - set(seen["photos"])):
        counts["train_photos_not_seen"] = new
    return counts


def _what_is_learned(workspace: Workspace) -> dict[str, Any]:
    """What a LoRA that is trained now learns from: the train photos with a tile, and how they were cut."""
    prepare = workspace.stage("prepare")
    hashes = {
        photo.image_id: photo.sha256 for photo in read_records(prepare.path / "photos.jsonl", Photo)
    }
    tiles = read_records(prepare.path / "tiles.jsonl", Tile)
    settings = (prepare.lock() or {})["settings"]
    dataset = read_json(prepare.path / "dataset.json")
    return {
        "photos": sorted(
            {hashes.get(tile.image_id, tile.image_id) for tile in tiles if tile.split == "train"}
        ),
        "num_tiles": sum(tile.split == "train" for tile in tiles),
        "classes": dataset["classes"],
        "crop_side": dataset.get("crop_side"),
        "settings": {key: value for key, value in settings.items() if key not in _WHERE_PHOTOS_LIE},
    }


def _keep_earlier(workspace: Workspace, folder: StageFolder, reporter: Reporter) -> None:
    """Where only the photos changed, and all that the LoRA has seen is still in train, keep it.

    Otherwise nothing is done here: a changed input sets the folder aside.
    """
    lock, path = folder.lock(), folder.path / TRAINED_ON_NAME
    prepared = workspace.stage("prepare").output()
    if lock is None or not lock["finished"] or lock["inputs"].get("prepare") == prepared:
        return
    if not path.is_file() or not (folder.path / WEIGHTS_NAME).is_file():
        return
    photos = read_records(workspace.stage("prepare").path / "photos.jsonl", Photo)
    before, now = read_json(path), _what_is_learned(workspace)
    spoilt = _what_spoils(before, now, photos)
    if spoilt is not None:
        reporter.note("finetune", f"the LoRA cannot be kept: {spoilt}")
        return
    new = len(set(now["photos"]) - set(before["photos"]))
    folder.adopt(inputs={"prepare": prepared}, counts={"train_photos_not_seen": new})
    reporter.note(
        "finetune",
        f"the LoRA is kept: all {len(before['photos'])} photos that it has seen are still in train; "
        f"{new} in train are new to it (--redo trains it again)",
    )


def _what_spoils(
    before: dict[str, Any], now: dict[str, Any], photos: Sequence[Photo]
) -> str | None:
    """Why a LoRA trained on ``before`` cannot stand for one trained ``now``; None where it can."""
    seen = set(before["photos"])
    elsewhere = [photo.path for photo in photos if photo.split != "train" and photo.sha256 in seen]
    if elsewhere:
        return f"it has seen {elsewhere[0]}, which is not in train any more"
    gone = seen - {photo.sha256 for photo in photos}
    if gone:
        return f"{len(gone)} of the photos that it has seen are gone"
    if any(before[key] != now[key] for key in ("classes", "crop_side", "settings")):
        return "the tiles are cut or called otherwise"
    return None


def _read_kept(path: Path) -> dict[str, Any]:
    """What the training wrote down of how it went; empty where it did not."""
    return dict(read_json(path)) if path.exists() else {}


def _choose_held_out(tiles: Sequence[Tile]) -> list[Tile]:
    """Val tiles for the held-out loss, evenly from all of them."""
    val = [tile for tile in tiles if tile.split == "val"]
    step = max(1, -(-len(val) // _MOST_HELD_OUT))
    return val[::step]


def plan_training(
    tiles: Sequence[Tile], workspace: Workspace, *, split: Split = "train"
) -> list[TrainTile]:
    """What the trainer is given.

    Args:
        tiles: All of ``split``.
        workspace: The run folder.
        split: "train", or "val" for what is only measured on.

    Raises:
        SynthdetError: There is none to train on, one is of another split, or a picture is missing.
    """
    if not tiles and split == "train":
        raise SynthdetError("there is no train tile to learn from: look at 1-prepare/tiles.jsonl")
    classes = read_json(workspace.stage("prepare").path / "dataset.json")["classes"]
    planned = []
    for tile in tiles:
        if tile.split != split:
            raise SynthdetError(
                f"{tile.tile_id} is a {tile.split} tile: the LoRA learns from train"
            )
        path = workspace.root / tile.path
        if not path.exists():
            raise SynthdetError(
                f"{path} is missing: run `synthdet prepare {workspace.root}` to make it again"
            )
        animals = sorted(tile.boxes, key=lambda box: box.class_id)  # as captions count them
        boxes = tuple(box.xyxy for box in animals)
        names = tuple(classes[box.class_id] for box in animals)
        planned.append(TrainTile(tile.tile_id, path, tile.caption, tile.sha256, boxes, names))
    return planned


def _train(
    folder: StageFolder,
    tiles: Sequence[TrainTile],
    val_tiles: Sequence[TrainTile],
    prior_tiles: Sequence[TrainTile],
    config: Config,
    reporter: Reporter,
    open_trainer: Callable[[], LoraTrainer],
) -> float | None:
    """Train; returns the steps a second, None where no step was left to do."""
    total = config.finetune.max_train_steps
    steps: list[int] = []
    began = time.monotonic()
    with reporter.bars("finetune") as move:
        move(0, 1, "opening the model", "model")

        def on_encoded(number: int, total: int) -> None:
            move(number, total, "encoding", "picture")

        def on_step(step: int, _figures: dict[str, Any]) -> None:
            nonlocal began
            if not steps:
                began = time.monotonic()  # loading and encoding are behind
            move(step, total, "", "step")
            steps.append(step)

        open_trainer().train(
            tiles,
            folder.path,
            on_step=on_step,
            on_encoded=on_encoded,
            val_tiles=val_tiles,
            prior_tiles=prior_tiles,
        )
    made = steps[-1] - steps[0] if steps else 0
    return round(made / max(time.monotonic() - began, 1e-6), 2) if made else None


def _read_trend(path: Path, key: str) -> tuple[float | None, float | None]:
    """Mean loss of the first and of the last tenth of the logged lines: one line is mostly noise."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    logged = [json.loads(line) for line in lines]
    losses = [float(line[key]) for line in logged if key in line]
    if not losses:
        return None, None
    tenth = max(1, len(losses) // 10)
    return round(float(np.mean(losses[:tenth])), 4), round(float(np.mean(losses[-tenth:])), 4)


def _draw_samples(
    paths: Sequence[Path],
    tiles: Sequence[Tile],
    weights: Path,
    config: Config,
    reporter: Reporter,
    open_generator: Callable[[Path | None], ImageGenerator],
) -> None:
    """Draw the most frequent captions of tiles with animals, left without the LoRA, right with it."""
    seen = Counter(tile.caption for tile in tiles if tile.boxes) or Counter(
        tile.caption for tile in tiles
    )
    captions = [
        caption for caption, _ in sorted(seen.items(), key=lambda item: (-item[1], item[0]))
    ]
    requests = [
        PictureRequest(
            captions[i % len(captions)],
            plain(config.generate.negative_prompt),
            config.finetune.seed + i,
        )
        for i in range(len(paths))
    ]
    halves: list[list[Picture]] = []
    try:
        with reporter.bar("finetune", 2 * len(paths), doing="samples") as advance:
            for lora in (None, weights):
                generator = open_generator(lora)
                drawn = []
                for request in requests:
                    drawn += generator.generate(
                        [request],
                        width=tiles[0].width,
                        height=tiles[0].height,
                        num_inference_steps=config.generate.num_inference_steps,
                        guidance_scale=config.generate.guidance_scale,
                        guidance_rescale=config.generate.guidance_rescale,
                    )
                    advance(1)
                halves.append(drawn)
                del generator
                gc.collect()  # two pipelines at once do not fit a small GPU
    except MemoryError as error:
        reporter.note("finetune", f"no samples were drawn, out of memory: {error}")
        return
    for path, request, left, right in zip(paths, requests, *halves, strict=True):
        text = PngInfo()
        text.add_text("prompt", request.prompt)
        text.add_text("seed", str(request.seed))
        with atomic_path(path) as temporary:
            Image.fromarray(np.concatenate([left, right], axis=1)).save(temporary, pnginfo=text)


def _check_lora(path: Path) -> None:
    """Refuse what is not a safetensors file with LoRA weights, before any library opens it.

    A pickle can run code when it is loaded; safetensors is a length, a JSON header and numbers.
    """
    if not path.is_file():
        raise SynthdetError(f"finetune.lora: there is no file {path}")
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        raw = handle.read(length) if length <= min(size, _LARGEST_HEADER) else b""
    try:
        header = json.loads(raw)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise SynthdetError(
            f"finetune.lora: {path} is not a safetensors file; convert it, or train one here"
        ) from error
    if 8 + length + end != size:
        raise SynthdetError(f"finetune.lora: {path} is cut off: copy or download it again")
    if not any("lora" in name for name in tensors):
        raise SynthdetError(f"finetune.lora: {path} holds no LoRA weights")


def _closing_line(figures: dict[str, Any]) -> str:
    if "own_lora" in figures:
        return f"{figures['own_lora']} taken in, nothing trained"
    line = f"{figures['tiles']} tiles"
    if "composites" in figures:
        line += f" and {figures['composites'] or 'no'} composites"
    line += f" · {figures['steps']} steps"
    if figures.get("train_photos_not_seen"):
        line += (
            f" · on an earlier set: {figures['train_photos_not_seen']} train photos are new to it"
        )
    if figures.get("loss_first") is not None:
        line += f" · loss {figures['loss_first']:.3f} to {figures['loss_last']:.3f}"
    if figures.get("val_loss_first") is not None:
        line += f", held out {figures['val_loss_first']:.3f} to {figures['val_loss_last']:.3f}"
    if figures.get("fell_back"):
        line += f" · out of memory: {'; '.join(figures['fell_back'])}"
    if figures.get("steps_per_second"):
        line += f" · {figures['steps_per_second']:.1f} steps/s"
    return line
