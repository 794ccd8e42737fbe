"""Square crops of photos at one ground scale: around animals, which stay whole, and of background.

The crops of a run have one side in photo pixels, so that an animal in one tile is as large as the same
animal in any other. Only further looks at an animal, in train, are cut larger or smaller, and only so
far that no animal becomes larger or smaller than animals of the survey are (`Zoom`). Planned from
records alone: no pixel is read here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from synthdet.core.boxes import area, intersection, to_crop
from synthdet.core.records import XYXY, Box

MAX_ENLARGEMENT: Final = 2.0
SLIVER: Final = 0.05
"""An animal of which at most this share of the box reaches into a crop counts as outside it."""
SMALL_PHOTOS: Final = 10.0
"""With `scale: auto`, at most this percentage of the photos may be smaller than a crop."""
GOOD_BLANK: Final = 0.05
"""Share of a crop that may be blank without a second thought."""
MAX_LOST: Final = 0.2
"""With `scale: auto`, the share of animals without a tile from which crops are made larger."""
_GROWTH: Final = (1.0, 1.25, 1.5, 1.75, 2.0)
_POSITIONS: Final = 48
"""Regularly spaced crop positions that are tried along each axis, besides those beside boxes."""
_MAX_POSITIONS: Final = 112


@dataclass(frozen=True, slots=True)
class Ground:
    """The ground scale of a run.

    Attributes:
        crop_side: Side of a crop, in photo pixels.
        scale: Tile pixels a photo pixel: resolution / crop_side.
        reason: How it came about, for people.
    """

    crop_side: int
    scale: float
    reason: str


@dataclass(frozen=True, slots=True)
class Zoom:
    """How far further looks at an animal may be cut larger or smaller.

    Attributes:
        factor: Largest change of size, at least 1; 1 for none.
        sizes: Longer side of small and of large animals of the survey, in photo pixels. No animal is
            zoomed out of these bounds.
        min_side: Smallest side of a crop, in photo pixels: below it a tile shows no more, only larger.
    """

    factor: float
    sizes: tuple[float, float]
    min_side: int


@dataclass(frozen=True, slots=True)
class Crop:
    """A planned crop.

    Attributes:
        xyxy: In whole pixels of the photo. Reaches over the right or lower edge where the photo is
            smaller than a crop.
        animals: Positions, in the photo's list, of the boxes that are in it, all of them whole.
    """

    xyxy: tuple[int, int, int, int]
    animals: tuple[int, ...]


@dataclass(slots=True)
class ObjectCrops:
    """Crops around the animals of one photo, and the animals that no crop could take.

    Attributes:
        crops: The crops.
        too_large: Positions of animals longer than a crop.
        crowded: Positions of animals that no crop holds without cutting another animal.
        beside_blank: Positions of animals of which every crop shows too much of what is blank.
    """

    crops: list[Crop] = field(default_factory=list)
    too_large: list[int] = field(default_factory=list)
    crowded: list[int] = field(default_factory=list)
    beside_blank: list[int] = field(default_factory=list)


def plan_ground(
    longer_sides: Sequence[float],
    photo_sizes: Sequence[tuple[int, int]],
    *,
    resolution: int,
    animal_fraction: float,
    scale: float | None,
) -> Ground:
    """The run's ground scale.

    Without a given scale, the median animal is ``animal_fraction`` of a tile, but photos are never
    enlarged more than `MAX_ENLARGEMENT` times, and a crop is not larger than nine in ten photos.

    Args:
        longer_sides: Longer side of every train box, in photo pixels.
        photo_sizes: Width and height of every photo.
        resolution: Side of a tile in pixels.
        animal_fraction: In 0..1.
        scale: Tile pixels a photo pixel; None to choose.

    Examples:
        >>> plan_ground([30, 40, 50], [(640, 480)], resolution=128, animal_fraction=0.25, scale=None)
        Ground(crop_side=160, scale=0.8, reason='the median animal (40 px) is 0.25 of a tile')
    """
    if scale is not None:
        side, reason = max(1, round(resolution / scale)), "prepare.scale"
        return Ground(side, resolution / side, reason)
    median = float(np.median(longer_sides)) if len(longer_sides) else float(resolution)
    side = max(1, round(median / animal_fraction))
    reason = f"the median animal ({median:.0f} px) is {animal_fraction:g} of a tile"
    shorter = [min(size) for size in photo_sizes]
    room = math.floor(np.percentile(shorter, SMALL_PHOTOS)) if shorter else side
    if side > room:
        side, reason = max(1, room), f"a crop is as large as the photos ({room} px)"
    smallest = math.ceil(resolution / MAX_ENLARGEMENT)
    if side < smallest:
        side, reason = smallest, f"photos are enlarged {resolution / smallest:g} times, not more"
    return Ground(side, resolution / side, reason)


def make_room(
    ground: Ground,
    photos: Sequence[tuple[Sequence[Box], int, int]],
    *,
    resolution: int,
    seed: int,
) -> Ground:
    """Larger crops where animals stand so close that most crops would cut one.

    The smallest crop side, up to twice the wanted one, that leaves at most `MAX_LOST` of the animals
    without a tile; else the one that leaves the fewest. Within the photos, or, as the last choice, as
    large as whole photos: then nothing is cut, and what lacks to a square is filled up.

    Args:
        ground: As `plan_ground` wants it.
        photos: Boxes, width and height of each photo.
        resolution: Side of a tile in pixels.
        seed: Of the positions tried.
    """
    if not photos:
        return ground
    room = math.floor(np.percentile([min(own[1:]) for own in photos], SMALL_PHOTOS))
    whole = math.ceil(np.percentile([max(own[1:]) for own in photos], 100 - SMALL_PHOTOS))
    sides = [side for growth in _GROWTH if (side := round(ground.crop_side * growth)) < room]
    sides += [side for side in (room, whole) if side <= ground.crop_side * _GROWTH[-1]]
    best: tuple[float, int] | None = None
    for side in sorted({ground.crop_side, *(side for side in sides if side > ground.crop_side)}):
        lost = total = 0
        for number, (boxes, width, height) in enumerate(photos):
            rng = rng_for(seed, str(number))
            lost += len(plan_object_crops(boxes, width, height, side, views=1, rng=rng).crowded)
            total += len(boxes)
        share = lost / max(total, 1)
        if best is None or share < best[0]:
            best = (share, side)
        if share <= MAX_LOST:
            break
    if best is None or best[1] == ground.crop_side:
        return ground
    reason = f"{ground.reason}, made larger because animals crowd"
    return Ground(best[1], resolution / best[1], reason)


def rng_for(seed: int, name: str) -> np.random.Generator:
    """A generator of its own for a photo, whatever the other photos are."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def plan_object_crops(
    boxes: Sequence[Box],
    width: int,
    height: int,
    side: int,
    *,
    views: int,
    rng: np.random.Generator,
    blank: Sequence[XYXY] = (),
    max_blank: float = 1.0,
    zoom: Zoom | None = None,
) -> ObjectCrops:
    """Crops that together hold every animal of a photo that can be held whole, each in one crop.

    The crops of the first view never share an animal, so that none is counted twice; further views
    (train only) hold the same animal again, at another offset, and at another size where ``zoom`` allows
    it. A position that would cut an animal is not used.

    Args:
        boxes: The animals, in pixels of the photo.
        width: Of the photo.
        height: Of the photo.
        side: Of a crop, in photo pixels.
        views: Crops around each animal or cluster.
        rng: Draws among the good positions.
        blank: Areas of the photo that show nothing and do not overlap. Crops keep out of them where
            they can.
        max_blank: Share of a crop, in 0..1, that may be blank.
        zoom: Sizes of further views; None for none.
    """
    planned = ObjectCrops()
    covered: set[int] = set()
    order = sorted(range(len(boxes)), key=lambda number: (boxes[number].xyxy[1::-1], number))
    edges = np.array([box.xyxy for box in boxes], dtype=np.float64).reshape(-1, 4)
    for animal in order:
        if animal in covered:
            continue
        x1, y1, x2, y2 = boxes[animal].xyxy
        if math.ceil(x2) - math.floor(x1) > side or math.ceil(y2) - math.floor(y1) > side:
            planned.too_large.append(animal)
            continue
        positions, holds = _positions(edges, animal, width, height, side, rng)
        free = ~holds[:, sorted(covered)].any(axis=1)
        positions, holds = positions[free], holds[free]
        if not len(positions):
            planned.crowded.append(animal)
            continue
        empty = _blank_shares(positions, side, blank)
        seen = empty <= max(float(empty.min()), GOOD_BLANK)
        positions, holds = positions[seen], holds[seen]
        if float(empty.min()) > max_blank:
            planned.beside_blank.append(animal)
            continue
        counts = holds.sum(axis=1)
        best = int(np.argmax(counts))  # the first of the best: positions come shuffled
        covered.update(np.flatnonzero(holds[best]).tolist())
        planned.crops.append(_crop(positions[best], side, holds[best]))
        for _view in range(1, views):
            used = [crop for crop in planned.crops if animal in crop.animals]
            crop = zoom and _zoomed(edges, animal, (width, height), side, zoom, used, blank, rng)
            crop = crop or _other_look(positions, holds, side, used, max(1, side // 16))
            if crop is None:
                break  # no room for another look
            planned.crops.append(crop)
    return planned


def size_bounds(longer_sides: Sequence[float]) -> tuple[float, float]:
    """Small and large animals of a survey: what 5 and 95 of 100 are shorter than.

    Examples:
        >>> size_bounds([30, 40, 50])
        (31.0, 49.0)
    """
    low, high = np.percentile(longer_sides, (5, 95)) if len(longer_sides) else (0.0, 0.0)
    return round(float(low), 2), round(float(high), 2)


def plan_background_crops(
    boxes: Sequence[Box],
    width: int,
    height: int,
    side: int,
    *,
    rng: np.random.Generator,
    blank: Sequence[XYXY] = (),
) -> list[Crop]:
    """Crops of a photo that touch no animal, nor much blank, and do not overlap, in random order."""
    columns, rows = max(1, width // side), max(1, height // side)
    x0 = int(rng.integers(0, max(0, width - columns * side) + 1))
    y0 = int(rng.integers(0, max(0, height - rows * side) + 1))
    crops = []
    for number in rng.permutation(columns * rows).tolist():
        x, y = x0 + side * (number % columns), y0 + side * (number // columns)
        xyxy = (x, y, x + side, y + side)
        empty = float(_blank_shares(np.array([[x, y]]), side, blank)[0])
        if empty <= GOOD_BLANK and not any(intersection(box.xyxy, xyxy) for box in boxes):
            crops.append(Crop(xyxy, ()))
    return crops


def num_background(num_object_crops: int, num_photos: int, fraction: float) -> int:
    """Background crops that make up ``fraction`` of all; one a photo where there are no animals.

    Examples:
        >>> num_background(80, 10, 0.2), num_background(0, 3, 0.2), num_background(80, 10, 0)
        (20, 3, 0)
    """
    if fraction == 0:
        return 0
    return round(num_object_crops * fraction / (1 - fraction)) if num_object_crops else num_photos


def take_in_turn(offers: Sequence[Sequence[Crop]], wanted: int) -> list[list[Crop]]:
    """Choose up to ``wanted`` crops: the first of every photo, then the second of every photo, ...

    Returns:
        The chosen crops of each photo, in order.
    """
    chosen: list[list[Crop]] = [[] for _ in offers]
    for turn in range(max((len(offer) for offer in offers), default=0)):
        for own, offer in zip(chosen, offers, strict=True):
            if turn < len(offer) and wanted > 0:
                own.append(offer[turn])
                wanted -= 1
    return chosen


def tile_boxes(boxes: Sequence[Box], crop: Crop, scale: float) -> tuple[Box, ...]:
    """The boxes of a crop in pixels of its tile."""
    return tuple(to_crop(boxes[number], crop.xyxy, scale) for number in crop.animals)


def visible_share(box: XYXY, crop: XYXY) -> float:
    """Share of a box's area that lies in a crop, in 0..1.

    Examples:
        >>> visible_share((90, 0, 110, 10), (0, 0, 100, 100))
        0.5
    """
    return intersection(box, crop) / max(area(box), 1e-12)


def _blank_shares(
    positions: NDArray[np.int64], side: int, blank: Sequence[XYXY]
) -> NDArray[np.float64]:
    """Share of the crop at each position ``(n, 2)`` that is blank: ``(n,)``."""
    shares = np.zeros(len(positions))
    for x1, y1, x2, y2 in blank:
        across = np.minimum(positions[:, 0] + side, x2) - np.maximum(positions[:, 0], x1)
        down = np.minimum(positions[:, 1] + side, y2) - np.maximum(positions[:, 1], y1)
        shares += np.maximum(across, 0) * np.maximum(down, 0)
    return np.asarray(shares / side**2)


def _zoomed(
    edges: NDArray[np.float64],
    animal: int,
    size_wh: tuple[int, int],
    side: int,
    zoom: Zoom,
    used: Sequence[Crop],
    blank: Sequence[XYXY],
    rng: np.random.Generator,
) -> Crop | None:
    """Another look at an animal at another size; None where its size is to stay, or nothing fits."""
    longer = np.maximum(edges[:, 2] - edges[:, 0], edges[:, 3] - edges[:, 1])
    low, high = (bound / float(longer[animal]) for bound in zoom.sizes)
    low, high = min(1.0, max(low, 1 / zoom.factor)), max(1.0, min(high, zoom.factor))
    if low == high:
        return None
    drawn = math.exp(rng.uniform(math.log(low), math.log(high)))
    largest = max(side, min(size_wh))  # not beyond the photo, where there is nothing
    own_side = min(max(round(side / drawn), min(side, zoom.min_side)), largest)
    if own_side == side:
        return None
    if math.ceil(max(edges[animal, 2:] - np.floor(edges[animal, :2]))) > own_side:
        return None
    positions, holds = _positions(edges, animal, *size_wh, own_side, rng)
    after = longer * (side / own_side)
    beyond = (after < np.minimum(zoom.sizes[0], longer)) | (
        after > np.maximum(zoom.sizes[1], longer)
    )
    good = ~holds[:, beyond].any(axis=1)
    good &= _blank_shares(positions, own_side, blank) <= GOOD_BLANK
    return _other_look(positions[good], holds[good], own_side, used, 0)


def _other_look(
    positions: NDArray[np.int64],
    holds: NDArray[np.bool_],
    side: int,
    used: Sequence[Crop],
    least: int,
) -> Crop | None:
    """The first of the crops that are far from those used; None where all are nearer than ``least``."""
    if not len(positions):
        return None
    centres = np.array(
        [[(x1 + x2) / 2, (y1 + y2) / 2] for x1, y1, x2, y2 in (own.xyxy for own in used)]
    )
    away = np.abs(positions[:, None, :] + side / 2 - centres[None]).max(axis=2).min(axis=1)
    other = int(np.argmax(np.minimum(away, side // 4)))
    if away[other] < least:
        return None
    return _crop(positions[other], side, holds[other])


def _crop(position: NDArray[np.int64], side: int, holds: NDArray[np.bool_]) -> Crop:
    x, y = int(position[0]), int(position[1])
    return Crop((x, y, x + side, y + side), tuple(np.flatnonzero(holds).tolist()))


def _positions(
    edges: NDArray[np.float64],
    animal: int,
    width: int,
    height: int,
    side: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Crop positions ``(n, 2)`` that hold an animal and cut none, shuffled, and what each holds.

    Returns:
        Positions (x, y of the upper left corner) and a table ``(n, boxes)`` of the boxes inside.
    """
    own = edges[animal]
    near = np.flatnonzero(
        (edges[:, 2] > own[2] - side)
        & (edges[:, 0] < own[0] + side)
        & (edges[:, 3] > own[3] - side)
        & (edges[:, 1] < own[1] + side)
    )
    xs = _axis(edges[near][:, [0, 2]], own[[0, 2]], width, side, rng)
    ys = _axis(edges[near][:, [1, 3]], own[[1, 3]], height, side, rng)
    share_x, inside_x = _overlap(xs, edges[near][:, [0, 2]], side)
    share_y, inside_y = _overlap(ys, edges[near][:, [1, 3]], side)
    inside = inside_x[:, None, :] & inside_y[None, :, :]
    cut = ~inside & (share_x[:, None, :] * share_y[None, :, :] > SLIVER)
    good = np.argwhere(~cut.any(axis=2))
    good = good[rng.permutation(len(good))]
    holds = np.zeros((len(good), len(edges)), dtype=np.bool_)
    holds[:, near] = inside[good[:, 0], good[:, 1]]
    return np.stack([xs[good[:, 0]], ys[good[:, 1]]], axis=1), holds


def _axis(
    spans: NDArray[np.float64],
    own: NDArray[np.float64],
    length: int,
    side: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Whole positions along one axis from which a crop holds the span ``own``.

    Regularly spaced ones, and those at which another box just enters or just leaves the crop.
    """
    low = max(0, math.ceil(own[1]) - side)
    high = min(math.floor(own[0]), max(0, length - side))
    low = min(low, high)
    beside = np.concatenate(
        [
            np.floor(spans[:, 0]),
            np.ceil(spans[:, 1]),
            np.ceil(spans[:, 1]) - side,
            np.floor(spans[:, 0]) - side,
        ]
    )
    beside = np.unique(beside[(beside >= low) & (beside <= high)].astype(np.int64))
    regular = np.unique(np.linspace(low, high, _POSITIONS).round().astype(np.int64))
    if len(beside) > _MAX_POSITIONS - _POSITIONS:
        beside = rng.choice(beside, _MAX_POSITIONS - _POSITIONS, replace=False)
    return np.union1d(regular, beside)


def _overlap(
    starts: NDArray[np.int64], spans: NDArray[np.float64], side: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Share of each span inside each crop, and whether it is wholly inside: ``(starts, spans)``."""
    left = np.maximum(starts[:, None], spans[None, :, 0])
    right = np.minimum(starts[:, None] + side, spans[None, :, 1])
    share = np.maximum(0, right - left) / np.maximum(spans[:, 1] - spans[:, 0], 1e-9)
    inside = (starts[:, None] <= spans[None, :, 0]) & (starts[:, None] + side >= spans[None, :, 1])
    return share, inside
