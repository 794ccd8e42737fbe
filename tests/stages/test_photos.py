"""Photos: decoded whole and upright to 8-bit RGB, or refused with a reason; never changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from synthdet.stages import _photos
from tests.corrupt import whole_pictures

COLOUR = (200, 100, 40)


def flat(height: int = 21, width: int = 33) -> Image.Image:
    return Image.fromarray(np.full((height, width, 3), COLOUR, np.uint8))


@pytest.mark.parametrize("format_", ["WEBP", "AVIF", "PNG", "GIF", "JPEG2000", "BMP", "TIFF"])
def test_the_content_decides_not_the_name(tmp_path, format_):
    path = tmp_path / "a.jpg"
    flat().save(path, format=format_)
    assert np.abs(_photos.read_upright(path).astype(int) - COLOUR).max() <= 3


def test_a_file_may_not_choose_a_decoder_that_starts_a_program(tmp_path):
    path = tmp_path / "a.jpg"
    flat().save(path, format="EPS")
    assert _photos.inspect(path).reason == "is not a picture that can be read"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_black(tmp_path, mode):
    path = tmp_path / "a.png"
    if mode == "P":
        picture = Image.fromarray(np.eye(21, 33, dtype=np.uint8))
        picture.putpalette([*COLOUR, 255, 255, 255])
        picture.save(path, transparency=1)
    else:
        values = np.dstack([np.array(flat()), np.full((21, 33), 255, np.uint8)])
        values[np.eye(21, 33, dtype=bool)] = (255, 255, 255, 0)
        Image.fromarray(values).convert(mode).save(path)
    picture = _photos.read_upright(path)
    assert picture[3, 3].tolist() == [0, 0, 0]
    assert picture[3, 4].min() > 30


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((21, 33, 3), (40 * 257, 100 * 257, 200 * 257), np.uint16), COLOUR),
        (np.full((21, 33), 100 * 257, np.uint16), (100, 100, 100)),
        (np.full((21, 33), 0.5, np.float32), (128, 128, 128)),
        (np.full((21, 33), 200, np.float32), (200, 200, 200)),
    ],
    ids=["16 bit colour", "16 bit grey", "share", "float"],
)
def test_deep_pictures_keep_their_brightness(tmp_path, values, expected):
    path = tmp_path / "a.tif"
    assert cv2.imwrite(str(path), values)
    assert _photos.read_upright(path)[10, 20].tolist() == list(expected)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.linspace(28000, 28400, 21 * 33).reshape(21, 33).astype(np.uint16), "contrast"),
        (np.full((21, 33), np.nan, np.float32), "not finite"),
    ],
    ids=["temperatures", "nan"],
)
def test_deep_pictures_without_a_picture_are_told(tmp_path, values, reason):
    path = tmp_path / "a.tif"
    assert cv2.imwrite(str(path), values)
    assert reason in str(_photos.inspect(path).reason)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_every_orientation_in_every_format(tmp_path, format_, orientation):
    stored = np.zeros((21, 33, 3), np.uint8)
    stored[:8, :8] = 255
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "a.jpg"
    Image.fromarray(stored).save(path, format=format_, exif=exif)
    inspected = _photos.inspect(path)
    assert inspected.orientation == orientation
    assert inspected.stored_wh == (33, 21)
    assert (inspected.width, inspected.height) == ((33, 21) if orientation < 5 else (21, 33))
    upright = _photos.read_upright(path)
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}  # fmt: skip
    for place in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        assert (upright[place].min() > 150) == (place == corner[orientation])


@pytest.mark.parametrize("kind", ["png", "alpha", "grey 16", "palette"])
def test_a_png_with_damaged_pixels_is_not_taken_half(tmp_path, kind):
    content = bytearray(whole_pictures()[kind])
    start = content.index(b"IDAT") + 4
    content[start + 200 : start + 240] = bytes(40)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert "cannot be decoded whole" in str(_photos.inspect(path).reason)


@pytest.mark.parametrize("kind", sorted(whole_pictures()))
def test_half_a_file_is_refused_and_left_alone(tmp_path, kind):
    content = whole_pictures()[kind]
    path = tmp_path / "a.jpg"
    path.write_bytes(content[: len(content) // 2])
    before = path.stat().st_mtime_ns
    assert _photos.inspect(path).reason
    assert path.read_bytes() == content[: len(content) // 2]
    assert path.stat().st_mtime_ns == before


def test_a_file_larger_than_any_photo_is_not_opened(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    flat().save(path)
    monkeypatch.setattr(_photos, "_MAX_BYTES", 10)
    assert "decompression bomb" in str(_photos.inspect(path).reason)


def reasons(folder: Path) -> dict[str, Any]:
    return {entry.path: entry.reason for entry in _photos.list_files(folder).rejected}


def test_photos_in_formats_that_are_not_read_are_told(tmp_path):
    for name in ("a.HEIC", "b.dng", "b.jpg", "c.dng"):
        (tmp_path / name).write_bytes(b"x")
    assert set(reasons(tmp_path)) == {"a.HEIC", "c.dng"}
    assert "convert it" in reasons(tmp_path)["a.HEIC"]


def test_what_a_mac_and_windows_leave_in_folders_is_passed_over(tmp_path):
    """A zip packed on a Mac has a twin of every photo that is none, under the photo's own suffix."""
    (tmp_path / "day 1").mkdir()
    (tmp_path / "__MACOSX" / "day 1").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "day 1" / "whale.jpg")
    for name in (
        ".DS_Store",
        "day 1/._whale.jpg",
        "__MACOSX/day 1/._whale.jpg",
        "__MACOSX/day 1/whale.jpg",
    ):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    listing = _photos.list_files(tmp_path)
    assert listing.files == ("day 1/whale.jpg",)
    assert not listing.rejected


def test_names_that_are_no_text_are_told(tmp_path):
    place = os.fsencode(tmp_path) + b"/m\xe4nnlich"
    os.mkdir(place)  # noqa: PTH102 - a name in bytes
    for name in (b"/a.jpg", b"/a.txt"):
        Path(os.fsdecode(place + name)).write_bytes(b"x")
    listing = _photos.list_files(tmp_path)
    assert listing.files == ()
    assert reasons(tmp_path) == {"m?nnlich/a.jpg": "has a name that is no text in UTF-8: rename it"}


def test_links_in_circles_end(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "back").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "one.jpg").symlink_to(tmp_path / "two.jpg")
    (tmp_path / "two.jpg").symlink_to(tmp_path / "one.jpg")
    assert _photos.list_files(tmp_path).files == ()
    assert set(reasons(tmp_path)) == {"a/back", "one.jpg", "two.jpg"}
