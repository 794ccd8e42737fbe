"""The curves of `evaluate`: how mAP goes with the number of synthetic pictures, and of real photos.

A point of a curve is a training set, trained once a seed like an arm. Its pictures are drawn by that
seed, so that the spread over seeds holds the luck of the draw too; a larger set holds the smaller ones.
A curve ends early where a step is known to change as good as nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from synthdet.config import Config
from synthdet.core.records import ManifestEntry
from synthdet.core.sweeps import FLAT, GroupedPhoto, is_flat, nested_order, nested_photos
from synthdet.stages.evaluate_measures import COMPARED, Result, compare, level, to_fields
from synthdet.stages.evaluate_units import Study, Unit
from synthdet.workspace import write_text

SweepName = Literal["synthetic", "real"]


@dataclass(frozen=True, slots=True)
class Point:
    """A training set of a curve.

    Attributes:
        name: What its units are called; that of an arm where it is the arm's set.
        asked: The multiple of the real pictures, or the number of real photos, that was asked for.
        number: Synthetic pictures, or real photos, in it.
        units: Its trainings, one a seed.
    """

    name: str
    asked: float
    number: int
    units: tuple[Unit, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve as far as it was trained.

    Attributes:
        points: In order of size.
        results: Of every unit of these points.
        available: Synthetic pictures, or real photos, that there are.
        capped: What was asked for and is more than there are.
        left_out: What was asked for and not trained, the curve being flat.
    """

    points: tuple[Point, ...]
    results: Mapping[tuple[str, int], Result] = field(repr=False)
    available: int
    capped: tuple[float, ...]
    left_out: tuple[float, ...]


def plan_sweeps(study: Study, config: Config) -> dict[SweepName, list[Point]]:
    """The points of both curves by size; those that would hold the same pictures once."""
    if not study.can_be_measured or not study.train["real"]:
        return {}
    seeds = config.evaluate.seeds
    plans: dict[SweepName, list[Point]] = {}
    if config.evaluate.sweep and study.differs:
        plans["synthetic"] = _once(_synthetic_points(study, config.evaluate.sweep, seeds))
    if config.evaluate.real_sweep:
        plans["real"] = _once(_real_points(study, config.evaluate.real_sweep, seeds))
    return plans


def make_curve(
    name: SweepName,
    points: Sequence[Point],
    study: Study,
    config: Config,
    make: Callable[[Sequence[Unit]], Mapping[tuple[str, int], Result]],
) -> Curve:
    """Train and measure point after point, until the curve is flat.

    Args:
        name: Of the curve.
        points: From `plan_sweeps`.
        study: What is compared.
        config: The run's settings.
        make: Trains those of the units that are not there yet, and measures all of them.
    """
    seeds = config.evaluate.seeds
    results: dict[tuple[str, int], Result] = {}
    made: list[Point] = []
    for point in points:
        results |= make(point.units)
        made.append(point)
        if len(made) > 1:
            step = compare(results, "map50", point.name, made[-2].name, seeds=seeds)
            if is_flat(step):
                break
    asked = config.evaluate.sweep if name == "synthetic" else config.evaluate.real_sweep
    available = _available(name, study)
    wanted = {one: _number(name, one, study) for one in sorted({*asked})}
    return Curve(
        tuple(made),
        results,
        available=available,
        capped=tuple(one for one, number in wanted.items() if number > available),
        left_out=tuple(point.asked for point in points[len(made) :]),
    )


def _available(name: SweepName, study: Study) -> int:
    return len(study.train["synthetic"]) if name == "synthetic" else len(_photos(study))


def _number(name: SweepName, asked: float, study: Study) -> int:
    return round(asked * len(study.train["real"])) if name == "synthetic" else int(asked)


def _once(points: Iterator[Point]) -> list[Point]:
    by_name: dict[str, Point] = {}
    for point in points:
        by_name.setdefault(point.name, point)
    return list(by_name.values())


def _synthetic_points(
    study: Study, multiples: Sequence[float], seeds: Sequence[int]
) -> Iterator[Point]:
    real, synthetic = study.train["real"], study.train["synthetic"]
    orders = {seed: nested_order([one.image_id for one in synthetic], seed) for seed in seeds}
    for multiple in sorted({*multiples}):
        number = min(_number("synthetic", multiple, study), len(synthetic))
        if number in (0, len(synthetic)):
            arm: Literal["real", "real_plus_synthetic"] = (
                "real_plus_synthetic" if number else "real"
            )
            units = tuple(Unit(arm, seed, tuple(study.train[arm])) for seed in seeds)
            yield Point(arm, multiple, number, units)
            continue
        name = f"real_plus_synthetic-x{multiple:g}"
        yield Point(name, multiple, number, tuple(
            Unit(name, seed, (*real, *_only(synthetic, orders[seed][:number])), own_list=True)
            for seed in seeds
        ))  # fmt: skip


def _real_points(study: Study, numbers: Sequence[int], seeds: Sequence[int]) -> Iterator[Point]:
    real = study.train["real"]
    photos = _photos(study)
    orders = {seed: nested_photos(photos, seed) for seed in seeds}
    for asked in sorted({*numbers}):
        if asked >= len(photos):
            units = tuple(Unit("real", seed, tuple(real)) for seed in seeds)
            yield Point("real", asked, len(photos), units)
            continue
        name = f"real-n{asked}"
        chosen = {seed: {*orders[seed][:asked]} for seed in seeds}
        yield Point(name, asked, asked, tuple(
            Unit(
                name, seed,
                tuple(one for one in real if study.places[one.image_id].photo in chosen[seed]),
                own_list=True,
            )
            for seed in seeds
        ))  # fmt: skip


def _only(entries: Sequence[ManifestEntry], names: Sequence[str]) -> Iterator[ManifestEntry]:
    wanted = {*names}
    return (one for one in entries if one.image_id in wanted)


def _photos(study: Study) -> list[GroupedPhoto]:
    """The real train photos, in the order of their tiles."""
    groups: dict[str, str] = {}
    with_animal = set()
    for entry in study.train["real"]:
        place = study.places[entry.image_id]
        groups[place.photo] = place.group
        if entry.boxes:
            with_animal.add(place.photo)
    return [GroupedPhoto(name, group, name in with_animal) for name, group in groups.items()]


# --- what is told of it ------------------------------------------------------------------------


def curve_to_fields(curve: Curve, seeds: Sequence[int]) -> dict[str, Any]:
    """A curve as ``verdict.json`` has it."""
    points = []
    for before, point in zip((None, *curve.points), curve.points, strict=False):
        fields: dict[str, Any] = {
            "asked": point.asked,
            "number": point.number,
            "name": point.name,
        }
        for measure in COMPARED:
            fields[measure] = to_fields(level(curve.results, measure, point.name, seeds=seeds))
        if before is not None:
            fields["over_previous"] = {
                measure: to_fields(
                    compare(curve.results, measure, point.name, before.name, seeds=seeds)
                )
                for measure in COMPARED
            }
        points.append(fields)
    return {
        "points": points,
        "available": curve.available,
        "capped": list(curve.capped),
        "left_out": list(curve.left_out),
    }


def tell(name: SweepName, curve: Curve) -> str:
    """A curve in one line."""
    unit = "synthetic pictures" if name == "synthetic" else "real photos"
    seeds = sorted({seed for _name, seed in curve.results})
    values = [
        f"{point.number}: {np.mean([curve.results[point.name, seed].measures['map50'] for seed in seeds]):.2f}"
        for point in curve.points
    ]
    text = f"mAP50 by {unit}: {', '.join(values)}"
    if curve.capped:
        asked = as_asked(name, curve.capped)
        text += f"; {asked} would be more than the {curve.available} there are"
    if curve.left_out:
        left = as_asked(name, curve.left_out)
        text += f"; {left} not trained, as the last step changes less than {FLAT:g}"
    return text


def as_asked(name: str, numbers: Sequence[float]) -> str:
    """Points in words, like ``2 and 4 times the real pictures``."""
    words = " and ".join(f"{one:g}" for one in numbers)
    return f"{words} times the real pictures" if name == "synthetic" else words


def write_sweep(path: Path, curves: Mapping[SweepName, Curve]) -> None:
    """Write ``sweep.csv``, a row a curve, point, seed and measure; take it away where there is none."""
    if not curves:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sweep", "asked", "number", "name", "seed", "measure", "value"])
    for name, curve in curves.items():
        for point in curve.points:
            for unit in point.units:
                writer.writerows(
                    [name, f"{point.asked:g}", point.number, point.name, unit.seed, measure, f"{value:.6f}"]
                    for measure, value in curve.results[unit.key].measures.items()
                )  # fmt: skip
    write_text(path, text.getvalue())
