"""What a run will take: the arithmetic against figures that are known, and what a person is told."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from synthdet.config import Config, make_config, parse_config
from synthdet.models import forecast as module
from synthdet.models.forecast import check_run, forecast
from synthdet.models.machine import GB

CONFIGS = Path(__file__).parents[2] / "configs"


def config(resolution: int = 1024, **finetune: Any) -> Config:
    return make_config({"prepare": {"resolution": resolution}, "finetune": finetune}, where="here")


def test_a_step_has_the_operations_that_were_counted() -> None:
    options: dict[str, Any] = {
        "max_train_steps": 1, "train_batch_size": 1, "gradient_accumulation_steps": 1,
    }  # fmt: skip
    for resolution, checkpointing, tflop in (
        (512, False, 3.166), (512, True, 4.352), (1024, False, 14.188), (1024, True, 19.336),
    ):  # fmt: skip
        made = config(resolution, gradient_checkpointing=checkpointing, **options)
        assert forecast(made, num_tiles=0).tflop == pytest.approx(tflop, rel=0.001)


def test_composites_are_drawn_and_encoded_too() -> None:
    def made(**finetune: Any) -> Config:
        return make_config(
            {"finetune": finetune, "generate": {"num_inference_steps": 10}}, where="here"
        )

    before, after = (forecast(made(composites=number), num_tiles=20) for number in (0, 8))
    # Two waters of ten guided steps, at 5.15 TFLOP forward; ten more pictures in eight views each.
    more = 2 * 10 * 2 * (19.336 - 14.188) + 10 * 8 * 4.879
    assert after.tflop - before.tflop == pytest.approx(more, rel=0.001)
    assert after.cache_gb / before.cache_gb > 1.0
    assert after.training_gb == before.training_gb
    prior = {"prior_pictures": 2, "prior_prompt": "a whale"}
    drawn = forecast(made(**prior), num_tiles=20).tflop
    assert drawn - before.tflop > 2 * 10 * 2 * (19.336 - 14.188)


def test_memory_grows_with_what_it_is_made_of() -> None:
    lean = forecast(config(train_batch_size=1), num_tiles=100)
    assert 6.0 < lean.training_gb < 7.0
    for options in (
        {"train_batch_size": 2}, {"rank": 64}, {"gradient_checkpointing": False},
        {"use_dora": True}, {"mixed_precision": "no"}, {"train_text_encoder": True},
        {"optimizer": "prodigy", "learning_rate": 1.0},
    ):  # fmt: skip
        assert forecast(config(**options), num_tiles=100).training_gb > lean.training_gb
    assert forecast(config(512), num_tiles=100).training_gb < lean.training_gb
    small = forecast(config(train_batch_size=1, base_weights="int8"), num_tiles=100)
    assert lean.training_gb - small.training_gb == pytest.approx(2.2, abs=0.3)


@pytest.mark.parametrize("size", [8, 16, 24, 80])
def test_every_preset_fits_the_card_it_is_for(size: int) -> None:
    path = CONFIGS / f"humpback-sdxl-{size}gb.yaml"
    preset = parse_config(path.read_text(encoding="utf-8"), where=path.name)
    assert forecast(preset, num_tiles=300).peak_gb < 0.95 * size * 1024**3 / GB


@pytest.mark.parametrize(
    ("finetune", "memory_gb", "advice"),
    [
        ({"gradient_checkpointing": False}, 10.0, "gradient_checkpointing=true"),
        ({"train_batch_size": 16}, 10.0, "halve finetune.train_batch_size"),
        ({}, 5.0, "base_weights to int8 (pip install torchao) or nf4"),
        ({"base_weights": "nf4"}, 4.0, "lower prepare.resolution"),
        ({}, None, "there is no GPU here"),
    ],
)
def test_too_little_memory_says_what_to_do(
    finetune: dict[str, Any],
    memory_gb: float | None,
    advice: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_look_at_gpu", lambda: (100.0, memory_gb))
    said, memory, time, disk = check_run(config(**finetune), tmp_path, num_tiles=40)[-4:]
    assert "worked out, not measured" in said.detail
    assert "40 train tiles" in said.detail
    assert not memory.ok
    assert advice in (memory.advice or "")
    assert "h at 40 to 15 %" in time.detail
    assert disk.name == "disk"


def test_enough_memory_is_ok_and_pocket_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_look_at_gpu", lambda: (100.0, 8.0))
    checks = check_run(config(train_batch_size=1), tmp_path, num_tiles=None)
    assert all(check.ok for check in checks)
    assert "before prepare is done" in checks[0].detail
    (only,) = check_run(config(base_model="pocket"), tmp_path, num_tiles=4)
    assert only.ok


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_look_at_gpu", lambda: (100.0, 80.0))
    monkeypatch.setattr(module, "free_bytes", lambda _path: 1_000_000)
    disk = check_run(config(), tmp_path, num_tiles=300)[-1]
    assert not disk.ok
    assert "generate.num_images" in (disk.advice or "")


def test_this_machine_is_timed() -> None:
    tflops, _memory = module._look_at_gpu()
    assert tflops is not None
    assert tflops > 0


def test_packages_that_are_missing_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_look_at_gpu", lambda: (100.0, 80.0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    first, second, *_rest = check_run(
        config(base_weights="nf4", optimizer="adamw8bit"), tmp_path, num_tiles=40
    )
    assert (first.ok, second.ok) == (False, False)
    assert "base_weights: nf4 needs bitsandbytes" in first.detail
    assert "optimizer: adamw8bit needs bitsandbytes" in second.detail
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: True)
    assert check_run(config(base_weights="nf4"), tmp_path, num_tiles=40)[0].name == "fine-tune"


def test_pictures_too_small_for_sdxl_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_look_at_gpu", lambda: (100.0, 80.0))
    for resolution, ok in ((512, False), (768, True), (1024, True)):
        said = check_run(config(resolution), tmp_path, num_tiles=40)[0]
        assert said.ok == ok
        assert ("draws worse" in (said.advice or "")) is not ok
