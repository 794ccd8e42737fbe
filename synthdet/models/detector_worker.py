"""The process in which detectors live: jobs come in as JSON lines, answers go out as JSON lines.

Started by `synthdet.models.detector` as ``python -m synthdet.models.detector_worker THREADS``. It ends
when its standard input ends, so it never outlives the process that started it, however that died.

Reads (stdin), one object a line: ``{"job": "train" | "open" | "detect" | "read", ...}``.
Writes (stdout): ``{"step": n}`` while training, and ``{"done": ...}`` or ``{"error": line}`` for each job.
What the libraries print goes to stderr. Each is imported with the first job that needs it.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

from synthdet.core.fusion import NUM_VIEWS
from synthdet.errors import SynthdetError
from synthdet.models.detector import Start, Wanted


def main(threads: int) -> None:
    """Answer jobs until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes our input
    inbox, answers = _take_stdin(), _take_stdout()
    settings = tempfile.mkdtemp(prefix="synthdet-detector-")
    _prepare_environment(threads, settings)
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(inbox, jobs, settings), daemon=True).start()
    worker = _Worker(threads, answers)
    while True:
        job = json.loads(jobs.get())
        try:
            answer = {"done": worker.do(job)}
        except SynthdetError as error:
            answer = {"error": str(error)}
        except Exception as error:  # whatever happens in there, the parent must hear of it
            traceback.print_exc()
            answer = {"error": _explain(error)}
        worker.say(answer)


def _take_stdin() -> TextIO:
    """A handle on the real standard input; a library that asks a question there hears nothing.

    It would read our jobs, or wait for ever: transformers asks whether it may run a model's own code.
    """
    inbox = os.fdopen(os.dup(0), encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as we live
    return inbox


def _take_stdout() -> TextIO:
    """A handle on the real standard output; all that is printed from now on goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return answers


def _prepare_environment(threads: int, settings: str) -> None:
    """Before the import: no network, no installing, settings of its own, our number of threads."""
    os.environ.update(
        YOLO_OFFLINE="true",
        YOLO_AUTOINSTALL="false",
        YOLO_VERBOSE="false",
        YOLO_CONFIG_DIR=settings,
        OMP_NUM_THREADS=str(threads),
        CUBLAS_WORKSPACE_CONFIG=":4096:8",
    )
    os.chdir(settings)  # ultralytics looks for files by name in the current folder


def _read_jobs(inbox: TextIO, jobs: queue.SimpleQueue[str], settings: str) -> None:
    """Hand on the jobs; where the input ends, the whole process ends, in the middle of a job too."""
    for line in inbox:
        jobs.put(line)
    shutil.rmtree(settings, ignore_errors=True)
    os._exit(0)


def _explain(error: Exception) -> str:
    line = " ".join(str(error).split())[:300]
    if "out of memory" in line.lower() or isinstance(error, MemoryError):
        return f"out of memory: lower train_batch_size or image_size ({line})"
    return f"the detector's process failed: {type(error).__name__}: {line}"


def _import_library(kind: str, threads: int) -> ModuleType:
    """The adapter that opens a kind of detector: `detr`, `yolo`, or `text_detector`, which trains nothing."""
    import torch

    library: ModuleType
    if kind == "transformers":
        from synthdet.models import detr

        library = detr
    elif kind == "text":
        from synthdet.models import text_detector

        library = text_detector
    else:
        from synthdet.models import yolo

        library = yolo
    torch.set_num_threads(threads)  # the import of ultralytics has set its own
    return library


class _Worker:
    """Keeps the detector that was opened last."""

    def __init__(self, threads: int, answers: TextIO) -> None:
        import torch

        from synthdet.models.devices import resolve_device

        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True
        self._threads = threads
        self._resolve_device: Callable[[str], str] = resolve_device
        self._answers = answers
        self._network: Any = None
        self._library: ModuleType | None = None
        self._device = "cpu"

    def say(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)

    def do(self, job: dict[str, Any]) -> Any:
        doing = {
            "train": self._train,
            "open": self._open,
            "detect": self._detect,
            "read": self._read,
        }
        return doing[job.pop("job")](job)

    def _train(self, job: dict[str, Any]) -> None:
        from synthdet.models.detector_training import Training

        start = Start(job.pop("kind"), job.pop("where"))
        device = self._resolve_device(job.pop("device"))
        data_yaml, weights_dir = Path(job.pop("data_yaml")), Path(job.pop("weights_dir"))
        training = Training(data_yaml=data_yaml, weights_dir=weights_dir, **job)
        library = _import_library(start.kind, self._threads)
        library.train(start, training, device, lambda step: self.say({"step": step}))

    def _open(self, job: dict[str, Any]) -> dict[str, Any]:
        self._device = self._resolve_device(job["device"])
        self._library = _import_library(job["kind"], self._threads)
        start = Start(job["kind"], job["where"])
        if start.kind == "transformers" and self._library.finds_by_text(start.where):
            return self._open_by_text(start, job["wanted"])
        self._network, names = self._library.open_network(start, self._device)
        return {"names": names, "queries": None}

    def _open_by_text(self, start: Start, wanted: dict[str, Any] | None) -> dict[str, Any]:
        self._library = _import_library("text", self._threads)
        asked = None if wanted is None else Wanted(**wanted)
        self._network = self._library.open_network(start, self._device, asked)
        queries: dict[str, Any] = self._network.queries
        return {
            "names": list(queries), "queries": queries, "image_size": self._network.image_size,
        }  # fmt: skip

    def _detect(self, job: dict[str, Any]) -> list[Any]:
        assert self._library is not None  # noqa: S101 - the parent opens first
        found = self._library.detect(
            self._network,
            [Path(path) for path in job["paths"]],
            image_size=job["image_size"],
            batch_size=job["batch_size"],
            device=self._device,
            min_confidence=job["min_confidence"],
            num_views=NUM_VIEWS if job["views"] else 1,
        )
        return [
            [[box.xyxy, box.class_id, box.confidence, box.source] for box in boxes]
            for boxes in found
        ]

    def _read(self, job: dict[str, Any]) -> None:
        library = _import_library("folder", self._threads)
        library.read_as_ultralytics(Path(job["data_yaml"]), job["split"], Path(job["found"]))


if __name__ == "__main__":
    main(int(sys.argv[1]))
