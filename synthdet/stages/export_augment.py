"""Augmented copies of real train tiles: what a study has to beat before synthetic pictures earn their cost.

Turns and mirrors (from above there is no up), light and colour, haze, sun glint, blur and JPEG, each
copy from a seed of its own.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from synthdet.core.boxes import check_boxes
from synthdet.core.records import Box
from synthdet.errors import SynthdetError

Picture = NDArray[np.uint8]
Augment = Callable[[Picture, Sequence[Box], int], tuple[Picture, tuple[Box, ...]]]

_HAZE_CHANCE = 0.3
_GLINT_CHANCE = 0.25


def plan_copies(tile_ids: Sequence[str], number: int, *, seed: int) -> list[tuple[str, int, int]]:
    """Deal a number of copies out to the tiles as evenly as can be, in the order of the tiles.

    Args:
        tile_ids: The real train tiles.
        number: Of copies in all; more than tiles gives some tiles several.
        seed: Decides which tiles have the odd ones, and with its name each copy's own seed.

    Returns:
        ``(tile_id, copy, seed of the copy)``, copies counted from 1. A larger number adds copies and
        changes none.

    >>> [(tile, copy) for tile, copy, _ in plan_copies(["a", "b", "c"], 4, seed=0)]
    [('a', 1), ('b', 1), ('b', 2), ('c', 1)]
    """
    if not tile_ids:
        return []
    first = sorted(tile_ids, key=lambda tile_id: _hash(f"{seed}:{tile_id}"))
    whole, odd = divmod(number, len(tile_ids))
    more = {*first[:odd]}
    return [
        (tile_id, copy, _hash(f"{seed}:{tile_id}:{copy}") % 2**32)
        for tile_id in tile_ids
        for copy in range(1, whole + (tile_id in more) + 1)
    ]


def make_augment() -> Augment:
    """A function ``(picture, boxes, seed) -> (picture, boxes)``.

    Pictures are ``(height, width, 3)`` in RGB, 0..255; a quarter turn swaps height and width. Boxes
    are in pixels of their picture. The same seed gives the same copy.
    """
    # It asks the network for a newer version when it is imported, unless it is told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A  # noqa: N812  (as its documentation writes it; slow to import)

    turn = A.Compose(
        [A.D4(p=1)],
        bbox_params=A.BboxParams("pascal_voc", label_fields=["class_ids"]),
    )
    light = A.Compose([
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.7),
        A.RandomGamma(gamma_limit=(75, 130), p=0.4),
        A.HueSaturationValue(hue_shift_limit=8, sat_shift_limit=25, val_shift_limit=12, p=0.6),
    ])  # fmt: skip
    optics = A.Compose([
        A.OneOf([
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.3, 1.1)),
            A.MotionBlur(blur_limit=(3, 5)),
        ], p=0.3),
        A.ImageCompression(quality_range=(45, 92), p=0.5),
    ])  # fmt: skip

    def augment(
        picture: Picture, boxes: Sequence[Box], seed: int
    ) -> tuple[Picture, tuple[Box, ...]]:
        rng, plain = np.random.default_rng(seed), random.Random(seed)  # noqa: S311
        for pipeline in (turn, light, optics):
            # One stream for all: `set_random_seed` would give every transform the same draws.
            pipeline.set_random_state(rng, plain)
        turned = turn(
            image=picture,
            bboxes=np.array([box.xyxy for box in boxes], dtype=np.float64).reshape(-1, 4),
            class_ids=[box.class_id for box in boxes],
        )
        seen = light(image=turned["image"])["image"]
        seen = _haze(seen, rng) if rng.random() < _HAZE_CHANCE else seen
        seen = _glint(seen, rng) if rng.random() < _GLINT_CHANCE else seen
        seen = optics(image=seen)["image"]
        return np.ascontiguousarray(seen), _to_boxes(turned, seen.shape)

    return augment


def write_copy(
    augment: Augment, source: Path, boxes: Sequence[Box], seed: int, target: Path
) -> tuple[int, int, tuple[Box, ...]]:
    """Make one copy of a tile as a PNG.

    Args:
        augment: What `make_augment` gave.
        source: The tile.
        boxes: Its boxes, in pixels.
        seed: Of this copy.
        target: A path that ends in ``.png``.

    Returns:
        Width, height, and the boxes of the copy.

    Raises:
        SynthdetError: The tile cannot be decoded.
    """
    picture = cv2.imread(str(source), cv2.IMREAD_COLOR)
    if picture is None:
        raise SynthdetError(
            f"{source} cannot be read: make the tiles again with `synthdet prepare ... --redo`"
        )
    made, moved = augment(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), boxes, seed)
    content = cv2.imencode(".png", cv2.cvtColor(made, cv2.COLOR_RGB2BGR))[1].tobytes()
    target.write_bytes(content)
    return made.shape[1], made.shape[0], moved


def _haze(picture: Picture, rng: np.random.Generator) -> Picture:
    """A pale veil, thicker towards one side."""
    height, width = picture.shape[:2]
    colour = rng.uniform((195, 205, 212), (220, 226, 232))
    thick, lean = rng.uniform(0.06, 0.28), rng.uniform(-0.4, 0.4, 2)
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    veil = (thick * (1 + lean[0] * x + lean[1] * y))[..., None]
    return _to_bytes(picture * (1 - veil) + colour * veil)


def _glint(picture: Picture, rng: np.random.Generator) -> Picture:
    """Sun on the crests: small bright streaks in a soft patch of the picture."""
    height, width = picture.shape[:2]
    noise = rng.standard_normal((height, width)).astype(np.float32)
    fine = max(0.7, min(height, width) / 300)
    crests = cv2.GaussianBlur(noise, (0, 0), sigmaX=1.8 * fine, sigmaY=0.7 * fine)
    crests -= np.quantile(crests, rng.uniform(0.96, 0.985))
    crests = np.clip(crests / max(float(crests.max()), 1e-6), 0, 1)
    centre, reach = rng.uniform(0, 1, 2), rng.uniform(0.2, 0.45)
    y, x = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None, :]
    patch = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * reach**2))
    bright = (rng.uniform(0.6, 1.0) * patch * np.sqrt(crests))[..., None]
    return _to_bytes(picture + (255.0 - picture) * bright)


def _to_bytes(values: NDArray[np.float64]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _to_boxes(turned: dict[str, Any], shape: tuple[int, ...]) -> tuple[Box, ...]:
    """Boxes as albumentations gives them (float32 shares inside), to a thousandth of a pixel."""
    boxes = [
        Box(xyxy=tuple(round(float(edge), 3) for edge in edges), class_id=int(class_id))
        for edges, class_id in zip(turned["bboxes"], turned["class_ids"], strict=True)
    ]
    usable, _ = check_boxes(boxes, shape[1], shape[0])
    return tuple(usable)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
