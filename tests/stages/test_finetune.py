from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from synthdet.config import Config, make_config
from synthdet.core.records import Photo, Tile
from synthdet.errors import SynthdetError
from synthdet.stages import finetune, prepare
from synthdet.workspace import Workspace, read_json, read_records
from tests.builders import (
    make_photos,
    make_prepared_run,
    quiet_reporter,
    small_config,
    write_photo,
)
from tests.fakes import FakeGenerator, FakeLoraTrainer, PlannedError
from tests.handmade import HEIGHT, WIDTH, file_bytes, make_run, make_tiles, quiet

SETTINGS: dict[str, Any] = {"num_samples": 2, "max_train_steps": 3, "seed": 5}


def start(root: Path, **settings: Any) -> tuple[Workspace, Config]:
    workspace, config = make_run(root, finetune={**SETTINGS, **settings})
    make_tiles(workspace, train=(1, 2, 0), val=(1,), test=(1,))
    return workspace, config


def make(
    workspace: Workspace,
    config: Config,
    trainer: FakeLoraTrainer | None,
    generators: dict[Path | None, FakeGenerator] | None = None,
    **options: Any,
) -> str:
    """Run the stage; a model that is not given must not be opened."""
    reporter, said = quiet()

    def open_trainer() -> FakeLoraTrainer:
        assert trainer is not None, "the trainer was opened"
        return trainer

    def open_generator(lora: Path | None) -> FakeGenerator:
        assert generators is not None, "a generator was opened"
        return generators.setdefault(lora, FakeGenerator())

    finetune.run(
        workspace,
        config,
        reporter,
        open_trainer=open_trainer,
        open_generator=open_generator,
        **options,
    )
    return said.getvalue()


def test_trains_on_train_tiles_alone_and_draws_both_models_with_the_same_seeds(
    tmp_path: Path,
) -> None:
    workspace, config = start(tmp_path / "run")
    trainer, generators = FakeLoraTrainer(), {}
    said = make(workspace, config, trainer, generators)
    assert [tile.tile_id for tile in trainer.tiles] == ["train-000", "train-001", "train-002"]
    assert all(tile.path.is_file() for tile in trainer.tiles)
    folder = workspace.root / "2-finetune"
    weights = folder / "pytorch_lora_weights.safetensors"
    assert set(generators) == {None, weights}
    assert generators[None].requests == generators[weights].requests
    assert [request.seed for request in generators[None].requests] == [5, 6]
    for number in range(2):
        with Image.open(folder / "samples" / f"sample-{number:02d}.png") as image:
            assert image.size == (2 * WIDTH, HEIGHT)
    assert "finetune  3 tiles · 3 steps · loss 1.000 to 0.333" in said


def test_a_second_run_opens_no_model(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    make(workspace, config, FakeLoraTrainer(), {})
    assert "3 tiles · 3 steps" in make(workspace, config, None)


def test_goes_on_after_a_crash_with_the_same_bytes(tmp_path: Path) -> None:
    whole, config = start(tmp_path / "whole")
    make(whole, config, FakeLoraTrainer(), {})
    torn, _ = start(tmp_path / "torn")
    with pytest.raises(PlannedError):
        make(torn, config, FakeLoraTrainer(fail_at=1))
    with pytest.raises(PlannedError):
        make(torn, config, FakeLoraTrainer(), {None: FakeGenerator(fail_at=2)})
    make(torn, config, None, {})
    assert file_bytes(torn.root / "2-finetune") == file_bytes(whole.root / "2-finetune")


@pytest.mark.parametrize("name", ["pytorch_lora_weights.safetensors", "samples/sample-01.png"])
def test_a_promised_file_that_is_missing_is_made_again(tmp_path: Path, name: str) -> None:
    workspace, config = start(tmp_path / "run")
    make(workspace, config, FakeLoraTrainer(), {})
    before = file_bytes(workspace.root / "2-finetune")
    (workspace.root / "2-finetune" / name).unlink()
    make(workspace, config, FakeLoraTrainer() if "lora" in name else None, {})
    assert file_bytes(workspace.root / "2-finetune") == before


def test_a_changed_setting_is_refused_by_name(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    make(workspace, config, FakeLoraTrainer(), {})
    other = make_config({"finetune": {**SETTINGS, "rank": 3}}, where="the test")
    with pytest.raises(SynthdetError, match=r"finetune\.rank was 16 and is now 3"):
        make(workspace, other, None)


def test_a_tile_of_another_split_is_refused(tmp_path: Path) -> None:
    workspace, _ = make_run(tmp_path / "run")
    tiles = make_tiles(workspace, train=(1,), val=(1,), test=())
    with pytest.raises(SynthdetError, match=r"val-000 is a val tile"):
        finetune.plan_training(tiles, workspace)


def test_a_missing_tile_is_named(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    tile = workspace.root / "1-prepare" / "tiles" / "train" / "train-001.png"
    tile.unlink()
    with pytest.raises(SynthdetError, match=r"train-001\.png is missing"):
        make(workspace, config, FakeLoraTrainer(), {})


def test_val_tiles_are_measured_on_and_never_trained_on(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    trainer = FakeLoraTrainer()
    make(workspace, config, trainer, {})
    assert [tile.tile_id for tile in trainer.val_tiles] == ["val-000"]
    assert not {tile.tile_id for tile in trainer.tiles} & {"val-000", "test-000"}


def test_a_run_without_val_tiles_trains_all_the_same(tmp_path: Path) -> None:
    workspace, config = make_run(tmp_path / "run", finetune=SETTINGS)
    make_tiles(workspace, train=(1, 2, 0), val=(), test=())
    trainer = FakeLoraTrainer()
    make(workspace, config, trainer, {})
    assert trainer.val_tiles == ()


@dataclass
class Remarkable(FakeLoraTrainer):
    """Runs out of memory once, measures on val tiles, and writes kohya's copy."""

    def train(self, tiles: Any, folder: Path, **others: Any) -> None:
        super().train(tiles, folder, **others)
        lines = [{"step": 0, "val_loss": 0.9}, {"step": 3, "loss": 0.5, "val_loss": 0.7}]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        (folder / "memory.json").write_text('{"train_batch_size": 1, "fell_back": ["less"]}')
        (folder / "compile.json").write_text('{"from_step": 21, "reason": "it pays"}')
        (folder / "pytorch_lora_weights_kohya.safetensors").write_bytes(b"kohya")


def test_held_out_loss_and_fallback_are_said_and_recorded(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    said = make(workspace, config, Remarkable(), {})
    assert "loss 0.500 to 0.500, held out 0.900 to 0.700 · out of memory: less" in said
    lock = workspace.stage("finetune").lock() or {}
    assert lock["runtime"]["fell_back"] == ["less"]
    assert lock["runtime"]["train_batch_size"] == 1
    assert lock["runtime"]["compiled"] == {"from_step": 21, "reason": "it pays"}
    assert (lock["counts"]["val_loss_first"], lock["counts"]["val_loss_last"]) == (0.9, 0.7)


def test_a_kohya_copy_can_be_asked_for_afterwards(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    make(workspace, config, FakeLoraTrainer(), {})
    output = workspace.stage("finetune").output()
    asked = make_config({"finetune": {**SETTINGS, "kohya_copy": True}}, where="the test")
    make(workspace, asked, Remarkable())
    assert (workspace.root / "2-finetune" / "pytorch_lora_weights_kohya.safetensors").exists()
    assert workspace.stage("finetune").output() == output
    make(workspace, asked, None)


def test_no_memory_for_samples_does_not_lose_the_lora(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run")
    said = make(workspace, config, FakeLoraTrainer(), {None: FakeGenerator(max_batch=0)})
    assert "no samples were drawn, out of memory" in said
    assert workspace.stage("finetune").output()


# --- a new word ------------------------------------------------------------------------------------


class Linguist(FakeLoraTrainer):
    """Learns a word too."""

    def train(self, tiles: Any, folder: Path, **others: Any) -> None:
        super().train(tiles, folder, **others)
        (folder / "embeddings.safetensors").write_bytes(b"rows" + bytes([len(tiles)]))


def test_a_learned_word_is_part_of_what_was_made(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run", new_word="whale")
    make(workspace, config, Linguist(), {})
    output = workspace.stage("finetune").output()
    make(workspace, config, None)
    plain, other = start(tmp_path / "plain")
    make(plain, other, Linguist(), {})
    assert plain.stage("finetune").output() != output
    (workspace.root / "2-finetune" / "embeddings.safetensors").unlink()
    make(workspace, config, Linguist())
    assert workspace.stage("finetune").output() == output


# --- the base model's own pictures -----------------------------------------------------------------

PRIOR: dict[str, Any] = {"prior_pictures": 3, "prior_prompt": "a whale"}


def test_class_pictures_are_drawn_once_and_go_on_after_a_crash(tmp_path: Path) -> None:
    whole, config = start(tmp_path / "whole", **PRIOR)
    trainer, generators = FakeLoraTrainer(), {}
    make(whole, config, trainer, generators)
    asked = [request for request in generators[None].requests if request.prompt == "a whale"]
    assert [request.seed for request in asked] == [40_000_005, 40_000_006, 40_000_007]
    assert [tile.caption for tile in trainer.prior_tiles] == ["a whale"] * 3
    folder = whole.root / "2-finetune"
    lines = [json.loads(line) for line in (folder / "prior.jsonl").read_text().splitlines()]
    assert [line["sha256"] for line in lines] == [tile.sha256 for tile in trainer.prior_tiles]
    assert [folder / line["path"] for line in lines] == [tile.path for tile in trainer.prior_tiles]
    with Image.open(folder / lines[0]["path"]) as image:
        assert image.size == (WIDTH, WIDTH)
        assert image.text == {"prompt": "a whale", "seed": "40000005"}  # type: ignore[attr-defined]

    torn, _ = start(tmp_path / "torn", **PRIOR)
    with pytest.raises(PlannedError):
        make(torn, config, FakeLoraTrainer(), {None: FakeGenerator(fail_at=3)})
    generators = {}
    make(torn, config, FakeLoraTrainer(), generators)
    asked = [request for request in generators[None].requests if request.prompt == "a whale"]
    assert [request.seed for request in asked] == [40_000_007]
    assert file_bytes(torn.root / "2-finetune") == file_bytes(folder)


def test_samples_and_class_pictures_are_drawn_as_generate_draws(tmp_path: Path) -> None:
    for negative, expected in (("text", "text"), ("open water in a {sea} sea", "")):
        workspace, config = start(tmp_path / (expected or "none"), **PRIOR)
        told = {"guidance_rescale": 0.7, "negative_prompt": negative}
        generate = config.generate.model_copy(update=told)
        generators: dict[Path | None, FakeGenerator] = {}
        config = config.model_copy(update={"generate": generate})
        make(workspace, config, FakeLoraTrainer(), generators)
        for generator in generators.values():
            assert {request.negative_prompt for request in generator.requests} == {expected}
            assert set(generator.rescales) == {0.7}
        assert len(generators) == 2, "base and LoRA"


def test_a_negative_prompt_that_cannot_be_read_is_refused_before_the_training(
    tmp_path: Path,
) -> None:
    workspace, config = start(tmp_path / "run")
    generate = config.generate.model_copy(update={"negative_prompt": "text {"})
    with pytest.raises(SynthdetError, match=r"generate\.negative_prompt"):
        make(workspace, config.model_copy(update={"generate": generate}), None)
    assert not (workspace.root / "2-finetune" / "stage.json").exists()


def test_class_pictures_that_do_not_fit_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run", **PRIOR)
    with pytest.raises(SynthdetError, match=r"out of memory .*finetune\.prior_pictures"):
        make(workspace, config, FakeLoraTrainer(), {None: FakeGenerator(max_batch=0)})


def test_class_pictures_need_a_prompt() -> None:
    with pytest.raises(SynthdetError, match="say in prior_prompt what they show"):
        make_config({"finetune": {"prior_pictures": 3}}, where="the test")


# --- photos that are added -------------------------------------------------------------------------


def prepared(root: Path) -> tuple[Workspace, Config]:
    """A run on a survey, prepared and trained."""
    sections = {"finetune": SETTINGS, "prepare": {"split": "new"}}
    workspace = make_prepared_run(root, num_photos=24, num_groups=8, sections=sections)
    config = workspace.read_config()
    make(workspace, config, FakeLoraTrainer(), {})
    return workspace, config


def add_photos(workspace: Workspace, config: Config) -> None:
    assert config.prepare.photos is not None
    place = config.prepare.photos / "train"
    for number, photo in enumerate(make_photos(seed=9, num_photos=8)):
        stem = f"new{number}x_{number:04d}"
        write_photo(place / "images" / f"{stem}.jpg", photo.picture)
        (place / "labels" / f"{stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    prepare.run(workspace, config, quiet_reporter())


def photos_by_split(workspace: Workspace, *splits: str) -> set[str]:
    photos = read_records(workspace.stage("prepare").path / "photos.jsonl", Photo)
    return {photo.sha256 for photo in photos if photo.split in splits}


def test_added_photos_do_not_cost_the_lora(tmp_path: Path) -> None:
    workspace, config = prepared(tmp_path)
    output = workspace.stage("finetune").output()
    seen = set(read_json(workspace.stage("finetune").path / "trained_on.json")["photos"])
    assert seen <= photos_by_split(workspace, "train")
    add_photos(workspace, config)
    said = make(workspace, config, None)
    tiles = read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
    shown = {tile.image_id for tile in tiles if tile.split == "train"}
    photos = read_records(workspace.stage("prepare").path / "photos.jsonl", Photo)
    new = len({photo.sha256 for photo in photos if photo.image_id in shown} - seen)
    assert new
    assert f"the LoRA is kept: all {len(seen)} photos that it has seen are still in train" in said
    assert f"on an earlier set: {new} train photos are new to it" in said
    assert workspace.stage("finetune").output() == output
    lock = workspace.stage("finetune").lock() or {}
    assert lock["inputs"] == {"prepare": workspace.stage("prepare").output()}
    assert lock["counts"]["train_photos_not_seen"] == new
    assert set(read_json(workspace.stage("finetune").path / "trained_on.json")["photos"]) == seen
    assert not seen & photos_by_split(workspace, "val", "test")
    assert "is kept" not in make(workspace, config, None)
    (workspace.root / "2-finetune" / "samples" / "sample-00.png").unlink()
    make(workspace, config, None, {})
    assert (workspace.stage("finetune").lock() or {})["counts"] == lock["counts"]
    (workspace.root / "2-finetune" / "pytorch_lora_weights.safetensors").unlink()
    make(workspace, config, FakeLoraTrainer(), {})  # and so learns from all there is now
    trained = read_json(workspace.stage("finetune").path / "trained_on.json")["photos"]
    assert len(trained) == len(seen) + new


@pytest.mark.parametrize("what", ["moved", "gone", "cut"])
def test_a_lora_that_saw_what_is_tested_now_is_trained_again(tmp_path: Path, what: str) -> None:
    workspace, config = prepared(tmp_path)
    if what == "gone":
        photos = read_records(workspace.stage("prepare").path / "photos.jsonl", Photo)
        photo = next(photo for photo in photos if photo.split == "train" and photo.boxes)
        path = tmp_path / "photos" / photo.path
        path.unlink()
        (path.parent.parent / "labels" / f"{path.stem}.txt").unlink()
        prepare.run(workspace, config, quiet_reporter())
    else:
        changed = {"seed": 3} if what == "moved" else {"views": 1}
        prepare.run(
            workspace,
            small_config(tmp_path / "photos", {"prepare": {"split": "new", **changed}}),
            quiet_reporter(),
            redo=True,
        )
    trainer = FakeLoraTrainer()
    said = make(workspace, config, trainer, {})
    reasons = {"moved": "not in train any more", "gone": "are gone", "cut": "cut or called"}
    assert f"the LoRA cannot be kept: {'1 of the photos' if what == 'gone' else ''}" in said
    assert reasons[what] in said
    assert "prepare changed: the old folder is kept as 2-finetune.old-1" in said
    assert trainer.tiles


# --- the user's own LoRA ---------------------------------------------------------------------------


def own_lora(path: Path, name: str = "lora_unet_mid_block.lora_down.weight") -> Path:
    save_file({name: np.ones((2, 3), np.float32)}, path)
    return path


def test_an_own_lora_is_copied_in_and_nothing_is_trained(tmp_path: Path) -> None:
    lora = own_lora(tmp_path / "mine.safetensors")
    before = lora.read_bytes()
    workspace, config = start(tmp_path / "run", lora=str(lora))
    said = make(workspace, config, None, {})
    copied = workspace.root / "2-finetune" / "pytorch_lora_weights.safetensors"
    assert copied.read_bytes() == before == lora.read_bytes()
    assert not copied.is_symlink()
    assert "mine.safetensors taken in" in said
    assert "mine.safetensors taken in" in make(workspace, config, None)
    own_lora(lora, "lora_unet_conv_in.lora_down.weight")
    assert "lora changed" in make(workspace, config, None, {})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"PK\x03\x04 a pickle in a zip, as torch.save writes it", "not a safetensors file"),
        (b"", "not a safetensors file"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00[]", "not a safetensors file"),
        ("cut", "is cut off"),
        ("other", "holds no LoRA"),
    ],
)
def test_what_is_no_lora_is_refused_by_name(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "mine.safetensors"
    if content == "cut":
        path.write_bytes(own_lora(path).read_bytes()[:-4])
    elif content == "other":
        own_lora(path, "unet.conv_in.weight")
    elif content is not None:
        path.write_bytes(content)
    workspace, config = start(tmp_path / "run", lora=str(path))
    with pytest.raises(SynthdetError, match=rf"finetune\.lora: .*{message}"):
        make(workspace, config, None)
    assert not (workspace.root / "2-finetune").exists()


def test_the_same_lora_on_another_base_model_is_another_output(tmp_path: Path) -> None:
    lora = str(own_lora(tmp_path / "a.safetensors"))
    outputs = set()
    for name in ("one", "two"):
        workspace, config = start(tmp_path / name, lora=lora, base_model=name)
        make(workspace, config, None, {})
        outputs.add(workspace.stage("finetune").output())
    assert len(outputs) == 2


def test_metrics_of_an_own_lora_are_empty(tmp_path: Path) -> None:
    workspace, config = start(tmp_path / "run", lora=str(own_lora(tmp_path / "a.safetensors")))
    make(workspace, config, None, {})
    counts = json.loads((workspace.root / "2-finetune" / "stage.json").read_text())["counts"]
    assert "loss_first" not in counts
