"""The LoRA trainer on a tiny SDXL with random weights: real diffusers, real peft."""

from __future__ import annotations

import doctest
import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load

from synthdet.errors import SynthdetError
from synthdet.models import lora_file, lora_step, lora_text, sdxl
from synthdet.models.checkpoints import load_newest, save_checkpoint
from synthdet.models.lora import (
    COMPILE_NAME,
    KOHYA_NAME,
    MEMORY_NAME,
    METRICS_NAME,
    WEIGHTS_NAME,
    SdxlLoraTrainer,
)
from synthdet.models.lora_data import Draw, LatentCache, Material, draw_step
from synthdet.models.lora_file import describe
from synthdet.models.lora_step import min_snr_weights
from synthdet.models.lora_text import TextSide
from synthdet.models.protocols import PictureRequest, TrainTile
from synthdet.models.sdxl import Embedding
from synthdet.models.symmetries import turn
from tests.builders import make_tiles
from tests.tiny import tiny_sdxl, tiny_vae

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
OPTIONS: dict[str, Any] = {
    "vae": None,
    "rank": 2,
    "lora_alpha": 4.0,
    "target_modules": (*ATTENTION, "ff.net.2", "conv1"),
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "lr_warmup_steps": 2,
    "max_train_steps": 8,
    "train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "mixed_precision": "no",
    "gradient_checkpointing": False,
    "snr_gamma": 5.0,
    "animal_weight": 0.0,
    "noise_offset": 0.05,
    "caption_dropout": 0.2,
    "symmetries": True,
    "checkpointing_steps": 3,
    "seed": 3,
    "device": "cpu",
    "tensorboard": False,
}


class KilledError(Exception):
    """Stands for `kill -9`: nothing in the trainer catches it."""


def train(
    base: Path,
    tiles: list[TrainTile],
    folder: Path,
    *,
    kill_at: int | None = None,
    on_step: Callable[[int, dict[str, Any]], None] = lambda _step, _figures: None,
    on_encoded: Callable[[int, int], None] = lambda _number, _total: None,
    val_tiles: list[TrainTile] | None = None,
    prior_tiles: list[TrainTile] | None = None,
    **options: Any,
) -> list[int]:
    """Train in a folder; returns the steps that were told."""
    folder.mkdir(exist_ok=True)
    told = []

    def hear(step: int, figures: dict[str, Any]) -> None:
        told.append(step)
        on_step(step, figures)
        if step == kill_at:
            raise KilledError

    SdxlLoraTrainer(base, **{**OPTIONS, **options}).train(
        tiles, folder, on_step=hear, on_encoded=on_encoded,
        val_tiles=val_tiles or [], prior_tiles=prior_tiles or [],
    )  # fmt: skip
    return told


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def whole(
    base: Path, tiles: list[TrainTile], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """What an uninterrupted training leaves."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(base, tiles, folder) == list(range(9))
    return files(folder)


def test_it_tells_how_many_tiles_are_encoded_and_those_of_an_earlier_start_at_once(
    base: Path, tiles: list[TrainTile], tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    number, total = len(tiles), len(tiles) + 1
    options: dict[str, Any] = {
        "on_encoded": lambda done, of: told.append((done, of)),
        "val_tiles": tiles[:1],
    }
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "run", kill_at=1, **options)
    # Val tiles are kept in one symmetry, so the same picture is encoded once more.
    assert told == [(done, total) for done in (*range(number + 1), number, total)]
    told.clear()
    train(base, tiles, tmp_path / "run", **options)
    assert told == [(number, total), (total, total)]


# --- what comes out --------------------------------------------------------------------------------


def test_leaves_weights_metrics_and_the_last_checkpoint(whole: dict[str, bytes]) -> None:
    assert sorted(whole) == [
        "checkpoints/step-000008/state.json",
        "checkpoints/step-000008/state.safetensors",
        COMPILE_NAME,
        METRICS_NAME,
        WEIGHTS_NAME,
    ]
    (line,) = [json.loads(line) for line in whole[METRICS_NAME].decode().splitlines()]
    assert line["step"] == 8
    assert np.isfinite([line["loss"], line["lr"], line["gradient_norm"]]).all()


def test_the_weights_are_float32_in_one_naming_and_tell_their_alpha(
    whole: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(whole[WEIGHTS_NAME])
    with safe_open(path, framework="pt") as weights:
        names = list(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.float32}
        config = json.loads(weights.metadata()["lora_adapter_metadata"])
    assert all(name.startswith("unet.") for name in names)
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in names)
    assert {"attn1", "attn2", "ff", "resnets"} <= {
        part for name in names for part in name.split(".")
    }
    assert (config["unet.r"], config["unet.lora_alpha"]) == (2, 4.0)


def test_the_generator_gets_all_of_the_lora(
    base: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / WEIGHTS_NAME
    path.write_bytes(whole[WEIGHTS_NAME])
    pipeline = sdxl.load_pipeline(base, vae=None, dtype=torch.float32)
    before = {n: p.detach().clone() for n, p in pipeline.unet.named_parameters()}
    sdxl.fuse_lora(pipeline, path, 1.0)
    after = dict(pipeline.unet.named_parameters())
    with safe_open(path, framework="pt") as weights:
        layers = {
            name.removeprefix("unet.").rsplit(".lora_", 1)[0] for name in sorted(weights.keys())
        }
        changed = {
            n.removesuffix(".weight") for n in before if not torch.equal(before[n], after[n])
        }
        assert changed == layers
        name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
        up, down = (weights.get_tensor(f"unet.{name}.lora_{part}.weight") for part in "BA")
    torch.testing.assert_close(
        after[f"{name}.weight"], before[f"{name}.weight"] + 4.0 / 2 * up @ down
    )


def test_it_learns(base: Path, tiles: list[TrainTile], tmp_path: Path) -> None:
    train(
        base,
        tiles[:1],
        tmp_path / "run",
        max_train_steps=60,
        learning_rate=2e-2,
        rank=4,
        train_batch_size=8,
        gradient_accumulation_steps=1,
        caption_dropout=0.0,
        noise_offset=0.0,
        snr_gamma=None,
        symmetries=False,
        checkpointing_steps=1000,
    )
    lines = (tmp_path / "run" / METRICS_NAME).read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    "options", [{"mixed_precision": "bf16"}, {"gradient_checkpointing": True}, {"snr_gamma": None}]
)
def test_other_ways_to_train_give_a_lora_too(
    base: Path,
    tiles: list[TrainTile],
    whole: dict[str, bytes],
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    train(base, tiles, tmp_path / "run", **options)
    path = tmp_path / "run" / WEIGHTS_NAME
    with safe_open(path, framework="pt") as weights:
        assert {weights.get_tensor(name).dtype for name in sorted(weights.keys())} == {
            torch.float32
        }
    same = path.read_bytes() == whole[WEIGHTS_NAME]
    assert same == ("gradient_checkpointing" in options)


def test_loss_inside_boxes_counts_more_if_asked_for(
    base: Path, tiles: list[TrainTile], whole: dict[str, bytes], tmp_path: Path
) -> None:
    boxed = [replace(tile, boxes=((4.0, 8.0, 20.0, 14.0),)) for tile in tiles]
    for name, given, weight in (("boxes", boxed, 0.0), ("none", tiles, 5.0), ("both", boxed, 5.0)):
        train(base, given, tmp_path / name, animal_weight=weight)
        trained = load((tmp_path / name / WEIGHTS_NAME).read_bytes())
        expected = load(whole[WEIGHTS_NAME])
        assert all(torch.equal(trained[key], expected[key]) for key in expected) == (name != "both")


def test_where_noise_hides_the_animals_they_count_no_more_than_water(
    base: Path, tiles: list[TrainTile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxed = [replace(tile, boxes=((4.0, 8.0, 20.0, 14.0),)) for tile in tiles]
    losses: dict[tuple[int, float], float] = {}
    for timestep, weight in ((0, 0.0), (0, 5.0), (999, 0.0), (999, 5.0)):

        def draw_at(*arguments: Any, at: int = timestep, **named: Any) -> Draw:
            drawn = draw_step(*arguments, **named)
            return replace(drawn, timesteps=torch.full_like(drawn.timesteps, at))

        monkeypatch.setattr(lora_step, "draw_step", draw_at)
        folder = tmp_path / f"{timestep}-{weight}"
        train(base, boxed, folder, animal_weight=weight, max_train_steps=1, snr_gamma=None)
        losses[timestep, weight] = json.loads((folder / METRICS_NAME).read_text())["loss"]
    seen, hidden = (abs(losses[at, 5.0] / losses[at, 0.0] - 1) for at in (0, 999))
    assert seen > 5 * hidden


def test_boxes_turn_with_the_latents_of_their_tile() -> None:
    pixels = torch.zeros(24, 24)
    pixels[3:9, 10:21] = 1.0
    tile = TrainTile("tile", Path("tile.png"), "one seal", "0" * 64, ((10.0, 3.0, 21.0, 9.0),))
    shapes = SimpleNamespace(read_shape=lambda _tile: (4, 6, 6))
    material = Material(
        tiles=[tile], latents=shapes, embeddings={}, no_caption=Embedding(pixels, pixels),
        scaling_factor=1.0, pixels_per_latent=4,
    )  # fmt: skip
    nothing = torch.zeros(8)
    draw = Draw((0,) * 8, tuple(range(8)), nothing, nothing, nothing, nothing)
    found = material.find_animals(draw)
    assert found.shape == (8, 1, 6, 6)
    for symmetry in range(8):
        expected = torch.nn.functional.avg_pool2d(turn(pixels, symmetry)[None], 4)
        torch.testing.assert_close(found[symmetry], expected)


def test_v_prediction_is_trained_as_such(tiles: list[TrainTile], tmp_path: Path) -> None:
    base = tiny_sdxl(tmp_path / "v", prediction_type="v_prediction")
    train(base, tiles, tmp_path / "run", max_train_steps=2)
    assert (tmp_path / "run" / WEIGHTS_NAME).exists()


# --- stopped and gone on ---------------------------------------------------------------------------


@pytest.mark.parametrize("kill_at", [0, 2, 3, 5, 7, 8])
def test_goes_on_with_the_same_bits(
    base: Path, tiles: list[TrainTile], whole: dict[str, bytes], tmp_path: Path, kill_at: int
) -> None:
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "run", kill_at=kill_at)
    told = train(base, tiles, tmp_path / "run")
    assert told[0] == (8 if kill_at == 8 else kill_at // 3 * 3)
    assert files(tmp_path / "run") == whole


def test_prodigy_goes_on_with_the_same_bits(
    base: Path, tiles: list[TrainTile], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"optimizer": "prodigy", "learning_rate": 1.0, "max_train_steps": 5}
    train(base, tiles, tmp_path / "whole", **options)
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "torn", kill_at=4, **options)
    assert train(base, tiles, tmp_path / "torn", **options)[0] == 3
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_request_saves_the_step_in_hand(
    base: Path,
    tiles: list[TrainTile],
    whole: dict[str, bytes],
    tmp_path: Path,
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)

    def ask_to_stop(step: int, _figures: dict[str, Any]) -> None:
        if step == 4:
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        train(base, tiles, tmp_path / "run", on_step=ask_to_stop)
    assert signal.getsignal(number) is before
    assert train(base, tiles, tmp_path / "run")[0] == 5
    assert files(tmp_path / "run") == whole


def test_a_broken_checkpoint_is_passed_over_with_a_note(
    base: Path, tiles: list[TrainTile], whole: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "run", kill_at=7)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["step-000003", "step-000006"]
    state = checkpoints / "step-000006" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    notes: list[str] = []
    assert train(base, tiles, tmp_path / "run", note=notes.append)[0] == 3
    assert len(notes) == 1
    assert "step-000006 is broken" in notes[0]
    assert files(tmp_path / "run") == whole


def test_where_the_weights_are_the_training_is_whole(
    base: Path,
    tiles: list[TrainTile],
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace = os.replace

    def kill_after(source: Any, target: Any) -> None:
        replace(source, target)
        if Path(target).name == WEIGHTS_NAME:
            raise KilledError

    monkeypatch.setattr(os, "replace", kill_after)
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "run")
    assert files(tmp_path / "run") == whole


def test_lost_weights_are_written_again_without_a_step(
    base: Path, tiles: list[TrainTile], whole: dict[str, bytes], tmp_path: Path
) -> None:
    train(base, tiles, tmp_path / "run")
    (tmp_path / "run" / WEIGHTS_NAME).unlink()
    assert train(base, tiles, tmp_path / "run") == [8]
    assert files(tmp_path / "run") == whole


# --- what goes wrong -------------------------------------------------------------------------------


def test_a_diverged_training_keeps_the_last_good_weights(
    base: Path, tiles: list[TrainTile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weigh = lora_step.min_snr_weights
    calls = 0

    def poison(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return weigh(*arguments) * (float("nan") if calls > 2 * 4 else 1.0)

    monkeypatch.setattr(lora_step, "min_snr_weights", poison)
    with pytest.raises(SynthdetError, match=r"diverged .*learning_rate.*step-000003"):
        train(base, tiles, tmp_path / "run")
    kept = load_newest(tmp_path / "run" / "checkpoints", note=pytest.fail)
    assert kept is not None
    assert kept.step == 3
    assert all(tensor.isfinite().all() for tensor in kept.tensors.values())


def test_a_lora_that_changes_nothing_is_an_error(
    base: Path, tiles: list[TrainTile], tmp_path: Path
) -> None:
    with pytest.raises(SynthdetError, match="does not change the model"):
        train(base, tiles, tmp_path / "run", learning_rate=1e-30)
    assert not (tmp_path / "run" / WEIGHTS_NAME).exists()


def test_user_errors_are_one_line(base: Path, tiles: list[TrainTile], tmp_path: Path) -> None:
    with pytest.raises(SynthdetError, match="no train tile"):
        train(base, [], tmp_path / "run")
    with pytest.raises(SynthdetError, match=r"finetune\.target_modules: nothing_like_it"):
        train(base, tiles, tmp_path / "run", target_modules=("nothing_like_it",))
    oblong = make_tiles(tmp_path, (48, 32))
    with pytest.raises(SynthdetError, match="48 x 32: tiles must be square"):
        train(base, oblong, tmp_path / "run")
    missing = TrainTile("gone", tmp_path / "gone.png", "one seal", "0" * 64)
    with pytest.raises(SynthdetError, match=r"gone\.png cannot be read"):
        train(base, [missing], tmp_path / "run")


def test_out_of_memory_falls_back_in_a_stated_order(
    base: Path,
    tiles: list[TrainTile],
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weigh = lora_step.min_snr_weights
    calls = 0

    def overflow(snr: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > 2 * 4 and len(snr) > 1:  # in the fifth step, while two tiles are in hand
            raise torch.OutOfMemoryError("CUDA out of memory")
        return weigh(snr, *rest)

    monkeypatch.setattr(lora_step, "min_snr_weights", overflow)
    notes: list[str] = []
    told = train(base, tiles, tmp_path / "run", note=notes.append)
    assert told == [0, 1, 2, 3, 4, 3, 3, 4, 5, 6, 7, 8]
    assert notes == [
        "out of memory: gradient_checkpointing is now true",
        "out of memory: 1 tiles a pass and 4 passes a step, instead of 2 and 2",
    ]
    assert json.loads((tmp_path / "run" / MEMORY_NAME).read_text()) == {
        "gradient_checkpointing": True,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "fell_back": [note.removeprefix("out of memory: ") for note in notes],
    }
    # The same steps on the same tiles: only rounding differs.
    trained = load((tmp_path / "run" / WEIGHTS_NAME).read_bytes())
    for name, expected in load(whole[WEIGHTS_NAME]).items():
        torch.testing.assert_close(trained[name], expected, atol=1e-4, rtol=1e-3)


def test_a_restart_keeps_the_smaller_shape(
    base: Path, tiles: list[TrainTile], tmp_path: Path
) -> None:
    shape = {
        "gradient_checkpointing": True,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 4,
    }
    train(base, tiles, tmp_path / "asked", **shape)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / MEMORY_NAME).write_text(json.dumps({**shape, "fell_back": ["it"]}))
    train(base, tiles, tmp_path / "run")
    one, other = ((tmp_path / name / WEIGHTS_NAME).read_bytes() for name in ("asked", "run"))
    assert one == other


def test_out_of_memory_in_the_smallest_shape_is_one_line(
    base: Path, tiles: list[TrainTile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overflow(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(lora_step, "min_snr_weights", overflow)
    with pytest.raises(SynthdetError, match=r"out of memory .*lower prepare\.resolution"):
        train(base, tiles, tmp_path / "run")


# --- more than the plain LoRA ----------------------------------------------------------------------


def draw(base: Path, lora: Path | None) -> np.ndarray[Any, Any]:
    generator = sdxl.SdxlGenerator(
        base, vae=None, lora=lora, lora_scale=1.0, scheduler="EulerDiscreteScheduler",
        mixed_precision="no", device="cpu",
    )  # fmt: skip
    (picture,) = generator.generate(
        [PictureRequest("one seal", "", 1)], width=48, height=32, num_inference_steps=2,
        guidance_scale=3.0,
    )  # fmt: skip
    return picture.astype(int)


@pytest.mark.parametrize(
    "options",
    [
        {
            "target_modules": (
                *ATTENTION,
                "ff.net.0.proj",
                "conv1",
                "conv2",
                "conv_shortcut",
                "conv",
            )
        },
        {"use_dora": True},
        {"train_text_encoder": True},
    ],
    ids=["convolutions", "dora", "text"],
)
def test_it_is_loaded_by_the_generator_under_both_namings(
    base: Path, tiles: list[TrainTile], tmp_path: Path, options: dict[str, Any]
) -> None:
    dora = "use_dora" in options
    options = {**options, "kohya_copy": not dora, "max_train_steps": 4, "learning_rate": 2e-2}
    train(base, tiles, tmp_path / "run", **options)
    plain = draw(base, None)
    ours = draw(base, tmp_path / "run" / WEIGHTS_NAME)
    assert np.abs(ours - plain).max() > 2
    if not dora:
        assert np.abs(draw(base, tmp_path / "run" / KOHYA_NAME) - ours).max() <= 1
    names = load((tmp_path / "run" / WEIGHTS_NAME).read_bytes()).keys()
    assert any("lora_magnitude" in name for name in names) == dora
    text = {name.split(".")[0] for name in names} - {"unet"}
    assert text == (
        {"text_encoder", "text_encoder_2"} if "train_text_encoder" in options else set()
    )


@pytest.mark.parametrize("options", [{"use_dora": True}, {"train_text_encoder": True}])
def test_these_too_go_on_with_the_same_bits(
    base: Path, tiles: list[TrainTile], tmp_path: Path, options: dict[str, Any]
) -> None:
    options = {**options, "max_train_steps": 5}
    train(base, tiles, tmp_path / "whole", **options)
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "torn", kill_at=4, **options)
    assert train(base, tiles, tmp_path / "torn", **options)[0] == 3
    assert files(tmp_path / "torn") == files(tmp_path / "whole")


def test_the_base_models_own_pictures_are_learned_beside_the_tiles(
    base: Path, tiles: list[TrainTile], whole: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "prior").mkdir()
    prior = [replace(tile, caption="a whale") for tile in make_tiles(tmp_path / "prior")]
    options: dict[str, Any] = {"prior_tiles": prior[1:], "prior_weight": 0.5}
    train(base, tiles, tmp_path / "whole", **options)
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "torn", kill_at=7, **options)
    assert train(base, tiles, tmp_path / "torn", **options)[0] == 6
    assert files(tmp_path / "torn") == files(tmp_path / "whole")
    assert (tmp_path / "whole" / WEIGHTS_NAME).read_bytes() != whole[WEIGHTS_NAME]
    (line,) = map(json.loads, (tmp_path / "whole" / METRICS_NAME).read_text().splitlines())
    assert np.isfinite(line["prior_loss"])
    # Without weight nothing is learned from them, and nothing else is seen for it.
    train(base, tiles, tmp_path / "none", **{**options, "prior_weight": 0.0})
    one = load(whole[WEIGHTS_NAME])
    other = load((tmp_path / "none" / WEIGHTS_NAME).read_bytes())
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_captions_are_encoded_as_the_pipeline_does_it(base: Path) -> None:
    pipeline = sdxl.load_pipeline(base, vae=None, dtype=torch.float32)
    captions = ["one seal", "open water"]
    expected = [sdxl.encode_prompt(pipeline, caption, "cpu") for caption in captions]
    found = TextSide(pipeline, "cpu").encode(captions)
    torch.testing.assert_close(found.states, torch.cat([one.states for one in expected]))
    torch.testing.assert_close(found.pooled, torch.cat([one.pooled for one in expected]))


def test_captions_are_encoded_once_and_kept_by_their_content(
    base: Path,
    tiles: list[TrainTile],
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded: list[str] = []
    encode = lora_text.encode_prompt

    def count(pipeline: Any, caption: str, device: str) -> Embedding:
        encoded.append(caption)
        return encode(pipeline, caption, device)

    monkeypatch.setattr(lora_text, "encode_prompt", count)
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "run", kill_at=4)
    assert sorted(encoded) == ["", "one seal", "open water", "two seals"]
    cached = sorted((tmp_path / "run" / "cache" / "captions").iterdir())
    cached[0].write_bytes(cached[0].read_bytes()[:-1])  # one is torn
    train(base, tiles, tmp_path / "run")
    assert len(encoded) == 5
    assert files(tmp_path / "run") == whole


def test_trained_text_encoders_are_not_asked_for_the_captions_before(
    base: Path, tiles: list[TrainTile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = lora_text.encode_prompt

    def refuse(pipeline: Any, caption: str, device: str) -> Embedding:
        assert not caption
        return encode(pipeline, caption, device)

    monkeypatch.setattr(lora_text, "encode_prompt", refuse)
    train(base, tiles, tmp_path / "run", train_text_encoder=True, max_train_steps=1)


def test_the_header_tells_recipe_data_and_trigger_words(
    base: Path, tiles: list[TrainTile], whole: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / WEIGHTS_NAME).write_bytes(whole[WEIGHTS_NAME])
    with safe_open(tmp_path / WEIGHTS_NAME, framework="pt") as weights:
        told = weights.metadata()
    recipe = json.loads(told["synthdet.recipe"])
    assert recipe["rank"] == 2
    assert recipe["base_model"] == base.name
    assert str(base.parent) not in str(told)
    assert json.loads(told["synthdet.trigger_words"]) == ["one seal", "open water", "two seals"]
    assert json.loads(told["synthdet.data"])["num_tiles"] == 3
    other = [*tiles[:2], replace(tiles[2], caption="a calf")]
    trainer = SdxlLoraTrainer(base, **OPTIONS)
    assert describe(trainer, tiles)["synthdet.data"] == told["synthdet.data"]
    assert describe(trainer, other)["synthdet.data"] != told["synthdet.data"]


# --- the held-out loss -----------------------------------------------------------------------------


def test_the_held_out_loss_is_measured_apart_and_changes_nothing(
    base: Path, tiles: list[TrainTile], whole: dict[str, bytes], tmp_path: Path
) -> None:
    held_out = make_tiles(tmp_path)[:2]
    options: dict[str, Any] = {"val_tiles": held_out, "validation_steps": 4}
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "run", kill_at=7, **options)
    assert train(base, tiles, tmp_path / "run", **options)[0] == 6
    lines = (tmp_path / "run" / METRICS_NAME).read_text().splitlines()
    logged = {line["step"]: line for line in map(json.loads, lines)}
    assert {step for step, line in logged.items() if "val_loss" in line} == {0, 4, 8}
    assert len(logged) == len(lines)
    assert logged[0]["val_loss"] != logged[8]["val_loss"]
    assert (tmp_path / "run" / WEIGHTS_NAME).read_bytes() == whole[WEIGHTS_NAME]


def test_tensorboard_where_it_is_installed(
    base: Path, tiles: list[TrainTile], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    train(base, tiles, tmp_path / "run", max_train_steps=2, tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


# --- the parts -------------------------------------------------------------------------------------


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(lora_step).failed == 0
    assert doctest.testmod(lora_file).failed == 0


def test_the_eight_symmetries_are_all_different_and_of_the_square() -> None:
    picture = torch.arange(9.0).reshape(1, 3, 3)
    turned = [turn(picture, symmetry) for symmetry in range(8)]
    assert len({tuple(one.flatten().tolist()) for one in turned}) == 8
    assert torch.equal(turned[0], picture)
    assert torch.equal(turned[2], picture.flip(-1, -2))
    assert torch.equal(turned[4], picture.flip(-1))


def test_the_latent_cache_holds_the_posterior_of_each_symmetry(
    tiles: list[TrainTile], tmp_path: Path
) -> None:
    vae = tiny_vae()
    cache = LatentCache(tmp_path, 8)
    cache.fill(tiles, vae, "cpu")
    with Image.open(tiles[1].path) as image:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    for symmetry in range(8):
        posterior = vae.encode(turn(pixels, symmetry)).latent_dist
        mean, deviation = cache.read(tiles[1], symmetry)
        torch.testing.assert_close(mean, posterior.mean[0], atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(deviation, posterior.std[0], atol=2e-3, rtol=2e-3)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    LatentCache(tmp_path, 8).fill(tiles, None, "cpu")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps


PASS: dict[str, Any] = {
    "num_tiles": 7,
    "batch_size": 4,
    "latent_shape": (4, 6, 5),
    "num_symmetries": 8,
    "num_timesteps": 1000,
    "caption_dropout": 0.25,
    "noise_offset": 0.1,
}


def test_a_pass_depends_on_the_seed_and_its_number_alone() -> None:
    one, same, next_one, other = (
        draw_step(seed, index, **PASS) for seed, index in ((1, 5), (1, 5), (1, 6), (2, 5))
    )
    assert torch.equal(one.noise, same.noise)
    assert one.tiles == same.tiles
    assert torch.equal(one.timesteps, same.timesteps)
    for different in (next_one, other):
        assert not torch.equal(one.noise, different.noise)


def test_every_tile_comes_up_equally_often_and_everything_is_drawn() -> None:
    draws = [draw_step(0, index, **PASS) for index in range(7 * 20)]
    seen = Counter(tile for draw in draws for tile in draw.tiles)
    assert set(seen.values()) == {4 * 20}
    assert {s for draw in draws for s in draw.symmetries} == set(range(8))
    timesteps = torch.cat([draw.timesteps for draw in draws])
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999
    assert abs(timesteps.float().mean() - 499.5) < 15
    for draw in draws:
        strata = sorted(int(t) * 4 // 1000 for t in draw.timesteps)
        assert strata == [0, 1, 2, 3]
    dropped = torch.cat([draw.dropped for draw in draws]).float().mean()
    assert 0.15 < dropped < 0.35
    plain = draw_step(0, 0, **{**PASS, "noise_offset": 0.0})
    offset = draws[0].noise - plain.noise
    assert offset.abs().max() > 0
    assert torch.allclose(
        offset, offset.mean(dim=(2, 3), keepdim=True).expand_as(offset), atol=1e-6
    )


def test_min_snr_weights() -> None:
    snr = torch.tensor([0.0, 0.5, 5.0, 50.0])
    assert min_snr_weights(snr, 5.0, "epsilon").tolist() == pytest.approx([0, 1, 1, 0.1])
    expected = [0, 0.5 / 1.5, 5 / 6, 5 / 51]
    assert min_snr_weights(snr, 5.0, "v_prediction").tolist() == pytest.approx(expected)


def test_a_checkpoint_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {"a": torch.ones(2)}
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, tensors, {"n": step}, keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000002", "step-000003"]

    def fail(*_: Any) -> None:
        raise KilledError

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(KilledError):
        save_checkpoint(tmp_path, 4, tensors, {}, keep=2)
    newest = load_newest(tmp_path, note=pytest.fail)
    assert newest is not None
    assert (newest.step, newest.numbers) == (3, {"n": 3})
    assert torch.equal(newest.tensors["a"], tensors["a"])
