"""Annotations in the wild: recognised in a line, read alike, or refused with what to do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synthdet.core.formats.cvat import to_cvat
from synthdet.core.formats.labelme import to_labelme
from synthdet.core.formats.table import to_csv
from synthdet.core.formats.voc import to_voc
from synthdet.core.records import Photo, Rejected
from synthdet.errors import SynthdetError
from synthdet.stages import prepare
from synthdet.stages._annotations import Annotations, read_annotations
from synthdet.stages._recognise import recognise
from synthdet.workspace import Workspace, hash_file, read_json, read_records
from tests.builders import (
    SurveyPhoto,
    make_coco_survey,
    make_photos,
    make_yolo_survey,
    quiet_reporter,
    said,
    small_config,
    write_photo,
)
from tests.stages.test_prepare import real_survey

NAMES = ("humpback whale", "calf")


def photos() -> list[SurveyPhoto]:
    return make_photos(num_classes=2, animals=2)


def put(folder: Path, place: str = "") -> list[tuple[str, int, int, Any]]:
    """The photos of a survey in a folder, and what an annotation file says of them."""
    told = []
    for photo in photos():
        write_photo(folder / place / f"{photo.stem}.jpg", photo.picture)
        height, width = photo.picture.shape[:2]
        told.append((f"{photo.stem}.jpg", width, height, photo.boxes))
    return told


def make_voc(folder: Path) -> None:
    for name, width, height, boxes in put(folder, "JPEGImages"):
        path = folder / "Annotations" / f"{name[:-4]}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(to_voc("untitled", width, height, boxes, NAMES))


def make_labelme(folder: Path) -> None:
    for name, width, height, boxes in put(folder):
        fields = to_labelme(f"..\\old\\{name}", width, height, boxes, NAMES)
        (folder / f"{name[:-4]}.json").write_text(json.dumps(fields))


def make_cvat(folder: Path) -> None:
    told = [(f"images/{name}", *rest) for name, *rest in put(folder, "images")]
    (folder / "annotations.xml").write_text(to_cvat(told, NAMES))


def make_csv(folder: Path) -> None:
    (folder / "photos" / "deep").mkdir(parents=True)
    told = [(f"/home/bob/survey/{name}", *rest) for name, *rest in put(folder, "photos/deep")]
    (folder / "boxes.csv").write_text(to_csv(told, NAMES))
    (folder / "weather.csv").write_text("day,wind\n1,2\n")


LAYOUTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "voc": (make_voc, "12 photos with Pascal VOC, 12 annotation files: calf, humpback whale"),
    "labelme": (make_labelme, "12 photos with LabelMe, 12 annotation files: calf, humpback whale"),
    "cvat": (make_cvat, "12 photos with CVAT, 1 annotation file: calf, humpback whale"),
    "csv": (make_csv, "12 photos with CSV, 1 table: calf, humpback whale"),
}


def go(folder: Path, survey: Path, **settings: Any) -> tuple[Workspace, str]:
    config = small_config(survey, {"prepare": {"few_groups": "allow", **settings}})
    workspace = Workspace.make(folder / "run", config)
    reporter = quiet_reporter()
    prepare.run(workspace, config, reporter)
    return workspace, said(reporter)


def marked(workspace: Workspace) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """Names and edges of the boxes of each photo."""
    folder = workspace.stage("prepare").path
    names = read_json(folder / "dataset.json")["classes"]
    return {
        Path(photo.path).stem: [
            (names[box.class_id], tuple(np.round(box.xyxy, 1))) for box in photo.boxes
        ]
        for photo in read_records(folder / "photos.jsonl", Photo)
    }


def reasons(workspace: Workspace) -> dict[str, str]:
    lines = read_records(workspace.stage("prepare").path / "rejected.jsonl", Rejected)
    return {entry.path: entry.reason for entry in lines}


def read(
    survey: Path, labels: Path | None = None, format_: str = "auto", **csv: str
) -> Annotations:
    return read_annotations(recognise(survey, labels, format_, csv or None), unnamed=False)


def refused(survey: Path, labels: Path | None = None, format_: str = "auto", **csv: str) -> str:
    with pytest.raises(SynthdetError) as caught:
        read(survey, labels, format_, **csv)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("format_", LAYOUTS)
def test_every_format_gives_the_same_boxes(tmp_path, format_):
    make, words = LAYOUTS[format_]
    survey = tmp_path / "survey"
    survey.mkdir()
    make(survey)
    before = {path: hash_file(path) for path in survey.rglob("*.*")}
    workspace, heard = go(tmp_path, survey)
    assert words in heard
    assert {path: hash_file(path) for path in survey.rglob("*.*")} == before
    expected = {
        photo.stem: [(NAMES[box.class_id], box.xyxy) for box in photo.boxes] for photo in photos()
    }
    assert marked(workspace) == expected
    assert reasons(workspace) == {}


def test_labels_in_a_folder_of_their_own(tmp_path):
    make_voc(tmp_path / "survey")
    os.rename(tmp_path / "survey" / "Annotations", tmp_path / "labels")
    found = read(tmp_path / "survey" / "JPEGImages", tmp_path / "labels")
    assert len(found.photos) == 12


def test_several_formats_are_a_question_with_its_choices(tmp_path):
    survey = tmp_path / "survey"
    survey.mkdir()
    make_labelme(survey)
    (survey / "cvat.xml").write_text(to_cvat([], NAMES))
    message = refused(survey)
    assert "LabelMe (12 annotation files, like flight0_0000.json)" in message
    assert "CVAT (1 annotation file, like cvat.xml)" in message
    assert "set prepare.format to cvat or labelme" in message
    assert len(read(survey, None, "labelme").photos) == 12


def test_tables_beside_other_annotations_are_only_mentioned(tmp_path):
    survey = make_yolo_survey(tmp_path / "survey")
    (survey / "boxes.csv").write_text("filename,xmin,ymin,xmax,ymax\nflight0_0000.jpg,1,2,30,40\n")
    assert (
        "(1 .csv file not read: prepare.format csv would)"
        in recognise(survey, None, "auto").describe()
    )
    assert [photo.boxes[0].xyxy for photo in read(survey, None, "csv").photos] == [(1, 2, 30, 40)]


def test_no_annotations_at_all(tmp_path):
    put(tmp_path)
    message = refused(tmp_path)
    assert "holds no annotations" in message
    assert "yolo, coco, voc, labelme, cvat, csv" in message
    (tmp_path / "notes.csv").write_text("day,wind\n1,2\n")
    assert "there are 1 .csv files" in refused(tmp_path)
    assert "columns day, wind" in refused(tmp_path, tmp_path / "notes.csv")


def test_a_pattern_names_some_of_the_tables(tmp_path):
    told = put(tmp_path, "images")
    for part, rows in (("north", told[:6]), ("south", told[6:])):
        (tmp_path / part).mkdir()
        (tmp_path / part / "boxes.csv").write_text(to_csv(rows, NAMES))
        (tmp_path / part / "old.csv").write_text(to_csv(rows, NAMES))
    message = refused(tmp_path)
    assert "is annotated twice" in message
    assert "'labels/*_boxes.csv'" in message
    assert len(read(tmp_path, tmp_path / "*" / "boxes.csv").photos) == 12
    assert "does not exist" in refused(tmp_path, tmp_path / "*" / "none.csv")


def test_columns_may_be_named(tmp_path):
    put(tmp_path)
    (tmp_path / "weather.csv").write_text("day,wind\n1,2\n")
    (tmp_path / "a.csv").write_text("Foto,Art,Box\nflight0_0000.jpg,seal,1 2 30 40\n")
    assert "holds no" in refused(tmp_path)
    found = read(tmp_path, None, "auto", **{"file": "Foto", "class": "Art", "xywh": "Box"})
    assert found.names == ("seal",)
    assert found.photos[0].boxes[0].xyxy == (1, 2, 31, 42)


def test_a_column_that_is_named_but_nowhere_is_told(tmp_path):
    put(tmp_path)
    (tmp_path / "a.csv").write_text("Foto,Art\nflight0_0000.jpg,seal\n")
    assert "has no column 'Bild', which prepare.csv names as file" in refused(tmp_path, file="Bild")
    assert "a.csv has the columns Foto, Art" in refused(tmp_path, None, "csv")


def test_captions_are_not_in_the_way_of_other_annotations(tmp_path):
    survey = tmp_path / "survey"
    survey.mkdir()
    make_csv(survey)
    for photo in photos():
        (survey / "photos" / "deep" / f"{photo.stem}.txt").write_text("an aerial photo of a whale")
    assert len(read(survey).photos) == 12
    (survey / "boxes.csv").unlink()
    assert "are not YOLO labels" in refused(survey)


def test_one_bad_file_costs_one_photo(tmp_path):
    survey = tmp_path / "survey"
    make_voc(survey)
    (survey / "Annotations" / "flight0_0000.xml").write_text(
        "<annotation>\n<object>\n</annotation>"
    )
    bad = survey / "Annotations" / "flight0_0001.xml"
    bad.write_text(bad.read_text().replace("<xmin>", "<xmin>x"))
    half = survey / "Annotations" / "flight1_0102.xml"
    half.write_text(half.read_text().replace("<xmin>", "<xmin>x", 1))
    workspace, heard = go(tmp_path, survey)
    assert "1 more cannot be read" in heard
    told = reasons(workspace)
    first = told["JPEGImages/flight0_0000.jpg"]
    assert "flight0_0000.xml cannot be used: line 3: is not readable as XML" in first
    second = told["JPEGImages/flight0_0001.jpg"]
    assert "none of its annotations can be read (flight0_0001.xml: line 4: object xmin" in second
    assert len(marked(workspace)) == 10
    assert len(marked(workspace)["flight1_0102"]) == 1


def test_only_bad_files_are_told(tmp_path):
    put(tmp_path)
    (tmp_path / "boxes.json").write_text('{"images": [\n}')
    assert "boxes.json is not readable as JSON: line 2" in refused(tmp_path)
    (tmp_path / "boxes.json").write_text('{"images": ' + "9" * 5000 + "}")
    assert "boxes.json is not readable as JSON" in refused(tmp_path)
    (tmp_path / "boxes.json").unlink()
    (tmp_path / "a.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><annotations>&b;</annotations>')
    assert "a.xml line 1: has a DOCTYPE" in refused(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16", "cp1252", "utf-8-sig"])
def test_tables_as_windows_writes_them(tmp_path, encoding):
    put(tmp_path)
    rows = "filename;class;xmin;ymin;xmax;ymax\r\nflight0_0000.jpg;männlich;1,5;2;30;40\r\n"
    (tmp_path / "boxes.csv").write_bytes(rows.encode(encoding))
    found = read(tmp_path)
    assert found.names == ("männlich",)
    assert found.photos[0].boxes[0].xyxy == (1.5, 2, 30, 40)


def test_names_that_leave_the_folder_open_nothing(tmp_path):
    survey = tmp_path / "survey"
    told = put(survey)
    write_photo(tmp_path / "secret.jpg", photos()[0].picture)
    rows = [
        (f"/other/{told[0][0]}", *told[3][1:]),
        (str(survey / told[0][0]), *told[0][1:]),
        (f"../elsewhere/{told[1][0]}", *told[1][1:]),
        (f"C:\\data\\{told[2][0]}", *told[2][1:]),
        ("../secret.jpg", *told[3][1:]),
        (str(tmp_path / "secret.jpg"), *told[3][1:]),
    ]
    (survey / "boxes.csv").write_text(to_csv(rows, NAMES))
    found = read(survey)
    assert [photo.path for photo in found.photos] == [name for name, *_rest in told[:3]]
    assert [box.xyxy for box in found.photos[0].boxes] == [box.xyxy for box in told[0][3]]
    assert len(found.rejected) == 3
    assert all("leaves the photos' folder" in entry.reason for entry in found.rejected)


def test_photos_may_be_named_without_their_suffix(tmp_path):
    told = put(tmp_path)
    (tmp_path / "boxes.csv").write_text(to_csv([(n[:-4], *rest) for n, *rest in told], NAMES))
    assert len(read(tmp_path).photos) == 12


def test_capitals_do_not_matter_where_only_one_photo_fits(tmp_path):
    told = put(tmp_path, "images")
    write_photo(tmp_path / "images" / "FLIGHT0_0000.jpg", photos()[0].picture)
    rows = [(n.replace("flight", "Flight").replace(".jpg", ".JPG"), *rest) for n, *rest in told]
    (tmp_path / "boxes.csv").write_text(to_csv([told[0], *rows], NAMES))
    found = read(tmp_path)
    assert len(found.photos) == 12
    assert [entry.reason.split(" (")[0] for entry in found.rejected] == ["fits several photos"]


def test_splits_that_cvat_knows(tmp_path):
    told = put(tmp_path)
    text = to_cvat(told, NAMES).replace('<image id="3"', '<image subset="Test" id="3"')
    (tmp_path / "a.xml").write_text(text)
    assert [photo.split for photo in read(tmp_path).photos] == [None] * 3 + ["test"] + [None] * 8


def test_boxes_of_whole_photos_are_flagged(tmp_path):
    survey = make_yolo_survey(tmp_path / "survey")
    (survey / "train" / "labels" / "flight0_0000.txt").write_text("0 .5 .5 1 1\n")
    _workspace, heard = go(tmp_path, survey)
    assert "1 box(es) mark nearly a whole photo" in heard
    assert "flight0_0000.jpg" in heard


def test_a_photo_whose_boxes_all_lie_outside_is_not_empty(tmp_path):
    survey = make_yolo_survey(tmp_path / "survey")
    (survey / "train" / "labels" / "flight0_0000.txt").write_text("0 1.5 .5 .1 .1\n")
    workspace, _heard = go(tmp_path, survey)
    assert "flight0_0000" not in marked(workspace)
    assert reasons(workspace)["train/images/flight0_0000.jpg"] == "none of its boxes can be used"


@pytest.mark.parametrize(
    "text",
    [
        "path: /nowhere/at/all\ntrain: C:\\x\nval: ../../valid\nnames: [humpback whale]\n",
        "train: images\nvalid: images\nnc: 7\nnames:\n  0: humpback whale\n",
        "names: humpback whale\n",
    ],
)
def test_a_data_yaml_may_be_wrong_about_all_but_the_names(tmp_path, text):
    survey = make_yolo_survey(tmp_path / "survey")
    (survey / "data.yaml").write_text(text)
    found = read(survey)
    assert found.names == ("humpback whale",)
    assert len(found.photos) == 12


def test_pose_labels_are_not_taken_for_polygons(tmp_path):
    survey = make_yolo_survey(tmp_path / "survey")
    (survey / "data.yaml").write_text("names: [humpback whale]\nkpt_shape: [2, 3]\n")
    assert "data.yaml is of pose labels" in refused(survey)


def test_a_name_file_that_cannot_be_read_is_not_the_end(tmp_path):
    survey = make_yolo_survey(tmp_path / "survey")
    (survey / "data.yaml").write_text("names: [a\n")
    assert "classes.txt" in refused(survey)
    (survey / "classes.txt").write_text("whale\n")
    assert read(survey).names == ("whale",)


def test_coco_with_segmentations_only(tmp_path):
    survey = make_coco_survey(tmp_path / "survey", by_split=False)
    path = survey / "annotations.json"
    fields = json.loads(path.read_text())
    expected = {photo.path: photo.boxes for photo in read(survey).photos}
    for annotation in fields["annotations"]:
        x, y, w, h = annotation.pop("bbox")
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    path.write_text(json.dumps(fields))
    assert {photo.path: photo.boxes for photo in read(survey).photos} == expected


@pytest.mark.parametrize(
    "places", [("data", "labels"), ("photos", "ann"), ("site/img", "site/xml")]
)
def test_folders_by_other_names(tmp_path, places):
    for name, width, height, boxes in put(tmp_path, places[0]):
        path = tmp_path / places[1] / f"{name[:-4]}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(to_voc("renamed.jpg", width, height, boxes, NAMES))
    assert len(read(tmp_path).photos) == 12


def test_annotations_of_other_photos_are_told(tmp_path):
    told = put(tmp_path)
    (tmp_path / "a.xml").write_text(to_cvat([(f"x{n}", *rest) for n, *rest in told], NAMES))
    message = refused(tmp_path)
    assert "none of what is annotated there is a usable photo" in message
    assert "xflight0_0000.jpg is not in the photos' folder" in message


def test_a_class_without_boxes_is_told(tmp_path):
    survey = make_yolo_survey(tmp_path / "survey", names=("seals",))
    (survey / "data.yaml").write_text("names: [seals, seal]\n")
    _workspace, heard = go(tmp_path, survey)
    assert "no box has the class 'seal': drop what means nothing" in heard


def test_a_name_file_that_is_a_bomb_is_passed_over(tmp_path):
    survey = make_yolo_survey(tmp_path / "survey")
    lines = [
        "a0: &a0 [x]",
        *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)),
    ]
    (survey / "data.yaml").write_text("\n".join([*lines, "names: *a29\n"]))
    assert "no class names" in refused(survey)


@pytest.mark.real_data
def test_the_tables_of_harbor_seals_say_what_its_coco_says():
    survey = real_survey("harbor_seals")
    coco = read(survey)
    tables = read(survey, survey / "*" / "annotations_final.csv")
    assert tables.names == coco.names == ("adult", "other")
    assert [(photo.path, photo.boxes) for photo in tables.photos] == [
        (photo.path, photo.boxes) for photo in coco.photos
    ]
    named = read(survey, survey / "*" / "*_anno.csv")  # with a column `image` that is no photo
    assert sum(len(photo.boxes) for photo in named.photos) == 2697
    message = refused(survey, None, "csv")
    assert "is annotated twice" in message
    assert "annotations_final_no.csv" in message


@pytest.mark.real_data
def test_the_polygons_and_empty_labels_of_glacier_seals_are_told():
    found = read(real_survey("glacier_seals"))
    assert any("polygons or turned boxes" in note for note in found.notes)
    assert "9 photos annotated as holding no animal" in found.notes
    assert all(photo.problems == () for photo in found.photos)


@pytest.mark.real_data
def test_the_boxes_of_whole_photos_in_river_person_messy_are_flagged(tmp_path):
    survey = real_survey("river_person_messy")
    _workspace, heard = go(tmp_path, survey, classes={"*": "person"})
    assert re.search(r"\d\d box\(es\) mark nearly a whole photo", heard)
