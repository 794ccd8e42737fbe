"""The filter's picture of itself: three histograms, and a contact sheet from worst to best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageOps

from synthdet.core.records import Decision, Score, SyntheticImage
from synthdet.core.similarity import Calibration

_COLUMNS = 12
_MAX_KEPT = 36
_MAX_DROPPED = 36
_THUMB = 120
_GAP = (8, 26)
# Colours that most eyes tell apart. Source: Okabe & Ito, "Color Universal Design", 2008.
_REAL, _SYNTHETIC, _NEGATIVE, _DROPPED, _INK = "#0072b2", "#e69f00", "#8c8c8c", "#c1440e", "#222222"
_SHORT = {
    "far from real": "far",
    "copy of a real photo": "copy",
    "blank": "blank",
    "unreadable": "unreadable",
}


@dataclass(frozen=True, slots=True)
class _Shown:
    """A picture on the contact sheet."""

    path: Path
    similarity: float | None
    reason: str | None
    is_background: bool


def draw_report(
    path: Path,
    root: Path,
    images: Sequence[SyntheticImage],
    scores: Sequence[Score],
    decisions: Sequence[Decision],
    calibration: Calibration,
) -> None:
    """Draw ``report.png``: the same bytes for the same records.

    Args:
        path: The PNG to write.
        root: The run folder, to which the pictures' paths are relative.
        images: All synthetic pictures.
        scores: Their raw scores, in the same order.
        decisions: What was made of them, in the same order.
        calibration: The thresholds and the real tiles' own similarities.
    """
    shown = [
        _Shown(
            root / image.path,
            score.background_similarity if image.asked_for == () else score.similarity,
            decision.reason,
            image.asked_for == (),
        )
        for image, score, decision in zip(images, scores, decisions, strict=True)
    ]
    shown.sort(key=lambda one: -2.0 if one.similarity is None else one.similarity)
    kept = [one for one in shown if one.reason is None]
    dropped = [one for one in shown if one.reason is not None]
    sheets = [
        (f"kept, worst to best ({len(kept)})", _thin_out(kept, _MAX_KEPT)),
        (f"dropped ({len(dropped)})", _thin_out(dropped, _MAX_DROPPED)),
    ]
    sheets = [(title, members) for title, members in sheets if members]
    heights = [3.3] + [0.45 + 0.95 * _num_rows(members) for _, members in sheets]
    figure = Figure(figsize=(11, sum(heights)), dpi=130, layout="constrained", facecolor="white")
    axes = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[
        :, 0
    ]
    _draw_histograms(axes[0], shown, calibration)
    for axis, (title, members) in zip(axes[1:], sheets, strict=True):
        _draw_sheet(axis, title, members)
    figure.savefig(path, format="png", metadata={"Software": None})


def _draw_histograms(axis: Axes, shown: Sequence[_Shown], calibration: Calibration) -> None:
    asked = [
        one.similarity for one in shown if not one.is_background and one.similarity is not None
    ]
    left_out = calibration.left_out
    real = left_out.similarities if left_out else np.empty(0)
    by = f", each {left_out.by} left out" if left_out else ""
    sets = [
        (
            f"real background tiles (n = {len(calibration.negatives)})",
            calibration.negatives,
            _NEGATIVE,
        ),
        (f"synthetic (n = {len(asked)})", np.array(asked), _SYNTHETIC),
        (f"real tiles with an animal{by} (n = {len(real)})", real, _REAL),
    ]
    threshold = calibration.limits.animals
    everything = np.concatenate([values for _, values, _ in sets] + [np.array([threshold])])
    # A few pictures of nothing known would squeeze all others into a corner: they go to the first bin.
    lowest = min(float(np.percentile(everything, 2)), threshold) - 0.005
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
    axis.set_xlabel("cosine similarity to the centroid of the real train tiles with an animal")
    axis.set_ylabel("% of each set")
    axis.set_title(_figures(calibration), loc="left", fontsize=10, color=_INK, pad=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_ylim(top=1.35 * axis.get_ylim()[1])  # room for the legend
    axis.legend(frameon=False, fontsize=8, loc="upper left")


def _figures(calibration: Calibration) -> str:
    parts = []
    if calibration.real_lost is not None:
        parts.append(f"{calibration.real_lost:.1%} of real tiles with an animal would be lost")
    if calibration.negatives_passing is not None:
        parts.append(f"{calibration.negatives_passing:.1%} of real background tiles would pass")
    return " · ".join(parts)


def _draw_sheet(axis: Axes, title: str, members: Sequence[_Shown]) -> None:
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


def _caption(one: _Shown) -> str:
    figure = "" if one.similarity is None else f"{one.similarity:.3f}"
    kind = "empty" if one.is_background else ""
    reason = _SHORT.get(one.reason, one.reason) if one.reason else ""
    return " ".join(part for part in (figure, reason, kind) if part)


def _thin_out(members: Sequence[_Shown], most: int) -> list[_Shown]:
    """At most so many, the first, the last, and evenly between."""
    if len(members) <= most:
        return list(members)
    return [members[index] for index in np.linspace(0, len(members) - 1, most).round().astype(int)]


def _num_rows(members: Sequence[_Shown]) -> int:
    return max(1, -(-len(members) // _COLUMNS))


def _thumbnail(path: Path) -> NDArray[np.uint8]:
    """The picture on a light square; the square alone where it cannot be read."""
    square = Image.new("RGB", (_THUMB, _THUMB), (238, 238, 238))
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * _THUMB, 2 * _THUMB))
            small = ImageOps.contain(image.convert("RGB"), square.size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return np.asarray(square)
    square.paste(small, ((_THUMB - small.width) // 2, (_THUMB - small.height) // 2))
    return np.asarray(square)
