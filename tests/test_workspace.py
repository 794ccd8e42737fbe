"""The run folder: whole files or none, torn lines cut, locks that chain."""

from __future__ import annotations

import errno
import gc
import multiprocessing
from pathlib import Path

import pytest

from synthdet.config import Config, set_values
from synthdet.core.records import Decision
from synthdet.errors import SynthdetError
from synthdet.workspace import (
    StageFolder,
    Workspace,
    append_records,
    atomic_path,
    iter_records,
    paused_collector,
    read_json,
    read_records,
    write_json,
    write_records,
    write_text,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace.make(tmp_path / "run", Config(), header="# how it is run\n")


def decision(number: int) -> Decision:
    return Decision(image_id=f"syn-{number:06d}", kept=True, threshold=0.5)


# --- files -------------------------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(SynthdetError, match="disk is full.*nothing is lost"),
        atomic_path(tmp_path / "a"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_the_collector_rests_and_is_left_as_it_was() -> None:
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), paused_collector():
        with paused_collector():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ZeroDivisionError
    assert gc.isenabled()


def test_the_temporary_name_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.png") as temporary:
        temporary.write_bytes(b"x")
        assert temporary.suffix == ".png"


def test_records_round_trip_and_keep_unknown_keys(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    path.write_text(
        '{"image_id": "a", "kept": false, "threshold": 0.5, "reason": "blank", "note": [1]}\n'
    )
    records = read_records(path, Decision)
    write_records(path, records)
    assert '"note": [1]' in path.read_text()
    assert read_records(path, Decision) == records


def test_a_torn_last_line_is_cut_off_before_the_next_is_written(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    append_records(path, [decision(0), decision(1)])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"image_id": "syn-0000')
    assert len(read_records(path, Decision)) == 2
    append_records(path, [decision(2)])
    assert [record.image_id for record in read_records(path, Decision)] == [
        f"syn-{number:06d}" for number in range(3)
    ]


def test_a_last_line_written_by_hand_needs_no_end(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    by_hand = f"{decision(0).to_line()}\n{decision(1).to_line()}".encode()
    path.write_bytes(by_hand)
    assert read_records(path, Decision) == [decision(0), decision(1)]
    assert path.read_bytes() == by_hand
    append_records(path, [decision(2)])
    assert read_records(path, Decision) == [decision(0), decision(1), decision(2)]
    path.write_bytes(by_hand + b'\n{"image_id": "b"}')
    with pytest.raises(SynthdetError, match=r"line 3: kept"):
        read_records(path, Decision)


def test_records_come_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    append_records(path, [decision(0), decision(1)])
    with path.open("ab") as handle:
        handle.write(b'{"image_id": "b"}\n{"image_id": "syn-0000')
    some = iter_records(path, Decision)
    assert [next(some), next(some)] == [decision(0), decision(1)]
    with pytest.raises(SynthdetError, match=r"line 3: kept"):
        next(some)
    path.write_bytes(path.read_bytes().replace(b'{"image_id": "b"}', b'\xff\xfe"'))
    with pytest.raises(SynthdetError, match=r"line 3 is not readable as JSON"):
        list(iter_records(path, Decision))


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "decisions.jsonl"
    append_records(path, [decision(0)])
    with path.open("a") as handle:
        handle.write('{"image_id": "b"}\n')
    with pytest.raises(SynthdetError, match=r"line 2: kept"):
        read_records(path, Decision)


def test_a_missing_record_file_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "none.jsonl", Decision) == []


# --- the run folder ----------------------------------------------------------------------------


def test_settings_change_and_the_comment_stays(workspace: Workspace) -> None:
    workspace.write_config(set_values(workspace.read_config(), ["generate.num_images=3"]))
    assert workspace.read_config().generate.num_images == 3
    assert workspace.config_path.read_text().startswith("# how it is run\n")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SynthdetError, match="synthdet init"):
        Workspace(tmp_path)


def test_a_run_is_not_made_over_another_or_over_files(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(SynthdetError, match="already"):
        Workspace.make(workspace.root, Config())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(SynthdetError, match="not empty"):
        Workspace.make(tmp_path / "full", Config())
    assert (tmp_path / "full" / "mine.txt").read_text() == "x"


def test_a_run_of_another_version_is_refused(workspace: Workspace) -> None:
    workspace.config_path.write_text("version: 99\n")
    with pytest.raises(SynthdetError, match="version 99"):
        Workspace(workspace.root)


def _try_to_hold(root: Path, told: multiprocessing.Queue[str]) -> None:
    try:
        with Workspace(root).exclusive():
            told.put("held")
    except SynthdetError as error:
        told.put(str(error))


def test_two_processes_do_not_write_one_run(workspace: Workspace) -> None:
    context = multiprocessing.get_context("spawn")
    told: multiprocessing.Queue[str] = context.Queue()
    with workspace.exclusive():
        other = context.Process(target=_try_to_hold, args=(workspace.root, told))
        other.start()
        other.join()
    assert "another synthdet is working" in told.get(timeout=10)
    with workspace.exclusive():
        pass


# --- the lock of a stage -----------------------------------------------------------------------


def claim(
    folder: StageFolder,
    *,
    steps: int = 20,
    source: str = "p1",
    threshold: float = 0.3,
    **more: bool,
) -> bool:
    return folder.claim(
        settings={"steps": steps},
        inputs={"prepare": source},
        decisions={"threshold": threshold},
        decision_inputs={"filter": "f1"},
        **more,
    )


def finish(folder: StageFolder, text: str = "records") -> str:
    write_text(folder.path / "out.jsonl", text)
    folder.close(
        outputs=[folder.path / "out.jsonl"], counts={"pictures": 3}, runtime={"device": "cpu"}
    )
    return folder.output()


def test_a_finished_stage_is_done_and_its_output_is_its_content(workspace: Workspace) -> None:
    folder = workspace.stage("generate")
    assert claim(folder) is False
    with pytest.raises(SynthdetError, match="generate is not done"):
        folder.output()
    first = finish(folder)
    assert claim(workspace.stage("generate")) is True
    assert finish(folder) == first
    assert finish(folder, "others") != first


def test_an_interrupted_stage_goes_on(workspace: Workspace) -> None:
    folder = workspace.stage("generate")
    claim(folder)
    write_text(folder.path / "half", "x")
    assert claim(workspace.stage("generate")) is False
    assert (folder.path / "half").exists()


def test_a_changed_making_setting_is_refused_by_name(workspace: Workspace) -> None:
    folder = workspace.stage("generate")
    claim(folder)
    finish(folder)
    with pytest.raises(SynthdetError, match=r"generate\.steps was 20 and is now 30.*--redo"):
        claim(folder, steps=30)
    assert read_json(folder.lock_path)["settings"] == {"steps": 20}


def test_a_making_setting_that_another_version_has_is_refused_as_such(
    workspace: Workspace,
) -> None:
    folder = workspace.stage("generate")
    claim(folder)
    finish(folder)
    lock = read_json(folder.lock_path)
    for settings, told in (
        ({}, "an older synthdet, without the setting generate.steps: go on .* --redo` keeps"),
        ({"steps": 20, "warp": None}, "a newer synthdet, with the setting generate.warp: go on"),
    ):
        write_json(folder.lock_path, lock | {"settings": settings})
        with pytest.raises(SynthdetError, match=f"3-generate was made by {told}"):
            claim(folder)


def test_redo_keeps_the_old_folder_aside(workspace: Workspace) -> None:
    folder = workspace.stage("generate")
    claim(folder)
    finish(folder)
    assert claim(folder, steps=30, redo=True) is False
    assert (workspace.root / "3-generate.old-1" / "out.jsonl").read_text() == "records"
    assert claim(folder, steps=40, redo=True) is False
    assert (workspace.root / "3-generate.old-2").is_dir()


def test_another_input_sets_the_old_folder_aside_and_says_so(workspace: Workspace) -> None:
    folder = workspace.stage("generate")
    claim(folder)
    finish(folder)
    told: list[str] = []
    done = folder.claim(
        settings={"steps": 20}, inputs={"prepare": "p2"}, decisions={}, note=told.append
    )
    assert done is False
    assert told == ["prepare changed: the old folder is kept as 3-generate.old-1"]
    assert not (folder.path / "out.jsonl").exists()


def test_a_changed_decision_reopens_without_losing_what_was_made(workspace: Workspace) -> None:
    folder = workspace.stage("generate")
    claim(folder)
    finish(folder)
    assert claim(folder, threshold=0.5) is False
    assert (folder.path / "out.jsonl").exists()
    finish(folder)
    assert claim(folder, threshold=0.5) is True


def test_a_lock_of_another_version_is_refused(workspace: Workspace) -> None:
    folder = workspace.stage("generate")
    write_json(folder.lock_path, {"version": 99})
    with pytest.raises(SynthdetError, match=r"version 99.*--redo"):
        claim(folder)
