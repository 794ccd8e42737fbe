"""A base in 8 bits: the same training but for small errors, and a LoRA for the base as it is."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from synthdet.config import make_config
from synthdet.errors import SynthdetError
from synthdet.models import sdxl
from synthdet.models.lora import WEIGHTS_NAME
from synthdet.models.lora_int8 import to_int8
from synthdet.models.protocols import TrainTile
from tests.models.test_lora import KilledError, draw, files, train

EIGHT: dict[str, Any] = {"base_weights": "int8", "gradient_checkpointing": True}


def test_without_torchao_it_says_what_to_install(
    base: Path, tiles: list[TrainTile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(SynthdetError, match=r"finetune\.base_weights: .*pip install torchao"):
        train(base, tiles, tmp_path / "run", **EIGHT)


def test_without_checkpointing_it_would_save_nothing() -> None:
    wrong = {"finetune": {"base_weights": "int8", "gradient_checkpointing": False}}
    with pytest.raises(SynthdetError, match="only with gradient_checkpointing"):
        make_config(wrong, where="the test")


def test_linear_weights_take_a_byte_and_answers_stay(base: Path) -> None:
    pytest.importorskip("torchao")
    linear = sdxl.load_pipeline(base, vae=None, dtype=torch.float32).unet.mid_block.attentions[0]
    layer = linear.transformer_blocks[0].ff.net[2]
    x = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    expected = layer(x)
    to_int8(layer)
    torch.testing.assert_close(layer(x), expected, atol=0.02, rtol=0.05)
    assert layer.weight.qdata.dtype == torch.int8


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_lora_trained_on_8_bits_is_one_for_the_base_as_it_is(
    base: Path, tiles: list[TrainTile], tmp_path: Path, precision: str
) -> None:
    pytest.importorskip("torchao")
    options = {"mixed_precision": precision, "learning_rate": 2e-2, "max_train_steps": 5}
    train(base, tiles, tmp_path / "full", **options)
    train(base, tiles, tmp_path / "whole", **EIGHT, **options)
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "torn", kill_at=4, **EIGHT, **options)
    assert train(base, tiles, tmp_path / "torn", **EIGHT, **options)[0] == 3
    assert files(tmp_path / "torn") == files(tmp_path / "whole")
    full, eight = (load_file(tmp_path / name / WEIGHTS_NAME) for name in ("full", "whole"))
    assert full.keys() == eight.keys()
    same = torch.nn.functional.cosine_similarity(
        *(torch.cat([one[name].flatten() for name in full]) for one in (full, eight)), dim=0
    )
    assert same > 0.95
    drawn = draw(base, tmp_path / "whole" / WEIGHTS_NAME)
    assert abs(drawn - draw(base, None)).max() > 2
