"""``7-evaluate/report.html``: the verdict to look at. One file, nothing loaded from elsewhere."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthdet.config import Config
from synthdet.core.comparison import (
    Curve,
    OperatingPoint,
    operating_point,
    precision_recall_curve,
)
from synthdet.core.records import Box, DetectedBox, Detections, ManifestEntry
from synthdet.stages import evaluate_plots
from synthdet.stages.evaluate_measures import COMPARED, Results, classes_of
from synthdet.stages.evaluate_page import PAGE
from synthdet.stages.evaluate_pictures import (
    Pictures,
    data_uri,
    failures_section,
    strip,
    tested_strip,
)
from synthdet.stages.evaluate_plots import ARM_NAMES, DIFFERENCE_NAMES, MEASURE_NAMES
from synthdet.stages.evaluate_sweep import as_asked
from synthdet.stages.evaluate_units import Study, predictions_path
from synthdet.workspace import StageFolder, read_records, versions, write_text

Found = Mapping[str, Sequence[Sequence[Sequence[DetectedBox]]]]


@dataclass(frozen=True, slots=True)
class Report:
    """What the page shows.

    Attributes:
        verdict: What ``verdict.json`` holds.
        values: Measures of every arm and seed.
        classes: Names of the classes that are measured apart.
        real: Real train pictures with their boxes.
        synthetic: Synthetic train pictures with theirs.
        augmented: Augmented train pictures with theirs; empty where that arm was not trained.
        test: Real test pictures with theirs.
        found: For each arm, seed and test picture the boxes from the seed's threshold on.
        curves: For each arm the precision and recall of every seed.
        points: For each arm where each seed's threshold stands on its curve.
        settings: Of the evaluation.
    """

    verdict: Mapping[str, Any]
    values: evaluate_plots.Values
    classes: Sequence[str]
    real: Pictures
    synthetic: Pictures
    augmented: Pictures
    test: Pictures
    found: Found
    curves: Mapping[str, Sequence[Curve]]
    points: Mapping[str, Sequence[OperatingPoint]]
    settings: Mapping[str, Any]


def make_report(
    folder: StageFolder,
    study: Study,
    config: Config,
    results: Results,
    verdict: Mapping[str, Any],
) -> Report:
    """Gather what the page shows."""
    root, seeds, arms = folder.workspace.root, config.evaluate.seeds, study.trained(config)

    def pictures(entries: Iterable[ManifestEntry]) -> list[tuple[Path, Sequence[Box]]]:
        return [(root / one.yolo_path, one.boxes) for one in entries]

    def sure(arm: str, seed: int) -> list[list[DetectedBox]]:
        threshold = results[arm, seed].measures["confidence"]
        drawn = read_records(predictions_path(folder, arm, seed, "test"), Detections)
        return [[box for box in one.boxes if box.confidence >= threshold] for one in drawn]

    augmented = study.train["real_plus_augmented"][len(study.train["real"]) :]
    return Report(
        verdict=verdict,
        values={unit: result.measures for unit, result in results.items()},
        classes=list(classes_of(study).values()),
        real=pictures(study.train["real"]),
        synthetic=pictures(study.train["synthetic"]),
        augmented=pictures(augmented if "real_plus_augmented" in arms else []),
        test=pictures(study.test),
        found={arm: [sure(arm, seed) for seed in seeds] for arm in arms},
        curves={
            arm: [precision_recall_curve(results[arm, seed].matches) for seed in seeds]
            for arm in arms
        },
        points={
            arm: [
                operating_point(
                    results[arm, seed].matches, results[arm, seed].measures["confidence"]
                )
                for seed in seeds
            ]
            for arm in arms
        },
        settings=config.evaluate.model_dump(mode="json"),
    )


def write_report(path: Path, report: Report) -> None:
    """Write the page."""
    verdict = report.verdict
    page = PAGE.substitute(
        kind=html.escape(verdict["verdict"]),
        kind_class=verdict["verdict"].replace(" ", "-"),
        sentence=html.escape(verdict["sentence"]),
        plot=_verdict_plot(report),
        measures=_measures_table(report),
        parts=_sizes_table(report) + _classes_table(report),
        sweeps=_sweeps(report),
        curves=_curves(report),
        failures=failures_section(report.test, report.found),
        facts=_facts_table(report),
        examples=_examples(report),
        settings=_settings_tables(report),
    )
    write_text(path, page)


# --- plots -------------------------------------------------------------------------------------


def _plot_tag(content: bytes, described: str) -> str:
    return f'<img class="plot" alt="{html.escape(described)}" src="{data_uri(content, "png")}">'


def _verdict_plot(report: Report) -> str:
    if not report.values:
        return ""
    content = evaluate_plots.plot_verdict(report.values, _differences(report))
    return _plot_tag(content, f"Plot: {report.verdict['sentence']}")


def _differences(report: Report) -> dict[str, Mapping[str, Mapping[str, float | None]]]:
    """The differences that were worked out, by key."""
    return {key: report.verdict[key] for key in DIFFERENCE_NAMES if report.verdict[key]}


def _curves(report: Report) -> str:
    if not report.curves:
        return ""
    content = evaluate_plots.plot_curves(report.curves, report.points)
    return (
        "<h2>Precision and recall</h2><p>Every confidence threshold trades one for the other, here at IoU 0.5 over all "
        f"classes.</p>{_plot_tag(content, 'Plot: precision against recall, of every arm and seed')}"
    )


def _sweeps(report: Report) -> str:
    sweeps = report.verdict["sweeps"]
    if not sweeps:
        return ""
    both = report.verdict["measures"].get("real_plus_synthetic", {}).get("map50")
    content = evaluate_plots.plot_sweeps(sweeps, both)
    told = []
    for name, sweep in sweeps.items():
        unit = "synthetic pictures" if name == "synthetic" else "real photos"
        if sweep["capped"]:
            asked = as_asked(name, sweep["capped"])
            told.append(f"There are {sweep['available']} {unit}: {asked} would be more.")
        if sweep["left_out"]:
            left = as_asked(name, sweep["left_out"])
            told.append(f"The curve of {unit} became flat, so {left} was not trained.")
    return (
        "<h2>How much is enough</h2><p>Means over the seeds, each with pictures drawn by itself; the bands are 95 % "
        f"intervals over seeds and groups of test photos. {' '.join(told)}</p>"
        f"{_plot_tag(content, 'Plot: mAP by the number of pictures')}"
    )


# --- tables ------------------------------------------------------------------------------------


def _table(heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]]) -> str:
    """HTML of a table; heads and cells are HTML already."""
    top = "".join(f"<th>{head}</th>" for head in ("", *heads)) if heads else ""
    body = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f"<table>{f'<tr>{top}</tr>' if top else ''}{body}</table>"


def _measures_table(report: Report) -> str:
    measures = report.verdict["measures"]
    if not measures:
        return ""
    there = [name for name in MEASURE_NAMES if all(name in one for one in measures.values())]
    rows = [
        (
            MEASURE_NAMES[name],
            [_number(values[name], signed=name == "count_bias") for values in measures.values()],
        )
        for name in there
    ]
    return _table([ARM_NAMES[arm] for arm in measures], rows) + _differences_table(report)


def _differences_table(report: Report) -> str:
    differences = _differences(report)
    if not differences:
        return ""
    heads = [f"{MEASURE_NAMES[name]}, 95 % interval" for name in COMPARED]
    rows = [
        (DIFFERENCE_NAMES[key][0], [_interval(one[name]) for name in COMPARED])
        for key, one in differences.items()
    ]
    return _table(heads, rows)


def _number(value: float, *, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''}.3f}".replace("-", "−")


def _interval(one: Mapping[str, float | None]) -> str:
    text = f"{one['mean']:+.3f}"
    if one["low"] is not None:
        text += f" &nbsp; [{one['low']:+.3f}, {one['high']:+.3f}]"
    return text.replace("-", "−")


def _sizes_table(report: Report) -> str:
    """mAP50 and recall of small, medium and large animals."""
    measures, sizes = report.verdict["measures"], report.verdict["sizes"]
    if not measures or not sizes:
        return ""
    rows = []
    for size in sizes:
        upper = "px and more" if size["to"] is None else f"to {size['to']:.0f} px"
        name = f"{size['size']}: {size['from']:.0f} {upper}, {size['boxes']} animals"
        rows.append((name, _pairs(measures, f"_{size['size']}")))
    return (
        "<h2>By size and class</h2><p>mAP50, and recall at the threshold. Sizes are thirds of the test animals, by the "
        f"side of a square as large as their box, in tile pixels.</p>{_table(_heads(measures), rows)}"
    )


def _classes_table(report: Report) -> str:
    measures = report.verdict["measures"]
    if not measures or not report.classes:
        return ""
    rows = [(html.escape(name), _pairs(measures, f":{name}")) for name in report.classes]
    return _table(_heads(measures), rows)


def _heads(measures: Mapping[str, Any]) -> list[str]:
    return [f"{ARM_NAMES[arm]}<br>mAP50 · recall" for arm in measures]


def _pairs(measures: Mapping[str, Mapping[str, float]], ending: str) -> list[str]:
    return [
        f"{_number(one[f'map50{ending}'])} · {_number(one[f'recall{ending}'])}"
        for one in measures.values()
    ]


def _facts_table(report: Report) -> str:
    verdict, pictures = report.verdict, report.verdict["train_pictures"]
    trained_on = f"{pictures['real']} real tiles; with {len(report.synthetic)} synthetic pictures in another arm"
    if report.augmented:
        trained_on += f", with {len(report.augmented)} augmented copies of real tiles in a third"
    if "synthetic" in pictures:
        trained_on += ", and the synthetic pictures alone in the last"
    facts = {
        "trained on": trained_on,
        "weights chosen on": f"{verdict['val_pictures']} real val tiles",
        "tested on": (
            f"{verdict['test_pictures']} real test tiles of {verdict['test_photos']} photos with "
            f"{verdict['test_boxes']} animals, in {verdict['test_groups']} groups"
        ),
        "seeds": ", ".join(str(seed) for seed in verdict["seeds"]),
        "optimizer steps": f"{verdict['max_train_steps']} in every arm",
    }
    return _table((), [(name, [html.escape(value)]) for name, value in facts.items()])


def _settings_tables(report: Report) -> str:
    settings = {f"evaluate.{name}": str(value) for name, value in report.settings.items()}
    return "".join(
        _table((), [(html.escape(name), [html.escape(value)]) for name, value in one.items()])
        for one in (settings, versions())
    )


# --- examples ----------------------------------------------------------------------------------


def _examples(report: Report) -> str:
    sections = [
        strip("Real, in train", "The boxes are the annotations.", report.real),
        strip("Synthetic, in train", "The boxes are the accepted labels.", report.synthetic),
        strip("Augmented, in train", "The boxes moved with the picture.", report.augmented),
    ]
    if report.found and report.test:
        sections.append(
            tested_strip(report.test, {arm: one[0] for arm, one in report.found.items()})
        )
    return "".join(sections)
