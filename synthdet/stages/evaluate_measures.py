"""How good the detectors of `evaluate` are on the real test tiles, and how far arms differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthdet.core.comparison import (
    Difference,
    Matches,
    average_precision,
    best_operating_point,
    match_detections,
    operating_point,
    paired_difference,
)
from synthdet.core.labelling import FALLBACK_CONFIDENCE
from synthdet.core.records import Detections
from synthdet.stages.evaluate_units import Study, Unit, predictions_path
from synthdet.workspace import StageFolder, read_records, write_text

MEASURES = ("map50", "map50_95", "precision", "recall", "f1", "confidence")


@dataclass(frozen=True, slots=True)
class Result:
    """How one unit did on the real test tiles: `MEASURES`, and what they were worked out from."""

    measures: dict[str, float]
    matches: Matches


Results = Mapping[tuple[str, int], Result]


def measure(folder: StageFolder, study: Study, unit: Unit) -> Result:
    """Work out a unit's measures from what its detector drew."""
    matched = {}
    for split, entries in study.tried():
        found = read_records(predictions_path(folder, *unit.key, split), Detections)
        matched[split] = match_detections(
            [entry.boxes for entry in entries],
            [one.boxes for one in found],
            num_classes=len(study.class_names),
        )
    best = best_operating_point(matched["val"])
    point = operating_point(matched["test"], best.confidence if best else FALLBACK_CONFIDENCE)
    precision = average_precision(matched["test"])
    values = (precision[0], precision.mean(), point.precision, point.recall, point.f1, point.confidence)  # fmt: skip
    return Result(
        {name: round(float(value), 6) for name, value in zip(MEASURES, values, strict=True)},
        matched["test"],
    )


def write_results(path: Path, results: Results) -> None:
    """Write ``results.csv``."""
    lines = ["arm,seed,measure,value"]
    for (arm, seed), result in results.items():
        lines += [f"{arm},{seed},{name},{value:.6f}" for name, value in result.measures.items()]
    write_text(path, "\n".join(lines) + "\n")


def compare(
    study: Study,
    results: Results,
    name: str,
    arm: str,
    base: str,
    *,
    seeds: Sequence[int],
) -> Difference:
    """One arm minus another, seed by seed, on all test tiles and with each group left out.

    Args:
        study: What is compared.
        results: Of both arms with all seeds.
        name: ``map50`` or ``map50_95``.
        arm: The arm, or the point of a sweep.
        base: What is taken off it.
        seeds: The paired ones.
    """
    groups = sorted(set(study.test_groups))
    group_of = np.array([groups.index(group) for group in study.test_groups])
    subsets = [np.ones(len(group_of), dtype=np.int64)]
    subsets += [(group_of != index).astype(np.int64) for index in range(len(groups))]

    def values(arm: str, seed: int) -> list[float]:
        precision = [average_precision(results[arm, seed].matches, subset) for subset in subsets]
        return [float(one[0] if name == "map50" else one.mean()) for one in precision]

    difference = np.array([
        np.subtract(values(arm, seed), values(base, seed))
        for seed in seeds
    ])  # fmt: skip
    return paired_difference(difference[:, 0], difference[:, 1:])
