"""What an ecologist asks of a detector beside its mAP: small animals, counts, false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synthdet.core.comparison import IOU_THRESHOLDS, Areas, pairwise_iou
from synthdet.core.records import Box, DetectedBox

SIZES = ("small", "medium", "large")


@dataclass(frozen=True, slots=True)
class SizeRange:
    """A third of a survey's animals, by the area of their boxes.

    Attributes:
        name: One of `SIZES`.
        areas: Smallest and largest area, square pixels; the ranges of a survey leave no gap.
        num_boxes: Animals in it.
    """

    name: str
    areas: Areas
    num_boxes: int


def size_ranges(areas: Sequence[float]) -> list[SizeRange]:
    """Thirds of these animals: the smallest, the middle and the largest ones.

    COCO's own bounds, 32 and 96 pixels, come from pictures of 640: seen at one ground scale, in tiles
    of 128 or of 1,024 pixels, all animals of a survey would be of one size. A third each means as
    many animals to measure on. An animal is in exactly one range.

    Args:
        areas: Of the animals' boxes, square pixels.

    Returns:
        In the order of `SIZES`; none with fewer than three different areas, where sizes say nothing.

    Examples:
        >>> [(one.name, one.num_boxes) for one in size_ranges([10, 20, 30, 40, 50, 60])]
        [('small', 2), ('medium', 2), ('large', 2)]
    """
    ordered = np.sort(np.asarray(areas, dtype=np.float64))
    if len(np.unique(ordered)) < len(SIZES):
        return []
    last = [ordered[round(len(ordered) * part / 3) - 1] for part in (1, 2)]
    # Of many equal areas a third may be used up: the next larger one then ends it.
    if last[1] <= last[0] or last[1] >= ordered[-1]:
        different = np.unique(ordered)
        last = [different[0], different[-2]]
    lows = [0.0, *(float(np.nextafter(value, np.inf)) for value in last)]
    highs = [*map(float, last), np.inf]
    return [
        SizeRange(name, (low, high), int(((ordered >= low) & (ordered <= high)).sum()))
        for name, low, high in zip(SIZES, lows, highs, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class CountError:
    """How far counts of animals are off, a photo.

    Attributes:
        bias: Mean of counted minus true: above 0 where too many are counted.
        error: Mean of its absolute value.
    """

    bias: float
    error: float


def count_error(
    photos: Sequence[str],
    truths: Sequence[Sequence[Box]],
    detections: Sequence[Sequence[DetectedBox]],
    confidence: float,
    *,
    class_id: int | None = None,
) -> CountError:
    """Animals counted in each photo at a confidence, against the true number.

    Args:
        photos: The photo that each picture was cut from; its pictures are added up.
        truths: True boxes of each picture.
        detections: Boxes drawn in each picture.
        confidence: From which on a box is an animal.
        class_id: Count this class alone; None: all animals.

    Examples:
        >>> whale = Box(xyxy=(0, 0, 9, 9), class_id=0)
        >>> sure = DetectedBox(xyxy=(0, 0, 9, 9), class_id=0, confidence=0.9)
        >>> count_error(["a", "b", "b"], [[whale], [], []], [[], [sure], [sure]], 0.5)
        CountError(bias=0.5, error=1.5)
    """
    off: dict[str, int] = {}
    for photo, true, drawn in zip(photos, truths, detections, strict=True):
        counted = sum(
            box.confidence >= confidence and class_id in (None, box.class_id) for box in drawn
        )
        there = sum(class_id in (None, box.class_id) for box in true)
        off[photo] = off.get(photo, 0) + counted - there
    values = np.array(list(off.values()), dtype=np.float64)
    return CountError(bias=float(values.mean()), error=float(np.abs(values).mean()))


def false_alarms_where_empty(
    places: Sequence[str],
    truths: Sequence[Sequence[Box]],
    detections: Sequence[Sequence[DetectedBox]],
    confidence: float,
) -> float | None:
    """Boxes drawn a place that holds no animal.

    Args:
        places: The photo that each picture was cut from; or a name of its own for each, to ask about
            pictures.
        truths: True boxes of each picture.
        detections: Boxes drawn in each picture.
        confidence: From which on a box is an alarm.

    Returns:
        The mean over the places without any animal; None where there is no such place.

    Examples:
        >>> sure = DetectedBox(xyxy=(0, 0, 9, 9), class_id=0, confidence=0.9)
        >>> false_alarms_where_empty(["a", "b", "b"], [[], [], []], [[], [sure], [sure]], 0.5)
        1.0
    """
    with_animals = {place for place, true in zip(places, truths, strict=True) if true}
    empty = {*places} - with_animals
    if not empty:
        return None
    alarms = sum(
        box.confidence >= confidence
        for place, drawn in zip(places, detections, strict=True)
        if place in empty
        for box in drawn
    )
    return alarms / len(empty)


@dataclass(frozen=True, slots=True)
class Failures:
    """What a detector got wrong in a picture: true boxes that it missed, and boxes where nothing is."""

    missed: tuple[Box, ...]
    alarms: tuple[DetectedBox, ...]


def find_failures(
    truth: Sequence[Box], drawn: Sequence[DetectedBox], confidence: float
) -> Failures:
    """Hold the boxes at or above a confidence against the true ones, at IoU 0.5, the surest first.

    An animal that is found as one of another class is both missed and a false alarm.

    Examples:
        >>> whale = Box(xyxy=(0, 0, 9, 9), class_id=0)
        >>> sure = DetectedBox(xyxy=(20, 0, 29, 9), class_id=0, confidence=0.9)
        >>> failures = find_failures([whale], [sure], 0.5)
        >>> failures.missed == (whale,), failures.alarms == (sure,)
        (True, True)
    """
    missed, alarms = list(truth), []
    chosen = [box for box in drawn if box.confidence >= confidence]
    for box in sorted(chosen, key=lambda one: -one.confidence):
        same = [one for one in missed if one.class_id == box.class_id]
        overlaps = pairwise_iou([box.xyxy], [one.xyxy for one in same])[0]
        if len(same) and overlaps.max() >= IOU_THRESHOLDS[0]:
            missed.remove(same[int(overlaps.argmax())])
        else:
            alarms.append(box)
    return Failures(tuple(missed), tuple(alarms))
