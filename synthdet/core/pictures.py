"""What can be told from a picture's pixels alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BLANK_RANGE = 2


def is_blank(picture: NDArray[np.uint8]) -> bool:
    """Whether a picture is black, or of one colour, give or take what rounding does.

    Args:
        picture: ``(height, width, 3)``.

    Examples:
        >>> is_blank(np.full((48, 64, 3), 7, np.uint8))
        True
        >>> is_blank(np.eye(48, dtype=np.uint8)[..., None].repeat(3, axis=2) * 255)
        False
    """
    for some in (picture[::8, ::8], picture):  # nearly every picture is told by few of its pixels
        if int(np.ptp(some.reshape(-1, 3), axis=0).max()) > _BLANK_RANGE:
            return False
    return True


def correlation(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """How much alike two pictures are but for light and contrast: zero-normalised cross-correlation.

    Args:
        first: ``(height, width, 3)``.
        second: As large.

    Returns:
        -1..1 of their brightness, to four decimals; 0 where either is of one brightness.

    Examples:
        >>> waves = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
        >>> correlation(waves, waves // 2 + 100) > 0.99, correlation(waves, np.zeros_like(waves))
        (True, 0.0)
    """
    one, other = (picture.mean(axis=2) for picture in (first, second))
    one, other = one - one.mean(), other - other.mean()
    size = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return round(float((one * other).sum()) / size, 4) if size > 0 else 0.0
