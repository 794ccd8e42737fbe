"""Class names: what the annotations call them, and what the run calls them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from synthdet.errors import SynthdetError

OTHERS: Final = "*"
"""Key of ``prepare.classes`` that stands for every name not listed."""
_POSITION = re.compile(r"[-+\d][-+\d.,;:°'\" NSEW/]*", re.IGNORECASE)
_MANY: Final = 10


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
    _refuse_positions(names, counts, mapping)
    _refuse_twins(names, counts, mapping)
    wanted = [mapping.get(name, mapping.get(OTHERS, name)) for name in names]
    class_names: list[str] = []
    for name in wanted:
        if name is not None and name not in class_names:
            class_names.append(name)
    if not class_names:
        raise SynthdetError("prepare.classes drops every class: keep at least one")
    return class_names, [None if name is None else class_names.index(name) for name in wanted]


def say_unused(
    names: Sequence[str], counts: Sequence[int], class_map: Sequence[int | None]
) -> list[str]:
    """A note on the run's classes that no box has, if there are any.

    Examples:
        >>> say_unused(["seals", "seal"], [0, 74], [0, 1])
        ["no box has the class 'seals': drop what means nothing with prepare.classes={'seals': null}"]
    """
    used = {number for number, count in zip(class_map, counts, strict=True) if count}
    unused = [
        name
        for name, number in zip(names, class_map, strict=True)
        if number is not None and number not in used
    ]
    if not unused:
        return []
    drop = ", ".join(f"{name!r}: null" for name in unused[:5])
    return [
        f"no box has the class {_listed(unused)}: drop what means nothing with prepare.classes={{{drop}}}"
    ]


def _refuse_twins(
    names: Sequence[str], counts: Sequence[int], mapping: Mapping[str, str | None]
) -> None:
    """Categories of one name, or of names that differ in capitals, blanks and signs alone."""
    alike: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, count in zip(names, counts, strict=True):
        alike[_plain(name)].append((name, count))
    for own in alike.values():
        untold = [name for name, _count in own if name not in mapping]
        if len(own) < 2 or not untold or OTHERS in mapping:
            continue
        boxes = ", ".join(f"{count} boxes" for _name, count in own)
        most = max(own, key=lambda one: one[1])[0]
        spelt = sorted({name for name, _count in own})
        if len(spelt) == 1:
            raise SynthdetError(
                f"{len(own)} categories have the same name {most!r} ({boxes}): "
                f"make them one with prepare.classes={{{most}: {most}}}"
            )
        told = ", ".join(f"{name!r} {count} boxes" for name, count in own)
        raise SynthdetError(
            f"{len(own)} categories differ only in how they are written ({told}): make them one with prepare.classes="
            f"{{{', '.join(f'{name!r}: {most!r}' for name in spelt)}}}"
        )


def _plain(name: str) -> str:
    """A name without capitals, blanks and signs; as it is where nothing would be left."""
    return re.sub(r"[\W_]+", "", name.casefold()) or name


def _refuse_positions(
    names: Sequence[str], counts: Sequence[int], mapping: Mapping[str, str | None]
) -> None:
    """Many categories that are really one: positions, or one word with numbers."""
    if mapping:
        return
    positions = [number for number, name in enumerate(names) if _POSITION.fullmatch(name)]
    stems = [_without_numbers(name) for name in names]
    (stem, _number), *_others = Counter(filter(None, stems)).most_common(1) or [("", 0)]
    counted = [number for number, own in enumerate(stems) if own and own == stem]
    for many, what, one in (
        (positions, "look like positions, not animals", ""),
        (counted, f"are {stem!r} with a number", stem),
    ):
        if len(many) < _MANY or len(many) * 2 < len(names):
            continue
        boxes = sum(counts[number] for number in many)
        others = [number for number in range(len(names)) if number not in set(many)]
        told = ", ".join(f"{names[number]!r} {counts[number]} boxes" for number in others[:3])
        name = names[max(others, key=lambda number: counts[number])] if others else "seal"
        rest = f", or {{'*': {one or 'null'}, {name}: {name}}} to {'keep the others' if one else 'drop them'}"
        raise SynthdetError(
            f"{len(many)} of {len(names)} categories {what} (like {names[many[0]]!r}; {boxes} boxes; the others: "
            f"{told or 'none'}): say what they are with prepare.classes, like {{'*': {one or name}}} for all{rest if others else ''}"
        )


def _without_numbers(name: str) -> str:
    """A name without the digits in it, where there are any, and the blanks and signs around them."""
    return re.sub(r"[\W_]*\d+[\W_]*", "", name) if re.search(r"\d", name) else ""


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
