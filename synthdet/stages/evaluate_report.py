"""``7-evaluate/report.html``: the verdict to look at. One file, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from synthdet.core.records import XYXY, Box, DetectedBox
from synthdet.workspace import write_text

NUM_EXAMPLES = 6
EXAMPLE_HEIGHT = 240
"""Of an example picture on the page, in pixels."""

ARM_NAMES = {
    "real": "real photos alone",
    "real_plus_augmented": "real + augmented",
    "real_plus_synthetic": "real + synthetic",
    "synthetic": "synthetic alone",
}
ARM_COLOURS = {
    "real": "#0072b2",
    "real_plus_augmented": "#009e73",
    "real_plus_synthetic": "#d55e00",
    "synthetic": "#cc79a7",
}
"""Okabe and Ito's blue, green, vermilion and purple: told apart by colour-blind readers too."""
DIFFERENCE_NAMES = {
    "differences": ("synthetic − real", ARM_COLOURS["real_plus_synthetic"]),
    "augmented_differences": ("augmented − real", ARM_COLOURS["real_plus_augmented"]),
    "synthetic_over_augmented": ("synthetic − augmented", "#333333"),
    "synthetic_alone_differences": ("synthetic alone − real", ARM_COLOURS["synthetic"]),
}
"""Key in ``verdict.json`` -> how a difference is called and coloured."""
TRUTH_COLOUR = "#ffffff"
MEASURE_NAMES = {
    "map50": "mAP50",
    "map50_95": "mAP50–95",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "confidence": "confidence threshold",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What the page shows.

    Attributes:
        verdict: What ``verdict.json`` holds.
        values: Measures of every arm and seed.
        real: Real train pictures with their boxes.
        synthetic: Synthetic train pictures with theirs.
        augmented: Augmented train pictures with theirs; empty where that arm was not trained.
        test: Real test pictures with theirs.
        found: For each arm the boxes that the first seed's detector draws in each test picture.
        settings: Of the evaluation.
    """

    verdict: Mapping[str, Any]
    values: Mapping[tuple[str, int], Mapping[str, float]]
    real: Sequence[tuple[Path, Sequence[Box]]]
    synthetic: Sequence[tuple[Path, Sequence[Box]]]
    augmented: Sequence[tuple[Path, Sequence[Box]]]
    test: Sequence[tuple[Path, Sequence[Box]]]
    found: Mapping[str, Sequence[Sequence[DetectedBox]]]
    settings: Mapping[str, Any]


def write_report(path: Path, report: Report) -> None:
    """Write the page."""
    verdict = report.verdict
    page = _PAGE.substitute(
        kind=html.escape(verdict["verdict"]),
        kind_class=verdict["verdict"].replace(" ", "-"),
        sentence=html.escape(verdict["sentence"]),
        plot=_plot_tag(report) if report.values else "",
        measures=_measures_table(report),
        facts=_facts_table(report),
        examples=_examples(report),
    )
    write_text(path, page)


# --- figures -----------------------------------------------------------------------------------


def _plot_tag(report: Report) -> str:
    differences = _differences(report)
    tall = 3.4 if len(differences) < 2 else 4.2
    figure = Figure(figsize=(9.6, tall), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(1, 5)
    _plot_values(figure.add_subplot(grid[:3] if differences else grid[:]), report)
    if differences:
        _plot_differences(figure.add_subplot(grid[3:]), differences)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    described = html.escape(f"Plot: {report.verdict['sentence']}")
    return f'<img class="plot" alt="{described}" src="{_data_uri(buffer.getvalue(), "png")}">'


def _differences(report: Report) -> dict[str, Mapping[str, Mapping[str, float | None]]]:
    """The differences that were worked out, by key."""
    return {key: report.verdict[key] for key in DIFFERENCE_NAMES if report.verdict.get(key)}


def _plot_values(axes: Any, report: Report) -> None:
    """A dot a seed; a line joins the arms of a seed, a bar marks the mean of an arm."""
    measures = ("map50", "map50_95", "f1")
    arms = list(dict.fromkeys(arm for arm, _seed in report.values))
    seeds = list(dict.fromkeys(seed for _arm, seed in report.values))
    apart = 0.36 if len(arms) < 3 else 0.28
    for column, measure in enumerate(measures):
        places = [column + apart * (i - (len(arms) - 1) / 2) for i in range(len(arms))]
        for seed in seeds:
            values = [report.values[arm, seed][measure] for arm in arms]
            axes.plot(places, values, color="#b5b5b5", linewidth=1, zorder=1)
        for place, arm in zip(places, arms, strict=True):
            values = [report.values[arm, seed][measure] for seed in seeds]
            label = ARM_NAMES[arm] if column == 0 else None
            colour = ARM_COLOURS[arm]
            axes.scatter([place] * len(values), values, color=colour, s=28, zorder=3, label=label)
            mean = float(np.mean(values))
            axes.hlines(mean, place - 0.1, place + 0.1, color=colour, linewidth=2.5, zorder=2)
    axes.set_xticks(range(len(measures)), [MEASURE_NAMES[name] for name in measures])
    axes.set_xlim(-0.5, len(measures) - 0.5)
    axes.set_ylim(0, min(1.02, max(0.1, axes.get_ylim()[1] * 1.15)))
    axes.set_title(
        "On the real test pictures: a dot a seed, a bar the mean", fontsize=10, loc="left"
    )
    axes.legend(frameon=False, fontsize=9, loc="upper right", ncols=len(arms))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)


def _plot_differences(
    axes: Any, differences: Mapping[str, Mapping[str, Mapping[str, float | None]]]
) -> None:
    """The mean paired differences of each measure with their intervals; 0 is no difference."""
    rows = [
        (measure, key, one)
        for measure in reversed(["map50", "map50_95"])
        for key in reversed(list(differences))
        for one in [differences[key][measure]]
    ]
    for row, (measure, key, one) in enumerate(rows):
        name, colour = DIFFERENCE_NAMES[key]
        colour = colour if len(differences) > 1 else "#333333"
        shown = MEASURE_NAMES[measure] + (f"\n{name}" if len(differences) > 1 else "")
        if one["low"] is not None and one["high"] is not None:
            axes.hlines(row, one["low"], one["high"], color=colour, linewidth=2)
        axes.scatter([one["mean"]], [row], color=colour, s=45, zorder=3)
        axes.annotate(f"{one['mean']:+.3f}", (one["mean"] or 0, row), xytext=(0, 8),
                      textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
        axes.text(-0.03, row, shown, transform=axes.get_yaxis_transform(),
                  ha="right", va="center", fontsize=10 if len(differences) == 1 else 8)  # fmt: skip
    axes.axvline(0, color="#888888", linewidth=1, linestyle="--", zorder=0)
    reach = max(abs(value) for value in (*axes.get_xlim(), 0.05))
    axes.set_xlim(-reach * 1.1, reach * 1.1)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_yticks([])
    axes.set_title("Difference, with its 95 % interval", fontsize=10, loc="left")
    axes.set_xlabel("← loss      gain →", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


# --- tables ------------------------------------------------------------------------------------


def _measures_table(report: Report) -> str:
    measures, differences = report.verdict["measures"], _differences(report)
    if not measures:
        return ""
    heads = "".join(f"<th>{ARM_NAMES[arm]}</th>" for arm in measures)
    rows = []
    for name, shown in MEASURE_NAMES.items():
        cells = "".join(f"<td>{values[name]:.3f}</td>" for values in measures.values())
        cells += "".join(f"<td>{_interval(one.get(name))}</td>" for one in differences.values())
        rows.append(f"<tr><th>{shown}</th>{cells}</tr>")
    heads += "".join(f"<th>{DIFFERENCE_NAMES[key][0]}, 95 % interval</th>" for key in differences)
    return f"<table><tr><th></th>{heads}</tr>{''.join(rows)}</table>"


def _interval(one: Mapping[str, float | None] | None) -> str:
    if one is None:
        return ""
    mean = f"{one['mean']:+.3f}"
    if one["low"] is None:
        return mean
    return f"{mean} &nbsp; [{one['low']:+.3f}, {one['high']:+.3f}]"


def _facts_table(report: Report) -> str:
    verdict, pictures = report.verdict, report.verdict["train_pictures"]
    synthetic = pictures["real_plus_synthetic"] - pictures["real"]
    trained_on = (
        f"{pictures['real']} real tiles; with {synthetic} synthetic pictures in another arm"
    )
    if report.augmented:
        trained_on += f", with {len(report.augmented)} augmented copies of real tiles in a third"
    if "synthetic" in pictures:
        trained_on += ", and the synthetic pictures alone in the last"
    facts = {
        "trained on": trained_on,
        "best weights chosen on": f"{verdict['val_pictures']} real val tiles",
        "tested on": (
            f"{verdict['test_pictures']} real test tiles with {verdict['test_boxes']} animals, "
            f"in {verdict['test_groups']} groups"
        ),
        "seeds": ", ".join(str(seed) for seed in verdict["seeds"]),
        "optimizer steps": f"{verdict['max_train_steps']} in every arm",
        "detector": str(report.settings["detector"]),
        "batch size, learning rate": (
            f"{report.settings['train_batch_size']}, {report.settings['learning_rate']}"
        ),
    }
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
        for name, value in facts.items()
    )
    return f"<table>{rows}</table>"


# --- examples ----------------------------------------------------------------------------------


def _examples(report: Report) -> str:
    sections = [
        _strip("Real, in train", "The boxes are the annotations.", report.real),
        _strip("Synthetic, in train", "The boxes are the accepted labels.", report.synthetic),
        _strip("Augmented, in train", "The boxes moved with the picture.", report.augmented),
    ]
    if report.found and report.test:
        sections.append(_test_strip(report))
    return "".join(sections)


def _spread(number: int) -> list[int]:
    """Positions of the examples: evenly spread, so the same ones every time."""
    return sorted(set(np.linspace(0, number - 1, min(number, NUM_EXAMPLES)).round().astype(int)))


def _strip(title: str, text: str, pictures: Sequence[tuple[Path, Sequence[Box]]]) -> str:
    if not pictures:
        return ""
    shown = [pictures[i] for i in _spread(len(pictures))]
    figures = "".join(
        _figure(path, [(box.xyxy, TRUTH_COLOUR) for box in boxes]) for path, boxes in shown
    )
    return f'<h2>{title}</h2><p>{text}</p><div class="strip">{figures}</div>'


def _test_strip(report: Report) -> str:
    """Test pictures with an animal first: what is there, and what each arm's detector finds."""
    with_boxes = [i for i, (_path, boxes) in enumerate(report.test) if boxes]
    chosen = [with_boxes[i] for i in _spread(len(with_boxes))] if with_boxes else []
    figures = []
    for index in chosen:
        path, boxes = report.test[index]
        coloured = [(box.xyxy, TRUTH_COLOUR) for box in boxes]
        for arm, found in report.found.items():
            coloured += [(box.xyxy, ARM_COLOURS[arm]) for box in found[index]]
        figures.append(_figure(path, coloured))
    keys = [("white", "annotated", "#555")]
    keys += [("", ARM_NAMES[arm], ARM_COLOURS[arm]) for arm in report.found]
    legend = " · ".join(
        f'<span style="color:{colour}">■</span> {f"{first}: " if first else ""}{name}'
        for first, name, colour in keys
    )
    return (
        f"<h2>Real, in test</h2><p>What the first seed's detectors draw: {legend}.</p>"
        f'<div class="strip">{"".join(figures)}</div>'
    )


def _figure(path: Path, boxes: Sequence[tuple[XYXY, str]]) -> str:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        return ""
    scale = EXAMPLE_HEIGHT / picture.shape[0]
    size = round(picture.shape[1] * scale), EXAMPLE_HEIGHT
    drawn: NDArray[np.uint8] = cv2.resize(
        picture, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    )
    for xyxy, colour in boxes:
        x1, y1, x2, y2 = (round(value * scale) for value in xyxy)
        blue, green, red = (int(colour[i : i + 2], 16) for i in (5, 3, 1))
        cv2.rectangle(drawn, (x1, y1), (x2, y2), (blue, green, red), 2, cv2.LINE_AA)
    content = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    name = html.escape(path.stem)
    return (
        f'<figure><img alt="{name}" src="{_data_uri(content, "jpeg")}">'
        f"<figcaption>{name}</figcaption></figure>"
    )


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>synthdet: did the synthetic pictures help?</title>
<style>
body { font: 16px/1.55 system-ui, sans-serif; color: #1c2733; background: #f6f8fa; margin: 0; }
main { max-width: 980px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 15px; font-weight: 600; color: #5b6b7a; margin: 0 0 12px; }
h2 { font-size: 20px; margin: 40px 0 4px; }
p { margin: 4px 0 12px; }
.verdict { background: #fff; border-left: 8px solid #7b8794; border-radius: 6px; padding: 20px 24px;
  font-size: 21px; line-height: 1.45; box-shadow: 0 1px 3px #0002; }
.verdict.gain { border-color: #1a7f4b; }
.verdict.loss { border-color: #c0392b; }
.plot { width: 100%; box-sizing: border-box; padding: 14px; background: #fff; border-radius: 6px; margin: 24px 0 0;
  box-shadow: 0 1px 3px #0002; }
table { border-collapse: collapse; background: #fff; width: 100%; font-size: 15px; border-radius: 6px;
  box-shadow: 0 1px 3px #0002; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 14px; border-bottom: 1px solid #e8ecf0; font-weight: 400; }
th { color: #5b6b7a; }
tr:last-child > * { border-bottom: 0; }
.strip { display: flex; flex-wrap: wrap; gap: 12px; }
figure { margin: 0; }
figure img { height: 144px; border-radius: 4px; display: block; }
figcaption { font-size: 11px; color: #5b6b7a; max-width: 144px; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
</style>
</head>
<body><main>
<h1>Did the synthetic pictures help? — synthdet evaluate</h1>
<div class="verdict $kind_class" data-verdict="$kind">$sentence</div>
$plot
<h2>Measures</h2>
<p>Means over the seeds, on real test pictures alone. mAP is COCO's; precision, recall and F1 are at the confidence
that was best on the real val pictures. The interval allows for other seeds and for other groups of test photos.</p>
$measures
<h2>What was compared</h2>
$facts
$examples
</main></body>
</html>
""")
