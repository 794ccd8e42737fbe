"""What to draw: every picture's prompt and seed, decided before the first one is made."""

from __future__ import annotations

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from synthdet.core.captions import phrase, plural
from synthdet.core.records import GenerateMode, PlacedBox
from synthdet.errors import SynthdetError

ANIMALS: Final = "animals"
"""The name in a template's braces that stands for what the picture shows."""
_MAX_COMBINATIONS: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class PlannedPicture:
    """One picture to make.

    Attributes:
        image_id: ``syn-000000`` and on, in plan order.
        prompt: The filled template.
        negative_prompt: What not to draw.
        seed: Of this picture's noise alone; no two pictures of a plan share one.
        asked_for: Class id for each animal the prompt asks for; empty for background, None where
            the prompt does not tell.
        background: Whether the prompt asks for a picture without animals.
        mode: How it is drawn (`core.placement.plan_modes`).
        source_tile: The real train tile that it starts from; None in mode `text`.
        source_image: The background picture of the same plan that it starts from, instead of a tile.
        source_view: In which of its eight views, numbered as `PlacedBox.animal_view`.
        placed: Where each animal is painted into what it starts from, in mode `placed`.
        attributes: The values of `generate.attributes` in its prompt, but for empty ones.
    """

    image_id: str
    prompt: str
    negative_prompt: str
    seed: int
    asked_for: tuple[int, ...] | None
    background: bool
    mode: GenerateMode = "text"
    source_tile: str | None = None
    source_image: str | None = None
    source_view: int | None = None
    placed: tuple[PlacedBox, ...] = ()
    attributes: tuple[str, ...] = ()


def default_animals(class_names: Sequence[str]) -> dict[str, int]:
    """One and two of each class.

    Examples:
        >>> default_animals(["humpback whale"])
        {'one humpback whale': 1, 'two humpback whales': 2}
    """
    return {phrase({name: number}): number for name in class_names for number in (1, 2)}


def make_image_id(index: int) -> str:
    """Id, and file stem, of the picture at a place of the plan.

    Examples:
        >>> make_image_id(42)
        'syn-000042'
    """
    return f"syn-{index:06d}"


def plan_pictures(
    *,
    num_images: int,
    class_names: Sequence[str],
    prompts: Sequence[str],
    animals: Mapping[str, int] | None,
    attributes: Mapping[str, Sequence[str]],
    background_prompts: Sequence[str],
    background_fraction: float,
    negative_prompt: str,
    background_negative_prompt: str | None = None,
    seed: int,
) -> tuple[PlannedPicture, ...]:
    """Plan all pictures of a run, a pure function of its arguments.

    Templates, animals and the attributes that any template names form a grid of combinations. The
    pictures go through the grid in a seeded random order, and through all of it before a combination
    comes again, so that every combination comes up equally often, give or take one. Pictures
    without animals go through a grid of their own and are spread evenly over the plan.

    Args:
        num_images: Pictures to plan.
        class_names: The run's classes, by class id.
        prompts: Templates; names in braces are ``animals`` or attributes.
        animals: Phrase -> number of animals it asks for; None for `default_animals`.
        attributes: Name -> its values.
        background_prompts: Templates of the pictures without animals.
        background_fraction: Share of those, 0..1.
        negative_prompt: Template of what not to draw; of the attributes in a picture's prompt.
        background_negative_prompt: The same for those without animals; None for `negative_prompt`.
        seed: Of the order and of the first picture; picture ``i`` has ``seed + i``.

    Raises:
        SynthdetError: A template that names something unknown, or nothing to choose from; names
            the setting.

    Examples:
        >>> for picture in plan_pictures(
        ...     num_images=3, class_names=["seal"], prompts=["photo of {animals}, {light} light"],
        ...     animals=None, attributes={"light": ["low"]}, background_prompts=["photo of ice"],
        ...     background_fraction=0.34, negative_prompt="", seed=7,
        ... ):
        ...     print(picture.image_id, picture.seed, picture.prompt, picture.asked_for)
        syn-000000 7 photo of one seal, low light (0,)
        syn-000001 8 photo of two seals, low light (0, 0)
        syn-000002 9 photo of ice ()
    """
    chosen = default_animals(class_names) if animals is None else dict(animals)
    _check_animals(chosen)
    _check_attributes(attributes)
    num_background = round(num_images * background_fraction)
    foreground: Iterator[_Filled] = iter(())
    background: Iterator[_Filled] = iter(())
    if num_images > num_background:
        values = {ANIMALS: tuple(chosen), **attributes}
        foreground = _cycle(
            "generate.prompts",
            prompts,
            values,
            ("negative_prompt", negative_prompt),
            seed=seed,
            salt=0,
        )
    if num_background:
        negative = ("negative_prompt", negative_prompt)
        if background_negative_prompt is not None:
            negative = ("background_negative_prompt", background_negative_prompt)
        background = _cycle(
            "generate.background_prompts",
            background_prompts,
            attributes,
            negative,
            seed=seed,
            salt=1,
        )
    planned = []
    for index in range(num_images):
        # True `num_background` times in `num_images`, at even distances.
        is_background = (
            (index + 1) * num_background // num_images > index * num_background // num_images
        )  # fmt: skip
        prompt, negative_filled, animal, words = next(background if is_background else foreground)
        asked_for: tuple[int, ...] | None = () if is_background else None
        if animal is not None:
            asked_for = find_asked_for(animal, chosen[animal], class_names)
        planned.append(
            PlannedPicture(
                image_id=make_image_id(index),
                prompt=prompt,
                # Led away from its own prompt it would be led nowhere.
                negative_prompt="" if negative_filled == prompt else negative_filled,
                seed=seed + index,
                asked_for=asked_for,
                background=is_background,
                attributes=words,
            )
        )
    return tuple(planned)


def plain(template: str) -> str:
    """A negative prompt for pictures that are not planned by attributes, such as samples of captions.

    Nothing, where it names some.

    Examples:
        >>> plain("text, watermark"), plain("open water in a {sea} sea")
        ('text, watermark', '')
    """
    return "" if _placeholders("generate.negative_prompt", template) else template.format()


_Filled = tuple[str, str, str | None, tuple[str, ...]]
"""A filled template and its negative one, the phrase that filled ``{animals}``, if any did, and the other values in it."""


def _cycle(
    setting: str,
    templates: Sequence[str],
    values: Mapping[str, Sequence[str]],
    negative: tuple[str, str],
    *,
    seed: int,
    salt: int,
) -> Iterator[_Filled]:
    """Filled templates without end: the whole grid in random order, then again in another."""
    if not templates:
        raise SynthdetError(f"{setting} is empty: give at least one prompt")
    named = {template: _names(setting, template, values) for template in templates}
    _check_negative(f"generate.{negative[0]}", negative[1], named)
    axes = [name for name in values if any(name in names for names in named.values())]
    shape = (len(templates), *(len(values[name]) for name in axes))
    size = math.prod(shape)
    if size > _MAX_COMBINATIONS:
        raise SynthdetError(
            f"{setting}: templates, animals and attributes make {size} combinations; "
            f"name fewer of them ({_MAX_COMBINATIONS} at most)"
        )
    if size == 0:
        raise SynthdetError(f"generate.{ANIMALS} is empty, and {setting} asks for it")
    # Negative seeds are fine for torch and not for numpy; this is one to one for all 64-bit seeds.
    rng = np.random.default_rng([seed % 2**64, salt])
    return _walk(templates, negative[1], named, axes, values, shape, rng)


def _walk(
    templates: Sequence[str],
    negative: str,
    named: Mapping[str, frozenset[str]],
    axes: Sequence[str],
    values: Mapping[str, Sequence[str]],
    shape: tuple[int, ...],
    rng: np.random.Generator,
) -> Iterator[_Filled]:
    while True:
        for cell in rng.permutation(math.prod(shape)):
            template_index, *indices = np.unravel_index(cell, shape)
            template = templates[int(template_index)]
            filling = {
                name: values[name][int(index)] for name, index in zip(axes, indices, strict=True)
            }
            animal = filling[ANIMALS] if ANIMALS in named[template] else None
            others = {filling[name]: None for name in axes if name in named[template] - {ANIMALS}}
            words = tuple(word for word in others if word)
            yield template.format_map(filling), negative.format_map(filling), animal, words


def _names(setting: str, template: str, values: Mapping[str, object]) -> frozenset[str]:
    """The names in a template's braces, all of them known."""
    names = _placeholders(setting, template)
    for name in sorted(names):
        if name not in values:
            raise SynthdetError(
                f"{setting}: {template!r} names {{{name}}}, which is none of "
                f"{', '.join(values) or 'generate.attributes'}: add it to generate.attributes"
            )
    return names


def _placeholders(setting: str, template: str) -> frozenset[str]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise SynthdetError(f"{setting}: {template!r}: {error}; write {{{{ for a brace") from error
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion):
            raise SynthdetError(
                f"{setting}: {template!r}: in braces stands a name alone; write {{{{ for a brace"
            )
    return frozenset(name for _, name, _, _ in parts if name is not None)


def _check_negative(setting: str, negative: str, named: Mapping[str, frozenset[str]]) -> None:
    names = _placeholders(setting, negative)
    for template, known in named.items():
        if lacking := sorted(names - (known - {ANIMALS})):
            raise SynthdetError(
                f"{setting}: {negative!r} names {{{lacking[0]}}}, which is no attribute of the prompt "
                f"{template!r}: name what every prompt names"
            )


def _check_animals(animals: Mapping[str, int]) -> None:
    for words, number in animals.items():
        if number < 1:
            raise SynthdetError(
                f"generate.animals: {words!r} asks for {number} animals; pictures without any "
                "come from generate.background_prompts"
            )


def _check_attributes(attributes: Mapping[str, Sequence[str]]) -> None:
    for name, values in attributes.items():
        if name == ANIMALS:
            raise SynthdetError("generate.attributes: animals have a setting of their own")
        if not values:
            raise SynthdetError(f"generate.attributes.{name} has no values")


def find_asked_for(words: str, number: int, class_names: Sequence[str]) -> tuple[int, ...] | None:
    """The class of each animal a phrase asks for, where its words leave no doubt."""
    if len(class_names) == 1:
        return (0,) * number
    spoken = f" {words.lower().replace(',', ' ')} "
    nouns = [" ".join(name.lower().replace("_", " ").split()) for name in class_names]
    found = []
    # Longest first: "two harbor seals" speaks of a class "harbor seal", not of a class "seal".
    for class_id in sorted(range(len(nouns)), key=lambda i: -len(nouns[i])):
        for noun in (plural(nouns[class_id]), nouns[class_id]):
            if f" {noun} " in spoken:
                spoken = spoken.replace(f" {noun} ", "  ")
                found.append(class_id)
    return (found[0],) * number if len(set(found)) == 1 else None
