"""Which synthetic pictures go into the training set, with which boxes, and how many.

First what stands for each picture is settled: a person's verdict over the label over the filter.
Then the mix is chosen among those that may go in.

The choice is nested: pictures are ranked once (by a hash of the seed and their name, by similarity,
or so that each is as unlike those before it as can be) and taken one after the other, with and without animals as they come, so that a larger
number takes all that a smaller one took. Two exports of different size differ by what was added and
by nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from synthdet.core.records import Box, Decision, Label, SyntheticImage, Verdict
from synthdet.core.similarity import FAULTS

REJECTED = "rejected in curation"
DROPPED = "dropped by the filter"
IN_REVIEW = "waiting for review"
WITHOUT_BOXES = "accepted in curation without boxes"
UNLABELLED = "not labelled"
Select = Literal["random", "similarity", "diversity"]
Embeddings = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Settled:
    """What stands for a synthetic picture.

    Attributes:
        boxes: With these it may go in; an empty tuple means a confirmed background.
        reason: Why it may not.
    """

    boxes: tuple[Box, ...] = ()
    reason: str | None = None


def settle(
    image: SyntheticImage,
    decision: Decision | None,
    label: Label | None,
    verdict: Verdict | None,
    *,
    include_review: bool,
) -> Settled:
    """Whether a synthetic picture may go into train, and with which boxes.

    A person's rejection takes it out; their acceptance takes it in, past review and past the
    filter's threshold, but never an unusable picture, and never without boxes where nobody has said
    that it is empty. Without a verdict it must be kept by the filter and accepted by the label; one
    in review goes in only if asked for, and only if it has boxes.

    Args:
        image: The picture.
        decision: The filter's, if there is one.
        label: Its label; the label stage makes none for dropped pictures.
        verdict: The last one of a person, on this very picture.
        include_review: Take pictures in review with the boxes they have.
    """
    boxes = tuple(
        Box(xyxy=box.xyxy, class_id=box.class_id) for box in (() if label is None else label.boxes)
    )
    if verdict is not None and verdict.verdict == "reject":
        return Settled(reason=REJECTED)
    if decision is not None and decision.reason in FAULTS:
        return Settled(reason=DROPPED)
    if verdict is not None:
        if verdict.boxes is not None:
            return Settled(verdict.boxes)
        if label is None and image.asked_for != ():
            return Settled(reason=WITHOUT_BOXES)
        return Settled(boxes)
    if decision is not None and not decision.kept:
        return Settled(reason=DROPPED)
    if label is None:
        return Settled(reason=UNLABELLED)
    if label.status == "review" and not (include_review and boxes):
        return Settled(reason=IN_REVIEW)
    return Settled(() if label.status == "negative" else boxes)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A synthetic picture that may go in.

    Attributes:
        image_id: Its name.
        is_background: It was confirmed to hold no animal.
        similarity: Cosine to the real pictures of its kind; None where it was never measured.
        embedding: ``(dimensions,)``, of length 1; needed to select by diversity alone.
    """

    image_id: str
    is_background: bool
    similarity: float | None = None
    embedding: Embeddings | None = None


def choose(
    candidates: Sequence[Candidate],
    *,
    num_real: int,
    num_synthetic: int | None,
    synthetic_fraction: float | None,
    max_background_fraction: float,
    select: Select,
    seed: int,
) -> tuple[str, ...]:
    """Choose synthetic pictures for train.

    Args:
        candidates: All pictures that may go in.
        num_real: Real pictures in train.
        num_synthetic: Take at most so many.
        synthetic_fraction: Take at most this share of train, 0 <= share < 1. With
            ``num_synthetic`` the smaller number counts.
        max_background_fraction: Share of train, at most, that synthetic backgrounds make up.
        select: Rank by chance, by similarity, or for diversity, where there are more than wanted.
        seed: Of the chance, and of the picture that diversity begins with.

    Returns:
        Their names, in the order of the candidates.

    >>> whales = [Candidate(f"whale-{n}", is_background=False) for n in range(8)]
    >>> len(choose(whales, num_real=9, num_synthetic=None, synthetic_fraction=0.25,
    ...            max_background_fraction=0.2, select="random", seed=0))
    3
    """
    wanted = _num_wanted(len(candidates), num_real, num_synthetic, synthetic_fraction)
    if wanted == len(candidates):
        select = "random"  # the order decides nothing, and this one is cheap
    animals = _ranked([one for one in candidates if not one.is_background], select, seed, wanted)
    backgrounds = _ranked([one for one in candidates if one.is_background], select, seed, wanted)
    share = len(backgrounds) / max(1, len(candidates))
    chosen: set[str] = set()
    taken = 0  # backgrounds among the chosen
    for _ in range(wanted):
        size = len(chosen) + 1
        left = len(animals) + taken - len(chosen)  # animals not yet chosen
        is_due = taken + 0.5 <= size * share
        # A hair of room, or 0.2 x 15 would not hold 3.
        has_room = taken + 1 <= max_background_fraction * (num_real + size) + 1e-9
        if is_due and has_room and taken < len(backgrounds):
            chosen.add(backgrounds[taken])
            taken += 1
        elif left > 0:
            chosen.add(animals[len(animals) - left])
        else:
            break
    return tuple(one.image_id for one in candidates if one.image_id in chosen)


def _num_wanted(
    available: int, num_real: int, num_synthetic: int | None, synthetic_fraction: float | None
) -> int:
    wanted = available
    if num_synthetic is not None:
        wanted = min(wanted, num_synthetic)
    if synthetic_fraction is not None:
        # share = synthetic / (synthetic + real), solved for synthetic
        wanted = min(wanted, round(num_real * synthetic_fraction / (1 - synthetic_fraction)))
    return wanted


def _ranked(candidates: Sequence[Candidate], select: Select, seed: int, number: int) -> list[str]:
    """All names, the first ``number`` of them in the order asked for."""

    def by_chance(one: Candidate) -> str:
        return hashlib.sha256(f"{seed}:{one.image_id}".encode()).hexdigest()

    def by_similarity(one: Candidate) -> tuple[float, str]:
        return (math.inf if one.similarity is None else -one.similarity, one.image_id)

    if select == "similarity":
        return [one.image_id for one in sorted(candidates, key=by_similarity)]
    dealt = sorted(candidates, key=by_chance)
    if select == "diversity" and dealt:
        rows = [one.embedding for one in dealt]
        known = [index for index, row in enumerate(rows) if row is not None]
        matrix = np.array([row for row in rows if row is not None], dtype=np.float32)
        order = [known[index] for index in farthest_first(matrix, number)] if known else []
        taken = {*order}
        order += [index for index in range(len(dealt)) if index not in taken]
        dealt = [dealt[index] for index in order]
    return [one.image_id for one in dealt]


def farthest_first(embeddings: Embeddings, number: int) -> list[int]:
    """Order rows so that each is as far from all those before it as can be, beginning with the first.

    The first k rows in this order cover the whole set at most twice as badly as the best k would.

    Args:
        embeddings: ``(n, dimensions)``, rows of length 1.
        number: Rows wanted at most.

    Returns:
        ``min(n, number)`` row numbers. Of equally far rows the first comes first.

    Source:
        Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985; as a choice of
        training pictures: Sener & Savarese, "Active Learning for CNNs: A Core-Set Approach", 2018.

    >>> rows = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8]], np.float32)
    >>> farthest_first(rows, 3)
    [0, 2, 1]
    """
    order: list[int] = []
    # Of rows of length 1 the nearest is the one with the largest cosine.
    nearest = np.full(len(embeddings), -np.inf, dtype=np.float32)
    for _ in range(min(number, len(embeddings))):
        index = int(np.argmin(nearest)) if order else 0
        order.append(index)
        nearest = np.maximum(nearest, embeddings @ embeddings[index])
        nearest[index] = np.inf
    return order
