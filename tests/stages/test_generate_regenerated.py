"""With real networks in small: a picture's record and the run's tiles are enough to draw it again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from synthdet.core.placement import whole_animals
from synthdet.core.prompts import PlannedPicture
from synthdet.core.records import SyntheticImage, Tile
from synthdet.models.sdxl import SdxlGenerator
from synthdet.stages import generate
from synthdet.stages._sources import Sources
from synthdet.workspace import read_records
from tests.handmade import HEIGHT, WIDTH, file_bytes, quiet
from tests.stages.test_generate import MODES, records, start_modes
from tests.tiny import tiny_sdxl

SETTINGS: dict[str, Any] = {
    "mode": MODES,
    "num_images": 12,
    "batch_size": 3,
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "guidance_end": 0.5,
    "guidance_rescale": 0.7,
    "scheduler": "EulerAncestralDiscreteScheduler",
}


def open_generator(base: Path, scheduler: str) -> SdxlGenerator:
    return SdxlGenerator(
        base, vae=None, lora=None, lora_scale=0, scheduler=scheduler, mixed_precision="no",
        device="cpu",
    )  # fmt: skip


def plan_from(record: SyntheticImage) -> PlannedPicture:
    assert record.mode is not None
    return PlannedPicture(
        image_id=record.image_id, prompt=record.prompt, negative_prompt=record.negative_prompt,
        seed=record.seed, asked_for=record.asked_for, background=record.asked_for == (),
        mode=record.mode, source_tile=record.source_tile, source_image=record.source_image,
        source_view=record.source_view, placed=record.placed or (),
    )  # fmt: skip


def draw_again(
    batch: Sequence[SyntheticImage], sources: Sources, generator: SdxlGenerator
) -> list[Any]:
    first = batch[0]
    assert len(batch) == first.batch_shape
    return generator.generate(
        [sources.request(plan_from(record)) for record in batch],
        width=first.width,
        height=first.height,
        num_inference_steps=first.num_inference_steps,
        guidance_scale=first.guidance_scale,
        guidance_end=first.guidance_end or 1.0,
        guidance_rescale=first.guidance_rescale,
        strength=first.strength or 1.0,
    )


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers, under numpy 2
@pytest.mark.parametrize("water", ["real", "drawn"])
def test_every_picture_is_drawn_again_from_its_record(tmp_path: Path, water: str) -> None:
    base = tiny_sdxl(tmp_path / "sdxl")
    contents = []
    for workers in (1, 3):
        workspace, config = start_modes(
            tmp_path / f"run-{workers}", **SETTINGS, placed_water=water, workers=workers
        )
        generate.run(
            workspace, config, quiet()[0],
            open_generator=lambda _lora_scale: open_generator(base, SETTINGS["scheduler"]),
        )  # fmt: skip
        contents.append(file_bytes(workspace.root / "3-generate"))
    assert contents[0] == contents[1], "on any number of workers"

    made = records(workspace)
    by_id = {record.image_id: record for record in made}
    tiles = read_records(workspace.root / "1-prepare" / "tiles.jsonl", Tile)
    sources = Sources(workspace.root, tiles, lambda image_id: workspace.root / by_id[image_id].path)
    for animal in whole_animals(tiles):
        sources.stands_out(animal)
    generator = open_generator(base, made[0].scheduler)
    seen = set()
    for number in {record.batch for record in made}:
        batch = [record for record in made if record.batch == number]
        for record, picture in zip(batch, draw_again(batch, sources, generator), strict=True):
            seen.add(record.mode)
            assert picture.shape == (HEIGHT, WIDTH, 3)
            with Image.open(workspace.root / record.path) as image:
                assert np.array_equal(np.array(image), picture)
    assert seen == {"text", "image", "placed"}
