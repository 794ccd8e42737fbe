"""Killed at any moment and started again: the same files, the same bytes.

The whole command line program on the embedded default, in a process of its own that is killed with
SIGKILL, so that nothing gets the chance to tidy up.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from synthdet.workspace import STAGES, Workspace, hash_file
from tests.quick import QUICK_SETTINGS, quick_survey

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

NOT_COMPARED = ("stage.json", ".lock", ".photo-hashes.json", "synthdet.yaml")
"""Locks hold clock times, and so does what is known of the photos' files; the settings are the same by construction."""


def synthdet(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "synthdet.cli", *arguments]


def start(run: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        synthdet("run", str(run)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(run: Path) -> str:
    process = start(run)
    output = process.communicate()[0].decode()
    assert process.returncode == 0, output
    return output


def kill_when(run: Path, ready: Callable[[], bool]) -> bool:
    """Start the run, kill it when ``ready``; False where it ended by itself before."""
    process = start(run)
    try:
        while process.poll() is None and not ready():
            time.sleep(0.002)
        ended = process.poll() is not None
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return not ended


def has_begun_to_write(stage_folder: Path) -> bool:
    """Whether something stands beside the lock."""
    return stage_folder.is_dir() and any(
        path.name != "stage.json" for path in stage_folder.iterdir()
    )


def contents(run: Path) -> dict[str, str]:
    return {
        path.relative_to(run).as_posix(): hash_file(path)
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in NOT_COMPARED
    }


def make_run(folder: Path, survey: Path) -> Path:
    run = folder / "run"
    command = synthdet("init", str(run), "--config", "pocket", "--photos", str(survey))
    for setting in QUICK_SETTINGS:
        command += ["--set", setting]
    subprocess.run(command, check=True, capture_output=True)
    return run


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick_survey(tmp_path_factory.mktemp("survey") / "photos")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, survey: Path) -> dict[str, str]:
    run = make_run(tmp_path_factory.mktemp("whole"), survey)
    finish(run)
    return contents(run)


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def test_killed_once_inside_every_stage(
    tmp_path: Path, survey: Path, uninterrupted: dict[str, str]
) -> None:
    run = make_run(tmp_path, survey)
    workspace = Workspace(run)
    for stage in STAGES:
        inside = partial(has_begun_to_write, workspace.stage(stage).path)
        assert kill_when(run, inside), f"{stage} ended before it could be killed"
    finish(run)
    assert differences(contents(run), uninterrupted) == []


def test_killed_at_five_random_moments(
    tmp_path: Path, survey: Path, uninterrupted: dict[str, str]
) -> None:
    run = make_run(tmp_path, survey)
    rng = random.Random(0)
    kills = 0
    for _ in range(5):
        moment = time.monotonic() + rng.uniform(1, 10)
        kills += kill_when(run, lambda moment=moment: time.monotonic() > moment)
    assert kills == 5
    finish(run)
    assert differences(contents(run), uninterrupted) == []


def test_a_second_run_makes_nothing_and_takes_seconds(tmp_path: Path, survey: Path) -> None:
    run = make_run(tmp_path, survey)
    finish(run)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    begun = time.monotonic()
    finish(run)
    assert time.monotonic() - begun < 20
    changed = [
        path.name
        for path, when in before.items()
        if path.name != ".lock" and path.stat().st_mtime_ns != when
    ]
    assert changed == []
