"""Real kills between any two writes, in processes of their own: no picture lost, none twice, the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.handmade import file_bytes
from tests.quick import skip_without_weights
from tests.stages.test_generate import records, start

PARENT = """
import json, os, signal, sys, threading
from pathlib import Path
from synthdet.stages import generate, generate_files, generate_made
from synthdet.workspace import Workspace
from tests.fakes import FakeGenerator
from tests.handmade import quiet

orders, model = json.loads(sys.argv[1])
lock = threading.Lock()

def mortal(write, survive):
    def count(*arguments):
        with lock:
            if survive:
                survive[0] -= 1
                if survive[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
        return write(*arguments)
    return count

def open_generator():
    if model == "fake":
        return FakeGenerator()
    from synthdet.models.sdxl import SdxlGenerator
    from synthdet.pocket import weights_dir
    return SdxlGenerator(
        weights_dir() / "sdxl", vae=None, lora=None, lora_scale=0,
        scheduler="DPMSolverMultistepScheduler", mixed_precision="no", device="cpu",
    )

generator = open_generator()
for run, survive in orders:
    process = os.fork()
    if process == 0:
        left = [] if survive is None else [survive]
        generate_files.write_bytes = mortal(generate_files.write_bytes, left)
        generate_made.append_records = mortal(generate_made.append_records, left)
        workspace = Workspace(Path(run))
        generate.run(workspace, workspace.read_config(), quiet()[0], open_generator=lambda _lora_scale: generator)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""
"""Opens the networks once, which takes most of the time, and makes each run in a process of its own."""


def make(orders: Sequence[tuple[Path, int | None]], model: str) -> list[int]:
    """Run the stage on one run folder after the other, killed after so many writes if told; how each ended."""
    told = json.dumps([[(str(run), survive) for run, survive in orders], model])
    done = subprocess.run(
        [sys.executable, "-c", PARENT, told],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return [int(line) for line in done.stdout.split()]


def check(folder: Path, model: str, *, num_images: int, kills: int, steps: int) -> None:
    options = {"num_images": num_images, "batch_size": 8, "num_inference_steps": steps}
    whole, _ = start(folder / "whole", **options)
    torn, _ = start(folder / "torn", **options)
    rng = random.Random(3)
    # Two batches may be lost at every kill, and all kills must come before the end.
    survived = [rng.randint(1, (num_images - 16) // kills) for _ in range(kills)]
    ended = make(
        [(whole.root, None), *((torn.root, number) for number in survived), (torn.root, None)],
        model,
    )
    assert ended == [0, *[-signal.SIGKILL] * kills, 0]
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
