"""Several processes that train one LoRA: who they are, and that they train the same LoRA as one."""

from __future__ import annotations

import doctest
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from synthdet.models import lora_team
from synthdet.models.lora_team import Team, find_team
from tests.builders import make_prepared_run
from tests.models.test_lora import OPTIONS
from tests.tiny import tiny_sdxl

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def test_doctests() -> None:
    assert doctest.testmod(lora_team).failed == 0


def test_a_team_is_what_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # a cluster's own, without a launcher
    assert find_team() == Team(0, 1)
    for name, value in zip(NAMES, ("2", "4", "127.0.0.1", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    assert find_team() == Team(2, 4)
    assert not find_team().leads


def test_alone_nothing_is_asked_of_anyone() -> None:
    team, one = Team(), torch.ones(2)
    team.join()
    team.wait()
    team.tell("job")
    team.add_up([one])
    team.leave()
    assert team.leads
    assert team.agree(True)
    assert not team.agree(False)
    assert one.tolist() == [1, 1]
    assert not torch.distributed.is_initialized()


def test_who_leaves_listens_to_nobody() -> None:
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    Team().leave()
    assert not torch.distributed.is_initialized()


def test_every_pass_is_made_by_one_of_them() -> None:
    passes = list(range(7))
    shares = [Team(number, 3).share(passes) for number in range(3)]
    assert sorted(one for share in shares for one in share) == passes


def start(root: Path, processes: int) -> subprocess.Popen[str]:
    """``synthdet finetune`` in so many processes on the CPU."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    several = [
        "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1",
        "--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no",
        "--main_process_port", str(port),
    ]  # fmt: skip
    command = [sys.executable, *(several if processes > 1 else [])]
    return subprocess.Popen(
        [*command, "-m", "synthdet.cli", "finetune", str(root)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(root: Path, processes: int) -> str:
    """The same to its end; returns what was said."""
    process = start(root, processes)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def settings(base: Path, **others: Any) -> dict[str, Any]:
    return {
        **OPTIONS,
        "base_model": str(base),
        "num_samples": 0,
        "gradient_accumulation_steps": 3,  # which two cannot share evenly
        "crop_fraction": 0.5,
        **others,
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    base = tiny_sdxl(tmp_path / "sdxl")
    sections = {"finetune": settings(base, max_train_steps=12)}
    weights, logged, kept = [], [], []
    for processes in (1, 2):
        workspace = make_prepared_run(tmp_path / str(processes), sections=sections)
        said = launch(workspace.root, processes)
        assert said.count(" 12 steps ") == 1, "one of them tells, the others work"
        folder = workspace.root / "2-finetune"
        weights.append(load_file(folder / "pytorch_lora_weights.safetensors"))
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        logged.append([json.loads(line) for line in lines])
        kept.append(sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")))
    assert kept[0] == kept[1]
    assert [line["step"] for line in logged[0]] == [line["step"] for line in logged[1]]
    for one, two in zip(*logged, strict=True):
        for name in one.keys() & {"loss", "val_loss"}:
            assert two[name] == pytest.approx(one[name], rel=1e-4)
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, atol=1e-4, rtol=1e-3)
    launch(tmp_path / "2" / "run", 2)  # nothing is left to do, and nobody waits for ever


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_that_are_stopped_go_on_with_the_same_bits(tmp_path: Path) -> None:
    base = tiny_sdxl(tmp_path / "sdxl")
    sections = {"finetune": settings(base, max_train_steps=120, checkpointing_steps=1000)}
    whole, torn = (
        make_prepared_run(tmp_path / name, sections=sections).root for name in ("whole", "torn")
    )
    launch(whole, 2)
    process, log = start(torn, 2), torn / "2-finetune" / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    (checkpoint,) = (torn / "2-finetune" / "checkpoints").glob("step-*")
    assert 20 <= int(checkpoint.name.removeprefix("step-")) < 120
    launch(torn, 2)
    name = "2-finetune/pytorch_lora_weights.safetensors"
    assert (torn / name).read_bytes() == (whole / name).read_bytes()
