"""How alike pictures are to the real ones, and what follows from it.

An embedding is a row of length 1, so a dot product is a cosine. Cosines between CLIP embeddings of
two pictures lie mostly between 0.5 and 0.98, whatever is on them, so a threshold is worth nothing
unless it is calibrated on real pictures. Here they are: each group of real tiles (a site, a flight)
is held against the centroid of all the others, and a low percentile of that is the threshold, or
more where that turns away what must not pass (`core.thresholds`).

Similarities are rounded to six decimals before anything is decided, so that a reader of the records
comes to the same decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import simsimd
from numpy.typing import NDArray

from synthdet.core.layout import Packed, to_agreement, turned_layouts
from synthdet.core.records import Decision, Score
from synthdet.core.thresholds import MIN_NEGATIVES, Threshold, choose_threshold
from synthdet.errors import SynthdetError

Embeddings = NDArray[np.float32]
Similarities = NDArray[np.float64]

BLANK = "blank"
UNREADABLE = "unreadable"
FAILED = "the model failed on it"
FAULTS = (BLANK, UNREADABLE, FAILED)
FAR = "far from real"
COPY = "copy of a real photo"
EMPTY = "looks like background"
UNLIKE_PROMPT = "unlike its prompt"
TWIN = "near-duplicate"

MIN_GROUPS = 3
"""Groups (or tiles) from which leaving one out says something."""
MIN_BACKGROUNDS = 5
"""Real background tiles from which their centroid stands for open water and not for one wave."""
NO_LIMIT = -1.0
"""The lowest cosine: the threshold of a picture that is not judged."""
_BLANK_DEVIATION = 1.0
_BLANK_SAMPLE = 64
_POOR_SEPARATION = 0.7
_CLEAR_SEPARATION = 0.9
_MAX_ROUNDS = 50
_MANY_ODD = 0.02
_NEVER = np.inf


@dataclass(frozen=True, slots=True)
class RealTiles:
    """Embedded real train tiles of one kind: with an animal, or background.

    Attributes:
        tile_ids: ``n`` ids.
        groups: The group of each tile.
        embeddings: ``(n, dimensions)``, rows of length 1.
        layouts: ``(n, signs)``, rows of length 1 (`core.layout`); None where nobody asks.
        class_ids: The classes of the animals in each tile; empty where nobody asks.
    """

    tile_ids: tuple[str, ...]
    groups: tuple[str, ...]
    embeddings: Embeddings
    layouts: Embeddings | None = None
    class_ids: tuple[tuple[int, ...], ...] = ()

    def take(self, members: NDArray[np.bool_]) -> RealTiles:
        """The tiles that are members."""
        chosen = np.flatnonzero(members).tolist()
        return RealTiles(
            tuple(self.tile_ids[index] for index in chosen),
            tuple(self.groups[index] for index in chosen),
            self.embeddings[members],
            None if self.layouts is None else self.layouts[members],
            tuple(self.class_ids[index] for index in chosen) if self.class_ids else (),
        )


@dataclass(frozen=True, slots=True)
class Centroids:
    """What a picture is held against: the nearest of these that is of a class it was asked for.

    Attributes:
        vectors: ``(k, dimensions)``, rows of length 1.
        class_ids: The class of each; None: any.
    """

    vectors: Embeddings
    class_ids: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class EmbeddedPicture:
    """A synthetic picture: its embedding, or the fault for which it has none.

    Attributes:
        image_id: Its name.
        embedding: ``(dimensions,)``, of length 1; None with a fault.
        fault: One of `FAULTS`.
        is_background: It was asked to be without an animal.
        asked_for: Class ids it was asked to show; None: nobody knows.
        layout: ``(signs,)``, of length 1; None where nobody asks.
    """

    image_id: str
    embedding: Embeddings | None
    fault: str | None
    is_background: bool
    asked_for: tuple[int, ...] | None = None
    layout: Embeddings | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Similarity of each real tile to a centroid it had no part in."""

    similarities: Similarities
    by: Literal["group", "tile"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What raw scores are compared with; None: not judged by that.

    Attributes:
        animals: Lowest similarity of pictures with animals.
        backgrounds: Lowest similarity of pictures asked to be background, to the background tiles.
        copy: Highest similarity to a real tile.
        empty: Highest similarity to the background tiles, less that to the animals.
        layout: Highest agreement with the layout of a real tile.
        chance: Agreement that a picture above `copy` must have besides.
        twin: Highest agreement with the layout of a better picture.
        prompt: Lowest similarity to the picture's own prompt.
    """

    animals: float
    backgrounds: float | None
    copy: float | None
    empty: float | None = None
    layout: float | None = None
    chance: float | None = None
    twin: float | None = None
    prompt: float | None = None


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
        chosen: How the calibrated threshold was chosen; None where it was given.
        named: Similarity of the negatives that the user named.
        named_passing: Share of those not below the threshold.
        notes: What a person should know about the limits, a sentence each.
    """

    limits: Limits
    left_out: LeftOut | None
    negatives: Similarities
    real_lost: float | None
    negatives_passing: float | None
    separation: float | None
    notes: tuple[str, ...]
    chosen: Threshold | None = None
    named: Similarities = field(default_factory=lambda: np.empty(0))
    named_passing: float | None = None


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
    steps = [max(1, side // _BLANK_SAMPLE) for side in picture.shape[:2]]
    sample = picture[:: steps[0], :: steps[1]]
    if steps != [1, 1] and _deviation(sample) > 2 * _BLANK_DEVIATION:
        return None  # a large picture need not be read whole to see that it is not flat
    return BLANK if _deviation(picture) < _BLANK_DEVIATION else None


def _deviation(picture: NDArray[np.uint8]) -> float:
    return float(picture.reshape(-1, picture.shape[-1]).std(axis=0).max())


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


def make_centroids(tiles: RealTiles, *, per_class: bool = False, clusters: int = 1) -> Centroids:
    """One centroid of all tiles, or one a class, or several of either.

    Args:
        tiles: At least one.
        per_class: A class of its own has centroids of its own. A tile with several counts for each.
        clusters: At most so many a class, by spherical k-means.

    Examples:
        >>> tiles = RealTiles(("a", "b"), ("x", "x"), np.eye(2, dtype=np.float32), class_ids=((0,), (1,)))
        >>> make_centroids(tiles, per_class=True).class_ids
        (0, 1)
    """
    kinds: list[tuple[int | None, Embeddings]] = [(None, tiles.embeddings)]
    if per_class:
        present = sorted({class_id for some in tiles.class_ids for class_id in some})
        kinds = [
            (class_id, tiles.embeddings[[class_id in some for some in tiles.class_ids]])
            for class_id in present
        ]
    found = [(class_id, _cluster(rows, clusters)) for class_id, rows in kinds]
    return Centroids(
        np.concatenate([vectors for _, vectors in found]),
        tuple(class_id for class_id, vectors in found for _ in vectors),
    )


def _cluster(embeddings: Embeddings, number: int) -> Embeddings:
    """Spherical k-means from the row nearest the mean and the rows farthest from those chosen.

    Source: Dhillon & Modha, "Concept decompositions for large sparse text data using clustering",
    Machine Learning 42 (2001); Gonzalez (1985) for the start.
    """
    centres = make_centroid(embeddings)[None]
    if number == 1:
        return centres
    chosen = [int((embeddings @ centres[0]).argmax())]
    while len(chosen) < min(number, len(embeddings)):
        nearest = (embeddings @ embeddings[chosen].T).max(axis=1)
        if nearest.min() > 1 - 1e-6:
            break  # all the others are one of these once more
        chosen.append(int(nearest.argmin()))
    centres, members = embeddings[chosen], np.full(len(embeddings), -1)
    for _ in range(_MAX_ROUNDS):
        now = (embeddings @ centres.T).argmax(axis=1)
        if (now == members).all():
            break
        members = now
        centres = np.stack([make_centroid(embeddings[now == k]) for k in np.unique(now)])
        members = np.searchsorted(np.unique(now), now)
    return centres


def similarity_to_nearest(
    embeddings: Embeddings,
    centroids: Centroids,
    asked_for: Sequence[tuple[int, ...] | None] | None = None,
) -> Similarities:
    """Cosine of each row to the nearest centroid of a class it was asked for.

    Args:
        embeddings: ``(n, dimensions)``.
        centroids: Of any class, or of several.
        asked_for: Classes of each row; None, or none of them known: any centroid will do.

    Returns:
        ``(n,)``, rounded to six decimals.
    """
    cosines = _rounded(embeddings @ centroids.vectors.T)
    if asked_for is not None and None not in centroids.class_ids:
        for row, classes in enumerate(asked_for):
            fits = [class_id in (classes or ()) for class_id in centroids.class_ids]
            if any(fits):
                cosines[row, ~np.array(fits)] = -1.0
    return np.asarray(cosines.max(axis=1, initial=-1.0))


def similarity_to(embeddings: Embeddings, centroid: Embeddings) -> Similarities:
    """Cosine of each row to the centroid, rounded to six decimals, shape ``(n,)``."""
    return _rounded(embeddings @ centroid)


def leave_out(tiles: RealTiles, *, per_class: bool = False, clusters: int = 1) -> LeftOut | None:
    """Hold each group of tiles against the centroids of all other groups.

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
        others = make_centroids(tiles.take(~out), per_class=per_class, clusters=clusters)
        here = tiles.take(out)
        similarities[out] = similarity_to_nearest(here.embeddings, others, here.class_ids or None)
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


def closest_layouts(tiles: RealTiles) -> float | None:
    """The highest share of signs in which tiles of different groups agree, turned or mirrored too."""
    if tiles.layouts is None:
        return None
    members, views = np.array(tiles.groups), turned_layouts(tiles.layouts)
    closest = None
    for name in sorted(set(tiles.groups))[1:]:
        here = tiles.layouts[members == name]
        for view in views:
            highest = float(find_nearest(here, view[members < name])[1].max())
            closest = highest if closest is None else max(closest, highest)
    return None if closest is None else float(to_agreement(np.array([closest]))[0])


def find_same_layout(
    layouts: Embeddings, references: Embeddings
) -> tuple[NDArray[np.intp], Similarities]:
    """The reference whose layout each picture repeats most, as it is or turned or mirrored.

    Returns:
        Its index and the share of signs in which they agree, each ``(n,)``.
    """
    best, highest = np.zeros(len(layouts), dtype=np.intp), np.full(len(layouts), NO_LIMIT)
    for view in turned_layouts(references):
        indices, cosines = find_nearest(layouts, view)
        higher = cosines > highest
        best[higher], highest[higher] = indices[higher], cosines[higher]
    return best, to_agreement(highest)


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
    duplicate_threshold: Literal["calibrated"] | float | None = None,
    background_check: bool = False,
    per_class: bool = False,
    clusters: int = 1,
    negatives: Embeddings | None = None,
    prompt_threshold: float | None = None,
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
        percentile: 0..50: with a calibrated threshold, the share of real tiles to lose, or of
            ordinary ones, where a few odd tiles would set it and negatives speak against that.
        duplicate_threshold: Agreement of layouts, 0..1, above which two synthetic pictures are one too
            many; "calibrated": half way from what real tiles of different groups reach to 1; None:
            not judged.
        background_check: Whether pictures with animals may look like background.
        per_class: As `make_centroids`.
        clusters: As `make_centroids`.
        negatives: ``(n, dimensions)`` pictures that a user named as what must not pass, beside the
            background tiles.
        prompt_threshold: Cosine below which a picture is unlike its prompt; None: not judged.

    Raises:
        SynthdetError: Calibrating was asked for and there are too few real tiles.
    """
    left_out = leave_out(animals, per_class=per_class, clusters=clusters)
    centroids = make_centroids(animals, per_class=per_class, clusters=clusters)
    closest = closest_across_groups(animals)
    chance = closest_layouts(animals)
    same = None if chance is None else round((1 + chance) / 2, 6)
    seen = similarity_to_nearest(backgrounds.embeddings, centroids)
    named = np.empty(0) if negatives is None else similarity_to_nearest(negatives, centroids)
    every = np.concatenate([seen, named])
    chosen = None
    if threshold == "calibrated":
        real = _need(left_out).similarities
        chosen = choose_threshold(real, animals.groups, every, percentile=percentile)
        threshold = chosen.value
    limits = Limits(
        animals=threshold,
        backgrounds=_background_limit(backgrounds, None if chosen else threshold, percentile),
        copy=closest if copy_threshold == "calibrated" else copy_threshold,
        empty=_empty_limit(animals, backgrounds, left_out, percentile)
        if background_check
        else None,
        layout=same,
        chance=chance if copy_threshold == "calibrated" else None,
        twin=same if duplicate_threshold == "calibrated" else duplicate_threshold,
        prompt=prompt_threshold,
    )
    calibration = Calibration(
        limits=limits,
        left_out=left_out,
        negatives=seen,
        real_lost=None if left_out is None else _share(left_out.similarities < limits.animals),
        negatives_passing=_share(seen >= limits.animals) if len(seen) else None,
        separation=None if left_out is None else measure_separation(left_out.similarities, every),
        notes=(),
        chosen=chosen,
        named=named,
        named_passing=_share(named >= limits.animals) if len(named) else None,
    )
    return _with_notes(calibration, background_check=background_check)


def _empty_limit(
    animals: RealTiles, backgrounds: RealTiles, left_out: LeftOut | None, percentile: float
) -> float | None:
    """How much nearer to the backgrounds than to the animals a real animal's tile can be.

    None where that tells nothing: few backgrounds, or margins of both kinds that overlap much.
    """
    if left_out is None or len(backgrounds.tile_ids) < MIN_BACKGROUNDS:
        return None
    water, whales = make_centroid(backgrounds.embeddings), make_centroid(animals.embeddings)
    margins = similarity_to(animals.embeddings, water) - left_out.similarities
    other = leave_out(backgrounds)
    if other is None:
        return None
    theirs = other.similarities - similarity_to(backgrounds.embeddings, whales)
    separation = measure_separation(theirs, margins)
    if separation is None or separation < _CLEAR_SEPARATION:
        return None
    return round(float(np.percentile(margins, 100 - percentile)), 6)


def score_pictures(
    pictures: Sequence[EmbeddedPicture],
    animals: RealTiles,
    backgrounds: RealTiles,
    *,
    centroids: Centroids | None = None,
    twins: Mapping[str, tuple[str, float]] | None = None,
) -> list[Score]:
    """Raw scores, in the order of the pictures; faulty ones have nothing but their fault.

    The nearest real tile is sought among the tiles of the picture's own kind.

    Args:
        pictures: Any number of them: each is scored by itself.
        animals: Real train tiles with an animal.
        backgrounds: Real train tiles without one.
        centroids: Of the animals; the one of all, if not given.
        twins: Name of a picture -> the better one whose layout it repeats most, and how far.
    """
    if centroids is None and animals.tile_ids:
        centroids = make_centroids(animals)
    scores = {
        one.image_id: Score(image_id=one.image_id, fault=one.fault)
        for one in pictures
        if one.embedding is None
    }
    for is_background, own_kind in ((False, animals), (True, backgrounds)):
        members = [
            one
            for one in pictures
            if one.is_background == is_background and one.embedding is not None
        ]
        if not members:
            continue
        columns = _score_columns(members, centroids, backgrounds, own_kind)
        for one, values in zip(members, columns, strict=True):
            if twins is not None and one.image_id in twins:
                values["twin"], values["twin_agreement"] = twins[one.image_id]
            scores[one.image_id] = Score.model_validate({"image_id": one.image_id, **values})
    return [scores[one.image_id] for one in pictures]


def _score_columns(
    members: Sequence[EmbeddedPicture],
    centroids: Centroids | None,
    backgrounds: RealTiles,
    own_kind: RealTiles,
) -> list[dict[str, float | str]]:
    embeddings = np.stack([one.embedding for one in members if one.embedding is not None])
    rows: list[dict[str, float | str]] = [{} for _ in embeddings]
    if centroids is not None:
        asked = [one.asked_for for one in members]
        cosines = similarity_to_nearest(embeddings, centroids, asked)
        for row, cosine in zip(rows, cosines.tolist(), strict=True):
            row["similarity"] = cosine
    if backgrounds.tile_ids:
        cosines = similarity_to(embeddings, make_centroid(backgrounds.embeddings))
        for row, cosine in zip(rows, cosines.tolist(), strict=True):
            row["background_similarity"] = cosine
    if own_kind.tile_ids:
        nearest, cosines = find_nearest(embeddings, own_kind.embeddings)
        for row, index, cosine in zip(rows, nearest, cosines.tolist(), strict=True):
            row["nearest_real"] = own_kind.tile_ids[index]
            row["nearest_real_similarity"] = cosine
    layouts = [one.layout for one in members if one.layout is not None]
    if own_kind.tile_ids and own_kind.layouts is not None and len(layouts) == len(rows):
        same, agreements = find_same_layout(np.stack(layouts), own_kind.layouts)
        for row, index, agreement in zip(rows, same, agreements.tolist(), strict=True):
            row["same_layout"] = own_kind.tile_ids[index]
            row["layout_agreement"] = agreement
    return rows


def find_twins(
    read: Callable[[int, int], Packed],
    number: int,
    *,
    block: int = 1024,
    are_apart: Callable[[int, int], bool] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each picture the one before it whose layout differs least, two blocks in memory at a time.

    Differing signs are counted in the packed bits, exactly. Every picture is held against all before it:
    signs that differ in a fifth of the places can still be of one picture, and nothing exact is known
    that would pass over most pairs then.

    Args:
        read: Packed layouts, ``(n, bytes)``, of the pictures from a number to before another, the best
            first.
        number: Of pictures. The work grows with its square (decision 42 says how much it is).
        block: Pictures a block.
        are_apart: Whether a picture is known to show something else than one before it, however
            similar they are: then that one does not count.

    Returns:
        Its index and in how many signs they differ, each ``(number,)``, the first of equals; -1 and -1
        where none before it counts, as for the first.

    Examples:
        >>> packed = np.array([[0b1111], [0b1010], [0b1110]], np.uint8)
        >>> [found.tolist() for found in find_twins(lambda start, stop: packed[start:stop], 3)]
        [[-1, 0, 0], [-1, 2, 1]]
    """
    indices = np.full(number, -1, dtype=np.int64)
    fewest = np.full(number, _NEVER)
    for begin in range(0, number, block):
        rows = slice(begin, min(begin + block, number))
        here = read(rows.start, rows.stop)
        for start in range(0, rows.stop, block):
            there = here if start == begin else read(start, min(start + block, number))
            differing = _count_differing(here, there)
            if start == begin:  # itself, and those that come after
                differing[np.triu_indices(len(here))] = _NEVER
            best = differing.argmin(axis=1)
            fewer = differing[np.arange(len(here)), best] < fewest[rows]
            for row in np.flatnonzero(fewer).tolist() if are_apart else ():
                while fewer[row] and are_apart and are_apart(begin + row, start + int(best[row])):
                    differing[row, best[row]] = _NEVER
                    best[row] = differing[row].argmin()
                    fewer[row] = differing[row, best[row]] < fewest[begin + row]
            indices[rows][fewer] = start + best[fewer]
            fewest[rows][fewer] = differing[fewer, best[fewer]]
    return indices, np.where(indices < 0, -1, fewest).astype(np.int64)


def _count_differing(here: Packed, there: Packed) -> NDArray[np.float64]:
    """``(len(here), len(there))``: whole numbers, of the library, which is asked for all cores."""
    counted = simsimd.cdist(here, there, metric="hamming", dtype="bin8", threads=0)
    return np.asarray(counted, dtype=np.float64).reshape(len(here), len(there))


def judge(
    score: Score,
    limits: Limits,
    *,
    is_background: bool,
    is_placed: bool = False,
    spent: Container[str] = (),
) -> Decision:
    """Keep a picture, or drop it and say why.

    Args:
        score: Its raw score.
        limits: What it is compared with.
        is_background: It was asked to be without an animal. Then it is held against the real
            backgrounds, and never counts as a copy: one stretch of open water is as good as another.
        is_placed: Real animals were set into its water. Then it is near to their tiles on purpose, and a
            copy only where it repeats a tile's layout.
        spent: Pictures that are dropped for a reason of their own: nobody is their near-duplicate.
    """
    limit = limits.backgrounds if is_background else limits.animals
    similarity = score.background_similarity if is_background else score.similarity
    reason = None
    if score.fault is not None:
        reason = score.fault
    elif not is_background and _is_copy(score, limits, is_placed=is_placed):
        reason = COPY  # first: of an odd real tile a copy is as odd
    elif limit is not None and similarity is not None and similarity < limit:
        reason = FAR
    elif not is_background and _looks_empty(score, limits.empty):
        reason = EMPTY
    elif _is_above(limits.prompt, score.prompt_agreement):
        reason = UNLIKE_PROMPT
    elif not is_background and _is_above(score.twin_agreement, limits.twin):
        reason = None if score.twin in spent else TWIN
    return Decision(
        image_id=score.image_id,
        kept=reason is None,
        threshold=NO_LIMIT if limit is None else limit,
        reason=reason,
    )


def _is_above(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit


def _is_copy(score: Score, limits: Limits, *, is_placed: bool) -> bool:
    """The layout of a real tile; or nearer to one than real ones of other groups are, and not by chance."""
    if _is_above(score.layout_agreement, limits.layout):
        return True
    if is_placed and limits.chance is not None:
        return False
    if not _is_above(score.nearest_real_similarity, limits.copy):
        return False
    return limits.chance is None or _is_above(score.layout_agreement, limits.chance)


def _looks_empty(score: Score, limit: float | None) -> bool:
    if score.background_similarity is None or score.similarity is None:
        return False
    return _is_above(round(score.background_similarity - score.similarity, 6), limit)


def _need(left_out: LeftOut | None) -> LeftOut:
    if left_out is None:
        raise SynthdetError(
            f"filter.threshold: calibrating needs at least {MIN_GROUPS} real train tiles with an animal: "
            "set filter.threshold to a number, or add photos"
        )
    return left_out


def _background_limit(
    backgrounds: RealTiles, given: float | None, percentile: float
) -> float | None:
    if len(backgrounds.tile_ids) < MIN_BACKGROUNDS:
        return None
    if given is not None:
        return given
    similarities = _need(leave_out(backgrounds)).similarities
    return round(float(np.percentile(similarities, percentile)), 6)


def _with_notes(calibration: Calibration, *, background_check: bool) -> Calibration:
    notes = _threshold_notes(calibration)
    if calibration.left_out is not None and calibration.left_out.by == "tile":
        notes.append(
            f"the real train tiles come from fewer than {MIN_GROUPS} groups: calibrated leaving out a tile at a time, "
            "so the threshold is stricter than new sites would make it"
        )
    if calibration.separation is not None and calibration.separation < _POOR_SEPARATION:
        every = np.concatenate([calibration.negatives, calibration.named])
        notes.append(
            f"similarity hardly tells animals from background here (ROC AUC {calibration.separation:.2f}, "
            f"{_share(every >= calibration.limits.animals):.0%} of the negatives pass): look at report.png"
        )
    if calibration.limits.copy is None:
        notes.append(
            "the real train tiles are one group, so copies of real photos are not told: set filter.copy_threshold"
        )
    if calibration.named_passing:
        notes.append(
            f"{calibration.named_passing:.0%} of the {len(calibration.named)} pictures in filter.negatives "
            "would pass"
        )
    if background_check and calibration.limits.empty is None and len(calibration.negatives):
        notes.append(
            "CLIP does not tell real tiles with an animal from background tiles well enough here to say "
            "which pictures look like background: the label stage has to"
        )
    return replace(calibration, notes=tuple(notes))


def _threshold_notes(calibration: Calibration) -> list[str]:
    """That a few odd tiles would have set the threshold, and what was done about it."""
    chosen, left_out = calibration.chosen, calibration.left_out
    if chosen is None or left_out is None:
        return []
    every = np.concatenate([calibration.negatives, calibration.named])
    real = left_out.similarities
    if chosen.value > chosen.percentile:
        return [
            f"threshold raised from {chosen.percentile:.2f}, which a few real tiles unlike the rest had set, to "
            f"{chosen.value:.2f}: {_share(every >= chosen.value):.0%} instead of "
            f"{_share(every >= chosen.percentile):.0%} of the {len(every)} negatives pass, and "
            f"{_share(real < chosen.value):.0%} instead of {_share(real < chosen.percentile):.0%} of the real tiles "
            "are below it"
        ]
    odd = _share(real < chosen.fence) - _share(real < chosen.percentile)
    if len(every) < MIN_NEGATIVES and odd > _MANY_ODD:
        return [
            f"the threshold of {chosen.value:.2f} is set by a few real tiles unlike the rest ({odd:.0%} are below "
            f"{chosen.fence:.2f}): name pictures that must not pass in filter.negatives, and it is raised "
            "where that keeps them out"
        ]
    return []


def _rounded(cosines: Embeddings) -> Similarities:
    return np.asarray(np.round(cosines.astype(np.float64), 6), dtype=np.float64)


def _share(passed: NDArray[np.bool_]) -> float:
    return round(float(passed.mean()), 4)
