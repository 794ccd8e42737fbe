"""Train animals set into other water, for a LoRA to learn them in seas that no train photo shows.

A LoRA that has seen an animal in four seas draws it in those four, whatever sea it is asked for.
Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance
Segmentation", 2021; here what learns from it is the generator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from synthdet.config import Config
from synthdet.core.pictures import is_blank
from synthdet.core.placement import Animal, plan_modes
from synthdet.core.prompts import (
    ANIMALS,
    PlannedPicture,
    default_animals,
    find_asked_for,
    plan_pictures,
)
from synthdet.core.records import Composite, Tile
from synthdet.errors import SynthdetError
from synthdet.models.protocols import ImageGenerator, PictureRequest, TrainTile
from synthdet.progress import Reporter
from synthdet.stages._prior import draw_missing
from synthdet.stages._sources import Sources, look_at_animals, read_picture
from synthdet.workspace import (
    Workspace,
    atomic_path,
    hash_file,
    read_json,
    read_records,
    write_records,
)

RECORDS_NAME = "composites.jsonl"
_FEW = 5
"""Animals of a class that can be cut out, below which a person should know."""
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
    is planned before the first picture and kept in ``composites.jsonl``: other prompts in ``generate``
    change nothing here later. A background picture of one colour is left out, with what is set into it.
    Animals that are not cut out well are never set in, with their rectangles: those would be learned. Where
    none is, or no prompt asks for one, that is said, and nothing is made.

    Args:
        workspace: The run folder.
        tiles: Those of train.
        config: All settings.
        reporter: Hears the progress.
        open_generator: Opens the base model, given None; not called where nothing is missing.

    Returns:
        The composites, and the background pictures without animals after them.

    Raises:
        SynthdetError: A prompt names something unknown, one picture does not fit into memory or cannot
            be read, or all background pictures are of one colour.
    """
    folder = workspace.stage("finetune").path
    dataset = read_json(workspace.stage("prepare").path / "dataset.json")
    sources = Sources(workspace.root, tiles, lambda name: _path(folder, name))
    path = folder / RECORDS_NAME
    if not path.exists():
        write_records(path, _plan(tiles, sources, dataset["classes"], config, reporter))
    elif not path.stat().st_size:
        reporter.note(
            "finetune", "no composites, as at the first start: --redo looks for some again"
        )
    planned = read_records(path, Composite)
    if not planned:
        return []
    waters = {one.picture_id: one for one in planned if one.water is None}
    draw_missing(
        {
            _path(folder, one.picture_id): PictureRequest(one.prompt, one.negative_prompt, one.seed)
            for one in waters.values()
        },
        tiles[0].width,
        config,
        reporter,
        open_generator,
        doing="background pictures",
        of="composites",
    )
    again = "delete it and start again: it is drawn anew"
    usable = {name for name in waters if not is_blank(read_picture(_path(folder, name), again))}
    if not usable:
        raise SynthdetError(
            "finetune.composites: every background picture came out in one colour: look at "
            f"{folder / 'composites'}, and start again with --redo and generate.mixed_precision at no, or "
            "finetune.composites at 0"
        )
    composites = [one for one in planned if one.water in usable]
    missing = [one for one in composites if not _path(folder, one.picture_id).exists()]
    with reporter.bar("finetune", len(missing), doing="composites") as advance:
        for one in missing:
            picture = sources.request(_as_planned(one)).source
            with atomic_path(_path(folder, one.picture_id)) as temporary:
                Image.fromarray(picture).save(temporary)
            advance(1)
    learned = [*composites, *(waters[name] for name in waters if name in usable)]
    return [_to_tile(one, _path(folder, one.picture_id), dataset["classes"]) for one in learned]


def count_composites(folder: Path) -> int:
    """How many a training in a folder learned from, background pictures not counted."""
    planned = read_records(folder / RECORDS_NAME, Composite)
    return sum(one.water is not None and _path(folder, one.picture_id).exists() for one in planned)


def _plan(
    tiles: Sequence[Tile],
    sources: Sources,
    classes: Sequence[str],
    config: Config,
    reporter: Reporter,
) -> list[Composite]:
    """Background pictures, and what is set into which of them where."""
    animals = look_at_animals(sources, tiles, reporter, "finetune")
    settings, number = config.generate, config.finetune.composites
    cut_out = {animal.class_id for animal in animals if sources.stands_out(animal)}
    phrases = settings.animals or default_animals(classes)
    phrases = {
        words: count
        for words, count in phrases.items()
        if count and cut_out.issuperset(find_asked_for(words, count, classes) or (None,))
    }
    prompts = [prompt for prompt in settings.prompts if f"{{{ANIMALS}}}" in prompt]
    why = (
        "generate.background_prompts is empty" if not settings.background_prompts else
        "none of generate.prompts asks for {animals}" if not prompts else
        "no train animal that is asked for stands out from its water well enough to be cut out"
        if not phrases else None
    )  # fmt: skip
    if why is not None:
        reporter.note("finetune", f"no composites: {why}")
        return []
    _tell_of_few(animals, sources, classes, reporter)
    num_waters = config.finetune.num_waters()
    seed = config.finetune.seed + _FIRST_SEED
    worded = plan_pictures(
        num_images=number + num_waters,
        class_names=classes,
        prompts=prompts,
        animals=phrases,
        attributes=settings.attributes,
        background_prompts=settings.background_prompts,
        background_fraction=num_waters / (number + num_waters),
        negative_prompt=settings.negative_prompt,
        background_negative_prompt=settings.background_negative_prompt,
        seed=seed,
    )
    planned = plan_modes(
        worded,
        tiles,
        shares={"placed": 1},
        start="animal",
        water="drawn",
        stands_out=sources.stands_out,
        seed=seed,
        other_seas=False,  # what is learned needs all animals in every sea
    )
    return [
        Composite(
            picture_id=picture.image_id.replace(
                "syn", "water" if picture.background else "composite"
            ),
            prompt=picture.prompt,
            seed=picture.seed,
            negative_prompt=picture.negative_prompt if picture.background else "",
            water=picture.source_image and picture.source_image.replace("syn", "water"),
            water_view=picture.source_view,
            placed=picture.placed,
        )
        for picture in planned
    ]


def _tell_of_few(
    animals: Sequence[Animal], sources: Sources, classes: Sequence[str], reporter: Reporter
) -> None:
    """Few cut-outs come up again and again, and a LoRA learns those very animals."""
    numbers = Counter(animal.class_id for animal in animals if sources.stands_out(animal))
    for class_id, number in sorted(numbers.items()):
        if number < _FEW:
            reporter.note(
                "finetune",
                f"composites: only {number} of class {classes[class_id]} can be cut out, and they come up "
                "again and again: leave it out of generate.animals, or lower finetune.composites",
            )


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
