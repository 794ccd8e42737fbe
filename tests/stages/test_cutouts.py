"""Animals are cut out along their outline, or not at all."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from synthdet.core.fusion import NUM_VIEWS, turn_picture
from synthdet.core.records import XYXY
from synthdet.stages._cutouts import cut_out, lay_over

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


@pytest.mark.parametrize("enlarge", [1.0, 5.0, 12.0])
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
    assert overlap > 0.88
    assert found.sum() == pytest.approx(expected.sum(), rel=0.12), "neither grown nor shrunk"
    assert max(found[-1, 0], found[0, -1]) < 0.01, "the corners of the box are water"


def test_no_old_water_is_left_at_its_edges() -> None:
    pixels, where = picture()
    cutout = cut_out(pixels, BOX)
    assert cutout is not None
    x1, y1, x2, y2 = (int(value) for value in BOX)
    new = np.full_like(pixels, (200, 60, 30))
    laid = lay_over(new, cutout, BOX)
    assert (new == (200, 60, 30)).all(), "left as it was"
    true = where[..., None] * np.array(SKIN) + (1 - where[..., None]) * np.array((200, 60, 30))
    edge = (where > 0.2) & (where < 0.8)
    box = new.copy()
    box[y1:y2, x1:x2] = pixels[y1:y2, x1:x2]
    of_cutout, of_box = (np.abs(one - true)[edge].mean() for one in (laid, box))
    assert of_cutout < of_box / 2.5
    outside = np.ones(pixels.shape[:2], bool)
    outside[y1:y2, x1:x2] = False
    assert (laid[outside] == new[outside]).all()


@pytest.mark.parametrize("depth", [0.0, 0.6])
def test_as_much_of_the_new_water_lies_before_it(depth: float) -> None:
    blue = np.array((20.0, 60.0, 160.0))
    pixels, where = picture(skin=tuple(depth * np.array(WATER) + (1 - depth) * np.array(SKIN)))
    cutout = cut_out(pixels, BOX)
    assert cutout is not None
    laid = lay_over(np.full_like(pixels, blue.astype(np.uint8)), cutout, BOX)
    expected = depth * blue + (1 - depth) * np.array(SKIN)
    body = laid[cv2.erode(where, np.ones((5, 5))) > 0.99].mean(axis=0)
    assert np.abs(body - expected).max() < 8, "of another colour than the old water gave it"


def test_in_water_without_a_hue_it_keeps_its_colour() -> None:
    grey = np.full((64, 100, 3), (120, 121, 120), np.uint8)
    _, where = picture()
    pixels = np.where(where[..., None] > 0.5, (90, 60, 40), grey).astype(np.uint8)
    cutout = cut_out(pixels, BOX)
    assert cutout is not None
    laid = lay_over(np.full_like(grey, (20, 60, 160)), cutout, BOX)
    inner = cv2.erode(where, np.ones((5, 5))) > 0.99
    assert np.abs(laid[inner].mean(axis=0) - (90, 60, 40)).max() < 2


@pytest.mark.parametrize("view", range(NUM_VIEWS))
def test_all_of_a_cutout_is_turned(view: int) -> None:
    cutout = cut_out(picture()[0], BOX)
    assert cutout is not None
    turned = cutout.seen_in(view)
    assert np.array_equal(turned.colour, turn_picture(cutout.colour, view))
    assert np.array_equal(turned.opacity, turn_picture(cutout.opacity, view))
    assert np.array_equal(turned.veil, turn_picture(cutout.veil, view))


def test_foam_beside_it_is_not_the_animal() -> None:
    pixels, _ = picture()
    pixels[23:26, 70:74] = 250
    cutout = cut_out(pixels, BOX)
    assert cutout is not None
    assert cutout.opacity[1:4, 40:44].max() < 128


def test_a_large_animal_keeps_its_thin_parts() -> None:
    pixels, where = picture(enlarge=8.0)
    x1, y1, x2, y2 = (round(value * 8.0) for value in BOX)
    pixels[200:300, 470:478] = SKIN  # a flipper, eight pixels wide
    where[200:300, 470:478] = 1
    cutout = cut_out(pixels, (x1, y1, x2, y2))
    assert cutout is not None
    fin = cutout.opacity[200 - y1 : 225 - y1, 470 - x1 : 478 - x1]
    assert (fin > 128).mean() > 0.8
    steps = np.abs(np.diff(cutout.opacity[..., 0].astype(int), axis=1))
    assert steps.max() < 150, "no stairs"


@pytest.mark.parametrize("what", ["nothing", "the wrong box", "everything", "a patch"])
def test_what_does_not_stand_out_is_not_cut_out(what: str) -> None:
    pixels, _ = picture(skin=WATER) if what == "nothing" else picture()
    if what == "a patch":
        pixels[23:41, 31:77] = 200
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
