"""Flights, from when and where frames were taken: what EXIF knows better than file names.

A counter in a file name runs on from one flight to the next and starts again at 9999; the clock and
the receiver of the camera do not. Two frames within `FLIGHT_SECONDS` and `FLIGHT_METRES` of each other
are of one flight, and so are all that such steps connect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import numpy as np

FLIGHT_SECONDS: Final = 600.0
"""Frames of one flight follow each other within this time: a battery is not changed in less."""
FLIGHT_METRES: Final = 500.0
"""And within this distance, which a drone with a wide view covers between two frames."""
_METRES_A_DEGREE: Final = 111_320.0


@dataclass(frozen=True, slots=True)
class Taken:
    """When and where a frame was taken.

    Attributes:
        time: Seconds since the start of 1970 by the camera's own clock.
        latitude: In degrees, north positive.
        longitude: In degrees, east positive.
    """

    time: float
    latitude: float
    longitude: float

    def describe(self) -> str:
        """The time as text that sorts: ``2023-05-01 10:11:12``."""
        return (datetime(1970, 1, 1) + timedelta(seconds=int(self.time))).isoformat(" ")


def find_flights(taken: Mapping[str, Taken]) -> list[list[str]]:
    """Frames of each flight in the order of time; flights in the order of their first frame.

    Args:
        taken: Name of a frame -> when and where.

    Examples:
        >>> here = [Taken(60.0 * minute, 57.0, -154.0) for minute in (0, 9, 30)]
        >>> find_flights({"a": here[0], "b": here[1], "c": here[2], "d": Taken(60.0, 58.0, -154.0)})
        [['a', 'b'], ['d'], ['c']]
    """
    names = sorted(taken, key=lambda name: (taken[name].time, name))
    if not names:
        return []
    times = np.array([taken[name].time for name in names])
    places = np.array([[taken[name].latitude, taken[name].longitude] for name in names])
    starts = np.searchsorted(times, times - FLIGHT_SECONDS)
    parent = list(range(len(names)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    for number in range(1, len(names)):
        before = places[starts[number] : number]
        north = before[:, 0] - places[number, 0]
        east = (before[:, 1] - places[number, 1] + 180) % 360 - 180
        east = east * math.cos(math.radians(places[number, 0]))
        near = _METRES_A_DEGREE * np.hypot(north, east) <= FLIGHT_METRES
        for other in (starts[number] + np.flatnonzero(near)).tolist():
            low, high = sorted((root(other), root(number)))
            parent[high] = low
    flights: dict[int, list[str]] = {}
    for number, name in enumerate(names):
        flights.setdefault(root(number), []).append(name)
    return list(flights.values())
