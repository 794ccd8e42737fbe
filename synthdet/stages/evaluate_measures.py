"""How good the detectors of `evaluate` are on the real test tiles, and how far arms differ."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from synthdet.core.boxes import area
from synthdet.core.comparison import (
    Floats,
    Matches,
    average_precision,
    best_operating_point,
    match_detections,
    of_class,
    operating_point,
    precision_without_groups,
)
from synthdet.core.differences import Difference, paired_difference
from synthdet.core.labelling import FALLBACK_CONFIDENCE
from synthdet.core.measures import (
    SizeRange,
    count_error,
    false_alarms_where_empty,
    size_ranges,
)
from synthdet.core.records import Detections, ManifestEntry
from synthdet.stages.evaluate_units import Study, Unit, predictions_path
from synthdet.workspace import StageFolder, read_records, write_text

MEASURES = ("map50", "map50_95", "precision", "recall", "f1", "confidence", "count_bias", "count_error")  # fmt: skip
"""There in every study. Besides, where there is something to measure them on:
``false_alarms_per_empty_photo``, ``false_alarms_per_empty_tile``; those of `BY_SIZE` with the size,
like ``map50_small``; those of `BY_CLASS` with the class, like ``map50:whale``."""
BY_SIZE = ("map50", "map50_95", "recall")
BY_CLASS = ("map50", "map50_95", "precision", "recall", "count_bias", "count_error")

COMPARED = ("map50", "map50_95")
"""What differences are worked out of."""


@dataclass(frozen=True, slots=True)
class Result:
    """How one unit did on the real test tiles.

    Attributes:
        measures: By name.
        matches: What they were worked out from.
        without_groups: ``(1 + groups, 10)`` as `precision_without_groups` has it.
    """

    measures: dict[str, float]
    matches: Matches
    without_groups: Floats


Results = Mapping[tuple[str, int], Result]


def measure(folder: StageFolder, study: Study, unit: Unit) -> Result:
    """Work out a unit's measures from what its detector drew."""
    found = {
        split: read_records(predictions_path(folder, *unit.key, split), Detections)
        for split, _entries in study.tried()
    }
    best = best_operating_point(_match(study, study.val, found["val"]))
    confidence = best.confidence if best else FALLBACK_CONFIDENCE
    matches = _match(study, study.test, found["test"])
    table = precision_without_groups(matches, study.test_groups)
    point = operating_point(matches, confidence)
    values: dict[str, float] = {
        "map50": table[0, 0],
        "map50_95": table[0].mean(),
        "precision": point.precision,
        "recall": point.recall,
        "f1": point.f1,
        "confidence": confidence,
        **_counts(study, found["test"], confidence),
        **_by_size(study, found["test"], confidence),
        **_by_class(study, found["test"], matches, confidence),
    }
    rounded = {name: round(float(value), 6) for name, value in values.items()}
    return Result(rounded, matches, table)


def sizes_of(study: Study) -> list[SizeRange]:
    """Thirds of the test animals by size: those that are measured on."""
    return size_ranges([area(box.xyxy) for entry in study.test for box in entry.boxes])


def classes_of(study: Study) -> dict[int, str]:
    """The classes that are measured apart: those in test, where there are several."""
    there = sorted({box.class_id for entry in study.test for box in entry.boxes})
    return {one: study.class_names[one] for one in there} if len(there) > 1 else {}


def _match(
    study: Study,
    entries: Sequence[ManifestEntry],
    found: Sequence[Detections],
    size: SizeRange | None = None,
) -> Matches:
    return match_detections(
        [entry.boxes for entry in entries],
        [one.boxes for one in found],
        num_classes=len(study.class_names),
        areas=size.areas if size else (0.0, np.inf),
    )


def _counts(study: Study, found: Sequence[Detections], confidence: float) -> dict[str, float]:
    truths, drawn = [one.boxes for one in study.test], [one.boxes for one in found]
    error = count_error(study.test_photos, truths, drawn, confidence)
    values = {"count_bias": error.bias, "count_error": error.error}
    tiles = [entry.image_id for entry in study.test]
    for name, places in (("photo", study.test_photos), ("tile", tiles)):
        alarms = false_alarms_where_empty(places, truths, drawn, confidence)
        if alarms is not None:
            values[f"false_alarms_per_empty_{name}"] = alarms
    return values


def _by_size(study: Study, found: Sequence[Detections], confidence: float) -> dict[str, float]:
    values: dict[str, float] = {}
    for size in sizes_of(study):
        matches = _match(study, study.test, found, size)
        precision = average_precision(matches)
        values[f"map50_{size.name}"] = precision[0]
        values[f"map50_95_{size.name}"] = precision.mean()
        values[f"recall_{size.name}"] = operating_point(matches, confidence).recall
    return values


def _by_class(
    study: Study, found: Sequence[Detections], matches: Matches, confidence: float
) -> dict[str, float]:
    truths, drawn = [one.boxes for one in study.test], [one.boxes for one in found]
    values: dict[str, float] = {}
    for class_id, name in classes_of(study).items():
        own = of_class(matches, class_id)
        precision, point = average_precision(own), operating_point(own, confidence)
        error = count_error(study.test_photos, truths, drawn, confidence, class_id=class_id)
        numbers = (
            precision[0], precision.mean(), point.precision, point.recall, error.bias, error.error
        )  # fmt: skip
        values |= {f"{key}:{name}": value for key, value in zip(BY_CLASS, numbers, strict=True)}
    return values


def write_results(path: Path, results: Results) -> None:
    """Write ``results.csv``."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["arm", "seed", "measure", "value"])
    for (arm, seed), result in results.items():
        writer.writerows([arm, seed, name, f"{value:.6f}"] for name, value in result.measures.items())  # fmt: skip
    write_text(path, text.getvalue())


def compare(
    results: Results, name: str, arm: str, base: str, *, seeds: Sequence[int]
) -> Difference:
    """One arm minus another, seed by seed, on all test tiles and with each group left out.

    Args:
        results: Of both arms with all seeds.
        name: ``map50`` or ``map50_95``.
        arm: The arm, or the point of a sweep.
        base: What is taken off it.
        seeds: The paired ones.
    """
    differences = np.array([
        _with_each_left_out(results[arm, seed], name) - _with_each_left_out(results[base, seed], name)
        for seed in seeds
    ])  # fmt: skip
    return paired_difference(differences[:, 0], differences[:, 1:])


def level(results: Results, name: str, arm: str, *, seeds: Sequence[int]) -> Difference:
    """A measure of one arm as such, with an interval for other seeds and other test photos."""
    values = np.array([_with_each_left_out(results[arm, seed], name) for seed in seeds])
    return paired_difference(values[:, 0], values[:, 1:])


def to_fields(one: Difference) -> dict[str, float | None]:
    """A difference, or a level, as ``verdict.json`` has it."""
    fields = {"mean": one.mean, "low": one.low, "high": one.high}
    return {name: None if value is None else round(value, 6) for name, value in fields.items()}


def _with_each_left_out(result: Result, name: str) -> Floats:
    table = result.without_groups
    return np.asarray(table[:, 0] if name == "map50" else table.mean(axis=1))
