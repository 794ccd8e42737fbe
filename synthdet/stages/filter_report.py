"""The filter's picture of itself: three histograms, and a contact sheet from worst to best."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

from synthdet.core.similarity import Calibration

_COLUMNS = 12
MAX_SHOWN = 36
"""Pictures on the sheet, of those kept and of those dropped."""
_THUMB = 120
_GAP = (8, 26)
# Colours that most eyes tell apart. Source: Okabe & Ito, "Color Universal Design", 2008.
_REAL, _SYNTHETIC, _NEGATIVE, _NAMED = "#0072b2", "#e69f00", "#8c8c8c", "#cc79a7"
_DROPPED, _INK = "#c1440e", "#222222"
_SHORT = {
    "far from real": "far",
    "copy of a real photo": "copy",
    "looks like background": "background?",
    "near-duplicate": "twin",
    "unlike its prompt": "prompt?",
    "the model failed on it": "failed",
    "blank": "blank",
    "unreadable": "unreadable",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture on the contact sheet."""

    path: Path
    similarity: float | None
    reason: str | None
    is_background: bool


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What the report shows.

    Attributes:
        kept: Some of the pictures that are kept, worst first.
        num_kept: How many there are.
        dropped: Some of those that are not.
        num_dropped: How many there are.
        similarities: Of all pictures asked for an animal.
        calibration: The thresholds and the real tiles' own similarities.
        quality: The set as a whole against held-out real tiles, in words.
    """

    kept: tuple[Shown, ...]
    num_kept: int
    dropped: tuple[Shown, ...]
    num_dropped: int
    similarities: NDArray[np.float64]
    calibration: Calibration
    quality: str | None


def draw_report(path: Path, facts: ReportFacts) -> None:
    """Draw ``report.png``: the same bytes for the same facts.

    Args:
        path: The PNG to write.
        facts: What it shows.
    """
    sheets = [
        (f"kept, worst to best ({facts.num_kept:,})", facts.kept),
        (f"dropped ({facts.num_dropped:,})", facts.dropped),
    ]
    sheets = [(title, members) for title, members in sheets if members]
    heights = [3.3] + [0.45 + 0.95 * _num_rows(members) for _, members in sheets]
    figure = Figure(figsize=(11, sum(heights)), dpi=110, layout="constrained", facecolor="white")
    axes = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[
        :, 0
    ]
    _draw_histograms(axes[0], facts)
    for axis, (title, members) in zip(axes[1:], sheets, strict=True):
        _draw_sheet(axis, title, members)
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_histograms(axis: Axes, facts: ReportFacts) -> None:
    calibration = facts.calibration
    left_out = calibration.left_out
    real = left_out.similarities if left_out else np.empty(0)
    by = f", each {left_out.by} left out" if left_out else ""
    sets = [
        (
            f"real background tiles (n = {len(calibration.negatives)})",
            calibration.negatives,
            _NEGATIVE,
        ),
        (f"synthetic (n = {len(facts.similarities):,})", facts.similarities, _SYNTHETIC),
        (f"real tiles with an animal{by} (n = {len(real)})", real, _REAL),
    ]
    if len(calibration.named):
        name = f"filter.negatives (n = {len(calibration.named)})"
        sets.insert(1, (name, calibration.named, _NAMED))
    threshold = calibration.limits.animals
    everything = np.concatenate([values for _, values, _ in sets] + [np.array([threshold])])
    # A few pictures of nothing known would squeeze all others into a corner: they go to the first bin.
    shown = threshold if calibration.chosen is None else calibration.chosen.percentile
    lowest = min(float(np.percentile(everything, 2)), shown) - 0.005
    edges = np.linspace(lowest, everything.max() + 0.005, 41).tolist()
    for label, values, colour in sets:
        if len(values):
            values = values.clip(lowest)
            weights = np.full(len(values), 100 / len(values))
            axis.hist(
                values, edges, weights=weights, color=colour, alpha=0.35, histtype="stepfilled"
            )
            axis.hist(values, edges, weights=weights, color=colour, histtype="step", lw=1.2)
        axis.plot([], [], color=colour, lw=5, alpha=0.6, label=label)
    axis.axvline(threshold, color=_INK, ls="--", lw=1.2, label=f"threshold {threshold:.3f}")
    chosen = calibration.chosen
    if chosen is not None and chosen.percentile < threshold:
        label = f"raised from {chosen.percentile:.3f}, the percentile of all real tiles"
        axis.axvline(chosen.percentile, color=_INK, ls=":", lw=1.2, label=label)
    axis.set_xlabel("cosine similarity to the centroid of the real train tiles with an animal")
    axis.set_ylabel("% of each set")
    axis.set_title(_figures(facts), loc="left", fontsize=10, color=_INK, pad=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_ylim(top=1.35 * axis.get_ylim()[1])  # room for the legend
    axis.legend(fontsize=8, loc="upper left", framealpha=1, edgecolor="none")


def _figures(facts: ReportFacts) -> str:
    calibration, parts = facts.calibration, []
    if calibration.real_lost is not None:
        parts.append(f"{calibration.real_lost:.1%} of real tiles with an animal would be lost")
    if calibration.negatives_passing is not None:
        parts.append(f"{calibration.negatives_passing:.1%} of real background tiles would pass")
    if calibration.named_passing is not None:
        parts.append(f"{calibration.named_passing:.1%} of filter.negatives")
    told = " · ".join(parts)
    if facts.quality is None:
        return told
    return "\n".join([told, *textwrap.wrap(facts.quality, 150)])


def _draw_sheet(axis: Axes, title: str, members: Sequence[Shown]) -> None:
    axis.set_axis_off()
    axis.set_anchor("NW")
    axis.set_title(title, loc="left", fontsize=10, color=_INK)
    step_x, step_y = _THUMB + _GAP[0], _THUMB + _GAP[1]
    sheet = np.full((_num_rows(members) * step_y, _COLUMNS * step_x, 3), 255, dtype=np.uint8)
    for number, one in enumerate(members):
        left, top = number % _COLUMNS * step_x, number // _COLUMNS * step_y
        sheet[top : top + _THUMB, left : left + _THUMB] = _thumbnail(one.path)
        axis.text(
            left,
            top + _THUMB + 4,
            _caption(one),
            fontsize=6,
            va="top",
            color=_INK if one.reason is None else _DROPPED,
        )
    axis.imshow(sheet, interpolation="antialiased")


def _caption(one: Shown) -> str:
    figure = "" if one.similarity is None else f"{one.similarity:.3f}"
    kind = "empty" if one.is_background else ""
    reason = _SHORT.get(one.reason, one.reason) if one.reason else ""
    return " ".join(part for part in (figure, reason, kind) if part)


def _num_rows(members: Sequence[Shown]) -> int:
    return max(1, -(-len(members) // _COLUMNS))


def _thumbnail(path: Path) -> NDArray[np.uint8]:
    """The picture on a light square; the square alone where it cannot be read."""
    square = Image.new("RGB", (_THUMB, _THUMB), (238, 238, 238))
    try:
        with Image.open(path) as image:
            image.draft("RGB", (_THUMB, _THUMB))
            small = ImageOps.contain(image.convert("RGB"), square.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return np.asarray(square)
    square.paste(small, ((_THUMB - small.width) // 2, (_THUMB - small.height) // 2))
    return np.asarray(square)
