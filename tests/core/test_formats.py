"""Annotation texts: round trips to within half a pixel, and faults that are named, not raised."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as masks

from synthdet.core.formats.coco import from_coco, to_coco
from synthdet.core.formats.yolo import (
    from_yolo_lines,
    names_from_text,
    names_from_yaml,
    to_yolo_lines,
)
from synthdet.core.records import Box
from synthdet.errors import SynthdetError

sides = st.integers(8, 9000)
shares = st.floats(0, 1)


def boxes_in(width: int, height: int, corners: list[tuple[float, ...]]) -> list[Box]:
    boxes = []
    for a, b, c, d in corners:
        x1, x2 = sorted((a * width, b * width))
        y1, y2 = sorted((c * height, d * height))
        if x2 - x1 >= 1 and y2 - y1 >= 1:
            boxes.append(Box(xyxy=(x1, y1, x2, y2), class_id=len(boxes) % 3))
    return boxes


@given(sides, sides, st.lists(st.tuples(shares, shares, shares, shares), max_size=5))
def test_yolo_round_trip(width, height, corners):
    boxes = boxes_in(width, height, corners)
    text = to_yolo_lines(boxes, width, height)
    back, problems = from_yolo_lines(text, width, height)
    assert problems == []
    assert [box.class_id for box in back] == [box.class_id for box in boxes]
    for box, again in zip(boxes, back, strict=True):
        assert again.xyxy == pytest.approx(box.xyxy, abs=0.01)
    for line in text.splitlines():
        _class, x, y, w, h = (float(column) for column in line.split())
        assert 0 <= x - w / 2 <= x + w / 2 <= 1 + 1e-12
        assert 0 <= y - h / 2 <= y + h / 2 <= 1 + 1e-12


@given(sides, sides, st.lists(st.tuples(shares, shares, shares, shares), max_size=5))
def test_coco_round_trip(width, height, corners):
    boxes = boxes_in(width, height, corners)
    fields = json.loads(json.dumps(to_coco([("a.jpg", width, height, boxes)], ["a", "b", "c"])))
    (image,) = from_coco(fields, where="a.json").photos
    assert image.size_wh == (width, height)
    assert [box.class_id for box in image.boxes] == [box.class_id for box in boxes]
    for box, again in zip(boxes, image.boxes, strict=True):
        assert again.xyxy == pytest.approx(box.xyxy, abs=0.01)


@given(st.text(max_size=80))
def test_no_yolo_text_raises(text):
    boxes, problems = from_yolo_lines(text, 64, 48)
    assert len(boxes) + len(problems) <= len(text.splitlines())


def test_yolo_boxes_over_the_edge_are_clipped_and_those_outside_have_no_line():
    beyond = [Box(xyxy=(-8, 40, 16, 60), class_id=0), Box(xyxy=(70, 0, 80, 9), class_id=0)]
    assert to_yolo_lines(beyond, 64, 48) == "0 0.1250000 0.9166665 0.2500000 0.1666670\n"


@pytest.mark.parametrize(
    ("line", "xyxy"),
    [
        ("0 0.5 0.5 0.5 0.5", (16, 12, 48, 36)),
        ("0.0 0.5 0.5 0.5 0.5 0.93", (16, 12, 48, 36)),
        ("0 0.25 0.25 0.75 0.25 0.5 0.75", (16, 12, 48, 36)),
        ("0 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5", (16, 12, 48, 36)),
        ("\ufeff0 0.5 0.5 0.5 0.5\r", (16, 12, 48, 36)),
    ],
    ids=["box", "confidence", "polygon", "oriented", "mark"],
)
def test_every_kind_of_yolo_line_becomes_an_upright_box(line, xyxy):
    (box,), problems = from_yolo_lines(line, 64, 48)
    assert box.xyxy == xyxy
    assert problems == []


@pytest.mark.parametrize(
    "line",
    [
        "0 1 2 3",
        "-1 .5 .5 .1 .1",
        "x .5 .5 .1 .1",
        "0 nan .5 .1 .1",
        "0 1 2 3 4 5 6 7",
        "1.5 .5 .5 .1 .1",
    ],
)
def test_a_bad_yolo_line_is_told(line):
    boxes, (problem,) = from_yolo_lines("\n" + line, 64, 48)
    assert boxes == []
    assert problem.startswith("line 2: ")


def test_names_of_a_yaml_and_of_a_text():
    assert names_from_yaml({"names": {"1": "pup", "0": "seal"}}) == {0: "seal", 1: "pup"}
    assert names_from_yaml({"names": "seal"}) == {0: "seal"}
    assert names_from_yaml({"names": []}) is None
    assert names_from_yaml(["seal"]) is None
    assert names_from_yaml({"names": {"seal": 0}}) is None
    assert names_from_text("seal\r\n\r\npup\r\n") == {0: "seal", 1: "pup"}


def coco_with(**annotation: object) -> dict[str, list[dict[str, object]]]:
    return {
        "images": [{"id": "a", "file_name": "a.jpg", "width": 64, "height": 48}],
        "annotations": [{"image_id": "a", "category_id": 5, **annotation}],
        "categories": [{"id": 9, "name": "rock"}, {"id": 5, "name": "seal"}],
    }


def run_lengths() -> dict[str, object]:
    mask = np.zeros((48, 64), np.uint8, order="F")
    mask[10:20, 30:50] = 1
    packed = masks.encode(mask)
    return {**packed, "counts": packed["counts"].decode()}  # as JSON has it


@pytest.mark.parametrize(
    "annotation",
    [
        {"bbox": [30, 10, 20, 10]},
        {"segmentation": [[30, 10, 50, 10, 50, 20], [30, 20, 40, 20, 35, 15]]},
        {"bbox": [], "segmentation": run_lengths()},
        {
            "segmentation": {
                "size": [48, 64],
                "counts": [30 * 48 + 10, *[10, 38] * 19, 10, 28 + 14 * 48 - 18],
            }
        },
    ],
    ids=["bbox", "polygons", "run lengths", "plain run lengths"],
)
def test_coco_boxes_come_from_a_bbox_or_a_segmentation(annotation):
    file = from_coco(coco_with(**annotation), where="a.json")
    (box,) = file.photos[0].boxes
    assert box.xyxy == (30, 10, 50, 20)
    assert file.class_names[box.class_id] == "seal"


@pytest.mark.parametrize(
    "annotation",
    [
        {},
        {"bbox": [1, 2]},
        {"bbox": ["a", 1, 2, 3]},
        {"bbox": [float("nan"), 1, 2, 3]},
        {"segmentation": [[1, 2]]},
        {"segmentation": {"counts": 3}},
    ],
)
def test_a_bad_coco_annotation_is_told(annotation):
    image = from_coco(coco_with(**annotation), where="a.json").photos[0]
    assert image.boxes == []
    assert len(image.problems) == 1


def test_a_category_that_does_not_exist_is_refused():
    with pytest.raises(SynthdetError, match=r"a\.json: an annotation of a\.jpg has category_id 7"):
        from_coco(coco_with(bbox=[1, 2, 3, 4], category_id=7), where="a.json")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["image_id", "category_id", "bbox", "segmentation"]), anything)
)
def test_no_coco_annotation_raises_but_as_an_error_for_people(annotation):
    fields = coco_with(bbox=[1, 2, 3, 4])
    fields["annotations"].append({"image_id": "a", "category_id": 5, **annotation})
    with contextlib.suppress(SynthdetError):
        from_coco(fields, where="a.json")


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["id", "file_name", "width", "height", "name"]), anything))
def test_no_coco_image_or_category_raises_but_as_an_error_for_people(entry):
    for part in ("images", "categories"):
        fields = coco_with(bbox=[1, 2, 3, 4])
        fields[part][0].update(entry)
        with contextlib.suppress(SynthdetError):
            from_coco(fields, where="a.json")


@pytest.mark.parametrize("fields", [{}, [], {"images": [], "annotations": {}}])
def test_other_json_is_refused(fields):
    with pytest.raises(SynthdetError, match=r"a\.json is not a COCO file"):
        from_coco(fields, where="a.json")
