"""Train, val and test: drawn once, by whole groups, before anything is learned.

Synthetic pictures only ever enter train (`require_train`).
"""

from __future__ import annotations

import bisect
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where a photo stands: its group and its split."""

    group: str
    split: Split


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
    members: Sequence[Member],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    fixed: Mapping[str, Split] | None = None,
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
        fixed: Groups whose split stands already; the others are dealt out beside them.

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
    planned: dict[str, Split] = dict(fixed or {})
    units: list[list[str]] = []
    for chain, broken in _chains(members, groups, features, shares["train"], planned):
        if broken and len(chain) >= len(SPLITS):
            planned.update(_runs(chain, val_fraction, test_fraction, rng))
        else:
            units.extend([[group] for group in chain] if broken else [chain])
    _deal(units, planned, groups, features, targets, rng)
    _fill_empty(planned, groups, features, fixed or {})
    return planned


def plan_additions(
    members: Sequence[Member],
    close: Sequence[str],
    known: Sequence[Place | None],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
) -> list[Place | None]:
    """Places for photos that were added to a survey; those that have one keep it.

    A new photo goes where its kin stand: those it is close to, else those of its group, else those of
    its chain (the nearest of them, where they stand in several splits). What has no kin is dealt out
    as `plan_splits` does, to bring the whole closest to the wanted shares.

    Args:
        members: All photos, with the groups and chains that they form now, old and new together.
        close: For each photo the key that it shares with copies, tiles of one frame and near-duplicates.
            Photos of one key are of one group.
        known: Where each photo stood before; None for a new one.
        val_fraction: Share of val, in 0..1.
        test_fraction: Share of test, in 0..1.
        seed: Of the order among equals.

    Returns:
        A place for each photo; None for a new one that is close to photos of two splits: wherever it
        went, it would leak.
    """
    places = list(known)
    splits_of = _places_by(close, known)
    undecided = []
    for number, place in enumerate(known):
        if place is None:
            kin = splits_of.get(close[number], [])
            if not kin:
                undecided.append(number)
            elif len({own.split for own in kin}) == 1:
                places[number] = kin[0]
    names = {own.group: own.split for own in known if own is not None}
    by_kin: dict[str, Place] = {}
    groups = {}
    for number, near, of_group in _nearest(members, known, undecided):
        group = members[number].group
        if near is None:
            groups[number] = _free_name(group, None, names)
        elif of_group:
            places[number] = by_kin.setdefault(f"close {close[number]}", near)
        else:  # a group of its own, and all of it into one split
            beside = Place(_free_name(group, near.split, names), near.split)
            places[number] = by_kin.setdefault(f"group {group}", beside)
    present = [
        replace(member, group=place.group if place else groups[number])
        for number, (member, place) in enumerate(zip(members, places, strict=True))
        if place or number in groups
    ]
    planned = plan_splits(
        present,
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        fixed={own.group: own.split for own in places if own is not None},
    )
    for number, group in groups.items():
        places[number] = Place(group, planned[group])
    return places


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
    fixed: Mapping[str, Split],
) -> list[tuple[list[str], bool]]:
    """Groups of each chain in order, those that are not fixed, and whether it has to be broken."""
    chain_of = {member.group: member.chain for member in members}
    chains: dict[str, list[str]] = defaultdict(list)
    share: dict[str, float] = defaultdict(float)
    for number, group in enumerate(groups):
        chains[chain_of[group]].append(group)
        share[chain_of[group]] += float(features[number, 0])
    few = len(chains) < len(SPLITS) and not fixed
    return [
        (free, len(free) > 1 and (few or share[name] > train_share))
        for name, chain in chains.items()
        if (free := [group for group in chain if group not in fixed])
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
    planned: dict[str, Split],
    groups: Sequence[str],
    features: NDArray[np.float64],
    fixed: Mapping[str, Split],
) -> None:
    """Give a split that got nothing the smallest free group of the split that has most of them."""
    for split in SPLITS:
        if split in planned.values():
            continue
        count = Counter(own for group, own in planned.items() if group not in fixed)
        richest = max(SPLITS, key=lambda own: count[own])
        free = [
            number
            for number, group in enumerate(groups)
            if group not in fixed and planned[group] == richest
        ]
        if not free:
            raise SynthdetError(
                f"no photo is left in {split}, and none of the others may move there: "
                "set another prepare.seed for new splits"
            )
        smallest = min(free, key=lambda number: float(features[number].max()))
        planned[groups[smallest]] = split


def _places_by(keys: Sequence[str], known: Sequence[Place | None]) -> dict[str, list[Place]]:
    places: dict[str, list[Place]] = defaultdict(list)
    for key, place in zip(keys, known, strict=True):
        if place is not None:
            places[key].append(place)
    return places


def _nearest(
    members: Sequence[Member], known: Sequence[Place | None], wanted: Sequence[int]
) -> Iterator[tuple[int, Place | None, bool]]:
    """For each new photo the place of its nearest known kin, and whether that is of its own group."""
    order = sorted(
        range(len(members)),
        key=lambda number: [
            _natural(key) for key in (members[number].group, members[number].original)
        ],
    )
    rank = {number: place for place, number in enumerate(order)}
    settled: dict[str, list[int]] = defaultdict(list)  # ranks of the known, by group and by chain
    for place, number in enumerate(order):
        if known[number] is not None:
            settled[f"group {members[number].group}"].append(place)
            settled[f"chain {members[number].chain}"].append(place)
    for number in wanted:
        own = settled.get(f"group {members[number].group}")
        kin = own or settled.get(f"chain {members[number].chain}")
        if not kin:
            yield number, None, False
            continue
        after = bisect.bisect(kin, rank[number])
        nearest = min(kin[max(0, after - 1) : after + 1], key=lambda one: abs(one - rank[number]))
        yield number, known[order[nearest]], bool(own)


def _free_name(group: str, split: Split | None, names: Mapping[str, Split]) -> str:
    """A name for a new group that does not stand for an old one in another split."""
    return group if names.get(group, split) == split else f"{group} (added)"
