"""Similarity on a circle: an embedding is an angle, so every cosine is known."""

from __future__ import annotations

import doctest
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from synthdet.core import similarity
from synthdet.core.layout import NUM_BYTES, layout_vectors, turned_layouts
from synthdet.core.records import Score
from synthdet.core.similarity import Limits, RealTiles
from synthdet.errors import SynthdetError


def at_degrees(*degrees: float) -> similarity.Embeddings:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def tiles(*members: tuple[str, float]) -> RealTiles:
    return RealTiles(
        tuple(f"t{number}" for number in range(len(members))),
        tuple(group for group, _ in members),
        at_degrees(*(degrees for _, degrees in members)).reshape(-1, 2),
    )


def cosine(degrees: float) -> Any:
    return pytest.approx(np.cos(np.radians(degrees)), abs=2e-6)


NOTHING = tiles()
THREE_SITES = tiles(("a", 0), ("a", 10), ("b", 20), ("c", 50))


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(similarity).failed == 0


@pytest.mark.parametrize(
    ("picture", "fault"),
    [
        (np.zeros((6, 8, 3), np.uint8), "blank"),
        (np.full((6, 8, 3), (10, 200, 90), np.uint8), "blank"),
        (np.zeros((0, 8, 3), np.uint8), "blank"),
        (np.random.default_rng(0).normal(60, 3, (6, 8, 3)).astype(np.uint8), None),
        (np.arange(144, dtype=np.uint8).reshape(6, 8, 3), None),
    ],
)
def test_a_flat_picture_is_a_fault(picture: Any, fault: str | None) -> None:
    assert similarity.find_fault(picture) == fault


def test_the_centroid_is_the_mean_direction() -> None:
    assert similarity.make_centroid(at_degrees(0, 40)) == pytest.approx(at_degrees(20)[0])


@pytest.mark.parametrize("embeddings", [at_degrees(), at_degrees(0, 180)])
def test_no_centroid_of_nothing(embeddings: Any) -> None:
    with pytest.raises(ValueError, match=r"at least one|cancel"):
        similarity.make_centroid(
            embeddings.reshape(-1, 2) * [1, 0] if len(embeddings) else embeddings
        )


def test_each_group_is_held_against_the_others_alone() -> None:
    left_out = similarity.leave_out(THREE_SITES)
    assert left_out is not None
    assert left_out.by == "group"
    # Groups b and c point to 35 degrees; a and b to 10; a (twice) and c to about 20.
    assert left_out.similarities[0] == cosine(35)
    assert left_out.similarities[1] == cosine(25)
    assert left_out.similarities[3] == cosine(40)


def test_with_two_groups_a_tile_at_a_time_is_left_out() -> None:
    left_out = similarity.leave_out(tiles(("a", 0), ("a", 10), ("b", 20)))
    assert left_out is not None
    assert left_out.by == "tile"
    assert left_out.similarities[0] == cosine(15)


def test_two_tiles_say_nothing() -> None:
    assert similarity.leave_out(tiles(("a", 0), ("b", 10))) is None


@given(st.lists(st.floats(0, 90), min_size=1, max_size=20), st.integers(1, 7))
def test_nearest_does_not_depend_on_the_block_size(degrees: list[float], rows: int) -> None:
    references = at_degrees(0, 30, 60, 90)
    index, cosines = similarity.find_nearest(at_degrees(*degrees), references, rows_at_a_time=rows)
    for number, angle in enumerate(degrees):
        nearest = min(range(4), key=lambda one: abs(30 * one - angle))
        assert abs(30 * index[number] - angle) == pytest.approx(abs(30 * nearest - angle), abs=1e-2)
        assert cosines[number] == pytest.approx(np.cos(np.radians(30 * nearest - angle)), abs=1e-5)


def test_closest_across_groups_ignores_neighbours_of_one_group() -> None:
    assert similarity.closest_across_groups(THREE_SITES) == cosine(10)
    assert similarity.closest_across_groups(tiles(("a", 0), ("a", 1), ("b", 30))) == cosine(29)
    assert similarity.closest_across_groups(tiles(("a", 0), ("a", 1))) is None


@pytest.mark.parametrize(
    ("real", "negatives", "expected"),
    [([0.9, 0.8], [0.1, 0.2], 1.0), ([0.1], [0.5], 0.0), ([0.5], [0.5], 0.5), ([0.5], [], None)],
)
def test_separation(real: list[float], negatives: list[float], expected: float | None) -> None:
    assert similarity.measure_separation(np.array(real), np.array(negatives)) == expected


def _calibrate(animals: RealTiles, backgrounds: RealTiles, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "threshold": "calibrated",
        "copy_threshold": "calibrated",
        "percentile": 0.0,
    }
    return similarity.calibrate(animals, backgrounds, **(settings | changes))


def test_a_calibrated_threshold_loses_the_share_of_real_tiles_asked_for() -> None:
    rng = np.random.default_rng(0)
    many = tiles(*((f"g{number % 9}", float(rng.normal(45, 15))) for number in range(400)))
    calibration = _calibrate(many, NOTHING, percentile=5.0)
    assert calibration.real_lost == pytest.approx(0.05, abs=0.005)
    assert calibration.negatives_passing is None
    assert calibration.notes == ()


def odd_tiles(*, at: float) -> RealTiles:
    """Forty ordinary tiles of five flights within 20 degrees, and two odd ones."""
    ordinary = [(f"g{number % 5}", float(number - 20)) for number in range(40)]
    return tiles(*ordinary, ("g1", at), ("g2", -at))


def test_a_few_odd_tiles_do_not_set_the_threshold() -> None:
    animals, water = odd_tiles(at=80), tiles(*[("w", 60.0 + number) for number in range(10)])
    calibration = _calibrate(animals, water, percentile=2.0)
    chosen = calibration.chosen
    assert chosen.percentile < chosen.value == calibration.limits.animals <= chosen.fence
    assert calibration.negatives_passing == 0
    assert calibration.real_lost == pytest.approx(2 / 42, abs=1e-4)
    raised = [note for note in calibration.notes if "threshold raised from" in note]
    assert len(raised) == 1
    assert "0% instead of 100% of the 10 negatives pass" in raised[0]
    assert "5% instead of 2% of the real tiles" in raised[0]


def test_negatives_that_a_user_names_raise_the_threshold_too() -> None:
    animals = odd_tiles(at=80)
    alone = _calibrate(animals, NOTHING, percentile=2.0)
    assert alone.limits.animals == alone.chosen.percentile
    assert any("name pictures that must not pass" in note for note in alone.notes)
    named = _calibrate(animals, NOTHING, percentile=2.0, negatives=at_degrees(*range(60, 70)))
    assert named.limits.animals > alone.limits.animals
    assert named.named_passing == 0


def test_a_threshold_that_nothing_raised_says_nothing() -> None:
    ordinary = tiles(*[(f"g{number % 5}", float(number - 20)) for number in range(41)])
    water = tiles(*[("w", 60.0 + number) for number in range(10)])
    calibration = _calibrate(ordinary, water, percentile=2.0)
    assert calibration.limits.animals == calibration.chosen.percentile
    assert calibration.notes == ()
    given = _calibrate(odd_tiles(at=80), water, threshold=0.3)
    assert given.chosen is None
    assert given.limits.animals == given.limits.backgrounds == 0.3
    assert given.notes == ()


def test_negatives_are_counted_and_poor_separation_is_said() -> None:
    far = _calibrate(THREE_SITES, tiles(("a", 120), ("b", 150)))
    assert far.negatives_passing == 0
    assert far.separation == 1
    assert far.notes == ()
    near = _calibrate(THREE_SITES, tiles(("a", 19), ("b", 21)))
    assert near.negatives_passing == 1
    assert any("hardly tells" in note for note in near.notes)


def test_too_few_groups_are_said_not_hidden() -> None:
    one_site = tiles(("a", 0), ("a", 10), ("a", 20))
    calibration = _calibrate(one_site, NOTHING)
    assert calibration.left_out.by == "tile"
    assert calibration.limits.copy is None
    assert any("fewer than 3 groups" in note for note in calibration.notes)
    assert any("copies" in note for note in calibration.notes)


def test_too_few_tiles_are_refused_unless_a_threshold_is_given() -> None:
    two = tiles(("a", 0), ("b", 10))
    with pytest.raises(SynthdetError, match=r"filter\.threshold"):
        _calibrate(two, NOTHING)
    assert _calibrate(two, NOTHING, threshold=0.3).limits.animals == 0.3


def test_given_thresholds_are_taken() -> None:
    limits = _calibrate(THREE_SITES, NOTHING, threshold=0.3, copy_threshold=0.99).limits
    assert limits == Limits(animals=0.3, backgrounds=None, copy=0.99)


def test_backgrounds_have_a_limit_of_their_own_from_five_tiles_on() -> None:
    water = [("a", 100.0), ("b", 101.0), ("c", 102.0), ("a", 103.0), ("b", 110.0)]
    assert _calibrate(THREE_SITES, tiles(*water[:4])).limits.backgrounds is None
    assert _calibrate(THREE_SITES, tiles(*water)).limits.backgrounds == pytest.approx(
        0.99, abs=0.01
    )


LIMITS = Limits(animals=0.7, backgrounds=0.8, copy=0.95)


@pytest.mark.parametrize(
    ("score", "background", "reason", "threshold"),
    [
        ({"similarity": 0.7, "nearest_real_similarity": 0.95}, False, None, 0.7),
        ({"similarity": 0.69, "nearest_real_similarity": 0.9}, False, "far from real", 0.7),
        ({"similarity": 0.69, "nearest_real_similarity": 0.99}, False, "copy of a real photo", 0.7),
        ({"similarity": 0.9, "nearest_real_similarity": 0.96}, False, "copy of a real photo", 0.7),
        ({"fault": "blank"}, False, "blank", 0.7),
        ({"fault": "unreadable"}, True, "unreadable", 0.8),
        ({"similarity": 0.1, "background_similarity": 0.8}, True, None, 0.8),
        ({"similarity": 0.9, "background_similarity": 0.7}, True, "far from real", 0.8),
        ({"background_similarity": 0.9, "nearest_real_similarity": 0.99}, True, None, 0.8),
    ],
)
def test_decisions(score: Any, background: bool, reason: str | None, threshold: float) -> None:
    decision = similarity.judge(Score(image_id="x", **score), LIMITS, is_background=background)
    assert (decision.kept, decision.reason) == (reason is None, reason)
    assert decision.threshold == threshold


def test_without_real_backgrounds_a_background_is_not_judged() -> None:
    limits = Limits(animals=0.7, backgrounds=None, copy=None)
    decision = similarity.judge(Score(image_id="x", similarity=0.1), limits, is_background=True)
    assert decision.kept
    assert decision.threshold == similarity.NO_LIMIT


def test_large_flat_pictures_are_blank_and_large_others_are_not() -> None:
    flat = np.full((700, 900, 3), 60, np.uint8)
    assert similarity.find_fault(flat) == "blank"
    flat[:, 450:] = 90
    assert similarity.find_fault(flat) is None
    speck = np.full((700, 900, 3), 60, np.uint8)
    speck[1:40, 1:40] = 255  # what a sample may miss
    assert similarity.find_fault(speck) is None


def test_a_centroid_a_class_and_the_classes_asked_for() -> None:
    animals = RealTiles(
        ("a", "b", "c", "d"), ("s",) * 4, at_degrees(0, 10, 90, 100), None,
        ((0,), (0,), (1,), (1,)),
    )  # fmt: skip
    centroids = similarity.make_centroids(animals, per_class=True)
    assert centroids.class_ids == (0, 1)
    assert centroids.vectors == pytest.approx(at_degrees(5, 95), abs=1e-6)
    rows = at_degrees(5, 5, 5, 5, 5)
    asked: list[tuple[int, ...] | None] = [(0,), (1,), (0, 1), None, (7,)]
    found = similarity.similarity_to_nearest(rows, centroids, asked)
    assert found == pytest.approx([1, 0, 1, 1, 1], abs=1e-6)
    one = similarity.make_centroids(animals)
    assert one.class_ids == (None,)
    assert similarity.similarity_to_nearest(rows[:2], one, asked[:2]) == pytest.approx(
        [np.cos(np.radians(45))] * 2, abs=1e-6
    )


def test_two_looks_have_two_centroids() -> None:
    animals = tiles(("a", 0), ("b", 4), ("a", 80), ("b", 84), ("c", 88))
    found = similarity.make_centroids(animals, clusters=2)
    assert sorted(found.vectors[:, 1].tolist()) == pytest.approx(
        np.sin(np.radians([2, 84])), abs=1e-3
    )
    assert len(similarity.make_centroids(tiles(("a", 3), ("b", 3)), clusters=4).vectors) == 1
    left = similarity.leave_out(animals, clusters=2)
    assert left is not None
    assert left.similarities.min() > np.cos(np.radians(10))


def draw_layouts(number: int, clusters: int, seed: int) -> NDArray[np.uint8]:
    """Packed layouts: of pictures that have nothing in common, or of a few that are seen again and again."""
    rng = np.random.default_rng(seed)
    if clusters == 0:
        return rng.integers(0, 256, (number, NUM_BYTES), np.uint8)
    originals = rng.integers(0, 256, (clusters, NUM_BYTES), np.uint8)
    shares = rng.uniform(0, 0.3, (number, 1))
    flipped = np.packbits(rng.random((number, 8 * NUM_BYTES)) < shares, axis=1)
    return originals[rng.integers(0, clusters, number)] ^ flipped


@given(
    number=st.integers(0, 90),
    clusters=st.integers(0, 6),
    block=st.integers(1, 100),
    seed=st.integers(0, 99),
    told_apart=st.booleans(),
)
def test_twins_are_the_nearest_before(
    number: int, clusters: int, block: int, seed: int, told_apart: bool
) -> None:
    """As all pairs of whole vectors have it, whatever the blocks and however alike the pictures."""
    packed = draw_layouts(number, clusters, seed)
    rows = layout_vectors(packed).astype(np.float64)

    def are_apart(one: int, before: int) -> bool:
        return one % 3 == before % 3 or before < 2

    best, differing = similarity.find_twins(
        lambda start, stop: packed[start:stop],
        number,
        block=block,
        are_apart=are_apart if told_apart else None,
    )
    assert len(best) == len(differing) == number
    for one in range(number):
        others = [n for n in range(one) if not (told_apart and are_apart(one, n))]
        if not others:
            assert (best[one], differing[one]) == (-1, -1)
            continue
        cosines = np.round(rows[others] @ rows[one], 9)  # equal counts are equal cosines
        assert best[one] == others[int(cosines.argmax())]
        assert 1 - 2 * differing[one] / (8 * NUM_BYTES) == pytest.approx(cosines.max())


def with_layouts(tiles_: RealTiles, seed: int) -> RealTiles:
    packed = np.random.default_rng(seed).integers(0, 256, (len(tiles_.groups), NUM_BYTES), np.uint8)
    return replace(tiles_, layouts=layout_vectors(packed))


def test_real_layouts_say_what_is_a_near_duplicate() -> None:
    animals = with_layouts(THREE_SITES, 0)
    chance = similarity.closest_layouts(animals)
    assert chance is not None
    assert 0.5 < chance < 0.65
    limits = _calibrate(animals, NOTHING, duplicate_threshold="calibrated").limits
    assert limits.twin == limits.layout == pytest.approx((1 + chance) / 2)
    assert _calibrate(animals, NOTHING, duplicate_threshold=0.9).limits.twin == 0.9
    assert _calibrate(animals, NOTHING).limits.twin is None
    assert _calibrate(THREE_SITES, NOTHING, duplicate_threshold="calibrated").limits.twin is None


def test_a_mirrored_layout_is_found_again() -> None:
    layouts = with_layouts(THREE_SITES, 0).layouts
    assert layouts is not None
    mirrored = turned_layouts(layouts)[6][2:3]
    index, agreement = similarity.find_same_layout(mirrored, layouts)
    assert (index.tolist(), agreement.tolist()) == ([2], [1])


@pytest.mark.parametrize(
    ("similar", "agreement", "is_copy"),
    [(0.96, None, False), (0.94, None, False), (0.5, 0.85, True), (0.96, 0.7, True),
     (0.96, 0.55, False), (0.94, 0.7, False)],
)  # fmt: skip
def test_a_copy_repeats_the_layout(similar: float, agreement: float | None, is_copy: bool) -> None:
    limits = Limits(animals=0, backgrounds=None, copy=0.95, layout=0.8, chance=0.6)
    score = Score(
        image_id="x", similarity=0.9, nearest_real_similarity=similar, layout_agreement=agreement
    )
    decision = similarity.judge(score, limits, is_background=False)
    assert decision.reason == ("copy of a real photo" if is_copy else None)


def test_a_placed_picture_is_near_real_tiles_on_purpose() -> None:
    limits = Limits(animals=0, backgrounds=None, copy=0.95, layout=0.8, chance=0.6)

    def reason(limits: Limits, *, placed: bool, agreement: float) -> str | None:
        score = Score(
            image_id="x",
            similarity=0.9,
            nearest_real_similarity=0.97,
            layout_agreement=agreement,
        )
        return similarity.judge(score, limits, is_background=False, is_placed=placed).reason

    assert reason(limits, placed=False, agreement=0.65) == "copy of a real photo"
    assert reason(limits, placed=True, agreement=0.65) is None
    assert reason(limits, placed=True, agreement=0.85) == "copy of a real photo"
    given = replace(limits, chance=None)  # a number that somebody chose counts for all
    assert reason(given, placed=True, agreement=0.65) == "copy of a real photo"


def test_an_animal_that_looks_like_background() -> None:
    water = tiles(*[("abc"[n % 3], 80.0 + n) for n in range(6)])
    animals = tiles(("a", 0), ("b", 10), ("c", 20), ("a", 30))
    limit = _calibrate(animals, water, background_check=True).limits.empty
    assert limit is not None
    assert limit < 0
    limits = Limits(animals=0, backgrounds=None, copy=None, empty=limit, twin=None)
    near = Score(image_id="x", similarity=0.5, background_similarity=0.5 + limit + 0.01)
    far = Score(image_id="x", similarity=0.5, background_similarity=0.5 + limit - 0.01)
    assert similarity.judge(near, limits, is_background=False).reason == "looks like background"
    assert similarity.judge(far, limits, is_background=False).kept
    assert similarity.judge(near, limits, is_background=True).kept
    mixed = tiles(*[("abc"[n % 3], 5.0 * n) for n in range(6)])
    blurred = _calibrate(animals, mixed, background_check=True)
    assert blurred.limits.empty is None
    assert any("the label stage has to" in note for note in blurred.notes)


def test_a_twin_of_a_picture_that_is_dropped_stays() -> None:
    limits = Limits(animals=0, backgrounds=None, copy=None, empty=None, twin=0.9)
    score = Score(image_id="x", similarity=0.5, twin="y", twin_agreement=0.95)
    assert similarity.judge(score, limits, is_background=False).reason == "near-duplicate"
    assert similarity.judge(score, limits, is_background=False, spent={"y"}).kept


def test_named_negatives_lower_the_separation() -> None:
    named = _calibrate(THREE_SITES, NOTHING, negatives=at_degrees(20, 120))
    assert named.named == pytest.approx([1, np.cos(np.radians(100))], abs=0.02)
    assert named.named_passing == 0.5
    assert named.separation is not None
    assert named.separation < 1
    assert any("50% of the 2 pictures in filter.negatives" in note for note in named.notes)
