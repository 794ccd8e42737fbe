"""How good a detector is: its boxes matched with the truth, and what follows from that.

The matching and the average precision are COCO's (Lin et al., 2014), to 1e-6 those of pycocotools,
but split in two: boxes are matched once, and the precision is then worked out for any choice of
pictures, so that leaving out every group of test photos in turn costs no second matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthdet.core.boxes import area
from synthdet.core.records import XYXY, Box, DetectedBox

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100
"""Most confident boxes of a picture and class that count, as in COCO."""

Floats = NDArray[np.float64]
Areas = tuple[float, float]
"""The smallest and the largest area of a range, both inside it, in square pixels."""


# --- matching ----------------------------------------------------------------------------------


def pairwise_iou(first: Sequence[XYXY], second: Sequence[XYXY]) -> Floats:
    """Intersection over union of every box of one list with every box of another.

    Args:
        first: n boxes, pixels.
        second: m boxes, pixels.

    Returns:
        ``(n, m)``, 0..1. Two boxes without area have 0.

    Examples:
        >>> pairwise_iou([(0, 0, 4, 2)], [(2, 0, 6, 2), (8, 8, 9, 9)]).round(3).tolist()
        [[0.333, 0.0]]
    """
    a = np.asarray(first, dtype=np.float64).reshape(-1, 1, 4)
    b = np.asarray(second, dtype=np.float64).reshape(1, -1, 4)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    overlap = np.clip(sides, 0, None).prod(axis=-1)
    area_a = (a[..., 2:] - a[..., :2]).prod(axis=-1)
    area_b = (b[..., 2:] - b[..., :2]).prod(axis=-1)
    union = area_a + area_b - overlap
    iou: Floats = np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)
    return iou


@dataclass(frozen=True, slots=True)
class Matches:
    """Every detection of a set of pictures, matched with the truth, most confident first.

    Attributes:
        picture: ``(n,)`` index of the picture that each detection is in.
        class_id: ``(n,)`` its class.
        confidence: ``(n,)`` 0..1, falling.
        correct: ``(n, 10)`` whether it matches a true box, at each of `IOU_THRESHOLDS`.
        num_true: ``(pictures, classes)`` number of true boxes.
        counted: ``(n, 10)`` whether it counts at all: all do, but where a range of areas was asked for.
    """

    picture: NDArray[np.int64]
    class_id: NDArray[np.int64]
    confidence: Floats
    correct: NDArray[np.bool_]
    num_true: NDArray[np.int64]
    counted: NDArray[np.bool_]


def match_detections(
    truths: Sequence[Sequence[Box]],
    detections: Sequence[Sequence[DetectedBox]],
    *,
    num_classes: int,
    areas: Areas = (0.0, np.inf),
    max_detections: int | None = MAX_DETECTIONS,
) -> Matches:
    """Match the detections of each picture with its true boxes, most confident first.

    With a range of areas, true boxes outside it are neither to be found nor wrong to find: what
    matches one of them does not count, and neither does a wrong box whose own area is outside.

    Source: COCOeval.evaluateImg of pycocotools.

    Args:
        truths: True boxes of each picture.
        detections: Boxes drawn in each picture, in the same order of pictures.
        num_classes: Class ids are below this; others are ignored.
        areas: Smallest and largest area of the animals that are asked about, in square pixels.
        max_detections: Most confident boxes of a picture and class that count; None: all.
    """
    num_true = np.zeros((len(truths), num_classes), dtype=np.int64)
    pictures, classes, confidences, corrects, counteds = [], [], [], [], []
    for index, (true_boxes, drawn) in enumerate(zip(truths, detections, strict=True)):
        for class_id in range(num_classes):
            wanted = [box.xyxy for box in true_boxes if box.class_id == class_id]
            outside = _is_outside(wanted, areas)
            num_true[index, class_id] = (~outside).sum()
            found = sorted(
                (box for box in drawn if box.class_id == class_id),
                key=lambda box: -box.confidence,
            )[:max_detections]
            if found:
                own = [box.xyxy for box in found]
                hit, beside = _match_greedily(pairwise_iou(own, wanted), outside)
                corrects.append(hit)
                counteds.append(~beside & (hit | ~_is_outside(own, areas)[:, None]))
                pictures += [index] * len(found)
                classes += [class_id] * len(found)
                confidences += [box.confidence for box in found]
    order = np.argsort(-np.asarray(confidences, dtype=np.float64), kind="stable")
    none = np.zeros((0, len(IOU_THRESHOLDS)), dtype=bool)
    return Matches(
        picture=np.asarray(pictures, dtype=np.int64)[order],
        class_id=np.asarray(classes, dtype=np.int64)[order],
        confidence=np.asarray(confidences, dtype=np.float64)[order],
        correct=np.concatenate([*corrects, none])[order],
        num_true=num_true,
        counted=np.concatenate([*counteds, none])[order],
    )


def _is_outside(boxes: Sequence[XYXY], areas: Areas) -> NDArray[np.bool_]:
    own = np.array([area(box) for box in boxes], dtype=np.float64)
    return np.asarray((own < areas[0]) | (own > areas[1]))


def _match_greedily(
    iou: Floats, outside: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Overlaps ``(n, m)``, rows by falling confidence -> two of ``(n, thresholds)``.

    The first: does the row match a true box? The second: does it match one of those that are
    ``outside`` (m) instead, because no other is left to it?
    """
    hits = np.zeros((len(iou), len(IOU_THRESHOLDS)), dtype=bool)
    beside = np.zeros_like(hits)
    if iou.shape[1] == 0:
        return hits, beside
    needed = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    free = np.ones((len(IOU_THRESHOLDS), iou.shape[1]), dtype=bool)
    every = np.arange(len(IOU_THRESHOLDS))
    # Most boxes are on nothing: only the others are worth a look.
    for row in np.flatnonzero(iou.max(axis=1) >= IOU_THRESHOLDS[0]):
        overlaps = iou[row]
        usable = np.where(free & (overlaps >= needed), overlaps, -1.0)
        inside = np.where(outside, -1.0, usable)
        usable = np.where((inside >= 0).any(axis=1, keepdims=True), inside, usable)
        # Of equal overlaps COCO takes the last one.
        best = usable.shape[1] - 1 - usable[:, ::-1].argmax(axis=1)
        matched = usable[every, best] >= 0
        hits[row] = matched & ~outside[best]
        beside[row] = matched & outside[best]
        free[np.flatnonzero(matched), best[matched]] = False
    return hits, beside


# --- measures ----------------------------------------------------------------------------------


def average_precision(matches: Matches, weights: NDArray[np.int64] | None = None) -> Floats:
    """COCO's average precision, the mean over the classes that occur, at each IoU threshold.

    Source: COCOeval.accumulate of pycocotools.

    Args:
        matches: What `match_detections` found.
        weights: ``(pictures,)`` how often each picture counts; once each if not given.

    Returns:
        ``(10,)``, 0..1, at `IOU_THRESHOLDS`: the first is map50, the mean of all is map50_95.
        NaN where there is no true box.
    """
    if weights is None:
        weights = np.ones(len(matches.num_true), dtype=np.int64)
    num_true = weights @ matches.num_true
    per_class = [
        _class_precision(matches, class_id, weights, int(count))
        for class_id, count in enumerate(num_true)
        if count > 0
    ]
    if not per_class:
        return np.full(len(IOU_THRESHOLDS), np.nan)
    return np.asarray(np.mean(per_class, axis=0))


def _class_precision(
    matches: Matches, class_id: int, weights: NDArray[np.int64], num_true: int
) -> Floats:
    chosen = (matches.class_id == class_id) & (weights[matches.picture] > 0)
    weight = weights[matches.picture[chosen]].astype(np.float64)[:, None]
    correct = np.cumsum(weight * matches.correct[chosen], axis=0)
    counted = matches.counted[chosen]
    if counted.all():  # as without a range of areas: one column says it
        counted = counted[:, :1]
    drawn = np.cumsum(weight * counted, axis=0)
    precision = correct / (drawn + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = correct / num_true
    result = np.zeros(len(IOU_THRESHOLDS))
    for threshold in range(len(IOU_THRESHOLDS)):
        at = np.searchsorted(recall[:, threshold], RECALL_LEVELS, side="left")
        reached = at[at < len(precision)]
        result[threshold] = precision[reached, threshold].sum() / len(RECALL_LEVELS)
    return result


def of_class(matches: Matches, class_id: int) -> Matches:
    """The part of the matches that is about one class."""
    chosen = matches.class_id == class_id
    num_true = np.zeros_like(matches.num_true)
    num_true[:, class_id] = matches.num_true[:, class_id]
    return Matches(
        picture=matches.picture[chosen],
        class_id=matches.class_id[chosen],
        confidence=matches.confidence[chosen],
        correct=matches.correct[chosen],
        num_true=num_true,
        counted=matches.counted[chosen],
    )


def precision_without_groups(matches: Matches, groups: Sequence[str]) -> Floats:
    """Average precision on all pictures, and with each group of pictures left out in turn.

    Args:
        matches: What `match_detections` found.
        groups: The group of each picture.

    Returns:
        ``(1 + groups, 10)``: first on all pictures, then without each group in the order of their
        names; NaN where no true box is left.
    """
    names = sorted(set(groups))
    group_of = np.array([names.index(group) for group in groups])
    subsets = [np.ones(len(group_of), dtype=np.int64)]
    subsets += [(group_of != index).astype(np.int64) for index in range(len(names))]
    return np.array([average_precision(matches, subset) for subset in subsets])


@dataclass(frozen=True, slots=True)
class Curve:
    """Precision at every recall that a class reaches, at IoU 0.5, by falling confidence."""

    recall: Floats
    precision: Floats


def precision_recall_curve(matches: Matches) -> Curve:
    """The curve over all classes together, as the boxes were drawn: nothing is interpolated."""
    correct = np.cumsum(matches.correct[:, 0])
    drawn = np.cumsum(matches.counted[:, 0])
    return Curve(
        recall=correct / max(1, int(matches.num_true.sum())),
        precision=correct / np.maximum(1, drawn),
    )


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """What a confidence threshold gives at IoU 0.5, over all classes; shares are 0..1."""

    confidence: float
    precision: float
    recall: float
    f1: float


def operating_point(matches: Matches, confidence: float) -> OperatingPoint:
    """Precision, recall and F1 of the boxes at or above a confidence. 0 where there are none."""
    chosen = matches.confidence >= confidence
    correct = int(matches.correct[chosen, 0].sum())
    num_drawn, num_true = int(matches.counted[chosen, 0].sum()), int(matches.num_true.sum())
    return OperatingPoint(
        confidence,
        precision=correct / num_drawn if num_drawn else 0.0,
        recall=correct / num_true if num_true else 0.0,
        f1=2 * correct / (num_drawn + num_true) if num_drawn + num_true else 0.0,
    )


def best_operating_point(matches: Matches) -> OperatingPoint | None:
    """The confidence with the best F1: the highest one, where several are best.

    Returns:
        None where no box is right at any confidence.
    """
    correct = np.cumsum(matches.correct[:, 0])
    if len(correct) == 0 or correct[-1] == 0:
        return None
    f1 = 2 * correct / (np.cumsum(matches.counted[:, 0]) + matches.num_true.sum())
    # A threshold takes all boxes of equal confidence or none: only the last of them counts.
    last = np.append(np.diff(matches.confidence) != 0, True)
    best = int(np.argmax(np.where(last, f1, -1.0)))
    return operating_point(matches, float(matches.confidence[best]))
