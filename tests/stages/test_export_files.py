"""The process that makes small files: the same bytes as without it, its errors heard, never left behind."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from synthdet.errors import SynthdetError
from synthdet.stages import export_files
from synthdet.stages.export_files import FileMaker
from tests.handmade import file_bytes
from tests.stages.test_export import Run, labelled, run

__all__ = ["labelled"]


def make(folder: Path, number: int) -> None:
    (folder / "here").write_text("already")
    with FileMaker() as files:
        for index in range(number):
            files.write(f"{folder}/{index}.txt", f"{index}\n".encode())
            files.link(f"{folder}/here", f"{folder}/{index}.link")


def test_one_process_or_two_make_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for batch in (1_000, 7):
        monkeypatch.setattr(export_files, "_BATCH", batch)
        folder = tmp_path / str(batch)
        folder.mkdir()
        make(folder, 50)
        found.append(file_bytes(folder))
        assert (folder / "here").samefile(folder / "9.link")
    assert found[0] == found[1]
    assert len(found[0]) == 101


@pytest.mark.parametrize("batch", [1_000, 3])
def test_its_errors_are_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(export_files, "_BATCH", batch)
    (tmp_path / "3.txt").write_text("in the way")
    with pytest.raises(OSError, match=r"3\.txt") as caught:
        make(tmp_path, 20)
    assert caught.value.errno == errno.EEXIST
    assert (tmp_path / "3.txt").read_text() == "in the way"


def test_an_export_through_it_has_the_same_bytes(
    labelled: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(labelled)
    whole = file_bytes(labelled[0].root / "6-export")
    run(labelled, "export.num_synthetic=0")
    monkeypatch.setattr(export_files, "_BATCH", 4)
    run(labelled)
    assert file_bytes(labelled[0].root / "6-export") == whole


def test_a_process_that_dies_is_a_line(labelled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_files, "_BATCH", 4)
    monkeypatch.setattr(export_files, "__file__", "/nowhere.py")
    with pytest.raises(SynthdetError, match="the process that writes files has died"):
        run(labelled)
    assert not (labelled[0].root / "6-export/manifest.jsonl").exists()


def test_it_ends_when_its_input_ends() -> None:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", export_files.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    time.sleep(0.1)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=20) == 0


SLOW_EXPORT = """
import sys, time
from pathlib import Path
from synthdet.stages import export, export_files
from synthdet.stages.export_write import DatasetWriter
from synthdet.workspace import Workspace
from tests.handmade import quiet
export_files._BATCH = 4
add = DatasetWriter.add
def slow_add(self, *arguments):
    time.sleep(0.03)
    return add(self, *arguments)
DatasetWriter.add = slow_add
workspace = Workspace(Path(sys.argv[1]))
export.run(workspace, workspace.read_config(), quiet()[0])
"""


@pytest.mark.parametrize("wait", [0.0, 0.25])
def test_killed_while_several_processes_write(labelled: Run, wait: float) -> None:
    workspace = labelled[0]
    run(labelled)
    whole = file_bytes(workspace.root / "6-export")
    shutil.rmtree(workspace.root / "6-export")
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_EXPORT, str(workspace.root)],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    written = workspace.root / "6-export/.tmp-build/yolo/images/train"
    while process.poll() is None and not (written.is_dir() and any(written.iterdir())):
        time.sleep(0.005)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    lock = workspace.stage("export").lock()
    assert lock is not None
    assert not lock["finished"]
    assert not (workspace.root / "6-export/manifest.jsonl").exists()
    run(labelled)
    assert file_bytes(workspace.root / "6-export") == whole
