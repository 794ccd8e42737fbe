"""Boxes there and back again between pixels and FiftyOne's shares of a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synthdet.core.curation import ShownRun
from synthdet.core.formats.fiftyone import SeenSample, make_samples, read_verdicts
from synthdet.core.records import Box, DetectedBox, Label, SyntheticImage
from synthdet.errors import SynthdetError

WIDTH, HEIGHT = 1000, 640


def shown_run(boxes: Sequence[DetectedBox]) -> ShownRun:
    image = SyntheticImage(
        image_id="syn-000000",
        path="3-generate/images/syn-000000.png",
        sha256="abc",
        prompt="aerial photo of one seal",
        negative_prompt="",
        seed=1,
        scheduler="DDIMScheduler",
        num_inference_steps=2,
        guidance_scale=1.0,
        lora_scale=1.0,
        width=WIDTH,
        height=HEIGHT,
        batch=0,
        batch_shape=1,
    )
    label = Label(image_id=image.image_id, status="accept", boxes=tuple(boxes))
    return ShownRun(
        root="/runs/seals",
        dataset="synthdet-seals",
        class_names=("seal", "boat"),
        tiles=[],
        images=[image],
        scores={},
        decisions={},
        detections={},
        labels={image.image_id: label},
        verdicts={},
    )


def as_seen(shown: ShownRun, *, tags: Sequence[str] = ()) -> SeenSample:
    """The sample as FiftyOne would give it back, untouched but for the tags."""
    (sample,) = make_samples(shown, {})
    drawn = [(box["label"], box["bounding_box"]) for box in sample["accepted"]["detections"]]
    return SeenSample(
        sample["image_id"],
        sample["sha256"],
        [*sample["tags"], *tags],
        drawn,
        sample["boxes_as_loaded"],
    )


edges = st.floats(0, 1)
boxes = st.builds(
    lambda x, y, width, height, class_id: DetectedBox(
        xyxy=(x * 900, y * 500, x * 900 + 1 + width * 99, y * 500 + 1 + height * 139),
        class_id=class_id,
        confidence=0.5,
    ),
    edges, edges, edges, edges, st.integers(0, 1),
)  # fmt: skip


@given(st.lists(boxes, max_size=5))
def test_boxes_come_back_within_a_hundredth_of_a_pixel(drawn: list[DetectedBox]) -> None:
    shown = shown_run(drawn)
    (verdict,) = read_verdicts(shown, [as_seen(shown, tags=["accept"])], by="ann", at="now")
    assert verdict.boxes is not None
    assert len(verdict.boxes) == len(drawn)
    for came_back, box in zip(verdict.boxes, drawn, strict=True):
        assert came_back.class_id == box.class_id
        assert came_back.xyxy == pytest.approx(box.xyxy, abs=0.0051)


@given(st.lists(boxes, max_size=5))
def test_boxes_that_nobody_touched_are_no_verdict(drawn: list[DetectedBox]) -> None:
    shown = shown_run(drawn)
    assert list(read_verdicts(shown, [as_seen(shown)], by="ann", at="now")) == []


def test_the_smallest_edit_is_a_verdict_and_a_known_one_is_not_news() -> None:
    shown = shown_run([DetectedBox(xyxy=(10, 20, 50, 60), class_id=0, confidence=0.9)])
    seen = as_seen(shown)
    moved = replace(seen, boxes=[("seal", [0.0101, 0.03125, 0.04, 0.0625])])
    (verdict,) = read_verdicts(shown, [moved], by="ann", at="now")
    assert verdict.boxes == (Box(xyxy=(10.1, 20, 50.1, 60), class_id=0),)
    known = replace(shown, verdicts={verdict.image_id: verdict})
    assert list(read_verdicts(known, [moved], by="bob", at="later")) == []


def test_an_emptied_picture_is_a_verdict_of_no_animals() -> None:
    shown = shown_run([DetectedBox(xyxy=(10, 20, 50, 60), class_id=0, confidence=0.9)])
    (verdict,) = read_verdicts(shown, [replace(as_seen(shown), boxes=[])], by="ann", at="now")
    assert (verdict.verdict, verdict.boxes) == ("accept", ())


def test_another_picture_of_that_name_was_not_judged() -> None:
    shown = shown_run([])
    old = replace(as_seen(shown, tags=["reject"]), sha256="of another")
    assert list(read_verdicts(shown, [old], by="ann", at="now")) == []


def test_contradictions_and_unknown_classes_are_refused() -> None:
    shown = shown_run([])
    seen = as_seen(shown, tags=["accept"])
    with pytest.raises(SynthdetError, match="accept and reject"):
        list(read_verdicts(shown, [replace(seen, tags=["accept", "reject"])], by="a", at="n"))
    with pytest.raises(SynthdetError, match="'whale': name it one of seal, boat"):
        whale = replace(seen, boxes=[("whale", [0, 0, 1, 1])])
        list(read_verdicts(shown, [whale], by="a", at="n"))


def test_boxes_of_classes_that_are_gone_since_are_no_error() -> None:
    shown = shown_run([DetectedBox(xyxy=(10, 20, 50, 60), class_id=1, confidence=0.9)])
    seen = replace(as_seen(shown), boxes=[])
    (verdict,) = read_verdicts(replace(shown, class_names=("seal",)), [seen], by="ann", at="now")
    assert (verdict.verdict, verdict.boxes) == ("accept", ())


def test_boxes_that_another_version_loaded_are_not_guessed_at() -> None:
    shown = shown_run([DetectedBox(xyxy=(10, 20, 50, 60), class_id=0, confidence=0.9)])
    for other in ("a" * 64, "no base64!"):
        seen = replace(as_seen(shown), boxes_as_loaded=other)
        with pytest.raises(SynthdetError, match="another version"):
            list(read_verdicts(shown, [seen], by="a", at="n"))
