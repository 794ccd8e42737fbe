"""The pictures of `evaluate`'s report: examples with boxes, and the worst that the detectors got wrong."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from synthdet.core.boxes import area
from synthdet.core.comparison import pairwise_iou
from synthdet.core.measures import find_failures
from synthdet.core.records import XYXY, Box, DetectedBox
from synthdet.stages.evaluate_plots import ARM_COLOURS, ARM_NAMES

NUM_EXAMPLES = 6
NUM_FAILURES = 6
EXAMPLE_HEIGHT = 240
"""Of an example picture on the page, in pixels."""
CROP_SIDES = 3.0
"""A crop of a failure is so many times as long as its box: what it lies in has to be seen."""
MIN_CROP = 48
TRUTH_COLOUR = "#ffffff"
MISS_COLOUR = "#f0e442"
Pictures = Sequence[tuple[Path, Sequence[Box]]]


def data_uri(content: bytes, kind: str) -> str:
    """An image inside the page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


# --- examples ----------------------------------------------------------------------------------


def strip(title: str, text: str, pictures: Pictures) -> str:
    """Some of the pictures with their true boxes; nothing where there is none."""
    if not pictures:
        return ""
    shown = [pictures[i] for i in _spread(len(pictures))]
    figures = "".join(
        _figure(path, [(box.xyxy, TRUTH_COLOUR) for box in boxes]) for path, boxes in shown
    )
    return f'<h2>{title}</h2><p>{text}</p><div class="strip">{figures}</div>'


def tested_strip(test: Pictures, found: Mapping[str, Sequence[Sequence[DetectedBox]]]) -> str:
    """Test pictures with an animal: what is there, and what each arm's first detector draws."""
    with_boxes = [i for i, (_path, boxes) in enumerate(test) if boxes]
    figures = []
    for index in (with_boxes[i] for i in _spread(len(with_boxes))):
        path, boxes = test[index]
        coloured = [(box.xyxy, TRUTH_COLOUR) for box in boxes]
        for arm, drawn in found.items():
            coloured += [(box.xyxy, ARM_COLOURS[arm]) for box in drawn[index]]
        figures.append(_figure(path, coloured))
    keys = [("white", "annotated", "#555")]
    keys += [("", ARM_NAMES[arm], ARM_COLOURS[arm]) for arm in found]
    legend = " · ".join(
        f'<span style="color:{colour}">■</span> {f"{first}: " if first else ""}{name}'
        for first, name, colour in keys
    )
    return (
        f"<h2>Real, in test</h2><p>What the first seed's detectors draw: {legend}.</p>"
        f'<div class="strip">{"".join(figures)}</div>'
    )


def _spread(number: int) -> list[int]:
    """Positions of the examples: evenly spread, so the same ones every time."""
    if number == 0:
        return []
    return sorted(set(np.linspace(0, number - 1, min(number, NUM_EXAMPLES)).round().astype(int)))


# --- failures ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failure:
    """An animal that is missed, or a box where there is none.

    Attributes:
        picture: Index of the test picture.
        xyxy: Pixels of that picture.
        num_seeds: How many seeds' detectors get it wrong.
        confidence: Of the surest of these boxes; None for a miss.
        why: What the box has to do with an animal there, as `_why_wrong` says; empty for nothing.
    """

    picture: int
    xyxy: XYXY
    num_seeds: int
    confidence: float | None = None
    why: str = ""


def worst_failures(
    truths: Sequence[Sequence[Box]], found: Sequence[Sequence[Sequence[DetectedBox]]]
) -> tuple[list[Failure], list[Failure]]:
    """The largest animals missed by most seeds, and the surest false alarms.

    Args:
        truths: True boxes of each test picture.
        found: For each seed, the boxes from its threshold on in each picture.

    Returns:
        Misses and alarms, the worst first. Alarms of several seeds at one place (IoU 0.5) are one.
    """
    misses: list[Failure] = []
    alarms: list[Failure] = []
    for index, truth in enumerate(truths):
        wrong = [find_failures(truth, seed[index], 0.0) for seed in found]
        for box in truth:
            num = sum(box in one.missed for one in wrong)
            if num:
                misses.append(Failure(index, box.xyxy, num))
        alarms += _joined(index, truth, [one.alarms for one in wrong])
    misses.sort(key=lambda one: (-one.num_seeds, -area(one.xyxy)))
    alarms.sort(key=lambda one: -(one.confidence or 0))
    return misses[:NUM_FAILURES], alarms[:NUM_FAILURES]


def _joined(
    picture: int, truth: Sequence[Box], alarms: Sequence[Sequence[DetectedBox]]
) -> Iterator[Failure]:
    """One failure for each place, by its surest box."""
    left = [(seed, box) for seed, boxes in enumerate(alarms) for box in boxes]
    left.sort(key=lambda one: -one[1].confidence)
    while left:
        surest = left[0][1]
        overlaps = pairwise_iou([surest.xyxy], [box.xyxy for _seed, box in left])[0]
        overlaps[0] = 1.0  # itself, even without area
        here = {seed for (seed, _box), iou in zip(left, overlaps, strict=True) if iou >= 0.5}
        why = _why_wrong(surest, truth)
        yield Failure(picture, surest.xyxy, len(here), surest.confidence, why)
        left = [one for one, iou in zip(left, overlaps, strict=True) if iou < 0.5]


def _why_wrong(alarm: DetectedBox, truth: Sequence[Box]) -> str:
    """``loose`` on an animal, the ``second box`` of one, or around one of ``another class``."""
    overlaps = pairwise_iou([alarm.xyxy], [box.xyxy for box in truth])[0]
    if not (overlaps > 0).any():
        return ""
    nearest = int(overlaps.argmax())
    if overlaps[nearest] < 0.5:
        return "loose"
    return "second box" if truth[nearest].class_id == alarm.class_id else "another class"


def failures_section(
    test: Pictures, found: Mapping[str, Sequence[Sequence[Sequence[DetectedBox]]]]
) -> str:
    """Crops of the worst misses and false alarms of every arm; nothing where nothing is wrong."""
    parts = []
    for arm, by_seed in found.items():
        misses, alarms = worst_failures([boxes for _path, boxes in test], by_seed)
        for title, failures in (("missed", misses), ("false alarms", alarms)):
            if failures:
                figures = "".join(_crop_figure(test, one, arm, len(by_seed)) for one in failures)
                parts.append(
                    f'<h3>{ARM_NAMES[arm]}: {title}</h3><div class="strip">{figures}</div>'
                )
    if not parts:
        return ""
    return (
        "<h2>What goes wrong</h2><p>Crops of the real test pictures, the worst first: animals that are missed by "
        "most seeds, large ones first (yellow), and the surest boxes where no animal is annotated (in the arm's "
        "colour; some lie loosely on an animal, with an IoU below 0.5, are its second box, or call it another class). "
        "Annotated animals are white. Look whether the annotation is right before you blame the detector."
        f"</p>{''.join(parts)}"
    )  # fmt: skip


def _crop_figure(test: Pictures, failure: Failure, arm: str, num_seeds: int) -> str:
    path, boxes = test[failure.picture]
    colour = MISS_COLOUR if failure.confidence is None else ARM_COLOURS[arm]
    coloured = [(box.xyxy, TRUTH_COLOUR) for box in boxes if box.xyxy != failure.xyxy]
    seeds = f"{failure.num_seeds} of {num_seeds} seeds"
    text = seeds if failure.confidence is None else f"{failure.confidence:.2f}, {seeds}"
    text += f", {failure.why}" if failure.why else ""
    return _figure(path, [*coloured, (failure.xyxy, colour)], around=failure.xyxy, text=text)


# --- drawing -----------------------------------------------------------------------------------


def _figure(
    path: Path,
    boxes: Sequence[tuple[XYXY, str]],
    *,
    around: XYXY | None = None,
    text: str | None = None,
) -> str:
    """A picture with boxes, or what lies around one of them; nothing where the file is gone."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        return ""
    left, top = 0, 0
    if around is not None:
        left, top, right, bottom = _window(around, picture.shape[1], picture.shape[0])
        picture = picture[top:bottom, left:right]
    scale = EXAMPLE_HEIGHT / picture.shape[0]
    size = round(picture.shape[1] * scale), EXAMPLE_HEIGHT
    drawn: NDArray[np.uint8] = cv2.resize(
        picture, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    )
    for xyxy, colour in boxes:
        x1, x2 = (round((value - left) * scale) for value in (xyxy[0], xyxy[2]))
        y1, y2 = (round((value - top) * scale) for value in (xyxy[1], xyxy[3]))
        blue, green, red = (int(colour[i : i + 2], 16) for i in (5, 3, 1))
        cv2.rectangle(drawn, (x1, y1), (x2, y2), (blue, green, red), 2, cv2.LINE_AA)
    content = cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    name = html.escape(path.stem)
    caption = name if text is None else f"{html.escape(text)}<br>{name}"
    return (
        f'<figure><img alt="{name}" src="{data_uri(content, "jpeg")}">'
        f'<figcaption title="{name}">{caption}</figcaption></figure>'
    )


def _window(xyxy: XYXY, width: int, height: int) -> tuple[int, int, int, int]:
    """A square around a box, moved into the picture and cut where it is larger than that."""
    longer = max(xyxy[2] - xyxy[0], xyxy[3] - xyxy[1])
    side = round(max(CROP_SIDES * longer, MIN_CROP))
    edges = []
    for low, high, room in ((xyxy[0], xyxy[2], width), (xyxy[1], xyxy[3], height)):
        start = round((low + high - side) / 2)
        start = max(0, min(start, room - side))
        edges.append((start, min(room, start + side)))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom
