"""Modes are spread evenly, tiles fit what is asked for, boxes have the sizes of real animals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from synthdet.core.placement import Animal, change_water, plan_modes, whole_animals
from synthdet.core.prompts import PlannedPicture, plan_pictures
from synthdet.core.records import XYXY, Box, Split, Tile
from synthdet.errors import SynthdetError

WIDTH, HEIGHT = 90, 60


def tile(name: str, *boxes: tuple[XYXY, int], split: Split = "train") -> Tile:
    return Tile(
        tile_id=name, image_id=name, group=name, split=split, path=name, sha256="", scale=1,
        xyxy=(0, 0, WIDTH, HEIGHT), width=WIDTH, height=HEIGHT, caption="",
        boxes=tuple(Box(xyxy=xyxy, class_id=class_id) for xyxy, class_id in boxes),
    )  # fmt: skip


SEAL: tuple[XYXY, int] = ((10, 10, 30, 24), 0)
WHALE: tuple[XYXY, int] = ((5.2, 5, 45.1, 36), 1)
TORN: tuple[XYXY, int] = ((0, 20, 70, 50), 1)
TILES = (
    tile("water-1"),
    tile("seal-1", SEAL),
    tile("water-2"),
    tile("whale-1", WHALE),
    tile("whales", WHALE, TORN),
    tile("val", ((1, 1, 89, 59), 0), split="val"),
    tile("val-water", split="val"),
)


def plan(number: int = 60, background: float = 0.2, **options: Any) -> tuple[PlannedPicture, ...]:
    return plan_pictures(
        num_images=number, class_names=["seal", "whale"], prompts=["photo of {animals}"],
        animals=options.get("animals"), attributes={},
        background_prompts=options.get("waters", ["photo of water"]),
        background_fraction=background, negative_prompt="", seed=3,
    )  # fmt: skip


def give(
    shares: dict[Any, float], tiles: Sequence[Tile] = TILES, start: Any = "animal",
    planned: Sequence[PlannedPicture] | None = None, water: Any = "real",
    stands_out: Callable[[Animal], bool] = lambda _animal: True, **options: Any,
) -> Any:  # fmt: skip
    pictures = plan(**options) if planned is None else planned
    return plan_modes(
        pictures, tiles, shares=shares, start=start, water=water, stands_out=stands_out, seed=3
    )


def test_text_alone_changes_nothing() -> None:
    assert give({"text": 1}) == plan()


def test_shares_are_kept_and_spread_evenly_and_backgrounds_are_never_placed() -> None:
    made = give({"text": 1, "image": 1, "placed": 2})
    animals = Counter(one.mode for one in made if not one.background)
    assert animals == {"text": 12, "image": 12, "placed": 24}
    assert Counter(one.mode for one in made[:20] if not one.background)["placed"] == 8
    assert Counter(one.mode for one in made if one.background) == {"text": 9, "image": 3}
    assert [one.prompt for one in made] == [one.prompt for one in plan()]


def test_an_image_starts_from_a_train_tile_that_shows_what_is_asked_for() -> None:
    for one in give({"image": 1}):
        expected = {(): {"water-1", "water-2"}, (0,): {"seal-1"}, (1,): {"whale-1"},
                    (1, 1): {"whales"}, (0, 0): {"seal-1", "whale-1", "whales"}}  # fmt: skip
        assert one.source_tile in expected[one.asked_for]


def test_tiles_are_seen_in_all_views_that_keep_their_width() -> None:
    views = {one.source_view for one in give({"placed": 1}, number=200) if not one.background}
    assert views == {0, 2, 4, 6}, "tiles are wider than high"
    square = [one.model_copy(update={"height": WIDTH}) for one in TILES]
    views = {one.source_view for one in give({"image": 1}, square, number=200)}
    assert views == set(range(8))


def test_a_placed_animal_has_the_size_of_a_whole_real_one_and_is_inside_the_tile() -> None:
    made = [one for one in give({"placed": 1}, number=200) if not one.background]
    sizes: dict[int, set[tuple[float, float]]] = {0: set(), 1: set()}
    for one in made:
        assert one.source_tile in {"water-1", "water-2"}
        assert tuple(box.class_id for box in one.placed) == one.asked_for
        for box in one.placed:
            x1, y1, x2, y2 = box.xyxy
            assert 0 <= x1 < x2 <= WIDTH
            assert 0 <= y1 < y2 <= HEIGHT
            sizes[box.class_id].add((x2 - x1, y2 - y1))
            assert box.animal_tile in {0: {"seal-1"}, 1: {"whale-1", "whales"}}[box.class_id]
            assert box.animal_xyxy == {0: (10, 10, 30, 24), 1: (5, 5, 46, 36)}[box.class_id]
            turned = (x2 - x1, y2 - y1) in {(14, 20), (31, 41)}
            assert turned == (box.animal_view % 2 == 1)
    assert sizes == {0: {(20, 14), (14, 20)}, 1: {(41, 31), (31, 41)}}, "whole ones of train alone"
    assert len({one.placed for one in made}) > 150
    tiles = Counter(one.source_tile for one in made)
    assert abs(tiles["water-1"] - tiles["water-2"]) <= 1


def test_from_noise_a_box_names_no_animal() -> None:
    for one in give({"placed": 1}, start="noise"):
        assert all(box.animal_tile is None and box.animal_xyxy is None for box in one.placed)


def test_animals_that_do_not_stand_out_are_placed_only_where_none_does() -> None:
    tiles = (*TILES, tile("seal-2", ((4, 4, 30, 18), 0)))
    asked: list[str] = []

    def stands_out(animal: Animal) -> bool:
        asked.append(animal.tile.tile_id)
        return animal.tile.tile_id == "seal-2"

    made = give({"placed": 1}, tiles, number=100, stands_out=stands_out)
    boxes = [box for one in made for box in one.placed]
    seals = {box.animal_tile for box in boxes if box.class_id == 0}
    whales = {box.animal_tile for box in boxes if box.class_id == 1}
    assert seals == {"seal-2"}
    assert whales == {"whale-1", "whales"}, "none stands out, so all are taken"
    asked.clear()
    give({"placed": 1}, tiles, start="noise", stands_out=stands_out)
    assert asked == [], "from noise no animal is looked at"


def test_animals_that_another_covers_are_known() -> None:
    one, other, third = (10, 10, 30, 20), (29, 10, 50, 20), (15, 12, 40, 30)
    tiles = [
        tile("apart", (one, 0), (other, 0)), tile("close", (one, 0), (third, 1)),
        tile("torn", ((0, 10, 20, 20), 0), (one, 1)), tile("val", (one, 0), split="val"),
    ]  # fmt: skip
    found = [
        (animal.tile.tile_id, animal.class_id, animal.is_apart) for animal in whole_animals(tiles)
    ]
    assert found == [
        ("apart", 0, True), ("apart", 0, True), ("close", 0, False), ("close", 1, False),
        ("torn", 1, False),
    ]  # fmt: skip


def test_no_train_tile_is_one_line() -> None:
    with pytest.raises(SynthdetError, match="no train tile"):
        give({"placed": 1}, TILES[-2:], water="drawn")


def test_drawn_water_is_a_background_picture_of_the_plan() -> None:
    made = give({"text": 1, "placed": 2}, TILES[1::2], number=100, water="drawn")
    backgrounds = [one for one in made if one.background]
    placed = [one for one in made if one.mode == "placed"]
    assert {one.mode for one in backgrounds} == {"text"}
    times = Counter(one.source_image for one in placed)
    assert set(times) == {one.image_id for one in backgrounds}
    assert max(times.values()) - min(times.values()) <= 1, "evenly"
    assert all(one.source_tile is None and one.placed for one in placed)
    assert {one.source_view for one in placed} == {0, 2, 4, 6}
    assert give({"placed": 1})[0].source_image is None


@pytest.mark.parametrize("water", ["real", "drawn"])
def test_water_fits_the_attributes_of_the_prompt(water: str) -> None:
    seas = ("deep blue", "blue", "grey") if water == "drawn" else ("deep blue", "grey")
    planned = plan_pictures(
        num_images=60, class_names=["seal"], prompts=["{animals} in a {sea} sea{waves}"],
        animals=None, attributes={"sea": seas, "waves": ["", ", foam"]},
        background_prompts=["open water, a {sea} sea{waves}"], background_fraction=0.2,
        negative_prompt="", seed=3,
    )  # fmt: skip
    tiles = [
        tile("seal-1", SEAL),
        *(tile(f"water-{sea}").model_copy(update={"caption": f"a {sea} sea"}) for sea in seas),
    ]
    made = give({"placed": 1}, tiles, planned=planned, water=water)
    prompts = {one.image_id: one.prompt for one in made}
    captions = {one.tile_id: one.caption for one in tiles}
    for one in made:
        if one.mode == "placed":
            sea = next(sea for sea in seas if f"a {sea} sea" in one.prompt)
            shown = captions[one.source_tile] if water == "real" else prompts[one.source_image]
            assert f"a {sea} sea" in shown
            if water == "drawn":
                assert ("foam" in shown) == ("foam" in one.prompt), "waves fit too"
            assert one.attributes == ((sea, ", foam") if "foam" in one.prompt else (sea,))


@pytest.mark.parametrize("water", ["real", "drawn"])
def test_animals_come_into_drawn_water_from_other_seas(water: str) -> None:
    planned = plan_pictures(
        num_images=120, class_names=["seal"], prompts=["{animals} in a {sea} sea{waves}"],
        animals=None, attributes={"sea": ("blue", "grey", "red"), "waves": ["", ", foam"]},
        background_prompts=["a {sea} sea{waves}"], background_fraction=0.2, negative_prompt="", seed=3,
    )  # fmt: skip
    seas = ("a blue sea", "a grey sea", "a grey sea, foam")
    tiles = [
        *(
            tile(f"{sea} {number}", SEAL).model_copy(update={"caption": f"one seal in {sea}"})
            for sea in seas
            for number in range(8)
        ),
        *(tile(f"water in {sea}").model_copy(update={"caption": sea}) for sea in seas),
    ]
    made = give({"placed": 1}, tiles, planned=planned, water=water)
    seen: dict[str, set[str]] = {}
    for one in made:
        for box in one.placed:
            seen.setdefault(one.prompt.split(" in ")[1], set()).add(box.animal_tile[:-2])
    assert seen["a red sea"] == seen["a red sea, foam"] == seen["a blue sea, foam"] == set(seas)
    own = {"a blue sea": {seas[0]}, "a grey sea": {seas[1], seas[2]}, "a grey sea, foam": {seas[2]}}
    for sea, not_wanted in own.items():
        assert seen[sea] == (set(seas) - not_wanted if water == "drawn" else set(seas)), sea
    few = give({"placed": 1}, tiles[:15], planned=planned, water="drawn")
    blue = [one for one in few if one.prompt.endswith("in a blue sea")]
    assert {box.animal_tile[:-2] for one in blue for box in one.placed} == set(seas[:2]), "too few"
    any_sea = plan_modes(
        planned, tiles, shares={"placed": 1}, start="animal", water="drawn",
        stands_out=lambda _animal: True, seed=3, other_seas=False,
    )  # fmt: skip
    blue = [one for one in any_sea if one.prompt.endswith("in a blue sea")]
    assert {box.animal_tile[:-2] for one in blue for box in one.placed} == set(seas)
    noise = give({"placed": 1}, tiles, planned=planned, water="drawn", start="noise")
    assert all(box.animal_tile is None for one in noise for box in one.placed)


def test_other_water_is_as_like_as_can_be() -> None:
    seas = ("blue", "grey")
    planned = plan_pictures(
        num_images=60, class_names=["seal"], prompts=["{animals} in a {sea} sea"], animals=None,
        attributes={"sea": seas}, background_prompts=["a {sea} sea"], background_fraction=0.2,
        negative_prompt="", seed=3,
    )  # fmt: skip
    made = give({"placed": 1}, planned=planned, water="drawn")
    waters = [one for one in made if one.background]
    of = {one.image_id: one.attributes for one in waters}
    first = next(one for one in waters if one.attributes == ("blue",))
    others = [one for one in waters if one is not first]
    changed = Counter[str | None]()
    for one in made:
        other = change_water(one, others)
        if one.source_image != first.image_id:
            assert other == one
            continue
        assert of[other.source_image] == ("blue",), "as the prompt says"
        assert (other.placed, other.source_view) == (one.placed, one.source_view)
        changed[other.source_image] += 1
    assert sum(changed.values()) > 2
    assert len(changed) > 1, "not all on the same"
    grey = [one for one in waters if one.attributes == ("grey",)]
    alone = next(one for one in made if one.source_image == first.image_id)
    assert of[change_water(alone, grey).source_image] == ("grey",), "rather that than none"
    with pytest.raises(SynthdetError, match=r"placed_water: every background picture"):
        change_water(alone, [])


def test_drawn_water_needs_background_pictures() -> None:
    with pytest.raises(SynthdetError, match=r"placed_water: drawn .*background_fraction"):
        give({"placed": 1}, background=0.0, water="drawn")


def test_an_animal_longer_than_the_tile_is_high_is_not_turned() -> None:
    long = tile("long", ((5, 20, 85, 30), 0))
    made = give({"placed": 1}, (TILES[0], long), background=0.0, animals={"one seal": 1})
    assert {box.animal_view for one in made for box in one.placed} == {0, 4}


def test_two_animals_are_placed_apart() -> None:
    for one in give({"placed": 1}, number=100, background=0.0):
        if one.asked_for == (0, 0):
            a, b = (box.xyxy for box in one.placed)
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_the_same_seed_gives_the_same_plan() -> None:
    assert give({"placed": 1, "image": 2}) == give({"placed": 1, "image": 2})


@pytest.mark.parametrize(
    ("tiles", "shares", "message"),
    [
        (TILES[1:2], {"placed": 1}, "without animals"),
        (TILES[:1], {"placed": 1}, "none of class"),
        (TILES[:1], {"image": 1}, "with animals"),
    ],
)
def test_what_a_mode_needs_and_is_not_there_is_one_line(
    tiles: Sequence[Tile], shares: dict[Any, float], message: str
) -> None:
    with pytest.raises(SynthdetError, match=rf"generate\.mode: .*{message}"):
        give(shares, tiles)


def test_an_animal_that_nobody_can_tell_is_not_placed() -> None:
    with pytest.raises(SynthdetError, match="which animal to place, and 'photo of something'"):
        give({"placed": 1}, animals={"something": 1})
