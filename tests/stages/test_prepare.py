"""The prepare stage: what surveys look like in the wild, and what is made of them."""

from __future__ import annotations

import json
import os
import shutil
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from synthdet import pipeline
from synthdet.config import Config
from synthdet.core.records import SPLITS, Photo, Rejected, Tile
from synthdet.errors import SynthdetError
from synthdet.stages import _exif, _photos, _survey, _tiles, prepare
from synthdet.workspace import Workspace, hash_file, read_json, read_records
from tests.builders import (
    PHOTO_WH,
    make_coco_survey,
    make_photos,
    make_prepared_run,
    make_yolo_survey,
    quiet_reporter,
    said,
    small_config,
    write_photo,
)


def start(folder: Path, photos: Path, **settings: Any) -> tuple[Workspace, Config]:
    config = small_config(photos, {"prepare": settings})
    return Workspace.make(folder / "run", config), config


def go(folder: Path, photos: Path, **settings: Any) -> tuple[Workspace, str]:
    """Prepare a survey; the run folder, and all that was said."""
    workspace, config = start(folder, photos, **settings)
    reporter = quiet_reporter()
    prepare.run(workspace, config, reporter)
    return workspace, said(reporter)


def refused(folder: Path, photos: Path, **settings: Any) -> str:
    """The error that a survey gets; it is one line."""
    with pytest.raises(SynthdetError) as caught:
        go(folder, photos, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def photos_of(workspace: Workspace) -> list[Photo]:
    return read_records(workspace.stage("prepare").path / "photos.jsonl", Photo)


def tiles_of(workspace: Workspace) -> list[Tile]:
    return read_records(workspace.stage("prepare").path / "tiles.jsonl", Tile)


def rejected_of(workspace: Workspace) -> list[Rejected]:
    return read_records(workspace.stage("prepare").path / "rejected.jsonl", Rejected)


def dataset_of(workspace: Workspace) -> dict[str, Any]:
    return read_json(workspace.stage("prepare").path / "dataset.json")


def contents(workspace: Workspace) -> dict[str, str]:
    """Hash of every file of the stage but its lock."""
    folder = workspace.stage("prepare").path
    return {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "stage.json"
    }


def boxes_by_name(workspace: Workspace) -> dict[str, list[tuple[float, ...]]]:
    return {
        Path(photo.path).stem: [tuple(np.round(box.xyxy, 1)) for box in photo.boxes]
        for photo in photos_of(workspace)
    }


# --- whole, twice, killed, changed ---------------------------------------------------------------


def test_the_whole_stage(tmp_path):
    workspace = make_prepared_run(tmp_path)
    photos, tiles = photos_of(workspace), tiles_of(workspace)
    assert len(photos) == 12
    assert len({photo.image_id for photo in photos}) == 12
    for photo in photos:
        assert hash_file(tmp_path / "photos" / photo.path) == photo.sha256
        assert (photo.width, photo.height) == PHOTO_WH
    groups = {(photo.group, photo.split) for photo in photos}
    assert len(groups) == len({group for group, _split in groups}) == 6
    assert {tile.split for tile in tiles} == set(SPLITS)
    assert any(not tile.boxes for tile in tiles)
    for tile in tiles:
        path = workspace.root / tile.path
        assert hash_file(path) == tile.sha256
        picture = cv2.imread(str(path))
        assert picture.shape == (48, 48, 3)
        for box in tile.boxes:
            x1, y1, x2, y2 = box.xyxy
            centre = picture[int((y1 + y2) / 2), int((x1 + x2) / 2)]
            assert centre.min() > 180  # the animals are bright, the sea is not
        if not tile.boxes:
            assert picture.mean() < 120
    assert dataset_of(workspace)["split"] == "given"
    assert workspace.stage("prepare").output()


def test_every_animal_of_val_and_test_is_in_one_tile(tmp_path):
    workspace = make_prepared_run(tmp_path, num_photos=40, num_groups=10, animals=2)
    without = dataset_of(workspace)["animals_without_tile"]
    for split in ("val", "test"):
        photos = [photo for photo in photos_of(workspace) if photo.split == split]
        shown = sum(len(tile.boxes) for tile in tiles_of(workspace) if tile.split == split)
        assert shown + sum(without[split].values()) == sum(len(photo.boxes) for photo in photos)


def test_further_train_tiles_differ_in_size_and_say_so(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos", num_photos=40, num_groups=10, size_wh=(168, 126))
    workspace, _said = go(tmp_path, photos, views=3, resolution=32)
    low, high = dataset_of(workspace)["animal_sizes"]
    side = dataset_of(workspace)["crop_side"]
    sides = {}
    for tile in tiles_of(workspace):
        x1, _y1, x2, _y2 = tile.xyxy
        sides.setdefault(tile.split, set()).add(int(x2 - x1))
        assert tile.scale == 32 / (x2 - x1)
        for box in tile.boxes:
            longer = max(box.xyxy[2] - box.xyxy[0], box.xyxy[3] - box.xyxy[1])
            if x2 - x1 != side:
                assert low * 32 / side - 0.01 <= longer <= high * 32 / side + 0.01
    assert sides["val"] == sides["test"] == {side}
    assert len(sides["train"]) > 3
    plain, _said = go(tmp_path / "plain", photos, views=3, resolution=32, zoom=1)
    assert {tile.scale for tile in tiles_of(plain)} == {32 / side}


def test_captions_say_what_is_there(tmp_path):
    workspace = make_prepared_run(
        tmp_path, sections={"prepare": {"background_caption": "calm sea"}}
    )
    captions = {len(tile.boxes): tile.caption for tile in tiles_of(workspace)}
    assert captions[1] == "aerial photo of one humpback whale"
    assert captions[0] == "aerial photo of calm sea"


def test_twice_reads_no_photo(tmp_path, monkeypatch):
    workspace = make_prepared_run(tmp_path)
    before = contents(workspace)

    def never(*_arguments: object) -> None:
        raise AssertionError("a photo was decoded")

    monkeypatch.setattr(_photos, "_opened", never)
    reporter = quiet_reporter()
    prepare.run(workspace, workspace.read_config(), reporter)
    assert contents(workspace) == before
    assert "12 photos" in said(reporter)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(prepare, "hash_file", counted)
    return read


def test_a_start_reads_only_what_changed(tmp_path, monkeypatch):
    photos = make_yolo_survey(tmp_path / "photos")
    monkeypatch.setattr(prepare, "_RACY_NS", 0)
    workspace, _said = go(tmp_path, photos)
    read = count_reads(monkeypatch)
    prepare_again(workspace)
    assert read == []
    changed = photos / "train" / "labels" / "flight0_0000.txt"
    before = changed.stat()
    changed.write_text(changed.read_text().replace("0 ", "0  ", 1)[: before.st_size])
    os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))  # as some tools do
    assert "photos changed" in prepare_again(workspace)
    assert read == [changed.name]
    os.utime(photos / "train" / "images" / "flight0_0000.jpg")
    prepare_again(workspace)
    assert read == [changed.name, "flight0_0000.jpg"]
    (workspace.root / ".photo-hashes.json").write_text("{")
    prepare_again(workspace)
    assert len(read) == 2 + 12 + 12 + 1 + 3  # photos, labels, data.yaml, metadata.jsonl


def test_a_file_changed_a_moment_ago_is_read_again(tmp_path, monkeypatch):
    photos = make_yolo_survey(tmp_path / "photos")
    workspace, _said = go(tmp_path, photos)
    read = count_reads(monkeypatch)
    prepare_again(workspace)
    assert len(read) == 28


def test_verify_reads_the_photos_too(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_RACY_NS", 0)
    workspace = make_prepared_run(tmp_path)
    assert pipeline.verify(workspace) == []
    memory = workspace.root / ".photo-hashes.json"
    photo = tmp_path / "photos" / photos_of(workspace)[0].path
    photo.write_bytes(photo.read_bytes() + b" ")
    assert pipeline.verify(workspace) == [f"{photo} is not the photo that was prepared"]
    assert not memory.exists()
    shutil.rmtree(tmp_path / "photos")
    assert pipeline.verify(workspace) == []


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


@pytest.mark.parametrize("at", [1, 2, 3, 5, 11])
def test_killed_and_resumed_gives_the_same_bytes(tmp_path, monkeypatch, at):
    whole = make_prepared_run(tmp_path / "whole", num_photos=40, num_groups=8)
    photos = tmp_path / "whole" / "photos"
    workspace, config = start(tmp_path, photos)
    writes = iter(range(1, 1000))

    def failing(work: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **named: Any) -> Any:
            if next(writes) == at:
                raise Killed
            return work(*arguments, **named)

        return write

    with monkeypatch.context() as patch:
        for module, name in (
            (_survey, "write_records"),
            (_survey, "write_json"),
            (_tiles, "append_records"),
            (_tiles, "write_bytes"),
        ):
            patch.setattr(module, name, failing(getattr(module, name)))
        with pytest.raises(Killed):
            prepare.run(workspace, config, quiet_reporter())
    leftover = workspace.stage("prepare").path / "tiles" / ".tmp-1-half.png"
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.write_bytes(b"half")
    prepare.run(workspace, config, quiet_reporter())
    expected = contents(whole)
    assert contents(workspace) == expected


def test_lost_tiles_are_made_again_with_the_same_bytes(tmp_path):
    workspace = make_prepared_run(tmp_path)
    before = contents(workspace)
    for tile in tiles_of(workspace)[::3]:
        (workspace.root / tile.path).unlink()
    prepare.run(workspace, workspace.read_config(), quiet_reporter())
    assert contents(workspace) == before


def test_threads_do_not_change_a_byte(tmp_path):
    one = make_prepared_run(tmp_path / "one")
    workspace, _said = go(tmp_path, tmp_path / "one" / "photos", workers=3)
    assert contents(workspace) == contents(one)


def test_a_changed_setting_is_refused_and_redo_keeps_the_old(tmp_path):
    workspace = make_prepared_run(tmp_path)
    config = small_config(tmp_path / "photos", {"prepare": {"views": 3}})
    with pytest.raises(SynthdetError, match=r"prepare\.views was 2 and is now 3"):
        prepare.run(workspace, config, quiet_reporter())
    prepare.run(workspace, config, quiet_reporter(), redo=True)
    assert (workspace.root / "1-prepare.old-1" / "tiles.jsonl").exists()


def add_photos(photos: Path, *, split: str = "train", start: int = 50, number: int = 6) -> None:
    """More photos of a survey by `make_yolo_survey`, each of a flight of its own."""
    for count, photo in enumerate(make_photos(seed=9, num_photos=number)):
        place, stem = photos / split, f"new{count}x_{start + 100 * count:04d}"
        write_photo(place / "images" / f"{stem}.jpg", photo.picture)
        (place / "labels" / f"{stem}.txt").write_text("0 0.5 0.5 0.2 0.2\n")


def places(workspace: Workspace) -> dict[str, tuple[str, str, str]]:
    return {
        photo.path: (photo.image_id, photo.group, photo.split) for photo in photos_of(workspace)
    }


def prepare_again(workspace: Workspace, *, redo: bool = False, **settings: Any) -> str:
    config = small_config(workspace.read_config().prepare.photos or Path(), {"prepare": settings})
    reporter = quiet_reporter()
    prepare.run(workspace, config, reporter, redo=redo)
    return said(reporter)


@pytest.mark.parametrize("split", ["auto", "new"])
def test_added_photos_join_and_move_none(tmp_path, split):
    workspace = make_prepared_run(
        tmp_path, num_photos=24, num_groups=8, sections={"prepare": {"split": split}}
    )
    before, tiles = places(workspace), {tile.tile_id: tile.sha256 for tile in tiles_of(workspace)}
    add_photos(tmp_path / "photos")
    words = prepare_again(workspace, split=split)
    assert "photos changed: the old folder is kept as 1-prepare.old-1" in words
    after = places(workspace)
    assert len(after) == 30
    assert {path: after[path] for path in before} == before
    if split == "new":
        assert "24 photos stay in the splits they were in, 6 new ones join" in words
        assert dataset_of(workspace)["split"] == "kept"
        assert {after[path][2] for path in after.keys() - before.keys()} != {"train"}
    new = {tile.tile_id: tile.sha256 for tile in tiles_of(workspace)}
    animals = [tile_id for tile_id in tiles if tile_id in new]
    assert len(animals) > 0.7 * len(tiles)  # backgrounds are drawn anew from more photos
    assert all(new[tile_id] == tiles[tile_id] for tile_id in animals)


def test_a_photo_that_comes_back_stands_where_it_stood(tmp_path):
    workspace = make_prepared_run(
        tmp_path, num_photos=24, num_groups=8, sections={"prepare": {"split": "new"}}
    )
    before = places(workspace)
    away = next(path for path, (_id, _group, split) in before.items() if split == "train")
    photo = tmp_path / "photos" / away
    label = photo.parent.parent / "labels" / f"{photo.stem}.txt"
    kept = photo.read_bytes(), label.read_text()
    photo.unlink()
    label.unlink()
    prepare_again(workspace, split="new")
    assert away not in places(workspace)
    add_photos(tmp_path / "photos", number=2)
    photo.with_name("renamed.jpg").write_bytes(kept[0])
    label.with_name("renamed.txt").write_text(kept[1])
    prepare_again(workspace, split="new")
    after = places(workspace)
    assert (
        after[photo.with_name("renamed.jpg").relative_to(tmp_path / "photos").as_posix()][1:]
        == (before[away][1:])
    )
    assert all(after[path] == before[path] for path in before if path != away)


def test_redo_keeps_the_splits_unless_others_are_asked_for(tmp_path):
    workspace = make_prepared_run(
        tmp_path, num_photos=40, num_groups=10, sections={"prepare": {"split": "new"}}
    )
    before = places(workspace)
    words = prepare_again(workspace, redo=True, split="new", views=1)
    assert places(workspace) == before
    assert "40 photos stay in the splits they were in" in words
    words = prepare_again(workspace, redo=True, split="new", seed=3)
    assert "prepare.seed was 0 and is now 3: the splits are made afresh" in words
    assert places(workspace) != before
    assert dataset_of(workspace)["split"] == "new"


def test_a_raised_limit_keeps_the_photos_that_were_used(tmp_path):
    sections = {"prepare": {"split": "new", "max_train_photos": 3}}
    workspace = make_prepared_run(tmp_path, num_photos=24, num_groups=8, sections=sections)
    few = {path for path, (_id, _group, split) in places(workspace).items() if split == "train"}
    prepare_again(workspace, redo=True, split="new", max_train_photos=6)
    more = {path for path, (_id, _group, split) in places(workspace).items() if split == "train"}
    assert (len(few), len(more)) == (3, 6)
    assert few < more
    prepare_again(workspace, redo=True, split="new", max_train_photos=2)
    assert sum(split == "train" for _id, _group, split in places(workspace).values()) == 2


def test_names_stay_when_a_photo_of_the_same_name_is_added(tmp_path):
    workspace = make_prepared_run(tmp_path, sections={"prepare": {"split": "new"}})
    before = places(workspace)
    place = tmp_path / "photos" / "reef"
    write_photo(place / "images" / "FLIGHT0_0000.jpg", make_photos(seed=5)[0].picture)
    (place / "labels").mkdir()
    (place / "labels" / "FLIGHT0_0000.txt").write_text("")
    prepare_again(workspace, split="new")
    after = places(workspace)
    assert {path: after[path] for path in before} == before
    assert len({name.lower() for name, _group, _split in after.values()}) == 13


def test_an_added_copy_of_a_test_photo_stays_out_of_train(tmp_path):
    workspace = make_prepared_run(
        tmp_path, num_photos=24, num_groups=8, sections={"prepare": {"split": "new"}}
    )
    before = places(workspace)
    original = next(path for path, (_id, _group, split) in before.items() if split == "test")
    picture = cv2.imread(str(tmp_path / "photos" / original))[::-1, ::-1, ::-1]
    images = tmp_path / "photos" / "train" / "images"
    write_photo(images / "zzz.jpg", np.ascontiguousarray(picture))
    (images.parent / "labels" / "zzz.txt").write_text("")
    prepare_again(workspace, split="new")
    after = places(workspace)
    assert after["train/images/zzz.jpg"][1:] == before[original][1:]


def test_killed_while_photos_are_added_gives_the_same_bytes(tmp_path, monkeypatch):
    workspace = make_prepared_run(tmp_path, num_photos=24, num_groups=8)
    add_photos(tmp_path / "photos", split="test")
    shutil.copytree(workspace.root, tmp_path / "other")
    prepare_again(workspace)
    other = Workspace(tmp_path / "other")

    def killed(*_arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(_survey, "write_json", killed)
        with pytest.raises(Killed):
            prepare_again(other)
    prepare_again(other)
    assert contents(other) == contents(workspace)


def test_an_error_before_anything_is_made_leaves_settings_free(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    workspace, config = start(tmp_path, photos, caption="{nothing}")
    with pytest.raises(SynthdetError, match="nothing"):
        prepare.run(workspace, config, quiet_reporter())
    prepare.run(workspace, small_config(photos), quiet_reporter())
    assert tiles_of(workspace)


def test_a_finished_stage_does_not_need_the_photos(tmp_path):
    workspace = make_prepared_run(tmp_path)
    shutil.rmtree(tmp_path / "photos")
    reporter = quiet_reporter()
    prepare.run(workspace, workspace.read_config(), reporter)
    assert "is not there: going on" in said(reporter)


def test_nothing_of_the_users_is_touched(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    (photos / "train" / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    (photos / "train" / "labels" / "broken.txt").write_text("")

    def state() -> list[tuple[str, int, str]]:
        return [
            (str(path), path.stat().st_mtime_ns, hash_file(path))
            for path in sorted(photos.rglob("*"))
            if path.is_file()
        ]

    before = state()
    go(tmp_path, photos)
    assert state() == before


# --- formats -------------------------------------------------------------------------------------


def test_all_layouts_give_the_same_boxes(tmp_path):
    expected = boxes_by_name(make_prepared_run(tmp_path / "a"))
    layouts = {
        "flat yolo": make_yolo_survey(tmp_path / "flat", by_split=False),
        "coco by split": make_coco_survey(tmp_path / "coco", by_split=True),
        "one coco file": make_coco_survey(tmp_path / "one", by_split=False),
    }
    beside = tmp_path / "beside"
    beside.mkdir()
    for path in layouts["flat yolo"].rglob("*.*"):
        if path.name != "data.yaml":
            shutil.copy(path, beside / path.name)
    (beside / "classes.txt").write_text("humpback whale\r\n")
    layouts["labels beside photos"] = beside
    instances = tmp_path / "instances"
    shutil.copytree(layouts["one coco file"], instances)
    (instances / "annotations").mkdir()
    os.rename(instances / "annotations.json", instances / "annotations" / "instances_default.json")
    (instances / "annotations" / "captions_default.json").write_text(
        json.dumps({"images": [], "annotations": [], "categories": []})
    )
    layouts["instances"] = instances
    for name, photos in layouts.items():
        workspace, words = go(tmp_path / f"run {name}", photos, few_groups="allow", split="new")
        assert boxes_by_name(workspace) == expected, name
        assert "humpback whale" in words


def test_labels_elsewhere(tmp_path):
    expected = boxes_by_name(make_prepared_run(tmp_path / "a"))
    photos = make_yolo_survey(tmp_path / "photos")
    labels = tmp_path / "labels"
    for folder in ("train", "valid", "test"):
        shutil.move(photos / folder / "labels", labels / folder)
    shutil.move(photos / "data.yaml", labels / "data.yaml")
    workspace, _said = go(tmp_path, photos, labels=str(labels))
    assert boxes_by_name(workspace) == expected


def test_labels_of_another_split_are_not_taken(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    label = next((photos / "train" / "labels").iterdir())
    shutil.move(label, photos / "valid" / "labels" / label.name)
    assert "1 of 12 photos have no annotation file" in refused(tmp_path, photos)


def test_polygons_and_dict_names(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    (photos / "data.yaml").write_text("path: /nowhere\nnames: {0: seal, 1: pup}\n")
    label = photos / "train" / "labels" / "flight0_0000.txt"
    label.write_text("1 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n")
    workspace, _said = go(tmp_path, photos)
    (photo,) = (one for one in photos_of(workspace) if one.image_id == "flight0_0000")
    assert photo.boxes[0].xyxy == (28, 21, 84, 63)
    assert photo.boxes[0].class_id == 1
    assert dataset_of(workspace)["classes"] == ["seal", "pup"]


def test_classes_are_merged_and_dropped(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos", names=("adult", "pup"), animals=2)
    workspace, _said = go(tmp_path, photos, classes={"adult": "seal", "pup": None})
    assert dataset_of(workspace)["classes"] == ["seal"]
    assert {box.class_id for photo in photos_of(workspace) for box in photo.boxes} == {0}


def turned(folder: Path, orientation: int) -> Path:
    """A COCO survey whose photos are stored turned, with EXIF that puts them right."""
    undo = {6: cv2.ROTATE_90_COUNTERCLOCKWISE, 3: cv2.ROTATE_180, 8: cv2.ROTATE_90_CLOCKWISE}
    for path in folder.rglob("*.jpg"):
        stored = cv2.rotate(cv2.imread(str(path)), undo[orientation])
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(stored[:, :, ::-1]).save(path, quality=95, exif=exif)
    return folder


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("make", [make_yolo_survey, make_coco_survey])
def test_exif_turns_photos_and_leaves_upright_boxes(tmp_path, orientation, make):
    expected = boxes_by_name(go(tmp_path / "a", make(tmp_path / "photos"))[0])
    photos = turned(make(tmp_path / "turned"), orientation)
    workspace, _said = go(tmp_path, photos)
    assert boxes_by_name(workspace) == expected
    for tile in tiles_of(workspace):
        picture = cv2.imread(str(workspace.root / tile.path))
        for box in tile.boxes:
            x, y = (box.xyxy[0] + box.xyxy[2]) / 2, (box.xyxy[1] + box.xyxy[3]) / 2
            assert picture[int(y), int(x)].min() > 180


def test_coco_boxes_of_the_stored_photo_are_turned_with_it(tmp_path):
    expected = boxes_by_name(go(tmp_path / "a", make_coco_survey(tmp_path / "photos"))[0])
    photos = turned(make_coco_survey(tmp_path / "turned"), 6)
    width, height = PHOTO_WH
    for path in photos.rglob("*.json"):
        fields = json.loads(path.read_text())
        for image in fields["images"]:
            image["width"], image["height"] = height, width
        for annotation in fields["annotations"]:
            x, y, w, h = annotation["bbox"]
            annotation["bbox"] = [y, width - x - w, h, w]
        path.write_text(json.dumps(fields))
    workspace, _said = go(tmp_path, photos)
    assert boxes_by_name(workspace) == expected


@pytest.mark.parametrize("kind", ["grey", "palette", "alpha", "cmyk", "16 bit", "webp named jpg"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, kind):
    path = tmp_path / "a.tif"
    rgb = Image.fromarray(np.full((21, 33, 3), (200, 100, 40), np.uint8))
    if kind == "16 bit":
        Image.fromarray(np.full((21, 33), 100 * 257, np.uint16)).save(path)
    elif kind == "webp named jpg":
        path = tmp_path / "a.jpg"
        rgb.save(path, format="WEBP", lossless=True)
    else:
        rgb.convert({"grey": "L", "palette": "P", "alpha": "RGBA", "cmyk": "CMYK"}[kind]).save(path)
    picture = _photos.read_upright(path)
    assert picture.shape == (21, 33, 3)
    assert picture.dtype == np.uint8
    expected = {"16 bit": (100, 100, 100), "grey": (123, 123, 123)}.get(kind, (200, 100, 40))
    assert abs(picture[10, 10].astype(int) - expected).max() <= 12


def patterned(mode: str, size_wh: tuple[int, int] = (91, 62)) -> Image.Image:
    """A picture of any mode in which every place looks different."""
    rng = np.random.default_rng(1)
    small = Image.fromarray(rng.integers(20, 235, (9, 12, 3), dtype=np.uint8))
    image = small.resize(size_wh, Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(size_wh))
    return image.convert(mode)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        *[(mode, "jpg") for mode in ("RGB", "L", "CMYK")],
        *[(mode, "png") for mode in ("RGB", "RGBA", "P", "I;16")],
        *[("RGB", "tif"), ("CMYK", "tif"), ("RGB", "webp")],
    ],
)
def test_crops_are_those_of_the_whole_photo(tmp_path, monkeypatch, mode, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    patterned(mode).save(path, exif=exif)
    crops = [(3, 5, 33, 35), (0, 0, 62, 62), (50, 40, 80, 70), (0, 0, 100, 100)]
    whole = _photos.read_upright(path)
    expected = [_photos.cut(whole, crop, 24) for crop in crops]
    for large_file in (_photos._LARGE_FILE, 0):
        monkeypatch.setattr(_photos, "_LARGE_FILE", large_file)
        for picture, own in zip(_photos.read_crops(path, crops, 24), expected, strict=True):
            assert np.array_equal(picture, own)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "jpg"), ("RGB", "png"), ("L", "tif")])
def test_a_large_frame_is_seen_as_a_small_one_is(tmp_path, monkeypatch, mode, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    image = patterned(mode, (1203, 811))
    image.paste(0, (0, 0, 1203, 160))
    image.save(path, exif=exif)
    small = _photos.inspect(path)
    monkeypatch.setattr(_photos, "_LARGE_PIXELS", 100_000)
    monkeypatch.setattr(_photos, "_LOOKED_AT", 60_000)
    large = _photos.inspect(path)
    for name in ("width", "height", "orientation", "stored_wh", "reason"):
        assert getattr(large, name) == getattr(small, name)
    apart = np.abs(large.thumb.astype(int) - small.thumb)
    assert apart.mean() < 1
    assert apart.max() <= 12  # at the black edge
    areas = [sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in one.blank) for one in (large, small)]
    assert areas[0] == pytest.approx(areas[1], rel=0.1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert "cannot be decoded whole" in str(_photos.inspect(path).reason)


def test_only_so_many_pixels_are_decoded_at_a_time():
    room, held, most = _photos.Room(100), [], []
    lock = threading.Lock()

    def work(pixels: int) -> int:
        with room.hold(pixels):
            with lock:
                held.append(pixels)
                most.append(sum(held))
            time.sleep(0.002)
            with lock:
                held.remove(pixels)
        return pixels

    wanted = [30, 60, 90, 500, 10, 10, 80, 40] * 4
    assert list(_photos.in_order(work, wanted, 6)) == wanted
    assert max(total for total in most if total != 500) <= 100
    assert max(most) == 500  # alone


# --- groups and splits ---------------------------------------------------------------------------


def renamed(folder: Path, name: Callable[[int], str]) -> Path:
    """A survey without metadata whose photos are called otherwise, in the order of their names."""
    photos = sorted(folder.rglob("*.jpg"), key=lambda path: path.name)
    for number, path in enumerate(photos):
        new = name(number)
        label = path.parent.parent / "labels" / f"{path.stem}.txt"
        os.rename(path, path.with_name(f"{new}.jpg"))
        os.rename(label, label.with_name(f"{new}.txt"))
    return folder


def test_a_leak_in_the_given_splits_is_counted_and_made_clean(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos", groups=False, num_photos=24)
    renamed(photos, lambda number: f"flight_{number // 3:02d}{(number * 5) % 24:03d}_0_640")
    leaking = photos / "valid"
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        (photos / "train" / kind / f"copy.{suffix}").write_bytes(
            (next((leaking / kind).glob(f"*.{suffix}"))).read_bytes()
        )
    workspace, words = go(tmp_path, photos)
    dataset = dataset_of(workspace)
    assert dataset["split"] == "new"
    assert dataset["leaks_in_given_splits"]["groups"] >= 1
    assert "the given splits leak" in words
    splits: dict[str, set[str]] = {}
    for photo in photos_of(workspace):
        splits.setdefault(photo.group, set()).add(photo.split)
    assert all(len(own) == 1 for own in splits.values())
    message = refused(tmp_path / "b", photos, split="given")
    assert "prepare.split is given, but" in message
    assert "more than one split" in message


def test_copies_stay_together_and_test_holds_one_of_each(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos", groups=False, num_photos=36, num_groups=9)
    renamed(photos, lambda number: f"{chr(97 + number // 4) * 3}_jpg.rf.{number:032x}")
    workspace, words = go(tmp_path, photos, split="new")
    originals = Counter(
        (photo.path.partition("_jpg.rf.")[0][-3:], photo.split) for photo in photos_of(workspace)
    )
    assert len(originals) == 9
    assert all(
        number == (4 if split == "train" else 1) for (_name, split), number in originals.items()
    )
    left_out = [entry for entry in rejected_of(workspace) if entry.reason.startswith("left out")]
    assert f"{len(left_out)} left out" in words
    assert len(left_out) + len(photos_of(workspace)) == 36


def test_photos_of_one_name_in_two_splits_are_no_copies_but_equal_bytes_are(tmp_path):
    survey = make_photos(num_photos=24, num_groups=24)
    photos = tmp_path / "photos"
    for number, photo in enumerate(survey):
        place = photos / ("train", "valid", "test")[number // 8]
        path = write_photo(place / "images" / f"{number % 8 + 1}.jpg", photo.picture)
        label = place / "labels" / f"{path.stem}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("0 0.5 0.5 0.1 0.1\n")
    (photos / "classes.txt").write_text("seal\n")
    workspace, _said = go(tmp_path, photos, frames_per_group=1)
    assert len(photos_of(workspace)) == 24
    test = next(photo.path for photo in photos_of(workspace) if photo.split == "test")
    shutil.copy(photos / test, photos / "train" / "images" / "whale.jpg")
    (photos / "train" / "labels" / "whale.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    prepare_again(workspace, frames_per_group=1)
    assert len(photos_of(workspace)) == 24
    assert rejected_of(workspace)[-1].path == "train/images/whale.jpg"
    assert f"a copy of {test}" in rejected_of(workspace)[-1].reason


def test_turned_copies_under_other_names_are_found(tmp_path):
    survey = make_photos(num_photos=12, num_groups=12)
    photos = make_yolo_survey(tmp_path / "photos", photos=survey)
    twin = np.ascontiguousarray(survey[0].picture[::-1, ::-1])
    write_photo(photos / "test" / "images" / "zzz.jpg", twin)
    (photos / "test" / "labels" / "zzz.txt").write_text("")
    workspace, _said = go(tmp_path, photos)
    by_id = {photo.image_id: photo for photo in photos_of(workspace)}
    assert by_id["zzz"].group == by_id["flight0_0000"].group
    assert dataset_of(workspace)["leaks_in_given_splits"]["groups"] == 1


def test_groups_by_pattern(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos", groups=False)
    workspace, _said = go(tmp_path, photos, group_pattern=r"(flight\d)_")
    assert {photo.group for photo in photos_of(workspace)} == {f"flight{n}" for n in range(6)}


def write_exif(path: Path, minute: float, metres: float) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = (
        f"2023:05:01 {10 + int(minute // 60):02d}:{int(minute % 60):02d}:07"
    )
    degrees = 57 + metres / 111_320
    part = (int(degrees), int(degrees % 1 * 60), degrees * 60 % 1 * 60)
    exif.get_ifd(0x8825).update({1: "N", 2: part, 3: "W", 4: (154.0, 30.0, 0.0)})
    with Image.open(path) as image:
        image.save(path, exif=exif, quality=92)


def test_groups_by_time_and_place(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos", groups=False)
    renamed(photos, lambda number: f"DJI_{number + 1:04d}")
    for number, path in enumerate(sorted(photos.rglob("*.jpg"), key=lambda path: path.name)):
        write_exif(path, 120 * (number // 3) + number, 200 * number)
    workspace, _said = go(tmp_path, photos)
    groups = Counter(photo.group for photo in photos_of(workspace))
    assert sorted(groups) == [
        "2023-05-01 10:00:07 DJI_0001",
        "2023-05-01 12:03:07 DJI_0004",
        "2023-05-01 14:06:07 DJI_0007",
        "2023-05-01 16:09:07 DJI_0010",
    ]
    assert set(groups.values()) == {3}
    assert "1 group" in refused(tmp_path / "names", photos, group_by="names")


@pytest.mark.parametrize(
    "gps",
    [
        {},
        {1: "N", 2: (0.0, 0.0, 0.0), 3: "E", 4: (0.0, 0.0, 0.0)},
        {1: "N", 2: (95.0, 0.0, 0.0), 3: "E", 4: (9.0, 0.0, 0.0)},
        {1: "N", 2: (57.0,), 3: "E", 4: (9.0, 0.0, 0.0)},
    ],
)
def test_exif_that_says_nothing_is_nothing(tmp_path, gps):
    path = write_photo(tmp_path / "a.jpg", make_photos()[0].picture)
    assert _exif.read_taken(path) is None
    write_exif(path, 0, 0)
    taken = _exif.read_taken(path)
    assert taken is not None
    assert (taken.latitude, taken.longitude) == (57, -154.5)
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2023:05:01 10:00:00"
    exif.get_ifd(0x8825).update(gps)
    with Image.open(path) as image:
        image.save(path, exif=exif)
    assert _exif.read_taken(path) is None


def test_groups_by_folder(tmp_path):
    survey = make_photos(num_photos=12, num_groups=4)
    photos = tmp_path / "photos"
    for number, photo in enumerate(survey):
        place = photos / f"site {number % 4}"
        write_photo(place / "images" / f"{number:04d}.jpg", photo.picture)
        label = place / "labels" / f"{number:04d}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("0 0.5 0.5 0.1 0.1\n")
    (photos / "classes.txt").write_text("seal\n")
    workspace, _said = go(tmp_path, photos, group_by="folder")
    assert {photo.group for photo in photos_of(workspace)} == {f"site {n}" for n in range(4)}


def test_too_few_groups(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos", groups=False)
    renamed(photos, lambda number: f"frame_{number:04d}")
    message = refused(tmp_path, photos)
    assert "1 group" in message
    assert "prepare.few_groups" in message
    workspace, words = go(tmp_path / "b", photos, few_groups="allow")
    assert {photo.split for photo in photos_of(workspace)} == set(SPLITS)
    assert "split by photo all the same" in words


def test_given_splits_that_are_not_whole(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    shutil.rmtree(photos / "test")
    workspace, words = go(tmp_path, photos)
    assert {photo.split for photo in photos_of(workspace)} == set(SPLITS)
    assert "lack test" in words
    assert "no photos in test" in refused(tmp_path / "b", photos, split="given")


def test_max_train_photos(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    workspace, _said = go(tmp_path, photos, max_train_photos=3)
    count = Counter(photo.split for photo in photos_of(workspace))
    assert count == {"train": 3, "val": 4, "test": 2}
    assert sum("max_train_photos" in entry.reason for entry in rejected_of(workspace)) == 3


def test_captions_from_metadata(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    for path in photos.rglob("metadata.jsonl"):
        lines = [json.loads(line) | {"sea": "calm"} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    workspace, _said = go(tmp_path, photos, caption="{animals} in a {sea} sea")
    assert "one humpback whale in a calm sea" in {tile.caption for tile in tiles_of(workspace)}
    message = refused(tmp_path / "b", photos, caption="{animals} near {island}")
    assert "{island}" in message
    assert "{sea}" in message
    assert "prepare.caption" in refused(tmp_path / "c", photos, caption="{animals")


def test_a_photos_own_caption_is_that_of_its_tiles_with_animals(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    pictures = sorted(photos.rglob("*.jpg"))
    for path in pictures[::2]:
        path.with_suffix(".txt").write_text("a {whale}\nat dawn")  # no label: those lie in labels/
    for path in photos.rglob("metadata.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        told = [line | {"text": "a calf"} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in told))
    workspace, _said = go(tmp_path / "a", photos, background_fraction=0.3)
    with_animals = {tile.caption for tile in tiles_of(workspace) if tile.boxes}
    assert with_animals == {"a {whale} at dawn", "a calf"}
    have_animals = {photo.image_id for photo in photos_of(workspace) if photo.boxes}
    waters = [t for t in tiles_of(workspace) if not t.boxes and t.image_id in have_animals]
    assert {tile.caption for tile in waters} <= {"aerial photo of open water"}
    workspace, _said = go(tmp_path / "b", photos, caption="{animals}: {text}")
    assert "one humpback whale: a calf" in {tile.caption for tile in tiles_of(workspace)}


# --- bad input -----------------------------------------------------------------------------------


def test_no_folder_no_photos_no_annotations(tmp_path):
    assert "is not a folder" in refused(tmp_path / "a", tmp_path / "none")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no photos" in refused(tmp_path / "b", empty)
    bare = tmp_path / "bare"
    write_photo(bare / "a.jpg", make_photos()[0].picture)
    (bare / "a.xml").write_text("<annotation/>")
    message = refused(tmp_path / "c", bare)
    assert str(bare) in message
    assert "1 .xml" in message
    assert "prepare.labels" in message
    assert "does not exist" in refused(tmp_path / "d", bare, labels=str(tmp_path / "nowhere"))


def test_both_formats_are_a_question(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    make_coco_survey(photos)
    message = refused(tmp_path, photos)
    assert "set prepare.format to coco or yolo" in message
    workspace, words = go(tmp_path / "b", photos, format="yolo", unlabelled="ignore")
    assert "YOLO" in words
    assert len(photos_of(workspace)) == 12


def test_captions_beside_photos_are_no_labels(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    for path in photos.rglob("labels/*.txt"):
        path.write_text("an aerial photo of a whale")
    assert "are not YOLO labels" in refused(tmp_path, photos)


def test_a_class_beyond_the_names_is_refused(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    label = photos / "train" / "labels" / "flight0_0000.txt"
    label.write_text("4 0.5 0.5 0.2 0.2\n")
    message = refused(tmp_path, photos)
    assert str(label) in message
    assert "class 4" in message


def test_labels_without_names(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    (photos / "data.yaml").unlink()
    assert "classes.txt" in refused(tmp_path, photos)
    workspace, _said = go(tmp_path / "b", photos, classes={"0": "whale"})
    assert dataset_of(workspace)["classes"] == ["whale"]


def test_unlabelled_and_empty_are_not_the_same(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    (photos / "train" / "labels" / "flight0_0000.txt").unlink()
    message = refused(tmp_path / "a", photos)
    assert "prepare.unlabelled" in message
    assert "flight0_0000" in message
    ignored, _said = go(tmp_path / "b", photos, unlabelled="ignore")
    assert len(photos_of(ignored)) == 11
    negative, _said = go(tmp_path / "c", photos, unlabelled="negative")
    assert len(photos_of(negative)) == 12


def bomb(path: Path) -> None:
    """A PNG of a few bytes that says it is 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def test_broken_photos_are_rejected_with_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as other libraries leave it
    photos = make_yolo_survey(tmp_path / "photos")
    images, labels = photos / "train" / "images", photos / "train" / "labels"
    whole = (images / "flight0_0000.jpg").read_bytes()
    (images / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "zero.jpg").write_bytes(b"")
    (images / "text.jpg").write_bytes(b"this is no picture at all")
    bomb(images / "bomb.png")
    for name in ("truncated", "zero", "text", "bomb"):
        (labels / f"{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    outside = write_photo(tmp_path / "outside.jpg", make_photos()[0].picture)
    (images / "link.jpg").symlink_to(outside)
    (images / "circle.jpg").symlink_to(images / "circle.jpg")
    (photos / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    workspace, words = go(tmp_path, photos)
    reasons = {Path(entry.path).stem: entry.reason for entry in rejected_of(workspace)}
    assert "cannot be decoded whole" in reasons["truncated"]
    assert "empty (0 bytes)" in reasons["zero"]
    assert "not a picture" in reasons["text"]
    assert "decompression bomb" in reasons["bomb"]
    assert "leads out" in reasons["link"]
    assert "leads out" in reasons["circle"]
    assert "link to a folder" in reasons["elsewhere"]
    assert len(photos_of(workspace)) == 12
    assert "7 rejected" in words


def test_coco_names_that_leave_the_folder_are_rejected(tmp_path):
    photos = make_coco_survey(tmp_path / "photos", by_split=False)
    write_photo(tmp_path / "secret.jpg", make_photos()[0].picture)
    path = photos / "annotations.json"
    fields = json.loads(path.read_text())
    names = ["../secret.jpg", str(tmp_path / "secret.jpg"), "gone.jpg"]
    for number, name in enumerate(names):
        fields["images"].append({"id": 900 + number, "file_name": name, "width": 9, "height": 9})
    path.write_text(json.dumps(fields))
    workspace, _said = go(tmp_path, photos, few_groups="allow")
    reasons = {entry.path: entry.reason for entry in rejected_of(workspace)}
    assert "leaves the photos' folder" in reasons[names[0]]
    assert "leaves the photos' folder" in reasons[names[1]]
    assert "is not in the photos' folder" in reasons[names[2]]


def test_boxes_outside_and_bad_lines_are_told(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    label = photos / "train" / "labels" / "flight0_0000.txt"
    label.write_text(
        "0 0.5 0.5 0.2 0.2\n0 1.5 0.5 0.2 0.2\n0 0.5 0.5 0 0\n0 0.95 0.5 0.3 0.2\n0 x\n"
    )
    workspace, words = go(tmp_path, photos)
    (photo,) = (one for one in photos_of(workspace) if one.image_id == "flight0_0000")
    assert len(photo.boxes) == 2
    assert photo.boxes[1].xyxy[2] == PHOTO_WH[0]
    reasons = [entry.reason for entry in rejected_of(workspace)]
    assert len(reasons) == 3
    assert any("line 5" in reason for reason in reasons)
    assert "3 boxes dropped" in words


def test_labels_in_pixels_are_told(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos")
    for path in photos.rglob("labels/*.txt"):
        if path.read_text():
            path.write_text("0 300 200 40 30\n")
    message = refused(tmp_path, photos)
    assert "no usable box" in message
    assert "lies outside the photo" in message


def test_coco_of_another_size_is_told(tmp_path):
    photos = make_coco_survey(tmp_path / "photos")
    for path in photos.rglob("*.json"):
        fields = json.loads(path.read_text())
        for image in fields["images"]:
            image["width"] *= 2
        path.write_text(json.dumps(fields))
    assert "annotated at 224 x 84" in refused(tmp_path, photos)


def test_a_photo_annotated_twice_is_told(tmp_path):
    photos = make_coco_survey(tmp_path / "photos", by_split=False)
    shutil.copy(photos / "annotations.json", photos / "again.json")
    assert "is annotated twice" in refused(tmp_path, photos)


def test_photos_of_one_name_keep_apart(tmp_path):
    survey = make_photos(num_photos=12, num_groups=4)
    photos = tmp_path / "photos"
    for number, photo in enumerate(survey):
        place = photos / f"site{number % 4}"
        write_photo(place / "images" / f"{number // 4}.jpg", photo.picture)
        label = place / "labels" / f"{number // 4}.txt"
        label.parent.mkdir(exist_ok=True)
        label.write_text("0 0.5 0.5 0.1 0.1\n")
    (photos / "classes.txt").write_text("seal\n")
    workspace, _said = go(tmp_path, photos)
    ids = [photo.image_id for photo in photos_of(workspace)]
    assert len(set(ids)) == len(ids) == 12


def test_photos_smaller_than_a_tile_are_filled_up_without_a_second_animal(tmp_path):
    photos = make_yolo_survey(tmp_path / "photos", size_wh=(44, 36))
    workspace, words = go(tmp_path, photos, resolution=96, views=1)
    assert "filled up" in words
    for tile in tiles_of(workspace):
        picture = cv2.imread(str(workspace.root / tile.path))
        assert picture.shape == (96, 96, 3)
        bright = (picture.min(axis=2) > 185).astype(np.uint8)
        number, _labels = cv2.connectedComponents(bright)
        assert number - 1 == len(tile.boxes)


# --- real surveys --------------------------------------------------------------------------------


def real_survey(name: str) -> Path:
    root = Path(__file__).parents[2]
    place = Path(os.environ.get("SYNTHDET_REAL_DATA", root.parent / "shared" / "data")) / name
    if not place.is_dir():
        pytest.skip(f"{place} is not there: set SYNTHDET_REAL_DATA to the folder of real surveys")
    return place


@pytest.mark.real_data
def test_glacier_seals(tmp_path):
    workspace, words = go(
        tmp_path, real_survey("glacier_seals"), resolution=128, animal_fraction=0.25, workers=2
    )
    assert "580 photos (train 240, val 227, test 113) with YOLO" in words
    photos, dataset = photos_of(workspace), dataset_of(workspace)
    assert dataset["leaks_in_given_splits"]["frames"] == 68
    assert dataset["split"] == "new"
    splits: dict[str, set[str]] = {}
    originals: Counter[tuple[str, str]] = Counter()
    frames: dict[tuple[str, ...], set[str]] = {}
    for photo in photos:
        splits.setdefault(photo.group, set()).add(photo.split)
        original = Path(photo.path).name.partition(".rf.")[0]
        originals[original, photo.split] += 1
        if original.startswith("JHI"):
            frames.setdefault(tuple(original.split("_")[:-3]), set()).add(photo.split)
    assert all(len(own) == 1 for own in (*splits.values(), *frames.values()))
    assert len(originals) == 400
    assert set(Counter(originals.values())) == {1, 4}
    assert all(number == 1 for (_name, split), number in originals.items() if split != "train")
    assert sum(dataset["num_empty_photos"].values()) >= 7
    assert all(dataset["num_boxes"][split] > 50 for split in SPLITS)


@pytest.mark.real_data
def test_harbor_seals(tmp_path):
    workspace, words = go(
        tmp_path, real_survey("harbor_seals"), resolution=128, animal_fraction=0.25, workers=2
    )
    assert "COCO, 3 annotation files: adult, other" in words
    assert sum(len(photo.boxes) for photo in photos_of(workspace)) == 2691
    assert sum(len(tile.boxes) for tile in tiles_of(workspace)) >= 2600


@pytest.mark.real_data
def test_river_person(tmp_path):
    survey = real_survey("river_person")
    assert "'person' (0 boxes, 74 boxes)" in refused(tmp_path / "a", survey)
    workspace, _said = go(tmp_path, survey, resolution=128, classes={"person": "person"})
    assert sum(len(photo.boxes) for photo in photos_of(workspace)) == 74


@pytest.mark.real_data
def test_river_person_messy(tmp_path):
    survey = real_survey("river_person_messy")
    assert "107 of 109 categories look like positions" in refused(tmp_path / "a", survey)
    mapping = {"*": None, "person": "person"}
    workspace, words = go(tmp_path, survey, resolution=128, classes=mapping)
    assert dataset_of(workspace)["classes"] == ["person"]
    assert dataset_of(workspace)["touching_groups_across_splits"] == 2
    assert "cuts run through consecutive frames" in words
