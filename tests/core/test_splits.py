"""Splits: whole groups, near the wanted shares, and never a made picture outside train."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from synthdet.core.splits import (
    Member,
    find_leaks,
    limit_train,
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
