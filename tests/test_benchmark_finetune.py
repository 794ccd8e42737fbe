"""The fine-tuning benchmark in its quickest form: the counters are those of a lean step."""

from __future__ import annotations

import os

import pytest

from tests.quick import run_benchmark


@pytest.mark.slow
def test_a_step_waits_for_nothing_and_encodes_nothing() -> None:
    result, _said = run_benchmark("finetune", "--quick", OMP_NUM_THREADS="1")
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
    result, _said = run_benchmark("finetune", "--full-size-on-cpu")
    assert result["ok"], result
