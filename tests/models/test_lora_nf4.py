"""A base in 4 bits: a LoRA for the base as it is, less memory without checkpointing, one-line refusals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from synthdet.config import Config, make_config
from synthdet.errors import SynthdetError
from synthdet.models import sdxl
from synthdet.models.forecast import forecast
from synthdet.models.lora import WEIGHTS_NAME
from synthdet.models.lora_nf4 import to_nf4
from synthdet.models.protocols import TrainTile
from tests.models.test_lora import KilledError, draw, files, train

FOUR: dict[str, Any] = {"base_weights": "nf4"}


def test_without_bitsandbytes_it_says_what_to_install(
    base: Path, tiles: list[TrainTile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.nn", None)
    with pytest.raises(SynthdetError, match=r"finetune\.base_weights: .*pip install bitsandbytes"):
        train(base, tiles, tmp_path / "run", **FOUR)


def test_doctor_knows_what_it_takes() -> None:
    def settings(weights: str, **others: Any) -> Config:
        return make_config({"finetune": {"base_weights": weights, **others}}, where="here")

    full, eight, four = (
        forecast(settings(weights), num_tiles=100).training_gb
        for weights in ("full", "int8", "nf4")
    )
    assert full - eight == pytest.approx(2.2, abs=0.3)
    assert eight - four == pytest.approx(2.233 * (1 - 0.516), abs=0.02)
    assert forecast(settings("nf4", gradient_checkpointing=False), num_tiles=100).training_gb > four


def test_linear_weights_take_half_a_byte_and_answers_stay(base: Path) -> None:
    pytest.importorskip("bitsandbytes")
    unet = sdxl.load_pipeline(base, vae=None, dtype=torch.float32).unet
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    layer = block.ff.net[2]
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    to_nf4(unet)
    unet.to("cpu")
    narrow = block.ff.net[2]
    assert narrow.weight.dtype == torch.uint8
    assert narrow.weight.numel() * 2 == layer.weight.numel()
    assert float((narrow(x) - expected).norm()) < 0.15 * float(expected.norm())


def test_nothing_wide_is_kept_for_the_way_back(base: Path) -> None:
    """Otherwise it would save nothing without checkpointing, as int8 does."""
    pytest.importorskip("bitsandbytes")
    unet = sdxl.load_pipeline(base, vae=None, dtype=torch.float32).unet.requires_grad_(False)
    to_nf4(unet)
    layer = unet.to("cpu").mid_block.attentions[0].transformer_blocks[0].ff.net[2]
    x = torch.randn(5, layer.in_features, requires_grad=True)
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x).sum().backward()
    assert x.grad is not None
    assert layer.in_features * layer.out_features not in kept


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_lora_trained_on_4_bits_is_one_for_the_base_as_it_is(
    base: Path, tiles: list[TrainTile], tmp_path: Path, precision: str
) -> None:
    pytest.importorskip("bitsandbytes")
    options = {"mixed_precision": precision, "learning_rate": 2e-2, "max_train_steps": 5}
    train(base, tiles, tmp_path / "full", **options)
    train(base, tiles, tmp_path / "whole", **FOUR, **options)
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "torn", kill_at=4, **FOUR, **options)
    assert train(base, tiles, tmp_path / "torn", **FOUR, **options)[0] == 3
    assert files(tmp_path / "torn") == files(tmp_path / "whole")
    full, four = (load_file(tmp_path / name / WEIGHTS_NAME) for name in ("full", "whole"))
    assert full.keys() == four.keys()
    same = torch.nn.functional.cosine_similarity(
        *(torch.cat([one[name].flatten() for name in full]) for one in (full, four)), dim=0
    )
    assert same > 0.9
    drawn = draw(base, tmp_path / "whole" / WEIGHTS_NAME)
    assert abs(drawn - draw(base, None)).max() > 2
