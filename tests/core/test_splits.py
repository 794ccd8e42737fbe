"""Splits: whole groups, near the wanted shares, and never a made picture outside train."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthdet.core.splits import (
    Member,
    Place,
    find_leaks,
    limit_train,
    plan_additions,
    plan_splits,
    require_train,
    touching,
)
from synthdet.errors import SynthdetError


def member(group: str, animals: int = 1, *, chain: str | None = None, original: str = "") -> Member:
    number = next(_numbers)
    return Member(group, chain or group, original or f"photo {number}", (0,) * animals)


_numbers = iter(range(1_000_000))


def plan(
    members: list[Member], seed: int = 0, val: float = 0.15, test: float = 0.25
) -> dict[str, str]:
    return plan_splits(members, val_fraction=val, test_fraction=test, seed=seed)


def shares(members: list[Member], planned: dict[str, str]) -> dict[str, float]:
    count = Counter(planned[own.group] for own in members)
    return {split: number / len(members) for split, number in count.items()}


@pytest.mark.parametrize("seed", range(5))
def test_shares_are_close_and_animals_and_empties_are_everywhere(seed):
    rng = np.random.default_rng(seed)
    members = [
        member(f"g{group}", int(rng.integers(0, 4)))
        for group in range(40)
        for _photo in range(int(rng.integers(1, 8)))
    ]
    planned = plan(members, seed)
    got = shares(members, planned)
    assert got["train"] == pytest.approx(0.60, abs=0.06)
    assert got["val"] == pytest.approx(0.15, abs=0.06)
    assert got["test"] == pytest.approx(0.25, abs=0.06)
    for split in ("train", "val", "test"):
        own = [one for one in members if planned[one.group] == split]
        assert any(one.classes for one in own)
        assert any(not one.classes for one in own)


@pytest.mark.parametrize("seed", range(5))
def test_three_groups_give_one_to_each_split(seed):
    members = [member(group, 2) for group in "abc" for _photo in range(3)]
    assert sorted(plan(members, seed).values()) == ["test", "train", "val"]


def test_the_few_groups_with_animals_are_dealt_to_all_splits():
    members = [member(f"empty{number}", 0) for number in range(20)]
    members += [member(group, 3) for group in "abc"]
    planned = plan(members)
    assert {planned[group] for group in "abc"} == {"train", "val", "test"}


def test_the_same_seed_gives_the_same_split_whatever_the_order():
    members = [member(f"g{number % 13}", number % 3) for number in range(60)]
    assert plan(members, 3) == plan(members[::-1], 3)
    assert any(plan(members, 3) != plan(members, seed) for seed in range(4, 9))


def test_fewer_than_three_groups_are_refused():
    with pytest.raises(SynthdetError, match=r"prepare\.few_groups"):
        plan([member("a"), member("b")])


def test_shares_that_leave_no_train_are_refused():
    with pytest.raises(
        SynthdetError, match=r"prepare\.val_fraction 0\.5 and prepare\.test_fraction 0\.5"
    ):
        plan([member(group) for group in "abcd"], val=0.5, test=0.5)


def test_chains_stay_whole_where_they_can():
    members = [
        member(f"c{chain}-{block}", chain=f"c{chain}")
        for chain in range(8)
        for block in range(4)
        for _photo in range(2)
    ]
    planned = plan(members)
    assert touching(members, planned) == 0


def test_a_single_chain_is_cut_twice_only():
    members = [member(f"f-{block}", chain="f") for block in range(12) for _photo in range(20)]
    planned = plan(members)
    assert touching(members, planned) == 2
    assert Counter(planned.values()) == {"train": 7, "val": 2, "test": 3}


def test_copies_of_an_original_count_once():
    members = [member("many", original="one") for _copy in range(50)]
    members += [member(f"g{number}") for number in range(9)]
    count = Counter(plan(members).values())
    assert count["train"] == pytest.approx(6, abs=1)


def test_leaks_are_counted_by_kind():
    levels = {"originals": ["a", "a", "b", "c"], "groups": ["g", "g", "g", "h"]}
    leaks = find_leaks(levels, ["train", "train", "test", "val"])
    assert leaks == {"originals": 0, "groups": 1, "photos": 1}


def test_only_train_may_hold_made_pictures():
    require_train("synthetic", "train", "a")
    require_train("real", "val", "a")
    for source in ("synthetic", "augmented"):
        for split in ("val", "test"):
            with pytest.raises(SynthdetError, match="may only enter train"):
                require_train(source, split, "a")


def test_a_limit_takes_whole_groups_first_and_some_animals():
    members = [member(f"g{number // 4}", int(number // 4 == 3)) for number in range(24)]
    chosen = limit_train(members, 10, seed=1)
    assert len(chosen) == 10
    taken = Counter(members[number].group for number in chosen)
    assert sorted(taken.values()) == [2, 4, 4]
    assert any(members[number].classes for number in chosen)
    assert limit_train(members, 100, seed=1) == set(range(24))


# --- photos that are added ------------------------------------------------------------------------


def add(
    members: list[Member], known: list[Place | None], close: list[str] | None = None
) -> list[Place | None]:
    keys = close or [own.original for own in members]
    return plan_additions(members, keys, known, val_fraction=0.15, test_fraction=0.25, seed=0)


def places_of(members: list[Member]) -> list[Place | None]:
    planned = plan(members)
    return [Place(own.group, planned[own.group]) for own in members]


@st.composite
def surveys(draw: st.DrawFn) -> tuple[list[Member], list[bool]]:
    """Photos of groups in chains, some of them copies; and which of them are there from the start."""
    members, old = [], []
    for chain in range(draw(st.integers(3, 7))):
        for block in range(draw(st.integers(1, 3))):
            for photo in range(draw(st.integers(1, 4))):
                name = f"c{chain}-{block}"
                original = f"{name} {photo // draw(st.integers(1, 2))}"
                animals = (0,) * draw(st.integers(0, 2))
                members.append(Member(name, f"c{chain}", original, animals))
                old.append(draw(st.booleans()))
    return members, old


@settings(max_examples=150, deadline=None)
@given(surveys(), st.randoms(use_true_random=False))
def test_added_photos_move_no_old_one_and_tear_no_group(survey, random):
    members, old = survey
    first = [own for own, is_old in zip(members, old, strict=True) if is_old]
    if len({own.group for own in first}) < 3:
        return
    # Blocks were cut otherwise while photos lacked, as numbers of frames do.
    chains: dict[str, str] = {}
    before = [
        replace(own, group=chains.setdefault(own.chain, own.group))
        if random.random() < 0.3
        else own
        for own in first
    ]
    of_original = {own.original: own.group for own in before}
    before = [replace(own, group=of_original[own.original]) for own in before]
    if len({own.group for own in before}) < 3:
        return
    stood = iter(places_of(before))
    known = [next(stood) if is_old else None for is_old in old]
    places = add(members, known)
    splits: dict[str, set[str]] = {}
    kin: dict[str, set[str]] = {}
    for member, place, earlier in zip(members, places, known, strict=True):
        assert place is not None
        assert earlier in (None, place)
        splits.setdefault(place.group, set()).add(place.split)
        kin.setdefault(member.original, set()).add(place.split)
    assert all(len(own) == 1 for own in (*splits.values(), *kin.values()))
    assert set(plan(members).values()) == {"train", "val", "test"}
    assert add(members, places) == places


def test_new_groups_are_dealt_to_where_they_lack():
    old = [member(f"old{number}") for number in range(10)]
    known = [
        Place(own.group, "train" if n < 8 else ("val", "test")[n - 8]) for n, own in enumerate(old)
    ]
    new = [member(f"new{number}") for number in range(10)]
    places = add(old + new, [*known, *[None] * 10])
    assert places[:10] == known
    count = Counter(place.split for place in places)
    assert count["train"] == pytest.approx(12, abs=1)
    assert count["test"] == pytest.approx(5, abs=1)


def test_a_new_photo_goes_where_its_kin_are():
    members = [
        member("a", chain="x"), member("b", chain="x"), member("c"), member("d"),
        member("a", chain="x"), member("A", chain="x"), member("b5", chain="x"),
    ]  # fmt: skip
    known = [Place("a", "train"), Place("b", "test"), Place("c", "val"), Place("d", "train")]
    places = add(members, [*known, None, None, None])
    assert places[4:] == [Place("a", "train"), Place("A", "train"), Place("b5", "test")]


def test_a_new_photo_close_to_two_splits_is_left_out():
    members = [member(group) for group in "abcd"]
    known = [Place("a", "train"), Place("b", "test"), Place("c", "val"), None]
    assert add(members, known, ["k", "k", "c", "k"])[3] is None
    assert add(members, known, ["k", "b", "c", "k"])[3] == Place("a", "train")


def test_a_name_that_an_old_group_has_in_another_split_is_not_taken():
    old = [member("f1"), member("v"), member("t")]
    known = [Place("f2", "train"), Place("v", "val"), Place("t", "test")]
    places = add([*old, member("f2")], [*known, None])
    assert places[3] is not None
    assert places[3].group == "f2 (added)"


def test_an_emptied_split_is_told():
    members = [member(group) for group in "abc"]
    known = [Place("a", "train"), Place("b", "train"), Place("c", "val")]
    with pytest.raises(SynthdetError, match=r"no photo is left in test.*prepare\.seed"):
        add(members, list(known))
