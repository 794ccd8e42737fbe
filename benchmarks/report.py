"""What all benchmarks say in the same way: progress, the machine, figures held against targets.

Not a benchmark itself; the scripts beside it import it, as Python finds a script's own folder.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Targets = Mapping[str, tuple[str, float]]
"""Figure -> `>=`, `<=` or `>`, and the bound."""


def say(text: str) -> None:
    """A line of progress, to stderr: stdout is for the JSON object."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def workplace(name: str, told: Path | None) -> Iterator[Path]:
    """The folder to work in: the one that was told, kept; else a temporary one, removed."""
    work = told or Path(tempfile.mkdtemp(prefix=f"synthdet-{name}-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        yield work
    finally:
        if told is None:
            shutil.rmtree(work, ignore_errors=True)


def measure_parts(parts: Mapping[str, Callable[[], dict[str, Any]]]) -> dict[str, Any]:
    """The figures of all parts, one part after the other, each told when it is measured."""
    figures: dict[str, Any] = {}
    for part, measure in parts.items():
        started = time.monotonic()
        made = measure()
        figures |= made
        say(f"{part}: {json.dumps(made)} ({time.monotonic() - started:.0f} s)")
    return figures


def make_report(
    name: str, figures: Mapping[str, Any], targets: Targets, **more: Any
) -> dict[str, Any]:
    """The JSON object of a benchmark.

    Args:
        name: Of the benchmark.
        figures: What was measured; None, or not there, where it was not.
        targets: What it is held against.
        more: Put beside the machine's description, `machine`, or beside the figures.

    Returns:
        With `missed`, the figures that miss their target or were not measured, and `ok`, whether
        there is none.
    """
    missed = [key for key, target in targets.items() if not holds(figures.get(key), target)]
    return {
        "name": name,
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load": [round(value, 2) for value in os.getloadavg()],
            "python": platform.python_version(),
            **more.pop("machine", {}),
        },
        "figures": dict(figures),
        **more,
        "targets": {key: f"{sign} {bound:g}" for key, (sign, bound) in targets.items()},
        "missed": missed,
        "ok": not missed,
    }


def holds(figure: float | None, target: tuple[str, float]) -> bool:
    """Whether a figure meets its target; one that was not measured does not."""
    sign, bound = target
    if figure is None:
        return False
    return {">=": figure >= bound, "<=": figure <= bound, ">": figure > bound}[sign]
