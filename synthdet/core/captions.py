"""How animals are named in captions and prompts, so that both say the same thing the same way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_NUMBER_WORDS: Final = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty",
)  # fmt: skip
_IRREGULAR: Final = {
    "calf": "calves",
    "child": "children",
    "foot": "feet",
    "goose": "geese",
    "leaf": "leaves",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "wolf": "wolves",
    "woman": "women",
}
_UNCHANGED: Final = (
    "aircraft", "bison", "caribou", "deer", "elk", "fish", "krill", "moose", "people", "seaweed",
    "sheep", "shrimp", "squid",
)  # fmt: skip


def number_word(number: int) -> str:
    """A number as a word up to twenty, in digits above.

    Raises:
        ValueError: The number is negative.

    Examples:
        >>> number_word(2), number_word(37)
        ('two', '37')
    """
    if number < 0:
        raise ValueError(f"number: {number} is negative")
    return _NUMBER_WORDS[number] if number < len(_NUMBER_WORDS) else str(number)


def plural(noun: str) -> str:
    """The plural of an English noun or noun phrase: its last word takes the ending.

    Examples:
        >>> plural("humpback whale"), plural("jellyfish"), plural("octopus"), plural("calf")
        ('humpback whales', 'jellyfish', 'octopuses', 'calves')
        >>> plural("Person"), plural("canary"), plural("manta ray")
        ('People', 'canaries', 'manta rays')
    """
    head, space, word = noun.rpartition(" ")
    return head + space + _plural_word(word)


def _plural_word(word: str) -> str:
    lower = word.lower()
    if not lower or lower.endswith(_UNCHANGED):
        return word
    for singular, irregular in _IRREGULAR.items():
        if lower == singular:
            return word[0] + irregular[1:]  # keeps a capital; no pair here differs in it
    if lower.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if lower.endswith("y") and lower[-2:-1] not in tuple("aeiou"):
        return word[:-1] + "ies"
    return word + "s"


def phrase(counts: Mapping[str, int]) -> str:
    """What is in a picture, in words, in the order given; an empty string where there is nothing.

    Args:
        counts: Class name -> number of animals; underscores in names are read as spaces, names
            with the number 0 are left out.

    Raises:
        ValueError: A number is negative.

    Examples:
        >>> phrase({"humpback whale": 2})
        'two humpback whales'
        >>> phrase({"harbor_seal": 1, "pup": 3, "gull": 0, "boat": 1})
        'one harbor seal, three pups and one boat'
    """
    parts = []
    for name, number in counts.items():
        noun = " ".join(name.replace("_", " ").split())
        if number != 0:
            parts.append(f"{number_word(number)} {noun if number == 1 else plural(noun)}")
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def recount(caption: str, before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """A caption that counts the animals, with another count; any other caption as it is.

    Args:
        caption: Of a picture.
        before: Class name -> number of animals in it, in the order that `phrase` was given.
        after: The same of what is to be seen of it; more than nothing.

    Examples:
        >>> recount("two seals on ice", {"seal": 2}, {"seal": 1})
        'one seal on ice'
        >>> recount("a colony on ice", {"seal": 2}, {"seal": 1})
        'a colony on ice'
    """
    counted, now = phrase(before), phrase(after)
    if not counted or not now:
        return caption
    return re.sub(rf"(?<![\w-]){re.escape(counted)}(?![\w-])", lambda _found: now, caption)
