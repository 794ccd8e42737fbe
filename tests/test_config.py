"""Every knob is checked, named in its error, and found in one place."""

from __future__ import annotations

import pytest

from synthdet.config import Config, Section, make_config, parse_config, set_values, to_yaml
from synthdet.errors import SynthdetError

SECTIONS = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}


def test_yaml_round_trip() -> None:
    config = set_values(Config(), ["generate.num_images=8", "filter.threshold=0.3"])
    assert parse_config(to_yaml(config), where="x") == config
    assert config.generate.num_images == 8
    assert config.filter.threshold == 0.3


@pytest.mark.parametrize(
    ("resolution", "image_size", "side"), [(520, "null", 544), (512, "null", 512), (520, 128, 128)]
)
def test_a_detector_sees_whole_strides(resolution: int, image_size: object, side: int) -> None:
    """Tiles come in steps of 8 pixels; of another size no detector would train, after hours of work."""
    config = set_values(
        Config(),
        [f"prepare.resolution={resolution}"]
        + [f"{section}.image_size={image_size}" for section in ("label", "evaluate")],
    )
    assert config.side_for(config.label) == config.side_for(config.evaluate) == side


def test_every_knob_has_its_help() -> None:
    for section in SECTIONS.values():
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"


def test_every_setting_is_of_one_kind() -> None:
    for name in SECTIONS:
        section = getattr(Config(), name)
        kinds = [section.settings(kind) for kind in ("making", "decision", "runtime")]
        together = {key: value for kind in kinds for key, value in kind.items()}
        assert sum(map(len, kinds)) == len(together)
        assert together == section.model_dump(mode="json")
    assert "threshold" in Config().filter.settings("decision")
    assert "device" in Config().filter.settings("runtime")
    assert "model" in Config().filter.settings("making")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("generate: {num_image: 3}", "there is no setting generate.num_image"),
        ("generate: {num_images: -1}", "generate.num_images"),
        ("label: {confidence: high}", "label.confidence"),
        ("generate: [1", "not readable as YAML"),
        ("just words", "by section"),
        ("version: 7", "version 7"),
        ("generate: {num_images: !!python/object/apply:os.system [true]}", "not readable as YAML"),
    ],
)
def test_bad_settings_are_one_line_that_names_them(text: str, told: str) -> None:
    with pytest.raises(SynthdetError, match=".") as caught:
        parse_config(text, where="my.yaml")
    assert told in str(caught.value)
    assert "my.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "assignment",
    ["num_images=3", "generate.num_images", "nothing.x=1", "generate.no=1", "generate.seed=[1"],
)
def test_bad_assignments_are_refused(assignment: str) -> None:
    with pytest.raises(SynthdetError):
        set_values(Config(), [assignment])


def test_a_bare_no_is_a_precision() -> None:
    """YAML reads it as false."""
    made = set_values(Config(), ["finetune.mixed_precision=no", "generate.mixed_precision=auto"])
    assert made.finetune.mixed_precision == "no"
    assert made.generate.mixed_precision == "auto"
    with pytest.raises(SynthdetError, match="mixed_precision"):
        set_values(Config(), ["finetune.mixed_precision=yes"])


def test_an_empty_file_is_all_defaults() -> None:
    assert parse_config("# nothing\n", where="x") == Config()
    assert make_config({}, where="x") == Config()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"mode": "paste"}, "here: generate.mode: 'paste' is neither text, image or placed nor"),
        ({"mode": {"text": 1, "paste": 1}}, "generate.mode"),
        ({"mode": {"text": -1}}, "generate.mode"),
        ({"mode": {"text": True}}, "generate.mode"),
        ({"mode": [["text"]]}, "generate.mode"),
        ({"mode": {}}, "generate.mode: {} is neither text"),
        ({"mode": "image", "image_strength": 0.02}, "image_strength 0.02 of 30 steps is no step"),
        ({"mode": "placed", "pictures": "own"}, "taken in as they are"),
        ({"batch_size": 0}, "generate.batch_size"),
        ({"batch_size": "all"}, "generate.batch_size"),
    ],
)
def test_modes_and_batch_sizes_that_cannot_be_are_one_line(
    fields: dict[str, object], told: str
) -> None:
    with pytest.raises(SynthdetError, match=".") as caught:
        make_config({"generate": fields}, where="here")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shares_of_modes() -> None:
    assert Config().generate.mode_shares() == {"text": 1.0}
    config = set_values(Config(), ["generate.mode={text: 2, placed: 1}"])
    assert config.generate.mode_shares() == {"text": 2.0, "placed": 1.0}


def test_prodigy_with_the_rate_of_another_optimizer_is_one_line() -> None:
    with pytest.raises(SynthdetError, match=r"^here: finetune: prodigy .*set learning_rate to 1$"):
        make_config({"finetune": {"optimizer": "prodigy"}}, where="here")
    fields = {"finetune": {"optimizer": "prodigy", "learning_rate": 1.0}}
    assert make_config(fields, where="here").finetune.optimizer == "prodigy"
