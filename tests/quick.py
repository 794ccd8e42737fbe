"""The journey in its quickest form on the embedded default, for tests of the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from synthdet.core.records import Split
from synthdet.errors import SynthdetError
from synthdet.pocket import survey as demo_survey
from synthdet.pocket import weights_dir
from synthdet.progress import Reporter

QUICK_SETTINGS = (
    *demo_survey.SETTINGS,
    "prepare.views=1",
    "finetune.max_train_steps=6",
    "finetune.train_batch_size=2",
    "finetune.checkpointing_steps=2",
    "finetune.num_samples=1",
    "finetune.composites=4",
    "generate.num_images=8",
    "generate.num_inference_steps=4",
    "generate.placed_strength=0.5",
    "generate.batch_size=3",
    "label.max_train_steps=6",
    "label.train_batch_size=4",
    "label.confidence=0.05",
    "label.review_confidence=0.04",
    "evaluate.max_train_steps=6",
    "evaluate.train_batch_size=4",
    "evaluate.seeds=[0, 1]",
)
"""What makes a run on the demo's survey end within about a minute."""


def quick_survey(folder: Path) -> Path:
    """The demo's survey with fewer flights: 16 train, 8 val and 12 test photos."""
    flights: dict[Split, int] = {"train": 4, "val": 2, "test": 3}
    demo_survey.write_survey(folder, Reporter(Console(quiet=True)), flights=flights)
    return folder


def skip_without_weights() -> None:
    """Skip where the embedded default has not been built."""
    try:
        weights_dir()
    except SynthdetError as error:
        pytest.skip(str(error))


def run_benchmark(name: str, *arguments: str, **environment: str) -> tuple[dict[str, Any], str]:
    """Run a script of ``benchmarks/``; its JSON object, and what it said on the way."""
    script = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result, done.stderr
