"""From which similarity on a picture is far from real: a percentile, unless a few odd tiles set it.

A low percentile of some dozen similarities is one of the lowest two or three of them. Where these
are of tiles unlike all others (a whale half hidden by a rock, a log beside it), the threshold lies
below what open water reaches, and turns nothing away. So it may be raised, by evidence alone, and
never beyond where ordinary real tiles end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Similarities = NDArray[np.float64]

MIN_TILES = 20
"""Real tiles from which their quartiles say how ordinary ones spread."""
MIN_NEGATIVES = 5
"""Negatives from which the share of them that passes is evidence."""
SITE_TILES = 5
"""Tiles from which a group is a site of its own, and not an odd photo."""
_QUARTILE = NormalDist().inv_cdf(0.75)
_SMALLEST_ANGLE = 1e-3


@dataclass(frozen=True, slots=True)
class Threshold:
    """A threshold, and between which two it was chosen.

    Attributes:
        value: What similarities are held against.
        percentile: What the percentile alone says: it is never lower.
        fence: Where ordinary real tiles end: it is never higher.
    """

    value: float
    percentile: float
    fence: float


def ordinary_limit(similarities: Similarities, percentile: float) -> float:
    """The percentile that similarities would have, if their lower tail were like their middle.

    The logarithm of the angle to the centroid is about normal for tiles of one kind. Its median and
    its upper quartile (of the angle: the less similar side) do not know what the quarter beyond does.

    Args:
        similarities: Cosines, at least one.
        percentile: 0..50. 0 has no limit.

    Returns:
        A cosine.

    Source: fences from quartiles, Tukey, "Exploratory Data Analysis" (1977); from the half of the
    spread on the side that matters, Kimber, "Exploratory data analysis for possibly censored data
    from skewed distributions", Applied Statistics 39 (1990).

    Examples:
        >>> angles = np.exp(np.linspace(-1.2, -0.8, 21))
        >>> alike = np.cos(angles)
        >>> odd = np.cos(np.append(angles[:-2], [1.4, 1.5]))
        >>> [round(ordinary_limit(some, 10), 3) for some in (alike, odd)]
        [0.903, 0.903]
        >>> [round(float(np.percentile(some, 2)), 3) for some in (alike, odd)]
        [0.902, 0.11]
    """
    if percentile <= 0:
        return -1.0
    angles = np.arccos(np.clip(similarities, -1, 1)).clip(_SMALLEST_ANGLE)
    median, quartile = np.percentile(np.log(angles), [50, 75]).tolist()
    steps = -NormalDist().inv_cdf(percentile / 100) / _QUARTILE
    limit = np.exp(median + steps * (quartile - median))
    return float(np.cos(min(limit, np.pi)))


def site_limit(similarities: Similarities, groups: Sequence[str]) -> float:
    """The highest threshold that leaves every site half of its tiles; 1 with no site.

    A photo may be odd; a group of many tiles that are all unlike the others is a site, a season or
    a light of its own, and no mistake.

    Examples:
        >>> site_limit(np.array([0.9] * 6 + [0.5, 0.6, 0.7, 0.8, 0.9] + [0.1]), "a" * 6 + "b" * 5 + "c")
        0.7
    """
    members = np.array(list(groups))
    names, numbers = np.unique(members, return_counts=True)
    sites = names[numbers >= SITE_TILES]
    return min((float(np.median(similarities[members == name])) for name in sites), default=1.0)


def choose_threshold(
    real: Similarities, groups: Sequence[str], negatives: Similarities, *, percentile: float
) -> Threshold:
    """The percentile of the real tiles; or higher, where that turns away more negatives than tiles.

    Between the percentile and the fence the threshold is where the share of real tiles lost and the
    share of negatives that pass are least together; of equals the lowest. With few real tiles there
    is no fence, with few negatives no evidence: then it is the percentile.

    Args:
        real: Cosines of the left-out real tiles.
        groups: The group of each.
        negatives: Cosines of what must not pass.
        percentile: 0..50: the share of real tiles that may be lost.

    Source: the least sum of both errors, Youden, "Index for rating diagnostic tests", Cancer 3 (1950).
    """
    lowest = fence = round(float(np.percentile(real, percentile)), 6)
    if len(real) >= MIN_TILES:
        ordinary = min(ordinary_limit(real, percentile), site_limit(real, groups))
        fence = max(lowest, round(ordinary, 6))
    if len(negatives) < MIN_NEGATIVES:
        return Threshold(lowest, lowest, fence)
    between = real[(real > lowest) & (real < fence)]
    candidates = np.unique(np.concatenate([[lowest, fence], between]))
    lost = np.searchsorted(np.sort(real), candidates) / len(real)
    turned_away = np.searchsorted(np.sort(negatives), candidates) / len(negatives)
    return Threshold(float(candidates[(lost - turned_away).argmin()]), lowest, fence)
