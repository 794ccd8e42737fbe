"""The verdict's benchmark in its quickest form: simulated studies through the stage's own way."""

from __future__ import annotations

from tests.quick import run_benchmark


def test_the_interval_holds_the_truth_of_simulated_studies() -> None:
    result, _said = run_benchmark("evaluate", "--quick", OMP_NUM_THREADS="1")
    figures = result["figures"]
    assert figures["map_error_vs_pycocotools"] <= 1e-6
    assert figures["studies"] == 120
    assert figures["true_difference"] > 0.05, "else the studies show nothing"
    # 120 studies: wider bounds than the benchmark's own, of 500.
    assert 0.9 <= figures["interval_coverage"] <= 0.995
    assert figures["false_gain_rate"] <= 0.05
    assert figures["power"] > 2 * figures["false_gain_rate"]
