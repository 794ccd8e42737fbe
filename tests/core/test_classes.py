"""Class names: kept, merged, renamed, dropped; never guessed."""

from __future__ import annotations

import pytest

from synthdet.core.classes import plan_classes
from synthdet.errors import SynthdetError


def test_without_a_mapping_all_are_kept():
    assert plan_classes(["seal", "pup"], [3, 0], None) == (["seal", "pup"], [0, 1])


def test_merging_renaming_and_dropping():
    names, new = plan_classes(["rock", "seal", "pup"], [1, 2, 3], {"rock": None, "pup": "seal"})
    assert (names, new) == (["seal"], [None, 0, 0])


def test_all_others():
    names, new = plan_classes(["a", "seal", "b"], [1, 2, 3], {"*": None, "seal": "harbor seal"})
    assert (names, new) == (["harbor seal"], [None, 0, None])


def test_twins_are_refused_with_their_counts_until_told():
    with pytest.raises(
        SynthdetError, match=r"2 categories .* 'person' \(0 boxes, 74 boxes\).*prepare\.classes"
    ):
        plan_classes(["person", "person"], [0, 74], None)
    assert plan_classes(["person", "person"], [0, 74], {"person": "person"}) == (["person"], [0, 0])


def test_positions_typed_as_names_are_refused_until_told():
    names = ["person", *(f"-7.{number} 112.7961{number}" for number in range(40))]
    counts = [145, *[2] * 40]
    with pytest.raises(
        SynthdetError,
        match=r"40 of 41 categories look like positions.*80 boxes.*'person' 145 boxes.*prepare\.classes",
    ):
        plan_classes(names, counts, None)
    assert plan_classes(names, counts, {"*": None, "person": "person"})[0] == ["person"]


def test_a_class_that_does_not_exist_is_refused():
    with pytest.raises(SynthdetError, match=r"prepare\.classes names 'whale'.*'seal'"):
        plan_classes(["seal"], [1], {"whale": "seal"})


def test_dropping_everything_is_refused():
    with pytest.raises(SynthdetError, match="drops every class"):
        plan_classes(["seal"], [1], {"*": None})


def test_names_that_differ_only_in_writing_are_refused_until_told():
    names, counts = ["Grey seal", "grey_seal", "pup", "GREY SEAL"], [3, 9, 4, 1]
    with pytest.raises(SynthdetError, match=r"'Grey seal' 3 boxes, 'grey_seal' 9 boxes.*prepare"):
        plan_classes(names, counts, None)
    told = {"Grey seal": "grey_seal", "GREY SEAL": "grey_seal", "grey_seal": "grey_seal"}
    assert plan_classes(names, counts, told) == (["grey_seal", "pup"], [0, 0, 1, 0])


def test_numbered_names_are_refused_until_told():
    names = [*(f"seal_{number:02d}" for number in range(100)), "rock"]
    with pytest.raises(
        SynthdetError, match=r"100 of 101 categories are 'seal' with a number.*200 boxes.*'rock' 7"
    ):
        plan_classes(names, [*[2] * 100, 7], None)
    assert plan_classes(names, [*[2] * 100, 7], {"*": "seal", "rock": "rock"})[0] == [
        "seal",
        "rock",
    ]


def test_a_few_numbered_names_are_classes():
    names = ["stage 1", "stage 2", "stage 3"]
    assert plan_classes(names, [1, 2, 3], None)[0] == names
