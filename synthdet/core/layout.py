"""Whether two pictures show the same thing in the same place, whatever their colours.

CLIP says what is in a picture and hardly where: two pictures of a whale in a green sea are nearer to
each other than some copies to their original. The *layout* of a picture is the sign of every step in
brightness, to the right and downwards, in a grey thumbnail of 17 x 17: 544 signs. Pictures that have
nothing to do with each other agree in about half of them, a copy that was compressed, brightened or
drawn again in nearly all.

Source: the difference hash of Neal Krawetz, "Kind of like that" (2013), in both directions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDE = 17
"""Of the thumbnail, in pixels."""
NUM_BYTES = 2 * SIDE * (SIDE - 1) // 8
"""Of a layout, packed."""

Packed = NDArray[np.uint8]
Vectors = NDArray[np.float32]


def find_layout(thumbnail: NDArray[np.uint8]) -> Packed:
    """The signs of a thumbnail's steps.

    Args:
        thumbnail: ``(17, 17)``, grey, each pixel the mean of its part of the picture.

    Returns:
        ``(68,)``: steps to the right, then downwards, a bit each.

    Examples:
        >>> ramp = np.tile(np.arange(17, dtype=np.uint8), (17, 1))
        >>> np.unpackbits(find_layout(ramp)).mean()
        np.float64(0.5)
    """
    right = thumbnail[:, 1:] > thumbnail[:, :-1]
    down = thumbnail[1:] > thumbnail[:-1]
    return np.packbits(np.concatenate([right.ravel(), down.ravel()]))


def layout_vectors(packed: Packed) -> Vectors:
    """Layouts as directions: ``(n, 68)`` to ``(n, 544)``, rows of length 1.

    The cosine of two is twice the share of signs in which they agree, less 1.
    """
    signs = np.unpackbits(packed.reshape(-1, NUM_BYTES), axis=1).astype(np.float32) * 2 - 1
    return signs / np.float32(np.sqrt(8 * NUM_BYTES))


def turned_layouts(vectors: Vectors) -> list[Vectors]:
    """The layouts of pictures in their eight turns and mirrors: first as they are, each ``(n, 544)``."""
    half = SIDE * (SIDE - 1)
    right = vectors[:, :half].reshape(-1, SIDE, SIDE - 1)
    down = vectors[:, half:].reshape(-1, SIDE - 1, SIDE)
    views = []
    for swapped in (False, True):
        if swapped:  # mirrored along the main diagonal
            right, down = down.transpose(0, 2, 1), right.transpose(0, 2, 1)
        for flip_x in (False, True):
            for flip_y in (False, True):
                step_x = -right[:, :, ::-1] if flip_x else right
                step_y = down[:, :, ::-1] if flip_x else down
                step_x = step_x[:, ::-1] if flip_y else step_x
                step_y = -step_y[:, ::-1] if flip_y else step_y
                parts = [part.reshape(len(vectors), half) for part in (step_x, step_y)]
                views.append(np.concatenate(parts, axis=1))
    return views


def to_agreement(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines of layouts to the share of signs in which they agree, 0..1, to six decimals.

    Examples:
        >>> to_agreement(np.array([-1.0, 0.0, 1.0])).tolist()
        [0.0, 0.5, 1.0]
    """
    return np.asarray(np.clip(np.round((1 + cosines) / 2, 6), 0, 1))
