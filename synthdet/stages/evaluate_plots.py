"""The figures of `evaluate`'s report, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from synthdet.core.comparison import Curve, OperatingPoint

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
MEASURE_NAMES = {
    "map50": "mAP50",
    "map50_95": "mAP50–95",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "confidence": "confidence threshold",
    "count_bias": "counted too many a photo (too few: −)",
    "count_error": "error of the count a photo",
    "false_alarms_per_empty_photo": "false alarms an empty photo",
    "false_alarms_per_empty_tile": "false alarms an empty tile",
}
"""Measure -> how it is called; the report's table has them in this order."""
Values = Mapping[tuple[str, int], Mapping[str, float]]
Differences = Mapping[str, Mapping[str, Mapping[str, float | None]]]


def plot_verdict(values: Values, differences: Differences) -> bytes:
    """Every seed of every arm, and beside it the differences that were worked out."""
    figure, grid = _figure(9.6, 3.4 if len(differences) < 2 else 4.2, columns=5)
    _plot_values(figure.add_subplot(grid[:3] if differences else grid[:]), values)
    if differences:
        _plot_differences(figure.add_subplot(grid[3:]), differences)
    return _png(figure)


def _plot_values(axes: Any, values: Values) -> None:
    """A dot a seed; a line joins the arms of a seed, a bar marks the mean of an arm."""
    measures = ("map50", "map50_95", "f1")
    arms = list(dict.fromkeys(arm for arm, _seed in values))
    seeds = list(dict.fromkeys(seed for _arm, seed in values))
    apart = {1: 0.36, 2: 0.36, 3: 0.28}.get(len(arms), 0.22)
    for column, measure in enumerate(measures):
        places = [column + apart * (i - (len(arms) - 1) / 2) for i in range(len(arms))]
        for seed in seeds:
            row = [values[arm, seed][measure] for arm in arms]
            axes.plot(places, row, color="#b5b5b5", linewidth=1, zorder=1)
        for place, arm in zip(places, arms, strict=True):
            own = [values[arm, seed][measure] for seed in seeds]
            label = ARM_NAMES[arm] if column == 0 else None
            colour = ARM_COLOURS[arm]
            axes.scatter([place] * len(own), own, color=colour, s=28, zorder=3, label=label)
            mean = float(np.mean(own))
            axes.hlines(mean, place - 0.1, place + 0.1, color=colour, linewidth=2.5, zorder=2)
    axes.set_xticks(range(len(measures)), [MEASURE_NAMES[name] for name in measures])
    axes.set_xlim(-0.5, len(measures) - 0.5)
    rows = 1 if len(arms) < 4 else 2
    axes.set_ylim(0, min(1.0 + 0.12 * rows, max(0.1, axes.get_ylim()[1] * (1.05 + 0.1 * rows))))
    _title(axes, "On the real test pictures: a dot a seed, a bar the mean")
    axes.legend(frameon=False, fontsize=9, loc="upper right", ncols=-(-len(arms) // rows))
    _tidy(axes)


def _plot_differences(axes: Any, differences: Differences) -> None:
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
    _title(axes, "Difference, with its 95 % interval")
    axes.set_xlabel("← loss      gain →", fontsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)


def plot_curves(
    curves: Mapping[str, Sequence[Curve]], points: Mapping[str, Sequence[OperatingPoint]]
) -> bytes:
    """Precision against recall at IoU 0.5: a line a seed, a dot where its threshold stands."""
    figure, grid = _figure(9.6, 4.0, columns=1)
    axes = figure.add_subplot(grid[:])
    for arm, lines in curves.items():
        for number, curve in enumerate(lines):
            axes.plot(curve.recall, curve.precision, color=ARM_COLOURS[arm], linewidth=1.2,
                      alpha=0.8, label=ARM_NAMES[arm] if number == 0 else None)  # fmt: skip
        axes.scatter([one.recall for one in points[arm]], [one.precision for one in points[arm]],
                     color=ARM_COLOURS[arm], edgecolor="white", s=42, zorder=3)  # fmt: skip
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall: share of the animals that are found", fontsize=9)
    axes.set_ylabel("precision: share of the boxes that are right", fontsize=9)
    _title(axes, "Precision and recall: a line a seed, a dot its threshold from val")
    _tidy(axes)
    axes.legend(frameon=False, fontsize=10, loc="best")
    return _png(figure)


def plot_sweeps(sweeps: Mapping[str, Any], with_synthetic: float | None) -> bytes:
    """Draw mAP by number of pictures, with the interval of each point.

    Args:
        sweeps: As ``verdict.json`` has them.
        with_synthetic: mAP50 of all real photos with all synthetic pictures, a mark to hold the curve
            of real photos against.
    """
    figure, grid = _figure(9.6, 3.6, columns=max(2, len(sweeps)))
    for column, (name, sweep) in enumerate(sweeps.items()):
        axes = figure.add_subplot(grid[column])
        numbers = [point["number"] for point in sweep["points"]]
        for measure, colour in (("map50", "#333333"), ("map50_95", "#7f7f7f")):
            _plot_level(axes, numbers, [point[measure] for point in sweep["points"]], colour,
                        MEASURE_NAMES[measure])  # fmt: skip
        if name == "real" and with_synthetic is not None:
            axes.axhline(with_synthetic, color=ARM_COLOURS["real_plus_synthetic"], linestyle="--",
                         linewidth=1.2, label="mAP50 of all, + synthetic")  # fmt: skip
        axes.set_xticks(numbers)
        axes.set_ylim(0, 1)
        axes.set_xlabel(
            "synthetic pictures beside the real ones" if name == "synthetic" else "real photos",
            fontsize=9,
        )
        _title(axes, "How many synthetic pictures?" if name == "synthetic" else "How many photos?")
        axes.legend(frameon=False, fontsize=9, loc="lower right")
        _tidy(axes)
    return _png(figure)


def _plot_level(
    axes: Any, numbers: Sequence[int], levels: Sequence[Mapping[str, Any]], colour: str, label: str
) -> None:
    axes.plot(numbers, [one["mean"] for one in levels], color=colour, marker="o", label=label)
    bounded = [
        (number, one["low"], one["high"])
        for number, one in zip(numbers, levels, strict=True)
        if one["low"] is not None
    ]
    if bounded:
        places, lows, highs = zip(*bounded, strict=True)
        axes.fill_between(places, np.clip(lows, 0, 1), np.clip(highs, 0, 1), color=colour,
                          alpha=0.12, linewidth=0)  # fmt: skip


def _figure(width: float, height: float, *, columns: int) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_gridspec(1, columns)


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, fontsize=10, loc="left")


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_axisbelow(True)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
