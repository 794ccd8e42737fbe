"""Prompts + LoRA -> synthetic photos.

Reads:
    ``1-prepare/dataset.json`` (class names) and ``tiles.jsonl`` (the size of a picture; in the modes
    `image` and `placed` the train tiles that pictures start from), and
    ``2-finetune/pytorch_lora_weights.safetensors``. With ``generate.pictures``, that folder instead
    of the LoRA: every picture in it is taken in, turned upright and made RGB; one of another
    size is scaled until it covers the tile and cut about its centre; the prompt is read from a
    ``.txt`` of the same name beside it, if there is one.

Writes:
    ``3-generate/images/<image_id>.png``, which carry their prompt and settings as PNG text;
    ``images.jsonl``, a line each, in plan order; ``plan.json``, the shapes of the batches;
    ``rejected.jsonl``, what could not be taken in.

Resume:
    Prompts, seeds and batches are planned from the whole list before the first picture. A batch with
    a missing member is made again as a whole, which gives the same bytes. A batch that does not
    fit into memory is halved, and so are all after it that are as large; ``plan.json`` keeps that.
    A batch is written while the next one is drawn: a kill loses those two at most.
"""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from synthdet.config import Config, GenerateConfig
from synthdet.core.pictures import is_blank
from synthdet.core.placement import change_water, plan_modes
from synthdet.core.prompts import PlannedPicture, plan_pictures
from synthdet.core.records import GenerateMode, Tile
from synthdet.errors import SynthdetError
from synthdet.models.protocols import ImageGenerator, Picture, PictureRequest
from synthdet.progress import Reporter
from synthdet.stages._sources import Sources, compare, look_at_animals
from synthdet.stages.generate_batches import Batches
from synthdet.stages.generate_files import Saver
from synthdet.stages.generate_made import Made, picture_path
from synthdet.stages.generate_take_in import list_pictures, take_in
from synthdet.workspace import (
    Workspace,
    hash_file,
    hash_json,
    read_json,
    read_records,
)

MODES: tuple[GenerateMode, ...] = ("text", "image", "placed")


def run(
    workspace: Workspace,
    config: Config,
    reporter: Reporter,
    *,
    open_generator: Callable[[float], ImageGenerator],
    redo: bool = False,
) -> None:
    """Make every planned picture that is not there yet.

    Args:
        workspace: The run folder.
        config: All settings.
        reporter: Hears the progress.
        open_generator: Opens the pipeline with the run's LoRA in the strength given; not called where
            no picture is missing.
        redo: Set the old folder aside and start afresh.

    Raises:
        SynthdetError: A stage before is not done, a prompt names something unknown, a setting was
            changed, one picture alone does not fit into memory, or the disk is full.
    """
    settings = config.generate
    folder = workspace.stage("generate")
    files = [] if settings.pictures is None else list_pictures(settings.pictures)
    inputs = _inputs(workspace, settings, files)
    lock, plan = folder.lock(), None
    if settings.pictures is None and (redo or lock is None or not lock["finished"]):
        # Before the folder is claimed: of what is refused nothing is left that a mended start would find.
        plan = _plan(workspace, settings, reporter)
    done = folder.claim(
        settings=settings.settings("making"),
        inputs=inputs,
        newer={
            "placed_lora_scale": None,
            "guidance_rescale": 0.0,
            "background_negative_prompt": None,
        },
        redo=redo,
        note=lambda text: reporter.note("generate", text),
    )
    made = Made(folder, reporter)
    counts: dict[str, Any] = (folder.lock() or {}).get("counts", {})
    if done and made.is_whole(counts["pictures"]):
        reporter.close("generate", _closing_line(counts))
        return
    for leftover in folder.path.rglob(".tmp-*"):
        leftover.unlink()

    speed: dict[str, float] = {}
    tiles = _read_tiles(workspace)
    size_wh = tiles[0].width, tiles[0].height
    if settings.pictures is None:
        sources, planned = plan or _plan(workspace, settings, reporter)
        speed = _generate(made, planned, sources, settings, size_wh, open_generator)
        wanted = [picture.image_id for picture in planned]
    else:
        wanted = take_in(made, files, size_wh)
    records = made.close(wanted, size_wh)
    counts = {
        "taken_in": settings.pictures is not None,
        "pictures": len(records),
        "background": sum(record.asked_for == () for record in records),
        "modes": dict(Counter(record.mode for record in records if record.mode is not None)),
        "prompts": len({record.prompt for record in records}),
        "made_again": sum(record.vae is not None for record in records),
        "blank": sum(record.fault is not None for record in records),
        "rejected": len(made.rejected),
    }
    folder.close(
        outputs=[made.records_path],
        counts=counts,
        runtime={**settings.settings("runtime"), **speed},
    )
    reporter.close("generate", _closing_line(counts))


def _inputs(
    workspace: Workspace, settings: GenerateConfig, files: Sequence[Path]
) -> dict[str, str]:
    """Fingerprint of all that the pictures are made from.

    Raises:
        SynthdetError: A stage before is not done, or there is no file of the few-step LoRA.
    """
    if settings.pictures is not None:
        return {
            "prepare": workspace.stage("prepare").output(),
            "pictures": hash_json([[path.name, hash_file(path)] for path in files]),
        }
    inputs = {"finetune": workspace.stage("finetune").output()}
    if settings.few_step_lora is not None:
        if not settings.few_step_lora.is_file():
            raise SynthdetError(
                f"generate.few_step_lora: there is no file {settings.few_step_lora}"
            )
        inputs["few_step_lora"] = hash_file(settings.few_step_lora)
    if set(settings.mode_shares()) != {"text"}:
        inputs["prepare"] = workspace.stage("prepare").output()
    return inputs


def _plan(
    workspace: Workspace, settings: GenerateConfig, reporter: Reporter
) -> tuple[Sources, tuple[PlannedPicture, ...]]:
    """Every picture: its words, its seed, and what it starts from; and where that is found.

    Raises:
        SynthdetError: A prompt names something unknown, or nothing is there to start from.
    """
    tiles, folder = _read_tiles(workspace), workspace.stage("generate").path
    sources = Sources(workspace.root, tiles, partial(picture_path, folder))
    if "placed" in settings.mode_shares() and settings.placed_start == "animal":
        look_at_animals(sources, tiles, reporter, "generate")
    worded = plan_pictures(
        num_images=settings.num_images,
        class_names=read_json(workspace.stage("prepare").path / "dataset.json")["classes"],
        prompts=settings.prompts,
        animals=settings.animals,
        attributes=settings.attributes,
        background_prompts=settings.background_prompts,
        background_fraction=settings.background_fraction,
        negative_prompt=settings.negative_prompt,
        background_negative_prompt=settings.background_negative_prompt,
        seed=settings.seed,
    )
    planned = plan_modes(
        worded,
        tiles,
        shares=settings.mode_shares(),
        start=settings.placed_start,
        water=settings.placed_water,
        stands_out=sources.stands_out,
        seed=settings.seed,
    )
    return sources, planned


def _read_tiles(workspace: Workspace) -> list[Tile]:
    """What the LoRA was trained on; what is made has the size of the first."""
    tiles = read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
    if not tiles:
        raise SynthdetError("there is no tile to match in size: look at 1-prepare/tiles.jsonl")
    return tiles


def _closing_line(counts: Mapping[str, Any]) -> str:
    line = f"{counts['pictures']} pictures"
    line += " taken in" if counts["taken_in"] else f" of {counts['prompts']} prompts"
    if len(counts["modes"]) > 1 or "text" not in counts["modes"]:
        line += "".join(f" · {number} {mode}" for mode, number in counts["modes"].items())
    if counts["background"]:
        line += f" · {counts['background']} asked to be background"
    if counts["rejected"]:
        line += f" · {counts['rejected']} files not taken in (rejected.jsonl says why)"
    return line


# --- generated -------------------------------------------------------------------------------------


def _generate(
    made: Made,
    planned: Sequence[PlannedPicture],
    sources: Sources,
    settings: GenerateConfig,
    size_wh: tuple[int, int],
    open_generator: Callable[[float], ImageGenerator],
) -> dict[str, float]:
    """Draw what is not there; returns how fast that was, empty where nothing was drawn."""
    if not planned:
        return {}
    models = _Models(open_generator)
    planned, groups = _in_groups(planned, settings)
    first = _lora_scale(planned[0], settings)
    batches = Batches(
        made.folder.path / "plan.json",
        groups,
        lambda: _find_batch_size(made.reporter, models, first, settings, size_wh),
    )
    done = sum(made.has(picture.image_id) for picture in planned)
    drawn, begun = 0, 0.0
    with (
        made.reporter.bar("generate", len(planned), done=done) as advance,
        Saver(made.write, made.add, workers=settings.workers) as saver,
    ):
        for number, batch in batches.walk(planned):
            lacking = sum(not made.has(picture.image_id) for picture in batch)
            if not lacking:
                continue
            generator = models.generator(_lora_scale(batch[0], settings))
            begun = begun or time.perf_counter()
            batch = _on_water_that_came_out(batch, planned, made, saver)
            try:
                rows = _draw_batch(number, batch, generator, sources, settings, size_wh)
            except MemoryError as error:
                batches.halve(number, because=error)
                made.reporter.note(
                    "generate", f"out of memory with {len(batch)} pictures at once: halved"
                )
                continue
            finally:
                del generator  # the next batch may want another: two do not fit a small GPU
            saver.save(rows)
            drawn += len(batch)
            advance(lacking)
    if not drawn:
        return {}
    seconds = time.perf_counter() - begun
    return {
        "pictures_per_second": round(drawn / seconds, 3),
        "save_stall_share": round(saver.stalled / seconds, 4),
    }


def _draw_batch(
    number: int,
    batch: Sequence[PlannedPicture],
    generator: ImageGenerator,
    sources: Sources,
    settings: GenerateConfig,
    size_wh: tuple[int, int],
) -> list[tuple[Picture, dict[str, Any]]]:
    """The pictures of a batch, each with what its record says.

    Raises:
        MemoryError: They do not fit.
    """
    requests = [sources.request(plan) for plan in batch]
    strength = settings.strength(batch[0].mode)
    draw = partial(_draw, generator, requests, settings, size_wh, strength)
    pictures, notes = _make_blanks_again(draw(), draw)
    described = partial(_describe, number, len(batch), generator, settings)
    rows = zip(batch, requests, pictures, notes, strict=True)
    return [
        (picture, described(compare(plan, request.source, picture)) | note)
        for plan, request, picture, note in rows
    ]


def _in_groups(
    planned: Sequence[PlannedPicture], settings: GenerateConfig
) -> tuple[list[PlannedPicture], list[int]]:
    """The pictures in the order in which they are drawn, and how many of each group may share a batch.

    A batch starts in one way, with one LoRA: that of placed animals last, so that it changes once, and
    among those `placed` last, which may start from backgrounds drawn before.
    """

    def group(picture: PlannedPicture) -> tuple[bool, int]:
        other = _lora_scale(picture, settings) != settings.lora_scale
        return other, MODES.index(picture.mode)

    sizes = Counter(map(group, planned))
    return sorted(planned, key=group), [sizes[one] for one in sorted(sizes)]


def _lora_scale(picture: PlannedPicture, settings: GenerateConfig) -> float:
    return settings.lora_strength(picture.mode, background=picture.background)


def _on_water_that_came_out(
    batch: Sequence[PlannedPicture], planned: Sequence[PlannedPicture], made: Made, saver: Saver
) -> Sequence[PlannedPicture]:
    """The batch, ready to start: on drawn water it waits for that, and leaves out what is of one colour."""
    if not any(plan.source_image for plan in batch):
        return batch
    waters = [plan for plan in planned if plan.background]
    if not all(water.image_id in made.records for water in waters):
        saver.wait()  # they were drawn in earlier batches
    usable = [water for water in waters if made.records[water.image_id].fault is None]
    batch = [change_water(plan, usable) for plan in batch]
    if not all(made.has(plan.source_image) for plan in batch if plan.source_image):
        saver.wait()  # one that was gone was drawn again in this run
    return batch


class _Models:
    """The pipeline, opened when it is first needed, and anew for another strength of the LoRA.

    A LoRA is fused into the weights, and what is taken out again leaves rounding behind: a picture's
    bytes would depend on what was drawn before it.
    """

    def __init__(self, open_generator: Callable[[float], ImageGenerator]) -> None:
        self._open = open_generator
        self._opened: tuple[float, ImageGenerator] | None = None

    def generator(self, lora_scale: float) -> ImageGenerator:
        if self._opened is None or self._opened[0] != lora_scale:
            self._opened = None
            gc.collect()  # two at once do not fit a small GPU
            self._opened = lora_scale, _open(self._open, lora_scale)
        return self._opened[1]


def _find_batch_size(
    reporter: Reporter,
    models: _Models,
    lora_scale: float,
    settings: GenerateConfig,
    size_wh: tuple[int, int],
) -> int:
    if settings.batch_size != "auto":
        return settings.batch_size
    width, height = size_wh
    try:
        found = models.generator(lora_scale).find_batch_size(width=width, height=height)
    except MemoryError:
        found = 1
    reporter.note("generate", f"{found} pictures at once fit here")
    return found


def _open(open_generator: Callable[[float], ImageGenerator], lora_scale: float) -> ImageGenerator:
    try:
        return open_generator(lora_scale)
    except MemoryError as error:
        raise SynthdetError(f"the model does not fit into memory ({error}): free some") from error


def _draw(
    generator: ImageGenerator,
    requests: Sequence[PictureRequest],
    settings: GenerateConfig,
    size_wh: tuple[int, int],
    strength: float,
    *,
    precise_vae: bool = False,
) -> list[Picture]:
    width, height = size_wh
    pictures = generator.generate(
        requests,
        width=width,
        height=height,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        guidance_end=settings.guidance_end,
        guidance_rescale=settings.guidance_rescale,
        strength=strength,
        precise_vae=precise_vae,
    )
    for picture in pictures:
        if picture.shape != (height, width, 3) or picture.dtype != np.uint8:
            raise TypeError(f"the generator drew {picture.dtype} {picture.shape}")
    return pictures


def _make_blanks_again(
    pictures: Sequence[Picture], draw: Callable[..., list[Picture]]
) -> tuple[list[Picture], list[dict[str, str]]]:
    """Pictures that are black or of one colour, from the same noise with the VAE in float32.

    The whole batch is drawn again, since its shape decides the pixels; it happens rarely.

    Returns:
        The pictures, and what their records say of it.
    """
    blank = [is_blank(picture) for picture in pictures]
    if not any(blank):
        return list(pictures), [{} for _ in pictures]
    try:
        again = draw(precise_vae=True)
    except MemoryError:
        again = list(pictures)
    chosen, notes = [], []
    for was_blank, first, second in zip(blank, pictures, again, strict=True):
        chosen.append(second if was_blank else first)
        notes.append({"vae": "float32"} if was_blank else {})
        if is_blank(chosen[-1]):
            notes[-1] = {"fault": "blank"}
    return chosen, notes


def _describe(
    batch: int,
    batch_shape: int,
    generator: ImageGenerator,
    settings: GenerateConfig,
    plan: PlannedPicture,
) -> dict[str, Any]:
    return {
        "image_id": plan.image_id,
        "prompt": plan.prompt,
        "negative_prompt": plan.negative_prompt,
        "seed": plan.seed,
        "scheduler": generator.scheduler,
        "num_inference_steps": settings.num_inference_steps,
        "guidance_scale": settings.guidance_scale,
        "guidance_end": settings.guidance_end,
        "guidance_rescale": settings.guidance_rescale,
        "lora_scale": _lora_scale(plan, settings),
        "batch": batch,
        "batch_shape": batch_shape,
        "asked_for": plan.asked_for,
        "mode": plan.mode,
        "source_tile": plan.source_tile,
        "source_image": plan.source_image,
        "source_view": plan.source_view,
        "strength": None if plan.mode == "text" else settings.strength(plan.mode),
        "placed": plan.placed or None,
    }
