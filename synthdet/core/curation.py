"""What a person is shown of a run, what they can judge, and which of their verdicts are new.

FiftyOne and the gallery show the same `ShownRun`; both bring verdicts back through `only_new`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from synthdet.core.boxes import clip, iou
from synthdet.core.doubts import doubt_label
from synthdet.core.records import (
    XYXY,
    Box,
    Decision,
    DetectedBox,
    Detections,
    Label,
    Score,
    SyntheticImage,
    Tile,
    Verdict,
)

LAYOUT: Final = 4
"""Raised when datasets of older versions are to be made again."""
ACCEPT: Final = "accept"
REJECT: Final = "reject"
NEAR_SHARE: Final = 0.1
"""Share of the pictures held against a threshold that count as near it."""
# Decimals of a pixel that count: finer than anybody draws, coarser than the noise of floats.
_DECIMALS: Final = 2

Picture = Tile | SyntheticImage
Kind = Literal["review", "near", "accepted", "dropped"]
KINDS: Final[tuple[Kind, ...]] = ("review", "near", "accepted", "dropped")
"""In the order in which a person's time is best spent."""


@dataclass(frozen=True)
class ShownRun:
    """All that is shown of a run.

    Attributes:
        root: The run folder, absolute; the pictures' paths are relative to it.
        dataset: Name of the dataset; ids of samples depend on it and on the picture alone.
        class_names: By class id.
        tiles: Real tiles.
        images: Synthetic pictures.
        scores: By image id, as the next four.
        decisions: What the filter made of the scores.
        detections: Raw boxes.
        labels: What the label stage made of the boxes.
        verdicts: The last one on every picture as it is now.
        tile_doubts: Why the annotation of a real tile is likely wrong, in words, by tile id.
    """

    root: str
    dataset: str
    class_names: tuple[str, ...]
    tiles: list[Tile]
    images: list[SyntheticImage]
    scores: dict[str, Score]
    decisions: dict[str, Decision]
    detections: Mapping[str, Detections]
    labels: Mapping[str, Label]
    verdicts: dict[str, Verdict]
    tile_doubts: dict[str, str] = field(default_factory=dict)

    @cached_property
    def margins(self) -> dict[str, float]:
        """How far above its threshold a picture lies (cosine; negative: below), by image id, where it has one."""
        margins = {}
        for image in self.images:
            score, decision = self.scores.get(image.image_id), self.decisions.get(image.image_id)
            if score is None or decision is None or decision.threshold <= -1:
                continue
            is_background = image.asked_for == ()
            similarity = score.background_similarity if is_background else score.similarity
            if similarity is not None:
                margins[image.image_id] = similarity - decision.threshold
        return margins

    def describe(self) -> str:
        """Counts in words."""
        return self.describe_with(sum(one.status == "review" for one in self.labels.values()))

    def describe_with(self, review: int) -> str:
        """The same, where who goes through the labels has counted those to review."""
        return (
            f"{len(self.tiles)} real and {len(self.images)} synthetic pictures, {review} to review"
        )


def name_of(picture: Picture) -> str:
    """The picture's ``image_id`` in curation: a real tile goes by its ``tile_id``."""
    # In this order everywhere: to find that a record is not of a kind takes pydantic ten times as long.
    return picture.image_id if isinstance(picture, SyntheticImage) else picture.tile_id


def judgeable(shown: ShownRun) -> dict[str, Picture]:
    """Name -> picture that a person can judge: synthetic ones and real train tiles.

    Val and test tiles are the measure: no verdict changes them.
    """
    pictures: dict[str, Picture] = {image.image_id: image for image in shown.images}
    return pictures | {tile.tile_id: tile for tile in shown.tiles if tile.split == "train"}


def standing_verdict(shown: ShownRun, picture: Picture) -> Verdict | None:
    """The verdict that counts now: on val and test tiles none does."""
    verdict = shown.verdicts.get(name_of(picture))
    if verdict is None or isinstance(picture, SyntheticImage) or picture.split == "train":
        return verdict
    return None


def doubt(shown: ShownRun, picture: Picture) -> str | None:
    """Why a label is likely wrong, in words."""
    if isinstance(picture, SyntheticImage):
        return doubt_label(picture, shown.labels.get(picture.image_id), shown.class_names)
    return shown.tile_doubts.get(picture.tile_id)


def boxes_to_export(shown: ShownRun, picture: Picture) -> Sequence[Box | DetectedBox] | None:
    """The boxes that stand now: a person's, else the annotation's or the label's, if there is one."""
    verdict = standing_verdict(shown, picture)
    if verdict is not None and verdict.boxes is not None:
        return verdict.boxes
    if not isinstance(picture, SyntheticImage):
        return picture.boxes
    label = shown.labels.get(picture.image_id)
    if label is None:
        return None
    return () if label.status == "negative" else label.boxes


def why(shown: ShownRun, image: SyntheticImage) -> str | None:
    """Why a synthetic picture was dropped, or waits for review."""
    decision, label = shown.decisions.get(image.image_id), shown.labels.get(image.image_id)
    score = shown.scores.get(image.image_id)
    reasons = (
        decision.reason if decision else None,
        score.fault if score else None,
        label.reason if label else None,
    )
    return next((reason for reason in reasons if reason), None)


def strongest(boxes: Iterable[DetectedBox], number: int) -> list[DetectedBox]:
    """The most confident boxes that are not half of a more confident one again (IoU 0.5)."""
    kept: list[DetectedBox] = []
    for box in sorted(boxes, key=lambda box: -box.confidence):
        if len(kept) == number:
            break
        if not any(iou(box.xyxy, other.xyxy) > 0.5 for other in kept):
            kept.append(box)
    return kept


# --- the threshold -----------------------------------------------------------------------------


def near_threshold(shown: ShownRun) -> dict[str, float]:
    """Name -> margin of the pictures that a slightly moved threshold would decide anew, nearest first.

    They are the `NEAR_SHARE` of the pictures held against a threshold that lie nearest to it: how far
    apart cosines lie depends on the model, so a fixed distance would mean something else in every run.
    Pictures dropped for another reason are not among them.
    """
    margins = shown.margins
    decided = [name for name in margins if margins[name] < 0 or shown.decisions[name].kept]
    number = math.ceil(NEAR_SHARE * len(decided))
    nearest = sorted(decided, key=lambda name: (abs(margins[name]), name))[:number]
    return {name: margins[name] for name in nearest}


def sort_by_kind(shown: ShownRun) -> dict[Kind, list[SyntheticImage]]:
    """The synthetic pictures in the order to look at them, each once; those without a usable file not.

    In review first comes the lowest confidence, near the threshold the nearest, among the accepted
    ones the least similar, among the dropped ones the most similar.
    """
    near = near_threshold(shown)
    order = {name: number for number, name in enumerate(near)}
    kinds: dict[Kind, list[SyntheticImage]] = {kind: [] for kind in KINDS}
    for image in shown.images:
        score, decision = shown.scores.get(image.image_id), shown.decisions.get(image.image_id)
        label = shown.labels.get(image.image_id)
        if (score is not None and score.fault) or image.fault:
            continue
        if label is not None and label.status == "review":
            kinds["review"].append(image)
        elif image.image_id in near:
            kinds["near"].append(image)
        elif decision is None or decision.kept:
            kinds["accepted"].append(image)
        else:
            kinds["dropped"].append(image)
    kinds["review"].sort(key=lambda image: _confidence(shown, image))
    kinds["near"].sort(key=lambda image: order[image.image_id])
    kinds["accepted"].sort(key=lambda image: _similarity(shown, image))
    kinds["dropped"].sort(key=lambda image: -_similarity(shown, image))
    return kinds


def _confidence(shown: ShownRun, image: SyntheticImage) -> float:
    label = shown.labels.get(image.image_id)
    return min((box.confidence for box in label.boxes), default=0.0) if label else 0.0


def _similarity(shown: ShownRun, image: SyntheticImage) -> float:
    score = shown.scores.get(image.image_id)
    return -1.0 if score is None or score.similarity is None else score.similarity


# --- verdicts ----------------------------------------------------------------------------------


def only_new(shown: ShownRun, verdicts: Iterable[Verdict]) -> Iterator[Verdict]:
    """Those that ``shown.verdicts`` does not say already, whoever said so and when."""
    for verdict in verdicts:
        known = shown.verdicts.get(verdict.image_id)
        if (
            known is None
            or known.verdict != verdict.verdict
            or edges(known.boxes) != edges(verdict.boxes)
        ):
            yield verdict


def trim(xyxy: XYXY, picture: Picture) -> XYXY:
    """A box in pixels, cut at the picture's edges and rounded to hundredths of a pixel."""
    left, top, right, bottom = clip(xyxy, picture.width, picture.height)
    return (
        round(left, _DECIMALS),
        round(top, _DECIMALS),
        round(right, _DECIMALS),
        round(bottom, _DECIMALS),
    )


def edges(boxes: Iterable[Box] | None) -> list[tuple[int, ...]] | None:
    """Boxes as `drawn_edges` has them."""
    return None if boxes is None else drawn_edges((box.class_id, box.xyxy) for box in boxes)


def drawn_edges(boxes: Iterable[tuple[int, XYXY]] | None) -> list[tuple[int, ...]] | None:
    """Boxes (class id, edges) in an order of their own and in whole hundredths of pixels, to compare them."""
    if boxes is None:
        return None
    scale = 10**_DECIMALS
    return sorted(
        (class_id, round(a * scale), round(b * scale), round(c * scale), round(d * scale))
        for class_id, (a, b, c, d) in boxes
    )
