import doctest
from collections import Counter
from typing import Any

import pytest

from synthdet.core import prompts
from synthdet.core.prompts import PlannedPicture, plan_pictures
from synthdet.errors import SynthdetError

DEFAULTS: dict[str, Any] = {
    "num_images": 24,
    "class_names": ("humpback whale",),
    "prompts": ("aerial photo of {animals}",),
    "animals": None,
    "attributes": {},
    "background_prompts": ("aerial photo of open water",),
    "background_fraction": 0.25,
    "negative_prompt": "text",
    "seed": 3,
}


def plan(**changes: Any) -> tuple[PlannedPicture, ...]:
    return plan_pictures(**{**DEFAULTS, **changes})


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(prompts).failed == 0


def test_the_same_settings_give_the_same_plan_and_another_seed_another_order() -> None:
    attributes = {"sea": ("calm", "grey", "deep blue", "green")}
    template = ("photo of {animals}, {sea} sea",)
    first = plan(prompts=template, attributes=attributes)
    assert first == plan(prompts=template, attributes=attributes)
    other = plan(prompts=template, attributes=attributes, seed=4)
    assert [p.prompt for p in first] != [p.prompt for p in other]


def test_ids_count_up_and_seeds_are_distinct() -> None:
    planned = plan(num_images=30, seed=-5)
    assert [p.image_id for p in planned] == [f"syn-{i:06d}" for i in range(30)]
    assert [p.seed for p in planned] == list(range(-5, 25))
    assert {p.negative_prompt for p in planned} == {"text"}


def test_the_negative_prompt_says_the_same_sea_and_backgrounds_have_their_own() -> None:
    planned = plan(
        num_images=24,
        background_fraction=0.25,
        prompts=("photo of {animals} in a {sea} sea{waves}",),
        attributes={"sea": ("grey", "green"), "waves": ("", ", whitecaps")},
        background_prompts=("open water in a {sea} sea",),
        negative_prompt="open water in a {sea} sea{waves}",
        background_negative_prompt="whale",
    )
    for picture in planned:
        where = picture.prompt.partition(" in a ")[2]
        expected = "whale" if picture.background else f"open water in a {where}"
        assert picture.negative_prompt == expected
    assert len({picture.negative_prompt for picture in planned}) == 5


@pytest.mark.parametrize(
    ("negative", "setting"),
    [
        ({"negative_prompt": "a {sea} sea"}, r"generate\.negative_prompt"),
        ({"negative_prompt": "{animals}"}, r"generate\.negative_prompt"),
        ({"negative_prompt": "{"}, r"generate\.negative_prompt"),
        ({"negative_prompt": "{sea!z}"}, r"generate\.negative_prompt"),
        ({"prompts": ("{animals} in a {sea:q} sea",)}, r"generate\.prompts"),
        ({"background_negative_prompt": "a {sea} sea"}, r"generate\.background_negative_prompt"),
    ],
)
def test_a_negative_prompt_names_what_the_prompt_names(
    negative: dict[str, str], setting: str
) -> None:
    with pytest.raises(SynthdetError, match=setting):
        plan(**{"attributes": {"sea": ("grey",)}, "prompts": ("{animals}",), **negative})


def test_no_picture_is_led_away_from_its_own_prompt() -> None:
    planned = plan(negative_prompt=DEFAULTS["background_prompts"][0])
    assert {(one.background, one.negative_prompt) for one in planned} == {
        (True, ""),
        (False, "aerial photo of open water"),
    }


@pytest.mark.parametrize(("num_images", "fraction"), [(24, 0.25), (10, 0.1), (7, 0.5), (3, 1.0)])
def test_backgrounds_are_spread_evenly(num_images: int, fraction: float) -> None:
    background = [p.background for p in plan(num_images=num_images, background_fraction=fraction)]
    assert sum(background) == round(num_images * fraction)
    for length in range(1, num_images + 1):
        assert abs(sum(background[:length]) - length * sum(background) / num_images) <= 1


def test_every_combination_comes_up_equally_often() -> None:
    planned = plan(
        num_images=26,
        background_fraction=0.0,
        prompts=("photo of {animals}, {sea} sea", "{animals} from a drone, {sea}"),
        attributes={"sea": ("calm", "grey", "green")},
    )
    counts = Counter(p.prompt for p in planned)
    assert len(counts) == 2 * 2 * 3
    assert set(counts.values()) == {2, 3}
    assert len({p.prompt for p in planned[:12]}) == 12


def test_every_class_is_asked_for_equally_often() -> None:
    planned = plan(num_images=33, background_fraction=0.1, class_names=("seal", "grey whale"))
    counts = Counter(p.asked_for for p in planned)
    assert counts.pop(()) == 3
    assert set(counts) == {(0,), (0, 0), (1,), (1, 1)}
    assert set(counts.values()) == {7, 8}


def test_a_prompt_says_which_classes_it_asks_for() -> None:
    names = ("seal", "harbor_seal", "boat")
    animals = {"two harbor seals": 2, "one seal": 1, "a boat, near seals": 1, "three gulls": 3}
    planned = plan(class_names=names, animals=animals, background_fraction=0.2, num_images=20)
    asked = {p.prompt.removeprefix("aerial photo of "): p.asked_for for p in planned}
    assert asked == {
        "two harbor seals": (1, 1),
        "one seal": (0,),
        "a boat, near seals": None,
        "three gulls": None,
        "open water": (),
    }


def test_a_template_without_animals_does_not_say_what_it_asks_for() -> None:
    planned = plan(prompts=("photo of a big whale",), background_fraction=0)
    assert {p.asked_for for p in planned} == {None}


def test_no_picture_is_a_plan_too() -> None:
    assert plan(num_images=0) == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ("photo of {animal}",)}, r"generate\.prompts: .*\{animal\}"),
        ({"background_prompts": ("{animals}",)}, r"generate\.background_prompts: .*\{animals\}"),
        ({"prompts": ("photo of {",)}, r"generate\.prompts: 'photo of \{'"),
        ({"prompts": ("photo of {}",)}, r"generate\.prompts"),
        ({"prompts": ()}, r"generate\.prompts is empty"),
        ({"animals": {}}, r"generate\.animals is empty"),
        ({"animals": {"no whale": 0}}, r"generate\.animals: 'no whale'"),
        ({"attributes": {"sea": ()}}, r"generate\.attributes\.sea"),
        ({"attributes": {"animals": ("x",)}}, r"generate\.attributes"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SynthdetError, match=message):
        plan(**changes)
