"""What the trainers' tests learn on."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthdet.models.protocols import TrainTile
from tests.builders import make_tiles
from tests.tiny import tiny_sdxl


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder, with random weights."""
    return tiny_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> list[TrainTile]:
    """Three tiles of a survey of seals."""
    return make_tiles(tmp_path_factory.mktemp("tiles"))
