"""Which drawn boxes become labels: the calibrated confidence, and accept, review or negative.

The rules are few and know nothing of the network: they read boxes, thresholds, the sizes of real
animals, and what the prompt asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from synthdet.core.boxes import area, intersection
from synthdet.core.captions import number_word
from synthdet.core.comparison import (
    Matches,
    OperatingPoint,
    best_operating_point,
    match_detections,
    operating_point,
    pairwise_iou,
)
from synthdet.core.records import XYXY, Box, DetectedBox, Label, LabelStatus, PlacedBox
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


HERD_SHARE = 0.8
"""A box that holds two others, each with at least this share of its area, is drawn around a herd."""

HERD_CONFIDENCE = 0.5
"""Boxes inside a herd's box count from this share of its confidence on: else they are its parts."""

MIN_SIZES = 20
"""Real boxes from which their sizes say what is no size for an animal."""

BORDER = 1.5
"""A box that comes this near to the picture's edge, in pixels, may show an animal in part."""

PLACED_IOU = 0.5
"""From this overlap on (IoU) a box marks the animal that was painted there."""

SILENT = "nothing sure found"
"""Why a picture waits that was asked for an animal, where the detector draws none that it would count."""

UNPROVEN = "found by text, and not measured on real photos"
"""Why a picture waits whose boxes were found by words, where no real box says how good they are."""

BLIND = "the detector finds no animal in real val tiles either"
"""Why an empty picture waits, where a detector's silence says nothing."""

FRAGMENT = 0.5
"""An animal cut by the border of which less than this share of the median real length is left."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The confidence from which boxes count, and from which a picture is accepted unseen.

    Attributes:
        confidence: Where F1 is best, or what was given, 0..1.
        f1: At IoU 0.5 on the val tiles, at `confidence`; None where they could not tell.
        precision: As `f1`.
        recall: As `f1`.
        accept_confidence: From here on boxes need no look; not below `confidence`.
        accept_precision: What the val tiles say of the boxes from `accept_confidence` on; None where
            they could not tell.
        reached: Whether that is the precision asked for.
        curve: A point for every confidence that occurs, falling.
        num_pictures: Val tiles.
        num_boxes: True boxes in them.
    """

    confidence: float
    f1: float | None
    precision: float | None
    recall: float | None
    accept_confidence: float
    accept_precision: float | None
    reached: bool
    curve: tuple[OperatingPoint, ...]
    num_pictures: int
    num_boxes: int


def calibrate_confidence(
    truths: Sequence[Sequence[Box]],
    detections: Sequence[Sequence[DetectedBox]],
    *,
    num_classes: int,
    given: float | None = None,
    accept_precision: float = 0.0,
) -> Calibration:
    """The confidence with the best F1 on real val tiles, at IoU 0.5, and one to accept boxes unseen.

    Args:
        truths: True boxes of each tile.
        detections: Boxes drawn in each tile.
        num_classes: Class ids are below this.
        given: A threshold that somebody chose: it is measured and not changed.
        accept_precision: The precision, 0..1, that boxes accepted unseen must have: the lowest
            confidence with that precision, at least the one of the best F1. Where none has it, the
            one with the highest precision. Not asked where a threshold was given.

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
    curve = make_curve(matches)
    if given is not None:
        point = operating_point(matches, given) if num_boxes else None
    else:
        point = best_operating_point(matches)
    if point is None:
        chosen = FALLBACK_CONFIDENCE if given is None else given
        return Calibration(
            chosen, None, None, None, chosen, None, False, curve, len(truths), num_boxes
        )
    accept = point if given is not None else _accept_point(curve, point, accept_precision)
    return Calibration(
        confidence=point.confidence,
        f1=point.f1,
        precision=point.precision,
        recall=point.recall,
        accept_confidence=accept.confidence,
        accept_precision=accept.precision,
        reached=given is not None or accept.precision >= accept_precision,
        curve=curve,
        num_pictures=len(truths),
        num_boxes=num_boxes,
    )


def make_curve(matches: Matches) -> tuple[OperatingPoint, ...]:
    """Precision, recall and F1 at every confidence that occurs, from the highest down.

    A threshold takes all boxes of equal confidence or none of them.
    """
    last = np.append(np.diff(matches.confidence) != 0, True)[: len(matches.confidence)]
    drawn = np.flatnonzero(last) + 1
    correct = np.cumsum(matches.correct[:, 0])[drawn - 1]
    num_true = int(matches.num_true.sum())
    return tuple(
        OperatingPoint(
            confidence=float(matches.confidence[number - 1]),
            precision=hits / number,
            recall=hits / num_true if num_true else 0.0,
            f1=2 * hits / (number + num_true),
        )
        for number, hits in zip(drawn.tolist(), correct.tolist(), strict=True)
    )


def _accept_point(
    curve: Sequence[OperatingPoint], best: OperatingPoint, wanted: float
) -> OperatingPoint:
    above = [point for point in curve if point.confidence >= best.confidence]
    good = [point for point in above if point.precision >= wanted]
    # The lowest confidence that will do; else the most precise one, and of those the lowest.
    return good[-1] if good else max(above, key=lambda point: (point.precision, -point.confidence))


@dataclass(frozen=True, slots=True)
class AcceptedQuality:
    """How good the boxes of accepted pictures are, where the truth is known; shares are 0..1.

    Attributes:
        precision: Share of the accepted boxes that mark an animal (IoU 0.5); None without a box.
        recall: Share of the animals that an accepted box marks; None without an animal.
        mean_iou: Mean overlap of the right ones with the true box; None without one.
        num_boxes: Accepted boxes.
        num_review: Pictures that wait for review.
    """

    precision: float | None
    recall: float | None
    mean_iou: float | None
    num_boxes: int
    num_review: int


def measure_accepted(truths: Sequence[Sequence[Box]], labels: Sequence[Label]) -> AcceptedQuality:
    """Hold the boxes of accepted pictures against the truth; boxes that wait for review do not count.

    Examples:
        >>> true = Box(xyxy=(0, 0, 10, 4), class_id=0)
        >>> label = Label(image_id="a", status="accept",
        ...               boxes=(DetectedBox(xyxy=(0, 0, 8, 4), class_id=0, confidence=1),))
        >>> quality = measure_accepted([[true], [true]], [label, Label(image_id="b", status="review", boxes=())])
        >>> quality.precision, quality.recall, quality.mean_iou
        (1.0, 0.5, 0.8)
    """
    num_boxes, overlaps = 0, []
    for true, label in zip(truths, labels, strict=True):
        boxes = label.boxes if label.status == "accept" else ()
        num_boxes += len(boxes)
        free = list(true)
        for box in sorted(boxes, key=lambda box: -box.confidence):
            same = [one for one in free if one.class_id == box.class_id]
            iou = pairwise_iou([box.xyxy], [one.xyxy for one in same])[0]
            if len(same) and iou.max() >= 0.5:
                overlaps.append(float(iou.max()))
                free.remove(same[int(iou.argmax())])
    num_true = sum(len(true) for true in truths)
    return AcceptedQuality(
        precision=len(overlaps) / num_boxes if num_boxes else None,
        recall=len(overlaps) / num_true if num_true else None,
        mean_iou=round(float(np.mean(overlaps)), 6) if overlaps else None,
        num_boxes=num_boxes,
        num_review=sum(label.status == "review" for label in labels),
    )


@dataclass(frozen=True, slots=True)
class SizePrior:
    """Lengths (longer sides) of real animals' boxes, in pixels of a tile.

    The longer side and not the area: a long animal's box changes its area several times as it turns,
    its longer side hardly.

    Attributes:
        shortest: 1st percentile.
        median: Of all.
        longest: 99th percentile.
    """

    shortest: float
    median: float
    longest: float


def size_prior(boxes: Sequence[Box]) -> SizePrior | None:
    """What sizes real animals have; None with fewer than `MIN_SIZES` boxes.

    Examples:
        >>> size_prior([Box(xyxy=(0, 0, n, 4), class_id=0) for n in range(10, 111)])
        SizePrior(shortest=11.0, median=60.0, longest=109.0)
    """
    if len(boxes) < MIN_SIZES:
        return None
    lengths = [_length(box.xyxy) for box in boxes]
    shortest, median, longest = np.percentile(lengths, [1, 50, 99]).tolist()
    return SizePrior(round(shortest, 3), round(median, 3), round(longest, 3))


def _length(xyxy: XYXY) -> float:
    return max(xyxy[2] - xyxy[0], xyxy[3] - xyxy[1])


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
    """The thresholds of one decision.

    Attributes:
        confidence: Boxes from here on are accepted, 0..1.
        review_confidence: Boxes between this and `confidence` need a look, 0..1.
        negatives: Take an empty background picture as a confirmed negative.
        placed_confidence: As `confidence`, for boxes where an animal was painted (`PLACED_IOU`): the
            place is a second witness. None: the same as `confidence`.
        placed_correlation: An animal that was set in, and is still so much alike, has its box by that;
            below 1, for 1 is no limit that a painted picture reaches.
        agreement: A box whose ``agreement`` is below this needs a look, 0..1.
        sizes: What lengths real animals have; None: not judged by that.
        found_confidence: Where F1 on the real val tiles is best: a detector counts no animal below it.
            0: nobody has measured it.
        proven: Whether a picture may be accepted, or confirmed empty, without a look.
        blind: Whether the detector found none of the animals in the real val tiles: that it sees nothing
            confirms nothing.
    """

    confidence: float
    review_confidence: float
    negatives: bool
    placed_confidence: float | None = None
    placed_correlation: float = 1.0
    agreement: float = 0.0
    sizes: SizePrior | None = None
    found_confidence: float = 0.0
    proven: bool = True
    blind: bool = False

    def accepts(self, box: DetectedBox, placed: Sequence[PlacedBox] | None) -> bool:
        """Whether a box is sure enough for where it is."""
        threshold = self.confidence
        if self.placed_confidence is not None and placed and _marks_any(box, placed):
            threshold = min(threshold, self.placed_confidence)
        return box.confidence >= threshold


def decide_label(
    image_id: str,
    boxes: Sequence[DetectedBox],
    *,
    size_wh: tuple[int, int],
    asked_for: Sequence[int] | None,
    rules: LabelRules,
    placed: Sequence[PlacedBox] | None = None,
    known_water: bool = True,
) -> Label:
    """Accept a picture's boxes, send it to review and say why, or confirm that it is empty.

    Args:
        image_id: The picture.
        boxes: Raw or fused boxes, in pixels of the picture.
        size_wh: Its width and height in pixels.
        asked_for: Class id of each animal that the prompt asked for; empty for background; None
            where nobody knows, as with the user's own pictures.
        rules: The thresholds.
        placed: Where animals were painted, if they were: an accepted picture has a box there, and
            no other.
        known_water: Whether they were painted into a real tile in which a person saw no animal: unsure
            boxes elsewhere are then none. In drawn water they need a look.

    Returns:
        An accepted picture has the boxes from `confidence` on, one in review all from
        `review_confidence` on, a negative none.
    """
    review_from = min(rules.review_confidence, rules.confidence)
    known = _still_there(placed or (), rules.placed_correlation)
    boxes = [*known, *(box for box in boxes if not _belongs_to(box, known))]
    drawn = tuple(box for box in drop_twice_drawn(boxes) if box.confidence >= review_from)
    accepted = tuple(box for box in drawn if rules.accepts(box, placed))
    visible = tuple(
        box
        for box in drawn
        if rules.accepts(box, placed)
        or not (_belongs_to(box, accepted) or (known_water and _lies_apart(box, placed)))
    )
    status, reason = _judge(
        drawn, visible, accepted, size_wh=size_wh, asked_for=asked_for, placed=placed, rules=rules
    )
    if status == "accept" and placed is not None:
        reason = _misplaced(accepted, placed)
        status = "review" if reason else "accept"
    if status != "review" and not rules.proven:
        status, reason = "review", UNPROVEN
    kept = {"accept": accepted, "review": visible, "negative": ()}[status]
    return Label(image_id=image_id, status=status, boxes=kept, reason=reason)


def _still_there(placed: Sequence[PlacedBox], at_least: float) -> tuple[DetectedBox, ...]:
    """Boxes of the real animals that were set in and that the painting has left what they were."""
    return tuple(
        DetectedBox(xyxy=one.xyxy, class_id=one.class_id, confidence=1.0, source="placed")
        for one in placed
        if one.correlation is not None and at_least < 1 and one.correlation >= at_least
    )


def _judge(
    drawn: tuple[DetectedBox, ...],
    visible: tuple[DetectedBox, ...],
    accepted: tuple[DetectedBox, ...],
    *,
    size_wh: tuple[int, int],
    asked_for: Sequence[int] | None,
    placed: Sequence[PlacedBox] | None,
    rules: LabelRules,
) -> tuple[LabelStatus, str | None]:
    if not visible:
        if asked_for is None or len(asked_for) > 0:
            return "review", "nothing found"
        if rules.blind:
            return "review", BLIND
        return ("negative", None) if rules.negatives else ("review", "negatives are switched off")
    if any(_share(box.xyxy, size_wh) > MAX_BOX_SHARE for box in visible):
        return "review", "a box over the whole picture"
    if asked_for and not accepted and all(b.confidence < rules.found_confidence for b in visible):
        return "review", SILENT
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
    reasons = (_doubt(box, drawn, size_wh=size_wh, placed=placed, rules=rules) for box in accepted)
    reason = next((reason for reason in reasons if reason is not None), None)
    return ("accept", None) if reason is None else ("review", reason)


def _misplaced(accepted: Sequence[DetectedBox], placed: Sequence[PlacedBox]) -> str | None:
    """Why the boxes are not the animals that were painted, in words; None where they are."""
    if not all(_marks_any(box, placed) for box in accepted):
        return "a box where no animal was painted"
    overlaps = pairwise_iou([one.xyxy for one in placed], [box.xyxy for box in accepted])
    if not (overlaps >= PLACED_IOU).any(axis=1).all():
        return "nothing found where an animal was painted"
    return None


def _marks_any(box: DetectedBox, placed: Sequence[PlacedBox]) -> bool:
    same = [one.xyxy for one in placed if one.class_id == box.class_id]
    return bool(same) and bool(pairwise_iou([box.xyxy], same).max() >= PLACED_IOU)


def _doubt(
    box: DetectedBox,
    drawn: Sequence[DetectedBox],
    *,
    size_wh: tuple[int, int],
    placed: Sequence[PlacedBox] | None,
    rules: LabelRules,
) -> str | None:
    """Why a confident box needs a look all the same, in words; None where it does not."""
    if _holds_several(box, drawn):
        return "one box around several animals"
    if box.agreement is not None and box.agreement < rules.agreement:
        return "the views disagree about a box"
    if rules.sizes is None or (placed and _marks_any(box, placed)):
        return None  # Where an animal was painted its size is known.
    length = _length(box.xyxy)
    if length > rules.sizes.longest:
        return "a box larger than real animals"
    if _touches_border(box.xyxy, size_wh):
        return "a fragment at the border" if length < FRAGMENT * rules.sizes.median else None
    return "a box smaller than real animals" if length < rules.sizes.shortest else None


def _holds_several(box: DetectedBox, drawn: Sequence[DetectedBox]) -> bool:
    """Whether two boxes that do not overlap much lie in this one, each nearly as sure as it is."""
    inner = [
        other.xyxy
        for other in drawn
        if other.class_id == box.class_id
        and other.confidence >= HERD_CONFIDENCE * box.confidence
        and area(other.xyxy) < UNSURE_OVERLAP * area(box.xyxy)
        and intersection(other.xyxy, box.xyxy) >= HERD_SHARE * area(other.xyxy)
    ]
    apart = pairwise_iou(inner, inner) < TWICE_IOU / 2
    return bool(apart.any())


def _touches_border(xyxy: XYXY, size_wh: tuple[int, int]) -> bool:
    x1, y1, x2, y2 = xyxy
    return min(x1, y1, size_wh[0] - x2, size_wh[1] - y2) <= BORDER


def _belongs_to(box: DetectedBox, accepted: Sequence[DetectedBox]) -> bool:
    return any(
        intersection(box.xyxy, other.xyxy) > UNSURE_OVERLAP * min(area(box.xyxy), area(other.xyxy))
        for other in accepted
    )


def _lies_apart(box: DetectedBox, placed: Sequence[PlacedBox] | None) -> bool:
    """Whether a box touches nothing that was painted into the water."""
    return placed is not None and not any(intersection(box.xyxy, one.xyxy) for one in placed)


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


def to_classes(boxes: Sequence[DetectedBox], to_run: Mapping[int, int]) -> tuple[DetectedBox, ...]:
    """Boxes of the classes that the run has too, by the run's ids.

    Args:
        boxes: A detector's, by its own ids.
        to_run: As `map_classes` gives it.

    Examples:
        >>> seal, boat = (DetectedBox(xyxy=(0, 0, 9, 9), class_id=n, confidence=0.5) for n in (1, 0))
        >>> [box.class_id for box in to_classes([boat, seal], {1: 0})]
        [0]
    """
    return tuple(
        box.model_copy(update={"class_id": to_run[box.class_id]})
        for box in boxes
        if box.class_id in to_run
    )
