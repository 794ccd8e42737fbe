"""Train, val and test: drawn once, by whole groups, before anything is learned.

Synthetic pictures only ever enter train (`require_train`).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synthdet.core.records import SPLITS, Source, Split
from synthdet.errors import SynthdetError


@dataclass(frozen=True, slots=True)
class Member:
    """A photo, as far as splitting goes.

    Attributes:
        group: What must not be torn.
        chain: The chain of groups that touch each other; the group itself where there is none.
        original: What copies of one original share; they count as one photo.
        classes: Class of each animal in it.
    """

    group: str
    chain: str
    original: str
    classes: tuple[int, ...]


def require_train(source: Source, split: Split, image_id: str) -> None:
    """Refuse a picture that was made, not photographed, anywhere but in train.

    Raises:
        SynthdetError: It is synthetic or augmented, and the split is val or test.

    Examples:
        >>> require_train("real", "test", "a")
        >>> require_train("synthetic", "test", "syn-000001")
        Traceback (most recent call last):
        synthdet.errors.SynthdetError: syn-000001 is synthetic: it may only enter train, not test
    """
    if source != "real" and split != "train":
        raise SynthdetError(f"{image_id} is {source}: it may only enter train, not {split}")


def plan_splits(
    members: Sequence[Member], *, val_fraction: float, test_fraction: float, seed: int
) -> dict[str, Split]:
    """A split for each group, close to the wanted shares of photos, empty photos and animals.

    Chains of touching groups stay whole as long as there are three chains and none is larger than
    train may be. A chain that has to be broken gives each split one run of neighbouring groups, so
    that there are two cuts and not many. Everything else is dealt out one by one, largest first, each
    to the split that it brings closest to its share of photos, of empty ones and of every class; val
    and test get at least one group with animals where three groups have some.

    Args:
        members: The photos.
        val_fraction: Share of val, in 0..1.
        test_fraction: Share of test, in 0..1.
        seed: Of the order among equals, and of the direction of runs.

    Raises:
        SynthdetError: Fewer than three groups, or no room for train.

    Source:
        The dealing is that of scikit-learn's StratifiedGroupKFold: greedy by distance to the target.
    """
    shares = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
    if shares["train"] <= 0:
        raise SynthdetError(
            f"prepare.val_fraction {val_fraction} and prepare.test_fraction {test_fraction} leave nothing for train: lower them"
        )
    groups = sorted({member.group for member in members}, key=_natural)
    if len(groups) < len(SPLITS):
        raise SynthdetError(
            f"{len(groups)} group(s) of photos: a split needs three, see prepare.few_groups"
        )
    features = _features(members, groups)
    targets = np.array([shares[split] for split in SPLITS])[:, None]
    rng = np.random.default_rng(seed)
    planned: dict[str, Split] = {}
    units: list[list[str]] = []
    for chain, broken in _chains(members, groups, features, shares["train"]):
        if broken and len(chain) >= len(SPLITS):
            planned.update(_runs(chain, val_fraction, test_fraction, rng))
        else:
            units.extend([[group] for group in chain] if broken else [chain])
    _deal(units, planned, groups, features, targets, rng)
    _fill_empty(planned, groups, features)
    return planned


def find_leaks(levels: Mapping[str, Sequence[str]], splits: Sequence[Split]) -> dict[str, int]:
    """How often kin stand in different splits.

    Args:
        levels: Name of a kind of kinship -> the key of each photo.
        splits: Of each photo.

    Returns:
        For each level the number of keys found in more than one split; ``photos`` is the number of
        val and test photos that have kin of any level in train. All 0 where the splits are clean.

    Examples:
        >>> find_leaks({"groups": ["a", "a", "b"]}, ["train", "test", "val"])
        {'groups': 1, 'photos': 1}
    """
    leaks: dict[str, int] = {}
    leaking: set[int] = set()
    for level, keys in levels.items():
        found: dict[str, set[Split]] = defaultdict(set)
        for key, split in zip(keys, splits, strict=True):
            found[key].add(split)
        leaks[level] = sum(len(own) > 1 for own in found.values())
        leaking.update(
            number
            for number, (key, split) in enumerate(zip(keys, splits, strict=True))
            if split != "train" and "train" in found[key]
        )
    return {**leaks, "photos": len(leaking)}


def touching(members: Sequence[Member], planned: Mapping[str, Split]) -> int:
    """How many neighbouring groups of one chain ended up in different splits."""
    chains: dict[str, set[str]] = defaultdict(set)
    for member in members:
        chains[member.chain].add(member.group)
    return sum(
        planned[before] != planned[after]
        for chain in chains.values()
        for before, after in itertools.pairwise(sorted(chain, key=_natural))
    )


def limit_train(members: Sequence[Member], max_photos: int, seed: int) -> set[int]:
    """Which train photos to use where only some are wanted: whole groups first, drawn by seed.

    The first group drawn is one with animals, if there is one.

    Returns:
        Positions in ``members``, ``max_photos`` of them, or all if there are fewer.
    """
    positions: dict[str, list[int]] = defaultdict(list)
    for number, member in enumerate(members):
        positions[member.group].append(number)
    groups = sorted(positions, key=_natural)
    drawn = [groups[number] for number in np.random.default_rng(seed).permutation(len(groups))]
    with_animals = [
        group for group in drawn if any(members[number].classes for number in positions[group])
    ]
    if with_animals:
        drawn.remove(with_animals[0])
        drawn.insert(0, with_animals[0])
    chosen: set[int] = set()
    for group in drawn:
        if len(chosen) + len(positions[group]) <= max_photos:
            chosen.update(positions[group])
    for group in drawn:
        for number in positions[group]:
            if len(chosen) < max_photos:
                chosen.add(number)
    return chosen


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that counts: ``f-9`` before ``f-10``."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _features(members: Sequence[Member], groups: Sequence[str]) -> NDArray[np.float64]:
    """Shares of each group ``(groups, 2 + classes)``: photos, empty photos, animals by class."""
    copies = Counter(member.original for member in members)
    classes = sorted({class_id for member in members for class_id in member.classes})
    place = {group: number for number, group in enumerate(groups)}
    features = np.zeros((len(groups), 2 + len(classes)))
    for member in members:
        weight = 1 / copies[member.original]
        row = features[place[member.group]]
        row[0] += weight
        row[1] += weight * (not member.classes)
        for class_id in member.classes:
            row[2 + classes.index(class_id)] += weight
    return np.asarray(features / np.maximum(features.sum(axis=0), 1e-12))


def _chains(
    members: Sequence[Member],
    groups: Sequence[str],
    features: NDArray[np.float64],
    train_share: float,
) -> list[tuple[list[str], bool]]:
    """Groups of each chain in order, and whether the chain has to be broken."""
    chain_of = {member.group: member.chain for member in members}
    chains: dict[str, list[str]] = defaultdict(list)
    share: dict[str, float] = defaultdict(float)
    for number, group in enumerate(groups):
        chains[chain_of[group]].append(group)
        share[chain_of[group]] += float(features[number, 0])
    few = len(chains) < len(SPLITS)
    return [
        (chain, len(chain) > 1 and (few or share[name] > train_share))
        for name, chain in chains.items()
    ]


def _runs(
    chain: Sequence[str], val_fraction: float, test_fraction: float, rng: np.random.Generator
) -> dict[str, Split]:
    num_test = max(1, round(len(chain) * test_fraction))
    num_val = max(1, round(len(chain) * val_fraction))
    while num_test + num_val >= len(chain):
        num_test, num_val = (num_test - 1, num_val) if num_test > 1 else (num_test, num_val - 1)
    num_train = len(chain) - num_test - num_val
    splits: list[Split] = [
        *itertools.repeat(SPLITS[2], num_test),
        *itertools.repeat(SPLITS[1], num_val),
        *itertools.repeat(SPLITS[0], num_train),
    ]
    return dict(zip(chain, splits if rng.integers(2) else splits[::-1], strict=True))


def _deal(
    units: Sequence[Sequence[str]],
    planned: dict[str, Split],
    groups: Sequence[str],
    features: NDArray[np.float64],
    targets: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Add units to the plan, largest first, each where it brings the loads closest to the targets.

    When no more units with animals are left than splits still without any, these get them.
    """
    place = {group: number for number, group in enumerate(groups)}
    loads = np.zeros((len(SPLITS), features.shape[1]))
    for group, split in planned.items():
        loads[SPLITS.index(split)] += features[place[group]]
    lacking = [number for number in range(len(SPLITS)) if not loads[number, 2:].any()]
    weights = [np.sum([features[place[group]] for group in unit], axis=0) for unit in units]
    left = sum(bool(weight[2:].any()) for weight in weights)
    order = sorted(rng.permutation(len(units)).tolist(), key=lambda unit: -weights[unit].max())
    for unit in order:
        choices = list(range(len(SPLITS)))
        has_animals = bool(weights[unit][2:].any())
        if has_animals and lacking and left <= len(lacking):
            choices = lacking
        costs = [_cost(loads, weights[unit], targets, choice) for choice in choices]
        chosen = choices[int(np.argmin(costs))]
        loads[chosen] += weights[unit]
        planned.update(dict.fromkeys(units[unit], SPLITS[chosen]))
        if has_animals:
            left -= 1
            lacking = [number for number in lacking if number != chosen]


def _cost(
    loads: NDArray[np.float64],
    weight: NDArray[np.float64],
    targets: NDArray[np.float64],
    choice: int,
) -> float:
    after = loads.copy()
    after[choice] += weight
    return float(((after - targets) ** 2).sum())


def _fill_empty(
    planned: dict[str, Split], groups: Sequence[str], features: NDArray[np.float64]
) -> None:
    """Give a split that got nothing the smallest group of the split that has most."""
    for split in SPLITS:
        if split in planned.values():
            continue
        count = Counter(planned.values())
        richest = max(SPLITS, key=lambda own: count[own])
        smallest = min(
            (number for number, group in enumerate(groups) if planned[group] == richest),
            key=lambda number: float(features[number].max()),
        )
        planned[groups[smallest]] = split
