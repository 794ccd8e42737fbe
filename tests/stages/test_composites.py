"""Train animals in other water, which a LoRA learns from beside the tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from synthdet.config import Config, make_config
from synthdet.core.records import Box, Composite, Tile
from synthdet.errors import SynthdetError
from synthdet.models.protocols import PictureRequest
from synthdet.pocket.sea import HUMPBACK, render_scene
from synthdet.stages import finetune
from synthdet.workspace import Workspace, hash_file, read_records, write_json, write_records
from tests.fakes import FakeGenerator, FakeLoraTrainer, PlannedError
from tests.handmade import file_bytes, finish, make_run, quiet

SIDE = 128  # a LoRA learns from square tiles
WORDS: dict[str, Any] = {
    "prompts": ["photo of {animals} in a {sea} sea"],
    "background_prompts": ["photo of a {sea} sea"],
    "attributes": {"sea": ["blue", "red"]},
    "animals": {"one whale": 1},
}
SETTINGS: dict[str, Any] = {"num_samples": 0, "max_train_steps": 3, "seed": 5, "composites": 8}


def start(
    root: Path, *, words: dict[str, Any] | None = None, **settings: Any
) -> tuple[Workspace, Config]:
    """A run whose train tiles are rendered scenes with one whale each."""
    workspace, _ = make_run(root)
    config = make_config(
        {"finetune": SETTINGS | settings, "generate": WORDS | (words or {})}, where="the test"
    )
    folder = workspace.stage("prepare")
    tiles = []
    for seed in (1, 2, 3):
        scene = render_scene(seed, size_wh=(SIDE, SIDE), subject=HUMPBACK, num_subjects=1)
        boxes = tuple(Box(xyxy=box.xyxy, class_id=0) for box in scene.boxes)
        path = folder.path / "tiles" / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(path)
        tiles.append(
            Tile(
                tile_id=f"tile-{seed}", image_id=f"photo-{seed}", group="g", split="train",
                path=workspace.relative(path), sha256=hash_file(path), xyxy=(0, 0, SIDE, SIDE),
                scale=1.0, width=SIDE, height=SIDE, boxes=boxes, caption="a whale",
            )
        )  # fmt: skip
    write_records(folder.path / "tiles.jsonl", tiles)
    write_json(folder.path / "dataset.json", {"classes": ["whale"]})
    finish(folder, ["tiles.jsonl", "dataset.json"])
    return workspace, config


def make(
    workspace: Workspace,
    config: Config,
    trainer: FakeLoraTrainer,
    generator: FakeGenerator | None,
) -> str:
    """Run the stage; without a generator, opening one fails the test."""
    reporter, said = quiet()

    def open_generator(lora: Path | None) -> FakeGenerator:
        assert lora is None
        assert generator is not None
        return generator

    finetune.run(
        workspace, config, reporter, open_trainer=lambda: trainer, open_generator=open_generator
    )
    return said.getvalue()


def test_the_lora_learns_train_animals_in_water_that_the_base_model_drew(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    trainer, generator = FakeLoraTrainer(), FakeGenerator()
    said = make(workspace, config, trainer, generator)
    assert "3 tiles and 8 composites · 3 steps" in said
    asked = {request.prompt for request in generator.requests}
    assert asked == {"photo of a blue sea", "photo of a red sea"}
    assert len(generator.requests) == 2, "a water for four composites"
    assert {request.negative_prompt for request in generator.requests} == {""}

    real, composites, waters = trainer.tiles[:3], trainer.tiles[3:-2], trainer.tiles[-2:]
    assert [tile.tile_id for tile in real] == ["tile-1", "tile-2", "tile-3"]
    assert len(composites) == 8
    assert {tile.caption for tile in composites} == {
        "photo of one whale in a blue sea",
        "photo of one whale in a red sea",
    }
    assert {tile.caption for tile in waters} == asked
    assert not any(tile.boxes for tile in waters)
    drawn = {tile.caption.split()[-2]: pixels(tile.path) for tile in waters}
    animals = {pixels(tile.path).tobytes() for tile in composites}
    assert len(animals) == 8, "no two are the same"
    for tile in composites:
        assert hash_file(tile.path) == tile.sha256
        assert tile.names == ("whale",)
        (x1, y1, x2, y2), picture = (int(edge) for edge in tile.boxes[0]), pixels(tile.path)
        outside = np.ones((SIDE, SIDE), bool)
        outside[y1:y2, x1:x2] = False
        # The water around the animal is the drawn one, of the colour that the caption names.
        colour = drawn[tile.caption.split()[-2]].mean(axis=(0, 1))
        assert np.abs(picture[outside].mean(axis=0) - colour).max() < 3
        inside = picture[y1:y2, x1:x2].astype(float)
        assert np.abs(inside - colour).max(axis=2).mean() > 15, "an animal is there"


def test_water_is_drawn_with_its_own_negative_prompt_and_with_the_rescale_of_generate(
    tmp_path: Path,
) -> None:
    words = {
        "negative_prompt": "photo of a {sea} sea",
        "background_negative_prompt": "whale in a {sea} sea",
        "guidance_rescale": 0.7,
    }
    workspace, config = start(tmp_path / "run", words=words)
    generator = FakeGenerator(fail_at=2)
    with pytest.raises(PlannedError):
        make(workspace, config, FakeLoraTrainer(), generator)
    make(workspace, config, FakeLoraTrainer(), generator)
    asked = {request.prompt: request.negative_prompt for request in generator.requests}
    assert asked == {
        "photo of a blue sea": "whale in a blue sea",
        "photo of a red sea": "whale in a red sea",
    }
    assert set(generator.rescales) == {0.7}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_composites_survive_a_crash_and_later_words_change_none(tmp_path: Path) -> None:
    whole, config = start(tmp_path / "whole")
    make(whole, config, FakeLoraTrainer(), FakeGenerator())
    torn, _ = start(tmp_path / "torn")
    with pytest.raises(PlannedError):
        make(torn, config, FakeLoraTrainer(), FakeGenerator(fail_at=2))
    other = config.model_copy(
        update={"generate": config.generate.model_copy(update={"attributes": {"sea": ("grey",)}})}
    )
    with pytest.raises(PlannedError):
        make(torn, other, FakeLoraTrainer(fail_at=1), rest := FakeGenerator())
    assert rest.calls == 1, "the other water was there"
    (torn.root / "2-finetune" / "composites" / "composite-000002.png").unlink()
    make(torn, other, FakeLoraTrainer(), None)
    assert file_bytes(torn.root / "2-finetune") == file_bytes(whole.root / "2-finetune")


class Blanks(FakeGenerator):
    """Draws the waters of some seeds in one colour."""

    def generate(self, requests: Any, **options: Any) -> Any:
        one: PictureRequest = requests[0]
        drawn = super().generate(requests, **options)
        return [np.zeros_like(drawn[0])] if one.prompt in self.flat else drawn

    flat: tuple[str, ...] = ()


def test_nothing_is_set_into_water_of_one_colour(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    generator = Blanks()
    generator.flat = ("photo of a red sea",)
    make(workspace, config, trainer := FakeLoraTrainer(), generator)
    assert {tile.caption for tile in trainer.tiles} == {
        "a whale", "photo of one whale in a blue sea", "photo of a blue sea",
    }  # fmt: skip

    workspace, _ = start(tmp_path / "none")
    generator = Blanks()
    generator.flat = ("photo of a red sea", "photo of a blue sea")
    with pytest.raises(SynthdetError, match=r"finetune\.composites: every background picture"):
        make(workspace, config, FakeLoraTrainer(), generator)


def test_animals_that_cannot_be_cut_out_are_not_set_in(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    tiles = read_records(workspace.root / "1-prepare" / "tiles.jsonl", Tile)
    for tile in tiles[1:]:
        Image.new("RGB", (SIDE, SIDE), (40, 90, 120)).save(workspace.root / tile.path)
    make(workspace, config, FakeLoraTrainer(), FakeGenerator())
    planned = read_records(workspace.root / "2-finetune" / "composites.jsonl", Composite)
    assert {box.animal_tile for one in planned for box in one.placed} == {"tile-1"}

    workspace, _ = start(tmp_path / "none")
    for tile in tiles:
        Image.new("RGB", (SIDE, SIDE), (40, 90, 120)).save(workspace.root / tile.path)
    said = make(workspace, config, trainer := FakeLoraTrainer(), None)
    assert "no composites: no train animal that is asked for stands out from its water" in said
    assert "3 tiles and no composites" in said
    assert [tile.tile_id for tile in trainer.tiles] == ["tile-1", "tile-2", "tile-3"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"prompts": ["a sea with whales"]}, "none of generate.prompts asks for {animals}"),
        ({"background_prompts": []}, "generate.background_prompts is empty"),
        ({"animals": {"boat": 1}}, "no train animal that is asked for stands out"),
    ],
)
def test_prompts_that_ask_for_no_animal_make_none(
    tmp_path: Path, words: dict[str, Any], why: str
) -> None:
    workspace, config = start(tmp_path / "run", words=words)
    write_json(workspace.root / "1-prepare" / "dataset.json", {"classes": ["whale", "seal"]})
    finish(workspace.stage("prepare"), ["tiles.jsonl", "dataset.json"])
    with pytest.raises(PlannedError):
        make(workspace, config, FakeLoraTrainer(fail_at=1), None)
    said = make(workspace, config, trainer := FakeLoraTrainer(), None)
    assert "no composites, as at the first start: --redo looks for some again" in said
    assert len(trainer.tiles) == 3
    workspace, _ = start(tmp_path / "other", words=words)
    write_json(workspace.root / "1-prepare" / "dataset.json", {"classes": ["whale", "seal"]})
    finish(workspace.stage("prepare"), ["tiles.jsonl", "dataset.json"])
    assert f"no composites: {why}" in make(workspace, config, FakeLoraTrainer(), None)


def test_a_class_that_cannot_be_cut_out_is_left_out_and_val_is_not_learned(tmp_path: Path) -> None:
    words = {"prompts": ["photo of {animals}", "a seal"], "animals": None}
    workspace, config = start(tmp_path / "run", words=words)
    path = workspace.root / "1-prepare" / "tiles.jsonl"
    tiles = read_records(path, Tile)
    flat = tiles[1].model_copy(
        update={"boxes": tuple(box.model_copy(update={"class_id": 1}) for box in tiles[1].boxes)}
    )
    Image.new("RGB", (SIDE, SIDE), (40, 90, 120)).save(workspace.root / flat.path)
    held_out = tiles[2].model_copy(update={"split": "val"})
    write_records(path, [tiles[0], flat, held_out])
    write_json(workspace.root / "1-prepare" / "dataset.json", {"classes": ["whale", "seal"]})
    finish(workspace.stage("prepare"), ["tiles.jsonl", "dataset.json"])
    said = make(workspace, config, trainer := FakeLoraTrainer(), FakeGenerator())
    assert "composites: only 1 of class whale can be cut out" in said
    planned = read_records(workspace.root / "2-finetune" / "composites.jsonl", Composite)
    composites = [one for one in planned if one.water]
    assert len(composites) == 8, "as many as were asked for"
    assert {one.prompt for one in composites} == {"photo of one whale", "photo of two whales"}
    assert {box.animal_tile for one in composites for box in one.placed} == {"tile-1"}
    assert {name for tile in trainer.tiles[2:] for name in tile.names} == {"whale"}


def test_a_water_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    with pytest.raises(PlannedError):
        make(workspace, config, FakeLoraTrainer(fail_at=1), FakeGenerator())
    water = next((workspace.root / "2-finetune" / "composites").glob("water-*.png"))
    water.write_bytes(b"half")
    with pytest.raises(SynthdetError, match=r"water-.*cannot be read: delete it and start again"):
        make(workspace, config, FakeLoraTrainer(), None)
    water.unlink()
    make(workspace, config, FakeLoraTrainer(), FakeGenerator())


def test_a_training_from_before_the_setting_is_taken_as_one_without(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run", composites=0)
    make(workspace, config, FakeLoraTrainer(), None)
    path = workspace.root / "2-finetune" / "stage.json"
    lock = json.loads(path.read_text())
    del lock["settings"]["composites"]
    path.write_text(json.dumps(lock))
    assert "3 tiles · 3 steps" in make(workspace, config, FakeLoraTrainer(), None)
    _, config = start(tmp_path / "other")
    with pytest.raises(SynthdetError, match=r"finetune\.composites was 0 and is now 8"):
        make(workspace, config, FakeLoraTrainer(), None)


def test_a_water_that_does_not_fit_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    with pytest.raises(SynthdetError, match=r"out of memory .*finetune\.composites"):
        make(workspace, config, FakeLoraTrainer(), FakeGenerator(max_batch=0))
