"""How alike pictures are to the real ones, and what follows from it.

An embedding is a row of length 1, so a dot product is a cosine. Cosines between CLIP embeddings of
two pictures lie mostly between 0.5 and 0.98, whatever is on them, so a threshold is worth nothing
unless it is calibrated on real pictures. Here they are: each group of real tiles (a site, a flight)
is held against the centroid of all the others, and a low percentile of that is the threshold.

Similarities are rounded to six decimals before anything is decided, so that a reader of the records
comes to the same decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from synthdet.core.records import Decision, Score
from synthdet.errors import SynthdetError

Embeddings = NDArray[np.float32]
Similarities = NDArray[np.float64]

BLANK = "blank"
UNREADABLE = "unreadable"
FAULTS = (BLANK, UNREADABLE)
FAR = "far from real"
COPY = "copy of a real photo"

MIN_GROUPS = 3
"""Groups (or tiles) from which leaving one out says something."""
MIN_BACKGROUNDS = 5
"""Real background tiles from which their centroid stands for open water and not for one wave."""
NO_LIMIT = -1.0
"""The lowest cosine: the threshold of a picture that is not judged."""
_BLANK_DEVIATION = 1.0
_POOR_SEPARATION = 0.7


@dataclass(frozen=True, slots=True)
class RealTiles:
    """Embedded real train tiles of one kind: with an animal, or background.

    Attributes:
        tile_ids: ``n`` ids.
        groups: The group of each tile.
        embeddings: ``(n, dimensions)``, rows of length 1.
    """

    tile_ids: tuple[str, ...]
    groups: tuple[str, ...]
    embeddings: Embeddings


@dataclass(frozen=True, slots=True)
class EmbeddedPicture:
    """A synthetic picture: its embedding, or the fault for which it has none.

    Attributes:
        image_id: Its name.
        embedding: ``(dimensions,)``, of length 1; None with a fault.
        fault: One of `FAULTS`.
        is_background: It was asked to be without an animal.
    """

    image_id: str
    embedding: Embeddings | None
    fault: str | None
    is_background: bool


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Similarity of each real tile to a centroid it had no part in."""

    similarities: Similarities
    by: Literal["group", "tile"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What raw scores are compared with; None: not judged by that."""

    animals: float
    backgrounds: float | None
    copy: float | None


@dataclass(frozen=True, slots=True)
class Calibration:
    """The limits, and what the real tiles say about them.

    Attributes:
        limits: What the raw scores are compared with.
        left_out: The real tiles with an animal, each group left out in turn; None with too few.
        negatives: Similarity of the real background tiles to the centroid of the animals' tiles.
        real_lost: Share of the left-out real tiles below the threshold.
        negatives_passing: Share of the negatives not below it.
        separation: Chance that a left-out real tile is more similar than a negative (ROC AUC).
        notes: What a person should know about the limits, a sentence each.
    """

    limits: Limits
    left_out: LeftOut | None
    negatives: Similarities
    real_lost: float | None
    negatives_passing: float | None
    separation: float | None
    notes: tuple[str, ...]


def find_fault(picture: NDArray[np.uint8]) -> str | None:
    """Name what makes a picture unusable, judged by its pixels alone.

    A decoder that met NaN, a safety checker and a failed write all end in one flat colour.

    Args:
        picture: ``(height, width, 3)``, 0..255.

    Returns:
        ``"blank"`` where no channel varies by more than one part in 255 (standard deviation).

    >>> find_fault(np.zeros((4, 6, 3), np.uint8))
    'blank'
    """
    if picture.size == 0:
        return BLANK
    deviation = picture.reshape(-1, picture.shape[-1]).std(axis=0)
    return BLANK if float(deviation.max()) < _BLANK_DEVIATION else None


def make_centroid(embeddings: Embeddings) -> Embeddings:
    """Mean direction of rows of length 1, itself of length 1.

    Raises:
        ValueError: No rows, or rows that cancel out.

    >>> make_centroid(np.array([[1, 0], [0, 1]], np.float32)).round(3).tolist()
    [0.7070000171661377, 0.7070000171661377]
    """
    if len(embeddings) == 0:
        raise ValueError("a centroid needs at least one embedding")
    mean = embeddings.mean(axis=0, dtype=np.float64)
    length = float(np.linalg.norm(mean))
    if not length > 0:
        raise ValueError("the embeddings cancel out")
    return np.asarray(mean / length, dtype=np.float32)


def similarity_to(embeddings: Embeddings, centroid: Embeddings) -> Similarities:
    """Cosine of each row to the centroid, rounded to six decimals, shape ``(n,)``."""
    return _rounded(embeddings @ centroid)


def leave_out(tiles: RealTiles) -> LeftOut | None:
    """Hold each group of tiles against the centroid of all other groups.

    With fewer than three groups each tile is left out by itself, which is too kind: its neighbours
    from the same flight stay in. With fewer than three tiles there is nothing to say: None.
    """
    by: Literal["group", "tile"] = "group" if len(set(tiles.groups)) >= MIN_GROUPS else "tile"
    names = tiles.groups if by == "group" else tiles.tile_ids
    if len(set(names)) < MIN_GROUPS:
        return None
    members = np.array(names)
    similarities = np.empty(len(names))
    for name in sorted(set(names)):
        out = members == name
        similarities[out] = similarity_to(
            tiles.embeddings[out], make_centroid(tiles.embeddings[~out])
        )
    return LeftOut(similarities, by)


def find_nearest(
    embeddings: Embeddings, references: Embeddings, *, rows_at_a_time: int = 4096
) -> tuple[NDArray[np.intp], Similarities]:
    """The most similar reference of each row, the first of equals, in bounded memory.

    Returns:
        Its index and its similarity, each of shape ``(n,)``.
    """
    indices = np.empty(len(embeddings), dtype=np.intp)
    similarities = np.empty(len(embeddings))
    for start in range(0, len(embeddings), rows_at_a_time):
        rows = slice(start, start + rows_at_a_time)
        cosines = embeddings[rows] @ references.T
        indices[rows] = cosines.argmax(axis=1)
        similarities[rows] = _rounded(cosines.max(axis=1))
    return indices, similarities


def closest_across_groups(tiles: RealTiles) -> float | None:
    """The highest similarity between two tiles of different groups; None with one group."""
    members = np.array(tiles.groups)
    closest = None
    for name in sorted(set(tiles.groups))[1:]:
        here, there = tiles.embeddings[members == name], tiles.embeddings[members < name]
        highest = float(find_nearest(here, there)[1].max())
        closest = highest if closest is None else max(closest, highest)
    return closest


def measure_separation(real: Similarities, negatives: Similarities) -> float | None:
    """Chance that a real similarity is above a negative's (ROC AUC, ties count half).

    >>> measure_separation(np.array([0.9, 0.7]), np.array([0.7, 0.1]))
    0.875
    """
    if len(real) == 0 or len(negatives) == 0:
        return None
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, real, side="left")
    not_above = np.searchsorted(ordered, real, side="right")
    return round(float((below + not_above).mean() / (2 * len(negatives))), 4)


def calibrate(
    animals: RealTiles,
    backgrounds: RealTiles,
    *,
    threshold: Literal["calibrated"] | float,
    copy_threshold: Literal["calibrated"] | float,
    percentile: float,
) -> Calibration:
    """Find the limits, or take those given, and say what they cost.

    Pictures with animals are held against the animals' tiles. Pictures that were asked to be
    background are held against the background tiles, calibrated in the same way; with fewer than
    five of those they are not judged.

    Args:
        animals: Real train tiles with an animal.
        backgrounds: Real train tiles without one.
        threshold: Cosine in -1..1, for both kinds of pictures, or "calibrated".
        copy_threshold: Cosine above which a picture copies a real one, or "calibrated".
        percentile: 0..100: with a calibrated threshold, the share of real tiles to lose.

    Raises:
        SynthdetError: Calibrating was asked for and there are too few real tiles.
    """
    left_out = leave_out(animals)
    limits = Limits(
        animals=_limit(threshold, left_out, percentile),
        backgrounds=_background_limit(backgrounds, threshold, percentile),
        copy=closest_across_groups(animals) if copy_threshold == "calibrated" else copy_threshold,
    )
    negatives = similarity_to(backgrounds.embeddings, make_centroid(animals.embeddings))
    calibration = Calibration(
        limits=limits,
        left_out=left_out,
        negatives=negatives,
        real_lost=None if left_out is None else _share(left_out.similarities < limits.animals),
        negatives_passing=_share(negatives >= limits.animals) if len(negatives) else None,
        separation=None
        if left_out is None
        else measure_separation(left_out.similarities, negatives),
        notes=(),
    )
    return _with_notes(calibration)


def score_pictures(
    pictures: Sequence[EmbeddedPicture], animals: RealTiles, backgrounds: RealTiles
) -> list[Score]:
    """Raw scores, in the order of the pictures; faulty ones have nothing but their fault.

    The nearest real tile is sought among the tiles of the picture's own kind.
    """
    scores = {
        one.image_id: Score(image_id=one.image_id, fault=one.fault)
        for one in pictures
        if one.embedding is None
    }
    for is_background, own_kind in ((False, animals), (True, backgrounds)):
        members = [one for one in pictures if one.is_background == is_background]
        rows = [one.embedding for one in members if one.embedding is not None]
        if not rows:
            continue
        ids = [one.image_id for one in members if one.embedding is not None]
        columns = _score_columns(np.stack(rows), animals, backgrounds, own_kind)
        scores |= {
            image_id: Score.model_validate({"image_id": image_id, **values})
            for image_id, values in zip(ids, columns, strict=True)
        }
    return [scores[one.image_id] for one in pictures]


def _score_columns(
    embeddings: Embeddings, animals: RealTiles, backgrounds: RealTiles, own_kind: RealTiles
) -> list[dict[str, float | str]]:
    rows: list[dict[str, float | str]] = [{} for _ in embeddings]
    for name, kind in (("similarity", animals), ("background_similarity", backgrounds)):
        if kind.tile_ids:
            cosines = similarity_to(embeddings, make_centroid(kind.embeddings))
            for row, cosine in zip(rows, cosines, strict=True):
                row[name] = float(cosine)
    if own_kind.tile_ids:
        nearest, cosines = find_nearest(embeddings, own_kind.embeddings)
        for row, index, cosine in zip(rows, nearest, cosines, strict=True):
            row["nearest_real"] = own_kind.tile_ids[index]
            row["nearest_real_similarity"] = float(cosine)
    return rows


def judge(score: Score, limits: Limits, *, is_background: bool) -> Decision:
    """Keep a picture, or drop it and say why.

    Args:
        score: Its raw score.
        limits: What it is compared with.
        is_background: It was asked to be without an animal. Then it is held against the real
            backgrounds, and never counts as a copy: one stretch of open water is as good as another.
    """
    limit = limits.backgrounds if is_background else limits.animals
    similarity = score.background_similarity if is_background else score.similarity
    reason = None
    if score.fault is not None:
        reason = score.fault
    elif limit is not None and similarity is not None and similarity < limit:
        reason = FAR
    elif (
        not is_background
        and limits.copy is not None
        and score.nearest_real_similarity is not None
        and score.nearest_real_similarity > limits.copy
    ):
        reason = COPY
    return Decision(
        image_id=score.image_id,
        kept=reason is None,
        threshold=NO_LIMIT if limit is None else limit,
        reason=reason,
    )


def _limit(
    threshold: Literal["calibrated"] | float, left_out: LeftOut | None, percentile: float
) -> float:
    if threshold != "calibrated":
        return threshold
    if left_out is None:
        raise SynthdetError(
            f"filter.threshold: calibrating needs at least {MIN_GROUPS} real train tiles with an animal: "
            "set filter.threshold to a number, or add photos"
        )
    return round(float(np.percentile(left_out.similarities, percentile)), 6)


def _background_limit(
    backgrounds: RealTiles, threshold: Literal["calibrated"] | float, percentile: float
) -> float | None:
    if len(backgrounds.tile_ids) < MIN_BACKGROUNDS:
        return None
    return _limit(threshold, leave_out(backgrounds), percentile)


def _with_notes(calibration: Calibration) -> Calibration:
    notes = []
    if calibration.left_out is not None and calibration.left_out.by == "tile":
        notes.append(
            f"the real train tiles come from fewer than {MIN_GROUPS} groups: calibrated leaving out a tile at a time, "
            "so the threshold is stricter than new sites would make it"
        )
    if calibration.separation is not None and calibration.separation < _POOR_SEPARATION:
        notes.append(
            f"similarity hardly tells animals from background here (ROC AUC {calibration.separation:.2f}, "
            f"{calibration.negatives_passing:.0%} of the real background tiles pass): look at report.png"
        )
    if calibration.limits.copy is None:
        notes.append(
            "the real train tiles are one group, so copies of real photos are not told: set filter.copy_threshold"
        )
    return replace(calibration, notes=tuple(notes))


def _rounded(cosines: Embeddings) -> Similarities:
    return np.asarray(np.round(cosines.astype(np.float64), 6), dtype=np.float64)


def _share(passed: NDArray[np.bool_]) -> float:
    return round(float(passed.mean()), 4)
