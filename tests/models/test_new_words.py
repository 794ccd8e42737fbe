"""A word learned as new tokens: read as before at the start, learned, saved, and read in generate."""

from __future__ import annotations

import doctest
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from synthdet.errors import SynthdetError
from synthdet.models import new_words, sdxl
from synthdet.models.lora import WEIGHTS_NAME
from synthdet.models.new_words import WORDS_NAME, NewWord, add_word, load_word, serialise_word
from synthdet.models.protocols import PictureRequest, TrainTile
from tests.builders import make_tiles
from tests.models.test_lora import KilledError, files, train

SEAL = NewWord("seal", 4)
"""The tiny tokenizers spell: four pieces."""


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> list[TrainTile]:
    one, two, water = make_tiles(tmp_path_factory.mktemp("tiles"))
    boxes = ((1.0, 2.0, 8.0, 9.0), (20.0, 22.0, 30.0, 27.0))
    return [one, replace(two, boxes=boxes, names=("seal", "seal")), water]


def load(base: Path) -> Any:
    return sdxl.load_pipeline(base, vae=None, dtype=torch.float32)


def test_doctests() -> None:
    assert doctest.testmod(new_words).failed == 0


@pytest.mark.parametrize("eos_by_highest", [False, True])
def test_at_the_start_the_word_is_read_as_before(base: Path, eos_by_highest: bool) -> None:
    pipeline = load(base)
    if eos_by_highest:  # as SDXL's own configs have it: a new token's id would count as the end
        for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
            for part in encoder.modules():
                if hasattr(part, "eos_token_id"):
                    part.eos_token_id = 2
    prompts = ("one seal", "open water")
    before = [sdxl.encode_prompt(pipeline, prompt, "cpu") for prompt in prompts]
    rows = add_word(pipeline, SEAL)
    assert {name: tuple(row.shape) for name, row in rows.items()} == {
        "clip_l": (4, 8),
        "clip_g": (4, 12),
    }
    for prompt, expected in zip(prompts, before, strict=True):
        spelt = SEAL.spell(prompt)
        assert ("<s0>" in spelt) == ("seal" in prompt)
        found = sdxl.encode_prompt(pipeline, spelt, "cpu")
        torch.testing.assert_close(found.states, expected.states)
        torch.testing.assert_close(found.pooled, expected.pooled)
    with torch.no_grad():
        rows["clip_g"] += 0.1
    changed = sdxl.encode_prompt(pipeline, SEAL.spell(prompts[0]), "cpu")
    assert not torch.allclose(changed.pooled, before[0].pooled)
    same = sdxl.encode_prompt(pipeline, prompts[1], "cpu")
    torch.testing.assert_close(same.pooled, before[1].pooled)


def test_the_same_rows_are_the_same_bytes() -> None:
    rows = {"clip_l": torch.ones(4, 8), "clip_g": torch.ones(4, 12)}
    assert len({serialise_word(SEAL, rows) for _ in range(40)}) == 1


def test_a_file_is_read_back_here_and_by_diffusers(base: Path, tmp_path: Path) -> None:
    pipeline = load(base)
    rows = add_word(pipeline, SEAL)
    with torch.no_grad():
        for row in rows.values():
            row += torch.randn(row.shape, generator=torch.Generator().manual_seed(1))
    path = tmp_path / WORDS_NAME
    path.write_bytes(serialise_word(SEAL, rows))
    expected = sdxl.encode_prompt(pipeline, SEAL.spell("two seals"), "cpu")
    ours, theirs = load(base), load(base)
    assert load_word(ours, path) == SEAL
    state = load_file(path)
    for name, number in (("clip_l", ""), ("clip_g", "_2")):
        theirs.load_textual_inversion(
            state[name],
            token=SEAL.tokens,
            text_encoder=getattr(theirs, f"text_encoder{number}"),
            tokenizer=getattr(theirs, f"tokenizer{number}"),
        )
    for other in (ours, theirs):
        found = sdxl.encode_prompt(other, SEAL.spell("two seals"), "cpu")
        torch.testing.assert_close(found.states, expected.states)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SynthdetError, match="cannot be read as new words"):
        load_word(load(base), path)


def test_it_is_learned_goes_on_with_the_same_bits_and_changes_the_picture(
    base: Path, tiles: list[TrainTile], tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "new_word": "seal", "new_tokens": 4, "learning_rate": 2e-2, "max_train_steps": 5,
        "crop_fraction": 0.5,
    }  # fmt: skip
    train(base, tiles, tmp_path / "whole", **options)
    with pytest.raises(KilledError):
        train(base, tiles, tmp_path / "torn", kill_at=4, **options)
    assert train(base, tiles, tmp_path / "torn", **options)[0] == 3
    assert files(tmp_path / "torn") == files(tmp_path / "whole")
    learned, start = load_file(tmp_path / "whole" / WORDS_NAME), add_word(load(base), SEAL)
    for name, row in learned.items():
        assert (row - start[name].detach()).abs().amax(dim=1).min() > 1e-3
    names = load_file(tmp_path / "whole" / WEIGHTS_NAME)
    assert all(name.startswith("unet.") and ".lora_" in name for name in names)
    request = PictureRequest("one seal", "", 1)
    pictures = []
    for words in (None, tmp_path / "whole" / WORDS_NAME):
        generator = sdxl.SdxlGenerator(
            base, vae=None, lora=tmp_path / "whole" / WEIGHTS_NAME, lora_scale=1.0,
            scheduler="EulerDiscreteScheduler", mixed_precision="no", device="cpu", words=words,
        )  # fmt: skip
        (picture,) = generator.generate(
            [request], width=48, height=32, num_inference_steps=2, guidance_scale=3.0
        )
        pictures.append(picture.astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() >= 1


def test_it_is_learned_beside_a_lora_of_the_text_encoders(
    base: Path, tiles: list[TrainTile], tmp_path: Path
) -> None:
    train(base, tiles, tmp_path / "run", new_word="seal", train_text_encoder=True,
          max_train_steps=2, optimizer="prodigy", learning_rate=1.0)  # fmt: skip
    weights = load_file(tmp_path / "run" / WEIGHTS_NAME)
    assert {name.split(".")[0] for name in weights} == {"unet", "text_encoder", "text_encoder_2"}
    assert all(".lora_" in name for name in weights)
    assert load_file(tmp_path / "run" / WORDS_NAME)["clip_l"].shape == (2, 8)


def test_a_word_that_no_caption_has_is_an_error(
    base: Path, tiles: list[TrainTile], tmp_path: Path
) -> None:
    with pytest.raises(SynthdetError, match=r"finetune\.new_word: no caption has the word dugong"):
        train(base, tiles, tmp_path / "run", new_word="dugong")
