"""Annotation files and pictures as they come out of a bad day: generated, seeded, small."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from synthdet.core.formats.coco import to_coco
from synthdet.core.formats.cvat import to_cvat
from synthdet.core.formats.labelme import to_labelme
from synthdet.core.formats.table import to_csv
from synthdet.core.formats.voc import to_voc
from synthdet.core.formats.yolo import to_yolo_lines
from synthdet.core.records import Box

Files = dict[str, bytes]
NAMES = ("seal", "pup")
PHOTOS = ("a.jpg", "b.jpg", "c.jpg")
WIDTH, HEIGHT = 64, 48
_BOXES = (
    (Box(xyxy=(10, 20, 15.5, 28), class_id=0), Box(xyxy=(30, 4, 60, 17), class_id=1)),
    (Box(xyxy=(1, 2, 30, 40.25), class_id=1),),
    (),
)
_WORDS = (
    "nan", "inf", "-inf", "1e400", "1e308", "-1e308", "-5", "0", "-0.0", "99999999999999999999",
    "9" * 5000, "", "null", "true", '"x"', "[]", "{}", "½", "١٢", "1,5", "0x10", "1_000", "\x00",
    "\\ud800", "🦭" * 50, "‮seal", "../../etc/passwd", "/etc/passwd", "C:\\photos\\a.jpg", "a" * 10000,
    "\x07", "\r", "&bomb;", "<!--", "]]>", '"', "'", ";", "\t", "\u2028", "\ufeff", "e", "Ä",
)  # fmt: skip


def whole_annotations(format_: str) -> Files:
    """Good annotations of `PHOTOS` in a format."""
    photos = [(name, WIDTH, HEIGHT, boxes) for name, boxes in zip(PHOTOS, _BOXES, strict=True)]
    texts: dict[str, str] = {}
    if format_ == "coco":
        texts["a.json"] = json.dumps(to_coco(photos, NAMES), indent=1)
    elif format_ == "cvat":
        texts["a.xml"] = to_cvat(photos, NAMES)
    elif format_ == "csv":
        texts["a.csv"] = to_csv(photos, NAMES)
    for name, width, height, boxes in photos:
        stem = name[0]
        if format_ == "yolo":
            texts[f"{stem}.txt"] = to_yolo_lines(boxes, width, height)
        elif format_ == "voc":
            texts[f"{stem}.xml"] = to_voc(name, width, height, boxes, NAMES)
        elif format_ == "labelme":
            texts[f"{stem}.json"] = json.dumps(to_labelme(name, width, height, boxes, NAMES))
    if format_ == "yolo":
        texts["data.yaml"] = "train: ../train/images\nnc: 2\nnames: [seal, pup]\n"
    return {name: text.encode() for name, text in texts.items()}


def corrupt_annotations(format_: str, rng: np.random.Generator) -> Files:
    """Annotations of `PHOTOS` with one or two things wrong in one of the files."""
    files = whole_annotations(format_)
    name = sorted(files)[int(rng.integers(len(files)))]
    for _time in range(int(rng.integers(1, 3))):
        kinds: list[Callable[[bytes, np.random.Generator], bytes]] = [
            *_BYTES,
            _number,
            _number,
            _word,
            _encoding,
            _line,
            _nonsense,
        ]
        if name.endswith(".json"):
            kinds += [_json_value] * 6
        if name.endswith(".xml"):
            kinds += [_doctype, _tag, _tag, _tag]
        files[name] = kinds[int(rng.integers(len(kinds)))](files[name], rng)
    if rng.random() < 0.03:  # under the name of another format
        suffix = (".json", ".xml", ".csv", ".txt", ".yaml")[int(rng.integers(5))]
        files[name.partition(".")[0] + suffix] = files.pop(name)
    return files


def whole_pictures() -> dict[str, bytes]:
    """Small pictures of every kind that is read, by a name for messages."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (28, 41, 3), dtype=np.uint8))
    grey = Image.fromarray(rng.integers(0, 65535, (28, 41), dtype=np.uint16))
    exif = Image.Exif()
    exif[274] = 6
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "jpeg": (rgb, {"format": "JPEG", "exif": exif}),
        "progressive": (rgb, {"format": "JPEG", "progressive": True}),
        "cmyk": (rgb.convert("CMYK"), {"format": "JPEG"}),
        "png": (rgb, {"format": "PNG", "exif": exif}),
        "palette": (rgb.convert("P"), {"format": "PNG", "transparency": 3}),
        "alpha": (rgb.convert("RGBA"), {"format": "PNG"}),
        "grey 16": (grey, {"format": "PNG"}),
        "tiff": (rgb, {"format": "TIFF", "exif": exif}),
        "lzw": (rgb, {"format": "TIFF", "compression": "tiff_lzw"}),
        "deflate": (grey, {"format": "TIFF", "compression": "tiff_deflate"}),
        "tiff jpeg": (rgb, {"format": "TIFF", "compression": "jpeg"}),
        "bmp": (rgb, {"format": "BMP"}),
        "webp": (rgb, {"format": "WEBP", "exif": exif}),
        "lossless": (rgb.convert("RGBA"), {"format": "WEBP", "lossless": True}),
        "avif": (rgb, {"format": "AVIF"}),
        "gif": (rgb, {"format": "GIF"}),
        "jpeg 2000": (rgb, {"format": "JPEG2000"}),
        "ppm": (rgb, {"format": "PPM"}),
    }
    pictures = {}
    for name, (image, options) in kinds.items():
        file = io.BytesIO()
        image.save(file, **options)
        pictures[name] = file.getvalue()
    return pictures


def corrupt_picture(content: bytes, rng: np.random.Generator) -> bytes:
    """A picture's file with one or two things wrong."""
    for _time in range(int(rng.integers(1, 3))):
        content = _BYTES[int(rng.integers(len(_BYTES)))](content, rng)
    return content


# --- what goes wrong -----------------------------------------------------------------------------


def _place(content: bytes | str, rng: np.random.Generator) -> int:
    return int(rng.integers(len(content) + 1))


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bits turned over, more often near the start, where headers are."""
    changed = bytearray(content)
    for _time in range(int(rng.integers(1, 20)) if changed else 0):
        end = len(changed) if rng.random() < 0.5 else min(len(changed), 64)
        changed[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: _place(content, rng)]


def _lose(content: bytes, rng: np.random.Generator) -> bytes:
    start = _place(content, rng)
    return content[:start] + content[start + int(rng.integers(1, 40)) :]


def _twice(content: bytes, rng: np.random.Generator) -> bytes:
    start, end = sorted((_place(content, rng), _place(content, rng)))
    return content[:end] + content[start:]


def _blot(content: bytes, rng: np.random.Generator) -> bytes:
    """A stretch of zeros, ones, or noise."""
    start = _place(content, rng)
    length = int(rng.integers(1, 64))
    blot = (b"\0" * length, b"\xff" * length, rng.bytes(length))[int(rng.integers(3))]
    return content[:start] + blot + content[start + length :]


def _nothing(content: bytes, rng: np.random.Generator) -> bytes:
    return (b"", b"\0" * len(content), b" \n", rng.bytes(len(content)))[int(rng.integers(4))]


_BYTES = (_flip, _flip, _cut, _lose, _twice, _blot, _nothing)


def _replace(pattern: str, content: bytes, rng: np.random.Generator) -> bytes:
    text = content.decode("utf-8", "surrogateescape")
    found = list(re.finditer(pattern, text))
    if not found:
        return content
    one = found[int(rng.integers(len(found)))]
    word = _WORDS[int(rng.integers(len(_WORDS)))]
    return (text[: one.start()] + word + text[one.end() :]).encode("utf-8", "surrogateescape")


def _number(content: bytes, rng: np.random.Generator) -> bytes:
    return _replace(r"-?\d+(\.\d+)?", content, rng)


def _word(content: bytes, rng: np.random.Generator) -> bytes:
    return _replace(r"[A-Za-z_.]+", content, rng)


def _tag(content: bytes, rng: np.random.Generator) -> bytes:
    return _replace(r"</?[a-z]+[^>]*>|[a-z]+=\"[^\"]*\"", content, rng)


def _line(content: bytes, rng: np.random.Generator) -> bytes:
    """A line lost, doubled, or with columns too few or too many."""
    lines = content.split(b"\n")
    place = int(rng.integers(len(lines)))
    columns = lines[place].split(b"," if b"," in lines[place] else b" ")
    changes: list[list[bytes]] = [
        [],
        [lines[place]] * 2,
        [b" ".join(columns[:-1])],
        [b",".join(columns * 2)],
        [lines[place] * 40],
    ]
    return b"\n".join([*lines[:place], *changes[int(rng.integers(5))], *lines[place + 1 :]])


def _encoding(content: bytes, rng: np.random.Generator) -> bytes:
    text = content.decode("utf-8", "replace")
    changed = (
        text.replace("\n", "\r\n").encode(),
        text.replace("\n", "\r").encode(),
        b"\xef\xbb\xbf" + content,
        text.encode("utf-16"),
        text.encode("utf-16-be"),
        text.replace("seal", "phoque gris mâle").encode("cp1252", "replace"),
        text.replace("seal", "\x85 海豹 \u2028").encode(),
    )
    return changed[int(rng.integers(len(changed)))]


def _nonsense(content: bytes, rng: np.random.Generator) -> bytes:
    many = 100_000
    texts = (
        b"[" * many, b'{"a":' * many, b"<a>" * many, b"- " * 3000, b"0 " * many, b"," * many,
        b"a: &a [*a]\n", b"names: &n [*n, *n]\nnc: 1\n", b"names: !!python/object:os.system {}\n",
        b"null", b"3", b"[]", b"{}", b"NaN", b'"', b"<a/>", b"<annotation/>", b"<annotations/>",
        b'{"images": [], "annotations": [], "categories": []}', b'{"shapes": [], "imagePath": 3}',
    )  # fmt: skip
    return texts[int(rng.integers(len(texts)))]


def _doctype(content: bytes, rng: np.random.Generator) -> bytes:
    entities = b"".join(
        b'<!ENTITY e%d "%s">' % (number + 1, b"&e%d;" % number * 10) for number in range(9)
    )
    doctypes = (
        b'<!DOCTYPE a [<!ENTITY e0 "seal">' + entities + b"]>",
        b'<!DOCTYPE a [<!ENTITY e9 SYSTEM "file:///etc/passwd">]>',
        b'<!DOCTYPE a SYSTEM "file:///etc/passwd">',
        b'<?xml version="1.0" encoding="klingon"?>',
        b'<?xml version="1.0" encoding="utf-16"?>',
    )
    return doctypes[int(rng.integers(5))] + content.replace(b"seal", b"&e9;")


def _json_value(content: bytes, rng: np.random.Generator) -> bytes:
    """A value somewhere inside replaced by one of another type, or its key lost."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return content
    values: tuple[Any, ...] = (
        None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**400, "", "x", "5", [], {}, [[]],
        ["a", "b", "c", "d"], {"size": [0, 0], "counts": [1, 1]}, {"size": [9, 9], "counts": "\x7f~~"},
        {"size": [48, 64], "counts": [3, -7]}, [[1, 2, 3]], "\ud800", [1, 2, 3, None], [[1e308] * 8],
    )  # fmt: skip
    value = values[int(rng.integers(len(values)))]
    place = fields
    while isinstance(place, dict | list) and place:
        keys: list[Any] = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = keys[int(rng.integers(len(keys)))]
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
            if rng.random() < 0.2:
                del place[key]
            else:
                place[key] = value
            break
        place = place[key]
    return json.dumps(fields).encode()
