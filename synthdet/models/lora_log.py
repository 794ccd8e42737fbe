"""The log of a training: ``metrics.jsonl`` always, TensorBoard's event files where it is installed."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any, Final

from synthdet.workspace import write_text

METRICS_NAME: Final = "metrics.jsonl"
EVENTS_NAME: Final = "tensorboard"


class Log:
    """A line of figures a logged step.

    Args:
        folder: Of the training.
        start: Steps done: lines after it were logged by a training that was killed, and are dropped.
        tensorboard: Write event files too, if the package ``tensorboard`` is there.
    """

    def __init__(self, folder: Path, start: int, *, tensorboard: bool) -> None:
        self._path = folder / METRICS_NAME
        _cut(self._path, start)
        self._writer: Any = None
        if tensorboard and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder / EVENTS_NAME), purge_step=start + 1)

    def write(self, step: int, figures: dict[str, Any]) -> None:
        """Add a line; figures that are None are left out of the event files."""
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps({"step": step, **figures}) + "\n")
        if self._writer is not None:
            for name, value in figures.items():
                if value is not None:
                    self._writer.add_scalar(f"finetune/{name}", value, step)
            self._writer.flush()

    def close(self) -> None:
        """Close the event files."""
        if self._writer is not None:
            self._writer.close()


def _cut(path: Path, step: int) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = []
    for line in lines if step else ():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue  # torn by a kill
    write_text(path, "".join(kept))
