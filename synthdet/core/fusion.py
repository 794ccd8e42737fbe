"""Eight looks at one picture, joined to one set of boxes with a confidence that they share.

From above there is no up: a picture turned by quarters and mirrored shows the same animals, so a
detector that knows them draws them again. Where its eight answers agree, the label can be believed;
a box that only some views show, or show elsewhere, says so in its confidence and its agreement.

A *view* is a number from 0 to 7: mirrored left to right first if it is 4 or more, then turned by
``view % 4`` quarters against the clock. View 0 is the picture as it is.

Source: Solovyev, Wang & Gabruseva, "Weighted boxes fusion: Ensembling boxes from different object
detection models", Image and Vision Computing 107 (2021). Here a voter adds at most one box to a
fused one, so that a detector that draws an animal twice has one voice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from synthdet.core.comparison import pairwise_iou
from synthdet.core.records import XYXY, DetectedBox

NUM_VIEWS = 8
"""The symmetries of a square: four turns, and four of the mirror image."""

FUSION_IOU = 0.5
"""Boxes of a class that overlap a fused one by more than this (IoU) mark the same animal."""

FUSED = "fused"
"""``source`` of a box that several voters drew."""


def view_source(source: str, view: int) -> str:
    """Who drew a box, and in which view: ``detector``, or ``detector:view-3``.

    Examples:
        >>> view_source("detector", 0), view_source("detector", 3)
        ('detector', 'detector:view-3')
    """
    return source if view == 0 else f"{source}:view-{view}"


def detector_source(number: int) -> str:
    """What the first (0), second (1) ... of several detectors is called as a ``source``.

    Examples:
        >>> detector_source(0), detector_source(1)
        ('detector', 'detector-2')
    """
    return "detector" if number == 0 else f"detector-{number + 1}"


def name_detector(box: DetectedBox, number: int) -> DetectedBox:
    """A raw box of a detector, as one of several.

    Args:
        box: With ``source`` "detector", in any view.
        number: Which of the detectors it is, from 0.

    Examples:
        >>> box = DetectedBox(xyxy=(0, 0, 4, 2), class_id=0, confidence=1, source="detector:view-3")
        >>> name_detector(box, 1).source
        'detector-2:view-3'
    """
    view = box.source.removeprefix(detector_source(0))
    return box.model_copy(update={"source": detector_source(number) + view})


def is_upright(box: DetectedBox) -> bool:
    """Whether a box was drawn in the picture as it is.

    Examples:
        >>> is_upright(DetectedBox(xyxy=(0, 0, 4, 2), class_id=0, confidence=1, source="a:view-3"))
        False
    """
    return ":view-" not in box.source


def turn_picture(pixels: NDArray[np.uint8], view: int) -> NDArray[np.uint8]:
    """A view of pictures, without copying pixels.

    Args:
        pixels: ``(..., height, width, channels)``.
        view: 0..7.

    Returns:
        The same, with height and width exchanged in odd views.

    Examples:
        >>> turn_picture(np.array([[[1], [2]]], np.uint8), 1)[..., 0].tolist()
        [[2], [1]]
    """
    mirrored = pixels[..., ::-1, :] if view >= 4 else pixels
    return np.rot90(mirrored, view % 4, axes=(-3, -2))


def undo_view(
    boxes: NDArray[np.float64], view: int, size_wh: tuple[int, int]
) -> NDArray[np.float64]:
    """Boxes drawn in a view, in pixels of the picture as it is.

    Args:
        boxes: ``(n, 4)``, xyxy in pixels of the view.
        view: 0..7.
        size_wh: Width and height of the picture as it is.

    Returns:
        ``(n, 4)``, xyxy.

    Examples:
        A picture 6 wide and 4 high, turned once, is 4 wide and 6 high; its top left is the right edge:

        >>> undo_view(np.array([[0.0, 0, 1, 2]]), 1, (6, 4)).tolist()
        [[4.0, 0.0, 6.0, 1.0]]
    """
    width, height = size_wh
    x1, y1, x2, y2 = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
    for turn in range(view % 4, 0, -1):
        before_width = width if turn % 2 else height  # of the picture before this turn
        x1, y1, x2, y2 = before_width - y2, x1, before_width - y1, x2
    if view >= 4:
        x1, x2 = width - x2, width - x1
    return np.stack([x1, y1, x2, y2], axis=1)


@dataclass(slots=True)
class _Cluster:
    """Boxes that mark one animal, one of each voter."""

    class_id: int
    members: list[DetectedBox] = field(default_factory=list)
    voters: set[int] = field(default_factory=set)
    xyxy: XYXY = (0, 0, 0, 0)

    def add(self, voter: int, box: DetectedBox) -> None:
        self.voters.add(voter)
        self.members.append(box)
        weights = np.array([member.confidence for member in self.members])
        corners = np.array([member.xyxy for member in self.members])
        x1, y1, x2, y2 = (weights @ corners / weights.sum()).tolist()
        self.xyxy = (x1, y1, x2, y2)


def fuse_boxes(voters: Sequence[Sequence[DetectedBox]]) -> tuple[DetectedBox, ...]:
    """Join the boxes that several voters (views, detectors) drew in one picture.

    Most confident first, each box joins the fused box of its class that it overlaps most, above
    `FUSION_IOU`, unless its voter is in there already; then it was drawn twice and goes. Corners are
    means weighted by confidence.

    Args:
        voters: The boxes of each voter, in pixels of the picture as it is. One without boxes counts.

    Returns:
        Most confident first, with ``source`` "fused" and

        - ``confidence``: the mean over all voters, 0 for those that did not draw it;
        - ``agreement``: the mean overlap (IoU) of what each voter drew with the fused box, 0..1, again
          0 for those that did not draw it. 1 is: all drew the same.

    Examples:
        Two of two voters, and one of two:

        >>> a = DetectedBox(xyxy=(0, 0, 8, 4), class_id=0, confidence=0.5)
        >>> b = DetectedBox(xyxy=(0, 0, 10, 4), class_id=0, confidence=0.5)
        >>> [(box.xyxy, box.confidence, box.agreement) for box in fuse_boxes([[a], [b]])]
        [((0.0, 0.0, 9.0, 4.0), 0.5, 0.894444)]
        >>> [(box.xyxy, box.confidence, box.agreement) for box in fuse_boxes([[a], []])]
        [((0.0, 0.0, 8.0, 4.0), 0.25, 0.5)]
    """
    votes = [(voter, box) for voter, boxes in enumerate(voters) for box in boxes]
    votes = [(voter, box) for voter, box in votes if box.confidence > 0]
    votes.sort(key=lambda vote: (-vote[1].confidence, vote[0], vote[1].xyxy))
    clusters: list[_Cluster] = []
    for voter, box in votes:
        same = [cluster for cluster in clusters if cluster.class_id == box.class_id]
        overlaps = pairwise_iou([box.xyxy], [cluster.xyxy for cluster in same])[0]
        best = int(overlaps.argmax()) if len(same) else -1
        if best < 0 or overlaps[best] <= FUSION_IOU:
            clusters.append(_Cluster(box.class_id))
            clusters[-1].add(voter, box)
        elif voter not in same[best].voters:
            same[best].add(voter, box)
    fused = [_to_box(cluster, len(voters)) for cluster in clusters]
    return tuple(sorted(fused, key=lambda box: (-box.confidence, box.xyxy)))


def _to_box(cluster: _Cluster, num_voters: int) -> DetectedBox:
    overlaps = pairwise_iou([cluster.xyxy], [member.xyxy for member in cluster.members])
    x1, y1, x2, y2 = (round(value, 3) for value in cluster.xyxy)
    return DetectedBox(
        xyxy=(x1, y1, x2, y2),
        class_id=cluster.class_id,
        confidence=round(sum(box.confidence for box in cluster.members) / num_voters, 6),
        source=FUSED,
        agreement=round(float(overlaps.sum()) / num_voters, 6),
    )


def split_by_source(
    boxes: Sequence[DetectedBox], sources: Sequence[str]
) -> list[list[DetectedBox]]:
    """Raw boxes by who drew them, in the order of ``sources``; others are left out."""
    by_source: dict[str, list[DetectedBox]] = {source: [] for source in sources}
    for box in boxes:
        if box.source in by_source:
            by_source[box.source].append(box)
    return [by_source[source] for source in sources]
