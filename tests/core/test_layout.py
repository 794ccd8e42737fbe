from __future__ import annotations

import doctest

import numpy as np
import pytest
from PIL import Image

from synthdet.core import layout
from synthdet.core.fusion import turn_picture
from synthdet.core.layout import find_layout, layout_vectors, to_agreement, turned_layouts


def test_doctests() -> None:
    assert doctest.testmod(layout).failed == 0


def thumbnail(picture: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.asarray(Image.fromarray(picture).resize((17, 17), Image.Resampling.BOX))


def blobs(seed: int) -> np.ndarray:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (9, 12), dtype=np.uint8))
    return np.asarray(small.resize((136, 102), Image.Resampling.BICUBIC))


def agreement(first: np.ndarray, second: np.ndarray) -> float:  # type: ignore[type-arg]
    rows = layout_vectors(np.stack([find_layout(thumbnail(one)) for one in (first, second)]))
    return float(to_agreement(rows[:1] @ rows[1:].T)[0, 0])


def test_a_copy_agrees_and_another_picture_does_not() -> None:
    picture = blobs(0)
    rng = np.random.default_rng(1)
    changed = (picture * 0.8 + 20 + rng.normal(0, 6, picture.shape)).clip(0, 255).astype(np.uint8)
    assert agreement(picture, picture) == 1
    assert agreement(picture, changed) > 0.93
    assert agreement(picture, blobs(2)) < 0.65
    assert agreement(picture, 255 - picture) < 0.1


def test_turned_layouts_are_those_of_turned_pictures() -> None:
    # No two neighbours are equal, so no sign is lost.
    picture = np.random.default_rng(3).permutation(289)[:256].astype(np.uint8)
    square = np.resize(picture, 289).reshape(17, 17)
    square[1:][square[1:] == square[:-1]] += 1
    views = turned_layouts(layout_vectors(find_layout(square)[None]))
    assert len(views) == 8
    found = {
        int(np.argmax([float((view @ layout_vectors(find_layout(turned)[None]).T)[0, 0]) for view in views]))
        for turned in (np.ascontiguousarray(turn_picture(square[..., None], n)[..., 0]) for n in range(8))
    }  # fmt: skip
    assert found == set(range(8))
    best = [
        max(float((view @ layout_vectors(find_layout(np.ascontiguousarray(turn_picture(square[..., None], n)[..., 0]))[None]).T)[0, 0]) for view in views)
        for n in range(8)
    ]  # fmt: skip
    assert min(best) == pytest.approx(1, abs=0.05)
