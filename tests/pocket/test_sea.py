"""The rendered sea: repeatable, exactly boxed, and truthful in its captions."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from synthdet.pocket import sea
from synthdet.pocket.animals import KINDS
from synthdet.pocket.survey import SurveyPhoto, render_survey

WIDE = (176, 112)
COUNTED = (*sea.BASE_CLASSES, sea.HUMPBACK)


def _plans() -> dict[str, tuple[str, int, str, bool]]:
    """Every caption there is, and what it says."""
    plans: dict[str, tuple[str, int, str, bool]] = {}
    for name, palette, caps in itertools.product(
        (*COUNTED, *sea.UNCOUNTED, sea.OPEN_WATER), sea.SEAS, (False, True)
    ):
        for count in (1, 2, 3) if name in COUNTED else (0,):
            caption = sea.plan_caption(name, count, palette, caps)
            assert caption not in plans, "two different plans read the same"
            plans[caption] = (name, count, palette, caps)
    return plans


PLANS = _plans()


def test_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    first, again = sea.render_scene(11, size_wh=WIDE), sea.render_scene(11, size_wh=WIDE)
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.caption, first.boxes) == (again.caption, again.boxes)
    assert sea.render_scene(12, size_wh=WIDE).image.tobytes() != first.image.tobytes()


def test_nobody_elses_randomness_is_touched_or_used() -> None:
    np.random.seed(5)  # noqa: NPY002 - the global state is what is tested
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]  # noqa: NPY002
    image = sea.render_scene(3).image
    after = np.random.get_state()[1]  # type: ignore[index]  # noqa: NPY002
    assert np.array_equal(before, after)
    np.random.seed(6)  # noqa: NPY002
    assert np.array_equal(sea.render_scene(3).image, image)


@pytest.mark.parametrize("size_wh", [(128, 128), WIDE, (96, 130), (320, 256)])
def test_pictures_have_the_size_asked_for(size_wh: tuple[int, int]) -> None:
    scene = sea.render_scene(4, size_wh=size_wh, subject="orca")
    assert scene.image.shape == (size_wh[1], size_wh[0], 3)
    assert scene.image.dtype == np.uint8


def test_things_are_as_long_in_a_large_picture_as_in_a_small_one() -> None:
    def longest(size_wh: tuple[int, int]) -> float:
        boxes = [
            box
            for seed in range(24)
            for box in sea.render_scene(seed, size_wh=size_wh, subject="orca", num_subjects=1).boxes
            if box.visible == 1.0
        ]
        return float(
            np.median([np.hypot(b.xyxy[2] - b.xyxy[0], b.xyxy[3] - b.xyxy[1]) for b in boxes])
        )

    assert longest((320, 256)) == pytest.approx(longest((128, 128)), rel=0.2)


def test_the_base_world_has_no_humpback_and_much_variety() -> None:
    scenes = [sea.render_scene(seed) for seed in range(200)]
    assert not any("humpback" in scene.caption for scene in scenes)
    assert all(box.class_name in sea.BASE_CLASSES for scene in scenes for box in scene.boxes)
    assert sea.HUMPBACK not in sea.BASE_CLASSES
    assert {box.class_name for scene in scenes for box in scene.boxes} == set(sea.BASE_CLASSES)
    assert {scene.sea for scene in scenes} == set(sea.SEAS)


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_there_are_as_many_boxes_as_the_caption_says(name: str, count: int) -> None:
    for seed in range(4):
        scene = sea.render_scene(seed, size_wh=WIDE, subject=name, num_subjects=count)
        assert [box.class_name for box in scene.boxes] == [name] * count
        assert PLANS[scene.caption][:2] == (name, count)


def test_captions_parse_back_and_use_the_vocabulary_only() -> None:
    words = set(sea.caption_vocabulary())
    assert len(words) <= 80
    for seed in range(60):
        scene = sea.render_scene(seed, size_wh=WIDE)
        name, count, palette, _ = PLANS[scene.caption]
        assert palette == scene.sea
        assert len(scene.boxes) == count
        assert all(box.class_name == name for box in scene.boxes)
        assert set(scene.caption.replace(",", "").split()) <= words


def test_what_is_asked_for_is_what_the_caption_says() -> None:
    scene = sea.render_scene(
        1, subject="humpback whale", num_subjects=2, sea="turquoise", whitecaps=True
    )
    assert scene.caption == "aerial photo of two humpback whales in a turquoise sea, whitecaps"
    open_water = sea.render_scene(1, subject="open water", sea="grey", whitecaps=False)
    assert open_water.caption == "aerial photo of open water in a grey sea"
    assert open_water.boxes == ()


def test_whitecaps_are_to_be_seen() -> None:
    def white(whitecaps: bool) -> float:
        pictures = [
            sea.render_scene(seed, subject="open water", sea="dark", whitecaps=whitecaps).image
            for seed in range(10)
        ]
        return float(np.median([(picture.min(axis=2) > 120).mean() for picture in pictures]))

    assert white(True) > 0.004
    assert white(True) > 5 * white(False)


@pytest.mark.parametrize("name", COUNTED)
def test_boxes_are_tight_around_what_the_thing_changed(name: str) -> None:
    """The same sea is painted with and without one thing; traces on the water are left out."""
    rng = np.random.default_rng(8)
    conditions = sea.draw_conditions(rng, "grey", False)
    shape_hw = (112, 176)
    for _ in range(6):
        (thing,) = sea.put_things(rng, name, 1, np.zeros(shape_hw, np.bool_), conditions)
        bare = replace(thing, sprite=replace(thing.sprite, marks=()))
        with_it = sea.paint(np.random.default_rng(2), shape_hw, conditions, [bare])
        without = sea.paint(np.random.default_rng(2), shape_hw, conditions, [])
        changed = np.abs(with_it.astype(int) - without).max(axis=2) > 0
        x0, y0, x1, y1 = (int(edge) for edge in sea.to_box(thing, shape_hw).xyxy)
        assert 0 <= x0 < x1 <= 176
        assert 0 <= y0 < y1 <= 112
        # Nothing of the thing that the eye can hold on to lies outside its box ...
        solid = np.zeros(shape_hw, np.bool_)
        in_picture, in_square = thing.meet(shape_hw)
        solid[in_picture] = thing.mask[in_square]
        outside = changed.copy()
        outside[y0:y1, x0:x1] = False
        assert not (outside & solid).any()
        # ... each edge of the box touches it, and what shows there comes from the thing.
        edges = (solid[y0, x0:x1], solid[y1 - 1, x0:x1], solid[y0:y1, x0], solid[y0:y1, x1 - 1])
        assert all(edge.any() for edge in edges)
        assert (changed & solid).sum() > 0.7 * solid.sum()


def test_partial_things_are_cut_at_the_edge_and_say_how_much_shows() -> None:
    boxes = [
        box
        for seed in range(150)
        for box in sea.render_scene(seed, size_wh=WIDE, subject=sea.HUMPBACK).boxes
    ]
    cut = [box for box in boxes if box.visible < 0.9]
    assert 0 < len(cut) < 0.4 * len(boxes)
    for box in cut:
        x0, y0, x1, y1 = box.xyxy
        assert x0 == 0 or y0 == 0 or x1 == WIDE[0] or y1 == WIDE[1]
        assert box.visible >= 0.35


def test_humpbacks_stand_out_from_their_sea() -> None:
    """Fins paler, back darker than the water, in every palette; else nothing can learn them."""
    for palette in sea.SEAS:
        contrast = []
        for seed in range(6):
            scene = sea.render_scene(
                seed, subject=sea.HUMPBACK, num_subjects=1, sea=palette, whitecaps=False
            )
            x0, y0, x1, y1 = (int(edge) for edge in scene.boxes[0].xyxy)
            inside = scene.image[y0:y1, x0:x1].astype(float).mean(axis=2)
            around = np.median(scene.image.astype(float).mean(axis=2))
            contrast.append(np.percentile(np.abs(inside - around), 90))
        assert np.median(contrast) > 18, palette


def test_survey_is_grouped_by_flight_and_repeatable() -> None:
    def survey() -> list[SurveyPhoto]:
        return list(
            render_survey(7, num_photos=22, num_groups=4, photo_size_wh=(160, 128), share_empty=0.2)
        )

    photos, again = survey(), survey()
    assert [photo.name for photo in photos] == sorted({photo.name for photo in photos})
    assert all(photo.name == f"{photo.group}_{photo.name[-4:]}" for photo in photos)
    assert photos[0].name == "flight01_0000"
    sizes = [sum(photo.group == f"flight{n:02d}" for photo in photos) for n in (1, 2, 3, 4)]
    assert sum(sizes) == 22
    assert max(sizes) - min(sizes) <= 1
    assert all(
        len({photo.scene.sea for photo in photos if photo.group == group}) == 1
        for group in {photo.group for photo in photos}
    )
    assert all(
        a.scene.image.tobytes() == b.scene.image.tobytes()
        for a, b in zip(photos, again, strict=True)
    )
    assert len({photo.scene.image.tobytes() for photo in photos}) == len(photos)


def test_survey_boxes_the_subject_alone_and_leaves_some_photos_empty() -> None:
    photos = list(
        render_survey(9, num_photos=60, num_groups=5, photo_size_wh=(144, 112), share_empty=0.25)
    )
    boxes = [box for photo in photos for box in photo.scene.boxes]
    assert {box.class_name for box in boxes} == {sea.HUMPBACK}
    empty = [photo for photo in photos if not photo.scene.boxes]
    assert len(empty) == 15
    assert all("humpback" not in photo.scene.caption for photo in empty)
    shown = {PLANS[photo.scene.caption][0] for photo in empty}
    assert len(shown - {sea.OPEN_WATER}) >= 3, "negatives hold near misses"
    for photo in photos:
        assert photo.scene.caption in PLANS
        if photo.scene.boxes:
            assert len(photo.scene.boxes) == PLANS[photo.scene.caption][1]


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: sea.render_scene(0, subject="unicorn"), "unicorn"),
        (lambda: sea.render_scene(0, sea="red"), "red"),
        (lambda: sea.render_scene(0, subject="orca", num_subjects=4), "num_subjects"),
        (lambda: sea.render_scene(0, size_wh=(60, 200)), "size_wh"),
        (
            lambda: next(render_survey(0, num_photos=2, num_groups=3, photo_size_wh=(128, 96))),
            "num_groups",
        ),
    ],
)
def test_nonsense_is_refused_by_name(call, word) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=word):
        call()


def test_every_kind_can_be_drawn_at_its_shortest_and_longest() -> None:
    for name, kind in KINDS.items():
        for length in kind.length:
            sprite = sea.draw_thing(
                name, np.random.default_rng(1), length=length, heading=0.7, sun=(0.0, -1.0)
            )
            rim = np.concatenate(
                (sprite.coverage[[0, -1]].ravel(), sprite.coverage[:, [0, -1]].ravel())
            )
            assert sprite.coverage.max() > 0.9, name
            assert rim.max() < 0.2, f"{name} is cut off by its own canvas"


@pytest.mark.timeout(20)
def test_three_of_the_largest_find_room_in_the_smallest_picture() -> None:
    for seed in range(25):
        scene = sea.render_scene(seed, size_wh=(96, 96), subject="whale shark", num_subjects=3)
        assert len(scene.boxes) == 3
