"""What an export's files hold: no place, no serial number, the mark of what a model drew; VOC; whole photos."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from synthdet.core.formats.safe_xml import parse_xml
from synthdet.core.formats.voc import from_voc
from synthdet.core.metadata import TRAINED_ALGORITHMIC_MEDIA
from synthdet.core.records import Box, ManifestEntry, Photo, SyntheticImage, Tile
from synthdet.errors import SynthdetError
from synthdet.stages import export_write
from synthdet.stages.export_write import DatasetWriter
from synthdet.workspace import hash_file, read_records, write_json, write_records
from tests.core.test_metadata import SECRETS, drone_jpeg, drone_png
from tests.handmade import CLASSES, file_bytes, finish
from tests.stages.test_export import Run, labelled, manifest, run, synthetic

__all__ = ["labelled"]
SIZE_WH = (44, 30)  # of the drone's pictures


def change_tile(labelled: Run, tile_id: str, content: bytes, suffix: str) -> None:
    """Let a tile be another file, as its record says."""
    folder = labelled[0].stage("prepare")
    tiles = read_records(folder.path / "tiles.jsonl", Tile)
    for index, tile in enumerate(tiles):
        if tile.tile_id == tile_id:
            path = (labelled[0].root / tile.path).with_suffix(suffix)
            path.write_bytes(content)
            box = Box(xyxy=(1.5, 2, 20, 21.25), class_id=1)
            changed = {
                "path": labelled[0].relative(path),
                "sha256": hash_file(path),
                "boxes": (box,),
            }
            changed |= {"width": SIZE_WH[0], "height": SIZE_WH[1]}
            tiles[index] = tile.model_copy(update=changed)
    write_records(folder.path / "tiles.jsonl", tiles)
    finish(folder, ["tiles.jsonl", "dataset.json"])


def told(path: Path) -> set[bytes]:
    content = path.read_bytes()
    return {secret for secret in SECRETS if secret in content}


@pytest.mark.parametrize(("content", "suffix"), [(drone_jpeg(1), ".jpg"), (drone_png(1), ".png")])
def test_no_place_and_no_serial_number_leaves(labelled: Run, content: bytes, suffix: str) -> None:
    change_tile(labelled, "train-001", content, suffix)
    run(labelled)
    workspace, entry = labelled[0], manifest(labelled)["train-001"]
    path = workspace.root / entry.yolo_path
    assert path.suffix == suffix
    assert not told(path)
    with Image.open(path) as image:
        assert not image.getexif()
        assert not image.getxmp()
        image.load()
    assert entry.sha256 == hash_file(path) != entry.provenance["copy_of"]
    for every in (workspace.root / "6-export").rglob("*"):
        assert not every.is_file() or not told(every), every


def test_metadata_is_kept_if_asked_for(labelled: Run) -> None:
    change_tile(labelled, "train-001", drone_jpeg(1), ".jpg")
    run(labelled, "export.keep_metadata=true")
    entry = manifest(labelled)["train-001"]
    with Image.open(labelled[0].root / entry.yolo_path) as image:
        assert image.getexif().get_ifd(0x8825)[1] == "N"
    assert "copy_of" not in entry.provenance


@pytest.mark.parametrize("keep", [False, True])
def test_synthetic_pictures_say_that_a_model_drew_them(labelled: Run, keep: bool) -> None:
    run(labelled, f"export.keep_metadata={keep}")
    workspace = labelled[0]
    for entry in manifest(labelled).values():
        with Image.open(workspace.root / entry.yolo_path) as image:
            xmp = image.getxmp()
        if entry.source == "synthetic":
            told = xmp["xmpmeta"]["RDF"]["Description"]["DigitalSourceType"]
            assert told == TRAINED_ALGORITHMIC_MEDIA
        else:
            assert not xmp
    images = workspace.stage("generate").path / "images.jsonl"
    source = {one.image_id: one for one in read_records(images, SyntheticImage)}
    some = manifest(labelled)[synthetic(labelled)[0]]
    assert some.provenance["copy_of"] == source[some.image_id].sha256
    with (
        Image.open(workspace.root / some.yolo_path) as new,
        Image.open(workspace.root / source[some.image_id].path) as old,
    ):
        assert np.array_equal(np.asarray(new), np.asarray(old))


def test_pascal_voc_holds_the_same(labelled: Run) -> None:
    workspace = labelled[0]
    run(labelled)
    folder, entries = workspace.root / "6-export/voc", manifest(labelled)
    listed = {}
    for split in ("train", "val", "test"):
        for name in (folder / f"ImageSets/Main/{split}.txt").read_text().split():
            listed[name] = split
    assert listed == {name: entry.split for name, entry in entries.items()}
    assert {path.stem for path in (folder / "Annotations").iterdir()} == {*entries}
    for entry in entries.values():
        file = from_voc(parse_xml((folder / f"Annotations/{entry.image_id}.xml").read_bytes()))
        (photo,) = file.photos
        picture = folder / "JPEGImages" / photo.file_name
        assert picture.samefile(workspace.root / entry.yolo_path)
        assert photo.size_wh == (entry.width, entry.height)
        assert [file.class_names[box.class_id] for box in photo.boxes] == [
            CLASSES[box.class_id] for box in entry.boxes
        ]
        for box, other in zip(photo.boxes, entry.boxes, strict=True):
            assert box.xyxy == pytest.approx(other.xyxy, abs=1e-3)
    run(labelled, "export.voc=false")
    assert not folder.exists()


def make_photos(labelled: Run, folder: Path) -> list[Photo]:
    """Photos of three splits as the drone wrote them: upright, turned, and in a format of its own."""
    folder.mkdir()
    (folder / "a.JPG").write_bytes(drone_jpeg(1))
    (folder / "b.jpg").write_bytes(drone_jpeg(6))
    (folder / "train.jpg").write_bytes(drone_jpeg(3))
    with Image.open(folder / "a.JPG") as image:
        image.save(folder / "c.webp", lossless=True)
        image.convert("CMYK").save(folder / "d.jpg")
    photos = []
    for path in sorted(folder.iterdir()):
        turned = path.name == "b.jpg"
        box = Box(xyxy=(1, 2, 9, 11), class_id=0)
        photos.append(
            Photo(
                image_id=f"photo-{path.stem}", path=path.name, sha256=hash_file(path),
                width=SIZE_WH[turned], height=SIZE_WH[not turned], group="g",
                split="train" if path.stem == "train" else "test", boxes=(box,),
            )
        )  # fmt: skip
    prepare = labelled[0].stage("prepare")
    write_records(prepare.path / "photos.jsonl", photos)
    write_json(prepare.path / "dataset.json", {"classes": list(CLASSES), "photos": str(folder)})
    finish(prepare, ["tiles.jsonl", "dataset.json"])
    return photos


def test_whole_test_photos_are_kept(labelled: Run, tmp_path: Path) -> None:
    photos = make_photos(labelled, tmp_path / "photos")
    before = file_bytes(tmp_path / "photos")
    run(labelled)
    frames = labelled[0].root / "6-export/frames"
    entries = {one.image_id: one for one in read_records(frames / "manifest.jsonl", ManifestEntry)}
    assert {*entries} == {photo.image_id for photo in photos if photo.split == "test"}
    suffixes = {"photo-a": ".jpg", "photo-b": ".png", "photo-c": ".png", "photo-d": ".png"}
    for entry in entries.values():
        path = labelled[0].root / entry.yolo_path
        assert path.suffix == suffixes[entry.image_id]
        assert not told(path)
        with Image.open(path) as image:
            assert image.size == (entry.width, entry.height)  # upright, for every reader
            assert not image.getexif()
            assert image.mode == "RGB"
        label = (frames / f"yolo/labels/test/{entry.image_id}.txt").read_text()
        assert len(label.splitlines()) == 1
    assert file_bytes(tmp_path / "photos") == before
    assert "photo-a" not in manifest(labelled)
    (frames / "yolo/labels/test/photo-a.txt").unlink()
    run(labelled)
    assert (frames / "yolo/labels/test/photo-a.txt").exists()
    run(labelled, "export.whole_frames=false")
    assert not frames.exists()


def test_a_whole_photo_that_is_gone_or_changed_is_named(labelled: Run, tmp_path: Path) -> None:
    make_photos(labelled, tmp_path / "photos")
    (tmp_path / "photos/c.webp").write_bytes(drone_jpeg(1))
    with pytest.raises(SynthdetError, match=r"c\.webp is not the photo that prepare read"):
        run(labelled)
    (tmp_path / "photos/c.webp").unlink()
    with pytest.raises(SynthdetError, match=r"c\.webp is missing.*export\.whole_frames=false"):
        run(labelled)


def test_the_same_content_is_stored_once(labelled: Run) -> None:
    content = drone_jpeg(1)  # its colour profile tells the second it was made in
    for name in ("train-001", "val-000", "test-001"):
        change_tile(labelled, name, content, ".jpg")
    run(labelled)
    paths = [labelled[0].root / manifest(labelled)[name].yolo_path for name in ("train-001", "val-000", "test-001")]  # fmt: skip
    assert len({path.stat().st_ino for path in paths}) == 1
    assert not paths[0].samefile(labelled[0].root / "1-prepare/tiles/train/train-001.jpg")


def test_one_thread_or_many_copy_the_same(labelled: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train-001", "train-004", "val-000"):  # the second and third become links
        change_tile(labelled, name, drone_jpeg(1), ".jpg")
    run(labelled)
    whole = file_bytes(labelled[0].root / "6-export")
    run(labelled, "export.num_synthetic=0")
    monkeypatch.setattr(DatasetWriter, "copying", lambda *_arguments: contextlib.nullcontext())
    run(labelled)
    assert file_bytes(labelled[0].root / "6-export") == whole


def test_a_content_with_too_many_names_is_copied_anew(
    labelled: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_write, "_MOST_USES", 2)
    content, names = drone_jpeg(1), [f"train-00{number}" for number in range(7)]
    for name in names:
        change_tile(labelled, name, content, ".jpg")
    run(labelled)
    paths = [labelled[0].root / manifest(labelled)[name].yolo_path for name in names]
    nodes = [path.stat().st_ino for path in paths]
    assert [nodes.index(node) for node in nodes] == [0, 0, 0, 3, 3, 3, 6]
    assert len({path.read_bytes() for path in paths}) == 1


def test_without_hard_links_there_are_copies(
    labelled: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(labelled)
    whole = file_bytes(labelled[0].root / "6-export")

    def no_link(*_arguments: Any) -> None:
        raise OSError(errno.EMLINK, "Too many links")

    monkeypatch.setattr(os, "link", no_link)
    run(labelled, "export.num_synthetic=0")
    run(labelled)
    assert file_bytes(labelled[0].root / "6-export") == whole


def test_a_picture_that_was_changed_since_is_refused(labelled: Run) -> None:
    path = labelled[0].root / "1-prepare/tiles/train/train-003.png"
    Image.effect_noise((72, 48), 9).convert("RGB").save(path)
    with pytest.raises(SynthdetError, match=r"train-003\.png is not the picture that its record"):
        run(labelled)
    assert not (labelled[0].root / "6-export/manifest.jsonl").exists()
