"""Annotation texts: round trips to within half a pixel, and faults that are named, not raised."""

from __future__ import annotations

import contextlib
import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as masks

from synthdet.config import CsvKey
from synthdet.core.formats.annotated import AnnotatedPhoto, around_turned, to_size
from synthdet.core.formats.coco import from_coco, to_coco
from synthdet.core.formats.cvat import from_cvat, is_cvat, to_cvat
from synthdet.core.formats.labelme import from_labelme, is_labelme, to_labelme
from synthdet.core.formats.safe_xml import parse_xml
from synthdet.core.formats.table import KEYS, from_csv, to_csv
from synthdet.core.formats.voc import from_voc, is_voc, to_voc
from synthdet.core.formats.yolo import (
    from_yolo_lines,
    names_from_text,
    names_from_yaml,
    to_yolo_lines,
)
from synthdet.core.records import Box, Rejected
from synthdet.errors import SynthdetError

sides = st.integers(8, 9000)
shares = st.floats(0, 1)
unequal = st.tuples(sides, sides).filter(lambda size: size[0] != size[1])


def boxes_in(width: int, height: int, corners: list[tuple[float, ...]]) -> list[Box]:
    boxes = []
    for a, b, c, d in corners:
        x1, x2 = sorted((a * width, b * width))
        y1, y2 = sorted((c * height, d * height))
        if x2 - x1 >= 1 and y2 - y1 >= 1:
            boxes.append(Box(xyxy=(x1, y1, x2, y2), class_id=len(boxes) % 3))
    return boxes


@given(unequal, st.lists(st.tuples(shares, shares, shares, shares), max_size=5))
def test_yolo_round_trip(size, corners):
    width, height = size
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


@given(unequal, st.lists(st.tuples(shares, shares, shares, shares), max_size=5))
def test_coco_round_trip(size, corners):
    width, height = size
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
    assert names_from_yaml({"names": {float("inf"): "seal"}}) is None
    bomb: list[object] = ["seal"]
    for _time in range(60):
        bomb = [bomb, bomb]  # as YAML's anchors make it: a few bytes, 2 to the 60 names
    assert names_from_yaml({"names": bomb}) is None
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


# --- Pascal VOC, LabelMe, CVAT, CSV: there and back ----------------------------------------------

NAMES = ("grey seal", 'a "pup" <1 year & wet', "Kegelrobbe (männlich)")


def is_photo(name: str) -> bool:
    return name.endswith(".jpg")


def table(text: str, **options: object):
    return from_csv(text, where="a.csv", is_photo=is_photo, **options)


def there_and_back(format_: str, width: int, height: int, boxes: list[Box]):
    photos = [("ä b.jpg", width, height, boxes)]
    if format_ == "voc":
        root = parse_xml(to_voc(*photos[0], NAMES).encode())
        assert is_voc(root)
        return from_voc(root)
    if format_ == "labelme":
        fields = json.loads(json.dumps(to_labelme(*photos[0], NAMES)))
        assert is_labelme(fields)
        return from_labelme(fields)
    if format_ == "cvat":
        root = parse_xml(to_cvat(photos, NAMES).encode())
        assert is_cvat(root)
        return from_cvat(root, where="a.xml")
    return table(to_csv(photos, NAMES))


@pytest.mark.parametrize("format_", ["voc", "labelme", "cvat", "csv"])
@settings(max_examples=60, deadline=None)
@given(size=unequal, corners=st.lists(st.tuples(shares, shares, shares, shares), max_size=5))
def test_round_trips(format_, size, corners):
    boxes = boxes_in(*size, corners)
    file = there_and_back(format_, *size, boxes)
    (photo,) = file.photos
    assert photo.file_name == "ä b.jpg"
    assert photo.problems == []
    assert photo.size_wh == size
    assert [file.class_names[box.class_id] for box in photo.boxes] == [
        NAMES[box.class_id] for box in boxes
    ]
    for box, again in zip(boxes, photo.boxes, strict=True):
        assert again.xyxy == pytest.approx(box.xyxy, abs=0.01)


@settings(max_examples=60, deadline=None)
@given(size=unequal, corners=st.lists(st.tuples(shares, shares, shares, shares), max_size=5))
def test_yolo_polygons_and_oriented_boxes_become_the_box_around_them(size, corners):
    width, height = size
    boxes = boxes_in(width, height, corners)
    for box in boxes:
        x1, y1, x2, y2 = (v / side for v, side in zip(box.xyxy, (width, height) * 2, strict=True))
        mid = (x1 + x2) / 2
        oriented = f"0 {x1} {y1} {x2} {y1} {x2} {y2} {x1} {y2}"
        polygon = f"0 {mid} {y1} {x2} {y2} {x1} {y2} {x1} {(y1 + y2) / 2} {x1} {y1}"
        for line in (oriented, polygon):
            (back,), problems = from_yolo_lines(line, width, height)
            assert problems == []
            assert back.xyxy == pytest.approx(box.xyxy, abs=0.01)


@given(
    st.tuples(st.integers(0, 39), st.integers(0, 39), st.integers(41, 64), st.integers(41, 60)),
)
def test_run_lengths_agree_with_pycocotools(xyxy):
    x1, y1, x2, y2 = xyxy
    mask = np.zeros((60, 64), np.uint8, order="F")
    mask[y1:y2, x1:x2] = 1
    mask[y1, x1] = 0  # a corner off: the box stays
    packed = masks.encode(mask)
    text = {"size": packed["size"], "counts": packed["counts"].decode()}
    plain = {"size": packed["size"], "counts": run_lengths_of(mask)}
    x, y, w, h = masks.toBbox(packed)
    for segmentation in (text, plain):
        photo = from_coco(coco_with(segmentation=segmentation), where="a.json").photos[0]
        assert photo.boxes[0].xyxy == (x, y, x + w, y + h)


def test_run_lengths_over_whole_columns():
    # From row 40 of column 3 to row 5 of column 5: whole columns, though both ends are small.
    runs = {"size": [48, 64], "counts": [3 * 48 + 40, 8 + 48 + 5, 59 * 48 - 5]}
    photo = from_coco(coco_with(segmentation=runs), where="a.json").photos[0]
    assert photo.boxes[0].xyxy == (3, 0, 6, 48)


@pytest.mark.parametrize(
    ("part", "entry", "told"),
    [
        ("images", {"id": 3}, r"image 2 of 2 is malformed \(it has no 'file_name'\)"),
        (
            "images",
            {"id": 3, "file_name": None},
            "image 2 of 2 is malformed .its file_name is nothing",
        ),
        ("categories", {"id": [], "name": "a"}, "category 3 of 3 is malformed .its id is a list"),
        ("categories", "seal", "category 3 of 3 is malformed"),
    ],
)
def test_a_malformed_entry_is_told_by_its_number(part, entry, told):
    fields = coco_with(bbox=[1, 2, 3, 4])
    fields[part].append(entry)
    with pytest.raises(SynthdetError, match=told):
        from_coco(fields, where="a.json")


def test_half_characters_do_not_reach_the_records():
    fields = coco_with(bbox=[1, 2, 3, 4])
    fields["images"][0]["file_name"] = "a\ud800.jpg"
    fields["categories"][1]["name"] = "seal\udfff"
    file = from_coco(fields, where="a.json")
    assert file.photos[0].file_name == "a?.jpg"
    assert file.class_names == ("rock", "seal?")


def test_a_rejected_box_is_json_that_others_can_read():
    line = Rejected(
        path="a.jpg", reason="far off", box=(float("inf"), 1, float("nan"), 2)
    ).to_line()
    assert json.loads(line, parse_constant=pytest.fail)["box"] == [1, 2]


def run_lengths_of(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F")
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    runs = np.diff(edges).tolist()
    return [0, *runs] if flat[0] else runs


@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [0, 0], "counts": [1, 1]},
        {"size": [0, 64], "counts": "11"},
        {"size": [48, 64], "counts": [1, -1, 5]},
        {"size": [48, 64], "counts": [10**30, 10**30]},
        {"size": [48, 64], "counts": "\x7f\x7f"},
        {"size": [48, 64], "counts": "o" * 400},
        {"size": [48, 64], "counts": []},
        {"counts": [1, 2]},
        [[1, 2, 3, 4, 5]],
        "[[1, 2]]",
    ],
)
def test_masks_that_end_other_programs_are_told(segmentation):
    fields = coco_with(segmentation=segmentation)
    del fields["images"][0]["width"]
    photo = from_coco(fields, where="a.json").photos[0]
    assert photo.boxes == []
    assert photo.problems[0].startswith("annotation 1 ")


def test_ids_of_a_coco_file_may_be_numbers_or_text():
    fields = coco_with(bbox=[1, 2, 3, 4])
    fields["images"][0]["id"] = 7
    fields["annotations"][0]["image_id"] = "7"
    fields["annotations"].append({"image_id": 7.0, "category_id": "5", "bbox": [5, 6, 7, 8]})
    fields["annotations"].append({"image_id": 8, "category_id": 5, "bbox": [5, 6, 7, 8]})
    file = from_coco(fields, where="a.json")
    assert [box.xyxy for box in file.photos[0].boxes] == [(1, 2, 4, 6), (5, 6, 12, 14)]
    assert file.problems == ("annotation 3 belongs to none of the images",)


@pytest.mark.parametrize("part", ["images", "categories"])
def test_ids_that_come_twice_are_refused(part):
    fields = coco_with(bbox=[1, 2, 3, 4])
    fields[part].append(fields[part][0])
    with pytest.raises(SynthdetError, match="have the same id"):
        from_coco(fields, where="a.json")


# --- Pascal VOC ----------------------------------------------------------------------------------


def voc(objects: str, *, database: str = "", size: str = "<size><width>64</width></size>"):
    source = f"<source><database>{database}</database></source>"
    return from_voc(
        parse_xml(f"<annotation>\n{source}{size}\n{objects}</annotation>".encode())
    ).photos[0]


CORNERS = "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"


@pytest.mark.parametrize(
    ("database", "xyxy"),
    [
        ("", (11, 21, 30, 40)),
        ("Unknown", (11, 21, 30, 40)),
        ("The VOC2012 Database", (10, 20, 30, 40)),
        ("roboflow.com", (10, 20, 30, 40)),
    ],
)
def test_voc_counts_pixels_as_its_writer_did(database, xyxy):
    box = f"<object><name>seal</name><bndbox>{CORNERS.format(11, 21, 30, 40)}</bndbox></object>"
    assert voc(box, database=database).boxes[0].xyxy == xyxy


def test_voc_polygons_and_turned_boxes():
    polygon = "<x1>10</x1><y1>5</y1><x2>30</x2><y2>6</y2><x3>20</x3><y3>25</y3>"
    turned = "<cx>20</cx><cy>10</cy><w>20</w><h>10</h><angle>1.5707963267948966</angle>"
    photo = voc(
        f"<object><name>seal</name><polygon>{polygon}</polygon></object>"
        f"<object><name>seal</name><robndbox>{turned}</robndbox></object>"
    )
    assert [box.xyxy for box in photo.boxes] == [(10, 5, 30, 25), (15, 0, 25, 20)]
    assert photo.size_wh is None


def test_polygons_of_the_old_labelme():
    points = "".join(f"<pt><x>{x}</x><y>{y}</y></pt>" for x, y in ((10, 5), (30, 6), (20, 25)))
    mark = f"<object><name>seal</name><deleted>{{}}</deleted><polygon><username>x</username>{points}</polygon></object>"
    photo = voc(mark.format(0) + mark.format(1))
    assert [box.xyxy for box in photo.boxes] == [(10, 5, 30, 25)]
    assert photo.problems == []


@pytest.mark.parametrize(
    ("marked", "problem"),
    [
        ("<object><bndbox/></object>", "line 3: object has no name"),
        ("<object><name>a</name></object>", "line 3: object has neither bndbox nor polygon"),
        (
            f"<object><name>a</name><bndbox>{CORNERS.format(1, 'x', 3, 4)}</bndbox></object>",
            "line 3: object ymin is not a number ('x')",
        ),
        (
            f"<object><name>a</name><bndbox>{CORNERS.format(1, 2, 'nan', 4)}</bndbox></object>",
            "line 3: object xmax is not a finite number ('nan')",
        ),
        (
            "<object><name>a</name><polygon><x1>1</x1><y1>1</y1></polygon></object>",
            "line 3: object has a polygon without three corners",
        ),
    ],
)
def test_a_bad_voc_object_is_told_with_its_line(marked, problem):
    photo = voc(marked)
    assert photo.boxes == []
    assert photo.problems == [problem]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'<!DOCTYPE a [<!ENTITY b "seal">]><a>&b;</a>', "line 1: has a DOCTYPE"),
        (b'<?xml version="1.0"?>\n<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>', "line 2: has a"),
        (b"<a>\n<b></a>", "line 2: is not readable as XML: mismatched tag"),
        (b"", "no element found"),
        (b"<a>" * 50, "nested too deeply"),
        (b'<?xml version="1.0" encoding="klingon"?><a/>', "line 1: "),
    ],
)
def test_xml_that_is_not_safe_or_whole_is_refused(content, problem):
    with pytest.raises(ValueError, match=problem.replace("(", "\\(")):
        parse_xml(content)


# --- LabelMe, CVAT -------------------------------------------------------------------------------


def labelme(**shape: object) -> AnnotatedPhoto:
    fields = {
        "shapes": [{"label": "seal", **shape}],
        "imagePath": "..\\a.jpg",
        "imageData": "x" * 99,
    }
    return from_labelme(fields).photos[0]


@pytest.mark.parametrize(
    ("kind", "points", "xyxy"),
    [
        ("rectangle", [[30, 25], [10, 5]], (10, 5, 30, 25)),
        ("rectangle", [[10, 5], [30, 5], [30, 25], [10, 25]], (10, 5, 30, 25)),
        ("polygon", [[10, 9], [30, 5], [20, 25]], (10, 5, 30, 25)),
        (None, [[10, 9], [30, 5], [20, 25]], (10, 5, 30, 25)),
        ("rotation", [[20, 5], [30, 15], [20, 25], [10, 15]], (10, 5, 30, 25)),
        ("circle", [[20, 15], [23, 19]], (15, 10, 25, 20)),
        ("mask", [[10, 5], [30, 25]], (10, 5, 30, 25)),
    ],
)
def test_every_labelme_shape_with_an_area_becomes_a_box(kind, points, xyxy):
    assert labelme(shape_type=kind, points=points).boxes[0].xyxy == xyxy


@pytest.mark.parametrize(
    "shape",
    [
        {"shape_type": "point", "points": [[1, 2]]},
        {"shape_type": "linestrip", "points": [[1, 2], [3, 4], [5, 6]]},
        {"shape_type": "rectangle", "points": [[1, 2]]},
        {"shape_type": "rectangle", "points": [[1, "x"], [2, 3]]},
        {"shape_type": "polygon", "points": 3},
        {"shape_type": "rectangle", "points": [[1, 2], [3, 4]], "label": " "},
        {"shape_type": "rectangle", "points": [[1, 2], [3, 4]], "label": 3},
    ],
)
def test_a_bad_labelme_shape_is_told(shape):
    photo = labelme(**shape)
    assert photo.boxes == []
    assert photo.problems[0].startswith("shape 1 ")


CVAT = """<annotations><version>1.1</version>
<meta><project><labels><label><name>rock</name></label><label><name>seal</name></label></labels></project></meta>
<image id="0" name="sub/a.jpg" subset="Validation" width="64" height="48">
{}
</image></annotations>"""


@pytest.mark.parametrize(
    ("shape", "xyxy"),
    [
        ('<box label="seal" xtl="10" ytl="5" xbr="30" ybr="25"/>', (10, 5, 30, 25)),
        ('<box label="seal" xtl="10" ytl="5" xbr="30" ybr="15" rotation="90"/>', (15, 0, 25, 20)),
        ('<polygon label="seal" points="10,9;30,5;20.0,25"/>', (10, 5, 30, 25)),
        ('<ellipse label="seal" cx="20" cy="15" rx="10" ry="4"/>', (10, 11, 30, 19)),
        (
            '<mask label="seal" rle="3, 4" left="10" top="5" width="20" height="9"/>',
            (10, 5, 30, 14),
        ),
    ],
)
def test_every_cvat_shape_with_an_area_becomes_a_box(shape, xyxy):
    file = from_cvat(parse_xml(CVAT.format(shape).encode()), where="a.xml")
    assert file.class_names == ("rock", "seal")
    assert file.photos[0].split == "val"
    assert file.photos[0].boxes == [Box(xyxy=xyxy, class_id=1)]


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ('<points label="seal" points="10,9"/>', "line 4: points marks no area"),
        ('<box label="seal" xtl="nan" ytl="5" xbr="30" ybr="25"/>', "line 4: box xtl is not a fin"),
        ('<box label="seal" ytl="5" xbr="30" ybr="25"/>', "line 4: box xtl is not a number (noth"),
        ('<box xtl="1" ytl="5" xbr="30" ybr="25"/>', "line 4: box has no label"),
        ('<polygon label="seal" points="1,2;3"/>', "line 4: polygon has no three corners"),
        ("<tag label='seal'/>", None),
    ],
)
def test_a_bad_cvat_shape_is_told_with_its_line(shape, problem):
    photo = from_cvat(parse_xml(CVAT.format(shape).encode()), where="a.xml").photos[0]
    assert photo.boxes == []
    assert [one.startswith(str(problem)) for one in photo.problems] == [True] * bool(problem)


def test_cvat_for_video_says_what_to_export():
    with pytest.raises(SynthdetError, match=r"a\.xml is CVAT for video.*images 1\.1"):
        from_cvat(parse_xml(b"<annotations><track/></annotations>"), where="a.xml")


# --- CSV -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "filename,class,xmin,ymin,xmax,ymax\na.jpg,seal,10,5,30,25\n",
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,64,48,seal,10,5,30,25\n",
        '"","tile","X1","Y1","X2","Y2","class","image"\n"1","a.jpg",10,5,30,25,"seal","site 3"\n',
        "image_path\tlabel\tx\ty\tw\th\nC:\\p\\a.jpg\tseal\t10\t5\t20\t20\n",
        "Image Name;Species;Left;Top;Width;Height\r\na.jpg;seal;10,0;5,0;20,0;20,0\r\n",
        "file,category,x_center,y_center,width,height\na.jpg,seal,20,15,20,20\n",
        "a.jpg,10,5,30,25,seal\n",
        "\n  \na.jpg, 10, 5, 30, 25, seal, more\n",
        "image_id,label_name,bbox_x,bbox_y,bbox_width,bbox_height\na.jpg,seal,10,5,20,20\n",
    ],
    ids=["corners", "tensorflow", "R", "sides", "excel", "centre", "plain", "blanks", "bbox"],
)
def test_tables_in_the_usual_spellings(text):
    file = table(text)
    assert file.class_names == ("seal",)
    assert [photo.file_name.rpartition("\\")[2] for photo in file.photos] == ["a.jpg"]
    assert file.photos[0].boxes == [Box(xyxy=(10, 5, 30, 25), class_id=0)]
    assert file.photos[0].problems == []


def test_a_table_of_shares_a_table_without_classes_and_rows_without_boxes():
    shares_ = table("ImageID,LabelName,XMin,XMax,YMin,YMax\na.jpg,seal,.25,.5,0,1\nb.jpg,,,,,\n")
    assert [photo.size_wh for photo in shares_.photos] == [(1, 1), (1, 1)]
    assert shares_.photos[0].boxes[0].xyxy == (0.25, 0, 0.5, 1)
    bare = table("image,x1,y1,x2,y2\na.jpg,1,2,3,4\nb.jpg,NA,NA,NA,NA\n")
    assert bare.class_names == ("object",)
    assert [len(photo.boxes) for photo in bare.photos] == [1, 0]
    assert bare.photos[1].problems == []


def test_a_mapping_says_which_column_is_what():
    text = 'Aufnahme,Tier,Kasten,site\na.jpg,seal,"[10, 5, 20, 20]",a.jpg\n'
    assert table(text) is None
    mapping = {"file": "Aufnahme", "class": "Tier", "xywh": "Kasten"}
    assert table(text, mapping=mapping).photos[0].boxes[0].xyxy == (10, 5, 30, 25)
    with pytest.raises(
        SynthdetError, match=r"a\.csv has no column 'Foto'.*as file; it has Aufnahme"
    ):
        table(text, mapping={"file": "Foto"}, asked=True)
    assert table(text, mapping={"file": "Foto"}) is None
    with pytest.raises(SynthdetError, match=r"columns Aufnahme, Tier.*prepare\.csv"):
        table(text, asked=True)


@pytest.mark.parametrize("text", ["", "adult,0\nother,1\n", "a,b\n", "photo,species\na.jpg,seal\n"])
def test_other_tables_are_passed_over(text):
    assert table(text) is None


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a.jpg,seal,x,5,30,25", "line 3: x1 is not a number ('x')"),
        ("a.jpg,seal,nan,5,30,25", "line 3: x1 is not a finite number ('nan')"),
        ("a.jpg,seal,10,5", "line 3: x2 is not a number ('')"),
        ("a.jpg,,10,5,30,25", "line 3: has no class"),
    ],
)
def test_a_bad_row_is_told_with_its_line(row, problem):
    file = table(f"filename,class,xmin,ymin,xmax,ymax\nb.jpg,seal,1,2,30,40\n{row}\n")
    assert file.photos[1].problems == [problem]


def test_a_row_without_a_photo_is_told():
    file = table("filename,class,xmin,ymin,xmax,ymax\n,seal,1,2,30,40\n")
    assert file.problems == ("line 2: names no photo",)


def test_the_settings_know_what_a_column_can_be():
    assert set(get_args(CsvKey)) == set(KEYS)


# --- shared --------------------------------------------------------------------------------------


@given(st.floats(-720, 720), st.floats(1, 50), st.floats(1, 50))
def test_a_turned_box_is_the_box_around_its_corners(degrees, width, height):
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    half = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * (width / 2, height / 2)
    corners = half @ turn.T + (width / 2, height / 2)
    expected = (*corners.min(axis=0), *corners.max(axis=0))
    assert around_turned((0, 0, width, height), degrees) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (64, 48, (64, 48)),
        ("64", " 48 ", (64, 48)),
        (64.0, 48, (64, 48)),
        (0, 48, None),
        (-4, 48, None),
        (64.5, 48, None),
        (None, 48, None),
        ("nan", 48, None),
        (True, 48, None),
        ("", "", None),
    ],
)
def test_sizes(width, height, size):
    assert to_size(width, height) == size


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="a.jpg,;\t\n0123456789xyminmax", max_size=200))
def test_no_table_raises_but_as_an_error_for_people(text):
    with contextlib.suppress(SynthdetError):
        from_csv(text, where="a.csv", is_photo=is_photo)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["label", "points", "shape_type"]), anything))
def test_no_labelme_shape_raises(shape):
    from_labelme({"shapes": [shape], "imagePath": "a.jpg"})
