"""Twenty real kills at random steps, in processes of their own: the same bytes at the end."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.builders import make_tiles
from tests.models.test_lora import OPTIONS, files
from tests.tiny import tiny_sdxl

NUM_KILLS = 20
NUM_STEPS = 90
CHILD = """
import json, os, signal, sys
from pathlib import Path
from synthdet.models.lora import SdxlLoraTrainer
from tests.builders import make_tiles

base, tiles, folder, options, survive = json.loads(sys.argv[1])
first = None

def on_step(step, figures):
    global first
    first = step if first is None else first
    if survive is not None and step == first + survive:
        os.kill(os.getpid(), signal.SIGKILL)

made = make_tiles(Path(tiles))
SdxlLoraTrainer(base, **options).train(made, Path(folder), on_step=on_step, val_tiles=made[:1])
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("optimizer", ["adamw", "prodigy"])
def test_killed_at_twenty_random_steps(tmp_path: Path, optimizer: str) -> None:
    base, tiles = tiny_sdxl(tmp_path / "sdxl"), tmp_path / "tiles"
    tiles.mkdir()
    make_tiles(tiles)
    options = OPTIONS | {
        "max_train_steps": NUM_STEPS,
        "validation_steps": 20,
        "optimizer": optimizer,
        "learning_rate": 1.0 if optimizer == "prodigy" else 1e-3,
    }

    def train(folder: Path, survive: int | None) -> int:
        folder.mkdir(exist_ok=True)
        order = json.dumps([str(base), str(tiles), str(folder), options, survive])
        command = [sys.executable, "-c", CHILD, order]
        return subprocess.run(command, capture_output=True, check=False).returncode

    assert train(tmp_path / "whole", None) == 0
    rng, kills = random.Random(5), 0
    while kills < NUM_KILLS:
        assert train(tmp_path / "torn", rng.randint(1, 7)) == -signal.SIGKILL
        kills += 1
    assert train(tmp_path / "torn", None) == 0
    assert files(tmp_path / "torn") == files(tmp_path / "whole")
