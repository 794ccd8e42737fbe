"""The generation benchmark in its quickest form: it runs, and its pictures are the loop's."""

from __future__ import annotations

import os

import pytest

from tests.quick import run_benchmark, skip_without_weights


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_stage_is_faster_than_the_loop_and_draws_the_same() -> None:
    skip_without_weights()
    result, said = run_benchmark("generate", "--quick", OMP_NUM_THREADS="1")
    figures = result["figures"]
    assert "pictures are equal" in said
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
    result, _said = run_benchmark("generate", "--full-size-on-cpu")
    assert result["ok"], result
