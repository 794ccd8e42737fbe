"""The fine-tuning benchmark in its quickest form: the counters are those of a lean step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "finetune.py"


@pytest.mark.slow
def test_a_step_waits_for_nothing_and_encodes_nothing() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    figures = result["figures"]
    assert figures["syncs_per_step"] == 0
    assert figures["vae_encodes_per_step"] == 0
    assert figures["optimizer_calls_per_step"] <= 60
    assert figures["aten_calls_per_step"] <= 16_500
    assert figures["speedup_vs_peer"] is None
    assert result["ok"] or figures["peak_gb_1024"] is not None


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif(
    "SYNTHDET_FULL_SIZE" not in os.environ,
    reason="SDXL at full size: 15 GB of disk, 24 GB of memory, most of an hour; set SYNTHDET_FULL_SIZE=1",
)
def test_sdxl_at_full_size_takes_two_steps_on_a_cpu() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--full-size-on-cpu"],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ok"], result
