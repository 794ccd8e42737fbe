"""Subsets of a training set that grow: each holds all of the smaller ones, whatever the sizes asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from synthdet.core.differences import Difference

FLAT = 0.01
"""A curve has become flat where the interval of a step lies within so much of 0 on either side."""


def nested_order(names: Sequence[str], seed: int) -> list[str]:
    """All names in an order drawn by seed; the first n of them are the subset of size n.

    Examples:
        >>> order = nested_order(["a", "b", "c", "d"], seed=3)
        >>> sorted(order), order == nested_order(["d", "c", "b", "a"], seed=3)
        (['a', 'b', 'c', 'd'], True)
    """
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class GroupedPhoto:
    """A real train photo: its name, its group, and whether any of its pictures shows an animal."""

    name: str
    group: str
    has_animal: bool


def nested_photos(photos: Sequence[GroupedPhoto], seed: int) -> list[str]:
    """All photos in an order drawn by seed, one group after the other.

    Whoever has only twenty photos has them of few flights: photos of a group come together. The
    first photo is one with an animal, if there is one, as a detector learns nothing from none.

    Returns:
        Names; within a group in the order given, but for that first one.

    Examples:
        >>> photos = [GroupedPhoto("a1", "a", False), GroupedPhoto("b1", "b", True),
        ...           GroupedPhoto("a2", "a", False), GroupedPhoto("b2", "b", False)]
        >>> nested_photos(photos, seed=0)
        ['b1', 'b2', 'a1', 'a2']
    """
    groups = nested_order(sorted({photo.group for photo in photos}), seed)
    with_animals = {photo.group for photo in photos if photo.has_animal}
    # A stable sort: among the others the drawn order stays.
    first = next((group for group in groups if group in with_animals), None)
    groups.sort(key=lambda group: group != first)
    ordered = [photo for group in groups for photo in photos if photo.group == group]
    start = next((photo for photo in ordered if photo.has_animal), None)
    ordered.sort(key=lambda photo: photo is not start)
    return [photo.name for photo in ordered]


def is_flat(step: Difference) -> bool:
    """Whether a step of a curve, from one point to the next, is known to change as good as nothing.

    Examples:
        >>> is_flat(Difference(0.002, -0.004, 0.008, 3, 20))
        True
        >>> is_flat(Difference(0.002, -0.030, 0.034, 3, 20))  # it may well change something
        False
    """
    if step.low is None or step.high is None:
        return False
    return step.low > -FLAT and step.high < FLAT
