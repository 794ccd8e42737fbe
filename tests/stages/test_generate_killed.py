"""Real kills between any two writes, in processes of their own: no picture lost, none twice, the same bytes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.handmade import file_bytes
from tests.quick import skip_without_weights
from tests.stages.test_generate import records, start

CHILD = """
import json, os, signal, sys, threading
from pathlib import Path
from synthdet.stages import generate, generate_files, generate_made
from synthdet.workspace import Workspace
from tests.fakes import FakeGenerator
from tests.handmade import quiet

run, model, survive = json.loads(sys.argv[1])
lock = threading.Lock()

def mortal(write):
    def count(*arguments):
        global survive
        with lock:
            if survive is not None:
                survive -= 1
                if survive < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        return write(*arguments)
    return count

generate_files.write_bytes = mortal(generate_files.write_bytes)
generate_made.append_records = mortal(generate_made.append_records)

def open_generator():
    if model == "fake":
        return FakeGenerator()
    from synthdet.models.sdxl import SdxlGenerator
    from synthdet.pocket import weights_dir
    return SdxlGenerator(
        weights_dir() / "sdxl", vae=None, lora=None, lora_scale=0,
        scheduler="DPMSolverMultistepScheduler", mixed_precision="no", device="cpu",
    )

workspace = Workspace(Path(run))
generate.run(workspace, workspace.read_config(), quiet()[0], open_generator=open_generator)
"""


def make(run: Path, model: str, survive: int | None = None) -> int:
    """Run the stage, killed after so many writes if told; how it ended."""
    order = json.dumps([str(run), model, survive])
    done = subprocess.run([sys.executable, "-c", CHILD, order], capture_output=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


def check(folder: Path, model: str, *, num_images: int, kills: int, steps: int) -> None:
    options = {"num_images": num_images, "batch_size": 8, "num_inference_steps": steps}
    whole, _ = start(folder / "whole", **options)
    torn, _ = start(folder / "torn", **options)
    assert make(whole.root, model) == 0
    rng = random.Random(3)
    for _ in range(kills):
        # Two batches may be lost at every kill, and all kills must come before the end.
        survive = rng.randint(1, (num_images - 16) // kills)
        assert make(torn.root, model, survive) == -signal.SIGKILL
    assert make(torn.root, model) == 0
    made = records(torn)
    assert [record.image_id for record in made] == [f"syn-{i:06d}" for i in range(num_images)]
    assert len(list((torn.root / "3-generate" / "images").iterdir())) == num_images
    assert file_bytes(torn.root / "3-generate") == file_bytes(whole.root / "3-generate")


def test_killed_three_times(tmp_path: Path) -> None:
    check(tmp_path, "fake", num_images=100, kills=3, steps=1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_pictures_killed_ten_times(tmp_path: Path) -> None:
    skip_without_weights()
    check(tmp_path, "pocket", num_images=1_000, kills=10, steps=1)
