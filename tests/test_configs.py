"""Every shipped config is one that the function it feeds accepts, and says only what it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from synthdet.config import Config, parse_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert {
        "pocket",
        "humpback-sdxl",
        *(f"humpback-sdxl-{size}gb" for size in (8, 16, 24, 80)),
    } <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_parses(path: Path) -> None:
    config = parse_config(path.read_text(encoding="utf-8"), where=path.name)
    assert config != Config(), "a config that changes nothing is not worth a file"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_opens_with_the_command_that_runs_it(path: Path) -> None:
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        comment.append(line)
    assert any(
        "synthdet init runs/" in line and f"--config {path.stem} " in line for line in comment
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_humpback_config_only_holds_what_differs(path: Path) -> None:
    if path.stem == "pocket":
        pytest.skip("pocket.yaml spells out the recipe it was tuned with")
    defaults: dict[str, Any] = Config().model_dump(mode="json")
    for section, values in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for key, value in values.items():
            assert value != defaults[section][key], f"{section}.{key} is the default"


def test_prompts_only_use_names_that_exist() -> None:
    for path in CONFIGS:
        generate = parse_config(path.read_text(encoding="utf-8"), where=path.name).generate
        names = {"animals": "a whale"} | {
            name: values[0] for name, values in generate.attributes.items()
        }
        for prompt in (*generate.prompts, *generate.background_prompts):
            assert "{" not in prompt.format(**names)


def test_the_real_models_are_the_ones_named_in_the_readme() -> None:
    config = parse_config(
        next(p for p in CONFIGS if p.stem == "humpback-sdxl").read_text(), where="humpback-sdxl"
    )
    assert config.finetune.base_model == "stabilityai/stable-diffusion-xl-base-1.0"
    assert config.finetune.vae == "madebyollin/sdxl-vae-fp16-fix"
    assert config.filter.model == "openai/clip-vit-base-patch32"
