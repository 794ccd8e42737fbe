"""Kin by name and by look."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthdet.core import groups
from synthdet.core.flights import Taken, find_flights
from synthdet.core.groups import (
    find_kin,
    given_split,
    join,
    match_groups,
    near_duplicates,
    symmetries,
    unique_names,
)
from synthdet.errors import SynthdetError


def groups_of(*paths: str, frames_per_group: int = 20) -> list[str]:
    return [kin.group for kin in find_kin(paths, frames_per_group=frames_per_group)]


def test_roboflow_copies_are_one_original_wherever_they_lie():
    first, second, other = find_kin(
        [
            "train/images/Flight_01_00063_3200_1280_JPG.rf.328d1e8ca313f9affd0892f5c2377a59.jpg",
            "valid/images/Flight_01_00063_3200_1280_JPG.rf.a3cf29fd7e8fe62f439201dcfbd7d29c.jpg",
            "valid/images/Flight_01_00063_3200_1920_JPG.rf.a3cf29fd7e8fe62f439201dcfbd7d29c.jpg",
        ],
        frames_per_group=20,
    )
    assert first.original == second.original == "Flight_01_00063_3200_1280"
    assert other.original != first.original
    assert other.frame == first.frame == "Flight_01_00063"


def test_frames_that_overlap_form_a_chain_and_a_gap_ends_it():
    groups = groups_of("F_0313.jpg", "F_0315.jpg", "F_0318.jpg", "F_0319.jpg")
    assert groups == ["F_0313-0315", "F_0313-0315", "F_0318-0319", "F_0318-0319"]


def test_flights_are_apart():
    first, second = groups_of("survey5_Flight_01_00352.jpg", "survey6_Flight_01_00353.jpg")
    assert first != second


def test_a_long_chain_is_cut_at_its_widest_gap_and_remembers_the_chain():
    numbers = [*range(10, 23), *range(24, 36)]  # a gap of two between 22 and 24
    kin = find_kin([f"F_{number:04d}.jpg" for number in numbers], frames_per_group=16)
    assert {own.group for own in kin} == {"F_0010-0022", "F_0024-0035"}
    assert {own.chain for own in kin} == {"F_0010-0035"}


@pytest.mark.parametrize("longest", [1, 2, 3, 7, 20])
def test_no_block_is_longer_than_asked(longest):
    groups = groups_of(*(f"F_{number:04d}.jpg" for number in range(100)), frames_per_group=longest)
    sizes = [groups.count(group) for group in set(groups)]
    assert max(sizes) == longest
    assert sum(sizes) == 100


def test_random_names_stand_alone():
    names = [
        "a4d47013-e574-4630-9b13-302a8b5ad08e.jpg",
        "a4d47013-e574-4630-9b13-302a8b5ad08f.jpg",
        "0f3c9a7be1d24c55.jpg",
        "whale.jpg",
    ]
    assert len(set(groups_of(*names))) == 4


def test_numbers_that_are_no_offsets_are_no_tiles():
    kin = find_kin(["site_2016_5.jpg", "site_2016_9.jpg"], frames_per_group=20)
    assert kin[0].frame != kin[1].frame


def test_the_time_in_a_dji_name_does_not_hide_the_counter():
    first, second, night = groups_of(
        "DJI_20230501101112_0012_D.JPG",
        "DJI_20230501101115_0013_D.JPG",
        "DJI_20230502101115_0014_D.JPG",
    )
    assert first == second != night


def test_a_time_without_a_counter_counts_minutes():
    first, second, later = groups_of(
        "IMG_20230501_101112.jpg", "IMG_20230501_101250.jpg", "IMG_20230501_111250.jpg"
    )
    assert first == second != later


def test_folders_tell_photos_apart_but_not_split_folders():
    kin = find_kin(
        ["bay/train/images/a.jpg", "bay/test/images/a.jpg", "reef/a.jpg"], frames_per_group=5
    )
    assert kin[0].frame == kin[1].frame != kin[2].frame
    assert len({own.original for own in kin}) == 3  # nothing says that they are copies


def test_groups_by_pattern():
    assert match_groups(["x/flight-2/a.jpg", "flight-13/b.jpg"], r"flight-(\d+)") == ["2", "13"]
    with pytest.raises(SynthdetError, match=r"prepare\.group_pattern .* finds no group in b\.jpg"):
        match_groups(["flight-1/a.jpg", "b.jpg"], r"flight-(\d+)")
    with pytest.raises(
        SynthdetError, match=r"prepare\.group_pattern '\(' is not a regular expression"
    ):
        match_groups(["a.jpg"], "(")


def scene(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 255, (9, 9), dtype=np.uint8)
    return cv2.resize(coarse, (32, 32), interpolation=cv2.INTER_CUBIC)


def test_turned_and_mirrored_copies_are_found_and_others_are_not():
    scenes = np.stack([scene(seed) for seed in range(40)])
    turned = symmetries(scenes[:1].astype(np.float32))
    noise = np.random.default_rng(0).normal(0, 4, (8, 32, 32))
    copies = (np.concatenate(turned) + noise).clip(0, 255).astype(np.uint8)
    thumbs = np.concatenate([scenes, copies])
    pairs = near_duplicates(thumbs, [str(number) for number in range(40)] + ["copy"] * 8, chunk=7)
    assert pairs == [(0, number) for number in range(40, 48)]


def test_blank_pictures_are_nobodys_duplicate():
    assert near_duplicates(np.full((5, 32, 32), 90, np.uint8), list("abcde")) == []


def test_joining_is_transitive():
    assert join(["d", "b", "c", "a", "e"], [(0, 1), (1, 2)]) == ["b", "b", "b", "a", "e"]


def test_names_are_unique_and_safe():
    paths = ["x/a.jpg", "y/A.jpg", "bay no 1.jpg", f"{'long' * 50}.jpg", "syn-000001.jpg", "ö.jpg"]
    stems = [path.rpartition("/")[2].rpartition(".")[0] for path in paths]
    names = unique_names(stems, paths)
    assert names[2] == "bay-no-1"
    assert names[4] != "syn-000001"
    assert len({name.lower() for name in names}) == 6
    assert all(name.isascii() and len(name) < 120 for name in names)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("Train/images/a.jpg", "train"),
        ("a/validation/b.png", "val"),
        ("test_set/a.jpg", None),
        ("test.jpg", None),
        ("annotations/instances_val2017.json", "val"),
        ("train_coco.json", "train"),
    ],
)
def test_split_words(path, split):
    assert given_split(path) == split


# --- names of further tools, time and place ------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "frame"),
    [
        (["bay_0_0_640_640.png", "bay_512_0_1152_640.png", "bay_743_0_1383_640.png"], "bay"),
        (["DJI_0007_r00_c01.jpg", "DJI_0007_r01_c00.jpg"], "DJI_0007"),
        (["ortho-row3-col12.tif", "ortho-row4-col1.tif"], "ortho"),
        (["ortho_tile_3_7.tif", "ortho_tile_0_1.tif"], "ortho"),
        (["cliff_x640_y0.jpg", "cliff_x0_y1280.jpg"], "cliff"),
    ],
)
def test_tiles_of_one_frame_by_the_names_of_tools(names, frame):
    assert {kin.frame for kin in find_kin(names, frames_per_group=20)} == {frame}


def test_four_numbers_that_span_no_tiles_are_no_slices():
    names = ["flight_1_63_640_1280.jpg", "flight_2_70_640_1280.jpg", "flight_2_70_0_640.jpg"]
    kin = find_kin(names, frames_per_group=20)
    assert [own.frame for own in kin] == ["flight_1_63", "flight_2_70", "flight_2_70"]


def test_what_label_studio_puts_before_names_is_taken_off():
    names = ["a1b2c3d4-DJI_0001.jpg", "00c0ffee-DJI_0002.jpg", "12345678-DJI_0003.jpg"]
    assert set(groups_of(*names)) == {"DJI_0001-0003"}
    dates = ["20230501-DJI_0001.jpg", "20230501-DJI_0002.jpg", "20230502-DJI_0003.jpg"]
    assert len(set(groups_of(*dates))) == 2


def test_the_lenses_of_a_dji_drone_are_one_frame():
    names = [f"DJI_20230501120000_0001_{lens}.JPG" for lens in "VTW"]
    assert len(set(groups_of(*names))) == 1


def at(minutes: float, metres: float = 0.0) -> Taken:
    return Taken(60 * minutes, 57.0, -154.0 + metres / 111_320 / np.cos(np.radians(57)))


def test_the_clock_parts_flights_that_a_counter_joins():
    names = [f"DJI_{number:04d}.JPG" for number in range(1, 7)]
    taken = [at(0), at(1), at(2, 400), at(300), at(301), at(302)]
    kin = find_kin(names, frames_per_group=20, taken=taken)
    assert [own.chain for own in kin] == ["1970-01-01 00:00:00 DJI_0001"] * 3 + [
        "1970-01-01 05:00:00 DJI_0004"
    ] * 3
    far = find_kin(names[:2], frames_per_group=20, taken=[at(0), at(0, 700)])
    assert far[0].group != far[1].group


def test_the_clock_joins_what_names_do_not():
    names = ["0f3c9a7be1d24c55.jpg", "beach.jpg", "DJI_9999.JPG", "DJI_0001.JPG"]
    taken = [at(0), at(1), at(2), at(3)]
    assert len({own.group for own in find_kin(names, frames_per_group=20, taken=taken)}) == 1


def test_a_long_flight_is_cut_at_its_widest_pause_and_sorts_by_time():
    minutes = [*range(0, 12), *range(15, 27)]
    names = [f"{(7 * number) % 24:02d}-x.jpg" for number in range(24)]  # names in no order
    kin = find_kin(names, frames_per_group=16, taken=[at(minute) for minute in minutes])
    assert len({own.chain for own in kin}) == 1
    groups = [own.group for own in kin]
    assert groups == sorted(groups)
    assert [groups.count(group) for group in sorted(set(groups))] == [12, 12]


def test_a_counter_whose_times_are_not_all_known_goes_by_its_numbers():
    names = ["F_0001.jpg", "F_0002.jpg"]
    kin = find_kin(names, frames_per_group=9, taken=[at(0), None])
    assert kin[0].group == kin[1].group


def test_copies_without_exif_follow_the_frame_that_has_it():
    names = ["a_1_jpg.rf.0123456789abcdef.jpg", "a_1.jpg", "b_7.jpg"]
    kin = find_kin(names, frames_per_group=9, taken=[None, at(0), at(1)])
    assert len({own.group for own in kin}) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 4)), min_size=1, max_size=40))
def test_flights_are_what_steps_within_minutes_and_metres_connect(moments):
    taken = {
        f"f{number}": at(minute * 3, 300.0 * place)
        for number, (minute, place) in enumerate(moments)
    }
    flight_of = {
        name: number for number, flight in enumerate(find_flights(taken)) for name in flight
    }
    assert set(flight_of) == set(taken)
    keys = join(
        list(taken),
        [
            (first, second)
            for first, one in enumerate(moments)
            for second, other in enumerate(moments[:first])
            if abs(one[0] - other[0]) * 3 <= 10 and abs(one[1] - other[1]) * 300 <= 500
        ],
    )
    assert len(set(keys)) == len(set(flight_of.values()))
    assert len({(key, flight_of[name]) for key, name in zip(keys, taken, strict=True)}) == len(
        set(keys)
    )


# --- near-duplicates, against the search that compares all with all ------------------------------


def all_with_all(thumbs: np.ndarray, keys: list[str]) -> list[tuple[int, int]]:
    grey = thumbs.astype(np.float32)
    hashes, details = groups._hashes(grey), groups._details(grey)
    turned = [groups._hashes(symmetry) for symmetry in symmetries(grey)]
    flat = grey.std(axis=(1, 2)) < groups.MIN_CONTRAST
    pairs = []
    for first in range(len(thumbs)):
        for second in range(first + 1, len(thumbs)):
            near = any(
                np.bitwise_count(hashes[first] ^ own[second]) <= groups.HASH_DISTANCE
                for own in turned
            )
            if near and keys[first] != keys[second] and not (flat[first] or flat[second]):
                best = max(
                    float((details[first] * own[0]).sum())
                    for own in symmetries(details[second][None])
                )
                if best >= groups.CORRELATION:
                    pairs.append((first, second))
    return pairs


@pytest.mark.parametrize("noise", [3, 8, 14])
def test_the_fast_search_finds_what_the_slow_one_finds(noise):
    rng = np.random.default_rng(noise)
    scenes = np.stack([scene(seed) for seed in range(60)])
    copies = np.concatenate(symmetries(scenes[:12].astype(np.float32)))
    copies = (copies + rng.normal(0, noise, copies.shape)).clip(0, 255).astype(np.uint8)
    thumbs = np.concatenate([copies, np.full((2, 32, 32), 9, np.uint8), scenes])
    keys = [str(number % 70) for number in range(len(thumbs))]
    pairs = near_duplicates(thumbs, keys)
    assert pairs == all_with_all(thumbs, keys)
    assert len(pairs) > 20
    assert near_duplicates(thumbs, keys, chunk=13) == pairs


def test_hashes_as_far_as_allowed_are_found_whichever_bits_differ():
    rng = np.random.default_rng(0)
    one = np.uint64(rng.integers(0, 1 << 63))
    hashes = [one]
    for _number in range(300):
        bits = rng.choice(64, groups.HASH_DISTANCE + int(rng.integers(0, 2)), replace=False)
        hashes.append(one ^ np.bitwise_or.reduce(np.uint64(1) << bits.astype(np.uint64)))
    table, own = np.array(hashes), np.arange(301)
    buckets = [groups._Buckets.of(table, quarter) for quarter in range(4)]
    for bucket in buckets:
        bucket.fill(table)
    found = {
        (int(first), int(second))
        for bucket in buckets
        for pairs in groups._near(bucket, table, table, own, own)
        for first, second in pairs
    }
    distance = np.bitwise_count(table[:, None] ^ table[None, :])
    near = np.argwhere(distance <= groups.HASH_DISTANCE)
    assert found == {(first, second) for first, second in near.tolist() if first < second}
