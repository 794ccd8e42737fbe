"""Pictures and latents in the eight symmetries of the square; `core.boxes.turn_box` turns their boxes."""

from __future__ import annotations

import torch
from torch import Tensor


def turn(pictures: Tensor, symmetry: int) -> Tensor:
    """One of the eight symmetries of the square: quarter turns 0..3, and the same of the mirror image.

    Args:
        pictures: ``(..., side, side)``.
        symmetry: 0 (as it is) to 7.
    """
    mirrored = pictures.flip(-1) if symmetry >= 4 else pictures
    return torch.rot90(mirrored, symmetry % 4, dims=(-2, -1))
