"""The run folder: paths, JSON, JSON Lines, the lock of a stage, atomic writes.

A crash at any moment (``kill -9``, a full disk) leaves either the old file or the new one, never
half of one: whole files are written beside their place and renamed into it; record files are
appended to a line at a time, and a torn last line is cut off when the file is next opened.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import ValidationError

from synthdet.config import RUN_FOLDER_VERSION, Config, parse_config, to_yaml
from synthdet.core.records import Record
from synthdet.errors import SynthdetError

STAGES = ("prepare", "finetune", "generate", "filter", "label", "export", "evaluate")
CONFIG_NAME = "synthdet.yaml"
LOCK_NAME = "stage.json"
PREDICT_NAME = "8-predict"
"""Holds a folder for every survey, each with a lock of its own."""
HASHES_NAME = ".photo-hashes.json"
"""Beside the lock: what is known of the users' files, so that only changed ones are read again."""
_VERSIONED = ("torch", "diffusers", "transformers", "peft", "ultralytics-opencv-headless", "numpy")

R = TypeVar("R", bound=Record)


# --- files -------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, synced and renamed to ``path`` if the block succeeds.

    The temporary name keeps the suffix, because encoders choose the format by it.

    Raises:
        SynthdetError: The disk is full or the folder cannot be written; nothing is left behind.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a whole text file (UTF-8, LF) atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON object atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        SynthdetError: Missing or not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SynthdetError(f"{path} is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SynthdetError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise SynthdetError(f"{path} does not hold a JSON object")
    return content


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a whole record file atomically: decisions, manifests."""
    write_text(path, "".join(record.to_line() + "\n" for record in records))


def append_records(path: Path, records: Iterable[Record]) -> None:
    """Append records and sync them to the disk: raw results, after their files are in place.

    Raises:
        SynthdetError: The disk is full; the file keeps its whole lines.
    """
    lines = "".join(record.to_line() + "\n" for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as handle:
            if handle.tell() and handle.seek(-1, os.SEEK_END) and handle.read(1) != b"\n":
                handle.write(b"\n")  # the last line was written by hand
            handle.write(lines.encode("utf-8"))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise cannot_write(error, path) from error


def read_records(path: Path, kind: type[R]) -> list[R]:
    """Read a record file, in order. A missing file has no records.

    A torn last line (killed while writing) is cut off the file, so that the next append starts on
    a line of its own. One that only lacks its end, as editors leave it, counts.

    Raises:
        SynthdetError: A whole line is not a record of that kind; names the line.
    """
    return list(iter_records(path, kind))


def iter_records(path: Path, kind: type[R]) -> Iterator[R]:
    """As `read_records`, one after the other: for many of which not all have to stay in memory.

    Raises:
        SynthdetError: A whole line is not a record of that kind; names the line.
    """
    if not path.exists():
        return
    parse = kind.__pydantic_validator__.validate_json  # what model_validate_json calls
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                record = parse(line)
            except ValidationError:
                if not line.endswith(b"\n") and not _is_json(line):
                    os.truncate(path, lines.tell() - len(line))
                    return
                record = _parse_line(line, kind, where=f"{path}, line {number}")
            yield record


@contextmanager
def paused_collector() -> Iterator[None]:
    """Without Python's search for cycles, which looks at every record again while more are made.

    For reading many: records have no cycles, and the search takes up to half of the time that reading
    100,000 pictures takes. References are counted all the same.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    return True


def _parse_line(line: bytes, kind: type[R], *, where: str) -> R:
    """The slow way, which says in words what is wrong with the line."""
    try:
        fields = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SynthdetError(f"{where} is not readable as JSON: {error}") from error
    return kind.from_dict(fields, where=where)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_json(content: Any) -> str:
    """SHA-256 of a JSON value with sorted keys, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def cannot_write(error: OSError, path: Path) -> SynthdetError:
    """What to tell of a file or folder that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SynthdetError(
            f"the disk is full: {path} was not written; make room and run the same command again, nothing is lost"
        )
    return SynthdetError(f"{path} cannot be written: {error.strerror or error}")


# --- the run folder ----------------------------------------------------------------------------


class Workspace:
    """A run folder: where things are, and who may write now.

    Args:
        root: The folder. It must hold ``synthdet.yaml``; `Workspace.make` makes one.

    Raises:
        SynthdetError: Not a run folder, or one of another version.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        if not self.config_path.is_file():
            raise SynthdetError(
                f"{root} is not a run folder (no {CONFIG_NAME}): make one with `synthdet init {root} --photos FOLDER`"
            )
        self.read_config()

    @classmethod
    def make(cls, root: Path, config: Config, *, header: str = "") -> Workspace:
        """Make a run folder.

        Raises:
            SynthdetError: It is one already, or holds other files.
        """
        if (root / CONFIG_NAME).exists():
            raise SynthdetError(
                f"{root} is a run folder already: go on with `synthdet run {root}`, or name another"
            )
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise SynthdetError(f"{root} exists and is not empty: name a new folder")
        write_text(root / CONFIG_NAME, to_yaml(config, header=header))
        return cls(root)

    @property
    def config_path(self) -> Path:
        """``RUN/synthdet.yaml``."""
        return self.root / CONFIG_NAME

    def read_config(self) -> Config:
        """The run's settings as they stand in its YAML file now."""
        return parse_config(
            self.config_path.read_text(encoding="utf-8"), where=str(self.config_path)
        )

    def write_config(self, config: Config) -> None:
        """Replace the settings; the comment at the top of the file stays."""
        lines = self.config_path.read_text(encoding="utf-8").splitlines(keepends=True)
        header = []
        for line in lines:
            if not line.startswith("#"):
                break
            header.append(line)
        write_text(self.config_path, to_yaml(config, header="".join(header)))

    def stage(self, name: str) -> StageFolder:
        """The folder of a stage, like ``3-generate``."""
        return StageFolder(self, name)

    def surveys(self) -> list[StageFolder]:
        """The surveys in ``8-predict/``, by name; not those that were set aside."""
        command = f"synthdet predict {self.root} FOLDER"
        found = [
            StageFolder(self, "predict", path=lock_path.parent, command=command)
            for lock_path in sorted((self.root / PREDICT_NAME).glob(f"*/{LOCK_NAME}"))
        ]
        aside = {path for one in found for path in one.set_aside()}
        return [one for one in found if one.path not in aside]

    def relative(self, path: Path) -> str:
        """A path inside the run as records hold it: relative to the run, with slashes."""
        return path.relative_to(self.root).as_posix()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the run for writing; a second process is told so and leaves.

        Raises:
            SynthdetError: Another process holds it.
        """
        with (self.root / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SynthdetError(
                    f"another synthdet is working on {self.root}: wait for it to end"
                ) from error
            yield


class StageFolder:
    """The folder of a stage and its lock, ``stage.json``: written first and last.

    The lock holds what the stage was asked to do (making settings, decision settings, the outputs
    of the stages before that it was made from) and, when finished, the fingerprint of its own
    output, so that fingerprints chain.

    Args:
        workspace: The run.
        name: Of the stage, which says where its folder is.
        path: Of the folder, where several belong to one name.
        command: What makes it, for messages; by default the stage's own command.
    """

    def __init__(
        self, workspace: Workspace, name: str, *, path: Path | None = None, command: str = ""
    ) -> None:
        self.workspace = workspace
        self.name = name
        self.path = path or workspace.root / f"{STAGES.index(name) + 1}-{name}"
        self._command = command or f"synthdet {name} {workspace.root}"
        self._opened = time.monotonic()

    @property
    def lock_path(self) -> Path:
        """``stage.json`` of this stage."""
        return self.path / LOCK_NAME

    def lock(self) -> dict[str, Any] | None:
        """What ``stage.json`` says; None where the stage never began.

        Raises:
            SynthdetError: Written by another version.
        """
        if not self.lock_path.exists():
            return None
        lock = read_json(self.lock_path)
        if lock.get("version") != RUN_FOLDER_VERSION:
            raise SynthdetError(
                f"{self.lock_path} is version {lock.get('version')}; this synthdet reads version {RUN_FOLDER_VERSION}: "
                f"make the stage again with `{self._command} --redo`"
            )
        return lock

    def output(self) -> str:
        """Fingerprint of the finished output, for the stages after it.

        Raises:
            SynthdetError: The stage is not finished.
        """
        lock = self.lock()
        if lock is None or not lock["finished"]:
            raise SynthdetError(f"{self.name} is not done: run `{self._command}` first")
        return str(lock["output"])

    def claim(
        self,
        *,
        settings: Mapping[str, Any],
        inputs: Mapping[str, str],
        decisions: Mapping[str, Any] | None = None,
        decision_inputs: Mapping[str, str] | None = None,
        newer: Mapping[str, Any] = MappingProxyType({}),
        redo: bool = False,
        note: Callable[[str], None] = lambda _text: None,
    ) -> bool:
        """Open the folder for work, or learn that nothing has changed since it was finished.

        Args:
            settings: Making settings. Another value than last time is refused.
            inputs: Fingerprint of each input of what is *made*. If one changed, the old folder is set
                aside and the stage starts afresh.
            decisions: Decision settings. A change reopens the stage; what was made stays.
            decision_inputs: Fingerprint of each input of what is *decided*. As `decisions`.
            newer: Making settings that came later, each with the value at which nothing is other than
                before: a lock without one counts as one with that.
            redo: Set the old folder aside and start afresh.
            note: Hears what was set aside and why.

        Returns:
            True where the stage was finished with exactly these settings and inputs.

        Raises:
            SynthdetError: A making setting was changed; names it.
        """
        wanted = {
            "settings": dict(settings),
            "inputs": dict(inputs),
            "decisions": dict(decisions or {}),
            "decision_inputs": dict(decision_inputs or {}),
        }
        lock = None if redo else self.lock()
        if lock is not None:
            lock["settings"] = {**newer, **lock["settings"]}
        if redo and self.path.exists():
            note(f"--redo: the old folder is kept as {self._set_aside().name}")
        elif lock is not None:
            changed = [name for name in inputs if lock["inputs"].get(name) != inputs[name]]
            if changed:
                note(
                    f"{', '.join(changed)} changed: the old folder is kept as {self._set_aside().name}"
                )
                lock = None
            else:
                self._refuse_changed(lock["settings"], wanted["settings"])
        if (
            lock is not None
            and lock["finished"]
            and all(lock[key] == value for key, value in wanted.items())
        ):
            return True
        begun = lock["begun"] if lock else time.strftime("%Y-%m-%dT%H:%M:%S%z")
        seconds = lock["seconds"] if lock else 0.0
        self._write({**wanted, "begun": begun, "seconds": seconds, "finished": False})
        self._opened = time.monotonic()
        return False

    def adopt(self, *, inputs: Mapping[str, str], counts: Mapping[str, Any]) -> None:
        """Let what was made from earlier inputs stand for the present ones.

        For a stage that has found that the change does not spoil its work. Its output stays as it is.

        Args:
            inputs: Fingerprint of each input now.
            counts: Figures that say so, beside the old ones.
        """
        lock = read_json(self.lock_path)
        lock["inputs"].update(inputs)
        lock["counts"].update(counts)
        write_json(self.lock_path, lock)

    def close(
        self, *, outputs: Iterable[Path], counts: Mapping[str, Any], runtime: Mapping[str, Any]
    ) -> None:
        """Mark the stage finished.

        Args:
            outputs: The record files that the stages after this one read; their hashes are its output.
            counts: Figures for `status`.
            runtime: Device, workers and the like: recorded, never compared.
        """
        lock = read_json(self.lock_path)
        hashes = {path.relative_to(self.path).as_posix(): hash_file(path) for path in outputs}
        lock.update(
            finished=True,
            output=hash_json(hashes),
            counts=dict(counts),
            runtime=dict(runtime),
            versions=versions(),
            ended=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            seconds=round(lock["seconds"] + time.monotonic() - self._opened, 1),
        )
        write_json(self.lock_path, lock)

    def _write(self, lock: dict[str, Any]) -> None:
        write_json(self.lock_path, {"version": RUN_FOLDER_VERSION, "stage": self.name, **lock})

    def _refuse_changed(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        again = f"`{self._command} --redo` keeps the old folder aside and makes it again"
        for key in sorted(before.keys() | now.keys()):
            setting = f"{self.name}.{key}"
            if key not in before or key not in now:
                knows = "an older synthdet, without" if key in now else "a newer synthdet, with"
                raise SynthdetError(
                    f"{self.path.name} was made by {knows} the setting {setting}: go on with that version, "
                    f"or {again}"
                )
            if before[key] != now[key]:
                raise SynthdetError(
                    f"{setting} was {before[key]!r} and is now {now[key]!r}: set it back, or {again}"
                )

    def set_aside(self) -> list[Path]:
        """The folders of this stage that were set aside, the newest first."""
        found = {}
        for path in self.path.parent.glob(f"{glob.escape(self.path.name)}.old-*"):
            number = path.name.rpartition("-")[2]
            if number.isascii() and number.isdecimal():
                found[int(number)] = path
        return [found[number] for number in sorted(found, reverse=True)]

    def _set_aside(self) -> Path:
        last = self.set_aside()[:1]
        number = 1 + int(last[0].name.rpartition("-")[2]) if last else 1
        aside = self.path.with_name(f"{self.path.name}.old-{number}")
        os.rename(self.path, aside)
        return aside


def versions() -> dict[str, str]:
    """Of Python, of synthdet and of the packages that decide what is made, as far as they are installed."""
    found = {
        "python": platform.python_version(),
        "synthdet": importlib.metadata.version("synthdet"),
    }
    for name in _VERSIONED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def free_bytes(path: Path) -> int:
    """Free space on the disk that holds ``path`` or its nearest existing parent."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
