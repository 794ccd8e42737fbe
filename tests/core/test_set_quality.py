from __future__ import annotations

import doctest

import numpy as np
import pytest

from synthdet.core import set_quality
from synthdet.core.set_quality import cmmd, measure_set


def test_doctests() -> None:
    assert doctest.testmod(set_quality).failed == 0


def cloud(seed: int, number: int, spread: float, shift: float = 0.0) -> set_quality.Embeddings:
    rng = np.random.default_rng(seed)
    rows = np.array([1.0, shift, 0, 0, 0, 0]) + rng.normal(0, spread, (number, 6))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_cmmd_by_hand() -> None:
    """Two orthogonal pictures: squared distance 2, kernel exp(-2 / 200)."""
    one, other = np.eye(2, dtype=np.float32)[:1], np.eye(2, dtype=np.float32)[1:]
    assert cmmd(one, other) == pytest.approx(1000 * 2 * (1 - np.exp(-0.01)), abs=1e-5)
    assert cmmd(one, one) == 0


def test_what_is_alike_measures_alike() -> None:
    real, groups = cloud(0, 120, 0.1), [f"site-{n % 8}" for n in range(120)]
    alike = measure_set(real, groups, cloud(1, 150, 0.1))
    shifted = measure_set(real, groups, cloud(1, 150, 0.1, shift=0.8))
    copies = np.repeat(real[:1], 150, axis=0) + np.random.default_rng(2).normal(0, 1e-3, (150, 6))
    copies /= np.linalg.norm(copies, axis=1, keepdims=True)
    narrow = measure_set(real, groups, copies.astype(np.float32))
    assert alike is not None
    assert shifted is not None
    assert narrow is not None
    assert alike.precision.value > 0.8
    assert alike.coverage.value > 0.8
    assert alike.density.value == pytest.approx(1, abs=0.3)
    assert alike.cmmd.high < shifted.cmmd.low
    assert shifted.precision.value == shifted.coverage.value == 0
    # One picture again and again: real enough, and it stands for none of the others.
    assert narrow.precision.value == 1
    assert narrow.coverage.value < 0.2
    assert narrow.cmmd.value > alike.cmmd.value
    for estimate in (alike.cmmd, alike.precision, alike.recall, alike.density, alike.coverage):
        assert estimate.low <= estimate.value <= estimate.high
    assert alike.cmmd.low < alike.cmmd.high
    assert alike.density.low < alike.density.high


def test_few_groups_leave_a_wide_interval() -> None:
    """As many pictures, from two sites that look different: nobody knows what a third would be."""
    real = np.concatenate([cloud(0, 40, 0.1), cloud(1, 40, 0.1, shift=0.5)])
    synthetic = cloud(2, 80, 0.1)
    two = measure_set(real, ["a"] * 40 + ["b"] * 40, synthetic)
    many = measure_set(real, [str(n % 20) for n in range(80)], synthetic)
    assert two is not None
    assert many is not None
    assert two.coverage.high - two.coverage.low > 2 * (many.coverage.high - many.coverage.low)


def test_too_few_pictures_say_nothing() -> None:
    assert measure_set(cloud(0, 5, 0.1), ["a"] * 5, cloud(1, 50, 0.1)) is None
    assert measure_set(cloud(0, 50, 0.1), ["a"] * 50, cloud(1, 0, 0.1)) is None
