"""What an annotation file says, whatever its format; and the small checks that all formats share.

A parser in this package takes text, or parsed JSON or YAML, and gives an `AnnotationFile`. One bad
object never hides the others: it becomes a line in ``problems`` that says where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from synthdet.core.records import XYXY, Box, Split

SHARES = (1, 1)
"""The `AnnotatedPhoto.size_wh` of boxes that are given as shares of the upright photo."""
_SHOWN = 40


@dataclass(slots=True)
class AnnotatedPhoto:
    """What a file says about one photo.

    Attributes:
        file_name: Of the photo, as written there; empty where only the annotation file's own name tells.
        size_wh: Width and height in pixels as written there; `SHARES`; None where they are missing.
        boxes: In pixels (or shares); ``class_id`` is the position in `AnnotationFile.class_names`.
        problems: What is wrong with single objects, with their line or number.
        split: Where the file itself names one.
    """

    file_name: str
    size_wh: tuple[int, int] | None
    boxes: list[Box] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    split: Split | None = None

    def __post_init__(self) -> None:
        self.file_name = _whole_characters(self.file_name)


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """What an annotation file says.

    Attributes:
        class_names: By the boxes' ``class_id``; two categories of one name stay two.
        photos: Its photos, in order, those without boxes too.
        problems: What is wrong in it that belongs to none of its photos.
    """

    class_names: tuple[str, ...]
    photos: tuple[AnnotatedPhoto, ...]
    problems: tuple[str, ...] = ()


class ClassNames:
    """Class names in the order in which they come up.

    Examples:
        >>> names = ClassNames()
        >>> names.number("seal"), names.number("pup"), names.number("seal"), names.all
        (0, 1, 0, ('seal', 'pup'))
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._numbers: dict[str, int] = {}
        for name in names:
            self.number(name)

    def number(self, name: str) -> int:
        """The number of a name, a new one if it is new."""
        return self._numbers.setdefault(name, len(self._numbers))

    @property
    def all(self) -> tuple[str, ...]:
        """All names so far."""
        return tuple(self._numbers)


def to_number(value: Any, what: str) -> float:
    """A finite number from text or parsed JSON.

    Raises:
        ValueError: It is none; says so with ``what``.

    Examples:
        >>> to_number(" 12.5 ", "xmin")
        12.5
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{what} is not a number ({shown(value)})")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{what} is not a number ({shown(value)})") from None
    if not math.isfinite(number):
        raise ValueError(f"{what} is not a finite number ({shown(value)})")
    return number


def to_size(width: Any, height: Any) -> tuple[int, int] | None:
    """Width and height in pixels, or None where they are missing or no whole positive numbers."""
    try:
        size = (to_number(width, "width"), to_number(height, "height"))
    except ValueError:
        return None
    if min(size) < 1 or any(side % 1 for side in size):
        return None
    return (int(size[0]), int(size[1]))


def around(points: Sequence[tuple[float, float]]) -> XYXY:
    """The upright box around points.

    Examples:
        >>> around([(3, 9), (1, 2), (7, 4)])
        (1, 2, 7, 9)
    """
    xs, ys = [x for x, _y in points], [y for _x, y in points]
    return (min(xs), min(ys), max(xs), max(ys))


def around_turned(xyxy: XYXY, degrees: float) -> XYXY:
    """The upright box around a box that is turned about its own centre.

    Args:
        xyxy: Before it is turned, in pixels.
        degrees: Clockwise, on a screen where y points down.

    Examples:
        >>> around_turned((0, 0, 20, 10), 90)
        (5.0, -5.0, 15.0, 15.0)
    """
    x1, y1, x2, y2 = xyxy
    cosine = abs(round(math.cos(math.radians(degrees)), 12))
    sine = abs(round(math.sin(math.radians(degrees)), 12))
    half_width = (abs(x2 - x1) * cosine + abs(y2 - y1) * sine) / 2
    half_height = (abs(x2 - x1) * sine + abs(y2 - y1) * cosine) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return (x - half_width, y - half_height, x + half_width, y + half_height)


def to_name(value: str) -> str:
    r"""A class name as it is kept: blanks as one space, no half characters (JSON can hold them).

    Examples:
        >>> to_name(" harbour\n seal "), to_name("seal\ud800")
        ('harbour seal', 'seal?')
    """
    return " ".join(_whole_characters(value).split())


def _whole_characters(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def shown(value: Any) -> str:
    """A value for a message: short, on one line.

    Examples:
        >>> shown("two  words"), shown(["a list"])
        ("'two words'", 'a list')
    """
    if isinstance(value, str):
        text = " ".join(value.split())
        return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
    if value is None:
        return "nothing"
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    # A number of 5,000 digits cannot even be written: Python refuses.
    return type(value).__name__ if isinstance(value, int) and abs(value) > 10**30 else str(value)
