"""Labels that are likely wrong, from what is on disk alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from synthdet.core.doubts import doubt_annotations, doubt_label, doubt_tiles, principal_plane
from synthdet.core.records import XYXY, Box, DetectedBox, Detections, Label, SyntheticImage, Tile

SEAL: XYXY = (10, 10, 50, 30)
ELSEWHERE: XYXY = (60, 40, 90, 60)
NAMES = ("seal", "boat")


def tile(name: str, *boxes: XYXY) -> Tile:
    return Tile(
        tile_id=name, image_id=name, group="g", split="val", path="t.png", sha256="0",
        xyxy=(0, 0, 96, 64), scale=1, width=96, height=64,
        boxes=tuple(Box(xyxy=box, class_id=0) for box in boxes), caption="",
    )  # fmt: skip


def image(asked_for: tuple[int, ...] | None) -> SyntheticImage:
    return SyntheticImage(
        image_id="syn", path="p", sha256="0", prompt="", negative_prompt="", seed=0, scheduler="x",
        num_inference_steps=1, guidance_scale=1, lora_scale=1, width=96, height=64, batch=0,
        batch_shape=1, asked_for=asked_for,
    )  # fmt: skip


def detected(xyxy: XYXY, confidence: float, **more: Any) -> DetectedBox:
    return DetectedBox(xyxy=xyxy, class_id=more.pop("class_id", 0), confidence=confidence, **more)


@pytest.mark.parametrize(
    ("asked_for", "classes", "status", "doubt"),
    [
        ((0, 0), (0, 0), "accept", None),
        ((0, 1), (1, 0), "accept", None),
        ((0, 0), (0,), "accept", "asked for 2 seal, labelled 1 seal"),
        ((0,), (1,), "accept", "asked for 1 seal, labelled 1 boat"),
        ((1,), (), "negative", "asked for 1 boat, labelled nothing"),
        ((), (), "negative", None),
        ((), (0,), "accept", "asked for nothing, labelled 1 seal"),
        ((0, 0), (0,), "review", None),
        (None, (0,), "accept", None),
    ],
)
def test_a_label_is_held_against_the_prompt(
    asked_for: tuple[int, ...] | None, classes: Sequence[int], status: Any, doubt: str | None
) -> None:
    boxes = tuple(detected(SEAL, 0.9, class_id=class_id) for class_id in classes)
    label = Label(image_id="syn", status=status, boxes=boxes)
    assert doubt_label(image(asked_for), label, NAMES) == doubt


@pytest.mark.parametrize(
    ("true", "found", "doubt"),
    [
        ([SEAL], [detected((12, 11, 52, 31), 0.6)], None),
        ([SEAL], [detected((12, 11, 52, 31), 0.1)], None),
        ([SEAL], [], "does not see 1 of the marked"),
        ([SEAL], [detected(ELSEWHERE, 0.6), detected(SEAL, 0.2)], "sure of 1 that no annotation"),
        ([], [detected(ELSEWHERE, 0.4)], None),
        ([], [detected(ELSEWHERE, 0.9, source="detector:view-3")], None),
        ([SEAL], [detected(ELSEWHERE, 0.9)], "sure of 1 .*; the detector does not see 1"),
    ],
)
def test_an_annotation_is_held_against_the_detector(
    true: list[XYXY], found: list[DetectedBox], doubt: str | None
) -> None:
    raw = {"t": Detections(image_id="t", boxes=tuple(found))}
    doubts = doubt_annotations([tile("t", *true), tile("not asked", SEAL)], raw, 0.5)
    if doubt is None:
        assert doubts == {}
    else:
        assert list(doubts) == ["t"]
        assert re.search(doubt, doubts["t"])


def embedded(angles: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rows of length 1 at angles in degrees."""
    radians = np.radians(np.asarray(angles, dtype=np.float32))
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def test_a_tile_that_looks_like_the_other_kind_is_odd() -> None:
    animals = [tile(f"a{n}", SEAL) for n in range(6)]
    empties = [tile(f"e{n}") for n in range(6)]
    angles = [0, 1, 2, 3, 4, 95, 90, 91, 92, 93, 94, -0.5]
    doubts = doubt_tiles([*animals, *empties], embedded(angles))
    assert set(doubts) == {"a5", "e5"}
    assert doubts["a5"].startswith("has a box, but")
    assert doubts["e5"].startswith("no box, but")
    assert doubt_tiles([*animals, *empties[:4]], embedded(angles[:10])) == {}
    assert doubt_tiles([], np.empty((0, 0), dtype=np.float32)) == {}


def test_the_plane_keeps_what_differs_most() -> None:
    rng = np.random.default_rng(1)
    flat = rng.normal(size=(40, 2)) * [3, 1]
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0][:2]
    rows = (flat @ axes + rng.normal(size=(40, 6)) * 1e-4).astype(np.float32)
    plane = principal_plane(rows)
    centred = flat - flat.mean(axis=0)

    def apart(points: Any) -> Any:
        return np.linalg.norm(points[:, None] - points[None], axis=2)

    assert np.allclose(apart(plane), apart(centred), atol=1e-2)
    assert plane[:, 0].std() > plane[:, 1].std()
    assert np.array_equal(plane, principal_plane(rows))
