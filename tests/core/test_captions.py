import doctest

import pytest

from synthdet.core import captions


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(captions).failed == 0


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("whale", "whales"),
        ("fox", "foxes"),
        ("walrus", "walruses"),
        ("finch", "finches"),
        ("Goose", "Geese"),
        ("polar bear cub", "polar bear cubs"),
        ("cuttlefish", "cuttlefish"),
        ("", ""),
    ],
)
def test_plural(noun: str, expected: str) -> None:
    assert captions.plural(noun) == expected


def test_phrase_of_nothing_is_empty() -> None:
    assert captions.phrase({}) == captions.phrase({"seal": 0}) == ""


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        captions.phrase({"seal": -1})
