"""How good a detector is, and whether a second one is better: matching, mAP, paired differences.

The matching and the average precision are COCO's (Lin et al., 2014), to 1e-6 those of pycocotools,
but split in two: boxes are matched once, and the precision is then worked out for any choice of
pictures, so that leaving out every group of test photos in turn costs no second matching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from synthdet.core.records import XYXY, Box, DetectedBox

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_LEVELS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100
"""Most confident boxes of a picture and class that count, as in COCO."""

Floats = NDArray[np.float64]


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
    """

    picture: NDArray[np.int64]
    class_id: NDArray[np.int64]
    confidence: Floats
    correct: NDArray[np.bool_]
    num_true: NDArray[np.int64]


def match_detections(
    truths: Sequence[Sequence[Box]],
    detections: Sequence[Sequence[DetectedBox]],
    *,
    num_classes: int,
) -> Matches:
    """Match the detections of each picture with its true boxes, most confident first.

    Source: COCOeval.evaluateImg of pycocotools.

    Args:
        truths: True boxes of each picture.
        detections: Boxes drawn in each picture, in the same order of pictures.
        num_classes: Class ids are below this; others are ignored.
    """
    num_true = np.zeros((len(truths), num_classes), dtype=np.int64)
    pictures, classes, confidences, corrects = [], [], [], []
    for index, (true_boxes, drawn) in enumerate(zip(truths, detections, strict=True)):
        for class_id in range(num_classes):
            wanted = [box.xyxy for box in true_boxes if box.class_id == class_id]
            num_true[index, class_id] = len(wanted)
            found = sorted(
                (box for box in drawn if box.class_id == class_id),
                key=lambda box: -box.confidence,
            )[:MAX_DETECTIONS]
            if found:
                iou = pairwise_iou([box.xyxy for box in found], wanted)
                corrects.append(_match_greedily(iou))
                pictures += [index] * len(found)
                classes += [class_id] * len(found)
                confidences += [box.confidence for box in found]
    order = np.argsort(-np.asarray(confidences, dtype=np.float64), kind="stable")
    return Matches(
        picture=np.asarray(pictures, dtype=np.int64)[order],
        class_id=np.asarray(classes, dtype=np.int64)[order],
        confidence=np.asarray(confidences, dtype=np.float64)[order],
        correct=np.concatenate([*corrects, np.zeros((0, len(IOU_THRESHOLDS)), dtype=bool)])[order],
        num_true=num_true,
    )


def _match_greedily(iou: Floats) -> NDArray[np.bool_]:
    """``(n, m)`` overlaps, rows by falling confidence -> ``(n, thresholds)``: is the row a hit?"""
    hits = np.zeros((len(iou), len(IOU_THRESHOLDS)), dtype=bool)
    if iou.shape[1] == 0:
        return hits
    needed = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    free = np.ones((len(IOU_THRESHOLDS), iou.shape[1]), dtype=bool)
    for row, overlaps in enumerate(iou):
        if overlaps.max() < IOU_THRESHOLDS[0]:
            continue
        usable = np.where(free & (overlaps >= needed), overlaps, -1.0)
        # Of equal overlaps COCO takes the last one.
        best = usable.shape[1] - 1 - usable[:, ::-1].argmax(axis=1)
        hits[row] = usable[np.arange(len(best)), best] >= 0
        free[np.flatnonzero(hits[row]), best[hits[row]]] = False
    return hits


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
    weight = weights[matches.picture[chosen]].astype(np.float64)
    correct = np.cumsum(weight[:, None] * matches.correct[chosen], axis=0)
    precision = correct / (np.cumsum(weight)[:, None] + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
    recall = correct / num_true
    result = np.zeros(len(IOU_THRESHOLDS))
    for threshold in range(len(IOU_THRESHOLDS)):
        at = np.searchsorted(recall[:, threshold], RECALL_LEVELS, side="left")
        reached = at[at < len(precision)]
        result[threshold] = precision[reached, threshold].sum() / len(RECALL_LEVELS)
    return result


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
    num_drawn, num_true = int(chosen.sum()), int(matches.num_true.sum())
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
    f1 = 2 * correct / (np.arange(1, len(correct) + 1) + matches.num_true.sum())
    # A threshold takes all boxes of equal confidence or none: only the last of them counts.
    last = np.append(np.diff(matches.confidence) != 0, True)
    best = int(np.argmax(np.where(last, f1, -1.0)))
    return operating_point(matches, float(matches.confidence[best]))


# --- differences -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Difference:
    """A mean paired difference; ``low`` and ``high`` bound its 95 % interval, where there is one."""

    mean: float
    low: float | None
    high: float | None
    num_seeds: int
    num_groups: int


def paired_difference(full: Floats, without: Floats, *, level: float = 0.95) -> Difference:
    """Mean difference between two arms, with an interval for other seeds *and* other test photos.

    Seeds and groups of photos are crossed random effects: every seed's detectors are tested on
    every group. mAP is no mean over photos, so each seed's difference is first turned into a
    pseudo-value a group by the jackknife; the variance of their mean is that of a two-way layout
    without replication, with Satterthwaite's degrees of freedom for the t quantile.

    Source: Efron & Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 11, for the
    jackknife; Satterthwaite (1946) for the degrees of freedom.

    Args:
        full: ``(seeds,)`` difference of a measure on all test photos, for each paired seed.
        without: ``(seeds, groups)`` the same with one group of photos left out.
        level: Coverage of the interval, 0..1.

    Returns:
        Without an interval where there is one seed or one group, or a group without which the
        measure does not exist (NaN).
    """
    num_seeds, num_groups = without.shape
    mean = float(full.mean())
    if num_seeds < 2 or num_groups < 2 or not np.isfinite(without).all():
        return Difference(mean, None, None, num_seeds, num_groups)
    values = num_groups * full[:, None] - (num_groups - 1) * without
    by_seed, by_group = values.mean(axis=1), values.mean(axis=0)
    rest = values - by_seed[:, None] - by_group[None, :] + values.mean()
    squares = np.array([num_groups * by_seed.var(ddof=1), num_seeds * by_group.var(ddof=1),
                        (rest**2).sum() / ((num_seeds - 1) * (num_groups - 1))])  # fmt: skip
    freedom = np.array([num_seeds - 1, num_groups - 1, (num_seeds - 1) * (num_groups - 1)])
    # Both first parts hold the third, so it is taken off once; never below the larger of the two.
    total = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    if total <= 0:
        return Difference(mean, mean, mean, num_seeds, num_groups)
    # At least those of the part with fewest, which taking one off can undercut.
    degrees = max(total**2 / (squares**2 / freedom).sum(), float(freedom.min()))
    half = float(stdtrit(degrees, (1 + level) / 2) * np.sqrt(total / (num_seeds * num_groups)))
    return Difference(mean, mean - half, mean + half, num_seeds, num_groups)


Verdict = Literal["gain", "loss", "not shown", "nothing was added", "cannot be measured"]


def judge(difference: Difference) -> Verdict:
    """Gain or loss where the interval leaves 0 out; else neither is shown.

    Examples:
        >>> judge(Difference(0.1, 0.02, 0.18, 3, 8)), judge(Difference(0.1, -0.02, 0.22, 3, 8))
        ('gain', 'not shown')
    """
    if difference.low is None or difference.high is None:
        return "not shown"
    if difference.low > 0:
        return "gain"
    return "loss" if difference.high < 0 else "not shown"
