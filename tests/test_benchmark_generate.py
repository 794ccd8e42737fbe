"""The generation benchmark in its quickest form: it runs, and its pictures are the loop's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.quick import skip_without_weights

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "generate.py"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_stage_is_faster_than_the_loop_and_draws_the_same() -> None:
    skip_without_weights()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    result = json.loads(done.stdout.splitlines()[-1])
    figures = result["figures"]
    assert "pictures are equal" in done.stderr
    assert figures["processor_speedup_vs_loop"] > 1.2
    assert figures["save_stall_share"] <= 0.05
    assert figures["rss_growth_mb"] <= 16
    assert figures["placed_hit_rate"] is None


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif(
    "SYNTHDET_FULL_SIZE" not in os.environ,
    reason="SDXL at full size: 7 GB of disk, 24 GB of memory, minutes; set SYNTHDET_FULL_SIZE=1",
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
