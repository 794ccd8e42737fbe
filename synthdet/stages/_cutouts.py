"""Real animals cut out of the water around them, along their outline, and laid into other water.

A detector that learns from rectangles set into other water learns the rectangles: on the embedded
default they cost 0.1 of map50_95, where the same animals cut out along their outline gain half of that.
Source: Dwibedi et al., "Cut, Paste and Learn: Surprisingly Easy Synthesis for Instance Detection", 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from synthdet.core.comparison import pairwise_iou
from synthdet.core.fusion import turn_picture
from synthdet.core.records import XYXY
from synthdet.models.protocols import Picture

_AROUND: Final = 0.6
"""Of a box's longer side: so much around it shows what is not the animal."""
_WORK_SIDE: Final = 256
"""Pixels that a box's longer side has at most where its outline is looked for."""
_ENLARGE: Final = 2.0
"""Small animals are looked at so much larger, so that outlines fall between pixels."""
_ITERATIONS: Final = 5
_UNUSUAL: Final = 2.5
"""Standard deviations of the water from which a colour may be the animal's."""
_MIN_PART: Final = 0.03
"""Of the animal's area: smaller parts that do not touch it are something else."""
_MIN_IOU: Final = 0.8
"""An outline whose own box overlaps less with the annotated one is not the animal's."""
_MAX_FILLED: Final = 0.85
"""A shape that fills more of its own box is a patch around the animal; an ellipse fills 0.79."""
_MIN_OPACITY: Final = 0.3
"""Below it a pixel is mostly water, and says little about the animal's colour."""
_MIN_HUE: Final = 12.0
"""Length of a colour's difference from grey, 0..255, that is a hue."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Cutout:
    """An animal without its water.

    Attributes:
        colour: ``uint8`` ``(height, width, 3)``, RGB: the animal's, without the water that shines
            through at its edges.
        opacity: ``uint8`` ``(height, width, 1)``: 255 is all animal, 0 all water.
        veil: ``uint8`` ``(height, width, 1)``: how much of the water lies before it, 255 is all.
        water: ``float32`` ``(3,)``, RGB, 0..255: the water's colour.
    """

    colour: Picture
    opacity: Picture
    veil: Picture
    water: Floats

    def seen_in(self, view: int) -> Cutout:
        """In one of its eight views, numbered as in `core.fusion.turn_picture`."""
        return replace(
            self,
            colour=turn_picture(self.colour, view),
            opacity=turn_picture(self.opacity, view),
            veil=turn_picture(self.veil, view),
        )


def lay_over(picture: Picture, cutout: Cutout, xyxy: XYXY) -> Picture:
    """A picture with an animal in it, behind as much of this water as it was behind of its own.

    What is seen under water is the animal's light and the water's, the more of this the deeper it is
    (the model of haze: He et al., "Single Image Haze Removal", 2009, equation 1). A whale that lies
    deep in a green sea is green, and blue in a blue one.

    Args:
        picture: ``uint8`` ``(height, width, 3)``, RGB; left as it is.
        cutout: As large as the box.
        xyxy: Whole pixels.
    """
    x1, y1, x2, y2 = (int(value) for value in xyxy)
    under = picture[y1:y2, x1:x2].astype(np.float32)
    alpha, veil = (one.astype(np.float32) / 255 for one in (cutout.opacity, cutout.veil))
    water = np.median(under, axis=(0, 1))
    colour = (cutout.colour + veil * (water - cutout.water)).clip(0, 255)
    made = picture.copy()
    made[y1:y2, x1:x2] = (alpha * colour + (1 - alpha) * under).round().astype(np.uint8)
    return made


def cut_out(picture: Picture, xyxy: XYXY) -> Cutout | None:
    """The animal of a box, as large as the box.

    Two mixtures of colours, the animal's and the water's, and the shortest outline between them.
    Source: Rother et al., "GrabCut", 2004, as OpenCV has it.

    Args:
        picture: ``uint8`` ``(height, width, 3)``, RGB.
        xyxy: Whole pixels, inside the picture.

    Returns:
        None where the animal does not stand out from what is around it: no outline is found, or one
        that is not as large as the box, or fills it like no animal.
    """
    x1, y1, x2, y2 = (int(value) for value in xyxy)
    reach = math.ceil(_AROUND * max(x2 - x1, y2 - y1))
    left, top = max(0, x1 - reach), max(0, y1 - reach)
    around = picture[top : y2 + reach, left : x2 + reach]
    inside = (x1 - left, y1 - top, x2 - left, y2 - top)
    scale = min(_ENLARGE, _WORK_SIDE / max(x2 - x1, y2 - y1))
    shape = _find_shape(around, inside, scale)
    if shape is None or pairwise_iou([_bounds(shape, scale)], [inside])[0, 0] < _MIN_IOU:
        return None
    if _fill(shape) > _MAX_FILLED:
        return None
    height, width, _ = around.shape
    soft = cv2.GaussianBlur(shape.astype(np.float32), (0, 0), 0.5 * max(1.0, scale))
    # Averages where it shrinks, a straight line between pixels where it grows.
    how = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
    opacity = cv2.resize(soft, (width, height), interpolation=how)
    water = np.median(around[~_is_inside(around, inside)].astype(np.float32), axis=0)
    rows, columns = slice(inside[1], inside[3]), slice(inside[0], inside[2])
    alpha = opacity[rows, columns, None]
    seen = around[rows, columns].astype(np.float32)
    unmixed = (seen - (1 - alpha) * water) / np.maximum(alpha, _MIN_OPACITY)
    colour = np.where(alpha > _MIN_OPACITY, unmixed, seen).clip(0, 255)
    return Cutout(
        colour=colour.round().astype(np.uint8),
        opacity=(255 * alpha).round().astype(np.uint8),
        veil=(255 * _veil(colour, water)).round().astype(np.uint8),
        water=water,
    )


def _veil(colour: Floats, water: Floats) -> Floats:
    """Share of the water's hue in each pixel, ``(height, width, 1)``, 0..1.

    It takes the animal itself for grey, as whales and seals are. Water without a hue veils nothing.
    """
    hue = water - water.mean()
    hues = colour - colour.mean(axis=2, keepdims=True)
    share = (hues * hue).sum(axis=2) / max(float((hue**2).sum()), _MIN_HUE**2)
    return np.asarray(cv2.GaussianBlur(share.clip(0, 1), (0, 0), 1.0)[..., None], dtype=np.float32)


def _find_shape(
    around: Picture, inside: tuple[int, int, int, int], scale: float
) -> NDArray[np.uint8] | None:
    """1 where the animal is, at another scale; None where all is of one kind."""
    large = cv2.resize(around, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    box = tuple(round(value * scale) for value in inside)
    in_box = _is_inside(large, box)
    if in_box.all():
        return None
    distance = _distance(large, ~in_box)
    mask = np.full(large.shape[:2], cv2.GC_BGD, np.uint8)
    mask[in_box] = np.where(distance[in_box] < _UNUSUAL, cv2.GC_PR_BGD, cv2.GC_PR_FGD)
    if not (mask == cv2.GC_PR_FGD).any():
        return None
    # Its mixtures start from random pixels, and OpenCV has one generator for all: nothing else uses it.
    cv2.setRNGSeed(0)
    backdrop, animal = np.zeros((1, 65)), np.zeros((1, 65))
    try:
        cv2.grabCut(large, mask, None, backdrop, animal, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few pixels of a kind for a mixture
        return None
    return _tidy(np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8))


def _is_inside(picture: Picture, box: tuple[int, ...]) -> NDArray[np.bool_]:
    found = np.zeros(picture.shape[:2], dtype=bool)
    found[box[1] : box[3], box[0] : box[2]] = True
    return found


def _distance(picture: Picture, water: NDArray[np.bool_]) -> Floats:
    """Of every pixel from the colours of the water, in its standard deviations (Mahalanobis)."""
    pixels = picture.astype(np.float32)
    away = pixels - np.median(pixels[water], axis=0)
    sizes = np.abs(away[water]).sum(axis=1)
    common = away[water][sizes <= np.percentile(sizes, 85)]  # no foam, no neighbour
    precision = np.linalg.inv(np.cov(common.T) + 9 * np.eye(3))
    distance: Floats = np.sqrt(np.einsum("hwi,ij,hwj->hw", away, precision, away))
    return distance


def _tidy(found: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """The largest part and what lies beside it, without holes."""
    number, labels, figures, _ = cv2.connectedComponentsWithStats(found, connectivity=8)
    if number < 2:
        return None
    areas = figures[:, cv2.CC_STAT_AREA]
    main = 1 + int(np.argmax(areas[1:]))
    near = cv2.dilate((labels == main).astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    kept = [
        part
        for part in range(1, number)
        if areas[part] >= _MIN_PART * areas[main] and near[labels == part].any()
    ]
    shape = np.isin(labels, kept).astype(np.uint8)
    outlines, _ = cv2.findContours(shape, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(shape, outlines, -1, 1, cv2.FILLED), dtype=np.uint8)


def _fill(shape: NDArray[np.uint8]) -> float:
    """Share of its own box that a shape takes, 0..1."""
    _, _, width, height = cv2.boundingRect(shape)
    return int(np.count_nonzero(shape)) / int(width * height)


def _bounds(shape: NDArray[np.uint8], scale: float) -> XYXY:
    x, y, width, height = cv2.boundingRect(shape)
    return (x / scale, y / scale, (x + width) / scale, (y + height) / scale)
