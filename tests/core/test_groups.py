"""Kin by name and by look."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

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
    assert kin[0].original == kin[1].original != kin[2].original


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
