"""What users of other trainers complain of, and the traps found in those trainers, one test each.

Pictures that end up with another one's caption (diffusers#14430, #12124), black latents of a VAE in half
precision (diffusers#4820), LoRA weights in bfloat16 that no step can move (diffusers#6442), settings that
nothing reads, photos that a tool changes (SimpleTuner#105), 512 pixels from a model of 1024
(diffusers#8794).
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from synthdet.config import FinetuneConfig, make_config
from synthdet.models import lora_step, sdxl
from synthdet.models.lora import WEIGHTS_NAME, SdxlLoraTrainer
from synthdet.models.lora_data import Draw, Material, _read_pixels
from synthdet.models.protocols import TrainTile
from synthdet.models.symmetries import turn
from synthdet.pipeline import _open_lora_trainer
from tests.builders import make_tiles
from tests.models.test_lora import KilledError, files, train

READ_ELSEWHERE = {
    "lora": "stages/finetune.py",
    "prior_pictures": "stages/finetune.py",
    "composites": "stages/finetune.py",
    "prior_prompt": "stages/_prior.py",
    "num_samples": "stages/finetune.py",
}
UNDER_ANOTHER_NAME = {"crop_shapes": "crop_ratios"}


def test_every_picture_is_heard_with_its_own_caption(
    base: Path, tiles: list[TrainTile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from a cache that was filled in another order, after a restart and a shuffle."""
    pipeline = sdxl.load_pipeline(base, vae=None, dtype=torch.float32)
    pictures, words = {}, {}
    for tile in tiles:
        pixels = _read_pixels(tile)
        for symmetry in range(8):
            mean = pipeline.vae.encode(turn(pixels, symmetry)).latent_dist.mean[0].detach()
            pictures[tile.caption, symmetry] = mean * pipeline.vae.config.scaling_factor
        words[tile.caption] = pipeline.encode_prompt(
            tile.caption, device="cpu", do_classifier_free_guidance=False
        )[0].detach()[0]
    pairs: list[tuple[str, str]] = []
    square_error = lora_step.Training._square_error

    def listen(self: Any, draw: Draw, material: Material) -> Tensor:
        seen = material.sample_latents(replace(draw, sampling=torch.zeros_like(draw.sampling)))
        heard = material.read_captions(replace(draw, dropped=torch.zeros_like(draw.dropped)))
        for picture, states in zip(seen, heard.states, strict=True):
            shown, _ = min(pictures, key=lambda one: float((pictures[one] - picture).norm()))
            told = min(words, key=lambda one: float((words[one] - states).norm()))
            pairs.append((shown, told))
        return square_error(self, draw, material)

    monkeypatch.setattr(lora_step.Training, "_square_error", listen)
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "run", kill_at=4)
    train(base, tiles, tmp_path / "run")
    train(base, tiles[::-1], tmp_path / "other")
    assert {shown for shown, _ in pairs} == {tile.caption for tile in tiles}
    assert all(shown == told for shown, told in pairs)


def test_tiles_are_encoded_in_float32_whatever_the_precision(
    base: Path, tiles: list[TrainTile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    encode = AutoencoderKL.encode

    def listen(self: Any, pixels: Tensor, *rest: Any, **named: Any) -> Any:
        seen.append((pixels.dtype, next(self.parameters()).dtype))
        return encode(self, pixels, *rest, **named)

    monkeypatch.setattr(AutoencoderKL, "encode", listen)
    train(base, tiles, tmp_path / "run", mixed_precision="bf16", max_train_steps=1)
    assert set(seen) == {(torch.float32, torch.float32)}
    assert len(seen) == 8 * len(tiles), "once, before the first step"


def test_a_small_step_on_a_base_of_bfloat16_is_not_rounded_away(
    base: Path, tiles: list[TrainTile], tmp_path: Path
) -> None:
    options: dict[str, Any] = {"mixed_precision": "bf16", "learning_rate": 1e-5}
    for name, steps in (("short", 4), ("long", 8)):
        train(base, tiles, tmp_path / name, max_train_steps=steps, **options)
    short, long = (load_file(tmp_path / name / WEIGHTS_NAME) for name in ("short", "long"))
    assert {tensor.dtype for tensor in long.values()} == {torch.float32}
    moved = [float((long[name] - short[name]).abs().max()) for name in long]
    assert min(moved) > 0
    # Of weights around 0.25 bfloat16 keeps steps of 0.001: two hundred such steps would be lost.
    assert max(moved) < 1e-3


def test_tiles_are_read_and_nothing_else(base: Path, tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    tiles = make_tiles(tmp_path / "tiles")
    before = files(tmp_path / "tiles")
    train(base, tiles, tmp_path / "run", max_train_steps=2)
    assert files(tmp_path / "tiles") == before


def test_every_setting_is_read_by_something() -> None:
    settings = FinetuneConfig()
    known = {field.name for field in fields(SdxlLoraTrainer)}
    package = Path(sdxl.__file__).parents[1]
    for name in type(settings).model_fields:
        if name in READ_ELSEWHERE:
            assert f".{name}" in (package / READ_ELSEWHERE[name]).read_text(encoding="utf-8")
        else:
            assert UNDER_ANOTHER_NAME.get(name, name) in known, name


def test_the_trainer_gets_what_was_set() -> None:
    set_to: dict[str, Any] = {
        "base_model": "some/model", "vae": None, "rank": 3, "lora_alpha": 5.0,
        "target_modules": ["to_q"], "optimizer": "prodigy", "learning_rate": 0.5,
        "lr_warmup_steps": 7, "max_train_steps": 11, "train_batch_size": 3,
        "gradient_accumulation_steps": 2, "mixed_precision": "bf16", "base_weights": "nf4",
        "compile": "always", "gradient_checkpointing": False, "snr_gamma": None,
        "animal_weight": 2.0, "noise_offset": 0.1, "caption_dropout": 0.3, "symmetries": False,
        "crop_fraction": 0.4, "crop_sides": [0.6], "crop_shapes": ["4:3"], "prior_weight": 0.7,
        "checkpointing_steps": 13, "validation_steps": 17, "use_dora": True,
        "train_text_encoder": True, "new_word": "dugong", "new_tokens": 3, "tensorboard": False,
        "seed": 19, "device": "cpu",
    }  # fmt: skip
    config = make_config({"finetune": set_to}, where="here")
    trainer = _open_lora_trainer(config, lambda _text: None)
    for name, value in set_to.items():
        expected = tuple(value) if isinstance(value, list) else value
        if name == "crop_shapes":
            name, expected = "crop_ratios", ((4, 3),)
        assert getattr(trainer, name) == expected, name
    left = set(FinetuneConfig.model_fields) - set(set_to) - set(READ_ELSEWHERE) - {"kohya_copy"}
    assert not left, "settings that this test does not know"
