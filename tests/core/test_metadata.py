"""Places and serial numbers leave no exported picture; the mark of synthetic ones stays in it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from synthdet.core.metadata import TRAINED_ALGORITHMIC_MEDIA, mark_synthetic, strip_metadata

SERIAL = "1581F5FH7235001"
DJI = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/" '
    f'drone-dji:GpsLatitude="+63.4305149" drone-dji:DroneSerialNumber="{SERIAL}"/>'
    "</rdf:RDF></x:xmpmeta>"
).encode()
SECRETS = (b"drone-dji", b"63.43", SERIAL.encode(), b"DJI Mavic", b"Home beach", b"hidden behind")


def a_picture() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (30, 44, 3), dtype=np.uint8))


def exif_bytes(orientation: int) -> Image.Exif:
    """As a drone writes it: where, with what, which way up."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F], exif[0x0110] = "DJI", "DJI Mavic 3E"
    exif[0x8825] = {1: "N", 2: (63.0, 25.0, 49.85), 3: "E", 4: (10.0, 23.0, 42.0)}
    exif[0x8769] = {0xA431: SERIAL, 0x9003: "2025:06:01 12:00:00"}
    return exif


def drone_jpeg(orientation: int, **options: Any) -> bytes:
    buffer = io.BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    a_picture().save(
        buffer, "JPEG", exif=exif_bytes(orientation), xmp=DJI, comment=b"Home beach",
        icc_profile=profile, quality=90, **options,
    )  # fmt: skip
    return buffer.getvalue() + b"hidden behind the end"


def drone_png(orientation: int) -> bytes:
    buffer, text = io.BytesIO(), PngInfo()
    text.add_text("Location", "Home beach 63.43")
    text.add_text("Serial", SERIAL, zip=True)
    text.add_itxt("XML:com.adobe.xmp", DJI.decode())
    a_picture().save(buffer, "PNG", exif=exif_bytes(orientation), pnginfo=text)
    return buffer.getvalue() + b"hidden behind the end"


KINDS = {
    "jpeg": drone_jpeg,
    "progressive jpeg": lambda way: drone_jpeg(way, progressive=True),
    "jpeg with restarts": lambda way: drone_jpeg(way, restart_marker_blocks=2),
    "png": drone_png,
}


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_told_but_the_pixels(kind: str, orientation: int) -> None:
    before = KINDS[kind](orientation)
    with Image.open(io.BytesIO(before)) as image:
        assert image.getexif().get_ifd(0x8825)
        assert "DroneSerialNumber" in str(image.getxmp())
    after = strip_metadata(before)
    assert after is not None
    assert not [secret for secret in SECRETS if secret in after]
    with Image.open(io.BytesIO(before)) as old, Image.open(io.BytesIO(after)) as new:
        new.load()
        exif = new.getexif()
        assert dict(exif) == ({0x0112: orientation} if orientation != 1 else {})
        assert not exif.get_ifd(0x8825)
        assert not exif.get_ifd(0x8769)
        assert not new.getxmp()
        assert not {*new.info} & {"comment", "Location", "Serial", "xmp"}
        assert new.info.get("icc_profile") == old.info.get("icc_profile")
        assert np.array_equal(np.asarray(old), np.asarray(new))
    assert strip_metadata(after) == after
    if orientation == 1:
        assert strip_metadata(after) is after  # nothing to cut out: not copied in memory


@pytest.mark.parametrize("kind", KINDS)
def test_a_synthetic_picture_says_so(kind: str) -> None:
    clean = strip_metadata(KINDS[kind](6))
    assert clean is not None
    marked = mark_synthetic(clean)
    with Image.open(io.BytesIO(clean)) as old, Image.open(io.BytesIO(marked)) as new:
        told = new.getxmp()["xmpmeta"]["RDF"]["Description"]
        assert told["DigitalSourceType"] == TRAINED_ALGORITHMIC_MEDIA
        assert new.getexif().get(0x0112) == 6
        assert np.array_equal(np.asarray(old), np.asarray(new))
    assert strip_metadata(marked) == clean  # nothing else was put in


def test_markers_may_be_padded() -> None:
    jpeg = drone_jpeg(1, restart_marker_blocks=2)
    tables, end = jpeg.index(b"\xff\xdb"), jpeg.rindex(b"\xff\xd9")
    padding = b"\xff\xff\xff"
    padded = jpeg[:tables] + padding + jpeg[tables:end] + padding + jpeg[end:]
    assert strip_metadata(padded) == strip_metadata(jpeg)


def test_modes_survive() -> None:
    for mode in ("L", "P", "RGBA", "LA", "I;16", "1"):
        buffer = io.BytesIO()
        picture = (
            a_picture().convert(mode) if mode != "I;16" else a_picture().convert("L").convert(mode)
        )
        picture.save(buffer, "PNG")
        assert strip_metadata(buffer.getvalue()) == buffer.getvalue()
    buffer = io.BytesIO()
    a_picture().convert("CMYK").save(buffer, "JPEG")
    stripped = strip_metadata(buffer.getvalue())
    assert stripped is not None
    with Image.open(io.BytesIO(stripped)) as image, Image.open(buffer) as old:
        assert np.array_equal(np.asarray(image), np.asarray(old))


def test_what_cannot_be_read_to_its_end_is_left_to_a_decoder() -> None:
    jpeg, png = drone_jpeg(1), drone_png(1)
    assert strip_metadata(jpeg[: len(jpeg) // 2]) is None
    assert strip_metadata(png[: len(png) // 2]) is None
    assert strip_metadata(b"RIFF0000WEBP") is None
    assert strip_metadata(b"") is None
    with pytest.raises(ValueError, match="neither"):
        mark_synthetic(b"RIFF")


@given(st.sampled_from(["jpeg", "png"]), st.data())
def test_no_bytes_are_a_crash(kind: str, data: st.DataObject) -> None:
    content = bytearray(KINDS[kind](6))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    strip_metadata(bytes(content[: data.draw(st.integers(0, len(content)))]))
