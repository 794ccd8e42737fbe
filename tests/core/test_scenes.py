"""Which placed pictures of one water are one picture."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from synthdet.core import scenes
from synthdet.core.records import XYXY, PlacedBox, SyntheticImage
from synthdet.core.scenes import scene_of, shows_others

PLACE: XYXY = (10.0, 20.0, 40.0, 30.0)


def animal(xyxy: XYXY = PLACE, **changes: Any) -> PlacedBox:
    fields = {"animal_tile": "t1", "animal_xyxy": (0.0, 0.0, 30.0, 10.0)} | changes
    return PlacedBox(xyxy=xyxy, class_id=0, **fields)


def picture(*placed: PlacedBox, **changes: Any) -> SyntheticImage:
    fields: dict[str, Any] = {
        "image_id": "syn-1", "path": "a.png", "sha256": "", "prompt": "", "negative_prompt": "",
        "seed": 0, "scheduler": "", "num_inference_steps": 1, "guidance_scale": 1.0,
        "lora_scale": 1.0, "width": 96, "height": 64, "batch": 0, "batch_shape": 1,
        "source_image": "sea", "source_view": 2, "placed": placed,
    }  # fmt: skip
    return SyntheticImage.model_validate(fields | changes)


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(scenes).failed == 0


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (animal(), False),
        (animal((12.0, 21.0, 42.0, 31.0)), False),  # hardly moved
        (animal((10.0, 40.0, 40.0, 50.0)), True),
        (animal((26.0, 20.0, 56.0, 30.0)), True),
        (animal(animal_tile="t2"), True),
        (animal(animal_view=4), True),
        (animal(animal_xyxy=(1.0, 0.0, 31.0, 10.0)), True),
    ],
)
def test_another_animal_or_another_place(other: PlacedBox, expected: bool) -> None:
    one, two = scene_of(picture(animal())), scene_of(picture(other))
    assert shows_others(one, two) is expected
    assert shows_others(two, one) is expected


def test_of_other_water_nothing_is_said() -> None:
    one, elsewhere = scene_of(picture(animal())), animal((50.0, 40.0, 80.0, 50.0))
    assert shows_others(one, scene_of(picture(elsewhere)))
    for changes in ({"source_image": "bay"}, {"source_view": 3}):
        assert not shows_others(one, scene_of(picture(elsewhere, **changes)))
    real = {"source_image": None, "source_tile": "t9"}
    assert shows_others(scene_of(picture(animal(), **real)), scene_of(picture(elsewhere, **real)))


def test_what_was_not_placed_has_no_scene() -> None:
    assert scene_of(picture()) is None
    assert scene_of(picture(animal(), source_image=None)) is None
    assert not shows_others(None, None)
