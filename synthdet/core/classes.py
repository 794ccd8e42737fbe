"""Class names: what the annotations call them, and what the run calls them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from synthdet.errors import SynthdetError

OTHERS: Final = "*"
"""Key of ``prepare.classes`` that stands for every name not listed."""
_POSITION = re.compile(r"[-+\d][-+\d.,;:°'\" NSEW/]*", re.IGNORECASE)
_MANY_POSITIONS: Final = 10


def plan_classes(
    names: Sequence[str], counts: Sequence[int], mapping: Mapping[str, str | None] | None
) -> tuple[list[str], list[int | None]]:
    """The run's class names, and for each category of the annotations the class it becomes.

    Args:
        names: Name of each category; the same name may stand there more than once.
        counts: Boxes of each category.
        mapping: ``prepare.classes``: name -> new name, or None to drop it; ``*`` is every name that is
            not listed. Names that are not mentioned are kept.

    Returns:
        The names by ``class_id``, and the ``class_id`` of each category, None for a dropped one.

    Raises:
        SynthdetError: Two categories of one name, or categories that look like positions, and
            ``mapping`` does not say what to do; or it names a class that does not exist.

    Examples:
        >>> plan_classes(["adult", "pup", "rock"], [9, 4, 2], {"pup": "adult", "rock": None})
        (['adult'], [0, 0, None])
    """
    mapping = dict(mapping or {})
    unknown = [name for name in mapping if name != OTHERS and name not in names]
    if unknown:
        raise SynthdetError(
            f"prepare.classes names {unknown[0]!r}, which the annotations do not have; they have {_listed(names)}"
        )
    _refuse_twins(names, counts, mapping)
    _refuse_positions(names, counts, mapping)
    wanted = [mapping.get(name, mapping.get(OTHERS, name)) for name in names]
    class_names: list[str] = []
    for name in wanted:
        if name is not None and name not in class_names:
            class_names.append(name)
    if not class_names:
        raise SynthdetError("prepare.classes drops every class: keep at least one")
    return class_names, [None if name is None else class_names.index(name) for name in wanted]


def _refuse_twins(
    names: Sequence[str], counts: Sequence[int], mapping: Mapping[str, str | None]
) -> None:
    boxes: dict[str, list[int]] = defaultdict(list)
    for name, count in zip(names, counts, strict=True):
        boxes[name].append(count)
    for name, own in boxes.items():
        if len(own) > 1 and name not in mapping and OTHERS not in mapping:
            raise SynthdetError(
                f"{len(own)} categories have the same name {name!r} ({', '.join(f'{count} boxes' for count in own)}): "
                f"make them one with prepare.classes={{{name}: {name}}}"
            )


def _refuse_positions(
    names: Sequence[str], counts: Sequence[int], mapping: Mapping[str, str | None]
) -> None:
    if mapping:
        return
    positions = [number for number, name in enumerate(names) if _POSITION.fullmatch(name)]
    if len(positions) < _MANY_POSITIONS or len(positions) * 2 < len(names):
        return
    others = [
        f"{names[number]!r} {counts[number]} boxes"
        for number in range(len(names))
        if number not in positions
    ]
    boxes = sum(counts[number] for number in positions)
    raise SynthdetError(
        f"{len(positions)} of {len(names)} categories look like positions, not animals (like {names[positions[0]]!r}; "
        f"{boxes} boxes; the others: {', '.join(others[:3]) or 'none'}): say what they are with prepare.classes, "
        "like {'*': seal} for all, or {'*': null, seal: seal} to drop them"
    )


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
