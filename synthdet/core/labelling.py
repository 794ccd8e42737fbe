"""Which drawn boxes become labels: the calibrated confidence, and accept, review or negative.

The rules are few and know nothing of the network: they read boxes, two thresholds, and what the
prompt asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from synthdet.core.boxes import area, intersection
from synthdet.core.captions import number_word
from synthdet.core.comparison import (
    best_operating_point,
    match_detections,
    operating_point,
    pairwise_iou,
)
from synthdet.core.records import XYXY, Box, DetectedBox, Label, LabelStatus
from synthdet.errors import SynthdetError

MIN_CONFIDENCE = 0.01
"""Raw boxes are kept down to this confidence."""

FALLBACK_CONFIDENCE = 0.25
"""Where nothing can be calibrated: the threshold that ultralytics draws with."""

MAX_BOX_SHARE = 0.9
"""A box over more than this share of its picture, 0..1, holds no animal but the picture."""

TWICE_IOU = 0.5
"""Two boxes of a class that overlap more than this (IoU) are one animal drawn twice. Detectors leave
such pairs: their own limit is looser, as a measure's curve wants it."""

UNSURE_OVERLAP = 0.6
"""An unsure box that shares more than this of the smaller area with an accepted one is a part of that
animal, or the animal and its wake, and no animal of its own that was missed."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The confidence from which boxes are accepted, and how it did on the real val tiles.

    Attributes:
        confidence: The threshold, 0..1.
        f1: At IoU 0.5 on the val tiles; None where they could not tell.
        precision: As `f1`.
        recall: As `f1`.
        num_pictures: Val tiles.
        num_boxes: True boxes in them.
    """

    confidence: float
    f1: float | None
    precision: float | None
    recall: float | None
    num_pictures: int
    num_boxes: int


def calibrate_confidence(
    truths: Sequence[Sequence[Box]],
    detections: Sequence[Sequence[DetectedBox]],
    *,
    num_classes: int,
    given: float | None = None,
) -> Calibration:
    """The confidence with the best F1 on real val tiles, at IoU 0.5.

    Args:
        truths: True boxes of each tile.
        detections: Boxes drawn in each tile.
        num_classes: Class ids are below this.
        given: A threshold that somebody chose: it is measured and not changed.

    Returns:
        `FALLBACK_CONFIDENCE` with no F1, where there is no true box or none is found.

    Examples:
        >>> true = [[Box(xyxy=(0, 0, 9, 6), class_id=0)]]
        >>> drawn = [[DetectedBox(xyxy=(0, 0, 9, 5), class_id=0, confidence=0.6),
        ...           DetectedBox(xyxy=(20, 0, 29, 5), class_id=0, confidence=0.2)]]
        >>> calibrate_confidence(true, drawn, num_classes=1).confidence
        0.6
    """
    num_boxes = sum(len(boxes) for boxes in truths)
    thinned = [drop_twice_drawn(boxes) for boxes in detections]
    matches = match_detections(truths, thinned, num_classes=num_classes)
    if given is not None:
        point = operating_point(matches, given) if num_boxes else None
    else:
        point = best_operating_point(matches)
    if point is None:
        chosen = FALLBACK_CONFIDENCE if given is None else given
        return Calibration(chosen, None, None, None, len(truths), num_boxes)
    return Calibration(
        point.confidence, point.f1, point.precision, point.recall, len(truths), num_boxes
    )


def drop_twice_drawn(boxes: Sequence[DetectedBox]) -> tuple[DetectedBox, ...]:
    """Of boxes that mark the same animal (`TWICE_IOU`, same class) only the most confident one.

    Examples:
        >>> drawn = [DetectedBox(xyxy=(0, 0, 9, y), class_id=0, confidence=0.9 - y / 100)
        ...          for y in (6, 5, 2)]
        >>> [box.xyxy[3] for box in drop_twice_drawn(drawn)]
        [2.0, 5.0]
    """
    kept: list[DetectedBox] = []
    for box in sorted(boxes, key=lambda box: -box.confidence):
        same = [other.xyxy for other in kept if other.class_id == box.class_id]
        if not same or pairwise_iou([box.xyxy], same).max() <= TWICE_IOU:
            kept.append(box)
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class LabelRules:
    """The thresholds of one decision. All are 0..1.

    Attributes:
        confidence: Boxes from here on are accepted.
        review_confidence: Boxes between this and `confidence` need a look.
        negatives: Take an empty background picture as a confirmed negative.
    """

    confidence: float
    review_confidence: float
    negatives: bool


def decide_label(
    image_id: str,
    boxes: Sequence[DetectedBox],
    *,
    size_wh: tuple[int, int],
    asked_for: Sequence[int] | None,
    rules: LabelRules,
) -> Label:
    """Accept a picture's boxes, send it to review and say why, or confirm that it is empty.

    Args:
        image_id: The picture.
        boxes: Raw boxes, in pixels of the picture.
        size_wh: Its width and height in pixels.
        asked_for: Class id of each animal that the prompt asked for; empty for background; None
            where nobody knows, as with the user's own pictures.
        rules: The thresholds.

    Returns:
        An accepted picture has the boxes from `confidence` on, one in review all from
        `review_confidence` on, a negative none.
    """
    review_from = min(rules.review_confidence, rules.confidence)
    visible = tuple(box for box in drop_twice_drawn(boxes) if box.confidence >= review_from)
    accepted = tuple(box for box in visible if box.confidence >= rules.confidence)
    visible = tuple(
        box
        for box in visible
        if box.confidence >= rules.confidence or not _belongs_to(box, accepted)
    )
    status, reason = _judge(visible, accepted, size_wh=size_wh, asked_for=asked_for, rules=rules)
    kept = {"accept": accepted, "review": visible, "negative": ()}[status]
    return Label(image_id=image_id, status=status, boxes=kept, reason=reason)


def _judge(
    visible: tuple[DetectedBox, ...],
    accepted: tuple[DetectedBox, ...],
    *,
    size_wh: tuple[int, int],
    asked_for: Sequence[int] | None,
    rules: LabelRules,
) -> tuple[LabelStatus, str | None]:
    if not visible:
        if asked_for is None or len(asked_for) > 0:
            return "review", "nothing found"
        return ("negative", None) if rules.negatives else ("review", "negatives are switched off")
    if any(_share(box.xyxy, size_wh) > MAX_BOX_SHARE for box in visible):
        return "review", "a box over the whole picture"
    if asked_for is not None and len(accepted) == len(visible):
        asked, found = Counter(asked_for), Counter(box.class_id for box in accepted)
        if len(accepted) != len(asked_for):
            asked_word = number_word(len(asked_for)) if asked_for else "none"
            return "review", f"asked for {asked_word}, found {number_word(len(accepted))}"
        if asked != found:
            return "review", "found another kind than asked for"
    if len(accepted) < len(visible):
        unsure = len(visible) - len(accepted)
        return "review", f"{number_word(unsure)} unsure box{'es' if unsure > 1 else ''}"
    return "accept", None


def _belongs_to(box: DetectedBox, accepted: Sequence[DetectedBox]) -> bool:
    return any(
        intersection(box.xyxy, other.xyxy) > UNSURE_OVERLAP * min(area(box.xyxy), area(other.xyxy))
        for other in accepted
    )


def _share(xyxy: XYXY, size_wh: tuple[int, int]) -> float:
    x1, y1, x2, y2 = xyxy
    return (x2 - x1) * (y2 - y1) / (size_wh[0] * size_wh[1])


def map_classes(
    detector_names: Sequence[str],
    class_names: Sequence[str],
    class_map: Mapping[str, str] | None,
) -> dict[int, int]:
    """Detector's class id -> the run's, for the classes that have a place in the run.

    Args:
        detector_names: Class names of the detector, in the order of its ids.
        class_names: The run's.
        class_map: Detector's name -> the run's name, where the user gave one.

    Raises:
        SynthdetError: A name in ``class_map`` that one side does not have, or no class in common.

    Examples:
        >>> map_classes(["boat", "seal"], ["seal", "pup"], None)
        {1: 0}
        >>> map_classes(["whale"], ["humpback whale"], None)
        {0: 0}
    """
    if class_map is not None:
        for name, names, whose in (
            *((name, detector_names, "the detector") for name in class_map),
            *((name, class_names, "this run") for name in class_map.values()),
        ):
            if name not in names:
                raise SynthdetError(
                    f"label.class_map: {whose} has no class {name!r}, only {', '.join(names)}"
                )
        return {
            detector_names.index(theirs): class_names.index(ours)
            for theirs, ours in class_map.items()
        }
    mapped = {
        theirs: class_names.index(name)
        for theirs, name in enumerate(detector_names)
        if name in class_names
    }
    if not mapped and len(detector_names) == 1 and len(class_names) == 1:
        return {0: 0}
    if not mapped:
        raise SynthdetError(
            f"the detector knows {', '.join(detector_names)}, this run {', '.join(class_names)}: "
            "say which is which with label.class_map"
        )
    return mapped
