"""What a threshold costs and turns away, on distributions whose truth is known."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from synthdet.core import thresholds
from synthdet.core.thresholds import choose_threshold, ordinary_limit, site_limit

CENTRE = np.log(0.42)
"""Of the logarithm of ordinary tiles' angles; a cosine of 0.91."""


def ordinary(
    rng: np.random.Generator, number: int, centre: float = CENTRE
) -> thresholds.Similarities:
    return np.asarray(np.cos(np.exp(rng.normal(centre, 0.25, number))))


def others(rng: np.random.Generator, number: int) -> thresholds.Similarities:
    return rng.normal(0.52, 0.12, number).clip(-1, 0.95)


def flights(number: int) -> list[str]:
    return [f"flight-{index % 12}" for index in range(number)]


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(thresholds).failed == 0


@pytest.mark.parametrize("percentile", [2.0, 10.0, 25.0])
def test_without_odd_tiles_the_ordinary_limit_is_the_percentile(percentile: float) -> None:
    tiles = ordinary(np.random.default_rng(0), 20_000)
    lost = (tiles < ordinary_limit(tiles, percentile)).mean()
    assert lost == pytest.approx(percentile / 100, rel=0.15)


def test_no_percentile_is_no_limit() -> None:
    assert ordinary_limit(np.array([0.8, 0.9]), 0) == -1
    assert ordinary_limit(np.ones(30), 2) == pytest.approx(1)


def test_a_tenth_of_odd_tiles_moves_the_ordinary_limit_little() -> None:
    rng = np.random.default_rng(1)
    tiles, odd = ordinary(rng, 4_000), rng.uniform(-0.3, 0.5, 440)
    clean, mixed = ordinary_limit(tiles, 2), ordinary_limit(np.append(tiles, odd), 2)
    assert mixed == pytest.approx(clean, abs=0.1)
    assert np.percentile(np.append(tiles, odd), 2) < 0


@pytest.mark.parametrize("number", [20, 35, 260])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.15])
def test_good_pictures_are_kept_and_others_turned_away(number: int, share: float) -> None:
    """Means over 60 surveys: 35 tiles of four flights are what a first survey has."""
    rng = np.random.default_rng(2)
    lost, lost_before, found, found_before = [], [], [], []
    for _ in range(60):
        num_odd = round(share * number)
        tiles = np.append(ordinary(rng, number - num_odd), rng.uniform(0.15, 0.6, num_odd))
        chosen = choose_threshold(tiles, flights(number), others(rng, 30), percentile=2)
        good, bad = ordinary(rng, 2_000), others(rng, 1_000)
        assert chosen.percentile <= chosen.value <= chosen.fence
        lost.append((good < chosen.value).mean())
        lost_before.append((good < chosen.percentile).mean())
        found.append((bad < chosen.value).mean())
        found_before.append((bad < chosen.percentile).mean())
    assert np.mean(lost) <= max(np.mean(lost_before) + 0.01, 0.03)
    assert np.mean(found) > 0.7
    if share:
        assert np.mean(found) > np.mean(found_before) + 0.3


def test_the_threshold_goes_no_further_than_it_pays() -> None:
    """Ordinary tiles end at 0.7 or so; nothing that must not pass comes higher than 0.45."""
    rng = np.random.default_rng(3)
    tiles = np.append(ordinary(rng, 60), [0.1, 0.12, 0.5, 0.52])
    negatives = rng.uniform(0.2, 0.45, 40)
    chosen = choose_threshold(tiles, flights(64), negatives, percentile=2)
    assert chosen.value == 0.5
    assert chosen.fence > 0.6


def test_negatives_that_lie_among_the_animals_move_nothing() -> None:
    rng = np.random.default_rng(4)
    tiles = np.append(ordinary(rng, 60), [0.1, 0.12, 0.5, 0.52])
    chosen = choose_threshold(tiles, flights(64), ordinary(rng, 50), percentile=2)
    assert chosen.value == chosen.percentile < chosen.fence


@pytest.mark.parametrize(("tiles", "negatives"), [(18, 30), (60, 4)])
def test_few_tiles_or_negatives_are_no_evidence(tiles: int, negatives: int) -> None:
    rng = np.random.default_rng(5)
    real = np.append(ordinary(rng, tiles - 2), [0.1, 0.12])
    few = choose_threshold(real, flights(tiles), others(rng, negatives), percentile=2)
    assert few.value == few.percentile == round(float(np.percentile(real, 2)), 6)


def test_a_site_of_its_own_keeps_half_of_its_tiles() -> None:
    """One flight of six over another sea: 15 % of the tiles, and no mistake."""
    rng = np.random.default_rng(6)
    odd = np.cos(np.exp(rng.normal(np.log(1.1), 0.1, 9)))
    tiles = np.append(ordinary(rng, 51), odd)
    negatives = rng.normal(0.5, 0.2, 60)
    groups = [f"flight-{index % 5}" for index in range(51)]
    as_site = choose_threshold(tiles, [*groups, *["odd"] * 9], negatives, percentile=2)
    as_photos = choose_threshold(
        tiles, [*groups, *(f"odd-{n}" for n in range(9))], negatives, percentile=2
    )
    assert (odd >= as_site.value).mean() >= 0.5
    assert (odd >= as_photos.value).mean() < 0.5


def test_a_few_tiles_are_no_site() -> None:
    similarities = np.array([0.9, 0.9, 0.9, 0.9, 0.2, 0.2, 0.2, 0.2, 0.2])
    assert site_limit(similarities, ["a"] * 4 + ["b"] * 5) == 0.2
    assert site_limit(similarities[:8], ["a"] * 4 + ["b"] * 4) == 1
