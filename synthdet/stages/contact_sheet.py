"""The whole run on one page: real tiles, the base model, the LoRA, what was kept, doubted and dropped.

Reads:
    The records and pictures of ``1-prepare`` to ``5-label``.

Writes:
    ``contact-sheet.png`` in the run folder. Nothing reads it; it is drawn anew whenever it is asked for.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageOps

from synthdet.core.records import (
    XYXY,
    Decision,
    Label,
    Score,
    SyntheticImage,
    Tile,
)
from synthdet.workspace import Workspace, read_records, write_bytes

_T = TypeVar("_T")

NAME = "contact-sheet.png"
_COLUMNS = 10
_THUMB = 160
_GAP = 10
_WRAPPED = 24
"""Characters of a line under a picture."""
_INK, _ACCEPTED, _DOUBTED, _DROPPED = "#222222", "#f0e442", "#e69f00", "#c1440e"
"""Colours that most eyes tell apart, and from water. Source: Okabe & Ito, "Color Universal Design", 2008."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One picture: what is drawn on it, and what is written under it."""

    picture: Image.Image
    boxes: Sequence[XYXY] = ()
    text: str = ""
    colour: str = _ACCEPTED


@dataclass(frozen=True, slots=True)
class Strip:
    """A row of pictures under a title."""

    title: str
    cells: list[Cell]


def draw(workspace: Workspace) -> Path:
    """Draw the sheet: the same bytes for the same run.

    Returns:
        The file. Strips without a picture are left out, so a run that brought its own pictures, or
        lost them all, has a sheet too.
    """
    shown = [strip for strip in strips(workspace) if strip.cells]
    inches = [1.36 if any(cell.text for cell in strip.cells) else 1.22 for strip in shown]
    figure = Figure(figsize=(10.4, sum(inches)), dpi=150, facecolor="white", layout="constrained")
    axes = figure.subplots(
        len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": inches}
    )[:, 0]  # fmt: skip
    for axis, strip in zip(axes, shown, strict=True):
        _draw_strip(axis, strip)
    drawn, path = io.BytesIO(), workspace.root / NAME
    figure.savefig(drawn, format="png", metadata={"Software": None})
    if not path.exists() or path.read_bytes() != drawn.getvalue():
        write_bytes(path, drawn.getvalue())
    return path


# --- what is shown -----------------------------------------------------------------------------


def strips(workspace: Workspace) -> Iterator[Strip]:
    """The strips in order, each with a title and at most `_COLUMNS` cells; some may be empty."""
    root = workspace.root
    tiles = read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)
    real = [tile for tile in tiles if tile.split == "train" and tile.boxes]
    yield Strip(
        f"real: {len(real)} tiles with animals to learn from",
        [Cell(_open(root / one.path), [box.xyxy for box in one.boxes]) for one in _spread(real)],
    )
    samples = [
        _open(path) for path in sorted((workspace.stage("finetune").path / "samples").glob("*.png"))
    ]
    halves = [(one.width // 2, one) for one in samples[:_COLUMNS]]
    yield Strip(
        "the base model, asked for them",
        [Cell(one.crop((0, 0, half, one.height))) for half, one in halves],
    )
    yield Strip(
        "the same words and noise with the LoRA",
        [Cell(one.crop((one.width - half, 0, one.width, one.height))) for half, one in halves],
    )
    yield from _synthetic_strips(workspace)


def _synthetic_strips(workspace: Workspace) -> Iterator[Strip]:
    chosen, labelled = workspace.stage("filter").path, workspace.stage("label").path
    records = read_records(workspace.stage("generate").path / "images.jsonl", SyntheticImage)
    images = {one.image_id: workspace.root / one.path for one in records}
    backgrounds = {one.image_id for one in records if one.asked_for == ()}
    labels = read_records(labelled / "labels.jsonl", Label)

    def cell(label: Label, text: str, colour: str) -> Cell:
        picture = _open(images[label.image_id])
        return Cell(picture, [box.xyxy for box in label.boxes], text, colour)

    accepted = [one for one in labels if one.status == "accept"]
    yield Strip(
        f"kept, and labelled without a doubt ({len(accepted)})",
        [cell(one, "", _ACCEPTED) for one in _spread(accepted)],
    )
    review = [one for one in labels if one.status == "review"]
    yield Strip(
        f"kept, for a person to look at ({len(review)})",
        [cell(one, one.reason or "", _DOUBTED) for one in _spread(review)],
    )
    empty = [one for one in labels if one.status == "negative"]
    yield Strip(
        f"kept, and confirmed empty ({len(empty)})",
        [cell(one, "", _ACCEPTED) for one in _spread(empty)],
    )
    similarities = {
        one.image_id: one.background_similarity if one.image_id in backgrounds else one.similarity
        for one in read_records(chosen / "scores.jsonl", Score)
    }
    decisions = read_records(chosen / "decisions.jsonl", Decision)
    dropped = [one for one in decisions if not one.kept]
    dropped.sort(key=lambda one: similarities[one.image_id] or -1.0)
    yield Strip(
        f"dropped by the filter ({len(dropped)})",
        [
            Cell(
                _open(images[one.image_id]),
                text=_reason(one, similarities[one.image_id]),
                colour=_DROPPED,
            )
            for one in _spread(dropped)
        ],
    )


def _reason(decision: Decision, similarity: float | None) -> str:
    return f"{decision.reason}" if similarity is None else f"{decision.reason} ({similarity:.2f})"


def _spread(members: Sequence[_T]) -> list[_T]:
    """As many as a strip holds, evenly over all."""
    if len(members) <= _COLUMNS:
        return list(members)
    return [members[i] for i in np.linspace(0, len(members) - 1, _COLUMNS).round().astype(int)]


def _open(path: Path) -> Image.Image:
    """The picture; a grey square where it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return Image.new("RGB", (_THUMB, _THUMB), (238, 238, 238))


# --- drawing -----------------------------------------------------------------------------------


def _draw_strip(axis: Axes, strip: Strip) -> None:
    axis.set_axis_off()
    axis.set_anchor("NW")
    axis.set_title(strip.title, loc="left", fontsize=9, color=_INK, pad=3)
    step = _THUMB + _GAP
    sheet = np.full((_THUMB, _COLUMNS * step - _GAP, 3), 255, dtype=np.uint8)
    for column, cell in enumerate(strip.cells):
        thumb, scale, left, top = _fit(cell.picture)
        left += column * step
        sheet[top : top + thumb.shape[0], left : left + thumb.shape[1]] = thumb
        for x1, y1, x2, y2 in cell.boxes:
            corner = (left + scale * x1, top + scale * y1)
            axis.add_patch(
                Rectangle(corner, scale * (x2 - x1), scale * (y2 - y1),
                          fill=False, lw=1.1, edgecolor=cell.colour)
            )  # fmt: skip
        axis.text(
            column * step, _THUMB + 5, fill(cell.text, _WRAPPED), fontsize=5.5, va="top",
            color=_DROPPED if cell.colour == _DROPPED else _INK,
        )  # fmt: skip
    axis.imshow(sheet, interpolation="antialiased")


def _fit(picture: Image.Image) -> tuple[NDArray[np.uint8], float, int, int]:
    """The picture fitted into a cell: pixels, scale, and its left top corner in the cell."""
    small = ImageOps.contain(picture, (_THUMB, _THUMB), Image.Resampling.BICUBIC)
    left, top = (_THUMB - small.width) // 2, (_THUMB - small.height) // 2
    return np.asarray(small), small.width / picture.width, left, top
