"""Which labels are likely wrong, by what the run's own records say of them. Nothing is asked of a network.

Three witnesses: the prompt of a synthetic picture, the detector's boxes on real val tiles (which it was
not trained on), and how alike a real train tile is to those of the other kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from synthdet.core.boxes import iou
from synthdet.core.fusion import is_upright
from synthdet.core.labelling import drop_twice_drawn
from synthdet.core.records import Detections, Label, SyntheticImage, Tile
from synthdet.core.similarity import MIN_BACKGROUNDS, Embeddings

_SAME_ANIMAL: Final = 0.3
"""IoU from which two boxes are about one animal; half of what counts as found, as small boxes jitter."""


def doubt_label(
    image: SyntheticImage, label: Label | None, class_names: Sequence[str]
) -> str | None:
    """What is odd, in words, about an accepted label that is not what the prompt asked for."""
    if label is None or label.status == "review" or image.asked_for is None:
        return None
    class_ids = [box.class_id for box in label.boxes]
    if sorted(image.asked_for) == sorted(class_ids):
        return None
    asked, found = Counter(image.asked_for), Counter(class_ids)
    return f"asked for {_say(asked, class_names)}, labelled {_say(found, class_names)}"


def _say(classes: Counter[int], names: Sequence[str]) -> str:
    return ", ".join(f"{classes[i]} {names[i]}" for i in sorted(classes)) or "nothing"


def doubt_annotations(
    tiles: Sequence[Tile], found: Mapping[str, Detections], confidence: float
) -> dict[str, str]:
    """Real val tiles whose annotation and the detector's boxes are not about the same animals.

    Args:
        tiles: Real tiles, of any split.
        found: Raw boxes by tile, where the detector was asked.
        confidence: 0..1, from where on its boxes are believed.

    Returns:
        Tile id -> what is odd, in words.
    """
    doubts = {}
    for tile in tiles:
        if tile.tile_id not in found:
            continue
        upright = [box for box in found[tile.tile_id].boxes if is_upright(box)]
        boxes = drop_twice_drawn(upright)  # several detectors draw an animal several times
        unseen = sum(
            all(iou(true.xyxy, box.xyxy) < _SAME_ANIMAL for box in boxes) for true in tile.boxes
        )
        unmarked = sum(
            all(iou(true.xyxy, box.xyxy) < _SAME_ANIMAL for true in tile.boxes)
            for box in boxes
            if box.confidence >= confidence
        )
        said = [f"the detector is sure of {unmarked} that no annotation marks"] if unmarked else []
        said += [f"the detector does not see {unseen} of the marked, not even faintly"] if unseen else []  # fmt: skip
        if said:
            doubts[tile.tile_id] = "; ".join(said)
    return doubts


def doubt_tiles(tiles: Sequence[Tile], embeddings: Embeddings) -> dict[str, str]:
    """Real train tiles that look more like those of the other kind than most of that kind do.

    A tile is held against the two centroids, of tiles with an animal and of empty ones; it is odd where
    it stands on the other kind's side of that kind's own median.

    Args:
        tiles: ``n`` real train tiles.
        embeddings: ``(n, dimensions)``, rows of length 1.

    Returns:
        Tile id -> what is odd, in words; nothing where a kind has too few tiles to stand for itself.
    """
    with_animal = np.array([bool(tile.boxes) for tile in tiles], dtype=bool)
    if min(with_animal.sum(), (~with_animal).sum()) < MIN_BACKGROUNDS:
        return {}
    leaning = embeddings @ (
        _centroid(embeddings[with_animal]) - _centroid(embeddings[~with_animal])
    )
    animals, empties = np.median(leaning[with_animal]), np.median(leaning[~with_animal])
    doubts = {}
    for tile, side, holds in zip(tiles, leaning, with_animal, strict=True):
        if not holds and side > animals:
            doubts[tile.tile_id] = (
                "no box, but more like the tiles with an animal than most of them"
            )
        elif holds and side < empties:
            doubts[tile.tile_id] = "has a box, but more like the empty tiles than most of them"
    return doubts


def _centroid(embeddings: Embeddings) -> Embeddings:
    mean = embeddings.mean(axis=0)
    return np.asarray(mean / np.linalg.norm(mean), dtype=np.float32)


def principal_plane(embeddings: Embeddings) -> NDArray[np.float64]:
    """Where embeddings lie on the plane in which they differ most, to plot them.

    Principal components by the covariance matrix, whose size does not grow with the number of rows; the
    largest coordinate of an axis is positive, so the same rows give the same plot.

    Args:
        embeddings: ``(n, dimensions)``, at least two dimensions.

    Returns:
        ``(n, 2)``.
    """
    centred = embeddings - embeddings.mean(axis=0, dtype=np.float64)
    _values, axes = np.linalg.eigh(centred.T @ centred)
    plane = axes[:, [-1, -2]]
    plane *= np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]])
    return np.asarray(centred @ plane, dtype=np.float64)
