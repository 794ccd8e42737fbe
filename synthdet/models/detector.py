"""Detectors, trained and run in a child process: ultralytics' and transformers'.

ultralytics (AGPL-3.0) is never imported here: loaded, it changes its process's threads and environment,
looks up names on the network and downloads a font; and any training wants torch's threads, flags and
random generator for itself. `detector_worker` is that process, this module the telephone. A child that
dies or fails becomes a `SynthdetError` with its last useful line.

Which library opens a detector is seen from what it is (`find_start`); those of transformers that find
things by text, without having learned classes, are only opened (`text_detector`). Weights on disk are a folder,
never a pickle. ultralytics': ``model.safetensors`` (the keys of its ``state_dict``), ``model.json``
(``architecture``: a name that ultralytics ships, or the whole description; and ``image_size``) and
``names.json`` (class names in the order of their ids). transformers': what its ``save_pretrained``
writes, ``config.json`` (architecture and class names), ``model.safetensors`` and
``preprocessor_config.json`` (picture size and colours).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Self

from synthdet.core.records import DetectedBox
from synthdet.errors import SynthdetError

_ULTRALYTICS_FILES = ("model.safetensors", "model.json", "names.json")
_TRANSFORMERS_FILES = ("model.safetensors", "config.json", "preprocessor_config.json")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""``owner/name``."""


def is_hub_name(name: str | Path) -> bool:
    """Whether a name can be a model's on the hub, ``owner/name``.

    Examples:
        >>> is_hub_name("google/owlv2-base-patch16-ensemble"), is_hub_name("runs/mine.pt")
        (True, False)
    """
    suffixes = (".pt", ".yaml", ".yml")
    return Path(name).suffix not in suffixes and bool(_HUB_NAME.fullmatch(str(name)))


def has_weights(folder: Path) -> bool:
    """Whether a folder holds whole weights as a training leaves them."""
    return any(
        all((folder / name).is_file() for name in files)
        for files in (_ULTRALYTICS_FILES, _TRANSFORMERS_FILES)
    )


@dataclass(frozen=True, slots=True)
class _Child:
    """A running child, its two pipes, and the unnamed file that holds what it printed."""

    process: subprocess.Popen[str]
    jobs: IO[str]
    answers: IO[str]
    log: IO[bytes]


class DetectorProcess:
    """A child for each thread that asks, started with its first job, which it does one after the other.

    Args:
        threads: Of a child on a CPU. Part of what it computes: another number, other last bits.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._mine = threading.local()
        self._stops: dict[threading.Thread, Callable[[], object]] = {}
        self._lock = threading.Lock()
        self._closed = False

    @property
    def opened_by(self) -> object:
        """Who had this thread's child open a detector last."""
        return getattr(self._mine, "opened_by", None)

    @opened_by.setter
    def opened_by(self, detector: object) -> None:
        self._mine.opened_by = detector

    def ask(self, job: dict[str, Any], on_step: Callable[[int], None] | None = None) -> Any:
        """Have a job done and wait for it.

        Raises:
            SynthdetError: The job failed, the child died, or all were closed.
        """
        child = self._child()
        try:
            child.jobs.write(json.dumps(job) + "\n")
            child.jobs.flush()
            for line in child.answers:
                answer = json.loads(line)
                if "step" in answer:
                    if on_step is not None:
                        on_step(answer["step"])
                elif "error" in answer:
                    raise SynthdetError(answer["error"])
                else:
                    return answer["done"]
        except BrokenPipeError:
            pass
        except ValueError:  # `close` has closed its files meanwhile
            if not self._closed:
                raise
        raise self._death(child) from None

    def close(self) -> None:
        """End all children, also those that other threads wait for, for good."""
        with self._lock:
            self._closed = True
            stops = list(self._stops.values())
            self._stops.clear()
        for stop in stops:
            stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _child(self) -> _Child:
        child: _Child | None = getattr(self._mine, "child", None)
        with self._lock:
            if self._closed:
                raise SynthdetError("the detector's process was closed")
            if child is None:
                for thread in [one for one in self._stops if not one.is_alive()]:
                    self._stops.pop(thread)()  # nobody can ask that child again
                self._mine.child = child = _start(self._threads)
                # Also when this object is forgotten, or the program ends: no child stays behind.
                self._stops[threading.current_thread()] = weakref.finalize(self, _end, child)
        return child

    def _death(self, child: _Child) -> SynthdetError:
        with self._lock:
            stop = self._stops.pop(threading.current_thread(), None)
        if stop is None:
            return SynthdetError("the detector's process was closed")
        code = child.process.wait()
        child.log.seek(0)
        lines = child.log.read().decode("utf-8", errors="replace").split("\n")
        stop()
        self._mine.child = self._mine.opened_by = None
        if code == -signal.SIGKILL:
            return SynthdetError(
                "the detector's process was killed: it may have run out of memory; close other programs, set "
                "evaluate.side_by_side to 1, or lower train_batch_size or image_size, and run the same command again"
            )
        told = [line.strip() for line in lines if line.strip()] or [f"exit status {code}"]
        return SynthdetError(f"the detector's process died: {told[-1]}")


def _start(threads: int) -> _Child:
    log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
    package = str(Path(__file__).resolve().parents[2])
    search = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        # Threads that wait must not spin: where others want the cores, two spinning threads were 30
        # times as slow as two that sleep (17 against 0.5 s a step, measured).
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "PYTHONPATH": os.pathsep.join(search),
    }
    # -P: nothing is imported from the current folder, which may be somebody's survey.
    process = subprocess.Popen(  # noqa: S603 - our own module
        [sys.executable, "-P", "-m", "synthdet.models.detector_worker", str(threads)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        encoding="utf-8",
        env=environment,
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("a child without pipes")
    return _Child(process, process.stdin, process.stdout, log)


def _end(child: _Child) -> None:
    """Close its input, which ends it, even in the middle of a job.

    What it answers is closed last: a thread that waits for an answer holds that file until the child is gone.
    """
    with contextlib.suppress(BrokenPipeError):  # it is dead already
        child.jobs.close()
    try:
        child.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        child.process.kill()
        child.process.wait()
    child.answers.close()
    child.log.close()


@dataclass(frozen=True, slots=True)
class Start:
    """What a network is loaded from.

    Attributes:
        kind: ``architecture`` (a name that ultralytics ships), ``folder`` (written by synthdet, for
            ultralytics), ``checkpoint`` (a .pt file) or ``transformers`` (a folder or hub name).
        where: The name, or the absolute path.
    """

    kind: str
    where: str

    @property
    def library(self) -> str:
        """Who opens it, with its licence."""
        if self.kind == "transformers":
            return "transformers (Apache-2.0)"
        return "ultralytics (AGPL-3.0)"


def find_start(detector: str | Path, *, trust: bool) -> Start:
    """Which kind of detector a name is.

    Args:
        detector: A folder with transformers' ``config.json``, or written by synthdet; a ``.pt`` file;
            a hub name (``owner/name``) of a transformers detector; or an architecture of ultralytics.
        trust: Whether a ``.pt`` file may be loaded.

    Raises:
        SynthdetError: It is none of these, or a pickle that is not trusted.
    """
    path = Path(detector)
    if path.suffix == ".pt":
        if not path.is_file():
            raise SynthdetError(
                f"there is no file {path}: name one that exists (nothing is downloaded), or an architecture like yolo11n"
            )
        if not trust:
            raise SynthdetError(
                f"{path}: a .pt file can run code when it is loaded; if you know where it comes from, "
                "set label.trust to true"
            )
        return Start("checkpoint", str(path.absolute()))
    if path.is_dir():
        return Start(_kind_of_folder(path), str(path.absolute()))
    if is_hub_name(detector):
        return Start("transformers", str(detector))
    if len(path.parts) > 1:
        raise SynthdetError(
            f"there is no detector {detector}: name a folder written by synthdet or of a transformers "
            "detector, a .pt file, or an architecture like yolo11n"
        )
    return Start("architecture", str(detector))


def _kind_of_folder(folder: Path) -> str:
    if (folder / "config.json").is_file():
        if not any(folder.glob("*.safetensors")):
            raise SynthdetError(
                f"{folder} holds no detector: there are no weights as safetensors beside config.json (other "
                "formats can run code when they are loaded: write it anew with save_pretrained)"
            )
        return "transformers"
    if missing := [name for name in _ULTRALYTICS_FILES if not (folder / name).is_file()]:
        raise SynthdetError(
            f"{folder} holds no detector: {missing[0]} is missing (or config.json, if it is one of transformers')"
        )
    return "folder"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a detector by text looks for. Others do not hear of it.

    Attributes:
        class_names: The run's.
        phrases: By class name, as a person gave them; None: the network's kind says how to ask.
        image_size: Side in pixels of the square that the network sees; None: its own.
    """

    class_names: tuple[str, ...]
    phrases: Mapping[str, Sequence[str]] | None = None
    image_size: int | None = None


class ChildTrainer:
    """Trains a detector on a YOLO folder, in the child.

    Args:
        detector: What it starts from: see `find_start`. An architecture has random start weights.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: On a CPU.
        trust: Whether a ``.pt`` file may be loaded.
        process: A child to share with others; else one of its own.

    Raises:
        SynthdetError: No such weights, or a ``.pt`` file that is not trusted.
    """

    def __init__(
        self,
        detector: str | Path,
        *,
        device: str,
        threads: int,
        trust: bool = False,
        process: DetectorProcess | None = None,
    ) -> None:
        self._start = find_start(detector, trust=trust)
        self.library = self._start.library
        """Who trains it."""
        self._device = device
        self._process = process or DetectorProcess(threads)

    def train(
        self,
        data_yaml: Path,
        weights_dir: Path,
        *,
        seed: int,
        max_train_steps: int,
        train_batch_size: int,
        learning_rate: float | None,
        image_size: int,
        on_step: Callable[[int], None],
    ) -> None:
        """As `DetectorTrainer.train`.

        AdamW; the rate rises over a tenth of the steps and falls in a line; the last fifth sees
        pictures whole; of ten looks at val the latest averaged weights that are not clearly worse than
        others.

        Raises:
            SynthdetError: The training failed.
        """
        for leftover in weights_dir.parent.glob(f".tmp-*-{weights_dir.name}"):
            shutil.rmtree(leftover)
        if weights_dir.exists():  # not whole, or it would not be made again
            shutil.rmtree(weights_dir)
        self._process.ask(
            {
                "job": "train",
                **asdict(self._start),
                "device": self._device,
                "data_yaml": str(data_yaml.absolute()),
                "weights_dir": str(weights_dir.absolute()),
                "seed": seed,
                "max_train_steps": max_train_steps,
                "train_batch_size": train_batch_size,
                "learning_rate": learning_rate,
                "image_size": image_size,
            },
            on_step,
        )

    def close(self) -> None:
        """End the child."""
        self._process.close()


class ChildDetector:
    """Draws boxes in picture files, in the child.

    Args:
        weights: A folder of weights, a ``.pt`` file or a hub name: see `find_start`.
        image_size: Side in pixels of the square that the network sees; pictures are fitted into it. One
            by text has its own.
        batch_size: Pictures a forward pass, at most.
        device: ``auto``, ``cpu`` or ``cuda``.
        threads: On a CPU.
        trust: Whether a ``.pt`` file may be loaded.
        process: A child to share with others; else one of its own.
        wanted: What to look for, if it is one by text.

    Raises:
        SynthdetError: No such weights, damaged ones, a ``.pt`` file that is not trusted, or one by text
            that nobody has told what to look for.
    """

    names: tuple[str, ...]
    queries: Mapping[str, Sequence[str]] | None

    def __init__(
        self,
        weights: Path,
        *,
        image_size: int,
        batch_size: int,
        device: str,
        threads: int,
        trust: bool,
        process: DetectorProcess | None = None,
        wanted: Wanted | None = None,
    ) -> None:
        self._start = find_start(weights, trust=trust)
        self._wanted = wanted
        self._image_size = image_size
        self._batch_size = batch_size
        self._device = device
        self._process = process or DetectorProcess(threads)
        opened = self._open()
        self.names, self.queries = tuple(opened["names"]), opened["queries"]
        if self.queries is not None:
            self._image_size = int(opened["image_size"])

    def detect(
        self, paths: Sequence[Path], *, min_confidence: float, views: bool = False
    ) -> list[tuple[DetectedBox, ...]]:
        """As `Detector.detect`. At most 100 boxes a picture and view.

        Raises:
            SynthdetError: A file is not a picture, or the child died.
        """
        if self._process.opened_by is not self:  # somebody else used the child in between
            self._open()
        answer = self._process.ask(
            {
                "job": "detect",
                "paths": [str(path.absolute()) for path in paths],
                "image_size": self._image_size,
                "batch_size": self._batch_size,
                "min_confidence": min_confidence,
                "views": views,
            }
        )
        return [
            tuple(
                DetectedBox(xyxy=xyxy, class_id=class_id, confidence=confidence, source=source)
                for xyxy, class_id, confidence, source in boxes
            )
            for boxes in answer
        ]

    def close(self) -> None:
        """End the child."""
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _open(self) -> Any:
        wanted = None if self._wanted is None else asdict(self._wanted)
        job = {"job": "open", **asdict(self._start), "device": self._device, "wanted": wanted}
        answer = self._process.ask(job)
        self._process.opened_by = self
        return answer
