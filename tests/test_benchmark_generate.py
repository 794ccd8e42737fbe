"""The generation benchmark in its quickest form: it runs, and its pictures are the loop's."""

from __future__ import annotations

import os
import runpy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.quick import run_benchmark, skip_without_weights

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "generate.py"


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
    assert figures["save_stall_share_1024"] <= 0.15, "0.02 where nobody else wants the processor"
    assert figures["pil_stall_share_1024"] > 2 * figures["save_stall_share_1024"]
    assert figures["placed_hit_rate"] is None


def test_networks_that_do_not_compile_here_are_measured_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    benchmark = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
    case = benchmark.Case("", "", pixels=64, pictures=4, steps=10, batch=2)
    raced = []

    def race(
        _work: Path, _case: Any, sides: Sequence[str], **_: Any
    ) -> dict[str, list[dict[str, Any]]]:
        raced.append(sides)
        if "compiled" in sides:
            raise SystemExit("the side compiled died")
        seconds = {"eager": 2.0, "batched": 8.0}
        return {side: [{"seconds": seconds[side], "peak_gb": 1, "made_again": 0}] for side in sides}

    benchmark._race_if_it_compiles.__globals__["_race"] = race
    sides = ("compiled", "eager", "batched")
    told = benchmark._race_if_it_compiles(tmp_path, case, sides, rounds=1)
    figures = benchmark._rates(told, case, 582.8)
    assert figures["pictures_per_second_1024_10"] == 2
    assert figures["share_of_limit"] == 0.5, "145.7 TFLOP a picture"
    assert figures["speedup_vs_loop_1024_10"] == 4
    assert "pictures_per_second_1024_10_compiled" not in figures
    assert list(benchmark._race_if_it_compiles(tmp_path, case, ("compiled",), rounds=1)) == [
        "eager"
    ]
    assert raced == [sides, ["eager", "batched"], ("compiled",), ["eager"]]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_wants_a_gpu_or_a_whole_machine_runs_in_miniature() -> None:
    result, said = run_benchmark("generate", "--dry-run", OMP_NUM_THREADS="1")
    assert result["dry_run"]
    assert result["targets"] == {}
    figures = result["figures"]
    for name in (
        "pictures_per_second_1024_10", "pictures_per_second_1024_10_compiled",
        "pictures_per_second_1024_10_eager", "pictures_per_second_1024_20", "share_of_limit",
        "share_of_limit_20", "speedup_vs_loop_1024_10", "matmul_tflops", "peak_rss_gb",
    ):  # fmt: skip
        assert figures[name] > 0, name
    assert figures["made_again_1024"] == figures["made_again"] == 0
    assert figures["loop_difference_1024"] <= 1
    assert "compiled" in said


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.skipif(
    "SYNTHDET_FULL_SIZE" not in os.environ,
    reason="SDXL at full size: 7 GB of disk, 24 GB of memory, minutes; set SYNTHDET_FULL_SIZE=1",
)
def test_sdxl_at_full_size_takes_two_steps_on_a_cpu() -> None:
    result, _said = run_benchmark("generate", "--full-size-on-cpu")
    assert result["ok"], result
