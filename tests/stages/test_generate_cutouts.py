"""Animals are cut out along their outline, or not at all."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from synthdet.core.records import XYXY
from synthdet.stages.generate_cutouts import cut_out
from synthdet.stages.generate_sources import lay_over

WATER = (40.0, 110.0, 120.0)
SKIN = (60.0, 55.0, 60.0)
BOX: XYXY = (30, 22, 78, 42)


def picture(
    *, enlarge: float = 1.0, skin: tuple[float, ...] = SKIN
) -> tuple[np.ndarray, np.ndarray]:
    """A slanted animal on water with waves, and where it is (0..1)."""
    rng = np.random.default_rng(1)
    height, width = round(64 * enlarge), round(100 * enlarge)
    waves = cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), 2 * enlarge)
    water = np.array(WATER) + 6 * (waves / waves.std())[..., None]
    fine = np.zeros((height * 4, width * 4), np.float32)
    centre = (round(54 * enlarge * 4), round(32 * enlarge * 4))
    axes = (round(25 * enlarge * 4), round(6 * enlarge * 4))
    cv2.ellipse(fine, centre, axes, 18, 0, 360, 1.0, cv2.FILLED)
    where = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA)
    mixed = where[..., None] * np.array(skin) + (1 - where[..., None]) * water
    return mixed.round().clip(0, 255).astype(np.uint8), where


@pytest.mark.parametrize("enlarge", [1.0, 5.0])
def test_an_animal_is_cut_out_along_its_outline(enlarge: float) -> None:
    pixels, where = picture(enlarge=enlarge)
    x1, y1, x2, y2 = (round(value * enlarge) for value in BOX)
    cutout = cut_out(pixels, (x1, y1, x2, y2))
    assert cutout is not None
    expected = where[y1:y2, x1:x2]
    assert cutout.opacity.shape == (*expected.shape, 1)
    assert cutout.colour.shape == (*expected.shape, 3)
    found = cutout.opacity[..., 0] / 255
    overlap = np.minimum(found, expected).sum() / np.maximum(found, expected).sum()
    assert overlap > 0.9
    assert found.sum() == pytest.approx(expected.sum(), rel=0.05), "neither grown nor shrunk"
    assert max(found[-1, 0], found[0, -1]) < 0.01, "the corners of the box are water"


def test_no_old_water_is_left_at_its_edges() -> None:
    pixels, where = picture()
    cutout = cut_out(pixels, BOX)
    assert cutout is not None
    x1, y1, x2, y2 = (int(value) for value in BOX)
    new = np.full_like(pixels, (200, 60, 30))
    laid = lay_over(new, cutout.colour, cutout.opacity, BOX)
    assert (new == (200, 60, 30)).all(), "left as it was"
    true = where[..., None] * np.array(SKIN) + (1 - where[..., None]) * np.array((200, 60, 30))
    edge = (where > 0.2) & (where < 0.8)
    box = new.copy()
    box[y1:y2, x1:x2] = pixels[y1:y2, x1:x2]
    of_cutout, of_box = (np.abs(one - true)[edge].mean() for one in (laid, box))
    assert of_cutout < of_box / 3
    outside = np.ones(pixels.shape[:2], bool)
    outside[y1:y2, x1:x2] = False
    assert (laid[outside] == new[outside]).all()


def test_foam_beside_it_is_not_the_animal() -> None:
    pixels, _ = picture()
    pixels[23:26, 70:74] = 250
    cutout = cut_out(pixels, BOX)
    assert cutout is not None
    assert cutout.opacity[1:4, 40:44].max() < 128


@pytest.mark.parametrize("what", ["nothing", "the wrong box", "everything"])
def test_what_does_not_stand_out_is_not_cut_out(what: str) -> None:
    pixels, _ = picture(skin=WATER) if what == "nothing" else picture()
    boxes: dict[str, XYXY] = {"the wrong box": (30, 2, 78, 42), "everything": (0, 0, 100, 64)}
    assert cut_out(pixels, boxes.get(what, BOX)) is None


def test_it_is_the_same_every_time_and_whatever_was_cut_before() -> None:
    pixels, _ = picture()
    first = cut_out(pixels, BOX)
    cv2.setRNGSeed(99)
    cut_out(pixels[::-1].copy(), (30, 22, 78, 42))
    second = cut_out(pixels, BOX)
    assert first is not None
    assert second is not None
    assert np.array_equal(first.opacity, second.opacity)
    assert np.array_equal(first.colour, second.colour)
