"""Train animals set into other water, for a LoRA to learn them in seas that no train photo shows.

A LoRA that has seen an animal in four seas draws it in those four, whatever sea it is asked for.
Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
Segmentation", 2021; here what learns from it is the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from synthdet.config import Config
from synthdet.core.pictures import is_blank
from synthdet.core.placement import Animal, plan_modes, whole_animals
from synthdet.core.prompts import PlannedPicture, plan_pictures
from synthdet.core.records import Composite, Tile
from synthdet.errors import SynthdetError
from synthdet.models.protocols import ImageGenerator, PictureRequest, TrainTile
from synthdet.progress import Reporter
from synthdet.stages._prior import draw_missing
from synthdet.stages._sources import Sources
from synthdet.workspace import (
    Workspace,
    atomic_path,
    hash_file,
    read_json,
    read_records,
    write_records,
)

RECORDS_NAME = "composites.jsonl"
_A_WATER = 4
"""Composites a background picture: with other animals, in another of its eight views, it looks new."""
_FIRST_SEED = 50_000_000
"""Far from the seeds of samples, of class pictures and of what is generated later."""


def make_composites(
    workspace: Workspace,
    tiles: Sequence[Tile],
    config: Config,
    reporter: Reporter,
    open_generator: Callable[[Path | None], ImageGenerator],
) -> list[TrainTile]:
    """Further tiles to train on, of which those that are not there yet are made.

    The base model draws background pictures (``generate.background_prompts``), and train animals are
    set into them as `generate.mode: placed` does it, their outline and all, with nothing painted over.
    Captions are the prompts (``generate.prompts``), so a LoRA learns to answer what it will be asked. All
    is planned before the first picture and kept in ``composites.jsonl``; what is changed in ``generate``
    later changes nothing here. A background picture of one colour is left out, with what is set into it.
    Where no animal stands out from its water, that is said, and nothing is made.

    Args:
        workspace: The run folder.
        tiles: Those of train.
        config: All settings.
        reporter: Hears the progress.
        open_generator: Opens the base model, given None; not called where nothing is missing.

    Returns:
        The composites, and the background pictures without animals after them.

    Raises:
        SynthdetError: A prompt names something unknown, one picture does not fit into memory, or all
            background pictures are of one colour.
    """
    folder = workspace.stage("finetune").path
    dataset = read_json(workspace.stage("prepare").path / "dataset.json")
    sources = Sources(workspace.root, tiles, lambda name: _path(folder, name))
    if not (folder / RECORDS_NAME).exists():
        planned = _plan(tiles, sources, dataset["classes"], config, reporter)
        write_records(folder / RECORDS_NAME, planned)
    planned = read_records(folder / RECORDS_NAME, Composite)
    if not planned:
        return []
    waters = {one.picture_id: one for one in planned if one.water is None}
    negative = config.generate.negative_prompt
    draw_missing(
        {
            _path(folder, one.picture_id): PictureRequest(one.prompt, negative, one.seed)
            for one in waters.values()
        },
        tiles[0].width,
        config,
        reporter,
        open_generator,
        doing="background pictures",
        of="composites",
    )
    usable = {name for name in waters if not is_blank(_read(_path(folder, name)))}
    if not usable:
        raise SynthdetError(
            "finetune.composites: every background picture came out in one colour: look at "
            f"{folder / 'composites'}, or set finetune.composites to 0"
        )
    composites = [one for one in planned if one.water in usable]
    for one in composites:
        path = _path(folder, one.picture_id)
        if not path.exists():
            picture = sources.request(_as_planned(one)).source
            with atomic_path(path) as temporary:
                Image.fromarray(picture).save(temporary)
    learned = [*composites, *(waters[name] for name in waters if name in usable)]
    return [_to_tile(one, _path(folder, one.picture_id), dataset["classes"]) for one in learned]


def count_composites(folder: Path) -> int:
    """How many were planned for the training in a folder, background pictures not counted."""
    return sum(one.water is not None for one in read_records(folder / RECORDS_NAME, Composite))


def _plan(
    tiles: Sequence[Tile],
    sources: Sources,
    classes: Sequence[str],
    config: Config,
    reporter: Reporter,
) -> list[Composite]:
    """Background pictures, and what is set into which of them where."""
    animals = whole_animals(tiles)
    with reporter.bar("finetune", len(animals), unit="animal", doing="cutting out") as advance:
        for animal in animals:
            sources.stands_out(animal)
            advance(1)
    cut_out = {_key(animal) for animal in animals if sources.stands_out(animal)}
    if not cut_out:
        reporter.note(
            "finetune",
            "no composites: no train animal stands out from the water around it well enough to be cut out",
        )
        return []
    settings, number = config.generate, config.finetune.composites
    num_waters = -(-number // _A_WATER)
    worded = plan_pictures(
        num_images=number + num_waters,
        class_names=classes,
        prompts=settings.prompts,
        animals=settings.animals,
        attributes=settings.attributes,
        background_prompts=settings.background_prompts,
        background_fraction=num_waters / (number + num_waters),
        negative_prompt=settings.negative_prompt,
        seed=config.finetune.seed + _FIRST_SEED,
    )
    planned = plan_modes(
        worded,
        tiles,
        shares={"placed": 1},
        start="animal",
        water="drawn",
        stands_out=sources.stands_out,
        seed=config.finetune.seed + _FIRST_SEED,
    )
    # Of a class of which none can be cut out, rectangles would be set in: they would be learned too.
    return [
        Composite(
            picture_id=picture.image_id.replace(
                "syn", "water" if picture.background else "composite"
            ),
            prompt=picture.prompt,
            seed=picture.seed,
            water=picture.source_image and picture.source_image.replace("syn", "water"),
            water_view=picture.source_view,
            placed=picture.placed,
        )
        for picture in planned
        if all((box.animal_tile, box.animal_xyxy) in cut_out for box in picture.placed)
    ]


def _key(animal: Animal) -> tuple[str, tuple[float, float, float, float]]:
    return animal.tile.tile_id, animal.xyxy


def _as_planned(one: Composite) -> PlannedPicture:
    return PlannedPicture(
        image_id=one.picture_id,
        prompt=one.prompt,
        negative_prompt="",
        seed=one.seed,
        asked_for=None,
        background=False,
        mode="placed",
        source_image=one.water,
        source_view=one.water_view,
        placed=one.placed,
    )


def _to_tile(one: Composite, path: Path, classes: Sequence[str]) -> TrainTile:
    animals = sorted(one.placed, key=lambda box: box.class_id)  # as captions count them
    boxes = tuple(box.xyxy for box in animals)
    names = tuple(classes[box.class_id] for box in animals)
    return TrainTile(one.picture_id, path, one.prompt, hash_file(path), boxes, names)


def _path(folder: Path, picture_id: str) -> Path:
    return folder / "composites" / f"{picture_id}.png"


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
