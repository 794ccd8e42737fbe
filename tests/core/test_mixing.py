"""Which synthetic pictures go into train: a table, and the promises for any numbers."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthdet.core import mixing
from synthdet.core.mixing import Candidate, choose, farthest_first, settle
from synthdet.core.records import Box, Decision, DetectedBox, Label, SyntheticImage, Verdict


def candidates(animals: int, backgrounds: int) -> list[Candidate]:
    return [
        Candidate(f"syn-{number:06d}", number >= animals, similarity=0.5 + number % 7 / 20)
        for number in range(animals + backgrounds)
    ]


def counts(animals: int, backgrounds: int, **changes: Any) -> tuple[int, int]:
    settings: dict[str, Any] = {
        "num_real": 40,
        "num_synthetic": None,
        "synthetic_fraction": None,
        "max_background_fraction": 0.2,
        "select": "random",
        "seed": 0,
    }
    pictures = candidates(animals, backgrounds)
    chosen = choose(pictures, **(settings | changes))
    empty = {one.image_id for one in pictures if one.is_background} & set(chosen)
    return len(chosen) - len(empty), len(empty)


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(mixing).failed == 0


@pytest.mark.parametrize(
    ("animals", "backgrounds", "settings", "expected"),
    [
        (60, 10, {}, (60, 10)),
        (0, 0, {}, (0, 0)),
        (60, 10, {"num_synthetic": 0}, (0, 0)),
        (60, 10, {"num_synthetic": 14}, (12, 2)),
        (60, 10, {"num_synthetic": 500}, (60, 10)),
        (60, 0, {"synthetic_fraction": 0.5}, (40, 0)),
        (60, 0, {"synthetic_fraction": 0.2}, (10, 0)),
        (60, 0, {"synthetic_fraction": 0.0}, (0, 0)),
        (60, 0, {"synthetic_fraction": 0.2, "num_synthetic": 3}, (3, 0)),
        # 0.2 of train: 12 of 60, where 40 are real and no animal was accepted, is 10 of 50.
        (0, 30, {}, (0, 10)),
        (20, 90, {}, (20, 15)),
        (20, 90, {"max_background_fraction": 0.0}, (20, 0)),
        (20, 90, {"max_background_fraction": 1.0}, (20, 90)),
        # Backgrounds that may not come in leave their place to animals.
        (50, 50, {"num_synthetic": 40, "max_background_fraction": 0.1}, (32, 8)),
    ],
)
def test_numbers(animals: int, backgrounds: int, settings: Any, expected: tuple[int, int]) -> None:
    assert counts(animals, backgrounds, **settings) == expected


def test_similarity_takes_the_most_similar_and_the_unmeasured_last() -> None:
    pictures = [
        Candidate("a", False, 0.5),
        Candidate("b", False, None),
        Candidate("c", False, 0.9),
        Candidate("d", False, 0.7),
    ]
    settings: dict[str, Any] = {
        "num_real": 10,
        "synthetic_fraction": None,
        "max_background_fraction": 0.2,
        "select": "similarity",
        "seed": 0,
    }
    assert choose(pictures, num_synthetic=2, **settings) == ("c", "d")
    assert choose(pictures, num_synthetic=3, **settings) == ("a", "c", "d")


def directions(number: int, seed: int) -> Any:
    """Rows of length 1 in four tight bundles, the first one far larger than the others."""
    rng = np.random.default_rng(seed)
    bundles = np.eye(4)[rng.choice(4, number, p=[0.85, 0.05, 0.05, 0.05])]
    bundles[:4] = np.eye(4)
    rows = bundles + rng.normal(0, 0.03, (number, 4))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_diversity_takes_of_every_kind_before_more_of_one(seed: int) -> None:
    rows = directions(60, seed)
    pictures = [Candidate(f"syn-{i:06d}", False, None, row) for i, row in enumerate(rows)]
    settings: dict[str, Any] = {
        "num_real": 10,
        "synthetic_fraction": None,
        "max_background_fraction": 0.2,
        "seed": seed,
    }

    def kinds(select: Any, number: int) -> set[int]:
        chosen = choose(pictures, num_synthetic=number, select=select, **settings)
        assert len(chosen) == number
        return {int(np.argmax(rows[int(name[4:])])) for name in chosen}

    assert kinds("diversity", 4) == {0, 1, 2, 3}
    few = choose(pictures, num_synthetic=7, select="diversity", **settings)
    many = choose(pictures, num_synthetic=20, select="diversity", **settings)
    assert {*few} < {*many}
    assert few == choose(pictures[::-1], num_synthetic=7, select="diversity", **settings)[::-1]


def test_diversity_takes_pictures_without_an_embedding_last() -> None:
    rows = directions(6, 0)
    pictures = [
        Candidate(f"syn-{i}", False, None, row if i % 2 else None) for i, row in enumerate(rows)
    ]
    chosen = choose(
        pictures, num_real=1, num_synthetic=3, synthetic_fraction=None,
        max_background_fraction=0, select="diversity", seed=1,
    )  # fmt: skip
    assert chosen == ("syn-1", "syn-3", "syn-5")


def test_farthest_first_is_what_it_says() -> None:
    rows = directions(25, 3)
    order = farthest_first(rows, 25)
    assert sorted(order) == list(range(25))
    assert farthest_first(rows, 6) == order[:6]
    for place in range(1, 25):
        to_before = (rows @ rows[order[:place]].T).max(axis=1)
        to_before[order[:place]] = np.inf
        assert to_before[order[place]] == pytest.approx(to_before.min(), abs=1e-6)


def test_the_seed_decides_and_the_order_of_the_candidates_stays() -> None:
    pictures = candidates(50, 0)
    settings: dict[str, Any] = {
        "num_real": 10,
        "num_synthetic": 10,
        "synthetic_fraction": None,
        "max_background_fraction": 0.2,
        "select": "random",
    }
    first = choose(pictures, seed=0, **settings)
    assert first == choose(list(pictures), seed=0, **settings)
    assert first != choose(pictures, seed=1, **settings)
    assert list(first) == sorted(first)


@given(
    animals=st.integers(0, 30),
    backgrounds=st.integers(0, 30),
    num_real=st.integers(0, 50),
    limit=st.floats(0, 1),
    small=st.integers(0, 60),
    more=st.integers(0, 10),
)
def test_promises(
    animals: int, backgrounds: int, num_real: int, limit: float, small: int, more: int
) -> None:
    pictures = candidates(animals, backgrounds)
    settings: dict[str, Any] = {
        "num_real": num_real,
        "synthetic_fraction": None,
        "max_background_fraction": limit,
        "select": "random",
        "seed": 3,
    }
    fewer = choose(pictures, num_synthetic=small, **settings)
    larger = choose(pictures, num_synthetic=small + more, **settings)
    assert len(fewer) <= small
    assert set(fewer) <= set(larger)
    empty = sum(one.is_background for one in pictures if one.image_id in larger)
    assert empty <= limit * (num_real + len(larger)) + 1e-6
    if backgrounds == 0:
        assert len(fewer) == min(small, animals)


FOUND = DetectedBox(xyxy=(1, 2, 9, 6), class_id=1, confidence=0.7)
LABEL_BOX = Box(xyxy=(1, 2, 9, 6), class_id=1)
DRAWN = Box(xyxy=(3, 3, 8, 8), class_id=0)


def settled(
    *,
    asked_for: tuple[int, ...] | None = (1,),
    dropped: str | None = None,
    status: str | None = "accept",
    boxes: tuple[DetectedBox, ...] = (FOUND,),
    verdict: str | None = None,
    drawn: tuple[Box, ...] | None = None,
    include_review: bool = False,
) -> Any:
    image = SyntheticImage.model_construct(image_id="x", asked_for=asked_for)
    decision = Decision(image_id="x", kept=dropped is None, threshold=0.7, reason=dropped)
    label = (
        Label.model_validate({"image_id": "x", "status": status, "boxes": boxes})
        if status
        else None
    )
    given = (
        Verdict.model_validate(
            {"image_id": "x", "verdict": verdict, "boxes": drawn, "by": "me", "at": "now"}
        )
        if verdict
        else None
    )
    result = settle(image, decision, label, given, include_review=include_review)
    return result.reason or result.boxes


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, (LABEL_BOX,)),
        ({"status": "negative", "boxes": (), "asked_for": ()}, ()),
        ({"status": "review"}, mixing.IN_REVIEW),
        ({"status": "review", "include_review": True}, (LABEL_BOX,)),
        # An animal was asked for and none found: it may well be there.
        ({"status": "review", "boxes": (), "include_review": True}, mixing.IN_REVIEW),
        ({"status": None}, mixing.UNLABELLED),
        ({"status": None, "dropped": "far from real"}, mixing.DROPPED),
        ({"dropped": "far from real"}, mixing.DROPPED),
        ({"verdict": "reject"}, mixing.REJECTED),
        ({"verdict": "accept"}, (LABEL_BOX,)),
        ({"verdict": "accept", "drawn": (DRAWN,)}, (DRAWN,)),
        ({"verdict": "accept", "drawn": ()}, ()),
        ({"verdict": "accept", "status": "review"}, (LABEL_BOX,)),
        ({"verdict": "accept", "status": "review", "boxes": ()}, ()),
        ({"verdict": "accept", "status": None, "dropped": "far from real"}, mixing.WITHOUT_BOXES),
        (
            {"verdict": "accept", "status": None, "dropped": "far from real", "drawn": (DRAWN,)},
            (DRAWN,),
        ),
        (
            {"verdict": "accept", "status": None, "dropped": "far from real", "asked_for": ()},
            (),
        ),
        (
            {"verdict": "accept", "status": None, "dropped": "blank", "drawn": (DRAWN,)},
            mixing.DROPPED,
        ),
    ],
)
def test_what_stands_for_a_picture(facts: Any, expected: Any) -> None:
    assert settled(**facts) == expected
